"""The acts that are compared, and the stores they are done on.

A ``Target`` is one MLflow: its tracking store and its registry store, whether in this process or
over REST (MLflow's own ``RestStore`` has the same methods). Acts go to the stores directly, so that
nothing of MLflow's fluent API dilutes the difference. Each operation does first what is not timed
and returns what is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelStatus, Metric, Param, RunStatus, RunTag
from mlflow.tracking._model_registry.utils import _get_store as registry_store
from mlflow.tracking._tracking_service.utils import _get_store as tracking_store
from mlflow.tracking.request_header.registry import _request_header_provider_registry
from mlflow.utils.file_utils import local_file_uri_to_path

__all__ = ["READS", "WRITES", "Operation", "Target"]

Operation = Callable[["Target", int], Callable[[], object]]

MODEL = "bench"
VERSIONS = 8
PER_MODEL = 10
"""Versions put into one registered model before the next is begun."""

_PROVIDERS = tuple(_request_header_provider_registry)
_FILES = {
    "MLmodel": 700,
    "conda.yaml": 150,
    "model.pkl": 20_000,
    "python_env.yaml": 120,
    "requirements.txt": 60,
}


@dataclass
class Target:
    """One MLflow.

    Attributes:
        uri: Tracking and registry URI.
        folder: Local folder for its artifacts, which a server reads too.
        governed: Whether our package takes part; a plain REST client sends none of our headers.
        home: State directory of the governed database.
    """

    uri: str
    folder: Path
    governed: bool
    home: Path | None = None

    def __post_init__(self) -> None:
        self.enter()
        self.tracking: Any = tracking_store(self.uri)
        self.registry: Any = registry_store(self.uri)
        self.experiment = self.tracking.create_experiment(
            f"bench-{time.time_ns()}", artifact_location=self.folder.as_uri(), tags=[]
        )
        self.run = self.create_run()
        self.model = ""

    def enter(self) -> None:
        """Make this the MLflow that global state points to."""
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        _request_header_provider_registry._registry = [
            provider
            for provider in _PROVIDERS
            if self.governed or not type(provider).__module__.startswith("mlflow_plugins")
        ]

    def furnish(self) -> None:
        """The registered model that aliases and reads are about."""
        self.registry.create_registered_model(MODEL)
        for _ in range(VERSIONS):
            run = self.create_run()
            metrics, params = [metric(f"m{i}", i) for i in range(10)], [Param("C", "1.0")]
            self.tracking.log_batch(run, metrics=metrics, params=params, tags=[])
            model = self.create_logged_model(run)
            self.finish(run)
            self.create_model_version(MODEL, model, run)
        self.finished_run = run
        self.registry.set_registered_model_alias(MODEL, "candidate", "1")
        if self.governed:
            self._clear(1, "staging")
        self.registry.set_registered_model_alias(MODEL, "challenger", "1")

    def _clear(self, version: int, environment: str) -> None:
        """Request and approve, as ``chancery request`` and ``chancery approve`` do."""
        from governance.backend import open_backend
        from governance.signing.dsse import sign_bundle
        from governance.signing.keys import FileSigner
        from governance.signing.statements import PAYLOAD_TYPE

        assert self.home is not None
        backend = open_backend(self.uri)
        request = backend.request_promotion(MODEL, version, environment)
        signer = FileSigner(self.home / "approver.key")
        backend.approve(request.statement_id, sign_bundle(request.payload, PAYLOAD_TYPE, signer))

    def create_run(self) -> str:
        tags = [
            RunTag("mlflow.user", "bench"),
            RunTag("mlflow.source.name", "train.py"),
            RunTag("mlflow.source.type", "LOCAL"),
            RunTag("mlflow.source.git.commit", "0" * 40),
        ]
        run = self.tracking.create_run(self.experiment, "bench", now(), tags, "quick-fox-1")
        return str(run.info.run_id)

    def finish(self, run: str) -> None:
        self.tracking.update_run_info(run, RunStatus.FINISHED, now(), None)

    def create_logged_model(self, run: str) -> str:
        """A logged model of five small files; its id."""
        model = self.tracking.create_logged_model(self.experiment, "model", run, [], [], None)
        folder = Path(local_file_uri_to_path(model.artifact_location))
        folder.mkdir(parents=True)
        for name, size in _FILES.items():
            (folder / name).write_bytes(model.model_id.encode() * (size // 34))
        self.tracking.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        return str(model.model_id)

    def create_model_version(self, name: str, model: str, run: str) -> Any:
        return self.registry.create_model_version(
            name, f"models:/{model}", run_id=run, tags=[], model_id=model
        )

    def next_model(self, turn: int) -> str:
        """A registered model with few versions, whatever the turn."""
        if turn % PER_MODEL == 0 or not self.model:
            self.model = f"model-{turn}-{time.time_ns()}"
            self.registry.create_registered_model(self.model)
        return self.model


def now() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def metric(key: str, step: int) -> Metric:
    return Metric(key, 0.5 + step, now(), step)


def log_metric(target: Target, turn: int) -> Callable[[], object]:
    return partial(target.tracking.log_metric, target.run, metric("loss", turn))


def log_batch(target: Target, turn: int) -> Callable[[], object]:
    metrics = [metric(f"metric-{i}", turn) for i in range(100)]
    return partial(target.tracking.log_batch, target.run, metrics=metrics, params=[], tags=[])


def create_run(target: Target, turn: int) -> Callable[[], object]:
    return target.create_run


def create_model_version(target: Target, turn: int) -> Callable[[], object]:
    """As ``log_model(registered_model_name=…)`` does it, while the run goes on."""
    run = target.create_run()
    return partial(
        target.create_model_version,
        target.next_model(turn),
        target.create_logged_model(run),
        run,
    )


def set_alias(target: Target, turn: int) -> Callable[[], object]:
    """Move an alias that no environment claims."""
    version = str(1 + turn % VERSIONS)
    return partial(target.registry.set_registered_model_alias, MODEL, "candidate", version)


def set_protected_alias(target: Target, turn: int) -> Callable[[], object]:
    """Set a second alias of the environment that the version holds: the whole gate runs."""
    target.registry.delete_registered_model_alias(MODEL, "staging")
    return partial(target.registry.set_registered_model_alias, MODEL, "staging", "1")


def get_run(target: Target, turn: int) -> Callable[[], object]:
    return partial(target.tracking.get_run, target.finished_run)


def get_version_by_alias(target: Target, turn: int) -> Callable[[], object]:
    return partial(target.registry.get_model_version_by_alias, MODEL, "challenger")


def search_versions(target: Target, turn: int) -> Callable[[], object]:
    return partial(
        target.registry.search_model_versions, filter_string=f"name='{MODEL}'", max_results=100
    )


WRITES: dict[str, Operation] = {
    "log_metric": log_metric,
    "log_batch_100": log_batch,
    "create_run": create_run,
    "create_model_version": create_model_version,
    "set_alias": set_alias,
    "set_protected_alias": set_protected_alias,
}

READS: dict[str, Operation] = {
    "get_run": get_run,
    "get_model_version_by_alias": get_version_by_alias,
    "search_model_versions": search_versions,
}
