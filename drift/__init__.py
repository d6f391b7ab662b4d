"""Drift: windows of what a model saw and said, compared with what it was made from.

At training, one call writes a profile into the model's own files (``log_profile``, or
``autoprofile`` around ``log_model``); ``load_profile`` reads it back, verified. These names are
loaded when they are asked for: a serving process that imports this room pays for none of them.

Example::

    import drift

    info = mlflow.sklearn.log_model(model, name="model")
    drift.log_profile(info, features, {"score": scores}, model="fraud", labels=labels,
                      probabilities=["score"])
    mlflow.register_model(info.model_uri, "fraud")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drift.fitting import fit_profile
    from drift.model_profile import load_profile
    from drift.training import autoprofile, log_profile

__all__ = ["autoprofile", "fit_profile", "load_profile", "log_profile"]

_HOMES = {
    "autoprofile": "drift.training",
    "fit_profile": "drift.fitting",
    "load_profile": "drift.model_profile",
    "log_profile": "drift.training",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
