"""Rows to fit profiles to, and plain slow implementations to check the quick ones against."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.fitting import fit_profile
from drift.profile import DriftProfile

TOWNS = np.array(["Aarhus", "Bergen", "Cork", "Delft"])


def reference_rows(rows: int, seed: int = 0) -> dict[str, Any]:
    """A numeric, an integer, a category, a flag and a constant column."""
    rng = np.random.default_rng(seed)
    return {
        "amount": rng.lognormal(3.0, 1.0, rows),
        "visits": rng.poisson(3.0, rows),
        "town": TOWNS[rng.choice(4, rows, p=[0.5, 0.3, 0.19, 0.01])],
        "known": rng.random(rows) < 0.7,
        "fee": np.full(rows, 7.5),
    }


def small_profile(rows: int = 20_000, window: int = 500, **settings: Any) -> DriftProfile:
    """Of ``reference_rows``, with a score as output."""
    score = np.random.default_rng(99).beta(2.0, 5.0, rows)
    table = settings.pop("features", None) or reference_rows(rows)
    return fit_profile(table, {"score": score}, model="fraud", window=window, **settings)


def live_rows(rows: int, seed: int = 1) -> dict[str, Any]:
    """Rows that come from where the reference came from."""
    score = np.random.default_rng(seed + 1000).beta(2.0, 5.0, rows)
    return {**reference_rows(rows, seed), "score": score}


def slow_log_e(counts: list[int], probabilities: list[float]) -> float:
    """ln of the e-value of one column, one row after another, as products of predictions.

    The Dirichlet-multinomial likelihood is the product over rows of (a_b + seen_b) / (K + seen).
    """
    logs = []
    for strength in (30.0, 200.0, 1000.0):
        log, seen = 0.0, 0
        for count, p in zip(counts, probabilities, strict=True):
            for already in range(count):
                log += math.log((strength * p + already) / (strength + seen)) - math.log(p)
                seen += 1
        logs.append(log)
    largest = max(logs)
    return largest + math.log(sum(math.exp(log - largest) for log in logs) / 3)


def slow_psi(counts: list[int], probabilities: list[float]) -> float:
    """PSI of one column."""
    bins, rows = len(counts), sum(counts)
    total = 0.0
    for count, p in zip(counts, probabilities, strict=True):
        q = (count + bins * p) / (rows + bins)
        total += (q - p) * math.log(q / p)
    return total


def slow_bin(value: float, cuts: tuple[float, ...]) -> int:
    """Where one number falls."""
    if not math.isfinite(value):
        return 0
    return 2 + sum(cut <= value for cut in cuts)


def slow_counts(profile: DriftProfile, columns: dict[str, Any]) -> NDArray[np.int64]:
    """Flat counts by each column's own codes."""
    return np.concatenate(
        [
            np.bincount(column.bins.codes(columns[column.name]), minlength=column.bins.size)
            for column in profile.columns
        ]
    )
