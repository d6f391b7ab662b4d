"""Many monitors in one process, each for itself.

One thread goes round the subjects, a bounded step for each. Subjects whose states lie in one
database come after each other; then their states are saved together, which the disk confirms while
the next ones have their steps, and what is saved is published. Confirmatory checks and sinks have a
few threads of their own. A subject that fails (its folder is gone, its state was changed, its
profile is another's) is closed without saving, told, and opened anew from its saved state after a
pause that doubles from a second to five minutes; the others go on. Opening is part of that: a
subject that cannot be opened at the start is tried again too.

Example::

    service = Service([Opening("fraud/7/", open_fraud)], checks=1, couriers=4)
    service.run(stopped)                       # until the event is set; saves and closes
    service.once()                             # or: all there is now
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import Event

from drift.monitor import Monitor
from drift.monitor_state import StateDatabase, part_of
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


@dataclass(frozen=True, slots=True)
class _Saving:
    """States of one database that the disk is about to confirm."""

    places: list[_Place]
    committed: Future[None]


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
        together: dict[int, list[_Place]] = {}
        for place in self._places:
            together.setdefault(part_of(place.opening.subject), []).append(place)
        self._groups = list(together.values())
        self._checks = Workers("drift-check", checks)
        self._couriers = Workers("drift-courier", couriers, most_waiting=4096)
        self._committer = ThreadPoolExecutor(1, "drift-commit")
        self._idle_s = idle_s
        self._clock = clock

    @property
    def status(self) -> list[SubjectStatus]:
        """Of each subject, in their order."""
        return [
            SubjectStatus(p.opening.subject, p.seen, p.trouble, p.failures) for p in self._places
        ]

    def run(
        self,
        stopped: Event,
        told: Callable[[list[SubjectStatus]], None] | None = None,
        *,
        alone: bool = False,
    ) -> None:
        """Monitor until ``stopped`` is set; then save and close.

        Args:
            stopped: Set by whoever wants it to end.
            told: Called after each round, with the status.
            alone: The process does nothing else. What is there after the first round stays, then,
                and Python need not look through it for garbage again and again (a tenth of the
                time of a thousand subjects).
        """
        settled = not alone
        try:
            while not stopped.is_set():
                did = self._round(stopped, resting=True)
                if not settled:
                    gc.collect()
                    gc.freeze()
                    settled = True
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
        self._saved(self._begin_to_save(self._places))
        self._committer.shutdown()
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
        saving: list[_Saving] = []
        for group in self._groups:
            did |= self._steps(group, stopped, resting=resting)
            before, saving = saving, self._begin_to_save(group)
            did |= self._publish(before)
        return self._publish(saving) or did

    def _publish(self, saving: Sequence[_Saving]) -> bool:
        """Once it is saved; whether there was anything to save."""
        for place in self._saved(saving):
            self._tried(place, Monitor.publish)
            if place.monitor is not None:
                place.seen = place.monitor.status
        return bool(saving)

    def _steps(self, places: Sequence[_Place], stopped: Event, *, resting: bool) -> bool:
        did = False
        for place in places:
            if stopped.is_set():
                break
            waits = place.due if place.monitor is None else place.rests if resting else 0.0
            if waits and self._clock() < waits:
                continue
            try:
                did |= self._step(place)
            except Exception as error:  # noqa: BLE001 - one subject's; the others go on
                self._failed(place, error)
        return did

    def _begin_to_save(self, places: Sequence[_Place]) -> list[_Saving]:
        """States that are due, confirmed by the disk together: one by one is most of the time.
        Until that is done (``_saved``), these subjects are left alone."""
        prepared: dict[StateDatabase, list[_Place]] = {}
        for place in places:
            if place.monitor is None or not place.monitor.save_due:
                continue
            self._tried(place, Monitor.prepare)
            if place.monitor is not None:
                prepared.setdefault(place.monitor.state.database, []).append(place)
        return [
            _Saving(ready, self._committer.submit(database.commit))
            for database, ready in prepared.items()
        ]

    def _saved(self, saving: Sequence[_Saving]) -> list[_Place]:
        """Wait for the disk; the subjects whose states count now."""
        found = []
        for one in saving:
            error = one.committed.exception()
            for place in one.places:
                if error is not None:
                    self._failed(place, error)
                self._tried(place, Monitor.commit)
                found.append(place)
        return found

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
        if not monitor.save_due:  # if it is, once that is done
            place.seen = monitor.status
        place.trouble, place.pause = "", 0.0
        return did

    def _failed(self, place: _Place, error: BaseException) -> None:
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
