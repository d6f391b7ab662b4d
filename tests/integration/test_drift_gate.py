"""The promotion gate and drift: what monitors signed counts, tags and changed rows do not (AC-8).

The attacks write to the database as its administrator could.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from mlflow.exceptions import MlflowException
from sqlalchemy import delete, update

from drift.consequences import ConsequenceSink
from drift.verdict import Level
from governance import registry
from governance.cli import main
from governance.clock import now_ms
from governance.drift_tables import drift_alerts, drift_subjects
from governance.records import Condition
from governance.signing.keys import create_key
from governance.signing.trust import sign_roots, verify_chain
from mlflow_plugins.drift_store import DriftStore
from mlflow_plugins.governor import Governor
from tests.integration.drift_world import report, train_watched
from tests.scenario import Scenario

POLICY = """
version: 1
environments:
  - name: sandbox
  - name: staging
    aliases: [challenger]
  - name: prod
    aliases: [champion]
    requires:
      drift:
        no_open_alert: true
        report_younger_than: 7d
        estimated_accuracy_at_least: 0.9
"""
DAY = 86_400_000
both = pytest.mark.parametrize("scenario", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(autouse=True)
def policy(private_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read when the scenario opens its store."""
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    monkeypatch.setenv("CHANCERY_POLICY", str(path))


class Gate:
    """A version in staging that is watched, and what the gate of prod says."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.version = train_watched(scenario)
        scenario.promote(self.version, "challenger", "staging")
        self.governor = Governor.of(scenario.uri)
        self.store = DriftStore(self.governor)
        self.sink = ConsequenceSink(self.store, scenario.signer)

    def found(self, name: str) -> Condition:
        self.governor.ledger.sequence()
        decision = self.scenario.backend.evaluate("fraud", self.version, "prod")
        [condition] = [c for c in decision.conditions if c.name == f"drift:{name}"]
        return condition

    def see(self, level: Level = Level.OK, **more: Any) -> Any:
        return self.sink.hand_over(report(self.version, level, **more))

    def sql(self) -> Any:
        return self.governor.engine.begin()

    def subject(self) -> dict[str, Any]:
        with self.governor.engine.connect() as connection:
            [row] = connection.execute(drift_subjects.select()).mappings()
            return dict(row)


@pytest.fixture
def gate(scenario: Scenario) -> Gate:
    return Gate(scenario)


@both
def test_a_version_that_is_watched_and_well_is_promoted(gate: Gate) -> None:
    assert "no monitor did" in gate.found("report").found
    with pytest.raises(Exception, match="A monitor must have reported"):
        gate.scenario.request(gate.version, "prod")
    gate.see()
    for name in ("report", "alerts", "accuracy"):
        assert gate.found(name).met, gate.found(name)
    request = gate.scenario.clear(gate.version, "prod")
    assert "drift-reports:/batch" in request.payload.decode()
    gate.scenario.client.set_registered_model_alias("fraud", "champion", str(gate.version))
    assert gate.scenario.alias("champion") == gate.version


def test_an_open_alert_stops_it_until_it_is_closed_and_proven(gate: Gate) -> None:
    gate.see()
    alert = gate.see(Level.ALERT).alert
    assert alert.alert_id[:12] in gate.found("alerts").found
    gate.store.acknowledge(alert.alert_id, "on it")
    assert not gate.found("alerts").met  # seen is not solved
    gate.store.close(alert.alert_id, "a holiday")
    assert gate.found("alerts").met
    gate.scenario.clear(gate.version, "prod")  # approved, and then it drifts
    gate.see(Level.ALERT)
    with pytest.raises(MlflowException, match="No alert about its drift may be open, but alert"):
        gate.scenario.client.set_registered_model_alias("fraud", "champion", str(gate.version))


def test_a_stale_report_does_not_count(gate: Gate) -> None:
    gate.see(made_ms=now_ms() - 8 * DAY)
    told = gate.found("report")
    assert not told.met
    assert "8 days ago" in told.found
    gate.see()
    assert gate.found("report").met


def test_a_report_by_another_profile_does_not_count(gate: Gate) -> None:
    gate.see(seed=8)
    told = gate.found("report")
    assert not told.met
    assert "none of the version's files" in told.found


def test_a_report_on_another_version_does_not_count(gate: Gate) -> None:
    """Attack: the healthy version's report is put under the other's name."""
    gate.see()
    gate.version = train_watched(gate.scenario)
    assert "no monitor did" in gate.found("report").found
    with gate.governor.engine.connect() as connection:
        uid = registry.candidate(connection, "fraud", gate.version).version_uid
    with gate.sql() as connection:
        connection.execute(update(drift_subjects).values(version_uid=uid))
    told = gate.found("report")
    assert not told.met
    assert "signed for models:/fraud/1" in told.found


def test_an_unsigned_or_bad_report_does_not_count(gate: Gate) -> None:
    unsigned = ConsequenceSink(gate.store, None)
    unsigned.hand_over(report(gate.version))
    assert "it is not signed" in gate.found("report").found
    gate.see()
    assert gate.found("report").met
    good = gate.subject()["document"]
    forged = good.replace('"estimated_accuracy":"0.93"', '"estimated_accuracy":"0.99"')
    assert forged != good
    for document, words in ((forged, "another report"), ("{", "not JSON")):
        with gate.sql() as connection:
            connection.execute(update(drift_subjects).values(document=document))
        told = gate.found("report")
        assert not told.met
        assert words in told.found
    with gate.sql() as connection:
        connection.execute(update(drift_subjects).values(document=good))
    assert gate.found("report").met


def test_a_monitor_whose_key_is_revoked_counts_no_more(gate: Gate) -> None:
    scenario = gate.scenario
    signer = create_key(scenario.home / "robot.key")

    def change(make: Any) -> None:
        roots = verify_chain(scenario.backend.trust_roots(), pinned_first=None).successor()
        payload = make(roots).to_payload()
        scenario.backend.change_trust_roots(payload, [sign_roots(payload, scenario.signer)])

    public = scenario.home / "robot.pub"
    public.write_text(signer.public_key_pem)
    added = CliRunner().invoke(
        main,
        ["trust", "add", "robot", "--public-key", str(public), "--monitor", "fraud*",
         "--key", f"file:{scenario.home / 'approver.key'}", "--uri", scenario.uri],
    )  # fmt: skip
    assert added.exit_code == 0, added.output
    shown = CliRunner().invoke(main, ["trust", "show", "--uri", scenario.uri]).output
    assert "monitor fraud*" in " ".join(shown.split())
    ConsequenceSink(gate.store, signer).hand_over(report(gate.version))
    assert gate.found("report").found.startswith("robot did")
    change(lambda roots: roots.revoke_key(signer.keyid))
    assert "was revoked" in gate.found("report").found


def test_low_accuracy_stops_it(gate: Gate) -> None:
    gate.see(accuracy=0.85)
    told = gate.found("accuracy")
    assert not told.met
    assert "0.85" in told.found
    gate.see(accuracy=None)
    assert "does not say" in gate.found("accuracy").found


def test_an_old_report_that_is_put_back_does_not_count(gate: Gate) -> None:
    """Attack: yesterday's healthy report, validly signed, over today's bad one."""
    gate.see()
    healthy = gate.subject()
    alert = gate.see(Level.ALERT).alert
    gate.store.close(alert.alert_id, "for the test")
    assert gate.found("report").met
    with gate.sql() as connection:
        columns = {name: healthy[name] for name in ("document", "bundle", "made_ms", "seen_ms")}
        connection.execute(update(drift_subjects).values(**columns))
    assert "the ledger has a later report" in gate.found("report").found
    with gate.sql() as connection:
        connection.execute(update(drift_subjects).values(**healthy))
    assert "the ledger has another report as the last" in gate.found("report").found


def test_an_alert_that_is_closed_or_removed_in_its_table_only_is_open(gate: Gate) -> None:
    """Attacks: rows changed by hand."""
    gate.see()
    alert = gate.see(Level.ALERT).alert
    with gate.sql() as connection:
        document = gate.store.alert(alert.alert_id).alert.to_dict() | {"state": "closed"}
        connection.execute(
            update(drift_alerts).values(state="closed", document=json.dumps(document))
        )
    assert "closed in its row, and not on the ledger" in gate.found("alerts").found
    with gate.sql() as connection:
        connection.execute(delete(drift_alerts))
    assert "its row was removed" in gate.found("alerts").found


def test_any_number_of_alerts_that_are_closed_and_proven_stop_nothing(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read some at a time."""
    monkeypatch.setattr("governance.gates.drift_evidence._AT_ONCE", 3)
    for _ in range(7):
        gate.store.close(gate.see(Level.ALERT).alert.alert_id, "a holiday")
    gate.see()
    assert gate.found("alerts").met, gate.found("alerts")
    with gate.sql() as connection:
        connection.execute(drift_alerts.delete().where(drift_alerts.c.number.in_((1, 4, 7))))
    found = gate.found("alerts").found
    for number in (1, 4, 7):
        assert f"alert number {number} is on the ledger, and its row was removed" in found
    with gate.sql() as connection:
        columns = drift_alerts.c
        connection.execute(drift_alerts.update().where(columns.number == 6).values(number=10**9))
    assert (
        "alert number 6 is on the ledger" in gate.found("alerts").found
    )  # and no end is waited for


def test_tags_say_nothing_to_the_gate(gate: Gate) -> None:
    """Attack: tags edited by hand so that the version looks healthy."""
    client, version = gate.scenario.client, str(gate.version)
    for key, value in (
        ("drift.status", "ok"),
        ("drift.score", "0"),
        ("drift.window_end", str(now_ms())),
        ("drift.report", "e" * 64),
    ):
        client.set_model_version_tag("fraud", version, key, value)
    assert not gate.found("report").met
    gate.see(Level.ALERT)
    client.set_model_version_tag("fraud", version, "drift.status", "ok")
    assert not gate.found("alerts").met


def test_checking_a_file_once_is_what_the_gate_asks_for(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the remedy of a missing report says; whoever may not report is told, and has the check."""

    def checked(name: str, middle: float) -> tuple[int, dict[str, Any]]:
        rows, path = np.random.default_rng(5).normal(middle, 9, 400), tmp_path / f"{name}.csv"
        path.write_text("age\n" + "\n".join(map(str, rows)))
        words = ["drift", "check", f"models:/fraud/{gate.version}", "--data", str(path), "--json"]
        found = CliRunner().invoke(main, [*words, "--uri", gate.scenario.uri])
        assert found.exit_code in (0, 4), found.output
        return found.exit_code, json.loads(found.stdout)

    assert "chancery drift check" in gate.found("report").remedy
    stranger = tmp_path / "stranger.key"
    create_key(stranger)
    with monkeypatch.context() as patch:
        patch.setenv("CHANCERY_MONITOR_KEY", f"file:{stranger}")
        code, told = checked("calm", 40)
    assert (code, told["published"], told["recorded"]) == (0, True, False)
    assert "Remedy: " in told["notRecorded"]
    assert not gate.found("report").met
    code, told = checked("calm", 40)  # again, by somebody who may
    assert (code, told["recorded"], told["notRecorded"]) == (0, True, "")
    assert gate.found("report").met
    assert gate.found("alerts").met
    code, told = checked("moved", 60)
    assert (code, told["recorded"]) == (4, True)
    assert not gate.found("alerts").met
