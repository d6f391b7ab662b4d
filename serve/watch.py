"""What a controller knows of the observing of a rollout: owner's metrics and outputs.

Gateways tell samples of stable's answers until there are enough; then bins are frozen, once, and
are part of the course, so that every gateway and every controller after this one has the same.
Counts that were made in other bins, or for another rollout, are left out.

What cannot be observed holds the rollout (``serve.rollout``) and is told once as a notice. Whoever
uses it holds a lock, as for ``serve.holding``.

Example::

    watch.hear(report, now)
    bins = watch.frozen(rollout)
    deltas = watch.admitted(report, rollout, bins)
    watch.obstacles(rollout, bins, now)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from serve.config import PROMQL
from serve.delta import Delta
from serve.observing import CallableMetric, MetricNews, Observing
from serve.outputs import NO_PREDICTION, OutputBins, Seen, freeze, needed_samples, parse_seen
from serve.plan import Report
from serve.rollout import RolloutState

__all__ = ["Watch", "observing_of"]

_MOST_ERRORS = 0.05
_ENOUGH_CALLS = 20


def observing_of(rollout: RolloutState, bins: OutputBins | None) -> Observing | None:
    """What gateways are to observe for a rollout; None: nothing.

    Args:
        rollout: The one that runs.
        bins: The frozen ones; those of another rollout do not count.
    """
    analysis = rollout.config.analysis
    metrics = tuple(
        CallableMetric(metric.name, metric.kind, metric.source, *(metric.range or (0.0, 1.0)))
        for metric in analysis.metrics
        if not metric.source.startswith(PROMQL)
    )
    outputs = analysis.outputs is not None
    if not metrics and not outputs:
        return None
    return Observing(rollout.id, metrics, outputs, _ours(rollout, bins) if outputs else None)


def _ours(rollout: RolloutState, bins: OutputBins | None) -> OutputBins | None:
    return bins if bins is not None and bins.rollout == rollout.id else None


class Watch:
    """See the module.

    Args:
        silent_ms: After which silence a gateway does not count as there.
    """

    def __init__(self, silent_ms: int) -> None:
        self._silent_ms = silent_ms
        self._rollout = ""
        self._samples: list[Seen] = []
        self._unreadable = False
        self._gateways: dict[str, tuple[int, int, Mapping[str, MetricNews]]] = {}
        self._asking: Mapping[str, str] = {}

    def _begin(self, rollout: str) -> None:
        if rollout != self._rollout:
            self._rollout = rollout
            self._samples, self._unreadable = [], False
            self._gateways, self._asking = {}, {}

    def hear(self, report: Report, rollout: RolloutState, now: int) -> None:
        """How observing does at a gateway, and what stable answered there."""
        self._begin(rollout.id)
        told = report.observed
        if told.rollout != rollout.id:
            return
        _, last, _ = self._gateways.get(report.source, (0, -1, {}))
        if report.sequence < last:
            return
        self._gateways[report.source] = (now, report.sequence, told.metrics)
        if report.sequence > last and rollout.config.analysis.outputs is not None:
            needed = needed_samples(rollout.config.analysis.outputs.bins)
            self._samples += map(parse_seen, told.samples[: needed - len(self._samples)])

    def asked(self, rollout: RolloutState, troubles: Mapping[str, str]) -> None:
        """Why metrics by PromQL have no values at present, by name."""
        self._begin(rollout.id)
        self._asking = dict(troubles)

    def frozen(self, rollout: RolloutState, bins: OutputBins | None) -> OutputBins | None:
        """The rollout's bins, if there are any, or can be now."""
        found, outputs = _ours(rollout, bins), rollout.config.analysis.outputs
        if found is not None or outputs is None or rollout.id != self._rollout:
            return found
        if len(self._samples) < needed_samples(outputs.bins):
            return None
        self._unreadable = 2 * self._samples.count(NO_PREDICTION) > len(self._samples)
        samples, self._samples = self._samples, []
        return None if self._unreadable else freeze(rollout.id, samples, outputs.bins)

    def admitted(
        self, report: Report, rollout: RolloutState, bins: OutputBins | None
    ) -> Mapping[str, Delta]:
        """What a report counts: observations of this rollout, and outputs in these bins."""
        told, ours = report.observed, _ours(rollout, bins)
        if told.rollout != rollout.id:
            return {n: replace(d, owner={}, outputs={}) for n, d in report.deltas.items()}
        if ours is None or told.bins != ours.digest:
            return {n: replace(d, outputs={}) for n, d in report.deltas.items()}
        return report.deltas

    def obstacles(
        self, rollout: RolloutState, bins: OutputBins | None, now: int
    ) -> tuple[str, ...]:
        """What cannot be observed at present."""
        if rollout.id != self._rollout:
            self._begin(rollout.id)
        found = [text for _, text in self._troubles(now) if text]
        outputs = rollout.config.analysis.outputs
        if outputs is not None and _ours(rollout, bins) is None:
            needed = needed_samples(outputs.bins)
            found.append(
                "The outputs cannot be compared: stable's answers have no predictions that could "
                "be binned, or are too large to be looked into."
                if self._unreadable
                else f"The bins of the outputs are not known yet: {len(self._samples)} of {needed} "
                "answers of stable were looked at."
            )
        return tuple(found)

    def notices(self, now: int) -> Iterator[tuple[str, str]]:
        """What people should see, each under an id that it keeps."""
        for name, text in self._troubles(now):
            if text:
                yield f"{self._rollout}/metric/{name}", f"{text} The rollout holds meanwhile."
        for name, news in self._news(now):
            if news.first:
                yield (
                    f"{self._rollout}/metric/{name}/error",
                    f"The metric {name!r} failed at a gateway, which is no error of the model: "
                    f"{news.first}",
                )

    def _news(self, now: int) -> Iterator[tuple[str, MetricNews]]:
        """Of the gateways that are there."""
        for heard, _, metrics in self._gateways.values():
            if heard >= now - self._silent_ms:
                yield from metrics.items()

    def _troubles(self, now: int) -> Iterator[tuple[str, str]]:
        off: dict[str, list[str]] = {}
        calls: dict[tuple[str, str], tuple[int, int]] = {}
        for name, news in self._news(now):
            if news.off:
                off.setdefault(name, []).append(news.off)
            for variant, count in news.calls.items():
                before = calls.get((name, variant), (0, 0))
                failed = news.errors.get(variant, 0)
                calls[name, variant] = (before[0] + count, before[1] + failed)
        for name, reasons in off.items():
            yield (
                f"{name}/off",
                f"The metric {name!r} is switched off at {len(reasons)} gateway"
                f"{'s' if len(reasons) > 1 else ''}: {reasons[0]}",
            )
        for (name, variant), (called, failed) in calls.items():
            if called >= _ENOUGH_CALLS and failed > _MOST_ERRORS * called:
                yield (
                    f"{name}/{variant}/errors",
                    f"The metric {name!r} failed in {failed} of {called} calls for {variant}: too "
                    "often to go by the others.",
                )
        for name, reason in self._asking.items():
            yield f"{name}/prometheus", f"The metric {name!r} has no values: {reason}"
