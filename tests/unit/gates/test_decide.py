"""The decision: each condition, its words, and deny by default."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import NotFoundError
from governance.gates.decide import decide
from governance.gates.policy import default_policy, parse_policy
from governance.records import (
    CanaryVerdict,
    Candidate,
    Condition,
    Decision,
    Evidence,
    MetricEvidence,
)

POLICY = parse_policy(
    """
version: 1
metrics:
  accuracy: {goal: maximize}
  loss: {goal: minimize}
environments:
  - name: sandbox
    aliases: [dev]
  - {name: staging, aliases: [staging]}
  - name: prod
    aliases: [prod]
    requires:
      metrics:
        - {name: accuracy, min: 0.9, source: evaluation}
        - {name: loss, min: 0, max: 0.5}
      provenance: [code, seed, ticket]
      datasets: 2
      canary: {environment: staging, max_age: 7d, min_requests: 1000}
      approvals: 2
      actor_proof: basic-auth
"""
)
CANDIDATE = Candidate(
    model_uid="m",
    model_name="fraud",
    version=3,
    version_uid="v",
    logged_model_id="m-1",
    run_id="r",
    root_digest="ab" * 32,
    manifest_digest="cd" * 32,
)
METRICS = (
    MetricEvidence("accuracy", 0.95, "evaluation", "e1", 2000),
    MetricEvidence("accuracy", 0.10, "run", "r", 9000),
    MetricEvidence("loss", 0.2, "run", "r", 1000),
)
VERDICT = CanaryVerdict(
    rollout_id="0123456789abcdef" * 2,
    environment="staging",
    model="models:/fraud/3",
    version_uid="v",
    root_digest="ab" * 32,
    stable="models:/fraud/2",
    outcome="promoted",
    ended_ms=1_000_000,
    requests=1200,
    alpha=0.01,
    error_level=0.004,
)
EVIDENCE = Evidence(
    metrics=METRICS,
    run_tags={"mlflow.source.git.commit": "c0ffee", "provenance.seed": "7", "ticket": "T-1"},
    run_status="FINISHED",
    dataset_digests=("train#1", "test#2"),
    cleared_environments=frozenset({"staging"}),
    signers=("alice", "bob"),
    statement_id="0123456789abcdef" * 4,
    actor_proof="signed",
    verdicts=(VERDICT,),
    as_of_ms=2_000_000,
)
NAMES = [
    "revoked",
    "artifact",
    "run",
    "metric:accuracy",
    "metric:loss",
    "provenance:code",
    "provenance:seed",
    "provenance:ticket",
    "datasets",
    "order",
    "actor",
    "canary",
    "approvals",
]


def prod(evidence: Evidence = EVIDENCE, candidate: Candidate = CANDIDATE) -> Decision:
    return decide(candidate, evidence, POLICY, "prod")


def unmet(decision: Decision) -> list[Condition]:
    return [c for c in decision.conditions if not c.met]


def only_unmet(evidence: Evidence = EVIDENCE, candidate: Candidate = CANDIDATE) -> Condition:
    [condition] = unmet(prod(evidence, candidate))
    return condition


def test_everything_met_is_allowed_and_every_condition_is_listed() -> None:
    decision = prod()
    assert decision.allowed
    assert [c.name for c in decision.conditions] == NAMES
    assert all(c.remedy == "" for c in decision.conditions)
    assert decision.policy_digest == POLICY.digest
    assert decision.model == "models:/fraud/3"


def test_nothing_known_is_denied_in_every_condition() -> None:
    nobody = Candidate("m", "fraud", 3, "v", revoked_reason="leak")
    decision = decide(nobody, Evidence(), POLICY, "PROD")
    assert [c.name for c in unmet(decision)] == NAMES
    assert decision.environment == "prod"
    for condition in decision.conditions:
        assert condition.remedy.endswith(".")
        assert not condition.required.endswith(".")
    text = decision.explain()
    assert "Metric accuracy must be at least 0.9 in the evaluation run, but it was" in text


def test_without_signatures_the_approvals_are_left_out() -> None:
    decision = decide(
        CANDIDATE,
        replace(EVIDENCE, signers=(), statement_id=None),
        POLICY,
        "prod",
        signatures=False,
    )
    assert decision.allowed
    assert [c.name for c in decision.conditions] == NAMES[:-1]


def test_an_unknown_environment() -> None:
    with pytest.raises(NotFoundError, match="did you mean 'prod'"):
        decide(CANDIDATE, EVIDENCE, POLICY, "prd")


def test_an_open_environment_takes_all_but_the_revoked() -> None:
    assert decide(CANDIDATE, Evidence(), POLICY, "sandbox").allowed
    revoked = replace(CANDIDATE, revoked_reason="leak")
    assert not decide(revoked, EVIDENCE, POLICY, "sandbox").allowed


def test_the_default_policy_from_first_to_last() -> None:
    policy = default_policy()
    bare = Evidence(run_status="FINISHED")
    assert [c.name for c in unmet(decide(CANDIDATE, bare, policy, "staging"))] == ["approvals"]
    signed = replace(bare, signers=("alice",), statement_id="f" * 64)
    assert decide(CANDIDATE, signed, policy, "staging").allowed
    assert [c.name for c in unmet(decide(CANDIDATE, signed, policy, "prod"))] == ["order"]
    cleared = replace(signed, cleared_environments=frozenset({"staging"}))
    assert decide(CANDIDATE, cleared, policy, "prod").allowed


def test_revoked_and_unreadable() -> None:
    condition = only_unmet(candidate=replace(CANDIDATE, revoked_reason="label\nleak"))
    assert condition.found == "it was revoked: label leak"
    unread = replace(CANDIDATE, manifest_digest=None, digest_error="no such bucket")
    assert only_unmet(candidate=unread).found == "it could not be read: no such bucket"
    unknown = unmet(prod(candidate=replace(CANDIDATE, root_digest="")))
    assert [(c.name, c.found) for c in unknown][:1] == [("artifact", "it is unknown")]
    assert [c.name for c in unknown] == ["artifact", "canary"]  # nothing is known to be the same


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED", "finished", "", None])
def test_only_a_finished_run_counts(status: str | None) -> None:
    assert only_unmet(replace(EVIDENCE, run_status=status)).name == "run"


def with_accuracy(*found: MetricEvidence) -> Evidence:
    return replace(EVIDENCE, metrics=(*found, METRICS[2]))


def test_the_metric_says_what_was_read() -> None:
    value = MetricEvidence("accuracy", 0.82, "evaluation", "e9", 1_700_000_000_000)
    condition = only_unmet(with_accuracy(value))
    assert condition.found == "it is 0.82 (evaluation run e9, logged 2023-11-14 22:13 UTC)"
    assert "improve the model" in condition.remedy


def test_a_source_that_is_not_allowed_does_not_count() -> None:
    condition = only_unmet(with_accuracy(MetricEvidence("accuracy", 0.99, "run", "r", 1)))
    assert condition.found == "it was not logged"
    assert "mlflow.log_metric('accuracy', value, model_id='m-1')" in condition.remedy


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.8999])
def test_values_that_never_meet(value: float) -> None:
    evidence = with_accuracy(MetricEvidence("accuracy", value, "evaluation", "e", 1))
    assert only_unmet(evidence).name == "metric:accuracy"


def test_infinity_does_not_meet_an_upper_bound() -> None:
    metrics = (METRICS[0], MetricEvidence("loss", -math.inf, "run", "r", 1))
    assert only_unmet(replace(EVIDENCE, metrics=metrics)).name == "metric:loss"


def test_the_newest_counts_and_of_ties_the_worst() -> None:
    old_good = MetricEvidence("accuracy", 0.99, "evaluation", "old", 1)
    new_bad = MetricEvidence("accuracy", 0.5, "evaluation", "new", 2)
    assert "0.5 (evaluation run new" in only_unmet(with_accuracy(new_bad, old_good)).found
    assert prod(with_accuracy(replace(old_good, timestamp_ms=3), new_bad)).allowed
    tie = replace(old_good, timestamp_ms=2)
    assert "0.5" in only_unmet(with_accuracy(tie, new_bad)).found
    assert "0.5" in only_unmet(with_accuracy(new_bad, tie)).found
    nan = replace(tie, value=math.nan)
    assert "nan" in only_unmet(with_accuracy(tie, nan)).found


def test_of_equal_times_the_larger_loss_is_the_worse() -> None:
    low, high = (MetricEvidence("loss", v, "run", "r", 5) for v in (0.1, 0.4))
    for pair in ((low, high), (high, low)):
        decision = prod(replace(EVIDENCE, metrics=(METRICS[0], *pair)))
        assert decision.allowed
        assert "0.4" in next(c.found for c in decision.conditions if c.name == "metric:loss")


def test_blank_tags_and_digests_are_missing() -> None:
    condition = only_unmet(replace(EVIDENCE, run_tags={**EVIDENCE.run_tags, "ticket": "  "}))
    assert (condition.name, condition.found) == ("provenance:ticket", "it is missing")
    condition = only_unmet(replace(EVIDENCE, dataset_digests=("a", "a", " ")))
    assert condition.found == "it names 1"


def test_the_order_names_the_command() -> None:
    condition = only_unmet(replace(EVIDENCE, cleared_environments=frozenset({"prod"})))
    assert condition.name == "order"
    assert "`chancery request models:/fraud/3 --to staging`" in condition.remedy


@pytest.mark.parametrize(
    ("proof", "met"),
    [
        ("signed", True),
        ("basic-auth", True),
        ("local", False),
        ("claimed", False),
        ("anonymous", False),
        ("SIGNED", False),
        ("root", False),
    ],
)
def test_the_proof_of_the_actor(proof: str, met: bool) -> None:
    assert prod(replace(EVIDENCE, actor_proof=proof)).allowed is met


def test_approvals_without_a_request() -> None:
    condition = only_unmet(
        replace(EVIDENCE, statement_id=None, approval_problems=("statement 0a has expired",))
    )
    assert condition.required == "2 different persons must approve"
    assert "`chancery request models:/fraud/3 --to prod`" in condition.remedy
    assert "(not counted: statement 0a has expired)" in condition.found


def test_a_copy_is_asked_for_by_the_name_it_is_served_from() -> None:
    unsigned = replace(EVIDENCE, signers=(), statement_id=None)
    decision = decide(CANDIDATE, unsigned, POLICY, "prod", served_as="prod.fraud")
    command = f"chancery request {CANDIDATE.uri} --to prod --as prod.fraud"
    assert f"run `{command}`" in unmet(decision)[0].remedy
    assert f"{CANDIDATE.uri} may not be promoted to prod as prod.fraud yet" in decision.explain()
    assert decision.to_dict()["servedAs"] == "prod.fraud"
    assert Decision.from_dict(decision.to_dict()) == decision
    assert "servedAs" not in prod().to_dict()


def test_approvals_that_are_missing() -> None:
    condition = only_unmet(
        replace(EVIDENCE, signers=("alice",), approval_problems=("carol's key was removed.",))
    )
    assert condition.found == "1 did (alice) (not counted: carol's key was removed)"
    assert condition.remedy == "have one more person run `chancery approve 0123456789ab`."
    assert "2 more persons" in only_unmet(replace(EVIDENCE, signers=())).remedy


@pytest.mark.parametrize(
    "signers", [("alice", "alice"), ("alice", "ALICE "), ("alice", ""), ("ａｌｉｃｅ", "alice")]
)
def test_one_person_is_one_person(signers: tuple[str, ...]) -> None:
    assert only_unmet(replace(EVIDENCE, signers=signers)).name == "approvals"


def test_names_are_quoted_for_the_shell() -> None:
    candidate = replace(CANDIDATE, model_name="a; rm -rf ~")
    condition = only_unmet(replace(EVIDENCE, statement_id=None), candidate)
    assert "`chancery request 'models:/a; rm -rf ~/3' --to prod`" in condition.remedy


def test_outside_text_is_one_short_line() -> None:
    evidence = replace(EVIDENCE, run_status="X\x1b[31m\n" + "y" * 500)
    found = only_unmet(evidence).found
    assert found.isprintable()
    assert len(found) < 150


REMOVALS: list[Callable[[Evidence], Evidence]] = [
    *(
        lambda e, n=name: replace(e, metrics=tuple(m for m in e.metrics if m.name != n))
        for name in ("accuracy", "loss")
    ),
    *(
        lambda e, t=tag: replace(e, run_tags={k: v for k, v in e.run_tags.items() if k != t})
        for tag in EVIDENCE.run_tags
    ),
    lambda e: replace(e, run_status=None),
    lambda e: replace(e, dataset_digests=e.dataset_digests[:-1]),
    lambda e: replace(e, cleared_environments=frozenset()),
    lambda e: replace(e, signers=e.signers[:-1]),
    lambda e: replace(e, statement_id=None),
    lambda e: replace(e, actor_proof="anonymous"),
    lambda e: replace(e, verdicts=()),
    lambda e: replace(e, approval_problems=()),
]
ENVIRONMENTS = ("staging", "prod")

evidences = st.builds(
    Evidence,
    metrics=st.lists(
        st.builds(
            MetricEvidence,
            name=st.sampled_from(["accuracy", "loss"]),
            value=st.sampled_from([0.95, 0.2, 0.5, math.nan, math.inf]),
            source=st.sampled_from(["run", "logged_model", "evaluation"]),
            source_id=st.just("x"),
            timestamp_ms=st.integers(0, 3),
        ),
        max_size=4,
    ).map(tuple)
    | st.just(METRICS),
    run_tags=st.dictionaries(st.sampled_from([*EVIDENCE.run_tags]), st.sampled_from(["", "x"]))
    | st.just(EVIDENCE.run_tags),
    run_status=st.sampled_from([None, "FAILED", "FINISHED"]),
    dataset_digests=st.lists(st.sampled_from(["", "a", "b", "c"]), max_size=4).map(tuple),
    cleared_environments=st.frozensets(st.sampled_from(["sandbox", "staging", "prod"])),
    signers=st.lists(st.sampled_from(["", "alice", "Alice", "bob", "carol"]), max_size=4).map(
        tuple
    ),
    statement_id=st.none() | st.just("0" * 64),
    approval_problems=st.just(()) | st.just(("no",)),
    actor_proof=st.sampled_from(["anonymous", "claimed", "local", "basic-auth", "signed", "?"]),
    verdicts=st.just((VERDICT,))
    | st.lists(
        st.builds(
            replace,
            st.just(VERDICT),
            version_uid=st.sampled_from(["v", "w"]),
            outcome=st.sampled_from(["promoted", "rolled_back", "aborted"]),
            ended_ms=st.integers(0, 2_000_000),
            requests=st.sampled_from([0, 1000]),
        ),
        max_size=3,
    ).map(tuple),
    as_of_ms=st.just(2_000_000),
)


@pytest.mark.parametrize("removal", REMOVALS[:-1])
def test_each_removal_from_the_full_evidence_denies(
    removal: Callable[[Evidence], Evidence],
) -> None:
    assert prod().allowed
    assert not prod(removal(EVIDENCE)).allowed


@given(evidences, st.sampled_from(REMOVALS), st.sampled_from(ENVIRONMENTS), st.booleans())
def test_removing_evidence_never_turns_no_into_yes(
    evidence: Evidence,
    removal: Callable[[Evidence], Evidence],
    environment: str,
    signatures: bool,
) -> None:
    before = decide(CANDIDATE, evidence, POLICY, environment, signatures=signatures)
    after = decide(CANDIDATE, removal(evidence), POLICY, environment, signatures=signatures)
    assert before.allowed or not after.allowed
    assert [c.name for c in before.conditions] == [c.name for c in after.conditions]
    for condition in (*before.conditions, *after.conditions):
        assert condition.met == (condition.remedy == "")


@given(evidences)
def test_an_unread_or_revoked_version_is_never_allowed(evidence: Evidence) -> None:
    for broken in (
        replace(CANDIDATE, root_digest=None),
        replace(CANDIDATE, manifest_digest=None),
        replace(CANDIDATE, revoked_reason=""),
    ):
        assert not prod(evidence, broken).allowed
