"""The models that serving benchmarks serve, and requests to them.

*linear*: scikit-learn's logistic regression on ten named columns; its prediction takes as long as
parsing a request, as with most tabular models. *mlp*: a small torch network on a tensor of 32.
*moody*: does what a file says at the time: some requests fail, all are slower by a factor. Which
requests fail, and how long each takes, follows from the request alone, so that asking again gives
the same.

Example::

    store.register("linear", log_linear)
    request = request_bytes(LINEAR_BODY)
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

__all__ = [
    "LINEAR_BODY",
    "MLP_BODY",
    "Mood",
    "linear",
    "log_linear",
    "log_mlp",
    "mlp",
    "moody_bodies",
    "save_linear",
    "save_mlp",
]

COLUMNS = [f"f{at}" for at in range(10)]
LINEAR_BODY = json.dumps(
    {"dataframe_split": {"columns": COLUMNS, "data": [[0.5 * at for at in range(10)]]}}
).encode()
MLP_WIDTH = 32
MLP_BODY = json.dumps({"inputs": [[0.1 * at for at in range(MLP_WIDTH)]]}).encode()

_BODIES = 1000
_MOODY = '''
"""Fails and tarries as a file says; which requests, and how long, follows from the request."""

import json
import pathlib
import time

import mlflow
import numpy as np

MOOD = pathlib.Path({mood!r})


class Moody(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        mood = json.loads(MOOD.read_text())
        fate = model_input["fate"].to_numpy()
        if (fate < mood["errors"]).any():
            raise RuntimeError("a bad mood")
        if mood["median_ms"]:
            spread = np.exp(mood["sigma"] * model_input["pace"].to_numpy().max())
            time.sleep(mood["median_ms"] * mood["slower"] * spread / 1e3)
        return fate + model_input["pace"].to_numpy()


mlflow.models.set_model(Moody())
'''


def linear() -> tuple[Any, Any]:
    """The fitted estimator, and its input as a DataFrame."""
    import pandas as pd
    from sklearn.linear_model import LogisticRegression

    values = np.random.default_rng(7).normal(size=(500, len(COLUMNS)))
    frame = pd.DataFrame(values, columns=COLUMNS)
    return LogisticRegression().fit(frame, (values.sum(axis=1) > 0).astype(int)), frame


def _linear_options() -> dict[str, Any]:
    from mlflow.models import infer_signature

    model, frame = linear()
    return {
        "sk_model": model,
        "signature": infer_signature(frame, model.predict(frame)),
        "pip_requirements": ["scikit-learn"],
    }


def log_linear(name: str) -> Any:
    """Log it as a registered model."""
    import mlflow.sklearn

    return mlflow.sklearn.log_model(name="model", registered_model_name=name, **_linear_options())


def save_linear(folder: Path) -> None:
    """The same, for servers that know no registry."""
    import mlflow.sklearn

    mlflow.sklearn.save_model(path=str(folder), **_linear_options())


def mlp() -> Any:
    """A network with two layers."""
    import torch

    torch.manual_seed(7)
    return torch.nn.Sequential(
        torch.nn.Linear(MLP_WIDTH, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2)
    ).eval()


def _mlp_options() -> dict[str, Any]:
    import torch
    from mlflow.models import infer_signature

    model, values = mlp(), np.zeros((4, MLP_WIDTH), dtype=np.float32)
    with torch.no_grad():
        found = model(torch.from_numpy(values)).numpy()
    return {
        "pytorch_model": model,
        "signature": infer_signature(values, found),
        "pip_requirements": ["torch"],
        "serialization_format": "pickle",  # an exported graph may have its number of rows fixed
    }


def log_mlp(name: str) -> Any:
    """Log it as a registered model."""
    import mlflow.pytorch

    return mlflow.pytorch.log_model(name="model", registered_model_name=name, **_mlp_options())


def save_mlp(folder: Path) -> None:
    """The same, for servers that know no registry."""
    import mlflow.pytorch

    mlflow.pytorch.save_model(path=str(folder), **_mlp_options())


class Mood:
    """A moody model's file.

    Args:
        path: Of the file; the model's code names it.
        median_ms: Of the time a request takes; 0: none.
        sigma: Of its logarithm.
    """

    def __init__(self, path: Path, median_ms: float = 0.0, sigma: float = 0.4) -> None:
        self.path = path
        self._always = {"median_ms": median_ms, "sigma": sigma}
        self.set()

    def set(self, errors: float = 0.0, slower: float = 1.0) -> None:
        """From now on."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps({**self._always, "errors": errors, "slower": slower}))
        fresh.replace(self.path)

    def log(self, name: str) -> Any:
        """Log a model that looks here as a registered model."""
        import mlflow.pyfunc
        import pandas as pd
        from mlflow.models import infer_signature

        code = self.path.with_suffix(".py")
        code.write_text(_MOODY.format(mood=str(self.path)))
        frame = pd.DataFrame({"fate": [0.9, 0.95, 0.99], "pace": [0.0, 0.1, -0.1]})
        return mlflow.pyfunc.log_model(
            name="model",
            registered_model_name=name,
            python_model=str(code),
            signature=infer_signature(frame, frame["fate"]),
            input_example=frame,
            pip_requirements=["mlflow"],
        )


def moody_bodies() -> list[bytes]:
    """Requests whose ``fate`` is even in [0, 1) and whose ``pace`` is standard normal, shuffled."""
    chance, normal = random.Random(7), NormalDist()
    fates = [(at + 0.5) / _BODIES for at in range(_BODIES)]
    paces = [normal.inv_cdf(fate) for fate in fates]
    chance.shuffle(fates)
    chance.shuffle(paces)
    return [
        json.dumps({"inputs": {"fate": [fate], "pace": [round(pace, 6)]}}).encode()
        for fate, pace in zip(fates, paces, strict=True)
    ]
