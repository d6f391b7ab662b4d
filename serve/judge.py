"""All tests of a rollout together, at one level, valid at any look.

Each test's wealth is an e-process: under "the canary is not worse (beyond its tolerance) and keeps
its guard rails" its expectation is at most 1 at any time one may choose to look. So is their
weighted average, however the tests depend on each other. A rollout is rolled back when the average
reaches 1/α; by Ville's inequality that happens to a healthy canary with probability at most α over
the whole rollout, looked at after every request if you like. This gives each test the level
(its weight)·α at least, and lets them help each other.

A step is passed only while the average is below √(1/α), the half-way line on the log scale, and,
where a margin is configured, after "the canary is worse by the margin" was refuted at
``advance_alpha`` for each such test. Each must be refuted alone, so their number costs nothing
(intersection-union).

Example::

    judge = Judge.start(CanaryConfig())
    judge = judge.after(canary=Delta(requests=5), stable=Delta(requests=95))
    judge.worse, [verdict.reason for verdict in judge.verdicts()]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from serve.config import CanaryConfig, Direction, LatencyLimit, MetricKind, OwnerMetric
from serve.delta import Delta, lower_edge
from serve.evidence import CanaryTest, CanaryTestKind, Evidence
from serve.wealth import log_sum

__all__ = ["Judge", "Verdict", "planned_tests"]

_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one test has found.

    Attributes:
        test: Its name.
        n_canary: Observations at the canary.
        n_stable: Observations at stable.
        canary: The canary's rate of the event, or its mean in the metric's unit.
        stable: Stable's.
        log_e: Natural logarithm of the e-value against "the canary is not worse".
        threshold: Where this test alone would roll back: ln(1/(α·weight)).
        shown: Whether non-inferiority was shown; None where it is not asked for.
        reason: All of it in plain words.
    """

    test: str
    n_canary: int
    n_stable: int
    canary: float
    stable: float
    log_e: float
    threshold: float
    shown: bool | None
    reason: str

    @property
    def against(self) -> bool:
        """Whether this test alone is reason enough."""
        return self.log_e >= self.threshold

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without floats."""
        return {
            "test": self.test,
            "requestsCanary": self.n_canary,
            "requestsStable": self.n_stable,
            "canary": f"{self.canary:.6g}",
            "stable": f"{self.stable:.6g}",
            "logE": f"{self.log_e:.4f}",
            "threshold": f"{self.threshold:.4f}",
            "shownNotWorse": self.shown,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Judge:
    """The tests of one rollout and their evidence so far.

    Attributes:
        tests: What is tested.
        evidence: In the same order.
        alpha: Level of false rollback of the whole.
        advance_alpha: Level of each non-inferiority.
    """

    tests: tuple[CanaryTest, ...]
    evidence: tuple[Evidence, ...]
    alpha: float
    advance_alpha: float

    @classmethod
    def start(cls, config: CanaryConfig) -> Judge:
        """Nothing seen."""
        tests = planned_tests(config)
        evidence = tuple(Evidence.start(test) for test in tests)
        return cls(tests, evidence, config.alpha, config.advance_alpha)

    def after(self, canary: Delta, stable: Delta, *, alone: bool = False) -> Judge:
        """With what both variants did in the same stretch of time.

        Args:
            canary: What the canary did.
            stable: What stable did.
            alone: Whether the canary has all the traffic; only guard rails then apply.
        """
        show_at = -math.log(self.advance_alpha)
        found = tuple(
            evidence.after(test, canary, stable, alone=alone, show_at=show_at)
            for test, evidence in zip(self.tests, self.evidence, strict=True)
        )
        return Judge(self.tests, found, self.alpha, self.advance_alpha)

    def reopened(self) -> Judge:
        """Without incomplete blocks: for a change of weights."""
        found = tuple(evidence.reopened() for evidence in self.evidence)
        return Judge(self.tests, found, self.alpha, self.advance_alpha)

    @property
    def log_e(self) -> float:
        """Natural logarithm of the weighted average of all e-values."""
        return log_sum(
            math.log(test.weight) + evidence.against.log_total
            for test, evidence in zip(self.tests, self.evidence, strict=True)
        )

    @property
    def threshold(self) -> float:
        """ln(1/α)."""
        return -math.log(self.alpha)

    @property
    def worse(self) -> bool:
        """The canary is worse: roll back."""
        return self.log_e >= self.threshold

    @property
    def doubtful(self) -> bool:
        """Half-way (on the log scale) to a rollback: no time to send it more traffic."""
        return self.log_e >= self.threshold / 2

    @property
    def excused(self) -> tuple[str, ...]:
        """Guard rails that stable breaks as well, at the moment."""
        return tuple(
            test.name
            for test, evidence in zip(self.tests, self.evidence, strict=True)
            if evidence.excused
        )

    @property
    def not_shown(self) -> tuple[str, ...]:
        """Tests whose margin is not refuted yet."""
        return tuple(
            test.name
            for test, evidence in zip(self.tests, self.evidence, strict=True)
            if test.margin is not None and not evidence.shown
        )

    @property
    def informed(self) -> frozenset[str]:
        """Sources of the tests that know enough of the past to bet."""
        return frozenset(
            test.source
            for test, evidence in zip(self.tests, self.evidence, strict=True)
            if evidence.informed(test)
        )

    def verdicts(self) -> tuple[Verdict, ...]:
        """One of each test, the strongest evidence against the canary first."""
        found = [
            self._verdict(test, evidence)
            for test, evidence in zip(self.tests, self.evidence, strict=True)
        ]
        return tuple(sorted(found, key=lambda verdict: verdict.threshold - verdict.log_e))

    def _verdict(self, test: CanaryTest, evidence: Evidence) -> Verdict:
        canary, stable = evidence.seen
        here, there = canary.rate, stable.rate
        if test.kind is CanaryTestKind.MEAN:
            if test.higher_is_better:
                here, there = 1 - here, 1 - there
            here, there = (test.low + test.width * value for value in (here, there))
        log_e = evidence.against.log_total
        threshold = -math.log(self.alpha * test.weight)
        words = _sentence(test, evidence, here, there)
        if canary.n:
            words += f" Evidence against the canary: {_odds(log_e)}, of {_odds(threshold)} needed."
        if test.margin is not None:
            words += (
                " It is shown that the canary is not worse by the margin."
                if evidence.shown
                else " It is not shown yet that the canary is not worse by the margin."
            )
        return Verdict(
            test=test.name,
            n_canary=canary.n,
            n_stable=stable.n,
            canary=here,
            stable=there,
            log_e=log_e,
            threshold=threshold,
            shown=None if test.margin is None else evidence.shown,
            reason=words,
        )

    def basis(self) -> dict[str, Any]:
        """What a decision rests on, as the promotion gate reads it: how much was compared, and
        how easily it could have ended otherwise. For JSON, without floats.
        """
        found = {
            test.name: (test, evidence)
            for test, evidence in zip(self.tests, self.evidence, strict=True)
        }
        test, evidence = found.get("errors", (None, None))
        return {
            "requests": min(sums.n for sums in evidence.seen) if evidence else 0,
            "alpha": f"{self.alpha:.6g}",
            "advanceAlpha": f"{self.advance_alpha:.6g}"
            if any(one.margin is not None for one in self.tests)
            else None,
            "errorLevel": f"{self.alpha * test.weight:.6g}" if test else None,
            "errorTolerance": f"{test.tolerance:.6g}" if test else None,
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without floats; the tests themselves follow from the configuration."""
        return {
            test.name: evidence.to_dict()
            for test, evidence in zip(self.tests, self.evidence, strict=True)
        }

    @classmethod
    def from_dict(cls, config: CanaryConfig, document: Mapping[str, Any]) -> Judge:
        """Exact inverse of ``to_dict``.

        Raises:
            KeyError: the document belongs to another configuration.
        """
        tests = planned_tests(config)
        found = tuple(Evidence.from_dict(document[test.name]) for test in tests)
        return cls(tests, found, config.alpha, config.advance_alpha)


def planned_tests(config: CanaryConfig) -> tuple[CanaryTest, ...]:
    """What a configuration asks to test; weights add up to 1."""
    tests: list[CanaryTest] = []
    analysis, rails = config.analysis, config.guard_rails
    if analysis.errors:
        errors = analysis.errors
        tests.append(
            CanaryTest(
                "errors",
                CanaryTestKind.EVENTS,
                "errors",
                errors.weight,
                tolerance=errors.tolerance,
                margin=errors.margin,
            )
        )
    if analysis.latency and (overall := analysis.latency.overall):
        tests.append(
            CanaryTest(
                "latency.overall",
                CanaryTestKind.SHIFT,
                "latency",
                overall.weight,
                ratio=overall.ratio,
                plus=overall.plus_ms,
            )
        )
    for name, quantile in _QUANTILES.items():
        limit: LatencyLimit | None = getattr(analysis.latency, name, None)
        if limit:
            tests.append(
                CanaryTest(
                    f"latency.{name}",
                    CanaryTestKind.QUANTILE,
                    "latency",
                    limit.weight,
                    quantile=quantile,
                    ratio=limit.ratio,
                    plus=limit.plus_ms,
                )
            )
    tests += [_of_metric(metric) for metric in analysis.metrics]
    if analysis.outputs:
        tests.append(
            CanaryTest(
                "outputs",
                CanaryTestKind.OUTPUTS,
                "outputs",
                analysis.outputs.weight,
                tolerance=analysis.outputs.tolerance,
            )
        )
    if rails.max_error_rate is not None:
        tests.append(
            CanaryTest(
                "guard.max_error_rate",
                CanaryTestKind.LIMIT,
                "errors",
                rails.weight,
                limit=rails.max_error_rate,
            )
        )
    for name, quantile in _QUANTILES.items():
        most: float | None = getattr(rails, f"max_{name}_ms")
        if most is not None:
            tests.append(
                CanaryTest(
                    f"guard.max_{name}_ms",
                    CanaryTestKind.LIMIT,
                    "latency",
                    rails.weight,
                    limit=round(1 - quantile, 9),
                    plus=most,
                )
            )
    whole = sum(test.weight for test in tests)
    return tuple(replace(test, weight=test.weight / whole) for test in tests)


def _of_metric(metric: OwnerMetric) -> CanaryTest:
    higher = metric.direction is Direction.HIGHER
    name = f"metric.{metric.name}"
    if metric.kind is MetricKind.QUANTILE:
        return CanaryTest(
            name,
            CanaryTestKind.QUANTILE,
            metric.name,
            metric.weight,
            higher_is_better=higher,
            quantile=metric.quantile or 0.5,
            ratio=1 + metric.tolerance,
        )
    low, high = metric.range or (0.0, 1.0)
    width = high - low
    return CanaryTest(
        name,
        CanaryTestKind.MEAN if metric.kind is MetricKind.MEAN else CanaryTestKind.EVENTS,
        metric.name,
        metric.weight,
        tolerance=metric.tolerance / width,
        margin=None if metric.margin is None else metric.margin / width,
        higher_is_better=higher,
        low=low,
        width=width,
    )


def _odds(log_e: float) -> str:
    """An e-value in words: how many to one."""
    if log_e < 20:
        return f"{math.exp(log_e):.3g} to 1"
    return f"e^{log_e:.1f} to 1"


def _part(rate: float) -> str:
    return f"{100 * rate:.3g} %"


def _sentence(test: CanaryTest, evidence: Evidence, here: float, there: float) -> str:
    canary, stable = evidence.seen
    if not canary.n:
        return f"{test.name}: nothing to compare yet."
    sizes = f"of {canary.n} at the canary, beside {_part(there)} of {stable.n} at stable"
    allowed = f" (tolerated: {_part(test.tolerance)} more)" if test.tolerance else ""
    match test.kind:
        case CanaryTestKind.EVENTS if test.source == "errors":
            return f"errors: {_part(here)} {sizes}{allowed}."
        case CanaryTestKind.EVENTS:
            what = "without the event" if test.higher_is_better else "with the event"
            return f"{test.name}: {what}, {_part(here)} {sizes}{allowed}."
        case CanaryTestKind.MEAN:
            return (
                f"{test.name}: mean {here:.6g} of {canary.n} at the canary, beside {there:.6g} of "
                f"{stable.n} at stable (tolerated: {test.tolerance * test.width:g} worse)."
            )
        case CanaryTestKind.SHIFT:
            less = f" (less {test.plus:g} ms)" if test.plus else ""
            return (
                f"{test.name}: with the canary's time{less} divided by {test.ratio:g}, {canary.n} "
                f"of its requests are slower than stable's past ones with probability "
                f"{_part(here)}; for {stable.n} requests of stable it is {_part(there)}."
            )
        case CanaryTestKind.OUTPUTS:
            return (
                f"outputs: in the bins that the canary favours, {_part(here)} {sizes} "
                f"(tolerated: {_part(test.tolerance)} of the answers elsewhere)."
            )
        case CanaryTestKind.QUANTILE:
            way = "below" if test.higher_is_better else "above"
            unit = " ms" if test.source == "latency" else ""
            plus = f" + {test.plus:g}{unit}" if test.plus else ""
            turned = "divided by" if test.higher_is_better else "times"
            edge = f", last {lower_edge(evidence.mark[0]):.4g}{unit}" if evidence.mark else ""
            return (
                f"{test.name}: {way} stable's {100 * test.quantile:g} % quantile {turned} "
                f"{test.ratio:g}{plus}, {_part(here)} {sizes} (there without the factor{edge})."
            )
        case CanaryTestKind.LIMIT:
            rule = (
                f"at most {_part(test.limit)} may fail"
                if test.source == "errors"
                else f"at most {_part(test.limit)} may take {test.plus:g} ms or more"
            )
            both = " Stable breaks this limit as well." if evidence.excused else ""
            return f"{test.name}: {rule}; it is {_part(here)} {sizes}.{both}"
