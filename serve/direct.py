"""The short way of a request: from the connection to the application without ASGI in between.

Nearly every request is ``POST /invocations`` with a small body of a told length. Through uvicorn's
ASGI cycle such a request costs twice what its answer does: a scope, an event, messages, checks of
each header, timers. `DirectProtocol` reads it with the same parser, asks
``serve.asgi.ScoringApp.invoke``, and writes the answer in one piece.

Everything else goes uvicorn's way, on the same connection: other routes and methods, bodies that
are large or of unknown length, ``Expect``, and a request that comes before the one before it was
answered. To uvicorn a request on the short way looks like a cycle of its own, so that pipelines,
keep-alive and its shutdown work as they do.

Example::

    protocol = DirectProtocol.of(ScoringApp(router.submit), header_s=10.0)
    uvicorn.Config(app, http=protocol, interface="asgi3", loop="uvloop", log_config=None)
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from serve.answer import Answer, Header
from serve.asgi import ScoringApp, Told
from serve.listener import GuardedProtocol

__all__ = ["DIRECT_BYTES", "DirectProtocol"]

DIRECT_BYTES = 64 << 10
"""Size of a body up to which a request may go the short way: what a connection may hold uncounted,
as in uvicorn."""

_KNOWN_HEADERS = 256

_logger = logging.getLogger(__name__)


class _Asked:
    """A request on the short way, with what uvicorn looks for in a cycle."""

    __slots__ = ("body", "headers", "keep_alive", "parts", "response_complete", "task")

    def __init__(self, headers: dict[str, str], *, keep_alive: bool) -> None:
        self.headers = headers
        self.keep_alive = keep_alive
        self.response_complete = False
        self.parts: list[bytes] = []
        self.task: asyncio.Task[None] | None = None


class DirectProtocol(GuardedProtocol):
    """See the module.

    Attributes:
        scoring: The application that is asked.
    """

    scoring: ClassVar[ScoringApp]

    cycle: Any  # uvicorn's, or one of ours
    _asked: _Asked | None = None  # whose body is being read
    _body_clock: asyncio.TimerHandle | None = None
    _keeper: asyncio.TimerHandle | None = None
    _idle_since = 0.0

    @staticmethod
    def of(app: ScoringApp, *, header_s: float) -> type[DirectProtocol]:
        """A protocol for one listener's application."""
        return type("Direct", (DirectProtocol,), {"scoring": app, "header_s": header_s})

    # -- from the parser

    def on_message_begin(self) -> None:
        self._begun = True
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        length = self._direct_length()
        if length < 0:
            self._as_uvicorn()
            super().on_headers_complete()
            return
        self._begun = False
        if self._guard is not None:
            self._unwatch()
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers[::-1]
        }
        keep = bool(self.parser.should_keep_alive())
        asked = self._asked = _Asked(headers, keep_alive=keep)
        self.cycle = asked

    def _direct_length(self) -> int:
        """The length of the body of a request for the short way, else -1."""
        if self.url != b"/invocations" or self.expect_100_continue:
            return -1
        if self.cycle is not None and not self.cycle.response_complete:
            return -1  # it waits for its turn
        parser = self.parser
        if (
            parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or parser.should_upgrade()
        ):
            return -1
        for name, value in self.headers:
            if name == b"content-length":
                length = int(value) if value.isdigit() and len(value) < 10 else -1
                limit = min(DIRECT_BYTES, self.scoring.limits.body_bytes)
                return length if length <= limit else -1
        return -1

    def _as_uvicorn(self) -> None:
        """Make the scope that `on_message_begin` did not."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)

    def on_body(self, body: bytes) -> None:
        if self._asked is None:
            super().on_body(body)
        else:
            self._asked.parts.append(body)

    def on_message_complete(self) -> None:
        asked = self._asked
        if asked is None:
            super().on_message_complete()
            return
        self._asked = None
        if self._body_clock is not None:
            self._body_clock.cancel()
            self._body_clock = None
        parts, asked.parts = asked.parts, []  # it is kept until the next request comes
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        asked.task = self.loop.create_task(self._answer(asked, body))

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._asked is not None and self._body_clock is None:  # only bodies that come in pieces
            self._body_clock = self.loop.call_later(self.scoring.limits.read_s, self._body_is_late)

    # -- to the client

    async def _answer(self, asked: _Asked, body: bytes) -> None:
        try:
            told = await self.scoring.invoke(body, asked.headers)
            if self.flow.write_paused:
                await self.flow.drain()
            self._tell(asked, told)
        except Exception:
            _logger.exception("an answer could not be written")
            self.transport.close()

    def _body_is_late(self) -> None:
        self._body_clock = None
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.keep_alive = False
            self._tell(asked, self.scoring.too_slow(asked.headers))

    def _tell(self, asked: _Asked, told: Told) -> None:
        asked.response_complete = True
        asked.task = None
        if self.transport.is_closing():
            return
        data, closes = _written(*told, keep_alive=asked.keep_alive)
        self.transport.write_now(data)  # type: ignore[attr-defined]
        if closes:
            self.transport.close()
        self.on_response_complete()

    # -- the connection

    def connection_lost(self, exc: Exception | None) -> None:
        if self._body_clock is not None:
            self._body_clock.cancel()
            self._body_clock = None
        self._asked = None
        if isinstance(self.cycle, _Asked):
            # Its answer has no reader any more, but the server waits for it when it ends.
            task = self.cycle.task
            if task is not None:
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
            self.cycle = None
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """As uvicorn's, but for the clock of an idle connection: one does for all its requests."""
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self._keeper is None:
            self._keeper = self.loop.call_later(self.timeout_keep_alive, self._look_whether_idle)

    def _look_whether_idle(self) -> None:
        asks = self._begun or (self.cycle is not None and not self.cycle.response_complete)
        idle_s = 0.0 if asks else self.loop.time() - self._idle_since
        if idle_s >= self.timeout_keep_alive:
            self._keeper = None
            self.timeout_keep_alive_handler()
        else:
            left = self.timeout_keep_alive - idle_s
            self._keeper = self.loop.call_later(left, self._look_whether_idle)


_written_headers: dict[tuple[Header, ...], tuple[bytes, bool]] = {}


def _written(
    answer: Answer, identifiers: tuple[Header, Header], *, keep_alive: bool
) -> tuple[bytes, bool]:
    """An answer's bytes, and whether the connection ends with it."""
    known = _written_headers.get(answer.headers)
    if known is None:
        known = _known(answer.headers)
    headers, closes = known
    (_, request_id), (_, traceparent) = identifiers
    parts: list[Any] = [
        STATUS_LINE[answer.status],
        b"content-length: %d\r\n" % len(answer.body),
        headers,
        b"x-request-id: ",
        request_id,
        b"\r\ntraceparent: ",
        traceparent,
        b"\r\n",
    ]
    if answer.content_type:
        parts += (b"content-type: ", answer.content_type, b"\r\n")
    if not keep_alive and not closes:
        parts.append(b"connection: close\r\n")
    parts += (b"\r\n", answer.body)
    return b"".join(parts), closes or not keep_alive


def _known(headers: tuple[Header, ...]) -> tuple[bytes, bool]:
    """Headers as they are written; they differ by variant and model only, so they are kept."""
    for name, value in headers:
        if any(byte < 0x20 or byte == 0x7F for byte in name + value):
            raise ValueError(f"{name!r}: {value!r} cannot be a header")
    written = b"".join(b"%b: %b\r\n" % header for header in headers)
    closes = (b"connection", b"close") in headers
    if len(_written_headers) >= _KNOWN_HEADERS:
        _written_headers.clear()
    _written_headers[headers] = written, closes
    return written, closes
