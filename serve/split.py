"""Which variant answers a request.

*Canary.* A key's place on the line from 0 to 1 is ``crc32(salt + key) / 2**32``; every variant but
the last owns a stretch, in the order given, and the last (stable) owns the rest. The canary owns
[0, w): growing w moves clients to it and none away. With several canaries, a client of the first
never leaves it, and none goes back to stable, while weights only grow.

*Experiments.* CRC-32 is linear: the places of a key under two salts of one length differ by a
constant, so two experiments of equal arms would have the very same groups. `ArmSplit` hashes with
BLAKE2b, keyed by the experiment's name: groups of different experiments are independent. Arms own
stretches that move as little as possible when shares change (``governance.arms``).

Example::

    split = Split((("canary", 5.0), ("stable", 95.0)), salt="fraud/r1")
    split.assign("user-17").variant
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from itertools import accumulate
from zlib import crc32

from governance.arms import WHOLE, Stretches
from governance.errors import ConfigurationError

__all__ = ["ArmSplit", "Assignment", "AssignmentReason", "Split", "place_of"]


class AssignmentReason(StrEnum):
    """Why a request went where it went.

    ``UNKEYED``: without a key nobody takes part in an experiment. ``AWAY``: the key's arm does not
    answer now. Stable answered both.
    """

    STICKY = "sticky"
    OVERRIDE = "override"
    RANDOM = "random"
    UNKEYED = "unkeyed"
    AWAY = "away"


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where a request goes.

    Attributes:
        variant: Name of the variant or arm.
        reason: Why.
        place: Its place on the line from 0 to 1; the same key has the same place.
        experiment: Name of the experiment that dealt it; empty: none did.
        arm: The arm that the key belongs to, whoever answered.
        key: Hex of the key's hash under the experiment's name; never the key.
    """

    variant: str
    reason: AssignmentReason
    place: float
    experiment: str = ""
    arm: str = ""
    key: str = ""


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


class ArmSplit:
    """The arms of an experiment: whose clients are whose (``governance.arms.Stretches``).

    Args:
        experiment: Its name; groups of experiments of different names are independent.
        stretches: Whose which piece of the line is.
        open_arms: Arms that answer; clients of another are answered by ``fallback`` meanwhile, and
            so are requests without a key: who cannot be told apart takes no part.
        fallback: Whoever answers then.
    """

    def __init__(
        self,
        experiment: str,
        stretches: Stretches,
        open_arms: Collection[str],
        fallback: str = "stable",
    ) -> None:
        self._experiment = experiment
        self._person = blake2b(experiment.encode(), digest_size=16).digest()
        self._arms = [name for name, _ in stretches]
        self._edges = [edge / WHOLE for edge in accumulate(parts for _, parts in stretches)]
        self._open = frozenset(open_arms)
        self._fallback = fallback

    def assign(
        self,
        key: str | None,
        *,
        override: str | None = None,
        draw: Callable[[], float] = random.random,
    ) -> Assignment:
        """The arm of a request: the same whenever and wherever the same key is asked.

        Args:
            key: What keeps a client with its arm.
            override: A tester's wish; granted where it names an arm that is open.
            draw: A number in [0, 1), for the place of requests without a key.
        """
        if override in self._open or override == self._fallback:
            return Assignment(override, AssignmentReason.OVERRIDE, draw(), self._experiment)
        if not key:
            return Assignment(self._fallback, AssignmentReason.UNKEYED, draw(), self._experiment)
        hashed = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, key=self._person)
        place = (int.from_bytes(hashed.digest(), "big") >> 11) / 2**53
        arm = self._arms[min(bisect_right(self._edges, place), len(self._arms) - 1)]
        answers, reason = arm, AssignmentReason.STICKY
        if arm not in self._open:
            answers, reason = self._fallback, AssignmentReason.AWAY
        return Assignment(answers, reason, place, self._experiment, arm, hashed.hexdigest())


def _owner(weights: tuple[tuple[str, float], ...], place: float) -> str:
    edge, owner = 0.0, ""
    for name, share in weights:
        if not share:
            continue
        edge, owner = edge + share / 100, name
        if place < edge:
            break
    return owner
