"""The body of a request, compared with its signed digest before the application may act on it.

A body up to ``limit`` bytes is read and verified before the application runs. A longer one is
hashed while it passes; its last part is held back until the digest is known to be right. If it is
wrong, ``receive`` *raises* instead of answering ``http.disconnect``: MLflow's bridge to Flask takes
a disconnect for the end of the body and would act on a truncated one.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import deque

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from governance.errors import AuthenticationError

__all__ = ["BUFFER_LIMIT", "GovernedBody"]

BUFFER_LIMIT = 64 * 1024 * 1024


class GovernedBody:
    """Reads a request's body; an instance is the ``receive`` that the application gets.

    Args:
        receive: The server's ``receive``.
        sha256: Digest the body must have; None accepts any.
        limit: Bytes to read ahead of the application.
    """

    def __init__(
        self, receive: Receive, *, sha256: bytes | None, limit: int = BUFFER_LIMIT
    ) -> None:
        self._receive = receive
        self._expected = sha256
        self._limit = limit
        self._hash = hashlib.sha256()
        self._parts: deque[bytes] = deque()
        self._ended = False
        self._delivered = False
        self._cut_short = False
        self.mismatch: AuthenticationError | None = None

    @property
    def spoiled(self) -> bool:
        """Whether the body is wrong or cut short: no answer to it counts."""
        return self._cut_short or self.mismatch is not None

    async def read_ahead(self) -> bytes | None:
        """The whole verified body, still to be received; None when it is longer than the limit.

        Raises:
            AuthenticationError: the body is not the one that was signed.
            ClientDisconnect: the client went away.
        """
        size = 0
        while not self._ended:
            size += await self._pull()
            if size > self._limit:
                return None
        if self.mismatch is not None:
            raise self.mismatch
        return b"".join(self._parts)

    async def __call__(self) -> Message:
        """ASGI ``receive``.

        Raises:
            ClientDisconnect: the body is wrong or cut short; the application must not act on it.
        """
        if self._delivered:
            return await self._receive()
        while not self._ended and len(self._parts) < 2:  # one part is always held back
            await self._pull()
        if self.mismatch is not None:
            raise ClientDisconnect
        part = self._parts.popleft() if self._parts else b""
        self._delivered = self._ended and not self._parts
        return {"type": "http.request", "body": part, "more_body": not self._delivered}

    async def discard(self) -> None:
        """Read what the client still sends, up to the limit, so that it can read our answer."""
        size = 0
        while not self._ended and size <= self._limit:
            self._parts.clear()
            size += await self._pull()

    async def _pull(self) -> int:
        message = await self._receive()
        if message["type"] != "http.request":
            self._cut_short = True
            raise ClientDisconnect
        part: bytes = message.get("body", b"")
        if part:
            if self._expected is not None:
                self._hash.update(part)
            self._parts.append(part)
        if not message.get("more_body", False):
            self._ended = True
            right = self._expected is None or hmac.compare_digest(
                self._hash.digest(), self._expected
            )
            if not right:
                self.mismatch = AuthenticationError(
                    "the body is not the one that was signed",
                    "sign the bytes that are sent; a proxy may not change them",
                )
        return len(part)
