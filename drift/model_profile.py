"""Reads a version's profile back from its verified files.

The profile lies among the model's files, and so under its registered digest and signatures. Only
the profile and the sample beside it are fetched; what is fetched is verified with the rest of the
registered manifest by the repository behind ``models:/`` URIs, before a byte of it is parsed.
Refused are: a version without a profile, one whose bytes changed, one that was revoked, and a
profile that was fitted for another model. A copy (``models:/prod.fraud/1`` of ``models:/fraud/3``)
carries the profile of what it is a copy of.

Example::

    found = load_profile("models:/fraud/3")
    found.subject, found.profile.window, found.reference()
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drift.profile import DriftProfile
from drift.reference import FILE as REFERENCE_FILE
from drift.reference import reference_sample
from drift.report import Subject
from drift.sample import Sample
from governance.backend import Backend, open_backend
from governance.canonical import Manifest
from governance.errors import (
    ConfigurationError,
    GovernanceError,
    MalformedRequestError,
    NotFoundError,
    UnreachableError,
)
from governance.signing.release import Release, check_standing

__all__ = ["FILE", "VersionProfile", "governance_error", "load_profile", "version_named"]

FILE = "drift_profile.json"

_MOST_BYTES = 1 << 28
_LARGEST_VERSION = 2**31 - 1
_MOST_COPIES = 10


@dataclass(frozen=True)
class VersionProfile:
    """See the module.

    Attributes:
        subject: The version, and the profile's digest.
        profile: Of the version.
        sample: The sample's file; None: it has none.
    """

    subject: Subject
    profile: DriftProfile
    sample: bytes | None

    def reference(self) -> Sample | None:
        """Rows to compare windows with; None: none were kept.

        Raises:
            MalformedRequestError: they are not of this profile.
        """
        return None if self.sample is None else reference_sample(self.profile, self.sample)

    def served_by(self, deployment: str) -> VersionProfile:
        """As watched behind a route."""
        return replace(self, subject=replace(self.subject, deployment=deployment))


def version_named(model: str, backend: Backend) -> tuple[str, int]:
    """Of ``models:/name/3`` or ``models:/name@alias``.

    Raises:
        MalformedRequestError: it is neither.
    """
    rest = model.removeprefix("models:/")
    name, separator, version = rest.rpartition("@") if "@" in rest else rest.rpartition("/")
    if model.startswith("models:/") and separator and name and version:
        if "@" in rest:
            return name, backend.resolve(name, f"@{version}")
        if version.isascii() and version.isdigit() and 0 < int(version) <= _LARGEST_VERSION:
            return name, int(version)
    raise MalformedRequestError(
        f"{model[:200]!r} names no version", "write models:/name/3 or models:/name@alias"
    )


def load_profile(
    model: str, *, uri: str | None = None, deployment: str = "", owner: str = ""
) -> VersionProfile:
    """The profile of a registered version.

    Args:
        model: ``models:/name/version`` or ``models:/name@alias``.
        uri: The store; default: MLflow's registry.
        deployment: The route that serves it.
        owner: Whom alerts are for; empty: the version's or the model's tag ``owner``.

    Raises:
        NotFoundError: no such version, or it has no profile.
        VerificationError: one of its kinds; nothing was parsed.
        RefusedError: the profile of another model.
        MalformedRequestError: no profile that this release reads.
    """
    import mlflow

    store = uri or mlflow.get_registry_uri()
    backend = open_backend(store)
    name, version = version_named(model, backend)
    release = Release.parse(json.dumps(backend.release(name, version)), model=name, version=version)
    check_standing(release)
    listed = _listed(release)
    if FILE not in listed:
        raise NotFoundError(
            f"{release.uri} has no drift profile among its files",
            "log one with drift.log_profile or drift.autoprofile before registering the model",
        )
    profile = DriftProfile.from_json(_fetched(release, FILE, store))
    sample = _fetched(release, REFERENCE_FILE, store) if REFERENCE_FILE in listed else None
    client = mlflow.MlflowClient(store, store)
    _require_model(profile, release, client)
    subject = Subject(
        name,
        version,
        release.logged_model_id or "",
        deployment,
        profile.digest,
        owner or _owner(client, name, version),
    )
    return VersionProfile(subject, profile, sample)


def _listed(release: Release) -> Mapping[str, int]:
    """The version's registered files and their sizes."""
    if release.manifest is None:
        raise ConfigurationError(
            f"the files of {release.uri} could not be read when it was registered: "
            f"{release.digest_error}",
            "make them readable to the server, and register the model again",
        )
    try:
        return {file.path: file.size for file in Manifest.from_json(release.manifest).files}
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedRequestError(
            f"the registered manifest of {release.uri} cannot be read: {error}"
        ) from error


def _fetched(release: Release, file: str, store: str) -> bytes:
    """One file of the version, verified."""
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    if _listed(release)[file] > _MOST_BYTES:
        raise MalformedRequestError(
            f"{file} of {release.uri} is larger than {_MOST_BYTES >> 20} MiB",
            "log a profile of fewer columns",
        )
    with tempfile.TemporaryDirectory(prefix="chancery-drift-") as folder:
        try:
            path = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{release.uri}/{file}",
                dst_path=folder,
                tracking_uri=store,
                registry_uri=store,
            )
        except MlflowException as error:
            if "mlflow-artifacts" in str(error) and not store.startswith("http"):
                raise ConfigurationError(
                    f"the files of {release.uri} lie behind the MLflow server's artifact proxy, "
                    f"and {store.partition('://')[0]} names a database",
                    "name the server, as --uri http://host:5000",
                ) from error
            raise governance_error(error, f"{file} of {release.uri} cannot be fetched") from error
        return Path(path).read_bytes()


def governance_error(error: Exception, what: str) -> GovernanceError:
    """What a client of a governed store was told, as our own error; else it is out of reach."""
    cause = error.__cause__
    if isinstance(cause, GovernanceError):
        return cause
    kept = getattr(error, "governance_error", None)
    if isinstance(kept, GovernanceError):
        return kept
    return UnreachableError(
        f"{what}: {' '.join(str(error).split())[:300]}", "try again when the store answers"
    )


def _require_model(profile: DriftProfile, release: Release, client: Any) -> None:
    """The profile is of this model, or of the one that this version is a copy of."""
    name, version = release.model, str(release.version)
    if release.origin is not None and profile.model == release.origin.model:
        return
    for _ in range(_MOST_COPIES):
        if profile.model == name:
            return
        source = client.get_model_version(name, version).source or ""
        found = re.fullmatch(r"models:/([^/]+)/(\d+)", source)
        if found is None:
            break
        name, version = found[1], found[2]
    profile.require(release.model)


def _owner(client: Any, name: str, version: int) -> str:
    found = client.get_model_version(name, str(version)).tags.get("owner")
    return str(found or client.get_registered_model(name).tags.get("owner", ""))
