"""Finds an MLflow experiment by its name, or makes it; several processes may do so at once.

Example::

    experiment_id(MlflowClient(), "chancery/rollouts")
"""

from __future__ import annotations

from typing import Any

__all__ = ["experiment_id"]


def experiment_id(client: Any, name: str, artifact_location: str | None = None) -> str:
    """Its id.

    Args:
        client: ``mlflow.MlflowClient``.
        name: Of the experiment.
        artifact_location: Where its artifacts go if it is made; None: where the store says.

    Raises:
        MlflowException: it cannot be found or made, as when it was deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was quicker
            if found is None:
                raise
    return str(found.experiment_id)
