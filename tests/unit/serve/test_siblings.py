"""A scrape of one gateway tells of all."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from serve.siblings import Siblings, merged

ONE = b"""# HELP a_total Things.
# TYPE a_total counter
a_total{gateway="1"} 1
# HELP b Other things.
# TYPE b gauge
b{gateway="1"} 5
"""
TWO = b"""# HELP b Other things.
# TYPE b gauge
b{gateway="2"} 6
# HELP c Third.
# TYPE c gauge
# HELP a_total Things.
# TYPE a_total counter
a_total{gateway="2"} 2
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="s") as made:
        yield Path(made)


def test_the_samples_of_a_metric_stand_together() -> None:
    assert merged([ONE]) == ONE
    assert merged([ONE, TWO]).decode().splitlines() == [
        "# HELP a_total Things.",
        "# TYPE a_total counter",
        'a_total{gateway="1"} 1',
        'a_total{gateway="2"} 2',
        "# HELP b Other things.",
        "# TYPE b gauge",
        'b{gateway="1"} 5',
        'b{gateway="2"} 6',
        "# HELP c Third.",
        "# TYPE c gauge",
    ]


def test_whoever_is_asked_answers_for_all_that_live(folder: Path) -> None:
    async def test() -> None:
        one, two = Siblings(folder, "gateway-1", lambda: ONE), Siblings(folder, "2", lambda: TWO)
        await one.start()
        assert await one.all() == ONE
        await two.start()
        assert await one.all() == merged([ONE, TWO])
        assert await two.all() == merged([TWO, ONE])
        await two.close()
        assert await one.all() == ONE
        await one.close()
        assert list(folder.iterdir()) == []

    uvloop.run(asyncio.wait_for(test(), 20))


def test_one_that_does_not_listen_yet_is_not_taken_for_dead(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that is bound refuses until somebody listens, as one whose process is dead."""

    async def test() -> None:
        one, two = Siblings(folder, "1", lambda: ONE), Siblings(folder, "2", lambda: TWO)
        await one.start()
        start = asyncio.start_unix_server

        async def scraped_meanwhile(tell: Any, path: Path) -> asyncio.Server:
            bound = socket.socket(socket.AF_UNIX)
            bound.bind(str(path))
            assert await one.all() == ONE
            return await start(tell, sock=bound)

        monkeypatch.setattr(asyncio, "start_unix_server", scraped_meanwhile)
        await two.start()
        assert await one.all() == merged([ONE, TWO])
        await one.close()
        await two.close()

    uvloop.run(asyncio.wait_for(test(), 20))


def test_a_dead_one_is_forgotten_and_a_stuck_one_is_left_out(folder: Path) -> None:
    async def test() -> None:
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(str(folder / "dead.sock"))
        dead.close()
        with socket.socket(socket.AF_UNIX) as stuck:
            stuck.bind(str(folder / "stuck.sock"))
            stuck.listen()
            one = Siblings(folder, "gateway-1", lambda: ONE)
            await one.start()
            assert await one.all() == ONE
            assert sorted(path.name for path in folder.iterdir()) == ["1.sock", "stuck.sock"]
            await one.close()

    uvloop.run(asyncio.wait_for(test(), 20))


def test_one_that_fails_or_tells_too_much_is_left_out(folder: Path) -> None:
    def fails() -> bytes:
        raise RuntimeError

    async def test() -> None:
        one = Siblings(folder, "1", lambda: ONE)
        others = [Siblings(folder, "2", fails), Siblings(folder, "3", lambda: b"x 1\n" * 2_000_000)]
        for each in (one, *others):
            await each.start()
        assert await one.all() == ONE
        for each in (one, *others):
            await each.close()

    loop = uvloop.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    try:
        loop.run_until_complete(asyncio.wait_for(test(), 20))
    finally:
        loop.close()
