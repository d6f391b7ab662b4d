"""The promotion policy: lookups, merging, digest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from governance.errors import NotFoundError, PolicyError, RefusedError
from governance.gates.policy import Policy, default_policy, load_policy, parse_policy
from governance.gates.schema import (
    PROVENANCE_TAGS,
    CanaryRequirement,
    Environment,
    Requires,
    folded,
)
from governance.identity import ProofLevel

DOC = Path(__file__).parents[3] / "docs" / "policy.md"


def documented() -> str:
    match = re.search(r"```yaml\n(.*?)```", DOC.read_text("utf-8"), re.DOTALL)
    assert match
    return match[1]


@pytest.fixture
def policy() -> Policy:
    return parse_policy(documented(), "docs/policy.md")


def test_the_documented_example_is_a_policy(policy: Policy) -> None:
    assert [e.name for e in policy.environments] == ["sandbox", "staging", "prod"]
    assert [e.name for e in policy.protected_environments] == ["staging", "prod"]
    prod = policy.requirements("churn", "prod")
    assert (prod.approvals, prod.datasets, prod.after) == (2, 1, "staging")
    assert prod.actor_proof is ProofLevel.SIGNED
    assert prod.provenance == (*PROVENANCE_TAGS.values(), "data.contract")


def test_every_key_is_documented() -> None:
    text = DOC.read_text("utf-8")
    parts = (Environment, Requires, CanaryRequirement)
    keys = [*(key for part in parts for key in part.model_fields), *PROVENANCE_TAGS.values()]
    assert [key for key in keys if f"`{key}`" not in text] == []


def test_the_demonstration_s_policy() -> None:
    policy = load_policy(DOC.parents[1] / "examples" / "policy.yaml")
    canary = policy.requirements("tumour", "prod").canary
    assert canary is not None
    assert (canary.environment, canary.unless_first) == ("prod", True)


def test_the_built_in_policy() -> None:
    policy = default_policy()
    assert policy.load.require_signature == "protected"
    for alias, name in {
        "staging": "staging",
        "challenger": "staging",
        "prod": "prod",
        "production": "prod",
        "champion": "prod",
    }.items():
        environment = policy.environment_for_alias(alias)
        assert environment is not None
        assert environment.name == name
    assert policy.requirements("any", "staging").after is None
    assert policy.requirements("any", "prod").after == "staging"
    assert policy.requirements("any", "prod").approvals == 1


@pytest.mark.parametrize(
    "alias", ["champion", "Champion", "CHAMPION", "ｃｈａｍｐｉｏｎ", "champion\n", "cHAMPiON"]
)
def test_no_spelling_of_an_alias_slips_past(alias: str) -> None:
    environment = default_policy().environment_for_alias(alias)
    assert environment is not None
    assert environment.name == "prod"


def test_folding_is_stable() -> None:
    for text in ("ﬁnal", "ẞ", "İ", "K", "ϔ", "ſtaging"):
        assert folded(folded(text)) == folded(text)


@pytest.mark.parametrize("stage", ["Production", "production", "PRODUCTION"])
def test_stages(stage: str) -> None:
    environment = default_policy().environment_for_stage(stage)
    assert environment is not None
    assert environment.name == "prod"


MODELS = """\
version: 1
environments:
  - {name: sandbox, registered_models: ["*"]}
  - {name: staging, registered_models: ["staging.*", "*.live"]}
  - {name: prod, registered_models: ["Prod.*"]}
"""


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("prod.fraud", "prod"),
        ("PROD.fraud", "prod"),
        ("ｐｒｏｄ.fraud", "prod"),
        (" prod.fraud\n", "prod"),
        ("staging.fraud", "staging"),
        ("prod.live", "prod"),  # the later environment's gate is the one that counts
        ("fraud.Live", "staging"),
        ("prod", None),
        ("my.prod.fraud", None),
        ("fraud", None),
    ],
)
def test_registered_models_of_an_environment(name: str, environment: str | None) -> None:
    found = parse_policy(MODELS).environment_for_registered_model(name)
    assert (found and found.name) == environment


@pytest.mark.parametrize("served_as", [None, "prod.fraud", "PROD.fraud"])
def test_the_ways_in(served_as: str | None) -> None:
    policy = parse_policy(MODELS.replace("name: prod,", "name: prod, aliases: [champion],"))
    assert policy.way_in("Prod", served_as).name == "prod"


@pytest.mark.parametrize(
    ("environment", "served_as", "words"),
    [
        ("prod", "fraud", "'fraud' is no registered model of prod: the policy protects no"),
        ("prod", "staging.fraud", "is no registered model of prod: it is one of staging"),
        ("staging", "prod.live", "is no registered model of staging: it is one of prod"),
        ("sandbox", "anything", "is no registered model of sandbox"),
        ("prod", "", "protects no registered model of that name"),
        ("prod", "prod.a/b", "protects no registered model of that name"),
        ("prod", "prod." + "a" * 252, "protects no registered model of that name"),
        ("prod", None, r"no alias or stage; .*\(Prod\.\*\) Remedy: say which: add `--as"),
    ],
)
def test_what_is_no_way_in(environment: str, served_as: str | None, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        parse_policy(MODELS).way_in(environment, served_as)
    with pytest.raises(RefusedError, match="without `--as`"):
        default_policy().way_in("prod", "prod.fraud")


def test_no_registered_model_is_protected_by_default() -> None:
    assert default_policy().environment_for_registered_model("prod.fraud") is None
    assert default_policy().environments[0].registered_models == ()


def test_what_is_not_protected_has_no_environment(policy: Policy) -> None:
    assert policy.environment_for_alias("dev") is None
    assert policy.environment_for_alias("whatever") is None
    assert policy.environment_for_stage("Archived") is None
    assert policy.environment_for_stage("None") is None


def test_environment_by_name(policy: Policy) -> None:
    assert policy.environment("PROD").name == "prod"
    with pytest.raises(NotFoundError, match="did you mean 'staging'"):
        policy.environment("stagging")
    with pytest.raises(NotFoundError, match="sandbox, staging, prod"):
        policy.environment("x")


def test_model_rules_merge_in_order() -> None:
    text = documented().replace(
        "load:",
        """  - match: "FRAUD-card"
    environments:
      prod:
        after: null
        approvals: 1
        provenance: [ticket]
load:""",
    )
    policy = parse_policy(text)
    plain, fraud, card = (
        policy.requirements(name, "prod") for name in ("churn", "Fraud-X", "fraud-CARD")
    )
    assert (plain.approvals, fraud.approvals, card.approvals) == (2, 3, 1)
    assert (fraud.after, card.after) == ("staging", None)
    assert {m.name: m.min for m in card.metrics} == {"accuracy": 0.95, "false_positive_rate": None}
    assert card.provenance == (*plain.provenance, "ticket")
    assert card.request_ttl_hours == 48


def test_the_digest_follows_the_meaning() -> None:
    text = documented()
    digest = parse_policy(text).digest
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert parse_policy(f"# a comment\n{text}").digest == digest
    assert parse_policy(text.replace("min: 0.80", "min: 8e-1")).digest == digest
    assert parse_policy(text.replace("min: 0.80", "min: 0.81")).digest != digest
    assert parse_policy(text.replace("approvals: 3", "approvals: 4")).digest != digest
    assert parse_policy(text.replace("after: staging", "after: null")).digest != digest
    rules = text.replace("        approvals: 3\n", "        after: null\n")
    assert parse_policy(rules).digest != digest


def test_load_policy_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("\ufeff" + documented(), encoding="utf-8")
    assert load_policy(path) == parse_policy(documented())


def test_load_policy_names_an_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"nowhere\.yaml.*cannot be read"):
        load_policy(tmp_path / "nowhere.yaml")
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"version: 1\nmetrics: {caf\xe9: {goal: maximize}}\n")
    with pytest.raises(PolicyError, match="not UTF-8") as caught:
        load_policy(path)
    assert caught.value.line == 2
