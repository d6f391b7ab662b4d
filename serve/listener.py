"""uvicorn's HTTP protocol, with a time limit for a request's headers, and one write an answer.

uvicorn limits how long an idle connection stays open between requests, but not how long a new one
may take to say anything, nor how slowly headers may come: a client that sends a byte a second holds
its connection for ever. `GuardedProtocol` closes such a connection. Slow bodies are ended by
`serve.asgi`, which sees them.

uvicorn writes an answer's head and body one after the other, and uvloop sends each at once. The
second system call, and the client's second waking, take a fifth of a small answer's time: here what
is written in one turn of the loop leaves together.

Example::

    uvicorn.Config(app, http=GuardedProtocol, interface="asgi3", loop="uvloop", log_config=None)
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["GuardedProtocol"]


class GuardedProtocol(HttpToolsProtocol):
    """Closes connections whose request does not get to the end of its headers in time.

    Attributes:
        header_s: Seconds from the opening of a connection, or from the first byte of a later
            request, to the end of the headers.
    """

    header_s: ClassVar[float] = 10.0

    _guard: asyncio.TimerHandle | None = None
    _begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Together(transport, self.loop))  # type: ignore[arg-type]
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._begun = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._begun = False
        if self._guard is not None:
            self._unwatch()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._begun and self._guard is None:  # only headers that come in several pieces
            self._watch()

    def _watch(self) -> None:
        self._guard = self.loop.call_later(self.header_s, self._too_slow)

    def _unwatch(self) -> None:
        if self._guard is not None:
            self._guard.cancel()
            self._guard = None

    def _too_slow(self) -> None:
        self._guard = None
        if not self.transport.is_closing():
            self.transport.close()


class _Together:
    """A transport whose writes of one turn of the loop leave in one."""

    __slots__ = ("_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._held.append(data)
        if len(self._held) == 1:
            self._loop.call_soon(self._flush)
        else:  # head and body: all there is, mostly
            self._flush()

    def write_now(self, data: bytes) -> None:
        """Send a whole answer, after what was written before it."""
        if self._held:
            self._flush()
        self._transport.write(data)

    def _flush(self) -> None:
        held = self._held
        if held:
            self._held = []
            self._transport.write(held[0] if len(held) == 1 else b"".join(held))

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
