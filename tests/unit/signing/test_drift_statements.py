"""What is signed about drift: one spelling, one meaning, one role."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from governance.canonical import canonical_json
from governance.errors import SignatureError, UntrustedKeyError
from governance.signing.drift_statements import (
    Binding,
    QuarantineStatement,
    ReportStatement,
    sign_report,
    verify_report,
)
from governance.signing.dsse import sign_bundle
from governance.signing.keys import FileSigner, create_key
from governance.signing.roots import ADMIN, Person, TrustRoots, approver, monitor
from governance.signing.statements import PAYLOAD_TYPE

BINDING = Binding("fraud", 3, "u" * 32, "ab" * 32)
REPORT = ReportStatement(BINDING, "fraud", "cd" * 32, "ef" * 32, 17)
TAKEN = QuarantineStatement(
    BINDING, "a" * 32, "fraud", "d" * 32, "prod", ("accuracy fell",), "cd" * 32, 17
)


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileSigner]:
    folder: Path = tmp_path_factory.mktemp("keys")
    return {name: create_key(folder / name) for name in ("admin", "robot", "ann", "gone")}


@pytest.fixture(scope="module")
def roots(signers: dict[str, FileSigner]) -> TrustRoots:
    roles = {
        "admin": (ADMIN,),
        "robot": (monitor("fraud*"),),
        "ann": (approver("*", "*"),),
        "gone": (monitor("*"),),
    }
    people = tuple(
        Person(name, name, (signers[name].public_key_pem,), roles[name]) for name in roles
    )
    return TrustRoots(1, None, 1, people, revoked_keys=(signers["gone"].keyid,))


@pytest.mark.parametrize("statement", [REPORT, TAKEN, replace(REPORT, deployment="")])
def test_it_is_read_as_it_was_written(statement: Any) -> None:
    assert type(statement).parse(statement.to_payload()) == statement


def test_only_a_monitor_of_the_model_vouches(
    signers: dict[str, FileSigner], roots: TrustRoots
) -> None:
    person, found = verify_report(sign_report(REPORT, signers["robot"]), roots)
    assert (person.id, found) == ("robot", REPORT)
    for name in ("admin", "ann", "gone"):  # whoever approves does not also make the evidence
        with pytest.raises(UntrustedKeyError):
            verify_report(sign_report(REPORT, signers[name]), roots)
    other = replace(REPORT, binding=replace(BINDING, model="churn"))
    with pytest.raises(UntrustedKeyError, match="no monitor of churn"):
        verify_report(sign_report(other, signers["robot"]), roots)


def test_one_kind_of_statement_does_not_serve_as_another(
    signers: dict[str, FileSigner], roots: TrustRoots
) -> None:
    bundle = sign_bundle(TAKEN.to_payload(), PAYLOAD_TYPE, signers["robot"])
    with pytest.raises(SignatureError, match="predicateType"):
        verify_report(bundle, roots)
    with pytest.raises(SignatureError):
        QuarantineStatement.parse(REPORT.to_payload())


@pytest.mark.parametrize("statement", [REPORT, TAKEN])
def test_every_field_counts(statement: Any) -> None:
    """A field that is missing, added, of another type or oddly written is refused."""
    kind, payload = type(statement), statement.to_payload()
    document = json.loads(payload)
    places = [document, document["predicate"], document["subject"][0]]
    for place in places:
        for key in list(place):
            before = place.pop(key)
            with pytest.raises(SignatureError):
                kind.parse(canonical_json(document))
            place[key] = [before, 1]
            with pytest.raises(SignatureError):
                kind.parse(canonical_json(document))
            place[key] = before
        place["more"] = 1
        with pytest.raises(SignatureError):
            kind.parse(canonical_json(document))
        del place["more"]
    with pytest.raises(SignatureError):
        kind.parse(payload + b"\n")
    document["subject"][0]["name"] = "models:/fraud/4"
    with pytest.raises(SignatureError):
        kind.parse(canonical_json(document))


def test_what_no_signer_takes_is_not_written() -> None:
    with pytest.raises(SignatureError, match="more than signers take"):
        replace(TAKEN, reasons=("x" * 4000,)).to_payload()


def test_a_person_reads_what_they_sign() -> None:
    told = TAKEN.describe()
    for words in ("models:/fraud/3", "'fraud'", "'prod'", "accuracy fell", "ab" * 32):
        assert words in told


def test_the_role_survives_its_document(roots: TrustRoots) -> None:
    again = TrustRoots.parse(roots.to_payload())
    assert again == roots
    assert again.may_report("robot", "fraud-eu")
    assert not again.may_report("robot", "churn")
    assert not again.may_report("ann", "fraud")
    assert not again.may_approve("robot", "prod", "fraud")
    assert not again.is_admin("robot")
