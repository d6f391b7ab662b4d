"""A plan made ready: its split, its variants with their lanes, and where the sticky key is.

`Routing` is what a request looks into, once and without waiting. The router replaces it as a whole
when the plan changes, so no request sees halves of two plans. `Lanes` keeps the pools of the
applications that plans name: one that the next plan names too goes on, even under another variant's
name; one that it does not name finishes what it has.

Example::

    lanes = Lanes(base)
    routing = Routing.of(plan, lanes, tally_of)
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from serve.batching import BatchLimits
from serve.keys import KeyReader, key_reader
from serve.lanes import LanePool, RemoteLane, socket_folder
from serve.pace import Pace
from serve.plan import Plan, ShadowPlan, VariantPlan
from serve.shapes import ShapeMemory
from serve.split import ArmSplit, Assignment, Split
from serve.stream import LARGEST_FRAME
from serve.tally import Tally
from serve.variant import Variant

__all__ = ["STABLE", "Lanes", "Route", "Routing"]

STABLE = "stable"


@dataclass(frozen=True, slots=True)
class Route:
    """A variant and what is counted of it."""

    variant: Variant
    tally: Tally


class Lanes:
    """Pools of lanes by application.

    Args:
        base: Folder of all sockets (``serve.socket_lane.private_folder``).
        limits: Of each lane.
        remote: For an application, what finds its lane where it has no socket here.
    """

    def __init__(
        self,
        base: Path,
        limits: BatchLimits | None = None,
        remote: Callable[[str], RemoteLane] | None = None,
    ) -> None:
        self._base = base
        self._limits = limits
        self._remote = remote
        self._pools: dict[str, LanePool] = {}
        self._pace = Pace()
        self._leaving: set[asyncio.Task[None]] = set()

    def pool(self, application: str) -> LanePool:
        """The application's pool; it looks for replicas from now on."""
        pool = self._pools.get(application)
        if pool is None:
            folder = socket_folder(self._base, application)
            remote = self._remote(application) if self._remote else None
            pool = self._pools[application] = LanePool(
                folder, self._limits, remote, pace=self._pace
            )
            pool.start()
        return pool

    def keep_only(self, applications: set[str]) -> None:
        """Let the others finish what they have, and hang up."""
        for application in self._pools.keys() - applications:
            task = asyncio.get_running_loop().create_task(self._pools.pop(application).close())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def close(self) -> None:
        """All of them."""
        self.keep_only(set())
        if self._leaving:
            await asyncio.wait(self._leaving)


class Routing:
    """One plan, ready to be asked.

    Args:
        plan: What to do.
        routes: Its variants by name.
        shapes: Of stable's answers.

    Raises:
        ConfigurationError: weights that do not add up.
        ValueError: weights or shadows of variants that are not there, or an odd sticky key.
    """

    def __init__(self, plan: Plan, routes: Mapping[str, Route], shapes: ShapeMemory) -> None:
        named = {name for name, _ in plan.weights} | {shadow.name for shadow in plan.shadows}
        if not named <= routes.keys():
            raise ValueError(f"the plan has no variant {sorted(named - routes.keys())}")
        self.plan = plan
        self.routes = dict(routes)
        self.stable = self.routes.get(STABLE)
        self.shadows: tuple[tuple[ShadowPlan, Route], ...] = tuple(
            (shadow, self.routes[shadow.name]) for shadow in plan.shadows
        )
        self.experiment_id = "" if plan.experiment is None else plan.experiment.id
        self.shapes = shapes
        self.compares = len(self.routes) > 1
        self._wishes = {name for name, _ in plan.weights}
        self._split: Split | ArmSplit | None = (
            Split(plan.weights, plan.salt) if plan.weights else None
        )
        if self._split is not None and plan.experiment is not None:
            found = plan.experiment
            self._split = ArmSplit(found.name, found.stretches, self._wishes - {STABLE}, STABLE)
            self._wishes |= {STABLE}
        self._key: KeyReader | None = key_reader(plan.sticky) if plan.sticky else None
        self._override = plan.override.lower() if plan.override else None

    @classmethod
    def of(
        cls,
        plan: Plan,
        lanes: Lanes,
        tally_of: Callable[[VariantPlan], Tally],
        before: Routing | None = None,
        shadow_bytes: int = LARGEST_FRAME,
    ) -> Routing:
        """A plan with its lanes; what the one ``before`` it knows of stable's answers is kept.

        Args:
            plan: What to do.
            lanes: Of all applications.
            tally_of: What is counted of a variant.
            before: The plan before it, ready.
            shadow_bytes: Of a batch of a shadow's answers.
        """
        routes = {
            found.name: Route(Variant(found, lanes.pool(found.application)), tally_of(found))
            for found in plan.variants
        }
        copied = {shadow.name for shadow in plan.shadows}
        for name, route in routes.items():
            route.variant.pool.limit(shadow_bytes if name in copied else LARGEST_FRAME)
        shapes = ShapeMemory()
        if before is not None and before.application_of(STABLE) == _application(plan, STABLE):
            shapes = before.shapes
        return cls(plan, routes, shapes)

    def application_of(self, name: str) -> str | None:
        """Which application answers for a variant."""
        return _application(self.plan, name)

    def assign(self, body: bytes, headers: Mapping[str, str]) -> Assignment | None:
        """Where a request goes; None when nobody answers."""
        if self._split is None:
            return None
        key = self._key(body, headers) if self._key else None
        wish = headers.get(self._override) if self._override else None
        if wish not in self._wishes:
            wish = None  # a shadow is nobody's to ask for
        return self._split.assign(key, override=wish, draw=random.random)

    def is_stable(self, route: Route) -> bool:
        """Whether stable's own replicas answer there, under whatever name."""
        return self.stable is not None and route.variant.pool is self.stable.variant.pool

    @property
    def answering(self) -> bool:
        """Whether some variant with traffic has a lane, or will have one when it is asked."""
        shares = self.plan.weights
        if self.plan.experiment is not None and self.plan.retry_on_stable:
            shares = (*shares, (STABLE, 1.0))  # it answers for any arm
        found = [self.routes[name].variant for name, share in shares if share]
        return not self.plan.closed and any(
            variant.pool.lanes or variant.plan.hold_s for variant in found
        )


def _application(plan: Plan, name: str) -> str | None:
    return next((v.application for v in plan.variants if v.name == name), None)
