"""Native detectors: the same figures as scipy's, the promised level, power where KS has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_breast_cancer

from drift.detector import Verdict
from drift.domain import block_z, out_of_block
from drift.examine import examine
from drift.marginal import ks_columns, table_test
from drift.native import (
    Bins,
    Default,
    DomainClassifier,
    FourierMMD,
    KolmogorovSmirnov,
    OutputKS,
)
from drift.sample import Sample


@pytest.mark.parametrize("decimals", [12, 1, 0])
def test_ks_is_that_of_scipy(decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    ours = np.round(rng.normal(size=(400, 6)), decimals)
    theirs = np.round(rng.normal(0.1, 1.2, (257, 6)), decimals)
    for i, found in enumerate(ks_columns(tuple("abcdef"), ours, theirs)):
        right = stats.ks_2samp(ours[:, i], theirs[:, i], method="asymp")
        assert found.statistic == pytest.approx(right.statistic, abs=1e-9)
        assert found.p_value == pytest.approx(right.pvalue, abs=1e-9)


def test_ks_leaves_missing_values_out_and_counts_them() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(300, 1)), rng.normal(size=(200, 1))
    theirs[:60] = np.nan
    ks, missing = ks_columns(("a",), ours, theirs)
    right = stats.ks_2samp(ours[:, 0], theirs[60:, 0], method="asymp")
    assert ks.statistic == pytest.approx(right.statistic, abs=1e-9)
    assert (missing.test, missing.statistic) == ("missing", pytest.approx(0.3))
    assert missing.p_value is not None
    assert missing.p_value < 1e-6


def test_chi_square_is_that_of_scipy_where_nothing_is_rare() -> None:
    table = np.array([[50, 60, 90], [40, 80, 70]])
    right = stats.chi2_contingency(table, correction=False)
    assert table_test(table) == pytest.approx((right.statistic, right.pvalue))


def test_rare_categories_are_merged() -> None:
    table = np.array([[1, 2, 2, 2, 93], [2, 1, 2, 2, 93]])
    merged = stats.chi2_contingency([[7, 93], [7, 93]], correction=False)
    assert table_test(table) == pytest.approx((merged.statistic, merged.pvalue))
    assert table_test(np.array([[5, 0], [7, 0]])) is None


def test_a_block_is_a_mann_whitney_statistic() -> None:
    rng = np.random.default_rng(0)
    scores, window = np.round(rng.normal(size=80), 1), rng.random(80) < 0.4
    right = stats.mannwhitneyu(
        scores[window], scores[~window], use_continuity=False, method="asymptotic"
    )
    area, z = block_z(scores, window)
    assert area == pytest.approx(right.statistic / (window.sum() * (~window).sum()))
    assert 2 * stats.norm.sf(abs(z)) == pytest.approx(right.pvalue)


def test_the_domain_classifier_keeps_its_level() -> None:
    """Cross-validation would not: its z has a spread of 1.4 here."""
    z_values = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        _, p_value = out_of_block(rng.normal(size=(40, 3)), rng.normal(size=(40, 3)), [], rng)
        z_values.append(stats.norm.isf(p_value))
    assert 0.75 < float(np.std(z_values)) < 1.25
    assert abs(float(np.mean(z_values))) < 0.4


@pytest.mark.parametrize("detector", [KolmogorovSmirnov(), Bins(), FourierMMD(permutations=99)])
def test_levels(detector: KolmogorovSmirnov | Bins | FourierMMD) -> None:
    alarms = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        ours, theirs = (Sample.of_matrix(rng.normal(size=(n, 4))) for n in (120, 80))
        alarms += detector.find(ours, theirs, rng).verdict is Verdict.DRIFT
    assert alarms <= 12  # 5 are expected; 13 or more have a chance of 0.15 %


def test_a_shift_of_the_joint_distribution_alone_is_found_by_default_and_not_by_ks() -> None:
    rng = np.random.default_rng(3)
    ours = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 600)
    theirs = rng.multivariate_normal([0, 0], [[1, -0.8], [-0.8, 1]], 600)
    samples = Sample.of_matrix(ours), Sample.of_matrix(theirs)
    assert examine(KolmogorovSmirnov(), *samples, rng).verdict is Verdict.NO_DRIFT
    assert examine(DomainClassifier(), *samples, rng).verdict is Verdict.DRIFT
    assert examine(FourierMMD(), *samples, rng).verdict is Verdict.DRIFT
    assert examine(Default(), *samples, rng).verdict is Verdict.DRIFT


def test_the_combination_spends_its_level_once() -> None:
    rng = np.random.default_rng(0)
    ours = Sample.of_matrix(rng.normal(size=(200, 3)), outputs=rng.normal(size=200))
    theirs = Sample.of_matrix(rng.normal(size=(200, 3)), outputs=rng.normal(size=200))
    found = examine(Default(), ours, theirs, rng)
    parts = found.columns[:3]
    assert {part.test for part in parts} == {"bins", "output-ks", "classifier"}
    smallest = min(part.p_value for part in parts if part.p_value is not None)
    assert found.p_value == pytest.approx(min(1.0, 3 * smallest))


def test_outputs_alone_may_tell() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 3))
    ours = Sample.of_matrix(features, outputs=rng.normal(size=400), labels=["a", "b"] * 200)
    theirs = Sample.of_matrix(features, outputs=rng.normal(1, 1, 400), labels=["a", "b"] * 200)
    found = examine(Default(), ours, theirs, rng)
    assert found.verdict is Verdict.DRIFT
    assert found.columns[0].test == "output-ks"


def test_the_same_seed_gives_the_same_answer() -> None:
    data = load_breast_cancer().data
    samples = Sample.of_matrix(data[:300]), Sample.of_matrix(data[300:])
    found = [
        examine(Default(), *samples, np.random.default_rng(7), clock=lambda: 0.0) for _ in range(2)
    ]
    assert found[0] == found[1]
    assert found[0].verdict in (Verdict.DRIFT, Verdict.NO_DRIFT)


def test_two_probabilities_that_say_the_same_are_tested_once() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = rng.beta(2, 5, 400), rng.beta(2, 5, 200)

    def outputs(first: Any, second: Any) -> Sample:
        both = np.column_stack([first, second])
        return Sample.of_matrix(np.zeros((len(first), 1)), outputs=both)

    def tested(a: Sample, b: Sample) -> list[str]:
        return [column.column for column in OutputKS().find(a, b, rng).columns]

    assert tested(outputs(ours, 1 - ours), outputs(theirs, 1 - theirs)) == ["output 0"]
    apart = tested(outputs(ours, rng.random(400)), outputs(theirs, 1 - theirs))
    assert sorted(apart) == ["output 0", "output 1"]
