"""What clients meet: serving, a server that stops being governed, basic-auth (AC-3, AC-12)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import mlflow.pyfunc
import pytest
import requests
from mlflow.exceptions import MlflowException

from governance.errors import RefusedError
from tests.conftest import StartServer, free_port
from tests.scenario import FEATURES, Scenario


def serve(uri: str, store: str, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """``mlflow models serve`` as anyone starts it."""
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local",
        "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            env={
                **os.environ,
                "MLFLOW_TRACKING_URI": store,
                "MLFLOW_REGISTRY_URI": store,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
        )  # fmt: skip
    return process, f"http://127.0.0.1:{port}"


def test_mlflow_models_serve_answers_for_a_good_model_and_refuses_a_tampered_one(
    scenario: Scenario, tmp_path: Path
) -> None:
    version = scenario.train()
    scenario.to_prod(version)
    process, address = serve("models:/fraud@champion", scenario.uri, tmp_path / "good.log")
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                if requests.get(f"{address}/ping", timeout=5).ok:
                    break
            except requests.RequestException:
                pass
            assert process.poll() is None, (tmp_path / "good.log").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.3)
        answer = requests.post(
            f"{address}/invocations", json={"inputs": FEATURES[:3].tolist()}, timeout=30
        )
        assert len(answer.json()["predictions"]) == 3
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)

    model = next(p for p in scenario.model_folder(version).iterdir() if p.stem == "model")
    model.write_bytes(model.read_bytes() + b"x")
    process, _ = serve("models:/fraud@champion", scenario.uri, tmp_path / "bad.log")
    try:
        assert process.wait(120) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "TAMPERED" in (tmp_path / "bad.log").read_text()


def test_a_server_that_was_governed_cannot_be_replaced_by_one_that_is_not(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "chancery"
    port = free_port()
    server = start_server(environment={"CHANCERY_HOME": str(home)}, port=port)
    monkeypatch.setenv("CHANCERY_HOME", str(tmp_path / "client"))
    scenario = Scenario(server.uri, home)
    version = scenario.train()
    assert mlflow.pyfunc.load_model(f"models:/fraud/{version}") is not None
    server.stop()
    start_server(f"sqlite:///{tmp_path}/mlflow.db", app=None, port=port)
    with pytest.raises(MlflowException, match="does not answer as one now"):
        mlflow.pyfunc.load_model(f"models:/fraud/{version}")


def test_files_changed_between_registration_and_request_are_not_signed(
    scenario: Scenario,
) -> None:
    version = scenario.train()
    model = next(p for p in scenario.model_folder(version).iterdir() if p.stem == "model")
    model.write_bytes(model.read_bytes() + b"x")
    with pytest.raises(RefusedError, match="not the ones that were registered"):
        scenario.request(version, "staging")


def test_basic_auth_composes_and_names_the_actor(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "basic_auth.ini"
    settings.write_text(
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = sqlite:///{tmp_path}/auth.db\n"
        "admin_username = admin\n"
        "admin_password = a-long-password-1\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    home = tmp_path / "chancery"
    server = start_server(
        environment={
            "CHANCERY_HOME": str(home),
            "CHANCERY_BASIC_AUTH": "1",
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-test-secret",
        },
    )
    monkeypatch.setenv("CHANCERY_HOME", str(tmp_path / "client"))
    url = f"{server.uri}/api/2.0/mlflow/registered-models/search"
    assert requests.get(url, timeout=30).status_code == 401
    assert requests.get(url, auth=("admin", "wrong"), timeout=30).status_code == 401
    api = f"{server.uri}/api/3.0/chancery/ledger/entries"
    assert requests.get(api, timeout=30).status_code == 401
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-long-password-1")
    scenario = Scenario(server.uri, home)
    version = scenario.train()
    scenario.promote(version, "challenger", "staging")
    event = [e for e in scenario.events() if e["type"] == "registry:alias:set"][-1]
    assert (event["actor"], event["actorproof"]) == ("admin", "basic-auth")


def test_a_server_that_would_be_half_governed_ends_with_the_reason(tmp_path: Path) -> None:
    """With workers, uvicorn would restart them for ever; the whole server stops instead."""
    database = tmp_path / "plain.db"
    command = [
        sys.executable, "-m", "mlflow", "server", "--app-name", "governance", "--workers", "2",
        "--backend-store-uri", f"sqlite:///{database}", "--port", str(free_port()),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=tmp_path,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )  # fmt: skip
    assert "not governed" in done.stdout + done.stderr
    shutil.rmtree(tmp_path / "mlruns", ignore_errors=True)
