"""One governed toy application in memory, with the real nonce store on SQLite."""

from __future__ import annotations

import base64
import hashlib
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from governance.identity import current_actor
from governance.nonces import NonceStore
from governance.signing.http_signatures import sign_request
from governance.signing.keys import FileSigner
from mlflow_plugins.middleware import GovernanceMiddleware

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


@dataclass
class Clock:
    now: datetime = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class Governed:
    """The application, its collaborators' answers, and what they were told."""

    clock: Clock
    signer: FileSigner
    nonces: NonceStore
    keys: dict[str, tuple[str, str]] = field(default_factory=dict)
    sealed: set[str] = field(default_factory=set)
    rejected: list[tuple[str, dict[str, Any], str]] = field(default_factory=list)
    carried_out: list[dict[str, Any]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    broken: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def key_lookup(self, keyid: str) -> tuple[str, str] | None:
        if self.broken == "key_lookup":
            raise OSError("database is gone")
        return self.keys.get(keyid)

    def is_sealed(self, path: str, method: str) -> str | None:
        if self.broken == "is_sealed":
            raise OSError("database is gone")
        path = path.casefold()
        for place in self.sealed:
            within = path == place or path.startswith(f"{place}/")
            above = method == "DELETE" and (not path or place.startswith(f"{path}/"))
            if within or above:
                return "it belongs to models:/fraud/3"
        return None

    def is_owner_sealed(self, owner: str, path: str) -> str | None:
        return "it is sealed" if owner in self.sealed else None

    def on_rejected(self, reason: str, details: dict[str, Any]) -> None:
        self.rejected.append((reason, details, current_actor().id))

    async def endpoint(self, request: Request) -> JSONResponse:
        body = await request.body()
        actor = current_actor()
        seen = {
            "method": request.method,
            "path": request.url.path,
            "body": body.decode("latin-1"),
            "actor": actor.id,
            "proof": actor.proof.value,
            "keyid": actor.keyid,
            "code_ref": actor.code_ref,
            "traceparent": actor.traceparent,
        }
        with self._lock:
            self.carried_out.append(seen)
            status = self.statuses.pop(0) if self.statuses else 200
        return JSONResponse(seen, status)

    def app(self, **options: Any) -> GovernanceMiddleware:
        inner = Starlette(routes=[Route("/{path:path}", self.endpoint, methods=METHODS)])
        return GovernanceMiddleware(
            inner,
            key_lookup=self.key_lookup,
            nonces=options.pop("nonces", self.nonces),
            is_sealed=self.is_sealed,
            on_rejected=self.on_rejected,
            is_owner_sealed=self.is_owner_sealed,
            clock=self.clock,
            **options,
        )

    def client(self, **options: Any) -> TestClient:
        return TestClient(self.app(**options), raise_server_exceptions=False)

    def sign(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        *,
        nonce: str = "n" * 22,
        signer: FileSigner | None = None,
        age: int = 0,
    ) -> dict[str, str]:
        path, _, query = target.partition("?")
        return sign_request(
            signer or self.signer,
            method=method,
            path=path,
            query=query,
            content_sha256=hashlib.sha256(body).digest(),
            created=int(self.clock().timestamp()) - age,
            nonce=nonce,
        )


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}
