"""Promotion statements: one spelling, strict types, small enough for every signer."""

import json
from typing import Any

import pytest

from governance.canonical import canonical_json, sha256_hex
from governance.errors import SignatureError
from governance.signing.dsse import pae
from governance.signing.statements import (
    PAYLOAD_TYPE,
    InputAttestation,
    PromotionStatement,
    request_command,
    statement_id,
)
from tests.unit.signing.signing_world import NOW, statement


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"valid_until_ms": NOW},
        {"from_environment": None, "logged_model_id": None, "inputs": (), "verified_levels": ()},
        {"model_name": "Betrug – ö", "time_verified_ms": 1},
        {"served_as": "prod.fraud"},
    ],
)
def test_round_trip(changes: dict[str, object]) -> None:
    original = statement(**changes)
    payload = original.to_payload()
    assert PromotionStatement.parse(payload) == original
    assert statement_id(payload) == sha256_hex(payload)


def test_it_is_an_in_toto_statement_with_a_verification_summary() -> None:
    document = json.loads(statement().to_payload())
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["predicateType"] == "https://slsa.dev/verification_summary/v1"
    assert document["subject"] == [
        {"name": "models:/fraud/3", "digest": {"sha256": statement().root_digest}}
    ]
    assert document["predicate"]["timeVerified"] == "2026-09-21T14:13:20.000Z"
    assert document["predicate"]["verificationResult"] == "PASSED"


def test_eight_inputs_fit_the_smallest_signer() -> None:
    """AWS KMS signs at most 4,096 bytes with Ed25519."""
    inputs = tuple(InputAttestation(f"runs:/{n:032x}/metrics", f"{n:064x}") for n in range(8))
    names = {"model_name": "m" * 256, "served_as": "s" * 256}
    payload = statement(inputs=inputs, valid_until_ms=NOW, **names).to_payload()
    assert len(pae(PAYLOAD_TYPE, payload)) <= 4096


def test_a_statement_too_large_for_a_signer_is_refused() -> None:
    inputs = tuple(InputAttestation("x" * 300, "0" * 64) for _ in range(10))
    with pytest.raises(SignatureError, match="at most 4096"):
        statement(inputs=inputs).to_payload()


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 0},
        {"threshold": True},
        {"version": 0},
        {"version": "3"},
        {"root_digest": "D" * 64},
        {"manifest_digest": "abc"},
        {"decision_digest": ""},
        {"policy_digest": "0" * 63},
        {"nonce": ""},
        {"model_name": ""},
        {"model_name": "\ud800"},
        {"not_after_ms": 1.5},
        {"not_after_ms": 2**53},
        {"not_after_ms": 2**52},
        {"valid_until_ms": -1},
        {"time_verified_ms": -1},
        {"time_verified_ms": 2**60},
        {"registry_epoch": -1},
        {"inputs": (InputAttestation("", "0" * 64),)},
        {"verified_levels": ("",)},
    ],
)
def test_a_wrong_value_is_not_even_written(changes: dict[str, object]) -> None:
    with pytest.raises(SignatureError):
        statement(**changes).to_payload()


def changed(place: str, value: Any) -> bytes:
    document = json.loads(statement().to_payload())
    *path, last = place.split(".")
    target = document
    for key in path:
        target = target[int(key) if key.isdigit() else key]
    if value is KeyError:
        del target[last]
    else:
        target[last] = value
    return canonical_json(document)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("predicate.promotion.extra", 1),
        ("predicate.extra", 1),
        ("extra", 1),
        ("subject.0.extra", 1),
        ("subject.0.digest.sha512", "0" * 128),
        ("predicate.verificationResult", "FAILED"),
        ("predicate.resourceUri", "models:/fraud/4"),
        ("subject.0.name", "models:/fraud/4"),
        ("predicate.promotion.version", 4),
        ("predicate.promotion.version", "3"),
        ("predicate.promotion.modelName", "credit"),
        ("predicate.promotion.nonce", KeyError),
        ("predicate.promotion.validUntil", KeyError),
        ("predicate.promotion.to", None),
        ("predicate.promotion.threshold", 0),
        ("predicate.timeVerified", "2026-09-21T14:13:20.0Z"),
        ("predicate.timeVerified", "2026-09-21T16:13:20.000+0200"),
        ("predicate.timeVerified", "yesterday"),
        ("predicate.promotion", []),
        ("_type", "https://in-toto.io/Statement/v0.1"),
        ("predicateType", "https://slsa.dev/provenance/v1"),
        ("subject", []),
    ],
)
def test_a_strange_document_is_refused(place: str, value: Any) -> None:
    with pytest.raises(SignatureError):
        PromotionStatement.parse(changed(place, value))


def test_other_spellings_are_refused() -> None:
    payload = statement().to_payload()
    for strange in (
        payload + b"\n",
        json.dumps(json.loads(payload)).encode(),
        payload.replace(b'"nonce"', b'"nonce":"x","nonce"'),
        payload.decode().encode("utf-16"),
        b"\xff" + payload,
        b"[" * 4000,
        b"",
    ):
        with pytest.raises(SignatureError):
            PromotionStatement.parse(strange)


def test_the_description_tells_a_signer_everything_that_matters() -> None:
    text = statement(valid_until_ms=NOW).describe()
    for part in (
        "version 3 of the model 'fraud' goes from 'staging' to 'prod'",
        statement().root_digest,
        "2 different persons",
        "2026-09-22 14:13:20 UTC",
        "loaded until 2026-09-21",
        "'runs:/0123'",
    ):
        assert part in text
    assert "without an end date" in statement().describe()


@pytest.mark.parametrize("name", ["model_name", "served_as"])
def test_the_description_cannot_be_forged_by_a_name(name: str) -> None:
    text = statement(**{name: "x'\n\x1b[2J\u202eApproved"}).describe()
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "'x\\'\\n\\x1b[2J\\u202eApproved'" in text


def test_the_served_name_is_written_only_when_there_is_one() -> None:
    plain, served = statement(), statement(served_as="prod.fraud")
    promotion = json.loads(plain.to_payload())["predicate"]["promotion"]
    assert "servedAs" not in promotion
    said = json.loads(served.to_payload())["predicate"]["promotion"]
    assert said == {**promotion, "servedAs": "prod.fraud"}
    assert (plain.names, served.names) == (("fraud",), ("fraud", "prod.fraud"))
    assert "from 'staging' to 'prod', to be served as registered model 'prod.fraud'." in (
        served.describe()
    )
    assert "served" not in plain.describe()


@pytest.mark.parametrize("value", [None, "", 1, ["prod.fraud"], False])
def test_an_odd_served_name_is_refused(value: object) -> None:
    document = json.loads(statement().to_payload())
    document["predicate"]["promotion"]["servedAs"] = value
    with pytest.raises(SignatureError, match="servedAs"):
        PromotionStatement.parse(canonical_json(document))
    with pytest.raises(SignatureError):
        statement(served_as="").to_payload()


def test_the_command_that_asks_for_one() -> None:
    assert (
        request_command("models:/fraud/3", "prod") == "chancery request models:/fraud/3 --to prod"
    )
    assert request_command("models:/a b/3", "prod", "prod.a b") == (
        "chancery request 'models:/a b/3' --to prod --as 'prod.a b'"
    )
