"""The verdict of a canary as a condition: what it is bound to, and what proves too little."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from governance.errors import PolicyError
from governance.gates.canary import canary_condition, counted_verdict
from governance.gates.decide import decide
from governance.gates.policy import CanaryRequirement, Policy, parse_policy
from governance.records import CanaryVerdict, Candidate, Condition, Evidence

DAY = 86_400_000
NOW = 100 * DAY
NEEDS = CanaryRequirement(environment="staging", max_age="7d", min_requests=1000)
CANDIDATE = Candidate("m", "fraud", 3, "v3", root_digest="ab" * 32, manifest_digest="cd" * 32)
VERDICT = CanaryVerdict(
    rollout_id="f" * 32,
    environment="staging",
    model="models:/fraud/3",
    version_uid="v3",
    root_digest="ab" * 32,
    stable="models:/fraud/2",
    outcome="promoted",
    ended_ms=NOW - 2 * DAY,
    requests=1204,
    alpha=0.01,
    error_level=0.0043,
    digest="e" * 64,
)
START = "`chancery deploy start models:/fraud/3 --env staging --canary 5%`"


def condition(*verdicts: CanaryVerdict, needs: Any = NEEDS, **more: Any) -> Condition:
    return canary_condition(CANDIDATE, Evidence(verdicts=verdicts, as_of_ms=NOW, **more), needs)


def needs(**changes: Any) -> CanaryRequirement:
    return NEEDS.model_copy(update=changes)


def test_a_good_verdict_meets_it_and_says_what_was_found() -> None:
    found = condition(VERDICT)
    assert found.met
    assert found.remedy == ""
    assert found.found == (
        "rollout ffffffffffff beside models:/fraud/2 ended promoted 2 days ago, after 1204 requests"
    )
    assert found.required == (
        "A canary of the same version in staging must have ended promoted within 7d, after at "
        "least 1000 requests"
    )


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            {"model": "models:/fraud/2", "version_uid": "v2"},
            "rollout ffffffffffff was of models:/fraud/2",
        ),
        ({"version_uid": "v3-before"}, "was of an earlier models:/fraud/3, which was deleted"),
        ({"root_digest": "ac" * 32}, "was of other files"),
        ({"root_digest": ""}, "was of other files"),
        ({"environment": "sandbox"}, "was in sandbox"),
        ({"outcome": "aborted"}, "was aborted"),
        ({"ended_ms": NOW + DAY}, "ended later than this"),
        ({"outcome": "rolled_back"}, "ended rolled back 2 days ago"),
        ({"outcome": "quarantined"}, "ended quarantined 2 days ago"),
        ({"outcome": "Promoted"}, "ended Promoted 2 days ago"),
        ({"ended_ms": NOW - 7 * DAY - 1}, "ended promoted 7 days ago"),
        ({"requests": 999}, "compared 999 requests of each version"),
        ({"alpha": 0.49}, "decided at level 0.49"),
        ({"alpha": None}, "decided at level 1"),
        ({"shown_alpha": 0.49}, "decided at level 0.49"),
        ({"error_level": 1e-9}, "would have rolled it back at level 1e-09 only"),
        ({"error_level": None}, "it did not compare errors"),
        ({"error_tolerance": 0.9}, "tolerated an error rate 0.9 higher"),
    ],
)
def test_any_other_verdict_does_not(change: dict[str, Any], found: str) -> None:
    told = condition(replace(VERDICT, **change))
    assert not told.met
    assert found in told.found
    assert START in told.remedy


def test_without_one_it_says_what_to_do() -> None:
    told = condition()
    assert not told.met
    assert told.found == "no rollout of it in staging that ended by a verdict is on the ledger"
    assert told.remedy == f"roll it out: {START}."
    told = condition(verdict_problems=("rollout 1234 is not stored as the ledger has it",))
    assert told.found.endswith("(rollout 1234 is not stored as the ledger has it)")


def test_the_newest_counts_except_what_was_aborted() -> None:
    later = replace(VERDICT, ended_ms=NOW - DAY, outcome="rolled_back")
    for order in ((VERDICT, later), (later, VERDICT)):
        assert not condition(*order).met
    assert condition(replace(later, ended_ms=NOW - 3 * DAY), VERDICT).met
    assert condition(replace(later, outcome="aborted"), VERDICT).met


def test_clocks_of_two_machines_may_differ_a_little() -> None:
    assert condition(replace(VERDICT, ended_ms=NOW + 60_000)).met


def test_a_version_without_a_known_digest_has_no_verdict() -> None:
    unread = replace(CANDIDATE, root_digest=None)
    evidence = Evidence(verdicts=(replace(VERDICT, root_digest=""),), as_of_ms=NOW)
    assert counted_verdict(unread, evidence, NEEDS) is None


def test_the_first_version_is_excused_only_where_the_policy_says_so() -> None:
    assert not condition(first=True).met
    assert condition(first=True, needs=needs(unless_first=True)).met
    assert not condition(first=False, needs=needs(unless_first=True)).met


def policy(canary: str, environment: str = "prod") -> Policy:
    parts = {"staging": "", "prod": "", environment: f"\n    requires: {{canary: {canary}}}"}
    return parse_policy(
        "version: 1\nenvironments:\n  - {name: sandbox}\n"
        f"  - name: staging\n    aliases: [s]{parts['staging']}\n"
        f"  - name: prod\n    aliases: [p]{parts['prod']}\n"
    )


def names(asks: Policy, **more: Any) -> list[str]:
    return [c.name for c in decide(CANDIDATE, Evidence(), asks, "prod", **more).conditions]


def test_a_verdict_of_the_target_itself_is_asked_for_when_the_change_is_made() -> None:
    own, earlier = policy("{environment: prod}"), policy("{environment: staging}")
    assert "canary" in names(own)
    assert "canary" not in names(own, own_canary=False)
    assert "canary" in names(earlier, own_canary=False)


def test_a_rule_for_a_model_replaces_it_or_takes_it_out() -> None:
    asks = parse_policy(
        "version: 1\nenvironments:\n  - name: prod\n    aliases: [p]\n"
        "    requires: {canary: {environment: prod}}\n"
        "models:\n  - match: new-*\n    environments: {prod: {canary: null}}\n"
        "  - match: big-*\n    environments: {prod: {canary: {environment: prod, "
        "min_requests: 5000}}}\n"
    )
    assert asks.requirements("new-one", "prod").canary is None
    big, other = (asks.requirements(name, "prod").canary for name in ("big-one", "other"))
    assert big is not None
    assert other is not None
    assert (big.min_requests, other.min_requests) == (5000, 1000)


def test_a_policy_without_it_means_what_it_meant() -> None:
    """Its digest is in statements that people signed."""
    digest = parse_policy("version: 1\nenvironments:\n  - {name: prod, aliases: [p]}\n").digest
    assert digest == "6bbc7349f7edeeed3e3034fe32db2659270190a3e46cb7c7f11df819eec3dae6"
    assert policy("{environment: prod}").digest != policy("{environment: staging}").digest


@pytest.mark.parametrize(
    ("canary", "words"),
    [
        ("{}", "'environment' is missing"),
        ("{environment: moon}", "no environment 'moon'"),
        ("{environment: prod, max_age: 7}", "max_age"),
        ("{environment: prod, max_age: 7w}", "such as 90m, 12h or 7d"),
        ("{environment: prod, max_age: 0d}", "such as 90m, 12h or 7d"),
        ("{environment: prod, outcome: rolled_back}", "outcome"),
        ("{environment: prod, min_requests: 0}", "min_requests"),
        ("{environment: prod, max_alpha: 0.5}", "max_alpha"),
        ("{environment: prod, min_alpha: 0.2}", "no level is from 0.2 to 0.1"),
        ("{environment: prod, requests: 5}", "did you mean 'min_requests'"),
    ],
)
def test_a_mistake_is_named(canary: str, words: str) -> None:
    with pytest.raises(PolicyError) as error:
        policy(canary)
    assert words in f"{error.value} {error.value.remedy}"
    assert "canary" in str(error.value)


def test_a_later_environment_cannot_be_asked_for() -> None:
    with pytest.raises(PolicyError, match="comes after staging"):
        policy("{environment: prod}", "staging")
