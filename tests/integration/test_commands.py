"""The command as docs/api.md promises it: one JSON document, exit codes, and errors in words."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from governance.cli import main
from governance.errors import MalformedRequestError, PromotionDeniedError
from governance.signing.keys import create_key
from tests.conftest import StartServer
from tests.integration.copies import apply_policy
from tests.scenario import Scenario


def chancery(*arguments: str, input: str | None = None) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CliRunner().invoke(main, list(arguments), input=input)


def answered(result: Result, code: int = 0) -> Any:
    """The JSON document that is all of standard output."""
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.fixture
def store(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scenario.uri)
    return scenario


def test_every_command_answers_json(store: Scenario, tmp_path: Path) -> None:
    version = store.train()
    model = f"models:/fraud/{version}"
    denied = answered(chancery("request", model, "--to", "prod", "--json"), 1)
    assert denied["error"] == "PROMOTION_DENIED"
    assert answered(chancery("check", model, "--to", "prod", "--json"), 1)["allowed"] is False
    found = answered(chancery("request", model, "--to", "staging", "--json"))
    assert found["statement"]["predicate"]
    assert found["decision"]["allowed"] is True
    assert answered(chancery("show", found["statementId"][:12], "--json")) == [found]
    approve = ["approve", found["statementId"][:12], "--json"]
    assert chancery(*approve, input="n\n").exit_code == 1
    asked = chancery(*approve, input="y\n")
    assert len(answered(asked)["approvals"]) == 1
    assert "staging" in asked.stderr  # nobody signs what they were not shown
    assert answered(chancery(*approve, "--yes"), 1)["error"] == "REFUSED"  # once is enough

    assert answered(chancery("verify", model, "--json"))["model"] == model
    public = tmp_path / "bea.pub"
    public.write_text(create_key(tmp_path / "bea.key").public_key_pem)
    signed = ["--key", f"file:{store.home / 'approver.key'}", "--json"]
    added = chancery("trust", "add", "bea", "--public-key", str(public), *signed)
    assert answered(added) == {"version": 2}
    assert answered(chancery("trust", "remove", "bea", *signed)) == {"version": 3}
    assert answered(chancery("trust", "show", "--json"))["version"] == 3
    size = answered(chancery("ledger", "checkpoint", "--json"))["size"]
    assert answered(chancery("ledger", "tail", "-n", "1", "--json"))[0]["index"] == size - 1
    file = tmp_path / "rolls.jsonl"
    assert answered(chancery("ledger", "export", str(file), "--json")) == {"file": str(file)}
    assert answered(chancery("ledger", "verify", "--export", str(file), "--json"))["ok"] is True
    assert answered(chancery("ledger", "verify", "--json"))["origin_pinned"] is True
    again = answered(chancery("ledger", "export", str(file), "--json"), 1)
    assert "exists already" in again["message"]
    assert answered(chancery("doctor", "--json"))[0]["ok"] is True
    assert answered(chancery("keys", "create", str(tmp_path / "k"), "--json"))["keyid"]
    assert answered(chancery("keys", "create", str(tmp_path / "k"), "--json"), 3)["error"]
    revoked = answered(chancery("revoke", model, "--reason", "biased", "--json"))
    assert revoked == {"model": model, "reason": "biased"}
    assert answered(chancery("verify", model, "--json"), 1)["error"] == "REVOKED"


def test_a_copy_from_the_request_to_the_load(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_policy(tmp_path, monkeypatch)
    store: Scenario = request.getfixturevalue("store")  # opened under that policy
    model = f"models:/fraud/{store.train()}"
    command = [model, "--to", "prod", "--as", "prod.fraud"]
    denied = answered(chancery("check", *command, "--json"), 1)
    assert denied["servedAs"] == "prod.fraud"
    assert f"chancery request {' '.join(command)}`" in denied["conditions"][-1]["remedy"]
    wrong = answered(chancery("request", model, "--to", "prod", "--as", "fraud2", "--json"), 1)
    assert (wrong["error"], "prod.*" in wrong["remedy"]) == ("REFUSED", True)

    asked = chancery("request", *command)
    assert asked.exit_code == 0
    assert "to be served as registered model prod.fraud" in asked.output
    found = answered(chancery("show", "--json"))[0]
    assert found["servedAs"] == "prod.fraud"
    assert found["statement"]["predicate"]["promotion"]["servedAs"] == "prod.fraud"
    assert "to be served as registered model prod.fraud" in chancery("show").output
    approved = chancery("approve", found["statementId"][:12], input="y\n")
    assert "to be served as registered model 'prod.fraud'" in " ".join(approved.output.split())
    assert chancery("check", *command).exit_code == 0
    assert chancery("check", model, "--to", "prod").exit_code == 1

    store.client.copy_model_version(model, "prod.fraud")
    verified = answered(chancery("verify", "models:/prod.fraud/1", "--env", "prod", "--json"))
    assert verified["statementId"] == found["statementId"]
    unsigned = answered(chancery("verify", model, "--env", "prod", "--json"), 1)
    assert unsigned["error"] == "UNSIGNED"


def test_a_key_that_was_named_is_not_made(
    store: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = store.request(store.train(), "staging")
    typo = tmp_path / "typo.key"
    approve = ["approve", found.statement_id[:12], "--yes", "--json"]
    said = answered(chancery(*approve, "--key", f"file:{typo}"), 3)
    assert said["error"] == "MISCONFIGURED"
    assert str(typo) in said["message"]
    public = tmp_path / "bea.pub"
    public.write_text(create_key(tmp_path / "bea.key").public_key_pem)
    add = ["trust", "add", "bea", "--public-key", str(public), "--key", f"file:{typo}", "--json"]
    assert answered(chancery(*add), 3)["error"] == "MISCONFIGURED"
    monkeypatch.setenv("CHANCERY_KEY", f"file:{typo}")
    assert answered(chancery(*approve), 3)["error"] == "MISCONFIGURED"
    assert not typo.exists()
    monkeypatch.setenv("CHANCERY_KEY", f"file:{store.home / 'approver.key'}")
    assert answered(chancery(*approve))["approvals"]


def test_lineage_that_was_cut_says_so(store: Scenario, tmp_path: Path) -> None:
    model = f"models:/fraud/{store.train()}"
    cut = answered(chancery("lineage", model, "--depth", "1", "--json"))
    assert cut["truncated"] is True
    assert "--depth" in cut["remedy"]
    text = chancery("lineage", model, "--depth", "1").stdout
    assert "This graph was cut" in text
    assert "--depth" in text
    page = tmp_path / "lineage.html"
    assert (
        "This graph was cut"
        in chancery("lineage", model, "--depth", "1", "--html", str(page)).stdout
    )
    assert "This graph was cut" in page.read_text()
    both = chancery("lineage", model, "--depth", "1", "--html", str(page), "--json")
    assert answered(both)["truncated"] is True
    whole = answered(chancery("lineage", model, "--json"))
    assert (whole["truncated"], whole["remedy"]) == (False, "")
    assert "was cut" not in chancery("lineage", model).stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["show", "abcdef123456", "--json"], 1),
        (["lineage", "models:/nothing/1", "--json"], 1),
        (["ledger", "export", "/no/such/folder/file", "--json"], 3),
        (["check", "models:/fraud/0", "--to", "prod"], 2),
        (["check", "models:/fraud/99999999999999999999", "--to", "prod"], 2),
        (["check", "models:/fraud/²", "--to", "prod"], 2),
        (["check", "models:/fraud/7", "--to", "prod", "--json"], 1),
        (["lineage", "runs:/x", "--depth", "99"], 2),
        (["ledger", "verify", "--log-key", "/"], 2),
        (["trust", "add", "bea", "--public-key", "/", "--key", "file:x"], 2),
        (["show", "--json", "--uri", "sqlite:///plain.db"], 3),
        (["show", "--json", "--uri", "http://127.0.0.1:9"], 3),
        (["show", "--json", "--uri", "governed+postgresql+psycopg://x@127.0.0.1:9/none"], 3),
        (["doctor", "--json", "--uri", "governed+postgresql+psycopg://x@127.0.0.1:9/none"], 1),
    ],
)
def test_exit_codes(store: Scenario, arguments: list[str], code: int) -> None:
    done = chancery(*arguments)
    assert done.exit_code == code, done.output
    assert not isinstance(done.exception, Exception) or isinstance(done.exception, SystemExit)
    if "--json" in arguments:
        found = json.loads(done.stdout)
        assert isinstance(found, list) or {"error", "message", "remedy"} == set(found)


@pytest.mark.parametrize("reason", ["x", "   ", "x" * 2001])
def test_a_revocation_beside_the_database_needs_a_reason_too(
    store: Scenario, tmp_path: Path, reason: str
) -> None:
    model = f"models:/fraud/{store.train()}"
    found = answered(chancery("revoke", model, "--reason", reason, "--json"), 1)
    assert found["error"] == "MALFORMED_REQUEST"
    assert "3 to 2000 characters" in found["remedy"]
    again = answered(chancery("revoke", model, "--reason", "biased", "--json"))
    assert again["reason"] == "biased"  # nothing was half done


def test_a_server_s_refusals_keep_their_kind(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server(environment={"CHANCERY_HOME": str(tmp_path / "chancery")})
    monkeypatch.setenv("CHANCERY_HOME", str(tmp_path / "client"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    scenario = Scenario(server.uri, tmp_path / "chancery")
    model = f"models:/fraud/{scenario.train()}"
    denied = answered(chancery("request", model, "--to", "prod", "--json"), 1)
    assert denied["error"] == "PROMOTION_DENIED"
    with pytest.raises(PromotionDeniedError) as raised:
        scenario.request(1, "prod")
    assert any(not c.met for c in raised.value.decision.conditions)
    with pytest.raises(MalformedRequestError, match=r"reason: .*at least 3"):
        scenario.backend.revoke("fraud", 1, "x")
    unsigned = answered(chancery("revoke", model, "--reason", "biased", "--json"), 1)
    assert unsigned["error"] == "REFUSED"
    stranger = create_key(tmp_path / "mallory.key")
    monkeypatch.setenv("CHANCERY_KEY", f"file:{tmp_path / 'mallory.key'}")
    found = answered(chancery("revoke", model, "--reason", "biased", "--json"), 1)
    assert found["error"] == "NOT_AUTHENTICATED"
    assert "Remedy:" not in found["message"]
    assert stranger.keyid[:8] in found["message"]
    monkeypatch.delenv("CHANCERY_KEY")
    cut = answered(chancery("lineage", model, "--depth", "1", "--json"))
    assert cut["truncated"] is True
    assert answered(chancery("ledger", "verify", "--json"))["keys_pinned"] is False
