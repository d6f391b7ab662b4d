"""What governance knows of a deployment: the records that commands, controllers and pages share.

Example::

    record = to_record(row)
    record.status, record.uri_of(record.stable)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Row

from governance.arms import ExperimentRecord, ServedVersion, ShadowRecord

__all__ = [
    "DeploymentRecord",
    "DeploymentStatus",
    "Health",
    "NewDeployment",
    "NewRollout",
    "ServedVersion",
    "SignalKind",
    "time_text",
    "to_record",
]


class Health(StrEnum):
    """How stable does, as the controller saw it last."""

    STARTING = "starting"
    SERVING = "serving"
    UNHEALTHY = "unhealthy"


class DeploymentStatus(StrEnum):
    """Where a deployment stands."""

    STARTING = "starting"
    SERVING = "serving"
    ROLLING_OUT = "rolling_out"
    EXPERIMENTING = "experimenting"
    UNHEALTHY = "unhealthy"
    CLOSED = "closed"
    ENDED = "ended"


class SignalKind(StrEnum):
    """What people may ask of a deployment."""

    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    ROLLBACK = "rollback"
    QUARANTINE = "quarantine"
    WARM = "warm"

    @property
    def of_a_rollout(self) -> bool:
        """Whether it means a rollout that runs, and nothing without one."""
        return self not in (SignalKind.QUARANTINE, SignalKind.WARM)


@dataclass(frozen=True, slots=True)
class NewDeployment:
    """What is asked for.

    Attributes:
        deploy_id: A fresh id.
        route: Where clients reach it; unique among live deployments.
        environment: Whose gate the versions passed.
        model_uid: Incarnation of the registered model.
        model_name: Its name.
        stable: The version that answers.
        resources: Replicas and what each needs; JSON without floats.
        provenance: Where the version came from and who let it in; JSON without floats.
        node_pool: Pool of nodes; None: any.
        port: Where its listeners listen; nobody else's.
        metrics_endpoint: Where its metrics are read; None: nowhere.
    """

    deploy_id: str
    route: str
    environment: str
    model_uid: str
    model_name: str
    stable: ServedVersion
    resources: Mapping[str, Any]
    provenance: Mapping[str, Any]
    node_pool: str | None = None
    port: int | None = None
    metrics_endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class NewRollout:
    """A canary to begin: a fresh id, and its configuration (JSON text, checked by the caller)."""

    rollout_id: str
    config: str
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DeploymentRecord:
    """A deployment.

    Attributes:
        deploy_id: Its id.
        route: Where clients reach it.
        environment: Whose gate applies.
        model_uid: Incarnation of the registered model.
        model_name: Its name when it was deployed.
        stable: The version that answers.
        canary: The version that is rolled out; None when no rollout runs.
        previous: What the last promotion replaced.
        rollout_id: The rollout that runs, or the last one.
        canary_config: Its configuration, JSON text.
        rollout_by: Who began it.
        rollout_ms: When.
        node_pool: Pool of nodes; None: any.
        resources: Replicas and what each needs.
        provenance: Where stable came from and who let it in.
        port: Where its listeners listen.
        metrics_endpoint: Where its metrics are read.
        health: How stable does.
        closed: Why nobody answers; empty: they do.
        state: The controller's document; None before the first.
        plan_revision: Of the plan that goes with it.
        saved_ms: When the controller wrote it.
        lease_owner: Which controller has, or had, the lease.
        lease_until_ms: Until when.
        fence: Grows with each lease; who writes with an older one is refused.
        created_by: Who deployed it.
        created_ms: When.
        ended_by: Who ended it.
        ended_reason: Why.
        ended_ms: When; None while it lives.
        stopped_ms: When the controller had taken it down.
        experiment: The experiment that runs; None: none.
        shadow: The version that gets copies of requests; None: none.
    """

    deploy_id: str
    route: str
    environment: str
    model_uid: str
    model_name: str
    stable: ServedVersion
    canary: ServedVersion | None
    previous: ServedVersion | None
    rollout_id: str | None
    canary_config: str | None
    rollout_by: str | None
    rollout_ms: int | None
    node_pool: str | None
    resources: Mapping[str, Any]
    provenance: Mapping[str, Any]
    port: int | None
    metrics_endpoint: str | None
    health: Health
    closed: str
    state: bytes | None
    plan_revision: int
    saved_ms: int | None
    lease_owner: str | None
    lease_until_ms: int
    fence: int
    created_by: str
    created_ms: int
    ended_by: str | None = None
    ended_reason: str | None = None
    ended_ms: int | None = None
    stopped_ms: int | None = None
    experiment: ExperimentRecord | None = None
    shadow: ShadowRecord | None = None

    @property
    def subject(self) -> str:
        """Its URI in events."""
        return f"deployments:/{self.deploy_id}"

    @property
    def served(self) -> tuple[ServedVersion, ...]:
        """Every version that answers or gets copies, whatever it is called."""
        arms = () if self.experiment is None else tuple(arm.served for arm in self.experiment.arms)
        shadow = None if self.shadow is None else self.shadow.served
        found = (self.stable, self.canary, *arms, shadow)
        return tuple(dict.fromkeys(one for one in found if one is not None))

    @property
    def status(self) -> DeploymentStatus:
        if self.ended_ms is not None:
            return DeploymentStatus.ENDED
        if self.closed:
            return DeploymentStatus.CLOSED
        if self.canary is not None:
            return DeploymentStatus.ROLLING_OUT
        if self.experiment is not None:
            return DeploymentStatus.EXPERIMENTING
        return DeploymentStatus(self.health.value)

    def uri_of(self, served: ServedVersion) -> str:
        """``models:/name/version``."""
        return f"models:/{self.model_name}/{served.version}"

    def to_dict(self) -> dict[str, Any]:
        """The *deployment* of ``--json`` and of the REST API."""
        return {
            "deployId": self.deploy_id,
            "modelId": self.model_name,
            "modelUid": self.model_uid,
            "version": self.stable.version,
            "canaryVersion": self.canary.version if self.canary else None,
            "previousVersion": self.previous.version if self.previous else None,
            "env": self.environment,
            "route": self.route,
            "port": self.port,
            "nodePool": self.node_pool,
            "resources": dict(self.resources),
            "status": self.status.value,
            "closed": self.closed,
            "canaryConfig": None if self.canary_config is None else json.loads(self.canary_config),
            "rolloutId": self.rollout_id,
            "experiment": None if self.experiment is None else self.experiment.to_dict(),
            "shadow": None if self.shadow is None else self.shadow.to_dict(),
            "planRevision": self.plan_revision,
            "controller": self.lease_owner,
            "savedMs": self.saved_ms,
            "createdAt": time_text(self.created_ms),
            "createdBy": self.created_by,
            "endedAt": None if self.ended_ms is None else time_text(self.ended_ms),
            "provenance": dict(self.provenance),
            "metricsEndpoint": self.metrics_endpoint,
        }


def time_text(ms: int) -> str:
    """A time as people and JSON read it: ISO 8601, UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _served(row: Row[Any], variant: str) -> ServedVersion | None:
    found = row._mapping
    if found[f"{variant}_uid"] is None:
        return None
    return ServedVersion(
        found[f"{variant}_version"], found[f"{variant}_uid"], found[f"{variant}_digest"]
    )


def to_record(row: Row[Any]) -> DeploymentRecord:
    """A row of ``chancery_deployments``."""
    stable = _served(row, "stable")
    assert stable is not None  # the columns are not nullable
    return DeploymentRecord(
        deploy_id=row.deploy_id,
        route=row.route,
        environment=row.environment,
        model_uid=row.model_uid,
        model_name=row.model_name,
        stable=stable,
        canary=_served(row, "canary"),
        previous=_served(row, "previous"),
        rollout_id=row.rollout_id,
        canary_config=row.canary_config,
        rollout_by=row.rollout_by,
        rollout_ms=row.rollout_ms,
        node_pool=row.node_pool,
        resources=json.loads(row.resources),
        provenance=json.loads(row.provenance),
        port=row.port,
        metrics_endpoint=row.metrics_endpoint,
        health=Health(row.health),
        closed=row.closed,
        state=None if row.state is None else bytes(row.state),
        plan_revision=row.plan_revision,
        saved_ms=row.saved_ms,
        lease_owner=row.lease_owner,
        lease_until_ms=row.lease_until_ms,
        fence=row.fence,
        created_by=row.created_by,
        created_ms=row.created_ms,
        ended_by=row.ended_by,
        ended_reason=row.ended_reason,
        ended_ms=row.ended_ms,
        stopped_ms=row.stopped_ms,
        experiment=None if row.experiment is None else ExperimentRecord.from_json(row.experiment),
        shadow=None if row.shadow is None else ShadowRecord.from_json(row.shadow),
    )
