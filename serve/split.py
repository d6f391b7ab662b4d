"""Which variant answers a request.

*Canary.* A key's place on the line from 0 to 1 is ``crc32(salt + key) / 2**32``; every variant but
the last owns a stretch, in the order given, and the last (stable) owns the rest. The canary owns
[0, w): growing w moves clients to it and none away. With several canaries, a client of the first
never leaves it, and none goes back to stable, while weights only grow.

*Experiments.* CRC-32 is linear: the places of a key under two salts of one length differ by a
constant, so two experiments of equal arms would have the very same groups. ``assign_arm`` hashes
with BLAKE2b, keyed by the experiment's name: groups of different experiments are independent.

Example::

    split = Split((("canary", 5.0), ("stable", 95.0)), salt="fraud/r1")
    split.assign("user-17").variant
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from zlib import crc32

from governance.errors import ConfigurationError
from serve.config import ABTestConfig

__all__ = ["Assignment", "AssignmentReason", "Split", "assign_arm", "place_of"]


class AssignmentReason(StrEnum):
    """Why a request went where it went."""

    STICKY = "sticky"
    OVERRIDE = "override"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where a request goes.

    Attributes:
        variant: Name of the variant or arm.
        reason: Why.
        place: Its place on the line from 0 to 1; the same key has the same place.
    """

    variant: str
    reason: AssignmentReason
    place: float

    def to_dict(self) -> dict[str, str]:
        """For the log of assignments."""
        return {
            "variant": self.variant,
            "reason": self.reason.value,
            "place": f"{self.place:.9f}",
        }


def place_of(salt: str, key: str) -> float:
    """A key's place in [0, 1)."""
    return crc32((salt + key).encode("utf-8", "surrogatepass")) / 2**32


@dataclass(frozen=True, slots=True)
class Split:
    """Variants and their shares in percent; stable is the last.

    Raises:
        ConfigurationError: a share is negative, a name appears twice, or they do not add up.
    """

    weights: tuple[tuple[str, float], ...]
    salt: str = ""

    def __post_init__(self) -> None:
        names = [name for name, _ in self.weights]
        if len(set(names)) != len(names) or not names:
            raise ConfigurationError(
                f"weights: the variants {names} are not distinct or there are none",
                "name each variant once",
            )
        for name, share in self.weights:
            if not 0 <= share <= 100:
                raise ConfigurationError(
                    f"weights.{name}: {share:g} is not a percentage", "use 0 to 100"
                )
        total = sum(share for _, share in self.weights)
        if abs(total - 100) > 1e-6:
            raise ConfigurationError(
                f"weights: they add up to {total:g}, not to 100",
                "correct them so that they add up to 100",
            )

    def assign(
        self,
        key: str | None,
        *,
        override: str | None = None,
        draw: Callable[[], float] = random.random,
    ) -> Assignment:
        """The variant of a request.

        Args:
            key: What keeps a client with its variant; None or empty: each request is drawn.
            override: A tester's wish (from a header or cookie); one that names no variant is
                ignored, one that names a variant without traffic is granted.
            draw: A number in [0, 1).
        """
        place = place_of(self.salt, key) if key else draw()
        if override and any(name == override for name, _ in self.weights):
            return Assignment(override, AssignmentReason.OVERRIDE, place)
        reason = AssignmentReason.STICKY if key else AssignmentReason.RANDOM
        return Assignment(_owner(self.weights, place), reason, place)


def assign_arm(experiment: ABTestConfig, key: str) -> Assignment:
    """The arm of a key: the same whenever and wherever it is asked.

    Raises:
        ValueError: the key is empty; whoever cannot be told apart takes no part in an experiment.
    """
    if not key:
        raise ValueError("an assignment needs a key")
    person = blake2b(experiment.name.encode(), digest_size=16).digest()
    hashed = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, key=person).digest()
    place = (int.from_bytes(hashed, "big") >> 11) / 2**53
    weights = tuple((arm.name, arm.weight) for arm in experiment.arms)
    return Assignment(_owner(weights, place), AssignmentReason.STICKY, place)


def _owner(weights: tuple[tuple[str, float], ...], place: float) -> str:
    edge, owner = 0.0, ""
    for name, share in weights:
        if not share:
            continue
        edge, owner = edge + share / 100, name
        if place < edge:
            break
    return owner
