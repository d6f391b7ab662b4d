"""A small world for the controller: a clock, a cluster, a gate and traffic, on the real tables."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.engine import Connection

from governance import deployment_arms, deployment_control, deployments
from governance.arms import ArmRecord, ExperimentRecord, ShadowRecord, stretched
from governance.database import metadata
from governance.deployment_control import Progress
from governance.deployment_port import Look
from governance.deployment_records import (
    DeploymentRecord,
    NewDeployment,
    NewRollout,
    ServedVersion,
    SignalKind,
)
from governance.deployment_resources import Scale
from governance.errors import NotFoundError
from governance.events import AuditEvent
from serve.cluster import Running, VariantSpec, VariantState
from serve.controller import Controller
from serve.course import Course
from serve.delta import Delta, ErrorClass, bucket_of
from serve.holding import Timing
from serve.plan import Plan, Report
from serve.records import Phase

CONFIG = (
    '{"version":1,"steps":[10.0,100.0],"min_samples":20,"min_seconds":2.0,"max_seconds":3600.0,'
    '"analysis":{"latency":null},'
    '"on_success":{"promote_alias":"champion"},"on_rollback":{"restore_alias":"champion"}}'
)
STEP = 250


@dataclass
class Ledger:
    events: list[AuditEvent] = field(default_factory=list)

    def record(self, connection: Connection, event: AuditEvent) -> str:
        self.events.append(event)
        return event.id

    def names(self) -> list[str]:
        return [event.name.value for event in self.events]


class Store:
    """``Deployments`` on a SQLite file, with switches for what may fail."""

    def __init__(self, path: Path) -> None:
        self.engine = create_engine(f"sqlite:///{path}/deployments.db")
        metadata.create_all(self.engine)
        self.ledger = Ledger()
        self.away = False
        self.lose_answers = False
        self.revoked: dict[str, str] = {}
        self.alias_error: Exception | None = None
        self.aliases: list[tuple[str, int]] = []
        self.saves = 0

    def _there(self) -> None:
        if self.away:
            raise OSError("the database is away")

    def create(self) -> DeploymentRecord:
        new = NewDeployment(
            uuid.uuid4().hex, "fraud", "prod", "m" * 32, "fraud", served(1), {"replicas": 2},
            {"signers": ["alice"]},
        )  # fmt: skip
        with self.engine.begin() as connection:
            return deployments.create(connection, self.ledger, new, now_ms=0)

    def canary(
        self, record: DeploymentRecord, version: int = 2, config: str = CONFIG
    ) -> DeploymentRecord:
        new = NewRollout(uuid.uuid4().hex, config, {})
        with self.engine.begin() as connection:
            return deployments.begin_canary(
                connection, self.ledger, record, served(version), new, now_ms=0
            )

    def experiment(
        self, record: DeploymentRecord, weights: Mapping[str, str], versions: Mapping[str, int]
    ) -> DeploymentRecord:
        """Begin it, or change its shares."""
        with self.engine.begin() as connection:
            if record.experiment is not None:
                return deployment_arms.change_experiment(connection, self.ledger, record, weights)
            arms = tuple(ArmRecord(n, served(versions[n]), w) for n, w in weights.items())
            new = ExperimentRecord(
                uuid.uuid4().hex, "ab", "header:x-user", arms, stretched(weights), "ann", 5
            )
            return deployment_arms.begin_experiment(connection, self.ledger, record, new, {})

    def end_experiment(self, record: DeploymentRecord, keep: str | None = None) -> DeploymentRecord:
        with self.engine.begin() as connection:
            return deployment_arms.end_experiment(connection, self.ledger, record, "so", keep)

    def shadow(
        self, record: DeploymentRecord, version: int, percent: str = "100"
    ) -> DeploymentRecord:
        """Begin it, or change its settings."""
        new = ShadowRecord(uuid.uuid4().hex, served(version), percent, 8, "2", True, "ann", 5)
        with self.engine.begin() as connection:
            if record.shadow is not None:
                return deployment_arms.change_shadow(connection, self.ledger, record, new)
            return deployment_arms.begin_shadow(connection, self.ledger, record, new, {})

    def end_shadow(self, record: DeploymentRecord) -> DeploymentRecord:
        with self.engine.begin() as connection:
            return deployment_arms.end_shadow(connection, self.ledger, record, "so")

    def find(self, name: str) -> DeploymentRecord:
        with self.engine.connect() as connection:
            return deployments.find(connection, name)

    def ask(
        self, record: DeploymentRecord, kind: SignalKind, reason: str = "so", now_ms: int = 0
    ) -> None:
        with self.engine.begin() as connection:
            deployments.ask(connection, self.ledger, record, kind, reason, now_ms=now_ms)

    def scale(self, record: DeploymentRecord, **scale: Any) -> None:
        """With a scale as ``Scale.of`` takes it."""
        document = Scale.of(scale).to_document()
        resources = {**record.resources, "replicas": 1, "scale": document}
        with self.engine.begin() as connection:
            deployments.scale(connection, self.ledger, record, resources)

    def end(self, record: DeploymentRecord) -> None:
        with self.engine.begin() as connection:
            deployments.end(connection, self.ledger, record, "done", now_ms=0)

    def outcomes(self, record: DeploymentRecord) -> list[str]:
        with self.engine.connect() as connection:
            found = deployment_control.decisions_of(connection, record.deploy_id)
        return [decision.document["outcome"] for decision in found]

    # -- what the controller asks

    def _look(self, connection: Connection, record: DeploymentRecord) -> Look:
        return Look(
            record,
            deployment_control.open_signals(connection, record.deploy_id),
            dict(self.revoked),
        )

    def take(self, deploy_id: str, owner: str, *, now_ms: int, ttl_ms: int) -> Look | None:
        self._there()
        with self.engine.begin() as connection:
            record = deployment_control.take_lease(
                connection, deploy_id, owner, now_ms=now_ms, ttl_ms=ttl_ms
            )
            if record is None:
                if deployments.by_id(connection, deploy_id).stopped_ms is not None:
                    raise NotFoundError("taken down")
                return None
            return self._look(connection, record)

    def look(self, deploy_id: str, fence: int, *, now_ms: int, ttl_ms: int) -> Look:
        self._there()
        with self.engine.begin() as connection:
            record = deployment_control.renew(
                connection, deploy_id, fence, now_ms=now_ms, ttl_ms=ttl_ms
            )
            return self._look(connection, record)

    def save(
        self, deploy_id: str, fence: int, progress: Progress, *, now_ms: int
    ) -> DeploymentRecord:
        self._there()
        self.saves += 1
        with self.engine.begin() as connection:
            record = deployment_control.save(
                connection, self.ledger, deploy_id, fence, progress, now_ms=now_ms
            )
        if self.lose_answers:
            self.away = True
            raise OSError("the connection broke after the commit")
        return record

    def release(self, deploy_id: str, fence: int) -> None:
        self._there()
        with self.engine.begin() as connection:
            deployment_control.release(connection, deploy_id, fence)

    def set_alias(self, name: str, alias: str, version: int) -> bool:
        self._there()
        if self.alias_error is not None:
            raise self.alias_error
        self.aliases.append((alias, version))
        return True


class Cluster:
    """Applications that run at once, unless told otherwise."""

    def __init__(self) -> None:
        self.running: dict[str, VariantSpec] = {}
        self.states: dict[str, VariantState] = {}
        self.stopped: list[str] = []
        self.starts: list[VariantSpec] = []
        self.opened = self.closed = 0
        self.broken = self.unstoppable = False

    def _works(self) -> None:
        if self.broken:
            raise ConnectionError("no cluster")

    def open(self, record: DeploymentRecord) -> None:
        self._works()
        self.opened += 1

    def start(self, spec: VariantSpec) -> None:
        self._works()
        self.starts.append(spec)
        self.running[spec.application] = spec

    def state(self, application: str) -> VariantState:
        self._works()
        if application in self.states:
            return self.states[application]
        if application not in self.running:
            return VariantState(Running.ABSENT)
        count = int(self.running[application].resources["replicas"])
        return VariantState(Running.RUNNING, replicas=count, answering=count)

    def stop(self, application: str) -> None:
        self._works()
        if self.unstoppable:
            raise ConnectionError("it goes on")
        self.stopped.append(application)
        self.running.pop(application, None)
        self.states.pop(application, None)

    def close(self, record: DeploymentRecord) -> None:
        self._works()
        self.closed += 1


def served(version: int) -> ServedVersion:
    return ServedVersion(version, f"uid-{version}", f"{version:064x}")


class World:
    """A store, a cluster, a clock, controllers, and a gateway that reports."""

    def __init__(self, path: Path) -> None:
        self.now = 1_000_000
        self.store = Store(path)
        self.cluster = Cluster()
        self.record = self.store.create()
        self.sequence = 0
        self.controller = self.start("one")

    def start(self, owner: str) -> Controller:
        return Controller(
            self.record.deploy_id,
            self.store,  # type: ignore[arg-type]
            self.cluster,
            owner=owner,
            clock=lambda: self.now,
            timing=Timing(),
        )

    def begin(self, config: str = CONFIG, version: int = 2) -> None:
        self.record = self.store.canary(self.now_record, version, config)

    @property
    def now_record(self) -> DeploymentRecord:
        with self.store.engine.connect() as connection:
            return deployments.by_id(connection, self.record.deploy_id)

    @property
    def course(self) -> Course:
        state = self.now_record.state
        assert state is not None
        return Course.from_json(state)

    @property
    def phase(self) -> Phase:
        rollout = self.course.rollout
        assert rollout is not None
        return rollout.phase

    @property
    def stable_app(self) -> str:
        return self.app(1)

    def app(self, version: int) -> str:
        return f"{self.record.deploy_id[:12]}-v{version}"

    def report(
        self, canary: Delta | None = None, stable: Delta | None = None, *, lanes: int = 1
    ) -> Report:
        self.sequence += 1
        deltas = {name: d for name, d in (("canary", canary), ("stable", stable)) if d is not None}
        return Report("gateway", self.sequence, deltas, {"stable": 1, "canary": lanes})

    def tell(self, canary: Delta | None = None, stable: Delta | None = None) -> Plan:
        return self.controller.exchange(self.report(canary, stable))

    def pass_(
        self,
        seconds: float,
        *,
        bad: float = 0.0,
        rate: int = 10,
        controller: Controller | None = None,
    ) -> Plan:
        """Time with traffic at both variants; ``bad``: part of the canary's that fails."""
        plan = None
        acting = controller or self.controller
        for _ in range(int(seconds * 1000 / STEP)):
            self.now += STEP
            acting.tick(self.now)
            if acting.holding:
                plan = acting.exchange(self.report(good(rate, bad), good(rate)))
        assert plan is not None
        return plan

    def until(self, outcome: str) -> Plan:
        """Good traffic until this was decided."""
        for _ in range(400):
            plan = self.pass_(STEP / 1000)
            if outcome in self.store.outcomes(self.record):
                return plan
        raise AssertionError(f"never {outcome}")

    def idle(self, seconds: float, *controllers: Controller) -> None:
        for _ in range(int(seconds * 1000 / STEP)):
            self.now += STEP
            for controller in controllers or (self.controller,):
                controller.tick(self.now)


def good(requests: int, bad: float = 0.0) -> Delta:
    failed = round(requests * bad)
    errors = {ErrorClass.RAISED: failed} if failed else {}
    return Delta(requests, errors, {bucket_of(5.0): requests})


def weights(plan: Plan) -> dict[str, float]:
    return dict(plan.weights)


def versions(plan: Plan) -> dict[str, str]:
    return {variant.name: variant.version for variant in plan.variants}


def to_first_step(world: World) -> Plan:
    world.idle(1)
    world.begin()
    for _ in range(20):
        plan = world.pass_(0.25, rate=0)
        if "canary" in weights(plan):
            return plan
    raise AssertionError("the canary got no traffic")
