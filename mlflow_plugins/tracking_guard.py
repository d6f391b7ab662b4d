"""The audit of the tracking tables, and the seal on runs behind registered versions.

A run is *sealed* once it backs a registered version and has ended: its params, tags, inputs,
status, deletion are refused from then on. While it still runs, an ordinary training script goes on
as ever. Metrics are not audited one by one: the event of the run's end carries the digest of its
record. Metrics on the logged model (by evaluation runs) stay possible for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlflow.entities.lifecycle_stage import LifecycleStage
from mlflow.store.tracking.dbmodels.models import (
    SqlExperiment,
    SqlExperimentTag,
    SqlInput,
    SqlLoggedModel,
    SqlLoggedModelParam,
    SqlParam,
    SqlRun,
    SqlTag,
)
from sqlalchemy import Delete, Insert, Update, select
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from governance import registry
from governance.canonical import sha256_hex
from governance.errors import SealedError
from governance.events import AuditEvent, EventName
from mlflow_plugins.evidence import TERMINAL_STATUSES, close_run, run_inputs
from mlflow_plugins.session_guard import Guard, changed, old_value

__all__ = ["TrackingGuard"]

_RUN_TABLES = {"runs": "run_uuid", "params": "run_uuid", "tags": "run_uuid"}


@dataclass(slots=True)
class _Change:
    """One event to be; ``made_versions``: whether live versions came from the run ``row``."""

    name: EventName
    subject: str
    data: dict[str, Any] = field(default_factory=dict)
    row: Any = None
    made_versions: bool = False


class TrackingGuard(Guard):
    """Guards ``SqlAlchemyStore`` of tracking."""

    def before_flush(self, session: Session, connection: Connection) -> list[Any]:
        changes: list[_Change] = []
        new_runs = {r.run_uuid for r in session.new if isinstance(r, SqlRun)}
        touched: dict[str, str] = {}  # run id -> what would change
        tags: dict[str, dict[str, str]] = {}
        for row in session.new:
            match row:
                case SqlParam():
                    touched[row.run_uuid] = f"param {row.key}"
                case SqlTag() if row.run_uuid is None and row.run in session.new:
                    pass  # a new run's own, told by its event
                case SqlTag():
                    touched[row.run_uuid] = f"tag {row.key}"
                    tags.setdefault(row.run_uuid, {})[row.key] = str(row.value)
                case SqlRun():
                    changes.append(_new_run(row))
                case SqlExperiment():
                    changes.append(_Change(EventName.EXPERIMENT_CREATED, "", {}, row))
                case SqlInput():
                    run_id = row.destination_id if row.destination_type == "RUN" else row.source_id
                    touched[run_id] = "inputs and outputs"
                case SqlLoggedModel():
                    changes.append(_new_logged_model(row))
                case SqlLoggedModelParam():
                    self._refuse_sealed_model(connection, row.model_id, f"param {row.param_key}")
                case SqlExperimentTag():
                    changes.append(_experiment_tag(row))
        for row in session.dirty:
            match row:
                case SqlRun() if session.is_modified(row):
                    changes += self._changed_run(row, touched)
                case SqlTag() if changed(row, "value"):
                    touched[row.run_uuid] = f"tag {row.key}"
                    tags.setdefault(row.run_uuid, {})[row.key] = str(row.value)
                case SqlParam() if changed(row, "value"):
                    touched[row.run_uuid] = f"param {row.key}"
                case SqlExperiment() if session.is_modified(row):
                    changes += _changed_experiment(row)
                case SqlLoggedModel() if session.is_modified(row):
                    changes += self._changed_logged_model(connection, row)
                case SqlExperimentTag() if changed(row, "value"):
                    changes.append(_experiment_tag(row))
        for row in session.deleted:
            match row:
                case SqlTag():
                    touched[row.run_uuid] = f"tag {row.key}"
                    changes.append(
                        _Change(
                            EventName.TRACKING_TAG_DELETED,
                            f"runs:/{row.run_uuid}",
                            {"key": row.key},
                        )
                    )
                case SqlParam():
                    touched[row.run_uuid] = f"param {row.key}"
                case SqlRun():
                    touched[row.run_uuid] = "deletion"
                    changes.append(
                        _Change(
                            EventName.RUN_DELETED, f"runs:/{row.run_uuid}", {"permanently": True}
                        )
                    )
                case SqlLoggedModel():
                    self._refuse_sealed_model(connection, row.model_id, "deletion")
                    changes.append(
                        _Change(
                            EventName.LOGGED_MODEL_DELETED,
                            f"models:/{row.model_id}",
                            {"permanently": True},
                        )
                    )
                case SqlExperimentTag():
                    changes.append(
                        _Change(
                            EventName.TRACKING_TAG_DELETED,
                            f"experiments:/{row.experiment_id}",
                            {"key": row.key},
                        )
                    )
        changes += [
            _Change(EventName.TRACKING_TAG_SET, f"runs:/{run_id}", {"tags": values})
            for run_id, values in tags.items()
            if run_id not in new_runs and run_id is not None
        ]
        sealed = self._refuse_sealed(
            connection, {k: v for k, v in touched.items() if k not in new_runs}
        )
        for change in changes:
            if change.name is EventName.RUN_FINISHED:
                change.made_versions = change.row.run_uuid in sealed
        return changes

    def before_bulk(self, statement: Update | Delete | Insert, connection: Connection) -> None:
        table = statement.table
        column = _RUN_TABLES.get(getattr(table, "name", ""))
        if column is None or isinstance(statement, Insert):
            return
        affected = select(table.c[column]).distinct()
        if statement.whereclause is not None:
            affected = affected.where(statement.whereclause)
        runs = connection.execute(affected).scalars()
        self._refuse_sealed(connection, dict.fromkeys(runs, "deletion or bulk change"))

    def _refuse_sealed(self, connection: Connection, touched: dict[str, str]) -> dict[str, str]:
        """Refuse what is sealed; of the runs, those behind a live version, with its URI."""
        sealed = registry.sealed_among(connection, touched.keys())
        if not sealed:
            return sealed
        ended = connection.execute(
            select(SqlRun.run_uuid).where(
                SqlRun.run_uuid.in_(sealed), SqlRun.status.in_(TERMINAL_STATUSES)
            )
        ).scalars()
        for run_id in ended:
            raise SealedError(
                f"run {run_id} made {sealed[run_id]} and has ended, so it is sealed: its "
                f"{touched[run_id]} cannot change",
                "log to a new run; metrics of an evaluation go to the logged model from a run of "
                "their own",
                subject=f"runs:/{run_id}",
            )
        return sealed

    def _refuse_sealed_model(self, connection: Connection, model_id: str, what: str) -> None:
        if registry.version_uid_behind_logged_model(connection, model_id):
            raise SealedError(
                f"logged model {model_id} is registered, so it is sealed: its {what} cannot change",
                "log a new model, or delete the registered version first",
                subject=f"models:/{model_id}",
            )

    def _changed_run(self, row: SqlRun, touched: dict[str, str]) -> list[_Change]:
        subject = f"runs:/{row.run_uuid}"
        if changed(row, "lifecycle_stage"):
            touched[row.run_uuid] = "deletion"
            deleted = row.lifecycle_stage == LifecycleStage.DELETED
            return [_Change(EventName.RUN_DELETED if deleted else EventName.RUN_RESTORED, subject)]
        if changed(row, "status"):
            touched[row.run_uuid] = "status"
            data = {"from": str(old_value(row, "status")), "to": row.status}
            ended = row.status in TERMINAL_STATUSES
            return [
                _Change(
                    EventName.RUN_FINISHED if ended else EventName.RUN_UPDATED, subject, data, row
                )
            ]
        if changed(row, "name"):
            touched[row.run_uuid] = "name"
            return [_Change(EventName.RUN_UPDATED, subject, {"name": row.name or ""})]
        if changed(row, "end_time"):
            touched[row.run_uuid] = "end time"
        return []

    def _changed_logged_model(self, connection: Connection, row: SqlLoggedModel) -> list[_Change]:
        subject = f"models:/{row.model_id}"
        if changed(row, "lifecycle_stage"):
            deleted = row.lifecycle_stage == LifecycleStage.DELETED
            if deleted:
                self._refuse_sealed_model(connection, row.model_id, "deletion")
            name = EventName.LOGGED_MODEL_DELETED if deleted else EventName.LOGGED_MODEL_UPDATED
            return [_Change(name, subject)]
        if changed(row, "status"):
            return [_Change(EventName.LOGGED_MODEL_UPDATED, subject, {"status": str(row.status)})]
        return []

    def after_flush(self, connection: Connection, changes: list[Any]) -> list[AuditEvent]:
        events = []
        for change in changes:
            data, subject = dict(change.data), change.subject
            if change.name is EventName.EXPERIMENT_CREATED:
                subject = f"experiments:/{change.row.experiment_id}"
                data["name"] = change.row.name
            elif change.name is EventName.RUN_FINISHED:
                run_id = change.row.run_uuid
                made = registry.versions_of_run(connection, run_id) if change.made_versions else []
                record = close_run(connection, run_id, made)
                data["recordDigest"] = sha256_hex(record)
                data |= run_inputs(record)
            events.append(AuditEvent.now(change.name, subject, data))
        return events


def _new_run(row: SqlRun) -> _Change:
    data = {
        "experimentId": str(row.experiment_id),
        "name": row.name or "",
        "tags": {tag.key: str(tag.value) for tag in row.tags},
    }
    return _Change(EventName.RUN_CREATED, f"runs:/{row.run_uuid}", data)


def _new_logged_model(row: SqlLoggedModel) -> _Change:
    data = {"name": row.name, "runId": row.source_run_id or ""}
    return _Change(EventName.LOGGED_MODEL_CREATED, f"models:/{row.model_id}", data)


def _experiment_tag(row: SqlExperimentTag) -> _Change:
    subject = f"experiments:/{row.experiment_id}"
    return _Change(EventName.TRACKING_TAG_SET, subject, {"tags": {row.key: str(row.value)}})


def _changed_experiment(row: SqlExperiment) -> list[_Change]:
    subject = f"experiments:/{row.experiment_id}"
    if changed(row, "lifecycle_stage"):
        deleted = row.lifecycle_stage == LifecycleStage.DELETED
        name = EventName.EXPERIMENT_DELETED if deleted else EventName.EXPERIMENT_RESTORED
        return [_Change(name, subject)]
    if changed(row, "name"):
        data = {"from": str(old_value(row, "name")), "to": row.name}
        return [_Change(EventName.EXPERIMENT_UPDATED, subject, data)]
    return []
