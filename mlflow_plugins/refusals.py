"""Puts refusals on the ledger so that a flood of them costs a handful of entries.

The first refusal is on the ledger before it is answered. While its window (five minutes) lasts,

- the same one again (event, actor, subject, words) is counted,
- an actor's twenty-first different one is counted too, without its details,

and when the window ends, one event ``gates:refusals:counted`` says how many there were. Nothing is
dropped: the refusals on the ledger and the sum of ``repeated`` are all there ever were. Actors who
are not proven share one window, since they can call themselves what they like; a person who signs
or logs in has their own. So an actor adds at most twenty-one entries in five minutes to each kind
of event and process, and memory is bounded likewise.

Counts are in memory until their window ends or the process does: of a process that is killed, at
most the counts of five minutes are lost, never a first refusal.

Example::

    try:
        act()
    except RefusedError as error:
        refusals_of(governor).record_error(error, "models:/fraud/3")
        raise
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from governance.canonical import sha256_hex
from governance.errors import (
    GovernanceError,
    PromotionDeniedError,
    RefusedError,
    VerificationError,
)
from governance.events import AuditEvent, EventName
from governance.identity import Actor, ProofLevel
from mlflow_plugins.governor import Governor

__all__ = ["BUDGET", "WINDOW_S", "Refusals", "flush_all", "refusals_of"]

_log = logging.getLogger(__name__)

WINDOW_S = 300.0
"""Seconds in which the same refusal is put on the ledger once."""
BUDGET = 20
"""Different refusals of an actor in a window that are put on the ledger one by one."""
_WINDOWS = 512
_LONGEST_SUBJECT, _LONGEST_REASON = 512, 2_000

_Party = tuple[EventName, str, str]


@dataclass(slots=True)
class _Seen:
    """A refusal that is on the ledger, and how often it came again."""

    event_id: str
    subject: str
    code: str
    repeated: int = 0


@dataclass(slots=True)
class _Window:
    actor: Actor
    ends: float
    since: datetime
    seen: dict[str, _Seen] = field(default_factory=dict)
    others: int = 0

    @property
    def repeated(self) -> int:
        return self.others + sum(one.repeated for one in self.seen.values())

    def summary(self) -> AuditEvent:
        again = [one for one in self.seen.values() if one.repeated]
        return AuditEvent(
            EventName.REFUSALS_COUNTED,
            f"actors:/{self.actor.proof.value}/{self.actor.id}",
            {
                "repeated": self.repeated,
                "since": self.since.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "refusals": [
                    {
                        "eventId": one.event_id,
                        "subject": one.subject,
                        "code": one.code,
                        "repeated": one.repeated,
                    }
                    for one in again
                ],
                "others": self.others,
            },
            self.actor,
        )


class Refusals:
    """See the module. Safe to share among threads.

    Args:
        write: Puts an event on the ledger.
        clock: Seconds that only grow.
        window_s: Length of a window.
        budget: Different refusals a window.
    """

    def __init__(
        self,
        write: Callable[[AuditEvent], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        window_s: float = WINDOW_S,
        budget: int = BUDGET,
    ) -> None:
        self._write = write
        self._clock = clock
        self._window_s = window_s
        self._budget = budget
        self._lock = threading.Lock()
        self._windows: dict[_Party, _Window] = {}
        self._timer: threading.Timer | None = None

    def record_error(self, error: RefusedError | VerificationError, subject: str) -> None:
        """Record that ``error`` was the answer to a request about ``subject``."""
        name = EventName.CHANGE_REFUSED
        data: dict[str, Any] = {"code": error.code, "reason": _cut(error.message, _LONGEST_REASON)}
        if isinstance(error, PromotionDeniedError):
            name, data = EventName.PROMOTION_DENIED, error.decision.to_dict()
        event = AuditEvent.now(name, _cut(subject, _LONGEST_SUBJECT), data)
        self.record(event, code=error.code, words=error.message)

    def record(self, event: AuditEvent, *, code: str, words: str) -> None:
        """Put a refusal on the ledger, or count it.

        Args:
            event: The refusal.
            code: The error's code.
            words: What it said: refusals that say something else are not the same.
        """
        key = sha256_hex("\0".join((event.actor.id, event.subject, code, words)).encode())
        self._close_ended()
        with self._lock:
            party, window = self._window(event)
            known = window.seen.get(key)
            first = known is None and len(window.seen) < self._budget
            if first:
                window.seen[key] = _Seen(event.id, event.subject, code)
            elif known is not None:
                known.repeated += 1
            else:
                window.others += 1
        if not first:
            self._arm()
            return
        try:
            self._write(event)
        except BaseException:  # it is not on the ledger: the next one is a first one again
            with self._lock:
                if self._windows.get(party) is window:
                    window.others += window.seen.pop(key).repeated
            raise

    def flush(self) -> None:
        """Put every count on the ledger now."""
        with self._lock:
            ended = list(self._windows.items())
            self._windows.clear()
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        self._write_counts(ended)

    def _window(self, event: AuditEvent) -> tuple[_Party, _Window]:
        actor = event.actor
        if actor.proof.rank < ProofLevel.LOCAL.rank:
            actor = Actor("unproven", ProofLevel.ANONYMOUS)
        party = (event.name, actor.proof.value, actor.id)
        window = self._windows.get(party)
        if window is None:
            window = _Window(actor, self._clock() + self._window_s, datetime.now(UTC))
            self._windows[party] = window
        return party, window

    def _close_ended(self) -> None:
        """Windows whose time is up; the oldest too when there are too many."""
        now = self._clock()
        with self._lock:
            surplus = max(0, len(self._windows) - _WINDOWS + 1)
            ended = [
                (party, window)
                for number, (party, window) in enumerate(self._windows.items())
                if window.ends <= now or number < surplus
            ]
            for party, _ in ended:
                del self._windows[party]
        self._write_counts(ended)

    def _write_counts(self, ended: list[tuple[_Party, _Window]]) -> None:
        for party, window in ended:
            if not window.repeated:
                continue
            try:
                self._write(window.summary())
            except (GovernanceError, SQLAlchemyError, OSError) as error:
                _log.warning(
                    "%d refusals are counted, not yet on the ledger: %s", window.repeated, error
                )
                self._keep(party, window)

    def _keep(self, party: _Party, window: _Window) -> None:
        """Count on from a window that could not be written."""
        with self._lock:
            newer = self._windows.get(party)
            if newer is None:
                window.ends = self._clock() + self._window_s
                self._windows[party] = window
            else:
                newer.others += window.repeated
                newer.since = min(newer.since, window.since)
        self._arm()

    def _arm(self) -> None:
        """See to it that counts are written although nobody is refused any more."""
        with self._lock:
            if self._timer is None and self._windows:
                ends = min(window.ends for window in self._windows.values())
                self._timer = threading.Timer(max(0.1, ends - self._clock()), self._on_time)
                self._timer.name, self._timer.daemon = "chancery-refusals", True
                self._timer.start()

    def _on_time(self) -> None:
        with self._lock:
            self._timer = None
        self._close_ended()
        self._arm()


_by_governor: dict[Governor, Refusals] = {}
_by_governor_lock = threading.Lock()


def refusals_of(governor: Governor) -> Refusals:
    """The one of a database in this process."""
    with _by_governor_lock:
        if not _by_governor:
            atexit.register(flush_all)
        if governor not in _by_governor:
            _by_governor[governor] = Refusals(governor.record_and_cover)
        return _by_governor[governor]


def flush_all() -> None:
    """Put every count of this process on its ledger: at its end, and when a server shuts down."""
    with _by_governor_lock:
        known = list(_by_governor.values())
    for refusals in known:
        refusals.flush()


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
