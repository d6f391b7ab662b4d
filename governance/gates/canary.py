"""The verdict of a canary as a condition of a promotion.

A verdict counts only for what was rolled out: this incarnation of the version, with these bytes, in
this environment. The newest one counts, whatever it says, except that a rollout that somebody
aborted says nothing. It must have ended well and lately, after enough requests of both versions,
and it must have been able to end otherwise: a level of false rollback that is too low, errors that
were not compared or a wide tolerance would let anything pass.

Pure, like ``governance.gates.decide``, which asks here.

Example::

    condition = canary_condition(candidate, evidence, requirements.canary)
"""

from __future__ import annotations

import shlex

from governance.gates.schema import CanaryRequirement
from governance.records import CanaryVerdict, Candidate, Condition, Evidence

__all__ = ["canary_condition", "counted_verdict"]

_SLACK_MS = 300_000  # by which two machines' clocks may differ
_MS_A_DAY = 86_400_000


def counted_verdict(
    candidate: Candidate, evidence: Evidence, needs: CanaryRequirement
) -> CanaryVerdict | None:
    """The newest verdict on this very version in the environment that the policy names."""
    found = [
        verdict
        for verdict in evidence.verdicts
        if _is_of(candidate, verdict)
        and verdict.environment == needs.environment
        and verdict.outcome != "aborted"
        and verdict.ended_ms <= evidence.as_of_ms + _SLACK_MS
    ]
    return max(found, key=lambda verdict: verdict.ended_ms, default=None)


def canary_condition(
    candidate: Candidate, evidence: Evidence, needs: CanaryRequirement
) -> Condition:
    """Whether the version passed the rollout that the policy asks for."""
    required = (
        f"A canary of the same version in {needs.environment} must have ended {needs.outcome} "
        f"within {needs.max_age}, after at least {needs.min_requests} requests"
    )
    if needs.unless_first and evidence.first:
        return Condition("canary", True, required, "there was nothing before it to compare with")
    verdict = counted_verdict(candidate, evidence, needs)
    if verdict is None:
        return Condition(
            "canary",
            False,
            required,
            _nothing(candidate, evidence, needs),
            _again(candidate, needs),
        )
    told = (
        f"rollout {verdict.rollout_id[:12]} beside {verdict.stable} ended "
        f"{verdict.outcome.replace('_', ' ')} {_ago(evidence.as_of_ms - verdict.ended_ms)}"
    )
    if verdict.outcome != needs.outcome:
        remedy = (
            "see `chancery deploy why` for the reason and register a version without it; or "
            + _again(candidate, needs)
        )
        return Condition("canary", False, required, told, remedy)
    if evidence.as_of_ms - verdict.ended_ms > needs.max_age_ms:
        return Condition("canary", False, required, told, _again(candidate, needs))
    weak, remedy = _weakness(verdict, needs)
    if weak:
        remedy = f"roll it out again with {remedy}: `{_command(candidate, needs)}`."
        return Condition("canary", False, required, f"{told}, but {weak}", remedy)
    return Condition("canary", True, required, f"{told}, after {verdict.requests} requests")


def _is_of(candidate: Candidate, verdict: CanaryVerdict) -> bool:
    return (
        bool(candidate.version_uid and candidate.root_digest)
        and verdict.version_uid == candidate.version_uid
        and verdict.root_digest == candidate.root_digest
    )


def _weakness(verdict: CanaryVerdict, needs: CanaryRequirement) -> tuple[str, str]:
    """Why a verdict proves too little, and what to configure; empty when it does not."""
    if verdict.error_level is None:
        return "it did not compare errors", "errors in its analysis"
    if not verdict.requests >= needs.min_requests:
        return (
            f"it compared {verdict.requests} requests of each version",
            f"min_samples that add up to {needs.min_requests} before its last step",
        )
    if not verdict.error_level >= needs.min_alpha:
        return (
            f"errors alone would have rolled it back at level {verdict.error_level:g} only",
            f"an alpha, times the share of the errors, of at least {needs.min_alpha:g}",
        )
    levels = [level for level in (verdict.alpha, verdict.shown_alpha) if level is not None]
    if verdict.alpha is None or not all(0 < level <= needs.max_alpha for level in levels):
        return (
            f"it was decided at level {max(levels, default=1):g}",
            f"alpha and advance_alpha of at most {needs.max_alpha:g}",
        )
    if not 0 <= verdict.error_tolerance <= needs.max_tolerance:
        return (
            f"it tolerated an error rate {verdict.error_tolerance:g} higher",
            f"a tolerance of errors of at most {needs.max_tolerance:g}",
        )
    return "", ""


def _nothing(candidate: Candidate, evidence: Evidence, needs: CanaryRequirement) -> str:
    """Why no verdict counts."""
    said = f"no rollout of it in {needs.environment} that ended by a verdict is on the ledger"
    others = [_other(candidate, verdict, needs) for verdict in evidence.verdicts[:2]]
    notes = "; ".join([*others, *evidence.verdict_problems[:2]])
    return f"{said} ({notes})" if notes else said


def _other(candidate: Candidate, verdict: CanaryVerdict, needs: CanaryRequirement) -> str:
    short = f"rollout {verdict.rollout_id[:12]}"
    if verdict.model != candidate.uri:
        return f"{short} was of {verdict.model}"
    if verdict.version_uid != candidate.version_uid:
        return f"{short} was of an earlier {verdict.model}, which was deleted"
    if verdict.root_digest != candidate.root_digest:
        return f"{short} was of other files"
    if verdict.environment != needs.environment:
        return f"{short} was in {verdict.environment}"
    if verdict.outcome == "aborted":
        return f"{short} was aborted"
    return f"{short} ended later than this"


def _command(candidate: Candidate, needs: CanaryRequirement) -> str:
    uri = shlex.quote(candidate.uri)
    return f"chancery deploy start {uri} --env {needs.environment} --canary 5%"


def _again(candidate: Candidate, needs: CanaryRequirement) -> str:
    return f"roll it out: `{_command(candidate, needs)}`."


def _ago(ms: int) -> str:
    """How long ago, in the unit that one would say it in."""
    for unit, length in (("day", _MS_A_DAY), ("hour", 3_600_000), ("minute", 60_000)):
        if ms >= length:
            count = ms // length
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
