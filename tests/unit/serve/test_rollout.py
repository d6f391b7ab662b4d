"""The rollout's state machine: every transition, replay, and attacks on its inputs."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.canonical import canonical_json
from serve.config import (
    Analysis,
    CanaryConfig,
    ErrorAnalysis,
    GuardRails,
    OnRollback,
    OnSuccess,
    OnTimeout,
)
from serve.delta import Delta, ErrorClass
from serve.records import Action, ActionKind, Observation, Outcome, Phase, Signal
from serve.rollout import GAP_MS, RolloutState, advance, why

CONFIG = CanaryConfig(
    steps=(5, 50, 100),
    min_samples=20,
    min_seconds=10,
    max_seconds=60,
    verify_seconds=30,
    analysis=Analysis(latency=None),
    on_success=OnSuccess(promote_alias="champion"),
    on_rollback=OnRollback(restore_alias="champion"),
)


class Driver:
    """Feeds a rollout and remembers what it answered."""

    def __init__(self, config: CanaryConfig = CONFIG, now_ms: int = 1_000_000) -> None:
        self.state = RolloutState.start("r1", config)
        self.now_ms, self.number = now_ms, 0
        self.actions: tuple[Action, ...] = ()
        self.outcome = Outcome.HELD
        self.words = ""

    def tell(
        self,
        *signals: Signal,
        canary: Delta | None = None,
        stable: Delta | None = None,
        seconds: float = 1,
        reason: str = "",
    ) -> Driver:
        self.number += 1
        self.now_ms += round(1000 * seconds)
        deltas = {"canary": canary or Delta(), "stable": stable or Delta()}
        observation = Observation("gw", self.number, deltas, frozenset(signals), reason)
        before = self.state
        self.state, self.actions, decision = advance(self.state, observation, self.now_ms)
        self.outcome, self.words = decision.outcome, decision.explain()
        canonical_json(decision.to_dict())
        canonical_json([action.to_dict() for action in self.actions])
        assert decision.explanation
        assert RolloutState.from_json(self.state.to_json()) == self.state
        assert bool(self.actions) == decision.changes
        changed = (before.phase, before.step) != (self.state.phase, self.state.step)
        assert changed == decision.changes
        return self

    def good(self, times: int = 1, seconds: float = 1) -> Driver:
        for _ in range(times):
            self.tell(canary=Delta(5), stable=Delta(45), seconds=seconds)
        return self

    def bad(self, times: int = 1) -> Driver:
        for _ in range(times):
            self.tell(canary=Delta(5, {ErrorClass.RAISED: 5}), stable=Delta(45))
        return self

    @property
    def kinds(self) -> list[ActionKind]:
        return [action.kind for action in self.actions]

    @property
    def weights(self) -> dict[str, str]:
        return dict(next(a for a in self.actions if a.kind is ActionKind.SET_WEIGHTS).weights)


def in_phase(phase: Phase, config: CanaryConfig = CONFIG) -> Driver:
    driver = Driver(config)
    if phase is Phase.PENDING:
        return driver
    driver.tell(Signal.START)
    if phase is Phase.VERIFYING:
        return driver
    driver.tell(Signal.VERIFIED)
    if phase is Phase.PROMOTED:
        driver.good(40)
    elif phase is not Phase.CANARY:
        signal = {
            Phase.ROLLED_BACK: Signal.ROLLBACK,
            Phase.QUARANTINED: Signal.QUARANTINE,
            Phase.ABORTED: Signal.ABORT,
        }[phase]
        driver.tell(signal)
    assert driver.state.phase is phase
    return driver


# -- every state and signal

H = Phase.PENDING, Phase.VERIFYING, Phase.CANARY
TABLE = {
    Signal.STABLE_REVOKED: (Phase.QUARANTINED,) * 3,
    Signal.REVOKED: (Phase.QUARANTINED,) * 3,
    Signal.QUARANTINE: (Phase.QUARANTINED,) * 3,
    Signal.VERIFICATION_FAILED: (Phase.QUARANTINED,) * 3,
    Signal.ABORT: (Phase.ABORTED,) * 3,
    Signal.ROLLBACK: (Phase.ROLLED_BACK,) * 3,
    Signal.CANARY_UNHEALTHY: (Phase.PENDING, Phase.ROLLED_BACK, Phase.ROLLED_BACK),
    Signal.START: (Phase.VERIFYING, Phase.VERIFYING, Phase.CANARY),
    Signal.VERIFIED: (Phase.PENDING, Phase.CANARY, Phase.CANARY),
    Signal.CANARY_AWAITED: H,
    Signal.STABLE_UNHEALTHY: H,
    Signal.PAUSED: H,
}


def test_the_table_is_complete() -> None:
    assert set(TABLE) == set(Signal)


@pytest.mark.parametrize("signal", list(Signal))
@pytest.mark.parametrize("phase", list(Phase))
def test_every_phase_and_signal(phase: Phase, signal: Signal) -> None:
    driver = in_phase(phase)
    before = driver.state
    driver.tell(signal, reason="because")
    if phase.terminal:
        assert driver.state == before
        assert driver.outcome is Outcome.IGNORED
        assert phase.value in driver.words
        return
    target = TABLE[signal][H.index(phase)]
    assert driver.state.phase is target
    if target is not phase:
        assert "Reason given: because" in driver.words
    if target.terminal:
        nobody = signal is Signal.STABLE_REVOKED
        assert driver.weights == ({} if nobody else {"stable": "100"})
        assert ActionKind.DRAIN in driver.kinds
        assert driver.kinds[-1] is ActionKind.ALERT
        restores = ActionKind.RESTORE_ALIAS in driver.kinds
        assert restores == (target is not Phase.ABORTED and not nobody)


def test_the_gravest_signal_counts() -> None:
    driver = in_phase(Phase.CANARY).tell(*Signal)
    assert driver.state.phase is Phase.QUARANTINED
    assert driver.weights == {}
    driver = in_phase(Phase.CANARY).tell(Signal.CANARY_UNHEALTHY, Signal.ABORT, Signal.START)
    assert driver.state.phase is Phase.ABORTED


# -- the way through


def test_a_good_canary_is_promoted_step_by_step() -> None:
    driver = Driver().tell(Signal.START)
    assert driver.kinds == [ActionKind.VERIFY]
    driver.tell(Signal.VERIFIED)
    assert driver.weights == {"canary": "5", "stable": "95"}
    driver.good(9)
    assert driver.outcome is Outcome.HELD
    assert "9.0 s of 10 s needed" in driver.words
    driver.good()
    assert driver.outcome is Outcome.ADVANCED
    assert driver.weights == {"canary": "50", "stable": "50"}
    assert "Step 1 (5 %) is passed: 50 canary requests in 10.0 s" in driver.words
    driver.good(10)
    assert driver.weights == {"canary": "100"}
    driver.good(10)
    assert driver.outcome is Outcome.PROMOTED
    assert driver.kinds == [
        ActionKind.SET_WEIGHTS,
        ActionKind.PROMOTE_ALIAS,
        ActionKind.DRAIN,
    ]
    assert driver.weights == {"canary": "100"}
    assert driver.actions[1].alias == "champion"
    assert len({action.id for action in driver.actions}) == 3
    assert "promoted" in why(driver.state)[0]


def test_a_bad_canary_is_rolled_back_and_says_why() -> None:
    driver = in_phase(Phase.CANARY).good(3).bad(10)
    assert driver.state.phase is Phase.ROLLED_BACK
    change = driver.state.last_change
    assert change is not None
    assert change.outcome is Outcome.ROLLED_BACK
    text = " ".join(why(driver.state))
    assert "worse than stable at step 1 of 3 (5 %)" in text
    assert "errors: " in text
    assert "1/0.01" in text
    assert change.verdicts[0]["test"] == "errors"
    assert all(isinstance(v, str | int | bool | None) for v in change.verdicts[0].values())


def test_without_an_alias_none_is_touched() -> None:
    bare = CONFIG.model_copy(update={"on_success": OnSuccess(), "on_rollback": OnRollback()})
    assert ActionKind.RESTORE_ALIAS not in in_phase(Phase.ROLLED_BACK, bare).kinds
    driver = in_phase(Phase.CANARY, bare)
    while not driver.state.phase.terminal:
        driver.good()
    assert driver.kinds == [ActionKind.SET_WEIGHTS, ActionKind.DRAIN]


def test_verification_has_its_time() -> None:
    driver = in_phase(Phase.VERIFYING)
    driver.tell(seconds=29)
    assert driver.outcome is Outcome.HELD
    driver.tell(seconds=1)
    assert driver.state.phase is Phase.ABORTED
    assert "not verified within 30 s" in driver.words


@pytest.mark.parametrize(
    ("rule", "canary", "phase", "step"),
    [
        (OnTimeout.ROLLBACK, 1, Phase.ROLLED_BACK, 0),
        (OnTimeout.HOLD, 1, Phase.CANARY, 0),
        (OnTimeout.ADVANCE, 1, Phase.CANARY, 1),
        (OnTimeout.ADVANCE, 0, Phase.CANARY, 0),
        (OnTimeout.ROLLBACK, 0, Phase.ROLLED_BACK, 0),
    ],
)
def test_a_step_with_too_few_requests(
    rule: OnTimeout, canary: int, phase: Phase, step: int
) -> None:
    config = CONFIG.model_copy(update={"on_timeout": rule, "min_samples": 1000})
    driver = in_phase(Phase.CANARY, config)
    for _ in range(60):
        driver.tell(canary=Delta(canary), stable=Delta(40))
    assert (driver.state.phase, driver.state.step) == (phase, step)
    if driver.outcome is not Outcome.HELD:
        assert "longest time of 60 s" in driver.words


def test_a_margin_must_be_shown_first() -> None:
    analysis = Analysis(errors=ErrorAnalysis(margin=0.2), latency=None)
    driver = in_phase(Phase.CANARY, CONFIG.model_copy(update={"analysis": analysis}))
    for _ in range(10):
        driver.tell(canary=Delta(2), stable=Delta(18))
    assert "no worse by the margin: errors" in driver.words
    driver.good(20)
    assert driver.state.step >= 1


def test_some_doubt_holds_the_step() -> None:
    driver = in_phase(Phase.CANARY).good(5)
    while not driver.state.judge.doubtful:
        driver.tell(canary=Delta(1, {ErrorClass.RAISED: 1}), stable=Delta(20))
    driver.tell(canary=Delta(15), stable=Delta(0), seconds=9)
    assert driver.outcome is Outcome.HELD
    assert "it gets no more traffic" in driver.words


def test_the_warm_up_is_not_compared() -> None:
    config = CONFIG.model_copy(update={"warmup_seconds": 5.0})
    driver = in_phase(Phase.CANARY, config).bad(4)
    assert driver.state.phase is Phase.CANARY
    assert driver.state.requests == 0
    assert driver.bad(6).state.phase is Phase.ROLLED_BACK


def test_the_last_step_has_only_guard_rails() -> None:
    rails = CONFIG.model_copy(update={"guard_rails": GuardRails(max_error_rate=0.05)})
    driver = in_phase(Phase.CANARY, rails).good(20)
    assert driver.state.percent == 100
    for _ in range(9):
        driver.tell(canary=Delta(50, {ErrorClass.RAISED: 25}))
    assert driver.state.phase is Phase.ROLLED_BACK
    assert "guard.max_error_rate" in " ".join(why(driver.state))


@pytest.mark.parametrize("signal", [Signal.CANARY_AWAITED, Signal.STABLE_UNHEALTHY, Signal.PAUSED])
def test_while_a_variant_is_ill_or_somebody_looks_nothing_advances(signal: Signal) -> None:
    driver = in_phase(Phase.CANARY)
    for _ in range(100):
        driver.tell(signal, canary=Delta(5), stable=Delta(45))
    assert driver.state.step == 0
    assert driver.state.watched_ms == 0
    assert "the step's clock stands" in driver.words
    for _ in range(10):
        driver.tell(signal, canary=Delta(5, {ErrorClass.RAISED: 5}), stable=Delta(45))
    assert driver.state.phase is Phase.ROLLED_BACK


# -- attacks


def test_a_canary_without_traffic_goes_nowhere_and_is_given_up() -> None:
    driver = in_phase(Phase.CANARY)
    for _ in range(59):
        driver.tell(stable=Delta(100))
    assert (driver.state.phase, driver.state.step) == (Phase.CANARY, 0)
    assert "had 0 of 20 requests" in driver.words
    assert driver.tell(stable=Delta(100)).state.phase is Phase.ROLLED_BACK


def test_stable_without_traffic_condemns_nobody() -> None:
    driver = in_phase(Phase.CANARY)
    for _ in range(30):
        driver.tell(canary=Delta(5, {ErrorClass.RAISED: 1}))
    assert driver.state.judge.log_e < 0.1


def test_errors_everywhere_are_not_the_canary_s_fault() -> None:
    rails = CONFIG.model_copy(
        update={"guard_rails": GuardRails(max_error_rate=0.05), "on_timeout": OnTimeout.HOLD}
    )
    driver = in_phase(Phase.CANARY, rails)
    for _ in range(100):
        driver.tell(
            canary=Delta(5, {ErrorClass.RAISED: 5}), stable=Delta(45, {ErrorClass.TIMEOUT: 45})
        )
    assert (driver.state.phase, driver.state.step) == (Phase.CANARY, 0)
    assert "Stable breaks guard.max_error_rate as well" in driver.words
    driver.good(200)
    assert driver.state.phase is not Phase.ROLLED_BACK


def test_a_clock_that_jumps() -> None:
    driver = in_phase(Phase.CANARY).good(5)
    watched = driver.state.watched_ms
    driver.good(seconds=-86_400)
    assert driver.state.watched_ms == watched
    driver.good(seconds=1)
    assert driver.state.watched_ms == watched + 1000
    driver.good(seconds=10 * 365 * 86_400)
    assert driver.state.step == 1  # the gap counts for no more than GAP_MS
    config = CONFIG.model_copy(update={"min_samples": 10**6})
    driver = in_phase(Phase.CANARY, config).good(seconds=10**9)
    assert driver.state.watched_ms == GAP_MS
    assert driver.state.phase is Phase.CANARY


def test_a_duplicate_or_late_observation_changes_nothing() -> None:
    driver = in_phase(Phase.CANARY).good(3)
    for sequence in (driver.number, driver.number - 1, 1, -7):
        again = Observation(
            "gw",
            sequence,
            {"canary": Delta(9, {ErrorClass.RAISED: 9})},
            frozenset({Signal.REVOKED}),
        )
        state, actions, decision = advance(driver.state, again, driver.now_ms + 99_000)
        assert state == driver.state
        assert actions == ()
        assert decision.outcome is Outcome.IGNORED
    other = Observation("gw-2", 0, {"canary": Delta(1)})
    assert advance(driver.state, other, driver.now_ms)[0].requests == driver.state.requests + 1


def test_sources_are_remembered_within_bounds() -> None:
    state = RolloutState.start("r", CONFIG)
    state = replace(state, seen={f"s{n}": n for n in range(4096)})
    state, _, _ = advance(state, Observation("new", 1), 0)
    assert len(state.seen) == 4096
    assert state.seen["new"] == 1
    assert "s0" not in state.seen


def test_unknown_variants_are_not_judged() -> None:
    driver = in_phase(Phase.CANARY)
    deltas = {"shadow": Delta(50, {ErrorClass.RAISED: 50})}
    state, _, _ = advance(driver.state, Observation("x", 1, deltas), driver.now_ms)
    assert state.judge == driver.state.judge


# -- replay and serialisation


@cache
def script(seed: int) -> tuple[tuple[Observation, int], ...]:
    rng = random.Random(seed)
    found = []
    for number in range(rng.randrange(10, 60)):
        nc, ns = rng.randrange(6), rng.randrange(40)
        failed = sum(rng.random() < 0.05 for _ in range(nc))
        signals = set()
        if number < 2:
            signals = {(Signal.START, Signal.VERIFIED)[number]}
        elif rng.random() < 0.02:
            signals = {rng.choice(list(Signal))}
        deltas = {
            "canary": Delta(nc, {ErrorClass.RAISED: failed}, {rng.randrange(300, 400): nc}),
            "stable": Delta(ns, {}, {rng.randrange(300, 400): ns}),
        }
        sequence = rng.randrange(number + 1) if rng.random() < 0.1 else number
        source = rng.choice(("a", "b")) if number > 1 else "a"
        observation = Observation(source, sequence, deltas, frozenset(signals))
        found.append((observation, rng.randrange(10**6)))
    return tuple(found)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 5))
def test_replay_gives_the_same_states(seed: int, extra: int) -> None:
    """Once more, with each observation told again, and through JSON at every step."""
    config = CanaryConfig(min_seconds=10, min_samples=10, max_seconds=100)
    first = second = RolloutState.start("r", config)
    for observation, now_ms in script(seed):
        ended = first.phase.terminal
        kept = first
        first, actions, decision = advance(first, observation, now_ms)
        second = RolloutState.from_json(second.to_json())
        second, again, decided = advance(second, observation, now_ms)
        assert (first, actions, decision) == (second, again, decided)
        for _ in range(extra):
            second, nothing, _ = advance(second, observation, now_ms + 5)
            assert nothing == ()
        assert first == second
        if ended:
            assert first == kept
    assert first.to_json() == second.to_json()


def test_the_state_is_canonical_json_and_small() -> None:
    driver = in_phase(Phase.CANARY).good(9)
    data = driver.state.to_json()
    document = json.loads(data)
    assert document["format"] == "chancery.rollout/v1"
    assert canonical_json(document) == data
    assert len(data) < 20_000


@pytest.mark.parametrize(
    "data",
    [
        "{}",
        "[]",
        '{"format": "chancery.rollout/v2"}',
        '{"format": "chancery.rollout/v1"}',
        '{"format": "chancery.rollout/v1", "config": "{}", "lastChange": null, "judge": {}}',
        '{"format": "chancery.rollout/v1", "config": "nonsense", "lastChange": null}',
        "nonsense",
    ],
)
def test_what_is_no_state_is_refused(data: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        RolloutState.from_json(data)
