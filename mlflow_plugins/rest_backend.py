"""The backend over REST: what commands and verified loads use against a remote server."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from governance.backend import PromotionRequest
from governance.errors import NotFoundError
from governance.lineage import Edge, Node, NodeKind, Relation, Subgraph
from governance.records import Decision
from governance.settings import Settings
from mlflow_plugins.rest_session import ServerSession
from mlflow_plugins.strict_mode import verified_access

__all__ = ["RestBackend", "is_governed"]


class RestBackend:
    """Implements ``governance.backend.Backend`` against ``http(s)://…``.

    Args:
        uri: Address of the MLflow server (with its static prefix, if any).
        settings: Settings of this client.
    """

    def __init__(self, uri: str, settings: Settings) -> None:
        self._server = ServerSession(uri, settings)
        self.uri = self._server.uri
        self._get, self._post = self._server.get, self._server.post

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
        yield from self._server.call("GET", "/ledger/export", stream=True).iter_lines(1 << 16)

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
            raise NotFoundError(
                error.message,
                f"set the alias with MlflowClient().set_registered_model_alias, or name a version, "
                f"as models:/{name}/1",
            ) from error

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


def is_governed(uri: str, settings: Settings) -> bool:
    """Whether the server at ``uri`` answers as a governed one.

    Raises:
        UnreachableError: it does not answer at all, or not with a plain yes or no.
    """
    try:
        document = ServerSession(uri, settings).get("/version")
    except NotFoundError:
        return False
    return document.get("name") == "chancery"
