"""Money bet against a null hypothesis: an e-process that also notices a late change.

A test martingale is the wealth of a gambler who bets against the null at fair odds: under the null
the wealth ever exceeds 1/α with probability at most α (Ville's inequality), however often one
looks. Here the money is spread over several bets, each of which multiplies its stake by its own
e-value block after block. A part stays in reserve and is handed out to all bets bit by bit: a
canary that was healthy for an hour has ruined the old stakes, but not those made since, so a leak
or a slow decay is found without waiting for an hour's evidence to be undone. Any rule that
distributes money by what is past keeps the level.

Sources: V. Vovk and R. Wang, "E-values: calibration, combination and applications", Annals of
Statistics 49(3), 2021 (averages); J. Shin, A. Ramdas and A. Rinaldo, "E-detectors", New England
Journal of Statistics in Data Science 2(2), 2024 (bets that start at every time).

Example::

    wealth = Wealth.start(bets=2)
    wealth = wealth.played([0.3, -0.1])    # logarithms of the two bets' e-values
    wealth.log_total                       # roll back when it reaches ln(1/α)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Wealth", "log_sum"]

_RESERVE = 0.2
_HAND_OUT = 100  # before block t, 1/(t + 100) of the reserve goes to the bets


def log_sum(logs: Iterable[float]) -> float:
    """ln(Σ exp(x)), without overflow; -inf for nothing."""
    values = list(logs)
    largest = max(values, default=-math.inf)
    if not math.isfinite(largest):
        return largest
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))


@dataclass(frozen=True, slots=True)
class Wealth:
    """Stakes and reserve, as natural logarithms; one unit at the start.

    Attributes:
        stakes: Of each bet.
        reserve: Not yet handed out.
        blocks: Blocks played.
    """

    stakes: tuple[float, ...]
    reserve: float = math.log(_RESERVE)
    blocks: int = 0

    @classmethod
    def start(cls, bets: int) -> Wealth:
        """Nothing played yet."""
        return cls((math.log((1 - _RESERVE) / bets),) * bets)

    @property
    def log_total(self) -> float:
        """Natural logarithm of the e-value so far."""
        return log_sum((*self.stakes, self.reserve))

    def played(self, factors: Sequence[float]) -> Wealth:
        """After a block whose e-values (logarithms, one a bet) are ``factors``."""
        share = 1 / (self.blocks + 1 + _HAND_OUT)
        alms = self.reserve + math.log(share / len(self.stakes))
        stakes = []
        for stake, factor in zip(self.stakes, factors, strict=True):
            large, small = (stake, alms) if stake > alms else (alms, stake)
            stakes.append(factor + large + math.log1p(math.exp(small - large)))
        return Wealth(tuple(stakes), self.reserve + math.log1p(-share), self.blocks + 1)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers as their shortest exact decimal text."""
        return {
            "stakes": [repr(stake) for stake in self.stakes],
            "reserve": repr(self.reserve),
            "blocks": self.blocks,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Wealth:
        """Exact inverse of ``to_dict``."""
        return cls(
            tuple(float(stake) for stake in document["stakes"]),
            float(document["reserve"]),
            int(document["blocks"]),
        )
