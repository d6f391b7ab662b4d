"""The gate and the audit of the model registry's tables.

Every way to promote ends in a flush of one of three rows, and is caught there: an alias row (set,
moved, in any letter case), a version row whose stage changes, a new version row in a registered
model that the policy protects (``protected_models``). A rename may not carry protected aliases or
stages to a name that other approvals were given for, nor versions to or from a protected name.
Prompts are versions whose source is MLflow's own placeholder; they have no artifact and pass.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from mlflow.entities.model_registry.model_version_stages import (
    STAGE_DELETED_INTERNAL,
)
from mlflow.prompt.constants import _PROMPT_SOURCE_PLACEHOLDERS
from mlflow.store.model_registry.dbmodels.models import (
    SqlModelVersion,
    SqlModelVersionTag,
    SqlRegisteredModel,
    SqlRegisteredModelAlias,
    SqlRegisteredModelTag,
    SqlWebhook,
)
from mlflow.store.tracking.dbmodels.models import SqlRun
from sqlalchemy import Delete, Insert, Update, bindparam, select
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from governance import registry
from governance.canonical import Manifest
from governance.errors import RefusedError, ReservedError
from governance.events import AuditEvent, EventName
from governance.identity import current_actor
from mlflow_plugins.evidence import TERMINAL_STATUSES, close_run, run_artifacts, run_inputs
from mlflow_plugins.governor import now_ms
from mlflow_plugins.protected_models import admit_copy, governed_version, refuse_protected_rename
from mlflow_plugins.session_guard import Guard, changed, old_value

__all__ = [
    "RESERVED_PREFIX",
    "PendingVersion",
    "RegistryGuard",
    "pending_version",
    "register_version",
]

RESERVED_PREFIX = "chancery."
"""Registry tags whose keys begin so (in any letter case) are refused: evidence is never a tag."""

_GATED_TABLES = frozenset({"registered_models", "model_versions", "registered_model_aliases"})

_RUN_STATUS = select(SqlRun.status).where(SqlRun.run_uuid == bindparam("run")).scalar_subquery()
_NEW_VERSION = registry.new_version_statement(_RUN_STATUS.label("run_status"))
_SOURCE = select(SqlModelVersion.source).where(
    SqlModelVersion.name == bindparam("model_name"), SqlModelVersion.version == bindparam("number")
)


@dataclass(frozen=True, slots=True)
class PendingVersion:
    """What ``create_model_version`` found out about the artifact before its transaction.

    Attributes:
        artifact_uri: Where the files lie (``location_of``).
        logged_model_id: The logged model whose files they are.
        manifest: The files.
        digest_error: Why they could not be read.
        source_run_id: The run that logged the logged model.
    """

    artifact_uri: str | None
    logged_model_id: str | None
    manifest: Manifest | None
    digest_error: str | None
    source_run_id: str | None = None


pending_version: ContextVar[PendingVersion | None] = ContextVar(
    "chancery_pending_version", default=None
)


@dataclass(frozen=True, slots=True)
class _Change:
    """One event to be, and the row it is about."""

    name: EventName
    subject: str
    data: dict[str, Any]
    row: Any = None


class RegistryGuard(Guard):
    """Guards ``SqlAlchemyStore`` of the model registry."""

    def before_flush(self, session: Session, connection: Connection) -> list[Any]:
        changes: list[_Change] = []
        deleted_models = {m.name for m in session.deleted if isinstance(m, SqlRegisteredModel)}
        for row in session.new:
            changes += self._new(connection, row)
        for row in session.dirty:
            if session.is_modified(row):
                changes += self._dirty(connection, session, row)
        for row in session.deleted:
            changes += self._deleted(row, deleted_models)
        if any(change.name.awaits_checkpoint for change in changes):
            self.governor.ledger.ensure_witnessed()
        return changes

    def before_bulk(self, statement: Update | Delete | Insert, connection: Connection) -> None:
        table = getattr(statement.table, "name", "")
        if table in _GATED_TABLES:
            raise RefusedError(
                f"a bulk statement on {table} would pass the promotion gate by",
                "change rows one by one, through MLflow's store",
                subject=f"tables:/{table}",
            )

    def _new(self, connection: Connection, row: Any) -> list[_Change]:
        match row:
            case SqlRegisteredModel():
                return [_Change(EventName.MODEL_CREATED, f"models:/{row.name}", {}, row)]
            case SqlModelVersion():
                return self._new_version(connection, row)
            case SqlRegisteredModelAlias():
                return self._alias(connection, row, None)
            case SqlModelVersionTag() | SqlRegisteredModelTag():
                return self._tag(row)
            case SqlWebhook():
                return [_Change(EventName.WEBHOOK_CHANGED, "webhooks:/", {"action": "created"})]
        return []

    def _dirty(self, connection: Connection, session: Session, row: Any) -> list[_Change]:
        match row:
            case SqlRegisteredModel():
                return self._changed_model(connection, row)
            case SqlModelVersion():
                return self._changed_version(connection, row)
            case SqlRegisteredModelAlias() if changed(row, "version") or changed(row, "alias"):
                return self._alias(connection, row, old_value(row, "version"))
            case SqlModelVersionTag() | SqlRegisteredModelTag() if changed(row, "value"):
                return self._tag(row)
            case SqlWebhook():
                return [_Change(EventName.WEBHOOK_CHANGED, "webhooks:/", {"action": "updated"})]
        return []

    def _deleted(self, row: Any, deleted_models: set[str]) -> list[_Change]:
        if isinstance(row, SqlRegisteredModel):
            data = {
                "aliases": sorted(f"{a.alias}={a.version}" for a in row.registered_model_aliases),
                "versions": sorted(str(v.version) for v in row.model_versions),
            }
            return [_Change(EventName.MODEL_DELETED, f"models:/{row.name}", data, row)]
        if getattr(row, "name", None) in deleted_models:
            return []  # told by the model's own event
        match row:
            case SqlRegisteredModelAlias():
                subject = f"models:/{row.name}@{row.alias}"
                return [_Change(EventName.ALIAS_DELETED, subject, {"version": str(row.version)})]
            case SqlModelVersionTag():
                subject = f"models:/{row.name}/{row.version}"
                return [_Change(EventName.VERSION_TAG_DELETED, subject, {"key": row.key})]
            case SqlRegisteredModelTag():
                return [
                    _Change(EventName.MODEL_TAG_DELETED, f"models:/{row.name}", {"key": row.key})
                ]
            case SqlModelVersion():
                subject = f"models:/{row.name}/{row.version}"
                return [_Change(EventName.VERSION_DELETED, subject, {}, row)]
            case SqlWebhook():
                return [_Change(EventName.WEBHOOK_CHANGED, "webhooks:/", {"action": "deleted"})]
        return []

    def _tag(self, row: SqlModelVersionTag | SqlRegisteredModelTag) -> list[_Change]:
        version = getattr(row, "version", None)
        subject = f"models:/{row.name}" + (f"/{version}" if version is not None else "")
        if row.key.casefold().startswith(RESERVED_PREFIX):
            raise ReservedError(
                f"tags that begin with '{RESERVED_PREFIX}' are reserved, and {subject} was given "
                f"'{row.key}'",
                "use another key; evidence is kept in signed records, never in tags",
                subject=subject,
            )
        name = EventName.MODEL_TAG_SET if version is None else EventName.VERSION_TAG_SET
        return [_Change(name, subject, {"key": row.key, "value": str(row.value or "")})]

    def _new_version(self, connection: Connection, row: SqlModelVersion) -> list[_Change]:
        subject = f"models:/{row.name}/{row.version}"
        data: dict[str, Any] = {"source": row.source or "", "runId": row.run_id or ""}
        changes = [_Change(EventName.VERSION_REGISTERED, subject, data, row)]
        for tag in row.model_version_tags:
            self._tag(tag)
        if row.source in _PROMPT_SOURCE_PLACEHOLDERS:
            data["prompt"] = True
            return changes
        stage = self.governor.policy.environment_for_stage(row.current_stage or "None")
        if stage is not None:
            raise RefusedError(
                f"{subject} cannot be created in stage {row.current_stage}",
                "register it first, then request its promotion",
                subject=subject,
            )
        environment = self.governor.policy.environment_for_registered_model(row.name)
        if environment is not None:
            found = pending_version.get()
            source, statement = admit_copy(
                self.governor,
                connection,
                row,
                environment.name,
                found.manifest if found else None,
                found.digest_error if found else "they were not read",
            )
            data["environment"] = environment.name
            data["statementId"] = statement
            data["promotedFrom"] = source.uri
            data["promotedFromUid"] = source.version_uid
            granted = self._granted(source.model_name, source.version, environment.name, statement)
            granted.data.update(copiedTo=subject, servedAs=row.name)
            changes.append(granted)
        return changes

    def _alias(
        self, connection: Connection, row: SqlRegisteredModelAlias, previous: int | None
    ) -> list[_Change]:
        version = int(row.version)
        subject = f"models:/{row.name}@{row.alias}"
        data: dict[str, Any] = {
            "version": str(version),
            "previousVersion": "" if previous is None else str(previous),
        }
        environment = self.governor.policy.environment_for_alias(row.alias)
        if environment is None or _is_prompt(connection, row.name, version):
            return [_Change(EventName.ALIAS_SET, subject, data)]
        data["environment"] = environment.name
        data["statementId"] = self.governor.admit(connection, row.name, version, environment.name)
        return [
            _Change(EventName.ALIAS_SET, subject, data),
            self._granted(row.name, version, environment.name, data["statementId"]),
        ]

    def _granted(self, name: str, version: int, environment: str, statement: str) -> _Change:
        return _Change(
            EventName.PROMOTION_GRANTED,
            f"models:/{name}/{version}",
            {"environment": environment, "statementId": statement},
        )

    def _changed_model(self, connection: Connection, row: SqlRegisteredModel) -> list[_Change]:
        changes = []
        if changed(row, "name"):
            old = str(old_value(row, "name"))
            self._refuse_rename(connection, row, old)
            data = {"from": old, "to": row.name}
            changes.append(_Change(EventName.MODEL_RENAMED, f"models:/{row.name}", data, row))
        if changed(row, "description"):
            data = {"description": row.description or ""}
            changes.append(_Change(EventName.MODEL_UPDATED, f"models:/{row.name}", data))
        return changes

    def _refuse_rename(self, connection: Connection, row: SqlRegisteredModel, old: str) -> None:
        policy = self.governor.policy
        # Asked of the database by the old name: the row's own relations follow the new one.
        aliases = connection.execute(
            select(SqlRegisteredModelAlias.alias).where(SqlRegisteredModelAlias.name == old)
        ).scalars()
        staged = connection.execute(
            select(SqlModelVersion.version, SqlModelVersion.current_stage).where(
                SqlModelVersion.name == old
            )
        )
        held = [f"alias {a}" for a in aliases if policy.environment_for_alias(a)]
        held += [
            f"version {v.version} in {v.current_stage}"
            for v in staged
            if policy.environment_for_stage(v.current_stage or "None")
        ]
        refuse_protected_rename(policy, connection, old, row.name)
        if held:
            raise RefusedError(
                f"models:/{old} cannot be renamed to {row.name}: it holds {', '.join(held)}, "
                "and approvals are given for a name",
                "remove these first, rename, then request the promotion under the new name",
                subject=f"models:/{old}",
            )

    def _changed_version(self, connection: Connection, row: SqlModelVersion) -> list[_Change]:
        subject = f"models:/{row.name}/{row.version}"
        if changed(row, "current_stage"):
            previous = str(old_value(row, "current_stage") or "None")
            if row.current_stage == STAGE_DELETED_INTERNAL:
                data: dict[str, Any] = {"stage": previous}
                return [_Change(EventName.VERSION_DELETED, subject, data, row)]
            data = {"from": previous, "to": row.current_stage}
            environment = self.governor.policy.environment_for_stage(row.current_stage)
            if environment is None or _is_prompt(connection, row.name, row.version):
                return [_Change(EventName.STAGE_CHANGED, subject, data)]
            data["environment"] = environment.name
            data["statementId"] = self.governor.admit(
                connection, row.name, int(row.version), environment.name
            )
            return [
                _Change(EventName.STAGE_CHANGED, subject, data),
                self._granted(row.name, row.version, environment.name, data["statementId"]),
            ]
        if changed(row, "source") or changed(row, "storage_location") or changed(row, "run_id"):
            raise RefusedError(
                f"source and run of {subject} cannot change after registration",
                "register a new version",
                subject=subject,
            )
        if changed(row, "description"):
            return [
                _Change(EventName.VERSION_UPDATED, subject, {"description": row.description or ""})
            ]
        return []

    def after_flush(self, connection: Connection, changes: list[Any]) -> list[AuditEvent]:
        events = []
        for change in changes:
            data = dict(change.data)
            match change.name:
                case EventName.MODEL_CREATED:
                    data["modelUid"] = registry.add_model(connection, change.row.name, now_ms())
                case EventName.MODEL_RENAMED:
                    registry.rename_model(connection, data["from"], data["to"])
                case EventName.MODEL_DELETED:
                    registry.mark_model_deleted(connection, change.row.name, now_ms())
                case EventName.VERSION_DELETED:
                    registry.mark_version_deleted(
                        connection, change.row.name, int(change.row.version), now_ms()
                    )
                case EventName.VERSION_REGISTERED if not data.get("prompt"):
                    data |= _register(connection, change.row, data.get("promotedFromUid"))
            events.append(AuditEvent.now(change.name, change.subject, data))
        return events


def _register(
    connection: Connection, row: SqlModelVersion, promoted_from: str | None
) -> dict[str, Any]:
    found = pending_version.get() or PendingVersion(
        None, None, None, "the artifact was not read at registration"
    )
    return register_version(
        connection,
        found,
        name=row.name,
        version=int(row.version),
        source=row.source or "",
        run_id=row.run_id or None,
        promoted_from=promoted_from,
    )


def register_version(
    connection: Connection,
    found: PendingVersion,
    *,
    name: str,
    version: int,
    source: str,
    run_id: str | None,
    promoted_from: str | None = None,
) -> dict[str, Any]:
    """Make a version known to governance; what its audit event says of it."""
    manifest, claimed_run = found.manifest, run_id
    if run_id and not _came_from(connection, run_id, found, source):
        run_id = None
    uid, row = registry.add_version(
        connection,
        registry.NewVersion(
            name=name,
            version=version,
            source=source,
            artifact_uri=found.artifact_uri,
            logged_model_id=found.logged_model_id,
            run_id=run_id,
            manifest=manifest,
            digest_error=found.digest_error,
            registered_by=current_actor().id,
            promoted_from=promoted_from,
        ),
        now_ms(),
        statement=_NEW_VERSION,
        run=run_id,
    )
    data: dict[str, Any] = {
        "source": source,
        "runId": run_id or "",
        "loggedModelId": found.logged_model_id or "",
        "versionUid": uid,
        "rootDigest": manifest.root_digest if manifest else "",
        "manifestDigest": manifest.manifest_digest if manifest else "",
    }
    if found.digest_error:
        data["digestError"] = found.digest_error
    if run_id != claimed_run:
        data["claimedRunId"] = claimed_run
    if run_id and row.run_status in TERMINAL_STATUSES:
        data |= run_inputs(close_run(connection, run_id, [uid]))
    return data


def _came_from(connection: Connection, run_id: str, found: PendingVersion, source: str) -> bool:
    """Whether the files came from the run that the client names.

    A client may name any run. Its metrics are evidence for the files that it logged, no others.
    """
    if found.source_run_id == run_id:
        return True
    if original := governed_version(connection, source):
        return original.run_id == run_id
    root = run_artifacts(connection, run_id)
    return root is not None and f"{found.artifact_uri}/".startswith(f"{root}/")


def _is_prompt(connection: Connection, name: str, version: int) -> bool:
    source = connection.execute(_SOURCE, {"model_name": name, "number": version})
    return source.scalar_one_or_none() in _PROMPT_SOURCE_PLACEHOLDERS
