"""Long bodies: hashed while they pass, and never handed over whole when they are wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from mlflow_plugins.middleware import GovernanceMiddleware
from mlflow_plugins.request_bodies import GovernedBody
from tests.unit.identity.governed_app import Governed

TARGET = "/upload"
PARTS = [bytes([n]) * 1000 for n in range(20)]
WHOLE = b"".join(PARTS)


def receive_of(*messages: dict[str, Any]) -> Any:
    left = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(left)

    return receive


def body_messages(parts: list[bytes], *, end: bool = True) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": part, "more_body": True} for part in parts
    ]
    if end:
        messages[-1]["more_body"] = False
    return messages


async def received(body: GovernedBody) -> tuple[bytes, bool]:
    """What an application gets, and whether it saw the end."""
    got = b""
    try:
        while True:
            message = await body()
            got += message["body"]
            if not message["more_body"]:
                return got, True
    except ClientDisconnect:
        return got, False


@pytest.mark.parametrize("limit", [0, 999, 5000, 10**9])
@pytest.mark.parametrize("parts", [[b""], [b"a"], [b"", b"a", b""], PARTS, [*PARTS, b""]])
def test_a_right_body_passes_whole(limit: int, parts: list[bytes]) -> None:
    whole = b"".join(parts)

    async def run() -> None:
        messages = [*body_messages(parts), {"type": "http.disconnect"}]
        body = GovernedBody(
            receive_of(*messages), sha256=hashlib.sha256(whole).digest(), limit=limit
        )
        assert await body.read_ahead() in (whole, None)
        assert await received(body) == (whole, True)
        assert await body() == {"type": "http.disconnect"}

    anyio.run(run)


@pytest.mark.parametrize("parts", [[b"a"], PARTS, [*PARTS, b""], [b"", b"a", b""]])
def test_a_wrong_long_body_never_ends_nor_is_whole(parts: list[bytes]) -> None:
    async def run() -> None:
        body = GovernedBody(receive_of(*body_messages(parts)), sha256=b"\0" * 32, limit=0)
        got, ended = await received(body)
        assert not ended
        assert len(got) < len(b"".join(parts))
        assert body.mismatch is not None
        with pytest.raises(ClientDisconnect):
            await body()

    anyio.run(run)


def test_a_body_cut_short_never_ends() -> None:
    async def run() -> None:
        messages = [*body_messages(PARTS[:5], end=False), {"type": "http.disconnect"}]
        body = GovernedBody(receive_of(*messages), sha256=None, limit=0)
        assert (await received(body))[1] is False
        assert body.spoiled

    anyio.run(run)


class Upload:
    """An application that stores a stream the way MLflow does: whole, or not at all."""

    def __init__(self) -> None:
        self.stored: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        data = b"".join([part async for part in request.stream()])
        self.stored.append(data)
        await PlainTextResponse("stored")(scope, receive, send)


class Careless(Upload):
    """Takes whatever came, and answers well, even when reading failed."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        except ClientDisconnect:
            await PlainTextResponse("fine")(scope, receive, send)


def stream(parts: list[bytes]) -> Iterator[bytes]:
    yield from parts


@pytest.mark.parametrize("app", [Upload(), Careless()])
@pytest.mark.parametrize("limit", [0, 5000, 10**9])
def test_a_long_upload_is_stored_only_if_it_is_right(
    governed: Governed, app: Upload, limit: int
) -> None:
    app.stored.clear()
    middleware = GovernanceMiddleware(
        app,
        key_lookup=governed.key_lookup,
        nonces=governed.nonces,
        is_sealed=governed.is_sealed,
        on_rejected=governed.on_rejected,
        clock=governed.clock,
        body_limit=limit,
    )
    client = TestClient(middleware)
    headers = governed.sign("PUT", TARGET, WHOLE)
    wrong = client.put(TARGET, content=stream([*PARTS[:-1], b"evil"]), headers=headers)
    assert wrong.status_code == 401
    assert wrong.json()["error_code"] == "UNAUTHENTICATED"
    assert app.stored == []
    assert len(governed.rejected) == 1
    right = client.put(TARGET, content=stream(PARTS), headers=headers)
    assert right.status_code == 200, "a wrong body must not use the nonce up"
    assert app.stored == [WHOLE]
    assert client.put(TARGET, content=stream(PARTS), headers=headers).status_code == 403
    assert len(app.stored) == 1


def test_a_client_that_goes_away_may_send_the_request_again(governed: Governed) -> None:
    """MLflow sends the same signed upload again after a broken connection."""
    app = Careless()
    middleware = GovernanceMiddleware(
        app,
        key_lookup=governed.key_lookup,
        nonces=governed.nonces,
        is_sealed=governed.is_sealed,
        on_rejected=governed.on_rejected,
        clock=governed.clock,
        body_limit=0,
    )
    headers = governed.sign("PUT", TARGET, WHOLE)
    scope = {
        "type": "http",
        "method": "PUT",
        "path": TARGET,
        "raw_path": TARGET.encode(),
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        messages = [*body_messages(PARTS[:5], end=False), {"type": "http.disconnect"}]
        await middleware(scope, receive_of(*messages), send)

    anyio.run(run)
    assert sent == []
    assert app.stored == []
    client = TestClient(middleware)
    assert client.put(TARGET, content=stream(PARTS), headers=headers).status_code == 200
