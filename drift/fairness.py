"""Whether a model treats groups alike: four measures, each with a confidence limit.

=================  ================================================  ==================
measure            of the groups that are large enough               broken when
=================  ================================================  ==================
``tpr gap``        highest less lowest true-positive rate            above its bound
``fpr gap``        highest less lowest false-positive rate           above its bound
``selection``      lowest rate of selection by the highest           below its bound
``accuracy``       of the group where it is worst                    below its bound
=================  ================================================  ==================

A measure is broken only when its confidence limit is beyond the bound, not when its value is: the
limit is at 95 %, one-sided, over all pairs of groups at once (Bonferroni). Rates have Wilson's
intervals, differences Newcombe's, ratios MOVER-R (``drift.intervals``). With a champion's counts
the same is asked of the change: the gap grew, the ratio or the accuracy fell, by more than
``against_champion``, again beyond what both windows' chance explains.

Groups of fewer than 100 rows are left out and named, and so are groups in which a rate has no rows
to be of. Of fewer than 2,000 rows, nothing is said: ``judged`` is false. One look in twenty is a
false alarm at 95 %: looked at daily, ask for two windows in a row, or a higher ``confidence``.

Sources: M. Hardt, E. Price and N. Srebro, "Equality of Opportunity in Supervised Learning", NIPS
2016 (rates); the four-fifths rule, 29 CFR 1607.4 (ratio of selection rates); for intervals see
``drift.intervals``.

Example::

    bounds = FairnessBounds("sex", tpr_gap=0.1, selection=0.8)
    report = judge_fairness(bounds, counts, champion)
    report.broken, [measure.sentence for measure in report.measures]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import permutations
from typing import Any

from drift.group_counts import GroupCounts
from drift.intervals import Interval, difference, ratio, wilson
from governance.errors import ConfigurationError

__all__ = ["FairnessBounds", "FairnessReport", "Measure", "judge_fairness"]

_FLOATS = ("tpr_gap", "fpr_gap", "selection", "accuracy", "against_champion", "confidence")


@dataclass(frozen=True, slots=True)
class FairnessBounds:
    """What the profile asks of one attribute. None: the measure is shown and has no bound.

    Attributes:
        attribute: The column.
        tpr_gap, fpr_gap: At most, in [0, 1].
        selection: The ratio at least, in [0, 1].
        accuracy: Of the worst group at least, in [0, 1].
        against_champion: By how much each measure may be worse than the champion's.
        confidence: One-sided, of all pairs of groups together.
        smallest_group: Rows; smaller groups are named and left out.
        smallest_window: Rows; nothing is said of a smaller one.
    """

    attribute: str
    tpr_gap: float | None = None
    fpr_gap: float | None = None
    selection: float | None = None
    accuracy: float | None = None
    against_champion: float | None = None
    confidence: float = 0.95
    smallest_group: int = 100
    smallest_window: int = 2000

    def __post_init__(self) -> None:
        for name in _FLOATS:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise self._mistake(f"{name} must be between 0 and 1, not {value}")
        if not 0.5 < self.confidence < 1:
            raise self._mistake(f"confidence must be between 0.5 and 1, not {self.confidence}")
        if self.smallest_group < 1 or self.smallest_window < 1:
            raise self._mistake("the smallest group and window have at least one row")

    def _mistake(self, text: str) -> ConfigurationError:
        return ConfigurationError(
            f"fairness bounds of {self.attribute!r}: {text}", "correct the model's drift profile"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON: fractions as their shortest exact decimal text."""
        document = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: repr(float(value)) if name in _FLOATS and value is not None else value
            for name, value in document.items()
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> FairnessBounds:
        """Exact inverse of ``to_dict``; what is not said has its default.

        Raises:
            ConfigurationError: a bound that cannot be, or a name that is none.
        """
        unknown = set(document) - {field.name for field in fields(cls)}
        if unknown or "attribute" not in document:
            raise ConfigurationError(
                f"fairness bounds: {sorted(unknown)} are unknown, or the attribute is not named",
                f"the names are {', '.join(field.name for field in fields(cls))}",
            )
        read = dict(document)
        try:
            for name in _FLOATS:
                if read.get(name) is not None:
                    read[name] = float(read[name])
            for name in ("smallest_group", "smallest_window"):
                if name in read:
                    read[name] = int(read[name])
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"fairness bounds of {document['attribute']!r}: {error}",
                "correct the model's drift profile",
            ) from error
        return cls(**read)


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure of one window.

    Attributes:
        name: ``tpr gap``, ``fpr gap``, ``selection`` or ``accuracy``.
        value: NaN where fewer groups are large enough than it needs.
        limit: Confidence limit on the favourable side: nearest to the bound, or better than it.
        bound: From the profile; None: none.
        worst, best: The groups that make the value; ``best`` is empty for the accuracy.
        broken: The limit is beyond the bound.
        champion: The same measure of the champion; None without one.
        change_limit: Of the change for the worse against the champion, its confidence limit.
        worse: That is above what is allowed.
    """

    name: str
    value: float
    limit: float
    bound: float | None
    worst: str = ""
    best: str = ""
    broken: bool = False
    champion: float | None = None
    change_limit: float | None = None
    worse: bool = False

    @property
    def sentence(self) -> str:
        """In words."""
        if math.isnan(self.value):
            return f"{self.name}: not enough groups to compare."
        between = f" ({self.worst} against {self.best})" if self.best else f" ({self.worst})"
        text = f"{self.name} {self.value:.3f}{between}, confidence limit {self.limit:.3f}"
        if self.bound is not None:
            text += f", bound {self.bound:.3f}{': broken' if self.broken else ''}"
        if self.champion is not None:
            text += f"; the champion's {self.champion:.3f}{': worse' if self.worse else ''}"
        return f"{text}."


@dataclass(frozen=True, slots=True)
class FairnessReport:
    """Of one attribute and window.

    Attributes:
        attribute: The column.
        rows: Of the window.
        labelled: Of them, with a label.
        judged: The window is large enough to say anything of some measure.
        measures: Those it is large enough for.
        too_small: (group, rows or labelled rows) left out of some measure.
    """

    attribute: str
    rows: int
    labelled: int
    judged: bool
    measures: tuple[Measure, ...] = ()
    too_small: tuple[tuple[str, int], ...] = ()

    @property
    def broken(self) -> bool:
        """A bound broke, or the champion treats groups better."""
        return any(measure.broken or measure.worse for measure in self.measures)


Part = Callable[[GroupCounts], tuple[int, int]]
"""Events and rows of a rate."""

_PARTS: dict[str, Part] = {
    "tpr gap": lambda g: (g.true_positives, g.positives),
    "fpr gap": lambda g: (g.false_positives, g.negatives),
    "selection": lambda g: (g.selected, g.rows),
    "accuracy": lambda g: (g.right, g.labelled),
}


def judge_fairness(
    bounds: FairnessBounds,
    counts: Mapping[str, GroupCounts],
    champion: Mapping[str, GroupCounts] | None = None,
) -> FairnessReport:
    """A window's counts against the bounds, and against the champion's reference counts."""
    rows = sum(group.rows for group in counts.values())
    labelled = sum(group.labelled for group in counts.values())
    small = tuple(_small(counts, bounds, of_labels=labelled >= bounds.smallest_window))
    measures = []
    for name, part in _PARTS.items():
        enough = rows if name == "selection" else labelled
        if enough < bounds.smallest_window:
            continue
        now = _rates(part, counts, bounds, of_labels=name != "selection")
        before = _rates(part, champion or {}, bounds, of_labels=name != "selection")
        bound = getattr(bounds, name.replace(" ", "_"))
        if name == "accuracy":
            measures.append(_worst(bounds, bound, now, before))
        else:
            measures.append(_pairs(bounds, name, bound, now, before))
    return FairnessReport(bounds.attribute, rows, labelled, bool(measures), tuple(measures), small)


def _small(
    counts: Mapping[str, GroupCounts], bounds: FairnessBounds, of_labels: bool
) -> Iterator[tuple[str, int]]:
    for name, group in sorted(counts.items()):
        if group.rows < bounds.smallest_group:
            yield name, group.rows
        elif of_labels and group.labelled < bounds.smallest_group:
            yield name, group.labelled


Rates = dict[str, tuple[int, int]]


def _rates(
    part: Part, counts: Mapping[str, GroupCounts], bounds: FairnessBounds, of_labels: bool
) -> Rates:
    """Events and rows of each group that is large enough."""
    return {
        name: part(group)
        for name, group in sorted(counts.items())
        if (group.labelled if of_labels else group.rows) >= bounds.smallest_group
        and part(group)[1] > 0
    }


def _pairs(
    bounds: FairnessBounds, name: str, bound: float | None, now: Rates, before: Rates
) -> Measure:
    """A gap or a ratio, over all ordered pairs of groups."""
    if len(now) < 2:
        return Measure(name, math.nan, math.nan, bound)
    level = 1 - (1 - bounds.confidence) / (len(now) * (len(now) - 1))
    is_ratio = name == "selection"
    compare = ratio if is_ratio else difference
    # A gap is high less low, a ratio low by high: the pair that comes first is the offender.
    found = {
        pair: compare(*(wilson(*now[group], level) for group in pair))
        for pair in permutations(now, 2)
    }
    sign = -1 if is_ratio else 1  # above 0: for the worse
    extreme = max(found, key=lambda pair: sign * found[pair].value)
    limits = (_favourable(found[pair], is_ratio) for pair in found)
    limit = min(limits) if is_ratio else max(limits)
    worst, best = extreme if is_ratio or name == "fpr gap" else extreme[::-1]
    broken = bound is not None and sign * (limit - bound) > 0
    measure = Measure(name, found[extreme].value, limit, bound, worst, best, broken)
    then = {
        pair: compare(*(wilson(*before[group], level) for group in pair))
        for pair in found
        if pair[0] in before and pair[1] in before
    }
    # A ratio to nothing is infinite; the same two groups the other way round say it as 0.
    shared = [p for p in then if math.isfinite(then[p].value) and math.isfinite(found[p].value)]
    if not shared:
        return measure
    change = max(
        (difference(then[p], found[p]) if is_ratio else difference(found[p], then[p])).low
        for p in shared
    )
    champion = max((then[pair].value for pair in shared), key=lambda value: sign * value)
    return _compared(measure, champion, change, bounds)


def _worst(bounds: FairnessBounds, bound: float | None, now: Rates, before: Rates) -> Measure:
    """The accuracy of the group where it is worst."""
    if not now:
        return Measure("accuracy", math.nan, math.nan, bound)
    level = 1 - (1 - bounds.confidence) / len(now)
    found = {group: wilson(*now[group], level) for group in now}
    worst = min(found, key=lambda group: found[group].value)
    limit = min(interval.high for interval in found.values())
    broken = bound is not None and limit < bound
    measure = Measure("accuracy", found[worst].value, limit, bound, worst, "", broken)
    then = {group: wilson(*before[group], level) for group in found if group in before}
    if not then:
        return measure
    change = max(difference(then[group], found[group]).low for group in then)
    return _compared(measure, min(i.value for i in then.values()), change, bounds)


def _favourable(interval: Interval, is_ratio: bool) -> float:
    return interval.high if is_ratio else interval.low


def _compared(measure: Measure, champion: float, change: float, bounds: FairnessBounds) -> Measure:
    allowed = bounds.against_champion
    return Measure(
        measure.name,
        measure.value,
        measure.limit,
        measure.bound,
        measure.worst,
        measure.best,
        measure.broken,
        champion,
        change,
        allowed is not None and change > allowed,
    )
