"""Batches form from what waits; nothing waits for company, and nothing waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import pytest

from serve.answer import OverloadedError
from serve.batching import Batcher, BatchLimits, ThreadLane, inline


class Lane:
    """Keeps each batch until it is let go; answers ten times the item."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gates: list[asyncio.Event] = []

    async def __call__(self, batch: list[int]) -> list[int | BaseException]:
        self.batches.append(batch)
        gate = asyncio.Event()
        self.gates.append(gate)
        await gate.wait()
        return [item * 10 for item in batch]

    def open(self, at: int = -1) -> None:
        self.gates[at].set()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def start(batcher: Batcher[int, int], *items: int) -> list[asyncio.Task[int]]:
    return [asyncio.ensure_future(batcher.submit(item)) for item in items]


def test_a_request_leaves_at_once_when_the_lane_is_free() -> None:
    async def test() -> None:
        lane = Lane()
        batcher: Batcher[int, int] = Batcher(lane)
        (task,) = start(batcher, 1)
        await turns()
        assert lane.batches == [[1]]
        lane.open()
        assert await task == 10

    run(test)


def test_what_arrives_while_a_batch_runs_leaves_together() -> None:
    async def test() -> None:
        lane = Lane()
        batcher: Batcher[int, int] = Batcher(lane)
        tasks = start(batcher, 1)
        await turns()
        for item in (2, 3, 4):
            tasks += start(batcher, item)
            await turns()
        assert lane.batches == [[1]]
        lane.open()
        await turns()
        assert lane.batches == [[1], [2, 3, 4]]
        lane.open()
        assert await asyncio.gather(*tasks) == [10, 20, 30, 40]
        found = batcher.statistics()
        assert (found.requests, found.batches, found.deepest, found.depth) == (4, 2, 3, 0)
        assert found.sizes[:3] == (1, 1, 0)

    run(test)


def test_what_arrives_in_one_turn_leaves_together() -> None:
    async def test() -> None:
        batcher: Batcher[int, int] = Batcher(inline(lambda batch: [sum(batch)] * len(batch)))
        assert await asyncio.gather(*start(batcher, 1, 2, 3)) == [6, 6, 6]

    run(test)


@pytest.mark.parametrize(
    ("limits", "batches"),
    [
        (BatchLimits(items=2), [[1, 2], [3, 4], [5]]),
        (BatchLimits(weight=5), [[1, 2], [3], [4], [5]]),
        (BatchLimits(weight=2), [[1], [2], [3], [4], [5]]),
    ],
)
def test_batches_have_limits(limits: BatchLimits, batches: list[list[int]]) -> None:
    async def test() -> None:
        seen: list[list[int]] = []

        def note(batch: list[int]) -> list[int]:
            seen.append(batch)
            return batch

        batcher: Batcher[int, int] = Batcher(inline(note), limits, weigh=lambda item: item)
        await asyncio.gather(*start(batcher, 1, 2, 3, 4, 5))
        assert seen == batches

    run(test)


def test_several_lanes_run_side_by_side() -> None:
    async def test() -> None:
        lane = Lane()
        batcher: Batcher[int, int] = Batcher(lane, BatchLimits(items=1, lanes=2))
        tasks = start(batcher, 1, 2, 3)
        await turns()
        assert lane.batches == [[1], [2]]
        assert batcher.statistics().running == 2
        lane.open(1)
        await turns()
        assert lane.batches == [[1], [2], [3]]
        lane.open(0)
        lane.open(2)
        assert await asyncio.gather(*tasks) == [10, 20, 30]

    run(test)


def test_a_full_queue_turns_requests_away_at_once() -> None:
    async def test() -> None:
        lane = Lane()
        batcher: Batcher[int, int] = Batcher(lane, BatchLimits(queue=2, retry_after_s=7))
        tasks = start(batcher, 1)
        await turns()
        tasks += start(batcher, 2, 3)
        await turns()
        with pytest.raises(OverloadedError) as refusal:
            await batcher.submit(4)
        assert refusal.value.retry_after_s == 7
        lane.open()
        await turns()
        lane.open()
        assert await asyncio.gather(*tasks) == [10, 20, 30]
        assert batcher.statistics().refused == 1

    run(test)


def test_time_runs_out_in_the_queue_and_in_the_lane() -> None:
    async def test() -> None:
        lane = Lane()
        batcher: Batcher[int, int] = Batcher(lane, BatchLimits(timeout_s=0.05))
        tasks = start(batcher, 1)
        await turns()
        tasks += start(batcher, 2)
        late = asyncio.ensure_future(batcher.submit(3, timeout_s=10))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [TimeoutError, TimeoutError]
        found = batcher.statistics()
        assert (found.timed_out, found.depth, found.running) == (2, 1, 1)
        assert found.running_s >= 0.04
        lane.open()
        await turns()
        assert lane.batches == [[1], [3]], "the second was dropped while it waited"
        lane.open()
        assert await late == 30

    run(test)


def test_a_shorter_limit_that_comes_later_runs_out_first() -> None:
    async def test() -> None:
        lane = Lane()
        batcher: Batcher[int, int] = Batcher(lane)
        patient = asyncio.ensure_future(batcher.submit(1, timeout_s=10))
        await turns()
        for limit in (0.02, 0.01, 0.03):
            with pytest.raises(TimeoutError):
                await batcher.submit(2, timeout_s=limit)
        assert not patient.done()
        lane.open()
        assert await patient == 10
        assert batcher.statistics().timed_out == 3

    run(test)


def test_who_goes_away_is_not_sent() -> None:
    async def test() -> None:
        lane = Lane()
        batcher: Batcher[int, int] = Batcher(lane)
        tasks = start(batcher, 1)
        await turns()
        tasks += start(batcher, 2, 3)
        await turns()
        tasks[1].cancel()
        tasks[0].cancel()
        await turns()
        lane.open()
        await turns()
        assert lane.batches == [[1], [3]]
        lane.open()
        assert await tasks[2] == 30
        assert batcher.statistics().cancelled == 2

    run(test)


def test_an_item_that_fails_fails_alone() -> None:
    async def odd(batch: list[int]) -> Sequence[int | BaseException]:
        return [ValueError(item) if item % 2 else item for item in batch]

    async def test() -> None:
        batcher: Batcher[int, int] = Batcher(odd)
        results = await asyncio.gather(*start(batcher, 1, 2, 3), return_exceptions=True)
        assert [type(result) for result in results] == [ValueError, int, ValueError]
        assert batcher.statistics().failed == 2

    run(test)


async def _raises(batch: list[int]) -> list[int]:
    raise ConnectionError("lane is down")


async def _loses_one(batch: list[int]) -> list[int]:
    return batch[:-1]


@pytest.mark.parametrize(
    ("lane", "error"), [(_raises, ConnectionError), (_loses_one, RuntimeError)]
)
def test_a_batch_that_fails_fails_for_all_of_it_and_the_next_goes_on(
    lane: Callable[[list[int]], Awaitable[list[int]]], error: type[Exception]
) -> None:
    async def test() -> None:
        batcher: Batcher[int, int] = Batcher(lane)
        for _ in range(2):
            results = await asyncio.gather(*start(batcher, 1, 2), return_exceptions=True)
            assert [type(result) for result in results] == [error, error]
        assert batcher.statistics().running == 0

    run(test)


def test_closing_answers_what_was_accepted_and_refuses_the_rest() -> None:
    async def test() -> None:
        lane = Lane()
        batcher: Batcher[int, int] = Batcher(lane, BatchLimits(items=1))
        tasks = start(batcher, 1, 2)
        await turns()
        closing = asyncio.ensure_future(batcher.close())
        await turns()
        with pytest.raises(OverloadedError):
            await batcher.submit(3)
        lane.open()
        await turns()
        assert not closing.done()
        lane.open()
        assert await asyncio.gather(*tasks) == [10, 20]
        await closing

    run(test)


def test_the_thread_lane_leaves_the_loop_free_and_is_one_thread() -> None:
    async def test() -> None:
        gate, threads = threading.Event(), set()

        def call(batch: list[int]) -> list[int]:
            threads.add(threading.current_thread().name)
            assert gate.wait(10)
            return batch

        lane: ThreadLane[int, int] = ThreadLane(call)
        batcher: Batcher[int, int] = Batcher(lane)
        tasks = start(batcher, 1)
        await turns()
        tasks += start(batcher, 2, 3)
        await turns()
        gate.set()
        assert await asyncio.gather(*tasks) == [1, 2, 3]
        assert len(threads) == 1
        assert batcher.statistics().batches == 2
        lane.close()

    run(test)


def test_a_flood_loses_nothing() -> None:
    async def test() -> None:
        def call(batch: list[int]) -> list[int]:
            return [item + 1 for item in batch]

        lane: ThreadLane[int, int] = ThreadLane(call)
        batcher: Batcher[int, int] = Batcher(lane, BatchLimits(items=50, queue=5000))
        assert await asyncio.gather(*start(batcher, *range(5000))) == list(range(1, 5001))
        found = batcher.statistics()
        assert sum(found.sizes) == found.batches >= 100
        assert (found.requests, found.depth, found.running) == (5000, 0, 0)

    run(test)
