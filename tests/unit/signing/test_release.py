"""Verified loads: the order of the checks, and every way to load the wrong bytes."""

import json
from dataclasses import replace

import pytest

from governance.canonical import FileDigest, Manifest
from governance.errors import (
    ExpiredError,
    GovernanceError,
    RevokedError,
    SignatureError,
    TamperedError,
    UnreachableError,
    UnsignedError,
    UntrustedKeyError,
)
from governance.signing.release import Origin, Release, Revocation, VerifiedLoad, verify_release
from governance.signing.statements import statement_id
from tests.unit.signing.signing_world import (
    ALICE,
    ALICE_SECOND,
    BOB,
    CAROL,
    DAY,
    MALLORY,
    NOW,
    bundles,
    clearance,
    link,
    manifest,
    release,
    roots,
    statement,
)

PIN = roots().digest


def load(
    document: Release,
    found: Manifest | None = None,
    *,
    environment: str | None = None,
    require_signature: bool = False,
    now_ms: int = NOW,
) -> VerifiedLoad:
    return verify_release(
        Release.parse(document.to_json()),
        found or manifest(),
        environment=environment,
        require_signature=require_signature,
        pinned_first_root=PIN,
        now_ms=now_ms,
    )


def test_a_released_version_loads() -> None:
    verified = load(release(), environment="prod")
    assert verified.signers == ("alice", "bob")
    assert verified.environments == ("prod",)
    assert verified.root_digest == manifest().root_digest
    assert verified.statement_id is not None


def test_round_trip() -> None:
    full = release(
        revoked=Revocation("it is biased", NOW), deleted_ms=NOW, digest_error="x", manifest=None
    )
    assert Release.parse(full.to_json()) == full
    assert Release.parse(release().to_json(), model="fraud", version=3) == release()


def test_another_version_than_asked_for_is_refused() -> None:
    with pytest.raises(TamperedError, match="not what was asked"):
        Release.parse(release().to_json(), model="fraud", version=2)
    with pytest.raises(TamperedError, match="not what was asked"):
        Release.parse(release().to_json(), model="credit")


def test_without_a_signature_requirement_the_bytes_alone_count() -> None:
    plain = release(requires_signature=False, clearances=(), trust_roots=(), environments=())
    assert load(plain).signers == ()
    with pytest.raises(UnsignedError):
        load(plain, require_signature=True)
    with pytest.raises(UnsignedError, match="prod"):
        load(plain, environment="prod")
    with pytest.raises(TamperedError):
        load(plain, manifest("other"))


def test_a_revoked_or_deleted_version_is_refused_first() -> None:
    with pytest.raises(RevokedError, match="it is biased"):
        load(release(revoked=Revocation("it is biased", NOW)), manifest("other"))
    with pytest.raises(RevokedError, match="deleted"):
        load(release(deleted_ms=NOW), manifest("other"))


def test_other_bytes_are_refused_and_the_files_named() -> None:
    with pytest.raises(TamperedError, match=r"changed file model\.pkl"):
        load(release(clearances=()), manifest("other"))
    renamed = Manifest.of(replace(f, path=f"x/{f.path}") for f in manifest().files)
    with pytest.raises(TamperedError, match=r"removed file MLmodel.*added file x/MLmodel"):
        load(release(), renamed)


def test_a_long_list_of_differences_is_cut() -> None:
    many = Manifest.of(FileDigest(f"f{n}", 1, "0" * 64) for n in range(30))
    with pytest.raises(TamperedError, match="and 22 more") as caught:
        load(release(), many)
    assert caught.value.message.count("file") < 20


def test_a_version_without_a_manifest_is_refused() -> None:
    with pytest.raises(UnreachableError, match="bucket is gone"):
        load(release(manifest=None, digest_error="the bucket is gone"))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format":"chancery.manifest/v1","files":[1]}'])
def test_a_malformed_manifest_is_refused(text: str) -> None:
    with pytest.raises(SignatureError, match="malformed"):
        load(release(manifest=text))


def test_a_missing_clearance_is_refused() -> None:
    with pytest.raises(UnsignedError):
        load(release(clearances=()))
    with pytest.raises(UnsignedError, match="for canary"):
        load(release(), environment="canary")
    with pytest.raises(UnsignedError, match="for canary"):
        load(release(environments=("prod", "canary")))
    unsigned = replace(clearance(), bundles=())
    with pytest.raises(UnsignedError, match="0 signed"):
        load(release(clearances=(unsigned,)))


def test_a_requirement_without_an_environment_takes_the_newest_clearance() -> None:
    older = clearance(statement(to_environment="canary", registry_epoch=1, threshold=1), BOB)
    assert load(release(environments=(), clearances=(clearance(), older))).environments == ("prod",)


def test_every_environment_that_points_here_is_checked() -> None:
    canary = clearance(statement(to_environment="canary", threshold=1), BOB)
    both = release(environments=("prod", "canary"), clearances=(clearance(), canary))
    assert load(both).environments == ("canary", "prod")
    assert load(both, environment="prod").environments == ("prod",)


@pytest.mark.parametrize(
    "signers",
    [(ALICE,), (ALICE, ALICE_SECOND), (ALICE, ALICE), (ALICE, MALLORY), (ALICE, CAROL)],
    ids=["1 of 2", "two keys of one person", "one signature twice", "stranger", "no role"],
)
def test_too_few_people_are_refused(signers: tuple[object, ...]) -> None:
    short = clearance(statement(), *signers)  # type: ignore[arg-type]
    with pytest.raises(UntrustedKeyError, match="needs 2 people, but 1 signed"):
        load(release(clearances=(short,)))


def test_a_signer_who_left_the_trust_roots_is_refused() -> None:
    new = roots().successor().grant("carol", roots().people[0].roles[0]).remove_person("bob")
    chain = (link(roots(), ALICE, BOB), link(new, ALICE, BOB, CAROL))
    with pytest.raises(UntrustedKeyError, match="not in the trust roots"):
        load(release(trust_roots=chain))


def test_a_revoked_key_is_refused() -> None:
    new = roots().successor().revoke_key(ALICE.keyid)
    chain = (link(roots(), ALICE, BOB), link(new, ALICE, ALICE_SECOND, BOB))
    with pytest.raises(UntrustedKeyError, match="is revoked"):
        load(release(trust_roots=chain))


def test_trust_roots_of_an_attacker_are_refused() -> None:
    payload = roots().add_person("mallory", "M", [MALLORY.public_key_pem]).to_payload()
    own = link(type(roots()).parse(payload), ALICE, BOB)
    with pytest.raises(UntrustedKeyError, match="is pinned"):
        load(release(trust_roots=(own,)))
    with pytest.raises(UntrustedKeyError, match="no trust roots"):
        load(release(trust_roots=()))


def test_a_forged_signature_is_refused() -> None:
    whole = clearance()
    forged = json.loads(bundles(whole.payload, MALLORY)[0])
    forged["verificationMaterial"]["publicKey"]["hint"] = BOB.keyid
    forged["dsseEnvelope"]["signatures"][0]["keyid"] = BOB.keyid
    with pytest.raises(SignatureError, match="does not verify"):
        load(release(clearances=(replace(whole, bundles=(whole.bundles[0], json.dumps(forged))),)))


def test_a_lowered_threshold_breaks_the_signatures() -> None:
    lowered = replace(clearance(), payload=statement(threshold=1).to_payload())
    with pytest.raises(SignatureError, match="other bytes"):
        load(release(clearances=(lowered,)))


def test_a_rogue_statement_cannot_go_below_the_trust_roots_floor() -> None:
    alone = clearance(statement(threshold=1), ALICE)
    assert load(release(clearances=(alone,))).signers == ("alice",)
    new = roots().successor().with_approval_threshold("prod", 2)
    chain = (link(roots(), ALICE, BOB), link(new, ALICE, BOB))
    with pytest.raises(UntrustedKeyError, match="needs 2 people"):
        load(release(clearances=(alone,), trust_roots=chain))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"root_digest": "0" * 64}, "root digest"),
        ({"manifest_digest": "0" * 64}, "manifest digest"),
        ({"model_name": "fraud-eu"}, "model"),
        ({"version": 2}, "version"),
        ({"model_uid": "9" * 32}, "model uid"),
        ({"version_uid": "9" * 32}, "version uid"),
    ],
)
def test_a_swapped_signature_is_refused(changes: dict[str, object], name: str) -> None:
    swapped = clearance(statement(**changes))
    with pytest.raises(TamperedError, match=f"signed for something else.*other {name}"):
        load(release(clearances=(swapped,)))


def test_a_clearance_for_another_environment_is_refused() -> None:
    canary = clearance(statement(to_environment="canary", threshold=1), BOB)
    with pytest.raises(TamperedError, match="other environment"):
        load(release(clearances=(replace(canary, environment="prod"),)))


def test_an_expired_clearance_is_refused() -> None:
    short = release(clearances=(clearance(statement(valid_until_ms=NOW)),))
    assert load(short, now_ms=NOW).signers == ("alice", "bob")
    with pytest.raises(ExpiredError):
        load(short, now_ms=NOW + 1)


def test_the_deadline_of_a_promotion_does_not_end_loading() -> None:
    assert load(release(), now_ms=NOW + 100 * DAY).signers == ("alice", "bob")


def test_the_newest_clearance_counts() -> None:
    old = clearance(statement(registry_epoch=1))
    new = clearance(statement(registry_epoch=2, valid_until_ms=NOW - 1))
    with pytest.raises(ExpiredError):
        load(release(clearances=(new, old)))


ORIGIN = Origin("fraud", 3, "a" * 32, "b" * 32)


SERVED = clearance(statement(served_as="fraud-live"))


def copy(**changes: object) -> Release:
    """``fraud-live/1``, a promoted copy of ``fraud/3``, which people approved for that name."""
    identity = {"model": "fraud-live", "version": 1, "model_uid": "1" * 32, "version_uid": "2" * 32}
    return release(**{**identity, "origin": ORIGIN, "clearances": (SERVED,), **changes})


def test_a_promoted_copy_loads_by_its_origins_clearance() -> None:
    assert load(copy()).signers == ("alice", "bob")
    assert load(copy(), environment="prod").model == "fraud-live"
    assert Release.parse(copy().to_json()) == copy()


def test_without_its_origin_a_copy_has_no_clearance() -> None:
    with pytest.raises(TamperedError, match=r"other model, version, .*version uid, served name"):
        load(copy(origin=None))
    with pytest.raises(TamperedError, match=r"other model, version, model uid, version uid\)"):
        load(copy(origin=None, clearances=(clearance(),)))


def test_a_version_approved_for_one_served_name_is_not_served_from_another() -> None:
    """The attack: approved for ``fraud-live``, shown as ``fraud-loans``."""
    with pytest.raises(UnsignedError, match=r"fraud-loans/1 has no.*to prod as fraud-live") as said:
        load(copy(model="fraud-loans"))
    assert "chancery request models:/fraud/3 --to prod --as fraud-loans" in said.value.remedy
    both = (SERVED, clearance(statement(served_as="fraud-loans", registry_epoch=9)))
    for model in ("fraud-live", "fraud-loans"):
        assert load(copy(model=model, clearances=both)).signers == ("alice", "bob")
    for spelling in ("Fraud-live", "fraud-live ", "fraud-live2"):
        with pytest.raises(UnsignedError):
            load(copy(model=spelling))


def test_a_clearance_under_the_own_name_does_not_serve_a_copy_and_the_reverse() -> None:
    with pytest.raises(UnsignedError, match="models:/fraud/3 to prod under its own name"):
        load(copy(clearances=(clearance(),)))
    with pytest.raises(UnsignedError, match="models:/fraud/3 to prod as fraud-live"):
        load(release(clearances=(SERVED,)))
    with pytest.raises(UnsignedError, match="for any environment"):  # nor where any would do
        load(release(clearances=(SERVED,), environments=()), require_signature=True)
    later = clearance(statement(served_as="fraud-live", registry_epoch=99))
    assert load(release(clearances=(later, clearance()))).environments == ("prod",)


def test_a_server_cannot_pass_the_origin_off_as_the_copy() -> None:
    with pytest.raises(UnsignedError):  # the copy is said to be the very version it came from
        load(copy(model_uid=ORIGIN.model_uid, version_uid=ORIGIN.version_uid,
                  clearances=(clearance(),)))  # fmt: skip
    with pytest.raises(TamperedError, match="other model, version"):
        load(copy(model_uid=ORIGIN.model_uid, version_uid=ORIGIN.version_uid, origin=None,
                  clearances=(clearance(),)))  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"model": "credit"}, "model"),
        ({"version": 2}, "version"),
        ({"model_uid": "9" * 32}, "model uid"),
        ({"version_uid": "9" * 32}, "version uid"),
    ],
)
def test_an_origin_that_was_not_signed_is_refused(changes: dict[str, object], name: str) -> None:
    with pytest.raises(TamperedError, match=f"signed for something else.*{name}"):
        load(copy(origin=replace(ORIGIN, **changes)))  # type: ignore[arg-type]


def test_a_copy_of_other_bytes_than_the_approved_is_refused() -> None:
    other = manifest("other")
    with pytest.raises(TamperedError, match="other root digest, manifest digest"):
        load(copy(manifest=other.to_json().decode()), other)
    with pytest.raises(TamperedError, match="differ from the registered"):
        load(copy(), other)


def test_an_origins_clearance_for_another_environment_is_refused() -> None:
    said = statement(to_environment="canary", threshold=1, served_as="fraud-live")
    canary = clearance(said, BOB)
    with pytest.raises(UnsignedError, match="for prod"):
        load(copy(clearances=(canary,)))
    with pytest.raises(TamperedError, match="other environment"):
        load(copy(clearances=(replace(canary, environment="prod"),)))


def test_the_signers_of_an_origin_must_answer_for_the_served_name() -> None:
    served = clearance(statement(served_as="credit"))
    with pytest.raises(UntrustedKeyError, match=r"1 signed validly.*bob has no role to approve cr"):
        load(copy(model="credit", clearances=(served,)))  # bob approves fraud* only


def test_a_clearance_of_the_copy_itself_still_counts() -> None:
    own = clearance(
        statement(model_name="fraud-live", version=1, model_uid="1" * 32, version_uid="2" * 32)
    )
    assert load(copy(clearances=(own,))).signers == ("alice", "bob")
    assert load(copy(clearances=(SERVED, own))).statement_id == statement_id(own.payload)
    assert load(copy(clearances=(own, SERVED))).statement_id == statement_id(own.payload)
    assert load(copy(clearances=(own,), origin=None)).signers == ("alice", "bob")


def test_an_origin_may_be_absent_or_null_and_nothing_else() -> None:
    document = json.loads(release().to_json())
    assert "origin" not in document
    assert Release.parse(json.dumps({**document, "origin": None})) == release()
    whole = json.loads(copy().to_json())["origin"]
    for strange in ({}, "fraud", False, {**whole, "extra": 1}, {**whole, "version": 0}):
        with pytest.raises(SignatureError):
            Release.parse(json.dumps({**document, "origin": strange}))
    for key in whole:
        with pytest.raises(SignatureError, match="missing"):
            Release.parse(
                json.dumps({**document, "origin": {k: v for k, v in whole.items() if k != key}})
            )


def test_a_strange_document_is_refused() -> None:
    text = release().to_json()
    document = json.loads(text)
    for key, value in (
        ("format", "chancery.release/v2"),
        ("extra", 1),
        ("requiresSignature", 0),
        ("version", "3"),
        ("environments", "prod"),
        ("clearances", [{}]),
        ("trustRoots", {}),
        ("revoked", False),
        ("revoked", {"reason": "x", "timeMs": 1, "extra": 1}),
        ("manifest", {}),
    ):
        with pytest.raises(GovernanceError):
            Release.parse(json.dumps({**document, key: value}))
    for key in document:
        with pytest.raises(SignatureError, match="missing"):
            Release.parse(json.dumps({k: v for k, v in document.items() if k != key}))
    with pytest.raises(SignatureError, match="duplicate"):
        Release.parse(text.replace('"revoked"', '"revoked":null,"revoked"'))
