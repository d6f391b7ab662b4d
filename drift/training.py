"""Writes a profile into a model's own files at training, before the model is registered.

Registering digests the files, and signatures cover that digest: a profile that lies among them by
then is signed with the model. Afterwards the files are sealed, so it has to be there before.

- ``log_profile`` after ``log_model`` and before ``register_model``;
- ``autoprofile`` around one ``log_model``, which may register by itself
  (``registered_model_name=``). It adds two files to what MLflow uploads, by wrapping
  ``MlflowClient.log_model_artifacts``, and refuses if no model was logged inside.

Data sets come from the run's logged inputs (``mlflow.log_input``) where none are named. With
``labels`` the profile also says how good the model was (``drift.sections``); give held-out rows
then, in the order of time.

Example::

    with drift.autoprofile(features, {"score": scores}, model="fraud", labels=labels,
                           probabilities=["score"]):
        mlflow.sklearn.log_model(model, name="model", registered_model_name="fraud")
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from drift.confidences import Class
from drift.fairness import FairnessBounds
from drift.fitting import fit_profile
from drift.model_profile import FILE
from drift.profile import DriftProfile
from drift.reference import FILE as REFERENCE_FILE
from drift.reference import reference_parquet
from drift.sections import FairnessSection, fit_fairness, fit_performance
from drift.tables import Table, columns_of
from governance.errors import (
    ConfigurationError,
    ConflictError,
    MalformedRequestError,
    SealedError,
)

__all__ = ["Fitted", "Profiled", "autoprofile", "fit_with_reference", "log_profile"]

_MODEL_FILE = "MLmodel"


@dataclass(frozen=True)
class Fitted:
    """A profile, and the sample of rows beside it."""

    profile: DriftProfile
    reference: bytes | None

    def write(self, folder: Path) -> None:
        """Into a model's folder."""
        (folder / FILE).write_bytes(self.profile.to_json())
        if self.reference is not None:
            (folder / REFERENCE_FILE).write_bytes(self.reference)


def fit_with_reference(
    features: Table,
    outputs: Table | None = None,
    *,
    model: str,
    labels: Sequence[Any] | ArrayLike | None = None,
    prediction: str = "",
    probabilities: Sequence[str] = (),
    classes: Sequence[Class] | None = None,
    positive: Class | None = None,
    threshold: float = 0.5,
    fairness: Sequence[FairnessBounds] = (),
    reference: bool = True,
    embeddings: Mapping[str, ArrayLike] | None = None,
    times: ArrayLike | None = None,
    window: int = 1000,
    **more: Any,
) -> Fitted:
    """As ``drift.fitting.fit_profile``, and what else a profile may carry.

    Args:
        features, outputs, embeddings, times, window: As ``fit_profile``'s.
        model: Name that the model will be registered by.
        labels: (n,) what was true of these rows, which should be held out.
        prediction, probabilities, classes, positive, threshold: See ``fit_performance``.
        fairness: Bounds by attribute.
        reference: Whether a sample of the rows goes beside the profile; without one no detector
            can confirm an alarm, and no slice is found.
        more: Of ``fit_profile``.

    Raises:
        MalformedRequestError: the rows cannot be used.
        ConfigurationError: labels or outputs cannot.
    """
    inputs, said = columns_of(features, "features"), columns_of(outputs, "outputs")
    if labels is None and (prediction or probabilities or fairness):
        raise ConfigurationError(
            "prediction, probabilities or fairness are named, and there are no labels",
            "pass labels= of held-out rows, or name none of them",
        )
    sections: dict[str, Any] = {}
    personal: Callable[..., FairnessSection] | None = None
    if labels is not None:
        truth = np.asarray(labels)
        rows = len(next(iter(inputs.values()), ()))
        if len(truth) != rows:
            raise MalformedRequestError(
                f"{len(truth)} labels for {rows} rows", "pass a label for every row"
            )
        order = np.arange(rows) if times is None else np.argsort(np.asarray(times), kind="stable")
        ordered = {name: np.asarray(values)[order] for name, values in said.items()}
        section = fit_performance(
            ordered,
            truth[order],
            prediction=prediction,
            probabilities=probabilities,
            classes=classes,
            positive=positive,
            threshold=threshold,
            window=window,
        )
        sections["performance"] = section.to_dict()
        if fairness:
            ordered_inputs = {b.attribute: inputs.get(b.attribute) for b in fairness}
            present = {k: np.asarray(v)[order] for k, v in ordered_inputs.items() if v is not None}
            answers = section.predicted(ordered)
            assert answers is not None  # the outputs that it names were there to fit it
            selects = positive if positive is not None else section.positive
            fit_groups = partial(
                fit_fairness,
                present,
                answers,
                truth[order],
                fairness,
                positive=1 if selects is None else selects,
            )
            if any((more.get("pii") or {}).get(one.attribute) for one in fairness):
                personal = fit_groups  # as the profile's bins, once there are any
            else:
                sections["fairness"] = fit_groups().to_dict()
            more["protected"] = tuple(
                dict.fromkeys([*more.get("protected", ()), *(b.attribute for b in fairness)])
            )
    profile = fit_profile(
        inputs,
        said,
        model=model,
        embeddings=embeddings,
        times=times,
        window=window,
        **more,
        **sections,
    )
    if personal is not None:
        profile = replace(profile, fairness=personal(profile=profile).to_dict())
    vectors = columns_of(embeddings, "embeddings")
    sample = reference_parquet(profile, {**inputs, **said, **vectors}) if reference else None
    return Fitted(profile, sample)


def log_profile(
    logged: Any,
    features: Table,
    outputs: Table | None = None,
    *,
    model: str,
    datasets: Mapping[str, str] | None = None,
    **fit: Any,
) -> DriftProfile:
    """Fit a profile and write it into the files of a logged model that is not registered yet.

    Args:
        logged: What ``log_model`` gave, or ``models:/m-…``.
        features, outputs: Reference rows; see ``fit_with_reference``, which takes ``fit``.
        model: Name that the model will be registered by.
        datasets: Name → digest; None: those that the model's run logged.

    Raises:
        SealedError: it is registered already, so its files are sealed.
        ConflictError: it has a profile.
        MalformedRequestError, ConfigurationError: the rows cannot be used. Nothing is written.
    """
    from mlflow import MlflowClient
    from mlflow.models import get_model_info

    client = MlflowClient()
    model_id = _model_id(logged)
    known = client.get_logged_model(model_id)
    _refuse_registered(client, known)
    if FILE in [file.path for file in client.list_logged_model_artifacts(model_id)]:
        raise ConflictError(
            f"the logged model {model_id} has a drift profile", "log the model again to replace it"
        )
    fitted = fit_with_reference(features, outputs, model=model, datasets=datasets, **fit)
    _require_inputs(fitted.profile, get_model_info(f"models:/{model_id}").signature)
    fitted = _with_datasets(fitted, client, known.source_run_id, datasets)
    with tempfile.TemporaryDirectory(prefix="drift-profile-") as folder:
        fitted.write(Path(folder))
        client.log_model_artifacts(model_id, folder)
    return fitted.profile


@dataclass
class Profiled:
    """What ``autoprofile`` gives.

    Attributes:
        profile: Of the model; with its data sets once the model is logged.
        model_id: Of the logged model; empty before.
    """

    profile: DriftProfile
    model_id: str = ""


@dataclass
class _Pending:
    fitted: Fitted
    datasets: Mapping[str, str] | None
    told: Profiled


_pending: ContextVar[_Pending | None] = ContextVar("chancery_drift_profile", default=None)
_lock = Lock()


@contextmanager
def autoprofile(
    features: Table,
    outputs: Table | None = None,
    *,
    model: str,
    datasets: Mapping[str, str] | None = None,
    **fit: Any,
) -> Iterator[Profiled]:
    """Within, the one model that is logged gets a profile among its files. Arguments as of
    ``log_profile``; what is wrong with the rows is told before anything is logged.

    Raises:
        ConfigurationError: no model was logged within.
        ConflictError: a second one was.
    """
    fitted = fit_with_reference(features, outputs, model=model, datasets=datasets, **fit)
    _install()
    told = Profiled(fitted.profile)
    token = _pending.set(_Pending(fitted, datasets, told))
    try:
        yield told
    finally:
        _pending.reset(token)
    if not told.model_id:
        raise ConfigurationError(
            "no model was logged within autoprofile, so the profile lies nowhere",
            "call mlflow.<flavor>.log_model inside it",
        )


def _install() -> None:
    """Wrap the call by which MLflow uploads a model's files; once in a process."""
    from mlflow import MlflowClient

    with _lock:
        upload = MlflowClient.log_model_artifacts
        if hasattr(upload, "_chancery_drift"):
            return

        @functools.wraps(upload)
        def wrapped(
            self: Any, model_id: str, local_dir: str, artifact_path: str | None = None
        ) -> None:
            pending = _pending.get()
            if pending is not None and artifact_path is None:
                _add(pending, self, model_id, Path(local_dir))
            upload(self, model_id, local_dir, artifact_path)

        wrapped._chancery_drift = True  # type: ignore[attr-defined]
        MlflowClient.log_model_artifacts = wrapped


def _add(pending: _Pending, client: Any, model_id: str, folder: Path) -> None:
    """The files of the profile to those of the model, which lie in ``folder``."""
    from mlflow.models import Model

    if not (folder / _MODEL_FILE).is_file():
        return
    if pending.told.model_id:
        raise ConflictError(
            f"a second model is logged within autoprofile, after {pending.told.model_id}",
            "give each model an autoprofile of its own",
        )
    _require_inputs(pending.fitted.profile, Model.load(str(folder)).signature)
    run_id = client.get_logged_model(model_id).source_run_id
    fitted = _with_datasets(pending.fitted, client, run_id, pending.datasets)
    fitted.write(folder)
    pending.told.profile, pending.told.model_id = fitted.profile, model_id


def _model_id(logged: Any) -> str:
    found = getattr(logged, "model_id", None)
    if found is None and isinstance(logged, str):
        found = logged.removeprefix("models:/")
    if not isinstance(found, str) or not found.startswith("m-"):
        raise MalformedRequestError(
            f"{str(logged)[:100]!r} names no logged model",
            "pass what log_model gave, or models:/m-…; a registered version is sealed",
        )
    return found


def _refuse_registered(client: Any, known: Any) -> None:
    """By the registry, and by the mark that MLflow leaves on a logged model."""
    found = client.search_model_versions(
        f"source_path = 'models:/{known.model_id}'", max_results=1
    ) or client.search_model_versions(f"source_path = '{known.artifact_location}'", max_results=1)
    if found or known.tags.get("mlflow.modelVersions"):
        where = f"models:/{found[0].name}/{found[0].version}" if found else "a registered version"
        raise SealedError(
            f"the logged model {known.model_id} is {where}, so its files are sealed",
            "log the model again, then its profile, and register it after that; or log it within "
            "drift.autoprofile",
            subject=f"models:/{known.model_id}",
        )


def _with_datasets(
    fitted: Fitted, client: Any, run_id: str | None, named: Mapping[str, str] | None
) -> Fitted:
    """With the data sets that the run logged, unless some were named."""
    if named is not None or not run_id:
        return fitted
    inputs = client.get_run(run_id).inputs
    found: dict[str, str] = {}
    for one in inputs.dataset_inputs if inputs else ():
        name, place = one.dataset.name, 1
        while name in found and found[name] != one.dataset.digest:
            place += 1
            name = f"{one.dataset.name} ({place})"
        found[name] = one.dataset.digest
    return replace(fitted, profile=replace(fitted.profile, datasets=found)) if found else fitted


def _require_inputs(profile: DriftProfile, signature: Any) -> None:
    """The profile's features must be inputs of the model, where both have names."""
    inputs = getattr(signature, "inputs", None)
    if inputs is None or not inputs.has_input_names():
        return
    names = set(inputs.input_names())
    strange = [one.name for one in profile.features if one.name not in names]
    if strange:
        raise MalformedRequestError(
            f"the profile has the feature {strange[0]!r}, which is no input of the model",
            f"its inputs are {', '.join(sorted(names)[:20])}",
        )
