"""A profile and drift reports through a real MLflow server, which goes away in between."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import requests
from click.testing import CliRunner
from mlflow import MlflowClient

import drift
from drift.batch import Batch, blocks_of_frame
from drift.block_folder import BlockFolder
from drift.model_profile import load_profile
from drift.monitor import Monitor
from drift.monitor_state import States
from drift.monitoring_run import MlflowSink
from drift.recording import RECORD_SPOOL
from drift.served_recorder import open_recorder
from drift.status import MonitorStatus
from drift.training import log_profile
from drift.verdict import Level
from drift.watched import Watched
from governance.cli import main
from governance.errors import SealedError
from governance.recording_port import RECORD_TO, ServedModel
from tests.conftest import StartServer
from tests.scenario import Scenario
from tests.unit.drift.governed import (
    WINDOW,
    fitted_model,
    log_model,
    profile_arguments,
    reference,
    registered,
    rows,
    scored,
)


def test_from_training_to_an_alert_through_a_server(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = start_server()
    scenario = Scenario(server.uri, tmp_path / "mlflow.db.chancery")

    # With log_model that registers by itself, and with a call of its own before registering.
    _, model = registered(scenario, experiment="training")
    frame = reference(model)
    with mlflow.start_run():
        info = log_model(frame, fitted_model())
        log_profile(info, **profile_arguments(frame))
    assert mlflow.register_model(info.model_uri, "fraud").version == "2"
    with pytest.raises(SealedError):
        drift.log_profile(info, **profile_arguments(frame))
    version = load_profile("models:/fraud/1", uri=server.uri)
    assert load_profile("models:/fraud/2", uri=server.uri).profile == version.profile

    path = tmp_path / "rows.parquet"
    scored(rows(2 * WINDOW, 12, older=40), model).to_parquet(path)
    words = ["drift", "check", "models:/fraud/1", "--data", str(path), "--labels", "bad"]
    found = CliRunner().invoke(main, [*words, "--uri", server.uri])
    assert found.exit_code == 4, found.output
    again = CliRunner().invoke(main, [*words, "--uri", server.uri, "--json"])
    assert json.loads(again.stdout)["level"] == "alert"  # and nothing that MLflow prints
    client = MlflowClient(server.uri, server.uri)
    experiment = client.get_experiment_by_name("monitoring/fraud")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["drift/level"] == 2
    tags = client.get_model_version("fraud", "1").tags
    assert (tags["drift.status"], tags["drift.run_id"]) == ("alert", run.info.run_id)
    logged = client.get_logged_model(version.subject.model_id)
    assert "drift/esr" in {one.key for one in logged.metrics or ()}
    # As the artifact viewer fetches it.
    shown = requests.get(
        f"{server.uri}/get-artifact",
        params={"path": "drift.html", "run_uuid": run.info.run_id},
        timeout=30,
    )
    assert shown.ok
    assert "has drifted" in shown.text

    # A replica finds what may leave of the columns in the version's registered files.
    places = {RECORD_TO: str(tmp_path / "blocks"), RECORD_SPOOL: str(tmp_path / "spool")}
    recorder = open_recorder(ServedModel("fraud", "1", deployment="prod"), places)
    assert recorder is not None
    recorder.close()

    # A monitor whose server goes away keeps its reports, also when it is killed meanwhile; nothing
    # is lost or there twice.
    served, folder = version.served_by("prod"), BlockFolder(tmp_path / "watched")
    batch = Batch("nightly", model="fraud", version="1", deployment="prod",
                  predictions=("score",), ignored=("bad",), block_rows=WINDOW)  # fmt: skip
    blocks = list(blocks_of_frame(scored(rows(4 * WINDOW, 13, older=40), model), batch))
    clock = iter(range(blocks[0].time_ms[0], 2**53, 500))

    def monitor() -> Monitor:
        watched = Watched(served.subject, served.profile, folder.path, States(tmp_path / "state"))
        sinks = {"mlflow": MlflowSink(server.uri, [served.profile])}
        return Monitor(watched, sinks, clock=lambda: next(clock))

    def stepped(one: Monitor, done: Callable[[MonitorStatus], object]) -> None:
        for _ in range(200):
            one.step()
            if done(one.status):
                return
        pytest.fail(f"it did not come to that: {one.status}")

    first = monitor()
    folder.write(blocks[0])
    stepped(first, lambda found: found.windows == 1 and not found.waiting_reports)
    assert first.status.level is Level.ALERT
    server.kill()
    for block in blocks[1:3]:
        folder.write(block)
    stepped(first, lambda found: found.windows == 3 and found.trouble)
    assert first.status.waiting_reports == 2
    first.abandon()  # as a process that is killed: nothing more is saved
    start_server(port=int(server.uri.rpartition(":")[2]))
    folder.write(blocks[3])
    second = monitor()
    stepped(second, lambda found: found.windows == 4 and not found.waiting_reports)
    second.close()
    (run,) = [one for one in client.search_runs([experiment.experiment_id])
              if one.info.run_id != run.info.run_id]  # fmt: skip
    history = client.get_metric_history(run.info.run_id, "drift/rows")
    assert [(one.step, one.value) for one in history] == [(i, WINDOW) for i in range(4)]
