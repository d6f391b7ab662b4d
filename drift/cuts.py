"""Counting many columns of plain numbers against their cuts, without looking at values one by one.

Example::

    below = below_cuts(block, cuts, block.min(axis=1), block.max(axis=1))    # (c, C)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_ROWS", "below_cuts", "is_fast", "single_cuts"]

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

MOST_ROWS = 255 * 8
"""Rows of a block that ``below_cuts`` can add up."""

_FAST = frozenset(np.typecodes["AllInteger"] + "efd")
_SMALL = 1 << 18  # answers, one for each value and cut


def is_fast(dtype: np.dtype[Any]) -> bool:
    """Whether numbers of this type are counted without looking at each in Python."""
    return dtype.char in _FAST


def below_cuts(
    block: NDArray[Any], cuts: NDArray[Any], least: NDArray[Any], largest: NDArray[Any]
) -> Counts:
    """How many of a column's values lie below each of its cuts: (c, C) for a block (c, n).

    Comparing with every cut and adding the answers up, eight to a word, is exact and needs no
    sorting: 0.7 ms where numpy's sort takes 5 ms (100 columns of 1,000 rows and 10 ranges each, on
    one core with AVX2). Cuts that all of a column's values lie on one side of cost nothing.

    Args:
        block: Floats (c, n) without NaN and -inf, contiguous, at most ``MOST_ROWS`` wide.
        cuts: (c, C), of the same type, each row ascending; padded with +inf.
        least: Of each column (c,).
        largest: Of each column (c,).
    """
    columns, rows = block.shape
    if block.size * cuts.shape[1] <= _SMALL:
        return _below_at_once(block, cuts)
    below = np.where(largest[:, None] < cuts, rows, 0)
    inside = (least[:, None] < cuts) & (largest[:, None] >= cuts)
    answers = np.zeros((columns, -(-rows // 8) * 8), dtype=np.bool_)
    words = answers.view(np.uint64)
    lanes = np.empty((cuts.shape[1], columns), dtype=np.uint64)
    compared = []
    for place, wanted in enumerate(np.count_nonzero(inside, axis=0).tolist()):
        if wanted * 4 <= columns:
            for column in np.flatnonzero(inside[:, place]).tolist():
                below[column, place] = np.count_nonzero(block[column] < cuts[column, place])
        else:
            np.less(block, cuts[:, place, None], out=answers[:, :rows])
            # Each byte of a sum holds up to 255 answers, hence the limit on rows.
            np.add.reduce(words, axis=1, out=lanes[place])
            compared.append(place)
    summed = lanes[compared].view(np.uint8).reshape(len(compared), columns, 8)
    below[:, compared] = np.add.reduce(summed, axis=2, dtype=np.int64).T
    return below


def _below_at_once(block: NDArray[Any], cuts: NDArray[Any]) -> Counts:
    """For small blocks, where calls are most of the time: all cuts in one go."""
    (columns, rows), width = block.shape, cuts.shape[1]
    answers = np.zeros((columns, width, -(-rows // 8) * 8), dtype=np.bool_)
    np.less(block[:, None, :], cuts[:, :, None], out=answers[:, :, :rows])
    lanes = np.add.reduce(answers.view(np.uint64), axis=2).view(np.uint8)
    return np.asarray(np.add.reduce(lanes.reshape(columns, width, 8), axis=2, dtype=np.int64))


def single_cuts(cuts: Floats) -> NDArray[np.float32]:
    """Cuts for float32 values: ``x < cut`` says the same as with the float64 cuts."""
    with np.errstate(over="ignore"):
        nearest = cuts.astype(np.float32)
        low = nearest < cuts
        nearest[low] = np.nextafter(nearest[low], np.float32(np.inf))
    return nearest
