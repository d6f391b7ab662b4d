"""A server, an operator, a Ray cluster that is lost, and MLflow's own client (AC-4)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from benchmarks.surroundings import free_port
from governance.deployment_port import open_deployments
from tests.conftest import Server, StartServer
from tests.integration.ray_head import Head
from tests.scenario import FEATURES, Scenario

CANARY = {
    "steps": [50, 100],
    "min_samples": 5,
    "min_seconds": 0,
    "analysis": {"latency": None},
    "on_timeout": "hold",
}


# Two starts of Ray and two rollouts: more than the usual limit on a machine that does other things.
pytestmark = pytest.mark.timeout(1200)


class Operator:
    """``chancery deploy operate`` as anyone starts it."""

    def __init__(self, server: Server, head: Head, log: Path) -> None:
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "governance.cli", "deploy", "operate", "--uri",
                    server.store, "--ray", head.address, "--every", "0.5",
                ],
                stdout=out, stderr=subprocess.STDOUT, start_new_session=True, cwd=log.parent,
                env={**os.environ, "MLFLOW_TRACKING_URI": server.uri},
            )  # fmt: skip

    def said(self) -> str:
        return self.log.read_text()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("CHANCERY_SERVE_SOCKETS", f"{folder}/s")
        head = Head(Path(folder))
        try:
            yield head
        finally:
            head.stop()


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"within {timeout_s:g} s it did not happen that {what}")
        time.sleep(0.2)


def test_what_is_deployed_through_a_server_answers_and_outlives_the_cluster(
    head: Head, start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "chancery"
    monkeypatch.setenv("CHANCERY_HOME", str(home))
    server = start_server()
    scenario = Scenario(server.uri, home)
    scenario.train()
    scenario.train()
    first = Operator(server, head, tmp_path / "operator-1.log")
    second = Operator(server, head, tmp_path / "operator-2.log")  # harmless beside the first
    try:
        client = get_deploy_client(f"chancery:/{server.uri}")
        _tell_the_story(client, server, head, first, second)
    except BaseException:
        print(first.said(), second.said(), sep="\n-- second --\n")
        raise
    finally:
        codes = [first.stop(), second.stop()]
    assert codes == [0, 0]
    for operator in (first, second):
        assert "Traceback" not in operator.said()


def _tell_the_story(
    client: Any, server: Server, head: Head, first: Operator, second: Operator
) -> None:
    port, database = open_deployments(server.uri), open_deployments(server.store)
    listening = free_port()
    config = {"env": "sandbox", "port": listening, "cpus": 0.1, "wait": 0}
    made = client.create_deployment("fraud", "models:/fraud/1", config=config)
    wait_for(lambda: "the Ray cluster is away" in first.said(), "the operator misses the cluster")
    head.start()
    wait_for(lambda: "started the controller" in first.said() + second.said(), "one is started")

    def predicted() -> Any:
        with suppress(MlflowException):
            return client.predict("fraud", FEATURES[:3])["predictions"]
        return None

    wait_for(predicted, "the route answers")
    assert len(predicted()) == 3
    with pytest.raises(MlflowException, match="answered 400"):
        client.predict("fraud", {"inputs": "nonsense"})

    config = {"config": CANARY, "wait": 300}
    updated = client.update_deployment("fraud", "models:/fraud/2", config=config)
    assert updated["canaryVersion"] == 2
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            predicted()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    try:
        wait_for(lambda: port.find("fraud").stable.version == 2, "the canary is promoted")
        base = f"{server.uri}/api/3.0/chancery/serve/fraud"
        body = {"reason": "so", "canaryConfig": CANARY}
        back = requests.post(f"{base}/rollback", json=body, timeout=60)
        assert back.json()["canaryVersion"] == 1
        wait_for(lambda: port.find("fraud").stable.version == 1, "version 1 is back")
    finally:
        ended.set()
        asking.join(60)
    outcomes = [one.document["outcome"] for one in port.decisions(made["deployId"])]
    assert outcomes == ["started", "verified", "advanced", "promoted"] * 2

    head.stop()
    wait_for(lambda: predicted() is None, "the cluster is gone with its gateways")
    head.start()
    wait_for(predicted, "an operator has brought it back")
    assert port.find("fraud").stable.version == 1

    client.delete_deployment("fraud", config={"reason": "done"})
    ended_id = made["deployId"]
    wait_for(lambda: database.find(ended_id).stopped_ms is not None, "it is taken down")
    wait_for(lambda: predicted() is None, "nobody answers")
