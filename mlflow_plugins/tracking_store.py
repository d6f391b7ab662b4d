"""The governed tracking store (``governed+sqlite``, ``governed+postgresql``)."""

from __future__ import annotations

import os
from typing import Any

from mlflow.entities import LoggedModel
from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR
from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from governance.errors import GovernanceError
from governance.settings import plain_database_uri
from mlflow_plugins.exceptions import to_mlflow
from mlflow_plugins.governor import Governor
from mlflow_plugins.registry_store import (
    govern_sessions,
    governor_of,
    read_replica,
    refuse_workspaces,
    remember_logged_model,
)
from mlflow_plugins.tracking_guard import TrackingGuard

__all__ = ["GovernedTrackingStore", "build"]


class GovernedTrackingStore(SqlAlchemyStore):
    """MLflow's SQL tracking store, sealed and audited.

    Args:
        db_uri: Plain SQLAlchemy URI.
        default_artifact_root: As MLflow's.
        governor: The database's governor.
        read_db_uri: Read replica.
    """

    def __init__(
        self,
        db_uri: str,
        default_artifact_root: str | None,
        governor: Governor,
        read_db_uri: str | None = None,
    ) -> None:
        self.governor = governor
        super().__init__(db_uri, default_artifact_root, read_db_uri=read_db_uri)

    def _initialize_store_state(self) -> None:
        govern_sessions(self, TrackingGuard(self.governor))
        super()._initialize_store_state()

    def get_logged_model(self, model_id: str, *args: Any, **kwargs: Any) -> LoggedModel:
        """As MLflow's; once for all who ask in the same registration."""
        read = super().get_logged_model
        if args or kwargs:
            return read(model_id, *args, **kwargs)
        return remember_logged_model(model_id, lambda: read(model_id))


def build(store_uri: str, artifact_uri: str | None) -> GovernedTrackingStore:
    """The factory behind the entry points."""
    try:
        refuse_workspaces()
        return GovernedTrackingStore(
            plain_database_uri(store_uri),
            artifact_uri
            or os.environ.get(ARTIFACT_ROOT_ENV_VAR, DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH),
            governor_of(store_uri),
            read_replica(),
        )
    except GovernanceError as error:
        raise to_mlflow(error) from error
