"""The ``mlflow.app`` named ``governance``: MLflow's own app, our routes, our middleware outermost.

``mlflow server --app-name governance``. With ``CHANCERY_BASIC_AUTH=1`` MLflow's basic-auth app is
the inner one. The factory runs the self-check first and refuses to serve half-governed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from functools import lru_cache
from typing import Any, NoReturn

__all__ = ["create_app"]


def create_app() -> Any:
    """Build the ASGI app; uvicorn calls this once in each worker.

    Ends the process (exit code 3) with an explanation when the server would be half-governed.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.server import BACKEND_STORE_URI_ENV_VAR, REGISTRY_STORE_URI_ENV_VAR
    from mlflow.server import app as flask_app
    from mlflow.server.fastapi_app import create_fastapi_app
    from mlflow.server.handlers import STATIC_PREFIX_ENV_VAR

    from governance.backend import Backend
    from governance.deployment_port import Deployments
    from governance.drift_port import DriftPort
    from governance.drift_settings import DriftSettings
    from governance.errors import ConfigurationError, GovernanceError
    from governance.nonces import NonceStore
    from mlflow_plugins.api.routes import install
    from mlflow_plugins.deployment_store import DeploymentStore
    from mlflow_plugins.doctor import require_governed_server
    from mlflow_plugins.drift_store import DriftStore
    from mlflow_plugins.local_backend import LocalBackend
    from mlflow_plugins.middleware import GovernanceMiddleware
    from mlflow_plugins.registry_store import governor_of
    from mlflow_plugins.request_guard import RequestGuard

    store = os.environ.get(REGISTRY_STORE_URI_ENV_VAR) or os.environ.get(
        BACKEND_STORE_URI_ENV_VAR, ""
    )
    try:
        require_governed_server(store)
        drift_settings = DriftSettings.load()  # a mistake in them stops the server at its start
    except GovernanceError as error:
        _stop(error)
    basic_auth = os.environ.get("CHANCERY_BASIC_AUTH", "0") == "1"
    if basic_auth:
        try:
            from mlflow.server import auth

            app = auth.create_app(flask_app)
        except (ImportError, MlflowException) as error:
            _stop(
                ConfigurationError(
                    f"basic-auth cannot start: {error}",
                    "install mlflow-chancery[server], and set MLFLOW_FLASK_SERVER_SECRET_KEY and "
                    "MLFLOW_AUTH_ADMIN_PASSWORD as MLflow's basic-auth wants them",
                )
            )
    else:
        app = create_fastapi_app(flask_app)
    governor = governor_of(store)

    @lru_cache(maxsize=1)
    def backend() -> Backend:
        return LocalBackend(governor)

    @lru_cache(maxsize=1)
    def deployments() -> Deployments:
        return DeploymentStore(governor, store)

    @lru_cache(maxsize=1)
    def drift() -> DriftPort:
        return DriftStore(governor, drift_settings)

    install(app, backend, deployments, drift, os.environ.get(STATIC_PREFIX_ENV_VAR, "").rstrip("/"))
    guard = RequestGuard(governor)
    return GovernanceMiddleware(
        app,
        key_lookup=guard.key_lookup,
        nonces=NonceStore(governor.engine),
        is_sealed=guard.seal_reason,
        is_owner_sealed=guard.owner_seal_reason,
        on_rejected=guard.rejected,
        basic_auth=basic_auth,
    )


def _stop(error: Exception) -> NoReturn:
    """End the whole server: uvicorn would restart a worker that fails at its start for ever."""
    print(f"chancery: the server does not start.\n{error}", file=sys.stderr, flush=True)
    if multiprocessing.parent_process() is not None:
        os.kill(os.getppid(), signal.SIGTERM)
    raise SystemExit(3) from error
