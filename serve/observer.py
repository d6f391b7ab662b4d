"""What a gateway observes of answers for the running rollout: owner's metrics and outputs.

Costs nothing while the plan asks for nothing. Outputs are looked into at once, for so many answers
a second of each variant at most (``_RATE``): more of stable's, which has most of the traffic, would
tell little more. Large answers use up the allowance of those that follow.
Metrics are called elsewhere (``serve.metric_process``).

Runs on the gateway's loop.

Example::

    observer = Observer()
    observer.follow(plan.observing)
    observer.saw(variant_plan, content_type, body, answer, ms)
    deltas, observed = observer.fill(deltas), observer.observed()
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import replace
from time import monotonic

from governance.errors import ConfigurationError
from governance.settings import metric_modules
from serve.answer import Answer
from serve.delta import Delta
from serve.metric_process import MetricLimits, MetricProcess
from serve.observing import MetricNews, Observed, Observing
from serve.outputs import OutputBins, drawn, seen_text
from serve.plan import VariantPlan

__all__ = ["Observer"]

_RATE = 500  # answers a second that are looked into, of each variant
_BYTES = 2 << 20  # of them, a second
_AHEAD_S = 0.1  # of the allowance may be used at once
_SAMPLES = 200  # told in one report
_STABLE = "stable"


class _Outputs:
    """Counts by bin; while there are no bins, samples of stable's answers."""

    def __init__(self, bins: OutputBins | None) -> None:
        self.bins = bins
        self.counts: dict[str, dict[int, int]] = {}
        self.samples: list[str] = []
        self.skipped = 0
        self._paid_until: dict[str, float] = {}

    def saw(self, variant: str, body: bytes) -> None:
        bins = self.bins
        if bins is None and (variant != _STABLE or len(self.samples) >= _SAMPLES):
            return
        now = monotonic()
        paid_until = max(self._paid_until.get(variant, now), now)
        if paid_until > now + _AHEAD_S:
            self.skipped += 1
            return
        self._paid_until[variant] = paid_until + 1 / _RATE + len(body) / _BYTES
        seen = drawn(body, random.randrange)
        if bins is None:
            self.samples.append(seen_text(seen))
            return
        counts = self.counts.get(variant)
        if counts is None:
            counts = self.counts[variant] = {}
        place = bins.bin_of(seen)
        counts[place] = counts.get(place, 0) + 1


class Observer:
    """See the module.

    Args:
        environ: Where the setting lies that allows modules.
        limits: What metrics may take.
    """

    def __init__(
        self, environ: Mapping[str, str] = os.environ, limits: MetricLimits | None = None
    ) -> None:
        self._environ = environ
        self._limits = limits
        self._observing: Observing | None = None
        self._metrics: MetricProcess | None = None
        self._outputs: _Outputs | None = None
        self.on = False

    def follow(self, observing: Observing | None) -> None:
        """Observe what a plan says; what was counted for another rollout is forgotten."""
        before, self._observing = self._observing, observing
        if observing == before:
            return
        same = before is not None and observing is not None and before.rollout == observing.rollout
        if not same or before is None or observing is None or before.metrics != observing.metrics:
            if self._metrics is not None:
                self._metrics.close()
            self._metrics = None
            if observing is not None and observing.metrics:
                self._metrics = MetricProcess(observing.metrics, self._allowed(), self._limits)
        wanted = observing is not None and observing.outputs
        bins = observing.bins if observing is not None else None
        if not wanted:
            self._outputs = None
        elif not same or self._outputs is None or self._outputs.bins != bins:
            self._outputs = _Outputs(bins)
        self.on = self._metrics is not None or self._outputs is not None

    def _allowed(self) -> tuple[str, ...]:
        try:
            return metric_modules(self._environ)
        except ConfigurationError:
            return ()  # an odd setting allows nothing; the metrics then say so

    def saw(
        self,
        variant: VariantPlan,
        content_type: str | None,
        body: bytes,
        answer: Answer,
        latency_ms: float,
    ) -> None:
        """A good answer that a variant gave to a request it was assigned by chance."""
        if self._outputs is not None:
            self._outputs.saw(variant.name, answer.body)
        if self._metrics is not None:
            self._metrics.offer(
                (
                    variant.name,
                    variant.model,
                    variant.version,
                    answer.status,
                    latency_ms,
                    content_type or "",
                    body,
                    answer.body,
                )
            )

    def fill(self, deltas: Mapping[str, Delta]) -> dict[str, Delta]:
        """The deltas with what was observed since the last time."""
        if not self.on:
            return dict(deltas)
        owner = {} if self._metrics is None else self._metrics.take()
        outputs: dict[str, dict[int, int]] = {}
        if self._outputs is not None:
            outputs, self._outputs.counts = self._outputs.counts, {}
        return {
            name: replace(delta, owner=owner.get(name, {}), outputs=outputs.get(name, {}))
            for name, delta in deltas.items()
        }

    def observed(self) -> Observed:
        """What else there is to tell; samples once."""
        observing, outputs = self._observing, self._outputs
        if observing is None:
            return Observed()
        samples: tuple[str, ...] = ()
        if outputs is not None:
            samples, outputs.samples = tuple(outputs.samples), []
        bins = "" if outputs is None or outputs.bins is None else outputs.bins.digest
        return Observed(observing.rollout, bins, samples, self.news())

    def news(self) -> dict[str, MetricNews]:
        """How each metric does."""
        return {} if self._metrics is None else self._metrics.news()

    @property
    def dropped(self) -> Mapping[str, int]:
        """Requests that the metrics were not shown, by variant."""
        return {} if self._metrics is None else self._metrics.dropped

    @property
    def skipped(self) -> int:
        """Answers that were not looked into."""
        return 0 if self._outputs is None else self._outputs.skipped

    def close(self) -> None:
        """Observe nothing."""
        self.follow(None)
