"""What serving benchmarks run against: a governed store, a Ray cluster and real deployments.

Everything is started as people start it: versions are registered in a governed store, a deployment
is ordered through the port that ``chancery deploy`` uses, and its controller starts gateways and
replicas on Ray. The cluster is the benchmark's own, with folders and ports of its own, and ends
with it.

Example::

    with private_home() as home, cluster(home):
        store = Store(home)
        store.register("linear", linear_model())
        deployed = store.deploy("models:/linear/1", gateways=2)
        deployed.cpu_seconds()     # {"gateways": 1.2, "replicas": 0.8, "controller": 0.1}
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surroundings import free_port

if TYPE_CHECKING:
    from governance.deployment_port import Deployments
    from governance.deployment_records import DeploymentRecord

__all__ = ["Deployed", "Process", "Store", "answers", "cluster", "processes_of", "wait_until"]

_TICK = os.sysconf("SC_CLK_TCK")
_REPLICA = "ray::ServeReplica:"
_CONTROLLER = "ray::ControllerActor"
_MARK = "CHANCERY_BENCH_CLUSTER"
SANDBOX = "sandbox"
"""An environment without a gate: what is measured is serving, not a promotion."""


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 600.0) -> Any:
    """What ``condition`` gives as soon as it is true.

    Raises:
        SystemExit: it does not become true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"within {timeout_s:g} s it did not happen that {what}")
        time.sleep(0.1)
    return found


def answers(port: int, request: bytes) -> bool:
    """Whether a request, on a connection of its own, is answered with 200."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(request)
            return connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


@contextmanager
def cluster(folder: Path, cpus: int = 32) -> Iterator[None]:
    """A Ray cluster of our own; nothing is told to anybody.

    Args:
        folder: For everything it writes; short, because sockets lie in it.
        cpus: Logical ones, that many small applications find room.
    """
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_worker_niceness": "0",  # as other servers have it; 15 otherwise
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        ),
        _MARK: str(folder),
    }
    import ray
    from ray import serve

    from serve.ray_cluster import NAMESPACE

    ray.init(
        num_cpus=cpus,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        _temp_dir=str(folder / "r"),
        log_to_driver=False,
        namespace=NAMESPACE,
    )
    try:
        serve.start(proxy_location="Disabled")
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the cluster.

    Attributes:
        pid: Its id.
        role: ``gateway``, ``replica``, ``controller`` (ours, for one deployment) or ``ray``.
        application: Of Ray Serve; empty for others.
    """

    pid: int
    role: str
    application: str = ""

    def cpu_seconds(self) -> float:
        """Used so far; 0.0 when it is gone."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / _TICK

    def memory(self) -> dict[str, int]:
        """Resident and proportional size in bytes; empty when it is gone."""
        found = {}
        try:
            for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("Rss", "Pss"):
                    found[name.lower()] = int(value.split()[0]) * 1024
        except OSError:
            return {}
        return found

    def client_ports(self, port: int) -> set[int]:
        """Ports of the clients whose connections to ``port`` it holds now."""
        sockets = set()
        for file in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                sockets.add(os.readlink(file))
            except OSError:
                continue
        found = set()
        for line in Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            here, there, inode = fields[1], fields[2], fields[9]
            if int(here.rpartition(":")[2], 16) == port and f"socket:[{inode}]" in sockets:
                found.add(int(there.rpartition(":")[2], 16))
        return found

    def kill(self) -> None:
        """At once, as a crash does."""
        os.kill(self.pid, signal.SIGKILL)


def processes_of(folder: Path) -> list[Process]:
    """All of the cluster that was started for ``folder``, and of nobody else."""
    mark, found = f"{_MARK}={folder}".encode(), []
    for place in Path("/proc").iterdir():
        if not place.name.isdecimal() or int(place.name) == os.getpid():
            continue
        try:
            if mark not in (place / "environ").read_bytes().split(b"\0"):
                continue
            line = (place / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        pid = int(place.name)
        if line.startswith(_REPLICA):
            application = line.removeprefix(_REPLICA).partition(":")[0]
            role = "gateway" if application.endswith("-gateway") else "replica"
            found.append(Process(pid, role, application))
        elif line.startswith(_CONTROLLER):
            found.append(Process(pid, "controller"))
        elif "ray" in line and "benchmarks/" not in line:
            found.append(Process(pid, "ray"))
    return found


class Deployed:
    """A deployment that answers.

    Args:
        store: Where it is recorded.
        record: As it was ordered.
        folder: Of the cluster.
    """

    def __init__(self, store: Deployments, record: DeploymentRecord, folder: Path) -> None:
        assert record.port is not None
        self._store = store
        self._folder = folder
        self.id = record.deploy_id
        self.port: int = record.port

    @property
    def record(self) -> DeploymentRecord:
        """As it is now."""
        return self._store.find(self.id)

    def decisions(self) -> list[Mapping[str, Any]]:
        """Of its rollouts, oldest first."""
        return [one.document for one in self._store.decisions(self.id)]

    def wait(self, request: bytes) -> None:
        """Until every gateway answers."""
        wait_until(lambda: answers(self.port, request), "the deployment answers")
        wait_until(lambda: all(answers(self.port, request) for _ in range(20)), "gateways answer")

    def processes(self) -> list[Process]:
        """Its gateways and replicas."""
        short = self.id[:12]
        return [one for one in processes_of(self._folder) if one.application.startswith(short)]

    def cpu_seconds(self) -> dict[str, float]:
        """Used so far, by role; ``ray`` and ``controller`` are the whole cluster's."""
        short, found = self.id[:12], dict.fromkeys(("gateway", "replica", "controller", "ray"), 0.0)
        for one in processes_of(self._folder):
            if not one.application or one.application.startswith(short):
                found[one.role] += one.cpu_seconds()
        return found

    def end(self) -> None:
        """Take it down, and wait until its processes are gone."""
        self._store.end(self.id, "measured")
        wait_until(lambda: self.record.stopped_ms is not None, "it is taken down")
        wait_until(lambda: not self.processes(), "its processes end")


class Store:
    """A governed store with registered models.

    Args:
        folder: Of the database, the artifacts and the cluster.
    """

    def __init__(self, folder: Path) -> None:
        import mlflow

        self.folder = folder
        self.uri = f"governed+sqlite:///{folder}/mlflow.db"
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        mlflow.create_experiment("serving", artifact_location=(folder / "artifacts").as_uri())
        mlflow.set_experiment("serving")

    @property
    def deployments(self) -> Deployments:
        """The port."""
        from governance.deployment_port import open_deployments

        return open_deployments(self.uri)

    def register(self, name: str, log: Callable[[str], Any]) -> int:
        """Log and register a model in a run of its own; the version's number.

        Args:
            name: Registered name.
            log: Logs a model under the registered name it is given.
        """
        import mlflow

        with mlflow.start_run():
            info = log(name)
        return int(info.registered_model_version)

    def deploy(
        self, model: str, request: bytes, *, route: str = "", replicas: int = 1, **resources: str
    ) -> Deployed:
        """Put a version on a route, and wait until all its gateways answer.

        Args:
            model: ``models:/name/version``.
            request: What is asked to find out.
            route: By default the registered name.
            replicas: Of each variant.
            resources: Of the deployment: ``gateways``, ``accessLog`` …
        """
        from governance.deployment_port import DeploymentOrder

        order = DeploymentOrder(
            model=model,
            route=route or None,
            environment=SANDBOX,
            replicas=replicas,
            resources={"numCpus": "0.1", **resources},
            port=free_port(),
        )
        deployed = self._start(order)
        deployed.wait(request)
        return deployed

    def roll_out(self, model: str, route: str, config: str) -> None:
        """Begin a canary beside what answers on a route; its controller takes it from there."""
        from governance.deployment_port import DeploymentOrder

        self.deployments.deploy(
            DeploymentOrder(model=model, route=route, environment=SANDBOX, canary_config=config)
        )

    def abort(self, route: str, reason: str) -> None:
        """End the rollout on a route."""
        from governance.deployment_records import SignalKind

        self.deployments.ask(route, SignalKind.ABORT, reason)

    def _start(self, order: Any) -> Deployed:
        from serve.launch import ensure_controller

        record = self.deployments.deploy(order)
        ensure_controller(record, self.uri)
        return Deployed(self.deployments, record, self.folder)
