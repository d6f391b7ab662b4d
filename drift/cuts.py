"""Counting many columns of plain numbers against their cuts, without looking at values one by one.

Example::

    below = below_cuts(block, cuts)    # (c, C)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_ROWS", "below_cuts", "is_fast", "single_cuts"]

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

MOST_ROWS = 255 * 8
"""Rows of a block that ``below_cuts`` can add up."""

_FAST = frozenset(np.typecodes["AllInteger"] + "efd")
_AT_ONCE = 1 << 21  # answers, of a byte each
_BUFFERED = 128  # rows; for fewer, numpy's copying is quicker than asking it not to


def is_fast(dtype: np.dtype[Any]) -> bool:
    """Whether numbers of this type are counted without looking at each in Python."""
    return dtype.char in _FAST


def below_cuts(block: NDArray[Any], cuts: NDArray[Any]) -> Counts:
    """How many of a column's values lie below each of its cuts: (c, C) for a block (c, n).

    Comparing with every cut and adding the answers up, eight to a word, is exact and needs no
    sorting: 0.25 ms where numpy's sort takes 1.6 ms (100 columns of 1,000 rows and 12 ranges each,
    on one core with AVX-512).

    Args:
        block: Floats (c, n) without NaN and -inf, contiguous, at most ``MOST_ROWS`` wide.
        cuts: (c, C), of the same type.
    """
    (columns, rows), width = block.shape, cuts.shape[1]
    below = np.empty((columns, width), dtype=np.int64)
    step = max(1, _AT_ONCE // max(1, block.size))
    with _by_rows(rows):
        for low in range(0, width, step):
            below[:, low : low + step] = _below_few(block, cuts[:, low : low + step])
    return below


def _below_few(block: NDArray[Any], cuts: NDArray[Any]) -> Counts:
    """Of so few cuts that an answer for each value and cut may be kept."""
    (columns, rows), width = block.shape, cuts.shape[1]
    answers = np.empty((columns, width, -(-rows // 8) * 8), dtype=np.bool_)
    answers[:, :, rows:] = False
    np.less(block[:, None, :], cuts[:, :, None], out=answers[:, :, :rows])
    # Each byte of a sum holds up to 255 answers, hence the limit on rows.
    lanes = np.add.reduce(answers.view(np.uint64), axis=2).view(np.uint8)
    return np.asarray(np.add.reduce(lanes.reshape(columns, width, 8), axis=2, dtype=np.int64))


@contextmanager
def _by_rows(rows: int) -> Iterator[None]:
    """Compare rows of this length with one number each, without copying that.

    Unless a row fills numpy's buffer, numpy copies there what it walks with a stride of its own:
    each cut once for every value, which takes longer than to compare them.
    """
    if rows < _BUFFERED:
        yield
        return
    before = np.setbufsize(rows // 16 * 16)
    try:
        yield
    finally:
        np.setbufsize(before)


def single_cuts(cuts: Floats) -> NDArray[np.float32]:
    """Cuts for float32 values: ``x < cut`` says the same as with the float64 cuts."""
    with np.errstate(over="ignore"):
        nearest = cuts.astype(np.float32)
        low = nearest < cuts
        nearest[low] = np.nextafter(nearest[low], np.float32(np.inf))
    return nearest
