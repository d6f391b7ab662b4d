"""Counts of a window by group: all that fairness needs, and they merge by addition.

A group is a value of one attribute (a column: sex, region, age bin), as text. A row whose value is
missing belongs to the group ``(missing)``. What an answer decides is one class, ``positive``: a row
is *selected* where the prediction is that class. Rows without a label count as rows and selections
only.

Example::

    counts = count_groups(["f", "m"], predictions=[1, 0], labels=[1, 1], positive=1)
    counts["f"].true_positives
    merged(counts, other)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

from drift.tables import clean_name
from governance.errors import ConfigurationError

__all__ = [
    "MISSING",
    "MOST_GROUPS",
    "OTHERS",
    "GroupCounts",
    "count_groups",
    "counts_from_dict",
    "counts_to_dict",
    "group_name",
    "is_missing",
    "merged",
    "row_counts",
]

MISSING = "(missing)"
OTHERS = "(others)"
MOST_GROUPS = 200
"""More are no groups of people but an attribute with a value a person, which must fill no memory
and stop no monitor: the smallest are counted as one group, ``(others)``."""

_LONGEST = 64


@dataclass(frozen=True, slots=True)
class GroupCounts:
    """Of one group.

    Attributes:
        rows: All.
        selected: Of them, predicted positive.
        labelled: Rows with a label.
        right: Of the labelled, predicted as labelled (any class).
        positives: Of the labelled, labelled positive.
        true_positives: Of the positives, selected.
        false_positives: Of the other labelled, selected.
    """

    rows: int = 0
    selected: int = 0
    labelled: int = 0
    right: int = 0
    positives: int = 0
    true_positives: int = 0
    false_positives: int = 0

    def __post_init__(self) -> None:
        whole = (self.rows, self.rows, self.labelled, self.labelled, self.positives)
        parts = (self.selected, self.labelled, self.right, self.positives, self.true_positives)
        fits = all(0 <= part <= all_ for part, all_ in zip(parts, whole, strict=True))
        if not fits or not 0 <= self.false_positives <= self.negatives:
            raise ConfigurationError(
                f"counts of a group that cannot be: {astuple(self)}",
                "count again; the stored counts were changed or cut short",
            )

    @property
    def negatives(self) -> int:
        return self.labelled - self.positives

    def __add__(self, other: GroupCounts) -> GroupCounts:
        return GroupCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def merged(a: Mapping[str, GroupCounts], b: Mapping[str, GroupCounts]) -> dict[str, GroupCounts]:
    """Of two windows."""
    return _bounded(
        {name: a.get(name, GroupCounts()) + b.get(name, GroupCounts()) for name in {**a, **b}}
    )


def _bounded(counts: dict[str, GroupCounts]) -> dict[str, GroupCounts]:
    """The largest groups by name; beyond ``MOST_GROUPS`` the others are one."""
    if len(counts) > MOST_GROUPS:
        named = sorted(counts.keys() - {OTHERS}, key=lambda name: (-counts[name].rows, name))
        rest = [counts[name] for name in named[MOST_GROUPS - 1 :]]
        kept = {name: counts[name] for name in named[: MOST_GROUPS - 1]}
        counts = {**kept, OTHERS: sum(rest, counts.get(OTHERS, GroupCounts()))}
    return {name: counts[name] for name in sorted(counts)}


def is_missing(value: Any) -> bool:
    """None, NaN and what pandas writes for either."""
    if value is None:
        return True
    try:
        return not bool(value == value)
    except (TypeError, ValueError):  # pandas.NA has no truth; an array has many
        return type(value).__name__ == "NAType"


def group_name(value: Any) -> str:
    """A group's value as text: whole numbers alike, whichever type they come in, and no more of it
    than a document can hold."""
    if is_missing(value):
        return MISSING
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return clean_name(str(value))[:_LONGEST]


def count_groups(
    groups: Sequence[Any],
    predictions: Sequence[Any],
    labels: Sequence[Any] | None = None,
    *,
    positive: Any = 1,
    attribute: str = "a group",
) -> dict[str, GroupCounts]:
    """Of the rows of a window.

    Args:
        groups: (n,) values of the attribute.
        predictions: (n,) predicted classes; one that is missing is not selected, and not right.
        labels: (n,) true classes; None: no row has one.
        positive: The class that selects.
        attribute: Its name, for errors.

    Raises:
        ConfigurationError: lengths differ.
    """
    names = _listed(groups)
    answers = _listed(predictions)
    truths = [None] * len(answers) if labels is None else _listed(labels)
    if not len(names) == len(answers) == len(truths):
        raise ConfigurationError(
            f"fairness of {attribute!r}: {len(names)} groups, {len(answers)} predictions and "
            f"{len(truths)} labels",
            "give one of each for every row",
        )
    sums: dict[Any, list[int]] = {}
    for group, answer, truth in zip(names, answers, truths, strict=True):
        name = group_name(group)
        row = sums.get(name)
        if row is None:
            row = sums[name] = [0] * len(fields(GroupCounts))
        for place, one in enumerate(row_counts(answer, truth, positive)):
            row[place] += one
    return _bounded({name: GroupCounts(*row) for name, row in sums.items()})


def row_counts(answer: Any, truth: Any, positive: Any) -> tuple[int, int, int, int, int, int, int]:
    """What one row adds to its group's ``GroupCounts``, in the order of its fields."""
    known = not is_missing(answer)
    selected = known and answer == positive
    if is_missing(truth):
        return 1, selected, 0, 0, 0, 0, 0
    hit = truth == positive
    return 1, selected, 1, known and answer == truth, hit, hit and selected, selected and not hit


def counts_to_dict(counts: Mapping[str, GroupCounts]) -> dict[str, list[int]]:
    """For JSON: a group's figures in the order of ``GroupCounts``."""
    return {name: list(astuple(counts[name])) for name in sorted(counts)}


def counts_from_dict(document: Mapping[str, Sequence[int]]) -> dict[str, GroupCounts]:
    """Exact inverse of ``counts_to_dict``.

    Raises:
        ConfigurationError: counts that cannot be.
    """
    if any(len(figures) != len(fields(GroupCounts)) for figures in document.values()):
        raise ConfigurationError(
            f"counts of groups need {len(fields(GroupCounts))} figures each",
            "count again; the stored counts were changed or cut short",
        )
    return {
        name: GroupCounts(*(int(figure) for figure in figures))
        for name, figures in document.items()
    }


def _listed(values: Any) -> list[Any]:
    return list(values.tolist() if hasattr(values, "tolist") else values)
