"""One variant of a plan: which application answers, how long it may take, how much it may hold.

Example::

    variant = Variant(plan.variants[0], pool)
    answer, rows = await variant.ask("application/json", body)
"""

from __future__ import annotations

from dataclasses import dataclass

from serve.answer import Answer, OverloadedError
from serve.delta import ErrorClass
from serve.lanes import LanePool
from serve.plan import VariantPlan

__all__ = ["Outcome", "Variant"]


@dataclass(slots=True)  # not frozen: one is made for each request, and freezing costs a microsecond
class Outcome:
    """What asking a variant gave: always something to tell a client."""

    answer: Answer
    error: ErrorClass | None
    rows: int
    ms: float


class Variant:
    """Asks the replicas of one application under a variant's name and limits.

    Args:
        plan: Name, model and limits.
        pool: Lanes to its application; it outlives the variant when a plan only renames it.
    """

    def __init__(self, plan: VariantPlan, pool: LanePool) -> None:
        self.plan = plan
        self.name = plan.name
        self.pool = pool
        self.in_flight = 0
        self._header = ((b"x-chancery-variant", plan.name.encode("ascii", "replace")),)
        self._limit = plan.max_concurrency

    async def ask(
        self, content_type: str | None, body: bytes, request_id: str = ""
    ) -> tuple[Answer, int]:
        """The variant's answer, and how many rows were asked (0: not known).

        Raises:
            OverloadedError: it has as many requests as it may have, or too many wait.
            LaneLostError: none of its replicas can be asked.
            TimeoutError: the variant's time limit.
        """
        if self._limit is not None and self.in_flight >= self._limit:
            raise OverloadedError(f"{self.name} answers {self.in_flight} requests already")
        self.in_flight += 1
        try:
            plan = self.plan
            return await self.pool.ask(
                content_type, body, plan.timeout_s, self._header, plan.hold_s, request_id
            )
        finally:
            self.in_flight -= 1
