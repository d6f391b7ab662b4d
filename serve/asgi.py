"""The listener's application: MLflow's routes as plain ASGI, over a port that answers requests.

::

    POST /invocations   → ``submit(body, headers)``
    GET  /ping, /health → 200 while ``healthy()``, else 503
    GET  /version       → MLflow's version
    GET  /metrics       → what ``await metrics()`` gives; 404 without it

Everything else is answered in the words of ``mlflow models serve``: 404, 405, and a redirect for a
trailing slash. It knows no model: a router or a scorer stands behind ``submit``.

A client cannot take more memory than it is given: no more of a body is kept once it is, or says it
will be, too large (413); all bodies together have a budget (503 beyond it); a body that comes too
slowly ends in 408. Slow *headers* are the listener's affair: ASGI never sees them.

Each request has an id and a trace: ``x-request-id`` and ``traceparent`` are taken from the client
if they are well-formed, else made; both are handed to ``submit`` among the headers and sent back.
Of a request that is sampled ``traceparent`` names the span ``gateway`` (``serve.spans``).

Example::

    async def submit(body: bytes, headers: Mapping[str, str]) -> Answer:
        return await batcher.submit((headers.get("content-type"), body))

    uvicorn.run(ScoringApp(submit, version=mlflow.__version__), interface="asgi3")
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

from serve.answer import (
    JSON,
    Answer,
    Header,
    OverloadedError,
    failed,
    overloaded,
    refused,
    timed_out,
)

if TYPE_CHECKING:
    from serve.spans import Sampled
    from serve.tracing import Tracing

__all__ = ["AppLimits", "ScoringApp", "Submit", "Told"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

Submit = Callable[[bytes, Mapping[str, str]], Awaitable[Answer]]
"""Answers a request: its body, and its headers by lower-case name.

May raise `OverloadedError` (503) and `TimeoutError` (504); anything else becomes 500.
"""

Told = tuple[Answer, tuple[Header, Header]]
"""An answer, and the headers that say which request and which trace it is of."""

_logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}")
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")
_CLOSE: Header = (b"connection", b"close")
_METHODS = {
    "/invocations": "POST",
    "/ping": "GET",
    "/health": "GET",
    "/version": "GET",
    "/metrics": "GET",
}


@dataclass(frozen=True, slots=True)
class AppLimits:
    """What clients may ask of the listener.

    Args:
        body_bytes: Size of one body.
        total_bytes: Size of all bodies that are being read or answered.
        read_s: Seconds from a request's headers to the end of its body.
        discard_bytes: How much of a too large body is read and thrown away, so that the client,
            which listens only when all is sent, hears why. Beyond it the connection is closed.
    """

    body_bytes: int = 16 << 20
    total_bytes: int = 512 << 20
    read_s: float = 20.0
    discard_bytes: int = 128 << 20


class _RefusedError(Exception):
    """Carries the answer to a request that cannot be read."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class _GoneError(Exception):
    """The client went away."""


class ScoringApp:
    """An ASGI application (version 3).

    Args:
        submit: Answers the requests to ``/invocations``.
        version: Answered to ``/version``: MLflow's version.
        healthy: Whether ``/ping`` and ``/health`` say so.
        metrics: Gives the content type and body of ``/metrics``.
        limits: What clients may ask.
        make_id: Gives ``2 * n`` random lower-case hexadecimal digits for ``n``.
        tracing: Makes spans of sampled requests; None: of none.
    """

    def __init__(
        self,
        submit: Submit,
        *,
        version: str = "",
        healthy: Callable[[], bool] = lambda: True,
        metrics: Callable[[], Awaitable[tuple[str, bytes]]] | None = None,
        limits: AppLimits | None = None,
        make_id: Callable[[int], str] = secrets.token_hex,
        tracing: Tracing | None = None,
    ) -> None:
        self._submit = submit
        self._version = version
        self._healthy = healthy
        self._metrics = metrics
        self._limits = limits or AppLimits()
        self._make_id = make_id
        self._tracing = tracing
        self._held = 0

    @property
    def held_bytes(self) -> int:
        """Size of all bodies that are being read or answered now."""
        return self._held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        invokes = scope["path"] == "/invocations" and scope["method"] == "POST"
        here = self._sampled(headers) if invokes else None
        identifiers = self._identify(headers, here)
        answer: Answer | None = None
        try:
            if invokes:
                answer = await self._invocation(headers, receive)
            else:
                answer = await self._other(scope, headers)
        finally:
            if here is not None:
                here.answered(answer)
        if answer is not None:
            await _respond(send, answer, identifiers)

    async def invoke(self, body: bytes, headers: dict[str, str]) -> Told:
        """The answer to an invocation that somebody read whole (``serve.listener``). Never raises.

        Args:
            body: The request's.
            headers: The request's, by lower-case name; its identifiers are put into them.
        """
        here = self._sampled(headers)
        identifiers = self._identify(headers, here)
        share = len(body)
        self._held += share
        answer: Answer | None = None
        try:
            if self._held > self._limits.total_bytes:
                answer = _too_full()
            else:
                answer = await self._ask(body, headers)
            return answer, identifiers
        finally:
            self._held -= share
            if here is not None:
                here.answered(answer)

    def too_slow(self, headers: dict[str, str]) -> Told:
        """The answer to a request whose body did not come in time."""
        return self._slow(), self._identify(headers)

    @property
    def limits(self) -> AppLimits:
        """What clients may ask."""
        return self._limits

    def _sampled(self, headers: dict[str, str]) -> Sampled | None:
        """The span of an invocation, current from now on; None: it is not sampled."""
        tracing = self._tracing
        if tracing is None or not tracing.wanted(headers):
            return None
        here = tracing.begin("gateway", headers)
        here.enter()
        return here

    def _identify(
        self, headers: dict[str, str], here: Sampled | None = None
    ) -> tuple[Header, Header]:
        """Put request id and trace into ``headers``; the same for the answer."""
        random = self._make_id(40)
        request_id = headers.get("x-request-id", "")
        if not request_id or not _REQUEST_ID.fullmatch(request_id):
            request_id = headers["x-request-id"] = random[:32]
        parent = headers.get("traceparent")
        known = _TRACEPARENT.fullmatch(parent) if parent else None
        if known is None:
            headers.pop("tracestate", None)
        trace, flags = known.groups() if known else (random[32:64], "00")
        traceparent = f"00-{trace}-{random[64:]}-{flags}"
        if here is not None:
            traceparent = here.traceparent
            here.note(request_id=request_id)
        headers["traceparent"] = traceparent
        return (
            (b"x-request-id", request_id.encode("ascii")),
            (b"traceparent", traceparent.encode("ascii")),
        )

    async def _invocation(self, headers: dict[str, str], receive: Receive) -> Answer | None:
        """The answer of the port; None when the client is gone."""
        share = _Share()
        try:
            body = await self._read(headers, receive, share)
            return await self._ask(body, headers)
        except _GoneError:
            return None
        except _RefusedError as refusal:
            return refusal.answer
        finally:
            self._held -= share.size

    async def _ask(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """What the port answers; whatever it raises is an answer too."""
        try:
            return await self._submit(body, headers)
        except OverloadedError as error:
            return overloaded(error)
        except TimeoutError:
            return timed_out()
        except Exception:
            _logger.exception("request %s failed", headers["x-request-id"])
            return failed()

    def _slow(self) -> Answer:
        slow = f"the body did not arrive within {self._limits.read_s:g} s"
        return refused(408, "REQUEST_TIMEOUT", slow, _CLOSE)

    async def _read(self, headers: Mapping[str, str], receive: Receive, share: _Share) -> bytes:
        """The body; what it takes of the budget is in ``share``, also when this raises."""
        clock = _Clock(self._limits.read_s)
        try:
            return await self._read_in_time(headers, receive, share)
        except asyncio.CancelledError:
            if not clock.ran_out():
                raise
            raise _RefusedError(self._slow()) from None
        finally:
            clock.stop()

    async def _read_in_time(
        self, headers: Mapping[str, str], receive: Receive, share: _Share
    ) -> bytes:
        declared = headers.get("content-length", "")
        expected = int(declared[:20]) if declared.isdecimal() else 0
        if expected > self._limits.body_bytes:
            waits = "expect" in headers  # has sent nothing yet, and hears us at once
            await self._refuse_size(receive, expected, at_once=waits)
        chunks: list[bytes] = []
        more = True
        while more:
            chunk, more = await _chunk(receive)
            chunks.append(chunk)
            share.size += len(chunk)
            self._held += len(chunk)
            if share.size > self._limits.body_bytes:
                chunks.clear()
                self._held -= share.size
                size, share.size = share.size, 0
                await self._refuse_size(receive, size if more else 0)
            if self._held > self._limits.total_bytes:
                raise _RefusedError(_too_full())
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _refuse_size(self, receive: Receive, size: int, *, at_once: bool = False) -> NoReturn:
        """413, after the rest was thrown away; ``size`` 0: nothing is to come."""
        limit = self._limits.body_bytes
        more = size > 0 and not at_once and size <= limit + self._limits.discard_bytes
        thrown = 0
        while more and thrown <= self._limits.discard_bytes:
            chunk, more = await _chunk(receive)
            thrown += len(chunk)
        large = f"the body is larger than {limit} bytes"
        raise _RefusedError(refused(413, "REQUEST_TOO_LARGE", large, _CLOSE))

    async def _other(self, scope: Scope, headers: Mapping[str, str]) -> Answer:
        """Every request that asks no model."""
        method, path = scope["method"], scope["path"]
        known = _METHODS.get(path)
        if known is None or (path == "/metrics" and self._metrics is None):
            return _elsewhere(scope, headers) or Answer(404, b'{"detail":"Not Found"}')
        if method != known:
            allow = (b"allow", known.encode())
            return Answer(405, b'{"detail":"Method Not Allowed"}', JSON, (allow,))
        if path == "/version":
            return Answer(200, self._version.encode())
        if path == "/metrics" and self._metrics is not None:
            content_type, body = await self._metrics()
            return Answer(200, body, content_type.encode("latin-1"))
        return Answer(200 if self._healthy() else 503, b"\n")


class _Share:
    """What one request holds of the budget, in bytes."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0


class _Clock:
    """Cancels the current task when time runs out; every request pays less than for `timeout`."""

    __slots__ = ("_out", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        self._task = asyncio.current_task()
        self._out = False
        self._timer = asyncio.get_running_loop().call_later(seconds, self._cancel)

    def _cancel(self) -> None:
        assert self._task is not None
        self._out = True
        self._task.cancel()

    def ran_out(self) -> bool:
        """Whether this clock cancelled the task, and nobody else did; takes it back if so."""
        assert self._task is not None
        return self._out and self._task.uncancel() == 0

    def stop(self) -> None:
        self._timer.cancel()


async def _chunk(receive: Receive) -> tuple[bytes, bool]:
    """The next part of a body, and whether more follows."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise _GoneError
    return message.get("body", b""), message.get("more_body", False)


def _too_full() -> Answer:
    full = OverloadedError("the bodies of other requests fill the memory")
    return overloaded(full).with_headers(_CLOSE)


def _headers(scope: Scope) -> dict[str, str]:
    """By lower-case name; of several with one name, the first."""
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in reversed(scope["headers"])
    }


def _elsewhere(scope: Scope, headers: Mapping[str, str]) -> Answer | None:
    """307 to the path without its trailing slash, as Starlette's router answers."""
    path = scope["path"]
    if not path.endswith("/") or path.rstrip("/") not in _METHODS:
        return None
    query = scope.get("query_string", b"").decode("latin-1")
    place = f"{scope.get('scheme', 'http')}://{headers.get('host', '')}{path.rstrip('/')}"
    place = quote(f"{place}?{query}" if query else place, safe=":/%#?=@[]!$&'()*+,;")
    return Answer(307, b"", b"", ((b"location", place.encode("ascii")),))


async def _respond(send: Send, answer: Answer, identifiers: tuple[Header, ...]) -> None:
    headers = [
        (b"content-length", str(len(answer.body)).encode()),
        *answer.headers,
        *identifiers,
    ]
    if answer.content_type:
        headers.append((b"content-type", answer.content_type))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
