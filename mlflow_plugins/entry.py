"""Factories that MLflow's entry points name.

MLflow loads these while ``import mlflow`` is half done and only *warns* when one fails to import
(the store scheme would silently disappear), so this module imports nothing but the standard
library at the top. ``chancery doctor`` checks that the live registries hold our classes.
"""

from __future__ import annotations

from typing import Any

__all__ = ["models_artifact_repository", "registry_store", "tracking_store"]


def tracking_store(store_uri: str, artifact_uri: str | None = None, **_: Any) -> Any:
    """Build the governed tracking store for ``governed+…`` URIs."""
    from mlflow_plugins.tracking_store import build

    return build(store_uri, artifact_uri)


def registry_store(store_uri: str, **_: Any) -> Any:
    """Build the governed model registry store for ``governed+…`` URIs."""
    from mlflow_plugins.registry_store import build

    return build(store_uri)


def models_artifact_repository(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> Any:
    """Build the verifying repository for ``models:/…`` URIs."""
    from mlflow_plugins.artifact_repository import VerifiedModelsArtifactRepository

    return VerifiedModelsArtifactRepository(artifact_uri, tracking_uri, registry_uri)
