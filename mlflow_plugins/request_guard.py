"""What the middleware asks about a request: whose key, is the artifact sealed; and its refusals."""

from __future__ import annotations

import os
import posixpath
from typing import Any
from urllib.parse import unquote

from governance import registry
from governance.events import AuditEvent, EventName
from mlflow_plugins.artifacts import location_of
from mlflow_plugins.evidence import run_artifacts
from mlflow_plugins.governor import Governor
from mlflow_plugins.refusals import refusals_of

__all__ = ["RequestGuard"]


class RequestGuard:
    """Answers the middleware's questions from one database.

    Args:
        governor: The database's governor.
    """

    def __init__(self, governor: Governor) -> None:
        self._governor = governor

    def key_lookup(self, keyid: str) -> tuple[str, str] | None:
        """(person, public key PEM) of a key in the trust roots; None when it is not trusted."""
        with self._governor.engine.connect() as connection:
            roots = self._governor.roots(connection)
        person, key = roots.person_of(keyid), roots.public_key(keyid)
        if person is None or key is None or roots.is_revoked(keyid):
            return None
        return person.id, key

    def seal_reason(self, path: str, method: str) -> str | None:
        """Why the artifact at ``path`` (below the proxy's root) may not change, or None."""
        clean = posixpath.normpath("/" + unquote(path)).lstrip("/")
        uri = location_of(f"mlflow-artifacts:/{clean}")
        with self._governor.engine.connect() as connection:
            return registry.seal_reason_for_artifact(
                connection, uri, whole_tree=method.upper() == "DELETE"
            )

    def owner_seal_reason(self, owner: str, path: str) -> str | None:
        """The same for an artifact named by its run (``runs:/…``) or logged model."""
        with self._governor.engine.connect() as connection:
            if owner.startswith("models:/"):
                uid = registry.version_uid_behind_logged_model(
                    connection, owner.removeprefix("models:/")
                )
                return "its model is registered" if uid else None
            location = run_artifacts(connection, owner.removeprefix("runs:/"))
            if location is None:
                return None  # no such run: MLflow answers that itself
            clean = posixpath.normpath(f"{location}/{unquote(path).lstrip('/')}")
            return registry.seal_reason_for_artifact(connection, clean, whole_tree=True)

    def rejected(self, reason: str, details: dict[str, Any]) -> None:
        """Audit a request that was turned away; a flood of them is counted."""
        data = {"reason": reason, **{key: str(value) for key, value in details.items()}}
        data["worker"] = str(os.getpid())
        subject = f"requests:{data.get('path', '/')}"
        event = AuditEvent.now(EventName.REQUEST_REJECTED, subject, data)
        refusals_of(self._governor).record(event, code=data.get("code", ""), words=reason)
