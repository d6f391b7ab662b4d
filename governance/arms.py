"""What answers on a route beside stable and canary: an experiment's arms, and a shadow.

*Arms* are versions of the route's registered model with fixed shares of those clients that have a
sticky key. Which clients an arm has is told by *stretches*: the line from 0 to ``WHOLE`` is cut
into pieces, each an arm's, and a key has its place on it. When shares change, an arm that shrinks
gives pieces away and one that grows takes them, so that nobody else moves.

A *shadow* is a version that gets copies of requests and whose answers nobody sees.

Orders are what somebody asks for; records are what is kept, as JSON text in the deployment's row.

Example::

    first = stretched({"a": "50", "b": "30", "c": "20"})
    stretched({"a": "60", "b": "30", "c": "10"}, first)    # half of c's go to a, nobody else moves
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from governance.errors import RefusedError

__all__ = [
    "RESERVED_NAMES",
    "WHOLE",
    "ArmOrder",
    "ArmRecord",
    "ExperimentOrder",
    "ExperimentRecord",
    "ServedVersion",
    "ShadowOrder",
    "ShadowRecord",
    "Stretches",
    "shares",
    "stretched",
]

WHOLE = 1_000_000
"""Parts of the line: a ten-thousandth of a percent each."""

RESERVED_NAMES = frozenset({"stable", "canary", "shadow"})
"""Names of variants that an arm cannot have."""

Stretches = tuple[tuple[str, int], ...]
"""Pieces of the line from its beginning: whose, and how many parts; an arm may have several."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_STICKY = re.compile(r"(header|cookie|field):[A-Za-z0-9_.-]{1,128}")
_MOST_ARMS = 20


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """A version of the deployment's model, this incarnation of it, with these bytes."""

    version: int
    version_uid: str
    root_digest: str

    def to_dict(self) -> dict[str, Any]:
        """As records and events tell it."""
        return {
            "version": self.version,
            "versionUid": self.version_uid,
            "rootDigest": self.root_digest,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ServedVersion:
        """Inverse of ``to_dict``."""
        return cls(document["version"], document["versionUid"], document["rootDigest"])


@dataclass(frozen=True, slots=True)
class ArmOrder:
    """An arm that somebody wants: a version by URI, and its share in percent, as text."""

    name: str
    model: str
    weight: str
    timeout_seconds: str = "60"
    max_concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class ExperimentOrder:
    """An experiment that somebody wants.

    Attributes:
        name: What its clients are dealt out by: the same name deals the same way.
        sticky: Where the key is: ``header:NAME``, ``cookie:NAME`` or ``field:NAME``.
        arms: The first is the one that others are compared with.

    Raises:
        RefusedError: it cannot be; says what to correct.
    """

    name: str
    sticky: str
    arms: tuple[ArmOrder, ...]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise RefusedError(
                f"{self.name[:128]!r} cannot be an experiment's name",
                "begin with a small letter; use small letters, digits and '-'",
            )
        if not _STICKY.fullmatch(self.sticky):
            raise RefusedError(
                f"{self.sticky[:160]!r} does not say where the key is",
                "write 'header:NAME', 'cookie:NAME' or 'field:NAME'",
            )
        if not 2 <= len(self.arms) <= _MOST_ARMS:
            raise RefusedError(
                f"an experiment of {len(self.arms)} arms cannot be",
                f"name 2 to {_MOST_ARMS} arms",
            )
        names = [arm.name for arm in self.arms]
        for name in names:
            if not _NAME.fullmatch(name) or name in RESERVED_NAMES or names.count(name) > 1:
                raise RefusedError(
                    f"{name[:128]!r} cannot be the name of an arm, or is that of two",
                    "use small letters, digits and '-', each name once, and none of "
                    + ", ".join(sorted(RESERVED_NAMES)),
                )
        for arm in self.arms:
            _number(arm.timeout_seconds, f"the time limit of {arm.name}", 3600)
            if arm.max_concurrency is not None and not 1 <= arm.max_concurrency <= 100_000:
                raise RefusedError(
                    f"{arm.max_concurrency} requests at a time cannot be the limit of {arm.name}",
                    "use 1 to 100000",
                )
        shares(self.weights)

    @property
    def weights(self) -> dict[str, str]:
        """Share in percent by arm."""
        return {arm.name: arm.weight for arm in self.arms}


@dataclass(frozen=True, slots=True)
class ShadowOrder:
    """A shadow that somebody wants.

    Attributes:
        model: The version, by URI.
        percent: Part of the requests that is copied, as text.
        max_in_flight: Copies at a time at each gateway; more are dropped and counted.
        timeout_seconds: After which a copy is given up, as text.
        compare: Whether its answers are compared with stable's.

    Raises:
        RefusedError: it cannot be; says what to correct.
    """

    model: str
    percent: str = "100"
    max_in_flight: int = 32
    timeout_seconds: str = "10"
    compare: bool = True

    def __post_init__(self) -> None:
        _number(self.percent, "the part that is copied", 100)
        _number(self.timeout_seconds, "the time limit of a copy", 3600)
        if not 1 <= self.max_in_flight <= 10_000:
            raise RefusedError(f"{self.max_in_flight} copies at a time cannot be", "use 1 to 10000")


@dataclass(frozen=True, slots=True)
class ArmRecord:
    """An arm that runs."""

    name: str
    served: ServedVersion
    weight: str
    timeout_seconds: str = "60"
    max_concurrency: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As records and events tell it."""
        return {
            "name": self.name,
            **self.served.to_dict(),
            "weight": self.weight,
            "timeoutSeconds": self.timeout_seconds,
            "maxConcurrency": self.max_concurrency,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ArmRecord:
        """Inverse of ``to_dict``."""
        return cls(
            document["name"],
            ServedVersion.from_dict(document),
            document["weight"],
            document["timeoutSeconds"],
            document["maxConcurrency"],
        )


@dataclass(frozen=True, slots=True)
class ExperimentRecord:
    """An experiment that runs on a route.

    Attributes:
        id: Its id.
        name: Its name.
        sticky: Where the key is.
        arms: In order; the first is the one that others are compared with.
        stretches: Whose which piece of the line is.
        begun_by: Who began it.
        begun_ms: When.
        changes: How often shares were changed.
    """

    id: str
    name: str
    sticky: str
    arms: tuple[ArmRecord, ...]
    stretches: Stretches
    begun_by: str
    begun_ms: int
    changes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As the deployment tells it."""
        return {
            "experimentId": self.id,
            "name": self.name,
            "sticky": self.sticky,
            "arms": [arm.to_dict() for arm in self.arms],
            "stretches": [list(piece) for piece in self.stretches],
            "begunBy": self.begun_by,
            "begunMs": self.begun_ms,
            "changes": self.changes,
        }

    def to_json(self) -> str:
        """What is kept; the same text for the same experiment."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ExperimentRecord:
        """Inverse of ``to_json``."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ExperimentRecord:
        """Inverse of ``to_dict``."""
        return cls(
            document["experimentId"],
            document["name"],
            document["sticky"],
            tuple(ArmRecord.from_dict(arm) for arm in document["arms"]),
            tuple((name, parts) for name, parts in document["stretches"]),
            document["begunBy"],
            document["begunMs"],
            document["changes"],
        )


@dataclass(frozen=True, slots=True)
class ShadowRecord:
    """A shadow on a route; see ``ShadowOrder``."""

    id: str
    served: ServedVersion
    percent: str
    max_in_flight: int
    timeout_seconds: str
    compare: bool
    begun_by: str
    begun_ms: int

    def to_dict(self) -> dict[str, Any]:
        """As the deployment and its events tell it."""
        return {
            "shadowId": self.id,
            **self.served.to_dict(),
            "percent": self.percent,
            "maxInFlight": self.max_in_flight,
            "timeoutSeconds": self.timeout_seconds,
            "compare": self.compare,
            "begunBy": self.begun_by,
            "begunMs": self.begun_ms,
        }

    def to_json(self) -> str:
        """What is kept; the same text for the same shadow."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ShadowRecord:
        """Inverse of ``to_json``."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ShadowRecord:
        """Inverse of ``to_dict``."""
        return cls(
            document["shadowId"],
            ServedVersion.from_dict(document),
            document["percent"],
            document["maxInFlight"],
            document["timeoutSeconds"],
            document["compare"],
            document["begunBy"],
            document["begunMs"],
        )


def shares(weights: Mapping[str, str]) -> dict[str, int]:
    """Parts of the line by arm, from percents as text.

    Raises:
        RefusedError: no percents, or they do not add up to 100; says the sum.
    """
    found = {name: _number(text, f"the weight of {name}", 100) for name, text in weights.items()}
    total = sum(found.values(), Decimal())
    if abs(total - 100) > Decimal("0.000001"):
        listed = " + ".join(f"{weight:f}" for weight in found.values())
        raise RefusedError(
            f"the weights add up to {total:f} ({listed}), not to 100",
            "correct them so that they add up to 100",
        )
    parts = {name: int(weight * (WHOLE // 100)) for name, weight in found.items()}
    if not all(parts.values()):
        raise RefusedError("a share below 0.0001 percent cannot be", "give each arm more")
    left = WHOLE - sum(parts.values())  # what rounding down left: a part each, in order
    for name in list(parts)[:left]:
        parts[name] += 1
    return parts


def stretched(weights: Mapping[str, str], before: Stretches = ()) -> Stretches:
    """The line cut by shares, moving as few clients as possible from where they were ``before``.

    Raises:
        RefusedError: as ``shares``.
    """
    wanted = shares(weights)
    if not before:
        return tuple(wanted.items())
    surplus = dict.fromkeys(wanted, 0)
    for name, parts in before:
        surplus[name] += parts
    surplus = {name: had - wanted[name] for name, had in surplus.items()}
    pieces: list[tuple[str, int]] = []  # from the end of the line; "" is nobody's
    for name, parts in reversed(before):
        given = min(max(surplus[name], 0), parts)
        surplus[name] -= given
        pieces += [("", given), (name, parts - given)]
    found: list[tuple[str, int]] = []
    for name, parts in reversed(pieces):
        if name:
            found.append((name, parts))
            continue
        for taker, lack in surplus.items():
            taken = min(max(-lack, 0), parts)
            surplus[taker] += taken
            parts -= taken
            found.append((taker, taken))
    return _joined(found)


def _joined(pieces: list[tuple[str, int]]) -> Stretches:
    found: list[tuple[str, int]] = []
    for name, parts in pieces:
        if not parts:
            continue
        if found and found[-1][0] == name:
            found[-1] = (name, found[-1][1] + parts)
        else:
            found.append((name, parts))
    return tuple(found)


def _number(text: str, what: str, most: int) -> Decimal:
    try:
        found = Decimal(text)
    except InvalidOperation:
        found = Decimal("nan")
    if not (found.is_finite() and 0 < found <= most):
        raise RefusedError(
            f"{what} cannot be {text[:64]!r}", f"use a number above 0, and {most} at most"
        )
    return found
