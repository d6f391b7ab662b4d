"""Experiments and shadows under the controller: traffic only to what runs, and takeover."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from governance.arms import ServedVersion
from governance.errors import RefusedError
from serve.agreement import Agreement
from serve.cluster import Running, VariantState
from serve.controller import Controller
from serve.course import Course
from serve.delta import Delta, ErrorClass
from serve.plan import Plan, Report, ShadowPlan
from tests.unit.serve.deployment_world import World, good, served, versions, weights

WEIGHTS = {"control": "50", "fresh": "30", "bold": "20"}
VERSIONS = {"control": 1, "fresh": 2, "bold": 3}


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.idle(1)
    return world


class Gateway:
    """Reports what its arms did, connected to whoever the plan names."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.plan: Plan | None = None
        self.number = 0
        self.blind: set[str] = set()

    def report(self, deltas: dict[str, Delta] | None = None, **more: Agreement) -> Report:
        self.number += 1
        plan = self.plan
        lanes = {v.name: int(v.name not in self.blind) for v in plan.variants} if plan else {}
        experiment = plan.experiment.id if plan and plan.experiment else ""
        shadows = {s.id: more.get("copies", Agreement()) for s in plan.shadows} if plan else {}
        return Report(
            "gateway-1", self.number, deltas or {}, lanes, experiment=experiment, shadows=shadows
        )

    def pass_(
        self,
        seconds: float = 1.5,
        deltas: dict[str, Delta] | None = None,
        controller: Controller | None = None,
    ) -> Plan:
        """Time goes by; each quarter of a second is reported."""
        acting = controller or self.world.controller
        for _ in range(int(seconds * 4)):
            self.world.idle(0.25, acting)
            if acting.holding:
                self.plan = acting.exchange(self.report(deltas))
        assert self.plan is not None
        return self.plan


@pytest.fixture
def gateway(world: World) -> Gateway:
    gateway = Gateway(world)
    gateway.pass_()
    return gateway


def begin(world: World, **shares: str) -> None:
    world.record = world.store.experiment(world.now_record, shares or WEIGHTS, VERSIONS)


def notices(world: World) -> str:
    return "\n".join(notice.text for notice in world.course.notices)


def test_arms_get_their_clients_when_they_run_and_can_be_asked(
    world: World, gateway: Gateway
) -> None:
    world.cluster.states[world.app(3)] = VariantState(Running.STARTING)
    gateway.blind.add("fresh")
    begin(world)
    plan = gateway.pass_()
    assert set(world.cluster.running) == {world.app(1), world.app(2), world.app(3)}
    assert weights(plan) == {"control": 50, "stable": 50}
    assert versions(plan) == {"stable": "1", "control": "1", "fresh": "2"}
    assert plan.experiment is not None
    assert plan.experiment.name == "ab"
    assert plan.sticky == "header:x-user"
    gateway.blind.clear()
    assert weights(gateway.pass_()) == {"control": 50, "fresh": 30, "stable": 20}
    del world.cluster.states[world.app(3)]
    plan = gateway.pass_()
    assert weights(plan) == {"control": 50, "fresh": 30, "bold": 20}
    assert plan.experiment.stretches == (
        ("control", 500_000),
        ("fresh", 300_000),
        ("bold", 200_000),
    )
    starts = [spec.application for spec in world.cluster.starts]
    assert starts.count(world.stable_app) == 1, "stable is not started anew"


@pytest.mark.parametrize("state", [Running.REFUSED, Running.UNHEALTHY])
def test_an_arm_that_cannot_start_never_gets_a_client(
    world: World, gateway: Gateway, state: Running
) -> None:
    world.cluster.states[world.app(2)] = VariantState(state, "its bytes differ")
    begin(world)
    for _ in range(8):
        assert "fresh" not in weights(gateway.pass_(0.5))
    assert weights(gateway.pass_()) == {"control": 50, "bold": 20, "stable": 30}
    found = notices(world)
    assert found.count("its bytes differ") == 1
    assert "Stable answers its clients" in found
    assert world.store.ledger.names().count("serve:deployment:alerted") == 1


def test_an_arm_that_dies_gives_its_clients_to_stable_until_it_runs_again(
    world: World, gateway: Gateway
) -> None:
    begin(world)
    gateway.pass_()
    world.cluster.states[world.app(2)] = VariantState(Running.STARTING)
    assert weights(gateway.pass_())["fresh"] == 30, "a replica is replaced: stable answers again"
    world.cluster.states[world.app(2)] = VariantState(Running.UNHEALTHY, "it crashes")
    assert weights(gateway.pass_()) == {"control": 50, "bold": 20, "stable": 30}
    del world.cluster.states[world.app(2)]
    assert weights(gateway.pass_())["fresh"] == 30
    assert "it crashes" in notices(world)


def test_shares_change_without_a_start_or_a_stop(world: World, gateway: Gateway) -> None:
    begin(world)
    before = gateway.pass_()
    starts, stops = len(world.cluster.starts), len(world.cluster.stopped)
    begin(world, control="50", fresh="45", bold="5")
    plan = gateway.pass_()
    assert weights(plan) == {"control": 50, "fresh": 45, "bold": 5}
    assert plan.revision == before.revision + 1
    assert (len(world.cluster.starts), len(world.cluster.stopped)) == (starts, stops)
    event = world.store.ledger.events[-1]
    assert event.name.value == "serve:experiment:changed"
    assert event.data["from"] == WEIGHTS


def test_a_revoked_arm_stops_at_once_and_for_good(world: World, gateway: Gateway) -> None:
    begin(world)
    gateway.pass_()
    world.store.revoked["uid-2"] = "it leaks"
    plan = gateway.pass_(0.75)
    assert weights(plan) == {"control": 50, "bold": 20, "stable": 30}
    assert "fresh" not in versions(plan)
    gateway.pass_(12)
    assert world.app(2) not in world.cluster.running
    assert "arm 'fresh' of the experiment 'ab' on the route 'fraud', was revoked" in notices(world)
    world.controller.close()
    plan = gateway.pass_(controller=world.start("two"))
    assert "fresh" not in versions(plan)
    assert world.app(2) not in world.cluster.running


def test_the_end_gives_all_clients_back_and_takes_the_arms_down(
    world: World, gateway: Gateway
) -> None:
    begin(world)
    gateway.pass_()
    world.record = world.store.end_experiment(world.now_record)
    plan = gateway.pass_()
    assert (weights(plan), plan.experiment, plan.sticky) == ({"stable": 100}, None, None)
    assert world.app(2) in world.cluster.running, "it finishes what it has"
    gateway.pass_(12)
    assert set(world.cluster.running) == {world.stable_app}
    assert world.course.beside.experiment is not None
    assert world.course.beside.experiment.ended


def test_an_end_that_no_controller_saw_is_followed_by_the_next(
    world: World, gateway: Gateway
) -> None:
    begin(world)
    gateway.pass_()
    world.controller.close()
    world.record = world.store.end_experiment(world.now_record)
    gateway.pass_(13, controller=world.start("two"))
    assert set(world.cluster.running) == {world.stable_app}


def test_the_arm_that_is_kept_goes_on_running_as_the_canary(world: World, gateway: Gateway) -> None:
    begin(world)
    gateway.pass_()
    world.store.end_experiment(world.now_record, keep="fresh")
    world.begin(version=2)
    gateway.pass_(13)
    assert set(world.cluster.running) == {world.stable_app, world.app(2)}
    assert world.cluster.stopped == [world.app(3)]


def test_whoever_takes_over_makes_the_same_plan_at_once(world: World, gateway: Gateway) -> None:
    begin(world)
    world.store.shadow(world.now_record, 4)
    before = gateway.pass_(3)
    world.now += 10_000  # the lease runs out
    other = world.start("two")
    world.controller = other
    world.idle(0.25)
    plan = other.exchange(Report("gateway-2", 1))
    assert (plan.weights, plan.variants, plan.shadows, plan.experiment) == (
        before.weights, before.variants, before.shadows, before.experiment,
    )  # fmt: skip
    assert plan.revision > before.revision


def test_nobody_new_gets_clients_while_the_database_is_away(world: World, gateway: Gateway) -> None:
    world.cluster.states[world.app(2)] = VariantState(Running.STARTING)
    begin(world)
    gateway.pass_()
    world.store.away = True
    gateway.pass_()
    del world.cluster.states[world.app(2)]
    assert "fresh" not in weights(gateway.pass_())
    world.store.away = False
    assert weights(gateway.pass_())["fresh"] == 30


def test_counts_are_kept_once_each_through_a_takeover(world: World, gateway: Gateway) -> None:
    begin(world)
    gateway.pass_(1.5)
    seen = {"control": good(10), "fresh": good(10, 0.5), "bold": good(5)}
    gateway.pass_(10, seen)
    last = gateway.report(seen)
    world.controller.exchange(last)
    world.controller.exchange(last)  # its answer was lost
    world.controller.close()
    other = world.start("two")
    gateway.pass_(0.5, controller=other)
    other.exchange(last)
    foreign = Report("gateway-9", 1, seen, experiment="another experiment")
    other.exchange(foreign)
    other.close()
    experiment = world.course.beside.experiment
    assert experiment is not None
    totals = {arm.name: arm.total for arm in experiment.arms}
    assert {name: total.requests for name, total in totals.items()} == {
        "control": 410, "fresh": 410, "bold": 205,
    }  # fmt: skip
    assert totals["fresh"].errors == {ErrorClass.RAISED: 205}
    pairs = {(pair.first, pair.second): pair for pair in experiment.pairs}
    assert pairs["control", "fresh"].highest > 20
    assert pairs["control", "bold"].highest < 1
    again = Course.from_json(world.course.to_json())
    assert again == world.course


def test_what_stable_failed_at_too_speaks_against_an_arm_as_its_own_errors_do(
    world: World, gateway: Gateway
) -> None:
    begin(world)
    gateway.pass_()
    shared = Delta(10, {ErrorClass.SHARED: 5})
    raised = Delta(10, {ErrorClass.RAISED: 5})
    gateway.pass_(20, {"control": raised, "fresh": shared, "bold": Delta(10)})
    experiment = world.course.beside.experiment
    assert experiment is not None
    pairs = {(pair.first, pair.second): pair.highest for pair in experiment.pairs}
    assert pairs["control", "fresh"] < 1
    assert pairs["control", "bold"] > 20


def test_many_arms_are_each_compared_with_the_first(world: World, gateway: Gateway) -> None:
    shares = {f"a{n}": "10" for n in range(10)}
    world.store.experiment(world.now_record, shares, dict.fromkeys(shares, 1))
    gateway.pass_()
    experiment = world.course.beside.experiment
    assert experiment is not None
    assert [(p.first, p.second) for p in experiment.pairs] == [
        ("a0", f"a{n}") for n in range(1, 10)
    ]
    assert len(world.cluster.running) == 1, "all of them are one version"


# -- shadows


def test_a_shadow_gets_copies_when_it_runs_and_none_when_it_does_not(
    world: World, gateway: Gateway
) -> None:
    world.cluster.states[world.app(4)] = VariantState(Running.STARTING)
    world.store.shadow(world.now_record, 4, "10")
    assert not gateway.pass_().shadows
    del world.cluster.states[world.app(4)]
    plan = gateway.pass_()
    shadow = world.now_record.shadow
    assert shadow is not None
    assert plan.shadows == (ShadowPlan("shadow", shadow.id, 10.0, 8, True),)
    (variant,) = (v for v in plan.variants if v.name == "shadow")
    assert (variant.version, variant.timeout_s) == ("4", 2.0)
    assert weights(plan) == {"stable": 100}
    world.cluster.states[world.app(4)] = VariantState(Running.UNHEALTHY, "it crashes")
    assert not gateway.pass_().shadows
    assert "No copies are sent" in notices(world)
    del world.cluster.states[world.app(4)]
    assert gateway.pass_().shadows
    world.store.shadow(world.now_record, 4, "50")
    assert gateway.pass_().shadows[0].percent == 50
    world.store.end_shadow(world.now_record)
    assert not gateway.pass_().shadows
    gateway.pass_(12)
    assert set(world.cluster.running) == {world.stable_app}
    names = [name for name in world.store.ledger.names() if "shadow" in name]
    assert names == ["serve:shadow:begun", "serve:shadow:changed", "serve:shadow:ended"]


def test_a_revoked_shadow_stops(world: World, gateway: Gateway) -> None:
    world.store.shadow(world.now_record, 4)
    assert gateway.pass_().shadows
    world.store.revoked["uid-4"] = "it leaks"
    assert not gateway.pass_(0.75).shadows
    gateway.pass_(12)
    assert world.app(4) not in world.cluster.running
    assert "gets no more copies on the route 'fraud': it was revoked: it leaks" in notices(world)


def test_a_shadow_whose_version_is_rolled_out_stops(world: World, gateway: Gateway) -> None:
    world.store.shadow(world.now_record, 2)
    assert gateway.pass_().shadows
    world.begin(version=2)
    plan = gateway.pass_()
    assert not plan.shadows
    assert "canary" in versions(plan)
    gateway.pass_(12)
    assert world.app(2) in world.cluster.running
    assert "its version answers on the route itself" in notices(world)


def test_a_shadow_runs_beside_a_rollout_and_its_copies_are_counted(
    world: World, gateway: Gateway
) -> None:
    world.store.shadow(world.now_record, 4)
    world.begin(version=2)
    plan = gateway.pass_(3)
    assert plan.shadows
    assert "canary" in weights(plan)
    found = Agreement(same=7, different=3, dropped=2)
    report = gateway.report({"shadow": good(10, 0.1), "stable": good(10)}, copies=found)
    world.controller.exchange(report)
    world.controller.exchange(report)
    gateway.pass_(3)
    shadow = world.course.beside.shadow
    assert shadow is not None
    assert shadow.agreement == found
    assert (shadow.total.requests, shadow.total.charged) == (10, 1)


# -- what cannot be, and the end


def test_a_rollout_and_an_experiment_exclude_each_other(world: World) -> None:
    begin(world)
    with pytest.raises(RefusedError, match=r"experiment 'ab' runs .*--end.* first, with --keep"):
        world.begin(version=2)
    world.store.end_experiment(world.now_record)
    world.begin(version=2)
    with pytest.raises(RefusedError, match=r"a rollout of models:/fraud/2 runs .*deploy abort"):
        world.store.experiment(world.now_record, WEIGHTS, VERSIONS)


def test_what_answers_already_is_no_shadow(world: World) -> None:
    begin(world)
    for version in (1, 2, 3):
        with pytest.raises(RefusedError, match="answers on the route 'fraud' already"):
            world.store.shadow(world.now_record, version)
    world.store.shadow(world.now_record, 4)


def test_a_closed_route_takes_everything_down(world: World, gateway: Gateway) -> None:
    begin(world)
    world.store.shadow(world.now_record, 4)
    gateway.pass_()
    world.store.revoked["uid-1"] = "it leaks"
    plan = gateway.pass_()
    assert plan.closed
    assert not plan.shadows
    gateway.pass_(12)
    assert not world.cluster.running
    for act in (
        lambda: world.store.end_experiment(world.now_record),
        lambda: world.store.end_shadow(world.now_record),
    ):
        act()
    with pytest.raises(RefusedError, match="nobody answers"):
        world.store.experiment(world.now_record, WEIGHTS, VERSIONS)
    with pytest.raises(RefusedError, match="nobody answers"):
        world.store.shadow(world.now_record, 4)


def test_an_ended_deployment_leaves_nothing(world: World, gateway: Gateway) -> None:
    begin(world)
    world.store.shadow(world.now_record, 4)
    gateway.pass_()
    world.store.end(world.now_record)
    gateway.pass_(4)
    assert not world.cluster.running
    assert world.controller.finished
    told = next(e for e in world.store.ledger.events if e.name.value == "serve:deployment:ended")
    assert (told.data["experiment"], told.data["shadow"]) == ("ab", "models:/fraud/4")


def test_events_name_versions_digests_and_shares(world: World) -> None:
    begin(world)
    event = next(e for e in world.store.ledger.events if e.name.value == "serve:experiment:begun")
    assert event.name.awaits_checkpoint
    assert [(a["version"], a["rootDigest"], a["weight"]) for a in event.data["arms"]] == [
        (1, served(1).root_digest, "50"),
        (2, served(2).root_digest, "30"),
        (3, served(3).root_digest, "20"),
    ]
    json.loads(event.to_leaf())
    document = world.now_record.to_dict()
    assert document["status"] == "experimenting"
    assert document["experiment"]["arms"][1]["name"] == "fresh"
    assert ServedVersion.from_dict(document["experiment"]["arms"][1]) == served(2)
