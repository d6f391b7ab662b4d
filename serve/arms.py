"""What an experiment's arms and a shadow did so far, as the controller keeps it in its course.

Counts come from the gateways' reports, each report once: the last number of each source is kept
with them, so that a controller that takes over goes on where the one before it stopped.

Two arms' rates of errors are compared with the bets of the rollout's tests (``serve.bets``): for
each pair one process against "the first does not fail more often than the second" and one the other
way round. Half their sum is an e-value against "both fail alike", valid however often one looks;
its highest value so far is kept, for 1 over that is a p-value valid at any time. Nothing is decided
by it.

Example::

    beside = beside.counted(report)
    beside.experiment.pairs[0].e_value
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from governance.arms import ExperimentRecord, ShadowRecord
from serve.agreement import Agreement
from serve.delta import Delta, ErrorClass
from serve.evidence import CanaryTest, CanaryTestKind, Evidence
from serve.plan import Report
from serve.wealth import log_sum

__all__ = ["ArmCourse", "Beside", "ExperimentCourse", "PairCourse", "ShadowCourse"]

SHADOW = "shadow"
"""Name of the shadow's variant."""

_TEST = CanaryTest("errors", CanaryTestKind.EVENTS, "errors", 1.0)
_ALL_PAIRS = 5  # arms; with more, each is compared with the first only
_SOURCES = 4096


@dataclass(frozen=True, slots=True)
class ArmCourse:
    """An arm.

    Attributes:
        name: Its name.
        version: In the registry.
        open: Whether it gets the traffic of its clients; if not, stable answers them.
        stopped: Why it never will again; empty: it may.
        total: What it did.
    """

    name: str
    version: int
    open: bool = False
    stopped: str = ""
    total: Delta = field(default_factory=Delta)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "open": self.open,
            "stopped": self.stopped,
            "total": self.total.to_dict(),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ArmCourse:
        return cls(
            document["name"],
            document["version"],
            document["open"],
            document["stopped"],
            Delta.from_dict(document["total"]),
        )


@dataclass(frozen=True, slots=True)
class PairCourse:
    """Two arms' rates of errors beside each other.

    Attributes:
        first: An arm.
        second: Another.
        more: What speaks against "the first does not fail more often".
        less: What speaks against "the second does not fail more often".
        highest: The highest logarithm of the e-value so far.
    """

    first: str
    second: str
    more: Evidence = field(default_factory=lambda: Evidence.start(_TEST))
    less: Evidence = field(default_factory=lambda: Evidence.start(_TEST))
    highest: float = 0.0

    @property
    def log_e(self) -> float:
        """Logarithm of the e-value against "both fail alike", now."""
        both = (self.more.against.log_total, self.less.against.log_total)
        return log_sum(both) - math.log(2)

    def after(self, first: Delta, second: Delta) -> PairCourse:
        """With what both did in the same stretch of time."""
        found = replace(
            self,
            more=self.more.after(_TEST, first, second, alone=False, show_at=math.inf),
            less=self.less.after(_TEST, second, first, alone=False, show_at=math.inf),
        )
        return replace(found, highest=max(self.highest, found.log_e))

    def to_dict(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "second": self.second,
            "more": self.more.to_dict(),
            "less": self.less.to_dict(),
            "highest": repr(self.highest),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> PairCourse:
        return cls(
            document["first"],
            document["second"],
            Evidence.from_dict(document["more"]),
            Evidence.from_dict(document["less"]),
            float(document["highest"]),
        )


@dataclass(frozen=True, slots=True)
class ExperimentCourse:
    """An experiment that runs, or the last one.

    Attributes:
        id: Its id.
        name: Its name.
        begun_ms: When it began.
        arms: Its arms, in order.
        pairs: All pairs of few arms; of many, each with the first.
        ended: Whether it ended.
    """

    id: str
    name: str
    begun_ms: int
    arms: tuple[ArmCourse, ...]
    pairs: tuple[PairCourse, ...]
    ended: bool = False

    @classmethod
    def start(cls, record: ExperimentRecord) -> ExperimentCourse:
        """Nothing counted yet."""
        arms = tuple(ArmCourse(arm.name, arm.served.version) for arm in record.arms)
        names = [arm.name for arm in arms]
        pairs = combinations(names, 2)
        if len(names) > _ALL_PAIRS:
            pairs = ((names[0], name) for name in names[1:])  # type: ignore[assignment]
        return cls(
            record.id,
            record.name,
            record.begun_ms,
            arms,
            tuple(PairCourse(first, second) for first, second in pairs),
        )

    def counted(self, deltas: Mapping[str, Delta]) -> ExperimentCourse:
        """With what its arms did in the same stretch of time."""
        seen = {arm.name: _of_arm(deltas[arm.name]) for arm in self.arms if arm.name in deltas}
        if not seen:
            return self
        arms = tuple(
            replace(arm, total=arm.total + seen[arm.name]) if arm.name in seen else arm
            for arm in self.arms
        )
        blamed = {name: _blamed(delta) for name, delta in seen.items()}
        nothing = Delta()
        pairs = tuple(
            pair.after(blamed.get(pair.first, nothing), blamed.get(pair.second, nothing))
            if pair.first in blamed or pair.second in blamed
            else pair
            for pair in self.pairs
        )
        return replace(self, arms=arms, pairs=pairs)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "begunMs": self.begun_ms,
            "arms": [arm.to_dict() for arm in self.arms],
            "pairs": [pair.to_dict() for pair in self.pairs],
            "ended": self.ended,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ExperimentCourse:
        return cls(
            document["id"],
            document["name"],
            document["begunMs"],
            tuple(ArmCourse.from_dict(arm) for arm in document["arms"]),
            tuple(PairCourse.from_dict(pair) for pair in document["pairs"]),
            document["ended"],
        )


@dataclass(frozen=True, slots=True)
class ShadowCourse:
    """A shadow that runs, or the last one.

    Attributes:
        id: Its id.
        version: In the registry.
        begun_ms: When it began.
        open: Whether it gets copies.
        stopped: Why it never will again; empty: it may.
        total: What it did with its copies.
        agreement: What its answers were beside stable's.
        ended: Whether it ended.
    """

    id: str
    version: int
    begun_ms: int
    open: bool = False
    stopped: str = ""
    total: Delta = field(default_factory=Delta)
    agreement: Agreement = field(default_factory=Agreement)
    ended: bool = False

    @classmethod
    def start(cls, record: ShadowRecord) -> ShadowCourse:
        """Nothing counted yet."""
        return cls(record.id, record.served.version, record.begun_ms)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "version": self.version,
            "begunMs": self.begun_ms,
            "open": self.open,
            "stopped": self.stopped,
            "total": self.total.to_dict(),
            "agreement": self.agreement.to_dict(),
            "ended": self.ended,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ShadowCourse:
        return cls(
            document["id"],
            document["version"],
            document["begunMs"],
            document["open"],
            document["stopped"],
            Delta.from_dict(document["total"]),
            Agreement.from_dict(document["agreement"]),
            document["ended"],
        )


@dataclass(frozen=True, slots=True)
class Beside:
    """What is there beside stable and canary.

    Attributes:
        experiment: The one that runs, or the last one.
        shadow: The one that runs, or the last one.
        seen: Last number of each source whose reports are counted.
    """

    experiment: ExperimentCourse | None = None
    shadow: ShadowCourse | None = None
    seen: Mapping[str, int] = field(default_factory=dict)

    def counted(self, report: Report) -> Beside:
        """With a report that is of this experiment or shadow and was not counted yet."""
        experiment, shadow = self.experiment, self.shadow
        copies = None if shadow is None else report.shadows.get(shadow.id)
        ours = experiment is not None and report.experiment == experiment.id
        if not ours and copies is None:
            return self
        if report.sequence <= self.seen.get(report.source, -1):
            return self
        if ours and experiment is not None:
            experiment = experiment.counted(report.deltas)
        if shadow is not None and copies is not None:
            shadow = replace(
                shadow,
                total=shadow.total + _of_arm(report.deltas.get(SHADOW, Delta())),
                agreement=shadow.agreement + copies,
            )
        seen = {source: n for source, n in self.seen.items() if source != report.source}
        seen[report.source] = report.sequence
        while len(seen) > _SOURCES:
            del seen[next(iter(seen))]
        return Beside(experiment, shadow, seen)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without floats."""
        return {
            "experiment": None if self.experiment is None else self.experiment.to_dict(),
            "shadow": None if self.shadow is None else self.shadow.to_dict(),
            "seen": [[source, number] for source, number in self.seen.items()],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Beside:
        """Inverse of ``to_dict``.

        Raises:
            KeyError: a part is missing.
            ValueError: counts that cannot be.
        """
        experiment, shadow = document["experiment"], document["shadow"]
        return cls(
            None if experiment is None else ExperimentCourse.from_dict(experiment),
            None if shadow is None else ShadowCourse.from_dict(shadow),
            {source: number for source, number in document["seen"]},
        )


def _of_arm(delta: Delta) -> Delta:
    """What is kept of it."""
    return Delta(delta.requests, dict(delta.errors), dict(delta.latency))


def _blamed(delta: Delta) -> Delta:
    """With what stable failed at as well: no arm has another to excuse it in the same way."""
    errors = dict(delta.errors)
    shared = errors.pop(ErrorClass.SHARED, 0)
    if shared:
        errors[ErrorClass.RAISED] = errors.get(ErrorClass.RAISED, 0) + shared
    return Delta(delta.requests, errors)
