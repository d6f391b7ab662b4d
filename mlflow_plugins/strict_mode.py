"""Strict mode (``CHANCERY_STRICT=1``): models load from cleared registered versions only.

``runs:/``, ``file:``, ``s3:``, ``mlflow-artifacts:`` and ``http(s):`` URIs carry no clearance. In
strict mode their repositories refuse to hand out a directory that holds a model; everything else
about them is MLflow's own. A bare local path names no repository scheme and is not covered: whoever
may run code on a path's machine may load from it anyway.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any

from governance.errors import UnsignedError
from governance.settings import Settings

__all__ = ["build", "verified_access"]

_STOCK = {
    "runs": ("mlflow.store.artifact.runs_artifact_repo", "RunsArtifactRepository"),
    "file": ("mlflow.store.artifact.local_artifact_repo", "LocalArtifactRepository"),
    "s3": ("mlflow.store.artifact.s3_artifact_repo", "S3ArtifactRepository"),
    "mlflow-artifacts": (
        "mlflow.store.artifact.mlflow_artifacts_repo",
        "MlflowArtifactsRepository",
    ),
    "http": ("mlflow.store.artifact.http_artifact_repo", "HttpArtifactRepository"),
    "https": ("mlflow.store.artifact.http_artifact_repo", "HttpArtifactRepository"),
}

_verified: ContextVar[bool] = ContextVar("chancery_verified_access", default=False)

_refusals: ContextVar[list[Any]] = ContextVar("chancery_strict_refusals")


@contextmanager
def verified_access() -> Iterator[None]:
    """Let repositories hand out models within the block: the caller verifies what it gets."""
    token = _verified.set(True)
    try:
        yield
    finally:
        _verified.reset(token)


def build(scheme: str, uri: str, *arguments: Any, **options: Any) -> Any:
    """MLflow's repository for a URI; in strict mode it refuses to hand out models."""
    from mlflow.exceptions import MlflowException

    from mlflow_plugins.exceptions import to_mlflow

    module, name = _STOCK[scheme]
    repository = getattr(import_module(module), name)(uri, *arguments, **options)
    if not Settings.load().strict:
        return repository
    download = repository.download_artifacts

    def guarded(artifact_path: str, *rest: Any, **named: Any) -> Any:
        if not _verified.get() and _holds_model(repository, artifact_path or ""):
            refusal = to_mlflow(
                UnsignedError(
                    f"{uri} names a model by its place, which carries no clearance, and strict "
                    "mode is on",
                    "load the registered version (models:/name/version), or unset CHANCERY_STRICT",
                )
            )
            _refusals.get([]).append(refusal)
            raise refusal
        refusals: list[MlflowException] = []
        token = _refusals.set(refusals)
        try:
            return download(artifact_path, *rest, **named)
        except MlflowException as error:
            # The runs:/ repository asks others in turn and forgets why they refused.
            raise (refusals[0] if refusals else error) from error
        finally:
            _refusals.reset(token)

    repository.download_artifacts = guarded
    return repository


def _holds_model(repository: Any, path: str) -> bool:
    """Whether ``path`` is a model's directory or lies in one (its MLmodel file tells)."""
    folders = {path.strip("/"), posixpath.dirname(path.strip("/"))}
    return any(
        posixpath.basename(found.path) == "MLmodel"
        for folder in folders
        for found in repository.list_artifacts(folder or None) or ()
    )
