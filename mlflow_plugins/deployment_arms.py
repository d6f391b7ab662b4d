"""Experiments and shadows on a governed database: the gate, then ``governance.deployment_arms``.

Each arm passes the whole gate of the route's environment: where the policy asks for the verdict of
a canary there, an experiment is no way around it, for nothing rolls an arm back. A shadow passes
the gate as a canary does: its answers reach nobody, but it is handed what clients send.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from sqlalchemy.engine import Connection

from governance import deployment_arms, deployments
from governance.arms import (
    ArmRecord,
    ExperimentOrder,
    ExperimentRecord,
    ShadowOrder,
    ShadowRecord,
    stretched,
)
from governance.deployment_port import canaries
from governance.deployment_records import DeploymentRecord, NewRollout
from governance.errors import ConflictError
from governance.identity import current_actor
from mlflow_plugins.deployment_gate import Admitted, DeploymentGate
from mlflow_plugins.governor import Governor, now_ms

__all__ = ["DeploymentArms"]


Changing = Callable[[str], AbstractContextManager[tuple[Connection, Any, DeploymentRecord]]]
"""A transaction on a deployment: connection, ledger, record. What is refused in it is recorded."""


class DeploymentArms:
    """See the module.

    Args:
        governor: The database's governor.
        gate: Who may answer.
        refusals: Records what is refused of a subject.
        changing: A transaction on a deployment.
    """

    def __init__(
        self,
        governor: Governor,
        gate: DeploymentGate,
        refusals: Callable[[str], AbstractContextManager[None]],
        changing: Changing,
    ) -> None:
        self._governor = governor
        self._gate = gate
        self._refusals = refusals
        self._changing = changing

    def experiment(self, record: DeploymentRecord, order: ExperimentOrder) -> DeploymentRecord:
        """Begin it; or, where it runs with these arms, give them these shares."""
        self._governor.ledger.ensure_witnessed()
        with self._refusals(record.subject):
            admitted = {arm.name: self._admit(record, arm.model) for arm in order.arms}
        arms = tuple(
            ArmRecord(
                arm.name,
                admitted[arm.name].served,
                arm.weight,
                arm.timeout_seconds,
                arm.max_concurrency,
            )
            for arm in order.arms
        )
        running = record.experiment
        if running is not None and running.name == order.name:
            return self._reweigh(record, running, order, arms)
        new = ExperimentRecord(
            uuid.uuid4().hex,
            order.name,
            order.sticky,
            arms,
            stretched(order.weights),
            current_actor().id,
            now_ms(),
        )
        provenance = {name: dict(found.provenance) for name, found in admitted.items()}
        with self._changing(record.deploy_id) as (connection, ledger, present):
            after = deployment_arms.begin_experiment(connection, ledger, present, new, provenance)
        ledger.cover()
        return after

    def _reweigh(
        self,
        record: DeploymentRecord,
        running: ExperimentRecord,
        order: ExperimentOrder,
        arms: tuple[ArmRecord, ...],
    ) -> DeploymentRecord:
        same = running.sticky == order.sticky and {
            (arm.name, arm.served, arm.timeout_seconds, arm.max_concurrency) for arm in arms
        } == {
            (arm.name, arm.served, arm.timeout_seconds, arm.max_concurrency) for arm in running.arms
        }
        with self._changing(record.deploy_id) as (connection, ledger, present):
            if not same:
                raise ConflictError(
                    f"the experiment {running.name!r} runs on the route {record.route!r} with "
                    "other arms, another key or other limits: only shares change while it runs",
                    f"`chancery deploy experiment {record.route} --end` first, or name these arms: "
                    + ", ".join(f"{a.name}={record.uri_of(a.served)}" for a in running.arms),
                    subject=record.subject,
                )
            after = deployment_arms.change_experiment(connection, ledger, present, order.weights)
        ledger.cover()
        return after

    def end_experiment(
        self, record: DeploymentRecord, reason: str, keep: str | None, canary_config: str | None
    ) -> DeploymentRecord:
        """End it; roll out what is kept, unless that is stable already."""
        running = record.experiment
        arm = next((a for a in running.arms if a.name == keep), None) if running else None
        checks = canaries()
        config = checks.at_once() if canary_config is None else checks.checked(canary_config)
        kept: Admitted | None = None
        if arm is not None and arm.served != record.stable:
            self._governor.ledger.ensure_witnessed()
            with self._refusals(record.subject):
                kept = self._admit(record, record.uri_of(arm.served), as_canary=True)
        with self._changing(record.deploy_id) as (connection, ledger, present):
            # As it was when the arm passed the gate: whoever changed it meanwhile is told so.
            after = deployment_arms.end_experiment(
                connection, ledger, replace(present, experiment=running), reason, keep
            )
            if kept is not None:
                rollout = NewRollout(uuid.uuid4().hex, config, kept.provenance)
                after = deployments.begin_canary(
                    connection, ledger, after, kept.served, rollout, now_ms=now_ms()
                )
        ledger.cover()
        return after

    def shadow(self, record: DeploymentRecord, order: ShadowOrder) -> DeploymentRecord:
        """Begin it; or, where the version is the shadow already, give it these settings."""
        self._governor.ledger.ensure_witnessed()
        with self._refusals(record.subject):
            admitted = self._admit(record, order.model, as_canary=True)
        new = ShadowRecord(
            uuid.uuid4().hex,
            admitted.served,
            order.percent,
            order.max_in_flight,
            order.timeout_seconds,
            order.compare,
            current_actor().id,
            now_ms(),
        )
        with self._changing(record.deploy_id) as (connection, ledger, present):
            if present.shadow is not None and present.shadow.served == new.served:
                after = deployment_arms.change_shadow(connection, ledger, present, new)
            else:
                after = deployment_arms.begin_shadow(
                    connection, ledger, present, new, admitted.provenance
                )
        ledger.cover()
        return after

    def end_shadow(self, record: DeploymentRecord, reason: str) -> DeploymentRecord:
        """Send no more copies."""
        with self._changing(record.deploy_id) as (connection, ledger, present):
            after = deployment_arms.end_shadow(connection, ledger, present, reason)
        ledger.cover()
        return after

    def _admit(self, record: DeploymentRecord, model: str, *, as_canary: bool = False) -> Admitted:
        """A version that may answer where the route does."""
        name, version, _ = self._gate.resolve(model)
        return self._gate.admit_beside(record, name, version, as_canary=as_canary)
