"""How well a served model does, window by window: estimated, on labels, and by group.

The profile's sections ``performance`` and ``fairness`` (``drift.sections``) say what is known of
it: which output is the prediction and which are probabilities, the calibration of confidences, the
errors of the reference, the bounds of fairness. What a section does not name is not watched.

- *Estimated accuracy* is of the window's rows; of windows too small to judge, together with the
  next ones.
- *Labels* that came since the window before are one batch for the error rate, whichever windows
  their predictions were in.
- *Fairness* is counted until there are rows enough for its bounds (2,000), judged, and counted
  anew. In between the last judgement holds. A bound that breaks in two judgements in a row lasts.

Example::

    watch = PerformanceWatch(profile, labels=True)
    watch.rows(index, block, places)
    watch.label("r-1", 1)
    performance, facts = watch.closed(index, judged=True)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.block_rows import named
from drift.blocks import Block
from drift.error_rate import ErrorRate
from drift.estimated import Estimated, EstimatedSums
from drift.fairness import FairnessBounds, judge_fairness
from drift.group_counts import (
    GroupCounts,
    count_groups,
    counts_from_dict,
    counts_to_dict,
    is_missing,
    merged,
)
from drift.known_classes import KnownClasses
from drift.labels import Labels, LabelSums, Scalar, row_key
from drift.personal_groups import shown_groups
from drift.profile import DriftProfile
from drift.report import Performance
from drift.sections import FairnessSection, PerformanceSection
from drift.verdict import Facts
from governance.errors import ConfigurationError

__all__ = ["PerformanceWatch"]

_log = logging.getLogger(__name__)

Columns = Mapping[str, Any]
Groups = dict[str, dict[str, GroupCounts]]
"""Attribute → group → counts."""


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
        self.section = section = PerformanceSection.of(profile)
        self._fair = FairnessSection.of(profile)
        for why, remedy in self._fair.unseen(profile) if self._fair else ():
            _log.warning("%s: %s: %s", profile.model, why, remedy)
        found = None if section is None else section.estimated
        self._estimated = found if isinstance(found, Estimated) else None
        self._positive: Scalar = 1 if self._fair is None else self._fair.positive
        self._run_length = profile.rules.alert_esr
        self._most_waiting = most_waiting
        self.labels: Labels | None = None
        if labels:
            if section is None:
                raise ConfigurationError(
                    f"labels of {profile.model!r} are to be watched, and its profile has no errors "
                    "to compare them with",
                    "fit the profile with performance= (drift.sections.fit_performance)",
                )
            self.labels = Labels(section.errors, positive=self._positive, most=most_waiting)
        self._classes = KnownClasses(() if section is None else section.classes)
        self._open: dict[int, EstimatedSums] = {}
        self._carried = EstimatedSums()
        self._rate = ErrorRate()
        self._seen_groups: Groups = {}
        self._joined_groups: Groups = {}
        self._fairness: dict[str, float] = {}
        self._broken: dict[str, list[str]] = {}
        self._lasting: set[str] = set()
        self.changed = False
        """Whether labels came that no report has told of."""

    @property
    def anything(self) -> bool:
        """Whether blocks' rows are of interest at all."""
        return self._estimated is not None or bool(self._bounds) or self.labels is not None

    @property
    def _bounds(self) -> Sequence[FairnessBounds]:
        return () if self._fair is None else self._fair.bounds

    def rows(self, index: int, block: Block, places: NDArray[np.int64]) -> None:
        """Rows of a block, by their places in it, that went to a window."""
        if not self.anything or not len(places):
            return
        inputs, outputs = named(self._profile, block.inputs, block.outputs)
        keys = None
        if self.labels is not None and block.request_id is not None:
            ids, rows = block.request_id[places].tolist(), block.request_row[places].tolist()
            keys = [row_key(one, row) if one else "" for one, row in zip(ids, rows, strict=True)]
        wanted = {one.attribute for one in self._bounds}
        self._count(
            index,
            {name: values[places] for name, values in inputs.items() if name in wanted},
            {name: values[places] for name, values in outputs.items()},
            keys,
            block.time_ms[places].tolist(),
        )

    def table(
        self, index: int, columns: Columns, labels: Sequence[Any] | None, time_ms: Sequence[int]
    ) -> None:
        """A window's rows, with labels that lie beside them.

        Args:
            index: Of the window.
            columns: Inputs and outputs.
            labels: (rows,) true values, missing ones None or NaN; None: there are none. They count
                where the profile has errors to compare them with.
            time_ms: (rows,) of each.
        """
        if self.labels is None or labels is None:
            self._count(index, columns, columns, None, time_ms)
            return
        keys = [f"{index}#{row}" for row in range(len(labels))]
        self._count(index, columns, columns, keys, time_ms)
        for key, label in zip(keys, labels, strict=True):
            if not is_missing(label):
                self.label(key, label)

    def _count(
        self,
        index: int,
        inputs: Columns,
        outputs: Columns,
        keys: Sequence[str] | None,
        times: Sequence[int],
    ) -> None:
        """Rows of a window; a label will come for those whose key is not empty."""
        if self.section is None:
            return
        answers, scores = self.section.predicted(outputs), self.section.scores(outputs)
        if answers is None:
            return
        if self._estimated is not None and scores is not None:
            sums = self._estimated.sums(scores, answers)
            self._open[index] = self._open.get(index, EstimatedSums()) + sums
        attributes = {
            one.attribute: shown_groups(self._profile, one.attribute, inputs[one.attribute])
            for one in self._bounds
            if one.attribute in inputs
        }
        for name, values in attributes.items():
            more = count_groups(values, answers, positive=self._positive, attribute=name)
            self._seen_groups[name] = merged(self._seen_groups.get(name, {}), more)
        for row, key in enumerate(keys or ()):
            if key and self.labels is not None:
                groups = {name: values[row] for name, values in attributes.items()}
                self.labels.expect(
                    key, answers[row], window=index, time_ms=times[row], groups=groups
                )

    def label(self, key: str, label: Any) -> None:
        """A label that came, of whatever type."""
        assert self.labels is not None
        self.labels.label(key, self._classes.meant(label))
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
        if self._estimated is not None:
            estimate = self._estimated.estimate(seen)
            fall = self._estimated.distance(seen)
        batch = self._batch()
        self._judge_fairness()
        errors, rose = self._errors(batch)
        facts = Facts(
            accuracy_fall_sd=fall,
            fairness_broken=tuple(text for one in self._broken.values() for text in one),
            fairness_lasts=bool(self._lasting),
            error_esr=errors,
            errors_rose=rose,
        )
        classes = self.section is not None and not self.section.errors.edges
        performance = Performance(
            estimated_accuracy=None if estimate is None else estimate.accuracy,
            estimated_sd=None if estimate is None else estimate.sd,
            accuracy=1 - batch.errors / batch.rows if batch and batch.rows and classes else None,
            labelled=batch.rows if batch else 0,
            error_esr=errors,
            fairness=tuple(sorted(self._fairness.items())),
            reference_accuracy=None if self._estimated is None else self._estimated.reference.mean,
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
        if self.section is None or self.labels is None:
            return None, ()
        reference = self.section.errors
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
        champion = {} if self._fair is None else self._fair.reference
        for bounds in self._bounds:
            name = bounds.attribute
            for groups, of_labels in ((self._seen_groups, False), (self._joined_groups, True)):
                counts = groups.get(name, {})
                if sum(one.rows for one in counts.values()) < bounds.smallest_window:
                    continue
                del groups[name]
                report = judge_fairness(bounds, counts, champion.get(name))
                # Selection is judged on all rows, the rest on those with labels.
                told = [m for m in report.measures if (m.name != "selection") is of_labels]
                for measure in told:
                    if not math.isnan(measure.value):
                        self._fairness[f"{measure.name}/{name}"] = measure.value
                kind = f"{name}/{'labels' if of_labels else 'rows'}"
                before = self._broken.get(kind)
                now = [f"{name}: {one.sentence}" for one in told if one.broken or one.worse]
                self._broken[kind] = now
                if before and now:
                    self._lasting.add(kind)
                else:
                    self._lasting.discard(kind)

    def acknowledge(self) -> None:
        """Somebody has seen the alarm: errors and broken bounds begin anew."""
        self._rate = self._rate.reset()
        self._broken.clear()
        self._lasting.clear()

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
            "lasting": sorted(self._lasting),
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
            self._lasting = set(document["lasting"])
            if self.labels is not None and document["labels"] is not None:
                assert self.section is not None
                self.labels = Labels.from_dict(
                    document["labels"],
                    self.section.errors,
                    positive=self._positive,
                    most=self._most_waiting,
                )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(
                f"the state of performance cannot be read: {error}",
                "restore the monitor's state, or begin without it",
            ) from error
