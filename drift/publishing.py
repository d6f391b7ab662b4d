"""Reports on their way to sinks: in order, each sink at its own pace.

A sink that does not take a report is asked again after a pause that doubles from a second to five
minutes; the others go on. One call at a time goes to the sinks of a subject, in a thread of the
couriers where there are some, so that a slow sink delays nobody's counting.

A sink that says ``quick = True`` does no more than write a local file, and is called at once:
handing over takes longer than that.

A sink that has a method ``close()`` is told the end, to finish what it puts off.

A report that a sink refuses (it is not away: it says that this report cannot be) is offered to it
twelve times, over a quarter of an hour, and then put aside: written as it is to ``refused/`` beside
the states, told, and left out, so that later ones get there. The other sinks have it.

A sink may know what people acknowledged: where it has a method ``acknowledged()``, it is asked with
each report for the index of the last window whose alarm somebody has seen, or None. What it says
first is what was seen before; another answer later is news. Answers are compared for equality
alone: indices begin anew with a new folder for the state.

Example::

    publishing = Publishing(state, {"folder": sink}, couriers, {})
    publishing.go_on([4, 5], now)
    publishing.collect(now)
    publishing.everywhere(4)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drift.monitor_state import MonitorState
from drift.places import subject_folder
from drift.report import Sink
from drift.workers import Workers
from governance.errors import (
    ConflictError,
    GovernanceError,
    MalformedRequestError,
    RefusedError,
    TooManyRequestsError,
)

__all__ = ["Publishing"]

_log = logging.getLogger(__name__)

_FIRST_PAUSE_MS = 1_000
_LONGEST_PAUSE_MS = 300_000
_AT_ONCE = 16  # reports of one call
_ATTEMPTS = 12  # until a report that is refused is put aside
_REFUSALS = (MalformedRequestError, RefusedError)
_FOR_NOW = (ConflictError, TooManyRequestsError)  # of them


@dataclass(slots=True)
class _Way:
    """To one sink."""

    sink: Sink
    last: int | None
    pause_ms: int = 0
    due_ms: int = 0
    trouble: str = ""
    refused: int | None = None  # the report that it refuses
    attempts: int = 0  # of that report
    aside: int = 0  # reports
    asked: bool = False  # what was acknowledged
    seen: int | None = None
    news: bool = False


_KEPT = ("refused", "attempts", "aside", "asked", "seen")


@dataclass(frozen=True, slots=True)
class _Done:
    """What a call did: the last index each sink took, and what it did not like or refused."""

    last: dict[str, int] = field(default_factory=dict)
    trouble: dict[str, str] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    seen: dict[str, int | None] = field(default_factory=dict)


class Publishing:
    """Of one subject. All methods are for one thread.

    Args:
        state: Where the reports lie.
        sinks: By name, in order.
        couriers: Who calls them; None: ``go_on`` itself.
        saved: What ``to_dict`` said.
    """

    def __init__(
        self,
        state: MonitorState,
        sinks: Mapping[str, Sink],
        couriers: Workers | None,
        saved: Mapping[str, Any],
    ) -> None:
        self._state = state
        self._couriers = couriers
        last = saved.get("published", {})
        self._ways = {name: _Way(sink, last.get(name)) for name, sink in sinks.items()}
        for name, way in self._ways.items():
            for one, value in saved.get("sinks", {}).get(name, {}).items():
                setattr(way, one, value)
        self._out: Future[_Done] | None = None

    @property
    def busy(self) -> bool:
        """Whether a call is out."""
        return self._out is not None

    @property
    def trouble(self) -> dict[str, str]:
        """Why sinks do not take reports now."""
        return {name: way.trouble for name, way in self._ways.items() if way.trouble}

    @property
    def notes(self) -> list[str]:
        """What people must know."""
        return [
            f"the sink {name} refused {way.aside} reports for good; they are in {self._aside}"
            for name, way in self._ways.items()
            if way.aside
        ]

    @property
    def _aside(self) -> Path:
        return self._state.database.file.parent / "refused"

    def acknowledged(self) -> bool:
        """Whether somebody has seen an alarm since this was asked before."""
        news = [way for way in self._ways.values() if way.news]
        for way in news:
            way.news = False
        return bool(news)

    def everywhere(self, index: int) -> bool:
        """Whether every sink took the report."""
        return all(way.last is not None and way.last >= index for way in self._ways.values())

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the last index that each sink took, and what else is known of each."""
        return {
            "published": {n: way.last for n, way in self._ways.items() if way.last is not None},
            "sinks": {
                n: {one: getattr(way, one) for one in _KEPT} for n, way in self._ways.items()
            },
        }

    def go_on(self, indices: Sequence[int], now: int) -> bool:
        """Hand reports over to sinks that can be asked now; whether any was taken at once."""
        if not indices:
            return False
        here: dict[str, Sequence[int]] = {}
        sent: dict[str, Sequence[int]] = {}
        for name, way in self._ways.items():
            last = way.last
            left = [index for index in indices if last is None or index > last]
            if left and now >= way.due_ms:
                at_once = self._couriers is None or getattr(way.sink, "quick", False)
                (here if at_once else sent)[name] = left[:_AT_ONCE]
        if sent and self._out is None and self._couriers is not None:
            self._out = self._couriers.ask(lambda: self._call(sent))
        return bool(here) and self._take(self._call(here), now)

    def _call(self, work: Mapping[str, Sequence[int]]) -> _Done:
        done = _Done()
        for index in sorted({index for indices in work.values() for index in indices}):
            report = self._state.report(index)
            for name, indices in work.items():
                if index not in indices or name in done.trouble:
                    continue
                try:
                    self._ways[name].sink.publish(report)
                except (OSError, GovernanceError) as error:
                    done.trouble[name] = str(error) or repr(error)
                    if isinstance(error, _REFUSALS) and not isinstance(error, _FOR_NOW):
                        done.refused[name] = index
                except Exception as error:  # noqa: BLE001 - somebody else's; told, and asked again
                    _log.exception("%s: the sink %s raised", report.subject.key, name)
                    done.trouble[name] = repr(error)
                else:
                    done.last[name] = index
        for name in done.last:
            ask = getattr(self._ways[name].sink, "acknowledged", None)
            if ask is None:
                continue
            try:
                found = ask()
            except Exception as error:  # noqa: BLE001 - the next report asks again
                _log.warning("the sink %s does not say what was acknowledged: %s", name, error)
                continue
            done.seen[name] = None if found is None else int(found)
        return done

    def go_back(self, now: int) -> None:
        """The clock had gone ahead, and is right again."""
        for way in self._ways.values():
            way.due_ms = min(way.due_ms, now + way.pause_ms)

    def collect(self, now: int) -> bool:
        """Take what the couriers did; whether any report went."""
        out = self._out
        if out is None or not out.done():
            return False
        self._out = None
        if out.cancelled():
            return False
        error = out.exception()
        if error is not None:
            _log.error("reports cannot be read: %s", error)
            for way in self._ways.values():
                self._failed(way, f"reports cannot be read: {error}", now)
            return False
        return self._take(out.result(), now)

    def close(self) -> None:
        """Tell sinks the end. What they do not manage then, they do after the next report."""
        for name, way in self._ways.items():
            end = getattr(way.sink, "close", None)
            if end is None:
                continue
            try:
                end()
            except Exception as error:  # noqa: BLE001 - somebody else's; every report is there
                _log.warning("the sink %s did not finish: %s", name, error)

    def _take(self, done: _Done, now: int) -> bool:
        for name, last in done.last.items():
            way = self._ways[name]
            way.last, way.pause_ms, way.due_ms, way.trouble = last, 0, 0, ""
            way.refused, way.attempts = None, 0
        for name, why in done.trouble.items():
            self._failed(self._ways[name], why, now)
        for name, index in done.refused.items():
            self._refused(name, index)
        for name, seen in done.seen.items():
            way = self._ways[name]
            way.news |= way.asked and seen is not None and seen != way.seen
            way.asked, way.seen = True, seen
        return bool(done.last or done.refused)

    def _refused(self, name: str, index: int) -> None:
        way = self._ways[name]
        way.attempts = way.attempts + 1 if way.refused == index else 1
        way.refused = index
        if way.attempts < _ATTEMPTS:
            return
        try:
            report = self._state.report(index)
            one = report.subject
            folder = subject_folder(self._aside, one.model, one.version, one.deployment)
            folder.mkdir(parents=True, exist_ok=True)
            place = folder / f"{index:016d}-{report.digest[:12]}.json"
            place.write_bytes(report.to_json())
        except (OSError, GovernanceError) as error:
            way.trouble = f"{way.trouble}; it cannot be put aside: {error}"
            return
        _log.error(
            "%s: the sink %s refused the report %d for good, which is put aside in %s: %s",
            self._state.subject, name, index, place, way.trouble,
        )  # fmt: skip
        way.last, way.refused, way.attempts, way.aside = index, None, 0, way.aside + 1
        way.pause_ms = way.due_ms = 0

    def _failed(self, way: _Way, why: str, now: int) -> None:
        if not way.trouble:
            _log.warning("a sink did not take a drift report: %s", why)
        way.trouble = why
        way.pause_ms = min(max(_FIRST_PAUSE_MS, 2 * way.pause_ms), _LONGEST_PAUSE_MS)
        way.due_ms = now + way.pause_ms
