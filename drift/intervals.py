"""Confidence intervals of rates, their differences and their ratios.

One construction throughout: Wilson's score interval of each rate, joined by MOVER ("method of
variance estimates recovery"), which for a difference of two is Newcombe's hybrid score interval.
Levels are one-sided: ``level=0.975`` gives each limit 2.5 % to be wrong.

Sources: E. Wilson, JASA 22, 1927; R. Newcombe, "Interval estimation for the difference between
independent proportions: comparison of eleven methods", Statistics in Medicine 17, 1998, method 10;
G. Zou and A. Donner, "Construction of confidence limits about effect measures: a general approach",
Statistics in Medicine 27, 2008 (MOVER); A. Donner and G. Zou, "Closed-form confidence intervals for
functions of the normal mean and standard deviation", Statistical Methods in Medical Research 21,
2012 (ratios).

Example::

    wilson(30, 200, level=0.975).low
    difference(wilson(30, 200), wilson(10, 200)).low    # above 0: the first rate is higher
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

__all__ = ["Interval", "difference", "ratio", "wilson"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its lower and upper confidence limits."""

    value: float
    low: float
    high: float


@lru_cache(maxsize=256)
def _z(level: float) -> float:
    return NormalDist().inv_cdf(level)


def wilson(events: int, n: int, level: float = 0.975) -> Interval:
    """Of a rate; everything where there is nothing (then the value is NaN)."""
    if n <= 0:
        return Interval(math.nan, 0.0, 1.0)
    z = _z(level)
    rate, square = events / n, z * z / n
    middle = (rate + square / 2) / (1 + square)
    half = z * math.sqrt(rate * (1 - rate) / n + square / (4 * n)) / (1 + square)
    # Limits hold the value even where rounding would put it outside by a last digit.
    return Interval(rate, max(0.0, min(rate, middle - half)), min(1.0, max(rate, middle + half)))


def difference(a: Interval, b: Interval) -> Interval:
    """Of ``a - b``, independent of each other (MOVER; Newcombe's where both are Wilson's)."""
    value = a.value - b.value
    return Interval(
        value,
        value - math.hypot(a.value - a.low, b.high - b.value),
        value + math.hypot(a.high - a.value, b.value - b.low),
    )


def ratio(a: Interval, b: Interval) -> Interval:
    """Of ``a / b``, two rates independent of each other (MOVER-R).

    The limits are the ratios r at which the limit of ``a - r b`` is 0. Infinite where ``b`` may be
    0; the value of 0/0 is 1: nobody is preferred.
    """
    nothing = 1.0 if a.value == 0 else math.inf
    value = a.value / b.value if b.value > 0 else nothing
    product = a.value * b.value
    squares = a.low * (2 * a.value - a.low)
    under = product**2 - squares * b.high * (2 * b.value - b.high)
    below = product + math.sqrt(max(0.0, under))
    low = squares / below if below > 0 else 0.0
    high = math.inf
    if b.low > 0:
        under = product**2 - a.high * b.low * (2 * a.value - a.high) * (2 * b.value - b.low)
        high = (product + math.sqrt(max(0.0, under))) / (b.low * (2 * b.value - b.low))
    return Interval(value, max(0.0, min(low, value)), max(high, value))
