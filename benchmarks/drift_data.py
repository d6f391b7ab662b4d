"""Data and shifts for the drift benchmarks.

*digits* and *breast cancer* come with scikit-learn, *census* is that of ``examples/census.py``.
*normal* is synthetic: twenty correlated normal columns; *mixed*: skewed, discrete and zero-heavy
columns, each of which depends on others (one that does not can be shuffled without any change).

Shifts follow "Failing Loudly" (S. Rabanser, S. Günnemann and Z. Lipton, NeurIPS 2019): label
shift, noise on a part of rows; and three that marginal tests miss or stumble over: a small move of
few columns, a change of the joint distribution alone, missing values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["DATA", "SHIFTS", "Data", "Shift", "shifts"]

Matrix = Any
Shift = Callable[[Matrix, Any, np.random.Generator], tuple[Matrix, Any]]


@dataclass(frozen=True)
class Data:
    """Rows and classes.

    Attributes:
        x: (n, d) numbers.
        y: (n,) classes, whole numbers.
    """

    x: Matrix
    y: Any

    @property
    def spread(self) -> Any:
        """Of each column (d,)."""
        return self.x.std(axis=0) + 1e-9


def _sklearn(load: str) -> Data:
    from sklearn import datasets

    found = getattr(datasets, load)()
    return Data(found.data.astype(float), found.target)


def _normal(rows: int = 40_000, columns: int = 20) -> Data:
    rng = np.random.default_rng(11)
    x = rng.normal(size=(rows, columns)) @ rng.normal(size=(columns, columns)) / columns**0.5
    chance = 1 / (1 + np.exp(-2 * x[:, 0] - x[:, 1] * x[:, 2]))
    return Data(x, (rng.random(rows) < chance).astype(int))


def _mixed(rows: int = 40_000) -> Data:
    rng = np.random.default_rng(12)
    age = rng.integers(18, 90, rows).astype(float)
    income = rng.lognormal(3 + age / 90, 0.6)
    claims = rng.poisson(0.3 + income / 200).astype(float)
    region = np.floor(age / 8 + rng.integers(0, 4, rows)) % 12
    savings = np.where(rng.random(rows) < 0.6, 0.0, rng.exponential(income))
    measured = 0.8 * rng.normal(size=(rows, 1)) + 0.6 * rng.normal(size=(rows, 5))
    x = np.column_stack([age, income, claims, region, savings, measured])
    chance = 1 / (1 + np.exp(-(claims - 0.6) - (region > 8) + savings / 100))
    return Data(x, (rng.random(rows) < chance).astype(int))


def census(most: int = 40_000) -> Data:
    """People of 2015; categories by their codes."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
    from census import rows

    people = rows()
    people = people[people["year"] == 2015]
    y = people["employed"].to_numpy()
    answers = people.drop(columns=["employed", "year", "prediction", "predicted_probability"])
    x = answers.astype(float).to_numpy()
    order = np.random.default_rng(13).permutation(len(x))[:most]
    return Data(x[order], y[order])


DATA: Mapping[str, Callable[[], Data]] = {
    "breast cancer": lambda: _sklearn("load_breast_cancer"),
    "digits": lambda: _sklearn("load_digits"),
    "census": census,
    "normal": _normal,
    "mixed": _mixed,
}


def shifts(data: Data) -> dict[str, Shift]:
    """By name; each gives rows and classes, fewer of them where it leaves some out."""
    spread, columns = data.spread, data.x.shape[1]
    few = max(1, columns // 10)

    def label(x: Matrix, y: Any, rng: np.random.Generator) -> tuple[Matrix, Any]:
        """Seven in ten of the first class are gone."""
        kept = (y != y.min()) | (rng.random(len(y)) < 0.3)
        return x[kept], y[kept]

    def noise(x: Matrix, y: Any, rng: np.random.Generator) -> tuple[Matrix, Any]:
        """Half of the rows get noise of half a spread."""
        found, rows = x.copy(), rng.random(len(x)) < 0.5
        found[rows] += rng.normal(size=found[rows].shape) * spread * 0.5
        return found, y

    def move(x: Matrix, y: Any, rng: np.random.Generator) -> tuple[Matrix, Any]:
        """A tenth of the columns moves by half a spread."""
        found = x.copy()
        chosen = rng.choice(columns, few, replace=False)
        found[:, chosen] += 0.5 * spread[chosen]
        return found, y

    def joint(x: Matrix, y: Any, rng: np.random.Generator) -> tuple[Matrix, Any]:
        """A third of the columns is shuffled, each by itself: the same margins."""
        found = x.copy()
        for column in rng.choice(columns, max(1, columns // 3), replace=False):
            found[:, column] = found[rng.permutation(len(found)), column]
        return found, y

    def missing(x: Matrix, y: Any, rng: np.random.Generator) -> tuple[Matrix, Any]:
        """Fifteen in a hundred values of the widest column are missing."""
        found = x.copy()
        found[rng.random(len(found)) < 0.15, int(np.argmax(spread))] = np.nan
        return found, y

    return {"label": label, "noise": noise, "move": move, "joint": joint, "missing": missing}


SHIFTS = ("label", "noise", "move", "joint", "missing")
