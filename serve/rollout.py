"""The rollout's state machine: pending → verifying → canary, step by step → an end.

``advance`` is a pure function of state, observation and time. Whoever holds the state can go on
from it: a controller keeps it in the database and another process takes over. An observation that
was seen already changes nothing, terminal states never change, and every pair of state and
observation has an answer.

Time counts only while somebody watches: between two observations at most ``GAP_MS``, and never
backwards. So neither a clock that jumps nor a controller that was away ends a step.

Ends: *promoted*; *rolled back* (worse, unhealthy, not shown to be good in time, or by hand);
*quarantined* (revoked, or its bytes do not verify); *aborted* (by hand, or verification took too
long). A canary is never blamed for what stable suffers as well: the comparison sees both, and a
guard rail that stable breaks too holds the step instead of rolling back.

No evidence is no good evidence: where the owner's metrics or the outputs are compared, a step is
passed only with enough observations of each variant, and not while one of them cannot be observed.

Example::

    state = RolloutState.start("r1", CanaryConfig())
    start = Observation("controller", 1, signals=frozenset({Signal.START}))
    state, actions, decision = advance(state, start, now_ms=0)
    decision.explain()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from governance.canonical import canonical_json, parse_json
from serve.config import CanaryConfig, OnTimeout
from serve.coverage import missing, observed_with
from serve.delta import Delta
from serve.judge import Judge
from serve.records import (
    Action,
    ActionKind,
    Observation,
    Outcome,
    Phase,
    RolloutDecision,
    Signal,
)

__all__ = ["FORMAT", "GAP_MS", "RolloutState", "advance", "why"]

FORMAT = "chancery.rollout/v1"

GAP_MS = 30_000
"""The longest time between two observations that counts as watched."""

_STANDING = {Signal.CANARY_AWAITED, Signal.STABLE_UNHEALTHY, Signal.PAUSED}  # stop the clock

_SOURCES = 4096  # whose last sequence number is remembered; those heard longest ago are forgotten


@dataclass(frozen=True, slots=True)
class RolloutState:
    """Everything the next decision depends on, but the observation and the time.

    Attributes:
        id: Of the rollout.
        config: Its configuration.
        judge: The tests and their evidence.
        phase: Where it stands.
        step: Which step, 0-based; 0 before the first.
        watched_ms: Time watched in this phase or step.
        requests: The canary's requests in this step, after the warm-up.
        observed: What the owner's metrics and the outputs were seen in, in this step after the
            warm-up: observations of canary and stable by source.
        obstacles: What could not be observed, as the last observation told.
        clock_ms: Time of the last observation; None before the first.
        transitions: How often phase or step changed.
        seen: Last sequence number by source.
        last_change: The decision that led here; None in the beginning.
    """

    id: str
    config: CanaryConfig
    judge: Judge
    phase: Phase = Phase.PENDING
    step: int = 0
    watched_ms: int = 0
    requests: int = 0
    observed: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    obstacles: tuple[str, ...] = ()
    clock_ms: int | None = None
    transitions: int = 0
    seen: Mapping[str, int] = field(default_factory=dict)
    last_change: RolloutDecision | None = None

    @classmethod
    def start(cls, rollout_id: str, config: CanaryConfig) -> RolloutState:
        """A rollout that waits for its start."""
        return cls(rollout_id, config, Judge.start(config))

    @property
    def percent(self) -> float:
        """The canary's share of the traffic."""
        if self.phase is Phase.CANARY:
            return self.config.steps[self.step]
        return 100.0 if self.phase is Phase.PROMOTED else 0.0

    def to_json(self) -> bytes:
        """Canonical JSON, format ``chancery.rollout/v1``."""
        return canonical_json(
            {
                "format": FORMAT,
                "id": self.id,
                "config": self.config.model_dump_json(),
                "judge": self.judge.to_dict(),
                "phase": self.phase.value,
                "step": self.step,
                "watchedMs": self.watched_ms,
                "requests": self.requests,
                "observed": {name: list(pair) for name, pair in self.observed.items()},
                "obstacles": list(self.obstacles),
                "clockMs": self.clock_ms,
                "transitions": self.transitions,
                "seen": [[source, number] for source, number in self.seen.items()],
                "lastChange": self.last_change.to_dict() if self.last_change else None,
            }
        )

    @classmethod
    def from_json(cls, data: bytes | str) -> RolloutState:
        """Exact inverse of ``to_json``.

        Raises:
            ValueError: unknown format, or malformed.
        """
        document = parse_json(data)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"not a {FORMAT} document")
        try:
            config = CanaryConfig.model_validate_json(document["config"])
            change = document["lastChange"]
            return cls(
                id=document["id"],
                config=config,
                judge=Judge.from_dict(config, document["judge"]),
                phase=Phase(document["phase"]),
                step=document["step"],
                watched_ms=document["watchedMs"],
                requests=document["requests"],
                observed={
                    name: (int(pair[0]), int(pair[1]))
                    for name, pair in document.get("observed", {}).items()
                },
                obstacles=tuple(document.get("obstacles", ())),
                clock_ms=document["clockMs"],
                transitions=document["transitions"],
                seen={source: number for source, number in document["seen"]},
                last_change=None if change is None else RolloutDecision.from_dict(change),
            )
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"a malformed {FORMAT} document: {error}") from error


Answer = tuple[RolloutState, tuple[Action, ...], RolloutDecision]


def advance(state: RolloutState, observation: Observation, now_ms: int) -> Answer:
    """The next state, what to do, and the decision with its reasons.

    At most one transition an observation: of several signals the gravest that applies counts.

    Args:
        state: The present state.
        observation: What was seen.
        now_ms: The caller's time, in milliseconds.
    """
    if state.phase.terminal:
        return _ignored(state, observation, now_ms, f"The rollout has ended: {state.phase.value}.")
    if observation.sequence <= state.seen.get(observation.source, -1):
        return _ignored(
            state, observation, now_ms, f"The observation {observation.id} was seen already."
        )
    stands = bool(_STANDING & observation.signals)
    passed = 0 if state.clock_ms is None else min(max(now_ms - state.clock_ms, 0), GAP_MS)
    state = replace(
        state,
        clock_ms=now_ms,
        watched_ms=state.watched_ms + (0 if stands else passed),
        seen=_heard(state.seen, observation),
        obstacles=observation.obstacles,
    )
    for signal in Signal:
        change = _CHANGES.get((state.phase, signal))
        if signal in observation.signals and change is not None:
            target, outcome, words = change
            reason = (
                words,
                *((f"Reason given: {observation.reason}",) if observation.reason else ()),
            )
            return _move(state, observation, target, outcome, reason, signal)
    if state.phase is Phase.CANARY:
        return _judged(state, observation)
    if state.phase is Phase.VERIFYING and state.watched_ms >= 1000 * state.config.verify_seconds:
        words = f"The canary was not verified within {state.config.verify_seconds:g} s."
        return _move(state, observation, Phase.ABORTED, Outcome.ABORTED, (words,))
    waits = "the start" if state.phase is Phase.PENDING else "the canary's verification"
    return _held(state, observation, (f"Waiting for {waits}.",))


def why(state: RolloutState) -> tuple[str, ...]:
    """How the rollout came to where it stands, and what it waits for; in sentences."""
    lines: list[str] = [f"The rollout {state.id} is {_place(state)}."]
    if state.last_change is not None:
        lines += state.last_change.explanation
    if state.phase is Phase.CANARY:
        lines += _waits_for(state)
        lines += (verdict.reason for verdict in state.judge.verdicts())
    return tuple(lines)


_BACK = "all traffic goes back to stable"
_CHANGES: dict[tuple[Phase, Signal], tuple[Phase, Outcome, str]] = {
    **{
        (phase, signal): (Phase.QUARANTINED, Outcome.QUARANTINED, words)
        for phase in (Phase.PENDING, Phase.VERIFYING, Phase.CANARY)
        for signal, words in (
            (
                Signal.STABLE_REVOKED,
                "Stable's version was revoked: it may not answer any more, and the canary has not "
                "earned its place; nobody answers until a version is deployed.",
            ),
            (Signal.REVOKED, f"The canary's version was revoked: {_BACK}."),
            (Signal.QUARANTINE, f"The canary's version was quarantined: {_BACK}."),
            (Signal.VERIFICATION_FAILED, f"The canary's bytes do not verify: {_BACK}."),
        )
    },
    **{
        (phase, Signal.ABORT): (Phase.ABORTED, Outcome.ABORTED, f"Aborted by hand: {_BACK}.")
        for phase in (Phase.PENDING, Phase.VERIFYING, Phase.CANARY)
    },
    **{
        (phase, Signal.ROLLBACK): (
            Phase.ROLLED_BACK,
            Outcome.ROLLED_BACK,
            f"Rolled back by hand: {_BACK}.",
        )
        for phase in (Phase.PENDING, Phase.VERIFYING, Phase.CANARY)
    },
    **{
        (phase, Signal.CANARY_UNHEALTHY): (
            Phase.ROLLED_BACK,
            Outcome.ROLLED_BACK,
            f"The canary is unhealthy: {_BACK}.",
        )
        for phase in (Phase.VERIFYING, Phase.CANARY)
    },
    (Phase.PENDING, Signal.START): (
        Phase.VERIFYING,
        Outcome.STARTED,
        "Started: the canary's bytes are verified before it answers anything.",
    ),
    (Phase.VERIFYING, Signal.VERIFIED): (
        Phase.CANARY,
        Outcome.VERIFIED,
        "The canary's bytes are verified.",
    ),
}


def _judged(state: RolloutState, observation: Observation) -> Answer:
    """The evidence, with the observation's counts in it, and what follows from it."""
    config = state.config
    if state.watched_ms >= 1000 * config.warmup_seconds:
        canary = observation.deltas.get("canary", Delta())
        stable = observation.deltas.get("stable", Delta())
        state = replace(
            state,
            requests=state.requests + canary.requests,
            observed=observed_with(state.config, state.judge, state.observed, canary, stable),
            judge=state.judge.after(canary, stable, alone=state.percent >= 100),
        )
    if state.judge.worse:
        first = state.judge.verdicts()[0]
        words = (
            f"The canary is worse than stable at {_place(state)}, after {state.requests} of its "
            f"requests in this step: the e-value of all tests together is "
            f"e^{state.judge.log_e:.2f}, of e^{state.judge.threshold:.2f} = 1/{config.alpha:g} "
            f"needed. A canary that is not worse comes this far with probability {config.alpha:g} "
            f"at most, however often one looks.",
            f"Strongest: {first.reason}",
        )
        return _move(state, observation, Phase.ROLLED_BACK, Outcome.ROLLED_BACK, words)
    held = [
        words
        for signal, words in (
            (Signal.CANARY_AWAITED, "The canary starts again: the step's clock stands."),
            (Signal.STABLE_UNHEALTHY, "Stable is unhealthy: the step's clock stands."),
            (Signal.PAUSED, "Paused by hand: the step's clock stands."),
        )
        if signal in observation.signals
    ]
    if held:
        return _held(state, observation, tuple(held))
    open_points = _waits_for(state)
    if not open_points:
        return _next(state, observation, ())
    if state.watched_ms < 1000 * config.max_seconds or config.on_timeout is OnTimeout.HOLD:
        return _held(state, observation, open_points)
    late = f"The step's longest time of {config.max_seconds:g} s has passed."
    if config.on_timeout is OnTimeout.ROLLBACK:
        verdict = f"The canary has not earned the next step: {_BACK}."
        return _move(
            state,
            observation,
            Phase.ROLLED_BACK,
            Outcome.ROLLED_BACK,
            (late, *open_points, verdict),
        )
    judge, blind = state.judge, _unobserved(state)
    if not state.requests or judge.doubtful or judge.excused or blind:
        return _held(state, observation, (late, *open_points))
    return _next(state, observation, (late, *open_points, "The configuration says to go on."))


def _waits_for(state: RolloutState) -> tuple[str, ...]:
    """What the next step still waits for; empty when nothing."""
    config, judge, found = state.config, state.judge, []
    if state.requests < config.min_samples:
        found.append(f"The canary had {state.requests} of {config.min_samples} requests needed.")
    if state.watched_ms < 1000 * config.min_seconds:
        found.append(
            f"The step was watched for {state.watched_ms / 1000:.1f} s of "
            f"{config.min_seconds:g} s needed."
        )
    if judge.doubtful:
        found.append(
            f"There is some evidence against the canary: e^{judge.log_e:.2f}, and from "
            f"e^{judge.threshold / 2:.2f} on it gets no more traffic."
        )
    if judge.not_shown:
        names = ", ".join(judge.not_shown)
        found.append(f"Not shown yet to be no worse by the margin: {names}.")
    if judge.excused:
        names = ", ".join(judge.excused)
        found.append(f"Stable breaks {names} as well, so the canary is not to blame: holding.")
    return (*found, *_unobserved(state))


def _unobserved(state: RolloutState) -> tuple[str, ...]:
    """What was asked to be compared and is not observed enough; with all traffic nothing is."""
    if state.percent >= 100:
        return ()
    return (*state.obstacles, *missing(state.config, state.observed))


def _next(state: RolloutState, observation: Observation, before: tuple[str, ...]) -> Answer:
    words = (
        *before,
        f"Step {state.step + 1} ({state.percent:g} %) is passed: {state.requests} canary requests "
        f"in {state.watched_ms / 1000:.1f} s, and the e-value against the canary is "
        f"e^{state.judge.log_e:.2f}, below e^{state.judge.threshold / 2:.2f}.",
    )
    if state.step + 1 < len(state.config.steps):
        return _move(state, observation, Phase.CANARY, Outcome.ADVANCED, words)
    return _move(state, observation, Phase.PROMOTED, Outcome.PROMOTED, words)


def _move(
    state: RolloutState,
    observation: Observation,
    phase: Phase,
    outcome: Outcome,
    words: tuple[str, ...],
    signal: Signal | None = None,
) -> Answer:
    """Into ``phase`` (or the next step), with what there is to do."""
    verdicts = tuple(v.to_dict() for v in state.judge.verdicts() if v.n_canary)
    state = replace(
        state,
        phase=phase,
        step=state.step + (outcome is Outcome.ADVANCED),
        watched_ms=0,
        requests=0,
        observed={},
        transitions=state.transitions + 1,
        judge=state.judge.reopened(),
    )
    decision = _decision(state, observation, outcome, words, verdicts)
    if phase.terminal:
        decision = replace(decision, basis=state.judge.basis())
    state = replace(state, last_change=decision)
    return state, _actions(state, outcome, words[0], signal), decision


def _actions(
    state: RolloutState, outcome: Outcome, words: str, signal: Signal | None
) -> tuple[Action, ...]:
    found: list[Action] = []

    def do(kind: ActionKind, **details: Any) -> None:
        found.append(Action(f"{state.id}/{state.transitions}/{len(found)}", kind, **details))

    if outcome is Outcome.STARTED:
        do(ActionKind.VERIFY, variant="canary")
    elif outcome in (Outcome.VERIFIED, Outcome.ADVANCED):
        do(ActionKind.SET_WEIGHTS, weights=_weights(state.percent))
    elif outcome is Outcome.PROMOTED:
        do(ActionKind.SET_WEIGHTS, weights=_weights(100.0))
        if alias := state.config.on_success.promote_alias:
            do(ActionKind.PROMOTE_ALIAS, variant="canary", alias=alias)
        do(ActionKind.DRAIN, variant="stable")
    else:
        nobody = signal is Signal.STABLE_REVOKED
        do(ActionKind.SET_WEIGHTS, weights=() if nobody else _weights(0.0))
        do(ActionKind.DRAIN, variant="canary")
        if nobody:
            do(ActionKind.DRAIN, variant="stable")
        elif (alias := state.config.on_rollback.restore_alias) and outcome is not Outcome.ABORTED:
            do(ActionKind.RESTORE_ALIAS, variant="stable", alias=alias)
        do(ActionKind.ALERT, text=words)
    return tuple(found)


def _weights(percent: float) -> tuple[tuple[str, str], ...]:
    parts = (("canary", percent), ("stable", 100 - percent))
    return tuple((name, f"{share:.10g}") for name, share in parts if share)


def _held(state: RolloutState, observation: Observation, words: tuple[str, ...]) -> Answer:
    return state, (), _decision(state, observation, Outcome.HELD, words)


def _ignored(state: RolloutState, observation: Observation, now_ms: int, words: str) -> Answer:
    decision = _decision(state, observation, Outcome.IGNORED, (words,))
    return state, (), replace(decision, at_ms=now_ms)


def _decision(
    state: RolloutState,
    observation: Observation,
    outcome: Outcome,
    words: tuple[str, ...],
    verdicts: tuple[Mapping[str, Any], ...] = (),
) -> RolloutDecision:
    return RolloutDecision(
        outcome=outcome,
        phase=state.phase,
        step=state.step,
        percent=f"{state.percent:.10g}",
        at_ms=state.clock_ms or 0,
        observation=observation.id,
        explanation=words,
        verdicts=verdicts,
    )


def _heard(seen: Mapping[str, int], observation: Observation) -> dict[str, int]:
    heard = {source: number for source, number in seen.items() if source != observation.source}
    heard[observation.source] = observation.sequence
    while len(heard) > _SOURCES:
        del heard[next(iter(heard))]
    return heard


def _place(state: RolloutState) -> str:
    if state.phase is Phase.CANARY:
        return f"step {state.step + 1} of {len(state.config.steps)} ({state.percent:g} %)"
    return state.phase.value.replace("_", " ")
