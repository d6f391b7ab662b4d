"""A pool finds replicas, spreads requests, and loses none when a replica goes."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from serve import lanes
from serve.answer import Answer, OverloadedError
from serve.batching import BatchLimits
from serve.frames import pack_answers
from serve.lanes import LanePool, socket_folder
from serve.plan import VariantPlan
from serve.replica import ModelThread
from serve.socket_lane import DECODED_BY_LISTENER, Hello, LaneLostError, SocketModel
from serve.variant import Variant
from tests.unit.serve.lane_world import JSON, pool_of, run, until
from tests.unit.serve.sums import DEADLY, NOT_TAKEN, body, scorer

ROOT = Path(__file__).resolve().parents[3]


def test_a_request_is_answered_with_the_models_name(folder: Path) -> None:
    async def test() -> None:
        model = await SocketModel.start(folder / "a.sock", scorer())
        pool = await pool_of(folder)
        answer, rows = await pool.ask(JSON, body((1, 2), (3, 4)), 5)
        assert (answer.status, json.loads(answer.body), rows) == (200, {"predictions": [3, 7]}, 2)
        assert dict(answer.headers)[b"x-chancery-signer"] == b"alice"
        assert pool.hello is not None
        assert pool.hello.batchable
        await pool.close()
        await model.close()

    run(test)


@pytest.mark.parametrize(
    ("content_type", "sent", "said"),
    [
        ("text/csv", b"a,b\n1,2", b"exactly a,b\n1,2"),
        (None, b"", b"exactly "),
        (JSON, body((NOT_TAKEN, 1)), b"exactly " + body((NOT_TAKEN, 1))),
    ],
    ids=["csv", "nothing", "rows that are not taken"],
)
def test_what_is_not_taken_as_rows_goes_as_it_came(
    folder: Path, content_type: str | None, sent: bytes, said: bytes
) -> None:
    async def test() -> None:
        model = await SocketModel.start(folder / "a.sock", scorer())
        pool = await pool_of(folder)
        answer, _ = await pool.ask(content_type, sent, 5)
        assert (answer.status, answer.body) == (400, said)
        await pool.close()
        await model.close()

    run(test)


def test_a_large_request_is_not_decoded_here(folder: Path) -> None:
    async def test() -> None:
        model = await SocketModel.start(folder / "a.sock", scorer())
        pool = await pool_of(folder)
        answer, rows = await pool.ask(JSON, body(*[(1.0, 2.0)] * (DECODED_BY_LISTENER // 8)), 5)
        assert (answer.status, rows) == (200, 0)
        await pool.close()
        await model.close()

    run(test)


def test_replicas_come_and_go(folder: Path) -> None:
    async def test() -> None:
        pool = LanePool(folder / "later", rescan_s=0.05)
        pool.start()
        with pytest.raises(LaneLostError):
            await pool.ask(JSON, body((1, 2)), 5)
        assert not await pool.ready(0.05)
        (folder / "later").mkdir()
        first = await SocketModel.start(folder / "later" / "a.sock", scorer())
        assert await pool.ready(5)
        second = await SocketModel.start(folder / "later" / "b.sock", scorer())
        await until(lambda: pool.lanes == 2)
        await asyncio.gather(*(pool.ask(JSON, body((1, at)), 5) for at in range(40)))
        assert first.batches
        assert second.batches
        await first.close()
        await until(lambda: pool.lanes == 1)
        assert (await pool.ask(JSON, body((1, 2)), 5))[0].status == 200
        assert sum(pool.sizes()) == first.batches + second.batches
        assert pool.carried == 41
        await pool.close()
        await second.close()

    run(test)


def test_who_finds_nobody_looks_before_it_is_refused(folder: Path) -> None:
    """Another listener may have seen the replica already, and its clients ask here next."""

    async def test() -> None:
        pool = LanePool(folder, rescan_s=60)
        pool.start()
        await asyncio.sleep(0.01)  # it looks, and then not for a minute
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(folder / "a.sock"))
        left.close()  # found first, and nobody there
        model = await SocketModel.start(folder / "b.sock", scorer())
        found = await asyncio.gather(*(pool.ask(JSON, body((1, at)), 5) for at in range(40)))
        assert {answer.status for answer, _ in found} == {200}
        await pool.close()
        await model.close()

    run(test)


def test_a_replica_that_does_not_say_who_it_is_holds_nobody_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "_LOOK_S", 0.1)

    async def test() -> None:
        silent = socket.socket(socket.AF_UNIX)
        silent.bind(str(folder / "a.sock"))
        silent.listen()
        pool = LanePool(folder, rescan_s=60)
        begun = time.monotonic()
        with pytest.raises(LaneLostError, match="no replica of"):
            await pool.ask(JSON, body((1, 2)), 5)
        assert time.monotonic() - begun < 5
        await pool.close()
        silent.close()

    run(test)


def test_a_socket_that_a_dead_process_left_is_swept(folder: Path) -> None:
    async def test() -> None:
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(folder / "dead.sock"))
        left.close()
        model = await SocketModel.start(folder / "a.sock", scorer())
        pool = await pool_of(folder)
        await until(lambda: not (folder / "dead.sock").exists())
        assert pool.lanes == 1
        await pool.close()
        await model.close()

    run(test)


def test_a_replica_that_ends_is_asked_nothing_more(folder: Path) -> None:
    async def test() -> None:
        first = await SocketModel.start(folder / "a.sock", scorer())
        second = await SocketModel.start(folder / "b.sock", scorer())
        pool = LanePool(folder, rescan_s=0.01)
        pool.start()
        await until(lambda: pool.lanes == 2)
        (folder / "a.sock").unlink()
        await until(lambda: pool.lanes == 1)
        await until(lambda: not first._connections)
        await asyncio.gather(*(pool.ask(JSON, body((1, at)), 5) for at in range(20)))
        assert first.batches == 0
        assert second.batches
        await pool.close()
        await second.close()

    run(test)


def test_what_a_replica_that_ends_was_asked_is_waited_for(folder: Path) -> None:
    asked, may_answer, left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = Hello.of(scorer()).to_json()
        writer.write(len(hello).to_bytes(4, "little") + hello)
        await reader.read(1 << 16)
        asked.set()
        await may_answer.wait()
        writer.write(pack_answers([Answer(200, b"at last")]))
        assert await reader.read() == b""
        left.set()

    async def test() -> None:
        server = await asyncio.start_unix_server(slow, str(folder / "a.sock"))
        pool = LanePool(folder, rescan_s=0.01)
        pool.start()
        assert await pool.ready(5)
        ask = asyncio.ensure_future(pool.ask(JSON, body((1, 2)), 10))
        await asked.wait()
        (folder / "a.sock").unlink()
        await until(lambda: pool.lanes == 0)
        may_answer.set()
        assert (await ask)[0].body == b"at last"
        await left.wait()
        await pool.close()
        server.close()

    run(test)


def test_replicas_that_end_together_lose_no_request(folder: Path) -> None:
    """A request lost with one would be asked once more, of the other perhaps, and lost again."""
    ending = [ModelThread(folder / f"{name}.sock", scorer()) for name in "ab"]

    async def test() -> None:
        pool = LanePool(folder)
        pool.start()
        for each in ending:
            each.start()
        model = await SocketModel.start(folder / "c.sock", scorer())
        await until(lambda: pool.lanes == 3)
        done = False
        failed: list[BaseException] = []

        async def client() -> None:
            while not done:
                try:
                    await pool.ask(JSON, body((1, 2)), 10)
                except LaneLostError as error:
                    failed.append(error)

        clients = [asyncio.ensure_future(client()) for _ in range(8)]
        await asyncio.sleep(0.05)
        await asyncio.gather(*(asyncio.to_thread(each.close) for each in ending))
        done = True
        await asyncio.gather(*clients)
        assert not failed
        assert (pool.lanes, pool.asked) == (1, pool.carried)
        await pool.close()
        await model.close()

    run(test)


def _start_process(path: Path) -> subprocess.Popen[bytes]:
    script = (
        "import asyncio; from pathlib import Path\n"
        "from serve.socket_lane import SocketModel; from tests.unit.serve.sums import scorer\n"
        "async def main():\n"
        f"    await SocketModel.start(Path({str(path)!r}), scorer())\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)


def test_requests_of_a_killed_replica_are_answered_by_another(folder: Path) -> None:
    process = _start_process(folder / "dying.sock")

    async def test() -> None:
        await until((folder / "dying.sock").exists)
        model = await SocketModel.start(folder / "a.sock", scorer())
        pool = await pool_of(folder)
        await until(lambda: pool.lanes == 2)
        asks = [asyncio.ensure_future(pool.ask(JSON, body((1, at)), 10)) for at in range(200)]
        await asyncio.sleep(0)
        process.kill()
        for at in range(200):
            asks.append(asyncio.ensure_future(pool.ask(JSON, body((2, at)), 10)))
            await asyncio.sleep(0.001)
        found = await asyncio.gather(*asks)
        assert {answer.status for answer, _ in found} == {200}
        assert pool.lanes == 1
        await pool.close()
        await model.close()

    try:
        run(test)
    finally:
        process.kill()
        process.wait()


def test_a_request_that_kills_is_asked_twice_and_no_more(folder: Path) -> None:
    processes = [_start_process(folder / f"{name}.sock") for name in "abc"]

    async def test() -> None:
        pool = LanePool(folder, rescan_s=0.05)
        pool.start()
        await until(lambda: pool.lanes == 3)
        with pytest.raises(LaneLostError):
            await pool.ask(JSON, body((DEADLY, 0)), 10)
        assert pool.lanes == 1
        await pool.close()

    try:
        run(test)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_time_runs_out_and_queues_are_full(folder: Path) -> None:
    async def silent() -> tuple[Any, Hello]:
        async def carry(batch: list[Any]) -> list[Answer]:
            await asyncio.sleep(0.3)
            return [Answer(200, b"late") for _ in batch]

        return carry, Hello.of(scorer())

    async def test() -> None:
        pool = await pool_of(folder, remote=silent, limits=BatchLimits(items=1, queue=2))
        begun = time.monotonic()
        found = await asyncio.gather(
            *(pool.ask(JSON, body((1, 2)), 0.05) for _ in range(8)), return_exceptions=True
        )
        assert time.monotonic() - begun < 5  # each waits its 50 ms, and no longer
        kinds = [type(f) for f in found]
        assert kinds.count(OverloadedError) == 6
        assert kinds.count(TimeoutError) == 2
        assert pool.in_flight == 0
        await pool.close()

    run(test)


def test_closing_waits_for_what_is_on_its_way(folder: Path) -> None:
    async def slow() -> tuple[Any, Hello]:
        async def carry(batch: list[Any]) -> list[Answer]:
            await asyncio.sleep(0.2)
            return [Answer(200, b"done") for _ in batch]

        return carry, Hello.of(scorer())

    async def test() -> None:
        pool = await pool_of(folder, remote=slow)
        ask = asyncio.ensure_future(pool.ask(JSON, body((1, 2)), 5))
        await asyncio.sleep(0.01)
        await pool.close()
        assert ask.done()
        assert (await ask)[0].body == b"done"

    run(test)


def test_a_variant_has_a_name_and_limits(folder: Path) -> None:
    async def slow() -> tuple[Any, Hello]:
        async def carry(batch: list[Any]) -> list[Answer]:
            await asyncio.sleep(0.2)
            return [Answer(200, b"done") for _ in batch]

        return carry, Hello.of(scorer())

    async def test() -> None:
        pool = await pool_of(folder, remote=slow)
        plan = VariantPlan("canary", "fraud", "4", "fraud-4", timeout_s=5, max_concurrency=2)
        variant = Variant(plan, pool)
        asks = [asyncio.ensure_future(variant.ask(JSON, body((1, 2)))) for _ in range(3)]
        found = await asyncio.gather(*asks, return_exceptions=True)
        assert isinstance(found[2], OverloadedError)
        assert isinstance(found[0], tuple)
        assert dict(found[0][0].headers)[b"x-chancery-variant"] == b"canary"
        assert variant.in_flight == 0
        hasty = Variant(VariantPlan("canary", "fraud", "4", "fraud-4", timeout_s=0.05), pool)
        with pytest.raises(TimeoutError):
            await hasty.ask(JSON, body((1, 2)))
        await pool.close()

    run(test)


def test_odd_or_long_names_get_short_folders() -> None:
    base = Path("/run/chancery")
    assert socket_folder(base, "fraud-3") == base / "fraud-3"
    for odd in ("a/b", "..", "x" * 200, "ö", ".hidden", ""):
        found = socket_folder(base, odd)
        assert found.parent == base
        assert len(found.name) == 24
    assert socket_folder(base, "a/b") != socket_folder(base, "a/c")
