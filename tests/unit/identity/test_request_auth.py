"""The auth provider signs exactly what ``requests`` is about to send."""

from __future__ import annotations

import hashlib
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from urllib3.util.url import _encode_target

from governance.errors import AuthenticationError, ConfigurationError
from governance.signing.http_signatures import SignedRequest, verify_request
from governance.signing.keys import DevelopmentKeyWarning, FileSigner, create_key
from mlflow_plugins.request_auth import SignedRequestAuth, SignedRequestAuthProvider

NOW = 1_767_225_600


def prepared(signer: FileSigner, url: str = "http://h/p", **arguments: Any) -> Any:
    auth = SignedRequestAuth(signer, clock=lambda: NOW)
    method = arguments.pop("method", "POST")
    return requests.Request(method, url, auth=auth, **arguments).prepare()


def verify(signer: FileSigner, request: requests.PreparedRequest) -> SignedRequest:
    # urllib3 encodes the target once more before it is sent
    path, _, query = _encode_target(request.path_url).partition("?")
    return verify_request(
        method=request.method or "",
        path=path.encode(),
        query=query.encode(),
        headers=[(k.lower().encode(), str(v).encode()) for k, v in request.headers.items()],
        find_key={signer.keyid: signer.public_key_pem}.get,
        now=datetime.fromtimestamp(NOW, UTC),
    )


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ({}, b""),
        ({"data": b"bytes"}, b"bytes"),
        ({"data": "Zürich"}, "Zürich".encode()),
        ({"json": {"a": "é"}}, b'{"a": "\\u00e9"}'),
        ({"data": {"a": "1 2"}}, b"a=1+2"),
    ],
)
def test_bodies_at_hand(signer: FileSigner, arguments: dict[str, Any], sent: bytes) -> None:
    request = prepared(signer, **arguments)
    assert (request.body or b"") in (sent, sent.decode())
    assert verify(signer, request).content_sha256 == hashlib.sha256(sent).digest()


def test_a_file_is_hashed_from_where_it_stands_and_rewound(
    signer: FileSigner, tmp_path: Path
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"x" * 3_000_000)
    with path.open("rb") as file:
        file.seek(10)
        request = prepared(signer, data=file)
        assert file.tell() == 10
        assert request.headers["Content-Length"] == str(3_000_000 - 10)
        digest = hashlib.sha256(b"x" * (3_000_000 - 10)).digest()
        assert verify(signer, request).content_sha256 == digest


class Pipe(io.RawIOBase):
    """Can be read once, like a socket or a pipe."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._data.readinto(buffer)


@pytest.mark.parametrize("body", [iter([b"ab", b"", b"cd"]), Pipe(b"abcd")])
def test_a_body_that_can_be_read_once_is_spooled(signer: FileSigner, body: Any) -> None:
    request = prepared(signer, data=body)
    assert verify(signer, request).content_sha256 == hashlib.sha256(b"abcd").digest()
    assert request.body.read() == b"abcd"
    assert request.headers["Content-Length"] == "4"
    assert "Transfer-Encoding" not in request.headers


@settings(deadline=None, max_examples=300)
@given(
    path=st.text(st.characters(codec="utf-8", exclude_characters="?#\\"), max_size=30),
    query=st.text(st.characters(codec="utf-8", exclude_characters="#"), max_size=30),
)
def test_any_path_and_query_verify_as_sent(
    tmp_path_factory: pytest.TempPathFactory, path: str, query: str
) -> None:
    signer = shared_signer(tmp_path_factory)
    try:
        request = prepared(signer, f"http://h/{path}?{query}")
    except (requests.RequestException, AuthenticationError):
        return
    assert verify(signer, request)


_signers: list[FileSigner] = []


def shared_signer(factory: pytest.TempPathFactory) -> FileSigner:
    if not _signers:
        _signers.append(create_key(factory.mktemp("keys") / "alice.pem"))
    return _signers[0]


def test_each_request_has_its_own_nonce(signer: FileSigner) -> None:
    assert verify(signer, prepared(signer)).nonce != verify(signer, prepared(signer)).nonce


def test_credentials_of_mlflow_or_in_the_address_are_kept(signer: FileSigner) -> None:
    set_by_mlflow = prepared(signer, headers={"Authorization": "Basic abc"})
    assert set_by_mlflow.headers["Authorization"] == "Basic abc"
    in_address = prepared(signer, "http://bob:pw@h/p")
    assert in_address.headers["Authorization"] == "Basic Ym9iOnB3"
    assert urlsplit(in_address.url).path == "/p"
    assert "Authorization" not in prepared(signer).headers


class TestProvider:
    def test_it_signs_with_the_key_of_the_environment(
        self, monkeypatch: pytest.MonkeyPatch, signer: FileSigner, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("CHANCERY_KEY", f"file:{tmp_path / 'alice.pem'}")
        provider = SignedRequestAuthProvider()
        assert provider.get_name() == "chancery"
        with pytest.warns(DevelopmentKeyWarning):
            auth = provider.get_auth()
        request = requests.Request("GET", "http://h/", auth=auth).prepare()
        assert signer.keyid in request.headers["Signature-Input"]

    def test_without_a_key_it_says_so(self) -> None:
        with pytest.raises(ConfigurationError, match="CHANCERY_KEY"):
            SignedRequestAuthProvider().get_auth()

    def test_a_missing_key_is_not_made(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("CHANCERY_KEY", f"file:{tmp_path / 'nobody.pem'}")
        with pytest.raises(ConfigurationError, match="cannot read"):
            SignedRequestAuthProvider().get_auth()
        assert not (tmp_path / "nobody.pem").exists()

    def test_production_mode_refuses_a_file_key(
        self, monkeypatch: pytest.MonkeyPatch, signer: FileSigner, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("CHANCERY_KEY", f"file:{tmp_path / 'alice.pem'}")
        monkeypatch.setenv("CHANCERY_MODE", "production")
        with pytest.raises(ConfigurationError, match="production"):
            SignedRequestAuthProvider().get_auth()
