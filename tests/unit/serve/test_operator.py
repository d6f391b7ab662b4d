"""The operator: what it starts, what it says, and what it outlives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from governance import deployment_control, deployments
from governance.deployment_records import DeploymentRecord, NewDeployment
from governance.errors import ConfigurationError, UnreachableError
from serve.operator import LaunchProcess, Operator
from tests.unit.serve.deployment_world import World, served


class Database:
    """What an operator asks, on real tables."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.error: Exception | None = None

    def standing(self, *, without_lease_at_ms: int | None = None) -> tuple[DeploymentRecord, ...]:
        if self.error is not None:
            raise self.error
        with self.world.store.engine.connect() as connection:
            return deployment_control.standing(connection, without_lease_at_ms=without_lease_at_ms)


class Cluster:
    """Starts what it is told to, unless it is away."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.error: Exception | None = None
        self.bad: set[str] = set()
        self.closed = False

    def ensure(self, record: DeploymentRecord) -> None:
        if self.error is not None:
            raise self.error
        if record.deploy_id in self.bad:
            raise UnreachableError("this one cannot be started")
        self.started.append(record.deploy_id)

    def close(self) -> None:
        self.closed = True


class Scene:
    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.database, self.cluster = Database(self.world), Cluster()
        self.said: list[str] = []
        self.now = 0.0
        self.operator = self.new_operator()

    def new_operator(self) -> Operator:
        return Operator(
            lambda: self.database,  # type: ignore[arg-type, return-value]
            self.cluster,
            say=self.said.append,
            clock=lambda: int(self.now * 1000),
            monotonic=lambda: self.now,
        )


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_it_starts_what_nobody_has_a_lease_of(scene: Scene) -> None:
    record = scene.world.record
    assert scene.operator.round() == 1
    assert scene.cluster.started == [record.deploy_id]
    assert scene.said == [f"started the controller of fraud ({record.deploy_id[:12]})"]
    scene.now = 1.0
    assert scene.operator.round() == 0, "it has a moment to take its lease"
    scene.world.store.take(record.deploy_id, "c", now_ms=1000, ttl_ms=3000)
    scene.now = 3.9
    assert scene.operator.round() == 0
    scene.now = 4.1  # the lease ran out: the controller is lost
    assert scene.operator.round() == 1
    scene.now = 15.0  # and still: it is asked for again, though not every second, nor told again
    assert scene.operator.round() == 1
    assert len(scene.said) == 2


def test_an_ended_deployment_has_a_controller_until_it_is_taken_down(scene: Scene) -> None:
    record = scene.world.record
    scene.world.store.end(record)
    assert scene.operator.round() == 1
    scene.world.idle(2)
    assert scene.world.now_record.stopped_ms is not None
    scene.now = 100.0
    assert scene.operator.round() == 0


def test_two_operators_ask_for_the_same(scene: Scene) -> None:
    other = scene.new_operator()
    assert scene.operator.round() == other.round() == 1
    assert len(set(scene.cluster.started)) == 1  # the cluster has one actor of a name


def test_what_is_away_is_said_once_and_when_it_is_back(scene: Scene) -> None:
    scene.database.error = OSError("no route to host\nand more")
    for _ in range(3):
        with pytest.raises(OSError, match="no route"):
            scene.operator.round()
    scene.database.error = None
    scene.cluster.error = UnreachableError("there is no Ray cluster at 'auto'", "start it")
    for _ in range(3):
        with pytest.raises(UnreachableError):
            scene.operator.round()
    scene.cluster.error = None
    assert scene.operator.round() == 1
    assert scene.said[:4] == [
        "the database is away, it is tried again: no route to host",
        "the database is back",
        "the Ray cluster is away, it is tried again: there is no Ray cluster at 'auto'",
        "the Ray cluster is back",
    ]


def test_one_that_cannot_be_started_does_not_keep_the_others_waiting(scene: Scene) -> None:
    first = scene.world.record
    scene.cluster.bad.add(first.deploy_id)
    new = NewDeployment("2" * 32, "toy", "prod", "m" * 32, "toy", served(1), {}, {})
    with scene.world.store.engine.begin() as connection:
        second = deployments.create(connection, scene.world.store.ledger, new, now_ms=1)
    for _ in range(2):
        scene.now += 1
        with pytest.raises(UnreachableError):
            scene.operator.round()
    assert scene.cluster.started == [second.deploy_id]


def test_it_runs_until_it_is_told_to_stop(scene: Scene) -> None:
    stop = threading.Event()
    scene.database.error = OSError("away")

    def say(line: str) -> None:
        scene.said.append(line)
        scene.database.error = None
        if line.startswith("started"):
            stop.set()

    operator = Operator(
        lambda: scene.database,  # type: ignore[arg-type, return-value]
        scene.cluster,
        say=say,
    )
    thread = threading.Thread(target=operator.run, args=(stop,), kwargs={"every_s": 0.01})
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert len(scene.cluster.started) == 1


def test_what_time_does_not_heal_ends_it(scene: Scene) -> None:
    scene.database.error = ConfigurationError("the policy file is gone", "bring it back")
    with pytest.raises(ConfigurationError):
        scene.operator.run(threading.Event())
    assert scene.said == []


def test_a_cluster_that_is_not_there_is_told_by_the_process(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    uri = f"governed+sqlite:///{tmp_path}/mlflow.db"
    launching = LaunchProcess(uri, "localhost:1")
    with pytest.raises(UnreachableError, match="there is no Ray cluster at 'localhost:1'"):
        launching.ensure(scene.world.record)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        launching = LaunchProcess(uri, f"127.0.0.1:{mute.getsockname()[1]}", answer_s=0.5)
        with pytest.raises(UnreachableError, match=r"did not answer within 0\.5 s"):
            launching.ensure(scene.world.record)
        stopped = threading.Event()
        stopped.set()
        launching = LaunchProcess(uri, "127.0.0.1:1", stop=stopped)
        with pytest.raises(UnreachableError):
            launching.ensure(scene.world.record)
    launching.close()


def test_it_leaves_cleanly_on_sigterm_while_everything_is_away(tmp_path: Path) -> None:
    uri = "governed+postgresql+psycopg://nobody:secret@127.0.0.1:1/none"
    process = subprocess.Popen(
        [sys.executable, "-m", "governance.cli", "deploy", "operate", "--uri", uri],
        stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "CHANCERY_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert process.stderr is not None
    said = process.stderr.readline()
    assert said.startswith("the database is away, it is tried again: "), said
    assert "secret" not in said
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 0, rest
    assert "Traceback" not in rest
