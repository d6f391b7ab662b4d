"""Protected registered models: where the name of the model is the environment.

MLflow's pattern of one registered model for each environment promotes by copying: the UI's
*Promote model* button makes a version of ``prod.fraud`` whose source is ``models:/fraud/3``. When
the policy protects ``prod.fraud``, making that version is the promotion. It must be a copy, of a
governed version, of the same bytes, and that version must pass the environment's gate with a
statement that names ``prod.fraud``: what people approved as fraud is not served as loans.

A rename is no way around: approvals and origins are kept for names.
"""

from __future__ import annotations

import shlex

from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.utils.models import _parse_model_uri
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from sqlalchemy import func, select
from sqlalchemy.engine import Connection

from governance import registry
from governance.canonical import Manifest
from governance.errors import NotFoundError, RefusedError
from governance.gates.policy import Policy
from governance.records import Candidate
from mlflow_plugins.governor import Governor

__all__ = ["admit_copy", "governed_version", "refuse_protected_rename"]


def admit_copy(
    governor: Governor,
    connection: Connection,
    row: SqlModelVersion,
    environment: str,
    manifest: Manifest | None,
    unreadable: str | None,
) -> tuple[Candidate, str]:
    """Let a new version of a protected registered model be made.

    Args:
        governor: The database's governor.
        connection: The change's own connection.
        row: The new version.
        environment: The environment that the model's name means.
        manifest: The files of the new version, as they were read just now.
        unreadable: Why they could not be.

    Returns:
        The version it is a copy of, and the id of the statement that one was let in by.

    Raises:
        PromotionDeniedError: the source does not meet the environment's conditions.
        RefusedError: it is no copy of a governed version, or of other bytes.
    """
    subject = f"models:/{row.name}/{row.version}"
    source = governed_version(connection, row.source or "")
    if source is None:
        raise RefusedError(
            f"{row.name} is a registered model of {environment}, which takes copies of approved "
            f"versions only, and {row.source or 'nothing'!r} is no governed model version",
            "register it in another model, `chancery request models:/<other>/<version> "
            f"--to {environment} --as {shlex.quote(row.name)}`, have it approved, and copy it then",
            subject=subject,
        )
    if manifest is None or manifest.manifest_digest != source.manifest_digest:
        raise RefusedError(
            f"the files for {subject} "
            + (f"are not those of {source.uri}" if manifest else f"are not known: {unreadable}"),
            "find out who changed the artifact store; register the model again in another model, "
            "have that version approved, and copy it then",
            subject=subject,
        )
    statement = governor.admit(
        connection, source.model_name, source.version, environment, served_as=row.name
    )
    return source, statement


def governed_version(connection: Connection, uri: str) -> Candidate | None:
    """The governed version that a source (``models:/name/version``) names, as MLflow reads it."""
    if not uri.startswith("models:/"):
        return None
    try:
        parsed = _parse_model_uri(uri)
        if parsed.model_id is not None or not (parsed.name and parsed.version):
            return None
        return registry.candidate(connection, parsed.name, int(parsed.version))
    except (MlflowException, NotFoundError, ValueError):
        return None


def refuse_protected_rename(policy: Policy, connection: Connection, old: str, new: str) -> None:
    """A name that means an environment is neither taken nor left by a model with versions.

    Raises:
        RefusedError: it would be, or copies in protected models name ``old`` as their origin.
    """
    subject = f"models:/{old}"
    if copies := registry.copies_of(connection, old):
        raise RefusedError(
            f"{subject} cannot be renamed to {new}: {', '.join(copies[:5])} came from it, and "
            "approvals are given for a name",
            "delete these versions first, or keep the name",
            subject=subject,
        )
    protected = [
        f"{name} is a registered model of {environment.name}"
        for name in (old, new)
        if (environment := policy.environment_for_registered_model(name))
    ]
    if not protected:
        return
    count = connection.execute(
        select(func.count())
        .select_from(SqlModelVersion)
        .where(
            SqlModelVersion.name == old,
            func.coalesce(SqlModelVersion.current_stage, "None") != STAGE_DELETED_INTERNAL,
        )
    ).scalar_one()
    if count:
        raise RefusedError(
            f"{subject} has versions and cannot be renamed to {new}: {', '.join(protected)}",
            "leave the name, and promote versions by copying them once they are approved",
            subject=subject,
        )
