"""Deployments in our tables: a route, the versions behind it, and what people ask of it.

One live deployment a route, one rollout a deployment at a time: of two people who deploy at once
one wins, and the other is told who was first and when. What the controller writes (leases, state,
decisions) is in ``governance.deployment_control``.

Every function works on the caller's connection, in the caller's transaction, and records its audit
event there. Whether a version may be deployed is decided by the gate before (``mlflow_plugins``).

Example::

    with engine.begin() as connection:
        record = create(connection, ledger, new, now_ms=now)
        record = begin_canary(connection, ledger, record, version, new_rollout, now_ms=now)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from sqlalchemy import Row, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from governance.database import deployment_signals, deployments
from governance.deployment_records import (
    DeploymentRecord,
    Health,
    NewDeployment,
    NewRollout,
    ServedVersion,
    SignalKind,
    time_text,
    to_record,
)
from governance.errors import ConflictError, NotFoundError, RefusedError
from governance.events import AuditEvent, EventName
from governance.identity import current_actor

__all__ = [
    "Recorder",
    "ask",
    "begin_canary",
    "by_id",
    "create",
    "end",
    "find",
    "holder_of",
    "list_deployments",
    "live_on",
    "route_taken",
    "scale",
]


class Recorder(Protocol):
    """Puts an event into the ledger's outbox, in the caller's transaction (``Ledger``)."""

    def record(self, connection: Connection, event: AuditEvent) -> str: ...


def create(
    connection: Connection, ledger: Recorder, new: NewDeployment, *, now_ms: int
) -> DeploymentRecord:
    """Take the route.

    Raises:
        ConflictError: somebody has it, or the port; says who and since when.
    """
    upsert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    added = connection.execute(
        upsert(deployments)
        .values(
            deploy_id=new.deploy_id,
            route=new.route,
            environment=new.environment,
            model_uid=new.model_uid,
            model_name=new.model_name,
            node_pool=new.node_pool,
            resources=json.dumps(new.resources, sort_keys=True),
            provenance=json.dumps(new.provenance, sort_keys=True),
            port=new.port,
            metrics_endpoint=new.metrics_endpoint,
            created_by=current_actor().id,
            created_ms=now_ms,
            health=Health.STARTING.value,
            closed="",
            plan_revision=0,
            signals=0,
            lease_until_ms=0,
            fence=0,
            **_columns("stable", new.stable),
        )
        .on_conflict_do_nothing()
        .returning(deployments.c.deploy_id)
    ).scalar_one_or_none()
    if added is None:
        raise _not_free(connection, new)
    record = by_id(connection, new.deploy_id)
    ledger.record(
        connection,
        AuditEvent.now(
            EventName.DEPLOYMENT_CREATED,
            record.subject,
            {
                "route": new.route,
                "environment": new.environment,
                "model": record.uri_of(new.stable),
                **_identity(new.stable),
                "resources": dict(new.resources),
                "nodePool": new.node_pool,
                "provenance": dict(new.provenance),
            },
        ),
    )
    return record


def _not_free(connection: Connection, new: NewDeployment) -> ConflictError:
    live = live_on(connection, new.route)
    other = None if live is not None else holder_of(connection, new.port)
    if other is None:
        return route_taken(live, new.route)
    return ConflictError(
        f"port {new.port} belongs to the route {other.route!r}, which {other.created_by} deployed "
        f"at {time_text(other.created_ms)}",
        "choose another --port, or leave it out",
        subject=other.subject,
    )


def holder_of(connection: Connection, port: int | None) -> DeploymentRecord | None:
    """Whose listeners have the port, or still had it a moment ago."""
    row = connection.execute(
        select(deployments).where(deployments.c.port == port, deployments.c.stopped_ms.is_(None))
    ).one_or_none()
    return None if row is None else to_record(row)


def route_taken(taken: DeploymentRecord | None, route: str) -> ConflictError:
    """What whoever came second is told."""
    if taken is None:
        return ConflictError(
            f"the route {route!r} was taken and given back at this moment", "deploy again"
        )
    return ConflictError(
        f"the route {route!r} is taken: {taken.created_by} deployed "
        f"{taken.uri_of(taken.stable)} there at {time_text(taken.created_ms)} "
        f"(deployment {taken.deploy_id[:12]})",
        "choose another --route, bring a new version as its canary with --canary, or end it with "
        f"`chancery deploy delete {taken.deploy_id[:12]}`",
        subject=taken.subject,
    )


def begin_canary(
    connection: Connection,
    ledger: Recorder,
    record: DeploymentRecord,
    canary: ServedVersion,
    new: NewRollout,
    *,
    now_ms: int,
) -> DeploymentRecord:
    """Let a version be rolled out beside stable.

    Raises:
        ConflictError: a rollout or an experiment runs (says who began it and when), the version
            answers already, or nobody answers on the route.
    """
    added = connection.execute(
        update(deployments)
        .where(
            deployments.c.deploy_id == record.deploy_id,
            deployments.c.ended_ms.is_(None),
            deployments.c.canary_uid.is_(None),
            deployments.c.experiment_id.is_(None),
            deployments.c.stable_uid != canary.version_uid,
            deployments.c.closed == "",
        )
        .values(
            rollout_id=new.rollout_id,
            canary_config=new.config,
            rollout_by=current_actor().id,
            rollout_ms=now_ms,
            **_columns("canary", canary),
        )
        .returning(deployments.c.deploy_id)
    ).scalar_one_or_none()
    after = by_id(connection, record.deploy_id)
    if added is None:
        raise _no_rollout_now(after, canary)
    ledger.record(
        connection,
        AuditEvent.now(
            EventName.ROLLOUT_STARTED,
            after.subject,
            {
                "rolloutId": new.rollout_id,
                "route": after.route,
                "environment": after.environment,
                "model": after.uri_of(canary),
                **_identity(canary),
                "stable": after.uri_of(after.stable),
                "config": new.config,
                "provenance": dict(new.provenance),
            },
        ),
    )
    return after


def _no_rollout_now(record: DeploymentRecord, canary: ServedVersion) -> ConflictError:
    short = record.deploy_id[:12]
    if record.ended_ms is not None:
        why = f"the deployment {short} was ended by {record.ended_by}", "deploy the version anew"
    elif record.canary is not None:
        why = (
            f"a rollout of {record.uri_of(record.canary)} runs on the route {record.route!r}: "
            f"{record.rollout_by} began it at {time_text(record.rollout_ms or 0)}",
            f"wait for its end, or `chancery deploy abort {record.route}`",
        )
    elif record.experiment is not None:
        running = record.experiment
        why = (
            f"the experiment {running.name!r} runs on the route {record.route!r}: "
            f"{running.begun_by} began it at {time_text(running.begun_ms)}; a rollout and an "
            "experiment would each change what the other compares",
            f"`chancery deploy experiment {record.route} --end` first, with --keep ARM to roll "
            "that arm out",
        )
    elif record.stable.version_uid == canary.version_uid:
        why = (
            f"{record.uri_of(canary)} answers on the route {record.route!r} already",
            "name another version",
        )
    else:
        why = (
            f"nobody answers on the route {record.route!r}, so there is nothing to compare with: "
            f"{record.closed}",
            f"`chancery deploy delete {record.route}`, and deploy a version that may answer",
        )
    return ConflictError(*why, subject=record.subject)


def find(connection: Connection, name: str) -> DeploymentRecord:
    """By id, by a unique prefix of at least six digits of it, or by the route while it lives.

    Raises:
        NotFoundError: there is none, or several have such an id.
    """
    record = live_on(connection, name)
    if record is not None:
        return record
    prefix = name.lower()
    rows: list[Row[Any]] = []
    if len(prefix) >= 6 and all(c in "0123456789abcdef" for c in prefix):
        matching = deployments.c.deploy_id.startswith(prefix)
        rows = list(connection.execute(select(deployments).where(matching).limit(2)))
    if len(rows) != 1:
        raise NotFoundError(
            f"{'more than one' if rows else 'no'} deployment has the route or id {name!r}",
            "`chancery deploy list` shows those there are",
        )
    return to_record(rows[0])


def by_id(connection: Connection, deploy_id: str) -> DeploymentRecord:
    """By the whole id.

    Raises:
        NotFoundError: there is none.
    """
    row = connection.execute(
        select(deployments).where(deployments.c.deploy_id == deploy_id)
    ).one_or_none()
    if row is None:
        raise NotFoundError(
            f"there is no deployment {deploy_id}", "`chancery deploy list` shows those there are"
        )
    return to_record(row)


def live_on(connection: Connection, route: str) -> DeploymentRecord | None:
    """What answers on the route."""
    row = connection.execute(
        select(deployments).where(deployments.c.route == route, deployments.c.ended_ms.is_(None))
    ).one_or_none()
    return None if row is None else to_record(row)


def list_deployments(
    connection: Connection, *, ended: bool = False, limit: int = 100
) -> list[DeploymentRecord]:
    """Newest first; those that were ended only when asked for."""
    query = select(deployments).order_by(deployments.c.created_ms.desc()).limit(limit)
    if not ended:
        query = query.where(deployments.c.ended_ms.is_(None))
    return [to_record(row) for row in connection.execute(query)]


def scale(
    connection: Connection,
    ledger: Recorder,
    record: DeploymentRecord,
    resources: Mapping[str, Any],
) -> DeploymentRecord:
    """Give each variant other resources.

    Raises:
        RefusedError: the deployment was ended.
    """
    changed = connection.execute(
        update(deployments)
        .where(deployments.c.deploy_id == record.deploy_id, deployments.c.ended_ms.is_(None))
        .values(resources=json.dumps(resources, sort_keys=True))
        .returning(deployments.c.deploy_id)
    ).scalar_one_or_none()
    if changed is None:
        raise _ended(by_id(connection, record.deploy_id))
    data = {"from": dict(record.resources), "to": dict(resources)}
    ledger.record(connection, AuditEvent.now(EventName.DEPLOYMENT_SCALED, record.subject, data))
    return by_id(connection, record.deploy_id)


def ask(
    connection: Connection,
    ledger: Recorder,
    record: DeploymentRecord,
    kind: SignalKind,
    reason: str,
    *,
    now_ms: int,
) -> int:
    """Leave a signal for the controller; its number.

    Numbers are given under the deployment's row lock: they are seen in their order.

    Raises:
        RefusedError: the deployment was ended, or no rollout runs that could be meant.
    """
    live = deployments.c.deploy_id == record.deploy_id, deployments.c.ended_ms.is_(None)
    needs = (deployments.c.canary_uid.is_not(None),) if kind.of_a_rollout else ()
    row = connection.execute(
        update(deployments)
        .where(*live, *needs)
        .values(signals=deployments.c.signals + 1)
        .returning(deployments.c.signals, deployments.c.rollout_id, deployments.c.canary_uid)
    ).one_or_none()
    if row is None:
        after = by_id(connection, record.deploy_id)
        if after.ended_ms is not None:
            raise _ended(after)
        raise RefusedError(
            f"no rollout runs on the route {after.route!r}, so there is nothing to {kind.value}",
            "`chancery deploy show` tells what the last one came to",
            subject=after.subject,
        )
    rollout = row.rollout_id if row.canary_uid is not None else None
    connection.execute(
        insert(deployment_signals).values(
            deploy_id=record.deploy_id,
            number=row.signals,
            kind=kind.value,
            reason=reason,
            asked_by=current_actor().id,
            asked_ms=now_ms,
            rollout_id=rollout,
        )
    )
    ledger.record(
        connection,
        AuditEvent.now(
            EventName.ROLLOUT_SIGNALLED,
            record.subject,
            {
                "signal": kind.value,
                "number": row.signals,
                "reason": reason,
                "route": record.route,
                "rolloutId": rollout,
            },
        ),
    )
    return int(row.signals)


def end(
    connection: Connection, ledger: Recorder, record: DeploymentRecord, reason: str, *, now_ms: int
) -> DeploymentRecord:
    """Free the route; the controller then takes the deployment down.

    Raises:
        RefusedError: it was ended already; says by whom.
    """
    ended = connection.execute(
        update(deployments)
        .where(deployments.c.deploy_id == record.deploy_id, deployments.c.ended_ms.is_(None))
        .values(ended_by=current_actor().id, ended_reason=reason, ended_ms=now_ms)
        .returning(deployments.c.deploy_id)
    ).scalar_one_or_none()
    after = by_id(connection, record.deploy_id)
    if ended is None:
        raise _ended(after)
    ledger.record(
        connection,
        AuditEvent.now(
            EventName.DEPLOYMENT_ENDED,
            after.subject,
            {
                "route": after.route,
                "environment": after.environment,
                "model": after.uri_of(after.stable),
                "canary": None if after.canary is None else after.uri_of(after.canary),
                "rolloutId": None if after.canary is None else after.rollout_id,
                "experiment": None if after.experiment is None else after.experiment.name,
                "shadow": None if after.shadow is None else after.uri_of(after.shadow.served),
                "reason": reason,
            },
        ),
    )
    return after


def _ended(record: DeploymentRecord) -> ConflictError:
    return ConflictError(
        f"the deployment {record.deploy_id[:12]} on the route {record.route!r} was ended by "
        f"{record.ended_by} at {time_text(record.ended_ms or 0)}",
        "`chancery deploy list` shows those that live",
        subject=record.subject,
    )


def _columns(variant: str, served: ServedVersion) -> dict[str, Any]:
    return {
        f"{variant}_version": served.version,
        f"{variant}_uid": served.version_uid,
        f"{variant}_digest": served.root_digest,
    }


def _identity(served: ServedVersion) -> dict[str, str]:
    """What binds an event to the bytes."""
    return {"versionUid": served.version_uid, "rootDigest": served.root_digest}
