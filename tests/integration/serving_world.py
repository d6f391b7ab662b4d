"""A route on a real Ray cluster whose two versions do what a file says, and everything around it.

PostgreSQL, an MLflow server that replicas load through, gateways and the real controller: each may
be stopped and started again. What a test leaves, ``World.restore`` puts right.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import pandas as pd
import pytest
import ray
from mlflow.models import infer_signature
from ray import serve

from benchmarks.surroundings import Postgres, free_port
from governance.deployment_port import DeploymentOrder, Deployments, open_deployments
from governance.deployment_records import DeploymentRecord, DeploymentStatus, SignalKind
from serve.config import CanaryConfig
from serve.launch import ensure_controller
from serve.ray_cluster import NAMESPACE, actor_name
from tests.conftest import Server, launch_server

ROUTE = "moods"
ROWS = pd.DataFrame({"a": [1.0, 2.0], "b": [2.0, 1.0]})
BODY = json.dumps({"inputs": {"a": [1.0], "b": [2.0]}}).encode()
HEADERS = {"content-type": "application/json"}
BASE_S = 0.02  # what a good prediction takes

MODEL = '''
import pathlib
import time

import mlflow

FILE = pathlib.Path({file!r})
KEPT = []


class Moody(mlflow.pyfunc.PythonModel):
    """Sums a row in {base} s, or does what the file says."""

    def predict(self, context, model_input, params=None):
        mood = FILE.read_text()
        good = model_input["a"].to_numpy() + model_input["b"].to_numpy()
        if mood == "raise":
            raise RuntimeError("a bad mood")
        if mood == "nested":
            return good.reshape(-1, 1)
        if mood == "leak":
            KEPT.append(b"x" * (8 << 20))
        while mood == "hang":
            time.sleep(0.05)
            mood = FILE.read_text()
        time.sleep(float(mood.removeprefix("slow ")) if mood.startswith("slow ") else {base})
        return good


mlflow.models.set_model(Moody())
'''


@dataclass
class Seen:
    """What clients were told."""

    statuses: Counter[int] = field(default_factory=Counter)
    variants: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    lost: int = 0
    slowest_s: float = 0.0


class World:
    """See the module.

    Args:
        folder: For everything; short, since sockets lie below it.
        database: Which may be stopped.
        store: URI of the governed database.
    """

    def __init__(self, folder: Path, database: Postgres, store: str) -> None:
        self.folder = folder
        self.database = database
        self.uri = store
        self.home = folder / "home"
        self.server = self._launch(free_port())
        self.port = free_port()
        self.deployments: Deployments = open_deployments(store)

    # -- the environment of each test

    def enter(self, patch: pytest.MonkeyPatch) -> None:
        """Settings as the world has them: replicas load through the server."""
        patch.setenv("HOME", str(self.home))
        patch.setenv("CHANCERY_HOME", str(self.home))
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            patch.setenv(name, self.server.uri)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        mlflow.set_tracking_uri(self.server.uri)
        mlflow.set_registry_uri(self.server.uri)

    # -- versions and their moods

    def register(self) -> None:
        """Stable is version 1, the canary 2; 3 is the canary's files once more."""
        (self.folder / "moods").mkdir()
        mlflow.set_experiment("moods")
        client = mlflow.MlflowClient()
        for name in ("stable", "canary"):
            self.mood(name, "good")
            code = self.folder / f"{name}.py"
            mood = self.folder / "moods" / name
            code.write_text(MODEL.format(file=str(mood), base=BASE_S))
            with mlflow.start_run():
                mlflow.pyfunc.log_model(
                    name="model", python_model=str(code), registered_model_name=ROUTE,
                    signature=infer_signature(ROWS, ROWS["a"]), pip_requirements=["mlflow"],
                )  # fmt: skip
        source = client.get_model_version(ROUTE, "2").source
        client.create_model_version(ROUTE, source, model_id=source.removeprefix("models:/"))

    def mood(self, variant: str, mood: str) -> None:
        file = self.folder / "moods" / variant
        file.with_suffix(".new").write_text(mood)
        file.with_suffix(".new").replace(file)

    # -- the route

    def deploy(self) -> None:
        """Version 1 answers."""
        record = self.deployments.deploy(
            DeploymentOrder(
                f"models:/{ROUTE}/1", environment="sandbox", port=self.port,
                resources={"numCpus": "0.1"},
            )
        )  # fmt: skip
        ensure_controller(record, self.uri)
        self.deploy_id = record.deploy_id
        wait_for(lambda: self.record.status is DeploymentStatus.SERVING, "stable serves")
        wait_for(lambda: self.answers() == {200}, "the route answers")

    @property
    def record(self) -> DeploymentRecord:
        return self.deployments.find(self.deploy_id)

    @property
    def controller(self) -> Any:
        return ray.get_actor(actor_name(self.deploy_id), namespace=NAMESPACE)

    def begin(self, version: int = 2, **config: Any) -> DeploymentRecord:
        """Begin a rollout at half the traffic; by itself it never gets more."""
        whole = {
            "steps": [50.0, 100.0], "min_samples": 1_000_000, "min_seconds": 600.0,
            "timeout_seconds": 10.0, **config,
        }  # fmt: skip
        text = CanaryConfig.model_validate_json(json.dumps(whole)).model_dump_json()
        order = DeploymentOrder(f"models:/{ROUTE}/{version}", route=ROUTE, canary_config=text)
        return self.deployments.deploy(order)

    def roll_out(self, **config: Any) -> None:
        """Begin, and wait until both variants answer on every gateway."""
        self.begin(**config)
        self.wait_for_canary()

    def wait_for_canary(self, timeout_s: float = 300.0) -> None:
        def runs() -> bool:
            assert self.record.canary is not None, self.explanation
            return self.both_answer()

        wait_for(runs, "the canary gets traffic", timeout_s)

    def both_answer(self) -> bool:
        """Whether stable and canary each answer some of the requests; the database is not asked."""
        asked = [self.ask()[2].get("x-chancery-variant") for _ in range(24)]
        return min(asked.count("stable"), asked.count("canary")) >= 4

    @property
    def outcomes(self) -> list[str]:
        """Of the last rollout."""
        rollout = self.record.rollout_id
        found = self.deployments.decisions(self.deploy_id)
        return [d.document["outcome"] for d in found if d.rollout_id == rollout]

    @property
    def explanation(self) -> str:
        """Of the last decision."""
        return " ".join(self.deployments.decisions(self.deploy_id)[-1].document["explanation"])

    def wait_for_outcome(self, outcome: str, timeout_s: float = 300.0) -> None:
        wait_for(
            lambda: self.outcomes[-1:] == [outcome], f"the rollout is {outcome}", timeout_s,
        )  # fmt: skip

    # -- requests

    def ask(self) -> tuple[int, bytes, dict[str, str]]:
        """One request on a connection of its own."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            client.request("POST", "/invocations", BODY, HEADERS)
            answer = client.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, answer.read(), headers
        finally:
            client.close()

    def answers(self) -> set[int]:
        """Statuses of several requests; 0 where nobody listens."""
        try:
            return {self.ask()[0] for _ in range(8)}
        except OSError:
            return {0}

    @contextmanager
    def clients(self, count: int = 6) -> Iterator[Seen]:
        """Clients that ask one request after the other until the end."""
        seen, ended, lock = Seen(), threading.Event(), threading.Lock()

        def client() -> None:
            while not ended.is_set():
                begun = time.monotonic()
                try:
                    status, _, headers = self.ask()
                except (OSError, http.client.HTTPException):
                    with lock:
                        seen.lost += 1
                    time.sleep(0.05)
                    continue
                with lock:
                    seen.statuses[status] += 1
                    seen.variants[headers.get("x-chancery-variant", "")] += 1
                    seen.retried += headers.get("x-chancery-retried") == "1"
                    seen.slowest_s = max(seen.slowest_s, time.monotonic() - begun)
                if status == 503:
                    time.sleep(0.02)

        threads = [threading.Thread(target=client, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield seen
        finally:
            ended.set()
            for thread in threads:
                thread.join(20)

    # -- what may be taken away

    def _launch(self, port: int) -> Server:
        environment = {"CHANCERY_HOME": str(self.home)}
        return launch_server(self.folder, self.uri, port=port, environment=environment)

    def start_server(self) -> None:
        """The MLflow server, at its old address."""
        if self.server.process.poll() is not None:
            self.server = self._launch(int(self.server.uri.rpartition(":")[2]))

    def pids(self, version: int) -> set[int]:
        """Processes of a version's replicas that live."""
        return replicas(self.folder, f"{self.deploy_id[:12]}-v{version}")

    def restore(self) -> None:
        """Everything is there, in a good mood, and no rollout runs."""
        for variant in ("stable", "canary"):
            self.mood(variant, "good")
        self.start_server()
        self.database.start()
        if self.record.canary is not None:
            self.deployments.ask(self.deploy_id, SignalKind.ABORT, "the test is over")
            wait_for(lambda: self.record.canary is None, "the rollout ends")
        wait_for(lambda: self.answers() == {200}, "the route answers")


def replicas(folder: Path, application: str) -> set[int]:
    """Processes of a cluster below ``folder`` that are replicas of an application."""
    name = f"ray::ServeReplica:{application}:".encode()
    return {pid for pid in processes_of(folder) if command_line(pid).startswith(name)}


def processes_of(folder: Path) -> set[int]:
    """Whatever was started with this folder in its environment or command line."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            said = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in said and said:
            found.add(int(entry.name))
    return found


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def resident_bytes(pid: int) -> int:
    """Memory that a process has; 0: it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def kill(pids: set[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it ended by itself
            os.kill(pid, signal.SIGKILL)


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"within {timeout_s:g} s it did not happen that {what}{_state()}")
        time.sleep(0.1)


def _state() -> str:
    """What Ray Serve says, for whoever reads why a test failed."""
    if not ray.is_initialized():
        return ""
    lines = [
        f"{name}: {app.status} {one.replica_states} {one.message}"
        for name, app in serve.status().applications.items()
        for one in app.deployments.values()
    ]
    return "".join(f"\n{line}" for line in lines)


@contextmanager
def running_world(database: Postgres, store: str) -> Iterator[World]:
    """A world in a cluster of its own; nothing of it is left."""
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="w", ignore_cleanup_errors=True) as made,
    ):
        folder = Path(made)
        patch.setenv("CHANCERY_HOME", str(folder / "home"))
        (folder / "home").mkdir()
        patch.setenv("TMPDIR", made)  # sockets and private copies, of everything below
        patch.setattr(tempfile, "tempdir", made)
        world = World(folder, database, store)
        try:
            world.enter(patch)
            world.register()
            ray.init(
                num_cpus=16,
                include_dashboard=False,
                object_store_memory=100 * 2**20,
                _temp_dir=str(folder / "r"),
                log_to_driver=False,
                namespace=NAMESPACE,
            )
            serve.start(proxy_location="Disabled")
            world.deploy()
            yield world
        finally:
            database.start()
            if ray.is_initialized():
                serve.shutdown()
                ray.shutdown()
            world.server.stop()
