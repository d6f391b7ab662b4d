"""What a controller writes of a deployment: its lease, its state, its decisions.

Any number of controllers may be there; the one with the lease decides. A lease carries a *fence*, a
number that grows each time somebody takes it, and every write compares it: whoever was put aside
without noticing is refused, whatever its clock says. Signals are taken, and decisions appended, in
the transaction that saves the state that follows from them, so each counts once.

Every function works on the caller's connection, in the caller's transaction, and is one conditional
UPDATE at its heart: the same on SQLite and PostgreSQL, without savepoints.

Example::

    record = take_lease(connection, deploy_id, owner, now_ms=now, ttl_ms=3000)  # None: another's
    save(connection, ledger, record.deploy_id, record.fence, Progress(state=…, …), now_ms=now)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from governance.canonical import canonical_json, sha256_hex
from governance.database import deployment_signals, deployments, rollout_decisions
from governance.deployment_records import DeploymentRecord, Health, SignalKind, to_record
from governance.deployments import Recorder, by_id
from governance.errors import RefusedError
from governance.events import AuditEvent, EventName

__all__ = [
    "Alert",
    "AskedSignal",
    "Progress",
    "StoredDecision",
    "decision_event_id",
    "decisions_of",
    "open_signals",
    "release",
    "renew",
    "save",
    "standing",
    "take_lease",
]


@dataclass(frozen=True, slots=True)
class AskedSignal:
    """What somebody asked; ``rollout_id`` is the rollout that ran then, None: none."""

    number: int
    kind: SignalKind
    reason: str
    asked_by: str
    asked_ms: int
    rollout_id: str | None


@dataclass(frozen=True, slots=True)
class StoredDecision:
    """A decision that changed a rollout.

    Attributes:
        rollout_id: Which.
        number: Of the transition.
        document: The decision as JSON, without floats; its numbers are in it.
        ended: Whether the rollout ended with it.
        promoted: Whether the canary is stable now.
    """

    rollout_id: str
    number: int
    document: Mapping[str, Any]
    ended: bool = False
    promoted: bool = False

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the document's canonical JSON."""
        return sha256_hex(canonical_json(dict(self.document)))


def decision_event_id(rollout_id: str, number: int) -> str:
    """Id of the audit event of a decision: who knows the decision finds its entry in the ledger."""
    return sha256_hex(f"chancery.rollout-decision/{rollout_id}/{number}".encode())[:32]


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that people should see; ``id`` is the action's."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Progress:
    """What a controller saves at once.

    Attributes:
        state: Its document.
        plan_revision: Of the plan that goes with it.
        health: How stable does.
        closed: Why nobody answers; empty: they do.
        decisions: Those that are not saved yet, in order.
        taken: Numbers of the signals that the state has in it.
        alerts: Those that are not saved yet.
        stopped: Whether an ended deployment is taken down.
    """

    state: bytes
    plan_revision: int
    health: Health
    closed: str = ""
    decisions: tuple[StoredDecision, ...] = ()
    taken: tuple[int, ...] = ()
    alerts: tuple[Alert, ...] = ()
    stopped: bool = False


def take_lease(
    connection: Connection, deploy_id: str, owner: str, *, now_ms: int, ttl_ms: int
) -> DeploymentRecord | None:
    """The deployment, under a new fence; None while another's lease lasts.

    An ended deployment has leases until it is taken down.
    """
    row = connection.execute(
        update(deployments)
        .where(
            deployments.c.deploy_id == deploy_id,
            deployments.c.stopped_ms.is_(None),
            or_(deployments.c.lease_until_ms <= now_ms, deployments.c.lease_owner == owner),
        )
        .values(lease_owner=owner, lease_until_ms=now_ms + ttl_ms, fence=deployments.c.fence + 1)
        .returning(deployments)
    ).one_or_none()
    return None if row is None else to_record(row)


def standing(
    connection: Connection, *, without_lease_at_ms: int | None = None
) -> tuple[DeploymentRecord, ...]:
    """Deployments that are not taken down, oldest first; all, or those without a lease then."""
    query = select(deployments).where(deployments.c.stopped_ms.is_(None))
    if without_lease_at_ms is not None:
        query = query.where(deployments.c.lease_until_ms <= without_lease_at_ms)
    rows = connection.execute(query.order_by(deployments.c.created_ms, deployments.c.deploy_id))
    return tuple(to_record(row) for row in rows)


def renew(
    connection: Connection, deploy_id: str, fence: int, *, now_ms: int, ttl_ms: int
) -> DeploymentRecord:
    """Keep the lease; the deployment as it is now. Late is not too late while nobody took it.

    Raises:
        RefusedError: somebody did.
    """
    row = connection.execute(
        update(deployments)
        .where(deployments.c.deploy_id == deploy_id, deployments.c.fence == fence)
        .values(lease_until_ms=now_ms + ttl_ms)
        .returning(deployments)
    ).one_or_none()
    if row is None:
        raise _put_aside(by_id(connection, deploy_id), fence)
    return to_record(row)


def release(connection: Connection, deploy_id: str, fence: int) -> None:
    """Let others have it at once; nothing happens when they do already."""
    connection.execute(
        update(deployments)
        .where(deployments.c.deploy_id == deploy_id, deployments.c.fence == fence)
        .values(lease_until_ms=0)
    )


def save(
    connection: Connection,
    ledger: Recorder,
    deploy_id: str,
    fence: int,
    progress: Progress,
    *,
    now_ms: int,
) -> DeploymentRecord:
    """Save a controller's progress; saving the same once more changes nothing.

    Raises:
        RefusedError: the fence is not the present one; nothing was written.
    """
    row = connection.execute(
        update(deployments)
        .where(deployments.c.deploy_id == deploy_id, deployments.c.fence == fence)
        .values(
            state=progress.state,
            plan_revision=progress.plan_revision,
            health=progress.health.value,
            closed=progress.closed,
            saved_ms=now_ms,
            **({"stopped_ms": now_ms, "lease_until_ms": 0} if progress.stopped else {}),
        )
        .returning(deployments)
    ).one_or_none()
    if row is None:
        raise _put_aside(by_id(connection, deploy_id), fence)
    record = to_record(row)
    for number in progress.taken:
        connection.execute(
            update(deployment_signals)
            .where(
                deployment_signals.c.deploy_id == deploy_id,
                deployment_signals.c.number == number,
                deployment_signals.c.taken_ms.is_(None),
            )
            .values(taken_ms=now_ms)
        )
    for decision in progress.decisions:
        record = _append(connection, ledger, record, decision)
    for alert in progress.alerts:
        data = {"alertId": alert.id, "text": alert.text, "route": record.route}
        ledger.record(
            connection, AuditEvent.now(EventName.DEPLOYMENT_ALERTED, record.subject, data)
        )
    return record


def _append(
    connection: Connection, ledger: Recorder, record: DeploymentRecord, decision: StoredDecision
) -> DeploymentRecord:
    """A decision, once; its end of the rollout with it."""
    upsert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    document = decision.document
    added = connection.execute(
        upsert(rollout_decisions)
        .values(
            rollout_id=decision.rollout_id,
            number=decision.number,
            deploy_id=record.deploy_id,
            outcome=document["outcome"],
            at_ms=document["atMs"],
            digest=decision.digest,
            document=json.dumps(dict(document), sort_keys=True),
        )
        .on_conflict_do_nothing()
        .returning(rollout_decisions.c.number)
    ).scalar_one_or_none()
    if added is None:
        return record
    canary = record.canary if record.rollout_id == decision.rollout_id else None
    event = AuditEvent.now(
        EventName.ROLLOUT_DECIDED,
        record.subject,
        {
            "rolloutId": decision.rollout_id,
            "number": decision.number,
            "digest": decision.digest,
            "route": record.route,
            "environment": record.environment,
            "model": None if canary is None else record.uri_of(canary),
            "versionUid": None if canary is None else canary.version_uid,
            "rootDigest": None if canary is None else canary.root_digest,
            "stable": record.uri_of(record.stable),
            "fence": record.fence,
            "decision": dict(document),
        },
    )
    identifier = decision_event_id(decision.rollout_id, decision.number)
    ledger.record(connection, replace(event, id=identifier))
    return _end_rollout(connection, record, decision) if decision.ended else record


def _end_rollout(
    connection: Connection, record: DeploymentRecord, decision: StoredDecision
) -> DeploymentRecord:
    columns = deployments.c
    values: dict[str, Any] = {f"canary_{name}": None for name in ("version", "uid", "digest")}
    if decision.promoted:
        for name in ("version", "uid", "digest"):
            values[f"previous_{name}"] = columns[f"stable_{name}"]
            values[f"stable_{name}"] = columns[f"canary_{name}"]
    row = connection.execute(
        update(deployments)
        .where(
            columns.deploy_id == record.deploy_id,
            columns.rollout_id == decision.rollout_id,
            columns.canary_uid.is_not(None),
        )
        .values(**values)
        .returning(deployments)
    ).one_or_none()
    return record if row is None else to_record(row)


def open_signals(connection: Connection, deploy_id: str) -> tuple[AskedSignal, ...]:
    """What was asked and is not taken yet, in its order."""
    rows = connection.execute(
        select(deployment_signals)
        .where(deployment_signals.c.deploy_id == deploy_id, deployment_signals.c.taken_ms.is_(None))
        .order_by(deployment_signals.c.number)
    )
    return tuple(
        AskedSignal(
            row.number,
            SignalKind(row.kind),
            row.reason,
            row.asked_by,
            row.asked_ms,
            row.rollout_id,
        )
        for row in rows
    )


def decisions_of(
    connection: Connection, deploy_id: str, *, limit: int = 100
) -> tuple[StoredDecision, ...]:
    """The newest decisions, oldest first."""
    rows = connection.execute(
        select(rollout_decisions)
        .where(rollout_decisions.c.deploy_id == deploy_id)
        .order_by(rollout_decisions.c.at_ms.desc(), rollout_decisions.c.number.desc())
        .limit(limit)
    ).all()
    return tuple(
        StoredDecision(row.rollout_id, row.number, json.loads(row.document))
        for row in reversed(rows)
    )


def _put_aside(record: DeploymentRecord, fence: int) -> RefusedError:
    return RefusedError(
        f"the lease {fence} of deployment {record.deploy_id[:12]} is not the present one: "
        f"{record.lease_owner or 'nobody'} has lease {record.fence}",
        "leave the deployment to that controller",
        subject=record.subject,
    )
