"""A report as the registry reads it: what drift writes is read whole, and nothing else is."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift.verdict import Level
from governance.alert_records import AlertLevel
from governance.canonical import canonical_json
from governance.drift_reports import SIZE_LIMIT, DriftReport
from governance.errors import GovernanceError, MalformedRequestError
from tests.integration.drift_world import report

BAD = report(3, Level.ALERT, deployment="fraud", quarantine=("accuracy fell",), owner="ann")
GOOD = json.loads(BAD.to_json())


def changed(path: str, value: Any) -> bytes:
    document = json.loads(BAD.to_json())
    *way, last = path.split(".")
    place = document
    for key in way:
        place = place[int(key) if key.isdigit() else key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return canonical_json(document)


def test_what_drift_writes_is_read_whole() -> None:
    found = DriftReport.parse(BAD.to_json())
    assert found.digest == BAD.digest
    assert (found.uri, found.deployment, found.owner) == ("models:/fraud/3", "fraud", "ann")
    assert found.profile == BAD.subject.profile
    assert (found.window, found.made_ms) == (BAD.verdict.index, BAD.made_ms)
    assert (found.level, found.judged) == (AlertLevel.QUARANTINE, True)
    assert (found.esr, found.psi, found.estimated_accuracy) == (4000.0, 0.41, 0.93)
    assert found.worst == ({"name": "age", "role": "feature", "psi": "0.41", "esr": "4000.0"},)
    [part] = found.slices
    assert part["predicate"][0]["above"] == "52.5"
    assert part["z"] == "9.3"
    seen = found.to_sighting()
    assert (seen.first_ms, seen.at_ms) == (BAD.verdict.first_ms, BAD.verdict.last_ms)
    json.dumps(found.summary(), allow_nan=False)


def test_the_status_has_metrics_and_what_an_alert_needed() -> None:
    told = replace(
        BAD,
        verdict=replace(BAD.verdict, alert_esr=500.0, alert_needs="either"),
        performance=replace(
            BAD.performance, error_esr=math.inf, fairness=(("selection/sex", 0.7),)
        ),
    )
    found = DriftReport.parse(told.to_json()).summary()
    assert found["thresholds"] == {
        "warnEsr": 100.0, "alertEsr": 500.0, "psi": 0.05, "needs": "either",
    }  # fmt: skip
    assert (found["metrics"]["errorEsr"], found["metrics"]["fairness"]) == (
        None, {"selection/sex": 0.7},
    )  # fmt: skip
    earlier = json.loads(told.to_json())
    for name in ("warn_esr", "alert_esr", "alert_needs", "besides"):
        del earlier["verdict"][name]
    found = DriftReport.parse(canonical_json(earlier)).summary()
    assert found["thresholds"] == {"warnEsr": None, "alertEsr": None, "psi": 0.05, "needs": ""}


@pytest.mark.parametrize("level", list(Level))
def test_levels(level: Level) -> None:
    found = DriftReport.parse(report(level=level).to_json())
    assert found.level == (None if level is Level.OK else AlertLevel(level.value))


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_a_number_that_is_none_is_not_known(text: str) -> None:
    found = DriftReport.parse(changed("performance.estimated_accuracy", text))
    assert found.estimated_accuracy is None


def test_keys_that_others_read_are_left_to_them() -> None:
    assert DriftReport.parse(changed("more", {"x": 1})).window == BAD.verdict.index
    assert DriftReport.parse(changed("performance.reference_accuracy", None)).version == 3


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", "chancery.drift-report/v2"),
        ("subject", None),
        ("subject.model", ""),
        ("subject.model", "x" * 257),
        ("subject.version", 0),
        ("subject.version", "3"),
        ("subject.version", True),
        ("subject.version", 2**31),
        ("subject.profile", "abc"),
        ("subject.profile", "A" * 64),
        ("subject.deployment", "a\nb"),
        ("subject.deployment", "x" * 129),
        ("verdict", []),
        ("verdict.level", "terrible"),
        ("verdict.judged", 1),
        ("verdict.index", -1),
        ("verdict.esr", "many"),
        ("verdict.esr", [1]),
        ("verdict.reasons", "because"),
        ("verdict.reasons", [1]),
        ("verdict.worst", None),
        ("verdict.worst.0.name", 7),
        ("verdict.first_ms", "1"),
        ("slices", {}),
        ("slices.0.text", None),
        ("slices.0.predicate", "age"),
        ("performance.labelled", -1),
        ("performance.fairness", {"sex": "0.5"}),
        ("performance.fairness", [["sex"]]),
        ("performance.fairness", [["sex", "much"]]),
        ("verdict.alert_needs", 3),
        ("performance.estimated_accuracy", "9" * 41),
        ("madeMs", 0),
        ("madeMs", 10**15),
    ],
)
def test_anything_else_is_refused(path: str, value: Any) -> None:
    with pytest.raises(MalformedRequestError, match="the drift report"):
        DriftReport.parse(changed(path, value))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"a":1,"a":1}',
        b"[" * 100_000,
        b" " + BAD.to_json(),
        b"x" * (SIZE_LIMIT + 1),
    ],
)
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        DriftReport.parse(data)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**40) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
_paths = sorted({"subject", "verdict", "performance", "slices", "madeMs"}
                | {f"{top}.{key}" for top in ("subject", "verdict", "performance")
                   for key in GOOD[top]})  # fmt: skip


@given(st.sampled_from(_paths), _json)
def test_whatever_stands_there_is_read_or_refused_and_nothing_else(path: str, value: Any) -> None:
    try:
        found = DriftReport.parse(changed(path, value))
    except GovernanceError:
        return
    assert len(json.dumps(found.summary())) < 100_000


def test_what_goes_into_an_alert_is_bounded() -> None:
    document = json.loads(BAD.to_json())
    document["verdict"]["reasons"] = ["x" * 4000] * 50
    document["verdict"]["worst"] *= 50
    document["slices"] = [json.loads(json.dumps(document["slices"][0])) for _ in range(50)]
    document["slices"][0]["predicate"][0]["values"] = ["v" * 300] * 300
    found = DriftReport.parse(canonical_json(document))
    assert len(found.reasons) == 20
    assert max(map(len, found.reasons)) == 500
    assert (len(found.worst), len(found.slices)) == (10, 10)
    assert len(found.slices[0]["predicate"][0]["values"]) == 100
