"""The chain of trust roots: succession, rotation, and every way to cheat it."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import Connection, create_engine, insert

from governance import database
from governance.canonical import canonical_json, parse_json
from governance.errors import RefusedError, SignatureError, TamperedError, UntrustedKeyError
from governance.signing.dsse import sign_bundle
from governance.signing.roots import ADMIN, Person, TrustRoots, approver
from governance.signing.trust import (
    ChainLink,
    append,
    bootstrap,
    current,
    load_chain,
    sign_roots,
    verify_chain,
)
from tests.unit.signing.signing_world import (
    ALICE,
    ALICE_SECOND,
    BOB,
    CAROL,
    MALLORY,
    MemorySigner,
    link,
    roots,
)

FIRST = link(roots(), ALICE, BOB)


def second(draft: TrustRoots, *signers: MemorySigner) -> list[ChainLink]:
    return [FIRST, link(draft, *signers)]


def with_carol_as_admin() -> TrustRoots:
    return roots().successor().grant("carol", ADMIN)


def test_a_chain_that_follows_the_rules_holds() -> None:
    third = with_carol_as_admin().successor().remove_person("bob")
    chain = [*second(with_carol_as_admin(), ALICE, BOB), link(third, ALICE, CAROL)]
    assert verify_chain(chain, pinned_first=roots().digest) == third


def test_no_chain_trusts_nobody() -> None:
    with pytest.raises(UntrustedKeyError, match="no trust roots"):
        verify_chain([], pinned_first=None)


def test_another_first_version_than_the_pinned_one_is_refused() -> None:
    with pytest.raises(UntrustedKeyError, match="is pinned"):
        verify_chain([FIRST], pinned_first="0" * 64)


def test_the_first_version_needs_its_own_administrators() -> None:
    with pytest.raises(UntrustedKeyError, match=r"needs 2 administrators .* has 1 \(alice\)"):
        verify_chain([link(roots(), ALICE)], pinned_first=None)


def test_one_person_with_two_keys_is_one_administrator() -> None:
    with pytest.raises(UntrustedKeyError, match="has 1"):
        verify_chain([link(roots(), ALICE, ALICE_SECOND)], pinned_first=None)


def test_a_skipped_version_is_refused() -> None:
    skipped = replace(with_carol_as_admin(), version=3)
    with pytest.raises(TamperedError, match="version 3 of the trust roots stands where 2"):
        verify_chain(second(skipped, ALICE, BOB), pinned_first=None)


def test_a_chain_without_its_first_version_is_refused() -> None:
    with pytest.raises(TamperedError, match="stands where 1"):
        verify_chain([link(with_carol_as_admin(), ALICE, BOB)], pinned_first=None)


def test_a_wrong_previous_is_refused() -> None:
    stray = replace(with_carol_as_admin(), previous="0" * 64)
    with pytest.raises(TamperedError, match="does not follow"):
        verify_chain(second(stray, ALICE, BOB), pinned_first=None)


def test_a_version_signed_by_somebody_who_is_no_administrator_is_refused() -> None:
    with pytest.raises(UntrustedKeyError, match="has 1"):
        verify_chain(second(roots().successor(), ALICE, CAROL), pinned_first=None)


def test_a_version_signed_by_a_stranger_is_refused() -> None:
    with pytest.raises(UntrustedKeyError, match="nobody holds"):
        verify_chain(second(roots().successor(), ALICE, BOB, MALLORY), pinned_first=None)


def test_a_takeover_signed_only_by_its_own_administrators_is_refused() -> None:
    draft = (
        roots()
        .successor()
        .add_person("mallory", "M", [MALLORY.public_key_pem], [ADMIN])
        .with_admin_threshold(1)
    )
    with pytest.raises(UntrustedKeyError, match="of version 1"):
        verify_chain(second(draft, MALLORY), pinned_first=None)


def test_a_version_also_needs_its_own_administrators() -> None:
    draft = with_carol_as_admin().with_admin_threshold(3)
    with pytest.raises(UntrustedKeyError, match="that it names itself"):
        verify_chain(second(draft, ALICE, BOB), pinned_first=None)
    assert verify_chain(second(draft, ALICE, BOB, CAROL), pinned_first=None) == draft


def test_a_removed_administrator_is_stale() -> None:
    changed = with_carol_as_admin().remove_person("bob")
    chain = second(changed, ALICE, BOB, CAROL)
    third = changed.successor()
    assert verify_chain([*chain, link(third, ALICE, CAROL)], pinned_first=None) == third
    with pytest.raises(UntrustedKeyError, match="nobody holds"):
        verify_chain([*chain, link(third, ALICE, BOB)], pinned_first=None)


def test_a_revoked_key_signs_nothing_and_stays_revoked() -> None:
    revoked = roots().successor().revoke_key(ALICE_SECOND.keyid)
    chain = second(revoked, ALICE, BOB)
    with pytest.raises(UntrustedKeyError, match="revoked"):
        verify_chain([*chain, link(revoked.successor(), ALICE_SECOND, BOB)], pinned_first=None)
    forgiving = replace(revoked.successor(), revoked_keys=())
    with pytest.raises(TamperedError, match="takes back the revocation"):
        verify_chain([*chain, link(forgiving, ALICE, BOB)], pinned_first=None)


def test_an_administrator_replaces_a_key_by_signing_with_the_old_and_the_new() -> None:
    new = MemorySigner("bob, new key")
    draft = roots().successor().add_key("bob", new.public_key_pem).revoke_key(BOB.keyid)
    assert verify_chain(second(draft, ALICE, BOB, new), pinned_first=None) == draft
    with pytest.raises(UntrustedKeyError, match="that it names itself"):
        verify_chain(second(draft, ALICE, BOB), pinned_first=None)


def test_a_signature_over_other_bytes_is_refused() -> None:
    payload = with_carol_as_admin().to_payload()
    stolen = FIRST[1]
    with pytest.raises(SignatureError, match="other bytes"):
        verify_chain([FIRST, (payload, stolen)], pinned_first=None)


def test_a_signature_of_another_type_is_refused() -> None:
    payload = roots().to_payload()
    wrong = sign_bundle(payload, "application/vnd.in-toto+json", ALICE)
    with pytest.raises(SignatureError, match="signs a"):
        verify_chain([(payload, (wrong, sign_roots(payload, BOB)))], pinned_first=None)


def test_questions() -> None:
    document = roots().revoke_key(ALICE_SECOND.keyid).with_approval_threshold("prod", 2)
    alice = document.person_of(ALICE_SECOND.keyid)
    assert alice is not None
    assert alice.id == "alice"
    assert document.person_of(MALLORY.keyid) is None
    assert document.public_key(ALICE_SECOND.keyid) is None
    assert document.public_key(ALICE.keyid) == ALICE.public_key_pem
    assert document.is_admin("bob")
    assert not document.is_admin("carol")
    assert document.may_approve("bob", "staging", "fraud-eu")
    assert not document.may_approve("bob", "staging", "Fraud-eu")
    assert not document.may_approve("alice", "staging", "fraud")
    assert not document.may_approve("nobody", "prod", "fraud")
    assert document.minimum_approvals("prod") == 2
    assert document.minimum_approvals("staging") == 1


def test_edits_refuse_what_makes_no_sense() -> None:
    with pytest.raises(RefusedError, match="already"):
        roots().add_person("bob", "Bob", [MALLORY.public_key_pem])
    with pytest.raises(RefusedError, match="not in the trust roots"):
        roots().remove_person("mallory")
    with pytest.raises(RefusedError, match="does not have"):
        roots().withdraw("carol", ADMIN)
    assert roots().grant("bob", ADMIN) == roots()
    assert not roots().withdraw("bob", ADMIN).is_admin("bob")


@pytest.mark.parametrize(
    "broken",
    [
        roots().add_key("carol", BOB.public_key_pem),
        roots().add_key("bob", BOB.public_key_pem),
        roots().with_admin_threshold(3),
        roots().with_admin_threshold(0),
        roots().remove_person("bob"),
        roots().revoke_key(BOB.keyid),
        roots().revoke_key("not a key id"),
        roots().with_approval_threshold("prod", 0),
        replace(roots(), people=(*roots().people, roots().people[0])),
        replace(roots(), previous="0" * 64),
        replace(roots(), version=2),
        replace(roots(), people=()),
        replace(roots(), revoked_keys=("f" * 64, "a" * 64)),
        replace(roots(), people=(*roots().people, Person("", "x", (MALLORY.public_key_pem,), ()))),
        replace(roots(), people=(*roots().people, Person("dave", "x", (), ()))),
        roots().add_person("dave", "D", [MALLORY.public_key_pem], [approver("", "*")]),
    ],
)
def test_a_document_that_breaks_a_rule_is_neither_written_nor_read(broken: TrustRoots) -> None:
    with pytest.raises(SignatureError):
        broken.to_payload()


def test_a_strange_document_is_not_read() -> None:
    document = parse_json(roots().to_payload())
    role = document["people"][0]["roles"][0]
    for target, key, value in (
        (document, "type", "chancery.trust-roots/v2"),
        (document, "extra", 1),
        (role, "environment", "prod"),
        (role, "role", "owner"),
        (document["people"][0], "keys", ["-----BEGIN PUBLIC KEY-----"]),
        (document["people"][0], "keys", [ALICE.public_key_pem.strip()]),
    ):
        before = dict(target)
        target[key] = value
        with pytest.raises(SignatureError):
            TrustRoots.parse(canonical_json(document))
        target.clear()
        target.update(before)
    assert TrustRoots.parse(canonical_json(document)) == roots()
    with pytest.raises(SignatureError, match="canonical form"):
        TrustRoots.parse(roots().to_payload() + b"\n")


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    database.trust_roots.create(engine)
    with engine.begin() as opened:
        yield opened


def test_bootstrap_lets_one_person_do_everything_once(connection: Connection) -> None:
    made = bootstrap(connection, ALICE, "alice", now_ms=1)
    assert current(connection, pinned_first=made.digest) == made
    assert made.is_admin("alice")
    assert made.may_approve("alice", "anything", "any model")
    with pytest.raises(RefusedError, match="already"):
        bootstrap(connection, BOB, "bob", now_ms=2)


def test_append_stores_only_what_follows(connection: Connection) -> None:
    made = bootstrap(connection, ALICE, "alice", now_ms=1)
    payload = made.successor().add_person("bob", "Bob", [BOB.public_key_pem]).to_payload()
    with pytest.raises(UntrustedKeyError):
        append(connection, payload, [sign_roots(payload, BOB)], now_ms=2)
    with pytest.raises(UntrustedKeyError):
        append(connection, payload, [], now_ms=2)
    assert len(load_chain(connection)) == 1
    stored = append(connection, payload, [sign_roots(payload, ALICE)], now_ms=2)
    assert current(connection) == stored
    with pytest.raises(TamperedError):
        append(connection, payload, [sign_roots(payload, ALICE)], now_ms=3)


def test_of_two_writers_at_once_one_wins(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bootstrap(connection, ALICE, "alice", now_ms=1)
    seen = load_chain(connection)
    payload = made.successor().to_payload()
    append(connection, payload, [sign_roots(payload, ALICE)], now_ms=2)
    monkeypatch.setattr("governance.signing.trust.load_chain", lambda _: seen)
    with pytest.raises(RefusedError, match="somebody else"):
        append(connection, payload, [sign_roots(payload, ALICE)], now_ms=3)


@pytest.mark.parametrize("text", ["{", "{}", "[1]", "null"])
def test_a_damaged_row_is_refused(connection: Connection, text: str) -> None:
    row = {"version": 1, "payload": FIRST[0], "bundles": text, "created_ms": 1}
    connection.execute(insert(database.trust_roots).values(row))
    with pytest.raises(SignatureError):
        current(connection)
