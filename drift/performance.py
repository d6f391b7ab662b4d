"""How well a served model does, window by window: estimated, on labels, and by group.

The profile's sections ``performance`` and ``fairness`` say what is known of it (``performance`` and
``fairness`` here make them for ``fit_profile``): which output is the prediction and which are
probabilities, the calibration of confidences, the errors of the reference, the bounds of fairness.
What a section does not name is not watched.

- *Estimated accuracy* is of the window's rows; of windows too small to judge, together with the
  next ones.
- *Labels* that came since the window before are one batch for the error rate, whichever windows
  their predictions were in.
- *Fairness* is counted until there are rows enough for its bounds (2,000), judged, and counted
  anew. In between the last judgement holds.

Example::

    watch = PerformanceWatch(profile, labels=True)
    watch.rows(index, block, places)
    watch.label("r-1", 1)
    performance, facts = watch.closed(index, judged=True)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.block_rows import named
from drift.blocks import Block
from drift.columns import Column
from drift.error_rate import ErrorRate, ErrorReference
from drift.estimated import Estimated, EstimatedSums, estimated_from_dict
from drift.fairness import FairnessBounds, judge_fairness
from drift.group_counts import (
    GroupCounts,
    count_groups,
    counts_from_dict,
    counts_to_dict,
    merged,
)
from drift.labels import Labels, LabelSums, Scalar, row_key
from drift.profile import DriftProfile
from drift.report import Performance
from drift.verdict import Facts
from governance.errors import ConfigurationError

__all__ = ["PerformanceRules", "PerformanceWatch", "fairness_section", "performance_section"]

_PERFORMANCE = "chancery.performance/v1"
_FAIRNESS = "chancery.fairness/v1"
_REMEDY = "make the sections with drift.performance, and fit the profile again"

Groups = dict[str, dict[str, GroupCounts]]
"""Attribute → group → counts."""


def performance_section(
    *,
    prediction: str = "",
    probabilities: Sequence[str] = (),
    estimated: Estimated | None = None,
    errors: ErrorReference | None = None,
) -> dict[str, Any]:
    """A profile's ``performance``.

    Args:
        prediction: Output column with the predicted class or number; empty: the class with the
            largest probability.
        probabilities: Output columns with the classes' probabilities, in ``estimated``'s order, or
            the one of the positive class.
        estimated: Calibration (``drift.estimated.fit_estimated``).
        errors: Errors of held-out rows.
    """
    return {
        "format": _PERFORMANCE,
        "prediction": prediction,
        "probabilities": list(probabilities),
        "estimated": None if estimated is None else estimated.to_dict(),
        "errors": None if errors is None else errors.to_dict(),
    }


def fairness_section(
    bounds: Sequence[FairnessBounds],
    *,
    positive: Scalar = 1,
    champion: Mapping[str, Mapping[str, GroupCounts]] | None = None,
) -> dict[str, Any]:
    """A profile's ``fairness``.

    Args:
        bounds: By attribute.
        positive: The class that selects.
        champion: Counts of the model that this one is measured against, by attribute and group.
    """
    return {
        "format": _FAIRNESS,
        "positive": positive,
        "bounds": [one.to_dict() for one in bounds],
        "champion": {name: counts_to_dict(one) for name, one in (champion or {}).items()},
    }


@dataclass(frozen=True, slots=True)
class PerformanceRules:
    """Both sections, read.

    Attributes:
        prediction, probabilities, estimated, errors: See ``performance_section``.
        positive, bounds, champion: See ``fairness_section``.
    """

    prediction: str = ""
    probabilities: tuple[str, ...] = ()
    estimated: Estimated | None = None
    errors: ErrorReference | None = None
    positive: Scalar = 1
    bounds: tuple[FairnessBounds, ...] = ()
    champion: Mapping[str, Mapping[str, GroupCounts]] = field(default_factory=dict)

    @classmethod
    def of(cls, profile: DriftProfile) -> PerformanceRules:
        """What a profile says.

        Raises:
            ConfigurationError: a section is not one that this module makes.
        """
        performance, fairness = profile.performance or {}, profile.fairness or {}
        try:
            for section, kind in ((performance, _PERFORMANCE), (fairness, _FAIRNESS)):
                if section and section["format"] != kind:
                    raise ValueError(f"a section has the format {section['format']!r}")
            estimated, errors = performance.get("estimated"), performance.get("errors")
            found = None if estimated is None else estimated_from_dict(estimated)
            return cls(
                str(performance.get("prediction", "")),
                tuple(map(str, performance.get("probabilities", ()))),
                found if isinstance(found, Estimated) else None,
                None if errors is None else ErrorReference.from_dict(errors),
                fairness.get("positive", 1),
                tuple(map(FairnessBounds.from_dict, fairness.get("bounds", ()))),
                {n: counts_from_dict(one) for n, one in fairness.get("champion", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(
                f"the profile's sections on performance cannot be read: {error}", _REMEDY
            ) from error

    @property
    def anything(self) -> bool:
        """Whether there is anything to watch without labels."""
        return self.estimated is not None or bool(self.bounds)

    def predictions(self, outputs: Mapping[str, Column]) -> Sequence[Any] | None:
        """Predicted classes or numbers (n,); None where the block does not say."""
        if self.prediction:
            found = outputs.get(self.prediction)
            return None if found is None else list(found.tolist())
        scores = self.scores(outputs)
        if scores is None or self.estimated is None:
            return None
        classes = self.estimated.classes
        if scores.ndim == 1:
            positive = self.estimated.positive
            (other,) = (one for one in classes if one != positive)
            return [positive if score >= 0.5 else other for score in scores.tolist()]
        best = np.argmax(np.nan_to_num(scores, nan=-1.0), axis=1)
        return [classes[place] for place in best.tolist()]

    def scores(self, outputs: Mapping[str, Column]) -> NDArray[np.float64] | None:
        """Probabilities (n,) or (n, classes); NaN where they are no numbers."""
        columns = [outputs.get(name) for name in self.probabilities]
        if not columns or any(one is None for one in columns):
            return None
        numbers = [_floats(one) for one in columns if one is not None]
        return numbers[0] if len(numbers) == 1 else np.column_stack(numbers)


def _floats(values: Column) -> NDArray[np.float64]:
    if values.dtype != object:
        return values.astype(np.float64)
    return np.array(
        [float(v) if isinstance(v, int | float) else math.nan for v in values], dtype=np.float64
    )


class PerformanceWatch:
    """Of one served version; see the module. Not for several threads.

    Args:
        profile: What is known of the model.
        labels: Whether labels will come.
        most_waiting: Predictions that wait for one.

    Raises:
        ConfigurationError: the profile's sections cannot be read, or labels are to come and it has
            nothing to compare them with.
    """

    def __init__(
        self, profile: DriftProfile, *, labels: bool = False, most_waiting: int = 100_000
    ) -> None:
        self._profile = profile
        self.rules = rules = PerformanceRules.of(profile)
        self._run_length = profile.rules.alert_esr
        self._most_waiting = most_waiting
        self.labels: Labels | None = None
        if labels:
            if rules.errors is None:
                raise ConfigurationError(
                    f"labels of {profile.model!r} are to be watched, and its profile has no errors "
                    "to compare them with",
                    "fit the profile with performance=performance_section(errors=…)",
                )
            self.labels = Labels(rules.errors, positive=rules.positive, most=most_waiting)
        self._open: dict[int, EstimatedSums] = {}
        self._carried = EstimatedSums()
        self._rate = ErrorRate()
        self._seen_groups: Groups = {}
        self._joined_groups: Groups = {}
        self._fairness: dict[str, float] = {}
        self._broken: dict[str, list[str]] = {}
        self.changed = False
        """Whether labels came that no report has told of."""

    @property
    def anything(self) -> bool:
        """Whether blocks' rows are of interest at all."""
        return self.rules.anything or self.labels is not None

    def rows(self, index: int, block: Block, places: NDArray[np.int64]) -> None:
        """Rows of a block, by their places in it, that went to a window."""
        if not self.anything or not len(places):
            return
        rules = self.rules
        inputs, outputs = named(self._profile, block.inputs, block.outputs)
        outputs = {name: values[places] for name, values in outputs.items()}
        answers, scores = rules.predictions(outputs), rules.scores(outputs)
        if rules.estimated is not None and answers is not None and scores is not None:
            sums = rules.estimated.sums(scores, answers)
            self._open[index] = self._open.get(index, EstimatedSums()) + sums
        if answers is None:
            return
        attributes = {
            one.attribute: inputs[one.attribute][places].tolist()
            for one in rules.bounds
            if one.attribute in inputs
        }
        for name, values in attributes.items():
            more = count_groups(values, answers, positive=rules.positive, attribute=name)
            self._seen_groups[name] = merged(self._seen_groups.get(name, {}), more)
        if self.labels is not None and block.request_id is not None:
            self._expect(index, block, places, answers, attributes)

    def _expect(
        self,
        index: int,
        block: Block,
        places: NDArray[np.int64],
        answers: Sequence[Any],
        attributes: Mapping[str, Sequence[Any]],
    ) -> None:
        assert self.labels is not None
        assert block.request_id is not None
        ids, rows = block.request_id[places].tolist(), block.request_row[places].tolist()
        times = block.time_ms[places].tolist()
        for i, (request_id, row, time_ms) in enumerate(zip(ids, rows, times, strict=True)):
            if request_id:
                groups = {name: values[i] for name, values in attributes.items()}
                key = row_key(request_id, row)
                self.labels.expect(key, answers[i], window=index, time_ms=time_ms, groups=groups)

    def label(self, key: str, label: Any) -> None:
        """A label that came."""
        assert self.labels is not None
        self.labels.label(key, label)
        self.changed = True

    def closed(self, index: int, *, judged: bool) -> tuple[Performance, Facts]:
        """What is known when a window closes.

        Args:
            index: Of the window.
            judged: Whether it has rows enough; if not, its sums wait for the next.
        """
        seen = self._carried + self._open.pop(index, EstimatedSums())
        for old in [one for one in self._open if one < index]:
            seen += self._open.pop(old)
        self._carried = EstimatedSums() if judged else seen
        fall, estimate = None, None
        if self.rules.estimated is not None:
            estimate = self.rules.estimated.estimate(seen)
            fall = self.rules.estimated.distance(seen)
        batch = self._batch()
        self._judge_fairness()
        errors, rose = self._errors(batch)
        facts = Facts(
            accuracy_fall_sd=fall,
            fairness_broken=tuple(text for one in self._broken.values() for text in one),
            errors_rose=rose,
        )
        classes = self.rules.errors is not None and not self.rules.errors.edges
        performance = Performance(
            estimated_accuracy=None if estimate is None else estimate.accuracy,
            estimated_sd=None if estimate is None else estimate.sd,
            accuracy=1 - batch.errors / batch.rows if batch and batch.rows and classes else None,
            labelled=batch.rows if batch else 0,
            error_esr=errors,
            fairness=tuple(sorted(self._fairness.items())),
        )
        return performance, facts

    def _batch(self) -> LabelSums | None:
        """Labels since the last time, whichever windows their predictions were in."""
        self.changed = False
        if self.labels is None:
            return None
        taken = list(self.labels.take().values())
        for sums in taken:
            for name, counts in sums.groups.items():
                self._joined_groups[name] = merged(self._joined_groups.get(name, {}), counts)
        return sum(taken[1:], taken[0]) if taken else None

    def _errors(self, batch: LabelSums | None) -> tuple[float | None, tuple[str, ...]]:
        reference = self.rules.errors
        if reference is None or self.labels is None:
            return None, ()
        if batch is not None:
            self._rate = self._rate.after(reference, batch.outcomes)
        esr = math.exp(min(self._rate.log_r, 700.0))
        if not self._rate.alarms(self._run_length):
            return esr, ()
        rate = self._rate
        share = f"{rate.worst / max(1, rate.rows):.1%} of {rate.rows} labelled rows"
        expected = reference.counts[-1] / sum(reference.counts)
        return esr, (
            f"{share} are in the worst outcome, {expected:.1%} in the reference; eSR of errors is "
            f"{esr:.3g} (alarm at {self._run_length:g})",
        )

    def _judge_fairness(self) -> None:
        for bounds in self.rules.bounds:
            name = bounds.attribute
            for groups, of_labels in ((self._seen_groups, False), (self._joined_groups, True)):
                counts = groups.get(name, {})
                if sum(one.rows for one in counts.values()) < bounds.smallest_window:
                    continue
                del groups[name]
                report = judge_fairness(bounds, counts, self.rules.champion.get(name))
                # Selection is judged on all rows, the rest on those with labels.
                told = [m for m in report.measures if (m.name != "selection") is of_labels]
                for measure in told:
                    if not math.isnan(measure.value):
                        self._fairness[f"{measure.name}/{name}"] = measure.value
                kind = f"{name}/{'labels' if of_labels else 'rows'}"
                self._broken[kind] = [
                    f"{name}: {one.sentence}" for one in told if one.broken or one.worse
                ]

    def acknowledge(self) -> None:
        """Somebody has seen the alarm: the statistic of errors begins anew."""
        self._rate = self._rate.reset()

    def to_dict(self) -> dict[str, Any]:
        """The whole state, for JSON."""
        return {
            "open": {str(index): seen.to_dict() for index, seen in self._open.items()},
            "carried": self._carried.to_dict(),
            "rate": self._rate.to_dict(),
            "seen_groups": {n: counts_to_dict(one) for n, one in self._seen_groups.items()},
            "joined_groups": {n: counts_to_dict(one) for n, one in self._joined_groups.items()},
            "fairness": {name: repr(value) for name, value in self._fairness.items()},
            "broken": self._broken,
            "labels": None if self.labels is None else self.labels.to_dict(),
        }

    def restore(self, document: Mapping[str, Any]) -> None:
        """Go on from ``to_dict``; labels that waited are let go where none are to come any more.

        Raises:
            ConfigurationError: it cannot be read.
        """
        try:
            self._open = {
                int(index): EstimatedSums.from_dict(one) for index, one in document["open"].items()
            }
            self._carried = EstimatedSums.from_dict(document["carried"])
            self._rate = ErrorRate.from_dict(document["rate"])
            for groups, name in (
                (self._seen_groups, "seen_groups"),
                (self._joined_groups, "joined_groups"),
            ):
                groups.update({n: counts_from_dict(one) for n, one in document[name].items()})
            self._fairness = {name: float(text) for name, text in document["fairness"].items()}
            self._broken = {name: list(texts) for name, texts in document["broken"].items()}
            if self.labels is not None and document["labels"] is not None:
                assert self.rules.errors is not None
                self.labels = Labels.from_dict(
                    document["labels"],
                    self.rules.errors,
                    positive=self.rules.positive,
                    most=self._most_waiting,
                )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(
                f"the state of performance cannot be read: {error}",
                "restore the monitor's state, or begin without it",
            ) from error
