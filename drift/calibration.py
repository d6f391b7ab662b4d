"""Scores made into probabilities: isotonic regression, kept as knots.

Fitted once, at training time, on rows that the model was not trained on; applied to every window
by linear interpolation. A map that does not bring held-out scores closer to the labels than they
were is not used: many models are calibrated as they are.

Sources: pool adjacent violators, R. Barlow et al., "Statistical Inference under Order
Restrictions", 1972, ch. 1; isotonic calibration, B. Zadrozny and C. Elkan, "Transforming classifier
scores into accurate multiclass probability estimates", KDD 2002, section 3; the score by which maps
are compared, G. Brier, Monthly Weather Review 78(1), 1950.

Example::

    calibration = isotonic(scores, right)     # (n,) numbers in [0, 1], (n,) zeros and ones
    calibration.apply(np.array([0.2, 0.9]))   # probabilities, (2,)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from governance.errors import ConfigurationError

__all__ = ["IDENTITY", "Calibration", "brier", "isotonic"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """A line through knots that never falls; flat beyond the first and the last.

    Attributes:
        scores: Where the knots are, increasing, in [0, 1]; none: scores are left as they are.
        probabilities: Of the knots, in [0, 1], never falling.
    """

    scores: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in pairwise(self.scores))
        never_falls = all(low <= high for low, high in pairwise(self.probabilities))
        inside = all(0 <= value <= 1 for value in (*self.scores, *self.probabilities))
        if len(self.scores) != len(self.probabilities) or not (rising and never_falls and inside):
            raise ConfigurationError(
                "a calibration's knots must be as many scores as probabilities, all in [0, 1], "
                "scores increasing and probabilities never falling",
                "fit the profile again; it was changed by hand or cut short",
            )

    @property
    def is_identity(self) -> bool:
        return not self.scores

    def apply(self, scores: Floats) -> Floats:
        """Probabilities of finite scores; same shape."""
        if not self.scores:
            return np.clip(scores, 0.0, 1.0)
        found: Floats = np.interp(scores, self.scores, self.probabilities)
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers as their shortest exact decimal text."""
        return {
            "scores": [repr(score) for score in self.scores],
            "probabilities": [repr(probability) for probability in self.probabilities],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Calibration:
        """Exact inverse of ``to_dict``.

        Raises:
            ConfigurationError: the knots are not a calibration.
        """
        return cls(
            tuple(float(score) for score in document["scores"]),
            tuple(float(probability) for probability in document["probabilities"]),
        )


IDENTITY = Calibration()
"""Scores are probabilities already."""


def isotonic(scores: Floats, outcomes: Floats) -> Calibration:
    """The never-falling map from score to share of ones with the least squared error.

    Args:
        scores: (n,), finite, in [0, 1].
        outcomes: (n,), 0 or 1.

    Raises:
        ConfigurationError: nothing to fit on.
    """
    if not len(scores) or len(scores) != len(outcomes):
        raise ConfigurationError(
            f"calibration needs a label for every score; got {len(scores)} scores and "
            f"{len(outcomes)} labels",
            "give held-out reference rows with their labels",
        )
    places, inverse = np.unique(scores, return_inverse=True)
    weights = np.bincount(inverse).astype(float)
    ones = np.bincount(inverse, weights=outcomes)
    knots_x: list[float] = []
    knots_y: list[float] = []
    for first, last, mean in _pooled(ones.tolist(), weights.tolist()):
        for place in dict.fromkeys((first, last)):  # one knot where the pool is one score
            knots_x.append(float(places[place]))
            knots_y.append(min(1.0, max(0.0, mean)))
    return Calibration(tuple(knots_x), tuple(knots_y))


def _pooled(sums: list[float], weights: list[float]) -> list[tuple[int, int, float]]:
    """Pool adjacent violators: (first place, last place, mean) of each pool, means increasing."""
    pools: list[tuple[int, int, float, float]] = []
    for place, (total, weight) in enumerate(zip(sums, weights, strict=True)):
        first = place
        # Means compared crosswise: exact for counts, where quotients would round.
        while pools and pools[-1][2] * weight >= total * pools[-1][3]:
            first, _, earlier, rows = pools.pop()
            total += earlier
            weight += rows
        pools.append((first, place, total, weight))
    return [(first, last, total / weight) for first, last, total, weight in pools]


def brier(probabilities: Floats, outcomes: Floats) -> float:
    """Mean squared distance of probabilities from what came; NaN of nothing."""
    return float(np.mean((probabilities - outcomes) ** 2)) if len(outcomes) else float("nan")
