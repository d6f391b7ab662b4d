"""Principal components of numeric features, counted like columns: how columns move together.

Columns looked at one by one do not see that two of them stopped moving together. A principal
component of the standardised features does, and the ones with the *least* variance do best: there
the reference hardly moves, so noise of its own in each column, or columns that came apart (a wrong
join, an exchanged unit, one sensor that stands still), stand out by many times the spread. The ones
with the *most* variance gather a shift that is small in each of many correlated columns. Half of
the components are of each kind. To look at the last ones for what does not fit is R. Gnanadesikan's
and J. Kettenring's advice (Biometrics 28, 1972; I. Jolliffe, "Principal Component Analysis", 2nd
edition 2002, section 10.1); for change detection see L. Kuncheva and W. Faithfull, IEEE Trans.
Neural Networks and Learning Systems 25(1), 2014.

A value that is missing, or no number, stands at its column's mean: that it is missing is counted in
its own column. Personal columns take no part. Of more than 256 columns, 256 spread evenly do.

Components are rounded to 1/10,000 of a spread. A matrix product rounds differently in blocks of
different sizes, and a component that is constant in the reference (a total beside its parts) would
be nothing else but that; rounded it is 0, and whatever breaks the sum is not.

Example::

    components = Components.fit({"income": incomes, "savings": savings}, count=8)
    components.columns(block, rows)     # {"component#00 of income and savings": (rows,), …}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.bins import numbers_of
from drift.documents import Fields, number_text

__all__ = ["Components"]

Floats = NDArray[np.float64]

_MOST_COLUMNS = 256
_FEWEST_ROWS = 50
_UNITS = 1e4  # of a spread
_SINGLE = 1 << 18  # multiplications of a product for which OpenBLAS takes one thread
_FARTHEST = 1e9  # spreads; beyond that, far is far
_NAMED = 3  # features in a component's name,
_LONGEST = 32  # with as many letters of each


@dataclass(frozen=True)
class Components:
    """Some principal components of the reference.

    Attributes:
        features: Columns that they are made of.
        means: Of these in the reference (c,).
        spreads: Standard deviations (c,), above 0.
        directions: Weights of the standardised columns: (k, c).
    """

    features: tuple[str, ...]
    means: tuple[float, ...]
    spreads: tuple[float, ...]
    directions: tuple[tuple[float, ...], ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the components, as columns: with the features that weigh most."""
        found = []
        for place, direction in enumerate(self.directions):
            weights = np.abs(direction)
            first = np.argsort(-weights, kind="stable")[:_NAMED].tolist()
            named = [self.features[at] for at in first if weights[at] >= weights.max() / 2]
            listed = ", ".join(name[:_LONGEST] for name in named)
            found.append(f"component#{place:02d} of {' and '.join(listed.rsplit(', ', 1))}")
        return tuple(found)

    @cached_property
    def _weights(self) -> tuple[Floats, Floats]:
        """Of values as they come (k, c), and what is subtracted then (k, 1)."""
        weights = np.array(self.directions) / np.array(self.spreads)
        return weights, (weights @ np.array(self.means))[:, None]

    def columns(
        self, columns: Mapping[str, NDArray[Any]], rows: int
    ) -> dict[str, NDArray[np.float32]]:
        """Each component (rows,) of a block of rows, by name."""
        weights, offset = self._weights
        found = [columns.get(name) for name in self.features]
        matrix = _matrix(found)
        if matrix is not None:
            projected = _product(weights, matrix)
            projected -= offset
            if (np.abs(projected) < _FARTHEST).all():
                return self._named(projected)
        projected = np.array(self.directions) @ self._standardised(found, rows)
        return self._named(projected.clip(-_FARTHEST, _FARTHEST))

    def _standardised(self, found: list[NDArray[Any] | None], rows: int) -> Floats:
        """(c, rows), the slow way: whatever is there."""
        matrix = np.zeros((len(found), rows))
        for place, values in enumerate(found):
            if values is None or values.ndim != 1:
                continue
            numbers, _ = numbers_of(values)
            matrix[place] = _scaled(numbers, self.means[place], self.spreads[place])
        return matrix

    def _named(self, projected: Floats) -> dict[str, NDArray[np.float32]]:
        projected *= _UNITS
        np.rint(projected, out=projected)
        projected *= 1 / _UNITS
        return dict(zip(self.names, projected.astype(np.float32), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "features": list(self.features),
            "means": [*map(number_text, self.means)],
            "spreads": [*map(number_text, self.spreads)],
            "directions": [[*map(number_text, one)] for one in self.directions],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Components:
        """Inverse of ``to_dict``.

        Raises:
            MalformedRequestError: names the place.
        """
        found = cls(
            fields.texts("features"),
            tuple(fields.numbers("means")),
            tuple(fields.numbers("spreads")),
            tuple(map(tuple, fields.number_rows("directions"))),
        )
        fields.done()
        width = len(found.features)
        if not width or len(set(found.features)) != width:
            raise fields.wrong("has no features, or one twice")
        if {len(found.means), len(found.spreads), *map(len, found.directions)} != {width}:
            raise fields.wrong(f"has lists that do not fit its {width} features")
        numbers = (*found.means, *found.spreads, *(x for one in found.directions for x in one))
        if not np.isfinite(numbers).all() or min(found.spreads) <= 0:
            raise fields.wrong("has a number that is not finite, or a spread that is not above 0")
        return found

    @classmethod
    def fit(cls, columns: Mapping[str, NDArray[Any]], count: int) -> Components | None:
        """Components of some rows, which should not be those that they are counted on: the least
        variance is too small in the rows that it was found in.

        None: no two columns vary, or there are too few rows.

        Args:
            columns: Numeric features, (n,) each. Fewer take part if n is below twice their number.
            count: How many components; all of them where there are fewer columns.
        """
        names, rows = list(columns), len(next(iter(columns.values()), ()))
        if count < 1 or rows < _FEWEST_ROWS:
            return None
        varying: dict[str, tuple[Floats, float, float]] = {}
        for name in _spread_evenly(names, min(_MOST_COLUMNS, rows // 2)):
            numbers, _ = numbers_of(columns[name])
            there = numbers[np.isfinite(numbers)]
            with np.errstate(over="ignore", invalid="ignore"):
                mean, spread = (there.mean(), there.std()) if len(there) else (0.0, 0.0)
            # Of the size of rounding errors, a spread is none.
            if np.isfinite(spread) and spread > 1e-9 * abs(mean):
                scaled = _scaled(numbers, float(mean), float(spread))
                varying[name] = (scaled, float(mean), float(spread))
        if len(varying) < 2:
            return None
        matrix = np.array([scaled for scaled, _, _ in varying.values()])
        _, vectors = np.linalg.eigh(matrix @ matrix.T / rows)  # least variance first
        chosen = vectors.T
        if count < len(chosen):
            first, last = -(-count // 2), count // 2
            chosen = np.concatenate([chosen[:first], chosen[len(chosen) - last :]])
        return cls(
            tuple(varying),
            tuple(mean for _, mean, _ in varying.values()),
            tuple(spread for _, _, spread in varying.values()),
            tuple(_turned(one) for one in chosen.round(6)),
        )


def _product(weights: Floats, matrix: Floats) -> Floats:
    """(k, rows). In pieces so small that OpenBLAS does not wake its threads: these wait for the
    next product on a processor of their own, awake. ``dot``, unlike ``@``, warns of no overflow.
    """
    rows = matrix.shape[1]
    step = max(1, _SINGLE // weights.size)
    if rows <= step:
        return np.asarray(np.dot(weights, matrix))
    product = np.empty((len(weights), rows))
    for low in range(0, rows, step):
        product[:, low : low + step] = np.dot(weights, matrix[:, low : low + step])
    return product


def _scaled(numbers: Floats, mean: float, spread: float) -> Floats:
    """Standardised; what is no number stands at the mean."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.clip((numbers - mean) / spread, -_FARTHEST, _FARTHEST)
    return np.where(np.isfinite(numbers), scaled, 0.0)


def _matrix(columns: list[NDArray[Any] | None]) -> Floats | None:
    """Columns of numbers as rows of a matrix; None: some are anything else."""
    try:
        matrix = np.array(columns)
    except (ValueError, TypeError):
        return None
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        return None
    return matrix.astype(np.float64, copy=False)


def _spread_evenly(names: list[str], most: int) -> list[str]:
    if len(names) <= most:
        return names
    return [names[at * len(names) // most] for at in range(most)]


def _turned(direction: Floats) -> tuple[float, ...]:
    """With the largest weight above 0: a direction and its opposite are one."""
    sign = 1.0 if direction[np.argmax(np.abs(direction))] >= 0 else -1.0
    return tuple((direction * sign + 0.0).tolist())
