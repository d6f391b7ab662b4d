"""The governed model registry store (``governed+sqlite``, ``governed+postgresql``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from mlflow.entities import LoggedModel
from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
from mlflow.exceptions import MlflowException
from mlflow.prompt.constants import _PROMPT_SOURCE_PLACEHOLDERS
from mlflow.server.constants import READ_REPLICA_BACKEND_STORE_URI_ENV_VAR
from mlflow.store.artifact.utils.models import _parse_model_uri
from mlflow.store.db.utils import _get_managed_session_maker, _get_routing_session_maker
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import sessionmaker

from governance import registry
from governance.errors import ConfigurationError, GovernanceError, RevokedError
from governance.settings import plain_database_uri
from mlflow_plugins.artifacts import location_of, read_manifest_at
from mlflow_plugins.exceptions import to_mlflow
from mlflow_plugins.governor import Governor
from mlflow_plugins.registry_guard import PendingVersion, RegistryGuard, pending_version
from mlflow_plugins.session_guard import Guard, governed_session_maker, session_options

__all__ = [
    "GovernedRegistryStore",
    "build",
    "govern_sessions",
    "governor_of",
    "read_replica",
    "refuse_workspaces",
    "remember_logged_model",
]

_logged_models: ContextVar[dict[str, LoggedModel] | None] = ContextVar(
    "chancery_logged_models", default=None
)


@contextmanager
def remembered_logged_models() -> Iterator[None]:
    """Within, the governed tracking store reads each logged model once.

    Registration needs its location before MLflow asks for it, and both must get the same answer.
    """
    token = _logged_models.set({})
    try:
        yield
    finally:
        _logged_models.reset(token)


def remember_logged_model(model_id: str, read: Callable[[], LoggedModel]) -> LoggedModel:
    """What ``read`` gives, or gave before in the same registration."""
    known = _logged_models.get()
    if known is None:
        return read()
    if model_id not in known:
        known[model_id] = read()
    return known[model_id]


def refuse_workspaces() -> None:
    """Raises:
    ConfigurationError: workspaces are on; names would not be unique, and approvals name them.
    """
    if MLFLOW_ENABLE_WORKSPACES.get():
        raise ConfigurationError(
            "governed stores do not support MLflow workspaces",
            "unset MLFLOW_ENABLE_WORKSPACES, or run one governed server for each workspace",
        )


def read_replica() -> str | None:
    """The read replica's plain URI, when MLflow was given one."""
    uri = os.environ.get(READ_REPLICA_BACKEND_STORE_URI_ENV_VAR)
    return plain_database_uri(uri) if uri else None


def govern_sessions(store: Any, guard: Guard) -> None:
    """Give ``store`` sessions that pass ``guard``, on the engines it already has."""
    options = session_options(guard)
    write = sessionmaker(bind=store.engine, **options)
    if store.read_engine is not None:
        read = sessionmaker(bind=store.read_engine, **options)
        maker = _get_routing_session_maker(write, read, store.db_type)
    else:
        maker = _get_managed_session_maker(write, store.db_type)
    store.ManagedSessionMaker = governed_session_maker(maker, guard)


class GovernedRegistryStore(SqlAlchemyStore):
    """MLflow's SQL registry, gated and audited.

    Args:
        db_uri: Plain SQLAlchemy URI.
        governor: The database's governor.
        read_db_uri: Read replica.
    """

    def __init__(self, db_uri: str, governor: Governor, read_db_uri: str | None = None) -> None:
        self.governor = governor
        super().__init__(db_uri, read_db_uri=read_db_uri)

    def _initialize_store_state(self) -> None:
        govern_sessions(self, RegistryGuard(self.governor))
        super()._initialize_store_state()

    def create_model_version(self, name: str, source: str, *args: Any, **kwargs: Any) -> Any:
        """As MLflow's; the artifact is digested before the transaction begins."""
        with remembered_logged_models():
            token = pending_version.set(self._inspect(source, kwargs.get("model_id")))
            try:
                return super().create_model_version(name, source, *args, **kwargs)
            finally:
                pending_version.reset(token)

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        """As MLflow's, which answers 400 when two clients set a new alias at the same moment.

        The second attempt finds the row of the first, and passes the gate again.
        """
        try:
            super().set_registered_model_alias(name, alias, version)
        except MlflowException as error:
            if not isinstance(error.__cause__, IntegrityError):
                raise
            super().set_registered_model_alias(name, alias, version)

    def _inspect(self, source: str, model_id: str | None) -> PendingVersion | None:
        """Digest what lies at the location that MLflow will store for ``source``."""
        if source in _PROMPT_SOURCE_PLACEHOLDERS:
            return None
        named = _parse_model_uri(source) if source.startswith("models:/") else None
        model_id = (named.model_id if named else None) or model_id
        uri, model = source, None
        try:
            if named and named.name and named.version:
                uri = super().get_model_version_download_uri(named.name, named.version)
            if model_id:
                model = MlflowClient().get_logged_model(model_id)
                if named and named.model_id:
                    uri = model.artifact_location
        except MlflowException as error:  # MLflow itself will say so in a moment
            return PendingVersion(None, None, None, error.message)
        location = location_of(uri)
        own = model is None or uri == model.artifact_location
        if model and not own and location != location_of(model.artifact_location):
            problem = f"{uri} is not where the files of logged model {model_id} lie"
            return PendingVersion(location, None, None, problem)
        manifest, unreadable = read_manifest_at(location)
        return PendingVersion(
            location, model_id, manifest, unreadable, model.source_run_id if model else None
        )

    def get_model_version_download_uri(self, name: str, version: str) -> Any:
        """As MLflow's; a revoked version's is refused to every client."""
        try:
            with self.governor.engine.connect() as connection:
                uid = registry.model_uid(connection, name)
                revoked = uid and registry.revoked_reason(connection, uid, int(version))
            if revoked:
                raise RevokedError(
                    f"models:/{name}/{version} was revoked: {revoked}",
                    "load another version",
                )
        except GovernanceError as error:
            raise to_mlflow(error) from error
        return super().get_model_version_download_uri(name, version)


def build(store_uri: str) -> GovernedRegistryStore:
    """The factory behind the entry points."""
    try:
        refuse_workspaces()
        return GovernedRegistryStore(
            plain_database_uri(store_uri), governor_of(store_uri), read_replica()
        )
    except GovernanceError as error:
        raise to_mlflow(error) from error


def governor_of(store_uri: str) -> Governor:
    from mlflow.store.db.utils import _all_tables_exist, _initialize_tables

    from governance.database import connect

    engine = connect(plain_database_uri(store_uri))
    if not _all_tables_exist(engine):
        _initialize_tables(engine)
    return Governor.of(store_uri)
