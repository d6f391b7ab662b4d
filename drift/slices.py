"""Finds the slice that drifted: the rows of which the window has more, or fewer, than it should.

A tree of depth 4 learns on one half of both samples to tell the window from the reference. Its
nodes are read as predicates and scored on the other half, which the tree did not see: z is that of
two proportions (pooled), the window's share of such rows against the reference's. |z| ≥ 4 counts:
with 30 nodes a slice like that turns up by chance about once in 500 windows.

The idea of automatic slices is Chung et al., "Slice Finder" (ICDE 2019); here they describe where
the rows are, not where the model errs. A condition is dropped where the first half says that the
slice is as telling without it. After the strongest slice another is told only if it is still as
strong among the rows outside: neither its own parts nor its mirror image are told again.
Categories are put in the order of the window's share (Breiman et al., CART 1984, section 4.2.2).

Example::

    for found in find_slices(reference, window, seed=7):
        str(found.predicate), found.z    # "age > 52.5 and region in {'west'}", 9.3
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier

from drift.detector import FEWEST_ROWS
from drift.predicate import Condition, Predicate
from drift.sample import Floats, Sample, aligned, within_columns
from governance.errors import MalformedRequestError

__all__ = ["STRONG_Z", "Slice", "find_slices", "two_shares"]

STRONG_Z = 4.0
_DEPTH = 4
_MOST_ROWS = 20_000
_MOST_COLUMNS = 1_000
_RARE = 5
_TELLING = 0.97


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows that drifted, as the half that the tree did not see has them.

    Attributes:
        predicate: Which.
        rows: Of the window in it.
        share: Of the window.
        reference_share: Of the reference.
        z: Positive: the window has more of them than the reference.
    """

    predicate: Predicate
    rows: int
    share: float
    reference_share: float
    z: float


def two_shares(reference: NDArray[np.bool_], window: NDArray[np.bool_]) -> float:
    """z of two proportions, pooled; 0 where all rows are alike."""
    n, m = len(reference), len(window)
    pooled = (int(reference.sum()) + int(window.sum())) / (n + m)
    variance = pooled * (1 - pooled) * (1 / n + 1 / m)
    gap = float(window.mean() - reference.mean())
    return gap / math.sqrt(variance) if variance > 0 else 0.0


def find_slices(
    reference: Sample, window: Sample, *, seed: int, strong: float = STRONG_Z, most: int = 5
) -> tuple[Slice, ...]:
    """Slices with |z| of at least ``strong``, the strongest first. The same seed, the same answer.

    Raises:
        MalformedRequestError: columns are missing or changed, or there are too few rows.
    """
    rng = np.random.default_rng(seed)
    window, _ = aligned(reference, window)
    for what, sample in (("reference", reference), ("window", window)):
        if sample.rows < 2 * FEWEST_ROWS:
            raise MalformedRequestError(
                f"the {what} has {sample.rows} rows; slices need {2 * FEWEST_ROWS}"
            )
    if not reference.names:
        raise MalformedRequestError("there are no columns to find slices in")
    reference, window, _ = within_columns(reference, window, rng, _MOST_COLUMNS)
    learnt, held = zip(*(_halves(sample, rng) for sample in (reference, window)), strict=True)
    simple = {_simple(node, *learnt) for node in _nodes(_Grid(*learnt), seed)}
    scored = [_scored(predicate, *held) for predicate in simple]
    # Mirror images are equally strong: the smaller of them is the part that came or went.
    scored.sort(key=lambda s: (-round(abs(s.z), 6), s.share + s.reference_share, str(s.predicate)))
    kept: list[Slice] = []
    rest = held
    for one in scored:
        if abs(one.z) < strong or len(kept) == most:
            break
        # What stronger slices explain is not told again, nor is what is left beside them.
        if not kept or abs(two_shares(*map(one.predicate.matches, rest))) >= strong:
            kept.append(one)
            ours, theirs = (sample.take(~one.predicate.matches(sample)) for sample in rest)
            rest = ours, theirs
            if not ours.rows or not theirs.rows:
                break
    return tuple(kept)


def _halves(sample: Sample, rng: np.random.Generator) -> tuple[Sample, Sample]:
    sample = sample.drawn(rng, _MOST_ROWS)
    order = rng.permutation(sample.rows)
    half = sample.rows // 2
    return sample.take(np.sort(order[:half])), sample.take(np.sort(order[half:]))


def _scored(predicate: Predicate, reference: Sample, window: Sample) -> Slice:
    ours, theirs = predicate.matches(reference), predicate.matches(window)
    z = two_shares(ours, theirs)
    return Slice(predicate, int(theirs.sum()), float(theirs.mean()), float(ours.mean()), z)


def _simple(predicate: Predicate, reference: Sample, window: Sample) -> Predicate:
    """With the fewest conditions and ends, by the half that the tree learnt from."""

    def z(candidate: Predicate) -> float:
        return abs(_scored(candidate, reference, window).z)

    best = z(predicate)
    for condition in predicate.conditions:
        others = predicate.without(condition.column)
        candidates = [others] if others.conditions else []
        candidates += [others.also(simpler) for simpler in _simpler(condition)]
        for candidate in candidates:
            if (found := z(candidate)) >= _TELLING * best:
                predicate, best = candidate, max(best, found)
                break
    return predicate


def _simpler(condition: Condition) -> list[Condition]:
    """What may be said in its place."""
    if condition.values is not None:
        return []
    found = []
    if condition.missing:
        found.append(replace(condition, above=math.inf, upto=math.inf))
        found.append(replace(condition, missing=False))
    if math.isfinite(condition.above) and math.isfinite(condition.upto):
        found += [replace(condition, above=-math.inf), replace(condition, upto=math.inf)]
    return found


class _Grid:
    """Both samples as numbers that a tree can split, and how to read a split back."""

    def __init__(self, reference: Sample, window: Sample) -> None:
        self.sample = reference
        self.labels = np.repeat([False, True], [reference.rows, window.rows])
        numbers = np.concatenate([reference.numbers, window.numbers])
        # 32 bits is what trees compare with; an infinite value is the largest of them.
        most = float(np.finfo(np.float32).max)
        numbers = np.clip(numbers, -most, most)
        texts = np.concatenate([reference.categories, window.categories])
        self.orders = [_order(texts[:, i], self.labels) for i in range(texts.shape[1])]
        codes = np.empty(texts.shape)
        for i, order in enumerate(self.orders):
            code = {value: number for number, group in enumerate(order) for value in group}
            codes[:, i] = [code[value] for value in texts[:, i]]
        self.rows: Floats = np.column_stack([numbers, codes])
        self.gone = np.isnan(self.rows).any(axis=0)
        self.names = (*reference.numeric, *reference.categorical)
        self.domain = {
            name: frozenset(value for group in order for value in group)
            for name, order in zip(reference.categorical, self.orders, strict=True)
        }

    def sides(self, feature: int, threshold: float, left: bool) -> tuple[Condition, Condition]:
        """The conditions of a split's left and right; ``left``: missing values go there."""
        name = self.names[feature]
        if feature < len(self.sample.numeric):
            some = bool(self.gone[feature])
            return (
                Condition(name, upto=threshold, missing=some and left),
                Condition(name, above=threshold, missing=some and not left),
            )
        order = self.orders[feature - len(self.sample.numeric)]
        cut = math.floor(threshold) + 1
        low = frozenset(value for group in order[:cut] for value in group)
        high = self.domain[name] - low
        # The side with the group of rare values takes those not seen here: it says "not in".
        rare = next((i for i, group in enumerate(order) if len(group) > 1), None)
        open_low = rare is not None and rare < cut
        open_high = rare is not None and not open_low
        return (
            Condition(name, values=high if open_low else low, excluded=open_low),
            Condition(name, values=low if open_high else high, excluded=open_high),
        )


def _order(texts: NDArray[Any], labels: NDArray[np.bool_]) -> list[list[str | None]]:
    """Groups of values by the window's share among their rows; rare ones are one group."""
    counts: dict[str | None, list[int]] = {}
    for value, label in zip(texts.tolist(), labels.tolist(), strict=True):
        counts.setdefault(value, [0, 0])[label] += 1
    rare = sorted((v for v, n in counts.items() if sum(n) < _RARE), key=str)
    groups = [[value] for value in counts if sum(counts[value]) >= _RARE]
    groups += [rare] if rare else []

    def share(group: list[str | None]) -> tuple[float, str]:
        ours, theirs = (sum(counts[value][side] for value in group) for side in (0, 1))
        return theirs / (ours + theirs), str(group[0])

    return sorted(groups, key=share)


def _nodes(grid: _Grid, seed: int) -> list[Predicate]:
    """The path to every node but the root."""
    balance = np.where(grid.labels, 1 / grid.labels.sum(), 1 / (~grid.labels).sum())
    tree = DecisionTreeClassifier(
        max_depth=_DEPTH,
        min_samples_leaf=max(10, len(grid.labels) // 100),
        random_state=seed,
    )
    tree.fit(grid.rows, grid.labels, sample_weight=balance / balance.mean())
    nodes = tree.tree_
    found: list[Predicate] = []

    def walk(node: int, here: Predicate) -> None:
        below = nodes.children_left[node], nodes.children_right[node]
        if below[0] == below[1]:
            return
        left = bool(nodes.missing_go_to_left[node])
        sides = grid.sides(int(nodes.feature[node]), float(nodes.threshold[node]), left)
        for child, condition in zip(below, sides, strict=True):
            further = here.merged(condition, grid.domain)
            found.append(further)
            walk(child, further)

    walk(0, Predicate(()))
    return found
