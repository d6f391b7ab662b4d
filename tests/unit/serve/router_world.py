"""A router in a small world: applications that behave as told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from serve.answer import Answer
from serve.lanes import RemoteLane
from serve.plan import Plan, Report, VariantPlan
from serve.router import Router
from serve.routing import Lanes
from serve.socket_lane import Hello, LaneLostError
from tests.unit.serve.sums import body, scorer

BODY = body((1, 2))
HEADERS = {"content-type": "application/json"}

Behaviour = Callable[[], Awaitable[Answer]]


def says(text: bytes, status: int = 200) -> Behaviour:
    async def behave() -> Answer:
        return Answer(status, text)

    return behave


def predicts(value: Any) -> Behaviour:
    return says(json.dumps({"predictions": value}).encode())


async def hangs() -> Answer:
    await asyncio.sleep(60)
    raise AssertionError


async def gone() -> Answer:
    raise LaneLostError("gone")


class World:
    """Applications that behave as told, and a router that asks them."""

    def __init__(self, **options: Any) -> None:
        self.behaviours: dict[str, Behaviour] = {
            "s": predicts([3.0]), "c": predicts([4.0]), "x": predicts([5.0]),
        }  # fmt: skip
        self.asked: dict[str, int] = {}
        self.away: set[str] = set()
        lanes = Lanes(Path("/nonexistent"), remote=self._remote)
        self.router = Router("g", lanes, warm_s=0.3, **options)

    def _remote(self, application: str) -> RemoteLane:
        async def carry(batch: list[Any]) -> list[Answer]:
            self.asked[application] = self.asked.get(application, 0) + len(batch)
            return [await self.behaviours[application]() for _ in batch]

        async def find() -> tuple[Any, Hello]:
            if application in self.away:
                raise LaneLostError("not yet")
            return carry, Hello.of(scorer())

        return find

    async def start(self, plan: Plan) -> None:
        """Offer it, and wait until whoever is not away has a lane, and it holds if nobody is."""
        self.router.offer(plan)
        await asyncio.sleep(0.01)
        asked = {variant.application for variant in plan.variants}
        pools = self.router._lanes._pools
        while not all(pools[name].lanes for name in asked - self.away):
            await asyncio.sleep(0.01)
        while not asked & self.away and self.router._switching is not None:
            await asyncio.sleep(0.01)

    async def ask(self, headers: dict[str, str] | None = None, sent: bytes = BODY) -> Answer:
        return await self.router.submit(sent, {**HEADERS, **(headers or {})})

    def report(self) -> Report:
        report = self.router.report()
        self.router.delivered(report.sequence)
        return report


def plan(canary: float = 100.0, revision: int = 1, **options: Any) -> Plan:
    return Plan(
        revision,
        (
            VariantPlan("stable", "fraud", "3", "s", timeout_s=0.2),
            VariantPlan("canary", "fraud", "4", "c", timeout_s=0.1),
            *options.pop("variants", ()),
        ),
        (("canary", canary), ("stable", 100.0 - canary)),
        salt="fraud/r1",
        **options,
    )


def run(test: Callable[[World], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def whole() -> None:
        world = World(**options)
        await test(world)
        await asyncio.wait_for(world.router.close(), 10)

    asyncio.run(asyncio.wait_for(whole(), 30))


def header(answer: Answer, name: str) -> str | None:
    found = dict(answer.headers).get(name.encode())
    return None if found is None else found.decode()
