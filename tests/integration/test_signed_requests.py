"""MLflow's own client, signed by our provider, against a governed app behind a real server."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread
import mlflow
import pytest
import requests
import uvicorn
from mlflow.exceptions import MlflowException, RestException
from mlflow.server.fastapi_app import _EfficientWSGIMiddleware
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request, verify_rest_response
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from governance.database import connect, nonces
from governance.errors import ReplayError
from governance.identity import current_actor
from governance.nonces import Attempt, NonceStore
from governance.signing.keys import FileSigner, create_key
from mlflow_plugins.middleware import GovernanceMiddleware
from mlflow_plugins.request_auth import SignedRequestAuth
from tests.conftest import free_port

pytestmark = pytest.mark.filterwarnings("ignore::governance.signing.keys.DevelopmentKeyWarning")

SEALED = "1/models/m-sealed/artifacts"


@dataclass
class World:
    """A governed server in this process, and what reached its application."""

    uri: str = ""
    statuses: list[int] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    key: Path = Path()

    async def endpoint(self, request: Request) -> JSONResponse:
        body = await request.body()
        # read in a worker thread, as MLflow's handlers do
        actor = await anyio.to_thread.run_sync(current_actor)
        self.seen.append(
            {
                "method": request.method,
                "sha256": hashlib.sha256(body).hexdigest(),
                "path": request.scope["path"],
                "actor": actor,
                "authorization": request.headers.get("authorization"),
                "nonce": request.headers.get("signature-input", ""),
            }
        )
        return JSONResponse({"ok": True}, self.statuses.pop(0) if self.statuses else 200)

    def flask_like(self, environ: Any, start_response: Callable[..., Any]) -> list[bytes]:
        body = environ["wsgi.input"].read()
        self.seen.append({"sha256": hashlib.sha256(body).hexdigest(), "actor": current_actor()})
        start_response("200 OK", [("Content-Type", "application/json")])
        return [b"{}"]


def serve(app: Any, **options: Any) -> tuple[uvicorn.Server, threading.Thread, int]:
    port = free_port()
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.02)
    return server, thread, port


@pytest.fixture(params=["", "/behind/proxy"], ids=["plain", "root-path"])
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    key = create_key(tmp_path / "alice.pem")
    engine = connect(f"sqlite:///{tmp_path / 'nonces.db'}")
    nonces.create(engine)
    made = World(key=tmp_path / "alice.pem")
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    inner = Starlette(
        routes=[
            Mount("/flask", _EfficientWSGIMiddleware(made.flask_like)),
            Route("/{path:path}", made.endpoint, methods=methods),
        ]
    )
    people = {key.keyid: ("alice", key.public_key_pem)}
    app = GovernanceMiddleware(
        inner,
        key_lookup=people.get,
        nonces=NonceStore(engine),
        is_sealed=lambda path, method: "it is signed" if path.startswith(SEALED) else None,
        on_rejected=lambda reason, details: made.rejected.append(reason),
        body_limit=1_000_000,
    )
    prefix = request.param
    server, thread, port = serve(app, root_path=prefix)
    made.uri = f"http://127.0.0.1:{port}"
    stop_proxy = None
    if prefix:  # a proxy that strips the prefix, which the server adds again for the signature
        made.uri, stop_proxy = stripping_proxy(port, prefix)
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "chancery")
    monkeypatch.setenv("CHANCERY_KEY", f"file:{made.key}")
    yield made
    if stop_proxy:
        stop_proxy()
    server.should_exit = True
    thread.join(20)
    engine.dispose()


def stripping_proxy(port: int, prefix: str) -> tuple[str, Callable[[], None]]:
    """A reverse proxy as small as can be: it cuts the prefix off each request line."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def handle(client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", port)) as upstream:
            head = b""
            while b"\r\n\r\n" not in head:
                data = client.recv(1 << 16)
                if not data:
                    return
                head += data
            # one request a connection keeps this honest and short
            lines = head.replace(f" {prefix}/".encode(), b" /", 1).split(b"\r\n")
            lines = [line for line in lines if not line.lower().startswith(b"connection:")]
            head = b"\r\n".join([lines[0], b"Connection: close", *lines[1:]])
            upstream.sendall(head)
            back = threading.Thread(target=pump, args=(upstream, client), daemon=True)
            back.start()
            threading.Thread(target=pump, args=(client, upstream), daemon=True).start()
            back.join(60)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(client,), daemon=True).start()

    def stop() -> None:
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() does not
        listener.close()

    threading.Thread(target=accept, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}{prefix}", stop


def call(world: World, method: str, endpoint: str, **arguments: Any) -> requests.Response:
    creds = get_default_host_creds(world.uri)
    return http_request(creds, endpoint, method, backoff_factor=0.01, **arguments)


def test_mlflow_s_client_acts_as_the_key_s_person(world: World) -> None:
    response = call(world, "POST", "/api/2.0/mlflow/runs/create", json={"experiment_id": "0"})
    assert response.status_code == 200
    actor = world.seen[0]["actor"]
    assert (actor.id, actor.proof) == ("alice", "signed")
    assert actor.traceparent


def test_mlflow_s_retry_of_a_failed_request_is_accepted(world: World) -> None:
    world.statuses = [503, 200]
    response = call(world, "POST", "/api/2.0/mlflow/runs/create", json={"experiment_id": "0"})
    assert response.status_code == 200
    assert len(world.seen) == 2
    assert world.seen[0]["nonce"] == world.seen[1]["nonce"], "the client sends the same signature"
    assert world.rejected == []


def test_a_recorded_request_cannot_be_played_back(world: World) -> None:
    auth = SignedRequestAuth(FileSigner(world.key))
    request = requests.Request("POST", f"{world.uri}/api/x", json={"a": 1}, auth=auth).prepare()
    with requests.Session() as session:
        assert session.send(request).status_code == 200
        again = session.send(request)
    assert again.status_code == 403
    assert again.json()["error_code"] == "PERMISSION_DENIED"
    assert len(world.seen) == 1


def test_mlflow_s_client_shows_why_it_was_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_key(tmp_path / "mallory.pem")
    monkeypatch.setenv("CHANCERY_KEY", f"file:{tmp_path / 'mallory.pem'}")
    response = call(world, "POST", "/api/2.0/mlflow/runs/create", json={})
    with pytest.raises(RestException, match="not in the trust roots") as caught:
        verify_rest_response(response, "/api/2.0/mlflow/runs/create")
    assert caught.value.error_code == "UNAUTHENTICATED"


def test_user_name_and_password_go_along(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "bob")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pw")
    call(world, "POST", "/api/2.0/mlflow/runs/create", json={})
    assert world.seen[0]["authorization"] == "Basic Ym9iOnB3"
    assert world.seen[0]["actor"].proof == "signed"
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    parts = urlsplit(world.uri)
    world.uri = f"{parts.scheme}://bob:pw@{parts.netloc}{parts.path}"
    call(world, "POST", "/api/2.0/mlflow/runs/create", json={})
    assert world.seen[1]["authorization"] == "Basic Ym9iOnB3"


@pytest.mark.parametrize("size", [0, 1, 999_999, 1_000_001, 5_000_000])
@pytest.mark.parametrize("name", ["model.bin", "a b+c%20ü.bin"])
def test_artifacts_of_any_size_upload_through_mlflow(
    world: World, tmp_path: Path, size: int, name: str
) -> None:
    file = tmp_path / name
    file.write_bytes(b"\x5a" * size)
    repository = HttpArtifactRepository(f"{world.uri}/api/2.0/mlflow-artifacts/artifacts/1/r")
    repository.log_artifact(str(file))
    assert world.seen[0]["method"] == "PUT"
    assert world.seen[0]["sha256"] == hashlib.sha256(b"\x5a" * size).hexdigest()
    assert world.seen[0]["actor"].proof == "signed"


def test_a_failed_upload_is_sent_again_whole(world: World, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"\x5a" * 3_000_000)
    world.statuses = [503, 200]
    HttpArtifactRepository(f"{world.uri}/api/2.0/mlflow-artifacts/artifacts/1/r").log_artifact(
        str(file)
    )
    assert len(world.seen) == 2
    assert {seen["sha256"] for seen in world.seen} == {
        hashlib.sha256(b"\x5a" * 3_000_000).hexdigest()
    }


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_a_sealed_artifact_is_refused_and_the_reason_is_read(
    world: World, tmp_path: Path, size: int
) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"\x5a" * size)
    repository = HttpArtifactRepository(f"{world.uri}/api/2.0/mlflow-artifacts/artifacts/{SEALED}")
    with pytest.raises((MlflowException, requests.HTTPError), match="it is signed"):
        repository.log_artifact(str(file))
    assert world.seen == []


@pytest.mark.parametrize("size", [4, 3_000_000])
def test_chunked_uploads(world: World, size: int) -> None:
    auth = SignedRequestAuth(FileSigner(world.key))
    data = b"\x5a" * size

    def parts() -> Iterator[bytes]:
        for start in range(0, size, 65536):
            yield data[start : start + 65536]

    # a body that can be read once is spooled, so its length is known
    assert requests.put(f"{world.uri}/up", data=parts(), auth=auth).status_code == 200
    # a body that is sent in chunks although it was signed before
    request = requests.Request("PUT", f"{world.uri}/up", data=data, auth=auth).prepare()
    del request.headers["Content-Length"]
    request.body = parts()
    request.headers["Transfer-Encoding"] = "chunked"
    with requests.Session() as session:
        assert session.send(request).status_code == 200
    assert [seen["sha256"] for seen in world.seen] == [hashlib.sha256(data).hexdigest()] * 2


@pytest.mark.parametrize("path", ["/up", "/flask/up"])
@pytest.mark.parametrize("size", [1000, 3_000_000])
def test_a_body_changed_on_its_way_never_reaches_the_application(
    world: World, path: str, size: int
) -> None:
    auth = SignedRequestAuth(FileSigner(world.key))
    request = requests.Request("PUT", world.uri + path, data=b"a" * size, auth=auth).prepare()
    right = request.body
    with requests.Session() as session:
        request.body = b"a" * (size - 1) + b"b"
        wrong = session.send(request)
        assert wrong.status_code == 401
        assert "body" in wrong.json()["message"]
        assert world.seen == []
        request.body = right
        assert session.send(request).status_code == 200
    assert world.seen[0]["actor"].id == "alice"


def test_an_upload_that_breaks_off_may_be_sent_again(world: World) -> None:
    auth = SignedRequestAuth(FileSigner(world.key))
    request = requests.Request(
        "PUT", f"{world.uri}/flask/up", data=b"a" * 3_000_000, auth=auth
    ).prepare()
    parts = urlsplit(request.url or "")
    head = f"PUT {request.path_url} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as broken:
        broken.sendall(head.encode() + b"\r\n" + b"a" * 2_000_000)
    deadline = time.monotonic() + 15
    with requests.Session() as session:
        while (answer := session.send(request)).status_code == 503:  # being carried out
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert answer.status_code == 200
    assert len(world.seen) == 1


def test_a_signed_request_follows_no_redirect_to_elsewhere(world: World) -> None:
    """The signature names the path; on another one it is void instead of being made anew."""
    auth = SignedRequestAuth(FileSigner(world.key))
    request = requests.Request("POST", f"{world.uri}/a", data=b"x", auth=auth).prepare()
    request.url = f"{world.uri}/b"
    with requests.Session() as session:
        assert session.send(request).status_code == 401
    assert world.seen == []


@pytest.mark.parametrize("before", ["nothing", "failed"])
def test_on_postgresql_one_of_sixteen_begins(postgres_uri: str, before: str) -> None:
    engine = connect(postgres_uri)
    nonces.create(engine)
    stores = [NonceStore(engine) for _ in range(16)]
    request = ("a" * 64, "n" * 22, "d" * 64)
    if before == "failed":
        stores[0].begin(*request)
        stores[0].finish(*request[:2], 503)
    barrier = threading.Barrier(16)

    def begin(store: NonceStore) -> Attempt:
        barrier.wait()
        return store.begin(*request)

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(begin, stores))
    begun = Attempt.FIRST if before == "nothing" else Attempt.AGAIN
    assert found.count(begun) == 1
    assert found.count(Attempt.BUSY) == 15
    stores[3].finish(*request[:2], 200)
    with pytest.raises(ReplayError):
        stores[7].begin(*request)
    engine.dispose()


def test_plain_mlflow_without_a_key_is_only_claimed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_AUTH")
    monkeypatch.setenv("CHANCERY_ACTOR", "alice")
    assert mlflow.__version__
    call(world, "POST", "/api/2.0/mlflow/runs/create", json={})
    actor = world.seen[0]["actor"]
    assert (actor.id, actor.proof, actor.keyid) == ("alice", "claimed", None)
