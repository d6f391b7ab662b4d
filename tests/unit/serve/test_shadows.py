"""Shadows: copies that cannot delay or change an answer, bounded whatever the shadow does."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from serve.agreement import Agreement, agree
from serve.answer import Answer
from serve.delta import ErrorClass
from serve.frames import pack_answers
from serve.lanes import LanePool
from serve.metrics import exposition
from serve.plan import Plan, ShadowPlan, VariantPlan
from serve.shadows import ShadowLimits
from serve.socket_lane import Hello, LaneLostError
from tests.unit.serve.router_world import (
    BODY,
    World,
    gone,
    hangs,
    header,
    plan,
    predicts,
    run,
    says,
)
from tests.unit.serve.sums import scorer

SHADOW = ShadowPlan("shadow", "s1", max_in_flight=4)


def shadowed(
    shadow: ShadowPlan = SHADOW, *, canary: float = 0.0, revision: int = 1, timeout_s: float = 20.0
) -> Plan:
    variant = VariantPlan("shadow", "fraud", "5", "x", timeout_s=timeout_s)
    return plan(canary, revision, variants=(variant,), shadows=(shadow,))


async def copies_end(world: World) -> None:
    """Wait until none is on its way; all are counted then."""
    while world.router.shadows.held_bytes:
        await asyncio.sleep(0.005)


def test_a_hanging_shadow_delays_nobody_and_what_does_not_fit_is_dropped() -> None:
    async def test(world: World) -> None:
        await world.start(shadowed(timeout_s=2.0))
        assert json.loads((await world.ask()).body) == {"predictions": [3.0]}
        await copies_end(world)
        assert world.report().deltas["shadow"].requests == 1
        world.behaviours["x"] = hangs
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for _ in range(20):
            assert (await world.ask()).status == 200
        assert loop.time() - begun < 2, "a copy hangs for 2 s"
        text = exposition(world.router).decode()
        (line,) = (x for x in text.splitlines() if x.startswith("chancery_shadow_dropped_total{"))
        assert line.endswith('variant="shadow",model="fraud",version="5"} 16')
        await copies_end(world)
        report = world.report()
        assert report.deltas["shadow"].errors == {ErrorClass.TIMEOUT: 4}
        assert report.shadows == {"s1": Agreement(uncompared=4, dropped=20 - 4)}
        assert world.router.shadows.held_bytes == 0
        for behaviour in (gone, says(b"boom", 500)):
            world.behaviours["x"] = behaviour
            answer = await world.ask()
            assert (answer.status, header(answer, "x-chancery-retried")) == (200, None)

    run(test)


def test_a_part_of_the_requests_is_copied() -> None:
    async def test(world: World) -> None:
        await world.start(shadowed(replace(SHADOW, percent=25.0, max_in_flight=1000)))
        for _ in range(400):
            await world.ask()
        await copies_end(world)
        copied = world.report().deltas["shadow"].requests
        assert 65 <= copied <= 140, copied  # 100 expected, four standard deviations each way

    run(test)


def test_a_shadow_is_compared_with_stables_answer() -> None:
    async def test(world: World) -> None:
        await world.start(shadowed())
        for behaviour in (
            predicts([3.0000000001]), predicts([3.1]), predicts("text"), says(b"bad", 400),
            says(b"boom", 500),
        ):  # fmt: skip
            world.behaviours["x"] = behaviour
            await world.ask()
            await copies_end(world)
        world.behaviours["s"] = says(b"bad", 400)
        await world.ask()
        await copies_end(world)
        report = world.report()
        assert report.deltas["shadow"].errors == {
            ErrorClass.WRONG_SHAPE: 1, ErrorClass.RAISED: 2, ErrorClass.SHARED: 1,
        }  # fmt: skip
        assert report.shadows == {"s1": Agreement(same=1, different=2, uncompared=3)}
        text = exposition(world.router).decode()
        assert 'result="different"} 2' in text

    run(test)


def test_what_a_canary_answered_says_nothing_of_stable() -> None:
    async def test(world: World) -> None:
        await world.start(shadowed(canary=100.0))
        world.behaviours["x"] = predicts([4.0])
        await world.ask()  # the canary says 4
        await copies_end(world)
        world.behaviours["c"] = says(b"boom", 500)
        await world.ask()  # stable answers again, and says 3
        await copies_end(world)
        assert world.report().shadows == {"s1": Agreement(different=1, uncompared=1)}

    run(test)


def test_a_shadow_that_is_not_compared() -> None:
    async def test(world: World) -> None:
        await world.start(shadowed(replace(SHADOW, compare=False)))
        await world.ask()
        await copies_end(world)
        report = world.report()
        assert not report.deltas["shadow"].errors
        assert report.shadows == {"s1": Agreement(uncompared=1)}

    run(test)


def test_copies_have_a_budget_in_bytes() -> None:
    async def test(world: World) -> None:
        await world.start(shadowed())
        world.behaviours["x"] = hangs
        for _ in range(5):
            assert (await world.ask()).status == 200
        assert world.router.shadows.held_bytes <= len(BODY) + 40
        assert world.router.shadows.total("s1").dropped == 4

    run(test, shadow=ShadowLimits(total_bytes=len(BODY) + 40))


def test_settings_change_while_it_runs_and_reports_name_the_shadow() -> None:
    async def test(world: World) -> None:
        await world.start(shadowed())
        await world.ask()
        await copies_end(world)
        await world.start(shadowed(replace(SHADOW, id="s2"), revision=2))
        await world.ask()
        await copies_end(world)
        assert world.report().shadows == {"s2": Agreement(different=1)}
        await world.start(plan(0.0, 3))
        await world.ask()
        assert world.report().shadows == {}

    run(test)


def test_a_flood_of_an_answer_is_cut_off(tmp_path: Path) -> None:
    """A model that answers with more than it may: the lane is cut before the bytes are there."""

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeting = Hello.of(scorer()).to_json()
        writer.write(len(greeting).to_bytes(4, "little") + greeting)
        while size := await reader.read(4):
            await reader.readexactly(int.from_bytes(size, "little"))
            writer.write(pack_answers([Answer(200, bytes(1 << 20))]))

    async def test() -> None:
        server = await asyncio.start_unix_server(flood, str(tmp_path / "a.sock"))
        pool = LanePool(tmp_path)
        pool.start()
        assert await pool.ready(5)
        assert len((await pool.ask("application/json", BODY, 5))[0].body) == 1 << 20
        pool.limit(1 << 16)
        with pytest.raises(LaneLostError):
            await pool.ask("application/json", BODY, 5)
        assert await pool.ready(5)
        with pytest.raises(LaneLostError):  # so is a lane that is found later
            await pool.ask("application/json", BODY, 5)
        await pool.close()
        server.close()

    asyncio.run(asyncio.wait_for(test(), 30))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (b'{"predictions": [0.5]}', b'{"predictions":[0.5000000001]}', True),
        (b'{"predictions": [0.5]}', b'{"predictions": [0.501]}', False),
        (b'{"predictions": [NaN]}', b'{"predictions":  [NaN]}', True),
        (b'{"predictions": [1]}', b'{"predictions": [1.0]}', True),
        (b'{"predictions": [1]}', b'{"predictions": [true]}', False),
        (b'{"predictions": ["a"]}', b'{"predictions": ["b"]}', False),
        (b'{"predictions": [{"a": 1}]}', b'{"predictions": [{"a": 1, "b": 2}]}', False),
        (b'{"predictions": [{"a": [1, null]}]}', b'{"predictions":[{"a":[1, null]}]}', True),
        (b'{"predictions": [1, 2]}', b'{"predictions": [1]}', False),
        (b"text", b"text", True),
        (b"text", b"other", False),
        (b'{"predictions": [' + b"1," * 5000 + b"1]}", b'{"predictions":[' + b"1," * 5000 + b"1]}",
         None),
        (b"[" * 200 + b"]" * 200, b"[" * 200 + b" " + b"]" * 200, None),
        (b"1" * (1 << 17), b"2" * (1 << 17), None),
    ],
)  # fmt: skip
def test_agreement(one: bytes, other: bytes, expected: bool | None) -> None:
    assert agree(one, other) is expected
    assert agree(other, one) is expected
