"""Tests of one column at a time: Kolmogorov-Smirnov, chi-square, missing and unseen values.

- The KS distance is the two-sample one of scipy and of Alibi Detect's ``KSDrift``; its p-value is
  the one-sample distribution at the effective size n·m/(n+m) (Simard and L'Ecuyer 2011, as in
  scipy's ``asymp``).
- Missing values never enter it: they are counted, and their share has a test of its own.
- Bins and merged categories are chosen from both samples together, so that under "no drift" every
  split of the rows into the two samples is equally likely, and the test keeps its level.
- A chi-square needs an expected count of 5 in each cell (Cochran 1954): rarer categories are
  merged, and 2 × 2 tables below that take Fisher's exact test.

Shapes: columns are (rows,); tables (2, categories), the reference first.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from drift.detector import ColumnFinding
from drift.sample import Floats, Sample, Texts

__all__ = [
    "binned_columns",
    "categorical_columns",
    "counted",
    "ks_columns",
    "ks_distance",
    "ks_p_value",
    "label_column",
    "missing_column",
    "table_test",
]

_EXPECTED = 5.0
_BINS = 10


def ks_distance(reference: Floats, window: Floats) -> float:
    """The largest difference of two empirical distributions; both sorted, none missing."""
    both = np.concatenate([reference, window])
    below = np.searchsorted(reference, both, side="right") / len(reference)
    below -= np.searchsorted(window, both, side="right") / len(window)
    return float(np.max(np.abs(below)))


def ks_p_value(distance: float, n: int, m: int) -> float:
    """Of a two-sample KS distance with n and m values."""
    return float(np.clip(stats.kstwo.sf(distance, max(1, round(n * m / (n + m)))), 0.0, 1.0))


def table_test(table: NDArray[np.int64]) -> tuple[float, float] | None:
    """Chi-square and p-value, rare categories merged; None: one category is left."""
    table = table[:, table.sum(axis=0) > 0]
    sizes = table.sum(axis=1)
    if table.shape[1] < 2 or not sizes.all():
        return None
    smaller = sizes.min() / sizes.sum()
    if table.shape[1] == 2 and table.sum(axis=0).min() * smaller < _EXPECTED:
        share = table[:, 0] / sizes
        return float(abs(share[0] - share[1])), float(stats.fisher_exact(table).pvalue)
    order = np.argsort(table.sum(axis=0), kind="stable")
    table = table[:, order]
    rare = int((table.sum(axis=0) * smaller < _EXPECTED).sum())
    if rare:
        rest = table[:, :rare].sum(axis=1)
        while rest.sum() * smaller < _EXPECTED and rare < table.shape[1]:
            rest, rare = rest + table[:, rare], rare + 1
        table = np.column_stack([rest, table[:, rare:]])
    if table.shape[1] < 2:
        return None
    expected = np.outer(sizes, table.sum(axis=0)) / sizes.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    return statistic, float(stats.chi2.sf(statistic, table.shape[1] - 1))


def missing_column(
    name: str, reference: NDArray[np.bool_], window: NDArray[np.bool_]
) -> ColumnFinding | None:
    """The difference of the shares of missing values; None: none is missing, or all."""
    missing = np.array([reference.sum(), window.sum()])
    there = np.array([len(reference), len(window)]) - missing
    found = table_test(np.column_stack([missing, there]))
    if found is None:
        return None
    share = missing / (missing + there)
    return ColumnFinding(name, "missing", float(share[1] - share[0]), found[1])


def ks_columns(
    names: tuple[str, ...], reference: Floats, window: Floats
) -> Iterator[ColumnFinding]:
    """KS and missing values of each column of two matrices (rows, columns)."""
    ours, theirs = np.sort(reference, axis=0), np.sort(window, axis=0)  # NaN last
    gone = np.isnan(ours), np.isnan(theirs)
    n, m = (~gone[0]).sum(axis=0), (~gone[1]).sum(axis=0)
    for i, name in enumerate(names):
        if n[i] and m[i]:
            distance = ks_distance(ours[: n[i], i], theirs[: m[i], i])
            p_value = ks_p_value(distance, int(n[i]), int(m[i]))
            yield ColumnFinding(name, "ks", distance, p_value)
        if missing := missing_column(name, gone[0][:, i], gone[1][:, i]):
            yield missing


def binned_columns(
    names: tuple[str, ...], reference: Floats, window: Floats
) -> Iterator[ColumnFinding]:
    """Chi-square over quantile bins of both, and missing values, of each column.

    Missing values have a test of their own: as one bin of eleven they are overlooked (power .45
    against 1.00 where 15 % of one of 30 columns went missing). There are ten bins, or fewer where
    six rows of the smaller sample would not fall into each.
    """
    bins = max(2, min(_BINS, min(len(reference), len(window)) // 6))
    for i, name in enumerate(names):
        ours, theirs = reference[:, i], window[:, i]
        both = np.concatenate([ours, theirs])
        values = both[~np.isnan(both)]
        if not len(values):
            continue
        # No interpolation: between an infinite value and another there is none.
        inner = np.linspace(0, 1, bins + 1)[1:-1]
        edges = np.unique(np.quantile(values, inner, method="inverted_cdf"))
        table = np.stack([_counts(ours, edges), _counts(theirs, edges)])
        if found := table_test(table):
            yield ColumnFinding(name, "chi2", *found)
        if missing := missing_column(name, np.isnan(ours), np.isnan(theirs)):
            yield missing


def _counts(values: Floats, edges: Floats) -> NDArray[np.int64]:
    """By bin, missing ones left out."""
    bins = np.searchsorted(edges, values[~np.isnan(values)], side="left")
    return np.bincount(bins, minlength=len(edges) + 1).astype(np.int64)


def categorical_columns(
    names: tuple[str, ...], reference: Texts, window: Texts, rng: np.random.Generator
) -> Iterator[ColumnFinding]:
    """Chi-square of each column, missing being a category, and unseen values of rare ones.

    Where categories are too rare to be compared one by one (identifiers, free text), the share of
    rows with a value that half of the reference has not is compared with the other half's.
    """
    for i, name in enumerate(names):
        ours, theirs = reference[:, i], window[:, i]
        table = counted(ours, theirs)
        if found := table_test(table):
            yield ColumnFinding(name, "chi2", *found)
        if table.shape[1] > 2 and (table.sum(axis=0) < 2 * _EXPECTED).any():
            order = rng.permutation(len(ours))
            known = set(ours[order[: len(ours) // 2]])
            rest = ours[order[len(ours) // 2 :]]
            unseen = [np.array([value not in known for value in part]) for part in (rest, theirs)]
            if missing := missing_column(name, unseen[0], unseen[1]):
                yield ColumnFinding(name, "unseen", missing.statistic, missing.p_value)


def counted(reference: Texts, window: Texts) -> NDArray[np.int64]:
    """A table of the categories of both."""
    number: dict[object, int] = {}
    codes = [np.array([number.setdefault(v, len(number)) for v in p]) for p in (reference, window)]
    return np.stack([np.bincount(c, minlength=len(number)) for c in codes]).astype(np.int64)


def label_column(reference: Sample, window: Sample) -> ColumnFinding | None:
    """Chi-square of the predicted classes."""
    if reference.labels is None or window.labels is None:
        return None
    found = table_test(counted(reference.labels, window.labels))
    return ColumnFinding("label", "chi2", *found) if found else None
