"""Samples as matrices, for detectors that look at all columns together.

What is scaled, merged or filled in is decided from both samples together, never from one: under "no
drift" a permutation of the rows then changes nothing, which the tests' levels rest on.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from drift.sample import Floats, Sample, Texts
from governance.errors import MalformedRequestError

__all__ = ["Part", "coded", "dense", "raw"]

_CATEGORIES = 30
"""Of a column: the rest share one."""


class Part(StrEnum):
    """What of a sample is looked at."""

    FEATURES = "features"
    OUTPUTS = "outputs"
    EMBEDDINGS = "embeddings"


def raw(reference: Sample, window: Sample, part: Part) -> tuple[Floats, Floats, list[int]]:
    """Matrices (rows, columns) with NaN for missing; which columns are codes of categories.

    Infinite values become the largest finite one of the column.

    Raises:
        MalformedRequestError: the samples have no such part.
    """
    ours, theirs = _numbers(reference, part), _numbers(window, part)
    if part is Part.FEATURES:
        codes = _codes(reference, window)
        numeric = ours.shape[1]
        ours = np.column_stack([ours, codes[: len(ours)]])
        theirs = np.column_stack([theirs, codes[len(ours) :]])
        categorical = list(range(numeric, ours.shape[1]))
    else:
        categorical = []
    if not ours.shape[1]:
        raise MalformedRequestError(f"the samples have no {part} to compare")
    both = _bounded(np.concatenate([ours, theirs]))
    return both[: len(ours)], both[len(ours) :], categorical


def dense(reference: Sample, window: Sample, part: Part) -> tuple[Floats, Floats]:
    """Matrices without missing values: scaled numbers, a column per category and for missing."""
    ours, theirs, categorical = raw(reference, window, part)
    both = np.concatenate([ours, theirs])
    numeric = np.delete(both, categorical, axis=1)
    gone = np.isnan(numeric)
    some = np.where(gone, 0.0, 1.0).sum(axis=0) > 0
    numeric, gone = numeric[:, some], gone[:, some]
    mean, spread = np.nanmean(numeric, axis=0), np.nanstd(numeric, axis=0)
    scaled = (numeric - mean) / np.where(spread > 0, spread, 1.0)
    scaled[gone] = 0.0
    parts = [scaled, gone[:, gone.any(axis=0)].astype(np.float64)]
    for column in categorical:
        codes = both[:, column].astype(np.int64)
        # Two rows of different categories are as far apart as two numbers one spread apart.
        parts.append(np.eye(int(codes.max()) + 1)[codes] / np.sqrt(2))
    found = np.column_stack(parts)
    return found[: len(ours)], found[len(ours) :]


def coded(reference: Texts, window: Texts) -> tuple[Floats, Floats]:
    """Every category as a number of its own; NaN where it is missing."""
    both = np.concatenate([reference, window])
    found = np.full(both.shape, np.nan)
    for i in range(both.shape[1]):
        there = sorted({value for value in both[:, i] if value is not None})
        number = {value: float(code) for code, value in enumerate(there)}
        found[:, i] = [number.get(value, np.nan) for value in both[:, i]]
    return found[: len(reference)], found[len(reference) :]


def _numbers(sample: Sample, part: Part) -> Floats:
    if part is Part.FEATURES:
        return sample.numbers
    found = sample.outputs if part is Part.OUTPUTS else sample.embeddings
    if found is None:
        raise MalformedRequestError(f"the samples have no {part} to compare")
    return found


def _codes(reference: Sample, window: Sample) -> Floats:
    """(rows of both, categorical columns): the commonest first, the last one for the rest."""
    both = np.concatenate([reference.categories, window.categories])
    found = np.empty(both.shape)
    for i in range(both.shape[1]):
        counts = Counter(both[:, i].tolist())
        common = sorted(counts, key=lambda v: (-counts[v], v is None, str(v)))[:_CATEGORIES]
        number = {value: code for code, value in enumerate(common)}
        found[:, i] = [number.get(value, len(common)) for value in both[:, i]]
    return found


def _bounded(values: Floats) -> Floats:
    """With the column's largest and smallest finite value for infinite ones, at most 1e100."""
    infinite: NDArray[np.bool_] = np.isinf(values)
    values = np.clip(values, -1e100, 1e100)
    for column in np.flatnonzero(infinite.any(axis=0)):
        finite = values[~infinite[:, column] & ~np.isnan(values[:, column]), column]
        low, high = (finite.min(), finite.max()) if len(finite) else (-1.0, 1.0)
        values[:, column] = np.clip(values[:, column], low - 1.0, high + 1.0)
    return values
