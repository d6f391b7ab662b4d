"""Sealed artifacts cannot be changed through any route, in any spelling."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from governance.errors import RefusedError
from mlflow_plugins.artifact_routes import artifact_changes, match_artifact_route
from tests.unit.identity.governed_app import Governed

SEALED = "1/models/m-abc/artifacts"
PROXY = "/api/2.0/mlflow-artifacts/artifacts"


@pytest.fixture
def client(governed: Governed) -> TestClient:
    governed.sealed = {SEALED, "runs:/r1", "models:/m-1"}
    return governed.client()


def assert_sealed(answer: Any, governed: Governed) -> None:
    assert answer.status_code == 403, answer.text
    assert answer.json()["error_code"] == "PERMISSION_DENIED"
    assert governed.carried_out == []
    assert len(governed.rejected) == 1


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST", "PATCH", "BREW"])
@pytest.mark.parametrize(
    "path",
    [
        f"{PROXY}/{SEALED}/MLmodel",
        f"{PROXY}/{SEALED}",
        f"{PROXY}/{SEALED}/",
        f"/ajax-api/2.0/mlflow-artifacts/artifacts/{SEALED}/a/b",
        f"/some/static/prefix{PROXY}/{SEALED}/MLmodel",
        f"{PROXY}/x{PROXY}/{SEALED}/MLmodel",
        f"{PROXY}/1%2Fmodels%2Fm-abc%2Fartifacts/MLmodel",
        f"{PROXY}/1%252Fmodels%25252Fm-abc/artifacts/MLmodel",
        f"{PROXY}/1/models/%6D-abc/artifacts/MLmodel",
        f"{PROXY}/1/models/%256D-abc/artifacts/MLmodel",
        f"{PROXY}/1/models/x/../m-abc/artifacts/MLmodel",
        f"{PROXY}/1/models/x/%2e%2e/m-abc/artifacts/MLmodel",
        f"{PROXY}/1/models/x/%252e%252e/m-abc/artifacts/MLmodel",
        f"{PROXY}/1/./models//m-abc/artifacts/MLmodel",
        f"{PROXY}//1/models/m-abc/artifacts/MLmodel",
        f"{PROXY}/%2F1/models/m-abc/artifacts/MLmodel",
        f"//api//2.0//mlflow-artifacts//artifacts//{SEALED}/MLmodel",
        f"{PROXY}/file:{SEALED}/MLmodel",
        f"{PROXY}/file%3A{SEALED}/MLmodel",
        f"{PROXY}/file:file:{SEALED}/MLmodel",
        f"{PROXY}/{SEALED}%3F",
        f"{PROXY}/{SEALED}%23/MLmodel",
        f"{PROXY}/1/MODELS/M-ABC/artifacts/mlmodel",
        f"/API/2.0/MLFLOW-ARTIFACTS/artifacts/{SEALED}/MLmodel",
        f"{PROXY}/%2e%2e/{SEALED}/MLmodel",
    ],
)
def test_a_sealed_path_is_refused_however_it_is_spelled(
    governed: Governed, client: TestClient, method: str, path: str
) -> None:
    assert_sealed(client.request(method, f"http://testserver{path}", content=b"evil"), governed)


@pytest.mark.parametrize("above", ["", "/", "/1", "/1/models", "/1/models/m-abc", "/1%2Fmodels"])
def test_what_lies_above_a_seal_cannot_be_deleted(
    governed: Governed, client: TestClient, above: str
) -> None:
    assert_sealed(client.delete(f"{PROXY}{above}"), governed)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", f"{PROXY}/1/models/m-other/artifacts/MLmodel"),
        ("PUT", f"{PROXY}/1/models/m-abc/artifacts-not/MLmodel"),
        ("PUT", f"{PROXY}/1/models/m-abc/notes.txt"),
        ("DELETE", f"{PROXY}/2"),
        ("GET", f"{PROXY}/{SEALED}/MLmodel"),
        ("HEAD", f"{PROXY}/{SEALED}/MLmodel"),
        ("GET", f"/api/2.0/mlflow-artifacts/presigned/{SEALED}/MLmodel"),
        ("POST", "/api/2.0/mlflow/runs/create"),
    ],
)
def test_what_is_not_sealed_goes_on(
    governed: Governed, client: TestClient, method: str, path: str
) -> None:
    assert client.request(method, path, content=b"{}").status_code in (200, 405)
    assert governed.rejected == []


@pytest.mark.parametrize("verb", ["create", "complete", "abort"])
@pytest.mark.parametrize("api", ["api", "ajax-api", "prefix/api"])
@pytest.mark.parametrize(
    ("below", "body"),
    [
        (SEALED, {"path": "MLmodel"}),
        (f"{SEALED}/data", {"path": "model.pkl", "num_parts": 2}),
        ("1/models/m-abc", {"path": "artifacts"}),
        ("1/models/m-abc", {"path": "/tmp/x/artifacts"}),
        ("1%2Fmodels/m-abc/artifacts", {"path": "x"}),
        ("1/models/m-other", {"path": ".."}),
        ("1/models/m-other", {"path": 3}),
        ("1/models/m-other", {}),
        ("1/models/m-other", []),
        ("1/models/m-abc", json.dumps({"path": "artifacts"})),
    ],
)
def test_multipart_uploads_are_judged_by_path_and_body(
    governed: Governed, client: TestClient, verb: str, api: str, below: str, body: Any
) -> None:
    path = f"/{api}/2.0/mlflow-artifacts/mpu/{verb}/{below}"
    assert_sealed(client.post(path, json=body), governed)


def test_a_multipart_upload_elsewhere_goes_on_with_its_body(
    governed: Governed, client: TestClient
) -> None:
    answer = client.post(
        "/api/2.0/mlflow-artifacts/mpu/create/1/r/artifacts", json={"path": "big.bin"}
    )
    assert json.loads(answer.json()["body"]) == {"path": "big.bin"}


def test_a_body_that_is_not_json_is_refused(governed: Governed, client: TestClient) -> None:
    path = "/api/2.0/mlflow-artifacts/mpu/create/1/r/artifacts"
    assert_sealed(client.post(path, content=b"path=artifacts"), governed)


def test_a_body_too_long_to_judge_is_refused(governed: Governed) -> None:
    client = governed.client(body_limit=10)
    path = "/api/2.0/mlflow-artifacts/mpu/create/1/r/artifacts"
    answer = client.post(path, content=iter([b'{"path": ', b'"big.bin"}']))
    assert_sealed(answer, governed)


@pytest.mark.parametrize("query", ["run_uuid=r1&path=a", "run_uuid=x&run_uuid=r1&path=a&path=b"])
def test_uploads_by_run(governed: Governed, client: TestClient, query: str) -> None:
    path = f"/ajax-api/2.0/mlflow/upload-artifact?{query}"
    assert_sealed(client.post(path, content=b"evil"), governed)


def test_uploads_to_another_run_go_on(governed: Governed, client: TestClient) -> None:
    path = "/ajax-api/2.0/mlflow/upload-artifact?run_uuid=r2&path=a"
    assert client.post(path, content=b"fine").status_code == 200
    assert governed.carried_out[0]["body"] == "fine"


@pytest.mark.parametrize(
    "body",
    [
        {"run_id": "r1", "path": "a"},
        {"runId": "r1", "path": "a"},
        {"model_id": "m-1", "path": "a"},
        {"modelId": "m-1", "path": "a"},
        {"run_id": "r2", "model_id": "m-1", "path": "a"},
        {"run_id": "r1"},
        {"run_id": "r2", "path": "../r1/a"},
    ],
)
def test_presigned_uploads(governed: Governed, client: TestClient, body: dict[str, str]) -> None:
    path = "/api/2.0/mlflow/artifacts/presigned-upload-url"
    assert_sealed(client.post(path, json=body), governed)


def test_without_an_answer_about_owners_such_routes_are_closed(governed: Governed) -> None:
    app = governed.app()
    app._is_owner_sealed = None
    path = "/ajax-api/2.0/mlflow/upload-artifact?run_uuid=r2&path=a"
    assert_sealed(TestClient(app).post(path, content=b"x"), governed)


def test_a_workspace_is_looked_into(governed: Governed) -> None:
    governed.sealed = {f"workspaces/team/{SEALED}"}
    client = governed.client()
    path = f"{PROXY}/{SEALED}/MLmodel"
    assert client.put(path, content=b"x").status_code == 200
    headers = {"X-MLFLOW-WORKSPACE": "team"}
    assert client.put(path, content=b"x", headers=headers).status_code == 403
    twice = [("X-MLFLOW-WORKSPACE", "other"), ("X-MLFLOW-WORKSPACE", "team")]
    assert client.put(path, content=b"x", headers=twice).status_code == 403


def test_a_signed_upload_to_a_sealed_path_is_refused_and_final(governed: Governed) -> None:
    governed.sealed = {SEALED}
    path = f"{PROXY}/{SEALED}/MLmodel"
    headers = governed.sign("PUT", path, b"evil")
    assert_sealed(governed.client().put(path, content=b"evil", headers=headers), governed)
    assert governed.rejected[0][2] == "alice"


@pytest.mark.parametrize(
    "path", ["1/models/x/../m-abc/artifacts/a", "..", "a/..", "/1", "%2E%2e/a"]
)
def test_dots_that_a_client_would_remove_are_refused(path: str) -> None:
    matched = match_artifact_route(f"{PROXY}/{path}")
    assert matched is not None
    with pytest.raises(RefusedError):
        artifact_changes(*matched, query="", body=b"", workspace=None)


@pytest.mark.timeout(10)
def test_a_hostile_path_costs_little() -> None:
    assert match_artifact_route("/" * 60_000) is None
    assert match_artifact_route("/api/2.0" * 8_000) is None
    assert match_artifact_route("/api" + "/" * 60_000 + "2.0/mlflow") is None


def test_mlflow_has_no_mutating_artifact_route_that_is_unknown_here() -> None:
    """Fails when MLflow adds one: decide then whether it can change a sealed artifact."""
    from mlflow.server import app as flask_app
    from mlflow.server.artifact_router import artifact_router

    reading = {
        "/api/2.0/mlflow/artifacts/presigned-download-url",
        "/ajax-api/2.0/mlflow/artifacts/presigned-download-url",
    }
    found = {
        (rule.rule, method)
        for rule in flask_app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"GET", "HEAD", "OPTIONS"}
        if any(word in rule.rule for word in ("artifact", "upload", "presign", "/mpu/", "files"))
    } | {
        (route.path, method)
        for route in artifact_router.routes
        for method in getattr(route, "methods", set()) - {"GET", "HEAD"}
    }
    assert len(found) > 10
    for rule, method in found:
        path = rule.replace("<path:artifact_path>", "a").replace("{artifact_path:path}", "a")
        if rule not in reading:
            assert match_artifact_route(path), f"{method} {rule} is not governed"
