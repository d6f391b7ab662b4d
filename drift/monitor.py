"""The monitor of one served version: blocks in, reports out.

It reads blocks from a folder, cuts windows, judges them, has alarms confirmed, and hands a report
of every window to every sink. A step does a bounded piece of that and returns.

What holds, wherever the process is killed:

- A block is removed only once a saved state has counted it, and a block that was counted is not
  counted again: a window is neither lost nor counted twice.
- A report is published only once a saved state names it, and forgotten only once every sink took
  it: each sink gets each report at least once, in order, and always the same document.
- What waits is bounded. While a sink is away it is asked again, after longer and longer pauses, and
  reports wait on disk; when ``most_reports`` wait, blocks wait where they are.

Blocks of windows that are still open are kept for a while, so that after a restart the sample of
the window's rows can be drawn again. A block that cannot be read or counted, or is of another
version, is put aside (``refused/``) and counted. Our own clock does not go back, unless it had gone
far ahead (``drift.steady_clock``).

Example::

    monitor = Monitor(watched, sinks)
    while monitor.step(): ...
    monitor.close()
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from zlib import crc32

import numpy as np

from drift.block_folder import BlockFile
from drift.block_rows import require_of, rows_of
from drift.block_store import open_blocks
from drift.catalogue import build
from drift.checks import Checked, check_kept, not_checked
from drift.cutter import Window
from drift.documents import Fields
from drift.label_files import LabelFolder
from drift.open_rows import OpenRows, as_block
from drift.performance import PerformanceWatch
from drift.publishing import Publishing
from drift.report import Sink, WindowReport
from drift.status import MonitorStatus
from drift.steady_clock import SteadyClock
from drift.verdict import Judge, Level, Verdict
from drift.watched import Watched
from drift.workers import Workers
from governance.clock import now_ms
from governance.errors import MalformedRequestError

__all__ = ["Monitor"]

_log = logging.getLogger(__name__)

_BLOCKS = 32  # of a step
_TIDY = 10  # times as long as a window waits to be saved


class Monitor:
    """See the module. All methods are for one thread.

    Args:
        watched: What, and how.
        sinks: By name, in the order in which they are asked.
        checks: Where confirmatory checks run; None: in ``step``.
        couriers: Where sinks are called; None: in ``step``.
        clock: Milliseconds since the epoch.
        rng: Which rows are in a window's sample.
        together: ``step`` does not save: whoever calls it saves many at once (``save_due``).

    Raises:
        ConflictError: another process monitors it.
        GovernanceError: the state is another profile's, or was changed.
    """

    def __init__(
        self,
        watched: Watched,
        sinks: Mapping[str, Sink],
        *,
        checks: Workers | None = None,
        couriers: Workers | None = None,
        clock: Callable[[], int] = now_ms,
        rng: np.random.Generator | None = None,
        together: bool = False,
    ) -> None:
        self.watched = watched
        self._profile = profile = watched.profile
        profile.require(watched.subject.model, digest=watched.subject.profile)
        self._time = clock
        self._together = together
        self._checks = checks
        self._detectors = [
            build(name, profile.backend, level=watched.level, process=watched.alibi)
            for name in watched.detectors
        ]
        self._rng = rng or np.random.default_rng()
        self._folder = open_blocks(watched.blocks)
        self._labels = None if watched.labels is None else LabelFolder(watched.labels)
        self.state = watched.states.of(watched.subject.key, profile)
        try:
            self._open(sinks, couriers)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self.state.close()
            raise MalformedRequestError(
                f"the state of {watched.subject.key} in {self.state.database.file} cannot be read: "
                f"{error!r}",
                "restore it, or begin without it",
            ) from error
        except BaseException:
            self.state.close()
            raise

    def _open(self, sinks: Mapping[str, Sink], couriers: Workers | None) -> None:
        watched, profile = self.watched, self._profile
        found = self.state.load() or {}
        self._clock = SteadyClock(self._time, int(found.get("now_ms", 0)), watched.subject.key)
        self._cutter = watched.cutter(found["cutter"] if found else None, self.state.database.file)
        self._judge = Judge(profile)
        self._watch = PerformanceWatch(profile, labels=watched.labels is not None)
        if found:
            self._judge = Judge.from_fields(profile, Fields(found["judge"], "the judge's state"))
            self._watch.restore(found["performance"])
        self._labels_read: list[str] = list(found.get("labels_read", ()))
        self._reports: list[int] = [int(index) for index in found.get("reports", ())]
        self._saved_reports = set(self._reports)
        self._level = Level(found.get("level", Level.OK))
        # Many that begin together are not all checked at once by schedule.
        spread = crc32(watched.subject.key.encode()) % max(1, watched.check_every_ms)
        self._checked_ms = int(found.get("checked_ms", self._time() - spread))
        self._counts: dict[str, int] = {
            name: int(found.get("counts", {}).get(name, 0))
            for name in ("windows", "alerts", "rows", "refused")
        }
        self._new_alerts = 0
        self._published = Publishing(self.state, sinks, couriers, found)
        self._asked: dict[int, Future[Checked]] = {}
        waiting = set(self.state.waiting)
        self._waits_since = {i: self._now for i in self._reports if i in waiting}
        self._entries: list[BlockFile] = []
        self._open_rows = OpenRows(self._folder, self._rng, sampled=watched.reference is not None)
        self._saved_ms = 0
        self._due = False
        self._prepared: list[int] = []
        self._told = False  # sinks took reports: worth saving, but not at once
        self._dirty = self._open_rows.read_again(self._cutter) or not found
        self._judged(self._cutter.ready)

    @property
    def _now(self) -> int:
        return self._clock.now_ms

    def _read_clock(self) -> int:
        if self._clock.went_back(
            self._cutter.newest_ms, lambda: (entry.last_ms for entry in self._folder.entries())
        ):
            now = self._now
            self._clock.blind_for(self._cutter.go_back(now))
            self._saved_ms, self._checked_ms = min(self._saved_ms, now), min(self._checked_ms, now)
            self._waits_since = {i: min(since, now) for i, since in self._waits_since.items()}
            self._published.go_back(now)
            self._dirty = True
        return self._now

    # -- what the owner asks

    @property
    def status(self) -> MonitorStatus:
        notes = [self._clock.note, *self._published.notes]
        notes += [getattr(one, "note", "") for one in self._detectors]
        return MonitorStatus(
            self.watched.subject.key,
            self._level,
            self._counts["windows"],
            self._counts["alerts"],
            self._new_alerts,
            self._counts["rows"],
            self._cutter.open_rows,
            self._counts["refused"],
            sum(not self._published.everywhere(index) for index in self._reports),
            self._judge.last_index,
            self._published.trouble,
            tuple(dict.fromkeys(filter(None, notes))),
        )

    @property
    def busy(self) -> bool:
        """Whether checks or sinks are at work for it."""
        return bool(self._asked) or self._published.busy

    def acknowledge(self) -> None:
        """Somebody has seen the alarm: the statistics begin anew."""
        self._judge.acknowledge()
        self._watch.acknowledge()
        self._level = Level.OK
        self._dirty = True

    def step(self, most_blocks: int = _BLOCKS) -> bool:
        """Do a piece of what there is to do; whether there was anything.

        Raises:
            OSError: a folder cannot be used. The monitor is to be closed and opened anew.
        """
        now = self._read_clock()
        did = self._collect()
        full = len(self._reports) >= self.watched.most_reports
        if not full:
            did |= self._count(now, most_blocks)
            did |= self._read_labels()
        did |= self._ask_checks(now)
        elapsed = now - self._saved_ms >= self.watched.save_every_ms
        # What sinks took is saved with the next window, or a while later: it may be told again.
        tidy = self._told and (full or now - self._saved_ms >= _TIDY * self.watched.save_every_ms)
        self._due = (self._dirty and (elapsed or not did)) or tidy
        if self._due and not self._together:
            self.save()
            did |= full  # there is room again
        return self.publish() or did

    def publish(self) -> bool:
        """Hand over what a saved state names; whether a sink took any at once."""
        went = self._published.go_on(self._to_publish(), self._now)
        self._told |= went
        if self._published.acknowledged():
            self.acknowledge()
        return went

    def flush(self) -> None:
        """Close the windows that are open, however few rows they have: at the end of a stream."""
        self._judged(self._cutter.flush())

    @property
    def save_due(self) -> bool:
        """Whether ``save``, or ``prepare`` and ``commit``, is to be called."""
        return self._due

    def save(self) -> None:
        """Save the state, and remove what it has counted."""
        self.prepare()
        self.state.database.commit()
        self.commit()

    def prepare(self) -> None:
        """Write the state; it counts once the database is committed (``StateDatabase.commit``)."""
        saved, taken = self._saved_reports, self._published.everywhere
        done = {index for index in self._reports if index in saved and taken(index)}
        left = [index for index in self._reports if index not in done]
        self.state.prepare(
            {
                "subject": self.watched.subject.key,
                "now_ms": self._now,
                "cutter": self._cutter.to_dict(),
                "judge": self._judge.to_dict(),
                "performance": self._watch.to_dict(),
                "labels_read": self._labels_read,
                "reports": left,
                **self._published.to_dict(),
                "level": self._level.value,
                "checked_ms": self._checked_ms,
                "counts": self._counts,
            },
            done,
        )
        self._prepared = left

    def commit(self) -> None:
        """The prepared state counts from here on, also if this process dies."""
        self.state.commit()
        self._reports, self._saved_reports = self._prepared, set(self._prepared)
        self._dirty = self._told = self._due = False
        self._saved_ms = self._now
        self._open_rows.forget(self._cutter.open)
        if self._labels is not None:
            self._labels_read = self._labels.put_away(self._labels_read)

    def wind_up(self) -> bool:
        """Take what threads have done; whether there is anything to save."""
        self._collect()
        self._due = self._dirty or self._told
        return self._due

    def close(self) -> None:
        """Save, and let others have it."""
        try:
            if self.wind_up():
                self.save()
            self._published.close()
        finally:
            self.state.close()

    def abandon(self) -> None:
        """Let others have it, and save nothing: what is in memory may be half changed."""
        self.state.close()

    # -- blocks

    def _count(self, now: int, most: int) -> bool:
        caught_up = False
        if not self._entries:
            listed = self._folder.entries()
            self._entries = [entry for entry in listed if entry.name not in self._open_rows]
            caught_up = not self._entries
        taken, self._entries = self._entries[:most], self._entries[most:]
        for entry in taken:
            self._take(entry, now)
        if caught_up:
            # Only now: a stretch whose blocks still lie here is not over.
            self._judged(self._cutter.tick(now_ms=now))
        return bool(taken)

    def _take(self, entry: BlockFile, now: int) -> None:
        try:
            block = self._folder.read(entry)
            require_of(self.watched.subject, block)
            windows = self._cutter.add(rows_of(self._profile, block), now_ms=now)
        except FileNotFoundError:
            return  # somebody removed it: its number will be missed
        except (OSError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever is in it; nothing of it is counted
            self._refuse(entry, error)
            return
        self._dirty = True
        try:
            for index, places in self._cutter.split:
                self._counts["rows"] += len(places)
                self._watch.rows(index, block, places)
            self._open_rows.add(entry, block, self._cutter.split)
        except (OSError, MemoryError):
            raise
        except Exception as error:
            # Half of it is counted here, and nothing in the saved state: from there it goes on.
            self._refuse(entry, error)
            raise
        self._judged(windows)

    def _refuse(self, entry: BlockFile, error: Exception) -> None:
        unforeseen = not isinstance(error, MalformedRequestError)
        _log.warning("%s: %s", self.watched.subject.key, error, exc_info=unforeseen)
        self._counts["refused"] += 1
        self._dirty = True
        self._folder.refuse(entry)

    # -- windows

    def _judged(self, windows: tuple[Window, ...]) -> None:
        for window in windows:
            last = self._judge.last_index
            if last is None or window.index > last:
                self._one_judged(window)
            self._cutter.taken(window.index)
            self._dirty = True

    def _one_judged(self, window: Window) -> None:
        counts = self._judge.waiting + window.counts
        enough = window.counts.rows > 0 and counts.rows >= self._profile.rules.min_rows
        performance, facts = self._watch.closed(window.index, judged=enough)
        verdict = self._judge.step(window, facts)
        sample = self._open_rows.closed(window.index, judged=verdict.judged)
        report = WindowReport(
            self.watched.subject,
            verdict,
            counts,
            performance=performance,
            tally=window.tally,
            made_ms=self._now,
        )
        due = verdict.judged and self._check_due(verdict)
        rows = as_block(sample, self.watched.subject, verdict.index) if due and sample else None
        self.state.put(report, rows)
        self._reports.append(verdict.index)
        if rows is not None:
            self._waits_since[verdict.index] = self._checked_ms = self._now
        self._counts["windows"] += 1
        self._counts["alerts"] += verdict.level is Level.ALERT
        self._new_alerts += verdict.level is Level.ALERT
        if verdict.judged:
            self._level = verdict.level

    def _check_due(self, verdict: Verdict) -> bool:
        """Whether the window is to be checked."""
        if self.watched.reference is None:
            return False
        since = self._now - self._checked_ms
        order = list(Level)
        if order.index(verdict.level) > order.index(self._level):
            return True
        if verdict.level is not Level.OK:
            return since >= self.watched.check_again_ms
        return 0 < self.watched.check_every_ms <= since

    # -- checks

    def _ask_checks(self, now: int) -> bool:
        """Have the windows checked that wait for it; whether any was done with."""
        did = False
        for index, since in list(self._waits_since.items()):
            if index in self._asked:
                continue
            if self.watched.reference is None:
                self._complete(index, not_checked(self._detectors, "there is no reference sample"))
            elif self._checks is None:
                self._complete(index, self._checked(index))
            elif (future := self._checks.ask(partial(self._checked, index))) is not None:
                self._asked[index] = future
                continue
            elif now - since >= self.watched.check_wait_ms:
                self._give_up(index)
            else:
                continue
            did = True
        return did

    def _give_up(self, index: int) -> None:
        """No place was free in time: an alarm says so; what was due by schedule comes later."""
        if self.state.report(index).verdict.level is Level.OK:
            self._checked_ms = 0
            self._complete(index, Checked(()))
        else:
            why = f"no place was free for {self.watched.check_wait_ms / 1000:g} s"
            self._complete(index, not_checked(self._detectors, why))

    def _complete(self, index: int, checked: Checked) -> None:
        self.state.complete(index, checked)
        if index == self._judge.last_index:
            self._level = self.state.report(index).verdict.level
        self._saved_reports.discard(index)
        self._dirty = True
        del self._waits_since[index]

    def _checked(self, index: int) -> Checked:
        """Runs in a thread of its own; touches nothing but files that nobody changes meanwhile."""
        watched = self.watched
        assert watched.reference is not None
        return check_kept(
            partial(self.state.sample, index),
            self._profile,
            watched.reference,
            self._detectors,
            index=index,
            limit_s=watched.check_limit_s,
        )

    def _collect(self) -> bool:
        """Take what threads have done."""
        self._told |= (went := self._published.collect(self._now))
        did = False
        for index, future in list(self._asked.items()):
            late = self._now - self._waits_since[index] >= self.watched.check_wait_ms
            if not future.done() and not (late and future.cancel()):
                continue
            del self._asked[index]
            did = True
            if future.cancelled():
                if late:
                    self._give_up(index)
                continue
            error = future.exception()
            found = future.result() if error is None else not_checked(self._detectors, repr(error))
            self._complete(index, found)
        self._dirty |= did
        return did or went

    def _to_publish(self) -> list[int]:
        """Reports that a saved state names, up to the first that waits for its checks."""
        found = []
        for index in self._reports:
            if index not in self._saved_reports or index in self._waits_since:
                break
            found.append(index)
        return found

    # -- labels

    def _read_labels(self) -> bool:
        if self._labels is None:
            return False
        read = self._labels.unread(self._labels_read)
        if read is None:
            return False
        mark, labels = read
        for key, label in labels:
            self._watch.label(key, label)
        self._labels_read.append(mark)
        self._dirty = True
        return True
