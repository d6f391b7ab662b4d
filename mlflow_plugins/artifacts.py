"""Where a model version's files lie, and their digest as this server reads them."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from governance.canonical import Manifest, digest_directory
from governance.errors import GovernanceError
from mlflow_plugins.strict_mode import verified_access

__all__ = ["location_of", "read_manifest", "read_manifest_at", "resolve_proxied"]

_logger = logging.getLogger(__name__)


def resolve_proxied(uri: str) -> str:
    """The storage behind an ``mlflow-artifacts:`` URI, when this process serves it."""
    parsed = urlparse(uri)
    destination = os.environ.get("_MLFLOW_SERVER_ARTIFACT_DESTINATION")
    if parsed.scheme != "mlflow-artifacts" or not destination:
        return uri
    return f"{destination.rstrip('/')}/{unquote(parsed.path).lstrip('/')}"


def location_of(uri: str) -> str:
    """One spelling for one place: resolved storage, absolute path, no trailing slash."""
    resolved = resolve_proxied(uri)
    if is_local_uri(resolved):
        return str(os.path.realpath(local_file_uri_to_path(resolved)))
    return resolved.rstrip("/")


def read_manifest(uri: str) -> tuple[Manifest | None, str | None]:
    """Digest the directory at ``uri``: (manifest, None), or (None, why it could not be read).

    Local directories are read in place, others are downloaded to a private directory first.
    """
    return read_manifest_at(location_of(uri))


def read_manifest_at(location: str) -> tuple[Manifest | None, str | None]:
    """Like ``read_manifest``, for what ``location_of`` gave."""
    try:
        if is_local_uri(location):
            return _checked(digest_directory(Path(location)))
        with tempfile.TemporaryDirectory(prefix="chancery-digest-") as private:
            with verified_access():
                found = get_artifact_repository(location).download_artifacts("", dst_path=private)
            return _checked(digest_directory(Path(found)))
    except GovernanceError as error:
        return None, str(error)
    except (MlflowException, OSError, ValueError) as error:
        _logger.warning("cannot digest %s: %s", location, error)
        return None, f"the server cannot read the files at {location} ({type(error).__name__})"


def _checked(manifest: Manifest) -> tuple[Manifest | None, str | None]:
    if not manifest.files:
        return None, "the artifact directory is empty"
    return manifest, None
