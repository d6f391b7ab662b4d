"""Fairness: values are fairlearn's, and only what chance cannot explain breaks a bound."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from drift.fairness import FairnessBounds, FairnessReport, Measure, judge_fairness
from drift.group_counts import (
    MISSING,
    MOST_GROUPS,
    OTHERS,
    GroupCounts,
    count_groups,
    counts_from_dict,
    counts_to_dict,
    merged,
)
from drift.intervals import difference, ratio, wilson
from governance.canonical import canonical_json, parse_json
from governance.errors import ConfigurationError

Rows = tuple[NDArray[np.str_], NDArray[np.int64], NDArray[np.int64]]

FAIRLEARN = {
    "tpr gap": 0.12774159742495694,
    "fpr gap": 0.16723950037723195,
    "selection": 0.7603692622116762,
    "accuracy": 0.7321428571428571,
}
"""What fairlearn 0.15.0 says of ``unfair_rows()`` without its small group: ``MetricFrame`` with
``true_positive_rate`` and ``false_positive_rate``, ``.difference()``; ``demographic_parity_ratio``;
``accuracy_score``, ``.group_min()``."""


def unfair_rows() -> Rows:
    """Groups, answers, truth: c is served worst, d has only 88 rows."""
    rng = np.random.default_rng(42)
    group = rng.choice(["a", "b", "c", "d"], size=5000, p=[0.5, 0.3, 0.185, 0.015])
    truth = (rng.uniform(size=5000) < np.where(group == "a", 0.5, 0.35)).astype(int)
    wrong = rng.uniform(size=5000) < np.where(group == "c", 0.3, 0.12)
    return group, np.where(wrong, 1 - truth, truth), truth


def fair_rows(rows: int, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    truth = rng.integers(2, size=rows)
    said = np.where(rng.uniform(size=rows) < 0.15, 1 - truth, truth)
    return rng.choice(["a", "b", "c"], size=rows), said, truth


def by_name(report: FairnessReport) -> dict[str, Measure]:
    return {measure.name: measure for measure in report.measures}


def test_the_values_are_fairlearns() -> None:
    report = judge_fairness(FairnessBounds("g"), count_groups(*unfair_rows()))
    for name, measure in by_name(report).items():
        assert measure.value == pytest.approx(FAIRLEARN[name], abs=1e-12)
    assert len(report.measures) == 4
    assert report.too_small == (("d", 88),)
    assert not report.broken, "no bounds, nothing to break"


def test_bounds_break_and_name_the_groups() -> None:
    bounds = FairnessBounds("g", tpr_gap=0.05, fpr_gap=0.1, selection=0.8, accuracy=0.8)
    report = judge_fairness(bounds, count_groups(*unfair_rows()))
    found = by_name(report)
    assert [name for name in found if found[name].broken] == ["tpr gap", "fpr gap", "accuracy"]
    assert {found[name].worst for name in ("tpr gap", "fpr gap", "accuracy")} == {"c"}
    assert found["selection"].value < 0.8 < found["selection"].limit, "chance may explain it"
    assert "broken" in found["accuracy"].sentence
    assert report.broken


def test_chance_seldom_breaks_a_bound_that_holds() -> None:
    """The true gaps are 0, at the bound itself: at most one window in twenty, any measure."""
    bounds = FairnessBounds("g", tpr_gap=0.0, fpr_gap=0.0)
    broken = [
        measure.broken
        for seed in range(100)
        for measure in judge_fairness(bounds, count_groups(*fair_rows(2000, seed))).measures
        if measure.bound is not None
    ]
    assert len(broken) == 200
    assert sum(broken) <= 18  # 10 expected at most


def test_fewer_rows_are_not_judged() -> None:
    report = judge_fairness(FairnessBounds("g", accuracy=1.0), count_groups(*fair_rows(1999, 1)))
    assert (report.judged, report.measures, report.broken) == (False, (), False)
    assert report.rows == 1999


def test_without_labels_only_selection_is_judged() -> None:
    group, said, _ = fair_rows(3000, 2)
    report = judge_fairness(FairnessBounds("g"), count_groups(group, said))
    assert [measure.name for measure in report.measures] == ["selection"]
    assert report.labelled == 0


def test_the_champion_is_compared_with() -> None:
    champion = count_groups(*fair_rows(20_000, 3))
    bounds = FairnessBounds("g", against_champion=0.02)
    same = judge_fairness(bounds, count_groups(*fair_rows(4000, 4)), champion)
    assert not same.broken
    worse = judge_fairness(bounds, count_groups(*unfair_rows()), champion)
    found = by_name(worse)
    assert found["tpr gap"].worse
    assert found["accuracy"].worse
    assert found["accuracy"].champion == pytest.approx(0.85, abs=0.01)
    assert "worse" in found["accuracy"].sentence
    assert worse.broken


def test_a_champion_that_was_as_unfair_excuses_the_change_and_not_the_bound() -> None:
    counts = count_groups(*unfair_rows())
    report = judge_fairness(FairnessBounds("g", tpr_gap=0.05, against_champion=0.0), counts, counts)
    assert by_name(report)["tpr gap"].broken
    assert not any(measure.worse for measure in report.measures)


def test_nobody_selected() -> None:
    counts = {"a": GroupCounts(2000), "b": GroupCounts(2000)}
    report = judge_fairness(FairnessBounds("g", selection=0.8), counts, counts)
    assert by_name(report)["selection"].value == 1.0
    assert not report.broken


def test_one_group_never_selected() -> None:
    counts = {"a": GroupCounts(2000, 1000), "b": GroupCounts(2000, 0)}
    even = {"a": GroupCounts(2000, 1000), "b": GroupCounts(2000, 1000)}
    bounds = FairnessBounds("g", selection=0.8, against_champion=0.1)
    measure = by_name(judge_fairness(bounds, counts, even))["selection"]
    assert (measure.value, measure.worst, measure.best) == (0.0, "b", "a")
    assert measure.broken
    assert measure.worse
    assert not by_name(judge_fairness(bounds, even, counts))["selection"].worse


@pytest.mark.parametrize(
    ("counts", "nan"),
    [
        ({}, set()),
        ({"a": GroupCounts(3000, 100, 3000, 3000, 100, 100)}, {"tpr gap", "fpr gap", "selection"}),
        # one class of labels only: no false-positive rate anywhere
        (
            {
                "a": GroupCounts(2000, 2000, 2000, 2000, 2000, 2000),
                "b": GroupCounts(2000, 1000, 2000, 1000, 2000, 1000),
            },
            {"fpr gap"},
        ),
    ],
)
def test_too_little_to_compare(counts: Mapping[str, GroupCounts], nan: set[str]) -> None:
    bounds = FairnessBounds("g", tpr_gap=0.9, fpr_gap=0.0, selection=0.1)
    report = judge_fairness(bounds, counts, counts)
    assert {measure.name for measure in report.measures if math.isnan(measure.value)} == nan
    assert not report.broken
    assert all("not enough" in m.sentence for m in report.measures if m.name in nan)


def test_groups_with_few_labels_are_named() -> None:
    counts = {
        "a": GroupCounts(2000, 10, 2000, 1900, 100, 5),
        "b": GroupCounts(500, 10, 20, 1),
        "c": GroupCounts(9),
    }
    report = judge_fairness(FairnessBounds("g", accuracy=0.5), counts)
    assert report.too_small == (("b", 20), ("c", 9))
    assert by_name(report)["accuracy"].worst == "a"


# -- counts


def test_counts_merge_and_are_stored_exactly() -> None:
    group, said, truth = unfair_rows()
    whole = count_groups(group, said, truth)
    parts: dict[str, GroupCounts] = {}
    for start in range(0, 5000, 77):
        cut = slice(start, start + 77)
        parts = merged(parts, count_groups(group[cut], said[cut], truth[cut]))
    assert parts == whole
    assert counts_from_dict(parse_json(canonical_json(counts_to_dict(whole)))) == whole


def test_what_is_missing() -> None:
    found = count_groups(
        [None, float("nan"), 1.0, 1, "1", 1],
        [1, 1, 1, float("nan"), None, 1],
        [1, None, float("nan"), 0, 1, 0],
    )
    assert found == {
        MISSING: GroupCounts(2, 2, 1, 1, 1, 1, 0),
        "1": GroupCounts(4, 2, 3, 0, 1, 0, 1),
    }


def test_an_attribute_with_a_value_a_person_fills_no_memory() -> None:
    counted = count_groups(["big"] * 50 + [f"p{n:03}" for n in range(300)], [1] * 350)
    assert len(counted) == MOST_GROUPS
    assert counted["big"].rows == 50
    both = merged(counted, count_groups([f"q{n:03}" for n in range(300)], [0] * 300))
    assert len(both) == MOST_GROUPS
    assert both["big"].rows == 50
    assert sum(group.rows for group in both.values()) == 650
    assert both[OTHERS].rows == 650 - 50 - (MOST_GROUPS - 2)


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="2 groups, 1 predictions"):
        count_groups(["a", "b"], [1])


@pytest.mark.parametrize("figures", [[1, 2, 0, 0, 0, 0, 0], [1], [5, 0, 5, 0, 5, 0, 1], [-1] * 7])
def test_counts_that_cannot_be_are_refused(figures: list[int]) -> None:
    with pytest.raises(ConfigurationError):
        counts_from_dict({"a": figures})


def test_bounds_are_stored_exactly() -> None:
    bounds = FairnessBounds("sex", tpr_gap=0.1, selection=0.8, confidence=0.99)
    assert FairnessBounds.from_dict(parse_json(canonical_json(bounds.to_dict()))) == bounds
    assert FairnessBounds.from_dict({"attribute": "sex"}) == FairnessBounds("sex")


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"attribute": "sex", "tprgap": "0.1"},
        {"attribute": "sex", "tpr_gap": "1.1"},
        {"attribute": "sex", "tpr_gap": "nan"},
        {"attribute": "sex", "tpr_gap": "much"},
        {"attribute": "sex", "confidence": "0.5"},
        {"attribute": "sex", "smallest_group": 0},
    ],
)
def test_bounds_that_cannot_be_are_refused(document: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="fairness bounds"):
        FairnessBounds.from_dict(document)


# -- intervals


def test_newcombes_example() -> None:
    """Newcombe 1998, table II, 56/70 against 48/80, method 10: 0.0524 to 0.3339."""
    found = difference(wilson(56, 70), wilson(48, 80))
    assert (round(found.low, 4), round(found.high, 4)) == (0.0524, 0.3339)


def test_ratio_limits_are_where_the_contrast_is_zero() -> None:
    a, b = wilson(40, 200), wilson(70, 210)
    found = ratio(a, b)
    for r, away, toward in ((found.low, a.value - a.low, b.high - b.value),
                            (found.high, a.high - a.value, b.value - b.low)):  # fmt: skip
        assert abs(a.value - r * b.value) == pytest.approx(math.hypot(away, r * toward), abs=1e-12)
    assert found.low < found.value < found.high


@pytest.mark.parametrize(("a", "b"), [((0, 50), (20, 50)), ((20, 50), (0, 50)), ((0, 5), (0, 5)),
                                      ((50, 50), (50, 50)), ((1, 2), (1, 1000))])  # fmt: skip
def test_ratios_at_the_edge(a: tuple[int, int], b: tuple[int, int]) -> None:
    found = ratio(wilson(*a), wilson(*b))
    assert 0 <= found.low <= found.value <= found.high


def test_a_rate_of_nothing_may_be_anything() -> None:
    found = wilson(0, 0)
    assert math.isnan(found.value)
    assert (found.low, found.high) == (0.0, 1.0)
