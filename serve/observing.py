"""What gateways are told to observe of answers, and what they tell of it besides counts.

Part of the plan and of the report (``serve.plan``). A gateway calls the owner's callable metrics
and bins the answers; metrics by PromQL are the controller's own business and are not in here.

Example::

    metric = CallableMetric("fraud-share", MetricKind.RATE, "fraud_metrics:share")
    plan = replace(plan, observing=Observing("r1", (metric,), outputs=True))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.config import MetricKind
from serve.outputs import OutputBins

__all__ = ["CallableMetric", "MetricNews", "Observed", "Observing"]


@dataclass(frozen=True, slots=True)
class CallableMetric:
    """A metric that a gateway computes.

    Attributes:
        name: The metric's.
        kind: What its values are.
        source: ``package.module:function``.
        low: For a mean: the smallest value.
        high: And the largest.
    """

    name: str
    kind: MetricKind
    source: str
    low: float = 0.0
    high: float = 1.0

    @property
    def module(self) -> str:
        """What is imported."""
        return self.source.partition(":")[0]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without floats."""
        return {
            "name": self.name,
            "kind": self.kind.value,
            "source": self.source,
            "low": repr(self.low),
            "high": repr(self.high),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> CallableMetric:
        """Inverse of ``to_dict``."""
        return cls(
            document["name"],
            MetricKind(document["kind"]),
            document["source"],
            float(document["low"]),
            float(document["high"]),
        )


@dataclass(frozen=True, slots=True)
class Observing:
    """What is observed of each answer of a variant that was asked by chance.

    Attributes:
        rollout: For which rollout; with another one everything begins anew.
        metrics: Callables to ask.
        outputs: Whether answers are binned.
        bins: In what; None: not known yet, so samples of stable's answers are told instead.
    """

    rollout: str
    metrics: tuple[CallableMetric, ...] = ()
    outputs: bool = False
    bins: OutputBins | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without floats."""
        return {
            "rollout": self.rollout,
            "metrics": [metric.to_dict() for metric in self.metrics],
            "outputs": self.outputs,
            "bins": None if self.bins is None else self.bins.to_dict(),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Observing:
        """Inverse of ``to_dict``."""
        bins = document["bins"]
        return cls(
            document["rollout"],
            tuple(CallableMetric.from_dict(metric) for metric in document["metrics"]),
            bool(document["outputs"]),
            None if bins is None else OutputBins.from_dict(bins),
        )


@dataclass(frozen=True, slots=True)
class MetricNews:
    """How a callable metric did at a gateway, for the rollout, so far.

    Attributes:
        calls: How often it was called, by variant.
        errors: Of these, how often it raised or gave no proper value, by variant.
        first: The first error: its type and place, no values of requests.
        off: Why it is not called any more; empty: it is.
    """

    calls: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    first: str = ""
    off: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "calls": dict(self.calls),
            "errors": dict(self.errors),
            "first": self.first,
            "off": self.off,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> MetricNews:
        """Inverse of ``to_dict``."""
        calls = {str(name): int(count) for name, count in document["calls"].items()}
        errors = {str(name): int(count) for name, count in document["errors"].items()}
        return cls(calls, errors, str(document["first"]), str(document["off"]))


@dataclass(frozen=True, slots=True)
class Observed:
    """What a gateway tells of its observing.

    Attributes:
        rollout: Of which rollout.
        bins: Digest of the bins that this report's outputs were counted in; empty: none.
        samples: Answers of stable, reduced (``serve.outputs.seen_text``), while bins are not known.
        metrics: By name.
    """

    rollout: str = ""
    bins: str = ""
    samples: tuple[str, ...] = ()
    metrics: Mapping[str, MetricNews] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rollout": self.rollout,
            "bins": self.bins,
            "samples": list(self.samples),
            "metrics": {name: news.to_dict() for name, news in self.metrics.items()},
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Observed:
        """Inverse of ``to_dict``."""
        samples: Sequence[str] = document["samples"]
        return cls(
            document["rollout"],
            document["bins"],
            tuple(samples),
            {name: MetricNews.from_dict(news) for name, news in document["metrics"].items()},
        )
