"""Chooses the backend for a store URI (entry-point group ``chancery.backend``)."""

from __future__ import annotations

from governance.backend import Backend
from governance.errors import ConfigurationError
from governance.settings import GOVERNED_PREFIX, Settings

__all__ = ["open_backend"]


def open_backend(uri: str) -> Backend:
    """A backend on a governed database, or over REST.

    Raises:
        ConfigurationError: neither ``governed+…`` nor ``http(s)://``.
    """
    if uri.startswith(("http://", "https://")):
        from mlflow_plugins.rest_backend import RestBackend

        return RestBackend(uri, Settings.load())
    if uri.startswith(GOVERNED_PREFIX):
        from mlflow_plugins.local_backend import LocalBackend
        from mlflow_plugins.registry_store import governor_of

        return LocalBackend(governor_of(uri))
    raise ConfigurationError(
        f"{uri!r} is not a governed store",
        "use governed+sqlite:///…, governed+postgresql+psycopg://… or the server's http:// address",
    )
