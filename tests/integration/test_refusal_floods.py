"""Refused requests, again and again: a handful of entries on the ledger, and the whole count."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.exceptions import MlflowException

from governance.errors import GovernanceError, PromotionDeniedError, UntrustedKeyError
from governance.ledger import verify_export
from governance.signing.dsse import sign_bundle
from governance.signing.keys import create_key
from governance.signing.statements import PAYLOAD_TYPE
from mlflow_plugins.governor import Governor
from mlflow_plugins.refusals import refusals_of
from tests.conftest import StartServer
from tests.scenario import Scenario

REFUSALS = {"gates:change:refused", "gates:promotion:denied", "server:request:rejected"}


def refused(events: list[dict[str, Any]]) -> int:
    """How often a request was refused, from the ledger alone."""
    return sum(e["type"] in REFUSALS for e in events) + sum(
        e["data"]["repeated"] for e in events if e["type"] == "gates:refusals:counted"
    )


def test_a_thousand_refused_changes(scenario: Scenario) -> None:
    version = scenario.train()
    before = len(scenario.events())
    for _ in range(1000):
        with pytest.raises(MlflowException, match="may not be promoted"):
            scenario.client.set_registered_model_alias("fraud", "champion", str(version))
    refusals_of(Governor.of(scenario.uri)).flush()
    after = scenario.events()
    assert len(after) - before == 2
    first, counted = after[-2:]
    assert first["type"] == "gates:promotion:denied"
    assert counted["data"]["refusals"] == [
        {
            "eventId": first["id"],
            "subject": f"models:/fraud/{version}",
            "code": "PROMOTION_DENIED",
            "repeated": 999,
        }
    ]
    assert refused(after) == 1000


def test_requests_approvals_and_trust_roots(scenario: Scenario, tmp_path: Path) -> None:
    """The other ways to be refused, with a new key each time."""
    version = scenario.train()
    open_request = scenario.request(version, "staging")
    before = len(scenario.events())
    for number in range(40):
        mallory = create_key(tmp_path / f"mallory-{number}.key")
        bundle = sign_bundle(open_request.payload, PAYLOAD_TYPE, mallory)
        with pytest.raises(UntrustedKeyError):
            scenario.backend.approve(open_request.statement_id, bundle)
        with pytest.raises(PromotionDeniedError):
            scenario.request(version, "prod")
        with pytest.raises(GovernanceError):
            scenario.backend.change_trust_roots(b"{}", [bundle])
    refusals_of(Governor.of(scenario.uri)).flush()
    after = scenario.events()
    assert len(after) - before <= 24
    assert refused(after) == 120


def test_files_that_changed_before_the_request_are_on_the_ledger(scenario: Scenario) -> None:
    version = scenario.train()
    (scenario.model_folder(version) / "MLmodel").write_text("changed")
    with pytest.raises(GovernanceError, match="not the ones that were registered"):
        scenario.request(version, "staging")
    last = scenario.events()[-1]
    assert last["type"] == "gates:change:refused"
    assert "not the ones that were registered" in last["data"]["reason"]


def test_a_flood_over_rest_is_whole_once_the_server_has_stopped(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "chancery"
    server = start_server(environment={"CHANCERY_HOME": str(home)}, workers=2)
    monkeypatch.setenv("CHANCERY_HOME", str(tmp_path / "client"))
    scenario = Scenario(server.uri, home)
    version = scenario.train()
    before = len(scenario.events())
    alias = {"name": "fraud", "alias": "champion", "version": str(version)}

    def flood(number: int) -> None:
        name = {"X-Chancery-Actor": f"mallory-{number}"}
        path = f"{server.uri}/api/2.0/mlflow/registered-models/alias"
        assert requests.post(path, json=alias, headers=name, timeout=60).status_code == 403
        forged = {"Signature-Input": "x", "Signature": f"x{number}"}
        answer = requests.get(f"{server.uri}/version", headers=forged, timeout=60)
        assert answer.status_code == 401

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(flood, range(150)))
    server.stop()

    monkeypatch.setenv("CHANCERY_HOME", str(home))
    backend = Scenario(server.store, home).backend
    lines = [line.decode() for line in backend.ledger_export()]
    events = [json.loads(json.loads(line)) for line in lines[1:]]
    assert refused(events) == 300
    assert len(events) - before <= 2 * 2 * 21  # two workers, two kinds of refusal
    assert verify_export(lines).ok
