"""Deployments through a real server: the routes (AC-4, AC-12)."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from governance.deployment_control import Progress, StoredDecision
from governance.deployment_port import DeploymentOrder, open_deployments
from governance.deployment_records import Health, SignalKind
from governance.errors import (
    ConfigurationError,
    ConflictError,
    MalformedRequestError,
    NotFoundError,
    PromotionDeniedError,
    RefusedError,
)
from governance.signing.keys import FileSigner
from mlflow_plugins.api.requests import BODY_LIMIT
from mlflow_plugins.request_auth import SignedRequestAuth
from tests.conftest import StartServer
from tests.integration.served import Served
from tests.scenario import Scenario


def test_a_deployment_s_life_over_rest(served: Served) -> None:
    answer = served.post(
        "/serve/deploy",
        {"modelId": "fraud", "version": 1, "env": "sandbox", "route": "r", "nodePool": "big",
         "resources": {"replicas": 2, "numCpus": 0.5, "numGpus": "0"}},
    )  # fmt: skip
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["modelId"], made["version"], made["route"]) == ("fraud", 1, "r")
    assert made["resources"] == {
        "host": "127.0.0.1", "replicas": 2, "numCpus": "0.5", "numGpus": "0",
    }  # fmt: skip
    assert (made["env"], made["nodePool"], made["status"]) == ("sandbox", "big", "starting")
    assert made["stable"]["rootDigest"] == made["provenance"]["rootDigest"]
    identifier = made["deployId"]
    assert served.get(f"/serve/{identifier}") == made == served.get("/serve/r")
    assert served.get("/serve")["deployments"] == [made]

    canary = {"model": "models:/fraud/2", "route": "r", "canaryConfig": {"steps": [5, 100]}}
    begun = served.post("/serve/deploy", canary).json()
    assert begun["canary"]["version"] == begun["canaryVersion"] == 2
    assert begun["canaryConfig"]["steps"] == [5.0, 100.0]
    assert begun["canaryConfig"]["min_samples"] == 100, "the whole configuration is stored"
    for kind in ("pause", "resume", "abort", "quarantine"):
        asked = served.post(f"/serve/{identifier}/signals", {"signal": kind, "reason": "so"})
        assert asked.status_code == 200, asked.text
    assert served.post("/serve/r/rollback", {"reason": "slow"}).status_code == 200
    scaled = served.post("/serve/r/scale", {"replicas": 3}).json()
    assert scaled["resources"]["replicas"] == 3
    signals = [event["data"]["signal"] for event in served.events("serve:rollout:signalled")]
    assert signals == ["pause", "resume", "abort", "quarantine", "rollback"]
    assert {e["actor"] for e in served.events("serve:rollout:signalled")} == {"anonymous"}

    # What a controller does stays on the database, and is seen through the server.
    look = served.database.take(identifier, "one", now_ms=0, ttl_ms=10)
    assert look is not None
    said = {"outcome": "promoted", "phase": "promoted", "percent": "100", "atMs": 1,
            "explanation": ["All steps are passed."]}  # fmt: skip
    decision = StoredDecision(begun["rolloutId"], 4, said, ended=True, promoted=True)
    progress = Progress(b'{"any": "\xc3\xbc"}', 1, Health.SERVING, decisions=(decision,))
    served.database.save(identifier, look.record.fence, progress, now_ms=1)
    assert served.port.find("r") == served.database.find("r")
    assert served.port.list() == served.database.list()
    seen = list(served.database.decisions(identifier))
    assert served.port.decisions(identifier) == seen
    after = served.get(f"/serve/{identifier}/decisions")["decisions"]
    assert [one["decision"]["outcome"] for one in after] == ["promoted"]
    back = served.post("/serve/r/rollback", {"reason": "worse"}).json()
    assert (back["version"], back["canaryVersion"]) == (2, 1)
    assert back["canaryConfig"]["steps"] == [99.0, 100.0]

    assert served.post("/serve/r/end", {"reason": "done"}).json()["endedReason"] == "done"
    assert served.get("/serve")["deployments"] == []
    assert len(served.made()) == 1
    again = served.post("/serve/r/scale", {"replicas": 1})
    assert again.status_code == 404
    again = served.post(f"/serve/{identifier}/scale", {"replicas": 1})
    assert (again.status_code, again.json()["error_code"]) == (409, "CONFLICT")


def test_experiments_and_shadows_over_rest(served: Served, tmp_path: Path) -> None:
    made = served.post("/serve/deploy", {"model": "models:/fraud/1", "env": "sandbox"}).json()
    arms = [
        {"name": "control", "model": "models:/fraud/1", "weight": 60},
        {"name": "fresh", "model": "models:/fraud/2", "weight": "40", "timeoutSeconds": 2.5,
         "maxConcurrency": 8},
    ]  # fmt: skip
    body = {"name": "ab", "sticky": "header:x-user", "arms": arms}
    begun = served.post("/serve/fraud/experiment", body)
    assert begun.status_code == 200, begun.text
    found = begun.json()["experiment"]
    assert begun.json()["status"] == "experimenting"
    assert [(a["name"], a["version"], a["weight"]) for a in found["arms"]] == [
        ("control", 1, "60"), ("fresh", 2, "40"),
    ]  # fmt: skip
    assert (found["arms"][1]["timeoutSeconds"], found["arms"][1]["maxConcurrency"]) == ("2.5", 8)
    assert served.port.find("fraud") == served.database.find("fraud")
    second = served.post("/serve/fraud/experiment", body | {"name": "other"})
    assert (second.status_code, second.json()["error_code"]) == (409, "CONFLICT")
    canary = {"model": "models:/fraud/2", "route": "fraud", "canaryConfig": "5%"}
    assert served.post("/serve/deploy", canary).status_code == 409
    taken = served.post("/serve/fraud/shadow", {"model": "models:/fraud/2"})
    assert taken.status_code == 409

    config = tmp_path / "ab.yaml"
    config.write_text(
        "name: ab\nsticky: header:x-user\narms:\n"
        "  - {name: control, model: models:/fraud/1, weight: 30}\n"
        "  - {name: fresh, model: models:/fraud/2, weight: 70, timeout_seconds: 2.5, "
        "max_concurrency: 8}\n"
    )
    changed = served.chancery("experiment", "fraud", "--config", str(config), "--json")
    assert json.loads(changed.stdout)["experiment"]["changes"] == 1
    assert "fresh: 70 %" in served.chancery("show", "fraud").stdout
    assert json.loads(served.chancery("results", "fraud", "--json").stdout)["experiment"] is None
    served.chancery("experiment", "fraud", "--end", "--reason", "done")
    begun = served.post("/serve/fraud/shadow", {"model": "models:/fraud/2", "percent": 10}).json()
    assert begun["shadow"]["percent"] == "10"
    served.chancery("shadow", "fraud", "models:/fraud/2", "--percent", "50", "--no-compare")
    shadow = served.get("/serve/fraud")["shadow"]
    assert (shadow["percent"], shadow["compare"]) == ("50", False)
    assert served.post("/serve/fraud/shadow/end", {"reason": "seen"}).json()["shadow"] is None
    served.post("/serve/fraud/experiment", body)
    wrong = {"keep": "fresh", "canaryConfig": {"steps": [50, 25]}}
    assert served.post("/serve/fraud/experiment/end", wrong).status_code == 400
    kept = served.post("/serve/fraud/experiment/end", {"keep": "fresh"}).json()
    assert (kept["experiment"], kept["canaryVersion"]) == (None, 2)
    assert kept["canaryConfig"]["steps"] == [99.0, 100.0]

    count = len(served.events("serve:"))
    for path, sent, words in (
        ("experiment", body | {"arms": arms[:1]}, "2 to 20 arms"),
        ("experiment", body | {"arms": [arms[0], arms[1] | {"weight": 30}]}, "add up to 90"),
        ("experiment", body | {"sticky": "user"}, "where the key is"),
        ("experiment", body | {"arms": [{"name": "a"}] * 2}, "model"),
        ("experiment", body | {"weights": {}}, "unknown field 'weights'"),
        ("experiment", body | {"arms": [arms[0], arms[1] | {"weight": -1}]}, "weight"),
        ("shadow", {}, "model"),
        ("shadow", {"model": "models:/fraud/2", "percent": 0}, "above 0"),
        ("shadow", {"model": "models:/fraud/2", "maxInFlight": 0}, "copies at a time"),
        ("shadow", {"model": "models:/fraud/2", "compare": 1}, "compare"),
    ):
        answer = served.post(f"/serve/fraud/{path}", sent)
        document = answer.json()
        assert (answer.status_code, document["error_code"]) == (400, "MALFORMED_REQUEST"), sent
        assert words in document["message"] + document["remedy"], document
    for path in ("experiment", "experiment/end", "shadow", "shadow/end"):
        sent = {"experiment": body, "shadow": {"model": "models:/fraud/2"}}.get(path, {})
        assert served.post(f"/serve/nobody/{path}", sent).status_code == 404
    assert len(served.events("serve:")) == count
    kinds = [event["type"] for event in served.events("serve:experiment")]
    assert [kind.rsplit(":", 1)[1] for kind in kinds] == [
        "begun", "changed", "ended", "begun", "ended",
    ]  # fmt: skip
    assert made["deployId"] == kept["deployId"]


def test_what_cannot_be_meant_is_told_and_leaves_nothing(served: Served) -> None:
    good = {"model": "models:/fraud/1", "env": "sandbox"}
    for body, words in (
        ([], "should be a valid dictionary"),
        (good | {"rout": "x"}, "unknown field 'rout'"),
        (good | {"resources": {"cpus": 1}}, "unknown field 'resources.cpus'"),
        (good | {"version": 1}, "either as 'model' or"),
        ({"modelId": "fraud", "env": "sandbox"}, "either as 'model' or"),
        ({"modelId": "fraud", "version": "1"}, "version"),
        ({"modelId": "fraud", "version": True}, "version"),
        ({"modelId": "fraud", "version": 2**40}, "version"),
        (good | {"route": "a\x00b"}, "route"),
        (good | {"route": ["a"]}, "route"),
        (good | {"port": 70000}, "port"),
        (good | {"port": "80"}, "port"),
        (good | {"resources": {"replicas": 1.5}}, "resources.replicas"),
        (good | {"resources": {"numCpus": -1}}, "not a number from 0"),
        (good | {"resources": {"numCpus": "many"}}, "not a number from 0"),
        (good | {"resources": {"host": "a b; rm"}}, "resources.host"),
        (good | {"canaryConfig": {"steps": [50, 25]}}, "does not exceed"),
        (good | {"canaryConfig": {"step": [5]}}, "did you mean 'steps'"),
        (good | {"canaryConfig": {"steps": "5"}}, "canaryConfig, steps"),
        (good | {"canaryConfig": "/etc/passwd.yaml"}, "not a percentage"),
        (good | {"canaryConfig": 5}, "canaryConfig"),
    ):
        answer = served.post("/serve/deploy", body)
        document = answer.json()
        assert (answer.status_code, document["error_code"]) == (400, "MALFORMED_REQUEST"), body
        assert words in document["message"], body
        assert document["remedy"]
    headers = {"content-type": "application/json"}
    for data in (b"{", b"\xff", b"[" * 100_000, b"", b'{"model": NaN}'):
        assert served.post("/serve/deploy", data=data, headers=headers).status_code == 400
    large = b" " * BODY_LIMIT + b"{}"
    for data in (large, iter([large])):  # with a length, and without
        answer = served.post("/serve/deploy", data=data, headers=headers)
        assert (answer.status_code, answer.json()["error_code"]) == (413, "REQUEST_TOO_LARGE")
    for path, body in (
        ("/serve/nobody/scale", {"replicas": 1}),
        ("/serve/nobody/end", {}),
        ("/serve/nobody/rollback", {}),
        ("/serve/nobody/signals", {"signal": "abort"}),
    ):
        assert served.post(path, body).status_code == 404
    for path, body in (
        ("/serve/x/scale", {}),
        ("/serve/x/scale", {"replicas": -1}),
        ("/serve/x/signals", {"signal": "explode"}),
        ("/serve/x/rollback", {"canaryConfig": {"steps": []}}),
        ("/serve/x%00/scale", {"replicas": 1}),
    ):
        assert served.post(path, body).status_code == 400

    # What is refused is refused as promotions are: code, words, remedy, unmet conditions.
    for body, status, code in (
        (good | {"canaryConfig": "5%"}, 403, "REFUSED"),
        (good | {"model": "models:/fraud/9"}, 404, "NOT_FOUND"),
        (good | {"model": "models:/fraud/0"}, 404, "NOT_FOUND"),
        (good | {"env": "nowhere"}, 404, "NOT_FOUND"),
        (good | {"resources": {"replicas": 5000}}, 403, "REFUSED"),
        (good | {"route": "../up"}, 403, "REFUSED"),
    ):
        answer = served.post("/serve/deploy", body)
        assert (answer.status_code, answer.json()["error_code"]) == (status, code), answer.text
        assert answer.json()["remedy"]
    evil = {"origin": "https://evil.example"}
    assert served.post("/serve/deploy", good, headers=evil).status_code == 403
    assert served.made() == []

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: served.post("/serve/deploy", good), range(6)))
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [201, 409, 409, 409, 409, 409]
    lost = next(answer.json() for answer in answers if answer.status_code == 409)
    assert "anonymous deployed models:/fraud/1" in lost["message"]
    assert len(served.made()) == 1


def test_the_same_errors_come_back_from_the_server(served: Served) -> None:
    port = served.port
    order = DeploymentOrder("models:/fraud/1", environment="sandbox")
    for act, error, words in (
        (lambda: port.deploy(DeploymentOrder("models:/fraud/1", environment="sandbox",
                                             canary_config='{"steps": [5, 2]}')),
         MalformedRequestError, "does not exceed"),
        (lambda: port.find("nobody"), NotFoundError, "nobody"),
        (lambda: port.find("../promotions"), NotFoundError, "no deployment"),
        (lambda: port.take("x", "y", now_ms=0, ttl_ms=1), ConfigurationError, "on the database"),
        (lambda: port.deploy(DeploymentOrder("models:/fraud/1", environment="strict")),
         RefusedError, r"ann \(claimed\) may not change what answers in strict"),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            act()
    port.deploy(order)
    with pytest.raises(ConflictError, match="ann deployed models:/fraud/1"):
        port.deploy(order)
    with pytest.raises(RefusedError, match="no rollout runs"):
        port.ask("fraud", SignalKind.PAUSE, "")


def test_a_signed_request_deploys_once_and_is_known_by_name(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer = served.scenario.signer
    assert isinstance(signer, FileSigner)
    auth = SignedRequestAuth(signer)
    body = {"model": "models:/fraud/1", "env": "strict"}
    unsigned = served.post("/serve/deploy", body)
    assert unsigned.status_code == 403
    assert "asks for the proof 'signed'" in unsigned.json()["message"]
    denied = served.post("/serve/deploy", body, auth=auth)
    assert (denied.status_code, denied.json()["error_code"]) == (403, "PROMOTION_DENIED")
    unmet = [c["name"] for c in denied.json()["decision"]["conditions"] if not c["met"]]
    assert unmet == ["approvals"]

    monkeypatch.setenv("CHANCERY_KEY", f"file:{served.scenario.home / 'approver.key'}")
    with pytest.raises(PromotionDeniedError):
        open_deployments(served.server.uri).deploy(
            DeploymentOrder("models:/fraud/1", environment="strict")
        )
    served.scenario.clear(1, "strict")
    url = f"{served.server.uri}/api/3.0/chancery/serve/deploy"
    request = requests.Request("POST", url, json=body, auth=auth).prepare()
    with requests.Session() as session:
        first = session.send(request, timeout=60)
        again = session.send(request, timeout=60)
    assert first.status_code == 201, first.text
    assert again.status_code == 403
    assert "carried out already" in again.json()["message"]
    made = served.made()
    assert [one["deployId"] for one in made] == [first.json()["deployId"]]
    created = served.events("serve:deployment:created")
    assert [event["actorproof"] for event in created] == ["signed"]
    assert created[0]["actor"] == made[0]["createdBy"] != "ann"
    assert created[0]["actorkey"]

    changed = requests.Request("POST", url, json=body, auth=auth).prepare()
    changed.body = json.dumps(body | {"route": "mine"}).encode()
    changed.headers["Content-Length"] = str(len(changed.body))
    with requests.Session() as session:
        assert session.send(changed, timeout=60).status_code == 401
    for path, wish, status in (
        ("scale", {"replicas": 1}, 200),
        ("signals", {"signal": "quarantine"}, 200),
        ("rollback", {}, 403),
        ("end", {}, 200),
    ):
        refused = served.post(f"/serve/fraud/{path}", wish)
        assert refused.status_code == 403
        assert "asks for the proof 'signed'" in refused.json()["message"]
        ours = served.post(f"/serve/fraud/{path}", wish, auth=auth)
        assert ours.status_code == status, ours.text
    assert len(served.made()) == 1


def test_basic_auth_guards_the_routes_and_names_the_actor(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, home = tmp_path / "basic_auth.ini", tmp_path / "chancery"
    settings.write_text(
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = sqlite:///{tmp_path}/auth.db\n"
        "admin_username = admin\n"
        "admin_password = a-long-password-1\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    server = start_server(
        workers=1,
        environment={
            "CHANCERY_HOME": str(home),
            "CHANCERY_BASIC_AUTH": "1",
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-test-secret",
        },
    )
    monkeypatch.setenv("CHANCERY_HOME", str(tmp_path / "client"))
    url = f"{server.uri}/api/3.0/chancery/serve"
    body = {"model": "models:/fraud/1", "env": "sandbox"}
    for credentials in (None, ("admin", "wrong")):
        assert requests.get(url, auth=credentials, timeout=30).status_code == 401
        answer = requests.post(f"{url}/deploy", json=body, auth=credentials, timeout=30)
        assert answer.status_code == 401
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-long-password-1")
    scenario = Scenario(server.uri, home)
    scenario.train()
    record = open_deployments(server.uri).deploy(
        DeploymentOrder("models:/fraud/1", environment="sandbox")
    )
    assert record.created_by == "admin"
    event = [e for e in scenario.events() if e["type"] == "serve:deployment:created"][-1]
    assert (event["actor"], event["actorproof"]) == ("admin", "basic-auth")
