"""Adopts versions that were registered before the registry was governed.

The files are digested as they lie there at the first load or request: what happened to them before
nobody can tell. An adopted version has no approvals, so it enters no protected environment by this.
"""

from __future__ import annotations

from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from sqlalchemy import select

from governance import lineage, registry
from governance.errors import NotFoundError
from governance.events import AuditEvent, EventName
from governance.identity import current_actor
from governance.lineage import Edge
from mlflow_plugins import evidence
from mlflow_plugins.artifacts import location_of, read_manifest
from mlflow_plugins.governor import Governor, now_ms
from mlflow_plugins.registry_guard import PendingVersion, version_lineage

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
    uri = row.storage_location or row.source
    manifest, problem = read_manifest(uri)
    logged = row.source.removeprefix("models:/") if "models:/m-" in row.source else None
    found = PendingVersion(location_of(uri), logged, manifest, problem)
    event = AuditEvent.now(
        EventName.VERSION_REGISTERED,
        f"models:/{name}/{version}",
        {
            "adopted": True,
            "rootDigest": manifest.root_digest if manifest else "",
            "manifestDigest": manifest.manifest_digest if manifest else "",
        },
    )
    with governor.engine.begin() as connection:
        uid = registry.add_version(
            connection,
            registry.NewVersion(
                name=name,
                version=version,
                source=row.source,
                artifact_uri=found.artifact_uri,
                logged_model_id=logged,
                run_id=row.run_id or None,
                manifest=manifest,
                digest_error=problem,
                registered_by=current_actor().id,
            ),
            now_ms(),
        )
        if row.run_id:
            evidence.close_run(connection, row.run_id, [uid])
        nodes, edges = version_lineage(
            connection,
            SqlModelVersion(name=name, version=version, source=row.source, run_id=row.run_id),
            found,
        )
        lineage.record(connection, nodes, [Edge(a, r, b, event.id) for a, r, b in edges])
        governor.ledger.record(connection, event)
    governor.ledger.cover(event.id)
