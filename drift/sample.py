"""A sample of rows: what detectors compare. Numeric columns as numbers, the others as texts.

Missing is NaN in ``numbers`` and None in ``categories``; both are counted, never dropped silently.
Rows keep the order in which they came, also when some of them are drawn. Two samples are compared
by column name (``aligned``): another order is put right, a missing column or one whose kind changed
is an error, a column that the reference does not know is left out and told.

Example::

    sample = Sample.of_columns({"age": [31, 47], "region": ["west", None]})
    sample.numbers       # array([[31.], [47.]])
    sample.categories    # array([['west'], [None]], dtype=object)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from governance.errors import MalformedRequestError

__all__ = ["MOST_ROWS", "Floats", "Kind", "Sample", "Texts", "aligned", "within_columns"]

Floats = NDArray[np.float64]
Texts = NDArray[np.object_]

MOST_ROWS = 2_000
"""Rows that detectors look at: a kernel test's memory grows with their square."""


class Kind(StrEnum):
    NUMERIC = "numeric"
    CATEGORICAL = "categorical"


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """See the module. All parts have the same rows.

    Attributes:
        names: Of all columns.
        kinds: Of each name.
        numbers: (rows, numeric columns), in the order of ``names``; NaN is missing.
        categories: (rows, categorical columns) of str, in the order of ``names``; None is missing.
        outputs: (rows, outputs): predictions, or a probability per class.
        labels: (rows,) of str: predicted classes.
        embeddings: (rows, dimensions).
    """

    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    numbers: Floats
    categories: Texts
    outputs: Floats | None = None
    labels: Texts | None = None
    embeddings: Floats | None = None

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise MalformedRequestError("two columns of a sample have the same name")
        shapes = (len(self.numeric), len(self.categorical))
        if len(self.names) != len(self.kinds) or shapes != (
            self.numbers.shape[1],
            self.categories.shape[1],
        ):
            raise MalformedRequestError("a sample's columns are not those that its names say")
        parts = (self.numbers, self.categories, self.outputs, self.labels, self.embeddings)
        if len({len(part) for part in parts if part is not None}) > 1:
            raise MalformedRequestError("the parts of a sample differ in their rows")

    @classmethod
    def of_columns(
        cls,
        columns: Mapping[str, ArrayLike],
        *,
        outputs: ArrayLike | None = None,
        labels: Sequence[object] | NDArray[Any] | None = None,
        embeddings: ArrayLike | None = None,
    ) -> Sample:
        """A sample of named columns. Numbers are numeric; texts, truth values and others are not.

        Raises:
            MalformedRequestError: the columns differ in length.
        """
        kinds, numbers, categories = [], [], []
        for values in columns.values():
            array = np.asarray(values)
            if array.dtype.kind in "iuf":
                kinds.append(Kind.NUMERIC)
                numbers.append(array.astype(np.float64))
            elif array.dtype.kind == "O" and (found := _as_numbers(array)) is not None:
                kinds.append(Kind.NUMERIC)
                numbers.append(found)
            else:
                kinds.append(Kind.CATEGORICAL)
                categories.append(_as_texts(array))
        lengths = {len(column) for column in (*numbers, *categories)}
        if len(lengths) > 1:
            raise MalformedRequestError("the columns of a sample differ in their rows")
        beside = next((part for part in (outputs, labels, embeddings) if part is not None), None)
        rows = lengths.pop() if lengths else 0 if beside is None else len(np.asarray(beside))
        return cls(
            tuple(columns),
            tuple(kinds),
            np.column_stack(numbers) if numbers else np.empty((rows, 0)),
            np.column_stack(categories) if categories else np.empty((rows, 0), object),
            _two_dimensional(outputs),
            None if labels is None else _as_texts(np.asarray(labels)),
            _two_dimensional(embeddings),
        )

    @classmethod
    def of_matrix(
        cls,
        matrix: ArrayLike,
        *,
        names: Sequence[str] | None = None,
        outputs: ArrayLike | None = None,
        labels: Sequence[object] | NDArray[Any] | None = None,
        embeddings: ArrayLike | None = None,
    ) -> Sample:
        """A sample of numbers alone, (rows, columns)."""
        numbers = np.array(matrix, np.float64, ndmin=2)
        return cls(
            tuple(names or (f"x{i}" for i in range(numbers.shape[1]))),
            (Kind.NUMERIC,) * numbers.shape[1],
            numbers,
            np.empty((len(numbers), 0), object),
            _two_dimensional(outputs),
            None if labels is None else _as_texts(np.asarray(labels)),
            _two_dimensional(embeddings),
        )

    @property
    def rows(self) -> int:
        return len(self.numbers)

    @property
    def numeric(self) -> tuple[str, ...]:
        """Names of the columns of ``numbers``."""
        return self._of(Kind.NUMERIC)

    @property
    def categorical(self) -> tuple[str, ...]:
        """Names of the columns of ``categories``."""
        return self._of(Kind.CATEGORICAL)

    def _of(self, kind: Kind) -> tuple[str, ...]:
        pairs = zip(self.names, self.kinds, strict=True)
        return tuple(name for name, of_name in pairs if of_name is kind)

    def take(self, rows: NDArray[Any]) -> Sample:
        """These rows: their indices, or a truth value each."""
        return replace(
            self,
            numbers=self.numbers[rows],
            categories=self.categories[rows],
            outputs=None if self.outputs is None else self.outputs[rows],
            labels=None if self.labels is None else self.labels[rows],
            embeddings=None if self.embeddings is None else self.embeddings[rows],
        )

    def drawn(self, rng: np.random.Generator, most: int = MOST_ROWS) -> Sample:
        """At most so many rows, drawn without replacement, in their old order."""
        if self.rows <= most:
            return self
        return self.take(np.sort(rng.choice(self.rows, most, replace=False)))

    def keep(self, names: Sequence[str]) -> Sample:
        """These columns, in this order."""
        numeric = {name: i for i, name in enumerate(self.numeric)}
        categorical = {name: i for i, name in enumerate(self.categorical)}
        kinds = tuple(Kind.NUMERIC if n in numeric else Kind.CATEGORICAL for n in names)
        return replace(
            self,
            names=tuple(names),
            kinds=kinds,
            numbers=self.numbers[:, [numeric[n] for n in names if n in numeric]],
            categories=self.categories[:, [categorical[n] for n in names if n in categorical]],
        )


def aligned(reference: Sample, window: Sample) -> tuple[Sample, tuple[str, ...]]:
    """The window with the reference's columns in their order; what there is to say of it.

    Raises:
        MalformedRequestError: a column is missing or has changed its kind; or outputs, labels or
            embeddings are there on one side only, or differ in their width.
    """
    there = dict(zip(window.names, window.kinds, strict=True))
    lost = [name for name in reference.names if name not in there]
    if lost:
        raise MalformedRequestError(
            f"the window lacks {_listed(lost)}",
            "record what the reference has, or make a new reference",
        )
    changed = [
        f"{name!r} ({kind} in the reference, {there[name]} here)"
        for name, kind in zip(reference.names, reference.kinds, strict=True)
        if there[name] is not kind
    ]
    if changed:
        raise MalformedRequestError(
            f"columns of the window changed their kind: {', '.join(changed[:5])}",
            "send the type that the model was trained on",
        )
    for part in ("outputs", "labels", "embeddings"):
        ours, theirs = getattr(reference, part), getattr(window, part)
        if (ours is None) != (theirs is None):
            raise MalformedRequestError(
                f"only the {'window' if ours is None else 'reference'} has {part}",
                "give both, or neither",
            )
        if ours is not None and ours.shape[1:] != theirs.shape[1:]:
            raise MalformedRequestError(
                f"{part} are {ours.shape[1:]} wide in the reference, {theirs.shape[1:]} here"
            )
    known = set(reference.names)
    extra = [name for name in window.names if name not in known]
    told = (f"not in the reference and left out: {_listed(extra)}",) if extra else ()
    if window.names == reference.names:
        return window, told
    return window.keep(reference.names), told


def within_columns(
    reference: Sample, window: Sample, rng: np.random.Generator, most: int
) -> tuple[Sample, Sample, tuple[str, ...]]:
    """Both with at most so many columns, drawn at random; and that this was done."""
    if len(reference.names) <= most:
        return reference, window, ()
    chosen = np.sort(rng.choice(len(reference.names), most, replace=False))
    names = [reference.names[i] for i in chosen]
    told = f"looked at {most} of {len(reference.names)} columns, drawn at random"
    return reference.keep(names), window.keep(names), (told,)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _two_dimensional(values: ArrayLike | None) -> Floats | None:
    if values is None:
        return None
    array = np.asarray(values, np.float64)
    return array.reshape(-1, 1) if array.ndim == 1 else array.reshape(len(array), -1)


def _missing(value: object) -> bool:
    return value is None or value != value or type(value).__name__ in ("NAType", "NaTType")


def _as_numbers(values: NDArray[Any]) -> Floats | None:
    """Numbers with missing ones among them; None: something else is among them too."""
    found = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        if type(value).__name__ == "NAType" or _missing(value):
            continue
        if isinstance(value, bool | np.bool_) or not isinstance(
            value, int | float | np.integer | np.floating
        ):
            return None
        found[row] = value
    return found


def _as_texts(values: NDArray[Any]) -> Texts:
    texts = np.empty(len(values), object)
    for row, value in enumerate(values.tolist()):
        unknown = type(value).__name__ == "NAType" or _missing(value)
        texts[row] = None if unknown else str(value)
    return texts
