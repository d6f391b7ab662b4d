"""eSR and PSI: their sums, their guarantee, their speed of noticing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift.documents import Fields
from drift.psi import psi
from drift.sequential import CAP, DirichletBets, ShiryaevRoberts
from governance.errors import MalformedRequestError
from tests.unit.drift.reference import slow_log_e, slow_psi

COLUMN = st.integers(2, 8).flatmap(
    lambda size: st.tuples(
        st.lists(st.integers(0, 60), min_size=size, max_size=size),
        st.lists(st.integers(1, 1000), min_size=size, max_size=size),
    )
)


def _starts(sizes: list[int]) -> np.ndarray:
    return np.cumsum([0, *sizes[:-1]])


@given(st.lists(COLUMN, min_size=1, max_size=5))
def test_the_sums_are_those_of_a_plain_implementation(columns: list) -> None:  # type: ignore[type-arg]
    counts = np.array([count for column, _ in columns for count in column])
    shares = [[weight / sum(weights) for weight in weights] for _, weights in columns]
    p = np.array([share for column in shares for share in column])
    starts = _starts([len(column) for column, _ in columns])
    slow_e = [slow_log_e(c, s) for (c, _), s in zip(columns, shares, strict=True)]
    assert DirichletBets(p, starts).log_e(counts) == pytest.approx(slow_e, rel=1e-8, abs=1e-8)
    slow = [slow_psi(c, s) for (c, _), s in zip(columns, shares, strict=True)]
    assert psi(counts, p, starts) == pytest.approx(slow, rel=1e-9, abs=1e-12)


def test_the_e_value_has_the_mean_one() -> None:
    """Exactly: summed over every outcome of six rows in three bins."""
    p = np.array([0.7, 0.2, 0.1])
    bets = DirichletBets(p, np.array([0]))
    total = 0.0
    for a in range(7):
        for b in range(7 - a):
            counts = np.array([a, b, 6 - a - b])
            ways = math.factorial(6) / math.prod(map(math.factorial, counts.tolist()))
            total += ways * float(np.prod(p**counts)) * math.exp(bets.log_e(counts)[0])
    assert total == pytest.approx(1.0, abs=1e-10)


def test_one_row_is_no_evidence() -> None:
    p = np.array([0.999, 0.001])
    assert DirichletBets(p, np.array([0])).log_e(np.array([0, 1]))[0] == pytest.approx(0, abs=1e-9)


def test_an_empty_window_changes_nothing() -> None:
    statistic = ShiryaevRoberts(np.array([0.5, 0.5]), np.array([0]))
    assert statistic.mean == 0
    statistic.step(np.array([3, 2]))
    before = statistic.to_dict()
    statistic.step(np.array([0, 0]))
    assert statistic.to_dict() == before
    assert psi(np.array([0, 0]), np.array([0.5, 0.5]), np.array([0])).tolist() == [0.0]


def test_false_alarms_come_no_sooner_than_promised() -> None:
    """i.i.d. windows, exact p: the mean run length to eSR ≥ A is at least A.

    400 runs side by side, each of four columns; runs end at 10·A, which only shortens the mean.
    """
    rng = np.random.default_rng(20)
    wanted, runs, columns, bins = 50, 400, 4, 12
    p = np.full(bins, 1 / bins)
    statistic = ShiryaevRoberts(np.tile(p, runs * columns), np.arange(runs * columns) * bins)
    lengths = np.full(runs, 10 * wanted)
    for length in range(1, 10 * wanted):
        statistic.step(rng.multinomial(200, p, size=runs * columns).ravel())
        means = statistic.by_column.reshape(runs, columns).mean(axis=1)
        lengths = np.where((means >= wanted) & (lengths > length), length, lengths)
    deviation = np.std(lengths) / math.sqrt(runs)
    assert np.mean(lengths) - 3 * deviation > wanted
    assert (lengths < 10 * wanted).any()  # false alarms there are


def test_r_less_the_time_is_a_martingale() -> None:
    """E[R_t] = t under p: a statistic that kept less than that would be slow for nothing."""
    rng = np.random.default_rng(4)
    p = np.full(5, 0.2)
    finals = []
    for _ in range(3000):
        statistic = ShiryaevRoberts(p, np.array([0]), cap=1e30)
        for counts in rng.multinomial(20, p, size=5):
            statistic.step(counts)
        finals.append(statistic.mean)
    assert np.mean(finals) == pytest.approx(5, abs=4 * np.std(finals) / math.sqrt(3000))


def test_a_shift_is_noticed_within_a_few_windows() -> None:
    """One column of twenty, its deciles tilted by about a third of a standard deviation."""
    rng = np.random.default_rng(7)
    bins, columns = 10, 20
    p = np.full(bins, 0.1)
    tilted = p * np.linspace(0.5, 1.5, bins)
    delays = []
    for _ in range(20):
        statistic = ShiryaevRoberts(np.tile(p, columns), _starts([bins] * columns))
        for _ in range(20):
            statistic.step(rng.multinomial(500, p, size=columns).ravel())
        assert statistic.mean < 1000
        delay = 0
        while delay < 50:
            delay += 1
            counts = rng.multinomial(500, p, size=columns)
            counts[3] = rng.multinomial(500, tilted)
            statistic.step(counts.ravel())
            if statistic.mean >= 1000:
                assert int(np.argmax(statistic.by_column)) == 3
                break
        delays.append(delay)
    assert np.mean(delays) <= 4


def test_ten_thousand_drifting_windows_overflow_nothing_and_are_forgotten_again() -> None:
    p = np.array([0.1] * 10 + [1e-6, 1 - 1e-6])
    statistic = ShiryaevRoberts(p, np.array([0, 10]))
    with np.errstate(all="raise", under="ignore"):
        for _ in range(10_000):
            statistic.step(np.array([1000] + [0] * 9 + [1000, 0]))
        assert statistic.by_column == pytest.approx([CAP, CAP])
        rng = np.random.default_rng(3)
        for _ in range(50):
            statistic.step(np.array([*rng.multinomial(1000, p[:10]), 0, 1000]))
        assert statistic.by_column[0] < 100
    # A column with one common bin learns nothing from seeing it again: people acknowledge.
    assert statistic.mean > 1000
    statistic.reset()
    assert statistic.mean == 0


def test_the_state_comes_back_without_loss() -> None:
    rng = np.random.default_rng(1)
    p, starts = np.full(6, 1 / 3), np.array([0, 3])
    one = ShiryaevRoberts(p, starts)
    assert one.to_dict()["log_r"] == ["-inf", "-inf"]
    for step in range(50):
        two = ShiryaevRoberts(p, starts)
        two.restore(Fields(one.to_dict(), "state"))
        counts = rng.multinomial(40, [1 / 3] * 3, size=2).ravel()
        one.step(counts)
        two.step(counts)
        assert one.log_r.tolist() == two.log_r.tolist()
        assert one.windows == two.windows == step + 1
    one.reset()
    assert one.mean == 0
    assert one.windows == 0


@pytest.mark.parametrize(
    "state",
    [
        {"log_r": ["0.0"], "windows": 1},
        {"log_r": ["0.0", "nan"], "windows": 1},
        {"log_r": ["0.0", "1e+300"], "windows": 1},
        {"log_r": ["0.0", "0.0"], "windows": -1},
        {"log_r": ["0.0", "0.0"]},
    ],
)
def test_a_malformed_state_is_refused_and_changes_nothing(state: dict[str, object]) -> None:
    statistic = ShiryaevRoberts(np.full(4, 0.5), np.array([0, 2]))
    statistic.step(np.array([3, 1, 2, 2]))
    before = statistic.to_dict()
    with pytest.raises(MalformedRequestError):
        statistic.restore(Fields(state, "state"))
    assert statistic.to_dict() == before


def test_psi_is_zero_for_a_window_like_the_reference_and_grows_with_the_shift() -> None:
    p, starts = np.array([0.5, 0.3, 0.2, 1e-9]), np.array([0])
    p = p / p.sum()
    assert psi(np.array([500, 300, 200, 0]), p, starts)[0] == pytest.approx(0, abs=1e-6)
    sizes = [psi(np.array([500 - s, 300 + s, 200, 0]), p, starts)[0] for s in (0, 50, 100, 200)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == pytest.approx(0.2 * math.log(0.5 / 0.3) * 2, rel=0.02)
