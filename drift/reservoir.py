"""A bounded sample of the rows of a window, drawn evenly from all of them as they come.

Every row draws a number, and the rows with the smallest are kept: whichever order blocks came in,
and however many there were, each row had the same chance. Its size is bounded by rows and by
cells, so that 10,000 columns take no more memory than 1,000 columns of ten times the rows.

Example::

    reservoir = Reservoir(np.random.default_rng(7))
    reservoir.add(block.inputs, block.outputs, places)
    inputs, outputs = reservoir.columns()
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.columns import Column, joined
from drift.sample import MOST_ROWS

__all__ = ["Reservoir"]

_MOST_CELLS = 4_000_000
_FEWEST = 100

Table = dict[str, Column]


class Reservoir:
    """See the module.

    Args:
        rng: What chance is drawn from.
        most_rows: Rows that are kept.
    """

    def __init__(self, rng: np.random.Generator, most_rows: int = MOST_ROWS) -> None:
        self._rng = rng
        self._most = most_rows
        self._below = 1.0  # rows that draw more are not among the smallest
        self._parts: list[tuple[NDArray[np.float64], Table, Table]] = []
        self.seen = 0

    @property
    def rows(self) -> int:
        """Kept now."""
        return min(self._most, self._waiting)

    @property
    def _waiting(self) -> int:
        return sum(len(keys) for keys, _, _ in self._parts)

    def add(
        self,
        inputs: Mapping[str, Column],
        outputs: Mapping[str, Column],
        places: NDArray[np.int64],
    ) -> None:
        """Rows of a block, by their places in it."""
        width = max(1, len(inputs) + len(outputs))
        self._most = min(self._most, max(_FEWEST, _MOST_CELLS // width))
        keys = self._rng.random(len(places))
        self.seen += len(places)
        chosen = np.flatnonzero(keys < self._below)
        if not len(chosen):
            return
        rows = places[chosen]
        self._parts.append((keys[chosen], _taken(inputs, rows), _taken(outputs, rows)))
        if self._waiting > 2 * self._most:
            self._trim()

    def _trim(self) -> None:
        keys = np.concatenate([part[0] for part in self._parts])
        if len(keys) <= self._most:
            return
        self._below = float(np.partition(keys, self._most)[self._most])
        parts = []
        for own, inputs, outputs in self._parts:
            rows = np.flatnonzero(own < self._below)
            if len(rows):
                parts.append((own[rows], _taken(inputs, rows), _taken(outputs, rows)))
        self._parts = parts

    def columns(self) -> tuple[Table, Table]:
        """Inputs and outputs of the rows that are kept, in the order in which they came."""
        self._trim()
        if not self._parts:
            return {}, {}
        seen = [(len(keys), inputs) for keys, inputs, _ in self._parts]
        said = [(len(keys), outputs) for keys, _, outputs in self._parts]
        return joined(seen), joined(said)

    def merge(self, other: Reservoir) -> None:
        """Take another's rows, which are older."""
        self._most = min(self._most, other._most)
        self._below = min(self._below, other._below)
        self._parts = [*other._parts, *self._parts]
        self.seen += other.seen
        kept: list[Any] = []
        for keys, inputs, outputs in self._parts:
            rows = np.flatnonzero(keys < self._below)
            if len(rows):
                kept.append((keys[rows], _taken(inputs, rows), _taken(outputs, rows)))
        self._parts = kept
        self._trim()


def _taken(columns: Mapping[str, Column], rows: NDArray[np.int64]) -> Table:
    return {name: values[rows] for name, values in columns.items()}
