"""The lane answers what was asked, only to this user, and breaks at once when its peer dies."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop

from governance.errors import GovernanceError
from serve import socket_lane
from serve.answer import Answer
from serve.decode import Array
from serve.frames import FrameError, Raw, pack_answers
from serve.socket_lane import (
    DECODED_BY_LISTENER,
    UNANSWERED,
    Hello,
    LaneLostError,
    SocketLane,
    SocketModel,
    answer_frame,
    private_folder,
)
from tests.unit.serve.sums import DEADLY, LAYOUT, NOT_TAKEN, Sums, body, scorer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short: a socket's path has room for a hundred characters."""
    with tempfile.TemporaryDirectory(prefix="lane") as made:
        yield Path(made)


def run(test: Callable[[], Coroutine[Any, Any, None]], *, with_uvloop: bool = True) -> None:
    runner = uvloop.run if with_uvloop else asyncio.run
    runner(asyncio.wait_for(test(), 20))


def rows(*values: tuple[float, float]) -> Array:
    return np.array(values, dtype=float)


@pytest.mark.parametrize("with_uvloop", [True, False])
def test_a_batch_comes_back_in_order(folder: Path, with_uvloop: bool) -> None:
    async def test() -> None:
        model = await SocketModel.start(folder / "a.sock", scorer())
        lane = await SocketLane.connect(folder / "a.sock")
        assert lane.hello.identity.version == "3"
        assert (lane.hello.layout, lane.hello.batchable, lane.hello.pid) == (
            LAYOUT, True, os.getpid(),
        )  # fmt: skip
        answers = await lane(
            [rows((1, 2)), Raw("text/csv", b"x"), rows((3, 4), (5, 6)), Raw(None, b"")]
        )
        assert [(a.status, a.body) for a in answers] == [
            (200, b'{"predictions":[3.0]}'),
            (400, b"exactly x"),
            (200, b'{"predictions":[7.0,11.0]}'),
            (400, b"exactly "),
        ]
        assert answers[1].content_type == b"text/x; kind=text/csv"
        assert (model.batches, model.busy_s) == (1, 0.0)
        await model.close()

    run(test, with_uvloop=with_uvloop)


def test_rows_that_are_not_taken_come_back_as_send_again(folder: Path) -> None:
    async def test() -> None:
        model = await SocketModel.start(folder / "a.sock", scorer())
        lane = await SocketLane.connect(folder / "a.sock")
        answers = await lane([rows((NOT_TAKEN, 0)), rows((1, 1))])
        assert [a.status for a in answers] == [UNANSWERED, 200]
        await model.close()

    run(test)


def test_large_requests_are_decoded_by_the_model() -> None:
    large = body(*[(1.0, 2.0)] * (DECODED_BY_LISTENER // 8))
    assert len(large) > DECODED_BY_LISTENER
    sums = Sums()
    frame = socket_lane.pack_requests([Raw("application/json", large), Raw("text/csv", large)])
    reply = answer_frame(sums, memoryview(frame)[4:])  # type: ignore[arg-type]
    first, second = socket_lane.unpack_answers(memoryview(reply)[4:])
    assert first.status == 200
    assert len(json.loads(first.body)["predictions"]) == DECODED_BY_LISTENER // 8
    assert second.status == 400, "what cannot be decoded is left to MLflow's code"


def test_several_listeners_are_answered(folder: Path) -> None:
    async def test() -> None:
        model = await SocketModel.start(folder / "a.sock", scorer())
        lanes = [await SocketLane.connect(folder / "a.sock") for _ in range(3)]
        found = await asyncio.gather(*(lane([rows((at, 1))]) for at, lane in enumerate(lanes)))
        assert [f[0].body for f in found] == [b'{"predictions":[%d.0]}' % n for n in (1, 2, 3)]
        await model.close()
        await asyncio.sleep(0.05)
        assert all(lane.lost for lane in lanes), "an idle lane sees that its peer hung up"

    run(test)


@pytest.mark.parametrize("leaves", [True, False])
def test_a_model_that_ends_answers_until_its_listeners_left(folder: Path, leaves: bool) -> None:
    """But only so long; and nobody finds it meanwhile."""

    async def test() -> None:
        model = await SocketModel.start(folder / "a.sock", scorer())
        lane = await SocketLane.connect(folder / "a.sock")
        patience_s = 15.0 if leaves else 0.2
        begun = time.monotonic()
        ending = asyncio.ensure_future(model.close(patience_s))
        await asyncio.sleep(0.05)
        assert not list(folder.iterdir())
        assert (await lane([rows((1, 1))]))[0].status == 200
        assert not ending.done()
        if leaves:
            lane.close()
        await ending
        assert leaves == (time.monotonic() - begun < patience_s)
        await asyncio.sleep(0.05)
        assert lane.lost

    run(test)


def test_a_socket_of_a_dead_process_is_replaced(folder: Path) -> None:
    async def test() -> None:
        path = folder / "a.sock"
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(path))
        left.close()
        with pytest.raises(LaneLostError) as error:
            await SocketLane.connect(path)
        assert isinstance(error.value.__cause__, ConnectionRefusedError)
        model = await SocketModel.start(path, scorer())
        assert (await (await SocketLane.connect(path))([rows((1, 1))]))[0].status == 200
        await model.close()
        assert not list(folder.iterdir())

    run(test)


def test_nobody_there_is_a_lost_lane(folder: Path) -> None:
    async def test() -> None:
        with pytest.raises(LaneLostError):
            await SocketLane.connect(folder / "a.sock")

    run(test)


def test_a_peer_killed_in_the_middle_of_a_batch_is_noticed_at_once(folder: Path) -> None:
    path = folder / "a.sock"
    script = (
        "import asyncio; from pathlib import Path\n"
        "from serve.socket_lane import SocketModel; from tests.unit.serve.sums import scorer\n"
        "async def main():\n"
        f"    await SocketModel.start(Path({str(path)!r}), scorer())\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)

    async def test() -> None:
        while not path.exists():
            await asyncio.sleep(0.01)
        lane = await SocketLane.connect(path)
        begun = time.monotonic()
        with pytest.raises(LaneLostError):
            await lane([rows((DEADLY, 0)), rows((1, 1))])
        assert time.monotonic() - begun < 2
        assert lane.lost
        with pytest.raises(LaneLostError):
            await lane([rows((1, 1))])

    try:
        run(test)
        assert process.wait(10) == 9
    finally:
        process.kill()
        process.wait()


async def _speak(path: Path, *frames: bytes) -> asyncio.Server:
    """Somebody who says these things, whatever is asked."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for frame in frames:
            writer.write(frame)
        await reader.read(1 << 16)

    return await asyncio.start_unix_server(talk, str(path))


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


HELLO = _framed(Hello.of(scorer()).to_json())


@pytest.mark.parametrize(
    "greeting",
    [_framed(b"hello"), _framed(b"{}"), (1 << 31).to_bytes(4, "little"), _framed(b"[1]")],
    ids=["text", "nothing in it", "endless", "a list"],
)
def test_who_does_not_greet_is_no_model(folder: Path, greeting: bytes) -> None:
    async def test() -> None:
        server = await _speak(folder / "a.sock", greeting)
        with pytest.raises(LaneLostError):
            await SocketLane.connect(folder / "a.sock", timeout_s=1)
        server.close()

    run(test)


def test_who_says_nothing_is_no_model(folder: Path) -> None:
    async def test() -> None:
        server = await _speak(folder / "a.sock")
        with pytest.raises(LaneLostError):
            await SocketLane.connect(folder / "a.sock", timeout_s=0.1)
        server.close()

    run(test)


@pytest.mark.parametrize(
    "reply",
    [
        _framed(b"\xff" * 40),
        pack_answers([Answer(200, b"one"), Answer(200, b"too many")]),
        pack_answers([]),
        (1 << 31).to_bytes(4, "little"),
    ],
    ids=["garbage", "too many", "too few", "endless"],
)
def test_an_answer_that_is_none_ends_the_lane(folder: Path, reply: bytes) -> None:
    async def test() -> None:
        server = await _speak(folder / "a.sock", HELLO, reply)
        lane = await SocketLane.connect(folder / "a.sock")
        with pytest.raises(LaneLostError):
            await lane([rows((1, 1))])
        assert lane.lost
        server.close()

    run(test)


def test_a_batch_given_up_ends_the_lane(folder: Path) -> None:
    """Its answer may still come, and must not be taken for the next one's."""

    async def test() -> None:
        server = await _speak(folder / "a.sock", HELLO)
        lane = await SocketLane.connect(folder / "a.sock")
        call = asyncio.ensure_future(lane([rows((1, 1))]))
        await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.wait([call])
        assert lane.lost
        server.close()

    run(test)


def test_a_model_hangs_up_on_garbage_and_goes_on_with_others(folder: Path) -> None:
    async def test() -> None:
        model = await SocketModel.start(folder / "a.sock", scorer())
        for garbage in (_framed(b"\xff" * 40), (1 << 31).to_bytes(4, "little")):
            reader, writer = await asyncio.open_unix_connection(str(folder / "a.sock"))
            await reader.readexactly(int.from_bytes(await reader.readexactly(4), "little"))
            writer.write(garbage)
            assert await reader.read() == b""
            writer.close()
        lane = await SocketLane.connect(folder / "a.sock")
        assert (await lane([rows((1, 1))]))[0].status == 200
        await model.close()

    run(test)


def test_a_process_of_another_user_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        model = await SocketModel.start(folder / "a.sock", scorer())
        uid = os.getuid()
        monkeypatch.setattr(socket_lane.os, "getuid", lambda: uid + 1)
        with pytest.raises(LaneLostError, match=f"belongs to user {uid}"):
            await SocketLane.connect(folder / "a.sock")
        monkeypatch.undo()
        await model.close()

    run(test)


def test_a_folder_is_made_for_this_user_alone(folder: Path) -> None:
    made = private_folder(folder / "x" / "y")
    assert made.stat().st_mode & 0o777 == 0o700
    assert private_folder(made) == made


@pytest.mark.parametrize("mode", [0o777, 0o701, 0o710, 0o704, 0o755])
def test_a_folder_that_others_may_enter_is_refused(folder: Path, mode: int) -> None:
    (folder / "x").mkdir()
    (folder / "x").chmod(mode)
    with pytest.raises(GovernanceError, match="alone"):
        private_folder(folder / "x")


def test_a_folder_of_another_user_or_a_link_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private_folder(folder / "mine")
    (folder / "link").symlink_to(folder / "mine")
    with pytest.raises(GovernanceError, match="alone"):
        private_folder(folder / "link")
    uid = os.getuid()
    monkeypatch.setattr(socket_lane.os, "getuid", lambda: uid + 1)
    with pytest.raises(GovernanceError, match="alone"):
        private_folder(folder / "mine")


def test_a_greeting_comes_back() -> None:
    hello = Hello.of(scorer())
    assert Hello.from_json(hello.to_json()) == hello
    with pytest.raises(FrameError):
        Hello.from_json(b'{"layout": 1}')
