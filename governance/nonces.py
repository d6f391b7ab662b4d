"""Nonces of signed requests: each request is carried out once, however often it is sent.

MLflow's client sends the *same* signed request again after 408, 429, 5xx or a broken connection.
That is a retry, not a replay, so the nonce is an idempotency key in a table that all servers
share::

    begin ──► running ──► done      answered for good: refused from now on
                │  ▲
                │  └──── begin      the attempt failed, or its worker died (no ``renew`` for
                ▼                   ``STALE_SECONDS``): may be tried again
              failed                answered 408, 429 or 5xx, or never carried out

``done`` is final. One attempt runs at a time: the insert under the primary key and the conditional
updates decide between processes, on SQLite as on PostgreSQL. A nonce belongs to one request: with
another digest it is refused. Rows outlive the time window of the signature they belong to, so a
purged nonce cannot come back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import ColumnElement, Engine, and_, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from governance.database import nonces
from governance.errors import ReplayError
from governance.signing.http_signatures import WINDOW_SECONDS

__all__ = ["RENEW_SECONDS", "STALE_SECONDS", "Attempt", "NonceStore"]

STALE_SECONDS = 20
"""An attempt that was not renewed for so long has lost its worker."""

RENEW_SECONDS = 5
"""How often a running attempt is to be renewed."""

# A request signed WINDOW ahead of our clock stays valid for 2 x WINDOW; the rest is for clocks of
# several servers that differ.
_KEEP_SECONDS = 2 * WINDOW_SECONDS + 60
_RETRIED_STATUS = frozenset({408, 429})

_RUNNING = "running"
_FAILED = "failed"
_DONE = "done"


class Attempt(StrEnum):
    """What ``begin`` found."""

    FIRST = "first"
    AGAIN = "again"
    BUSY = "busy"
    """Another attempt is running: do nothing now, the client may come back."""


class NonceStore:
    """The shared table of nonces.

    Args:
        engine: The database all servers share.
        clock: The time, with a time zone.
    """

    def __init__(
        self, engine: Engine, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._purge_lock = threading.Lock()
        self._next_purge_ms = 0

    def begin(self, keyid: str, nonce: str, request_digest: str) -> Attempt:
        """Start an attempt; carry the request out only on ``FIRST`` and ``AGAIN``.

        Raises:
            ReplayError: the request was carried out already, or the nonce is another request's.
        """
        now = self._now_ms()
        self._purge(now)
        row = self._row(keyid, nonce)
        for _ in range(8):  # each further round means that another process just changed the row
            if self._insert(keyid, nonce, request_digest, now):
                return Attempt.FIRST
            with self._engine.begin() as connection:
                found = connection.execute(
                    select(nonces.c.request_digest, nonces.c.state, nonces.c.created_ms).where(row)
                ).one_or_none()
            if found is None:
                continue
            if found.request_digest != request_digest:
                raise ReplayError(
                    "the request's nonce was used for another request",
                    "sign every request with a fresh nonce",
                )
            if found.state == _DONE:
                raise ReplayError(
                    "this signed request was carried out already",
                    "look at the result of the first one; to repeat it, sign it anew",
                )
            if found.state == _RUNNING and now - found.created_ms < STALE_SECONDS * 1000:
                return Attempt.BUSY
            unchanged = and_(
                row, nonces.c.state == found.state, nonces.c.created_ms == found.created_ms
            )
            if self._set(unchanged, state=_RUNNING, created_ms=now):
                return Attempt.AGAIN
        return Attempt.BUSY

    def renew(self, keyid: str, nonce: str) -> None:
        """Say that the running attempt's worker is alive."""
        running = and_(self._row(keyid, nonce), nonces.c.state == _RUNNING)
        self._set(running, created_ms=self._now_ms())

    def finish(self, keyid: str, nonce: str, status: int) -> None:
        """Record the answer: 408, 429 and 5xx allow a retry, any other is final."""
        if status >= 500 or status in _RETRIED_STATUS:
            self.release(keyid, nonce)
        else:
            self._set(self._row(keyid, nonce), state=_DONE)

    def release(self, keyid: str, nonce: str) -> None:
        """Record that the request was not carried out: it may be sent again."""
        running = and_(self._row(keyid, nonce), nonces.c.state == _RUNNING)
        self._set(running, state=_FAILED)

    def _now_ms(self) -> int:
        return int(self._clock().timestamp() * 1000)

    @staticmethod
    def _row(keyid: str, nonce: str) -> ColumnElement[bool]:
        return and_(nonces.c.keyid == keyid, nonces.c.nonce == nonce)

    def _insert(self, keyid: str, nonce: str, request_digest: str, now: int) -> bool:
        values = {
            "keyid": keyid,
            "nonce": nonce,
            "request_digest": request_digest,
            "state": _RUNNING,
            "created_ms": now,
        }
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(nonces).values(values))
        except IntegrityError:
            return False
        return True

    def _set(self, where: ColumnElement[bool], **values: str | int) -> bool:
        with self._engine.begin() as connection:
            return bool(connection.execute(update(nonces).where(where).values(**values)).rowcount)

    def _purge(self, now: int) -> None:
        """Delete rows whose requests are too old to be accepted, at most once in a window."""
        with self._purge_lock:
            if now < self._next_purge_ms:
                return
            self._next_purge_ms = now + WINDOW_SECONDS * 1000
        with self._engine.begin() as connection:
            connection.execute(
                delete(nonces).where(nonces.c.created_ms < now - _KEEP_SECONDS * 1000)
            )
