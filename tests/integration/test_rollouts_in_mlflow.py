"""Rollouts are seen as runs in MLflow, on a governed database and through a governed server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from serve.rollout_run import RolloutJournal, home_of
from tests.conftest import StartServer
from tests.scenario import Scenario
from tests.unit.serve.stories import Told

EXPERIMENT = "chancery/rollouts"


def runs_of(client: MlflowClient, told: Told) -> list[Run]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    wanted = f"tags.`chancery.rollout` = '{told.state.id}'"
    return list(client.search_runs([experiment.experiment_id], wanted))


def run_of(client: MlflowClient, told: Told) -> Run:
    (found,) = runs_of(client, told)
    return found


def history(client: MlflowClient, run: Run, name: str) -> list[tuple[int, float]]:
    found = client.get_metric_history(run.info.run_id, name)
    return sorted((metric.timestamp, metric.value) for metric in found)


def check(client: MlflowClient, told: Told, folder: Path) -> None:
    """Everything of an ended rollout is there, once."""
    run = run_of(client, told)
    assert told.series is not None
    points = told.series.points
    # The same value at the same moment is one metric to MLflow.
    assert history(client, run, "canary_percent") == sorted({(p.at_ms, p.percent) for p in points})
    assert run.data.metrics["requests/stable"] == sum(p.stable.requests for p in points)
    assert max(v for _, v in history(client, run, "log_e/all")) == max(
        point.log_e for point in points
    )
    assert run.data.metrics["log_e/all_threshold"] == told.series.threshold
    for name in ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "error_percent"):
        assert f"{name}/canary" in run.data.metrics
        assert f"{name}/stable" in run.data.metrics
    assert run.data.tags["chancery.outcome"] == told.state.phase.value
    assert run.data.tags["mlflow.note.content"].startswith(
        str(told.decisions[-1].document["explanation"][0])
    )
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names == {
        "rollout.png", "rollout.html", "decisions.json", "config.json", "series.json",
    }  # fmt: skip
    got = Path(client.download_artifacts(run.info.run_id, "", str(folder)))
    documents = [dict(decision.document) for decision in told.decisions]
    assert json.loads((got / "decisions.json").read_text()) == documents
    assert (got / "rollout.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((got / "config.json").read_text())["steps"] == [5.0, 25.0, 50.0, 100.0]


def test_a_rollout_is_a_run_on_a_governed_database(scenario: Scenario, tmp_path: Path) -> None:
    told = Told("canary")
    record = told.record()

    def decisions(deploy_id: str) -> list[Any]:
        assert deploy_id == record.deploy_id
        return told.decisions

    home = home_of(scenario.uri)
    journal = RolloutJournal(home, EXPERIMENT, decisions)
    journal.offer(record, told.course)
    assert journal.flush()
    run = run_of(scenario.client, told)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "fraud: fraud 4"
    assert run.data.tags["chancery.deployment"] == record.deploy_id
    assert (run.data.tags["chancery.version"], run.data.tags["chancery.stable"]) == ("4", "3")

    # The controller dies; another goes on, and the rollout ends badly.
    told.pass_(400, errors=0.3)
    assert told.state.phase.value == "rolled_back"
    journal = RolloutJournal(home, EXPERIMENT, decisions)
    last = told.decisions.pop()
    journal.offer(told.record(), told.course)
    assert journal.flush()
    assert run_of(scenario.client, told).info.status == "RUNNING", "it is not recorded yet"
    told.decisions.append(last)
    for _ in range(2):  # and once more changes nothing
        journal.offer(told.record(), told.course)
        assert journal.flush()
    assert run_of(scenario.client, told).info.status == "FAILED"
    check(scenario.client, told, tmp_path)

    # Yet another controller finds it complete.
    third = RolloutJournal(home, EXPERIMENT, decisions)
    third.offer(told.record(), told.course)
    assert third.flush()
    check(scenario.client, told, tmp_path)


def wait_for(condition: Callable[[], Any], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_server_that_was_away_misses_nothing(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = start_server(workers=1)
    told = Told("canary")
    home = home_of("governed+sqlite:///unused.db", server.uri)
    journal = RolloutJournal(home, EXPERIMENT, lambda _: told.decisions, pause_s=0.2)
    journal.start()
    journal.offer(told.record(), told.course)
    client = MlflowClient(tracking_uri=server.uri, registry_uri=server.uri)
    wait_for(lambda: runs_of(client, told))
    server.kill()
    told.pass_(400)
    assert told.state.phase.value == "promoted"
    journal.offer(told.record(), told.course)
    assert not journal.flush()
    start_server(workers=1, port=int(server.uri.rpartition(":")[2]))
    wait_for(lambda: run_of(client, told).info.status == "FINISHED")
    wait_for(lambda: run_of(client, told).data.tags.get("chancery.complete") == "1")
    check(client, told, tmp_path)
    other = replace(told.course, series=None)
    journal.offer(told.record(), other)
    journal.close()
