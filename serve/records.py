"""What goes into the rollout's state machine and what comes out.

Everything is frozen and travels as JSON without floats (numbers that are not whole are text), so
that it can lie in the database and be hashed into the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from serve.delta import Delta

__all__ = ["Action", "ActionKind", "Observation", "Outcome", "Phase", "RolloutDecision", "Signal"]


class Phase(StrEnum):
    """Where a rollout stands."""

    PENDING = "pending"
    VERIFYING = "verifying"
    CANARY = "canary"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    QUARANTINED = "quarantined"
    ABORTED = "aborted"

    @property
    def terminal(self) -> bool:
        """Whether nothing changes any more."""
        return self not in (Phase.PENDING, Phase.VERIFYING, Phase.CANARY)


class Signal(StrEnum):
    """What the controller tells besides the counts; in order of precedence, the gravest first.

    ``CANARY_AWAITED``, ``STABLE_UNHEALTHY`` and ``PAUSED`` hold as long as they are told; the
    others are told once.
    """

    STABLE_REVOKED = "stable_revoked"
    REVOKED = "revoked"
    QUARANTINE = "quarantine"
    VERIFICATION_FAILED = "verification_failed"
    ABORT = "abort"
    ROLLBACK = "rollback"
    CANARY_UNHEALTHY = "canary_unhealthy"
    START = "start"
    VERIFIED = "verified"
    CANARY_AWAITED = "canary_awaited"
    STABLE_UNHEALTHY = "stable_unhealthy"
    PAUSED = "paused"


class Outcome(StrEnum):
    """What became of an observation."""

    STARTED = "started"
    VERIFIED = "verified"
    HELD = "held"
    ADVANCED = "advanced"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    QUARANTINED = "quarantined"
    ABORTED = "aborted"
    IGNORED = "ignored"


class ActionKind(StrEnum):
    VERIFY = "verify"
    SET_WEIGHTS = "set_weights"
    PROMOTE_ALIAS = "promote_alias"
    RESTORE_ALIAS = "restore_alias"
    DRAIN = "drain"
    ALERT = "alert"


@dataclass(frozen=True, slots=True)
class Observation:
    """What one source saw.

    Attributes:
        source: Who saw it: a gateway replica, the controller.
        sequence: That source's count; one that is not higher than the last is a duplicate.
        deltas: By variant, ``stable`` and ``canary``; others are not judged.
        signals: What else is so.
        reason: Why, in the words of whoever sent a signal; part of the explanation.
        obstacles: What cannot be observed at present, in sentences: no step is passed meanwhile.
    """

    source: str
    sequence: int
    deltas: Mapping[str, Delta] = field(default_factory=dict)
    signals: frozenset[Signal] = frozenset()
    reason: str = ""
    obstacles: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.source}/{self.sequence}"


@dataclass(frozen=True, slots=True)
class Action:
    """Something to do; carried out at least once, so it must not matter if it is done twice.

    Attributes:
        id: Unique: rollout, number of the transition, position.
        kind: What.
        variant: Which variant is verified, drained, or whose version an alias is to mean.
        weights: Percent by variant, as decimal text; a variant that is not there gets nothing.
        alias: Which alias.
        text: Of an alert.
    """

    id: str
    kind: ActionKind
    variant: str = ""
    weights: tuple[tuple[str, str], ...] = ()
    alias: str = ""
    text: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON; leaves out what is empty."""
        found: dict[str, Any] = {"id": self.id, "kind": self.kind.value}
        if self.variant:
            found["variant"] = self.variant
        if self.kind is ActionKind.SET_WEIGHTS:
            found["weights"] = dict(self.weights)
        if self.alias:
            found["alias"] = self.alias
        if self.text:
            found["text"] = self.text
        return found


@dataclass(frozen=True, slots=True)
class RolloutDecision:
    """What was decided on an observation, and why.

    Attributes:
        outcome: What became of it.
        phase: Afterwards.
        step: Afterwards; 0-based.
        percent: The canary's share afterwards, decimal text.
        at_ms: The caller's time.
        observation: The observation's id.
        explanation: Sentences with the numbers.
        verdicts: One of each test, as JSON; with changes only.
        basis: What an end rests on (``Judge.basis``); None before.
    """

    outcome: Outcome
    phase: Phase
    step: int
    percent: str
    at_ms: int
    observation: str
    explanation: tuple[str, ...]
    verdicts: tuple[Mapping[str, Any], ...] = ()
    basis: Mapping[str, Any] | None = None

    @property
    def changes(self) -> bool:
        """Whether phase or step changed: what belongs on the ledger."""
        return self.outcome not in (Outcome.HELD, Outcome.IGNORED)

    def explain(self) -> str:
        """All sentences, for ``chancery deploy why``."""
        return " ".join(self.explanation)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without floats."""
        return {
            "outcome": self.outcome.value,
            "phase": self.phase.value,
            "step": self.step,
            "percent": self.percent,
            "atMs": self.at_ms,
            "observation": self.observation,
            "explanation": list(self.explanation),
            "verdicts": [dict(verdict) for verdict in self.verdicts],
            **({} if self.basis is None else {"basis": dict(self.basis)}),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> RolloutDecision:
        """Inverse of ``to_dict``.

        Raises:
            ValueError: an outcome or phase that does not exist.
            KeyError: a part is missing.
        """
        return cls(
            outcome=Outcome(document["outcome"]),
            phase=Phase(document["phase"]),
            step=document["step"],
            percent=document["percent"],
            at_ms=document["atMs"],
            observation=document["observation"],
            explanation=tuple(document["explanation"]),
            verdicts=tuple(dict(verdict) for verdict in document["verdicts"]),
            basis=None if (basis := document.get("basis")) is None else dict(basis),
        )
