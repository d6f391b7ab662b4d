"""The controller gives each variant as many replicas as are asked for (AC-15)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from governance.deployment_records import Health, SignalKind
from serve.cluster import Running, VariantState
from serve.course import Course
from serve.plan import Load, Plan, Report
from serve.views import describe
from tests.unit.serve.deployment_world import CONFIG, STEP, World, good, weights


class ScaledWorld(World):
    """A world whose gateway tells how much is asked of each application."""

    def __init__(self, path: Path, **scale: Any) -> None:
        super().__init__(path)
        self.store.scale(self.record, **scale)
        self.total: dict[str, int] = {}

    def load(self, seconds: float, rps: dict[int, int] | None = None, held: int = 0) -> Plan:
        """Time with so many requests a second at each version."""
        plan = None
        for _ in range(int(seconds * 1000 / STEP)):
            self.now += STEP
            self.controller.tick(self.now)
            if not self.controller.holding:
                continue
            for version, rate in (rps or {}).items():
                app = self.app(version)
                self.total[app] = self.total.get(app, 0) + rate * STEP // 1000
            load = {app: Load(total, 0, 0) for app, total in self.total.items()}
            if held:
                load[self.stable_app] = Load(self.total.get(self.stable_app, 0) + held, 0, held)
            report = self.report(good(20) if self.now_record.canary else None, good(20))
            plan = self.controller.exchange(replace(report, load=load))
        assert plan is not None
        return plan

    def replicas(self, version: int = 1) -> int:
        spec = self.cluster.running.get(self.app(version))
        return 0 if spec is None else int(spec.resources["replicas"])


def test_replicas_follow_the_requests(tmp_path: Path) -> None:
    world = ScaledWorld(tmp_path, replicas="1..8", target_rps=50, quiet_seconds=30)
    world.load(3, {1: 20})
    assert world.replicas() == 1
    world.load(5, {1: 240})
    assert world.replicas() == 5
    world.load(20, {1: 40})
    assert world.replicas() == 5
    world.load(80, {1: 40})
    assert world.replicas() == 1
    assert world.cluster.stopped == []


def test_people_see_how_many_and_why(tmp_path: Path) -> None:
    windows = ["Mon-Fri 08:00-18:00 Europe/Berlin = 4..8"]
    world = ScaledWorld(tmp_path, replicas="0..8", target_rps=50, schedule=windows)
    world.load(10, {1: 240})
    shown = "\n".join(describe(world.now_record, world.now))
    assert "scale      0..8, 50 requests/s for each" in shown
    assert "Mon,Tue,Wed,Thu,Fri 08:00-18:00 Europe/Berlin = 4..8" in shown
    assert "replicas   5 of version 1 since" in shown
    assert "240 requests/s at 50 for each" in shown


def test_a_takeover_neither_ends_nor_restarts_anything(tmp_path: Path) -> None:
    world = ScaledWorld(tmp_path, replicas="1..8", target_rps=50, quiet_seconds=30)
    world.load(6, {1: 220})
    assert world.replicas() == 5
    world.controller = world.start("two")
    world.idle(5)
    world.cluster.starts.clear()
    world.load(10, {1: 220})
    assert world.controller.holding
    assert {spec.resources["replicas"] for spec in world.cluster.starts} <= {5}
    assert world.replicas() == 5


def test_what_was_not_saved_is_taken_from_the_cluster(tmp_path: Path) -> None:
    world = ScaledWorld(tmp_path, replicas="1..8", target_rps=50)
    world.load(5, {1: 20})
    before = world.cluster.running[world.stable_app]
    more = replace(before, resources={**before.resources, "replicas": 6})
    world.cluster.running[world.stable_app] = more  # another controller's, that it could not save
    world.controller = world.start("two")
    world.cluster.starts.clear()
    world.idle(5)
    assert [spec.resources["replicas"] for spec in world.cluster.starts] == [6]


def test_it_is_changed_while_it_serves(tmp_path: Path) -> None:
    world = ScaledWorld(tmp_path, replicas="1..8", target_rps=50, quiet_seconds=30)
    world.load(6, {1: 220})
    world.store.scale(world.now_record, replicas="6..9", target_rps=50)
    world.load(1, {1: 220})
    assert world.replicas() == 6
    world.store.scale(world.now_record, replicas="1..2", target_rps=50)
    world.load(1, {1: 220})
    assert world.replicas() == 2


def test_a_fixed_number_becomes_a_range_without_ending_anything(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.pass_(2)
    assert world.cluster.running[world.stable_app].resources["replicas"] == 2
    world.store.scale(world.now_record, replicas="1..8", quiet_seconds=30)
    world.pass_(5)
    assert {spec.resources["replicas"] for spec in world.cluster.starts} == {2}


def test_the_last_replica_ends_and_a_request_brings_it_back(tmp_path: Path) -> None:
    world = ScaledWorld(tmp_path, replicas="0..4", idle_seconds=60, hold_seconds=45)
    plan = world.load(5, {1: 20})
    assert [variant.hold_s for variant in plan.variants] == [45.0]
    plan = world.load(75)
    assert world.replicas() == 0
    assert world.cluster.stopped == [world.stable_app]
    assert weights(plan) == {"stable": 100.0}, "gateways hold what comes"
    assert world.now_record.health is Health.SERVING, "it sleeps, and is not ill"
    world.load(0.5, held=1)
    assert world.replicas() == 1
    world.load(75)
    assert world.replicas() == 0
    assert world.cluster.stopped == [world.stable_app] * 2
    assert world.now_record.health is Health.SERVING


def test_it_sleeps_on_under_another_controller(tmp_path: Path) -> None:
    world = ScaledWorld(tmp_path, replicas="0..4", idle_seconds=60)
    world.load(75)
    assert world.replicas() == 0
    world.controller = world.start("two")
    world.cluster.starts.clear()
    world.load(30)
    assert world.cluster.starts == []
    world.load(0.5, held=3)
    assert world.replicas() == 1


def test_somebody_may_wake_it(tmp_path: Path) -> None:
    world = ScaledWorld(tmp_path, replicas="0..4", idle_seconds=60)
    world.load(75)
    world.store.ask(world.now_record, SignalKind.WARM, now_ms=world.now)
    world.load(1)
    assert world.replicas() == 1
    world.load(50)
    assert world.replicas() == 1
    world.load(20)
    assert world.replicas() == 0, "nobody asked, for the idle time"


def test_a_schedule_starts_replicas_before_its_window(tmp_path: Path) -> None:
    world = ScaledWorld(
        tmp_path, replicas="0..4", idle_seconds=60, prewarm_seconds=120, quiet_seconds=10,
        schedule=["00:30-01:00 UTC = 3..8"],
    )  # fmt: skip
    world.now = 27 * 60_000  # 00:27
    world.load(75)
    assert world.replicas() == 3, "00:28:15, a minute and a half before"
    world.now = 61 * 60_000
    world.load(150)
    assert world.replicas() == 0


def test_a_rollout_wakes_stable_and_keeps_it_large_enough_for_all(tmp_path: Path) -> None:
    world = ScaledWorld(tmp_path, replicas="0..8", target_rps=50, idle_seconds=5, quiet_seconds=5)
    world.load(30)
    assert world.replicas() == 0
    world.begin(CONFIG.replace('"min_seconds":2.0', '"min_seconds":60.0'))
    world.load(5)
    assert world.replicas() == 1
    plan = world.load(5, {1: 360, 2: 40})
    assert set(weights(plan)) >= {"canary"}
    assert world.replicas(1) == 8, "stable could take all of it back"
    assert world.replicas(2) == 8, "the next step is all of it"


def test_nobody_is_told_that_a_sleeping_model_is_gone(tmp_path: Path) -> None:
    world = ScaledWorld(tmp_path, replicas="0..4", idle_seconds=30)
    world.load(120)
    assert world.course.notices == ()


def test_what_no_node_has_is_told_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    words = "no node has the label pool=gpu"
    world.cluster.states[world.stable_app] = VariantState(Running.STARTING, "", 1, 0, words)
    world.idle(5)
    assert [words in notice.text for notice in world.course.notices] == [True]
    alerts = [e for e in world.store.ledger.events if e.name.value == "serve:deployment:alerted"]
    assert len(alerts) == 1


def test_what_somebody_else_took_down_is_started_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.idle(2)
    world.cluster.running.clear()
    world.idle(4)
    assert world.stable_app in world.cluster.running
    assert len(world.cluster.starts) == 2


def test_gateways_are_opened_again_when_they_are_to_be_others(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.idle(5)
    assert world.cluster.opened == 1
    world.store.scale(world.now_record, replicas="1..2")
    world.idle(2)
    assert world.cluster.opened == 2


def test_a_course_of_an_earlier_release_knows_no_scaling(tmp_path: Path) -> None:
    world = ScaledWorld(tmp_path, replicas="1..8", target_rps=50)
    world.load(6, {1: 220})
    document = json.loads(world.course.to_json())
    assert Course.from_json(json.dumps(document)) == world.course
    del document["scaled"], document["warmedMs"]
    assert Course.from_json(json.dumps(document)).scaled == {}


def test_reports_say_how_much_is_asked() -> None:
    report = Report("g", 1, load={"a": Load(5, 2, 1)})
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


@pytest.mark.parametrize("kind", list(SignalKind))
def test_which_signals_need_a_rollout(kind: SignalKind) -> None:
    assert kind.of_a_rollout == (kind.value not in ("quarantine", "warm"))
