"""The listeners as a Ray Serve deployment: each replica owns a port that all of them share.

A gateway replica runs uvicorn in a thread with an event loop of its own. All gateways of a node
listen on one port (``SO_REUSEPORT``), so one that dies or is replaced leaves the port to the
others. Ray starts, places, watches and ends them; no request passes through Ray.

A second thread tells the controller, every quarter of a second, what happened, and gets the plan in
the same call. When the controller cannot be reached, the last plan goes on (fail static).

Example::

    spec = GatewaySpec(port=8080, sockets="/run/user/1000/chancery", controller="chancery")
    serve.run(gateway_application(spec), name="gateway", route_prefix=None)
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from serve.access_log import AccessLog
from serve.answer import Answer
from serve.asgi import AppLimits, ScoringApp
from serve.batching import BatchLimits
from serve.frames import pack_requests, unpack_answers
from serve.lanes import Carrier, RemoteLane, socket_folder
from serve.metrics import CONTENT_TYPE, exposition
from serve.observer import Observer
from serve.pauses import settle_memory
from serve.plan import ControllerPort, Plan, Report
from serve.replica import DEPLOYMENT
from serve.router import Router
from serve.routing import Lanes
from serve.siblings import Siblings
from serve.socket_lane import Hello, LaneLostError, private_folder
from serve.tracing import Tracing

__all__ = [
    "ActorController",
    "Gateway",
    "GatewaySpec",
    "Listener",
    "gateway_application",
]

_logger = logging.getLogger(__name__)

_HEARTBEAT_S = 0.5
_FIRST_PLAN_S = 5.0  # until Ray may hear that it runs, though it does not listen yet
_REMOTE_S = 10.0


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """How the gateways run.

    Attributes:
        port: Shared by all gateways of a node; 0 only in tests with one gateway.
        sockets: Folder of the model replicas' sockets.
        controller: Name of the Ray actor that has the plan.
        namespace: Of that actor.
        host: Address to listen on.
        replicas: How many; two or more a node survive each other.
        exchange_s: Seconds between two reports.
        keep_alive_s: How long an idle connection stays open.
        header_s: How long a client may take for its headers.
        drain_s: How long, at the end, answers tell clients to connect anew.
        stuck_s: Seconds without a sign of life from the loop after which a gateway is replaced.
        limits: What clients may ask.
        batches: Of each lane.
        access_log: Folder for the access log of each gateway; empty for none.
        environment: Variables of the gateways.
        cpus: Of each, as Ray counts them.
        labels: Node labels they need, as ``{"pool": "edge"}``.
    """

    port: int
    sockets: str
    controller: str
    namespace: str = "chancery"
    host: str = "127.0.0.1"
    replicas: int = 2
    exchange_s: float = 0.25
    keep_alive_s: int = 75
    header_s: float = 10.0
    drain_s: float = 1.0
    stuck_s: float = 10.0
    limits: AppLimits = field(default_factory=AppLimits)
    batches: BatchLimits = field(default_factory=lambda: BatchLimits(weight=4 << 20))
    access_log: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    cpus: float = 0.5
    labels: Mapping[str, str] = field(default_factory=dict)


class ActorController:
    """A controller that is a named Ray actor with ``exchange(dict) -> dict``.

    Args:
        name: Of the actor.
        namespace: Of the actor.
        timeout_s: Of one call.
    """

    def __init__(self, name: str, namespace: str, timeout_s: float = 5.0) -> None:
        self._name = name
        self._namespace = namespace
        self._timeout_s = timeout_s
        self._actor: Any = None

    def exchange(self, report: Report) -> Plan:
        """Tell, and be told.

        Raises:
            Exception: the actor is not there, does not answer, or answers no plan.
        """
        import ray

        try:
            if self._actor is None:
                self._actor = ray.get_actor(self._name, namespace=self._namespace)
            call = self._actor.exchange.remote(report.to_dict())
            found = ray.get(call, timeout=self._timeout_s)
        except BaseException:
            self._actor = None  # it may have been made anew
            raise
        return Plan.from_dict(found)


class Listener:
    """A port, the thread that serves it, and the thread that talks to the controller.

    Args:
        spec: How.
        controller: Whoever decides.
        remote: Finds lanes to replicas without a socket here.
        version: MLflow's.
        tracing: Makes spans of sampled requests; None: of none.
    """

    def __init__(
        self,
        spec: GatewaySpec,
        controller: ControllerPort,
        remote: Callable[[str], RemoteLane] | None = None,
        version: str = "",
        tracing: Tracing | None = None,
    ) -> None:
        self.source = f"gateway-{uuid4().hex[:12]}"
        self._tracing = tracing
        self._spec = spec
        self._controller = controller
        self._remote = remote
        self._version = version
        self._socket = _shared_port(spec.host, spec.port)
        self.port = int(self._socket.getsockname()[1])
        self.exchanges = self.exchanges_failed = 0
        self._beat = time.monotonic()
        self._running: Future[None] = Future()
        self._listening: Future[None] = Future()
        self._ending = threading.Event()
        self._draining = False
        self._server: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._first_plan: asyncio.Task[None] | None = None
        self._log = _access_log(spec.access_log, self.source)
        self._serving = threading.Thread(target=self._run, name="listener", daemon=True)
        self._telling = threading.Thread(target=self._tell, name="controller", daemon=True)

    def start(self) -> None:
        """Ask for a plan, and listen once there is one: until then clients are the other gateways'.

        Returns when it listens, or after a while without a plan.

        Raises:
            OSError: the port cannot be had.
        """
        if self._log is not None:
            self._log.start()
        self._serving.start()
        self._running.result(30)
        self._telling.start()
        try:
            self._listening.result(_FIRST_PLAN_S)
        except TimeoutError:
            _logger.warning("there is no plan yet; nobody is listened to before it comes")

    def check(self) -> None:
        """Raises when the listener is dead or stuck."""
        if not self._serving.is_alive() or not self._telling.is_alive():
            raise RuntimeError("a thread of the listener ended")
        silent = time.monotonic() - self._beat
        if silent > self._spec.stuck_s:
            raise RuntimeError(f"the listener's loop does not turn since {silent:.0f} s")

    def close(self, timeout_s: float = 20.0) -> None:
        """Leave the port to the others, finish what is on its way, and end."""
        self._ending.set()
        if self._loop is not None and self._serving.is_alive():
            asyncio.run_coroutine_threadsafe(self._drain(), self._loop)
            self._serving.join(timeout_s)
        if self._log is not None:
            self._log.close()
        if self._tracing is not None:
            self._tracing.close()

    # -- the listener's thread

    def _run(self) -> None:
        import uvloop

        try:
            uvloop.run(self._serve())
        except BaseException as error:
            for begun in (self._running, self._listening):
                if not begun.done():
                    begun.set_exception(error)
            raise

    async def _serve(self) -> None:
        import uvicorn

        from serve.direct import DirectProtocol

        spec = self._spec
        self._loop = asyncio.get_running_loop()
        lanes = Lanes(private_folder(Path(spec.sockets)), spec.batches, self._remote)
        self._router = Router(self.source, lanes, log=self._log, observer=Observer())
        folder = socket_folder(private_folder(Path(spec.sockets)), f"{spec.controller}-gateways")
        self._siblings = Siblings(
            private_folder(folder),
            self.source,
            self._exposition,
        )
        self._app = ScoringApp(
            self._submit,
            version=self._version,
            healthy=lambda: self._router.healthy and not self._draining,
            metrics=self._metrics,
            limits=spec.limits,
            make_id=_make_id,
            tracing=self._tracing,
        )
        protocol = DirectProtocol.of(self._app, header_s=spec.header_s)
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app,
                http=protocol,
                ws="none",
                interface="asgi3",
                lifespan="off",
                log_config=None,  # uvicorn's would wipe the handlers of Ray Serve
                access_log=False,
                proxy_headers=False,  # nothing here asks where a request came from
                server_header=False,
                timeout_keep_alive=spec.keep_alive_s,
                timeout_graceful_shutdown=max(1, int(spec.drain_s) + 10),
                backlog=2048,
            )
        )
        await self._siblings.start()
        beating = self._loop.create_task(self._keep_beating())
        self._first_plan = self._loop.create_task(self._router.ready())
        self._running.set_result(None)
        try:
            with suppress(asyncio.CancelledError):  # by the end, which came first
                await self._first_plan
            if not self._draining:
                await self._server.serve(sockets=[self._socket])
        finally:
            beating.cancel()
            await self._siblings.close()
            await self._router.close()

    async def _metrics(self) -> tuple[str, bytes]:
        return CONTENT_TYPE, await self._siblings.all()

    async def _keep_beating(self) -> None:
        while True:
            self._beat = time.monotonic()
            if self._server.started and not self._listening.done():
                self._listening.set_result(None)
            await asyncio.sleep(_HEARTBEAT_S if self._listening.done() else 0.01)

    def _exposition(self) -> bytes:
        spans = None if self._tracing is None else self._tracing.counts
        return exposition(self._router, self._app.held_bytes, spans)

    async def _submit(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        answer = await self._router.submit(body, headers)
        return answer.with_headers((b"connection", b"close")) if self._draining else answer

    async def _drain(self) -> None:
        """New connections go to the other gateways; old ones are told to."""
        self._draining = True
        if self._first_plan is not None:
            self._first_plan.cancel()
        for server in getattr(self._server, "servers", ()):  # it has none before it listens
            server.close()
        self._socket.close()
        await asyncio.sleep(self._spec.drain_s)
        self._server.should_exit = True

    # -- the controller's thread

    def _tell(self) -> None:
        due = time.monotonic()
        while not self._ending.is_set():
            try:
                self.exchange()
                self.exchanges += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, the last plan goes on
                self.exchanges_failed += 1
                _logger.warning("the controller cannot be reached: %r", error)
            due = max(due + self._spec.exchange_s, time.monotonic())
            self._ending.wait(due - time.monotonic())

    def exchange(self) -> None:
        """One report for one plan."""
        report = self._on_loop(self._router.report)
        plan = self._controller.exchange(report)
        self._on_loop(lambda: self._router.delivered(report.sequence))
        self._on_loop(lambda: self._router.offer(plan))

    def _on_loop(self, function: Callable[[], Any]) -> Any:
        assert self._loop is not None

        async def call() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(5)


_draw = random.Random(secrets.randbits(256)).getrandbits


def _make_id(size: int) -> str:
    """``2 * size`` hexadecimal digits: unique, not secret, and without a system call."""
    return f"{_draw(8 * size):0{2 * size}x}"


def _shared_port(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind((host, port))
    return listening


def _access_log(folder: str, source: str) -> AccessLog | None:
    if not folder:
        return None
    path = Path(folder)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return AccessLog((path / f"{source}.jsonl").open("ab"))


def remote_lane(application: str) -> RemoteLane:
    """A Ray handle that carries whole frames to an application's replicas on any node."""

    async def find() -> tuple[Carrier, Hello]:
        from ray import serve

        try:
            async with asyncio.timeout(_REMOTE_S):
                handle = serve.get_deployment_handle(DEPLOYMENT, application)
                hello = Hello.from_json(await handle.hello.remote())
        except Exception as error:
            raise LaneLostError(f"no replica of {application} can be called: {error!r}") from error

        async def carry(batch: list[Any]) -> list[Answer]:
            try:
                reply = await handle.answer_frame.remote(pack_requests(batch))
                answers = unpack_answers(memoryview(reply)[4:])
            except Exception as error:
                raise LaneLostError(f"a call to {application} failed: {error!r}") from error
            if len(answers) != len(batch):
                raise LaneLostError(f"{len(answers)} answers for {len(batch)} requests")
            return answers

        return carry, hello

    return find


class Gateway:
    """One replica. Ray makes it, asks after its health, and ends it."""

    def __init__(self, spec: GatewaySpec) -> None:
        from mlflow.version import VERSION

        controller = ActorController(spec.controller, spec.namespace)
        tracing = Tracing.from_environment("chancery-gateway", os.environ)
        self._listener = Listener(spec, controller, remote_lane, VERSION, tracing)
        self._listener.start()
        settle_memory()

    async def facts(self) -> dict[str, Any]:
        """For tests and ``doctor``: process, port, exchanges with the controller."""
        listener = self._listener
        return {
            "pid": os.getpid(),
            "source": listener.source,
            "port": listener.port,
            "exchanges": listener.exchanges,
            "exchangesFailed": listener.exchanges_failed,
        }

    def check_health(self) -> None:
        """Raises when Ray should replace this gateway."""
        self._listener.check()

    def __del__(self) -> None:
        listener = getattr(self, "_listener", None)
        if listener is not None:
            listener.close()


def gateway_application(spec: GatewaySpec, code: str | None = None) -> Any:
    """The gateways as a Ray Serve application, for ``serve.run(…, route_prefix=None)``.

    Args:
        spec: How they run.
        code: Says what runs, as in ``serve.replica.model_application``.
    """
    from ray import serve

    deployment = serve.deployment(
        name="gateway",
        num_replicas=spec.replicas,
        ray_actor_options={
            "num_cpus": spec.cpus,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1", **spec.environment}},
            **({"label_selector": dict(spec.labels)} if spec.labels else {}),
        },
        health_check_period_s=1.0,
        health_check_timeout_s=10.0,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=25.0,
        max_surge_percent=100,
        logging_config={"enable_access_log": False},
    )
    declared = deployment(Gateway)
    if code is not None:
        declared = declared.options(version=code, _internal=True)
    return declared.bind(spec)
