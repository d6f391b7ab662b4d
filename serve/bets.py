"""The bets: e-values of one block of requests, canary beside stable.

A block is what both variants did in the same stretch of time. Its sizes may depend on anything but
its outcomes; what is bet may depend on earlier blocks only. The null may hold with another rate in
every block (load and clients change), as long as it holds for both variants at once.

*Two streams of events.* For guesses ``tc``, ``ts`` of the rates and the null Θ₀ = {θc ≤ θs + δ},
let (pc, ps) be the point of Θ₀ closest to the guess, that is the smallest
nc·KL(tc‖pc) + ns·KL(ts‖ps). Then the likelihood ratio of guess and point is an e-value: its
logarithm's expectation term nc·ln g(θc) + ns·ln h(θs), with g, h linear, is concave, 0 at the
point, and falls from there into Θ₀, for its slope is minus that of the distance. For δ = 0 the
point is the pooled rate t0 = (nc·tc + ns·ts)/(nc + ns).

Sources: R. Turner, A. Ly and P. Grünwald, "Generic E-variables for exact sequential k-sample tests
that allow for optional stopping", Journal of Statistical Planning and Inference 230, 2024,
arXiv:2106.02693; R. Turner and P. Grünwald, "Exact anytime-valid confidence intervals for
contingency tables and beyond", Statistics & Probability Letters 198, 2023, arXiv:2203.09785
(δ other than 0).

*Two streams of values, the canary's not larger.* For any increasing ρ ≥ 0 and w = nc/(nc + ns),
multiply ρ/(wρ + 1 − w) over the canary's values and 1/(wρ + 1 − w) over stable's. Where both have
one distribution the expectation is at most 1, by the inequality of arithmetic and geometric means,
for w times the former plus 1 − w times the latter is 1 everywhere (Turner, Ly and Grünwald's
construction); the former increases and the latter decreases, so smaller values at the canary only
lower it. Here ρ = exp(δz − δ²/2) with z the normal score of the value's rank among stable's past:
the likelihood ratio of a shift by δ standard deviations where some transformation makes the values
normal. That sees a slowing of everything with nearly all the information there is; a threshold at
the median keeps 2/π of it.

*Means of values in [0, 1].* For any λ in [0, 1) and any m fixed before, E exp(λ(x − μ) − ψ(λ)(x −
m)²) ≤ 1 with ψ(λ) = −ln(1 − λ) − λ. Multiplied over the canary's values and, with the sign turned
and λs = λ·nc/ns, over stable's, the unknown means cancel up to the tolerance. A block's count, sum
and sum of squares are enough. The normal mixture (mSPRT, Johari, Koomen, Pekelis and Walsh 2017)
has a simpler form but holds only asymptotically, and for one known variance; this holds exactly.

Sources: S. Howard, A. Ramdas, J. McAuliffe and J. Sekhon, "Time-uniform, nonparametric,
nonasymptotic confidence sequences", Annals of Statistics 49(2), 2021 (the inequality);
I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting", JRSS B
86(1), 2024 (betting with past estimates, mixtures).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

__all__ = [
    "BETS_ON_MEANS",
    "BETS_ON_RATES",
    "BETS_ON_SHIFTS",
    "limit_factors",
    "mean_factors",
    "rate_factors",
    "shift_factors",
]

_SHIFTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""How much worse the canary may be, on the logit scale: what each bet expects."""
BETS_ON_RATES = len(_SHIFTS)

_LAMBDAS = (0.75, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625)
BETS_ON_MEANS = len(_LAMBDAS)

_SIZES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""By how many standard deviations the canary's values may be larger."""
BETS_ON_SHIFTS = len(_SIZES)
_NORMAL = NormalDist()

_SMALL = 1e-9
_STEPS = 60  # halvings when looking for the closest point
_ROUNDING = 1e-6
"""Taken from the logarithm where the closest point is searched for: near rates of 0 and 1 the
search ends up to 2e-7 of an e-value beside it."""


def _inside(rate: float) -> float:
    return min(max(rate, _SMALL), 1 - _SMALL)


def _shifted(rate: float, shift: float) -> float:
    odds = rate / (1 - rate) * math.exp(shift)
    return _inside(odds / (1 + odds))


def _closest(nc: int, ns: int, tc: float, ts: float, tolerance: float) -> tuple[float, float]:
    """The point (pc, ps) with pc = ps + tolerance closest to (tc, ts)."""
    low, high = max(ts, _SMALL, _SMALL - tolerance), min(tc - tolerance, 1 - _SMALL)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        other = middle + tolerance
        slope = nc * (other - tc) / (other * (1 - other)) + ns * (middle - ts) / (
            middle * (1 - middle)
        )
        if slope > 0:
            high = middle
        else:
            low = middle
        if high - low <= 1e-15:
            break
    middle = (low + high) / 2
    return _inside(middle + tolerance), _inside(middle)


def rate_factors(
    nc: int, bc: int, ns: int, bs: int, stable_rate: float, tolerance: float = 0.0
) -> tuple[float, ...]:
    """Logarithms of the e-values of a block against "θc ≤ θs + tolerance".

    Args:
        nc: The canary's requests in the block.
        bc: Of these, events.
        ns: Stable's requests.
        bs: Of these, events.
        stable_rate: Stable's rate as estimated from earlier blocks.
        tolerance: By how much the canary's rate may be higher (-1 to 1).
    """
    if not nc or not ns:
        return (0.0,) * BETS_ON_RATES
    ts = _inside(stable_rate)
    edge = _inside(ts + tolerance)
    factors = []
    for shift in _SHIFTS:
        tc = _shifted(edge, shift)
        if tolerance:
            if tc - tolerance <= ts:  # the guess is in the null itself
                factors.append(0.0)
                continue
            pc, ps = _closest(nc, ns, tc, ts, tolerance)
            rounding = _ROUNDING
        else:
            pc = ps = (nc * tc + ns * ts) / (nc + ns)
            rounding = 0.0
        factors.append(
            bc * math.log(tc / pc)
            + (nc - bc) * math.log((1 - tc) / (1 - pc))
            + bs * math.log(ts / ps)
            + (ns - bs) * math.log((1 - ts) / (1 - ps))
            - rounding
        )
    return tuple(factors)


def limit_factors(n: int, bad: int, limit: float) -> tuple[float, ...]:
    """Logarithms of the e-values of a block against "the rate is at most ``limit``"."""
    edge = _inside(limit)
    factors = []
    for shift in _SHIFTS:
        guess = _shifted(edge, shift)
        factors.append(
            bad * math.log(guess / edge) + (n - bad) * math.log((1 - guess) / (1 - edge))
        )
    return tuple(factors)


def _psi(value: float) -> float:
    return -math.log1p(-value) - value


def mean_factors(
    canary: tuple[int, float, float],
    stable: tuple[int, float, float],
    centres: tuple[float, float],
    tolerance: float = 0.0,
) -> tuple[float, ...]:
    """Logarithms of the e-values of a block against "μc ≤ μs + tolerance".

    Args:
        canary: Count, sum and sum of squares of values in [0, 1].
        stable: The same of stable.
        centres: Both means as estimated from earlier blocks.
        tolerance: By how much the canary's mean may be higher (-1 to 1).
    """
    (nc, sum_c, squares_c), (ns, sum_s, squares_s) = canary, stable
    if not nc or not ns:
        return (0.0,) * BETS_ON_MEANS
    mc, ms = centres
    spread_c = max(squares_c - 2 * mc * sum_c + nc * mc * mc, 0.0)
    spread_s = max(squares_s - 2 * ms * sum_s + ns * ms * ms, 0.0)
    factors = []
    for bet in _LAMBDAS:
        of_canary = bet * min(1.0, ns / nc)
        of_stable = of_canary * nc / ns
        factors.append(
            of_canary * (sum_c - nc * tolerance)
            - of_stable * sum_s
            - _psi(of_canary) * spread_c
            - _psi(of_stable) * spread_s
        )
    return tuple(factors)


def shift_factors(
    canary: Sequence[tuple[float, int]], stable: Sequence[tuple[float, int]]
) -> tuple[float, ...]:
    """Logarithms of the e-values of a block against "the canary's values are not larger".

    Args:
        canary: Rank (0 to 1, among stable's past values) and how many had it.
        stable: The same of stable.
    """
    nc, ns = sum(n for _, n in canary), sum(n for _, n in stable)
    if not nc or not ns:
        return (0.0,) * BETS_ON_SHIFTS
    share = nc / (nc + ns)
    scores: Mapping[float, float] = {
        rank: _NORMAL.inv_cdf(_inside(rank)) for rank, _ in (*canary, *stable)
    }
    factors = []
    for size in _SIZES:
        total = 0.0
        for rank, n in canary:
            ratio = size * (scores[rank] - size / 2)
            total += n * (ratio - math.log1p(share * math.expm1(ratio)))
        for rank, n in stable:
            total -= n * math.log1p(share * math.expm1(size * (scores[rank] - size / 2)))
        factors.append(total)
    return tuple(factors)
