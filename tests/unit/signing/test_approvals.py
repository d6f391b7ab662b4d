"""Counting approvals: each case that a gate must refuse, and its sentence."""

import json

from governance.signing.approvals import ApprovalTally, tally
from governance.signing.dsse import sign_bundle
from governance.signing.roots import TrustRoots
from tests.unit.signing.signing_world import (
    ALICE,
    ALICE_SECOND,
    BOB,
    CAROL,
    DAY,
    MALLORY,
    NOW,
    MemorySigner,
    bundles,
    roots,
    statement,
)

STATEMENT = statement()
PAYLOAD = STATEMENT.to_payload()


def count(*texts: str, trusted: TrustRoots | None = None, now_ms: int = NOW) -> ApprovalTally:
    return tally(STATEMENT, PAYLOAD, texts, trusted or roots(), now_ms=now_ms)


def signed(*signers: MemorySigner) -> tuple[str, ...]:
    return bundles(PAYLOAD, *signers)


def only_problem(result: ApprovalTally) -> str:
    assert len(result.problems) == 1
    return result.problems[0]


def test_two_people_are_two_approvals() -> None:
    result = count(*signed(BOB, ALICE))
    assert result == ApprovalTally(("alice", "bob"), (), required=2)
    assert result.sufficient


def test_one_of_two_is_not_enough() -> None:
    assert not count(*signed(ALICE)).sufficient
    assert not count().sufficient


def test_one_person_with_two_keys_counts_once() -> None:
    result = count(*signed(ALICE, ALICE_SECOND))
    assert result.persons == ("alice",)
    assert "alice signed with a second key" in only_problem(result)


def test_one_signature_twice_counts_once() -> None:
    result = count(*signed(ALICE, ALICE))
    assert result.persons == ("alice",)
    assert "alice signed again" in only_problem(result)


def test_an_untrusted_key_does_not_count() -> None:
    result = count(*signed(ALICE, MALLORY))
    assert result.persons == ("alice",)
    assert "is not in the trust roots" in only_problem(result)
    assert result.forged == 0


def test_a_key_removed_from_the_trust_roots_does_not_count() -> None:
    result = count(*signed(ALICE, BOB), trusted=roots().remove_person("bob"))
    assert result.persons == ("alice",)
    assert "is not in the trust roots" in only_problem(result)


def test_a_revoked_key_does_not_count() -> None:
    result = count(*signed(ALICE, BOB), trusted=roots().revoke_key(BOB.keyid))
    assert result.persons == ("alice",)
    assert "is revoked" in only_problem(result)


def test_a_person_without_the_role_does_not_count() -> None:
    result = count(*signed(ALICE, CAROL))
    assert result.persons == ("alice",)
    assert "carol has no role to approve fraud for prod" in only_problem(result)


def test_differing_bytes_do_not_count() -> None:
    other = statement(nonce="9" * 32).to_payload()
    result = count(*signed(ALICE), *bundles(other, BOB))
    assert result.persons == ("alice",)
    assert "signs other bytes" in only_problem(result)
    assert result.forged == 1


def test_an_approval_of_another_version_is_not_replayed() -> None:
    result = count(*bundles(statement(version=2).to_payload(), ALICE, BOB))
    assert result.persons == ()
    assert result.forged == 2


def test_a_forged_signature_does_not_count() -> None:
    document = json.loads(signed(MALLORY)[0])
    document["verificationMaterial"]["publicKey"]["hint"] = BOB.keyid
    document["dsseEnvelope"]["signatures"][0]["keyid"] = BOB.keyid
    result = count(*signed(ALICE), json.dumps(document))
    assert result.persons == ("alice",)
    assert "does not verify" in only_problem(result)
    assert result.forged == 1


def test_a_signature_of_another_type_does_not_count() -> None:
    result = count(*signed(ALICE), sign_bundle(PAYLOAD, "text/plain", BOB))
    assert result.persons == ("alice",)
    assert "signs a 'text/plain'" in only_problem(result)


def test_two_signatures_in_one_envelope_do_not_count() -> None:
    alice, bob = (json.loads(text) for text in signed(ALICE, BOB))
    alice["dsseEnvelope"]["signatures"] += bob["dsseEnvelope"]["signatures"]
    result = count(json.dumps(alice))
    assert result.persons == ()
    assert "2 signatures" in only_problem(result)


def test_a_duplicate_key_does_not_count() -> None:
    (text,) = signed(ALICE)
    result = count(text.replace('"mediaType"', '"mediaType":"x","mediaType"'))
    assert "duplicate key" in only_problem(result)


def test_past_its_date_nobody_counts() -> None:
    assert count(*signed(ALICE, BOB), now_ms=NOW + DAY).sufficient
    result = count(*signed(ALICE, BOB), now_ms=NOW + DAY + 1)
    assert result.persons == ()
    assert "past its date" in only_problem(result)


def test_a_record_that_is_not_what_was_signed_counts_nobody() -> None:
    texts = signed(ALICE, BOB)
    result = tally(statement(threshold=1), PAYLOAD, texts, roots(), now_ms=NOW)
    assert result.persons == ()
    assert "not what the signed bytes say" in only_problem(result)


def test_a_statement_cannot_go_below_the_trust_roots_floor() -> None:
    alone = statement(threshold=1)
    payload = alone.to_payload()
    trusted = roots().with_approval_threshold("prod", 2)
    result = tally(alone, payload, bundles(payload, ALICE), trusted, now_ms=NOW)
    assert result.required == 2
    assert not result.sufficient


def test_the_role_must_cover_both_names() -> None:
    """Bob approves ``fraud*`` only; Alice approves all."""
    for served_as, persons in (("fraud-live", ("alice", "bob")), ("prod.fraud", ("alice",))):
        said = statement(served_as=served_as)
        payload = said.to_payload()
        counted = tally(said, payload, bundles(payload, ALICE, BOB), roots(), now_ms=NOW)
        assert counted.persons == persons
    assert "bob has no role to approve prod.fraud for prod" in only_problem(counted)
    said = statement(model_name="payments", served_as="fraud")
    payload = said.to_payload()
    counted = tally(said, payload, bundles(payload, BOB), roots(), now_ms=NOW)
    assert "bob has no role to approve payments for prod" in only_problem(counted)


def test_a_signature_does_not_move_to_another_served_name() -> None:
    said = statement(served_as="fraud-live")
    other = statement(served_as="fraud-loans")
    signatures = bundles(said.to_payload(), ALICE, BOB)
    counted = tally(other, other.to_payload(), signatures, roots(), now_ms=NOW)
    assert (counted.persons, counted.forged) == ((), 2)
    counted = tally(other, said.to_payload(), signatures, roots(), now_ms=NOW)
    assert not counted.persons
