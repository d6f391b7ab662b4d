"""Rows as named columns, whatever container they come in; pandas is never imported.

Example::

    columns, rows = aligned(columns_of(frame), None)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from governance.errors import MalformedRequestError

__all__ = ["Table", "aligned", "clean_name", "columns_of", "one_dimensional"]

_LONGEST_NAME = 128

Table = Any
"""A mapping of names to arrays (n,), a data frame, a structured array, or a matrix (n, d)."""


def columns_of(table: Table, what: str = "rows") -> dict[str, Any]:
    """The columns of a table by name, as they are; a matrix's are named ``0``, ``1``, ….

    Raises:
        MalformedRequestError: two columns of one name, or not a table.
    """
    if table is None:
        return {}
    if isinstance(table, Mapping):
        names, columns = list(table), list(table.values())
    elif isinstance(table, np.ndarray):
        if table.dtype.names is not None:
            names = list(table.dtype.names)
            columns = [table[name] for name in names]
        elif table.ndim == 2:
            names, columns = list(range(table.shape[1])), list(table.T)
        else:
            raise _no_table(table, what)
    elif hasattr(table, "columns") and hasattr(table, "iloc"):
        names = list(table.columns)
        columns = [table.iloc[:, place] for place in range(len(names))]  # also of equal names
    else:
        raise _no_table(table, what)
    texts = list(map(str, names))
    if len(set(texts)) != len(texts):
        twice = sorted({name for name in texts if texts.count(name) > 1})
        raise MalformedRequestError(
            f"the {what} have the column {twice[0]!r} twice", "give every column its own name"
        )
    if "" in texts:
        raise MalformedRequestError(
            f"the {what} have a column without a name", "give every column a name"
        )
    return dict(zip(texts, columns, strict=True))


def _no_table(table: object, what: str) -> MalformedRequestError:
    return MalformedRequestError(
        f"the {what} are of type {type(table).__name__}, which has no named columns",
        "pass a mapping of names to arrays, a data frame or a structured array",
    )


def one_dimensional(values: ArrayLike, name: str) -> NDArray[Any]:
    """One column as an array (n,), whatever container it came in.

    Raises:
        MalformedRequestError: it has more dimensions than one, or none.
    """
    try:
        array = np.asarray(values)
    except ValueError:  # rows of differing lengths
        array = np.empty((0, 0))
    if array.ndim != 1:
        raise MalformedRequestError(
            f"column {name!r} has the shape {array.shape}, not one value a row",
            "pass vectors as embeddings, and everything else as one column each",
        )
    return array


def aligned(columns: dict[str, Any], rows: int | None) -> tuple[dict[str, NDArray[Any]], int]:
    """Columns as arrays of one length, and that length."""
    arrays = {
        name: values if type(values) is np.ndarray and values.ndim else _array(values)
        for name, values in columns.items()
    }
    if rows is None:
        rows = len(next(iter(arrays.values()), ()))
    if set(map(len, arrays.values())) <= {rows}:
        return arrays, rows
    name = next(name for name, array in arrays.items() if len(array) != rows)
    raise MalformedRequestError(
        f"column {name!r} has {len(arrays[name])} values in a block of {rows} rows",
        "send a value a row for every column",
    )


def _array(values: Any) -> NDArray[Any]:
    """An array whose first dimension are the rows, also of ragged lists."""
    if not isinstance(values, np.ndarray) and isinstance(values, list | tuple):
        try:
            array = np.array(values)
        except ValueError:  # rows of differing lengths, or some without a vector
            array = np.empty((0, 0))
        if array.ndim != 1 or array.dtype.kind in "US":
            # Lists of vectors stay vectors; numbers among texts stay numbers.
            array = np.empty(len(values), dtype=object)
            for place, value in enumerate(values):
                array[place] = value
        return array
    array = np.asarray(values)
    return array if array.ndim else array.reshape(1)


def clean_name(name: str) -> str:
    """A name from outside as a document can hold it: short, and without lone surrogates."""
    return name[:_LONGEST_NAME].encode(errors="replace").decode()
