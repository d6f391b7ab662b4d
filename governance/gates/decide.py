"""Evidence in, decision out: every condition of a promotion, met or not, in plain words.

Pure: no clock, no database. What the evidence does not show is not met; a policy can only add
conditions to the two that always hold (not revoked, artifact known). The texts end up in MLflow's
alias dialog, so they are short, and each remedy is something the reader can do next.

Example::

    decision = decide(candidate, evidence, policy, "prod")
    if not decision.allowed:
        raise PromotionDeniedError(decision)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime

from governance.gates.canary import canary_condition
from governance.gates.drift import drift_conditions
from governance.gates.policy import MetricRequirement, Policy, Requirements
from governance.gates.schema import PROVENANCE_TAGS, Goal, MetricSource, folded
from governance.identity import ProofLevel
from governance.records import Candidate, Condition, Decision, Evidence, MetricEvidence
from governance.signing.statements import request_command

__all__ = ["decide"]

_PLACES = {
    "run": "training run",
    "logged_model": "logged model",
    "evaluation": "evaluation run",
}
_TAG_LABELS = {tag: label for label, tag in PROVENANCE_TAGS.items()}
_TAG_MEANINGS = {
    "code": "the code's commit",
    "environment": "the digest of the software environment",
    "seed": "the random seed",
}
_TAG_REMEDIES = {
    "code": "train from a committed git checkout, so that MLflow records it, and register again",
    "environment": "train with chancery installed, which records it, and register again",
    "seed": "set the seed in the run and record it as the run tag {tag!r}, then register again",
}


def decide(
    candidate: Candidate,
    evidence: Evidence,
    policy: Policy,
    environment: str,
    *,
    served_as: str | None = None,
    signatures: bool = True,
    own_canary: bool = True,
) -> Decision:
    """Whether the candidate may be promoted to the environment now.

    Args:
        candidate: The model version.
        evidence: All that is known about it.
        policy: The promotion policy.
        environment: Name of the target.
        served_as: The protected registered model that a copy is to be served from.
        signatures: False leaves the approvals out (when a promotion is only requested).
        own_canary: False leaves out the verdict of a canary in the target itself, which can only
            be had after people let it in there as a canary.

    Raises:
        NotFoundError: the policy has no such environment.
    """
    target = policy.environment(environment)
    conditions = [_not_revoked(candidate)]
    if target.protected:
        needs = policy.requirements(candidate.model_name, target.name)
        conditions.append(_digest(candidate))
        conditions.extend(_asked_for(candidate, evidence, policy, needs, target.name))
        canary = needs.canary
        if canary is not None and (own_canary or canary.environment != target.name):
            conditions.append(canary_condition(candidate, evidence, canary))
        if signatures:
            conditions.append(
                _approvals(candidate, evidence, needs.approvals, target.name, served_as)
            )
    return Decision(
        model=candidate.uri,
        environment=target.name,
        conditions=tuple(conditions),
        policy_digest=policy.digest,
        served_as=served_as,
    )


def _asked_for(
    candidate: Candidate, evidence: Evidence, policy: Policy, needs: Requirements, target: str
) -> Iterator[Condition]:
    if needs.finished_run:
        yield _finished_run(evidence)
    for metric in needs.metrics:
        yield _metric(candidate, evidence, metric, policy.metrics[metric.name].goal)
    for tag in needs.provenance:
        yield _provenance(evidence, tag)
    if needs.datasets:
        yield _datasets(evidence, needs.datasets)
    if needs.drift is not None:
        yield from drift_conditions(candidate, evidence, needs.drift)
    if needs.after:
        yield _after(candidate, evidence, needs.after, target)
    if needs.actor_proof is not ProofLevel.ANONYMOUS:
        yield _actor(evidence, needs.actor_proof)


def _condition(name: str, met: bool, required: str, found: str, remedy: str) -> Condition:
    return Condition(name, met, required, found, "" if met else remedy)


def _not_revoked(candidate: Candidate) -> Condition:
    reason = candidate.revoked_reason
    return _condition(
        "revoked",
        reason is None,
        "The version must not be revoked",
        "it is not revoked" if reason is None else f"it was revoked: {_shown(reason)}",
        "register a new version without the fault; a revocation is final.",
    )


def _digest(candidate: Candidate) -> Condition:
    known = bool(candidate.root_digest and candidate.manifest_digest)
    if known:
        found = f"it is sha256:{str(candidate.root_digest)[:12]}"
    elif candidate.digest_error:
        found = f"it could not be read: {_shown(candidate.digest_error)}"
    else:
        found = "it is unknown"
    return _condition(
        "artifact",
        known,
        "The digest of the model's files must be known",
        found,
        "make sure that the server can read the model's files, then register the version again.",
    )


def _finished_run(evidence: Evidence) -> Condition:
    status = evidence.run_status
    return _condition(
        "run",
        status == "FINISHED",
        "The training run must have finished",
        f"its status is {_shown(status)}" if status else "no run is known for this version",
        "let the run finish without error and register a version from it."
        if status
        else "log the model inside an MLflow run and register it from there.",
    )


def _metric(
    candidate: Candidate, evidence: Evidence, needs: MetricRequirement, goal: Goal
) -> Condition:
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("at least", needs.min), ("at most", needs.max))
        if bound is not None
    ]
    where = "" if needs.source is MetricSource.ANY else f" in the {_PLACES[needs.source.value]}"
    read = _read_metric(evidence, needs, goal)
    if read is None:
        found = "it was not logged"
        remedy = _log_remedy(candidate, needs)
    else:
        place = _PLACES.get(read.source, read.source)
        found = f"it is {read.value:g} ({place} {_shown(read.source_id)}{_logged(read)})"
        remedy = "improve the model and register a new version."
    return _condition(
        f"metric:{needs.name}",
        read is not None and _meets(read.value, needs),
        f"Metric {needs.name} must be {' and '.join(bounds)}{where}",
        found,
        remedy,
    )


def _read_metric(evidence: Evidence, needs: MetricRequirement, goal: Goal) -> MetricEvidence | None:
    """The newest value from the allowed sources; of several at the same time, the worst."""
    allowed = [
        m
        for m in evidence.metrics
        if m.name == needs.name and (needs.source is MetricSource.ANY or m.source == needs.source)
    ]
    if not allowed:
        return None
    newest = max(m.timestamp_ms for m in allowed)

    def worst_first(metric: MetricEvidence) -> tuple[bool, float]:
        if math.isnan(metric.value):
            return False, -math.inf
        value = metric.value if goal is Goal.MAXIMIZE else -metric.value
        return _meets(metric.value, needs), value

    return min((m for m in allowed if m.timestamp_ms == newest), key=worst_first)


def _meets(value: float, needs: MetricRequirement) -> bool:
    return (
        math.isfinite(value)
        and (needs.min is None or value >= needs.min)
        and (needs.max is None or value <= needs.max)
    )


def _logged(metric: MetricEvidence) -> str:
    try:
        time = datetime.fromtimestamp(metric.timestamp_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return ""
    return f", logged {time:%Y-%m-%d %H:%M} UTC" if metric.timestamp_ms > 0 else ""


def _log_remedy(candidate: Candidate, needs: MetricRequirement) -> str:
    if needs.source is MetricSource.RUN:
        return f"log {needs.name!r} in the training run before it ends, and register again."
    if candidate.logged_model_id:
        call = f"mlflow.log_metric({needs.name!r}, value, model_id={candidate.logged_model_id!r})"
        where = "in an evaluation run" if needs.source is MetricSource.EVALUATION else "in a run"
        return f"measure it and call {call} {where}."
    return "log the model with its metrics in one run, and register the logged model."


def _provenance(evidence: Evidence, tag: str) -> Condition:
    label = _TAG_LABELS.get(tag, "")
    value = evidence.run_tags.get(tag, "").strip()
    meaning = f"{_TAG_MEANINGS[label]} (tag {tag})" if label else f"the tag {tag}"
    remedy = _TAG_REMEDIES.get(label, "set the run tag {tag!r} while training, and register again")
    return _condition(
        f"provenance:{label or tag}",
        bool(value),
        f"The run must record {meaning}",
        f"it is {_shown(value)}" if value else "it is missing",
        remedy.format(tag=tag) + ".",
    )


def _datasets(evidence: Evidence, least: int) -> Condition:
    count = len({digest for digest in evidence.dataset_digests if digest.strip()})
    wanted = "at least one dataset" if least == 1 else f"at least {least} datasets"
    return _condition(
        "datasets",
        count >= least,
        f"The run must name {wanted} with a digest",
        f"it names {count or 'none'}",
        "call mlflow.log_input(dataset) for the data in the training run, and register again.",
    )


def _after(candidate: Candidate, evidence: Evidence, earlier: str, target: str) -> Condition:
    met = earlier in {folded(name) for name in evidence.cleared_environments}
    return _condition(
        "order",
        met,
        f"The same version must have been promoted to {earlier} before {target}",
        f"it {'was' if met else 'was not'}",
        f"promote it to {earlier} first; start with `{request_command(candidate.uri, earlier)}`.",
    )


def _actor(evidence: Evidence, least: ProofLevel) -> Condition:
    try:
        proof = ProofLevel(evidence.actor_proof)
    except ValueError:
        met, found = False, f"the proof {_shown(evidence.actor_proof)} is not known"
    else:
        met, found = proof.rank >= least.rank, f"the proof of this request is {proof.value!r}"
    remedies = {
        ProofLevel.SIGNED: "send signed requests (set MLFLOW_TRACKING_AUTH=chancery and a key).",
        ProofLevel.BASIC_AUTH: "log in with a user name and password, or send signed requests.",
    }
    return _condition(
        "actor",
        met,
        f"The acting person must be proven by {least.value!r} or better",
        found,
        remedies.get(least, "say who you are: install chancery and set CHANCERY_ACTOR."),
    )


def _approvals(
    candidate: Candidate, evidence: Evidence, least: int, target: str, served_as: str | None
) -> Condition:
    persons = {folded(person): person for person in reversed(evidence.signers) if person.strip()}
    names = sorted(persons.values()) if evidence.statement_id else []
    people = "one person" if least == 1 else f"{least} different persons"
    if not evidence.statement_id:
        found = "no promotion was requested that could be approved now"
        command = request_command(candidate.uri, target, served_as)
        remedy = f"run `{command}`, then have {people} approve it."
    else:
        missing = least - len(names)
        found = f"{len(names) or 'none'} did" + (f" ({_shown(', '.join(names))})" if names else "")
        more = "one more person" if missing == 1 else f"{missing} more persons"
        remedy = f"have {more} run `chancery approve {evidence.statement_id[:12]}`."
    if evidence.approval_problems and len(names) < least:
        problems = "; ".join(_shown(p.rstrip(". ")) for p in evidence.approval_problems)
        found += f" (not counted: {problems})"
    return _condition(
        "approvals",
        bool(evidence.statement_id) and len(names) >= least,
        f"{people.capitalize()} must approve",
        found,
        remedy,
    )


def _shown(text: str) -> str:
    """Text from outside, on one line and short enough for a dialog."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean if len(clean) <= 120 else f"{clean[:117]}…"
