"""Alerts: one for a storm, told once, closed by itself or by somebody, always somebody's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from governance.alert_records import (
    Act,
    Alert,
    AlertIdentity,
    AlertLevel,
    AlertState,
    Change,
    Sighting,
    first_owner,
)
from governance.drift_alerts import AlertRules, after, opened, with_act
from governance.drift_retrain import suggestion
from governance.errors import ConflictError, RefusedError

RULES = AlertRules(quiet_ms=1000, ok_windows=3)
WHO = AlertIdentity("a" * 32, 1, "m1", "v3", "fraud", 3, "fraud", "ann")
BAD = Sighting(
    AlertLevel.ALERT,
    at_ms=50,
    first_ms=40,
    window=7,
    reasons=("eSR is 4e+03",),
    worst=({"name": "age", "psi": "0.4"},),
    slices=({"text": "age > 52.5", "predicate": [{"column": "age", "above": "52.5"}]},),
    profile="p" * 64,
    report="r" * 64,
)
WELL = Sighting(None, at_ms=60, window=8)


def seen(alert: Alert, *sightings: Sighting, now_ms: int = 200) -> Alert:
    for one in sightings:
        alert = after(alert, one, RULES, now_ms=now_ms).alert
    return alert


def act(kind: AlertState, by: str = "ann") -> Act:
    return Act(kind, by, "signed", "because", 300)


@pytest.fixture
def alert() -> Alert:
    step = opened(WHO, BAD, RULES, now_ms=100)
    assert step is not None
    assert step.notify
    assert step.changes == (Change.OPENED,)
    return step.alert


@pytest.mark.parametrize("level", [None, AlertLevel.WARN])
def test_a_warning_alone_is_no_alert(level: AlertLevel | None) -> None:
    assert opened(WHO, replace(BAD, level=level), RULES, now_ms=100) is None


def test_it_says_what_was_seen_and_survives_its_document(alert: Alert) -> None:
    assert (alert.first_window, alert.last_window, alert.windows) == (7, 7, 1)
    assert (alert.first_ms, alert.last_ms) == (40, 50)
    assert alert.worst[0]["name"] == "age"
    acted = with_act(alert, act(AlertState.ACKNOWLEDGED))
    assert Alert.from_dict(acted.to_dict()) == acted


def test_a_storm_is_one_alert_told_of_once(alert: Alert) -> None:
    for number in range(8, 500):
        step = after(alert, replace(BAD, window=number, at_ms=number), RULES, now_ms=101)
        assert not step.notify
        assert not step.changes
        alert = step.alert
    assert (alert.windows, alert.first_window, alert.last_window) == (493, 7, 499)


def test_a_monitor_that_began_anew_counts_its_own_windows(alert: Alert) -> None:
    """What somebody acknowledges then is what it saw last."""
    first = after(alert, replace(BAD, window=900, at_ms=60), RULES, now_ms=101).alert
    anew = after(first, replace(BAD, window=3, at_ms=70), RULES, now_ms=102).alert
    assert (anew.first_window, anew.last_window) == (3, 3)
    outside = after(anew, replace(BAD, window=None, at_ms=80), RULES, now_ms=103).alert
    assert with_act(outside, act(AlertState.ACKNOWLEDGED)).acts[-1].window == 3


def test_people_are_told_again_after_a_quiet_time_unless_somebody_has_acknowledged(
    alert: Alert,
) -> None:
    assert not after(alert, BAD, RULES, now_ms=1099).notify
    again = after(alert, BAD, RULES, now_ms=1100)
    assert again.notify
    assert again.alert.notified_ms == 1100
    assert not after(again.alert, BAD, RULES, now_ms=1200).notify
    assert not after(alert, replace(BAD, level=AlertLevel.WARN), RULES, now_ms=1100).notify
    known = with_act(alert, act(AlertState.ACKNOWLEDGED))
    assert not after(known, BAD, RULES, now_ms=9999).notify


def test_what_gets_worse_is_told_at_once_and_open_again(alert: Alert) -> None:
    known = with_act(alert, act(AlertState.ACKNOWLEDGED))
    worse = replace(BAD, level=AlertLevel.QUARANTINE, quarantine=("accuracy fell by 4 sd",))
    step = after(known, worse, RULES, now_ms=101)
    assert step.notify
    assert step.changes == (Change.ESCALATED, Change.PROPOSED)
    assert step.alert.state is AlertState.OPEN
    assert not after(step.alert, worse, RULES, now_ms=102).changes
    later = after(step.alert, BAD, RULES, now_ms=103).alert  # a lesser one takes nothing back
    assert later.level is AlertLevel.QUARANTINE
    assert later.quarantine == worse.quarantine


def test_it_closes_after_windows_in_a_row_that_are_well(alert: Alert) -> None:
    alert = seen(alert, WELL, WELL, replace(WELL, judged=False))
    assert alert.ok_windows == 2  # what was not judged says nothing
    alert = seen(alert, replace(BAD, level=AlertLevel.WARN))
    assert alert.ok_windows == 0
    alert = seen(alert, WELL, WELL)
    step = after(alert, WELL, RULES, now_ms=500)
    assert step.changes == (Change.CLOSED,)
    assert not step.notify
    assert not step.alert.live
    assert step.alert.acts[-1].by == ""


def test_what_somebody_outside_raised_closes_only_by_a_person(alert: Alert) -> None:
    alert = seen(alert, replace(BAD, outside="nanny"), *[WELL] * 9)
    assert alert.state is AlertState.OPEN
    assert with_act(alert, act(AlertState.CLOSED)).state is AlertState.CLOSED


def test_a_monitors_finding_is_news_where_only_somebody_outside_had_raised_it() -> None:
    """Else whoever raises an alert first could keep the owner from hearing of the real one."""
    outside = replace(BAD, report="", outside="nanny", level=AlertLevel.QUARANTINE)
    step = opened(WHO, outside, RULES, now_ms=100)
    assert step is not None
    known = with_act(step.alert, act(AlertState.ACKNOWLEDGED))
    found = after(known, BAD, RULES, now_ms=101)
    assert found.notify
    assert found.changes == (Change.ESCALATED,)
    assert (found.alert.state, found.alert.level) == (AlertState.OPEN, AlertLevel.QUARANTINE)
    assert not after(found.alert, BAD, RULES, now_ms=102).notify
    assert not after(known, replace(BAD, level=AlertLevel.WARN), RULES, now_ms=101).notify


def test_one_that_flaps_is_told_of_once_in_a_quiet_time(alert: Alert) -> None:
    closed = seen(alert, WELL, WELL, WELL)
    back = opened(replace(WHO, number=2), BAD, RULES, now_ms=600, before=closed)
    assert back is not None
    assert not back.notify
    assert back.alert.notified_ms == alert.notified_ms  # the quiet time goes on
    assert after(back.alert, BAD, RULES, now_ms=1100).notify
    for before, level, now in (
        (with_act(alert, act(AlertState.CLOSED)), AlertLevel.ALERT, 600),  # a person said: over
        (closed, AlertLevel.QUARANTINE, 600),  # it is worse
        (closed, AlertLevel.ALERT, 1100),  # long ago
    ):
        again = opened(WHO, replace(BAD, level=level), RULES, now_ms=now, before=before)
        assert again is not None
        assert again.notify


def test_nobody_acts_twice_and_nothing_is_signed_off_that_is_not_proposed(alert: Alert) -> None:
    with pytest.raises(RefusedError, match="no quarantine is proposed"):
        with_act(alert, act(AlertState.QUARANTINED))
    known = with_act(alert, act(AlertState.ACKNOWLEDGED))
    with pytest.raises(ConflictError, match="acknowledged already, by ann"):
        with_act(known, act(AlertState.ACKNOWLEDGED, "bob"))
    closed = with_act(known, act(AlertState.CLOSED))
    for kind in (AlertState.ACKNOWLEDGED, AlertState.CLOSED, AlertState.QUARANTINED):
        with pytest.raises(ConflictError, match="closed already"):
            with_act(closed, act(kind))


def test_a_quarantined_version_stays_so_until_a_person_closes_it(alert: Alert) -> None:
    worse = replace(BAD, level=AlertLevel.QUARANTINE, quarantine=("why",))
    down = with_act(seen(alert, worse), act(AlertState.QUARANTINED))
    assert down.live
    assert seen(down, *[WELL] * 9).state is AlertState.QUARANTINED
    late = after(down, worse, RULES, now_ms=400)
    assert not late.notify
    assert not late.changes
    assert after(down, worse, RULES, now_ms=9_999).notify  # it goes on: is it really down?
    with pytest.raises(ConflictError, match="quarantine"):
        with_act(down, act(AlertState.ACKNOWLEDGED))
    assert not with_act(down, act(AlertState.CLOSED)).live


@pytest.mark.parametrize(
    ("names", "owner"),
    [
        (("ann", "bob"), "ann"),
        (("", None, "bob"), "bob"),
        (("anonymous", "unknown", " ", "carl"), "carl"),
        ((), "administrators"),
        (("", None), "administrators"),
        (("an\nn",), "an n"),
    ],
)
def test_it_is_always_somebodys(names: tuple[Any, ...], owner: str) -> None:
    assert first_owner(*names) == owner


def test_a_text_from_outside_stays_short_and_on_one_line(alert: Alert) -> None:
    long = replace(BAD, reasons=("x" * 9999, "a\x1b[31mb\nc", *["more"] * 99))
    reasons = seen(alert, long).reasons
    assert len(reasons) == 20
    assert len(reasons[0]) == 500
    assert reasons[1] == "a [31mb c"


def test_the_suggestion_names_rows_data_and_job(alert: Alert) -> None:
    tags = {
        "mlflow.project.entryPoint": "train",
        "mlflow.source.git.commit": "c0ffee" * 6,
        "mlflow.user": "ann",
    }
    found = suggestion(alert, datasets=("train#1", "train#1"), run_id="ab12", tags=tags)
    assert found["format"] == "chancery.retrain/v1"
    assert found["slices"][0]["predicate"] == [{"column": "age", "above": "52.5"}]
    assert found["windows"] == {"first": 7, "last": 7, "fromMs": 40, "toMs": 50}
    assert found["datasets"] == ["train#1"]
    assert found["worstColumns"] == ["age"]
    assert found["job"] == {"runId": "ab12", "entryPoint": "train", "gitCommit": "c0ffee" * 6}
    assert "(age > 52.5)" in found["text"]
    assert "train at commit c0ffeec0ffee" in found["text"]
    fewer = {"text": "age <= 52.5", "predicate": [], "z": "-9.3"}
    both = suggestion(
        replace(alert, slices=(*alert.slices, fewer)), datasets=(), run_id="", tags={}
    )
    assert both["slices"] == found["slices"]  # of fewer rows there are none to train with
    assert "<=" not in both["text"]
    bare = suggestion(replace(alert, slices=(), worst=()), datasets=(), run_id=None, tags={})
    assert bare["text"].startswith("Label all rows served from")
