"""Whether a model's prediction for a row depends on the rows beside it.

Rows of different clients may be predicted together only if it does not. That cannot be read from a
model, so it is tried: rows are predicted one by one, then in batches of several sizes and orders,
and the results compared. A model that fails the trial, or on which it shows nothing, counts as
dependent, and its requests are predicted one by one.

Batches need not be equal to the last bit: matrix products over many rows add up in another order.
What is allowed, relative to the values: 1e-9 for 64-bit results, 1e-5 for 32-bit ones. Values near
zero are compared with a thousandth of what is usual at their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from serve.decode import Array, Layout
from serve.encode import Kind, kind_of, rows_of

if TYPE_CHECKING:
    from serve.scoring import Scorer

__all__ = ["Dependent", "Independent", "agrees_on_arrays", "probe_rows", "row_independence"]

TOLERANCE = 1e-9
TOLERANCE_32 = 1e-5

_ROWS = 12
_LARGE_BATCH = 64
_SEED = 7


@dataclass(frozen=True, slots=True)
class Independent:
    """Batches give what single rows give.

    Args:
        exact: To the last bit, in every batch tried.
        deviation: The largest relative difference seen; 0.0 if exact.
        rows: How many different rows were tried.
        kind: What predictions are made of; a batch of another kind is not to be taken apart.
    """

    exact: bool
    deviation: float
    rows: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Dependent:
    """Batches are not allowed; ``reason`` completes "the model's rows are not batched: …"."""

    reason: str


def row_independence(scorer: Scorer, example: Any = None) -> Independent | Dependent:
    """Try a model on single rows and on batches. Never raises for what the model does.

    Args:
        scorer: The loaded model.
        example: Rows to try (DataFrame, array or list); by default the model's input example, or
            values made from its signature.
    """
    if scorer.layout is None:
        return Dependent("its signature is not one numeric type, so MLflow's own code reads them")
    singles, kept, trouble = _singles(scorer, probe_rows(scorer, example))
    if len(singles) < 2:
        return Dependent(
            f"too few probe rows could be predicted ({trouble}); give an input example"
        )
    kinds = {kind_of(raw) for raw in singles}
    if len(kinds) != 1:
        return Dependent(
            f"single rows get predictions of different kinds: {sorted(map(str, kinds))}"
        )
    kind = kinds.pop()
    try:
        expected = [rows_of(raw, 1)[0] for raw in singles]
        if all(row == expected[0] for row in expected):
            return Dependent("all probe rows get the same prediction, which shows nothing")
        worst = 0.0
        for order in _orders(len(kept)):
            raw = scorer.predict(kept[order])
            if kind_of(raw) != kind:
                return Dependent(f"batches become {kind_of(raw)}, single rows {kind}")
            batch = rows_of(raw, len(order))
            worst = max(worst, _deviation([expected[i] for i in order], batch))
    except Exception as error:  # noqa: BLE001 - whatever the model raises on a batch
        return Dependent(f"a batch of rows that pass singly failed: {error!r}")
    if worst > _tolerance(kind):
        return Dependent(f"a row's prediction changes with the rows beside it (by {worst:.2g})")
    return Independent(worst == 0.0, worst, len(kept), kind)


def agrees_on_arrays(scorer: Scorer, rows: Array) -> bool:
    """Whether a model that is given arrays answers as it does when given DataFrames."""
    try:
        frame, array = scorer.predict(rows, arrays=False), scorer.predict(rows, arrays=True)
        if kind_of(frame) != kind_of(array):
            return False
        difference = _deviation(rows_of(frame, len(rows)), rows_of(array, len(rows)))
    except Exception:  # noqa: BLE001 - a model that needs DataFrames may raise anything
        return False
    return difference <= _tolerance(kind_of(frame))


def probe_rows(scorer: Scorer, example: Any = None) -> Array:
    """Different rows to try a model on, always the same ones.

    Returns:
        Shape ``(n, *layout.shape)``, n ≥ 12: rows of the example as they are, then scaled at
        random; made from the signature where there is no example that fits it.
    """
    layout = scorer.layout
    assert layout is not None
    random = np.random.default_rng(_SEED)
    given = _example_rows(layout, scorer.model.input_example if example is None else example)
    made = random.normal(size=(_ROWS, *layout.shape)) * 10.0 ** random.integers(
        -1, 3, size=(_ROWS, *layout.shape)
    )
    if given is None:
        return _as_type(made, layout)
    given = given[:: max(1, len(given) // _ROWS)][:_ROWS]
    near = np.resize(given, made.shape) * random.uniform(0.5, 1.5, size=made.shape)
    far = np.resize(given, made.shape) * random.uniform(-10, 10, size=made.shape)
    return np.concatenate([_as_type(rows, layout) for rows in (given, near, far)])


def _example_rows(layout: Layout, example: Any) -> Array | None:
    if example is None:
        return None
    try:
        if layout.names is not None:
            import pandas as pd  # type: ignore[import-untyped]

            frame = example if isinstance(example, pd.DataFrame) else pd.DataFrame(example)
            example = frame[list(layout.names)]
        rows: Array = np.asarray(example, dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        return None
    if rows.shape[1:] != layout.shape or not len(rows) or not np.isfinite(rows).all():
        return None
    return rows


def _as_type(rows: Array, layout: Layout) -> Array:
    dtype = np.dtype(layout.dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        rows = np.clip(np.rint(rows), max(limits.min, -(2**31)), min(limits.max, 2**31 - 1))
    return rows.astype(dtype)


def _singles(scorer: Scorer, rows: Array) -> tuple[list[Any], Array, str]:
    """Predictions of single rows that come out twice the same, these rows, and what went wrong."""
    found, kept, trouble = [], [], "no rows"
    for at in range(len(rows)):
        try:
            raw, again = (scorer.predict(rows[at : at + 1]) for _ in range(2))
            if _deviation(rows_of(raw, 1), rows_of(again, 1)) == 0.0:
                found.append(raw)
                kept.append(at)
            else:
                trouble = "the same row gets different predictions"
        except Exception as error:  # noqa: BLE001 - made-up rows may be none that the model takes
            trouble = repr(error)
    return found, rows[kept], trouble


def _orders(count: int) -> list[Array]:
    """Batches to try, as indexes into the rows: pairs, all, all backwards, many mixed."""
    random = np.random.default_rng(_SEED)
    forward = np.arange(count)
    mixed = random.permutation(np.resize(forward, _LARGE_BATCH))
    return [forward[:2], forward, forward[::-1], mixed]


def _tolerance(kind: Kind) -> float:
    return TOLERANCE_32 if "float32" in str(kind) or "float16" in str(kind) else TOLERANCE


def _deviation(expected: list[Any], found: list[Any]) -> float:
    """The largest relative difference between two lists of rows; infinite if they do not match."""
    pairs = [(_taken_apart(a), _taken_apart(b)) for a, b in zip(expected, found, strict=True)]
    if any(a[0] != b[0] for a, b in pairs):
        return float("inf")
    if len({len(a[1]) for a, _ in pairs}) != 1:
        return 0.0 if all(a[1] == b[1] for a, b in pairs) else float("inf")
    one = np.array([a[1] for a, _ in pairs], dtype=np.float64)
    two = np.array([b[1] for _, b in pairs], dtype=np.float64)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    if same.all():
        return 0.0
    if not (np.isfinite(one) & np.isfinite(two) | same).all():
        return float("inf")
    usual = np.abs(np.where(same & ~np.isfinite(one), 0, one)).mean(axis=0) * 1e-3
    size = np.maximum(np.maximum(np.abs(one), np.abs(two)), usual)
    difference = np.abs(np.where(same, 0, one - two))
    return float((difference / np.where(same, 1, size)).max())


def _taken_apart(value: Any) -> tuple[Any, list[float]]:
    """A row as what surrounds its numbers, and its numbers."""
    numbers: list[float] = []

    def walk(part: Any) -> Any:
        if isinstance(part, np.ndarray):
            part = part.tolist()
        if isinstance(part, dict):
            return {key: walk(inner) for key, inner in part.items()}
        if isinstance(part, list | tuple):
            return [walk(inner) for inner in part]
        if isinstance(part, int | float | np.number) and not isinstance(part, bool):
            numbers.append(float(part))
            return None
        return ("", part)

    return walk(value), numbers
