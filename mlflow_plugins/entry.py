"""Factories that MLflow's entry points name.

MLflow loads these while ``import mlflow`` is half done and only *warns* when one fails to import
(the store scheme would silently disappear), so this module imports nothing but the standard
library at the top. ``chancery doctor`` checks that the live registries hold our classes.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "file_repository",
    "http_repository",
    "https_repository",
    "mlflow_artifacts_repository",
    "models_artifact_repository",
    "registry_store",
    "runs_repository",
    "s3_repository",
    "tracking_store",
]


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


def _located(scheme: str, artifact_uri: str, *arguments: Any, **options: Any) -> Any:
    from mlflow_plugins.strict_mode import build

    return build(scheme, artifact_uri, *arguments, **options)


def runs_repository(artifact_uri: str, *arguments: Any, **options: Any) -> Any:
    """MLflow's own repository; refuses models in strict mode."""
    return _located("runs", artifact_uri, *arguments, **options)


def file_repository(artifact_uri: str, *arguments: Any, **options: Any) -> Any:
    """MLflow's own repository; refuses models in strict mode."""
    return _located("file", artifact_uri, *arguments, **options)


def s3_repository(artifact_uri: str, *arguments: Any, **options: Any) -> Any:
    """MLflow's own repository; refuses models in strict mode."""
    return _located("s3", artifact_uri, *arguments, **options)


def mlflow_artifacts_repository(artifact_uri: str, *arguments: Any, **options: Any) -> Any:
    """MLflow's own repository; refuses models in strict mode."""
    return _located("mlflow-artifacts", artifact_uri, *arguments, **options)


def http_repository(artifact_uri: str, *arguments: Any, **options: Any) -> Any:
    """MLflow's own repository; refuses models in strict mode."""
    return _located("http", artifact_uri, *arguments, **options)


def https_repository(artifact_uri: str, *arguments: Any, **options: Any) -> Any:
    """MLflow's own repository; refuses models in strict mode."""
    return _located("https", artifact_uri, *arguments, **options)
