"""Configurations of canaries, A/B tests and shadows.

Unknown keys are errors, types are not converted, numbers are finite. ``serve.parsing`` reads these
from a file or from the command line's short form, and turns every mistake into a
``ConfigurationError`` that names the field and the remedy.

Example::

    CanaryConfig(steps=(5, 25, 50, 100), alpha=0.01, guard_rails=GuardRails(max_error_rate=0.05))
"""

from __future__ import annotations

import re
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    field_validator,
    model_validator,
)

__all__ = [
    "DEFAULT_STEPS",
    "PROMQL",
    "Analysis",
    "CanaryConfig",
    "Direction",
    "ErrorAnalysis",
    "GuardRails",
    "LatencyAnalysis",
    "LatencyLimit",
    "MetricKind",
    "MistakeError",
    "OnRollback",
    "OnSuccess",
    "OnTimeout",
    "OutputAnalysis",
    "OwnerMetric",
    "Part",
    "check_sum",
]

DEFAULT_STEPS = (5.0, 25.0, 50.0, 100.0)
"""Percent of the traffic, step by step."""

PROMQL = "promql:"
"""How a metric's source begins that asks Prometheus."""


class MistakeError(ValueError):
    """A value that cannot be; pydantic passes it on with its remedy and, if known, its field."""

    def __init__(self, message: str, remedy: str, field: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.remedy = remedy
        self.field = field


class Direction(StrEnum):
    """Which way an owner's metric is better."""

    LOWER = "lower"
    HIGHER = "higher"


class MetricKind(StrEnum):
    RATE = "rate"
    MEAN = "mean"
    QUANTILE = "quantile"


class OnTimeout(StrEnum):
    """What follows when a step's longest time has passed and it has not earned the next one."""

    ROLLBACK = "rollback"
    HOLD = "hold"
    ADVANCE = "advance"


def _check_margin(margin: float | None, tolerance: float) -> None:
    if margin is not None and margin <= tolerance:
        raise MistakeError(
            f"the margin ({margin:g}) does not exceed the tolerance ({tolerance:g})",
            "raise 'margin' or lower 'tolerance'",
            ("margin",),
        )


def check_sum(weights: list[float], field: tuple[str | int, ...]) -> None:
    total = sum(weights)
    if abs(total - 100) > 1e-6:
        listed = " + ".join(f"{weight:g}" for weight in weights)
        raise MistakeError(
            f"the weights add up to {total:g} ({listed}), not to 100",
            "correct them so that they add up to 100",
            field,
        )


def _source(value: str) -> str:
    if value.startswith(PROMQL):
        if value.removeprefix(PROMQL).strip():
            return value
    elif re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        return value
    raise MistakeError(
        f"{value!r} is neither a Python callable nor a PromQL query",
        "write 'package.module:function', or 'promql:' and the query",
    )


def _sticky(value: str) -> str:
    if re.fullmatch(r"(header|cookie|field):[A-Za-z0-9_.-]{1,128}", value):
        return value
    raise MistakeError(
        f"{value!r} does not say where the key is",
        "write 'header:NAME', 'cookie:NAME' or 'field:NAME'",
    )


def _alias(value: str) -> str:
    if re.fullmatch(r"[\w-]{1,255}", value) and not re.fullmatch(r"[vV]\d+|latest", value):
        return value
    raise MistakeError(
        f"{value!r} cannot be an alias", "use letters, digits, '_' and '-'; not 'latest' or 'v1'"
    )


Percent = Annotated[FiniteFloat, Field(gt=0, le=100)]
Seconds = Annotated[FiniteFloat, Field(ge=0, le=30 * 86400)]
Fraction = Annotated[FiniteFloat, Field(ge=0, lt=1)]
Weight = Annotated[FiniteFloat, Field(gt=0, le=1000)]
MinSamples = Annotated[int, Field(ge=1, le=1_000_000)]
Weights = dict[Literal["stable", "canary"], Annotated[FiniteFloat, Field(ge=0, le=100)]]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
AliasName = Annotated[str, AfterValidator(_alias)]
StickyKey = Annotated[str, AfterValidator(_sticky)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ErrorAnalysis(Part):
    """The rate of failed requests, beside stable's.

    Attributes:
        tolerance: By how much (absolute) the canary's rate may be higher.
        margin: When given, a step is passed only after it was shown that the canary's rate is not
            higher than stable's by this or more (non-inferiority). Larger than ``tolerance``.
        weight: Share of the level of false rollback, relative to the other tests.
    """

    tolerance: Fraction = 0.0
    margin: Annotated[FiniteFloat, Field(gt=0, lt=1)] | None = None
    weight: Weight = 3.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_margin(self.margin, self.tolerance)
        return self


class LatencyLimit(Part):
    """At most ``ratio`` times stable's, plus ``plus_ms``.

    The limit is rounded up to the histogram's resolution of 1.1 %.
    """

    ratio: Annotated[FiniteFloat, Field(ge=1, le=100)] = 1.1
    plus_ms: Annotated[FiniteFloat, Field(ge=0, le=86_400_000)] = 0.0
    weight: Weight = 1.0


class LatencyAnalysis(Part):
    """What of the latency is compared with stable's; null leaves it out.

    ``overall`` compares the whole distribution and finds a slowing of everything much sooner than
    a quantile does; the quantiles find what happens to some requests only.
    """

    overall: LatencyLimit | None = LatencyLimit(weight=2.0)
    p50: LatencyLimit | None = None
    p95: LatencyLimit | None = LatencyLimit(ratio=1.15)
    p99: LatencyLimit | None = LatencyLimit(ratio=1.25)


class OwnerMetric(Part):
    """A metric of the model's owner.

    Attributes:
        name: Unique in the canary.
        kind: ``rate`` of events, ``mean`` of values, or a ``quantile`` of positive values.
        direction: Which way is better.
        tolerance: How much worse the canary may be: absolute for ``rate``, in the metric's unit for
            ``mean``, a part of stable's value for ``quantile`` (0.1 is 10 %).
        source: ``package.module:function`` or ``promql:…``.
        total: For PromQL, the query that counts: the trials of a rate (needed), or a mean's values
            (``source`` is then their sum).
        every_seconds: For PromQL, between two looks.
        range: For ``mean``: smallest and largest value; what lies beyond counts as the end.
        quantile: For ``quantile``: which, between 0 and 1.
        margin: As for errors, in the unit of ``tolerance``; not for ``quantile``.
        min_samples: Observations of each variant without which no step is passed; None: 20.
        weight: As for errors.
    """

    name: Name
    kind: MetricKind
    direction: Direction = Direction.LOWER
    tolerance: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    source: Annotated[str, AfterValidator(_source)]
    total: Annotated[str, AfterValidator(_source)] | None = None
    range: tuple[FiniteFloat, FiniteFloat] | None = None
    quantile: Annotated[FiniteFloat, Field(gt=0, lt=1)] | None = None
    margin: Annotated[FiniteFloat, Field(gt=0)] | None = None
    every_seconds: Annotated[FiniteFloat, Field(ge=1, le=3600)] = 15.0
    min_samples: MinSamples | None = None
    weight: Weight = 1.0

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        kind, promql = self.kind.value, self.source.startswith(PROMQL)
        wanted = {MetricKind.MEAN: "range", MetricKind.QUANTILE: "quantile"}.get(self.kind)
        for name in ("range", "quantile"):
            if name == wanted and getattr(self, name) is None:
                raise MistakeError(
                    f"a metric of kind {kind!r} needs {name!r}",
                    "add range: [smallest, largest]" if name == "range" else "add quantile: 0.95",
                )
            if name != wanted and getattr(self, name) is not None:
                raise MistakeError(f"a metric of kind {kind!r} has no {name!r}", "remove it")
        if self.range and not self.range[0] < self.range[1]:
            raise MistakeError("the range's first number is not below its second", "swap them")
        if self.kind is MetricKind.QUANTILE and (promql or self.margin is not None):
            raise MistakeError(
                "a quantile needs single values, which PromQL does not give"
                if promql
                else "a margin is for rates and means",
                "use a Python callable" if promql else "remove it",
            )
        needs = promql and self.kind is MetricKind.RATE
        if (self.total is None and needs) or (self.total is not None and not promql):
            raise MistakeError(
                "'total' goes with a metric by PromQL, and a rate needs it",
                "remove it" if self.total else "add total: 'promql:…', the count of trials",
            )
        if self.total is not None and not self.total.startswith(PROMQL):
            raise MistakeError("'total' is a query as 'source' is", "write 'promql:' and the query")
        if self.kind is MetricKind.RATE and self.tolerance >= 1:
            raise MistakeError("a rate's tolerance is below 1", "write 0.01 for one in a hundred")
        if self.kind is MetricKind.RATE and self.margin is not None and self.margin >= 1:
            raise MistakeError("a rate's margin is below 1", "write 0.01 for one in a hundred")
        _check_margin(self.margin, self.tolerance)
        return self


class OutputAnalysis(Part):
    """The distribution of the answers over bins that are frozen when the rollout starts.

    Attributes:
        tolerance: Which part of the answers may lie in other bins than stable's (total variation).
        bins: Number of bins for numeric answers; classes are their own bins.
        min_samples: Answers of each variant without which no step is passed; None: 20.
        weight: As for errors.
    """

    tolerance: Fraction = 0.1
    bins: Annotated[int, Field(ge=2, le=100)] = 10
    min_samples: MinSamples | None = None
    weight: Weight = 1.0


class Analysis(Part):
    """What is compared with stable; null leaves a part out."""

    errors: ErrorAnalysis | None = ErrorAnalysis()
    latency: LatencyAnalysis | None = LatencyAnalysis()
    metrics: tuple[OwnerMetric, ...] = ()
    outputs: OutputAnalysis | None = None

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        names = [metric.name for metric in self.metrics]
        for position, name in enumerate(names):
            if name in ("errors", "latency", "outputs"):
                raise MistakeError(
                    f"{name!r} is what is compared anyway",
                    "rename the metric",
                    ("metrics", position, "name"),
                )
            if name in names[:position]:
                raise MistakeError(
                    f"two metrics are named {name!r}",
                    "rename one of them",
                    ("metrics", position, "name"),
                )
        return self


class GuardRails(Part):
    """Absolute limits, whatever stable does. Where stable breaks one too, nobody is rolled back."""

    max_error_rate: Fraction | None = None
    max_p50_ms: Annotated[FiniteFloat, Field(gt=0)] | None = None
    max_p95_ms: Annotated[FiniteFloat, Field(gt=0)] | None = None
    max_p99_ms: Annotated[FiniteFloat, Field(gt=0)] | None = None
    weight: Weight = 1.0


class OnSuccess(Part):
    """``promote_alias``: the alias that the canary's version gets when all steps are passed."""

    promote_alias: AliasName | None = None


class OnRollback(Part):
    """``restore_alias``: the alias that goes back to stable's version."""

    restore_alias: AliasName | None = None


class CanaryConfig(Part):
    """How a canary is rolled out.

    Attributes:
        steps: The canary's percentage, step by step, increasing.
        weights: Instead of ``steps``: one step, as ``{stable: 95, canary: 5}``.
        min_samples: Canary requests a step needs at least.
        min_seconds: A step's shortest time, in seconds in which it was watched.
        max_seconds: Its longest, after which ``on_timeout`` decides.
        warmup_seconds: At a step's start, time whose requests are not compared.
        verify_seconds: How long verifying the canary may take.
        alpha: Level of false rollback of the whole rollout, over every look at it.
        advance_alpha: Level at which non-inferiority is shown, where a margin asks for it.
        timeout_seconds: Of one request at the canary.
        max_concurrency: Requests at the canary at a time.
        retry_on_stable: Whether stable answers again what the canary could not.
        sticky: Where the key is that keeps a client with its variant; null draws each request.
    """

    version: Literal[1] = 1
    steps: tuple[Percent, ...] = DEFAULT_STEPS
    weights: Weights | None = None
    min_samples: Annotated[int, Field(ge=1, le=100_000_000)] = 100
    min_seconds: Seconds = 60.0
    max_seconds: Seconds = 3600.0
    warmup_seconds: Seconds = 0.0
    verify_seconds: Seconds = 600.0
    alpha: Annotated[FiniteFloat, Field(gt=0, lt=0.5)] = 0.01
    advance_alpha: Annotated[FiniteFloat, Field(gt=0, lt=0.5)] = 0.05
    analysis: Analysis = Analysis()
    guard_rails: GuardRails = GuardRails()
    on_timeout: OnTimeout = OnTimeout.ROLLBACK
    on_success: OnSuccess = OnSuccess()
    on_rollback: OnRollback = OnRollback()
    timeout_seconds: Annotated[FiniteFloat, Field(gt=0, le=3600)] = 30.0
    max_concurrency: Annotated[int, Field(ge=1, le=100_000)] = 256
    retry_on_stable: bool = True
    sticky: StickyKey | None = None

    @field_validator("steps")
    @classmethod
    def _increase(cls, steps: tuple[float, ...]) -> tuple[float, ...]:
        if not steps:
            raise MistakeError("there is no step", "list percentages, as [5, 25, 50, 100]")
        for before, after in pairwise(steps):
            if after <= before:
                raise MistakeError(
                    f"{after:g} % does not exceed the step before it, {before:g} %",
                    "list the percentages in increasing order, each once",
                )
        return steps

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.weights is not None:
            if "steps" in self.model_fields_set and self.steps != (self.weights.get("canary"),):
                raise MistakeError(
                    "'weights' and 'steps' both say what the canary gets",
                    "keep 'steps'; 'weights' is a single step",
                    ("weights",),
                )
            if set(self.weights) != {"stable", "canary"}:
                raise MistakeError(
                    "weights are those of 'stable' and 'canary'", "state both", ("weights",)
                )
            check_sum(list(self.weights.values()), ("weights",))
            if not self.weights["canary"]:
                raise MistakeError(
                    "a canary without traffic shows nothing",
                    "give 'canary' more than 0",
                    ("weights", "canary"),
                )
            # frozen: a validator is the one place that may still set a field
            object.__setattr__(self, "steps", (self.weights["canary"],))
        rails = list(self.guard_rails.model_dump(exclude={"weight"}).values())
        latency = self.analysis.latency
        compared = latency and (latency.overall or latency.p50 or latency.p95 or latency.p99)
        if not (
            self.analysis.errors
            or compared
            or self.analysis.metrics
            or self.analysis.outputs
            or any(limit is not None for limit in rails)
        ):
            raise MistakeError(
                "nothing is compared with stable and there is no guard rail",
                "leave 'errors' in, or set a guard rail",
                ("analysis",),
            )
        if self.steps[0] >= 100 and all(limit is None for limit in rails):
            raise MistakeError(
                "a first step of 100 % leaves stable no traffic to compare with",
                "begin with less, or set a guard rail",
                ("steps",),
            )
        if self.min_seconds > self.max_seconds:
            raise MistakeError(
                f"min_seconds ({self.min_seconds:g}) exceeds max_seconds ({self.max_seconds:g})",
                "lower the one or raise the other",
                ("min_seconds",),
            )
        if self.warmup_seconds >= self.max_seconds:
            raise MistakeError(
                "the warm-up leaves nothing of a step's longest time",
                "keep warmup_seconds below max_seconds",
                ("warmup_seconds",),
            )
        return self
