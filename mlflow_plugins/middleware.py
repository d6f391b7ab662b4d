"""The outermost ASGI middleware: who acts, is it them, may this request be carried out at all.

In this order, and any doubt is a refusal in MLflow's error shape, reported to ``on_rejected``:

1. *Actor.* A request with a signature is the key's person (``signed``) or refused; else a name and
   password that MLflow's basic-auth confirms (``basic-auth``); else the name in
   ``X-Chancery-Actor`` (``claimed``); else ``anonymous``. With basic-auth on, our own API wants one
   of the first two, since MLflow's app guards only its own routes.
2. *Origin.* A mutating request to our own API with a foreign ``Origin`` is refused; MLflow checks
   that only in part.
3. *Sealed artifacts.* See ``mlflow_plugins.artifact_routes`` for the routes.
4. *Nonce.* A signed mutating request is carried out once; a retry of a failed one is let through.
   This precedes the body, so that a body sent slowly cannot outlive the signature's time window.
5. *Body.* Compared with the signed digest before the application may act on it.

The actor is the current one (``governance.identity``) while the application runs; the context
reaches MLflow's handlers in their threads. The answer to a signed request is recorded before the
client sees it, so what was acknowledged cannot be replayed. Collaborators are synchronous and run
in threads; when one fails, the answer is 503.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, TypeVar

import anyio.to_thread
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from governance.errors import (
    AuthenticationError,
    GovernanceError,
    RefusedError,
    SealedError,
    UnreachableError,
)
from governance.identity import Actor, ProofLevel, acting_as
from governance.nonces import RENEW_SECONDS, Attempt
from governance.signing.http_signatures import SignedRequest, verify_request
from mlflow_plugins.artifact_routes import ArtifactChange, artifact_changes, match_artifact_route
from mlflow_plugins.basic_auth import PasswordCheck, mlflow_password_check
from mlflow_plugins.request_bodies import BUFFER_LIMIT, GovernedBody
from mlflow_plugins.request_facts import RequestFacts

__all__ = ["GovernanceMiddleware", "Nonces"]

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_DRAIN_SECONDS = 20


class Nonces(Protocol):
    """``governance.nonces.NonceStore``."""

    def begin(self, keyid: str, nonce: str, request_digest: str) -> Attempt: ...
    def renew(self, keyid: str, nonce: str) -> None: ...
    def finish(self, keyid: str, nonce: str, status: int) -> None: ...
    def release(self, keyid: str, nonce: str) -> None: ...


class GovernanceMiddleware:
    """Pure ASGI middleware; nothing may stand outside it.

    Args:
        app: The governed application.
        key_lookup: keyid -> (person, public key PEM), or None when it is not trusted.
        nonces: The nonce store all servers share.
        is_sealed: (path below the artifact proxy's root, method) -> why it may not change, or
            None. For ``DELETE`` also what lies below the path counts.
        on_rejected: Told of each refusal: reason, and facts about the request.
        is_owner_sealed: (``runs:/<id>`` or ``models:/<id>``, path below its artifacts) -> why it
            may not change, or None. Without it, routes that name artifacts so are refused.
        basic_auth: Whether MLflow's basic-auth app is the inner one.
        password_check: Confirms a name and password, if ``basic_auth``.
        clock: The time, with a time zone.
        body_limit: Bytes of a body that are verified before the application starts.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        key_lookup: Callable[[str], tuple[str, str] | None],
        nonces: Nonces,
        is_sealed: Callable[[str, str], str | None],
        on_rejected: Callable[[str, dict[str, Any]], None],
        is_owner_sealed: Callable[[str, str], str | None] | None = None,
        basic_auth: bool = False,
        password_check: PasswordCheck = mlflow_password_check,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        body_limit: int = BUFFER_LIMIT,
    ) -> None:
        self.app = app
        self._key_lookup = key_lookup
        self._nonces = nonces
        self._is_sealed = is_sealed
        self._is_owner_sealed = is_owner_sealed
        self._on_rejected = on_rejected
        self._password_check = password_check if basic_auth else None
        self._clock = clock
        self._body_limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await _Exchange(self, scope, receive, send).run()
        else:  # MLflow has no websockets: what cannot be judged is not let in
            await send({"type": "websocket.close", "code": 1008})

    def identify(self, facts: RequestFacts) -> tuple[Actor, SignedRequest | None]:
        """Who acts, and the request's signature if it has one."""
        actor_named = partial(Actor, code_ref=facts.code_ref, traceparent=facts.traceparent)
        if facts.claims_signature:
            person = ""

            def find_key(keyid: str) -> str | None:
                nonlocal person
                found = self._key_lookup(keyid)
                if found is None:
                    return None
                person, public_key_pem = found
                return public_key_pem

            signed = verify_request(
                method=facts.method,
                path=facts.raw_path,
                query=facts.raw_query,
                headers=facts.headers,
                find_key=find_key,
                now=self._clock(),
            )
            return actor_named(person, ProofLevel.SIGNED, keyid=signed.keyid), signed
        if self._password_check is not None:
            credentials = facts.basic_credentials
            if credentials is not None and self._password_check(*credentials):
                return actor_named(credentials[0], ProofLevel.BASIC_AUTH), None
            if facts.is_own_api:
                raise AuthenticationError(
                    "this server wants a user name and password, or a signed request",
                    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                    "MLFLOW_TRACKING_AUTH=chancery and CHANCERY_KEY",
                )
        claimed = facts.claimed_actor
        if claimed:
            return actor_named(claimed, ProofLevel.CLAIMED), None
        return actor_named("anonymous", ProofLevel.ANONYMOUS), None

    def check_sealed(self, changes: set[ArtifactChange], method: str) -> None:
        """Refuse a change to a sealed artifact (in a thread)."""
        for change in sorted(changes, key=lambda change: (change.owner, change.path)):
            if not change.owner:
                reason = self._is_sealed(change.path, method)
            elif self._is_owner_sealed is not None:
                reason = self._is_owner_sealed(change.owner, change.path)
            else:
                reason = "this server does not say whether its artifacts are sealed"
            if reason:
                raise SealedError(
                    f"the artifact {change.owner or 'mlflow-artifacts:'}/{change.path} may not "
                    f"change: {reason}",
                    "log the files to a new run and register a new version",
                )

    def report(self, actor: Actor, reason: str, details: dict[str, Any]) -> None:
        """Tell ``on_rejected`` (in a thread); a failure there does not undo the refusal."""
        with acting_as(actor):
            self._on_rejected(reason, details)


class _Exchange:
    """One request and its answer."""

    def __init__(self, owner: GovernanceMiddleware, scope: Scope, receive: Receive, send: Send):
        self._owner = owner
        self._scope = scope
        self._receive = receive
        self._send = send
        self._facts = RequestFacts(scope)
        self._actor = Actor("anonymous", ProofLevel.ANONYMOUS)
        self._body = GovernedBody(receive, sha256=None, limit=owner._body_limit)
        self._running: SignedRequest | None = None  # its nonce is ours until settled
        self._started = False

    async def run(self) -> None:
        try:
            receive = await self._admit()
        except ClientDisconnect:
            await self._settle(None)
            return
        except GovernanceError as error:
            await self._refuse(error)
            return
        heartbeat = asyncio.create_task(self._keep_alive()) if self._running else None
        try:
            with acting_as(self._actor):
                await self._owner.app(self._scope, receive, self._answer)
        except Exception:
            if self._started or not self._body.spoiled:
                raise
        finally:
            if heartbeat is not None:
                heartbeat.cancel()
            await asyncio.shield(self._settle(None))
        if self._body.mismatch is not None:
            if self._started:  # too late for an answer: break the connection off
                raise self._body.mismatch
            await self._refuse(self._body.mismatch)

    async def _admit(self) -> Receive:
        """Raise unless the application may run; what it may receive from."""
        facts = self._facts
        self._actor, signed = await self._identify()
        facts.check_origin()
        route = match_artifact_route(facts.path) if facts.mutates else None
        if route and not route[0].needs_body:
            await self._check_artifacts(route, b"")
        if signed is not None:
            self._body = GovernedBody(
                self._receive, sha256=signed.content_sha256, limit=self._owner._body_limit
            )
            if facts.mutates:
                await self._begin(signed)
        needs_body = route is not None and route[0].needs_body
        if signed is None and not needs_body:
            return self._receive
        body = await self._body.read_ahead()
        if route and needs_body:
            if body is None:
                raise RefusedError("the body is too long to see which artifact it would change")
            await self._check_artifacts(route, body)
        return self._body

    async def _identify(self) -> tuple[Actor, SignedRequest | None]:
        if self._facts.claims_signature or self._owner._password_check is not None:
            return await self._ask(self._owner.identify, self._facts)
        return self._owner.identify(self._facts)  # nothing to look up: spare the thread

    async def _begin(self, signed: SignedRequest) -> None:
        attempt = await self._ask(
            self._owner._nonces.begin, signed.keyid, signed.nonce, signed.base_digest
        )
        if attempt is Attempt.BUSY:
            raise _Unavailable("the same signed request is being carried out right now")
        self._running = signed

    async def _check_artifacts(self, route: Any, body: bytes) -> None:
        facts = self._facts
        changes = artifact_changes(
            *route, query=facts.raw_query.decode("latin-1"), body=body, workspace=facts.workspace
        )
        await self._ask(self._owner.check_sealed, changes, facts.method)

    async def _ask(self, question: Callable[..., _T], *args: Any) -> _T:
        """Run a collaborator in a thread; if it breaks, the answer is no."""
        try:
            return await anyio.to_thread.run_sync(partial(question, *args))
        except (AuthenticationError, RefusedError):
            raise
        except Exception as error:
            _logger.exception("cannot judge %s %s", self._facts.method, self._facts.path)
            raise _Unavailable("the server cannot judge the request now") from error

    async def _answer(self, message: Message) -> None:
        """The application's ``send``."""
        if self._body.spoiled and not self._started:
            return  # whatever it says, it says about a body that was not signed or not whole
        if message["type"] == "http.response.start":
            await self._settle(message["status"])
            self._started = True
        await self._send(message)

    async def _settle(self, status: int | None) -> None:
        """Record how the running attempt ended; None: it was not answered."""
        running = self._running
        if running is None:
            return
        nonces = self._owner._nonces
        call = nonces.release if status is None else partial(nonces.finish, status=status)
        try:
            await anyio.to_thread.run_sync(call, running.keyid, running.nonce)
        except Exception:
            # The change is made and its answer known: withholding it would make the client send
            # the request again. The attempt goes stale instead, and the failure is in the log.
            _logger.exception("cannot record the end of request %s", running.nonce)
        self._running = None

    async def _keep_alive(self) -> None:
        while (running := self._running) is not None:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                await anyio.to_thread.run_sync(
                    self._owner._nonces.renew, running.keyid, running.nonce
                )
            except Exception:
                _logger.exception("cannot renew the attempt of request %s", running.nonce)

    async def _refuse(self, error: GovernanceError) -> None:
        facts = self._facts
        final = not isinstance(error, _Unavailable) and self._body.mismatch is None
        await self._settle(error.http_status if final else None)
        details = {
            "code": error.code,
            "method": facts.method,
            "path": facts.path,
            "client": facts.client,
            "claimed": facts.claimed_for_audit,
        }
        _logger.warning("refused %s %s: %s", facts.method, facts.path, error)
        if not isinstance(error, _Unavailable):
            try:
                await anyio.to_thread.run_sync(self._owner.report, self._actor, str(error), details)
            except Exception:
                _logger.exception("cannot report a refused request")
        # A client that is still sending would see a broken connection instead of the reason.
        with suppress(ClientDisconnect, TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._body.discard()
        content = {"error_code": _mlflow_code(error.http_status), "message": str(error)}
        response = JSONResponse(content, error.http_status)
        if error.http_status == 401 and self._owner._password_check and facts.is_own_api:
            response.headers["www-authenticate"] = 'Basic realm="mlflow"'
        await response(self._scope, self._receive, self._send)


class _Unavailable(UnreachableError):
    """Neither yes nor a final no: MLflow's client comes back by itself after a 503."""

    http_status = 503


def _mlflow_code(status: int) -> str:
    match status:
        case 401:
            return "UNAUTHENTICATED"
        case 503:
            return "TEMPORARILY_UNAVAILABLE"
        case _:
            return "PERMISSION_DENIED"
