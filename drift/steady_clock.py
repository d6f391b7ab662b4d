"""The clock of a monitor: it does not go back, unless it had gone ahead.

A clock that is set back a little counts as the latest time that it showed, so that nothing is
judged twice. But a time that lies years ahead for a moment (a battery that is empty, before the
network tells the time) must not be remembered for years. Whoever counts by a clock that is hours
behind the latest time asks the rows: where those that were counted last are not from after it, or
some that wait are from about now, the clock is right again and what was remembered is wrong. Else
the clock is wrong, and time stands still until it is set. Both are told.

Example::

    clock = SteadyClock(now_ms, found, "fraud/7/")
    if clock.went_back(newest_row_ms, lambda: (block.last_ms for block in waiting)): ...
    clock.now_ms, clock.note
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from drift.cutter import LATEST_MS
from governance.deployment_records import time_text

__all__ = ["SteadyClock"]

_log = logging.getLogger(__name__)

_FAR_MS = 6 * 3_600_000
"""Nobody sets a clock back so far that was right."""


class SteadyClock:
    """See the module.

    Args:
        clock: Milliseconds since the epoch.
        latest_ms: The latest time that it showed before.
        subject: Whose, for the log.
    """

    def __init__(self, clock: Callable[[], int], latest_ms: int, subject: str) -> None:
        self._clock = clock
        self._subject = subject
        self.now_ms = latest_ms
        self._wrong = False  # now
        self.note = ""
        """What people are to know; empty: nothing."""

    def went_back(self, newest_ms: int | None, waiting: Callable[[], Iterable[int]]) -> bool:
        """Read it; whether it goes on from an earlier time, because the one before was wrong.

        Args:
            newest_ms: Of the newest row that was counted.
            waiting: Gives times of rows that wait; asked only where there is a doubt.
        """
        real = self._clock()
        behind = self.now_ms - real
        if behind < _FAR_MS:
            self.now_ms = max(self.now_ms, real)
            if self._wrong:
                self._wrong, self.note = False, ""
            return False
        right = newest_ms is None or newest_ms <= real + _FAR_MS
        right = right or any(abs(one - real) <= _FAR_MS for one in waiting())
        hours = behind // 3_600_000
        if right:
            self._tell(f"our clock was {hours} hours ahead for a while; it goes on from now")
            self.now_ms = real
        else:
            self._wrong = True
            self._tell(f"our clock is {hours} hours behind the rows that came; set it")
        return right

    def blind_for(self, blind_ms: int) -> None:
        """Rows are late for so long: the windows that they belong to were closed while the clock
        was ahead."""
        if blind_ms:
            until = time_text(min(self.now_ms + blind_ms, LATEST_MS))
            self._tell(
                f"{self.note}; windows were closed that end at {until}, and rows are late until "
                "then: begin with a new folder for the state"
            )

    def _tell(self, note: str) -> None:
        if note != self.note:
            _log.error("%s: %s", self._subject, note)
        self.note = note
