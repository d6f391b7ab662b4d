"""Requests to a governed server's own routes, and its errors as the same classes here.

They go through a ``requests`` session set up as MLflow's own client sets up its: credentials, TLS
settings and timeouts apply; with ``CHANCERY_KEY`` set they are signed as well.

Example::

    session = ServerSession("http://127.0.0.1:5000", Settings.load())
    session.get("/promotions", name="fraud")["promotions"]
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import requests

from governance import errors
from governance.errors import (
    GovernanceError,
    NotFoundError,
    PromotionDeniedError,
    UnreachableError,
)
from governance.records import Decision
from governance.settings import Settings
from mlflow_plugins.request_headers import GovernanceHeaderProvider

__all__ = ["ServerSession"]

_TIMEOUT_S = (10.0, 120.0)  # to connect; to be answered
_ERRORS_BY_CODE: dict[str, type[GovernanceError]] = {
    cls.code: cls
    for cls in (getattr(errors, name) for name in errors.__all__)
    if cls is not PromotionDeniedError  # it takes a decision
}


class ServerSession:
    """Asks ``http(s)://…``.

    Args:
        uri: Address of the MLflow server (with its static prefix, if any).
        settings: Settings of this client.
    """

    def __init__(self, uri: str, settings: Settings) -> None:
        self.uri = uri.rstrip("/")
        self._session = requests.Session()
        self._session.headers.update(GovernanceHeaderProvider().request_headers())
        if settings.key:
            from mlflow_plugins.request_auth import SignedRequestAuthProvider

            self._session.auth = SignedRequestAuthProvider().get_auth()
        elif username := os.environ.get("MLFLOW_TRACKING_USERNAME"):
            self._session.auth = (username, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
        if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
            self._session.headers["Authorization"] = f"Bearer {token}"
        if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS") == "true":
            self._session.verify = False
        elif certificate := os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"):
            self._session.verify = certificate
        self._session.cert = os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH")

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        """The answer to one request.

        Raises:
            GovernanceError: what the server raised.
            UnreachableError: it cannot be reached, or answers as no governed server does.
        """
        url = f"{self.uri}/api/3.0/chancery{path}"
        try:
            response = self._session.request(method, url, timeout=_TIMEOUT_S, **options)
        except requests.RequestException as error:
            raise UnreachableError(
                f"{self.uri} cannot be reached ({type(error).__name__})",
                "start the server, or correct the address",
            ) from error
        if response.status_code >= 400:
            raise _error_of(response, self.uri)
        return response

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        """The JSON that a ``GET`` answers."""
        return self._json("GET", path, params=params)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON that a ``POST`` answers."""
        return self._json("POST", path, json=body)

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            found = self.call(method, path, **options).json()
        except ValueError as error:
            raise self.strange("no JSON") from error
        if not isinstance(found, dict):
            raise self.strange("no JSON object")
        return found

    def strange(self, what: str) -> UnreachableError:
        """Of an answer that nobody here understands."""
        return UnreachableError(
            f"{self.uri} answered {what}", "install the version that the server has"
        )


def _error_of(response: requests.Response, uri: str) -> GovernanceError:
    """The error the server raised, as the same class here."""
    try:
        document = response.json()
        code, message = str(document["error_code"]), str(document["message"])
        remedy = str(document.get("remedy", ""))
        decision = Decision.from_dict(document["decision"]) if "decision" in document else None
    except (ValueError, KeyError, TypeError):
        return _foreign_error(response, uri)
    if decision is not None:
        return PromotionDeniedError(decision)
    prefix, _, rest = message.partition(": ")
    if code not in _ERRORS_BY_CODE and prefix in _ERRORS_BY_CODE:
        code = prefix  # the outermost middleware answers with MLflow's codes, and says ours
    if code == prefix:
        message = rest
    if not remedy:
        message, _, remedy = message.partition(" Remedy: ")
    away = response.status_code >= 500
    cls = _ERRORS_BY_CODE.get(code, UnreachableError if away else errors.RefusedError)
    return cls(message.removesuffix(f" Remedy: {remedy}"), remedy)


def _foreign_error(response: requests.Response, uri: str) -> GovernanceError:
    """An answer that is not in our shape."""
    if response.status_code == 404:
        return NotFoundError(
            f"{uri} is not a governed server (no /api/3.0/chancery)",
            "start it with --app-name governance",
        )
    if response.status_code == 422:
        return errors.RefusedError(
            f"the server does not take the request: {_faults(response)}", "correct what it names"
        )
    return UnreachableError(f"{uri} answered {response.status_code}", "see the server's log")


def _faults(response: requests.Response) -> str:
    """FastAPI's list of what is wrong with a request, in one line."""
    try:
        found = [
            f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}"
            for one in response.json()["detail"]
        ]
    except (ValueError, KeyError, TypeError):
        return response.reason
    return "; ".join(found)
