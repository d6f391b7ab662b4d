"""The middleware: who acts, and every attack on that."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from governance.identity import current_actor
from governance.nonces import STALE_SECONDS, NonceStore
from governance.signing.keys import create_key
from tests.unit.identity.governed_app import Governed, basic

TARGET = "/api/2.0/mlflow/runs/create?x=1"
BODY = b'{"experiment_id": "0"}'
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def refused(response: Any, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    assert response.json()["error_code"] == code
    return str(response.json()["message"])


class TestActor:
    def test_a_valid_signature_is_the_key_s_person(self, governed: Governed) -> None:
        headers = governed.sign("POST", TARGET, BODY) | {
            "X-Chancery-Actor": "somebody else",
            "X-Chancery-Code-Ref": COMMIT,
            "traceparent": TRACE,
        }
        answer = governed.client().post(TARGET, content=BODY, headers=headers)
        assert answer.status_code == 200
        assert answer.json() == {
            "method": "POST",
            "path": "/api/2.0/mlflow/runs/create",
            "body": BODY.decode(),
            "actor": "alice",
            "proof": "signed",
            "keyid": governed.signer.keyid,
            "code_ref": COMMIT,
            "traceparent": TRACE,
        }

    def test_a_name_without_a_signature_is_only_claimed(self, governed: Governed) -> None:
        headers = governed.sign("POST", TARGET, BODY)
        del headers["Signature"], headers["Signature-Input"]
        headers["X-Chancery-Actor"] = "alice"
        answer = governed.client().post(TARGET, content=BODY, headers=headers)
        assert (answer.json()["actor"], answer.json()["proof"]) == ("alice", "claimed")
        assert answer.json()["keyid"] is None

    def test_nothing_said_is_anonymous(self, governed: Governed) -> None:
        answer = governed.client().get("/")
        assert (answer.json()["actor"], answer.json()["proof"]) == ("anonymous", "anonymous")

    def test_the_actor_ends_with_the_request(self, governed: Governed) -> None:
        governed.client().get("/", headers={"X-Chancery-Actor": "alice"})
        assert current_actor().id != "alice"

    def test_a_name_is_percent_decoded(self, governed: Governed) -> None:
        answer = governed.client().get("/", headers={"X-Chancery-Actor": "J%C3%BCrgen %25"})
        assert answer.json()["actor"] == "Jürgen %"

    @pytest.mark.parametrize("name", ["a%0Ab", "a%00b", "a" * 257, "%1B[31m"])
    def test_a_name_that_is_no_name_is_refused(self, governed: Governed, name: str) -> None:
        refused(
            governed.client().get("/", headers={"X-Chancery-Actor": name}),
            403,
            "PERMISSION_DENIED",
        )
        assert "\n" not in governed.rejected[0][1]["claimed"]

    def test_two_names_are_refused(self, governed: Governed) -> None:
        names = [("X-Chancery-Actor", "alice"), ("X-Chancery-Actor", "bob")]
        refused(governed.client().get("/", headers=names), 403, "PERMISSION_DENIED")

    def test_claims_that_are_malformed_are_ignored(self, governed: Governed) -> None:
        headers = {"X-Chancery-Code-Ref": "HEAD; rm -rf /", "traceparent": f"{TRACE} {TRACE}"}
        answer = governed.client().get("/", headers=headers)
        assert answer.json()["code_ref"] is None
        assert answer.json()["traceparent"] is None


class TestBasicAuth:
    @staticmethod
    def client(governed: Governed) -> TestClient:
        return governed.client(basic_auth=True, password_check=lambda n, p: (n, p) == ("bob", "pw"))

    def test_a_confirmed_password_proves_the_name(self, governed: Governed) -> None:
        answer = self.client(governed).get("/", headers=basic("bob", "pw"))
        assert (answer.json()["actor"], answer.json()["proof"]) == ("bob", "basic-auth")

    def test_a_wrong_password_proves_nothing(self, governed: Governed) -> None:
        answer = self.client(governed).get("/", headers=basic("bob", "wrong"))
        assert answer.json()["proof"] == "anonymous"

    def test_without_basic_auth_the_header_is_not_looked_at(self, governed: Governed) -> None:
        answer = governed.client().get("/", headers=basic("bob", "pw"))
        assert answer.json()["proof"] == "anonymous"

    def test_a_signature_goes_before_a_password(self, governed: Governed) -> None:
        headers = governed.sign("GET", "/") | basic("bob", "pw")
        answer = self.client(governed).get("/", headers=headers)
        assert (answer.json()["actor"], answer.json()["proof"]) == ("alice", "signed")

    @pytest.mark.parametrize("prefix", ["", "/static/prefix", "/"])
    def test_our_api_wants_proof(self, governed: Governed, prefix: str) -> None:
        client = self.client(governed)
        path = f"http://testserver{prefix}/api/3.0/chancery/x"
        answer = client.get(path, headers={"X-Chancery-Actor": "bob"})
        refused(answer, 401, "UNAUTHENTICATED")
        assert answer.headers["www-authenticate"].startswith("Basic")
        refused(client.get(path, headers=basic("bob", "wrong")), 401, "UNAUTHENTICATED")
        assert client.get(path, headers=basic("bob", "pw")).status_code == 200


class TestWrongSignatures:
    @pytest.mark.parametrize(
        ("target", "body", "method"),
        [
            (TARGET, b'{"experiment_id": "1"}', "POST"),
            (TARGET, b"", "POST"),
            (TARGET, BODY + b" ", "POST"),
            ("/api/2.0/mlflow/runs/delete?x=1", BODY, "POST"),
            ("/api/2.0/mlflow/runs/create?x=2", BODY, "POST"),
            ("/api/2.0/mlflow/runs/create", BODY, "POST"),
            ("/api/2.0/mlflow/runs/%63reate?x=1", BODY, "POST"),
            (TARGET, BODY, "PUT"),
        ],
    )
    def test_a_changed_request_is_refused(
        self, governed: Governed, target: str, body: bytes, method: str
    ) -> None:
        headers = governed.sign("POST", TARGET, BODY)
        answer = governed.client().request(method, target, content=body, headers=headers)
        refused(answer, 401, "UNAUTHENTICATED")
        assert governed.carried_out == []
        (reason, details, actor) = governed.rejected[0]
        assert reason == answer.json()["message"]
        assert details["method"] == method
        assert actor in ("anonymous", "alice")  # never the server's own user

    @pytest.mark.parametrize("age", [301, -301])
    def test_an_old_or_future_request_is_refused(self, governed: Governed, age: int) -> None:
        headers = governed.sign("POST", TARGET, BODY, age=age)
        answer = governed.client().post(TARGET, content=BODY, headers=headers)
        assert "clock" in refused(answer, 401, "UNAUTHENTICATED")
        assert governed.carried_out == []

    def test_an_unknown_key_is_refused(self, governed: Governed, tmp_path: Path) -> None:
        mallory = create_key(tmp_path / "mallory.pem")
        headers = governed.sign("POST", TARGET, BODY, signer=mallory)
        answer = governed.client().post(TARGET, content=BODY, headers=headers)
        assert "trust roots" in refused(answer, 401, "UNAUTHENTICATED")

    def test_two_signatures_are_refused(self, governed: Governed) -> None:
        headers = [
            *governed.sign("POST", TARGET, BODY).items(),
            *governed.sign("POST", TARGET, BODY, nonce="m" * 22).items(),
        ]
        refused(
            governed.client().post(TARGET, content=BODY, headers=headers), 401, "UNAUTHENTICATED"
        )

    @pytest.mark.parametrize("kept", ["Signature", "Signature-Input"])
    def test_half_a_signature_does_not_fall_back_to_a_claim(
        self, governed: Governed, kept: str
    ) -> None:
        headers = {kept: governed.sign("POST", TARGET, BODY)[kept], "X-Chancery-Actor": "alice"}
        refused(
            governed.client().post(TARGET, content=BODY, headers=headers), 401, "UNAUTHENTICATED"
        )

    def test_a_line_end_in_a_header_does_not_reach_the_base(self, governed: Governed) -> None:
        headers = governed.sign("POST", TARGET, BODY)
        headers["Content-Digest"] += '\n"@path": /evil'
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        refused(governed.client().post(TARGET, content=BODY, headers=raw), 401, "UNAUTHENTICATED")

    def test_a_get_is_verified_too(self, governed: Governed) -> None:
        headers = governed.sign("GET", "/a")
        assert governed.client().get("/a", headers=headers).status_code == 200
        refused(governed.client().get("/b", headers=headers), 401, "UNAUTHENTICATED")


class TestReplays:
    def test_a_replay_is_refused(self, governed: Governed) -> None:
        headers = governed.sign("POST", TARGET, BODY)
        client = governed.client()
        assert client.post(TARGET, content=BODY, headers=headers).status_code == 200
        answer = client.post(TARGET, content=BODY, headers=headers)
        assert "REPLAYED_REQUEST" in refused(answer, 403, "PERMISSION_DENIED")
        assert len(governed.carried_out) == 1

    @pytest.mark.parametrize("status", [500, 503, 429])
    def test_a_retry_is_no_replay(self, governed: Governed, status: int) -> None:
        governed.statuses = [status, status, 200]
        headers = governed.sign("POST", TARGET, BODY)
        client = governed.client()
        answers = [client.post(TARGET, content=BODY, headers=headers) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [status, status, 200, 403]
        assert len(governed.carried_out) == 3

    def test_a_nonce_serves_one_request(self, governed: Governed) -> None:
        governed.statuses = [503]
        client = governed.client()
        client.post(TARGET, content=BODY, headers=governed.sign("POST", TARGET, BODY))
        other = governed.sign("POST", TARGET, b"{}")
        refused(client.post(TARGET, content=b"{}", headers=other), 403, "PERMISSION_DENIED")
        assert len(governed.carried_out) == 1

    def test_a_get_may_be_repeated(self, governed: Governed) -> None:
        headers = governed.sign("GET", "/a")
        client = governed.client()
        assert {client.get("/a", headers=headers).status_code for _ in range(3)} == {200}

    def test_a_wrong_body_does_not_use_the_nonce_up(self, governed: Governed) -> None:
        headers = governed.sign("POST", TARGET, BODY)
        client = governed.client()
        assert client.post(TARGET, content=b"evil", headers=headers).status_code == 401
        assert client.post(TARGET, content=BODY, headers=headers).status_code == 200

    def test_an_application_that_breaks_may_be_tried_again(self, governed: Governed) -> None:
        governed.statuses = ["not a status"]  # type: ignore[list-item]
        headers = governed.sign("POST", TARGET, BODY)
        client = governed.client()
        assert client.post(TARGET, content=BODY, headers=headers).status_code == 500
        assert client.post(TARGET, content=BODY, headers=headers).status_code == 200

    def test_of_eight_at_once_exactly_one_is_carried_out(self, governed: Governed) -> None:
        headers = governed.sign("POST", TARGET, BODY)
        clients = [governed.client() for _ in range(8)]
        barrier = threading.Barrier(8)

        def post(client: TestClient) -> int:
            barrier.wait()
            return client.post(TARGET, content=BODY, headers=headers).status_code

        with ThreadPoolExecutor(8) as pool:
            statuses = sorted(pool.map(post, clients))
        assert len(governed.carried_out) == 1
        assert statuses[0] == 200
        assert set(statuses[1:]) <= {403, 503}

    def test_a_running_request_is_not_started_again(self, governed: Governed) -> None:
        headers = governed.sign("POST", TARGET, BODY)
        client = governed.client()
        assert client.post(TARGET, content=b"evil", headers=headers).status_code == 401
        with governed.nonces._engine.begin() as connection:
            connection.exec_driver_sql("UPDATE chancery_nonces SET state = 'running'")
        refused(client.post(TARGET, content=BODY, headers=headers), 503, "TEMPORARILY_UNAVAILABLE")
        governed.clock.advance(STALE_SECONDS)
        assert client.post(TARGET, content=BODY, headers=headers).status_code == 200

    def test_the_answer_is_recorded_before_the_client_sees_it(self, governed: Governed) -> None:
        order: list[str] = []

        class Watched(NonceStore):
            def finish(self, keyid: str, nonce: str, status: int) -> None:
                super().finish(keyid, nonce, status)
                order.append("recorded")

        app = governed.app(nonces=Watched(governed.nonces._engine, clock=governed.clock))

        async def watching(scope: Any, receive: Any, send: Any) -> None:
            async def answer(message: Any) -> None:
                order.append(message["type"])
                await send(message)

            await app(scope, receive, answer)

        headers = governed.sign("POST", TARGET, BODY)
        assert TestClient(watching).post(TARGET, content=BODY, headers=headers).status_code == 200
        assert order[:2] == ["recorded", "http.response.start"]


class TestBrokenCollaborators:
    def test_a_broken_key_lookup_refuses(self, governed: Governed) -> None:
        governed.broken = "key_lookup"
        headers = governed.sign("POST", TARGET, BODY)
        answer = governed.client().post(TARGET, content=BODY, headers=headers)
        refused(answer, 503, "TEMPORARILY_UNAVAILABLE")
        assert "database" not in answer.text
        assert governed.carried_out == []

    def test_a_broken_seal_lookup_refuses(self, governed: Governed) -> None:
        governed.broken = "is_sealed"
        answer = governed.client().put("/api/2.0/mlflow-artifacts/artifacts/a", content=b"x")
        refused(answer, 503, "TEMPORARILY_UNAVAILABLE")

    def test_a_broken_nonce_store_refuses(self, governed: Governed) -> None:
        with governed.nonces._engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE chancery_nonces")
        headers = governed.sign("POST", TARGET, BODY)
        answer = governed.client().post(TARGET, content=BODY, headers=headers)
        refused(answer, 503, "TEMPORARILY_UNAVAILABLE")
        assert governed.carried_out == []

    def test_a_broken_audit_still_refuses(
        self, governed: Governed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(reason: str, details: dict[str, Any]) -> None:
            raise OSError("no audit")

        monkeypatch.setattr(governed, "on_rejected", broken)
        headers = governed.sign("POST", TARGET, BODY, age=999)
        answer = governed.client().post(TARGET, content=BODY, headers=headers)
        refused(answer, 401, "UNAUTHENTICATED")

    def test_a_websocket_is_not_let_in(self, governed: Governed) -> None:
        from starlette.websockets import WebSocketDisconnect

        with (
            pytest.raises(WebSocketDisconnect) as caught,
            governed.client().websocket_connect("/ws"),
        ):
            pass
        assert caught.value.code == 1008


class TestOrigin:
    @pytest.mark.parametrize("api", ["api", "ajax-api", "p/api", "API", "/api"])
    @pytest.mark.parametrize(
        "origin", ["https://evil.example", "null", "http://testserver.evil.example", "://", ""]
    )
    def test_a_foreign_page_changes_nothing_here(
        self, governed: Governed, api: str, origin: str
    ) -> None:
        url = f"http://testserver/{api}/3.0/chancery/statements"
        answer = governed.client().post(url, headers={"Origin": origin})
        refused(answer, 403, "PERMISSION_DENIED")
        assert governed.carried_out == []

    def test_our_own_page_and_other_clients_may(self, governed: Governed) -> None:
        path = "/ajax-api/3.0/chancery/statements"
        client = governed.client()
        assert client.post(path, headers={"Origin": "http://testserver"}).status_code == 200
        assert client.post(path).status_code == 200
        assert client.get(path, headers={"Origin": "https://evil.example"}).status_code == 200

    def test_two_origins_are_refused(self, governed: Governed) -> None:
        headers = [("Origin", "http://testserver"), ("Origin", "http://testserver")]
        answer = governed.client().post("/api/3.0/chancery/x", headers=headers)
        refused(answer, 403, "PERMISSION_DENIED")
