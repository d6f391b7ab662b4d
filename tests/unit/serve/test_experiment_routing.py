"""A gateway deals clients out to arms, and counts each arm's failures alike."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from typing import Any

import pytest

from governance.arms import Stretches, stretched
from serve.access_log import AccessLog
from serve.delta import ErrorClass
from serve.metrics import exposition
from serve.plan import ExperimentPlan, Plan, Report, ShadowPlan, VariantPlan
from tests.unit.serve.router_world import World, gone, hangs, header, predicts, run, says

STRETCHES = stretched({"control": "50", "fresh": "30", "bold": "20"})
RAISED = says(
    b'{"message": "Encountered an unexpected error while evaluating the model."}', 400
)  # what MLflow says
REFUSED = says(b'{"message": "a column is missing"}', 400)


def plan(
    revision: int = 1,
    stretches: Stretches = STRETCHES,
    away: tuple[str, ...] = (),
    experiment: str = "e1",
) -> Plan:
    shares = dict.fromkeys(("control", "fresh", "bold"), 0)
    for name, parts in stretches:
        shares[name] += parts
    weights = [(name, parts / 10_000) for name, parts in shares.items() if name not in away]
    rest = 100 - sum(share for _, share in weights)
    return Plan(
        revision,
        (
            VariantPlan("stable", "fraud", "3", "s", timeout_s=0.2),
            VariantPlan("control", "fraud", "3", "s", timeout_s=0.2),
            VariantPlan("fresh", "fraud", "4", "c", timeout_s=0.1),
            VariantPlan("bold", "fraud", "5", "x", timeout_s=0.1, max_concurrency=1),
        ),
        (*weights, ("stable", rest)) if rest else tuple(weights),
        salt="fraud",
        sticky="header:x-user",
        experiment=ExperimentPlan(experiment, "ab", stretches),
    )


async def dealt(world: World, keys: int = 400) -> dict[str, str]:
    """Which arm answered which key."""
    found = {}
    for n in range(keys):
        answer = await world.ask({"x-user": f"u{n}"})
        assert answer.status == 200
        found[f"u{n}"] = str(header(answer, "x-chancery-variant"))
    return found


def test_clients_are_dealt_out_and_stay() -> None:
    async def test(world: World) -> None:
        await world.start(plan())
        first = await dealt(world)
        found = Counter(first.values())
        for name, share in (("control", 0.5), ("fresh", 0.3), ("bold", 0.2)):
            spread = 4 * (400 * share * (1 - share)) ** 0.5
            assert abs(found[name] - 400 * share) < spread, found
        assert await dealt(world) == first
        report = world.report()
        assert report.experiment == "e1"
        assert {n: d.requests for n, d in report.deltas.items()} == {
            name: 2 * count for name, count in found.items()
        }
        grown = stretched({"control": "50", "fresh": "45", "bold": "5"}, STRETCHES)
        await world.start(plan(2, grown))
        second = await dealt(world)
        moved = {(first[key], second[key]) for key in first if first[key] != second[key]}
        assert moved == {("bold", "fresh")}
        text = exposition(world.router).decode()
        assert 'variant="fresh",model="fraud",version="4"} 45' in text

    run(test)


def test_stable_answers_for_an_arm_that_is_away_and_for_who_has_no_key() -> None:
    async def test(world: World) -> None:
        await world.start(plan())
        first = await dealt(world)
        await world.start(plan(2, away=("fresh",)))
        second = await dealt(world)
        assert {(first[k], second[k]) for k in first if first[k] != second[k]} == {
            ("fresh", "stable")
        }
        world.report()
        assert header(await world.ask(), "x-chancery-variant") == "stable"
        assert world.report().deltas.keys() == {"stable"}

    run(test)


async def errors_of(world: World, arm: str) -> dict[ErrorClass, int]:
    """What is counted of a request of a client of the arm."""
    for n in range(200):
        user = {"x-user": f"u{n}"}
        routing = world.router.routing
        assert routing is not None
        assigned = routing.assign(b"", user)
        assert assigned is not None
        if assigned.arm == arm:
            world.report()
            await world.ask(user)
            return dict(world.report().deltas[arm].errors)
    raise AssertionError(arm)


@pytest.mark.parametrize(
    ("stable", "fresh", "of_control", "of_fresh"),
    [
        (predicts([3.0]), says(b"x", 500), None, ErrorClass.RAISED),
        (predicts([3.0]), hangs, None, ErrorClass.TIMEOUT),
        (predicts([3.0]), gone, None, ErrorClass.UNAVAILABLE),
        (predicts([3.0]), REFUSED, None, ErrorClass.RAISED),
        (REFUSED, REFUSED, ErrorClass.CLIENT, ErrorClass.CLIENT),
        (RAISED, RAISED, ErrorClass.RAISED, ErrorClass.SHARED),
        (says(b"x", 500), says(b"x", 500), ErrorClass.RAISED, ErrorClass.SHARED),
        (RAISED, predicts([4.0]), ErrorClass.RAISED, None),
    ],
)
def test_what_a_client_did_wrong_counts_alike_for_every_arm(
    stable: Any, fresh: Any, of_control: ErrorClass | None, of_fresh: ErrorClass | None
) -> None:
    async def test(world: World) -> None:
        await world.start(plan())
        world.behaviours.update(s=stable, c=fresh)
        assert await errors_of(world, "control") == ({of_control: 1} if of_control else {})
        asked = world.asked.get("s", 0)
        assert asked == 1, "an arm that is stable's own version is not asked twice"
        assert await errors_of(world, "fresh") == ({of_fresh: 1} if of_fresh else {})

    run(test)


def test_an_arm_that_has_all_it_may_have_is_answered_by_stable() -> None:
    async def test(world: World) -> None:
        await world.start(plan())
        world.behaviours["x"] = hangs
        answers = await asyncio.gather(*(world.ask({"x-user": f"u{n}"}) for n in range(60)))
        assert {answer.status for answer in answers} == {200}
        errors = world.report().deltas["bold"].errors
        assert errors[ErrorClass.TIMEOUT] == 1
        assert errors[ErrorClass.UNAVAILABLE] >= 1

    run(test)


def test_counts_of_another_experiment_are_not_told_as_this_ones() -> None:
    async def test(world: World) -> None:
        await world.start(plan())
        await dealt(world, 50)
        await world.start(plan(2, experiment="e2"))
        report = world.report()
        assert report.experiment == "e2"
        assert not report.deltas

    run(test)


def test_health_is_stables_where_it_answers_for_every_arm() -> None:
    async def test(world: World) -> None:
        world.away |= {"c", "x"}
        await world.start(plan())
        assert world.router.healthy

    run(test)


def test_a_line_of_the_access_log_names_experiment_arm_and_the_keys_hash() -> None:
    out = io.BytesIO()
    log = AccessLog(out)

    async def test(world: World) -> None:
        await world.start(plan(away=("fresh",)))
        for n in range(40):
            await world.ask({"x-user": f"secret-{n}"})
        await world.ask()

    run(test, log=log)
    log.flush()
    text = out.getvalue().decode()
    assert "secret" not in text
    *lines, unkeyed = map(json.loads, text.splitlines())
    assert {line["experiment"] for line in lines} == {"ab"}
    assert len({line["key"] for line in lines}) == 40
    for line in lines:
        away = line["arm"] == "fresh"
        assert line["assigned"] == ("stable" if away else line["arm"])
        assert line["reason"] == ("away" if away else "sticky")
    assert (unkeyed["reason"], unkeyed["arm"], unkeyed["key"]) == ("unkeyed", "", "")


def test_plans_and_reports_travel_and_old_ones_are_read() -> None:
    shadow = ShadowPlan("shadow", "s1", 12.5, 3, False)
    variant = VariantPlan("shadow", "fraud", "6", "y")
    whole = plan()
    whole = Plan(
        7, (*whole.variants, variant), whole.weights, sticky=whole.sticky,
        shadows=(shadow,), experiment=whole.experiment,
    )  # fmt: skip
    told = json.loads(json.dumps(whole.to_dict()))
    assert Plan.from_dict(told) == whole
    old = {k: v for k, v in told.items() if k not in ("shadowPlans", "experiment")}
    assert Plan.from_dict(old).shadows == (ShadowPlan("shadow"),)
    assert Plan.from_dict(old).experiment is None
    assert Report.from_dict({"source": "g", "sequence": 1, "deltas": {}, "lanes": {}}) == Report(
        "g", 1
    )
