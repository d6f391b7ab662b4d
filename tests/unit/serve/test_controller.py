"""The controller: forward, back, revocation, what people ask, aliases, the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from governance import deployment_control, deployments
from governance.database import deployment_signals
from governance.deployment_records import DeploymentStatus, Health, SignalKind
from governance.errors import RefusedError, UnreachableError, WitnessError
from governance.events import EventName
from serve.cluster import Running, VariantState
from serve.records import Phase
from tests.unit.serve.deployment_world import World, good, served, to_first_step, versions, weights


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# -- the way forward


def test_stable_answers_from_the_first_plan_on(world: World) -> None:
    with pytest.raises(UnreachableError):
        world.tell()
    world.idle(1)
    plan = world.tell()
    assert weights(plan) == {"stable": 100.0}
    assert versions(plan) == {"stable": "1"}
    assert world.cluster.running[world.stable_app].signer == "alice"
    assert world.cluster.opened == 1
    assert world.now_record.status is DeploymentStatus.SERVING


def test_a_good_canary_is_promoted(world: World) -> None:
    plan = to_first_step(world)
    assert weights(plan) == {"canary": 10.0, "stable": 90.0}
    assert plan.weights[-1][0] == "stable"
    plan = world.until("advanced")
    assert weights(plan) == {"canary": 100.0}
    assert versions(plan) == {"stable": "1", "canary": "2"}
    plan = world.pass_(4)
    assert weights(plan) == {"stable": 100.0}
    assert versions(plan) == {"stable": "2"}
    record = world.now_record
    assert record.canary is None
    assert record.stable.version == 2
    assert record.previous is not None
    assert record.previous.version == 1
    assert world.store.outcomes(record) == ["started", "verified", "advanced", "promoted"]
    assert world.store.aliases == [("champion", 2)]
    assert world.cluster.stopped == []  # it still has what it is at
    world.pass_(11)
    assert world.cluster.stopped == [world.stable_app]
    decided = [e for e in world.store.ledger.events if e.name is EventName.ROLLOUT_DECIDED]
    assert decided[-1].data["rootDigest"] == served(2).root_digest
    assert len(decided[-1].data["digest"]) == 64


def test_the_canary_waits_for_the_lanes_of_every_gateway(world: World) -> None:
    world.idle(1)
    world.begin()
    for _ in range(20):
        world.idle(0.25)
        plan = world.controller.exchange(world.report(lanes=0))
    assert versions(plan) == {"stable": "1", "canary": "2"}
    assert weights(plan) == {"stable": 100.0}
    world.controller.exchange(world.report(lanes=1))
    world.idle(0.5)
    assert "canary" in weights(world.tell())


def test_revisions_only_grow(world: World) -> None:
    seen = [to_first_step(world).revision]
    for _ in range(40):
        seen.append(world.pass_(0.25).revision)
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


# -- the way back


def test_a_bad_canary_is_rolled_back_at_once_and_recorded(world: World) -> None:
    to_first_step(world)
    for _ in range(10):
        plan = world.tell(good(10, 1.0), good(90))  # no tick: nobody waits for the database
    assert weights(plan) == {"stable": 100.0}
    assert versions(plan) == {"stable": "1"}
    world.idle(0.5)
    assert world.phase is Phase.ROLLED_BACK
    assert world.store.outcomes(world.record)[-1] == "rolled_back"
    assert world.now_record.canary is None
    assert world.now_record.status is DeploymentStatus.SERVING
    assert world.store.aliases == [("champion", 1)]
    assert "serve:deployment:alerted" in world.store.ledger.names()
    world.idle(11)
    assert world.cluster.stopped == [world.app(2)]
    world.begin(version=3)  # the route is free for the next one
    world.pass_(3, rate=0)
    assert versions(world.tell()) == {"stable": "1", "canary": "3"}


def test_a_version_whose_bytes_do_not_verify_gets_no_request(world: World) -> None:
    world.idle(1)
    world.cluster.states[world.app(2)] = VariantState(Running.REFUSED, "TAMPERED")
    world.begin()
    plan = world.pass_(2)
    assert versions(plan) == {"stable": "1"}
    assert world.phase is Phase.QUARANTINED
    assert "TAMPERED" in str(world.course.rollout)


def test_a_canary_that_dies_is_rolled_back(world: World) -> None:
    to_first_step(world)
    world.cluster.states[world.app(2)] = VariantState(Running.UNHEALTHY, "killed")
    plan = world.pass_(0.5)
    assert weights(plan) == {"stable": 100.0}
    assert world.phase is Phase.ROLLED_BACK


@pytest.mark.parametrize("noticed", [False, True])
@pytest.mark.parametrize("away", [False, True])
def test_what_a_rollout_broke_is_not_blamed_on_the_next_of_the_same_version(
    world: World, away: bool, noticed: bool
) -> None:
    to_first_step(world)
    world.cluster.states[world.app(2)] = VariantState(Running.UNHEALTHY, "killed")
    world.pass_(0.5)
    assert world.phase is Phase.ROLLED_BACK
    if not noticed:  # the cluster takes its time to see what is dead
        world.cluster.states[world.app(2)] = VariantState(Running.RUNNING, "", 1, 1)
    world.begin()  # while what is left of the first is still taken down
    if away:
        world.cluster.unstoppable = True
        world.pass_(3)
        assert world.phase is Phase.VERIFYING
        world.cluster.unstoppable = False
    world.pass_(3)
    assert world.phase is Phase.CANARY
    assert world.cluster.stopped.count(world.app(2)) == 1
    assert world.cluster.starts[-1].application == world.app(2)
    world.cluster.states[world.app(2)] = VariantState(Running.UNHEALTHY, "killed")
    world.pass_(0.5)
    assert world.phase is Phase.ROLLED_BACK


def test_a_sick_stable_does_not_blame_the_canary(world: World) -> None:
    to_first_step(world)
    world.cluster.states[world.stable_app] = VariantState(Running.UNHEALTHY, "killed")
    world.pass_(6)
    assert world.phase is Phase.CANARY
    assert world.now_record.health is Health.UNHEALTHY
    del world.cluster.states[world.stable_app]
    world.pass_(5)
    assert world.now_record.health is Health.SERVING
    assert "advanced" in world.store.outcomes(world.record)


# -- revocation


def test_a_revoked_canary_stops_within_a_second(world: World) -> None:
    to_first_step(world)
    world.store.revoked = {"uid-2": "leaks"}
    world.idle(0.75)
    assert weights(world.tell()) == {"stable": 100.0}
    assert world.phase is Phase.QUARANTINED


def test_a_revoked_stable_closes_the_route_within_a_second(world: World) -> None:
    world.idle(1)
    world.store.revoked = {"uid-1": "leaks"}
    world.idle(0.75)
    plan = world.tell()
    assert plan.weights == ()
    assert plan.variants == ()
    assert plan.closed == "models:/fraud/1 was revoked: leaks"
    assert world.now_record.status is DeploymentStatus.CLOSED
    with pytest.raises(RefusedError, match="nobody answers"):
        world.begin()
    world.idle(11)
    assert world.cluster.stopped == [world.stable_app]


def test_a_revoked_stable_ends_the_rollout_and_nobody_answers(world: World) -> None:
    to_first_step(world)
    world.store.revoked = {"uid-1": "leaks"}
    world.idle(0.75)
    assert world.tell().closed
    assert world.phase is Phase.QUARANTINED
    world.idle(11)
    assert set(world.cluster.stopped) == {world.app(1), world.app(2)}
    another = world.start("another")
    world.idle(4, another)
    assert another.exchange(world.report()).closed  # it stays so


# -- people


def test_pause_and_resume(world: World) -> None:
    to_first_step(world)
    world.store.ask(world.record, SignalKind.PAUSE)
    world.pass_(10)
    assert weights(world.tell()) == {"canary": 10.0, "stable": 90.0}
    assert world.course.paused.endswith(": so")
    world.store.ask(world.record, SignalKind.RESUME)
    world.pass_(5)
    assert world.course.paused == ""
    assert "advanced" in world.store.outcomes(world.record)


@pytest.mark.parametrize(
    ("kind", "phase"),
    [
        (SignalKind.ABORT, Phase.ABORTED),
        (SignalKind.ROLLBACK, Phase.ROLLED_BACK),
        (SignalKind.QUARANTINE, Phase.QUARANTINED),
    ],
)
def test_people_end_a_rollout(world: World, kind: SignalKind, phase: Phase) -> None:
    to_first_step(world)
    world.store.ask(world.record, kind, "I saw something")
    plan = world.pass_(1)
    assert weights(plan) == {"stable": 100.0}
    assert world.phase is phase
    rollout = world.course.rollout
    assert rollout is not None
    assert rollout.last_change is not None
    assert "I saw something" in rollout.last_change.explain()


def test_a_signal_says_nothing_to_the_next_rollout(world: World) -> None:
    to_first_step(world)
    world.store.ask(world.record, SignalKind.PAUSE)
    world.store.ask(world.record, SignalKind.ABORT)
    world.store.ask(world.record, SignalKind.ROLLBACK)
    world.pass_(1)
    assert world.phase is Phase.ABORTED
    world.begin(version=3)
    world.pass_(3)
    assert world.phase is Phase.CANARY
    assert world.course.paused == ""
    with world.store.engine.connect() as connection:
        assert deployment_control.open_signals(connection, world.record.deploy_id) == ()


def test_quarantine_without_a_rollout_closes_the_route(world: World) -> None:
    world.idle(1)
    world.store.ask(world.record, SignalKind.QUARANTINE, "it discriminates")
    world.idle(0.75)
    assert "it discriminates" in world.tell().closed


def test_a_quarantine_follows_a_version_that_was_promoted_meanwhile(world: World) -> None:
    to_first_step(world)
    rollout = world.record.rollout_id
    world.until("promoted")
    with world.store.engine.begin() as connection:  # asked before, seen after
        deployments.ask(
            connection, world.store.ledger, world.now_record, SignalKind.QUARANTINE, "late",
            now_ms=0,
        )  # fmt: skip
        connection.execute(deployment_signals.update().values(rollout_id=rollout))
    world.idle(0.75)
    assert "models:/fraud/2 was quarantined" in world.tell().closed


def test_more_replicas(world: World) -> None:
    world.idle(1)
    with world.store.engine.begin() as connection:
        deployments.scale(connection, world.store.ledger, world.now_record, {"replicas": 5})
    world.idle(1)
    assert world.cluster.running[world.stable_app].resources == {"replicas": 5}
    assert len(world.cluster.starts) == 2


def test_an_ended_deployment_is_taken_down(world: World) -> None:
    to_first_step(world)
    world.store.end(world.now_record)
    world.idle(1)
    assert world.controller.finished
    assert set(world.cluster.stopped) == {world.app(1), world.app(2)}
    assert world.cluster.closed == 1
    assert world.now_record.stopped_ms is not None
    with pytest.raises(UnreachableError):
        world.tell()
    other = world.start("other")
    world.idle(5, other)
    assert other.finished


def test_a_configuration_that_cannot_be_read_ends_the_rollout(world: World) -> None:
    world.idle(1)
    world.begin('{"version":9}')
    world.pass_(1)
    assert world.phase is Phase.ABORTED
    assert world.now_record.canary is None
    assert weights(world.tell()) == {"stable": 100.0}


# -- aliases


def test_a_refused_alias_is_an_alert(world: World) -> None:
    world.store.alias_error = RefusedError("not approved for prod")
    to_first_step(world)
    world.pass_(8)
    assert world.now_record.stable.version == 2
    texts = [n.text for n in world.course.notices]
    assert texts == ["models:/fraud@champion was not set to version 2: not approved for prod"]
    alerted = [e for e in world.store.ledger.events if e.name is EventName.DEPLOYMENT_ALERTED]
    assert len(alerted) == 1
    assert world.course.open == ()


def test_an_alias_is_tried_again_while_its_store_is_away(world: World) -> None:
    world.store.alias_error = OSError("away")
    to_first_step(world)
    world.pass_(8)
    assert [action.version for action in world.course.open] == [2]
    world.store.alias_error = None
    another = world.start("another")  # the one before crashed
    world.pass_(5, rate=0, controller=another)
    assert world.store.aliases == [("champion", 2)]


def test_an_alias_whose_checkpoint_is_late_is_set(world: World) -> None:
    world.store.alias_error = WitnessError("the change is committed")
    to_first_step(world)
    world.pass_(8)
    assert "was set to version 2" in world.course.notices[-1].text
    assert world.course.open == ()
