"""Embeddings: vectors (n, k) as a few numeric columns, by fixed random projections.

A vector's coordinates mean nothing one by one, and there are too many of them. Projected onto a
handful of random Gaussian directions, a shift of the mean by δ shows in a projection as a normal
variable of the same size on average (the idea of the Johnson–Lindenstrauss lemma: W. Johnson and
J. Lindenstrauss, Contemporary Mathematics 26, 1984), and each projection is binned like any other
number. A vector with a component that is missing or not finite is missing; one of another width is
unparsable in every projection.

Of a personal embedding (``pii`` is ``mask``) there are no projections: the profile counts, under
its name, whether there is a vector, and a recorder lets nothing else leave.

The directions come from the seed in the profile, by numpy's ``RandomState``, whose streams are
frozen for good (NEP 19), so the same profile gives the same columns for ever.

Example::

    embedding = Embedding("text", width=384, directions=16, seed=0)
    embedding.columns(vectors)       # {"text#00": (n,), …, "text#15": (n,)}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift.bins import PresenceBins, absent
from drift.documents import Fields
from governance.errors import MalformedRequestError

__all__ = ["NO_VECTOR", "Embedding", "components_of", "presence_of", "vectors_of"]

_LARGEST = 1 << 16
NO_VECTOR = "no vector"
"""Stands where something else than a vector came; every projection counts it as unparsable."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """One embedding that a model takes or gives.

    Attributes:
        name: Of the vectors in a block of rows.
        width: k, components of a vector.
        directions: Projections that are counted.
        seed: Of the directions.
    """

    name: str
    width: int
    directions: int = 16
    seed: int = 0

    @property
    def column_names(self) -> tuple[str, ...]:
        """Of the projections, as columns."""
        return tuple(f"{self.name}#{place:02d}" for place in range(self.directions))

    def columns(self, vectors: ArrayLike) -> dict[str, NDArray[Any]]:
        """The projections (n,) of vectors (n, k), by column name."""
        numbers, strange = vectors_of(vectors, self.width)
        projected: NDArray[Any] = self._project(numbers)
        if strange.any():
            projected = projected.astype(object)
            projected[strange] = NO_VECTOR
        return dict(zip(self.column_names, np.ascontiguousarray(projected.T), strict=True))

    def _project(self, vectors: NDArray[np.float64]) -> NDArray[np.float32]:
        sound = np.isfinite(vectors).all(axis=1)
        projected = (
            np.where(sound[:, None], vectors, 0.0)
            @ _directions(self.width, self.directions, self.seed).T
        )
        # A matrix product rounds differently in blocks of different sizes; single precision hides
        # that, so that a vector falls into the same bin in whatever block it comes.
        with np.errstate(over="ignore"):
            projected = projected.astype(np.float32)
        projected[~sound] = np.nan
        return projected

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "width": self.width,
            "directions": self.directions,
            "seed": self.seed,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Embedding:
        """Inverse of ``to_dict``.

        Raises:
            MalformedRequestError: names the place.
        """
        embedding = cls(
            fields.text("name"),
            fields.integer("width", least=1),
            fields.integer("directions", least=1),
            fields.integer("seed"),
        )
        fields.done()
        if max(embedding.width, embedding.directions) > _LARGEST or embedding.seed >= 2**32:
            raise fields.wrong(f"asks for more than {_LARGEST} components or directions")
        return embedding

    @classmethod
    def fit(
        cls, name: str, vectors: ArrayLike, *, directions: int = 16, seed: int = 0
    ) -> Embedding:
        """The embedding of reference vectors (n, k).

        Raises:
            MalformedRequestError: not a matrix of numbers.
        """
        array = np.asarray(vectors)
        if array.ndim != 2 or array.dtype.kind not in "fiu" or not 0 < array.shape[1] <= _LARGEST:
            raise MalformedRequestError(
                f"embedding {name!r} is an array of {array.dtype} with the shape {array.shape}, "
                "not a vector of numbers a row",
                "pass an array (rows, components); missing vectors as rows of NaN",
            )
        return cls(name, int(array.shape[1]), directions, seed)


def vectors_of(values: Any, width: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Vectors (n, width) with NaN for a missing one; and which rows hold something else (n,).

    Args:
        values: An array (n, width), or a sequence of vectors, None among them.
        width: Components of a vector.
    """
    if isinstance(values, np.ndarray) or not isinstance(values, Sequence):
        array = np.asarray(values)
    else:
        array = _together(values)
    if array.ndim == 2 and array.dtype.kind in "fiub" and array.shape[1] == width:
        return array.astype(np.float64), np.zeros(len(array), dtype=np.bool_)
    found = np.full((len(array), width), np.nan)
    strange = np.ones(len(array), dtype=np.bool_)
    for place, vector in enumerate(array.tolist() if array.ndim == 1 else ()):
        if absent(vector):
            strange[place] = False
            continue
        try:
            row = np.asarray(vector, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            continue
        if row.shape == (width,) and not _has_text(vector):
            found[place], strange[place] = row, False
    return found, strange


def presence_of(values: Any) -> NDArray[np.float64]:
    """Whether there is a value, or a vector that is not all missing: (n,), 1 or NaN."""
    if isinstance(values, np.ndarray) or not isinstance(values, Sequence):
        array = np.asarray(values)
    else:
        array = _together(values)
    if array.ndim > 1 and array.dtype.kind == "f":
        there = ~np.isnan(array.reshape(len(array), -1)).all(axis=1)
    elif array.ndim > 1:
        there = np.ones(len(array), dtype=np.bool_)
    elif array.dtype != object:
        there = PresenceBins().codes(array).astype(np.bool_)
    else:
        there = np.array([not _all_absent(value) for value in array], dtype=np.bool_)
    return np.where(there, 1.0, np.nan)


def _all_absent(value: Any) -> bool:
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1):
        return all(map(absent, value))
    return absent(value)


def components_of(name: str, values: Any, width: int) -> dict[str, NDArray[Any]]:
    """Vectors as columns of their components, ``name.0``, ``name.1`` …; what is no vector stands as
    a text in the first of them. With a width of 0: whether there is one, as ``name``."""
    if not width:
        return {name: presence_of(values)}
    numbers, strange = vectors_of(values, width)
    columns: dict[str, NDArray[Any]] = {f"{name}.{i}": numbers[:, i] for i in range(width)}
    if strange.any():
        columns[f"{name}.0"] = first = numbers[:, 0].astype(object)
        first[strange] = NO_VECTOR
    return columns


def _together(values: Sequence[Any]) -> NDArray[Any]:
    """A matrix, if they are numbers of one width; else an array of objects."""
    try:
        array = np.array(values)
    except (ValueError, OverflowError):
        array = np.empty(0)
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        array = np.empty(len(values), dtype=object)
        for place, vector in enumerate(values):
            array[place] = vector
    return array


def _has_text(vector: Any) -> bool:
    return not isinstance(vector, np.ndarray) and any(isinstance(x, str | bytes) for x in vector)


@lru_cache(maxsize=64)
def _directions(width: int, directions: int, seed: int) -> NDArray[np.float64]:
    """Directions (directions, width) of expected length 1."""
    drawn = np.random.RandomState(seed).standard_normal((directions, width))
    scaled: NDArray[np.float64] = drawn / np.sqrt(width)
    scaled.flags.writeable = False
    return scaled
