"""Verification at load: the repository behind ``models:/name/version`` and ``models:/name@alias``.

MLflow's loaders (``mlflow.pyfunc``, every flavour, ``mlflow models serve``) fetch a model through
this repository before they unpickle anything. The files go to a private directory first; the
digest is taken of the bytes that lie there; manifest, signatures, trust roots and revocation are
checked; only then is the path handed out. Whatever is wrong refuses the load, with
a distinct error: tampered, unsigned, untrusted key, revoked, expired, unreachable.

Whoever says which bytes it wants (``governance.expected_bytes``), as a deployment's replicas do,
gets no others; and where the registry cannot be reached, a copy that was verified before and is
verified again now, with what the registry said last (``mlflow_plugins.local_copies``).

A registry that is not governed is served as MLflow always did, unless it was governed before (the
pin remembers) or strict mode is on.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
from mlflow.store.artifact.utils.models import _parse_model_uri
from sqlalchemy.exc import InterfaceError, OperationalError

from governance.backend import Backend
from governance.canonical import Manifest, digest_directory
from governance.errors import (
    GovernanceError,
    TamperedError,
    UnreachableError,
    UnsignedError,
)
from governance.expected_bytes import expected_root_digest
from governance.settings import GOVERNED_PREFIX, Settings
from governance.signing.pins import KnownRoots
from governance.signing.release import (
    Release,
    VerifiedLoad,
    check_standing,
    verify_release,
)
from mlflow_plugins.backend import open_backend
from mlflow_plugins.exceptions import to_mlflow
from mlflow_plugins.governor import now_ms
from mlflow_plugins.local_copies import LocalCopies
from mlflow_plugins.private_copy import copy_and_digest, copy_file
from mlflow_plugins.rest_backend import is_governed
from mlflow_plugins.strict_mode import verified_access

__all__ = ["VerifiedModelsArtifactRepository", "verify_directory"]


class VerifiedModelsArtifactRepository(ModelsArtifactRepository):
    """MLflow's repository for ``models:/`` URIs, which verifies what it hands out."""

    def __init__(
        self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
    ) -> None:
        self._registry = registry_uri or mlflow.get_registry_uri()
        self._away: UnreachableError | None = None
        try:
            self._settings = _settings_for(self._registry)
            try:
                self._backend = _governed_backend(self._registry, self._settings)
            except UnreachableError as error:
                self._without_registry(artifact_uri, error)
                return
            if self._settings.strict:
                self._refuse_unverifiable(artifact_uri)
        except GovernanceError as error:
            raise to_mlflow(error) from error
        try:
            super().__init__(artifact_uri, tracking_uri, registry_uri)
        except MlflowException as error:
            self._refuse_revoked(artifact_uri, error)
            raise

    def _refuse_revoked(self, uri: str, refusal: MlflowException) -> None:
        """Tell a refusal to say where a revoked version lies apart from other failures."""
        named = _parse_model_uri(uri)
        if self._backend is None or named.name is None or named.version is None:
            return
        self.model_name, self.model_version = named.name, str(named.version)
        try:
            check_standing(self._release(self._copies()))
        except GovernanceError as error:
            raise to_mlflow(error) from refusal

    def _copies(self) -> LocalCopies | None:
        """Where copies are kept, for whoever says which bytes it wants."""
        wanted = expected_root_digest()
        return None if wanted is None else LocalCopies(self._settings.home / "copies")

    def _without_registry(self, uri: str, error: UnreachableError) -> None:
        """Be a repository of local copies, for whoever says which bytes it wants."""
        named = _parse_model_uri(uri)
        if expected_root_digest() is None or named.name is None or named.version is None:
            raise error
        ArtifactRepository.__init__(self, uri)
        self._away, self._backend = error, None
        self.is_logged_model_uri = False
        self.model_name, self.model_version = named.name, str(named.version)

    def _refuse_unverifiable(self, uri: str) -> None:
        if self._is_logged_model_uri(uri):
            raise UnsignedError(
                f"{uri} names a logged model, which carries no clearance",
                "load the registered version (models:/name/version), or unset CHANCERY_STRICT",
            )
        if self._backend is None:
            raise UnsignedError(
                f"the registry {self._registry} is not governed",
                "use a governed server, or unset CHANCERY_STRICT",
            )

    def download_artifacts(
        self, artifact_path: str, dst_path: str | None = None, lineage_header_info: Any = None
    ) -> str:
        """As MLflow's; nothing unverified ever reaches ``dst_path``."""
        if self._away is None and (self._backend is None or self.is_logged_model_uri):
            found: str = super().download_artifacts(artifact_path, dst_path, lineage_header_info)
            return found
        try:
            return self._download_verified(artifact_path or "", dst_path)
        except GovernanceError as error:
            raise to_mlflow(error) from error

    def _download_verified(self, artifact_path: str, dst_path: str | None) -> str:
        wanted = expected_root_digest()
        copies = self._copies()
        release = self._release(copies)
        private = Path(tempfile.mkdtemp(prefix=".chancery-", dir=dst_path))
        try:
            path, manifest = self._files(artifact_path, private, release, copies)
            verify_directory(release, manifest, self._registry, self._settings)
            if wanted and manifest.root_digest != wanted:
                raise TamperedError(
                    f"{release.uri} has the root digest {manifest.root_digest}, but {wanted} was "
                    "let in",
                    "deploy the version anew if it was registered anew",
                )
            if copies is not None and not artifact_path:
                copies.keep(manifest.root_digest, path)
            if (path / MLMODEL_FILE_NAME).is_file():
                self._add_registered_model_meta_file(str(path))
            if dst_path is None:
                atexit.register(_remove, private, os.getpid())
                return str(path)
            return str(_hand_over(path, private, Path(dst_path), artifact_path))
        except BaseException:
            shutil.rmtree(private, ignore_errors=True)
            raise

    def _release(self, copies: LocalCopies | None) -> Release:
        """What the registry says of the version, or said last while it is away."""
        name, version = self.model_name, int(self.model_version)
        text: str | None
        try:
            if self._backend is None:
                raise self._away or UnreachableError("there is no registry")
            text = json.dumps(self._backend.release(name, version))
        except UnreachableError:
            text = copies.remembered(self._registry, name, version) if copies else None
            if text is None:
                raise
            return Release.parse(text, model=name, version=version)
        release = Release.parse(text, model=name, version=version)
        if copies is not None:
            copies.remember(self._registry, name, version, text)
        return release

    def _files(
        self, artifact_path: str, private: Path, release: Release, copies: LocalCopies | None
    ) -> tuple[Path, Manifest]:
        """As ``_fetch``; from the local copy where there is one."""
        wanted = expected_root_digest()
        if copies is not None and wanted and not artifact_path:
            manifest = copies.copy_to(private, wanted)
            if manifest is not None:
                return private, manifest
        if self._away is not None:
            raise self._away
        return self._fetch(artifact_path, private, release)

    def _fetch(self, artifact_path: str, private: Path, release: Release) -> tuple[Path, Manifest]:
        """Files into ``private``; the manifest of the whole model with these files' digests."""
        parts = artifact_path.strip("/").split("/") if artifact_path else []
        if ".." in parts:
            raise TamperedError(f"{artifact_path!r} leaves the model's directory")
        try:
            if isinstance(self.repo, LocalArtifactRepository):
                source = Path(self.repo.artifact_dir, *parts)
                target = private.joinpath(*parts)
                if source.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    partial = Manifest.of([copy_file(source, target, artifact_path)])
                else:
                    partial = copy_and_digest(source, target, prefix=artifact_path)
            else:
                with verified_access():
                    self.repo.download_artifacts(artifact_path, str(private))
                partial = digest_directory(private)
        except (OSError, MlflowException) as error:
            if isinstance(error, FileNotFoundError):
                raise TamperedError(
                    f"{error.filename} of models:/{self.model_name}/{self.model_version} is "
                    "missing from the artifact store"
                ) from error
            raise UnreachableError(
                f"the files of models:/{self.model_name}/{self.model_version} cannot be read: "
                f"{error}",
                "check that the artifact store can be reached",
            ) from error
        return private.joinpath(*parts), _completed(partial, artifact_path, release)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        """One file, verified like the whole."""
        found = self.download_artifacts(remote_file_path)
        shutil.copyfile(found, local_path)


def _remove(folder: Path, owner: int) -> None:
    """Take away the private copy when the process that loaded it ends (not a fork of it)."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _completed(partial: Manifest, artifact_path: str, release: Release) -> Manifest:
    """For a part of a model: the registered manifest with that part replaced by what was found."""
    if not artifact_path or release.manifest is None:
        return partial
    registered = Manifest.from_json(release.manifest)
    part = artifact_path.strip("/")
    others = [f for f in registered.files if f.path != part and not f.path.startswith(f"{part}/")]
    return Manifest.of([*others, *partial.files])


def _hand_over(path: Path, private: Path, destination: Path, artifact_path: str) -> Path:
    """Move verified files from the private directory to where MLflow wanted them."""
    target = destination.joinpath(artifact_path) if artifact_path else destination
    if path.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    else:
        for entry in list(path.iterdir()):
            moved = target / entry.name
            target.mkdir(parents=True, exist_ok=True)
            if moved.is_dir() and not moved.is_symlink():
                shutil.rmtree(moved)
            os.replace(entry, moved)
    shutil.rmtree(private)
    return target


def verify_directory(
    release: Release, found: Manifest, registry: str, settings: Settings
) -> VerifiedLoad:
    """Check what was found against a release document, the pin and the clock.

    Raises:
        VerificationError: one of its kinds; nothing may be loaded.
    """
    pins = KnownRoots(settings.home / "known_roots.json")
    pinned = settings.trust_root
    if release.trust_roots:
        pinned = pins.check(registry, release.trust_roots[0][0], settings.trust_root)
    return verify_release(
        release,
        found,
        environment=None,
        require_signature=settings.strict,
        pinned_first_root=pinned,
        now_ms=now_ms(),
    )


def _settings_for(registry: str) -> Settings:
    return Settings.load(registry if registry.startswith(GOVERNED_PREFIX) else None)


def _governed_backend(registry: str, settings: Settings) -> Backend | None:
    """The backend of a governed registry; None when the registry never was governed."""
    if registry.startswith(GOVERNED_PREFIX):
        try:
            return open_backend(registry)
        except (OperationalError, InterfaceError) as error:
            raise UnreachableError(
                f"the database of the registry cannot be reached ({type(error).__name__})",
                "start it, or correct the address",
            ) from error
    if not registry.startswith(("http://", "https://")):
        return None
    if is_governed(registry, settings):
        return open_backend(registry)
    if KnownRoots(settings.home / "known_roots.json").knows(registry):
        raise UnreachableError(
            f"{registry} was a governed server and does not answer as one now",
            "find out why before loading anything from it",
        )
    return None
