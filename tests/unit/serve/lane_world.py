"""A pool of lanes and its event loop, for tests of lanes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from serve.lanes import LanePool

JSON = "application/json"


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    uvloop.run(asyncio.wait_for(test(), 30))


async def pool_of(folder: Path, **options: Any) -> LanePool:
    pool = LanePool(folder, rescan_s=0.05, **options)
    pool.start()
    assert await pool.ready(5)
    return pool


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
