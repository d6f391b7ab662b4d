"""Experiments and shadows of deployments, in our tables.

A route has a rollout or an experiment, never both: each would change what the other compares. A
shadow may be there beside either. The record says what is wanted; controllers follow it, and
whoever takes over reads the same.

Every function works on the caller's connection, in the caller's transaction, is one conditional
UPDATE at its heart, and records its audit event there. Whether a version may be an arm or a shadow
is decided by the gate before (``mlflow_plugins``).

Example::

    with engine.begin() as connection:
        record = begin_experiment(connection, ledger, record, experiment, provenance)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import update
from sqlalchemy.engine import Connection

from governance.arms import ExperimentRecord, ShadowRecord, stretched
from governance.database import deployments
from governance.deployment_records import DeploymentRecord, time_text
from governance.deployments import Recorder, by_id
from governance.errors import ConflictError, RefusedError
from governance.events import AuditEvent, EventName

__all__ = [
    "begin_experiment",
    "begin_shadow",
    "change_experiment",
    "change_shadow",
    "end_experiment",
    "end_shadow",
]

_columns = deployments.c


def begin_experiment(
    connection: Connection,
    ledger: Recorder,
    record: DeploymentRecord,
    experiment: ExperimentRecord,
    provenance: Mapping[str, Any],
) -> DeploymentRecord:
    """Share a route's clients between versions.

    Args:
        connection: In the caller's transaction.
        ledger: Of the audit events.
        record: The deployment.
        experiment: Its arms passed the gate.
        provenance: Who let each arm's version in, by arm; JSON without floats.

    Raises:
        ConflictError: an experiment or a rollout runs (says who began it and when), or nobody
            answers on the route.
    """
    after = _write(
        connection,
        record,
        _columns.canary_uid.is_(None),
        _columns.experiment_id.is_(None),
        _columns.closed == "",
        experiment_id=experiment.id,
        experiment=experiment.to_json(),
    )
    if after is None:
        raise _no_experiment_now(by_id(connection, record.deploy_id))
    _tell(
        connection,
        ledger,
        after,
        EventName.ARMS_BEGUN,
        {**_told(experiment), "provenance": dict(provenance)},
    )
    return after


def change_experiment(
    connection: Connection,
    ledger: Recorder,
    record: DeploymentRecord,
    weights: Mapping[str, str],
) -> DeploymentRecord:
    """Give the arms of the experiment that runs other shares; as few clients move as possible.

    Raises:
        ConflictError: other arms, shares that do not add up, or somebody changed it meanwhile.
    """
    before = record.experiment
    if before is None or set(weights) != {arm.name for arm in before.arms}:
        raise _other_arms(record)
    changed = replace(
        before,
        arms=tuple(replace(arm, weight=weights[arm.name]) for arm in before.arms),
        stretches=stretched(weights, before.stretches),
        changes=before.changes + 1,
    )
    after = _write(
        connection, record, _columns.experiment == before.to_json(), experiment=changed.to_json()
    )
    if after is None:
        raise _moved_on(by_id(connection, record.deploy_id))
    had = {arm.name: arm.weight for arm in before.arms}
    _tell(connection, ledger, after, EventName.ARMS_CHANGED, {**_told(changed), "from": had})
    return after


def end_experiment(
    connection: Connection,
    ledger: Recorder,
    record: DeploymentRecord,
    reason: str,
    keep: str | None,
) -> DeploymentRecord:
    """Give all traffic back to stable; the caller rolls the arm out that is kept.

    Raises:
        RefusedError: no experiment runs, or it has no such arm.
    """
    ended = record.experiment
    if ended is None:
        raise RefusedError(
            f"no experiment runs on the route {record.route!r}",
            "`chancery deploy results` tells what the last one came to",
            subject=record.subject,
        )
    if keep is not None and keep not in {arm.name for arm in ended.arms}:
        raise RefusedError(
            f"the experiment {ended.name!r} has no arm {keep!r}",
            "name one of " + ", ".join(arm.name for arm in ended.arms),
            subject=record.subject,
        )
    after = _write(
        connection, record, _columns.experiment_id == ended.id, experiment_id=None, experiment=None
    )
    if after is None:
        raise _moved_on(by_id(connection, record.deploy_id))
    data = {**_told(ended), "reason": reason, "kept": keep}
    _tell(connection, ledger, after, EventName.ARMS_ENDED, data)
    return after


def begin_shadow(
    connection: Connection,
    ledger: Recorder,
    record: DeploymentRecord,
    shadow: ShadowRecord,
    provenance: Mapping[str, Any],
) -> DeploymentRecord:
    """Send copies of a route's requests to a version.

    Raises:
        ConflictError: a shadow runs (says who began it and when), the version answers there, or
            nobody answers on the route.
    """
    present = by_id(connection, record.deploy_id)
    answering = replace(present, shadow=None).served
    after = None
    if shadow.served not in answering:
        after = _write(
            connection,
            record,
            _columns.shadow_id.is_(None),
            _columns.closed == "",
            _columns.stable_uid != shadow.served.version_uid,
            shadow_id=shadow.id,
            shadow=shadow.to_json(),
        )
    if after is None:
        raise _no_shadow_now(by_id(connection, record.deploy_id), shadow)
    data = {**shadow.to_dict(), "provenance": dict(provenance)}
    _tell(connection, ledger, after, EventName.SHADOW_BEGUN, data)
    return after


def change_shadow(
    connection: Connection, ledger: Recorder, record: DeploymentRecord, shadow: ShadowRecord
) -> DeploymentRecord:
    """Give the shadow that runs other settings; its version stays.

    Raises:
        ConflictError: somebody changed or ended it meanwhile.
    """
    before = record.shadow
    after = None
    if before is not None and before.served == shadow.served:
        shadow = replace(shadow, id=before.id, begun_by=before.begun_by, begun_ms=before.begun_ms)
        after = _write(
            connection, record, _columns.shadow == before.to_json(), shadow=shadow.to_json()
        )
    if before is None or after is None:
        raise _moved_on(by_id(connection, record.deploy_id))
    data = {**shadow.to_dict(), "from": before.to_dict()}
    _tell(connection, ledger, after, EventName.SHADOW_CHANGED, data)
    return after


def end_shadow(
    connection: Connection, ledger: Recorder, record: DeploymentRecord, reason: str
) -> DeploymentRecord:
    """Send no more copies.

    Raises:
        RefusedError: there is no shadow.
    """
    ended = record.shadow
    if ended is None:
        raise RefusedError(
            f"the route {record.route!r} has no shadow",
            "`chancery deploy shadow ROUTE MODEL` begins one",
            subject=record.subject,
        )
    after = _write(connection, record, _columns.shadow_id == ended.id, shadow_id=None, shadow=None)
    if after is None:
        raise _moved_on(by_id(connection, record.deploy_id))
    _tell(connection, ledger, after, EventName.SHADOW_ENDED, {**ended.to_dict(), "reason": reason})
    return after


def _write(
    connection: Connection, record: DeploymentRecord, *conditions: Any, **values: Any
) -> DeploymentRecord | None:
    """The deployment after the change; None: a condition does not hold."""
    written = connection.execute(
        update(deployments)
        .where(_columns.deploy_id == record.deploy_id, _columns.ended_ms.is_(None), *conditions)
        .values(**values)
        .returning(_columns.deploy_id)
    ).scalar_one_or_none()
    return None if written is None else by_id(connection, record.deploy_id)


def _tell(
    connection: Connection,
    ledger: Recorder,
    record: DeploymentRecord,
    name: EventName,
    data: Mapping[str, Any],
) -> None:
    where = {"route": record.route, "environment": record.environment, "model": record.model_name}
    ledger.record(connection, AuditEvent.now(name, record.subject, {**where, **data}))


def _told(experiment: ExperimentRecord) -> dict[str, Any]:
    """What its events say of it: who it is for, with which versions and shares."""
    return {
        "experimentId": experiment.id,
        "name": experiment.name,
        "sticky": experiment.sticky,
        "arms": [arm.to_dict() for arm in experiment.arms],
    }


def _refused_at(record: DeploymentRecord) -> tuple[str, str] | None:
    """Why nothing can be begun on the route at all."""
    if record.ended_ms is not None:
        return (
            f"the deployment {record.deploy_id[:12]} was ended by {record.ended_by}",
            "deploy the version anew",
        )
    if record.closed:
        return (
            f"nobody answers on the route {record.route!r}: {record.closed}",
            f"`chancery deploy delete {record.route}`, and deploy a version that may answer",
        )
    return None


def _no_experiment_now(record: DeploymentRecord) -> ConflictError:
    why = _refused_at(record)
    if why is None and record.canary is not None:
        why = (
            f"a rollout of {record.uri_of(record.canary)} runs on the route {record.route!r}: "
            f"{record.rollout_by} began it at {time_text(record.rollout_ms or 0)}; a rollout and "
            "an experiment would each change what the other compares",
            f"wait for its end, or `chancery deploy abort {record.route}`",
        )
    running = record.experiment
    if why is None and running is not None:
        why = (
            f"the experiment {running.name!r} runs on the route {record.route!r}: "
            f"{running.begun_by} began it at {time_text(running.begun_ms)}",
            f"`chancery deploy experiment {record.route} --end`, or name the same experiment with "
            "the same arms to change their shares",
        )
    why = why or (f"the route {record.route!r} changed at this moment", "ask again")
    return ConflictError(*why, subject=record.subject)


def _other_arms(record: DeploymentRecord) -> ConflictError:
    running = record.experiment
    arms = "no experiment" if running is None else ", ".join(arm.name for arm in running.arms)
    return ConflictError(
        f"the experiment on the route {record.route!r} has other arms: {arms}",
        f"end it with `chancery deploy experiment {record.route} --end`, and begin another; only "
        "the shares of arms change while they run",
        subject=record.subject,
    )


def _no_shadow_now(record: DeploymentRecord, shadow: ShadowRecord) -> ConflictError:
    why = _refused_at(record)
    running = record.shadow
    if why is None and running is not None:
        why = (
            f"the route {record.route!r} has a shadow, {record.uri_of(running.served)}: "
            f"{running.begun_by} began it at {time_text(running.begun_ms)}",
            f"`chancery deploy shadow {record.route} --off` first",
        )
    if why is None:
        why = (
            f"{record.uri_of(shadow.served)} answers on the route {record.route!r} already: as a "
            "shadow it would be compared with itself",
            "name another version",
        )
    return ConflictError(*why, subject=record.subject)


def _moved_on(record: DeploymentRecord) -> ConflictError:
    return ConflictError(
        f"somebody else changed the route {record.route!r} at this moment",
        f"`chancery deploy show {record.route}`, and ask again",
        subject=record.subject,
    )
