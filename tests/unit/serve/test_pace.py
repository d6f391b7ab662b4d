"""A lane with a small share of a busy listener's requests waits for company, and no other."""

from __future__ import annotations

import asyncio
import time

from serve.batching import Batcher
from serve.pace import Pace


def test_nothing_waits_while_few_requests_are_on_their_way() -> None:
    pace = Pace()
    pace.took(64, 0.005)
    pace.in_flight = 15
    assert pace.gap_s(1) == 0.0
    pace.in_flight = 16
    assert pace.gap_s(1) == 0.005


def test_a_lane_with_much_of_the_traffic_does_not_wait() -> None:
    pace = Pace()
    pace.took(64, 0.005)
    pace.in_flight = 32
    assert pace.gap_s(8) == 0.005
    assert pace.gap_s(9) == 0.0


def test_a_hung_model_makes_nobody_wait_for_long() -> None:
    pace = Pace()
    pace.in_flight = 100
    pace.took(64, 60.0)
    assert pace.gap_s(1) == 0.010


def test_small_batches_count_little() -> None:
    pace = Pace()
    pace.took(64, 0.008)
    pace.took(1, 0.0)
    assert pace.batch_s == 0.008 * 63 / 64


def _sizes(pace: Pace | None, in_flight: int) -> tuple[list[int], float]:
    """Sizes of the batches of forty requests that come one by one, and the longest time of one."""
    sizes: list[int] = []

    async def lane(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        return batch

    async def all_of_them() -> float:
        batcher: Batcher[int, int] = Batcher(lane, pace=pace)
        if pace is not None:
            pace.in_flight = in_flight
            pace.batch_s = 0.010

        async def one(number: int) -> float:
            begun = time.perf_counter()
            assert await batcher.submit(number) == number
            return time.perf_counter() - begun

        tasks = []
        for number in range(40):
            tasks.append(asyncio.create_task(one(number)))
            await asyncio.sleep(0.001)
        longest = max(await asyncio.gather(*tasks))
        await batcher.close()
        return longest

    return sizes, asyncio.run(all_of_them())


def test_a_lane_of_a_busy_listener_sends_fewer_batches() -> None:
    alone, _ = _sizes(None, 0)
    idle, _ = _sizes(Pace(), 1)
    busy, longest = _sizes(Pace(), 200)
    assert len(alone) == len(idle) == 40
    assert sum(busy) == 40
    assert len(busy) <= 20
    assert longest < 1.0


def test_the_first_request_after_a_pause_leaves_at_once() -> None:
    async def lane(batch: list[int]) -> list[int]:
        return batch

    async def asked() -> None:
        pace = Pace()
        pace.in_flight, pace.batch_s = 100, 0.010
        batcher: Batcher[int, int] = Batcher(lane, pace=pace)
        for number in range(3):
            await asyncio.sleep(0.02)  # longer than the gap
            task = asyncio.create_task(batcher.submit(number))
            for _ in range(6):
                await asyncio.sleep(0)  # a turn of the loop: no timer is waited for
            assert task.done()

    asyncio.run(asked())
