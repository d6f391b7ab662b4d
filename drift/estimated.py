"""Accuracy without labels: what calibrated confidences say of a window (CBPE).

How sure a calibrated model is of a prediction is how often it is right; the mean over a window
estimates the window's accuracy before any label comes. It follows changes of the inputs. It cannot
see that the same inputs now mean something else (concept drift), nor inputs unlike any before. So
what comes from here is always called *estimated*, and never decides alone: the rule for quarantine
asks for an alert of other making beside it.

- Fitted at training on held-out predictions with labels, in the order of time. Calibrations are
  fitted on four fifths and tried on the fifth between; the tried rows make the reference windows.
- Windows are sums (``EstimatedSums``) and merge by addition.
- A row without a usable probability (NaN, outside [0, 1], an unknown class) is counted. The
  estimate is over the others; ``fell`` counts such a row as wrong, so it cannot blind.
- A window is compared with the reference mean at ``n`` rows: variance between reference windows
  beyond chance, plus variance of one row's confidence divided by ``n``.
- Regression has no confidence to go by: ``NotEstimated`` says so.

Sources: J. Białek et al., "Estimating Model Performance Under Covariate Shift Without Labels",
arXiv:2401.08348, 2024 (CBPE), and NannyML's documentation, "Estimation of Performance of the
Monitored Model" (confusion matrix; a calibration is used only where it helps); D. Guillory et al.,
"Predicting with Confidence on Unseen Distributions", ICCV 2021 (average confidence); S. Garg et
al., "Leveraging Unlabeled Data to Predict Out-of-Distribution Performance", ICLR 2022 (where
estimates fail). For more than two classes the confidence in the predicted class is calibrated: C.
Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2.

Example::

    estimated = fit_estimated(probabilities, predictions, labels, classes=("no", "yes"))
    sums = estimated.sums(window_probabilities, window_predictions)      # mergeable: sums + sums
    estimate = estimated.estimate(sums)
    estimate.accuracy, estimate.sd, estimated.fell(sums)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from drift.calibration import IDENTITY, Calibration, brier, isotonic
from drift.confidences import (
    Class,
    checked_classes,
    mistake,
    places_of,
    read_confidences,
)
from governance.errors import ConfigurationError

__all__ = [
    "Estimate",
    "Estimated",
    "EstimatedReference",
    "EstimatedSums",
    "NotEstimated",
    "estimated_from_dict",
    "fit_estimated",
]

Floats = NDArray[np.float64]
_FORMAT = "chancery.estimated/v1"
_FOLDS = 5
_FEWEST_WINDOWS = 10
_MINIMUM_ROWS = 200  # as for alerts


@dataclass(frozen=True, slots=True)
class EstimatedSums:
    """What a window's confidences add up to; two windows' sums merge by ``+``.

    Attributes:
        rows: With a usable probability and prediction.
        unusable: Without; in none of the sums.
        confidence: Σ c, c the probability that the prediction is right.
        square: Σ c².
        true_positives: Σ c over predictions of the positive class (two classes only).
        false_positives: Σ (1 - c) over them.
        false_negatives: Σ (1 - c) over the other predictions.
    """

    rows: int = 0
    unusable: int = 0
    confidence: float = 0.0
    square: float = 0.0
    true_positives: float = 0.0
    false_positives: float = 0.0
    false_negatives: float = 0.0

    def __add__(self, other: EstimatedSums) -> EstimatedSums:
        return EstimatedSums(
            *(getattr(self, name) + getattr(other, name) for name in self.__slots__)
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers as their shortest exact decimal text."""
        return {field.name: repr(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> EstimatedSums:
        """Exact inverse of ``to_dict``."""
        rows, unusable, *sums = (document[field.name] for field in fields(cls))
        return cls(int(rows), int(unusable), *map(float, sums))


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one window. None: nothing to estimate it from.

    Attributes:
        rows: It is over.
        unusable: Rows without a usable probability.
        accuracy: Estimated.
        sd: How far the true accuracy of these rows strays from the estimate by chance alone:
            √Σ c(1 - c) / rows. How far the calibration is off comes on top (see ``gap_sd``).
        precision, recall, f1: Estimated, of the positive class; two classes only.
    """

    rows: int
    unusable: int
    accuracy: float | None = None
    sd: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None

    label: ClassVar[str] = "estimated"
    decisive: ClassVar[bool] = False
    """Never decides alone."""


@dataclass(frozen=True, slots=True)
class EstimatedReference:
    """The estimate over reference windows, held out and in the order of time.

    Attributes:
        window: Rows of each.
        windows: How many.
        mean: Of the windows' estimated accuracies.
        sd: Of the windows' estimated accuracies.
        row_variance: Of one row's confidence.
        true_mean: Of the windows' true accuracies.
        gap_sd: Root mean square of estimated less true accuracy, over the windows.
    """

    window: int
    windows: int
    mean: float
    sd: float
    row_variance: float
    true_mean: float
    gap_sd: float

    def sd_at(self, rows: int) -> float:
        """Standard deviation of the estimate over a window of ``rows``."""
        between = max(0.0, self.sd**2 - self.row_variance / self.window)
        return math.sqrt(between + self.row_variance / max(1, rows))


@dataclass(frozen=True, slots=True)
class NotEstimated:
    """The profile's section where accuracy cannot be estimated.

    Attributes:
        reason: Why, in words.
    """

    reason: str = "a regression has no confidence to estimate its error from; it waits for labels"

    def to_dict(self) -> dict[str, Any]:
        return {"format": _FORMAT, "kind": "not estimated", "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Estimated:
    """The profile's section for estimated performance.

    Attributes:
        classes: In the order of the probabilities' columns.
        positive: The class that precision and recall are of; None for more than two classes.
        calibration: Of the positive class's probability, or of the predicted class's.
        reference: What windows are compared with.
    """

    classes: tuple[Class, ...]
    positive: Class | None
    calibration: Calibration
    reference: EstimatedReference

    def sums(self, probabilities: Any, predictions: Sequence[Any] | NDArray[Any]) -> EstimatedSums:
        """Of a block or a window.

        Args:
            probabilities: (n, classes), or (n,) of the positive class.
            predictions: (n,) predicted classes.

        Raises:
            ConfigurationError: shapes that cannot be meant.
        """
        scores, chosen, usable = read_confidences(
            probabilities, predictions, self.classes, self.positive
        )
        scores, chosen = scores[usable], chosen[usable]
        return _sums(scores, chosen, self._positive_place, self.calibration, int((~usable).sum()))

    @property
    def _positive_place(self) -> int | None:
        return None if self.positive is None else self.classes.index(self.positive)

    def estimate(self, sums: EstimatedSums) -> Estimate:
        """The window's figures."""
        n = sums.rows
        if not n:
            return Estimate(0, sums.unusable)
        accuracy = min(1.0, sums.confidence / n)
        sd = math.sqrt(max(0.0, sums.confidence - sums.square)) / n
        if self.positive is None:
            return Estimate(n, sums.unusable, accuracy, sd)
        hits, strays, misses = sums.true_positives, sums.false_positives, sums.false_negatives
        return Estimate(
            n,
            sums.unusable,
            accuracy,
            sd,
            _share(hits, hits + strays),
            _share(hits, hits + misses),
            _share(2 * hits, 2 * hits + strays + misses),
        )

    def distance(self, sums: EstimatedSums) -> float | None:
        """How many standard deviations the estimate lies below the reference; negative: above.

        Rows without a usable probability count as wrong. None for fewer than 200 rows.
        """
        n = sums.rows + sums.unusable
        if n < _MINIMUM_ROWS:
            return None
        below = self.reference.mean - sums.confidence / n
        return below / max(self.reference.sd_at(n), 1e-12)

    def fell(self, sums: EstimatedSums, sd: float = 3.0) -> bool:
        """Whether estimated accuracy fell by more than ``sd`` standard deviations.

        Never enough by itself for an act against a model.
        """
        distance = self.distance(sums)
        return distance is not None and distance > sd

    def to_dict(self) -> dict[str, Any]:
        """For JSON: fractions as their shortest exact decimal text."""
        return {
            "format": _FORMAT,
            "kind": "multiclass" if self.positive is None else "binary",
            "classes": list(self.classes),
            "positive": self.positive,
            "calibration": self.calibration.to_dict(),
            "reference": {
                field.name: repr(getattr(self.reference, field.name))
                for field in fields(EstimatedReference)
            },
        }


def estimated_from_dict(document: Mapping[str, Any]) -> Estimated | NotEstimated:
    """Exact inverse of both ``to_dict``.

    Raises:
        ConfigurationError: it is no such section.
    """
    try:
        if document["format"] != _FORMAT:
            raise ValueError(f"its format is {document['format']!r}")
        if document["kind"] == "not estimated":
            return NotEstimated(str(document["reason"]))
        if document["kind"] not in ("binary", "multiclass"):
            raise ValueError(f"its kind is {document['kind']!r}")
        classes, positive = checked_classes(document["classes"], document["positive"])
        if (positive is None) != (document["kind"] == "multiclass"):
            raise ValueError("its kind and its positive class do not agree")
        window, windows, *figures = (
            document["reference"][field.name] for field in fields(EstimatedReference)
        )
        reference = EstimatedReference(int(window), int(windows), *map(float, figures))
        if reference.window < 1 or not all(math.isfinite(float(figure)) for figure in figures):
            raise ValueError("its reference is not of finite numbers")
        return Estimated(
            classes, positive, Calibration.from_dict(document["calibration"]), reference
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"the profile's section 'estimated' cannot be read: {error}",
            "fit the profile again with this release",
        ) from error


def fit_estimated(
    probabilities: Any,
    predictions: Sequence[Any] | NDArray[Any],
    labels: Sequence[Any] | NDArray[Any],
    *,
    classes: Sequence[Class],
    positive: Class | None = None,
    window: int = 1000,
) -> Estimated:
    """Calibration and reference windows from held-out rows in the order of time.

    Args:
        probabilities: (n, classes), or (n,) of the positive class.
        predictions: (n,) what the model answered.
        labels: (n,) what was true.
        classes: In the order of the probabilities' columns.
        positive: Of two classes; the second where it is not said. None for more.
        window: Rows of a reference window.

    Raises:
        ConfigurationError: too few rows or classes, or rows that cannot be used; nothing is
            guessed at training time.
    """
    known, chosen_class = checked_classes(classes, positive)
    scores, chosen, usable = read_confidences(probabilities, predictions, known, chosen_class)
    truth = places_of(labels, known)
    if len(truth) != len(chosen):
        raise mistake(f"{len(chosen)} predictions and {len(truth)} labels")
    bad = int((~usable | (truth < 0)).sum())
    if bad:
        raise mistake(
            f"{bad} of {len(truth)} reference rows have no usable probability, prediction or label "
            f"of {list(known)}"
        )
    if len(np.unique(truth)) < 2:
        raise mistake(f"all {len(truth)} labels are one class: nothing to calibrate with")
    if window < 1 or len(truth) < _FEWEST_WINDOWS * window:
        raise mistake(
            f"{len(truth)} rows make {len(truth) // max(1, window)} windows of {window}; "
            f"{_FEWEST_WINDOWS} are needed"
        )
    place = None if chosen_class is None else known.index(chosen_class)
    ones = (truth == (chosen if place is None else place)).astype(float)
    tried, use = _cross_fitted(scores, ones)
    calibration = isotonic(scores, ones) if use else IDENTITY
    confidence = tried if place is None else np.where(chosen == place, tried, 1 - tried)
    reference = _reference(confidence, (chosen == truth).astype(float), window)
    return Estimated(known, chosen_class, calibration, reference)


def _cross_fitted(scores: Floats, ones: Floats) -> tuple[Floats, bool]:
    """Each fifth of time, calibrated by the other four; and whether that helped."""
    tried = np.empty_like(scores)
    for fold in np.array_split(np.arange(len(scores)), _FOLDS):
        others = np.ones(len(scores), dtype=bool)
        others[fold] = False
        tried[fold] = isotonic(scores[others], ones[others]).apply(scores[fold])
    # A map onto a single probability cannot move with the inputs: it would watch nothing.
    helps = bool(np.ptp(tried) > 0) and brier(tried, ones) < brier(scores, ones)
    return (tried if helps else IDENTITY.apply(scores)), helps


def _reference(confidence: Floats, right: Floats, window: int) -> EstimatedReference:
    count = len(confidence) // window
    estimated = confidence[: count * window].reshape(count, window).mean(axis=1)
    true = right[: count * window].reshape(count, window).mean(axis=1)
    return EstimatedReference(
        window=window,
        windows=count,
        mean=float(estimated.mean()),
        sd=float(estimated.std(ddof=1)),
        row_variance=float(confidence.var(ddof=1)),
        true_mean=float(true.mean()),
        gap_sd=float(np.sqrt(np.mean((estimated - true) ** 2))),
    )


def _sums(
    scores: Floats,
    chosen: NDArray[np.int64],
    positive: int | None,
    calibration: Calibration,
    unusable: int,
) -> EstimatedSums:
    c = calibration.apply(scores)
    if positive is None:
        return EstimatedSums(len(c), unusable, float(c.sum()), float((c * c).sum()))
    said = chosen == positive
    c = np.where(said, c, 1 - c)
    yes, no = c[said], c[~said]
    return EstimatedSums(
        len(c),
        unusable,
        float(c.sum()),
        float((c * c).sum()),
        float(yes.sum()),
        float((1 - yes).sum()),
        float((1 - no).sum()),
    )


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
