"""Bundles: the round trip, and every malformed or forged bundle."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import SignatureError
from governance.signing.dsse import SIZE_LIMIT, pae, parse_bundle, sign_bundle, verify_bundle
from tests.unit.signing.signing_world import ALICE, BOB

TYPE = "application/vnd.in-toto+json"
PAYLOAD = b'{"hello":"world"}'


def test_pre_authentication_encoding_is_the_specification_s_example() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@given(st.binary(max_size=300))
def test_round_trip(payload: bytes) -> None:
    bundle = parse_bundle(sign_bundle(payload, TYPE, ALICE))
    assert bundle.keyid == ALICE.keyid
    assert verify_bundle(bundle, ALICE.public_key_pem, payload_type=TYPE) == payload


def document() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(sign_bundle(PAYLOAD, TYPE, ALICE))
    return result


def test_another_key_is_refused() -> None:
    bundle = parse_bundle(sign_bundle(PAYLOAD, TYPE, ALICE))
    with pytest.raises(SignatureError, match="another key"):
        verify_bundle(bundle, BOB.public_key_pem, payload_type=TYPE)


def test_another_payload_type_is_refused() -> None:
    bundle = parse_bundle(sign_bundle(PAYLOAD, TYPE, ALICE))
    with pytest.raises(SignatureError, match="signs a"):
        verify_bundle(bundle, ALICE.public_key_pem, payload_type="text/plain")


def test_a_relabelled_payload_type_is_refused() -> None:
    changed = document()
    changed["dsseEnvelope"]["payloadType"] = "text/plain"
    bundle = parse_bundle(json.dumps(changed))
    with pytest.raises(SignatureError, match="does not verify"):
        verify_bundle(bundle, ALICE.public_key_pem, payload_type="text/plain")


def test_other_bytes_are_refused() -> None:
    bundle = parse_bundle(sign_bundle(PAYLOAD, TYPE, ALICE))
    with pytest.raises(SignatureError, match="other bytes"):
        verify_bundle(bundle, ALICE.public_key_pem, payload_type=TYPE, payload=b"{}")


def test_a_forged_signature_is_refused() -> None:
    changed = document()
    changed["dsseEnvelope"]["payload"] = base64.b64encode(b"{}").decode()
    with pytest.raises(SignatureError, match="does not verify"):
        verify_bundle(parse_bundle(json.dumps(changed)), ALICE.public_key_pem, payload_type=TYPE)


def test_two_signatures_in_one_envelope_are_refused() -> None:
    changed = document()
    changed["dsseEnvelope"]["signatures"] *= 2
    with pytest.raises(SignatureError, match="2 signatures"):
        parse_bundle(json.dumps(changed))


def test_no_signature_is_refused() -> None:
    changed = document()
    changed["dsseEnvelope"]["signatures"] = []
    with pytest.raises(SignatureError, match="0 signatures"):
        parse_bundle(json.dumps(changed))


def test_a_hint_that_names_another_key_is_refused() -> None:
    changed = document()
    changed["verificationMaterial"]["publicKey"]["hint"] = BOB.keyid
    with pytest.raises(SignatureError, match="different keys"):
        parse_bundle(json.dumps(changed))


def test_a_duplicate_key_is_refused() -> None:
    text = json.dumps(document())
    with pytest.raises(SignatureError, match="duplicate key"):
        parse_bundle(text.replace('"payloadType"', '"payload": "AAAA", "payloadType"', 1))


def test_another_media_type_is_refused() -> None:
    changed = document()
    changed["mediaType"] = "application/vnd.dev.sigstore.bundle.v0.4+json"
    with pytest.raises(SignatureError, match="mediaType"):
        parse_bundle(json.dumps(changed))


@pytest.mark.parametrize("place", [(), ("dsseEnvelope",), ("verificationMaterial",)])
def test_an_unknown_key_is_refused(place: tuple[str, ...]) -> None:
    changed = document()
    target = changed
    for key in place:
        target = target[key]
    target["extra"] = 1
    with pytest.raises(SignatureError, match="unknown fields: 'extra'"):
        parse_bundle(json.dumps(changed))


@pytest.mark.parametrize("sig", ["", "AAAA", "not base64", "AAA", "A" * 86 + "==\n", "Á==="])
def test_a_malformed_signature_is_refused(sig: str) -> None:
    changed = document()
    changed["dsseEnvelope"]["signatures"][0]["sig"] = sig
    with pytest.raises(SignatureError):
        parse_bundle(json.dumps(changed))


def test_base64_has_one_spelling() -> None:
    changed = document()
    changed["dsseEnvelope"]["payload"] = "QR=="  # decodes like QQ==
    with pytest.raises(SignatureError, match="canonical base64"):
        parse_bundle(json.dumps(changed))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{}", "{", "NaN", "[" * 60_000, '{"a":' * 12_000, " " * SIZE_LIMIT + "{}"],
)
def test_what_is_not_a_bundle_is_refused(text: str) -> None:
    with pytest.raises(SignatureError):
        parse_bundle(text)


@given(st.text(max_size=200))
def test_no_text_breaks_the_parser(text: str) -> None:
    with pytest.raises(SignatureError):
        parse_bundle(text)


def test_a_payload_too_large_for_readers_is_not_signed() -> None:
    with pytest.raises(SignatureError, match="at most"):
        sign_bundle(b"x" * SIZE_LIMIT, TYPE, ALICE)
