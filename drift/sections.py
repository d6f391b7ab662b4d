"""The sections of a profile about performance and fairness: what windows are compared with.

``performance``  which outputs are probabilities and the prediction; the reference for estimated
                 accuracy (``drift.estimated``) and for errors on labels (``drift.error_rate``)
``fairness``     the class that selects, bounds by attribute, and the reference's counts by group

Both are fitted on held-out rows with labels, in the order of time: on rows that the model was
trained on, it looks better than it is.

Example::

    performance = fit_performance(outputs, labels, probabilities=["score"], window=1000)
    profile = fit_profile(rows, outputs, model="fraud", performance=performance.to_dict())
    PerformanceSection.of(profile).predicted(outputs)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.confidences import Class
from drift.error_rate import ErrorReference
from drift.estimated import Estimated, NotEstimated, estimated_from_dict, fit_estimated
from drift.fairness import FairnessBounds
from drift.group_counts import (
    MISSING,
    OTHERS,
    GroupCounts,
    count_groups,
    counts_from_dict,
    counts_to_dict,
    group_name,
)
from drift.personal_groups import group_bins, shown_groups, unseen
from drift.profile import DriftProfile
from governance.errors import ConfigurationError, GovernanceError

__all__ = ["FAIRNESS", "FairnessSection", "PerformanceSection", "fit_fairness", "fit_performance"]

_PERFORMANCE = "chancery.drift-performance/v1"
FAIRNESS = "chancery.drift-fairness/v1"

Columns = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PerformanceSection:
    """See the module.

    Attributes:
        prediction: The output that holds the predicted class or number; empty: it follows from the
            probabilities.
        probabilities: Outputs, in the order of the classes; of two classes one is enough, that of
            the positive class.
        classes: Empty for a regression.
        positive: Of two classes.
        estimated: Accuracy without labels.
        errors: The reference for errors on labels.
        threshold: Of the positive class's probability, from which it is predicted.
    """

    prediction: str
    probabilities: tuple[str, ...]
    classes: tuple[Class, ...]
    positive: Class | None
    estimated: Estimated | NotEstimated
    errors: ErrorReference
    threshold: float = 0.5

    def predicted(self, columns: Columns) -> list[Any] | None:
        """Of rows: classes, or numbers; None: a column that says it is not there."""
        if self.prediction:
            found = columns.get(self.prediction)
            return None if found is None else list(np.asarray(found).tolist())
        matrix = self.scores(columns)
        if matrix is None:
            return None
        if matrix.ndim == 1:
            other = next(name for name in self.classes if name != self.positive)
            # What is no probability is no prediction either.
            return [
                None if score != score else self.positive if score >= self.threshold else other
                for score in matrix.tolist()
            ]
        broken = np.isnan(matrix).any(axis=1)
        best = np.where(np.isnan(matrix), -np.inf, matrix).argmax(axis=1)
        return [
            None if bad else self.classes[place]
            for place, bad in zip(best.tolist(), broken.tolist(), strict=True)
        ]

    def scores(self, columns: Columns) -> NDArray[np.float64] | None:
        """Probabilities (rows,) or (rows, classes), NaN for what is none; None: one is not there,
        or none is named."""
        if not self.probabilities or any(name not in columns for name in self.probabilities):
            return None
        found = [_numbers(columns[name]) for name in self.probabilities]
        return found[0] if len(found) == 1 else np.column_stack(found)

    def to_dict(self) -> dict[str, Any]:
        """For the profile."""
        return {
            "format": _PERFORMANCE,
            "prediction": self.prediction,
            "probabilities": list(self.probabilities),
            "classes": list(self.classes),
            "positive": self.positive,
            "threshold": repr(float(self.threshold)),
            "estimated": self.estimated.to_dict(),
            "error_rate": self.errors.to_dict(),
        }

    @classmethod
    def of(cls, profile: DriftProfile) -> PerformanceSection | None:
        """The profile's; None: it has none.

        Raises:
            ConfigurationError: it is no such section.
        """
        document = profile.performance
        if document is None:
            return None
        try:
            if document["format"] != _PERFORMANCE:
                raise ValueError(f"its format is {document['format']!r}")
            return cls(
                str(document["prediction"]),
                tuple(map(str, document["probabilities"])),
                tuple(document["classes"]),
                document["positive"],
                estimated_from_dict(document["estimated"]),
                ErrorReference.from_dict(document["error_rate"]),
                float(document["threshold"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable("performance", error) from error


@dataclass(frozen=True, slots=True)
class FairnessSection:
    """See the module.

    Attributes:
        positive: The class that selects.
        bounds: One for each attribute, which is a column among the inputs.
        reference: Attribute → group → counts of the reference: the champion's.
    """

    positive: Class
    bounds: tuple[FairnessBounds, ...]
    reference: Mapping[str, Mapping[str, GroupCounts]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For the profile."""
        return {
            "format": FAIRNESS,
            "positive": self.positive,
            "bounds": [one.to_dict() for one in self.bounds],
            "reference": {name: counts_to_dict(one) for name, one in self.reference.items()},
        }

    @classmethod
    def of(cls, profile: DriftProfile) -> FairnessSection | None:
        """The profile's; None: it has none.

        Raises:
            ConfigurationError: it is no such section.
        """
        document = profile.fairness
        if document is None:
            return None
        try:
            if document["format"] != FAIRNESS:
                raise ValueError(f"its format is {document['format']!r}")
            return cls(
                document["positive"],
                tuple(map(FairnessBounds.from_dict, document["bounds"])),
                {name: counts_from_dict(one) for name, one in document["reference"].items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _unreadable("fairness", error) from error

    def unseen(self, profile: DriftProfile) -> Iterator[tuple[str, str]]:
        """Attributes whose groups what is served does not show: why, and what to do about it."""
        for name in (one.attribute for one in self.bounds):
            if unseen(profile, name):
                yield (
                    f"fairness is asked of {name!r}, of whose values nothing leaves",
                    "fit the profile with pii='bin' of it, or ask nothing of it",
                )
            elif (bins := group_bins(profile, name)) is not None:
                shown = {MISSING, OTHERS, *map(group_name, bins.names)}
                if not set(self.reference.get(name, ())) <= shown:
                    yield (
                        f"fairness is asked of {name!r}, which leaves as its bin, and the "
                        "reference's groups are other ones",
                        "fit the profile first, and its fairness with fit_fairness(profile=)",
                    )

    def require_seen(self, profile: DriftProfile) -> None:
        """That what is served shows every attribute's groups.

        Raises:
            ConfigurationError: names one of which it does not.
        """
        for why, remedy in self.unseen(profile):
            raise _mistake(why, remedy)


def fit_performance(
    outputs: Columns,
    labels: Sequence[Any] | NDArray[Any],
    *,
    prediction: str = "",
    probabilities: Sequence[str] = (),
    classes: Sequence[Class] | None = None,
    positive: Class | None = None,
    threshold: float = 0.5,
    window: int = 1000,
) -> PerformanceSection:
    """Of held-out rows in the order of time.

    Args:
        outputs: What the model said, columns by name.
        labels: (n,) what was true.
        prediction: The output with the predicted class or number; empty: it follows from
            ``probabilities``.
        probabilities: Outputs in the order of ``classes``, or the positive class's alone. None for
            a regression, and for a classifier that has none: its accuracy is not estimated then.
        classes: In the order of ``probabilities``; default: the labels' own, sorted. ``()`` says
            that it is a regression. Without probabilities that is the default where more than two
            different numbers are labels, and they are floats, or predictions have fractions, or
            more than half of the labels differ from all others before them.
        positive: Of two classes; default: the second.
        threshold: Of the positive class's probability.
        window: Rows of a reference window.

    Raises:
        ConfigurationError: names what cannot be used.
    """
    named = [*filter(None, (prediction,)), *probabilities]
    absent = [name for name in named if name not in outputs]
    if absent or not named:
        raise _mistake(
            f"the outputs have no column {absent[0]!r}" if absent else "no output is named",
            f"name columns of {', '.join(map(str, outputs))} as prediction= or probabilities=",
        )
    truth = [one.item() if isinstance(one, np.generic) else one for one in np.asarray(labels)]
    if classes is None and not probabilities and _are_amounts(truth, outputs[prediction]):
        classes = ()
    if classes is not None and not len(classes):
        if probabilities or any(isinstance(one, str) for one in truth):
            raise _mistake(
                "probabilities, or labels that are texts, of a regression",
                "pass the classes, or leave classes= out",
            )
        errors = ErrorReference.of_numbers(
            _numbers(outputs[prediction]).tolist(), _numbers(truth).tolist()
        )
        return PerformanceSection(prediction, (), (), None, NotEstimated(), errors)
    if classes is None:
        try:
            classes = sorted({int(one) if isinstance(one, float) else one for one in truth})
        except (TypeError, ValueError) as error:
            raise _mistake("the labels are of several types, or missing", "pass classes=") from (
                error
            )
    if positive is None and len(classes) == 2:
        positive = classes[1]
    wanted = (1, 2) if len(classes) == 2 else (len(classes),)
    if probabilities and len(probabilities) not in wanted:
        raise _mistake(
            f"{len(probabilities)} columns of probabilities for the {len(classes)} classes "
            f"{list(classes)}",
            "name one for each class, in their order",
        )
    plain = PerformanceSection(
        prediction,
        tuple(probabilities),
        tuple(classes),
        positive,
        NotEstimated("the model gives no probabilities"),
        ErrorReference((100, 0)),
        threshold,
    )
    answers, scores = plain.predicted(outputs), plain.scores(outputs)
    assert answers is not None  # all that is named is there
    errors = ErrorReference.of_classes(answers, truth)
    estimated: Estimated | NotEstimated = plain.estimated
    if scores is not None:
        estimated = fit_estimated(
            scores, answers, truth, classes=classes, positive=positive, window=window
        )
    return PerformanceSection(
        prediction, tuple(probabilities), tuple(classes), positive, estimated, errors, threshold
    )


def fit_fairness(
    features: Columns,
    predictions: Sequence[Any],
    labels: Sequence[Any] | NDArray[Any] | None,
    bounds: Sequence[FairnessBounds],
    *,
    positive: Class = 1,
    profile: DriftProfile | None = None,
) -> FairnessSection:
    """Of the same rows.

    Args:
        features: The reference's.
        predictions, labels: (n,) classes.
        bounds: Of attributes, which are features.
        positive: The class that selects.
        profile: Of the model, where attributes are personal (``pii``): their groups are its bins
            then, as they are when it is served.

    Raises:
        ConfigurationError: an attribute is no feature, or masked.
    """
    reference = {}
    for one in bounds:
        if one.attribute not in features:
            raise _mistake(
                f"fairness is asked of {one.attribute!r}, which is no feature",
                f"the features are {', '.join(list(map(str, features))[:20])}",
            )
        values = features[one.attribute]
        reference[one.attribute] = count_groups(
            np.asarray(values).tolist()
            if profile is None
            else shown_groups(profile, one.attribute, values),
            predictions,
            None if labels is None else np.asarray(labels).tolist(),
            positive=positive,
            attribute=one.attribute,
        )
    section = FairnessSection(positive, tuple(bounds), reference)
    if profile is not None:
        section.require_seen(profile)
    return section


def _are_amounts(truth: list[Any], predictions: Any) -> bool:
    """Whether labels are numbers that a regression is wrong about by more or less."""
    if not all(map(_is_number, truth)) or (different := len(set(truth))) <= 2:
        return False
    said = _numbers(predictions)
    fractions = np.isfinite(said) & (said != np.floor(said))
    return (
        all(isinstance(one, float) for one in truth)
        or bool(fractions.any())
        or 2 * different > len(truth)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(values: Any) -> NDArray[np.float64]:
    """(n,) with NaN for what is no number."""
    array = np.asarray(values)
    if array.dtype.kind in "fiub":
        return array.astype(np.float64)
    found = np.full(len(array), np.nan)
    for place, value in enumerate(array.tolist()):
        if isinstance(value, int | float):
            with suppress(OverflowError):  # an integer beyond every float
                found[place] = value
    return found


def _mistake(text: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"the profile's performance or fairness: {text}", remedy)


def _unreadable(section: str, error: Exception) -> GovernanceError:
    return ConfigurationError(
        f"the profile's section {section!r} cannot be read: {error}",
        "fit the profile again with this release",
    )
