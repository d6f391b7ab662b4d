"""Decides for one deployment: gathers what gateways saw, moves the traffic, goes on after a crash.

Any number of controllers may be there; the one that holds the lease decides. ``exchange`` counts a
gateway's report and hands out the plan, and never waits for the database or the cluster; ``tick``,
called a few times a second by one thread, does everything that may wait.

- *Forward* (a canary begins, gets more traffic, is promoted): only once it is recorded. While the
  database is away the step holds, and evidence is gathered all the same.
- *Back* (rolled back, quarantined, aborted): at once, and recorded as soon as that is possible. All
  traffic on stable harms nobody, and a plan of a later lease outranks it (``serve.course``).
- Actions are carried out at least once, and twice is as good as once. What should run follows from
  the state; aliases and applications to take down are kept with it until they are done.
- State is saved at every change, and every two seconds while evidence comes in: a crash loses the
  counts of two seconds at most, and no report counts twice.

Example::

    controller = Controller(deploy_id, store, cluster, owner="host/1234", clock=now_ms)
    while not controller.finished:
        controller.tick(now_ms())
        time.sleep(0.25)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from threading import Lock

from governance.deployment_control import Progress
from governance.deployment_port import Deployments, Look
from governance.deployment_records import DeploymentRecord
from governance.errors import (
    LedgerError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    VerificationError,
)
from serve.cluster import ClusterPort, Running, VariantSpec, VariantState
from serve.course import Course, Drain, OpenAction
from serve.holding import Holding, Step, Timing
from serve.plan import Plan, Report
from serve.polling import Poller, asking_of
from serve.scaling import asleep

__all__ = ["Controller"]

_log = logging.getLogger(__name__)

_WAITING = 4096  # reports that may come while a step forward is written


class Controller:
    """See the module. Implements ``serve.plan.ControllerPort``.

    Args:
        deploy_id: The deployment.
        store: The database, with the registry's gate before its aliases.
        cluster: What starts and stops applications.
        owner: Of the lease; unique for each start of a process.
        clock: Milliseconds since the epoch, for ``exchange``.
        timing: How long what lasts.
        poller: Asks for metrics by PromQL; None: one that knows of no Prometheus.
    """

    def __init__(
        self,
        deploy_id: str,
        store: Deployments,
        cluster: ClusterPort,
        *,
        owner: str,
        clock: Callable[[], int],
        timing: Timing = Timing(),  # noqa: B008 - frozen
        poller: Poller | None = None,
    ) -> None:
        self.deploy_id = deploy_id
        self.finished = False
        self.away = False
        self._store = store
        self._cluster = cluster
        self._owner = owner
        self._clock = clock
        self._timing = timing
        self._poller = poller or Poller(None)
        self._lock = Lock()  # of what is held; never while a port is asked
        self._held: Holding | None = None
        self._waiting: list[Report] | None = None
        self._looked_ms = 0
        self._due_ms: dict[str, int] = {}
        self._started: dict[str, VariantSpec] = {}
        self._opened: Mapping[str, object] | None = None
        self._asleep: set[str] = set()

    @property
    def holding(self) -> bool:
        """Whether this controller decides."""
        return self._held is not None

    def standing(self) -> tuple[DeploymentRecord, Course] | None:
        """Where the deployment stands, as far as this controller decides; for showing it."""
        with self._lock:
            held = self._held
            return None if held is None else (held.record, held.course)

    def exchange(self, report: Report) -> Plan:
        """Count a report, once; the plan. Never waits.

        Raises:
            UnreachableError: another controller decides; whoever asks keeps counts and plan.
        """
        with self._lock:
            held, now = self._held, self._clock()
            if held is None:
                raise UnreachableError(
                    f"this controller does not decide for deployment {self.deploy_id[:12]}",
                    "ask again: whoever holds its lease answers",
                )
            held.hear_gateway(report, now)
            if self._waiting is None:
                held.count(report, now)
            elif len(self._waiting) < _WAITING:
                self._waiting.append(report)
            else:
                raise UnreachableError("too many reports wait while a decision is written")
            return held.plan

    def tick(self, now: int) -> None:
        """Look, decide, act, save. Called by one thread; raises nothing that a port raises."""
        if self.finished:
            return
        held = self._held or self._take(now)
        if held is None or not self._look(held, now):
            return
        if held.record.ended_ms is not None:
            self._take_down(held, now)
            return
        self._run(held, now)
        self._poll(held, now)
        if self._decide(held, now):
            self._act(held, now)
            with self._lock:
                progress = None if self.away else held.to_save(now)
            if progress is not None:
                self._save(held, progress, now)

    def close(self) -> None:
        """Let another controller take over at once."""
        held = self._held
        if held is None:
            return
        with self._lock:
            progress = held.progress()
        if self._save(held, progress, self._clock()) is not None:
            fence = held.record.fence
            self._try("release the lease", lambda: self._store.release(self.deploy_id, fence))
        self._lose("it was closed")

    def _try(self, what: str, act: Callable[[], object]) -> bool:
        """Whether it was done. Whatever a port raises, the controller goes on."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - ports may raise anything; it is tried again
            _log.warning("deployment %s: %s: %r", self.deploy_id[:12], what, error)
            return False
        return True

    def _due(self, what: str, now: int) -> bool:
        """Whether it may be tried (again)."""
        if self._due_ms.get(what, now) > now:
            return False
        self._due_ms[what] = now + self._timing.again
        return True

    # -- the lease

    def _take(self, now: int) -> Holding | None:
        if now - self._looked_ms < self._timing.look:
            return None
        self._looked_ms = now
        try:
            look = self._store.take(
                self.deploy_id, self._owner, now_ms=now, ttl_ms=self._timing.lease
            )
        except NotFoundError:
            self.finished = True
            return None
        except Exception as error:  # noqa: BLE001 - away, in whatever way
            self._gone(error)
            return None
        if look is None:
            return None
        self.away, self._opened = False, None
        self._started, self._due_ms, self._asleep = {}, {}, set()
        held = Holding(look, self._timing, now)
        with self._lock:
            self._held = held
        return held

    def _look(self, held: Holding, now: int) -> bool:
        """Whether this controller still decides."""
        if now - self._looked_ms < self._timing.look:
            return True
        self._looked_ms = now
        fence = held.record.fence
        try:
            look = self._store.look(self.deploy_id, fence, now_ms=now, ttl_ms=self._timing.lease)
        except RefusedError as error:
            return self._lose(error.message)
        except Exception as error:  # noqa: BLE001 - away, in whatever way
            self._gone(error)
            return True
        if look.record.fence != fence:
            return self._lose(f"{look.record.lease_owner} has lease {look.record.fence}")
        self._follow(held, look, now)
        return True

    def _follow(self, held: Holding, look: Look, now: int) -> None:
        self.away = False
        with self._lock:
            held.follow(look, now)

    def _lose(self, why: str) -> bool:
        """Nothing is held any more: what another controller saves is what counts."""
        _log.warning("deployment %s: the lease is given up: %s", self.deploy_id[:12], why)
        self._poller.ask(None)
        with self._lock:
            self._held, self._waiting = None, None
        return False

    def _gone(self, error: Exception) -> None:
        if not self.away:
            _log.warning(
                "deployment %s: the database is away, the step holds: %r",
                self.deploy_id[:12],
                error,
            )
        self.away = True

    # -- what others measure

    def _poll(self, held: Holding, now: int) -> None:
        """Say what Prometheus is to be asked, and take in what it said. Does not wait."""
        asking = asking_of(held.record, held.course.running)
        self._poller.ask(asking)
        if asking is not None:
            found, troubles = self._poller.take()
            with self._lock:
                held.polled(found, troubles, now)

    # -- decisions

    def _decide(self, held: Holding, now: int) -> bool:
        """Whether this controller still decides, afterwards."""
        with self._lock:
            step = held.step_forward(now, away=self.away)
            if step is not None:
                self._waiting = []
        return step is None or self._go(held, step, now)

    def _go(self, held: Holding, step: Step, now: int) -> bool:
        """A step forward: recorded, then done. Reports that come meanwhile are counted after."""
        saved: DeploymentRecord | None = None
        try:
            saved = self._store.save(self.deploy_id, held.record.fence, step.progress, now_ms=now)
        except RefusedError as error:
            return self._lose(error.message)
        except Exception as error:  # noqa: BLE001 - away, in whatever way: the step holds
            self._gone(error)
        with self._lock:
            waiting, self._waiting = self._waiting or [], None
            if saved is None:
                held.doubt = True
            else:
                held.course = step.course
                held.written(saved, step.progress, now)
                held.publish()
            for report in waiting:
                held.count(report, now)
        return True

    def _save(self, held: Holding, progress: Progress, now: int) -> DeploymentRecord | None:
        try:
            saved = self._store.save(self.deploy_id, held.record.fence, progress, now_ms=now)
        except RefusedError as error:
            self._lose(error.message)
        except Exception as error:  # noqa: BLE001 - away, in whatever way: kept until it is back
            self._gone(error)
        else:
            with self._lock:
                held.written(saved, progress, now)
            return saved
        return None

    # -- what runs

    def _run(self, held: Holding, now: int) -> None:
        """Have run what should run, and see how it does."""
        record = held.record
        opens = self._opened != record.resources and self._due("open", now)
        if opens and self._try("open the route", lambda: self._cluster.open(record)):
            self._opened = record.resources
            del self._due_ms["open"]
        states: dict[str, VariantState] = {}

        def ask(name: str) -> None:
            states[name] = self._cluster.state(name)

        if not self._started:
            for name in held.wanted():
                self._try(f"ask after {name}", partial(ask, name))
        with self._lock:
            if states:
                held.adopt(states, now)
            held.scale(now)
            wanted, sleeping = held.wanted(), asleep(held.course)
        left = {drain.application: drain for drain in held.course.drains}
        states.clear()
        for name in sleeping - self._asleep:
            if self._due(name, now) and self._try(
                f"stop {name}", partial(self._cluster.stop, name)
            ):
                self._asleep.add(name)
                self._started.pop(name, None)
                del self._due_ms[name]
        self._asleep &= sleeping
        for name, spec in wanted.items():
            if name in left and not self._goes_on(held, left[name]):
                continue
            start = partial(self._cluster.start, spec)
            changed = self._started.get(name) != spec
            if changed and self._due(name, now) and self._try(f"start {name}", start):
                self._started[name] = spec
                del self._due_ms[name]
            self._try(f"ask after {name}", partial(ask, name))
            if name in self._started and _gone(states.get(name)):
                del self._started[name]  # somebody took it down: it is wanted all the same
                self._due_ms[name] = now + self._timing.again
        with self._lock:
            held.see(states, now)

    def _goes_on(self, held: Holding, drain: Drain) -> bool:
        """Whether what was to be taken down is no longer in the way of what is wanted again.

        What a failed rollout left may be broken, even if nobody noticed yet, and the next would be
        blamed for it: that one gets replicas of its own. An arm or the stable before goes on.
        """
        name, found = drain.application, list[VariantState]()

        def ask() -> None:
            found.append(self._cluster.state(name))

        if not self._try(f"ask after {name}", ask):
            return False
        (state,) = found
        gone = state.running is Running.ABSENT and not state.answering
        if (drain.failed or _broken(state)) and not gone:
            self._try(f"stop {name}", partial(self._cluster.stop, name))
            self._started.pop(name, None)
            return False
        with self._lock:
            held.drained(drain)
        return True

    def _act(self, held: Holding, now: int) -> None:
        """Aliases that are to be set, applications that are to be taken down."""
        if not self.away and not held.unrecorded:  # what is not recorded is not done either
            for action in held.course.open:
                if self._due(action.id, now):
                    self._set_alias(held, action, now)
        wanted = held.wanted()
        for drain in held.course.drains:
            name = drain.application
            if name not in wanted:
                if drain.due_ms > now or not self._due(f"stop {name}", now):
                    continue
                if not self._try(f"stop {name}", partial(self._cluster.stop, name)):
                    continue
                self._started.pop(name, None)
                with self._lock:
                    held.drained(drain)

    def _set_alias(self, held: Holding, action: OpenAction, now: int) -> None:
        name = held.record.model_name
        what, trouble = f"models:/{name}@{action.alias}", ""
        try:
            self._store.set_alias(name, action.alias, action.version)
        except (RefusedError, VerificationError, NotFoundError) as error:
            trouble = f"{what} was not set to version {action.version}: {error.message}"
        except LedgerError as error:  # it is set; only its checkpoint is late
            trouble = f"{what} was set to version {action.version}, but {error.message}"
        except Exception as error:  # noqa: BLE001 - away, in whatever way: tried again
            _log.warning("%s cannot be set now: %r", what, error)
            return
        with self._lock:
            held.alias_done(action, trouble, now)

    def _take_down(self, held: Holding, now: int) -> None:
        """The deployment was ended: nothing of it stays."""
        record = held.record
        with self._lock:
            held.shut(f"the deployment was ended by {record.ended_by}")
            held.publish()
            progress = held.progress()
        names = held.applications() | set(self._started)
        if not self._due("take down", now):
            return
        acts = [partial(self._cluster.close, record)]
        acts += [partial(self._cluster.stop, name) for name in sorted(names)]
        if not all(self._try("take it down", act) for act in acts):
            return
        if self._save(held, replace(progress, stopped=True), now) is not None:
            self.finished = True
            self._lose("the deployment was taken down")


def _gone(state: VariantState | None) -> bool:
    return state is not None and state.running is Running.ABSENT


def _broken(state: VariantState) -> bool:
    return state.running in (Running.UNHEALTHY, Running.REFUSED)
