"""The model replicas of one application, as a listener asks them.

Each replica listens on a socket in the application's folder (``serve.socket_lane``). `LanePool`
keeps one connection and one `Batcher` to each, looks for new ones every quarter of a second, and
gives a request to the replica with the fewest requests. Where no replica has a socket on this node
(another node, a GPU pool), a remote lane that the gateway provides carries the same frames.

Who finds nobody looks once more before it is refused: listeners share a port, and a replica that
one of them asks already may not have been seen by the other.

A replica that ends removes its socket first: it is asked nothing more, and is left once what was
asked has come back.

A request whose lane breaks is asked once more elsewhere. Rows that the model did not take are sent
again as they came, so that MLflow's own code finds the words.

Everything here runs on one event loop.

Example::

    pool = LanePool(socket_folder(base, "fraud-3"))
    pool.start()
    answer, rows = await pool.ask("application/json", body, timeout_s=5)
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from time import monotonic

from serve.answer import Answer, Header
from serve.batching import Batcher, BatchLimits
from serve.cold import WaitingRoom
from serve.decode import Array, Decoder
from serve.frames import Item, Named, Raw, Traced
from serve.pace import Pace
from serve.socket_lane import (
    DECODED_BY_LISTENER,
    UNANSWERED,
    Hello,
    LaneLostError,
    SocketLane,
)
from serve.spans import CURRENT, Sampled
from serve.stream import LARGEST_FRAME

__all__ = ["Carrier", "LanePool", "RemoteLane", "socket_folder"]

Carrier = Callable[[list[Item]], Awaitable[Sequence[Answer]]]
"""Carries a batch to a model; raises `LaneLostError` when it cannot."""

RemoteLane = Callable[[], Awaitable[tuple[Carrier, Hello]]]
"""Finds a lane to replicas that have no socket here; raises `LaneLostError` when there are none."""

_SIZES = 16
_LOOK_S = 1.0  # for a replica that is there to say who it is
_REMOTE_AGAIN_S = 1.0  # to look for replicas on other nodes is a call to Ray
_REMOTE_BATCHES = 4  # at a time: a remote lane leads to several replicas, and takes its time


def socket_folder(base: Path, application: str) -> Path:
    """Where the sockets of an application's replicas lie.

    A socket's path has room for some hundred characters only: names that are long, or no plain
    file names, are replaced by their digest.
    """
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}", application):
        return base / application
    return base / blake2b(application.encode(), digest_size=12).hexdigest()


class _Lane:
    """One replica: where batches go, and what is on its way."""

    __slots__ = ("asked", "batcher", "carrier", "decoder", "dropped", "headers", "hello")

    def __init__(self, carrier: Carrier, hello: Hello, limits: BatchLimits, pace: Pace) -> None:
        self.carrier = carrier
        self.hello = hello
        self.headers = hello.identity.headers()
        self.decoder = Decoder(hello.layout)
        self.batcher: Batcher[Item, Answer] = Batcher(carrier, limits, _weight, pace)
        self.asked = 0
        self.dropped = False

    @property
    def lost(self) -> bool:
        return isinstance(self.carrier, SocketLane) and self.carrier.lost

    def leave(self) -> None:
        """Hang up where the pool dropped the lane and nothing is on its way in it."""
        if self.dropped and not self.asked and isinstance(self.carrier, SocketLane):
            self.carrier.close()


def _weight(item: Item) -> int:
    if isinstance(item, Traced):
        item = item.item
    if isinstance(item, Named):
        item = item.item
    return len(item.body) if isinstance(item, Raw) else item.nbytes


class LanePool:
    """All lanes to one application.

    Attributes:
        room: Where requests wait while no replica runs.
        asked: Requests so far.
        in_flight: Requests on their way.
        carried: Requests that came back with an answer.
        lanes_lost: Lanes that broke or were given up.

    Args:
        folder: Of its replicas' sockets.
        limits: Of each lane's batches and queue.
        remote: Finds a lane where no replica has a socket here.
        rescan_s: Seconds between two looks into the folder.
        pace: Of all lanes of the listener; None: of this pool's alone.
    """

    def __init__(
        self,
        folder: Path,
        limits: BatchLimits | None = None,
        remote: RemoteLane | None = None,
        rescan_s: float = 0.25,
        pace: Pace | None = None,
    ) -> None:
        self.folder = folder
        self._limits = limits or BatchLimits(weight=4 << 20)
        self._remote_limits = replace(self._limits, lanes=_REMOTE_BATCHES)
        self._remote = remote
        self._rescan_s = rescan_s
        self._pace = pace or Pace()
        self._lanes: dict[str, _Lane] = {}
        self._connecting: dict[str, asyncio.Task[None]] = {}
        self._order: list[_Lane] = []
        self._turn = 0
        self._found = asyncio.Event()
        self._look = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._past_sizes = [0] * _SIZES
        self._largest = LARGEST_FRAME
        self._remote_due = 0.0
        self.room = WaitingRoom()
        self.asked = 0
        self.in_flight = 0
        self.carried = 0
        self.lanes_lost = 0

    @property
    def lanes(self) -> int:
        """Connections that work."""
        return sum(not lane.lost for lane in self._order)

    @property
    def hello(self) -> Hello | None:
        """What the application's model says of itself; None as long as nobody was found."""
        return self._order[0].hello if self._order else None

    @property
    def depth(self) -> int:
        """Requests that wait for a batch."""
        return sum(lane.batcher.statistics().depth for lane in self._order)

    def sizes(self) -> list[int]:
        """Number of batches by size so far: the n-th counts sizes in ``[2**n, 2**(n+1))``."""
        total = list(self._past_sizes)
        for lane in self._order:
            for at, count in enumerate(lane.batcher.statistics().sizes):
                total[at] += count
        return total

    def limit(self, answer_bytes: int) -> None:
        """How large a batch of answers may be; a lane whose model sends more is cut."""
        self._largest = answer_bytes
        for lane in self._order:
            if isinstance(lane.carrier, SocketLane):
                lane.carrier.largest = answer_bytes

    def start(self) -> None:
        """Look for replicas from now on."""
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def ready(self, timeout_s: float) -> bool:
        """Whether there is a lane, after waiting for one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._found.wait()
        return bool(self._order)

    async def ask(
        self,
        content_type: str | None,
        body: bytes,
        timeout_s: float,
        headers: tuple[Header, ...] = (),
        hold_s: float = 0.0,
        request_id: str = "",
    ) -> tuple[Answer, int]:
        """The model's answer, and how many rows were asked (0: not known).

        Args:
            content_type: The request's.
            body: The request's.
            timeout_s: Seconds it may take, once somebody can be asked.
            headers: Of the answer, besides those that name the model.
            hold_s: Seconds it may wait for somebody who can be asked.
            request_id: Told to a replica that records.

        Raises:
            LaneLostError: nobody can be asked, or the lane broke twice.
            OverloadedError: too many wait.
            TimeoutError: the time ran out.
        """
        self.asked += 1
        lane = await self._found_now(len(body), hold_s)
        deadline = monotonic() + timeout_s
        self.in_flight += 1
        self._pace.in_flight += 1
        try:
            try:
                return await self._through(lane, content_type, body, timeout_s, headers, request_id)
            except LaneLostError:
                if lane.lost:
                    self._drop(lane)
            # A remote lane is asked again: it leads to several replicas.
            lane = await self._found_now(len(body), hold_s)
            if hold_s:
                deadline = monotonic() + timeout_s
            try:
                return await self._through(
                    lane, content_type, body, deadline - monotonic(), headers, request_id
                )
            except LaneLostError:
                self._drop(lane)
                raise
        finally:
            self.in_flight -= 1
            self._pace.in_flight -= 1

    async def _found_now(self, size: int, hold_s: float) -> _Lane:
        """The shortest lane; where there is none, after a look, or as soon as there is one.

        Raises:
            LaneLostError: nobody can be asked.
            OverloadedError: too many wait already, or nobody came.
        """
        lane = self._shortest()
        if lane is None:
            # A pool that never had a lane may just have been made, for replicas that run elsewhere.
            await self._look_now(elsewhere=not hold_s and not self.lanes_lost)
            lane = self._shortest()
        while lane is None:
            if not hold_s:
                raise LaneLostError(f"no replica of {self.folder.name} can be asked here")
            await self.room.wait(self.ready, size, hold_s)
            self._sweep()
            lane = self._shortest()
        return lane

    async def _through(
        self,
        lane: _Lane,
        content_type: str | None,
        body: bytes,
        timeout_s: float,
        headers: tuple[Header, ...],
        request_id: str,
    ) -> tuple[Answer, int]:
        lane.asked += 1
        records = lane.hello.records
        try:
            rows = None
            if len(body) <= DECODED_BY_LISTENER:
                rows = lane.decoder.decode(content_type, body)
            here = CURRENT.get()
            send = lane.batcher.submit if here is None else partial(_send_traced, lane, here)
            if rows is None:
                raw = Raw(content_type, body)
                answer = await send(Named(raw, request_id) if records else raw, timeout_s)
                count = 0
            else:
                answer = await send(Named(rows, request_id) if records else rows, timeout_s)
                count = len(rows)
                if answer.status == UNANSWERED:
                    raw = Raw(content_type, body)
                    answer = await send(Named(raw, request_id) if records else raw, timeout_s)
        finally:
            lane.asked -= 1
            lane.leave()
        self.carried += 1
        headers = lane.headers + headers
        return Answer(answer.status, answer.body, answer.content_type, headers), count

    def _shortest(self) -> _Lane | None:
        """The lane with the fewest requests; among equals, in turn; None where there is none."""
        best: _Lane | None = None
        lanes = self._order
        if len(lanes) > 1:
            self._turn = (self._turn + 1) % len(lanes)
            lanes = lanes[self._turn :] + lanes[: self._turn]
        for lane in lanes:
            if (best is None or lane.asked < best.asked) and not lane.lost:
                best = lane
        return best

    async def close(self) -> None:
        """Take nobody in any more, wait until all have their answers, and hang up."""
        if self._watching is not None:
            self._watching.cancel()
        for task in self._connecting.values():
            task.cancel()
        while self.in_flight:
            await asyncio.sleep(0.01)
        for lane in list(self._order):
            self._drop(lane)

    # -- finding and losing replicas

    async def _watch(self) -> None:
        while True:
            self._sweep()
            self._scan()
            self._look.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rescan_s):
                    await self._look.wait()
                    await asyncio.sleep(0.02)  # many may ask for a look at once

    async def _look_now(self, *, elsewhere: bool) -> None:
        """Look for replicas, and wait a moment for those that are there to say who they are.

        Args:
            elsewhere: Wait also for those that have no socket here.
        """
        self._sweep()
        self._scan()
        asked = {task for name, task in self._connecting.items() if name or elsewhere}
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                while asked and not self._order:
                    _, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)

    def _sweep(self) -> None:
        for lane in [lane for lane in self._order if lane.lost]:
            self._drop(lane)

    def _scan(self) -> None:
        try:
            paths = sorted(self.folder.glob("*.sock"))
        except OSError:
            paths = []
        for path in paths:
            if path.name not in self._lanes:
                self._begin(path.name, partial(_connect, path))
        for name, lane in list(self._lanes.items()):
            if name and not os.path.lexists(self.folder / name):
                self._drop(lane)  # it ends
        clock = asyncio.get_running_loop().time()
        if self._remote is None or paths or self._order or clock < self._remote_due:
            return
        self._begin("", self._remote)

    def _begin(self, name: str, connect: RemoteLane) -> None:
        if name not in self._connecting:
            task = asyncio.get_running_loop().create_task(self._add(name, connect))
            self._connecting[name] = task
            task.add_done_callback(lambda _: self._connecting.pop(name, None))

    async def _add(self, name: str, connect: RemoteLane) -> None:
        try:
            carrier, hello = await connect()
        except LaneLostError as error:
            if isinstance(error.__cause__, ConnectionRefusedError):
                (self.folder / name).unlink(missing_ok=True)  # its process is dead
            if not name:
                self._remote_due = asyncio.get_running_loop().time() + _REMOTE_AGAIN_S
            return
        if not name and self._order:
            return  # while Ray was asked, a socket was found here, which is better
        if isinstance(carrier, SocketLane):
            carrier.largest = self._largest
        limits = self._limits if name else self._remote_limits
        self._lanes[name] = _Lane(carrier, hello, limits, self._pace)
        if name and (away := self._lanes.get("")) is not None:
            self._drop(away)  # a socket here is better
        self._order = list(self._lanes.values())
        self._found.set()

    def _drop(self, lane: _Lane) -> None:
        """Forget a lane; what is on its way in it fails or ends by itself."""
        for name, known in list(self._lanes.items()):
            if known is lane:
                del self._lanes[name]
                self.lanes_lost += 1
                for at, count in enumerate(lane.batcher.statistics().sizes):
                    self._past_sizes[at] += count
        self._order = list(self._lanes.values())
        lane.dropped = True
        lane.leave()
        if not self._order:
            self._found.clear()
        self._look.set()


async def _send_traced(
    lane: _Lane, here: Sampled, item: Array | Raw | Named, timeout_s: float
) -> Answer:
    """Through the lane, with the span that it is sent from."""
    socket = isinstance(lane.carrier, SocketLane)
    here.note(lane="socket" if socket else "handle", replica_pid=lane.hello.pid if socket else None)
    if not lane.hello.traces:
        return await lane.batcher.submit(item, timeout_s)
    told = Traced(item, here.traceparent, here.tracestate)
    try:
        return await lane.batcher.submit(told, timeout_s)
    finally:
        here.batch_size = told.together


async def _connect(path: Path) -> tuple[Carrier, Hello]:
    lane = await SocketLane.connect(path)
    return lane, lane.hello
