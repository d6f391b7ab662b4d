"""Copies of requests to versions whose answers nobody sees.

A shadow cannot delay or change an answer: its copy is sent when the client has its answer, nobody
waits for it, and what it may take is bounded. At most ``ShadowPlan.max_in_flight`` copies are on
their way at a time, all bodies that copies hold stay below ``ShadowLimits.total_bytes``, a batch of
answers may have ``ShadowLimits.answer_bytes``, and each copy ends after its variant's time limit.
What does not fit is dropped and counted. A shadow has an application, and so lanes and queues, of
its own: whoever makes the plan sees to that (``serve.beside``).

Example::

    shadows = Shadows(ShadowLimits(), ask)
    shadows.copy(routing, "application/json", body, answer, stables=True)
    shadows.take(routing)    # what came of the copies since the last time
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serve.agreement import Agreement, agree
from serve.answer import Answer
from serve.delta import ErrorClass
from serve.plan import ShadowPlan
from serve.routing import Route, Routing
from serve.shapes import ShapeMemory
from serve.variant import Outcome

__all__ = ["ShadowLimits", "Shadows"]

_KEPT = 16


@dataclass(frozen=True, slots=True)
class ShadowLimits:
    """What copies may take at one gateway.

    Args:
        total_bytes: Of all the bodies, of requests and of the answers they are compared with.
        answer_bytes: Of one batch of a shadow's answers; beyond it the lane is cut.
    """

    total_bytes: int = 32 << 20
    answer_bytes: int = 32 << 20


class Shadows:
    """See the module. Runs on the router's event loop.

    Args:
        limits: What copies may take.
        ask: Asks a variant; whatever goes wrong is an outcome too.
        draw: A number in [0, 1).
    """

    def __init__(
        self,
        limits: ShadowLimits,
        ask: Callable[[Route, str | None, bytes], Awaitable[Outcome]],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._limits = limits
        self._ask = ask
        self._draw = draw
        self._flying: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._fresh: dict[str, Agreement] = {}
        self._told: dict[str, Agreement] = {}
        self.held_bytes = 0

    def copy(
        self,
        routing: Routing,
        content_type: str | None,
        body: bytes,
        answer: Answer,
        *,
        stables: bool,
    ) -> None:
        """Send copies of a request that is answered.

        Args:
            routing: The plan it was answered by.
            content_type: The request's.
            body: The request's.
            answer: What the client got.
            stables: Whether stable gave it: only then it is compared.
        """
        for shadow, route in routing.shadows:
            if shadow.percent < 100 and self._draw() * 100 >= shadow.percent:
                continue
            compared = answer if shadow.compare and stables else None
            size = len(body) + (0 if compared is None else len(compared.body))
            flying = self._flying.get(shadow.id, 0)
            full = self.held_bytes + size > self._limits.total_bytes
            if flying >= shadow.max_in_flight or full:
                self._count(shadow, Agreement(dropped=1))
                continue
            self.held_bytes += size
            self._flying[shadow.id] = flying + 1
            task = asyncio.get_running_loop().create_task(
                self._send(shadow, route, content_type, body, compared, size)
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(
        self,
        shadow: ShadowPlan,
        route: Route,
        content_type: str | None,
        body: bytes,
        answer: Answer | None,
        size: int,
    ) -> None:
        try:
            found = await self._ask(route, content_type, body)
        finally:
            self.held_bytes -= size
            if self._flying[shadow.id] > 1:
                self._flying[shadow.id] -= 1
            else:
                del self._flying[shadow.id]
        error, agreed = _compared(answer, found)
        route.tally.add(error, found.ms)
        if agreed is None:
            self._count(shadow, Agreement(uncompared=1))
        else:
            self._count(shadow, Agreement(same=int(agreed), different=int(not agreed)))

    def _count(self, shadow: ShadowPlan, found: Agreement) -> None:
        self._fresh[shadow.id] = self._fresh.get(shadow.id, Agreement()) + found

    def take(self, routing: Routing | None) -> dict[str, Agreement]:
        """What came of copies since the last time, by the ids of the plan's shadows."""
        names = [shadow.id for shadow, _ in routing.shadows] if routing else []
        fresh, self._fresh = self._fresh, {}
        for name, found in fresh.items():
            self._told[name] = self._told.pop(name, Agreement()) + found
        while len(self._told) > _KEPT:
            del self._told[next(iter(self._told))]
        return {name: fresh.get(name, Agreement()) for name in names if name}

    def total(self, name: str) -> Agreement:
        """Everything that came of a shadow's copies, by its id."""
        return self._told.get(name, Agreement()) + self._fresh.get(name, Agreement())

    def close(self) -> None:
        """Give up what is on its way."""
        for task in list(self._tasks):
            task.cancel()


def _compared(answer: Answer | None, found: Outcome) -> tuple[ErrorClass | None, bool | None]:
    """Whose fault an error is, and whether both said the same; None: that cannot be told."""
    error = found.error
    if answer is None:
        return error, None
    if answer.status >= 400:
        if error is None:
            return None, None
        return (ErrorClass.CLIENT if error is ErrorClass.CLIENT else ErrorClass.SHARED), None
    if error is not None:
        return (ErrorClass.RAISED if error is ErrorClass.CLIENT else error), None
    agreed = agree(answer.body, found.answer.body)
    if agreed is False and ShapeMemory.differ(answer, found.answer):
        return ErrorClass.WRONG_SHAPE, False
    return None, agreed
