"""Rollouts that went well, badly, or are on their way: simulated traffic past the real rules."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from governance.deployment_control import StoredDecision
from governance.deployment_records import DeploymentRecord, Health, ServedVersion
from serve.config import CanaryConfig
from serve.course import Course, Notice
from serve.delta import Delta, ErrorClass, bucket_of
from serve.plot import Story
from serve.records import Observation, Signal
from serve.rollout import RolloutState, advance
from serve.series import Series, followed

BEGAN_MS = 1_700_000_000_000
CONFIG = CanaryConfig(steps=(5.0, 25.0, 50.0, 100.0), min_seconds=30.0, max_seconds=600.0)

KINDS = (
    "pending", "verifying", "canary", "paused", "promoted", "rolled_back", "quarantined", "aborted",
)  # fmt: skip


@dataclass
class Told:
    """A rollout, and all that is kept of it."""

    kind: str
    config: CanaryConfig = CONFIG
    seed: int = 1
    now: int = BEGAN_MS
    number: int = 0
    series: Series | None = None
    decisions: list[StoredDecision] = field(default_factory=list)
    state: RolloutState = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self.state = RolloutState.start("5" * 32, self.config)
        self.see({})
        self._act()

    def see(self, deltas: dict[str, Delta], *signals: Signal, reason: str = "") -> None:
        self.number += 1
        seen = Observation("gateway-1", self.number, deltas, frozenset(signals), reason)
        self.state, _, decision = advance(self.state, seen, self.now)
        self.series = followed(self.series, self.state, deltas, self.now, (3, 4))
        if decision.changes:
            self.decisions.append(
                StoredDecision(
                    self.state.id,
                    self.state.transitions,
                    decision.to_dict(),
                    ended=self.state.phase.terminal,
                )
            )

    def pass_(self, seconds: float, errors: float = 0.01, slower: float = 1.0) -> None:
        """Traffic: 100 requests a second."""
        for _ in range(round(4 * seconds)):
            self.now += 250
            share = self.state.percent / 100
            canary = sum(self._random.random() < share for _ in range(25))
            self.see(
                {
                    "canary": self._some(canary, errors, slower),
                    "stable": self._some(25 - canary, 0.01, 1.0),
                }
            )
            if self.state.phase.terminal:
                return

    def _some(self, n: int, errors: float, slower: float) -> Delta:
        failed = sum(self._random.random() < errors for _ in range(n))
        latency: dict[int, int] = {}
        for _ in range(n - failed):
            bucket = bucket_of(20 * slower * math.exp(self._random.gauss(0, 0.4)))
            latency[bucket] = latency.get(bucket, 0) + 1
        return Delta(n, {ErrorClass.RAISED: failed} if failed else {}, latency)

    def _act(self) -> None:
        if self.kind == "pending":
            return
        self.see({}, Signal.START)
        self.pass_(4)
        if self.kind == "verifying":
            return
        if self.kind == "quarantined":
            self.see({}, Signal.VERIFICATION_FAILED, reason="TAMPERED: a byte was changed")
            return
        self.see({}, Signal.VERIFIED)
        if self.kind == "promoted":
            self.pass_(400)
            return
        self.pass_(37)
        if self.kind == "aborted":
            self.see({}, Signal.ABORT, reason="bea: the wrong week")
        elif self.kind == "rolled_back":
            self.pass_(400, errors=0.06)

    # -- as others see it

    @property
    def story(self) -> Story:
        assert self.series is not None
        documents = [decision.document for decision in self.decisions]
        return Story("fraud", "prod", "fraud", self.series, documents)

    @property
    def course(self) -> Course:
        notices: tuple[Notice, ...] = ()
        if self.kind in ("rolled_back", "quarantined"):
            last = self.decisions[-1].document["explanation"][0]
            notices = (Notice("n1", self.now, str(last)),)
        return Course(
            rollout=self.state,
            paused="bea: lunch" if self.kind == "paused" else "",
            notices=notices,
            series=self.series,
        )

    def record(self, **changes: Any) -> DeploymentRecord:
        running = not self.state.phase.terminal
        promoted = self.kind == "promoted"
        stable = ServedVersion(4 if promoted else 3, "u3", "3" * 64)
        known: dict[str, Any] = {
            "deploy_id": "d" * 32,
            "route": "fraud",
            "environment": "prod",
            "model_uid": "m" * 32,
            "model_name": "fraud",
            "stable": stable,
            "canary": ServedVersion(4, "u4", "4" * 64) if running else None,
            "previous": ServedVersion(3, "u3", "3" * 64) if promoted else None,
            "rollout_id": self.state.id,
            "canary_config": self.config.model_dump_json(),
            "rollout_by": "bea",
            "rollout_ms": BEGAN_MS,
            "node_pool": None,
            "resources": {"replicas": 2},
            "provenance": {"signers": ["alice"]},
            "port": 8080,
            "metrics_endpoint": None,
            "health": Health.SERVING,
            "closed": "",
            "state": self.course.to_json(),
            "plan_revision": 7,
            "saved_ms": self.now,
            "lease_owner": "node-1/4711/ab12cd",
            "lease_until_ms": self.now + 3000,
            "fence": 2,
            "created_by": "bea",
            "created_ms": BEGAN_MS - 86_400_000,
        }
        return DeploymentRecord(**{**known, **changes})


@lru_cache
def told_of(kind: str) -> Told:
    """Made once; nobody changes it."""
    return Told(kind)
