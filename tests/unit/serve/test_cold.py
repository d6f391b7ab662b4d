"""Requests wait for the first replica: not too many, not too large, not too long."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from serve.answer import OverloadedError
from serve.cold import ColdLimits, WaitingRoom
from serve.lanes import LanePool
from serve.plan import Plan, VariantPlan
from serve.router import Router
from serve.routing import Lanes
from serve.socket_lane import SocketModel
from tests.unit.serve.sums import body, scorer

JSON = "application/json"


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    uvloop.run(asyncio.wait_for(test(), 30))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_what_waits_is_answered_when_somebody_comes(tmp_path: Path) -> None:
    async def test() -> None:
        pool = LanePool(tmp_path / "later", rescan_s=0.02)
        pool.start()
        asks = [
            asyncio.ensure_future(pool.ask(JSON, body((n, 1)), 5, hold_s=20)) for n in range(20)
        ]
        await until(lambda: pool.room.held == 20)
        assert pool.asked == 20
        (tmp_path / "later").mkdir()
        model = await SocketModel.start(tmp_path / "later" / "a.sock", scorer())
        answers = await asyncio.gather(*asks)
        assert [json.loads(a.body)["predictions"] for a, _ in answers] == [
            [n + 1] for n in range(20)
        ]
        assert (pool.room.held, pool.room.turned_away) == (0, 0)
        await model.close()
        await pool.close()

    run(test)


def test_one_that_loses_its_lane_waits_for_the_next(tmp_path: Path) -> None:
    async def test() -> None:
        pool = LanePool(tmp_path, rescan_s=0.02)
        pool.start()
        model = await SocketModel.start(tmp_path / "a.sock", scorer())
        assert await pool.ready(5)
        assert (await pool.ask(JSON, body((1, 1)), 5, hold_s=20))[0].status == 200
        (tmp_path / "a.sock").unlink()
        await model.close()
        ask = asyncio.ensure_future(pool.ask(JSON, body((2, 1)), 5, hold_s=20))
        await until(lambda: pool.room.held == 1)
        other = await SocketModel.start(tmp_path / "b.sock", scorer())
        assert json.loads((await ask)[0].body)["predictions"] == [3]
        await other.close()
        await pool.close()

    run(test)


def test_nobody_comes(tmp_path: Path) -> None:
    async def test() -> None:
        pool = LanePool(tmp_path, rescan_s=0.02)
        pool.start()
        with pytest.raises(OverloadedError) as away:
            await pool.ask(JSON, body((1, 2)), 5, hold_s=0.1)
        assert away.value.retry_after_s == 5
        assert "did not start within 0.1 s" in away.value.message
        assert (pool.room.held, pool.room.turned_away, pool.in_flight) == (0, 1, 0)
        await pool.close()

    run(test)


@pytest.mark.parametrize(
    ("limits", "sizes", "held"),
    [(ColdLimits(requests=2), [1, 1, 1, 1], 2), (ColdLimits(total_bytes=100), [60, 60, 40, 1], 2)],
)
def test_only_so_many_wait(limits: ColdLimits, sizes: list[int], held: int) -> None:
    async def test() -> None:
        room, come = WaitingRoom(limits), asyncio.Event()

        async def ready(_: float) -> bool:
            return await come.wait()

        tasks = [asyncio.ensure_future(room.wait(ready, size, 5)) for size in sizes]
        await asyncio.sleep(0.01)
        assert room.held == held
        come.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(one is None for one in found) == held
        assert room.turned_away == sum(isinstance(one, OverloadedError) for one in found)
        assert room.held == 0
        await room.wait(ready, 1, 5)  # there is room again

    run(test)


def test_a_client_that_leaves_makes_room() -> None:
    async def test() -> None:
        room = WaitingRoom(ColdLimits(requests=1))

        async def ready(_: float) -> bool:
            await asyncio.sleep(60)
            return True

        task = asyncio.ensure_future(room.wait(ready, 1, 5))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert room.held == 0

    run(test)


def test_a_gateway_holds_what_the_plan_says_and_tells_of_it(tmp_path: Path) -> None:
    async def test() -> None:
        router = Router("g", Lanes(tmp_path))
        variant = VariantPlan("stable", "m", "1", "app", hold_s=20.0)
        assert VariantPlan.from_dict(variant.to_dict()) == variant
        router.offer(Plan(1, (variant,), (("stable", 100.0),)))
        assert router.healthy, "it answers as soon as it is asked"
        ask = asyncio.ensure_future(router.submit(body((1, 2)), {"content-type": JSON}))
        await until(lambda: router.report().load["app"].held == 1)
        assert router.report().load["app"].asked == 1
        (tmp_path / "app").mkdir()
        model = await SocketModel.start(tmp_path / "app" / "a.sock", scorer())
        assert (await ask).status == 200
        await model.close()
        await router.close()

    run(test)


def test_without_holding_clients_hear_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        router = Router("g", Lanes(tmp_path))
        router.offer(Plan(1, (VariantPlan("stable", "m", "1", "app"),), (("stable", 100.0),)))
        assert not router.healthy
        answer = await router.submit(body((1, 2)), {"content-type": JSON})
        assert (answer.status, dict(answer.headers)[b"retry-after"]) == (503, b"1")
        await router.close()

    run(test)
