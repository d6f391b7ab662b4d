"""Reports in MLflow: each window once, whatever happens in between; and the commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from drift.checking import Asked, Check
from drift.history import History
from drift.model_profile import FILE, load_profile
from drift.monitoring_run import MlflowSink
from drift.report import WindowReport
from drift.run_contents import metrics_of
from drift.verdict import Level
from governance.cli import main
from governance.errors import GovernanceError, UnreachableError
from tests.scenario import Scenario
from tests.unit.drift.governed import WINDOW, registered, rows, scored


def _run(scenario: Scenario, model: str = "fraud") -> Any:
    experiment = scenario.client.get_experiment_by_name(f"monitoring/{model}")
    runs = scenario.client.search_runs([experiment.experiment_id])
    assert len(runs) == 1
    return runs[0]


def _files(scenario: Scenario, run_id: str, folder: str = "") -> set[str]:
    return {file.path for file in scenario.client.list_artifacts(run_id, folder)}


def _history(scenario: Scenario, run_id: str, name: str) -> list[tuple[int, float]]:
    found = scenario.client.get_metric_history(run_id, name)
    return sorted((one.step, one.value) for one in found)


def _reports(scenario: Scenario, folder: Path, model: Any, *, older: float) -> list[WindowReport]:
    """Two windows like the reference, and two with a shift."""
    version = load_profile("models:/fraud/1", deployment="fraud-prod")
    calm, moved = rows(2 * WINDOW, 11), rows(2 * WINDOW, 12, older=older)
    found: list[WindowReport] = []
    for place, frame in enumerate((calm, moved)):
        path = folder / f"{place}.parquet"
        scored(frame, model).to_parquet(path)
        found += Check(version).reports(path, Asked(label="bad", first_index=2 * place))
    return found


class _Failing:
    """MLflow's client, which fails before or after one call."""

    def __init__(self, client: Any, method: str, *, after: bool) -> None:
        self._client, self._method, self._after = client, method, after

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._client, name)
        if name != self._method:
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._after:
                real(*args, **kwargs)
            raise MlflowException("the server went away")

        return call


def test_windows_arrive_once_whatever_happens_in_between(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, model = registered(scenario)
    reports = _reports(scenario, tmp_path, model, older=40)
    assert [one.verdict.level for one in reports] == [Level.OK, Level.OK, Level.ALERT, Level.ALERT]
    sink = MlflowSink(scenario.uri, [profile])
    for report in (*reports[:2], reports[0], reports[1]):  # twice
        sink.publish(report)
    run = _run(scenario)
    assert run.info.status == "RUNNING"
    assert _history(scenario, run.info.run_id, "drift/rows") == [(0, 200.0), (1, 200.0)]
    assert len(_files(scenario, run.info.run_id, "reports")) == 2
    assert "drift.html" not in _files(scenario, run.info.run_id)
    tags = scenario.client.get_model_version("fraud", "1").tags
    assert tags["drift.status"] == "ok"
    assert tags["drift.report"] == reports[0].digest  # the same status: once a minute

    # Wherever it breaks off, the caller is told, and asking again completes the window once.
    real = MlflowClient(scenario.uri, scenario.uri)
    for method, after in (
        ("log_artifacts", False), ("set_model_version_tag", True), ("log_batch", False),
        ("log_batch", True),
    ):  # fmt: skip
        monkeypatch.setattr(sink, "_client", lambda m=method, a=after: _Failing(real, m, after=a))
        with pytest.raises(UnreachableError, match="the server went away"):
            sink.publish(reports[2])
    monkeypatch.undo()
    sink.publish(reports[2])
    # After a restart the run is found again, and what is there already is nothing.
    again = MlflowSink(scenario.uri, [profile])
    assert again.batch(reports[0].subject, "a" * 64) == (3, False)
    for report in reports:
        again.publish(report)
    again.close()
    again.close()

    run = _run(scenario)
    run_id = run.info.run_id
    assert run.info.status == "FINISHED"
    assert [step for step, _ in _history(scenario, run_id, "drift/esr")] == [0, 1, 2, 3]
    assert [value for _, value in _history(scenario, run_id, "drift/level")] == [0, 0, 2, 2]
    assert len(_files(scenario, run_id, "reports")) == 4
    assert len(_files(scenario, run_id, "tables")) == 2
    assert len(_files(scenario, run_id, "alerts")) == 1  # on the way up
    assert {"drift.html", "pictures"} <= _files(scenario, run_id)
    stored = json.loads(mlflow.artifacts.load_text(
        f"{run.info.artifact_uri}/reports/000002-{reports[2].digest[:12]}.json"
    ))  # fmt: skip
    assert stored["subject"]["profile"] == profile.digest
    tags = scenario.client.get_model_version("fraud", "1").tags
    assert tags["drift.status"] == "alert"
    assert tags["drift.report"] == reports[3].digest
    assert tags["drift.run_id"] == run_id
    assert float(tags["drift.score"]) >= 1
    assert tags["drift.window_end"].startswith("20")
    # The logged model has the numbers too, under names that no gate takes for its own.
    logged = scenario.client.get_logged_model(reports[0].subject.model_id)
    names = {one.key for one in logged.metrics or () if one.run_id == run_id}
    assert {"drift/esr", "drift/psi", "drift/estimated_accuracy"} <= names
    assert all(name.startswith("drift/") for name in names)
    # The status comes last, so that who is told of it finds the others there.
    keys = [
        event["data"]["key"]
        for event in scenario.events()
        if event["type"] == "registry:model-version-tag:set"
    ]
    assert keys[:5] == [f"drift.{k}" for k in ("score", "window_end", "report", "run_id", "status")]


def test_a_window_has_few_metrics_and_all_are_numbers(scenario: Scenario, tmp_path: Path) -> None:
    profile, model = registered(scenario)
    report = _reports(scenario, tmp_path, model, older=40)[2]
    many = tuple((f"tpr gap/a=%b{i}", 0.1 * i) for i in range(40))
    report = replace(report, performance=replace(report.performance, fairness=many))
    history = History()
    history.add(report, profile)
    found = metrics_of(report, profile, history)
    assert 12 <= len(found) <= 20
    sink = MlflowSink(scenario.uri)  # it finds the profile itself
    sink.publish(report)
    assert set(_run(scenario).data.metrics) == set(found)


def test_a_batch_that_was_interrupted_goes_on(scenario: Scenario, tmp_path: Path) -> None:
    profile, model = registered(scenario)
    reports = _reports(scenario, tmp_path, model, older=0)
    subject, digest = reports[0].subject, "a" * 64
    sink = MlflowSink(scenario.uri, [profile])
    assert sink.batch(subject, digest) == (0, False)
    assert sink.run_id(subject) == ""
    assert scenario.client.get_experiment_by_name("monitoring/fraud") is None
    sink.publish(reports[0])
    assert sink.batch(subject, digest) == (1, False)
    sink.mark_batch(subject, digest, 1, done=False)
    sink.publish(reports[1])
    again = MlflowSink(scenario.uri, [profile])
    assert again.batch(subject, digest) == (1, False)
    for report in reports[1:]:
        again.publish(report)
    again.mark_batch(subject, digest, 1, done=True)
    again.close()
    assert again.batch(subject, digest) == (1, True)
    assert again.batch(subject, "b" * 64) == (4, False)
    run = _run(scenario)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in _history(scenario, run.info.run_id, "drift/rows")] == [0, 1, 2, 3]


def test_mlflow_away_is_told(tmp_path: Path, scenario: Scenario) -> None:
    profile, model = registered(scenario)
    report = _reports(scenario, tmp_path, model, older=0)[0]
    away = MlflowSink("http://127.0.0.1:9", [profile])
    with pytest.raises((OSError, GovernanceError)):
        away.publish(report)


# -- the commands


def _chancery(scenario: Scenario, *args: str) -> Result:
    words = ["drift", *args, "--uri", scenario.uri]
    return CliRunner().invoke(main, words)


def test_check_finds_publishes_and_says_so(scenario: Scenario, tmp_path: Path) -> None:
    profile, model = registered(scenario)
    calm, moved = tmp_path / "calm.parquet", tmp_path / "moved.csv"
    scored(rows(2 * WINDOW, 11), model).to_parquet(calm)
    scored(rows(2 * WINDOW, 12, older=40), model).to_csv(moved, index=False)
    labels = ("--labels", "bad")

    found = _chancery(scenario, "check", "models:/fraud/1", "--data", str(calm), *labels)
    assert found.exit_code == 0, found.output
    assert "looks like" in found.output or "look like" in found.output
    page = tmp_path / "page.html"
    found = _chancery(
        scenario, "check", "models:/fraud/1", "--data", str(moved), *labels, "--html", str(page)
    )
    assert found.exit_code == 4, found.output
    for part in ("alert", "age", "What to do", "monitoring/fraud", "Rows where age"):
        assert part in found.output, part
    assert b"What to do" in page.read_bytes()
    run = _run(scenario)
    steps = [step for step, _ in _history(scenario, run.info.run_id, "drift/level")]
    assert steps == [0, 1, 2, 3]  # the second file goes on where the first ended
    text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/drift.html")
    assert "has drifted, window 2" in text  # where it began, not the last
    assert "drift.html" in _files(scenario, run.info.run_id)
    tags = scenario.client.get_model_version("fraud", "1").tags
    assert tags["drift.status"] == "alert"

    # The same file again changes nothing, and says the same.
    found = _chancery(scenario, "check", "models:/fraud/1", "--data", str(moved), *labels, "--json")
    assert found.exit_code == 4
    document = json.loads(found.stdout)
    assert document["published"] is False
    assert document["level"] == "alert"
    assert len(document["reports"]) == 2
    assert len(_history(scenario, run.info.run_id, "drift/level")) == 4

    shown = _chancery(scenario, "profile", "models:/fraud/1")
    assert shown.exit_code == 0, shown.output
    assert profile.digest in shown.output
    assert "region" in shown.output
    assert "performance" in shown.output
    shown = _chancery(scenario, "profile", "models:/fraud/1", "--json")
    assert json.loads(shown.stdout)["model"] == "fraud"


def test_what_cannot_be_checked_is_one_clear_line(scenario: Scenario, tmp_path: Path) -> None:
    _, model = registered(scenario)
    registered(scenario, name="loans")
    scenario.train("plain")
    path, empty = tmp_path / "rows.csv", tmp_path / "empty.csv"
    scored(rows(WINDOW, 11), model).to_csv(path, index=False)
    empty.write_bytes(b"")

    def said(model: str, data: Path, *more: str) -> tuple[int, Sequence[str]]:
        found = _chancery(scenario, "check", model, "--data", str(data), *more)
        return found.exit_code, found.stderr.strip().split("\n")

    for uri, data, code, text in (
        ("models:/plain/1", path, 1, "NOT_FOUND: models:/plain/1 has no drift profile"),
        ("models:/loans/1", path, 1, "REFUSED: the drift profile belongs to the model 'fraud'"),
        ("models:/nobody/1", path, 1, "NOT_FOUND: "),
        ("models:/fraud", path, 1, "MALFORMED_REQUEST: 'models:/fraud' names no version"),
        ("models:/fraud/1", empty, 1, f"MALFORMED_REQUEST: {empty} has no rows"),
        ("models:/fraud/1", tmp_path / "no.csv", 1, "MALFORMED_REQUEST: "),
    ):
        exit_code, lines = said(uri, data)
        assert (exit_code, lines[0].startswith(text)) == (code, True), lines
        assert len(lines) <= 2  # the error, the remedy
    file = scenario.model_folder(1) / FILE
    file.write_bytes(file.read_bytes().replace(b'"rows":4000', b'"rows":4001'))
    exit_code, lines = said("models:/fraud/1", path)
    assert exit_code == 1
    assert lines[0].startswith("TAMPERED: ")
    assert scenario.client.get_experiment_by_name("monitoring/fraud") is None
