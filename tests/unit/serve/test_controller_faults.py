"""The controller after crashes, beside another one, and without its database or cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from governance.deployment_control import Progress
from governance.deployment_records import Health, SignalKind
from governance.errors import UnreachableError
from serve.cluster import Running, VariantState
from serve.course import Course
from serve.records import Phase
from serve.rollout import why
from tests.unit.serve.deployment_world import STEP, World, good, to_first_step, versions, weights


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# -- taking over


def test_another_controller_goes_on_in_the_middle_of_a_step(world: World) -> None:
    to_first_step(world)
    world.pass_(1)
    saved = world.course.rollout
    assert saved is not None
    revision = world.tell().revision
    another = world.start("another")
    world.idle(2, another)
    assert not another.holding  # the lease lasts
    world.idle(2, another)
    plan = another.exchange(world.report())
    assert weights(plan) == {"canary": 10.0, "stable": 90.0}
    assert plan.revision > revision
    world.pass_(5, controller=another)
    assert world.store.outcomes(world.record)[:3] == ["started", "verified", "advanced"]
    assert world.store.outcomes(world.record).count("verified") == 1


@pytest.mark.parametrize("gateways", [True, False], ids=["gateways", "no gateway"])
def test_a_canary_that_went_with_its_controller_is_awaited(world: World, gateways: bool) -> None:
    """Its replica may start later than stable's: it gets no traffic before, and no blame."""
    to_first_step(world)
    world.pass_(1)
    saved = world.course.rollout
    assert saved is not None
    world.cluster.states[world.app(2)] = VariantState(Running.STARTING)
    another = world.start("another")
    world.idle(4, another)
    for _ in range(20):
        world.idle(1, another)
        if gateways:
            report = world.report(good(10, 1.0), good(90), lanes=0)
            plan = another.exchange(report)
            assert weights(plan) == {"stable": 100.0}
            assert versions(plan) == {"stable": "1", "canary": "2"}
    rollout = world.course.rollout
    assert rollout is not None
    assert (rollout.phase, rollout.step) == (Phase.CANARY, 0)
    assert rollout.watched_ms - saved.watched_ms <= STEP  # saved a moment before the crash
    assert rollout.judge == saved.judge
    assert "not every gateway" in " ".join(why(rollout))
    del world.cluster.states[world.app(2)]
    world.idle(0.5, another)
    assert weights(another.exchange(world.report(lanes=0))) == {"stable": 100.0}
    assert weights(another.exchange(world.report())) == {"canary": 10.0, "stable": 90.0}
    world.pass_(5, controller=another)
    assert "advanced" in world.store.outcomes(world.record)
    assert "not every gateway" not in str(world.course.rollout)


def test_a_canary_that_dies_after_it_was_met_again_is_blamed(world: World) -> None:
    to_first_step(world)
    world.pass_(1)
    another = world.start("another")
    world.idle(4, another)
    world.pass_(1, controller=another)
    for _ in range(10):
        plan = another.exchange(world.report(good(10, 1.0), good(90), lanes=0))
    assert weights(plan) == {"stable": 100.0}
    world.idle(0.5, another)
    assert world.phase is Phase.ROLLED_BACK


def test_a_canary_that_cannot_start_again_is_rolled_back(world: World) -> None:
    to_first_step(world)
    world.pass_(1)
    world.cluster.states[world.app(2)] = VariantState(Running.UNHEALTHY, "no such file")
    another = world.start("another")
    world.idle(4, another)
    assert weights(another.exchange(world.report(lanes=0))) == {"stable": 100.0}
    assert world.phase is Phase.ROLLED_BACK


@pytest.mark.parametrize("moment", range(0, 40, 3))
def test_a_crash_at_any_moment_neither_loses_nor_repeats_a_decision(
    world: World, moment: int
) -> None:
    world.idle(1)
    world.begin()
    for _ in range(moment):
        world.pass_(0.25, rate=20)
    acting = world.start("another")
    world.idle(4, acting)
    world.pass_(30, rate=20, controller=acting)
    assert world.store.outcomes(world.record) == ["started", "verified", "advanced", "promoted"]
    assert world.now_record.stable.version == 2
    assert world.store.aliases
    assert set(world.store.aliases) == {("champion", 2)}
    assert set(world.cluster.running) == {world.app(2)}


def test_a_report_that_comes_twice_counts_once(world: World) -> None:
    to_first_step(world)
    report = world.report(good(7), good(50))
    for _ in range(5):
        world.controller.exchange(report)
    world.idle(2.5)
    rollout = world.course.rollout
    assert rollout is not None
    assert rollout.requests == 7
    another = world.start("another")
    world.idle(4, another)
    another.exchange(report)
    world.idle(2.5, another)
    rollout = world.course.rollout
    assert rollout is not None
    assert rollout.requests == 7


def test_only_the_holder_of_the_lease_decides(world: World) -> None:
    other = world.start("other")
    world.idle(1, world.controller, other)
    world.begin()
    for _ in range(60):
        world.idle(0.25, world.controller, other)
        world.tell(good(10), good(10))
        with pytest.raises(UnreachableError):
            other.exchange(world.report(good(10, 1.0), good(10)))
    assert world.store.outcomes(world.record) == ["started", "verified", "advanced", "promoted"]
    assert not other.holding


def test_who_was_put_aside_is_refused_and_gives_way(world: World) -> None:
    to_first_step(world)
    other = world.start("other")
    late = world.now + 10_000  # its clock runs ahead: it takes the lease too early
    other.tick(late)
    assert other.holding
    old = world.tell(good(10, 1.0), good(90))
    world.idle(1)
    assert not world.controller.holding
    with pytest.raises(UnreachableError):
        world.tell()
    plan = other.exchange(world.report())
    assert plan.revision > old.revision
    assert weights(plan) == {"canary": 10.0, "stable": 90.0}


def test_closing_leaves_the_lease_to_others(world: World) -> None:
    to_first_step(world)
    world.pass_(1)
    world.controller.close()
    other = world.start("other")
    world.idle(0.5, other)
    assert other.holding


# -- the database is away


def test_a_step_holds_while_the_database_is_away(world: World) -> None:
    to_first_step(world)
    world.store.away = True
    plan = world.pass_(20)
    assert weights(plan) == {"canary": 10.0, "stable": 90.0}
    assert world.controller.away
    world.store.away = False
    world.pass_(1)
    assert "advanced" in world.store.outcomes(world.record)
    assert weights(world.tell()) == {"canary": 100.0}


def test_it_rolls_back_without_the_database_and_records_it_later(world: World) -> None:
    to_first_step(world)
    world.pass_(1)
    world.store.away = True
    world.idle(1)
    for _ in range(10):
        plan = world.tell(good(10, 1.0), good(90))
    assert weights(plan) == {"stable": 100.0}
    world.idle(20)  # longer than the lease
    assert world.store.aliases == []  # what is not recorded is not done either
    world.store.away = False
    world.idle(1)
    assert world.store.outcomes(world.record) == ["started", "verified", "rolled_back"]
    assert world.now_record.canary is None
    world.idle(1)
    assert world.store.aliases == [("champion", 1)]


def test_a_lost_answer_to_a_step_forward_changes_nothing(world: World) -> None:
    to_first_step(world)
    world.store.lose_answers = True
    world.pass_(4)
    assert weights(world.tell()) == {"canary": 10.0, "stable": 90.0}
    assert world.store.outcomes(world.record)[-1] == "advanced"  # it was recorded
    world.store.lose_answers = world.store.away = False
    world.idle(0.75)
    assert weights(world.tell()) == {"canary": 100.0}
    assert world.store.outcomes(world.record).count("advanced") == 1
    world.pass_(4)
    assert world.now_record.stable.version == 2


def test_a_rollback_after_a_lost_answer_stays(world: World) -> None:
    to_first_step(world)
    world.store.lose_answers = True
    world.pass_(3)
    for _ in range(20):
        plan = world.tell(good(10, 1.0), good(90))
    assert weights(plan) == {"stable": 100.0}
    world.store.lose_answers = world.store.away = False
    plan = world.pass_(1)
    assert weights(plan) == {"stable": 100.0}
    outcomes = world.store.outcomes(world.record)
    assert outcomes[-2:] == ["advanced", "rolled_back"]
    assert world.now_record.canary is None


def test_state_that_cannot_be_read_begins_anew_on_stable(world: World) -> None:
    to_first_step(world)
    world.controller.close()
    broken = Progress(b'{"format":"?"}', 1, Health.SERVING)
    assert world.store.take(world.record.deploy_id, "x", now_ms=world.now, ttl_ms=0)
    world.store.save(world.record.deploy_id, 2, broken, now_ms=world.now)
    other = world.start("other")
    world.idle(1, other)
    plan = other.exchange(world.report(lanes=0))
    assert weights(plan) == {"stable": 100.0}
    assert "begins anew" in world.course.notices[0].text


def test_evidence_is_saved_every_two_seconds_and_nothing_otherwise(world: World) -> None:
    to_first_step(world)
    world.store.ask(world.record, SignalKind.PAUSE)
    world.pass_(1)
    before = world.store.saves
    world.pass_(10)
    assert 4 <= world.store.saves - before <= 6


def test_an_idle_deployment_is_not_written(world: World) -> None:
    world.idle(3)
    before = world.store.saves
    world.idle(60)
    assert world.store.saves == before


# -- the cluster is away


def test_a_cluster_that_fails_is_asked_again(world: World) -> None:
    world.cluster.broken = True
    world.idle(5)
    assert weights(world.tell()) == {"stable": 100.0}
    world.cluster.broken = False
    world.idle(3)
    assert world.stable_app in world.cluster.running
    assert world.now_record.health is Health.SERVING


def test_the_course_is_read_as_it_was_written(world: World) -> None:
    to_first_step(world)
    world.store.ask(world.record, SignalKind.PAUSE)
    world.pass_(3)
    course = world.course
    assert Course.from_json(course.to_json()) == course
    changed = replace(course, closed="why")
    assert Course.from_json(changed.to_json()) == changed
    for broken in (b"{}", b"[]", b'{"format":"chancery.deployment-course/v1"}'):
        with pytest.raises(ValueError, match="deployment-course"):
            Course.from_json(broken)


def test_nothing_is_asked_of_a_deployment_that_is_not_there(world: World) -> None:
    world.record = replace(world.record, deploy_id="0" * 32)
    stranger = world.start("stranger")
    world.idle(1, stranger)
    assert stranger.finished
