"""Our rows about registered models and versions: identity, artifact digests, seals, revocation.

MLflow knows a registered model by name only, and a deleted and recreated model starts again at
version 1. Here each incarnation has an id of its own (``model_uid``, ``version_uid``), which a
rename keeps and a recreation does not: whatever was approved stays with the incarnation it was
approved for.

Every function works on the caller's connection, in the caller's transaction.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Row, bindparam, func, insert, or_, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.sql.dml import ReturningInsert

from governance.canonical import Manifest, sha256_hex
from governance.database import execute_compiled, models, sealed_artifacts, versions
from governance.errors import MalformedRequestError, NotFoundError
from governance.records import Candidate

__all__ = [
    "NewVersion",
    "add_model",
    "add_version",
    "artifact_uri",
    "candidate",
    "candidates_of",
    "copies_of",
    "mark_model_deleted",
    "mark_revoked",
    "mark_version_deleted",
    "model_uid",
    "new_version_statement",
    "origin",
    "rename_model",
    "revocation",
    "revoked_reason",
    "run_record",
    "seal_artifact",
    "seal_reason_for_artifact",
    "sealed_among",
    "set_digest",
    "set_run_record",
    "version_row",
    "version_uid_behind_logged_model",
    "versions_of_run",
]

_REASON = 3, 2000  # characters of a revocation's


# Built once: building a statement costs as much as running it on these paths.
_LIVE_MODEL_UID = select(models.c.model_uid).where(
    models.c.name == bindparam("model_name"), models.c.deleted_ms.is_(None)
)
_VERSIONS_OF_RUN = select(versions.c.version_uid).where(
    versions.c.run_id == bindparam("run"),
    versions.c.run_record.is_(None),
    versions.c.deleted_ms.is_(None),
)
_RUN_RECORD = select(versions.c.run_record).where(versions.c.version_uid == bindparam("uid"))
_VERSION = select(versions, models.c.name).join(models, models.c.model_uid == versions.c.model_uid)
_LIVE_VERSION = _VERSION.where(
    models.c.name == bindparam("model_name"),
    models.c.deleted_ms.is_(None),
    versions.c.version == bindparam("number"),
    versions.c.deleted_ms.is_(None),
)


@dataclass(frozen=True, slots=True)
class NewVersion:
    """What registration knows about a version.

    Attributes:
        name: Registered model's name.
        version: Number.
        source: The source as the client named it.
        artifact_uri: Where the files lie (no trailing slash), None when unknown.
        logged_model_id: ``m-…``, when there is one.
        run_id: Source run, when known.
        manifest: The files' manifest, None when they could not be read.
        digest_error: Why not.
        registered_by: Actor.
        promoted_from: ``version_uid`` that a version of a protected registered model copies.
    """

    name: str
    version: int
    source: str
    artifact_uri: str | None
    logged_model_id: str | None
    run_id: str | None
    manifest: Manifest | None
    digest_error: str | None
    registered_by: str
    promoted_from: str | None = None


def add_model(connection: Connection, name: str, now_ms: int, *, uid: str | None = None) -> str:
    """Record a new incarnation; its ``model_uid``."""
    uid = uid or uuid.uuid4().hex
    connection.execute(insert(models).values(model_uid=uid, name=name, created_ms=now_ms))
    return uid


def model_uid(connection: Connection, name: str) -> str | None:
    """The live incarnation of a registered model."""
    return connection.execute(_LIVE_MODEL_UID, {"model_name": name}).scalar_one_or_none()


def rename_model(connection: Connection, old: str, new: str) -> None:
    connection.execute(
        update(models).where(models.c.name == old, models.c.deleted_ms.is_(None)).values(name=new)
    )


def mark_model_deleted(connection: Connection, name: str, now_ms: int) -> None:
    uid = model_uid(connection, name)
    if uid is None:
        return
    connection.execute(update(models).where(models.c.model_uid == uid).values(deleted_ms=now_ms))
    connection.execute(
        update(versions)
        .where(versions.c.model_uid == uid, versions.c.deleted_ms.is_(None))
        .values(deleted_ms=now_ms)
    )


def new_version_statement(*also: ColumnElement[Any]) -> ReturningInsert[Any]:
    """The statement that ``add_version`` runs; it returns what else the caller needs to know."""
    live = _LIVE_MODEL_UID.scalar_subquery()
    return (
        insert(versions)
        .values(model_uid=func.coalesce(live, bindparam("adopted_uid")))
        .returning(versions.c.model_uid, *also)
    )


def add_version(
    connection: Connection,
    new: NewVersion,
    now_ms: int,
    *,
    statement: ReturningInsert[Any],
    **also: object,
) -> tuple[str, Row[Any]]:
    """Record a version, which seals its artifact, and its run once that ends.

    A registered model that was there before governance came is adopted on its first version.

    Args:
        connection: The change's own.
        new: The version.
        now_ms: Time of the registration.
        statement: From ``new_version_statement``.
        **also: Parameters of what the statement returns besides.

    Returns:
        ``version_uid``, and the row that the statement returned.
    """
    uid, adopted = uuid.uuid4().hex, uuid.uuid4().hex
    manifest, uri = new.manifest, new.artifact_uri
    row = execute_compiled(
        connection,
        statement,
        {
            "model_name": new.name,
            "adopted_uid": adopted,
            "version_uid": uid,
            "version": new.version,
            "source": new.source,
            "artifact_uri": uri,
            "artifact_uri_digest": sha256_hex(uri.encode()) if uri else None,
            "logged_model_id": new.logged_model_id,
            "run_id": new.run_id,
            "root_digest": manifest.root_digest if manifest else None,
            "manifest_digest": manifest.manifest_digest if manifest else None,
            "manifest": manifest.to_json().decode() if manifest else None,
            "digest_error": new.digest_error,
            "promoted_from": new.promoted_from,
            "registered_by": new.registered_by,
            "created_ms": now_ms,
            **also,
        },
    ).one()
    if row.model_uid == adopted:
        add_model(connection, new.name, now_ms, uid=adopted)
    return uid, row


def seal_artifact(connection: Connection, version_uid: str, uri: str) -> None:
    """Refuse changes at and below ``uri`` (no trailing slash) while the version lives."""
    digest = sha256_hex(uri.encode())
    sealed = connection.execute(
        select(sealed_artifacts.c.path).where(
            sealed_artifacts.c.path_digest == digest,
            sealed_artifacts.c.version_uid == version_uid,
        )
    ).scalar_one_or_none()
    if sealed is None:
        connection.execute(
            insert(sealed_artifacts).values(path_digest=digest, path=uri, version_uid=version_uid)
        )


def mark_version_deleted(connection: Connection, name: str, version: int, now_ms: int) -> None:
    uid = model_uid(connection, name)
    connection.execute(
        update(versions)
        .where(
            versions.c.model_uid == uid,
            versions.c.version == version,
            versions.c.deleted_ms.is_(None),
        )
        .values(deleted_ms=now_ms)
    )


def mark_revoked(connection: Connection, version_uid: str, reason: str, now_ms: int) -> None:
    """Have no load and no promotion of a version succeed from here on.

    Raises:
        MalformedRequestError: the reason is none that anybody could act on.
    """
    if not _REASON[0] <= len(reason.strip()) <= _REASON[1]:
        raise MalformedRequestError(
            f"the reason has {len(reason.strip())} characters",
            f"say in {_REASON[0]} to {_REASON[1]} characters what is wrong with the version, for "
            "whoever will try to load it",
        )
    connection.execute(
        update(versions)
        .where(versions.c.version_uid == version_uid)
        .values(revoked_ms=now_ms, revoked_reason=reason)
    )


def versions_of_run(connection: Connection, run_id: str) -> list[str]:
    """Live versions (``version_uid``) that the run made and whose run record is still open."""
    return list(connection.execute(_VERSIONS_OF_RUN, {"run": run_id}).scalars())


def set_run_record(connection: Connection, version_uid: str, record: str) -> None:
    """Keep what the run said when it ended; written once, never changed."""
    connection.execute(
        update(versions)
        .where(versions.c.version_uid == version_uid, versions.c.run_record.is_(None))
        .values(run_record=record)
    )


def run_record(connection: Connection, version_uid: str) -> str | None:
    """The run's record (canonical JSON) as of its end; None while the run goes on."""
    return connection.execute(_RUN_RECORD, {"uid": version_uid}).scalar_one_or_none()


def set_digest(connection: Connection, version_uid: str, manifest: Manifest) -> None:
    """Fill in a digest that registration could not compute; a known digest never changes."""
    connection.execute(
        update(versions)
        .where(versions.c.version_uid == version_uid, versions.c.manifest_digest.is_(None))
        .values(
            root_digest=manifest.root_digest,
            manifest_digest=manifest.manifest_digest,
            manifest=manifest.to_json().decode(),
            digest_error=None,
        )
    )


def candidate(connection: Connection, name: str, version: int) -> Candidate:
    """The live version.

    Raises:
        NotFoundError: there is none that governance knows.
    """
    row = connection.execute(_LIVE_VERSION, {"model_name": name, "number": version}).one_or_none()
    if row is None:
        raise NotFoundError(
            f"models:/{name}/{version} is not a governed model version",
            "check name and version; a version that was registered before the server was "
            f"governed is adopted by `chancery request models:/{name}/{version} --to …`",
        )
    found = _to_candidate(row)
    if row.promoted_from is None or found.revoked_reason is not None:
        return found
    inherited = revocation(connection, found.version_uid)
    return replace(found, revoked_reason=inherited[0] if inherited else None)


def origin(connection: Connection, version_uid: str) -> Candidate | None:
    """The version that the row says a protected version was promoted from, deleted or not."""
    source = connection.execute(
        select(versions.c.promoted_from).where(versions.c.version_uid == version_uid)
    ).scalar_one_or_none()
    return next(iter(candidates_of(connection, [source])), None) if source else None


def copies_of(connection: Connection, name: str) -> list[str]:
    """URIs of the live versions that were promoted from a version of the live model ``name``."""
    sources = (
        select(versions.c.version_uid)
        .join(models, models.c.model_uid == versions.c.model_uid)
        .where(models.c.name == name, models.c.deleted_ms.is_(None))
    )
    rows = connection.execute(
        select(models.c.name, versions.c.version)
        .join(models, models.c.model_uid == versions.c.model_uid)
        .where(versions.c.promoted_from.in_(sources), versions.c.deleted_ms.is_(None))
        .order_by(models.c.name, versions.c.version)
    )
    return [f"models:/{row.name}/{row.version}" for row in rows]


def candidates_of(connection: Connection, version_uids: Collection[str]) -> list[Candidate]:
    rows = connection.execute(_VERSION.where(versions.c.version_uid.in_(version_uids)))
    return [_to_candidate(row) for row in rows]


def _to_candidate(row: Row[tuple[object, ...]]) -> Candidate:
    return Candidate(
        model_uid=row.model_uid,
        model_name=row.name,
        version=row.version,
        version_uid=row.version_uid,
        logged_model_id=row.logged_model_id,
        run_id=row.run_id,
        root_digest=row.root_digest,
        manifest_digest=row.manifest_digest,
        digest_error=row.digest_error,
        revoked_reason=row.revoked_reason,
    )


def version_uid_behind_logged_model(connection: Connection, logged_model_id: str) -> str | None:
    """A live registered version that came from the logged model."""
    return connection.execute(
        select(versions.c.version_uid)
        .where(versions.c.logged_model_id == logged_model_id, versions.c.deleted_ms.is_(None))
        .limit(1)
    ).scalar_one_or_none()


def sealed_among(connection: Connection, run_ids: Collection[str]) -> dict[str, str]:
    """Of these runs, those behind a live registered version, with that version's URI."""
    if not run_ids:
        return {}
    rows = connection.execute(
        select(versions.c.run_id, models.c.name, versions.c.version)
        .join(models, models.c.model_uid == versions.c.model_uid)
        .where(versions.c.run_id.in_(run_ids), versions.c.deleted_ms.is_(None))
    )
    return {row.run_id: f"models:/{row.name}/{row.version}" for row in rows}


def seal_reason_for_artifact(connection: Connection, uri: str, *, whole_tree: bool) -> str | None:
    """Why the artifact at ``uri`` may not change, or None.

    Args:
        connection: Any connection.
        uri: Location without a trailing slash.
        whole_tree: The change would take everything below ``uri`` too (a delete).
    """
    parts = uri.split("/")
    above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    digests = [sha256_hex(path.encode()) for path in above]
    own: ColumnElement[bool] = versions.c.artifact_uri_digest.in_(digests)
    further: ColumnElement[bool] = sealed_artifacts.c.path_digest.in_(digests)
    if whole_tree:
        below = f"{uri}/"
        own = or_(own, func.substr(versions.c.artifact_uri, 1, len(below)) == below)
        further = or_(further, func.substr(sealed_artifacts.c.path, 1, len(below)) == below)
    live = (
        select(models.c.name, versions.c.version)
        .join(models, models.c.model_uid == versions.c.model_uid)
        .where(versions.c.deleted_ms.is_(None))
    )
    sealed_with = select(sealed_artifacts.c.version_uid).where(further)
    for query in (live.where(own), live.where(versions.c.version_uid.in_(sealed_with))):
        row = connection.execute(query.limit(1)).one_or_none()
        if row is not None:
            return f"it belongs to models:/{row.name}/{row.version}"
    return None


def revoked_reason(connection: Connection, model_uid: str, version: int) -> str | None:
    """Why a live version, or what it was promoted from, was revoked; None when it was not."""
    uid = connection.execute(
        select(versions.c.version_uid).where(
            versions.c.model_uid == model_uid,
            versions.c.version == version,
            versions.c.deleted_ms.is_(None),
        )
    ).scalar_one_or_none()
    found = revocation(connection, uid) if uid else None
    return found[0] if found else None


def revocation(connection: Connection, version_uid: str) -> tuple[str, int] | None:
    """(reason, time) when the version, or one that it was promoted from, was revoked."""
    seen: set[str] = set()
    uid: str | None = version_uid
    while uid is not None and uid not in seen:
        seen.add(uid)
        row = connection.execute(_VERSION.where(versions.c.version_uid == uid)).one_or_none()
        if row is None:
            return None
        if row.revoked_reason is not None:
            source = "" if uid == version_uid else f"its source models:/{row.name}/{row.version}: "
            return f"{source}{row.revoked_reason}", int(row.revoked_ms)
        uid = row.promoted_from
    return None


def artifact_uri(connection: Connection, version_uid: str) -> str | None:
    """Where the version's files lie."""
    return connection.execute(
        select(versions.c.artifact_uri).where(versions.c.version_uid == version_uid)
    ).scalar_one_or_none()


def version_row(connection: Connection, version_uid: str) -> Row[Any]:
    """The whole row of a version."""
    return connection.execute(select(versions).where(versions.c.version_uid == version_uid)).one()
