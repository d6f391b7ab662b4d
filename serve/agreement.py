"""Whether two answers to one request say the same, and how often they did.

Answers agree when their predictions are equal, numbers up to ``RELATIVE`` of their size: two builds
of one model differ in the last digits. What is too large to be looked into while others wait is
not compared.

Example::

    agree(b'{"predictions": [0.5]}', b'{"predictions": [0.50000001]}')    # True
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

__all__ = ["RELATIVE", "Agreement", "agree"]

RELATIVE = 1e-6
_ABSOLUTE = 1e-9
_LARGEST = 64 << 10  # bytes of an answer that is looked into
_MOST = 4096  # values that are compared one by one
_DEEPEST = 64


@dataclass(frozen=True, slots=True)
class Agreement:
    """Copies of requests at a shadow, by what came of them.

    Attributes:
        same: Its answer agreed with stable's.
        different: It did not.
        uncompared: One of the two was an error, too large, or not stable's.
        dropped: Not sent, because too many were on their way.

    Raises:
        ValueError: a negative count.
    """

    same: int = 0
    different: int = 0
    uncompared: int = 0
    dropped: int = 0

    def __post_init__(self) -> None:
        if min(self.same, self.different, self.uncompared, self.dropped) < 0:
            raise ValueError("a negative count of copies")

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.same + other.same,
            self.different + other.different,
            self.uncompared + other.uncompared,
            self.dropped + other.dropped,
        )

    @property
    def compared(self) -> int:
        """Copies whose answers were compared."""
        return self.same + self.different

    def to_dict(self) -> dict[str, int]:
        """For JSON."""
        return {
            "same": self.same,
            "different": self.different,
            "uncompared": self.uncompared,
            "dropped": self.dropped,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Agreement:
        """Inverse of ``to_dict``."""
        return cls(
            int(document["same"]),
            int(document["different"]),
            int(document["uncompared"]),
            int(document["dropped"]),
        )


def agree(one: bytes, other: bytes) -> bool | None:
    """Whether two good answers' bodies say the same; None: too large to be compared."""
    if one == other:
        return True
    if len(one) > _LARGEST or len(other) > _LARGEST:
        return None
    return _equal(_read(one), _read(other), [_MOST])


def _read(body: bytes) -> Any:
    try:
        found = orjson.loads(body)
    except ValueError:
        try:
            found = json.loads(body)  # NaN and Infinity, which MLflow writes
        except ValueError:
            return body
    return found.get("predictions", found) if isinstance(found, dict) else found


def _equal(one: Any, other: Any, left: list[int], depth: int = 0) -> bool | None:
    left[0] -= 1
    if left[0] < 0 or depth > _DEEPEST:
        return None
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        both_nan = one != one and other != other
        return both_nan or math.isclose(one, other, rel_tol=RELATIVE, abs_tol=_ABSOLUTE)
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return False
        pairs = [(part, other[name]) for name, part in one.items()]
    elif isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return False
        pairs = list(zip(one, other, strict=True))
    else:
        return bool(one == other)
    for first, second in pairs:
        if (found := _equal(first, second, left, depth + 1)) is not True:
            return found
    return True
