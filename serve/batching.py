"""Requests that wait while a batch runs form the next batch.

When the lane is free, a request leaves at the end of the event loop's turn, with whatever else
arrived in that turn. While the lane is busy, requests queue; when it returns, as many as fit leave
together. So batches grow with the load, and latency stays that of at most two calls. Nothing waits
for company, except where a `Pace` says so.

The queue is bounded: one request too many gets `OverloadedError` at once. Each request has a time
limit of its own, counted from its arrival; when it runs out, or its caller goes away, the request
is dropped from the queue, or its result from the batch that already runs. A lane that never returns
is seen in `Statistics.running_s`.

Everything here runs on one event loop and is not safe from other threads.

Example::

    batcher = Batcher(ThreadLane(scorer.answer_batch), BatchLimits(items=64))
    answer = await batcher.submit(("application/json", body))
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

from serve.answer import OverloadedError
from serve.pace import Pace

__all__ = ["BatchLimits", "Batcher", "Send", "Statistics", "ThreadLane", "inline"]

Item = TypeVar("Item")
Result = TypeVar("Result")

Send = Callable[[list[Item]], Awaitable[Sequence[Result | BaseException]]]
"""Carries a batch and gives one result, or one exception, for each item, in order."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much may be in a batch, and how much may wait.

    Args:
        items: Requests in one batch, at most.
        weight: Weight of one batch, at most (rows, or bytes; see `Batcher`). A heavier request
            goes alone.
        queue: Requests that may wait.
        timeout_s: Seconds from a request's arrival to its answer.
        lanes: Batches that may run at the same time.
        retry_after_s: Told to clients that were turned away; seconds.
    """

    items: int = 64
    weight: int = 1 << 30
    queue: int = 1024
    timeout_s: float = 60.0
    lanes: int = 1
    retry_after_s: int = 1


@dataclass(frozen=True, slots=True)
class Statistics:
    """What went through a batcher so far, and what is in it now.

    Args:
        requests: Requests accepted.
        refused: Requests turned away because the queue was full.
        timed_out: Requests whose time ran out.
        cancelled: Requests whose caller went away.
        failed: Requests that ended in an exception of the lane.
        batches: Batches sent.
        sizes: Number of batches by size: the n-th counts sizes in ``[2**n, 2**(n+1))``.
        depth: Requests that wait now.
        deepest: The most that ever waited.
        running: Batches that run now.
        running_s: Seconds since the oldest of them was sent; 0.0 if none runs.
    """

    requests: int
    refused: int
    timed_out: int
    cancelled: int
    failed: int
    batches: int
    sizes: tuple[int, ...]
    depth: int
    deepest: int
    running: int
    running_s: float


class _Waiting(Generic[Item, Result]):
    """One request: what to send, its weight, until when, and where its result goes."""

    __slots__ = ("due", "future", "item", "weight")

    def __init__(self, item: Item, weight: int, due: float, future: asyncio.Future[Result]) -> None:
        self.item = item
        self.weight = weight
        self.due = due
        self.future = future


class Batcher(Generic[Item, Result]):
    """Collects requests into batches for a lane.

    Args:
        send: Carries a batch; called on the event loop.
        limits: How much may be in a batch, and wait.
        weigh: Weight of an item, counted against ``limits.weight``; by default 0.
        pace: How often batches may start, with other batchers; None: as often as the lane is free.
    """

    def __init__(
        self,
        send: Send[Item, Result],
        limits: BatchLimits | None = None,
        weigh: Callable[[Item], int] | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._send = send
        self._pace = pace
        self._begun = 0.0  # when the last batch began
        self._limits = limits or BatchLimits()
        self._weigh = weigh
        self._queue: deque[_Waiting[Item, Result]] = deque()
        self._running: dict[asyncio.Task[None], tuple[float, list[_Waiting[Item, Result]]]] = {}
        self._clock: asyncio.TimerHandle | None = None  # rings when the first request is due
        self._rings = 0.0
        self._starting = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._requests = self._refused = self._timed_out = self._cancelled = self._failed = 0
        self._batches = self._deepest = 0
        self._sizes = [0] * 16

    async def submit(self, item: Item, timeout_s: float | None = None) -> Result:
        """The result for an item.

        Args:
            item: What to send.
            timeout_s: Seconds it may take; by default as the limits say.

        Raises:
            OverloadedError: too many wait, or the batcher is closed.
            TimeoutError: the time ran out.
            Exception: what the lane raised, for the batch or for this item.
        """
        if self._closed or len(self._queue) >= self._limits.queue:
            self._refused += 1
            raise OverloadedError(
                "the server is ending"
                if self._closed
                else f"{len(self._queue)} requests wait already",
                retry_after_s=self._limits.retry_after_s,
            )
        loop = self._loop or asyncio.get_running_loop()  # which costs a system call
        self._loop = loop
        future: asyncio.Future[Result] = loop.create_future()
        weight = self._weigh(item) if self._weigh else 0
        due = loop.time() + (self._limits.timeout_s if timeout_s is None else timeout_s)
        self._queue.append(_Waiting(item, weight, due, future))
        self._requests += 1
        if len(self._queue) > self._deepest:
            self._deepest = len(self._queue)
        if self._clock is None or due < self._rings:
            self._ring_at(due)
        if not self._starting and len(self._running) < self._limits.lanes:
            if not self._put_off(loop):
                loop.call_soon(self._start)
            self._starting = True
        try:
            return await future
        except asyncio.CancelledError:
            self._cancelled += 1
            raise

    def statistics(self) -> Statistics:
        """The counts at this moment."""
        started = min((since for since, _ in self._running.values()), default=None)
        return Statistics(
            self._requests,
            self._refused,
            self._timed_out,
            self._cancelled,
            self._failed,
            self._batches,
            tuple(self._sizes),
            sum(not w.future.done() for w in self._queue),
            self._deepest,
            len(self._running),
            0.0 if started is None else asyncio.get_running_loop().time() - started,
        )

    async def close(self) -> None:
        """Refuse what comes, and wait until everything that was accepted has its answer.

        The requests' own time limits bound the wait.
        """
        self._closed = True
        while waiting := [w.future for w in self._queue if not w.future.done()]:
            await asyncio.wait(waiting)
        while self._running:
            await asyncio.wait(list(self._running))

    def _ring_at(self, due: float) -> None:
        if self._clock is not None:
            self._clock.cancel()
        self._rings = due
        self._clock = asyncio.get_running_loop().call_at(due, self._expire)

    def _expire(self) -> None:
        """End what is due, and ring again for what comes next.

        One clock does for all: most requests are answered long before theirs would have rung.
        """
        self._clock = None
        now, following = asyncio.get_running_loop().time(), float("inf")
        running = chain.from_iterable(batch for _, batch in self._running.values())
        for waiting in chain(self._queue, running):
            if waiting.future.done():
                continue
            if waiting.due <= now:
                self._timed_out += 1
                waiting.future.set_exception(TimeoutError("the request took too long"))
            else:
                following = min(following, waiting.due)
        if len(self._running) >= self._limits.lanes:
            self._forget_done()  # the lane may never come back to take them out
        if following < float("inf"):
            self._ring_at(following)

    def _forget_done(self) -> None:
        while self._queue and self._queue[0].future.done():
            self._queue.popleft()

    def _put_off(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether the pace lets no batch start now; then one starts as soon as it does."""
        gap_s = 0.0 if self._pace is None else self._pace.gap_s(len(self._queue))
        wait_s = self._begun + gap_s - loop.time() if gap_s else 0.0
        if wait_s > 0:
            loop.call_later(wait_s, self._start)
        return wait_s > 0

    def _start(self) -> None:
        """Send batches into all lanes that are free."""
        self._starting = False
        loop = self._loop or asyncio.get_running_loop()
        self._begun = loop.time()
        while len(self._running) < self._limits.lanes and (batch := self._next()):
            task = loop.create_task(self._carry(batch))
            self._running[task] = (loop.time(), batch)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        begun, batch = self._running.pop(task)
        loop = self._loop or asyncio.get_running_loop()
        if self._pace is not None:
            self._pace.took(len(batch), loop.time() - begun)
        if not self._queue or self._starting:
            return
        self._starting = self._put_off(loop)
        if not self._starting:
            self._start()

    def _next(self) -> list[_Waiting[Item, Result]]:
        batch: list[_Waiting[Item, Result]] = []
        weight = 0
        while self._queue and len(batch) < self._limits.items:
            first = self._queue[0]
            if not first.future.done():
                if batch and weight + first.weight > self._limits.weight:
                    break
                weight += first.weight
                batch.append(first)
            self._queue.popleft()
        return batch

    async def _carry(self, batch: list[_Waiting[Item, Result]]) -> None:
        self._batches += 1
        self._sizes[min(len(batch).bit_length() - 1, len(self._sizes) - 1)] += 1
        results: Sequence[Result | BaseException]
        try:
            results = await self._send([waiting.item for waiting in batch])
            if len(results) != len(batch):
                raise RuntimeError(
                    f"the lane gave {len(results)} results for {len(batch)} requests"
                )
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - handed to every request of the batch
            results = [error] * len(batch)
        for waiting, result in zip(batch, results, strict=True):
            if waiting.future.done():
                continue
            if isinstance(result, BaseException):
                self._failed += 1
                waiting.future.set_exception(result)
            else:
                waiting.future.set_result(result)


class ThreadLane(Generic[Item, Result]):
    """A lane that calls a function in one thread of its own.

    Args:
        function: Takes a batch, gives its results.
    """

    def __init__(self, function: Callable[[list[Item]], Sequence[Result]]) -> None:
        self._function = function
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def __call__(self, batch: list[Item]) -> Sequence[Result]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._function, batch)

    def close(self) -> None:
        """Let the thread end when its call returns."""
        self._thread.shutdown(wait=False)


def inline(
    function: Callable[[list[Item]], Sequence[Result]],
) -> Callable[[list[Item]], Awaitable[Sequence[Result]]]:
    """A lane that calls a function on the event loop itself.

    Faster for calls of well under a millisecond; nothing else runs meanwhile.
    """

    async def call(batch: list[Item]) -> Sequence[Result]:
        return function(batch)

    return call
