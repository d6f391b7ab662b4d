"""The tests of a rollout: their level, their power, and what they refuse to be misled by."""

from __future__ import annotations

import json
import math
import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.bets import limit_factors, mean_factors, rate_factors, shift_factors
from serve.config import (
    Analysis,
    CanaryConfig,
    Direction,
    ErrorAnalysis,
    GuardRails,
    LatencyAnalysis,
    LatencyLimit,
    MetricKind,
    OutputAnalysis,
    OwnerMetric,
)
from serve.delta import Delta, ErrorClass, OwnerSums, bucket_of, first_bucket_from, lower_edge
from serve.judge import Judge
from serve.wealth import Wealth, log_sum

rates = st.floats(0, 1)


def only(**parts: object) -> CanaryConfig:
    """A configuration that analyses only ``parts``."""
    given = {"errors": None, "latency": None, **parts}
    return CanaryConfig(analysis=Analysis(**given), min_samples=1)  # type: ignore[arg-type]


ERRORS = only(errors=ErrorAnalysis())


def errors(n: int, failed: int, kind: ErrorClass = ErrorClass.RAISED) -> Delta:
    return Delta(n, {kind: failed} if failed else {})


def binomial(rng: random.Random, n: int, p: float) -> int:
    return sum(rng.random() < p for _ in range(n))


# -- the bets are e-values


def expectation(nc: int, ns: int, pc: float, ps: float, guess: float, tolerance: float) -> float:
    """The largest expected e-value of a block, exactly, over all bets."""
    totals: list[float] | None = None
    for bc, bs in product(range(nc + 1), range(ns + 1)):
        chance = (
            math.comb(nc, bc) * pc**bc * (1 - pc) ** (nc - bc)
            * math.comb(ns, bs) * ps**bs * (1 - ps) ** (ns - bs)
        )  # fmt: skip
        values = [chance * math.exp(f) for f in rate_factors(nc, bc, ns, bs, guess, tolerance)]
        totals = values if totals is None else [a + b for a, b in zip(totals, values, strict=True)]
    assert totals
    return max(totals)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 6),
    rates,
    rates,
    st.floats(0.0001, 0.9999),
    st.sampled_from([0.0, 0.01, 0.2, -0.05]),
)
def test_a_block_of_two_streams_is_an_e_value(
    nc: int, ns: int, pc: float, ps: float, guess: float, tolerance: float
) -> None:
    pc = min(pc, max(min(ps + tolerance, 1), 0))  # the canary is not worse
    if pc <= ps + tolerance:
        assert expectation(nc, ns, pc, ps, guess, tolerance) <= 1 + 1e-9


@given(st.integers(1, 8), rates, st.floats(0.001, 0.9))
def test_a_block_of_a_guard_rail_is_an_e_value(n: int, rate: float, limit: float) -> None:
    rate = min(rate, limit)
    for bet in range(len(limit_factors(1, 0, limit))):
        total = sum(
            math.comb(n, bad) * rate**bad * (1 - rate) ** (n - bad)
            * math.exp(limit_factors(n, bad, limit)[bet])
            for bad in range(n + 1)
        )  # fmt: skip
        assert total <= 1 + 1e-9


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), rates, st.tuples(rates, rates), st.floats(-0.2, 0.2))
def test_a_block_of_means_is_an_e_value(
    nc: int, ns: int, mean: float, centres: tuple[float, float], tolerance: float
) -> None:
    """Values 0 and 1 spread the most; the canary's mean is stable's plus the tolerance."""
    pc = min(max(mean + tolerance, 0), 1)
    if pc > mean + tolerance:
        return
    totals = [0.0] * 9
    for bc, bs in product(range(nc + 1), range(ns + 1)):
        chance = (
            math.comb(nc, bc) * pc**bc * (1 - pc) ** (nc - bc)
            * math.comb(ns, bs) * mean**bs * (1 - mean) ** (ns - bs)
        )  # fmt: skip
        factors = mean_factors((nc, bc, bc), (ns, bs, bs), centres, tolerance)
        totals = [t + chance * math.exp(f) for t, f in zip(totals, factors, strict=True)]
    assert max(totals) <= 1 + 1e-9


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.tuples(rates, rates),
    st.lists(st.floats(0.001, 0.999), min_size=3, max_size=3),
)
def test_a_block_of_ranks_is_an_e_value(
    nc: int, ns: int, cuts: tuple[float, float], ranks: list[float]
) -> None:
    """Three values; the canary has stable's distribution, where the expectation is largest."""
    low, high = sorted(cuts)
    values = list(zip(sorted(ranks), (low, high - low, 1 - high), strict=True))
    totals = [0.0] * 6
    for drawn in product(values, repeat=nc + ns):
        sides = [(rank, 1) for rank, _ in drawn]
        factors = shift_factors(sides[:nc], sides[nc:])
        chance = math.prod(p for _, p in drawn)
        totals = [t + chance * math.exp(f) for t, f in zip(totals, factors, strict=True)]
    assert max(totals) <= 1 + 1e-9


@given(st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), max_size=30))
def test_wealth_is_only_moved_about(blocks: list[list[float]]) -> None:
    wealth = Wealth.start(3)
    for _ in blocks:
        wealth = wealth.played([0.0, 0.0, 0.0])
    assert wealth.log_total == pytest.approx(0, abs=1e-9)
    wealth = Wealth.start(3)
    for block in blocks:
        wealth = wealth.played(block)
        assert Wealth.from_dict(json.loads(json.dumps(wealth.to_dict()))) == wealth
    assert not math.isnan(wealth.log_total)


def test_sums_of_logarithms() -> None:
    assert log_sum([]) == -math.inf
    assert log_sum([1e5, 1e5]) == pytest.approx(1e5 + math.log(2))
    assert log_sum([-1e308, 0.0]) == 0


@given(st.integers(0, 10**15), st.integers(0, 10**15), rates, st.floats(-0.99, 0.99))
def test_huge_and_empty_blocks_stay_numbers(nc: int, ns: int, guess: float, tol: float) -> None:
    for bc, bs in product((0, nc), (0, ns)):
        for factor in rate_factors(nc, bc, ns, bs, guess, tol):
            assert not math.isnan(factor)


# -- the level, under continuous peeking


@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_level_of_errors_alike(rate: float) -> None:
    rng = random.Random(7)
    config = ERRORS.model_copy(update={"alpha": 0.1})
    false = 0
    for _ in range(150):
        judge = Judge.start(config).after(errors(0, 0), errors(100, binomial(rng, 100, rate)))
        for _ in range(150):
            judge = judge.after(
                errors(3, binomial(rng, 3, rate)), errors(12, binomial(rng, 12, rate))
            )
            if judge.worse:
                false += 1
                break
    assert false <= 15


def latencies(rng: random.Random, n: int, slower: float = 1.0) -> Delta:
    counts: dict[int, int] = {}
    for _ in range(n):
        bucket = bucket_of(20 * slower * math.exp(rng.gauss(0, 0.4)))
        counts[bucket] = counts.get(bucket, 0) + 1
    return Delta(n, latency=counts)


def test_level_of_latencies_alike_without_tolerance() -> None:
    rng = random.Random(8)
    limit = LatencyLimit(ratio=1.0)
    config = only(latency=LatencyAnalysis(overall=limit, p50=limit, p95=limit, p99=limit))
    config = config.model_copy(update={"alpha": 0.1})
    false = 0
    for _ in range(60):
        judge = Judge.start(config)
        for _ in range(100):
            judge = judge.after(latencies(rng, 4), latencies(rng, 12))
            if judge.worse:
                false += 1
                break
    assert false <= 6


# -- the power


def rounds_until_worse(config: CanaryConfig, make: object, most: int = 3000) -> int:
    judge = Judge.start(config)
    for number in range(1, most):
        canary, stable = make(number)  # type: ignore[operator]
        judge = judge.after(canary, stable)
        if judge.worse:
            return number
    return most


def test_a_canary_that_fails_always_is_found_within_a_few_dozen_requests() -> None:
    rounds = rounds_until_worse(CanaryConfig(), lambda _: (errors(1, 1), errors(19, 0)))
    assert rounds < 24


def test_a_decay_after_a_long_healthy_time_is_found() -> None:
    rng = random.Random(5)

    def make(number: int) -> tuple[Delta, Delta]:
        rate = 0.01 if number <= 2000 else 0.5
        return errors(2, binomial(rng, 2, rate)), errors(18, binomial(rng, 18, 0.01))

    assert 2000 < rounds_until_worse(ERRORS, make) < 2030


@pytest.mark.parametrize(("slower", "rounds"), [(1.5, 40), (1.25, 300)])
def test_slowness_is_found(slower: float, rounds: int) -> None:
    rng = random.Random(3)
    found = rounds_until_worse(
        CanaryConfig(), lambda _: (latencies(rng, 3, slower), latencies(rng, 20))
    )
    assert found < rounds


def owner(name: str, n: int, total: float, squares: float | None = None) -> Delta:
    return Delta(owner={name: OwnerSums(n, total, total if squares is None else squares)})


@pytest.mark.parametrize("kind", [MetricKind.RATE, MetricKind.MEAN])
@pytest.mark.parametrize("direction", list(Direction))
def test_an_owner_metric_works_both_ways(kind: MetricKind, direction: Direction) -> None:
    metric = OwnerMetric(
        name="m",
        kind=kind,
        direction=direction,
        source="a:b",
        range=(0, 10) if kind is MetricKind.MEAN else None,
    )
    config = only(metrics=(metric,))
    worse, better = (8, 2) if direction is Direction.LOWER else (2, 8)
    assert rounds_until_worse(
        config, lambda _: (owner("m", 10, worse), owner("m", 40, 20))
    ) < 30  # fmt: skip
    assert rounds_until_worse(
        config, lambda _: (owner("m", 10, better), owner("m", 40, 20)), 300
    ) == 300  # fmt: skip


def test_a_mean_is_told_in_the_metric_s_own_unit() -> None:
    metric = OwnerMetric(
        name="m", kind=MetricKind.MEAN, direction=Direction.HIGHER, source="a:b", range=(0, 1000)
    )
    judge = Judge.start(only(metrics=(metric,))).after(owner("m", 10, 2), owner("m", 10, 5))
    assert "mean 200 of 10 at the canary, beside 500" in judge.verdicts()[0].reason


@pytest.mark.parametrize("direction", list(Direction))
def test_an_owner_quantile_works_both_ways(direction: Direction) -> None:
    metric = OwnerMetric(
        name="q",
        kind=MetricKind.QUANTILE,
        direction=direction,
        source="a:b",
        quantile=0.5,
        tolerance=0.1,
    )
    rng = random.Random(1)

    def values(n: int, factor: float) -> Delta:
        counts = latencies(rng, n, factor).latency
        return Delta(owner={"q": OwnerSums(n, buckets=counts)})

    worse = 2.0 if direction is Direction.LOWER else 0.5
    config = only(metrics=(metric,))
    assert rounds_until_worse(config, lambda _: (values(5, worse), values(20, 1))) < 40
    assert rounds_until_worse(config, lambda _: (values(5, 1 / worse), values(20, 1)), 200) == 200
    tolerated = 1.06 if direction is Direction.LOWER else 1 / 1.06
    assert rounds_until_worse(config, lambda _: (values(20, tolerated), values(20, 1)), 200) == 200


def test_other_answers_are_found_and_tolerated_ones_are_not() -> None:
    rng = random.Random(2)

    def answers(n: int, moved: float) -> Delta:
        counts: dict[int, int] = {}
        for _ in range(n):
            bin_ = 9 if rng.random() < moved else rng.randrange(9)
            counts[bin_] = counts.get(bin_, 0) + 1
        return Delta(n, outputs=counts)

    config = only(outputs=OutputAnalysis(tolerance=0.1))
    assert rounds_until_worse(config, lambda _: (answers(5, 0.4), answers(20, 0))) < 100
    assert rounds_until_worse(config, lambda _: (answers(5, 0.05), answers(20, 0)), 300) == 300


def test_non_inferiority_is_shown_and_not_shown() -> None:
    config = only(errors=ErrorAnalysis(margin=0.02))
    good, bad = Judge.start(config), Judge.start(config)
    rng = random.Random(4)
    for _ in range(150):
        stable = errors(90, binomial(rng, 90, 0.01))
        good = good.after(errors(10, binomial(rng, 10, 0.01)), stable)
        bad = bad.after(errors(10, binomial(rng, 10, 0.03)), stable)
    assert good.not_shown == ()
    assert bad.not_shown == ("errors",)


# -- guard rails

RAIL = CanaryConfig(
    analysis=Analysis(errors=None, latency=None),
    guard_rails=GuardRails(max_error_rate=0.05, max_p99_ms=100),
)


def test_a_guard_rail_needs_no_stable_traffic() -> None:
    judge = Judge.start(RAIL)
    for _ in range(10):
        judge = judge.after(errors(10, 5), Delta(), alone=True)
    assert judge.worse


def test_a_guard_rail_that_stable_breaks_too_is_excused() -> None:
    judge = Judge.start(RAIL)
    for _ in range(200):
        judge = judge.after(errors(10, 10), errors(10, 10))
    assert not judge.worse
    assert judge.excused == ("guard.max_error_rate",)


def test_a_latency_guard_rail() -> None:
    slow, quick = {bucket_of(150): 5}, {bucket_of(10): 20}
    judge = Judge.start(RAIL)
    for _ in range(10):
        judge = judge.after(Delta(5, latency=slow), Delta(20, latency=quick))
    assert judge.worse
    assert "at most 1 % may take 100 ms or more" in judge.verdicts()[0].reason


# -- attacks


def test_errors_on_both_sides_are_not_the_canary_s_fault() -> None:
    judge = Judge.start(CanaryConfig())
    for _ in range(500):
        judge = judge.after(errors(5, 5), errors(20, 20))
    assert judge.log_e < 1


def test_one_side_alone_proves_nothing() -> None:
    judge = Judge.start(CanaryConfig())
    for _ in range(100):
        judge = judge.after(errors(5, 5), Delta())
    assert judge.log_e == pytest.approx(0, abs=1e-9)
    for _ in range(100):
        judge = judge.after(Delta(), errors(5, 0))
    assert judge.log_e < judge.threshold


def test_a_client_s_own_errors_and_those_stable_shares_do_not_count() -> None:
    judge = Judge.start(ERRORS)
    for kind in (ErrorClass.CLIENT, ErrorClass.SHARED):
        for _ in range(100):
            judge = judge.after(errors(5, 5, kind), errors(20, 0))
    assert judge.verdicts()[0].n_canary == 0
    for kind in ErrorClass:
        if kind.charged:
            assert rounds_until_worse(ERRORS, lambda _, k=kind: (errors(2, 2, k), errors(9, 0))) < 9


def test_sparse_traffic_is_compared_although_no_report_has_both() -> None:
    def make(number: int) -> tuple[Delta, Delta]:
        return (errors(1, 1), Delta()) if number % 10 == 0 else (Delta(), errors(1, 0))

    assert rounds_until_worse(ERRORS, make, 400) < 150


def test_a_change_of_weights_drops_the_open_block() -> None:
    judge = Judge.start(ERRORS).after(errors(0, 0), errors(50, 0)).reopened()
    judge = judge.after(errors(5, 0), Delta())
    assert judge.verdicts()[0].n_stable == 0


# -- counts


@given(st.floats(0.0011, 1e9))
def test_buckets_hold_what_they_should(value: float) -> None:
    bucket = bucket_of(value)
    assert lower_edge(bucket) <= value * (1 + 1e-9)
    assert value <= lower_edge(bucket + 1) * (1 + 1e-9)
    assert lower_edge(first_bucket_from(value)) >= value * (1 - 1e-9)


@pytest.mark.parametrize("value", [0, -5, float("nan")])
def test_odd_latencies_count_as_the_smallest(value: float) -> None:
    assert bucket_of(value) == first_bucket_from(value) == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Delta(-1), "-1 requests"),
        (lambda: Delta(1, {ErrorClass.RAISED: 2}), "more errors"),
        (lambda: Delta(1, {ErrorClass.RAISED: -1}), "negative"),
        (lambda: Delta(1, latency={3: 2}), "more than"),
        (lambda: Delta(1, latency={-3: 1}), "negative"),
        (lambda: OwnerSums(1, 2.0), "cannot add up"),
        (lambda: OwnerSums(2, 1.0, 1.5), "have no squares"),
        (lambda: OwnerSums(1, float("nan")), "cannot add up"),
    ],
)
def test_counts_that_cannot_be(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]


def test_deltas_add_up_and_travel() -> None:
    one = Delta(
        5,
        {ErrorClass.TIMEOUT: 1},
        {1: 2},
        {"m": OwnerSums(3, 0.1 + 0.2, None), "q": OwnerSums(2, buckets={4: 2})},
        {0: 5},
    )
    assert Delta.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    two = one + one + Delta()
    assert (two.requests, two.charged, two.latency, two.outputs) == (10, 2, {1: 4}, {0: 10})
    assert two.owner["m"].squares is None
    assert two.owner["q"].buckets == {4: 4}


def test_a_judge_goes_on_exactly_where_it_was_put_down() -> None:
    rng = random.Random(6)
    config = CanaryConfig(
        analysis=Analysis(errors=ErrorAnalysis(margin=0.05), outputs=OutputAnalysis()),
        guard_rails=GuardRails(max_error_rate=0.2),
    )
    kept = moved = Judge.start(config)
    for _ in range(60):
        deltas = []
        for n in (rng.randrange(4), rng.randrange(12)):
            latency = latencies(rng, n).latency
            failed = {ErrorClass.RAISED: binomial(rng, n, 0.1)}
            deltas.append(Delta(n, failed, latency, {}, {rng.randrange(3): n}))
        kept = kept.after(*deltas)
        moved = Judge.from_dict(config, json.loads(json.dumps(moved.to_dict()))).after(*deltas)
        assert moved == kept
    assert [v.to_dict() for v in moved.verdicts()] == [v.to_dict() for v in kept.verdicts()]
