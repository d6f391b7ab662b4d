"""Drift as conditions of a promotion: what counts, what does not, and what to do about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from governance.errors import PolicyError
from governance.gates.decide import decide
from governance.gates.drift import counted_reports, drift_conditions
from governance.gates.policy import DriftRequirement, parse_policy
from governance.records import Candidate, Condition, DriftEvidence, DriftFound, Evidence

DAY = 86_400_000
NOW = 100 * DAY
CANDIDATE = Candidate("m", "fraud", 3, "v3", root_digest="ab" * 32, manifest_digest="cd" * 32)
FOUND = DriftFound("fraud", "e" * 64, "f" * 64, True, 12, "ok", NOW - 2 * DAY, "robot", 0.93, 0.95)
POLICY = """
version: 1
environments:
  - name: staging
    aliases: [challenger]
  - name: prod
    aliases: [champion]
    requires:
      after: null
      drift: {no_open_alert: true, report_younger_than: 7d, estimated_accuracy_at_least: 0.9}
"""


def conditions(
    *reports: DriftFound,
    needs: dict[str, Any] | None = None,
    alerts: tuple[str, ...] = (),
    problems: tuple[str, ...] = (),
) -> dict[str, Condition]:
    evidence = Evidence(drift=DriftEvidence(reports, problems, alerts), as_of_ms=NOW)
    found = drift_conditions(CANDIDATE, evidence, DriftRequirement(**(needs or {})))
    return {one.name: one for one in found}


def test_a_young_report_by_the_versions_own_profile_meets_it() -> None:
    found = conditions(FOUND)
    assert all(one.met for one in found.values())
    assert set(found) == {"drift:report", "drift:alerts"}
    assert found["drift:report"].found == "robot did 2 days ago on the route 'fraud'"


def test_without_a_report_it_says_what_to_do() -> None:
    found = conditions()["drift:report"]
    assert not found.met
    assert found.found == "no monitor did"
    assert "`chancery drift check models:/fraud/3 --data" in found.remedy
    assert not next(iter(drift_conditions(CANDIDATE, Evidence(), DriftRequirement()))).met


@pytest.mark.parametrize(
    ("change", "words", "remedy"),
    [
        ({"made_ms": NOW - 8 * DAY}, "is from 8 days ago", "see to it that its monitor runs"),
        ({"own_profile": False}, "none of the version's files", "logged with it"),
    ],
)
def test_a_stale_or_foreign_report_does_not(
    change: dict[str, Any], words: str, remedy: str
) -> None:
    found = conditions(replace(FOUND, **change))["drift:report"]
    assert not found.met
    assert words in found.found
    assert remedy in found.remedy


def test_what_does_not_count_is_explained() -> None:
    found = conditions(problems=("the report on batches does not count: it is not signed",))
    assert "it is not signed" in found["drift:report"].found
    assert "sign a new report" in found["drift:report"].remedy


def test_an_alert_that_is_not_closed_does_not() -> None:
    told = conditions(FOUND, alerts=("alert 12ab is open",))["drift:alerts"]
    assert not told.met
    assert told.found == "alert 12ab is open"
    assert "chancery drift close" in told.remedy
    assert "drift:alerts" not in conditions(FOUND, needs={"no_open_alert": False})


@pytest.mark.parametrize(
    ("needs", "name", "change", "met"),
    [
        ({"estimated_accuracy_at_least": 0.9}, "accuracy", {}, True),
        ({"estimated_accuracy_at_least": 0.94}, "accuracy", {}, False),
        ({"estimated_accuracy_at_least": 0.0}, "accuracy", {"estimated_accuracy": None}, False),
        ({"estimated_accuracy_within": 0.03}, "accuracy-fall", {}, True),
        ({"estimated_accuracy_within": 0.01}, "accuracy-fall", {}, False),
        ({"estimated_accuracy_within": 1.0}, "accuracy-fall", {"reference_accuracy": None}, False),
    ],
)
def test_the_estimated_accuracy_is_compared(
    needs: dict[str, Any], name: str, change: dict[str, Any], met: bool
) -> None:
    found = conditions(replace(FOUND, **change), needs=needs)[f"drift:{name}"]
    assert found.met is met
    assert found.remedy or met


def test_every_route_counts_and_a_good_one_does_not_make_up_for_a_bad_one() -> None:
    bad = replace(FOUND, deployment="b", estimated_accuracy=0.5, made_ms=NOW - 3 * DAY)
    needs = {"estimated_accuracy_at_least": 0.9}
    for order in ((FOUND, bad), (bad, FOUND)):
        assert not conditions(*order, needs=needs)["drift:accuracy"].met
    old = replace(bad, made_ms=NOW - 30 * DAY)  # it does not answer there any more
    assert conditions(FOUND, old, needs=needs)["drift:accuracy"].met
    assert not conditions(needs=needs)["drift:accuracy"].met


def test_only_what_counts_is_named_in_the_statement() -> None:
    stale = replace(FOUND, made_ms=NOW - 9 * DAY)
    foreign = replace(FOUND, own_profile=False)
    evidence = Evidence(drift=DriftEvidence((stale, foreign, FOUND)), as_of_ms=NOW)
    assert counted_reports(evidence, DriftRequirement()) == (FOUND,)


def test_a_policy_asks_for_it() -> None:
    policy = parse_policy(POLICY)
    evidence = Evidence(drift=DriftEvidence((FOUND,)), as_of_ms=NOW)
    named = {one.name: one.met for one in decide(CANDIDATE, evidence, policy, "prod").conditions}
    assert named["drift:report"]
    assert named["drift:accuracy"]
    bare = parse_policy(POLICY.replace("drift:", "canary: null # "))
    assert "drift:report" not in {
        one.name for one in decide(CANDIDATE, evidence, bare, "prod").conditions
    }
    assert bare.digest != policy.digest
    without = "\n".join(line for line in POLICY.splitlines() if "drift:" not in line)
    assert parse_policy(without).digest == bare.digest  # a file without it means what it meant


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{report_younger_then: 7d}", "report_younger_than"),
        ("{report_younger_than: 7}", "string"),
        ("{report_younger_than: 7w}", "m, h or d"),
        ("{estimated_accuracy_at_least: 1.5}", "less than or equal to 1"),
        ("{estimated_accuracy_at_least: high}", "number"),
        ("{no_open_alert: maybe}", "bool"),
        ("7d", "should be an object"),
    ],
)
def test_a_mistake_names_its_line(text: str, words: str) -> None:
    lines = POLICY.splitlines()
    lines[-1] = f"      drift: {text}"
    with pytest.raises(PolicyError) as refused:
        parse_policy("\n".join(lines))
    assert refused.value.line == len(lines)
    assert words in str(refused.value)
