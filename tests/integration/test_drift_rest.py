"""Drift through a real server: a monitor, people, somebody outside, and messages (AC-5, AC-8)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import requests
from click.testing import CliRunner, Result

from drift.cli_alerts import COMMANDS
from drift.consequences import ConsequenceSink, open_registry, open_sink
from drift.report import WindowReport
from drift.verdict import Level
from governance import drift_records
from governance.alert_records import Alert
from governance.deployment_control import open_signals
from governance.deployment_port import DeploymentOrder, open_deployments
from governance.deployment_records import SignalKind
from governance.drift_port import AlertOrder, open_drift
from governance.errors import (
    ConfigurationError,
    ConflictError,
    MalformedRequestError,
    NotFoundError,
    RefusedError,
    TamperedError,
    TooManyRequestsError,
    UnsignedError,
    UntrustedKeyError,
)
from governance.signing.drift_statements import QuarantineStatement
from governance.signing.keys import create_key
from mlflow_plugins.governor import Governor
from mlflow_plugins.request_auth import SignedRequestAuthProvider
from tests.conftest import Server, servers
from tests.hooks import Hook, hook
from tests.integration.drift_world import profile, report
from tests.scenario import Scenario

OUTSIDE = AlertOrder("fraud", 1, "nanny", ("the mean of age moved",), columns=("age",))


class Watched:
    """A governed server with a version of *fraud* that answers on a route."""

    def __init__(self, server: Server, home: Path, inbox: Hook) -> None:
        self.server = server
        self.home = home
        self.inbox = inbox
        self.scenario = Scenario(server.uri, home)
        self.key = f"file:{home / 'approver.key'}"
        self.port = open_drift(server.uri)

    def bad(self, **more: Any) -> Alert:
        """What a monitor without a request key of its own reports."""
        alert = self.hand_over(report(level=Level.ALERT, **more))
        assert alert is not None
        return alert

    def hand_over(self, one: WindowReport) -> Alert | None:
        sink = ConsequenceSink(self.port, self.scenario.signer, ("train#4f2a",))
        return sink.hand_over(one).alert

    def post(self, path: str, body: Any) -> requests.Response:
        return requests.post(f"{self.server.uri}/api/3.0/chancery{path}", json=body, timeout=60)

    def get(self, path: str) -> Any:
        answer = requests.get(f"{self.server.uri}/api/3.0/chancery{path}", timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def chancery(self, *args: str, code: int = 0) -> Result:
        group = click.Group("drift", {str(one.name): one for one in COMMANDS})
        result = CliRunner().invoke(group, [*args, "--uri", self.server.uri])
        assert result.exit_code == code, (result.output, result.stderr, result.exception)
        return result


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path
) -> Iterator[tuple[Server, Path, Hook]]:
    """One server for the module, its state directory, and a webhook that it tells."""
    folder = tmp_path_factory.mktemp("watched")
    home = folder / "chancery"
    with hook() as inbox, servers(folder, sqlite_template) as start:
        here = {
            "CHANCERY_HOME": str(home),
            "CHANCERY_NOTIFY_URLS": inbox.url,
            "CHANCERY_DRIFT_OK_WINDOWS": "2",
        }
        server = start(environment=here)
        scenario = Scenario(server.uri, home)
        scenario.train()
        open_deployments(server.uri).deploy(
            DeploymentOrder("models:/fraud/1", environment="sandbox")
        )
        yield server, home, inbox


@pytest.fixture
def watched(running: tuple[Server, Path, Hook], monkeypatch: pytest.MonkeyPatch) -> Watched:
    """The server, with no alert open."""
    server, home, inbox = running
    monkeypatch.setenv("CHANCERY_HOME", str(home))
    beside = open_drift(server.store)
    for stored in beside.alerts():
        beside.close(stored.alert.alert_id, "another test begins")
    inbox.messages.clear()
    monkeypatch.setenv("CHANCERY_ACTOR", "ann")
    return Watched(server, home, inbox)


def signed(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The port of a person who signs requests."""
    monkeypatch.setenv("CHANCERY_KEY", watched.key)
    return open_drift(watched.server.uri)


def test_a_monitor_reports_an_alert_opens_and_its_owner_is_told(watched: Watched) -> None:
    assert watched.hand_over(report()) is None
    alert = watched.bad(owner="ann")
    again = watched.bad(owner="ann")
    assert again.alert_id == alert.alert_id
    [message] = watched.inbox.wait_for(1)
    assert "models:/fraud/1: drift" in message["title"]
    assert f"chancery drift acknowledge {alert.alert_id[:12]}" in message["message"]
    status = watched.get("/drift/fraud")
    assert status["status"] == "alert"
    [told] = status["alerts"]
    assert told["owner"] == "ann"
    assert told["retrain"]["datasets"][0] == "train#4f2a"
    [batch] = [one for one in status["watched"] if not one["deployment"]]
    assert batch["level"] == "alert"
    assert batch["metrics"]["psi"] == 0.41
    assert watched.port.status("fraud") == status
    [stored] = watched.port.alerts("fraud")
    assert stored.alert.windows == 2
    assert watched.port.alert(alert.alert_id[:8]) == stored
    assert "s3cret" not in watched.server.log.read_text()


def test_the_sink_that_the_settings_describe(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHANCERY_MONITOR_KEY", watched.key)
    sink = open_sink(watched.server.uri, profile())
    one = report(level=Level.ALERT)
    sink.publish(one)
    sink.publish(one)  # at least once, and counted once
    [stored] = watched.port.alerts("fraud")
    assert stored.alert.windows == 1
    assert stored.alert.retrain["datasets"][0] == "train#4f2a"
    assert (sink.acknowledged() or -1) < one.verdict.index  # of alerts before it, at most


def test_the_sink_that_a_monitor_finds_by_its_name(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CHANCERY_MONITOR_KEY", watched.key)
    file, one = tmp_path / "profile.json", report(level=Level.ALERT)
    file.write_bytes(profile().to_json())
    options = {"uri": watched.server.uri, "profile": str(file)}
    open_registry(one.subject, options).publish(one)
    assert len(watched.port.alerts("fraud")) == 1
    file.write_bytes(profile(8).to_json())
    with pytest.raises(TamperedError):
        open_registry(one.subject, options)
    with pytest.raises(ConfigurationError, match="options"):
        open_registry(one.subject, {"uri": watched.server.uri, "path": "x"})


def test_a_report_without_a_monitors_signature_is_refused(watched: Watched) -> None:
    with pytest.raises(UnsignedError):
        ConsequenceSink(watched.port, None).publish(report(level=Level.ALERT))
    stranger = create_key(watched.home / "stranger.key")
    with pytest.raises(UntrustedKeyError):
        ConsequenceSink(watched.port, stranger).publish(report(level=Level.ALERT))
    assert watched.port.alerts("fraud") == []


def test_people_act_with_signed_requests_and_nobody_else_does(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack: an alert closed by somebody who may not."""
    alert = watched.bad(owner="ann")  # and who only calls themselves ann may not
    for act in (watched.port.acknowledge, watched.port.close):
        with pytest.raises(RefusedError, match=r"ann \(claimed\) may not"):
            act(alert.alert_id, "never mind")
    assert watched.port.alert(alert.alert_id).alert.state.value == "open"
    watched.chancery("close", alert.alert_id, "--reason", "x", code=1)
    port = signed(watched, monkeypatch)
    assert port.acknowledge(alert.alert_id, "on it").state.value == "acknowledged"
    with pytest.raises(ConflictError):
        port.acknowledge(alert.alert_id, "on it")
    shown = watched.chancery("close", alert.alert_id[:8], "--reason", "a holiday").output
    assert "closed by" in shown
    assert "a holiday" in shown


def test_the_commands_show_what_there_is(watched: Watched) -> None:
    watched.hand_over(report())
    assert "no alert is open" in watched.chancery("alerts").output
    assert "fraud: ok" in watched.chancery("status", "fraud").output
    alert = watched.bad()
    shown = watched.chancery("alerts", "fraud").output
    for words in (alert.alert_id[:12], "eSR is 4e+03", "age", "to train again"):
        assert words in shown
    assert "fraud: alert" in watched.chancery("status", "fraud").output
    document = json.loads(watched.chancery("alerts", "--json").output)
    assert [one["alertId"] for one in document["alerts"]] == [alert.alert_id]
    assert json.loads(watched.chancery("status", "fraud", "--json").output)["status"] == "alert"
    assert "NOT_FOUND" in watched.chancery("status", "nothing", code=1).stderr
    assert "NOT_FOUND" in watched.chancery("close", "abcdef", "--reason", "x", code=1).stderr


def test_somebody_outside_must_be_proven(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RefusedError, match="not proven"):
        watched.port.raise_alert(OUTSIDE)
    port = signed(watched, monkeypatch)
    alert = port.raise_alert(OUTSIDE)
    assert alert.outside[0].startswith("nanny (")
    assert len(watched.inbox.wait_for(1)) == 1
    with pytest.raises(NotFoundError):
        port.raise_alert(AlertOrder("fraud", 99, "nanny", ("x",)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reasons": []}, "reasons"),
        ({"reasons": ["x"] * 21}, "reasons"),
        ({"reasons": ["x" * 501]}, "reasons"),
        ({"version": "1"}, "version"),
        ({"version": 0}, "version"),
        ({"level": "terrible"}, "level"),
        ({"source": ""}, "source"),
        ({"columns": ["a"] * 21}, "columns"),
        ({"state": "closed"}, "unknown field"),
        ({"deployment": "x" * 129}, "deployment"),
    ],
)
def test_an_alert_that_cannot_be_meant_is_refused_in_one_line(
    watched: Watched, change: dict[str, Any], words: str
) -> None:
    body = {"modelId": "fraud", "version": 1, "source": "nanny", "reasons": ["x"], **change}
    answer = watched.post("/drift/alert", body)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["message"]


def test_a_report_that_cannot_be_meant_is_refused(watched: Watched) -> None:
    for text in ("", "{}", "[]", "x" * 600_000, '{"format":"chancery.drift-report/v1"}'):
        answer = watched.post("/drift/report", {"report": text})
        assert answer.status_code in (400, 413), answer.text
    with pytest.raises(MalformedRequestError):
        watched.port.publish(b"{}", None)


def test_a_flood_from_outside_is_bounded(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: alerts without end, over the wire."""
    port = signed(watched, monkeypatch)
    refused = 0
    for _ in range(75):
        try:
            port.raise_alert(OUTSIDE)
        except TooManyRequestsError:
            refused += 1
    assert refused >= 15
    assert len(watched.port.alerts("fraud")) == 1
    assert len(watched.inbox.wait_for(1)) == 1


def test_a_person_signs_the_quarantine_and_nobody_else_does(watched: Watched) -> None:
    """Attack: quarantine without a sign-off."""
    alert = watched.bad(deployment="fraud", quarantine=("accuracy fell by 4 sd",))
    name = alert.alert_id
    governor = Governor.of(watched.server.store)
    record = open_deployments(watched.server.uri).find("fraud")

    def asked() -> list[SignalKind]:
        with governor.engine.connect() as connection:
            return [one.kind for one in open_signals(connection, record.deploy_id)]

    assert watched.post(f"/drift/alerts/{name}/quarantine", {}).status_code == 400
    answer = watched.post(f"/drift/alerts/{name}/quarantine", {"bundle": "{}"})
    assert answer.status_code == 403, answer.text
    stranger = create_key(watched.home / "nobody.key")
    assert stranger.keyid
    strange = f"file:{watched.home / 'nobody.key'}"
    reason = ("--reason", "customers complain", "--yes")
    refused = watched.chancery("quarantine", name, "--key", strange, *reason, code=1)
    assert "UNTRUSTED_KEY" in refused.stderr
    assert asked() == []
    with governor.engine.begin() as connection:  # the server shows something else to sign
        true = drift_records.find_alert(connection, name).proposal
        assert true is not None
        other = replace(QuarantineStatement.parse(true), alert_id="0" * 32).to_payload()
        drift_records.set_proposal(connection, alert, other)
    cheated = watched.chancery("quarantine", name, "--key", watched.key, *reason, code=1)
    assert "TAMPERED" in cheated.stderr
    with governor.engine.begin() as connection:
        drift_records.set_proposal(connection, alert, true)
    done = watched.chancery("quarantine", name, "--key", watched.key, *reason)
    assert "You are about to take 'models:/fraud/1' off the route 'fraud'" in done.output
    assert "quarantined by" in done.output
    assert asked() == [SignalKind.QUARANTINE]
    status = watched.get("/drift/fraud")
    assert [one["state"] for one in status["alerts"]] == ["quarantined"]


def test_a_signed_request_is_carried_out_once(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack: a recorded request is sent again."""
    monkeypatch.setenv("CHANCERY_KEY", watched.key)
    first = watched.bad()
    url = f"{watched.server.uri}/api/3.0/chancery/drift/alerts/{first.alert_id}/acknowledge"
    request = requests.Request(
        "POST", url, json={"reason": "on it"}, auth=SignedRequestAuthProvider().get_auth()
    ).prepare()
    with requests.Session() as session:
        assert session.send(request).status_code == 200
        again = session.send(request)
    assert again.status_code in (401, 403), again.text
