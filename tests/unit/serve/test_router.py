"""The router keeps its promises whatever the variants do."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from governance.errors import ConfigurationError
from serve.delta import ErrorClass
from serve.metrics import exposition
from serve.plan import About, Plan, VariantPlan
from tests.unit.serve.router_world import (
    BODY,
    Behaviour,
    World,
    gone,
    hangs,
    header,
    plan,
    predicts,
    run,
    says,
)


def test_without_a_plan_nobody_answers() -> None:
    async def test(world: World) -> None:
        answer = await world.ask()
        assert (answer.status, header(answer, "retry-after")) == (503, "1")
        assert not world.router.healthy

    run(test)


def test_a_good_canary_answers() -> None:
    async def test(world: World) -> None:
        await world.start(plan())
        answer = await world.ask()
        assert json.loads(answer.body) == {"predictions": [4.0]}
        assert header(answer, "x-chancery-variant") == "canary"
        assert header(answer, "x-chancery-retried") is None
        delta = world.report().deltas["canary"]
        assert (delta.requests, delta.judged, delta.charged) == (1, 1, 0)
        assert sum(delta.latency.values()) == 1
        assert world.router.healthy

    run(test)


@pytest.mark.parametrize(
    ("canary", "blame"),
    [
        (says(b"boom", 500), ErrorClass.RAISED),
        (says(b'{"error_code": "BAD_REQUEST"}', 400), ErrorClass.RAISED),
        (hangs, ErrorClass.TIMEOUT),
        (gone, ErrorClass.UNAVAILABLE),
        (predicts([[3.0, 4.0]]), ErrorClass.WRONG_SHAPE),
        (predicts([3.0, 4.0]), ErrorClass.WRONG_SHAPE),
        (predicts(["3.0"]), ErrorClass.WRONG_SHAPE),
        (predicts({"a": 1}), ErrorClass.WRONG_SHAPE),
        (says(b"no JSON"), ErrorClass.WRONG_SHAPE),
    ],
    ids=["500", "400", "hangs", "gone", "nested", "more rows", "text", "object", "no JSON"],
)
def test_a_bad_canary_is_answered_by_stable_and_blamed(
    canary: Behaviour, blame: ErrorClass
) -> None:
    async def test(world: World) -> None:
        await world.start(plan(canary=0.0))
        assert json.loads((await world.ask()).body) == {"predictions": [3.0]}
        await world.start(plan(revision=2))
        world.report()
        world.behaviours["c"] = canary
        answer = await world.ask()
        assert json.loads(answer.body) == {"predictions": [3.0]}
        assert header(answer, "x-chancery-variant") == "stable"
        assert header(answer, "x-chancery-retried") == "1"
        report = world.report()
        assert report.deltas["canary"].errors == {blame: 1}
        assert "stable" not in report.deltas, "an answer given again is no fair sample"

    run(test)


@pytest.mark.parametrize(
    ("canary", "stable", "blame", "status"),
    [
        (says(b"bad request", 400), says(b"bad request", 400), ErrorClass.CLIENT, 400),
        (says(b"boom", 500), says(b"bad request", 400), ErrorClass.SHARED, 400),
        (says(b"boom", 500), says(b"boom", 500), ErrorClass.SHARED, 500),
        (hangs, gone, ErrorClass.SHARED, 504),
        (says(b"bad", 400), gone, ErrorClass.SHARED, 400),
    ],
)
def test_what_stable_cannot_answer_either_is_not_the_canarys_fault(
    canary: Behaviour, stable: Behaviour, blame: ErrorClass, status: int
) -> None:
    async def test(world: World) -> None:
        await world.start(plan())
        world.behaviours.update(c=canary, s=stable)
        assert (await world.ask()).status == status
        delta = world.report().deltas["canary"]
        assert (dict(delta.errors), delta.judged) == ({blame: 1}, 0)

    run(test)


def test_another_shape_that_stable_gives_too_is_good() -> None:
    async def test(world: World) -> None:
        await world.start(plan(canary=0.0))
        await world.ask()
        await world.start(plan(revision=2))
        world.behaviours.update(s=predicts([None]), c=predicts([None]))
        answer = await world.ask()
        assert header(answer, "x-chancery-variant") == "canary"
        assert not world.report().deltas["canary"].errors
        asked = world.asked["s"]
        await world.ask()
        assert world.asked["s"] == asked, "the form is known now"

    run(test)


def test_without_a_retry_the_client_sees_the_canary() -> None:
    raised = b'{"message": "Encountered an unexpected error while evaluating the model."}'

    async def test(world: World) -> None:
        await world.start(plan(retry_on_stable=False))
        for behaviour, status in ((says(b"x", 400), 400), (says(raised, 400), 400), (hangs, 504)):
            world.behaviours["c"] = behaviour
            assert (await world.ask()).status == status
        assert "s" not in world.asked
        assert world.report().deltas["canary"].errors == {
            ErrorClass.CLIENT: 1, ErrorClass.RAISED: 1, ErrorClass.TIMEOUT: 1,
        }  # fmt: skip

    run(test)


def test_testers_name_a_variant_and_are_not_judged() -> None:
    async def test(world: World) -> None:
        shadow = VariantPlan("shadow", "fraud", "5", "x")
        await world.start(plan(canary=0.0, variants=(shadow,)))
        answer = await world.ask({"x-chancery-variant": "canary"})
        assert header(answer, "x-chancery-variant") == "canary"
        for wish in ("shadow", "nobody"):
            answer = await world.ask({"x-chancery-variant": wish})
            assert header(answer, "x-chancery-variant") == "stable"
        report = world.report()
        assert report.deltas.keys() == {"stable"}
        assert world.router.tallies["canary", "fraud", "4"].total().requests == 1

    run(test)


@pytest.mark.parametrize(
    ("sticky", "sent"),
    [
        ("header:X-User", lambda key: ({"x-user": key}, BODY)),
        ("cookie:user", lambda key: ({"cookie": f"a=1; user={key}; b=2"}, BODY)),
        (
            "field:user",
            lambda key: ({}, json.dumps({"inputs": {"a": [1], "b": [2], "user": [key]}}).encode()),
        ),
        (
            "field:user",
            lambda key: (
                {},
                json.dumps({"dataframe_records": [{"a": 1, "user": key}, {"a": 2}]}).encode(),
            ),
        ),
        (
            "field:user",
            lambda key: (
                {},
                json.dumps(
                    {"dataframe_split": {"columns": ["a", "user"], "data": [[1, key]]}}
                ).encode(),
            ),
        ),
        ("field:user", lambda key: ({}, json.dumps({"user": key, "inputs": [1]}).encode())),
        (
            "field:user",
            lambda key: ({}, json.dumps({"params": {"user": key}, "inputs": [1]}).encode()),
        ),
    ],
)
def test_a_key_sticks_and_growing_moves_nobody_back(sticky: str, sent: Any) -> None:
    async def test(world: World) -> None:
        await world.start(plan(canary=20.0, sticky=sticky))
        keys = [f"user-{n}" for n in range(60)]

        async def canaries() -> set[str]:
            found = set()
            for key in keys:
                headers, content = sent(key)
                answer = await world.ask(headers, content)
                if header(answer, "x-chancery-variant") == "canary":
                    found.add(key)
            return found

        first = await canaries()
        assert 0 < len(first) < 30
        assert await canaries() == first
        await world.start(plan(canary=60.0, revision=2, sticky=sticky))
        assert await canaries() > first

    run(test)


def test_a_closed_plan_answers_nobody_and_says_why() -> None:
    async def test(world: World) -> None:
        await world.start(plan())
        await world.start(plan(revision=2, closed="fraud 3 was revoked"))
        answer = await world.ask()
        assert answer.status == 503
        assert json.loads(answer.body)["message"] == "fraud 3 was revoked"
        assert not world.router.healthy

    run(test)


def test_an_older_plan_and_a_plan_that_cannot_be_change_nothing() -> None:
    async def test(world: World) -> None:
        await world.start(plan(revision=5))
        world.router.offer(plan(canary=0.0, revision=4))
        with pytest.raises(ConfigurationError):
            world.router.offer(replace(plan(revision=6), weights=(("canary", 5.0),)))
        with pytest.raises(ValueError, match="nobody"):
            world.router.offer(replace(plan(revision=6), weights=(("nobody", 100.0),)))
        assert header(await world.ask(), "x-chancery-variant") == "canary"
        await world.start(plan(canary=0.0, revision=6))
        assert header(await world.ask(), "x-chancery-variant") == "stable"

    run(test)


def test_a_new_variant_gets_traffic_when_it_has_lanes() -> None:
    async def test(world: World) -> None:
        world.away.add("c")
        await world.start(plan(canary=0.0))
        await world.start(plan(revision=2))
        assert header(await world.ask(), "x-chancery-variant") == "stable"
        await asyncio.sleep(0.35)
        answer = await world.ask()
        assert header(answer, "x-chancery-retried") == "1", "it was given its time"
        assert world.router.routing is not None
        assert world.router.routing.plan.revision == 2

    run(test)


def test_a_later_plan_does_not_wait_for_an_earlier_one() -> None:
    async def test(world: World) -> None:
        world.away.add("c")
        await world.start(plan(canary=0.0))
        await world.start(plan(revision=2))
        await world.start(plan(revision=3, closed="stop"))
        assert (await world.ask()).status == 503
        await asyncio.sleep(0.4)
        assert world.router.routing is not None
        assert world.router.routing.plan.revision == 3

    run(test)


def test_plans_change_under_load_without_a_lost_request() -> None:
    async def test(world: World) -> None:
        await world.start(plan(canary=50.0))
        statuses: list[int] = []
        ended = False

        async def client() -> None:
            while not ended:
                statuses.append((await world.ask()).status)
                await asyncio.sleep(0)

        clients = [asyncio.ensure_future(client()) for _ in range(16)]
        for revision in range(2, 30):
            promoted = Plan(
                revision, (VariantPlan("stable", "fraud", "4", "c"),), (("stable", 100.0),)
            )
            await world.start(promoted if revision % 3 == 0 else plan(50.0, revision))
        ended = True
        await asyncio.gather(*clients)
        assert len(statuses) > 200
        assert set(statuses) == {200}

    run(test)


def test_a_renamed_variant_keeps_its_lanes_and_not_its_counts() -> None:
    async def test(world: World) -> None:
        await world.start(plan())
        await world.ask()
        assert world.router.routing is not None
        pool = world.router.routing.routes["canary"].variant.pool
        await world.start(
            Plan(2, (VariantPlan("stable", "fraud", "4", "c"),), (("stable", 100.0),))
        )
        assert world.router.routing.routes["stable"].variant.pool is pool
        await world.ask()
        assert world.report().deltas["stable"].requests == 1

    run(test)


def test_a_report_that_was_not_answered_is_sent_again_as_it_is() -> None:
    async def test(world: World) -> None:
        await world.start(plan())
        await world.ask()
        first = world.router.report()
        await world.ask()
        again = world.router.report()
        assert (again.sequence, again.deltas) == (first.sequence, first.deltas)
        assert again.deltas["canary"].requests == 1
        world.router.delivered(first.sequence)
        following = world.router.report()
        assert following.sequence == first.sequence + 1
        assert following.deltas["canary"].requests == 1
        assert following.lanes == {"stable": 1, "canary": 1}

    run(test)


def test_metrics_are_what_happened() -> None:
    async def test(world: World) -> None:
        await world.start(plan(about=About("d1", "fraud")))
        await world.ask()
        world.report()
        world.behaviours["c"] = says(b"boom", 500)
        await world.ask()
        text = exposition(world.router, held_bytes=7).decode()
        of = 'gateway="g",deployment="d1",route="fraud"'
        labels = f'{of},variant="canary",model="fraud",version="4"'
        assert f'chancery_requests_total{{{labels},outcome="ok"}} 1\n' in text
        assert f'chancery_requests_total{{{labels},outcome="raised"}} 1\n' in text
        assert f'chancery_request_duration_seconds_bucket{{{labels},le="+Inf"}} 1\n' in text
        assert f"chancery_weight_percent{{{labels}}} 100\n" in text
        assert f"chancery_batch_size_sum{{{labels}}} 2\n" in text
        assert f"chancery_held_bytes{{{of}}} 7\n" in text
        names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(set(names)) == len(names)

    run(test)
