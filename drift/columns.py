"""Rows as serving paths have them, made into named columns of few types.

Serving paths hold a numpy array, a DataFrame, columns by name, or rows as lists or objects. A block
holds columns, each an array of one of four kinds: ``float64``, ``int64``, ``bool`` or ``object``
(texts and None; where values are of several types, whatever JSON can say of them). Missing numbers
are NaN. Nothing is parsed or rounded: that a number came as a text is what a monitor wants to see.
What is none of these (times, decimals, bytes, pandas' NA) becomes what ``drift.bins`` counts it as,
so that a recorded value falls into the bin of the raw one.

Example::

    columns_of([{"age": 41, "job": "smith"}, {"age": None, "job": "cook"}], rows=2)
    # {"age": array([41., nan]), "job": array(["smith", "cook"], dtype=object)}
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.bins import absent, category_of, numbers_of
from drift.embedding import components_of

__all__ = ["Column", "columns_of", "joined", "typed", "unicode_of"]

Column = NDArray[Any]
"""(n,) of float64, int64, bool or object."""

_MOST_COLUMNS = 20_000
_LONGEST_NAME = 200
_NONE = type(None)
_PLAIN = {str, float, int, bool, _NONE}
_NUMBERS = (Real, Decimal, datetime)
_EXACT = 1 << 53
"""Every whole number up to this is a float64."""


def unicode_of(text: Any) -> str:
    """A text as files can hold it: a lone surrogate, which is no Unicode, is written out."""
    found = str(text)
    return found if found.isascii() else found.encode("utf-8", "backslashreplace").decode()


def typed(values: Any, category: bool = False) -> Column:
    """A sequence of values as one of the four kinds.

    Args:
        values: The sequence.
        category: Whether a profile counts it by categories, not as numbers.

    Raises:
        ValueError: it is no flat sequence.
    """
    if hasattr(values, "to_numpy"):
        values = values.to_numpy()
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise ValueError(f"a column of shape {values.shape}")
        kind = values.dtype.kind
        if kind == "f":
            return values.astype(np.float64, copy=False)
        if kind == "b":
            return values
        if kind in "iu" and values.dtype != np.uint64:
            return values.astype(np.int64, copy=False)
        if kind in "mM":
            return _objects(list(map(category_of, values))) if category else numbers_of(values)[0]
        values = values.tolist()
    return _of_list(list(values), category)


def _of_list(values: list[Any], category: bool) -> Column:
    kinds = set(map(type, values))
    if not kinds <= _PLAIN:
        values = _plain(values, category)
        kinds = set(map(type, values))
    try:
        if kinds == {int}:
            return np.array(values, dtype=np.int64)
        if kinds <= {float, int, _NONE} and kinds - {_NONE} and _exact(values, kinds):
            return np.array(values, dtype=np.float64)
        if kinds == {bool}:
            return np.array(values, dtype=np.bool_)
    except OverflowError:  # an integer that no 64 bits hold
        pass
    if float in kinds:  # among texts, as pandas has what is missing
        values = [None if value != value else value for value in values]
    return _objects(values)


def _objects(values: list[Any]) -> Column:
    column = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        column[place] = value
    return column


def _exact(values: list[Any], kinds: set[type]) -> bool:
    """Whether its integers, which may be names, are as floats what they were."""
    return int not in kinds or all(-_EXACT <= v <= _EXACT for v in values if type(v) is int)


def _plain(values: list[Any], category: bool) -> list[Any]:
    """Values as JSON can say them, such that they are counted as before: times and decimals as the
    numbers, or the categories, that ``drift.bins`` counts; what is missing as None."""
    values = [value if type(value) in _PLAIN else _said(value, category) for value in values]
    places = [i for i, value in enumerate(values) if isinstance(value, _NUMBERS)]
    places = [place for place in places if type(values[place]) not in _PLAIN]
    if places:
        numbers, strange = numbers_of(_objects([values[place] for place in places]))
        for place, number, text in zip(places, numbers.tolist(), strange.tolist(), strict=True):
            values[place] = str(values[place]) if text else number
    return values


def _said(value: Any, category: bool) -> Any:
    if absent(value):
        return None
    if isinstance(value, np.timedelta64 | np.datetime64):
        return str(value)
    if isinstance(value, np.integer | np.bool_ | np.float64 | np.str_):
        return value.item()
    if category:
        return category_of(value)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def columns_of(
    data: Any,
    rows: int,
    names: Sequence[str] | None = None,
    alone: str = "",
    vectors: Mapping[str, int] | None = None,
    known: Collection[str] = (),
) -> dict[str, Any]:
    """Columns by name; not typed yet, for they may be joined with others first.

    Args:
        data: Array (rows, width), columns by name, DataFrame, or a list of rows.
        rows: How many there are.
        names: Of an array's columns; their places where not given.
        alone: The name of a single unnamed column, as predictions have; others are
            ``alone.0``, ``alone.1`` …
        vectors: Embedding → its width; a column of vectors becomes one of each component.
        known: Names that are no client's; others are cut where they are long.

    Raises:
        ValueError: what is not ``rows`` rows, or has no sense as a table.
    """
    if hasattr(data, "columns") and hasattr(data, "to_numpy"):  # a DataFrame, unimported
        data = {str(name): data[name].to_numpy() for name in data.columns}
    elif hasattr(data, "to_numpy"):
        data = data.to_numpy()
    if isinstance(data, Mapping):
        found = _of_mapping(data, vectors or {}, {*known, *(vectors or ()), *(names or ())})
    elif isinstance(data, np.ndarray):
        found = _of_array(data, rows, names, alone)
    elif isinstance(data, list | tuple):
        found = _of_rows(data, rows, names, alone, {*known, *(vectors or ()), *(names or ())})
    else:
        raise ValueError(f"data of type {type(data).__name__}")
    for name in vectors or () if isinstance(data, Mapping | list | tuple) else ():
        if name in found:
            found |= components_of(name, found.pop(name), (vectors or {})[name])
    if not found:
        raise ValueError("no columns at all")
    if len(found) > _MOST_COLUMNS:
        raise ValueError(f"{len(found)} columns, more than {_MOST_COLUMNS}")
    for name, values in found.items():
        if len(values) != rows:
            raise ValueError(f"column {name!r} has {len(values)} of {rows} rows")
    return found


def _name(name: Any, known: Container[str]) -> str:
    found = unicode_of(name)
    return found if found in known else found[:_LONGEST_NAME]


def _of_mapping(
    data: Mapping[Any, Any], vectors: Container[str], known: Container[str]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, values in data.items():
        name = _name(name, known)
        matrix = isinstance(values, np.ndarray) and values.ndim == 2
        if matrix and name not in vectors:
            found.update({f"{name}.{place}": values[:, place] for place in range(values.shape[1])})
        elif isinstance(values, np.ndarray | list | tuple) or hasattr(values, "to_numpy"):
            found[name] = values
        else:
            raise ValueError(f"column {name!r} is no sequence")
    return found


def _of_array(
    data: NDArray[Any], rows: int, names: Sequence[str] | None, alone: str
) -> dict[str, Any]:
    if data.ndim == 1:
        if alone:
            return {alone: data}
        data = data.reshape(1, -1) if rows == 1 else data.reshape(-1, 1)
    if data.ndim != 2:
        raise ValueError(f"an array of shape {data.shape}")
    width = data.shape[1]
    if width > _MOST_COLUMNS:
        raise ValueError(f"{width} columns, more than {_MOST_COLUMNS}")
    if names is None or alone:
        names = [f"{alone}.{place}" if alone else str(place) for place in range(width)]
    if len(names) != width:
        raise ValueError(f"{width} columns where {len(names)} are known")
    return {name: data[:, place] for place, name in enumerate(names)}


def _of_rows(
    data: Sequence[Any],
    rows: int,
    names: Sequence[str] | None,
    alone: str,
    known: Container[str],
) -> dict[str, Any]:
    if all(isinstance(row, Mapping) for row in data):
        found = dict.fromkeys(chain.from_iterable(data))
        return {_name(name, known): [row.get(name) for row in data] for name in found}
    if all(isinstance(row, list | tuple | np.ndarray) for row in data):
        widths = {len(row) for row in data}
        if len(widths) > 1:
            raise ValueError(f"rows of {min(widths)} to {max(widths)} values")
        width = widths.pop()
        if names is None or alone:
            names = [f"{alone}.{place}" if alone else str(place) for place in range(width)]
        if len(names) != width:
            raise ValueError(f"{width} columns where {len(names)} are known")
        return dict(zip(names, map(list, zip(*data, strict=True)), strict=True))
    if alone:
        return {alone: data}
    if rows == 1 and names is not None and len(names) == len(data):  # a row, flat
        return {name: [value] for name, value in zip(names, data, strict=True)}
    raise ValueError("rows that are neither lists nor objects")


def joined(
    parts: Sequence[tuple[int, Mapping[str, Any]]], categories: Container[str] = ()
) -> dict[str, Column]:
    """Tables one below the other; (rows, columns) each. A column that one lacks is missing there.

    Args:
        parts: The tables.
        categories: Columns that a profile counts by categories.

    Raises:
        ValueError: a column is no flat sequence.
    """
    names = list(dict.fromkeys(chain.from_iterable(table for _, table in parts)))
    return {name: _joined_column(name, parts, name in categories) for name in names}


def _joined_column(
    name: str, parts: Sequence[tuple[int, Mapping[str, Any]]], category: bool
) -> Column:
    found = [table.get(name) for _, table in parts]
    if len(found) == 1 and found[0] is not None:
        return typed(found[0], category)
    kinds = {part.dtype.kind if isinstance(part, np.ndarray) else "" for part in found}
    if len(kinds) == 1 and kinds <= {"f", "i", "b"}:
        return typed(np.concatenate(found))  # type: ignore[arg-type]
    values: list[Any] = []
    for (rows, _), part in zip(parts, found, strict=True):
        if part is None:
            values += [None] * rows
        else:
            values += part if isinstance(part, list) else typed(part, category).tolist()
    return typed(values, category)
