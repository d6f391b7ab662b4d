"""Intervals for rates that are shown, not judged: the judge has evidence that holds at any look.

Example::

    low, high = wilson(3, 200)
"""

from __future__ import annotations

from math import sqrt

__all__ = ["wilson"]

_Z = 1.959964  # 95 %


def wilson(events: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate, as parts of 1; everything where there is nothing."""
    if n <= 0:
        return 0.0, 1.0
    rate, square = events / n, _Z * _Z / n
    middle = (rate + square / 2) / (1 + square)
    half = _Z * sqrt(rate * (1 - rate) / n + square / (4 * n)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)
