"""Many monitors in one process, each for itself.

One thread goes round the subjects, a bounded step for each, and then saves their states, which the
disk confirms together; confirmatory checks and sinks have a few threads of their own. A subject
that fails (its folder is gone, its state was changed, its profile is another's) is closed without
saving, told, and opened anew from its saved state after a pause that doubles from a second to five
minutes; the others go on. Opening is part of that: a subject that cannot be opened at the start is
tried again too.

Example::

    service = Service([Opening("fraud/7/", open_fraud)], checks=1, couriers=4)
    service.run(stopped)                       # until the event is set; saves and closes
    service.once()                             # or: all there is now
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event

from drift.monitor import Monitor
from drift.monitor_state import StateDatabase
from drift.status import MonitorStatus
from drift.workers import Workers
from governance.errors import GovernanceError

__all__ = ["Opening", "Service", "SubjectStatus"]

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 300.0

OpenMonitor = Callable[[Workers, Workers], Monitor]
"""Opens a monitor with the threads for checks and for sinks."""


@dataclass(frozen=True, slots=True)
class Opening:
    """How a subject is opened.

    Attributes:
        subject: ``model/version/deployment``.
        open: Reads its profile and state; may raise.
    """

    subject: str
    open: OpenMonitor


@dataclass(frozen=True, slots=True)
class SubjectStatus:
    """How a subject does.

    Attributes:
        subject: ``model/version/deployment``.
        monitor: Its monitor's status, of the last time that it ran; None: it never did.
        trouble: Why it does not run; empty: it does.
        failures: Since the start.
    """

    subject: str
    monitor: MonitorStatus | None
    trouble: str
    failures: int


class _Place:
    """One subject's."""

    __slots__ = ("due", "failures", "monitor", "opening", "pause", "rests", "seen", "trouble")

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self.monitor: Monitor | None = None
        self.seen: MonitorStatus | None = None
        self.trouble = ""
        self.failures = 0
        self.pause = 0.0
        self.due = 0.0
        self.rests = 0.0  # until then


class Service:
    """See the module.

    Args:
        openings: Of the subjects.
        checks: Threads for confirmatory checks.
        couriers: Threads for sinks.
        idle_s: Pause of a subject for which there was nothing to do.
        clock: Seconds, of any beginning.
    """

    def __init__(
        self,
        openings: Sequence[Opening],
        *,
        checks: int = 1,
        couriers: int = 4,
        idle_s: float = 0.2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = [_Place(opening) for opening in openings]
        self._checks = Workers("drift-check", checks)
        self._couriers = Workers("drift-courier", couriers, most_waiting=4096)
        self._idle_s = idle_s
        self._clock = clock

    @property
    def status(self) -> list[SubjectStatus]:
        """Of each subject, in their order."""
        return [
            SubjectStatus(p.opening.subject, p.seen, p.trouble, p.failures) for p in self._places
        ]

    def run(
        self, stopped: Event, told: Callable[[list[SubjectStatus]], None] | None = None
    ) -> None:
        """Monitor until ``stopped`` is set; then save and close.

        Args:
            stopped: Set by whoever wants it to end.
            told: Called after each round, with the status.
        """
        try:
            while not stopped.is_set():
                did = self._round(stopped, resting=True)
                if told is not None:
                    told(self.status)
                if not did:
                    stopped.wait(self._idle_s)
        finally:
            self.close()

    def once(
        self, stopped: Event | None = None, *, flush: bool = False, patience_s: float = 600.0
    ) -> list[SubjectStatus]:
        """All that there is to do now, checks and reports included; then save and close.

        A sink that is away is not waited for: its reports stay on disk.

        Args:
            stopped: Set by whoever wants it to end before.
            flush: Close the windows that are open, however few rows they have.
            patience_s: For checks and sinks.
        """
        ended, flushed = stopped or Event(), not flush
        deadline = self._clock() + patience_s
        try:
            while not ended.is_set():
                if self._round(ended):
                    continue
                if any(p.monitor is not None and p.monitor.busy for p in self._places):
                    if self._clock() > deadline:
                        break
                    ended.wait(0.01)
                elif not flushed:
                    flushed = True
                    for place in self._places:
                        if place.monitor is not None:
                            place.monitor.flush()
                else:
                    break
        finally:
            self.close()
        return self.status

    def close(self) -> None:
        """Save and close every monitor."""
        self._checks.close()
        self._couriers.close()
        for place in self._places:
            self._tried(place, Monitor.wind_up)
        self._save()
        for place in self._places:
            monitor, place.monitor = place.monitor, None
            if monitor is None:
                continue
            try:
                monitor.close()
                place.seen = monitor.status
            except Exception as error:  # noqa: BLE001 - the others are to be saved too
                self._failed(place, error)

    def _round(self, stopped: Event, *, resting: bool = False) -> bool:
        """A step for each, but those that wait or, if they may, rest; whether any did a thing."""
        did = False
        for place in self._places:
            if stopped.is_set():
                break
            waits = place.due if place.monitor is None else place.rests if resting else 0.0
            if waits and self._clock() < waits:
                continue
            try:
                did |= self._step(place)
            except Exception as error:  # noqa: BLE001 - one subject's; the others go on
                self._failed(place, error)
        return self._save() or did  # what was saved can be published

    def _save(self) -> bool:
        """States that are due, confirmed by the disk together: one by one is most of the time."""
        due = [p for p in self._places if p.monitor is not None and p.monitor.save_due]
        prepared: dict[StateDatabase, list[_Place]] = {}
        for place in due:
            self._tried(place, Monitor.prepare)
            if place.monitor is not None:
                prepared.setdefault(place.monitor.state.database, []).append(place)
        for database, places in prepared.items():
            try:
                database.commit()
            except Exception as error:  # noqa: BLE001 - theirs; the others go on
                for place in places:
                    self._failed(place, error)
            for place in places:
                self._tried(place, Monitor.commit)
        return bool(due)

    def _tried(self, place: _Place, act: Callable[[Monitor], object]) -> None:
        """With a subject's monitor, where it has one; one subject's failure stops no other."""
        if place.monitor is None:
            return
        try:
            act(place.monitor)
        except Exception as error:  # noqa: BLE001
            self._failed(place, error)

    def _step(self, place: _Place) -> bool:
        monitor = place.monitor
        if monitor is None:
            monitor = place.monitor = place.opening.open(self._checks, self._couriers)
            if place.trouble:
                _log.warning("%s: runs again", place.opening.subject)
        did = monitor.step()
        # Thousands of folders are not to be listed again because one had something in it.
        idle = not (did or monitor.busy or monitor.save_due)
        place.rests = self._clock() + self._idle_s if idle else 0.0
        place.seen = monitor.status
        place.trouble, place.pause = "", 0.0
        return did

    def _failed(self, place: _Place, error: Exception) -> None:
        ordinary = isinstance(error, GovernanceError | OSError)
        _log.warning("%s: %s", place.opening.subject, error, exc_info=not ordinary)
        if place.monitor is not None:
            with suppress(OSError):
                place.monitor.abandon()
        place.monitor = None
        place.trouble = str(error) or repr(error)
        place.failures += 1
        place.pause = min(max(_FIRST_PAUSE_S, 2 * place.pause), _LONGEST_PAUSE_S)
        place.due = self._clock() + place.pause
