"""Errors on labels that came: a statistic that may be looked at after every batch.

Each labelled answer falls into an *outcome*, in order from best to worst: right or wrong; for a
regression, bins between quantiles of the reference's absolute errors (squared errors have the same
bins). The last outcome also takes answers that are no number.

Null hypothesis: errors are no larger than the reference's. The bets are one-sided: outcome j with
score s_j (0 the best, 1 the worst) has probability p_j e^(θ s_j) / M(θ) under a bet θ > 0, with
M(θ) = Σ p_j e^(θ s_j). For m rows with outcome counts Q the e-value of a bet is
exp(θ Σ Q_j s_j - m ln M(θ)). Its mean is at most 1 for every distribution that is stochastically no
larger than p, so improvement never alarms. Bets are mixed: θ is half-normal with variance
1/(K v), v the variance of s under p, over K = 30, 200, 1000: from large changes that 30 rows show
to small ones that take 1000. Before each batch R becomes (1 + R) · e: a Shiryaev-Roberts
e-detector.
With independent rows its mean number of batches to a false alarm at R ≥ A is at least A.

The reference is known from finitely many rows. Shares of "worse than bin j" are therefore taken at
their upper 95 % Wilson limits: a reference rate that was luckily low does not alarm for ever.

Sources: J. Shin, A. Ramdas and A. Rinaldo, "E-detectors", New England Journal of Statistics in Data
Science 2(2), 2024, section 2 (R and its run length) and section 3 (mixtures); E. Wilson, JASA 22,
1927.

Example::

    reference = ErrorReference.of_classes(predictions, labels)
    rate = ErrorRate().after(reference, counts)     # counts: rows an outcome, e.g. (190, 10)
    rate.alarms(1000)
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.intervals import wilson
from governance.errors import ConfigurationError

__all__ = ["ErrorRate", "ErrorReference"]

_ROWS = (30, 200, 1000)  # K: how many rows a change should take to show
_BETS = np.geomspace(0.02, 8.0, 48)  # θ
_LEVEL = 0.95
_FEWEST = 100


@dataclass(frozen=True, slots=True)
class ErrorReference:
    """How large errors were on held-out rows.

    Attributes:
        counts: Reference rows in each outcome, best to worst.
        edges: Of absolute errors, increasing, in the unit of the label; outcome j is an error of
            at most edge j. Empty: outcomes are right and wrong.
        mean: The error rate; for a regression the mean squared error.
    """

    counts: tuple[int, ...]
    edges: tuple[float, ...] = ()
    mean: float = 0.0

    def __post_init__(self) -> None:
        wanted = len(self.edges) + 1 if self.edges else 2
        rising = all(low < high for low, high in pairwise(self.edges))
        finite = all(math.isfinite(edge) and edge >= 0 for edge in self.edges)
        if len(self.counts) != wanted or min(self.counts) < 0 or not (rising and finite):
            raise ConfigurationError(
                "the error reference's counts and edges do not fit together",
                "fit the profile again; it was changed by hand or cut short",
            )
        if sum(self.counts) < _FEWEST:
            raise ConfigurationError(
                f"an error reference of {sum(self.counts)} labelled rows; {_FEWEST} are needed",
                "give more held-out rows with labels",
            )

    @property
    def outcomes(self) -> int:
        """How many bins."""
        return len(self.counts)

    @classmethod
    def of_classes(cls, predictions: Sequence[Any], labels: Sequence[Any]) -> ErrorReference:
        """From answers of a classifier.

        Raises:
            ConfigurationError: fewer than 100 rows, or not as many labels as answers.
        """
        _same_length(predictions, labels)
        wrong = sum(map(_differ, _listed(predictions), _listed(labels)))
        return cls((len(predictions) - wrong, wrong), (), wrong / max(1, len(predictions)))

    @classmethod
    def of_numbers(
        cls, predictions: Sequence[float], labels: Sequence[float], bins: int = 10
    ) -> ErrorReference:
        """From answers of a regression; ``bins`` outcomes, fewer where errors are tied.

        Raises:
            ConfigurationError: as above, a number that is not finite, or errors all the same.
        """
        _same_length(predictions, labels)
        errors = np.abs(np.asarray(predictions, float) - np.asarray(labels, float))
        if not np.isfinite(errors).all():
            raise ConfigurationError(
                f"{int((~np.isfinite(errors)).sum())} of {len(errors)} reference errors are no "
                "numbers",
                "leave rows without label or prediction out of the reference",
            )
        if len(errors) < _FEWEST:
            return cls((len(errors), 0))  # which refuses it
        edges = np.unique(np.quantile(errors, np.arange(1, bins) / bins, method="higher"))
        edges = edges[edges < errors.max()]
        if not len(edges):
            raise ConfigurationError(
                "all reference errors are the same: there are no quantiles to compare with",
                "check that labels are not copies of the predictions",
            )
        counts = np.bincount(np.searchsorted(edges, errors), minlength=len(edges) + 1)
        return cls(
            tuple(int(count) for count in counts),
            tuple(float(edge) for edge in edges),
            float(np.mean(errors**2)),
        )

    def outcome(self, prediction: Any, label: Any) -> int:
        """Where one answer counts; a label must be a usable one (see ``drift.labels``)."""
        if not self.edges:
            return int(_differ(prediction, label))
        error = abs(_number(prediction) - _number(label))
        return bisect_left(self.edges, error) if math.isfinite(error) else len(self.edges)

    def squared(self, prediction: Any, label: Any) -> float:
        """What one answer adds to the sum whose mean is compared with ``mean``."""
        if not self.edges:
            return float(_differ(prediction, label))
        error = _number(prediction) - _number(label)
        return error * error if math.isfinite(error) else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON: fractions as their shortest exact decimal text."""
        return {
            "counts": list(self.counts),
            "edges": [repr(edge) for edge in self.edges],
            "mean": repr(self.mean),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ErrorReference:
        """Exact inverse of ``to_dict``.

        Raises:
            ConfigurationError: counts and edges do not fit together.
        """
        return cls(
            tuple(int(count) for count in document["counts"]),
            tuple(float(edge) for edge in document["edges"]),
            float(document["mean"]),
        )


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """The statistic, and what it has seen since it began.

    Attributes:
        log_r: Natural logarithm of R.
        batches: With any rows in them.
        rows: In them.
        worst: Rows in the worst outcome; of a classifier: errors.
    """

    log_r: float = -math.inf
    batches: int = 0
    rows: int = 0
    worst: int = 0

    def after(self, reference: ErrorReference, counts: Sequence[int]) -> ErrorRate:
        """After a batch; an empty one changes nothing.

        Raises:
            ConfigurationError: counts are not of the reference's outcomes.
        """
        if len(counts) != reference.outcomes or min(counts) < 0:
            raise ConfigurationError(
                f"counts of {len(counts)} outcomes for a reference of {reference.outcomes}",
                "count with the outcomes of the same profile",
            )
        rows = int(sum(counts))
        if not rows:
            return self
        return ErrorRate(
            float(np.logaddexp(0.0, self.log_r)) + log_e_value(reference, counts),
            self.batches + 1,
            self.rows + rows,
            self.worst + int(counts[-1]),
        )

    def alarms(self, run_length: float = 1000.0) -> bool:
        """Whether R reached the wanted mean number of batches to a false alarm."""
        return self.log_r >= math.log(run_length)

    def reset(self) -> ErrorRate:
        """After an alarm was dealt with: R begins again, counts go on."""
        return ErrorRate(-math.inf, self.batches, self.rows, self.worst)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: fractions as their shortest exact decimal text."""
        return {
            "log_r": repr(self.log_r),
            "batches": self.batches,
            "rows": self.rows,
            "worst": self.worst,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ErrorRate:
        """Exact inverse of ``to_dict``."""
        return cls(
            float(document["log_r"]),
            int(document["batches"]),
            int(document["rows"]),
            int(document["worst"]),
        )


def log_e_value(reference: ErrorReference, counts: Sequence[int]) -> float:
    """Natural logarithm of a batch's mixed e-value against "errors are no larger"."""
    scores, log_weights, log_m = _bets(reference)
    logs = log_weights + _BETS * float(np.dot(counts, scores)) - sum(counts) * log_m
    largest = float(logs.max())
    return largest + math.log(float(np.exp(logs - largest).sum()))


@lru_cache(maxsize=1024)
def _bets(
    reference: ErrorReference,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Scores (outcomes,), logarithms of the bets' weights and of M(θ), both (bets,)."""
    total = sum(reference.counts)
    worse = np.cumsum(reference.counts[::-1])[::-1]  # rows in outcome j or a worse one
    tail = [wilson(int(count), total, _LEVEL).high for count in worse[1:]]
    p = -np.diff([1.0, *tail, 0.0])
    scores = np.arange(reference.outcomes) / (reference.outcomes - 1)
    variance = float(np.dot(p, scores**2) - np.dot(p, scores) ** 2)
    weights = np.zeros_like(_BETS)
    for rows in _ROWS:
        # The bets are spaced evenly in ln θ, so each stands for a width in proportion to θ.
        density = _BETS * np.exp(-(_BETS**2) * rows * max(variance, 1e-12) / 2)
        weights += density / density.sum() / len(_ROWS)
    log_m = np.log(np.exp(np.outer(_BETS, scores)) @ p)
    return scores, np.log(weights + 1e-300), log_m


def _differ(prediction: Any, label: Any) -> bool:
    try:
        return not bool(prediction == label)
    except (TypeError, ValueError):  # arrays and other things that are no class
        return True


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _listed(values: Any) -> list[Any]:
    return list(values.tolist() if hasattr(values, "tolist") else values)


def _same_length(predictions: Sequence[Any], labels: Sequence[Any]) -> None:
    if len(predictions) != len(labels):
        raise ConfigurationError(
            f"{len(predictions)} predictions and {len(labels)} labels",
            "give a label for every prediction of the reference",
        )
