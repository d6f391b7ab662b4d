"""Adopts versions that were registered before the registry was governed.

The files are digested as they lie there at the first load or request: what happened to them before
nobody can tell. An adopted version has no approvals, so it enters no protected environment by this.
"""

from __future__ import annotations

from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from mlflow.store.tracking.dbmodels.models import SqlLoggedModel
from sqlalchemy import select

from governance import registry
from governance.errors import NotFoundError
from governance.events import AuditEvent, EventName
from mlflow_plugins.artifacts import location_of, read_manifest_at
from mlflow_plugins.governor import Governor
from mlflow_plugins.registry_guard import PendingVersion, register_version

__all__ = ["adopt"]


def adopt(governor: Governor, name: str, version: int) -> None:
    """Make the version known to governance, unless it is.

    Raises:
        NotFoundError: MLflow has no such version either.
    """
    with governor.engine.connect() as connection:
        try:
            registry.candidate(connection, name, version)
        except NotFoundError:
            row = connection.execute(
                select(
                    SqlModelVersion.source,
                    SqlModelVersion.storage_location,
                    SqlModelVersion.run_id,
                    SqlModelVersion.current_stage,
                ).where(SqlModelVersion.name == name, SqlModelVersion.version == version)
            ).one_or_none()
            if row is None or row.current_stage == "Deleted_Internal":
                raise
        else:
            return
    location = location_of(row.storage_location or row.source)
    manifest, problem = read_manifest_at(location)
    logged_model = row.source.removeprefix("models:/") if "models:/m-" in row.source else None
    with governor.engine.begin() as connection:
        source_run = select(SqlLoggedModel.source_run_id).where(
            SqlLoggedModel.model_id == logged_model
        )
        found = PendingVersion(
            location,
            logged_model,
            manifest,
            problem,
            connection.execute(source_run).scalar_one_or_none(),
        )
        data = register_version(
            connection,
            found,
            name=name,
            version=version,
            source=row.source,
            run_id=row.run_id or None,
        )
        event = AuditEvent.now(
            EventName.VERSION_REGISTERED, f"models:/{name}/{version}", {"adopted": True, **data}
        )
        governor.ledger.record(connection, event)
    governor.ledger.cover(event.id)
