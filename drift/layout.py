"""Where each column's bins lie in the one flat vector that a window is counted into.

All columns' bins stand after each other in one int64 vector (T,): column j owns
``[starts[j], starts[j] + sizes[j])``. Nothing is padded, so one column with fifty categories costs
no other column anything, and windows and replicas merge by adding vectors.

Columns of plain numbers are counted many at a time (``drift/cuts.py``), in pieces
that stay in the processor's cache; the others one by one. A column that a block of rows lacks
counts as missing in every row.

Example::

    layout = Layout(("age", "town"), (NumericBins(...), CategoryBins(...)))
    layout.count({"age": ages, "town": towns}, rows=256)        # (T,)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.bins import MISSING, Bins, NumericBins
from drift.cuts import MOST_ROWS, below_cuts, is_fast, single_cuts

__all__ = ["Layout"]

_COLUMNS = 128  # of a piece; times _ROWS float64 values are a megabyte
_ROWS = min(MOST_ROWS, 1024)

Counts = NDArray[np.int64]


class Layout:
    """The columns of a profile, in order.

    Attributes:
        names: Of the columns.
        bins: What each is counted by.
        sizes: Bins of each: (d,).
        starts: Where each column's bins begin: (d,).
        total: T, bins of all.
    """

    def __init__(self, names: Sequence[str], bins: Sequence[Bins]) -> None:
        self.names = tuple(names)
        self.bins = tuple(bins)
        self.sizes = np.array([column.size for column in bins], dtype=np.int64)
        self.starts: Counts = np.cumsum(self.sizes) - self.sizes
        self.total = int(self.sizes.sum())
        ends = self.starts + self.sizes
        self._spans = [
            (..., slice(start, end))
            for start, end in zip(self.starts.tolist(), ends.tolist(), strict=True)
        ]
        self._cuts = [
            np.array(column.cuts if isinstance(column, NumericBins) else (), dtype=np.float64)
            for column in bins
        ]
        self._numeric = [isinstance(column, NumericBins) for column in bins]
        self._groups: dict[tuple[int, ...], _Group] = {}

    def count(self, columns: Mapping[str, NDArray[Any]], rows: int) -> Counts:
        """Counts (T,) of a block.

        Args:
            columns: By name, each (rows,); names that are no column of ours are passed over.
            rows: How many.
        """
        counts = np.zeros(self.total, dtype=np.int64)
        fast: list[int] = []
        for place, name in enumerate(self.names):
            values = columns.get(name)
            if values is None:
                counts[self.starts[place] + MISSING] = rows
            elif self._numeric[place] and is_fast(values.dtype):
                fast.append(place)
            else:
                start = self.starts[place]
                counts[start : start + self.sizes[place]] = self.bins[place].count(values)
        if rows:
            for places in _pieces(fast):
                arrays = [columns[self.names[place]] for place in places]
                single = all(array.dtype == np.float32 for array in arrays)
                group = self._group(places, single)
                for low in range(0, rows, _ROWS):
                    whole = rows <= _ROWS
                    part = arrays if whole else [array[low : low + _ROWS] for array in arrays]
                    group.add(np.array(part, group.dtype), counts)
        return counts

    def of_column(self, place: int, flat: NDArray[Any]) -> NDArray[Any]:
        """The part (…, size) of a flat vector (…, T) that belongs to one column."""
        return flat[self._spans[place]]

    def _group(self, places: Sequence[int], single: bool) -> _Group:
        """Cuts of some columns, padded; made once for each choice that blocks come in."""
        key = (int(single), *places)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) > len(self.names) // 8 + 64:  # callers who never choose alike
                self._groups.clear()
            group = self._groups[key] = _Group(
                [self._cuts[place] for place in places],
                self.starts[list(places)],
                np.dtype(np.float32 if single else np.float64),
            )
        return group


class _Group:
    """Up to 128 numeric columns that are counted together."""

    __slots__ = ("_cuts", "_from", "_into", "_starts", "dtype")

    def __init__(
        self, cuts: Sequence[NDArray[np.float64]], starts: Counts, dtype: np.dtype[Any]
    ) -> None:
        width = max(map(len, cuts))
        padded = np.full((len(cuts), width), np.inf)
        for row, values in zip(padded, cuts, strict=True):
            row[: len(values)] = values
        self.dtype = dtype
        self._cuts = padded if dtype == np.float64 else single_cuts(padded)
        self._starts = starts
        # Which of the (c, width + 1) ranges are real, and where in the flat vector they lie.
        ranges = np.arange(width + 1)
        real = ranges <= np.array([len(values) for values in cuts])[:, None]
        self._from = np.flatnonzero(real)
        self._into = (starts[:, None] + 2 + ranges)[real]

    def add(self, block: NDArray[Any], counts: Counts) -> None:
        """Add a block (c, n) of at least one row to the flat vector."""
        finite = np.full(len(block), block.shape[1], dtype=np.int64)
        kept = np.isfinite(block)
        if not kept.all():
            # What is not finite becomes infinity, which lies below no cut: it falls out of every
            # range, and the other rows of its column count as ever.
            finite = np.count_nonzero(kept, axis=1).astype(np.int64)
            block = np.where(kept, block, block.dtype.type(np.inf))
            counts[self._starts + MISSING] += block.shape[1] - finite
        below = below_cuts(block, self._cuts)
        edges = np.empty((len(block), below.shape[1] + 2), dtype=np.int64)
        edges[:, 0], edges[:, 1:-1], edges[:, -1] = 0, below, finite
        counts[self._into] += (edges[:, 1:] - edges[:, :-1]).ravel()[self._from]


def _pieces(places: Sequence[int]) -> Iterator[Sequence[int]]:
    for low in range(0, len(places), _COLUMNS):
        yield places[low : low + _COLUMNS]
