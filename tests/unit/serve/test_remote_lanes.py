"""Replicas that have no socket here are asked through Ray, which takes its time to find them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from serve import lanes
from serve.answer import Answer
from serve.lanes import LanePool
from serve.socket_lane import Hello, LaneLostError, SocketModel
from tests.unit.serve.lane_world import JSON, pool_of, run, until
from tests.unit.serve.sums import body, scorer


class Elsewhere:
    """Replicas on another node, which are found when they may be."""

    def __init__(self) -> None:
        self.asked, self.may_end = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> tuple[Any, Hello]:
        self.asked.set()
        await self.may_end.wait()

        async def carry(batch: list[Any]) -> list[Answer]:
            return [Answer(200, b"far") for _ in batch]

        return carry, Hello.of(scorer())


async def _being_found(folder: Path) -> tuple[Elsewhere, LanePool]:
    """A pool that asks whether there is somebody elsewhere, and has no answer yet."""
    remote = Elsewhere()
    pool = LanePool(folder, remote=remote, rescan_s=60)
    pool.start()
    await remote.asked.wait()
    return remote, pool


def test_a_remote_lane_is_used_until_there_is_a_socket(folder: Path) -> None:
    calls: list[int] = []

    async def remote() -> tuple[Any, Hello]:
        async def carry(batch: list[Any]) -> list[Answer]:
            calls.append(len(batch))
            if len(calls) == 1:
                raise LaneLostError("this replica died; the next call meets another")
            return [Answer(200, b"far") for _ in batch]

        return carry, Hello.of(scorer())

    async def test() -> None:
        pool = await pool_of(folder, remote=remote)
        assert (await pool.ask(JSON, body((1, 2)), 5))[0].body == b"far"
        assert len(calls) == 2
        model = await SocketModel.start(folder / "a.sock", scorer())
        await until(lambda: model._server is not None and len(model._connections) == 1)
        await until(lambda: pool.lanes == 1)
        assert (await pool.ask(JSON, body((1, 2)), 5))[0].body == b'{"predictions":[3.0]}'
        await pool.close()
        await model.close()

    run(test)


def test_a_remote_lane_that_is_found_after_a_socket_is_not_used(folder: Path) -> None:
    """To find one is a call to Ray, and takes its time: a socket may appear meanwhile."""

    async def test() -> None:
        remote = Elsewhere()
        pool = LanePool(folder, remote=remote, rescan_s=0.01)
        pool.start()
        await remote.asked.wait()
        model = await SocketModel.start(folder / "a.sock", scorer())
        await until(lambda: pool.lanes == 1)
        remote.may_end.set()
        await until(lambda: not pool._connecting)
        assert pool.lanes == 1
        for _ in range(4):
            assert (await pool.ask(JSON, body((1, 2)), 5))[0].body == b'{"predictions":[3.0]}'
        await pool.close()
        await model.close()

    run(test)


def test_who_comes_while_the_first_remote_lane_is_found_waits_for_it(folder: Path) -> None:
    async def test() -> None:
        remote, pool = await _being_found(folder)
        ask = asyncio.ensure_future(pool.ask(JSON, body((1, 2)), 5))
        await asyncio.sleep(0.05)
        assert not ask.done()
        remote.may_end.set()
        assert (await ask)[0].body == b"far"
        await pool.close()

    run(test)


def test_a_pool_that_lost_its_lanes_refuses_while_a_remote_one_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "_LOOK_S", 60)

    async def test() -> None:
        remote = Elsewhere()
        model = await SocketModel.start(folder / "a.sock", scorer())
        pool = await pool_of(folder, remote=remote)
        await model.close()
        await remote.asked.wait()
        with pytest.raises(LaneLostError):
            await pool.ask(JSON, body((1, 2)), 5)
        await pool.close()

    run(test)


def test_who_may_be_held_waits_where_it_is_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a replica is started, while Ray is still asked whether there is one elsewhere."""
    monkeypatch.setattr(lanes, "_LOOK_S", 60)

    async def test() -> None:
        remote, pool = await _being_found(folder)
        ask = asyncio.ensure_future(pool.ask(JSON, body((1, 2)), 5, hold_s=20))
        await until(lambda: pool.room.held == 1)
        remote.may_end.set()
        assert (await ask)[0].body == b"far"
        await pool.close()

    run(test)
