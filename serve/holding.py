"""What a controller with the lease has in its hands. No clock, no port, no waiting.

Takes in what gateways, people, governance and the cluster say, and keeps what is not saved yet.
Whoever uses it holds a lock: ``serve.controller`` does, and does the rest.

Example::

    holding = Holding(look, Timing(), now)
    holding.count(report, now)
    step = holding.step_forward(now)    # None: nothing to be recorded before it is done
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from governance.deployment_control import Alert, Progress, StoredDecision
from governance.deployment_port import Look
from governance.deployment_records import DeploymentRecord, Health
from serve.beside import Change, after_look, applications, opened, specs
from serve.cluster import (
    Running,
    VariantSpec,
    VariantState,
    application_of,
    health_after,
    spec_of,
)
from serve.course import Course, Drain, Notice, OpenAction, first_revision, plan_of, with_actions
from serve.delta import Delta
from serve.plan import Plan, Report
from serve.presence import Presence
from serve.records import Action, ActionKind, Observation, Outcome, Phase, Signal
from serve.rollout import RolloutState, advance
from serve.scaling import Scaler, sized
from serve.series import followed
from serve.signals import begun, heard, of_cluster, stored
from serve.timing import Timing
from serve.watch import Watch

__all__ = ["Holding", "Step", "Timing"]

_log = logging.getLogger(__name__)

_FORWARD = frozenset({Outcome.STARTED, Outcome.VERIFIED, Outcome.ADVANCED, Outcome.PROMOTED})
_NOTICES = 20
_AWAITED = "A controller took over, and not every gateway there can ask the canary yet."


@dataclass(frozen=True, slots=True)
class Step:
    """A step forward, and what is to be saved before it is done."""

    course: Course
    progress: Progress


class Holding:
    """See the module.

    Args:
        look: What the database said when the lease was taken.
        timing: How long what lasts.
        now: The time.
    """

    def __init__(self, look: Look, timing: Timing, now: int) -> None:
        self.record = look.record
        self.course = Course()
        self.health = look.record.health
        self.doubt = False
        self._timing = timing
        self._ticks = 0
        self._decisions: list[StoredDecision] = []
        self._alerts: list[Alert] = []
        self._taken: list[int] = []
        self._saved = look.record.state or b""
        self._saved_ms = now
        self._states: Mapping[str, VariantState] = {}
        self._watch = Watch(timing.gateway)
        self._scaler = Scaler()
        self._read(look.record, now)
        rollout = self.course.running
        found = "" if rollout is None or rollout.phase is not Phase.CANARY else rollout.id
        self._presence = Presence(timing.gateway, timing.settle, now, awaited=found)
        self.plan = self._plan(first_revision(look.record.fence))
        self.follow(look, now)

    def _read(self, record: DeploymentRecord, now: int) -> None:
        try:
            self.course = Course() if record.state is None else Course.from_json(record.state)
        except ValueError as error:
            self.notice(
                f"{record.deploy_id}/state/{record.fence}",
                f"What was saved of the rollout on the route {record.route!r} cannot be read "
                f"({error}): it begins anew, with all traffic on stable.",
                now,
            )

    @property
    def _source(self) -> str:
        """New with each lease, so that its counts begin anew."""
        return f"controller-{self.record.fence}"

    @property
    def _awaits_canary(self) -> bool:
        """Whether the canary had traffic before this lease, and cannot be asked again yet."""
        rollout = self.course.running
        return rollout is not None and rollout.id == self._presence.awaited

    @property
    def unrecorded(self) -> bool:
        """Whether there are decisions that are not saved yet."""
        return bool(self._decisions)

    # -- the plan

    def _plan(self, revision: int) -> Plan:
        state = self._canary_state()
        runs = state is not None and state.running is Running.RUNNING
        running = {n for n, found in self._states.items() if found.running is Running.RUNNING}
        return plan_of(
            self.record,
            self.course,
            revision=revision,
            canary_runs=runs,
            canary_awaited=self._awaits_canary,
            running=running,
        )

    def _canary_state(self) -> VariantState | None:
        canary = self.record.canary
        return None if canary is None else self._states.get(application_of(self.record, canary))

    def publish(self) -> None:
        """A new revision, where the plan is another than the last."""
        if self._plan(self.plan.revision) != self.plan:
            self.plan = self._plan(self.plan.revision + 1)

    def notice(self, identifier: str, text: str, now: int) -> None:
        """Tell people, once for each id: in the log at once, and on the ledger."""
        if any(notice.id == identifier for notice in self.course.notices):
            return
        notices = (*self.course.notices, Notice(identifier, now, text))[-_NOTICES:]
        self.course = replace(self.course, notices=notices)
        self._alerts.append(Alert(identifier, text))
        _log.warning("%s", text)

    # -- observations

    def hear_gateway(self, report: Report, now: int) -> None:
        """A gateway is there."""
        self._scaler.hear(report, now)
        self._presence.heard(report, now)
        self.publish()

    def count(self, report: Report, now: int) -> None:
        """Take in what a gateway saw, once."""
        self.course = replace(self.course, beside=self.course.beside.counted(report))
        deltas, rollout = report.deltas, self.course.running
        if rollout is not None:
            self._watch.hear(report, rollout, now)
            bins = self._watch.frozen(rollout, self.course.bins)
            if bins != self.course.bins:
                self.course = replace(self.course, bins=bins)
                self.publish()
            deltas = self._watch.admitted(report, rollout, bins)
        self._observe(Observation(report.source, report.sequence, deltas, self._standing()), now)

    def polled(
        self, deltas: Sequence[Mapping[str, Delta]], troubles: Mapping[str, str], now: int
    ) -> None:
        """Take in what was asked elsewhere (metrics by PromQL), and what could not be."""
        rollout = self.course.running
        if rollout is None:
            return
        self._watch.asked(rollout, troubles)
        for found in deltas:
            self._ticks += 1
            self._observe(Observation(self._source, self._ticks, found, self._standing()), now)

    def _obstacles(self, now: int) -> tuple[str, ...]:
        """What cannot be observed; told to people once."""
        rollout = self.course.running
        if rollout is None:
            return ()
        for identifier, text in self._watch.notices(now):
            self.notice(identifier, text, now)
        found = self._watch.obstacles(rollout, self.course.bins, now)
        return (_AWAITED, *found) if self._awaits_canary else found

    def _standing(self) -> frozenset[Signal]:
        """What holds as long as it is told."""
        paused = {Signal.PAUSED} if self.course.paused else set()
        unhealthy = {Signal.STABLE_UNHEALTHY} if self.health is Health.UNHEALTHY else set()
        awaited = {Signal.CANARY_AWAITED} if self._awaits_canary else set()
        return frozenset(paused | unhealthy | awaited)

    def _tell(self, signal: Signal, reason: str, now: int) -> None:
        self._ticks += 1
        self._observe(Observation(self._source, self._ticks, {}, frozenset({signal}), reason), now)

    def _observe(self, seen: Observation, now: int) -> None:
        """Take an observation in; a step forward is left to ``step_forward``."""
        rollout = self.course.running
        if rollout is None:
            return
        seen = replace(seen, obstacles=self._obstacles(now))
        if self._awaits_canary:
            seen = replace(seen, deltas={})  # nobody is blamed for a canary that could not be asked
        state, actions, decision = advance(rollout, seen, now)
        if decision.outcome in _FORWARD:
            # Counted all the same, with the clock where it was: the tick comes to this again.
            held = replace(seen, signals=seen.signals | {Signal.PAUSED})
            at = now if rollout.clock_ms is None else rollout.clock_ms
            state, actions, decision = advance(rollout, held, at)
        self.course = self._after(state, actions, now, seen)
        if decision.changes:
            self._decisions.append(stored(state, decision))
            for action in actions:
                if action.kind is ActionKind.ALERT:
                    self.notice(action.id, action.text, now)
            self.publish()

    def _after(
        self, state: RolloutState, actions: tuple[Action, ...], now: int, seen: Observation
    ) -> Course:
        due = now + self._timing.drain
        course = with_actions(self.course, self.record, state, actions, due)
        return replace(
            course,
            paused="" if state.phase.terminal else course.paused,
            series=followed(course.series, state, seen.deltas, now, self._versions()),
        )

    def _versions(self) -> tuple[int, ...]:
        both = (self.record.stable, self.record.canary)
        return tuple(one.version for one in both if one is not None)

    # -- the database

    def follow(self, look: Look, now: int) -> None:
        """Take in what others wrote: a new rollout, signals, revocations, resources."""
        if self.doubt:
            self._settle(look.record, now)
        self.record = record = look.record
        rollout = self.course.rollout
        if record.canary is not None and (rollout is None or rollout.id != record.rollout_id):
            self._begin(record, now)
        self._change(after_look(self.course.beside, record, look.revoked), now)
        for signal in look.signals:
            if signal.number > self.course.heard:
                self.course, seen = heard(record, self.course, signal)
                if seen is not None:
                    self._observe(seen, now)
            if signal.number not in self._taken:
                self._taken.append(signal.number)
        if record.canary is not None and (why := look.revoked.get(record.canary.version_uid)):
            self._tell(Signal.REVOKED, why, now)
        if why := look.revoked.get(record.stable.version_uid):
            self._tell(Signal.STABLE_REVOKED, why, now)
            self.shut(f"{record.uri_of(record.stable)} was revoked: {why}")
        if self.course.closed:
            self._leave(now)
        self.publish()

    def _change(self, change: Change, now: int) -> None:
        """Take in what became of experiment and shadow."""
        due = now + self._timing.drain
        drains = tuple(Drain(name, due) for name in change.left)
        self.course = replace(
            self.course, beside=change.beside, drains=(*self.course.drains, *drains)
        )
        for identifier, text in change.notices:
            self.notice(identifier, text, now)

    def applications(self) -> set[str]:
        """All that may run of this deployment."""
        drained = {drain.application for drain in self.course.drains}
        return drained | applications(self.record, self.course.beside)

    def shut(self, why: str) -> None:
        """Nobody answers any more."""
        self.course = replace(self.course, closed=self.course.closed or why)

    def _leave(self, now: int) -> None:
        """What ran on a route that is closed is taken down, and people are told."""
        record = self.record
        left = {drain.application for drain in self.course.drains}
        identifier = f"{record.deploy_id}/closed/{record.stable.version_uid}"
        if any(notice.id == identifier for notice in self.course.notices):
            return
        names = [application_of(record, one) for one in record.served]
        drains = [Drain(name, now + self._timing.drain) for name in names if name not in left]
        self.course = replace(self.course, drains=(*self.course.drains, *drains))
        words = f"Nobody answers on the route {record.route!r} any more: {self.course.closed}"
        self.notice(identifier, words, now)

    def _begin(self, record: DeploymentRecord, now: int) -> None:
        """Somebody began a rollout."""
        assert record.rollout_id is not None
        begin = begun(record.rollout_id, record.canary_config or "", now)
        if isinstance(begin, RolloutState):
            self.course = replace(self.course, rollout=begin, paused="")
            return
        state, decision = begin
        self.course = replace(self.course, rollout=state, paused="")
        self._decisions.append(stored(state, decision))
        self.notice(f"{record.rollout_id}/config", decision.explain(), now)

    def _settle(self, record: DeploymentRecord, now: int) -> None:
        """A step forward may have been recorded although the answer was lost: go on from it."""
        self.doubt = False
        ours = self.course.rollout
        try:
            theirs = Course() if record.state is None else Course.from_json(record.state)
        except ValueError:
            return  # ours is what will be saved
        recorded = theirs.rollout
        if ours is None or recorded is None or recorded.id != ours.id:
            return
        pending = [one for one in self._decisions if one.rollout_id == ours.id]
        if recorded.transitions <= ours.transitions - len(pending):
            return  # it was not
        self.record = record
        self._decisions = [one for one in self._decisions if one.rollout_id != ours.id]
        self.course = replace(
            theirs,
            heard=max(theirs.heard, self.course.heard),
            notices=self.course.notices,
            beside=self.course.beside,
            scaled=self.course.scaled,
            warmed_ms=self.course.warmed_ms,
        )
        if not pending:
            return
        why = " ".join(map(str, pending[-1].document["explanation"]))
        if self.course.running is not None:
            self._tell(Signal.ROLLBACK, f"decided while the database was away: {why}", now)
        else:
            self.notice(
                f"{ours.id}/late",
                f"The rollout was recorded as {recorded.phase.value} before the database went "
                f"away; then it was found: {why}",
                now,
            )

    # -- the cluster

    def wanted(self) -> dict[str, VariantSpec]:
        """What should run, by application, in which number; from the state alone."""
        return sized(self.record, self.course, self._variants())

    def adopt(self, states: Mapping[str, VariantState], now: int) -> None:
        """What runs when this controller begins."""
        found = self._scaler.adopt(self.record, self.course, states, now)
        self.course = replace(self.course, scaled=found)

    def scale(self, now: int) -> None:
        """Decide how many replicas there should be."""
        found = self._scaler.decide(self.record, self.course, self._variants(), self._states, now)
        self.course = replace(self.course, scaled=found)

    def _variants(self) -> dict[str, VariantSpec]:
        record, rollout = self.record, self.course.running
        if self.course.closed:
            return {}
        found = [spec_of(record, record.stable)]
        begun_already = (
            rollout is not None
            and rollout.id == record.rollout_id
            and rollout.phase is not Phase.PENDING
        )
        if begun_already and record.canary is not None:
            found.append(spec_of(record, record.canary))
        beside = specs(record, self.course.beside)
        return {spec.application: spec for spec in (*beside, *found)}  # stable's own comes last

    def see(self, states: Mapping[str, VariantState], now: int) -> None:
        """How what runs does."""
        self._states = states
        record, before = self.record, self.health
        stable = states.get(application_of(record, record.stable))
        if stable is not None:
            self.health = health_after(before, stable.running)
            if self.health is Health.UNHEALTHY and before is not Health.UNHEALTHY:
                self.notice(
                    f"{record.deploy_id}/unhealthy/{now}",
                    f"{record.uri_of(record.stable)} on the route {record.route!r} is "
                    f"{stable.running.value}: {stable.reason or 'no reason is known'}",
                    now,
                )
        for name, state in states.items():
            if state.lacking:
                words = f"Replicas of {name} wait: {state.lacking}"
                self.notice(f"{name}/lacking/{state.lacking}", words, now)
        self.publish()

    # -- decisions that are recorded first

    def step_forward(self, now: int, *, away: bool) -> Step | None:
        """What time and the cluster bring about; a step forward is returned, not taken.

        Args:
            now: The time.
            away: Nothing can be recorded, so no step forward is taken.
        """
        self._open_beside(now, away=away)
        rollout = self.course.running
        if rollout is None:
            return None
        asked = self._presence.connected("canary", now)
        signals, reason = of_cluster(rollout, self._canary_state(), asked=asked)
        self._ticks += 1
        standing, obstacles = self._standing() | signals, self._obstacles(now)
        seen = Observation(self._source, self._ticks, {}, standing, reason, obstacles)
        state, actions, decision = advance(rollout, seen, now)
        if away or decision.outcome not in _FORWARD:
            self._observe(seen, now)
            return None
        course = self._after(state, actions, now, seen)
        decisions = (*self._decisions, stored(state, decision))
        return Step(course, self.progress(course, decisions, self.plan.revision + 1))

    def _open_beside(self, now: int, *, away: bool) -> None:
        """Arms that can be asked get their clients; those that do not run lose them to stable."""
        if self.course.closed:
            return
        change = opened(
            self.course.beside,
            self.record,
            self._states,
            self._presence,
            away=away,
            now=now,
        )
        self._change(change, now)
        self.publish()

    def progress(
        self,
        course: Course | None = None,
        decisions: tuple[StoredDecision, ...] | None = None,
        revision: int | None = None,
    ) -> Progress:
        """What is to be saved."""
        course = course or self.course
        return Progress(
            state=course.to_json(),
            plan_revision=revision or self.plan.revision,
            health=self.health,
            closed=course.closed,
            decisions=tuple(self._decisions) if decisions is None else decisions,
            taken=tuple(self._taken),
            alerts=tuple(self._alerts),
        )

    def to_save(self, now: int) -> Progress | None:
        """What is to be saved now; None: nothing changed, or it is too early for mere counts."""
        record, early = self.record, now - self._saved_ms < self._timing.save
        changed = (
            self._decisions
            or self._alerts
            or self._taken
            or self.health is not record.health
            or self.course.closed != record.closed
            or self.plan.revision != record.plan_revision
        )
        if early and not changed:
            return None
        progress = self.progress()
        return progress if changed or progress.state != self._saved else None

    def written(self, saved: DeploymentRecord, progress: Progress, now: int) -> None:
        """It is saved."""
        self.record, self._saved, self._saved_ms = saved, progress.state, now
        done = {(one.rollout_id, one.number) for one in progress.decisions}
        self._decisions = [d for d in self._decisions if (d.rollout_id, d.number) not in done]
        self._alerts = [alert for alert in self._alerts if alert not in progress.alerts]
        self._taken = [number for number in self._taken if number not in progress.taken]

    # -- what is done

    def drained(self, drain: Drain) -> None:
        """The application is taken down, or is wanted again."""
        left = tuple(one for one in self.course.drains if one != drain)
        self.course = replace(self.course, drains=left)

    def alias_done(self, action: OpenAction, trouble: str, now: int) -> None:
        """The alias was set, or will not be."""
        left = tuple(one for one in self.course.open if one.id != action.id)
        self.course = replace(self.course, open=left)
        if trouble:
            self.notice(action.id, trouble, now)
