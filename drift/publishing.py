"""Reports on their way to sinks: in order, each sink at its own pace.

A sink that does not take a report is asked again after a pause that doubles from a second to five
minutes; the others go on. One call at a time goes to the sinks of a subject, in a thread of the
couriers where there are some, so that a slow sink delays nobody's counting.

A sink that says ``quick = True`` does no more than write a local file, and is called at once:
handing over takes longer than that.

A sink that has a method ``close()`` is told the end, to finish what it puts off.

A sink may know what people acknowledged: where it has a method ``acknowledged()``, it is asked with
each report for the index of the last window whose alarm somebody has seen, or None.

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

from drift.monitor_state import MonitorState
from drift.report import Sink
from drift.workers import Workers
from governance.errors import GovernanceError

__all__ = ["Publishing"]

_log = logging.getLogger(__name__)

_FIRST_PAUSE_MS = 1_000
_LONGEST_PAUSE_MS = 300_000
_AT_ONCE = 16  # reports of one call


@dataclass(slots=True)
class _Way:
    """To one sink."""

    sink: Sink
    last: int | None
    pause_ms: int = 0
    due_ms: int = 0
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class _Done:
    """What a call did: the last index each sink took, and what it did not like."""

    last: dict[str, int] = field(default_factory=dict)
    trouble: dict[str, str] = field(default_factory=dict)
    seen: list[int] = field(default_factory=list)


class Publishing:
    """Of one subject. All methods are for one thread.

    Args:
        state: Where the reports lie.
        sinks: By name, in order.
        couriers: Who calls them; None: ``go_on`` itself.
        published: What ``to_dict`` said.
    """

    def __init__(
        self,
        state: MonitorState,
        sinks: Mapping[str, Sink],
        couriers: Workers | None,
        published: Mapping[str, int],
    ) -> None:
        self._state = state
        self._couriers = couriers
        self._ways = {name: _Way(sink, published.get(name)) for name, sink in sinks.items()}
        self._out: Future[_Done] | None = None
        self.acknowledged: int | None = None
        """The last window whose alarm somebody has seen, as sinks said since the start."""

    @property
    def busy(self) -> bool:
        """Whether a call is out."""
        return self._out is not None

    @property
    def trouble(self) -> dict[str, str]:
        """Why sinks do not take reports now."""
        return {name: way.trouble for name, way in self._ways.items() if way.trouble}

    def everywhere(self, index: int) -> bool:
        """Whether every sink took the report."""
        return all(way.last is not None and way.last >= index for way in self._ways.values())

    def to_dict(self) -> dict[str, int]:
        """The last index that each sink took."""
        return {name: way.last for name, way in self._ways.items() if way.last is not None}

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
            if found is not None:
                done.seen.append(int(found))
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
        for name, why in done.trouble.items():
            self._failed(self._ways[name], why, now)
        if done.seen:
            self.acknowledged = max(done.seen)
        return bool(done.last)

    def _failed(self, way: _Way, why: str, now: int) -> None:
        if not way.trouble:
            _log.warning("a sink did not take a drift report: %s", why)
        way.trouble = why
        way.pause_ms = min(max(_FIRST_PAUSE_MS, 2 * way.pause_ms), _LONGEST_PAUSE_MS)
        way.due_ms = now + way.pause_ms
