"""Cuts a stream of blocks into windows, each row into one window, once.

Windows are cut *by count* (W rows in the order of arrival) or *by time* (stretches of a fixed
length since 1970, by each row's own time). Blocks come from many sources, doubled, late and out of
order:

- A block is named by its source and a number that the source counts up. A block that came before is
  counted as a duplicate and nothing else. Per source, the numbers above the last gap are
  remembered, at most 4,096; a gap that falls out of memory is counted as lost.
- A row up to ``lateness_ms`` older than the newest row seen goes to its window; an older one is
  counted as late. A row whose time lies more than ``ahead_ms`` after our own clock is counted as
  ahead, and does not move time on: one replica with a wrong clock makes nobody else late. Late and
  ahead rows are reported by the next window. When a source's clock goes back, its rows are late or
  not by the same rule. Rows from before 1970 are late, and those from after the year 9999 ahead.
- A stretch without rows gives no window; the next window's index tells of the gap.

Windows stay in ``ready`` until ``taken`` says that they were dealt with, and ``to_json`` holds all
of it. Whoever stores the state before telling sources that their blocks arrived, and judges windows
by their index, loses no window and counts none twice, wherever the process dies.

Example::

    cutter = WindowCutter(profile, rows=1000)
    for window in cutter.add(Rows("replica-1", 17, columns, times_ms), now_ms=clock()):
        judge.step(window); cutter.taken(window.index)
    store(cutter.to_json())
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift.documents import Fields
from drift.profile import DriftProfile
from drift.seen_numbers import REMEMBERED, SeenNumbers
from drift.tables import Table, aligned, clean_name, columns_of
from drift.window import WindowCounts, count_columns
from governance.canonical import canonical_json
from governance.errors import ConfigurationError, MalformedRequestError

__all__ = ["FORMAT", "LATEST_MS", "Rows", "Tally", "Window", "WindowCutter"]

FORMAT = "chancery.drift-cutter/v1"

LATEST_MS = 253402300799999
"""The end of the year 9999: with 1970 the bounds of times that anybody can write."""

_MOST_SOURCES = 10_000
_MOST = 2**53 - 1  # of whatever is told: a source may say that it lost any number of rows


@dataclass(frozen=True, slots=True)
class Rows:
    """A block as it is counted: the profile's columns alone (``drift.block_rows`` makes it).

    Attributes:
        source: Who recorded them; a replica that starts anew takes another name.
        number: Counts the source's blocks up.
        columns: Features, outputs and embeddings by name.
        times_ms: When each row came (n,), or one time for all, in milliseconds since 1970.
        unrecorded: Rows that the source saw and could not record, since its block before.
    """

    source: str
    number: int
    columns: Table
    times_ms: ArrayLike
    unrecorded: int = 0


@dataclass(frozen=True, slots=True)
class Tally:
    """What did not go into windows.

    Attributes:
        late_rows: Came after their window was closed, or too old.
        ahead_rows: From the future.
        duplicate_blocks: Came before, or are older than what is remembered of their source.
        lost_blocks: Numbers of a source that never came while they were remembered.
        forgotten_sources: Sources that fell out of memory: the ones silent for longest.
        unrecorded_rows: Seen by their source, which had no room for them or could not read them.
    """

    late_rows: int = 0
    ahead_rows: int = 0
    duplicate_blocks: int = 0
    lost_blocks: int = 0
    forgotten_sources: int = 0
    unrecorded_rows: int = 0

    @property
    def anything(self) -> bool:
        """Whether there is anything to tell."""
        return self != Tally()

    def to_dict(self) -> dict[str, int]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_fields(cls, fields: Fields) -> Tally:
        """Inverse of ``to_dict``."""
        tally = cls(**{name: fields.integer(name, 0) for name in cls.__slots__})
        fields.done()
        return tally


@dataclass(frozen=True, slots=True)
class Window:
    """A window that is closed.

    Attributes:
        index: Rises from window to window; by time, the stretches since 1970.
        counts: Of its rows.
        tally: What did not go into windows since the one before.
    """

    index: int
    counts: WindowCounts
    tally: Tally = Tally()


class WindowCutter:
    """Windows of one served version.

    Args:
        profile: What is counted by.
        rows: W, to cut by count.
        every_ms: Length of a stretch, to cut by time; one of the two.
        lateness_ms: How much older than the newest a row may be.
        ahead_ms: How far after our clock.

    Raises:
        ConfigurationError: both or neither of ``rows`` and ``every_ms``, or none above 0.
    """

    def __init__(
        self,
        profile: DriftProfile,
        *,
        rows: int | None = None,
        every_ms: int | None = None,
        lateness_ms: int = 60_000,
        ahead_ms: int = 60_000,
    ) -> None:
        if (rows is None) == (every_ms is None) or (rows or every_ms or 0) < 1:
            raise ConfigurationError(
                f"windows of rows={rows} and every_ms={every_ms} cannot be cut",
                "give one of the two, at least 1",
            )
        if lateness_ms < 0 or ahead_ms < 0:
            raise ConfigurationError(
                f"lateness_ms={lateness_ms}, ahead_ms={ahead_ms}: neither may be below 0",
                "give 60000 for a minute",
            )
        self._profile = profile
        self.rows = rows
        self.every_ms = every_ms
        self.lateness_ms = lateness_ms
        self.ahead_ms = ahead_ms
        self._newest: int | None = None
        self._next = 0  # by count: the open window; by time: the first that is not closed
        self._open: dict[int, WindowCounts] = {}
        self._ready: list[Window] = []
        self._seen: dict[str, SeenNumbers] = {}
        self._untold = Tally()
        self.total = Tally()
        """Since the start."""
        self.split: tuple[tuple[int, NDArray[np.int64]], ...] = ()
        """Which rows of the block that was added last went to which window."""

    @property
    def ready(self) -> tuple[Window, ...]:
        """Closed windows that nobody has taken."""
        return tuple(self._ready)

    @property
    def newest_ms(self) -> int | None:
        """Time of the newest row."""
        return self._newest

    @property
    def length(self) -> str:
        """Of a window, for people."""
        return f"{self.rows} rows" if self.rows else f"{(self.every_ms or 0) / 1000:g} s"

    @property
    def open(self) -> dict[int, int]:
        """Rows in each window that is not closed."""
        return {index: window.rows for index, window in sorted(self._open.items())}

    @property
    def open_rows(self) -> int:
        """Rows in windows that are not closed."""
        return sum(window.rows for window in self._open.values())

    def taken(self, index: int) -> None:
        """The windows up to this index were dealt with."""
        self._ready = [window for window in self._ready if window.index > index]

    def add(self, block: Rows, *, now_ms: int) -> tuple[Window, ...]:
        """Take a block; the windows that it closed.

        Raises:
            MalformedRequestError: a block whose columns or times do not fit together. Nothing of it
                is counted then, and it may be sent again.
        """
        columns, rows = aligned(columns_of(block.columns), None)
        times = np.asarray(block.times_ms)
        if times.ndim == 0:
            times = np.broadcast_to(times, (rows,))
        if times.shape != (rows,) or (rows and times.dtype.kind not in "iu"):
            raise MalformedRequestError(
                f"block {block.number} of {block.source!r} has times of {times.dtype} with the "
                f"shape {times.shape} for {rows} rows",
                "send a whole number of milliseconds a row",
            )
        self._check(block.source, block.number)
        self.split = ()
        if self.known(block.source, block.number):
            self._tell(duplicate_blocks=1)
            return ()
        times = times.astype(np.int64)
        kept, late, ahead = self._in_time(times, self._latest(now_ms))
        pieces = []
        split = tuple(self._split(kept, times))
        for index, places in split:
            whole = len(places) == rows
            part = columns if whole else {name: one[places] for name, one in columns.items()}
            pieces.append((index, count_columns(self._profile, part, len(places), times[places])))
        # Nothing is changed above this line, and nothing fails below.
        self._remember(block.source, block.number)
        self.split = split
        self._tell(late_rows=late, ahead_rows=ahead, unrecorded_rows=block.unrecorded)
        return self._take(pieces)

    def add_counts(
        self, source: str, number: int, counts: WindowCounts, *, now_ms: int
    ) -> tuple[Window, ...]:
        """Take a block that its source counted itself. It is not split: by count, a window closes
        once it has W rows or more; by time, the block goes where its first row belongs.

        Raises:
            TamperedError: counted by another profile.
            MalformedRequestError: rows without times.
        """
        counts = WindowCounts.empty(self._profile) + counts
        if counts.rows and (counts.first_ms is None or counts.last_ms is None):
            raise MalformedRequestError(
                f"block {number} of {source!r} has rows without times", "send first_ms and last_ms"
            )
        self._check(source, number)
        if self.known(source, number):
            self._tell(duplicate_blocks=1)
            return ()
        self._remember(source, number)
        if counts.first_ms is None or counts.last_ms is None:
            return ()
        if counts.last_ms > self._latest(now_ms):
            self._tell(ahead_rows=counts.rows)
            return ()
        if counts.first_ms < self._oldest():
            self._tell(late_rows=counts.rows)
            return ()
        index = self._next if self.every_ms is None else counts.first_ms // self.every_ms
        return self._take([(index, counts)])

    def tick(self, *, now_ms: int) -> tuple[Window, ...]:
        """Time goes on without rows: close, by time, what nothing can come to any more."""
        return self._close(now_ms) if self.every_ms is not None else ()

    def go_back(self, now_ms: int) -> int:
        """Our clock had gone ahead, and is right again: what it let in from the future is ahead
        after all. How long rows are late because later windows are closed already, in ms."""
        latest = self._latest(now_ms)
        if self._newest is not None and self._newest > latest:
            self._newest = None
        if self.every_ms is None:
            return 0
        for index in [index for index in self._open if index * self.every_ms > latest]:
            self._tell(ahead_rows=self._open.pop(index).rows)
        return max(0, self._next * self.every_ms - now_ms)

    def flush(self) -> tuple[Window, ...]:
        """Close what is open, however few rows it has: at the end of a stream."""
        closed = [self._finished(index) for index in sorted(self._open)]
        if closed:
            self._next = closed[-1].index + 1
        return tuple(closed)

    def _oldest(self) -> int:
        """The time before which a row is late."""
        oldest = 0 if self._newest is None else self._newest - self.lateness_ms
        if self.every_ms is not None:
            oldest = max(oldest // self.every_ms, self._next) * self.every_ms
        return max(oldest, 0)

    def _latest(self, now_ms: int) -> int:
        """The time after which a row is ahead."""
        return min(now_ms + self.ahead_ms, LATEST_MS)

    def _in_time(self, times: NDArray[np.int64], latest: int) -> tuple[NDArray[np.int64], int, int]:
        """Places of the rows that are; how many come too late, and how many from the future."""
        oldest = self._oldest()
        if not len(times) or (times.min() >= oldest and times.max() <= latest):
            return np.arange(len(times)), 0, 0
        ahead = times > latest
        late = ~ahead & (times < oldest)
        return np.flatnonzero(~(ahead | late)), int(late.sum()), int(ahead.sum())

    def _split(
        self, kept: NDArray[np.int64], times: NDArray[np.int64]
    ) -> Iterable[tuple[int, NDArray[np.int64]]]:
        """Which rows go to which window."""
        if self.every_ms is not None:
            indices = times[kept] // self.every_ms
            return [(int(i), kept[indices == i]) for i in np.unique(indices)]
        assert self.rows is not None
        found, index = self._open.get(self._next), self._next
        room = self.rows - (found.rows if found else 0)
        parts = []
        while len(kept):
            parts.append((index, kept[:room]))
            kept, index, room = kept[room:], index + 1, self.rows
        return parts

    def _take(self, pieces: list[tuple[int, WindowCounts]]) -> tuple[Window, ...]:
        closed: list[Window] = []
        for index, counts in pieces:
            before = self._open.get(index)
            self._open[index] = counts if before is None else before + counts
            if self.rows is not None and self._open[index].rows >= self.rows:
                closed.append(self._finished(index))
                self._next = index + 1
        times = [counts.last_ms for _, counts in pieces if counts.last_ms is not None]
        if times:
            newest = max(times)
            self._newest = newest if self._newest is None else max(self._newest, newest)
            if self.every_ms is not None:
                closed += self._close(self._newest)
        return tuple(closed)

    def _close(self, time_ms: int) -> tuple[Window, ...]:
        assert self.every_ms is not None
        first = (time_ms - self.lateness_ms) // self.every_ms
        closed = tuple(self._finished(i) for i in sorted(self._open) if i < first)
        if closed:  # no further: a clock that was wrong for a moment makes no later row late
            self._next = max(self._next, closed[-1].index + 1)
        return closed

    def _finished(self, index: int) -> Window:
        window = Window(index, self._open.pop(index), self._untold)
        self._untold = Tally()
        self._ready.append(window)
        return window

    def _check(self, source: str, number: int) -> None:
        if (
            not source
            or clean_name(source) != source
            or type(number) is not int
            or not 0 <= number < 2**53
        ):
            raise MalformedRequestError(
                f"a block is named {source!r}, {number!r}",
                "name the source with up to 128 letters, and count its blocks from 0",
            )

    def known(self, source: str, number: int) -> bool:
        """Whether this block came before, or is older than what is remembered of its source."""
        seen = self._seen.get(source)
        return seen is not None and number in seen

    def _remember(self, source: str, number: int) -> None:
        seen = self._seen.pop(source, None) or SeenNumbers(max(-1, number - REMEMBERED - 1), [])
        self._seen[source] = seen  # at the end: heard of last
        lost = seen.add(number)
        forgotten = 0
        while len(self._seen) > _MOST_SOURCES:
            del self._seen[next(iter(self._seen))]
            forgotten += 1
        self._tell(lost_blocks=lost, forgotten_sources=forgotten)

    def _tell(self, **more: int) -> None:
        if not any(more.values()):
            return

        def added(tally: Tally) -> Tally:
            return replace(
                tally, **{name: min(getattr(tally, name) + n, _MOST) for name, n in more.items()}
            )

        self._untold, self.total = added(self._untold), added(self.total)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all of the state, format ``chancery.drift-cutter/v1``."""
        return {
            "format": FORMAT,
            "profile": self._profile.digest,
            "rows": self.rows,
            "every_ms": self.every_ms,
            "lateness_ms": self.lateness_ms,
            "ahead_ms": self.ahead_ms,
            "newest_ms": self._newest,
            "next": self._next,
            "open": [{"index": i, "counts": self._open[i].to_dict()} for i in sorted(self._open)],
            "ready": [
                {"index": w.index, "counts": w.counts.to_dict(), "tally": w.tally.to_dict()}
                for w in self._ready
            ],
            "seen": [
                {"source": source, "floor": seen.floor, "above": seen.above}
                for source, seen in self._seen.items()
            ],
            "untold": self._untold.to_dict(),
            "total": self.total.to_dict(),
        }

    def to_json(self) -> bytes:
        """``to_dict`` as canonical JSON."""
        return canonical_json(self.to_dict())

    @classmethod
    def from_json(cls, profile: DriftProfile, data: bytes | str) -> WindowCutter:
        """Go on from ``to_json``.

        Raises:
            MalformedRequestError: not such a document, or the state of another profile.
        """
        return cls.from_fields(profile, Fields.parse(data, FORMAT, "state of drift windows"))

    @classmethod
    def from_fields(cls, profile: DriftProfile, fields: Fields) -> WindowCutter:
        """Go on from ``to_dict``; raises as ``from_json``."""
        fields.text("format", FORMAT, among=(FORMAT,))
        fields.text("profile", among=(profile.digest,))
        rows, every = fields.optional_integer("rows"), fields.optional_integer("every_ms")
        if (rows is None) == (every is None) or (rows or every or 0) < 1:
            raise fields.wrong("has not one of rows and every_ms")
        cutter = cls(
            profile,
            rows=rows,
            every_ms=every,
            lateness_ms=fields.integer("lateness_ms"),
            ahead_ms=fields.integer("ahead_ms"),
        )
        cutter._newest = fields.optional_integer("newest_ms")
        cutter._next = fields.integer("next", least=-(2**53))
        for one in fields.objects("open"):
            index = one.integer("index", least=-(2**53))
            cutter._open[index] = WindowCounts.from_fields(profile, one.object("counts"))
            one.done()
        for one in fields.objects("ready"):
            cutter._ready.append(
                Window(
                    one.integer("index", least=-(2**53)),
                    WindowCounts.from_fields(profile, one.object("counts")),
                    Tally.from_fields(one.object("tally")),
                )
            )
            one.done()
        for one in fields.objects("seen"):
            seen = SeenNumbers(one.integer("floor", least=-1), one.integers("above"))
            if any(low >= high for low, high in pairwise([seen.floor, *seen.above])):
                raise one.wrong("has numbers that do not ascend from its floor")
            cutter._seen[one.text("source")] = seen
            one.done()
        cutter._untold = Tally.from_fields(fields.object("untold"))
        cutter.total = Tally.from_fields(fields.object("total"))
        fields.done()
        return cutter
