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
    """ln of the e-value of one column: bets on all its bins and on its two halves."""
    cuts = range(1, len(counts))
    middle = min(cuts, key=lambda cut: (round(abs(sum(probabilities[:cut]) - 0.5), 9), cut))
    two = [sum(counts[:middle]), sum(counts[middle:])]
    halves = [sum(probabilities[:middle]), sum(probabilities[middle:])]
    logs = [*_log_bets(counts, probabilities), *_log_bets(two, halves)]
    largest = max(logs)
    return largest + math.log(sum(math.exp(log - largest) for log in logs) / len(logs))


def _log_bets(counts: list[int], probabilities: list[float]) -> list[float]:
    """Of each strength, one row after another, as products of predictions.

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
    return logs


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


def slow_components(profile: DriftProfile, columns: dict[str, Any]) -> dict[str, Any]:
    """Principal components, value by value."""
    made = profile.components
    if made is None:
        return {}
    rows = len(columns[made.features[0]])
    found: dict[str, Any] = {name: np.zeros(rows, np.float32) for name in made.names}
    for row in range(rows):
        spreads = []
        for name, mean, spread in zip(made.features, made.means, made.spreads, strict=True):
            value = float(columns[name][row])
            spreads.append((value - mean) / spread if math.isfinite(value) else 0.0)
        for name, direction in zip(made.names, made.directions, strict=True):
            total = math.fsum(w * value for w, value in zip(direction, spreads, strict=True))
            found[name][row] = round(total, 4)
    return found


def slow_counts(profile: DriftProfile, columns: dict[str, Any]) -> NDArray[np.int64]:
    """Flat counts by each column's own codes."""
    columns = {**columns, **slow_components(profile, columns)}
    return np.concatenate(
        [
            np.bincount(column.bins.codes(columns[column.name]), minlength=column.bins.size)
            for column in profile.columns
        ]
    )
