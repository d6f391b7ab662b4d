"""A model version as a Ray Serve application: replicas that answer frames.

One application a version, without a route: adding or deleting a version touches nothing else. A
replica loads the version's files, which are verified before anything of them is read (AC-4), probes
the model, and listens on a unix socket in a thread with an event loop of its own; requests never
pass through Ray. Gateways on other nodes call ``answer_frame`` through a Ray handle.

While the server or database that verification asks is away, a replica waits, unless this node has a
copy of the bytes that the deployment was given: that is verified anew and served. A version that
fails verification does not serve: the constructor raises, and the deployment's
status message carries what `refusal_in` finds in it, so that a tampered version is told apart from
one that merely could not start.

Example::

    spec = ModelSpec("fraud", "3", "fraud-3", sockets="/run/user/1000/chancery")
    serve.run(model_application(spec), name=spec.application, route_prefix=None)
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from governance.errors import GovernanceError, UnreachableError
from governance.expected_bytes import expecting
from governance.recording_port import ServedModel, open_recorder
from serve.lanes import socket_folder
from serve.pauses import settle_memory
from serve.scoring import Identity, Scorer
from serve.socket_lane import Hello, SocketModel, private_folder
from serve.tracing import Tracing

__all__ = ["DEPLOYMENT", "ModelReplica", "ModelSpec", "model_application", "refusal_in"]

DEPLOYMENT = "model"
"""Name of the one deployment in a version's application."""

_log = logging.getLogger(__name__)

_REFUSED = "REFUSED_BY_GOVERNANCE"
_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 5.0
_LEAVING_S = 1.0  # listeners look every quarter of a second, and wait for what they asked

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which version, and how its replicas run.

    Attributes:
        model: Registered name.
        version: Version in the registry.
        application: Name of the Ray Serve application.
        sockets: Folder of all sockets on each node; made if missing, this user's alone.
        signer: Who signed the version's clearance; told in each answer.
        replicas: How many.
        uri: Where the files come from; by default ``models:/<model>/<version>``, which is verified.
        environment: Variables of the replicas, such as ``MLFLOW_TRACKING_URI``.
        cpus: Of each replica, as Ray counts them.
        gpus: Of each replica.
        labels: Node labels it needs, as ``{"pool": "gpu"}``.
        busy_limit_s: Seconds on one batch after which a replica counts as hung.
        probe: Whether to find out if rows may be batched.
        root_digest: Of the bytes that may be loaded; empty: whatever verifies.
        route: That it answers on, for whoever records what was served.
    """

    model: str
    version: str
    application: str
    sockets: str
    signer: str = ""
    replicas: int = 1
    uri: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    cpus: float = 1.0
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    busy_limit_s: float = 60.0
    probe: bool = True
    root_digest: str = ""
    route: str = ""


class _RefusedVersionError(RuntimeError):
    """A version that may not serve; its text is what `refusal_in` looks for."""


def refusal_in(message: str) -> str | None:
    """Why governance refused a version, as its error code, from a deployment's status message.

    None when the message tells of anything else, such as a package that is missing.
    """
    found = re.search(rf"{_REFUSED}\[([A-Z_]+)\]", message)
    return found[1] if found else None


def _load(spec: ModelSpec) -> Scorer:
    """The version's scorer, once what verification needs can be reached.

    Waits for that as long as it takes: nobody is to blame that a server is away, and Ray would give
    the version up after a few attempts.

    Raises:
        _RefusedVersionError: governance refuses the version.
        Exception: it cannot be loaded for another reason.
    """
    pause_s = _PAUSE_S
    while True:
        try:
            return _loaded(spec)
        except UnreachableError as error:
            _log.warning("models:/%s/%s waits: %s", spec.model, spec.version, error)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _loaded(spec: ModelSpec) -> Scorer:
    """One attempt.

    Raises:
        UnreachableError: what verification needs is away.
    """
    from mlflow.exceptions import MlflowException

    uri = spec.uri or f"models:/{spec.model}/{spec.version}"
    try:
        with expecting(spec.root_digest):
            return Scorer.load(uri, Identity(spec.model, spec.version, spec.signer))
    except MlflowException as error:
        code = error.json_kwargs.get("governance_code")
        if code is None:
            raise
        if code == UnreachableError.code:
            raise UnreachableError(error.message) from error
        raise _RefusedVersionError(f"{_REFUSED}[{code}] {uri}: {error.message}") from error
    except UnreachableError:
        raise
    except GovernanceError as error:
        raise _RefusedVersionError(f"{_REFUSED}[{error.code}] {uri}: {error}") from error


class ModelThread:
    """The thread in which a model answers, with its event loop and socket.

    Args:
        path: Of its socket.
        scorer: Asked in that thread only.
        tracing: Makes spans of what is traced; None: of nothing.
    """

    def __init__(self, path: Path, scorer: Scorer, tracing: Tracing | None = None) -> None:
        self._tracing = tracing
        self._path = path
        self._scorer = scorer
        self._loop: asyncio.AbstractEventLoop | None = None
        self._model: SocketModel | None = None
        self._started: Future[None] = Future()
        self._ended: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: the socket cannot be made.
        """
        self._thread.start()
        self._started.result(30)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def busy_s(self) -> float:
        """Seconds the model has been at its present batch."""
        return 0.0 if self._model is None else self._model.busy_s

    @property
    def batches(self) -> int:
        """Answered so far."""
        return 0 if self._model is None else self._model.batches

    async def answer(self, frame: bytes) -> bytes:
        """The answers to a frame, from another event loop."""
        assert self._loop is not None
        assert self._model is not None
        model = self._model

        async def ask() -> bytes:
            return model.answer(frame)

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(ask(), self._loop))

    def close(self, timeout_s: float = 5.0) -> None:
        """Let the gateways go elsewhere, answer what was asked, and end."""
        self._path.unlink(missing_ok=True)
        if self._loop is not None and self._ended is not None and self.alive:
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join(timeout_s)
        if self._tracing is not None:
            self._tracing.close()
        if self._scorer.recorder is not None:
            self._scorer.recorder.close()

    def _run(self) -> None:
        import uvloop

        try:
            uvloop.run(self._serve())
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
            raise

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._model = await SocketModel.start(self._path, self._scorer, self._tracing)
        self._started.set_result(None)
        await self._ended.wait()
        await self._model.close(_LEAVING_S)
        await asyncio.sleep(0.05)  # what was written leaves


class ModelReplica:
    """One replica. Ray makes it, asks after its health, and ends it.

    Args:
        spec: Which version.

    Raises:
        RuntimeError: governance refuses the version (`refusal_in` knows), or it cannot be loaded.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        base = private_folder(Path(spec.sockets))
        folder = private_folder(socket_folder(base, spec.application))
        scorer = _load(spec)
        if spec.probe:
            scorer.prepare()
        layout = scorer.layout
        names = None if layout is None or layout.names is None else tuple(layout.names)
        scorer.record(open_recorder(ServedModel(spec.model, spec.version, names, spec.route)))
        tracing = Tracing.from_environment("chancery-replica", os.environ)
        self._hello = Hello.of(scorer, traces=tracing is not None).to_json()
        self._thread = ModelThread(folder / f"{uuid4().hex[:12]}.sock", scorer, tracing)
        settle_memory()
        self._thread.start()

    async def answer_frame(self, frame: bytes) -> bytes:
        """The answers to a frame of requests, both with their length in front."""
        return await self._thread.answer(frame[4:])

    async def hello(self) -> bytes:
        """What the model says of itself (``serve.socket_lane.Hello``)."""
        return self._hello

    async def facts(self) -> dict[str, Any]:
        """For tests and ``doctor``: process, batches, seconds at the present batch."""
        thread = self._thread
        return {"pid": os.getpid(), "batches": thread.batches, "busySeconds": thread.busy_s}

    def check_health(self) -> None:
        """Raises when Ray should replace this replica."""
        if not self._thread.alive:
            raise RuntimeError("the model's thread ended")
        if self._thread.busy_s > self._spec.busy_limit_s:
            raise RuntimeError(f"the model is at one batch for {self._thread.busy_s:.0f} s")

    def __del__(self) -> None:
        thread = getattr(self, "_thread", None)
        if thread is not None:
            thread.close()


def model_application(spec: ModelSpec, code: str | None = None) -> Any:
    """The version as a Ray Serve application, for ``serve.run(…, route_prefix=None)``.

    Args:
        spec: Which version.
        code: Says what runs: replicas stay when the application is declared again with the same;
            None: they are replaced.
    """
    from ray import serve

    options: dict[str, Any] = {
        "num_cpus": spec.cpus,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1", **spec.environment}},
    }
    if spec.gpus:
        options["num_gpus"] = spec.gpus
    if spec.labels:
        options["label_selector"] = dict(spec.labels)
    deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=spec.replicas,
        ray_actor_options=options,
        max_ongoing_requests=16,
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=10.0,
        max_constructor_retry_count=2,
        max_surge_percent=100,
        logging_config={"enable_access_log": False},
    )
    declared = deployment(ModelReplica)
    if code is not None:
        declared = declared.options(version=code, _internal=True)
    return declared.bind(spec)
