"""How a rollout begins, and what people's signals mean for it.

A signal is for the rollout that ran when it was asked; if that has ended meanwhile it says nothing
any more. Only a quarantine follows its version: of one that was promoted meanwhile, or of stable
when no rollout ran, it closes the route.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import ValidationError

from governance.deployment_control import AskedSignal, StoredDecision
from governance.deployment_records import DeploymentRecord, SignalKind
from serve.cluster import Running, VariantState
from serve.config import CanaryConfig
from serve.course import Course
from serve.records import Observation, Outcome, Phase, RolloutDecision, Signal
from serve.rollout import RolloutState

__all__ = ["begun", "heard", "of_cluster", "stored"]

_SIGNALS = {
    SignalKind.ABORT: Signal.ABORT,
    SignalKind.ROLLBACK: Signal.ROLLBACK,
    SignalKind.QUARANTINE: Signal.QUARANTINE,
}
_NEEDED = 20


def begun(
    rollout_id: str, config: str, now_ms: int
) -> RolloutState | tuple[RolloutState, RolloutDecision]:
    """A rollout's first state; one that ended at once where its configuration cannot be read."""
    try:
        found = _with_needed_samples(CanaryConfig.model_validate_json(config))
        return RolloutState.start(rollout_id, found)
    except ValidationError as error:
        words = f"The canary's configuration cannot be read: {error.errors()[0]['msg']}."
    ended = RolloutDecision(Outcome.ABORTED, Phase.ABORTED, 0, "0", now_ms, "config", (words,))
    state = RolloutState.start(rollout_id, CanaryConfig())
    return replace(state, phase=Phase.ABORTED, transitions=1, last_change=ended), ended


def heard(
    record: DeploymentRecord, course: Course, asked: AskedSignal
) -> tuple[Course, Observation | None]:
    """The course that knows of the signal, and what the rollout is told of it."""
    course = replace(course, heard=asked.number)
    if asked.kind is SignalKind.WARM:
        return replace(course, warmed_ms=max(course.warmed_ms, asked.asked_ms)), None
    said = f"{asked.asked_by}: {asked.reason}" if asked.reason else asked.asked_by
    rollout = course.rollout
    meant = rollout is not None and rollout.id == asked.rollout_id
    running = course.running
    if meant and running is not None:
        if asked.kind is SignalKind.PAUSE:
            return replace(course, paused=said), None
        if asked.kind is SignalKind.RESUME:
            return replace(course, paused=""), None
        signal = _SIGNALS[asked.kind]
        return course, Observation("people", asked.number, {}, frozenset({signal}), said)
    promoted = meant and rollout is not None and rollout.phase is Phase.PROMOTED
    if asked.kind is SignalKind.QUARANTINE and (asked.rollout_id is None or promoted):
        words = f"{record.uri_of(record.stable)} was quarantined by {said}"
        return replace(course, closed=course.closed or words), None
    return course, None


def _with_needed_samples(config: CanaryConfig) -> CanaryConfig:
    """With the number of observations that each of the owner's metrics, and the outputs, need.

    For a rollout that begins. One that began before this was asked goes on without.
    """
    analysis, needed = config.analysis, {"min_samples": _NEEDED}
    metrics = tuple(
        metric.model_copy(update=needed if metric.min_samples is None else {})
        for metric in analysis.metrics
    )
    outputs = analysis.outputs
    if outputs is not None and outputs.min_samples is None:
        outputs = outputs.model_copy(update=needed)
    parts = {"metrics": metrics, "outputs": outputs}
    return config.model_copy(update={"analysis": analysis.model_copy(update=parts)})


def of_cluster(
    rollout: RolloutState, canary: VariantState | None, *, asked: bool
) -> tuple[frozenset[Signal], str]:
    """What the rollout is told of its canary's replicas, and why.

    Args:
        rollout: The rollout that runs.
        canary: How its canary does; None: the cluster has not said.
        asked: Whether all gateways can ask the canary.
    """
    if rollout.phase is Phase.PENDING:
        return frozenset({Signal.START}), ""
    if canary is None:
        return frozenset(), ""
    verifying = rollout.phase is Phase.VERIFYING
    if canary.running is Running.REFUSED and verifying:
        return frozenset({Signal.VERIFICATION_FAILED}), canary.reason
    if canary.running in (Running.UNHEALTHY, Running.REFUSED):
        return frozenset({Signal.CANARY_UNHEALTHY}), canary.reason
    if verifying and canary.running is Running.RUNNING and asked:
        return frozenset({Signal.VERIFIED}), ""
    return frozenset(), ""


def stored(state: RolloutState, decision: RolloutDecision) -> StoredDecision:
    """A decision as the database keeps it."""
    return StoredDecision(
        state.id,
        state.transitions,
        decision.to_dict(),
        ended=state.phase.terminal,
        promoted=state.phase is Phase.PROMOTED,
    )
