"""Asks Prometheus for a rollout's metrics in a thread of its own, at each metric's pace.

The controller says what to ask and takes what came, and never waits. One look asks all queries of a
metric for one moment, ``LAG_S`` in the past, so that every scrape is in all of them or in none, and
takes in both variants or neither. What a look found becomes evidence once; a controller that takes
over begins with a look of its own.

With each stretch (another rollout, or another step) looking begins anew, so that nothing is counted
across a change of weights.

Example::

    poller = Poller(Prometheus(url))
    poller.ask(asking_of(record, rollout))    # at every tick
    found, troubles = poller.take()
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Protocol

from governance.deployment_records import DeploymentRecord
from governance.errors import ConfigurationError, GovernanceError, UnreachableError
from serve.cluster import application_of
from serve.config import PROMQL, OwnerMetric
from serve.delta import Delta, OwnerSums
from serve.growth import Reading, UnsettledError, fell, grown
from serve.promql import substituted
from serve.records import Phase
from serve.rollout import RolloutState

__all__ = ["LAG_S", "Asking", "Poller", "ValuePort", "asking_of"]

_log = logging.getLogger(__name__)

LAG_S = 5.0
_LOOKS = 2  # in a row without a value: then it is a trouble
_UNSETTLED = 3  # looks in a row at counters that do not fit together
_SILENT_S = 60.0
_MOST_WAITING = 100


class ValuePort(Protocol):
    """What gives one number for a query; ``serve.promql.Prometheus``."""

    def value(self, query: str, at: float) -> float | None:
        """None: there is no such series. Raises a ``GovernanceError`` with the reason."""
        ...


@dataclass(frozen=True, slots=True)
class Asking:
    """What is asked now.

    Attributes:
        stretch: Names the rollout and its step.
        metrics: Those by PromQL.
        variants: What the variables stand for, by variant.
    """

    stretch: str
    metrics: tuple[OwnerMetric, ...]
    variants: Mapping[str, Mapping[str, str]]


def asking_of(record: DeploymentRecord, rollout: RolloutState | None) -> Asking | None:
    """What Prometheus is to be asked for a rollout; None: nothing, at present."""
    if rollout is None or record.canary is None or rollout.id != record.rollout_id:
        return None
    if rollout.phase is not Phase.CANARY or rollout.percent >= 100:
        return None
    metrics = tuple(m for m in rollout.config.analysis.metrics if m.source.startswith(PROMQL))
    if not metrics:
        return None
    variants = {
        name: {
            "variant": name,
            "model": record.model_name,
            "version": str(served.version),
            "application": application_of(record, served),
        }
        for name, served in (("canary", record.canary), ("stable", record.stable))
    }
    return Asking(f"{rollout.id}/{rollout.transitions}", metrics, variants)


@dataclass(slots=True)
class _Metric:
    """One metric's looks in this stretch."""

    metric: OwnerMetric
    due: float
    before: Mapping[str, Reading] | None = None
    failed: int = 0
    unsettled: int = 0
    trouble: str = ""


class Poller:
    """See the module.

    Args:
        values: Who is asked; None: nobody, and that is the trouble.
        clock: Seconds since the epoch.
        lag_s: How far back the moment lies that is asked for.
    """

    def __init__(
        self,
        values: ValuePort | None,
        clock: Callable[[], float] = time.time,
        lag_s: float = LAG_S,
    ) -> None:
        self._values = values
        self._clock = clock
        self._lag_s = lag_s
        self._room = Condition()
        self._asking: Asking | None = None
        self._metrics: tuple[_Metric, ...] = ()
        self._found: list[Mapping[str, Delta]] = []
        self._closed = False
        self._thread: Thread | None = None

    def ask(self, asking: Asking | None) -> None:
        """What to ask from now on. Does not wait."""
        with self._room:
            if asking == self._asking:
                return
            self._asking, self._found = asking, []
            first = self._clock() + self._lag_s  # nothing from before the stretch
            metrics = () if asking is None else asking.metrics
            self._metrics = tuple(_Metric(metric, first) for metric in metrics)
            if asking is not None and self._thread is None and self._values is not None:
                self._thread = Thread(target=self._run, name="prometheus", daemon=True)
                self._thread.start()
            self._room.notify()

    def take(self) -> tuple[list[Mapping[str, Delta]], dict[str, str]]:
        """What was found since the last time, and why metrics have no values, by name."""
        with self._room:
            found, self._found = self._found, []
            troubles = {one.metric.name: why for one in self._metrics if (why := self._why(one))}
        return found, troubles

    def _why(self, one: _Metric) -> str:
        if self._values is None:
            return "CHANCERY_PROMETHEUS_URL is not set where the controller runs."
        if one.trouble:
            return one.trouble
        late = self._clock() - one.due
        return f"a look at it takes {late:.0f} s already." if late > _SILENT_S else ""

    def close(self) -> None:
        """Ask no more. Does not wait."""
        with self._room:
            self._closed = True
            self._room.notify()

    # -- the thread

    def _run(self) -> None:
        assert self._values is not None
        while True:
            with self._room:
                while not self._closed and not self._metrics:
                    self._room.wait()
                if self._closed:
                    return
                one, asking = min(self._metrics, key=lambda one: one.due), self._asking
                early = one.due - self._clock()
                if early > 0:
                    self._room.wait(early)
                    continue
            if asking is not None:
                self._look(self._values, one, asking)

    def _look(self, values: ValuePort, one: _Metric, asking: Asking) -> None:
        """One look at one metric; whatever goes wrong is a trouble of that metric."""
        readings, found, trouble, at_once = one.before, {}, "", False
        try:
            readings = self._readings(values, one.metric, asking)
            found = _grown(one, readings)
        except UnsettledError:
            one.unsettled += 1
            if one.unsettled < _UNSETTLED:
                readings = one.before
            else:  # begin anew: what grew is not what happened
                one.unsettled, at_once = 0, True
                trouble = "its events exceed its trials, or its values have no count."
        except ConfigurationError as error:
            trouble, at_once = f"{error.message}.", True
        except GovernanceError as error:
            trouble = f"{error.message}."
        except Exception as error:  # noqa: BLE001 - whatever it is, the next look may be better
            _log.warning("looking at the metric %r failed: %r", one.metric.name, error)
            trouble = f"looking failed ({type(error).__name__})."
        else:
            one.unsettled = 0
        with self._room:
            one.before = readings
            one.failed = one.failed + 1 if trouble else 0
            one.trouble = trouble if at_once or one.failed >= _LOOKS else ""
            one.due = max(one.due + one.metric.every_seconds, self._clock())
            if found and self._asking == asking:
                deltas = {name: Delta(owner={one.metric.name: s}) for name, s in found.items()}
                self._found = [*self._found[1 - _MOST_WAITING :], deltas]

    def _readings(
        self, values: ValuePort, metric: OwnerMetric, asking: Asking
    ) -> dict[str, Reading]:
        """Both variants', of one moment."""
        at = self._clock() - self._lag_s
        found: dict[str, Reading] = {}
        for name, variables in asking.variants.items():
            numbers: list[float | None] = []
            for source in (metric.source, metric.total):
                if source is None:
                    numbers.append(None)
                    continue
                number = values.value(substituted(source.removeprefix(PROMQL), variables), at)
                if number is None:
                    raise UnreachableError(f"there is no such series for {name}")
                numbers.append(number)
            first, total = numbers
            assert first is not None
            found[name] = Reading(first, total)
        return found


def _grown(one: _Metric, now: Mapping[str, Reading]) -> dict[str, OwnerSums]:
    """What both variants' readings grew by; nothing at the first look, or where one fell."""
    before, metric = one.before, one.metric
    if metric.total is not None and (
        before is None or any(fell(metric, before[name], now[name]) for name in now)
    ):
        return {}
    found = {name: grown(metric, (before or now)[name], now[name]) for name in now}
    return {} if not any(sums.n for sums in found.values()) else found
