"""A small scoring model on a governed store: rows like its training's, and shifted ones."""

from __future__ import annotations

from typing import Any

import mlflow
import mlflow.sklearn
import numpy as np
import pandas as pd
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression

import drift
from drift.profile import DriftProfile
from tests.scenario import Scenario

WINDOW = 200
FEATURES = ["age", "income", "region"]


def rows(size: int, seed: int, *, older: float = 0.0) -> pd.DataFrame:
    """Inputs and the truth; ``older`` moves the ages of people in the west."""
    rng = np.random.default_rng(seed)
    region = np.array(["east", "north", "west"])[rng.choice(3, size, p=[0.5, 0.3, 0.2])]
    age = rng.normal(40, 9, size) + older * (region == "west")
    income = rng.lognormal(3, 0.5, size)
    chance = 1 / (1 + np.exp(-(age - 40) / 5))
    bad = (rng.random(size) < chance).astype(int)
    return pd.DataFrame({"age": age, "income": income, "region": region, "bad": bad})


def scored(frame: pd.DataFrame, model: Any) -> pd.DataFrame:
    """With the model's answer."""
    return frame.assign(score=model.predict_proba(frame[["age", "income"]])[:, 1])


def fitted_model() -> Any:
    train = rows(2000, 1)
    return LogisticRegression(max_iter=500).fit(train[["age", "income"]], train["bad"])


def reference(model: Any) -> pd.DataFrame:
    return scored(rows(4000, 2), model)


def profile_arguments(frame: pd.DataFrame, **more: Any) -> dict[str, Any]:
    """Of ``log_profile`` and ``autoprofile``."""
    return {
        "features": frame[FEATURES],
        "outputs": {"score": frame["score"]},
        "model": "fraud",
        "window": WINDOW,
        "labels": frame["bad"],
        "probabilities": ["score"],
        **more,
    }


def log_model(frame: pd.DataFrame, model: Any, **options: Any) -> Any:
    return mlflow.sklearn.log_model(
        model,
        name="model",
        signature=infer_signature(frame[FEATURES], frame["score"]),
        pip_requirements=["scikit-learn"],
        **options,
    )


def registered(
    _: Scenario, *, name: str = "fraud", experiment: str = "scenario", **fit: Any
) -> tuple[DriftProfile, Any]:
    """A version with a profile, through ``autoprofile``; its profile and the model."""
    model = fitted_model()
    frame = reference(model)
    mlflow.set_experiment(experiment)
    with mlflow.start_run(), drift.autoprofile(**profile_arguments(frame, **fit)) as told:
        log_model(frame, model, registered_model_name=name)
    return told.profile, model
