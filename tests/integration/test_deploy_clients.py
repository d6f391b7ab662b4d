"""Deployments through a real server: the command, and MLflow's (AC-4, AC-12)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import mlflow.pyfunc
import pytest
import requests
from click.testing import CliRunner
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from benchmarks.surroundings import free_port
from governance.cli import main
from tests.integration.served import Served
from tests.scenario import FEATURES


def test_the_command_works_through_a_server(served: Served, tmp_path: Path) -> None:
    said = served.chancery("models:/fraud/1", "--env", "sandbox", "--replicas", "2").stdout
    assert "controller none yet: `chancery deploy operate` starts one" in said
    assert "waits      for `chancery deploy operate`" in said
    config = tmp_path / "canary.yaml"
    config.write_text("min_samples: 7\n")
    served.chancery("start", "models:/fraud/2", "--canary", "5%", "--config", str(config))
    record = json.loads(served.chancery("show", "fraud", "--json").stdout)
    assert record["canaryConfig"]["min_samples"] == 7
    assert record["createdBy"] == "ann"
    assert "fraud/2" in served.chancery("list").stdout
    for verb in ("pause", "resume", "abort", "rollback", "quarantine"):
        assert verb in served.chancery(verb, "fraud", "--reason", "because").stdout
    assert "waits for a controller" in served.chancery("why", "fraud").stdout
    assert "fraud" in served.chancery("watch", "fraud", "--seconds", "0.1").stdout
    scaled = json.loads(served.chancery("scale", "fraud", "--replicas", "3", "--json").stdout)
    assert scaled["resources"]["replicas"] == 3
    taken = served.chancery("models:/fraud/1", "--env", "sandbox", code=1)
    assert "CONFLICT" in taken.stderr
    for verb in (["recover"], ["operate", "--once"]):
        assert "beside the database" in served.chancery(*verb, code=3).stderr
    assert json.loads(served.chancery("delete", "fraud", "--json").stdout)["status"] == "ended"
    assert "nothing is deployed" in served.chancery("list").stdout
    gone = CliRunner().invoke(main, ["deploy", "list", "--uri", "http://127.0.0.1:1"])
    assert gone.exit_code == 3
    assert "cannot be reached" in gone.stderr


def test_mlflow_s_own_command_deploys(served: Served) -> None:
    def command(*args: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mlflow", "deployments", *args],
            capture_output=True, text=True, timeout=120,
            env={**os.environ, "MLFLOW_TRACKING_URI": served.server.uri},
        )  # fmt: skip
        assert (done.returncode != 0) == bool(code), done.stdout + done.stderr
        return done.stdout + done.stderr

    made = command("create", "-t", "chancery", "--name", "r", "-m", "models:/fraud/1",
                  "-C", "env=sandbox", "-C", "replicas=2", "-C", "wait=0")  # fmt: skip
    assert "python_function deployment r is created" in made
    explicit = f"chancery:/{served.server.uri}"
    client = get_deploy_client(explicit)
    updated = client.update_deployment("r", "models:/fraud/2", config={"wait": 0, "replicas": 3})
    assert (updated["canaryVersion"], updated["resources"]["replicas"]) == (2, 3)
    assert updated["canaryConfig"]["steps"] == [5.0, 25.0, 50.0, 100.0], "never all at once"
    assert "canaryVersion: 2" in command("get", "-t", explicit, "--name", "r")
    bad = command("create", "-t", "chancery", "--name", "s", "-m", "models:/fraud/1",
                 "-C", "canery=5%", code=1)  # fmt: skip
    assert "unknown key 'canery'" in bad
    assert "known: env, canary, config" in bad
    assert [one["name"] for one in client.list_deployments()] == ["r"]
    with pytest.raises(MlflowException, match="cannot be reached"):
        client.predict("r", [[1.0, 2.0]])
    with pytest.raises(MlflowException, match=r"CONFLICT.*is taken") as taken:
        client.create_deployment("r", "models:/fraud/1", config={"env": "sandbox", "wait": 0})
    assert taken.value.error_code == "RESOURCE_CONFLICT"
    with pytest.raises(MlflowException, match=r"does not answer yet.*no controller has taken it"):
        client.create_deployment("s", "models:/fraud/1", config={"env": "sandbox", "wait": 0.1})
    with pytest.raises(MlflowException, match="no deployment has") as gone:
        client.get_deployment("nobody")
    assert gone.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    command("delete", "-t", "chancery", "--name", "r", "-C", "reason=done")
    client.delete_deployment("r")
    assert served.made()[-1]["endedReason"] == "done"


def test_a_model_is_tried_out_on_this_machine(served: Served, tmp_path: Path) -> None:
    log, port = tmp_path / "local.log", free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "mlflow", "deployments", "run-local", "-t", "chancery",
                "--name", "toy", "-m", "models:/fraud/1", "-C", f"port={port}",
            ],
            stdout=out, stderr=subprocess.STDOUT,
            env={**os.environ, "MLFLOW_TRACKING_URI": served.server.uri},
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while f"models:/fraud/1 answers on {address}" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        assert requests.get(f"{address}/ping", timeout=30).status_code == 200
        body = {"inputs": FEATURES[:3].tolist()}
        answer = requests.post(f"{address}/invocations", json=body, timeout=30)
        model = mlflow.pyfunc.load_model("models:/fraud/1")
        assert answer.json() == {"predictions": model.predict(FEATURES[:3]).tolist()}
        assert answer.headers["x-chancery-model"] == "toy"
        bad = requests.post(f"{address}/invocations", json={"inputs": "x"}, timeout=30)
        assert bad.status_code == 400
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert "Traceback" not in log.read_text()
    assert served.get("/serve")["deployments"] == []
