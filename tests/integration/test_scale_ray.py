"""Numbers and places of replicas on a real Ray cluster, and what Ray gets to know (AC-15, AC-12).

The cluster has two GPUs, as far as Ray counts, and its node is of the pool ``gpu``.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import ray
from click.testing import CliRunner

from benchmarks.surroundings import free_port
from governance.cli import main
from governance.deployment_port import open_deployments
from serve.course import Course
from serve.ray_cluster import NAMESPACE, actor_name
from tests.scenario import Scenario

pytestmark = pytest.mark.timeout(1800)
BODY = json.dumps({"inputs": [[1.0, 2.0]]}).encode()
PASSWORD = "pa55-that-nobody-sees"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """A cluster of our own for all tests of this file; its folder."""
    if ray.is_initialized():
        ray.shutdown()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="z") as folder:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("HOME", folder)
        ray.init(
            num_cpus=16,
            num_gpus=2,
            labels={"pool": "gpu"},
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            _temp_dir=folder,
            log_to_driver=False,
        )
        try:
            yield Path(folder)
        finally:
            from ray import serve

            serve.shutdown()
            ray.shutdown()


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"within {timeout_s:g} s it did not happen that {what}")
        time.sleep(0.1)


def gpus_free() -> float:
    """As nodes tell the head, a moment after."""
    return float(ray.available_resources()["GPU"])


class Route:
    """A deployment's port, replicas, and what its clients were told."""

    def __init__(self, deployed: dict[str, Any]) -> None:
        self.deploy_id = deployed["deployId"]
        self.port = deployed["port"]
        self.statuses: Counter[int] = Counter()
        self.refusals: set[bytes] = set()
        self.lost = 0
        self._ended = threading.Event()

    def ask(self) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=200)
        try:
            connection.request("POST", "/invocations", BODY, {"content-type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                self.refusals.add(body)
            return answer.status
        finally:
            connection.close()

    def answers(self) -> bool:
        try:
            return self.ask() == 200
        except OSError:
            return False

    def replicas(self) -> set[int]:
        """Processes."""
        title = f"ray::ServeReplica:{self.deploy_id[:12]}-v".encode()
        found = set()
        for folder in Path("/proc").iterdir():
            try:
                if (folder / "cmdline").read_bytes().startswith(title):
                    found.add(int(folder.name))
            except OSError:
                continue
        return found

    def __enter__(self) -> Route:
        self._ended.clear()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(6)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(200)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self.statuses[self.ask()] += 1
            except (OSError, http.client.HTTPException):
                self.lost += 1


def test_replicas_follow_demand_down_to_none_and_nothing_is_lost(
    scenario: Scenario, cluster: Path, tmp_path: Path
) -> None:
    store = open_deployments(scenario.uri)
    scenario.to_prod(scenario.train())
    scale = tmp_path / "scale.yaml"
    scale.write_text(
        "replicas: 0..3\ntarget_in_flight: 1\nidle_seconds: 6\nquiet_seconds: 4\n"
        "hold_seconds: 180\n"
    )

    def chancery(*args: str) -> Any:
        result = CliRunner().invoke(main, ["deploy", *args, "--uri", scenario.uri, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    deployed = chancery(
        "models:/fraud@champion", "--port", str(free_port()), "--cpus", "0.1", "--gpus", "0.25",
        "--pool", "gpu", "--gateway-pool", "gpu", "--scale", str(scale),
    )  # fmt: skip
    route = Route(deployed)
    wait_for(route.answers, "the route answers")
    with route:
        first = route.replicas()
        wait_for(lambda: len(route.replicas()) == 3, "there are three replicas")
        three = route.replicas()
        assert first <= three, "what ran goes on"
        wait_for(lambda: gpus_free() == pytest.approx(2 - 3 * 0.25), "a quarter of a GPU for each")
        fence = store.find("fraud").fence
        ray.kill(ray.get_actor(actor_name(route.deploy_id), namespace=NAMESPACE), no_restart=False)
        wait_for(lambda: store.find("fraud").fence > fence, "another controller takes over")
        time.sleep(3)
        assert route.replicas() == three, "a takeover restarts nothing"
        chancery("scale", "fraud", "--replicas", "0..1")
        wait_for(lambda: len(route.replicas()) == 1, "one replica is left")
        assert route.replicas() <= three
        chancery("scale", "fraud", "--replicas", "0..3")
        wait_for(lambda: len(route.replicas()) == 3, "there are three again")
    assert set(route.statuses) == {200}
    assert route.lost == 0

    wait_for(lambda: not route.replicas(), "it sleeps")
    with ThreadPoolExecutor(20) as clients:
        told = set(clients.map(lambda _: route.ask(), range(20)))
    assert told == {200}, f"not held, or not answered: {route.refusals}"
    assert len(route.replicas()) >= 1
    wait_for(lambda: not route.replicas(), "it sleeps again")
    chancery("warm", "fraud")
    wait_for(route.replicas, "it is woken without a request")
    chancery("delete", "fraud")
    wait_for(lambda: store.find(route.deploy_id).stopped_ms is not None, "it is taken down")


def test_what_no_node_has_is_told(scenario: Scenario, cluster: Path) -> None:
    store = open_deployments(scenario.uri)
    scenario.train()

    def chancery(*args: str) -> Any:
        result = CliRunner().invoke(main, ["deploy", *args, "--uri", scenario.uri])
        assert result.exit_code == 0, result.output
        return result

    where = ["--env", "sandbox", "--port", str(free_port()), "--pool", "batch", "--cpus", "0.1"]
    started = chancery("models:/fraud/1", *where)
    assert "no node has the label pool=batch; there are pool=gpu" in started.stderr

    def told() -> bool:
        state = store.find("fraud").state
        notices = Course.from_json(state).notices if state else ()
        return any("no node has the label pool=batch" in notice.text for notice in notices)

    wait_for(told, "the controller tells")
    assert "pool=batch" in chancery("show", "fraud").stdout
    chancery("delete", "fraud")


def test_what_others_have_taken_is_told(scenario: Scenario, cluster: Path) -> None:
    store = open_deployments(scenario.uri)
    scenario.train()
    where = ["--env", "sandbox", "--port", str(free_port()), "--uri", scenario.uri]
    size = ["--replicas", "2", "--cpus", "9"]  # the node has sixteen
    started = CliRunner().invoke(main, ["deploy", "models:/fraud/1", *where, *size])
    assert started.exit_code == 0, started.output
    assert "no node has" not in started.stderr

    def told() -> bool:
        state = store.find("fraud").state
        notices = Course.from_json(state).notices if state else ()
        return any("no node has 9 CPUs free" in notice.text for notice in notices)

    wait_for(told, "the controller tells")
    deleted = CliRunner().invoke(main, ["deploy", "delete", "fraud", "--uri", scenario.uri])
    assert deleted.exit_code == 0, deleted.output


@pytest.fixture
def with_password(scenario: Scenario) -> Iterator[str]:
    """The scenario's PostgreSQL, as somebody who needs a password there."""
    plain = scenario.uri.removeprefix("governed+").replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        row = connection.execute("SHOW hba_file").fetchone()
        assert row is not None
        rules = Path(row[0])
        before = rules.read_text()
        connection.execute(f"CREATE ROLE carol SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
        rules.write_text(f"host all carol 127.0.0.1/32 scram-sha-256\n{before}")
        connection.execute("SELECT pg_reload_conf()")
        try:
            yield scenario.uri.replace("://chancery@", f"://carol:{PASSWORD}@")
        finally:
            rules.write_text(before)
            connection.execute("SELECT pg_reload_conf()")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'carol'"
            )
            connection.execute("DROP ROLE carol")


@pytest.mark.parametrize("scenario", ["postgresql"], indirect=True)
def test_no_process_of_the_cluster_holds_the_password(
    scenario: Scenario, with_password: str, cluster: Path, tmp_path: Path
) -> None:
    scenario.train()
    store = open_deployments(scenario.uri)
    address = ray.get_runtime_context().gcs_address
    command = [
        sys.executable, "-m", "governance.cli", "deploy", "models:/fraud/1", "--env", "sandbox",
        "--uri", with_password, "--ray", address, "--port", str(free_port()), "--pool", "none",
    ]  # fmt: skip
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": PASSWORD, "CHANCERY_ACTOR": "carol"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    record = store.find("fraud")
    actor = ray.get_actor(actor_name(record.deploy_id), namespace=NAMESPACE)
    wait_for(
        lambda: ray.get(actor.facts.remote())["holding"],
        "the controller is in, by its password file",
    )
    assert store.find("fraud").fence > 0

    (file,) = (tmp_path / "home" / ".chancery").rglob("pgpass-*")
    assert PASSWORD in file.read_text()
    secret = PASSWORD.encode()
    processes = list(_processes_of(cluster))
    assert len(processes) > 5
    for folder in processes:
        for part in ("cmdline", "environ"):
            assert secret not in _read(folder / part), f"{folder.name}: {part}"
    (control_store,) = (
        f for f in processes if b"gcs_server" in _read(f / "cmdline").split(b"\0")[0]
    )
    assert _holds(control_store, record.deploy_id.encode()), "the reading works"
    assert not _holds(control_store, secret)
    for log in cluster.rglob("*"):
        assert not log.is_file() or secret not in log.read_bytes(), log
    CliRunner().invoke(main, ["deploy", "delete", "fraud", "--uri", scenario.uri])
    wait_for(lambda: store.find(record.deploy_id).stopped_ms is not None, "it is taken down")


def _processes_of(cluster: Path) -> Iterator[Path]:
    """Of the cluster; not this one, which knows the password."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            known = _read(folder / "cmdline") + _read(folder / "environ")
            if str(cluster).encode() in known:
                yield folder


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _holds(process: Path, words: bytes) -> bool:
    """Whether the words are in its memory."""
    with (process / "mem").open("rb", 0) as memory:
        for line in (process / "maps").read_text().splitlines():
            span, rights = line.split()[:2]
            begin, end = (int(edge, 16) for edge in span.split("-"))
            if not rights.startswith("rw"):
                continue
            try:
                memory.seek(begin)
                if words in memory.read(end - begin):
                    return True
            except (OSError, ValueError, OverflowError):
                continue
    return False
