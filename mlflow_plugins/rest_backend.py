"""The backend over REST: what commands and verified loads use against a remote server.

Requests go through the ``requests`` session that MLflow's own client uses, so that its
credentials, TLS settings and timeouts apply; with ``CHANCERY_KEY`` set they are signed as well.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import requests

from governance import errors
from governance.backend import PromotionRequest
from governance.errors import (
    GovernanceError,
    NotFoundError,
    PromotionDeniedError,
    UnreachableError,
)
from governance.lineage import Edge, Node, NodeKind, Relation, Subgraph
from governance.records import Decision
from governance.settings import Settings
from mlflow_plugins.request_headers import GovernanceHeaderProvider
from mlflow_plugins.strict_mode import verified_access

__all__ = ["RestBackend", "is_governed"]

_TIMEOUT_S = 120.0
_ERRORS_BY_CODE: dict[str, type[GovernanceError]] = {
    cls.code: cls
    for cls in (getattr(errors, name) for name in errors.__all__)
    if cls is not PromotionDeniedError  # it takes a decision
}


class RestBackend:
    """Implements ``governance.backend.Backend`` against ``http(s)://…``.

    Args:
        uri: Address of the MLflow server (with its static prefix, if any).
        settings: Settings of this client.
    """

    def __init__(self, uri: str, settings: Settings) -> None:
        self.uri = uri.rstrip("/")
        self._settings = settings
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

    def _call(self, method: str, path: str, **options: Any) -> requests.Response:
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

    def _get(self, path: str, **params: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._call("GET", path, params=params).json()
        return found

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self._call("POST", path, json=body).json()
        return found

    def request_promotion(
        self, name: str, version: int, environment: str, *, served_as: str | None = None
    ) -> PromotionRequest:
        body: dict[str, Any] = {"name": name, "version": version, "environment": environment}
        if served_as is not None:
            body["servedAs"] = served_as
        return PromotionRequest.from_dict(self._post("/promotions", body))

    def promotion_request(self, statement_id: str) -> PromotionRequest:
        return PromotionRequest.from_dict(self._get(f"/promotions/{quote(statement_id, safe='')}"))

    def promotion_requests(self, name: str | None = None) -> Sequence[PromotionRequest]:
        params = {"name": name} if name else {}
        return [
            PromotionRequest.from_dict(d) for d in self._get("/promotions", **params)["promotions"]
        ]

    def approve(self, statement_id: str, bundle: str) -> PromotionRequest:
        path = f"/promotions/{quote(statement_id, safe='')}/approvals"
        return PromotionRequest.from_dict(self._post(path, {"bundle": bundle}))

    def evaluate(
        self, name: str, version: int, environment: str, *, served_as: str | None = None
    ) -> Decision:
        path = f"{_version_path(name, version)}/decision"
        return Decision.from_dict(self._get(path, environment=environment, servedAs=served_as))

    def revoke(self, name: str, version: int, reason: str) -> None:
        self._post(f"{_version_path(name, version)}/revoke", {"reason": reason})

    def release(self, name: str, version: int) -> Mapping[str, Any]:
        return self._get(f"{_version_path(name, version)}/release")

    def trust_roots(self) -> Sequence[tuple[bytes, Sequence[str]]]:
        return [
            (base64.b64decode(d["payload"], validate=True), d["bundles"])
            for d in self._get("/trust-roots")["trustRoots"]
        ]

    def change_trust_roots(self, payload: bytes, bundles: Sequence[str]) -> None:
        body = {"payload": base64.b64encode(payload).decode(), "bundles": list(bundles)}
        self._post("/trust-roots", body)

    def ledger_export(self) -> Iterator[bytes]:
        yield from self._call("GET", "/ledger/export", stream=True).iter_lines(1 << 16)

    def ledger_entries(self, start: int, limit: int) -> Sequence[tuple[int, bytes]]:
        found = self._get("/ledger/entries", start=start, limit=limit)["entries"]
        return [(entry["index"], entry["event"].encode()) for entry in found]

    def lineage(self, node_id: str, *, direction: str, depth: int) -> Subgraph:
        found = self._get("/lineage", node=node_id, direction=direction, depth=depth)
        return Subgraph(
            root=found["root"],
            direction=found["direction"],
            nodes=tuple(
                Node(n["id"], NodeKind(n["kind"]), n["attributes"]) for n in found["nodes"]
            ),
            edges=tuple(
                Edge(e["source"], Relation(e["relation"]), e["target"], e["eventId"])
                for e in found["edges"]
            ),
            truncated=found["truncated"],
        )

    def resolve(self, name: str, version_or_alias: str) -> int:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        if not version_or_alias.startswith("@"):
            return int(version_or_alias)
        client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        try:
            return int(client.get_model_version_by_alias(name, version_or_alias[1:]).version)
        except MlflowException as error:
            raise NotFoundError(error.message) from error

    def download(self, name: str, version: int, destination: str) -> str:
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        try:
            source = client.get_model_version_download_uri(name, str(version))
            repository = get_artifact_repository(source, tracking_uri=self.uri)
            with verified_access():
                return str(repository.download_artifacts("", destination))
        except MlflowException as error:
            raise NotFoundError(
                f"cannot fetch models:/{name}/{version}: {error.message}"
            ) from error


def _version_path(name: str, version: int) -> str:
    return f"/models/{quote(name, safe='')}/versions/{version}"


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


def is_governed(uri: str, settings: Settings) -> bool:
    """Whether the server at ``uri`` answers as a governed one.

    Raises:
        UnreachableError: it does not answer at all, or not with a plain yes or no.
    """
    try:
        document = RestBackend(uri, settings)._get("/version")
    except NotFoundError:
        return False
    return document.get("name") == "chancery"
