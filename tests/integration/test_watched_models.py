"""Recorded by ``mlflow models serve``, watched by an actor of a real Ray (AC-5)."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import ray
import requests
from mlflow.models import infer_signature
from sklearn.linear_model import LinearRegression

from drift.block_folder import BlockFolder
from drift.blocks import Block
from drift.monitor_actor import start_actor
from drift.recorded_model import recorded_model
from drift.recording import RECORD_SPOOL
from governance.recording_port import RECORD_TO
from tests.integration.test_clients import serve
from tests.integration.test_monitor_service import block_now, folder_of, reports_of, write_config
from tests.scenario import Scenario
from tests.unit.drift.monitor_world import PROFILE
from tests.unit.drift.test_recording import frame

NUMBERS = ["amount", "visits", "fee"]


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"within {timeout_s:g} s it did not happen that {what}")
        time.sleep(0.1)


def test_mlflow_models_serve_records_what_it_is_asked_and_says(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = frame(100)[NUMBERS].astype(float)
    signature = infer_signature(table, [0.5])
    inner = LinearRegression().fit(table, table["amount"])
    mlflow.sklearn.save_model(inner, tmp_path / "inner", signature=signature, pip_requirements=[])
    (tmp_path / "profile.json").write_bytes(PROFILE.to_json())
    mlflow.set_experiment("scenario")
    with mlflow.start_run():
        mlflow.log_metric("accuracy", 0.97)
        info = mlflow.pyfunc.log_model(
            name="model",
            registered_model_name="fraud",
            **recorded_model(str(tmp_path / "inner"), tmp_path / "profile.json"),
            signature=signature,
            pip_requirements=[],
        )
    scenario.to_prod(int(info.registered_model_version))
    monkeypatch.setenv(RECORD_TO, str(tmp_path / "blocks"))
    monkeypatch.setenv(RECORD_SPOOL, str(tmp_path / "spool"))
    process, address = serve("models:/fraud@champion", scenario.uri, tmp_path / "serve.log")

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "serve.log").read_text()[-3000:]
        try:
            return requests.get(f"{address}/ping", timeout=5).ok
        except requests.RequestException:
            return False

    rows = frame(60)[NUMBERS].astype(float)
    try:
        wait_for(answers, "it answers")
        for at in range(0, 60, 20):
            part = rows[at : at + 20].to_dict(orient="split", index=False)
            said = requests.post(
                f"{address}/invocations", json={"dataframe_split": part}, timeout=30
            )
            assert said.json()["predictions"] == pytest.approx(
                rows["amount"][at : at + 20].tolist()
            )
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)
    folder = BlockFolder(tmp_path / "blocks" / "fraud" / "1" / "_")

    def written() -> list[Block]:
        return [folder.read(entry) for entry in folder.entries()]

    wait_for(lambda: sum(block.rows for block in written()) >= 60, "all of it is written", 20)
    blocks = written()
    assert sum(block.rows for block in blocks) == 60
    seen = np.concatenate([block.inputs["amount"] for block in blocks])
    assert sorted(seen) == pytest.approx(sorted(rows["amount"]))


@pytest.fixture
def cluster() -> Iterator[None]:
    if ray.is_initialized():
        ray.shutdown()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="z") as folder:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            _temp_dir=folder,
            log_to_driver=False,
        )
        try:
            yield
        finally:
            ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_an_actor_that_is_killed_goes_on_and_loses_no_window(tmp_path: Path) -> None:
    config = write_config(tmp_path, [{"model": "fraud", "version": 7}])
    blocks = folder_of(tmp_path, 7)
    actor = start_actor(config)
    assert start_actor(config) == actor  # found by its name

    def windows() -> int:
        try:
            (found,) = ray.get(actor.status.remote(), timeout=30)
        except ray.exceptions.RayError:  # Ray is starting it anew
            return -1
        return -1 if found["monitor"] is None else int(found["monitor"]["windows"])

    for number in range(3):  # a window and a half
        blocks.write(block_now(number))
    wait_for(lambda: windows() == 1, "the first window is judged")
    ray.kill(actor, no_restart=False)
    for number in range(3, 6):
        blocks.write(block_now(number, shift=2.5))
    wait_for(lambda: windows() == 3, "the others are judged after it was killed")
    assert ray.get(actor.stop.remote(), timeout=90)
    indices = [report["verdict"]["index"] for report in reports_of(tmp_path, 7)]
    assert indices == [0, 1, 2]
    assert sum(report["verdict"]["rows"] for report in reports_of(tmp_path, 7)) == 1500
    ray.kill(actor)
