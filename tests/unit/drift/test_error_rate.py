"""The sequential statistic on errors: false alarms as rare as promised, real ones found."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from drift.error_rate import ErrorRate, ErrorReference, log_e_value
from governance.canonical import canonical_json, parse_json
from governance.errors import ConfigurationError

NORMAL = ErrorReference((9000, 1000), (), 0.1)


def run(reference: ErrorReference, rate: float, seed: int, batches: int, rows: int = 200) -> int:
    """Batches until the alarm; ``batches + 1`` without one."""
    rng = np.random.default_rng(seed)
    state = ErrorRate()
    for batch in range(1, batches + 1):
        wrong = int(rng.binomial(rows, rate))
        state = state.after(reference, (rows - wrong, wrong))
        if state.alarms():
            return batch
    return batches + 1


@pytest.mark.parametrize("reference", [NORMAL, ErrorReference((20, 30, 50), (1.0, 2.0), 1.0)])
@pytest.mark.parametrize("rows", [1, 7])
def test_the_e_value_is_one_on_average_at_most(reference: ErrorReference, rows: int) -> None:
    """Summed over every batch there can be, under the reference's own shares."""
    shares = np.array(reference.counts) / sum(reference.counts)
    mean = 0.0
    for outcome in itertools.product(range(reference.outcomes), repeat=rows):
        counts = [outcome.count(j) for j in range(reference.outcomes)]
        mean += math.prod(shares[list(outcome)]) * math.exp(log_e_value(reference, counts))
    assert 0.5 < mean <= 1.0


def test_false_alarms_are_rare() -> None:
    """Promised: 1,000 batches on average. 40 runs of 250 batches would see 10 alarms at worst."""
    assert sum(run(NORMAL, 0.1, seed, 250) <= 250 for seed in range(40)) <= 10


@pytest.mark.parametrize(("rate", "within"), [(0.3, 1), (0.2, 3), (0.15, 8)])
def test_a_higher_rate_is_found(rate: float, within: int) -> None:
    delays = [run(NORMAL, rate, seed, 50) for seed in range(20)]
    assert np.median(delays) <= within
    assert max(delays) <= 50


def test_a_lower_rate_never_alarms() -> None:
    assert all(run(NORMAL, 0.02, seed, 300) > 300 for seed in range(5))


def test_a_reference_that_was_lucky_does_not_alarm_for_ever() -> None:
    """8 % of 500 rows: the truth may well be 10 %."""
    assert run(ErrorReference((460, 40), (), 0.08), 0.095, 1, 200) > 200


def test_a_late_change_is_found_as_quickly() -> None:
    """R does not sink while all is well."""
    rng = np.random.default_rng(3)
    state = ErrorRate()
    for _ in range(1000):
        wrong = int(rng.binomial(200, 0.09))
        state = state.after(NORMAL, (200 - wrong, wrong))
    assert not state.alarms()
    for _ in range(4):
        wrong = int(rng.binomial(200, 0.2))
        state = state.after(NORMAL, (200 - wrong, wrong))
    assert state.alarms()


def test_larger_errors_of_a_regression_are_found_and_smaller_are_not() -> None:
    rng = np.random.default_rng(4)
    truth = rng.normal(size=20_000)
    reference = ErrorReference.of_numbers(truth + rng.normal(size=20_000), truth)
    assert reference.outcomes == 10
    assert reference.mean == pytest.approx(1.0, abs=0.05)
    alarmed = {}
    for scale in (0.7, 1.0, 1.4):
        state = ErrorRate()
        for _ in range(20):
            counts = [0] * reference.outcomes
            for error in rng.normal(size=200) * scale:
                counts[reference.outcome(error, 0.0)] += 1
            state = state.after(reference, counts)
        alarmed[scale] = state.alarms()
    assert alarmed == {0.7: False, 1.0: False, 1.4: True}


def test_answers_that_are_no_number_count_as_the_worst() -> None:
    reference = ErrorReference.of_numbers(np.arange(200.0), np.zeros(200))
    for answer in (math.nan, math.inf, None, "high", [1]):
        assert reference.outcome(answer, 0.0) == reference.outcomes - 1
    assert NORMAL.outcome(float("nan"), 1) == 1
    assert NORMAL.outcome(np.array([1, 2]), 1) == 1
    assert NORMAL.outcome(1.0, 1) == 0


def test_an_empty_batch_changes_nothing() -> None:
    state = ErrorRate().after(NORMAL, (90, 10))
    assert state.after(NORMAL, (0, 0)) == state


def test_reset_begins_again_and_keeps_the_counts() -> None:
    state = ErrorRate().after(NORMAL, (0, 100))
    assert state.alarms()
    again = state.reset()
    assert not again.alarms()
    assert (again.rows, again.worst, again.batches) == (100, 100, 1)


def test_a_flood_of_errors_does_not_overflow() -> None:
    state = ErrorRate()
    for _ in range(100):
        state = state.after(NORMAL, (0, 100_000))
    assert math.isfinite(state.log_r)


@pytest.mark.parametrize("batches", [0, 3])
def test_the_state_is_stored_exactly(batches: int) -> None:
    state = ErrorRate()
    for wrong in range(batches):
        state = state.after(NORMAL, (90, 10 + wrong))
    assert ErrorRate.from_dict(parse_json(canonical_json(state.to_dict()))) == state
    assert ErrorReference.from_dict(parse_json(canonical_json(NORMAL.to_dict()))) == NORMAL


def test_references_of_one_class() -> None:
    """Never wrong on the reference: the first errors alarm, and nothing divides by zero."""
    reference = ErrorReference.of_classes(["a"] * 500, ["a"] * 500)
    assert reference.counts == (500, 0)
    assert not ErrorRate().after(reference, (200, 0)).alarms()
    assert ErrorRate().after(reference, (180, 20)).alarms()
    always = ErrorReference.of_classes(["a"] * 500, ["b"] * 500)
    assert not ErrorRate().after(always, (0, 200)).alarms()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ErrorReference.of_classes([1], [1]), "1 labelled rows; 100"),
        (lambda: ErrorReference.of_classes([], []), "0 labelled rows"),
        (lambda: ErrorReference.of_classes([1], [1, 2]), "1 predictions and 2 labels"),
        (lambda: ErrorReference.of_numbers([1.0] * 50, [2.0] * 50), "50 labelled rows"),
        (lambda: ErrorReference.of_numbers([1.0] * 500, [2.0] * 500), "all reference errors"),
        (lambda: ErrorReference.of_numbers([math.nan] * 500, [2.0] * 500), "500 of 500"),
        (lambda: ErrorReference((1, 2, 3)), "do not fit"),
        (lambda: ErrorReference((100, 100, 100), (2.0, 1.0)), "do not fit"),
        (lambda: ErrorReference((100, 100, 100), (1.0, math.inf)), "do not fit"),
        (lambda: ErrorRate().after(NORMAL, (1, 2, 3)), "3 outcomes for a reference of 2"),
        (lambda: ErrorRate().after(NORMAL, (-1, 2)), "outcomes"),
    ],
)
def test_what_cannot_be_is_refused(build: object, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        build()  # type: ignore[operator]
