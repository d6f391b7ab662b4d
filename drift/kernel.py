"""Maximum mean discrepancy by random Fourier features: linear in the rows.

The statistic is Gretton et al., "A Kernel Two-Sample Test" (JMLR 2012), section 2.2, for a Gaussian
kernel, approximated with the features of Rahimi and Recht, "Random Features for Large-Scale Kernel
Machines" (NIPS 2007), algorithm 1: the squared distance of two means in 2·D dimensions. The width
is the median distance of pairs of both samples (Gretton, section 8). The p-value comes from
permutations of the rows, and counts the observed order as one of them (Phipson and Smyth 2010).
"""

from __future__ import annotations

import numpy as np

from drift.sample import Floats

__all__ = ["fourier_features", "median_distance", "permutation_mmd"]

_PAIRS = 500


def median_distance(rows: Floats, rng: np.random.Generator) -> float:
    """Of pairs of at most 500 rows; 1 where all rows are the same."""
    chosen = rows[rng.choice(len(rows), min(_PAIRS, len(rows)), replace=False)]
    squares = (chosen**2).sum(axis=1)
    distances = squares[:, None] + squares[None, :] - 2 * chosen @ chosen.T
    between = distances[np.triu_indices(len(chosen), 1)]
    found = float(np.sqrt(max(0.0, float(np.median(between)))))
    return found if found > 0 and np.isfinite(found) else 1.0


def fourier_features(rows: Floats, count: int, rng: np.random.Generator) -> Floats:
    """(rows, 2·count): cosines and sines of random projections, of mean product k(x, y)."""
    width = median_distance(rows, rng)
    angles = rows @ (rng.standard_normal((rows.shape[1], count)) / width)
    found: Floats = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / np.sqrt(count)
    return found


def permutation_mmd(
    reference: Floats, window: Floats, count: int, permutations: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Squared MMD and its p-value; both samples (rows, dimensions), without missing values."""
    features = fourier_features(np.concatenate([reference, window]), count, rng)
    n, m = len(reference), len(window)
    total = features.sum(axis=0)

    def squared(sums: Floats) -> Floats:
        """Of sums of the features over the window's rows, (…, dimensions)."""
        gap = sums / m - (total - sums) / n
        return np.asarray((gap**2).sum(axis=-1))

    observed = float(squared(features[n:].sum(axis=0)))
    chosen = np.zeros((permutations, n + m))
    for row in chosen:
        row[rng.choice(n + m, m, replace=False)] = 1.0
    null = squared(chosen @ features)
    # Rows that are all the same leave differences of rounding alone.
    reached = int((null >= observed - 1e-12).sum())
    return observed, (1 + reached) / (1 + permutations)
