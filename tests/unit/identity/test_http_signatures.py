"""The RFC 9421 profile: the exact bytes, and everything that is refused."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import AuthenticationError
from governance.signing.http_signatures import EMPTY_SHA256, sign_request, verify_request
from governance.signing.keys import FileSigner, create_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NONCE = "AAAAAAAAAAAAAAAAAAAAAA"


def signed(signer: FileSigner, **changes: object) -> dict[str, str]:
    parts: dict[str, object] = {
        "method": "POST",
        "path": "/a%20b",
        "query": "x=1&y=%2F",
        "content_sha256": EMPTY_SHA256,
        "created": int(NOW.timestamp()),
        "nonce": NONCE,
    }
    return sign_request(signer, **(parts | changes))  # type: ignore[arg-type]


def raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]


def verify(signer: FileSigner, headers: list[tuple[bytes, bytes]], **changes: object):
    parts: dict[str, object] = {
        "method": "POST",
        "path": b"/a%20b",
        "query": b"x=1&y=%2F",
        "headers": headers,
        "find_key": {signer.keyid: signer.public_key_pem}.get,
        "now": NOW,
    }
    return verify_request(**(parts | changes))  # type: ignore[arg-type]


def test_the_signature_base_is_that_of_rfc_9421(signer: FileSigner, tmp_path: Path) -> None:
    """Built by hand from sections 2.2 to 2.5, and signed with another program's key object."""
    headers = signed(signer)
    base = (
        '"@method": POST\n'
        '"@path": /a%20b\n'
        '"@query": ?x=1&y=%2F\n'
        '"content-digest": sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:\n'
        '"@signature-params": ("@method" "@path" "@query" "content-digest")'
        f';created=1767225600;nonce="{NONCE}";keyid="{signer.keyid}";alg="ed25519"'
    ).encode()
    key = load_pem_private_key((tmp_path / "alice.pem").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    assert headers["Signature"] == f"chancery=:{base64.b64encode(key.sign(base)).decode()}:"
    found = verify(signer, raw(headers))
    assert found.base_digest == hashlib.sha256(base).hexdigest()
    assert (found.keyid, found.nonce, found.created) == (signer.keyid, NONCE, 1767225600)
    assert found.content_sha256 == EMPTY_SHA256


def test_empty_path_and_absent_query_are_normalised(signer: FileSigner) -> None:
    headers = raw(signed(signer, path="", query=""))
    assert verify(signer, headers, path=b"/", query=b"")


@pytest.mark.parametrize(
    "change",
    [
        {"method": "PUT"},
        {"path": b"/a%20c"},
        {"path": b"/a b"},
        {"path": b"/a%20b/"},
        {"path": b"//a%20b"},
        {"query": b"x=2&y=%2F"},
        {"query": b"y=%2F&x=1"},
        {"query": b"x=1&y=%2f"},
        {"query": b""},
        {"path": b"/a%20b\xff"},
        {"query": b'x=1\n"@path": /b'},
        {"find_key": lambda keyid: None},
    ],
)
def test_what_differs_from_what_was_signed_is_refused(
    signer: FileSigner, change: dict[str, object]
) -> None:
    with pytest.raises(AuthenticationError):
        verify(signer, raw(signed(signer)), **change)


@pytest.mark.parametrize("seconds", [301, -301, 86400 * 365, -86400 * 365])
def test_outside_the_time_window_is_refused(signer: FileSigner, seconds: int) -> None:
    with pytest.raises(AuthenticationError, match="clock"):
        verify(signer, raw(signed(signer)), now=NOW + timedelta(seconds=seconds))


@pytest.mark.parametrize("seconds", [300, -300])
def test_the_edge_of_the_window_is_accepted(signer: FileSigner, seconds: int) -> None:
    assert verify(signer, raw(signed(signer)), now=NOW + timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("header", "old", "new"),
    [
        ("Signature-Input", "chancery=", "sig1="),
        ("Signature-Input", "chancery=", " chancery="),
        ("Signature-Input", "chancery=", "Chancery="),
        ("Signature-Input", "chancery=", 'other=("@method");created=1, chancery='),
        ("Signature-Input", '"@method" "@path"', '"@path" "@method"'),
        ("Signature-Input", ' "content-digest"', ""),
        ("Signature-Input", ' "@query"', ""),
        ("Signature-Input", "()", "()"),
        ("Signature-Input", ";created=", ";created=0"),
        ("Signature-Input", ";created=", ";created=-"),
        ("Signature-Input", ";created=", "; created="),
        ("Signature-Input", 'alg="ed25519"', 'alg="hmac-sha256"'),
        ("Signature-Input", ';alg="ed25519"', ""),
        ("Signature-Input", 'alg="ed25519"', 'alg="ed25519";tag="x"'),
        ("Signature-Input", 'alg="ed25519"', 'alg="ed25519";alg="ed25519"'),
        ("Signature-Input", NONCE, "short"),
        ("Signature-Input", NONCE, "A" * 65),
        ("Signature-Input", NONCE, NONCE[:-1] + "\n"),
        ("Signature", "chancery=", "sig1="),
        ("Signature", "==:", ":"),
        ("Signature", "==:", "==:, chancery=:AAAA:"),
        ("Content-Digest", "sha-256=", "sha-512="),
        ("Content-Digest", "sha-256=", "sha-512=:AAAA:, sha-256="),
        ("Content-Digest", "uFU=", "uFV="),
    ],
)
def test_any_other_spelling_is_refused(signer: FileSigner, header: str, old: str, new: str) -> None:
    headers = signed(signer)
    if old == "()":
        headers[header] = "chancery=();created=1767225600"
    else:
        assert old in headers[header]
        headers[header] = headers[header].replace(old, new)
    with pytest.raises(AuthenticationError):
        verify(signer, raw(headers))


@pytest.mark.parametrize("header", ["Signature", "Signature-Input", "Content-Digest"])
def test_each_header_is_there_exactly_once(signer: FileSigner, header: str) -> None:
    headers = signed(signer)
    with pytest.raises(AuthenticationError, match="more than once"):
        verify(signer, [*raw(headers), *raw({header: headers[header]})])
    with pytest.raises(AuthenticationError, match="has no"):
        verify(signer, raw({k: v for k, v in headers.items() if k != header}))


def test_spare_bits_of_base64_make_no_second_spelling(signer: FileSigner) -> None:
    headers = signed(signer)
    value = headers["Signature"]
    last = value[-4]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = alphabet[alphabet.index(last) ^ 1]
    headers["Signature"] = f"{value[:-4]}{other}==:"
    with pytest.raises(AuthenticationError, match="profile"):
        verify(signer, raw(headers))


def test_a_lookup_that_answers_with_another_key_proves_nothing(
    signer: FileSigner, tmp_path: Path
) -> None:
    mallory = create_key(tmp_path / "mallory.pem")
    headers = raw(signed(signer))
    with pytest.raises(AuthenticationError, match="another keyid"):
        verify(signer, headers, find_key=lambda keyid: mallory.public_key_pem)


def test_another_key_under_a_trusted_keyid_is_refused(signer: FileSigner, tmp_path: Path) -> None:
    class Impostor:
        keyid = signer.keyid
        public_key_pem = signer.public_key_pem
        sign = staticmethod(create_key(tmp_path / "mallory.pem").sign)

    with pytest.raises(AuthenticationError, match="signature is wrong"):
        verify(signer, raw(signed(Impostor())))  # type: ignore[arg-type]


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_arbitrary_headers_never_verify_nor_crash(one: str, two: str, three: str) -> None:
    headers = [
        (b"signature", one.encode("utf-8", "replace")),
        (b"signature-input", two.encode("utf-8", "replace")),
        (b"content-digest", three.encode("utf-8", "replace")),
    ]
    with pytest.raises(AuthenticationError):
        verify_request(
            method="GET", path=b"/", query=b"", headers=headers, find_key=lambda k: None, now=NOW
        )
