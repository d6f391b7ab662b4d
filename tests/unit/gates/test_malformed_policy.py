"""Malformed policies: each names the exact line and field, and helps where it can."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import PolicyError
from governance.gates.policy import Policy, parse_policy

GOOD = """\
version: 1
metrics:
  accuracy: {goal: maximize}
  loss: {goal: minimize}
environments:
  - name: sandbox
  - name: staging
    aliases: [staging, challenger]
    stages: [Staging]
  - name: prod
    aliases: [prod, champion]
    stages: [Production]
    requires:
      metrics:
        - name: accuracy
          min: 0.9
        - {name: loss, max: 2}
      after: staging
      approvals: 2
models:
  - match: "fraud*"
    environments:
      prod: {approvals: 3}
load:
  require_signature: all
"""

PROD = "environments[2].requires"

# (what is replaced, by what, line, field, words of the message, words of the remedy)
CASES = {
    "unknown top key": ("load:", "laod:", 24, "laod", "unknown key 'laod'", "'load'"),
    "unknown environment key": (
        "    aliases: [prod", "    alias: [prod", 11, "environments[2].alias",
        "unknown key", "'aliases'",
    ),
    "unknown requirement": (
        "approvals: 2", "approvers: 2", 19, f"{PROD}.approvers", "unknown key", "'approvals'",
    ),
    "unknown metric key": (
        "          min: 0.9", "          mni: 0.9", 16, f"{PROD}.metrics[0].mni",
        "unknown key", "'min'",
    ),
    "unknown key far from any": (
        "approvals: 2", "zzz: 2", 19, f"{PROD}.zzz", "unknown key", "known keys: metrics",
    ),
    "undeclared metric": (
        "name: accuracy", "name: acuracy", 15, f"{PROD}.metrics[0].name",
        "'acuracy' is not declared", "did you mean 'accuracy'",
    ),
    "undeclared metric far from any": (
        "name: accuracy", "name: f1", 15, f"{PROD}.metrics[0].name", "not declared", "goal",
    ),
    "wrong type": (
        "approvals: 2", "approvals: two", 19, f"{PROD}.approvals", "integer", "correct",
    ),
    "quoted number": (
        "approvals: 2", 'approvals: "2"', 19, f"{PROD}.approvals", "integer", "correct",
    ),
    "boolean number": (
        "          min: 0.9", "          min: true", 16, f"{PROD}.metrics[0].min", "number", "",
    ),
    "yes is no boolean": (
        "- name: staging\n", "- name: staging\n    protected: yes\n", 8,
        "environments[1].protected", "boolean", "",
    ),
    "nan threshold": (
        "          min: 0.9", "          min: .nan", 16, f"{PROD}.metrics[0].min", "finite", "",
    ),
    "infinite threshold": (
        "          min: 0.9", "          min: -.inf", 16, f"{PROD}.metrics[0].min", "finite", "",
    ),
    "negative approvals": (
        "approvals: 2", "approvals: -1", 19, f"{PROD}.approvals", "greater than or equal to 1", "",
    ),
    "no bounds": (
        "          min: 0.9\n", "", 15, f"{PROD}.metrics[0]", "'min', 'max' or both", "",
    ),
    "crossed bounds": (
        "          min: 0.9", "          min: 0.9\n          max: 0.1", 15, f"{PROD}.metrics[0]",
        "at least 0.9 and at most 0.1", "",
    ),
    "swapped bound": (
        "          min: 0.9", "          max: 0.9", 16, f"{PROD}.metrics[0].max",
        "accuracy is to maximize", "did you mean 'min'",
    ),
    "swapped bound of a loss": (
        "{name: loss, max: 2}", "{name: loss, min: 2}", 17, f"{PROD}.metrics[1].min",
        "loss is to minimize", "did you mean 'max'",
    ),
    "metric twice": (
        "{name: loss, max: 2}", "{name: accuracy, min: 2}", 17, f"{PROD}.metrics[1].name",
        "twice", "",
    ),
    "missing key": (
        "  - match: \"fraud*\"\n    environments", "  - environments", 21, "models[0].match",
        "the key 'match' is missing", "add",
    ),
    "missing version": ("version: 1\n", "", 1, "version", "'version' is missing", "add"),
    "another version": ("version: 1", "version: 2", 1, "version", "should be 1, but is 2", ""),
    "alias in two environments": (
        "aliases: [prod, champion]", "aliases: [prod, Challenger]", 11,
        "environments[2].aliases[1]", "belongs to staging already", "",
    ),
    "alias in two environments, wide letters": (
        "aliases: [prod, champion]", "aliases: [prod, ｓｔａｇｉｎｇ]", 11,
        "environments[2].aliases[1]", "belongs to staging already", "",
    ),
    "stage in two environments": (
        "stages: [Production]", "stages: [staging]", 12, "environments[2].stages[0]",
        "belongs to staging already", "",
    ),
    "unknown stage": (
        "stages: [Production]", "stages: [Prod]", 12, "environments[2].stages[0]",
        "'Staging' or 'Production'", "",
    ),
    "registered-model glob in two environments": (
        "    aliases: [staging, challenger]\n    stages: [Staging]\n"
        "  - name: prod\n    aliases: [prod, champion]\n",
        "    registered_models: [\"live.*\"]\n"
        "  - name: prod\n    registered_models: [\"a\", \"LIVE.*\"]\n",
        10, "environments[2].registered_models[1]", "belongs to staging already", "",
    ),
    "blank registered-model glob": (
        "    aliases: [prod, champion]", '    registered_models: [" "]', 11,
        "environments[2].registered_models[0]", "", "",
    ),
    "reserved alias": (
        "aliases: [prod, champion]", "aliases: [prod, Latest]", 11,
        "environments[2].aliases[1]", "reserves", "",
    ),
    "alias with a space": (
        "aliases: [prod, champion]", 'aliases: [prod, "a b"]', 11,
        "environments[2].aliases[1]", "letters, digits", "",
    ),
    "environment twice": (
        "- name: prod", "- name: staging", 10, "environments[2].name", "appears twice", "",
    ),
    "environment with a bad name": (
        "- name: prod", "- name: Prod", 10, "environments[2].name", "small letter", "",
    ),
    "environment without a way in": (
        "    aliases: [staging, challenger]\n    stages: [Staging]\n", "", 7, "environments[1]",
        "neither aliases nor stages nor registered_models", "",
    ),
    "requirements without protection": (
        "- name: sandbox", "- name: sandbox\n    requires: {approvals: 1}", 7,
        "environments[0].requires", "not protected", "protected: true",
    ),
    "unknown after": (
        "after: staging", "after: stagging", 18, f"{PROD}.after",
        "no environment 'stagging'", "did you mean 'staging'",
    ),
    "after itself": (
        "after: staging", "after: prod", 18, f"{PROD}.after", "does not come before", "",
    ),
    "after a later one": (
        "    stages: [Staging]\n", "    stages: [Staging]\n    requires: {after: prod}\n", 10,
        "environments[1].requires.after", "prod does not come before staging", "",
    ),
    "after an open one": (
        "after: staging", "after: sandbox", 18, f"{PROD}.after", "not protected", "",
    ),
    "rule for an unknown environment": (
        "      prod: {approvals: 3}", "      prd: {approvals: 3}", 23,
        "models[0].environments.prd", "no environment 'prd'", "did you mean 'prod'",
    ),
    "rule for an open environment": (
        "      prod: {approvals: 3}", "      sandbox: {approvals: 3}", 23,
        "models[0].environments.sandbox", "not protected", "",
    ),
    "rule with an unknown key": (
        "prod: {approvals: 3}", "prod: {approval: 3}", 23,
        "models[0].environments.prod.approval", "unknown key", "'approvals'",
    ),
    "rule with an undeclared metric": (
        "prod: {approvals: 3}", "prod: {metrics: [{name: los, max: 1}]}", 23,
        "models[0].environments.prod.metrics[0].name", "not declared", "'loss'",
    ),
    "unknown proof": (
        "approvals: 2", "actor_proof: sgned", 19, f"{PROD}.actor_proof", "should be",
        "did you mean 'signed'",
    ),
    "unknown goal": (
        "{goal: maximize}", "{goal: maximise}", 3, "metrics.accuracy.goal", "should be",
        "did you mean 'maximize'",
    ),
    "unknown source": (
        "max: 2}", "max: 2, source: eval}", 17, f"{PROD}.metrics[1].source", "should be",
        "did you mean 'evaluation'",
    ),
    "unknown load rule": (
        "require_signature: all", "require_signature: none", 25, "load.require_signature",
        "should be", "",
    ),
    "duplicate key": (
        "      approvals: 2", "      approvals: 2\n      approvals: 0", 20, f"{PROD}.approvals",
        "twice (first on line 19)", "keep one",
    ),
    "duplicate top key": (
        "load:", "version: 1\nload:", 24, "version", "twice (first on line 1)", "",
    ),
    "anchor": (
        "approvals: 2", "approvals: &k 2", 19, f"{PROD}.approvals", "anchors", "",
    ),
    "alias": ("approvals: 2", "approvals: *k", 19, f"{PROD}.approvals", "aliases (*)", ""),
    "merge key": ("approvals: 2", "<<: {approvals: 0}", 19, f"{PROD}.<<", "unknown key", ""),
    "tag": (
        "approvals: 2", "approvals: !!python/object:os.system 2", 19, f"{PROD}.approvals",
        "tags (!)", "",
    ),
    "key that is a list": ("      approvals: 2", "      [a]: 2", 19, PROD, "not text", ""),
    "a second document": ("load:", "---\nload:", 24, "", "second document", ""),
    "broken indentation": ("      after", "     after", 18, "", "not YAML", "indentation"),
    "open bracket": ("[prod, champion]", "[prod, champion", 12, "", "not YAML", ""),
    "tab": ("      approvals: 2", "\tapprovals: 2", 19, "", "not YAML", ""),
    "control character": (
        "approvals: 2", "approvals: \x07", 19, "", "does not allow", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_line_field_and_remedy(case: tuple[str, str, int, str, str, str]) -> None:
    old, new, line, field, message, remedy = case
    assert old in GOOD
    with pytest.raises(PolicyError) as caught:
        parse_policy(GOOD.replace(old, new, 1), "policy.yaml")
    error = caught.value
    assert (error.line, error.field) == (line, field), str(error)
    assert error.message.startswith(f"policy.yaml, line {line}")
    assert field in error.message
    assert message in error.message
    assert remedy in error.remedy
    assert error.remedy


def test_the_policy_that_the_cases_start_from_is_good() -> None:
    assert parse_policy(GOOD).requirements("fraud", "prod").approvals == 3


@pytest.mark.parametrize("text", ["", "# only a comment\n", "null\n", "{}\n", "[]\n"])
def test_an_empty_policy(text: str) -> None:
    with pytest.raises(PolicyError, match="the policy is empty") as caught:
        parse_policy(text)
    assert caught.value.line == 1


@pytest.mark.parametrize("text", ["- 1\n", "hello\n", "3\n"])
def test_no_mapping(text: str) -> None:
    with pytest.raises(PolicyError, match="not a mapping"):
        parse_policy(text)


def test_nothing_protected() -> None:
    with pytest.raises(PolicyError, match="no environment is protected") as caught:
        parse_policy("version: 1\n\nenvironments:\n  - name: sandbox\n")
    assert (caught.value.line, caught.value.field) == (4, "environments")


def test_several_mistakes_are_counted() -> None:
    text = GOOD.replace("approvals: 2", "approvals: two").replace("load:", "laod:")
    with pytest.raises(PolicyError, match=r"\(1 more on line 24\)") as caught:
        parse_policy(text)
    assert caught.value.line == 19


def test_an_entity_bomb_is_refused_at_its_first_anchor() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 8)}]\n" for i in range(20)
    )
    with pytest.raises(PolicyError, match="anchors") as caught:
        parse_policy(bomb)
    assert caught.value.line == 1


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 50_000, "- " * 50_000])
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(PolicyError, match=r"nested too deeply|not YAML"):
        parse_policy(text)


def test_a_huge_file_is_refused() -> None:
    with pytest.raises(PolicyError, match="larger than"):
        parse_policy("# x\n" * 100_000)


@given(st.integers(0, len(GOOD)), st.integers(0, 40), st.text(max_size=12))
def test_whatever_is_typed_gives_a_policy_or_a_policy_error(
    start: int, length: int, typed: str
) -> None:
    text = GOOD[:start] + typed + GOOD[start + length :]
    with suppress(PolicyError):
        assert isinstance(parse_policy(text), Policy)
