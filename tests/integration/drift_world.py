"""A version that is watched, and reports on it, for tests of what drift leads to."""

from __future__ import annotations

import itertools
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import numpy as np
from sklearn.linear_model import LogisticRegression

from drift.fitting import fit_profile
from drift.predicate import Condition, Predicate
from drift.profile import DriftProfile
from drift.report import Performance, Subject, WindowReport
from drift.slices import Slice
from drift.verdict import ColumnMoved, Level, Verdict
from drift.window import WindowCounts
from governance.clock import now_ms
from mlflow_plugins.governor import Governor
from tests.scenario import FEATURES, LABELS, Scenario

_times = itertools.count(1)


@lru_cache(maxsize=4)
def profile(seed: int = 7) -> DriftProfile:
    """Of a model with one feature."""
    rng = np.random.default_rng(seed)
    return fit_profile(
        {"age": rng.normal(40, 9, 2000)}, model="fraud", window=200, datasets={"train": "4f2a"}
    )


def train_watched(scenario: Scenario, name: str = "fraud") -> int:
    """A version with its profile among its files."""
    mlflow.set_experiment("scenario")
    with mlflow.start_run(), TemporaryDirectory() as folder:
        mlflow.log_metric("accuracy", 0.97)
        mlflow.set_tags({"mlflow.project.entryPoint": "train", "provenance.seed": "7"})
        model = LogisticRegression().fit(FEATURES, LABELS)
        info = mlflow.sklearn.log_model(model, name="model", pip_requirements=["scikit-learn"])
        path = Path(folder) / "drift_profile.json"
        path.write_bytes(profile().to_json())
        scenario.client.log_model_artifact(info.model_id, str(path))
    found = mlflow.register_model(f"models:/{info.model_id}", name)
    return int(found.version)


def report(
    version: int = 1,
    level: Level = Level.OK,
    *,
    deployment: str = "",
    made_ms: int | None = None,
    index: int | None = None,
    judged: bool = True,
    quarantine: tuple[str, ...] = (),
    accuracy: float | None = 0.93,
    reference: float | None = 0.95,
    seed: int = 7,
    model: str = "fraud",
    owner: str = "",
) -> WindowReport:
    """One window's; each later than the one before."""
    number = next(_times)
    moved = ColumnMoved("age", "feature", 0.41, 4000.0, 9.0, ())
    bad = level is not Level.OK
    verdict = Verdict(
        index=number if index is None else index,
        level=level,
        judged=judged,
        rows=200,
        first_ms=1_000 * number,
        last_ms=1_000 * number + 999,
        esr=4000.0 if bad else 1.0,
        psi=0.41 if bad else 0.01,
        psi_threshold=0.05,
        streak=int(bad),
        worst=(moved,) if bad else (),
        reasons=("eSR is 4e+03",) if bad else (),
        quarantine=quarantine,
    )
    part = Slice(Predicate((Condition("age", above=52.5),)), 90, 0.45, 0.1, 9.3)
    return WindowReport(
        Subject(model, version, "", deployment, profile(seed).digest, owner),
        verdict,
        WindowCounts.empty(profile()),
        slices=(part,) if bad else (),
        performance=Performance(accuracy, 0.01, reference_accuracy=reference),
        made_ms=now_ms() - 100_000 + number if made_ms is None else made_ms,
    )


def of_type(scenario: Scenario, *names: str) -> list[dict[str, Any]]:
    """Events on the ledger, oldest first."""
    Governor.of(scenario.uri).ledger.sequence()
    return [event for event in scenario.events() if event["type"] in names]
