"""What is kept of a rollout over time is small, adds up, and is read back as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from governance.canonical import canonical_json
from serve.config import CanaryConfig
from serve.course import Course
from serve.delta import Delta, ErrorClass, bucket_of
from serve.records import Observation, Phase, Signal
from serve.rollout import RolloutState, advance
from serve.series import MOST, Series, followed, quantile
from tests.unit.serve.deployment_world import World, to_first_step


def some(requests: int, failed: int = 0, ms: float = 5.0) -> Delta:
    errors = {ErrorClass.RAISED: failed} if failed else {}
    return Delta(requests, errors, {bucket_of(ms): requests - failed})


class Rollout:
    """A rollout, its series, and what went by."""

    def __init__(self, config: CanaryConfig) -> None:
        self.state = RolloutState.start("r1", config)
        self.series: Series | None = None
        self.now = self.number = 0
        self.canary = self.stable = Delta()
        self.see(0, signals=frozenset({Signal.START}))
        self.see(0, signals=frozenset({Signal.VERIFIED}))

    def see(
        self,
        ms: int,
        canary: Delta = Delta(),  # noqa: B008 - frozen
        stable: Delta = Delta(),  # noqa: B008 - frozen
        signals: frozenset[Signal] = frozenset(),
    ) -> None:
        self.now += ms
        self.number += 1
        deltas = {"canary": canary, "stable": stable}
        seen = Observation("g", self.number, deltas, signals)
        self.state, _, _ = advance(self.state, seen, self.now)
        self.series = followed(self.series, self.state, deltas, self.now)
        self.canary, self.stable = self.canary + canary, self.stable + stable


LONG = CanaryConfig(steps=(10.0, 100.0), min_samples=100_000, max_seconds=10**6)


def test_a_quantile_is_within_a_bucket() -> None:
    latency = {bucket_of(ms): 1 for ms in range(1, 101)}
    assert quantile(latency, 0.5) == pytest.approx(50, rel=0.02)
    assert quantile(latency, 0.99) == pytest.approx(99, rel=0.02)
    assert quantile({}, 0.5) is None


def test_a_long_rollout_has_few_points_that_add_up() -> None:
    rollout = Rollout(LONG)
    for second in range(5000):
        rollout.see(1000, some(3, second % 2), some(27))
    series = rollout.series
    assert series is not None
    assert MOST / 2 <= len(series.points) <= MOST
    counted = [sum(p.canary.requests for p in series.points), series.canary.requests]
    assert sum(counted) == rollout.canary.requests
    charged = sum(p.canary.charged for p in series.points) + series.canary.charged
    assert charged == rollout.canary.charged
    times = [point.at_ms for point in series.points]
    assert times == sorted(times)
    assert series.points[-1].stable.p50 == pytest.approx(5.0, rel=0.02)
    assert len(canonical_json(series.to_dict())) < 40_000
    assert series.step_canary.requests == rollout.canary.requests


def test_many_steps_fit_too() -> None:
    steps = tuple(0.1 * n for n in range(1, 601))
    rollout = Rollout(CanaryConfig(steps=steps, min_samples=1, min_seconds=0.5))
    for _ in range(700):
        rollout.see(1000, some(5), some(50))
    assert rollout.series is not None
    assert len(rollout.series.points) <= MOST


def test_a_step_closes_the_interval_and_begins_its_own_totals() -> None:
    config = CanaryConfig(steps=(10.0, 100.0), min_samples=20, min_seconds=3.0)
    rollout = Rollout(config)
    while rollout.state.step == 0:
        rollout.see(250, some(3), some(27))
    series = rollout.series
    assert series is not None
    assert series.points[-1].percent == 10.0
    assert series.points[-1].at_ms == rollout.now
    assert (series.percent, series.step_canary.requests) == (100.0, 0)
    while not rollout.state.phase.terminal:
        rollout.see(250, some(30))
    series = rollout.series
    assert [point.phase for point in series.points[-2:]] == ["canary", "promoted"]
    assert series.step_canary.requests > 0


def test_a_rollback_shows_the_evidence_that_decided() -> None:
    rollout = Rollout(LONG)
    while not rollout.state.phase.terminal:
        rollout.see(250, some(5, 5), some(45))
    series = rollout.series
    assert series is not None
    assert rollout.state.phase is Phase.ROLLED_BACK
    decided = series.points[-2]
    assert decided.log_e >= series.threshold
    assert max(decided.tests) > 0
    assert (series.points[-1].phase, series.points[-1].percent) == ("rolled_back", 0.0)


def test_it_is_read_back_as_it_was() -> None:
    rollout = Rollout(LONG)
    for second in range(300):
        rollout.see(700, some(3, second % 2), some(27, ms=7.7))
    series = rollout.series
    assert series is not None
    course = Course(rollout=rollout.state, series=series)
    again = Course.from_json(course.to_json())
    assert again.series == series
    assert again.to_json() == course.to_json()


def test_a_course_from_before_there_were_series_is_read() -> None:
    document = json.loads(Course().to_json())
    del document["series"]
    assert Course.from_json(canonical_json(document)) == Course()


def test_a_controller_keeps_it_and_the_next_goes_on(tmp_path: Path) -> None:
    world = World(tmp_path)
    to_first_step(world)
    world.until("advanced")
    before = world.course.series
    assert before is not None
    assert any(point.stable.requests for point in before.points)
    world.controller.close()
    world.controller = world.start("two")
    world.until("promoted")
    after = world.course.series
    assert after is not None
    assert after.points[: len(before.points)] == before.points
    assert after.points[-1].phase == "promoted"


def test_a_new_rollout_begins_anew(tmp_path: Path) -> None:
    world = World(tmp_path)
    to_first_step(world)
    world.until("promoted")
    world.begin(version=3)
    world.pass_(1)
    assert world.course.series is not None
    assert world.course.series.rollout_id == world.record.rollout_id
    assert replace(world.course.series, points=()).began_ms > 0
