"""From counts to ok, warn, alert, and the proposal of a quarantine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from drift.cutter import Tally, Window
from drift.fitting import fit_profile
from drift.profile import DriftProfile
from drift.rules import Rules
from drift.verdict import Facts, Judge, Level, Verdict
from drift.window import WindowCounts, count_rows
from governance.canonical import canonical_json
from governance.errors import ConflictError, MalformedRequestError, TamperedError
from tests.unit.drift.reference import live_rows, small_profile

PROFILE = small_profile()


def _with(**rules: Any) -> DriftProfile:
    return small_profile(rules=Rules(**rules))


def _window(index: int, rows: dict[str, Any], profile: DriftProfile = PROFILE) -> Window:
    return Window(index, count_rows(profile, rows, times_ms=1000 * index))


def _shifted(seed: int, size: int = 500) -> dict[str, Any]:
    rows = live_rows(size, seed)
    rows["amount"] = rows["amount"] * 2.5
    return rows


def _until_alert(profile: DriftProfile, change: Any, most: int = 10) -> Verdict:
    judge = Judge(profile)
    for index in range(most):
        rows = live_rows(500, seed=50 + index)
        change(rows)
        verdict = judge.step(_window(index, rows, profile))
        if verdict.level is Level.ALERT:
            return verdict
    raise AssertionError(f"no alert in {most} windows: {verdict}")


def test_rows_like_the_reference_are_ok_for_long() -> None:
    judge = Judge(PROFILE)
    levels = [judge.step(_window(i, live_rows(500, seed=100 + i))).level for i in range(60)]
    assert set(levels) == {Level.OK}


def test_a_shift_alerts_and_names_the_column_and_the_bins_that_grew() -> None:
    judge = Judge(PROFILE)
    verdict = judge.step(_window(0, _shifted(1)))
    assert verdict.level is Level.ALERT
    assert verdict.worst[0].name == "amount"
    assert verdict.psi > verdict.psi_threshold
    grown = verdict.worst[0].grown
    assert grown[0].window > 2 * grown[0].reference
    assert " to " in grown[0].name
    assert verdict.first_ms == verdict.last_ms == 0
    assert any("eSR" in reason for reason in verdict.reasons)
    assert any("PSI of 'amount'" in reason for reason in verdict.reasons)
    assert verdict.quarantine == ()


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("amount", lambda rows: rows["amount"].fill(np.nan)),
        ("amount", lambda rows: rows.pop("amount")),
        ("visits", lambda rows: rows.update(visits=rows["visits"].astype(str))),
        ("fee", lambda rows: rows["fee"].fill(8.0)),
        ("town", lambda rows: rows.update(town=np.where(rows["known"], "Espoo", rows["town"]))),
        ("known", lambda rows: rows.update(known=~rows["known"])),
        ("score", lambda rows: rows.update(score=rows["score"] ** 2)),
    ],
    ids=[
        "nan only",
        "missing",
        "int to string",
        "constant changed",
        "new category",
        "flag",
        "output",
    ],
)
def test_every_way_to_break_a_column_alerts(column: str, change: Any) -> None:
    assert _until_alert(PROFILE, change).worst[0].name == column


def test_one_nan_row_in_a_shifted_window_does_not_blind() -> None:
    rows = _shifted(1)
    rows["amount"][0] = np.nan
    assert Judge(PROFILE).step(_window(0, rows)).level is Level.ALERT


def test_a_column_that_is_extra_warns_and_is_named() -> None:
    verdict = Judge(PROFILE).step(_window(0, {**live_rows(500), "new": np.zeros(500)}))
    assert verdict.level is Level.WARN
    assert any("'new'" in reason for reason in verdict.reasons)


def test_an_empty_window_and_one_row_raise_no_alarm_and_say_so() -> None:
    judge = Judge(PROFILE)
    empty = judge.step(Window(0, WindowCounts.empty(PROFILE)))
    assert (empty.level, empty.judged, empty.reasons) == (
        Level.OK,
        False,
        ("the window has no rows",),
    )
    rows = live_rows(1)
    rows["amount"][:] = 1e9
    one = judge.step(_window(1, rows))
    assert (one.level, one.judged, one.rows) == (Level.OK, False, 1)
    assert "1 of the 200 rows" in one.reasons[0]


def test_small_windows_wait_and_are_judged_together() -> None:
    judge = Judge(PROFILE)
    verdicts = [judge.step(_window(i, _shifted(i, size=90))) for i in range(3)]
    assert [v.judged for v in verdicts] == [False, False, True]
    assert verdicts[2].rows == 270
    assert verdicts[2].level is Level.ALERT
    assert (verdicts[2].first_ms, verdicts[2].last_ms) == (0, 2000)


def test_a_window_that_comes_twice_counts_once() -> None:
    judge = Judge(PROFILE)
    judge.step(_window(4, live_rows(500)))
    before = judge.to_json()
    for index in (4, 3):
        with pytest.raises(ConflictError, match="after window 4"):
            judge.step(_window(index, live_rows(500)))
    assert judge.to_json() == before
    assert judge.last_index == 4


def test_an_alert_may_need_several_windows_in_a_row() -> None:
    profile = _with(consecutive=3)
    judge = Judge(profile)
    levels = []
    for index, shifted in enumerate([True, True, False, True, True, True]):
        rows = _shifted(index) if shifted else live_rows(500, index)
        levels.append(judge.step(_window(index, rows, profile)).level)
    assert levels == [Level.WARN] * 5 + [Level.ALERT]


def test_evidence_without_size_only_warns_and_the_rule_may_say_otherwise() -> None:
    """A shift of a seventh of a deviation: certain after some windows, and small."""
    ends = {}
    for needs in ("both", "esr", "either", "psi"):
        profile = _with(alert_needs=needs)
        judge = Judge(profile)
        for index in range(40):
            rows = live_rows(2000, seed=index)
            rows["amount"] = rows["amount"] * 1.15
            verdict = judge.step(_window(index, rows, profile))
        assert verdict.esr > 1000
        assert verdict.psi < verdict.psi_threshold
        ends[needs] = verdict.level
    assert ends == {
        "both": Level.WARN, "esr": Level.ALERT, "either": Level.ALERT, "psi": Level.WARN,
    }  # fmt: skip


def test_a_restless_column_blinds_the_others_unless_the_rule_looks_at_each() -> None:
    """A column that wandered in the reference sets the PSI threshold for all, or for itself."""
    rng = np.random.default_rng(0)
    for scope, wanted in (("all", Level.WARN), ("column", Level.ALERT)):
        features = {
            "restless": np.cumsum(rng.standard_normal(20_000)),
            "calm": rng.standard_normal(20_000),
        }
        profile = small_profile(features=features, rules=Rules(psi_scope=scope))  # type: ignore[arg-type]
        live = {
            "restless": features["restless"][rng.integers(0, 20_000, 500)],
            "calm": rng.standard_normal(500) + 1.0,
            "score": live_rows(500)["score"],
        }
        assert Judge(profile).step(_window(0, live, profile)).level is wanted


@pytest.mark.parametrize(
    ("facts", "reasons"),
    [
        (Facts(), 0),
        (Facts(accuracy_fall_sd=2.9), 0),
        (Facts(accuracy_fall_sd=3.0), 1),
        (Facts(accuracy_fall_sd=float("nan")), 1),
        (Facts(fairness_broken=("gap of 0.2 between towns",)), 1),
        (Facts(accuracy_fall_sd=4.0, errors_rose=("a third is wrong",)), 2),
    ],
)
def test_an_alert_with_another_fact_proposes_a_quarantine(facts: Facts, reasons: int) -> None:
    assert len(Judge(PROFILE).step(_window(0, _shifted(1)), facts).quarantine) == reasons


@pytest.mark.parametrize(
    ("facts", "level", "proposed"),
    [
        (Facts(accuracy_fall_sd=9.0), Level.OK, 0),
        (Facts(fairness_broken=("a gap",)), Level.WARN, 0),
        (Facts(fairness_broken=("a gap",), fairness_lasts=True), Level.ALERT, 0),
        (Facts(error_esr=99.0), Level.OK, 0),
        (Facts(error_esr=101.0), Level.WARN, 0),
        (Facts(error_esr=2e3, errors_rose=("a third is wrong",)), Level.ALERT, 1),
        (Facts(0.0, ("a gap",), error_esr=2e3, errors_rose=("wrong",)), Level.ALERT, 2),
    ],
)
def test_what_others_find_counts_while_the_columns_are_calm(
    facts: Facts, level: Level, proposed: int
) -> None:
    """An estimate alone decides nothing (AC-5); labels and bounds that stay broken do."""
    verdict = Judge(PROFILE).step(_window(0, live_rows(500)), facts)
    assert (verdict.level, len(verdict.quarantine)) == (level, proposed)
    assert not verdict.moved
    assert bool(verdict.besides) == (level is not Level.OK)
    assert set(verdict.besides) <= set(verdict.reasons)


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("amount", np.full(500, np.nan), "100 % missing"),
        ("amount", np.full(500, "12,50", dtype=object), "100 % unparsable"),
        ("amount", np.full(500, 1e9), "100 % above"),
        ("town", np.full(500, "Atlantis", dtype=object), "100 % unseen"),
        ("score", np.full(500, np.nan), "100 % missing"),
    ],
)
def test_a_column_that_is_mostly_faulty_proposes_a_quarantine(
    column: str, values: Any, told: str
) -> None:
    rows = live_rows(500)
    rows[column] = values
    verdict = Judge(PROFILE).step(_window(0, rows))
    (reason,) = verdict.quarantine
    assert reason.startswith(f"data quality: 100 % of the values of '{column}' are faulty (")
    assert told in reason
    assert reason in verdict.reasons


def test_faults_count_beyond_those_of_the_reference() -> None:
    rng = np.random.default_rng(3)
    features = {f"x{i}": np.where(rng.random(20_000) < 0.3, np.nan, 1.0) for i in range(7)}
    profile = fit_profile(features, model="fraud", window=500, rules=Rules(quality_share=0.6))
    judge = Judge(profile)
    almost = {name: np.where(np.arange(500) < 445, np.nan, 1.0) for name in features}
    assert not judge.step(_window(0, almost, profile)).besides
    most = {name: np.where(np.arange(500) < 455, np.nan, 1.0) for name in features}
    verdict = judge.step(_window(1, most, profile))
    assert len(verdict.besides) == 6
    assert verdict.besides[-1] == "data quality: and 2 columns more"
    assert "91 % missing" in verdict.besides[0]


def test_acknowledging_starts_anew() -> None:
    judge = Judge(PROFILE)
    judge.step(_window(0, _shifted(1)))
    judge.acknowledge()
    assert judge.esr == 0
    assert judge.step(_window(1, live_rows(500, seed=9))).level is Level.OK
    assert judge.step(_window(2, _shifted(2))).level is Level.ALERT


def test_what_was_left_out_is_told_and_not_held_against_the_model() -> None:
    counts = count_rows(PROFILE, live_rows(500), times_ms=1)
    verdict = Judge(PROFILE).step(Window(0, counts, Tally(late_rows=7, lost_blocks=2)))
    assert verdict.level is Level.OK
    assert verdict.reasons == (
        "7 rows came too late and were not counted",
        "2 blocks never came and were not counted",
    )


def test_a_judge_goes_on_where_it_stopped() -> None:
    one = Judge(PROFILE)
    for index in range(6):
        two = Judge.from_json(PROFILE, one.to_json())
        window = _window(index, live_rows(130 + 90 * (index % 2), seed=index))
        assert two.step(window) == one.step(window)
        assert two.to_json() == one.to_json()


def test_the_state_of_another_profile_is_refused() -> None:
    other = _with(consecutive=2)
    with pytest.raises(MalformedRequestError, match="profile"):
        Judge.from_json(other, Judge(PROFILE).to_json())
    with pytest.raises(TamperedError):
        Judge(other).step(_window(0, live_rows(500)))


def test_a_verdict_is_a_document() -> None:
    verdict = Judge(PROFILE).step(_window(0, _shifted(1)))
    document = verdict.to_dict()
    assert canonical_json(document)
    assert document["level"] == "alert"
    assert float(document["psi"]) == verdict.psi
    assert document["worst"][0]["grown"][0]["name"] == verdict.worst[0].grown[0].name
