"""How many replicas each variant of a deployment gets, by its record, course and gateways.

Variants are scaled one by one, with two exceptions, so that no step of a rollout meets too few:

- While more than one variant runs, none of them sleeps, and stable is kept large enough for all
  traffic: a rollback sends it there at once.
- A variant that is rolled out is made ready for the share of its next step.

Example::

    scaler = Scaler()
    scaler.hear(report, now)
    course = replace(course, scaled=scaler.decide(record, course, specs, states, now))
    specs = sized(record, course, specs)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from governance.deployment_records import DeploymentRecord
from governance.deployment_resources import scale_of
from serve.autoscaling import Demand, Scaled, advance
from serve.cluster import VariantSpec, VariantState, application_of
from serve.course import Course
from serve.demand import Demands
from serve.plan import Report
from serve.records import Phase
from serve.schedule import bounds_at

__all__ = ["Scaler", "asleep", "sized"]


def sized(
    record: DeploymentRecord, course: Course, specs: Mapping[str, VariantSpec]
) -> dict[str, VariantSpec]:
    """What should run, each with its number of replicas; without those that sleep."""
    if scale_of(record.resources) is None:
        return dict(specs)
    found = {}
    for name, spec in specs.items():
        scaled = course.scaled.get(name)
        if scaled is None:
            found[name] = spec
        elif scaled.replicas:
            found[name] = replace(spec, resources={**spec.resources, "replicas": scaled.replicas})
    return found


def asleep(course: Course) -> frozenset[str]:
    """Applications that have no replica because nobody asks."""
    return frozenset(name for name, scaled in course.scaled.items() if not scaled.replicas)


class Scaler:
    """Knows the demand of the last seconds, and decides."""

    def __init__(self) -> None:
        self._demands = Demands()

    def hear(self, report: Report, now: int) -> None:
        """A gateway reports."""
        self._demands.hear(report, now)

    def adopt(
        self,
        record: DeploymentRecord,
        course: Course,
        states: Mapping[str, VariantState],
        now: int,
    ) -> Mapping[str, Scaled]:
        """What there is when a controller takes over: it never begins by ending something."""
        if scale_of(record.resources) is None:
            return {}
        found = dict(course.scaled)
        for name, state in states.items():
            before = found.get(name)
            if state.replicas > (0 if before is None else before.replicas):
                busy = now if before is None else before.busy_ms
                found[name] = Scaled(state.replicas, now, busy, reason="it runs")
        return found

    def decide(
        self,
        record: DeploymentRecord,
        course: Course,
        specs: Mapping[str, VariantSpec],
        states: Mapping[str, VariantState],
        now: int,
    ) -> Mapping[str, Scaled]:
        """How many there should be, by application."""
        scale = scale_of(record.resources)
        if scale is None:
            return {}
        bounds = bounds_at(scale, now)
        demands = {name: self._demands.of(name, now) for name in specs}
        total = sum(demands.values(), Demand())
        stable = application_of(record, record.stable)
        several = len(specs) > 1
        found = {}
        for name in specs:
            demand, before, state = demands[name], course.scaled.get(name), states.get(name)
            if several:
                part = 1.0 if name == stable else _next_share(course)
                demand = demand.or_more(total.share(part))
            if before is not None and course.warmed_ms > before.busy_ms:
                before = replace(before, busy_ms=course.warmed_ms)
            running = 0 if state is None else state.answering
            found[name] = advance(
                scale, bounds, before, demand, running=running, now_ms=now, awake=several
            )
        return found


def _next_share(course: Course) -> float:
    """Part of the traffic that what is rolled out may have soon."""
    rollout = course.running
    if rollout is None:
        return 0.0
    steps = rollout.config.steps
    at = rollout.step + 1 if rollout.phase is Phase.CANARY else rollout.step
    return steps[min(at, len(steps) - 1)] / 100
