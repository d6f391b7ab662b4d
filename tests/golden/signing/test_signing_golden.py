"""Documents that the first release signed. They must verify forever: never write them anew.

The keys were made for these files alone. A format that changes gets new files beside these.
"""

from pathlib import Path

import pytest

from governance.canonical import Manifest
from governance.errors import SignatureError, TamperedError, UnsignedError, UntrustedKeyError
from governance.signing.approvals import tally
from governance.signing.dsse import parse_bundle, verify_bundle
from governance.signing.release import Release, verify_release
from governance.signing.roots import TrustRoots
from governance.signing.statements import PAYLOAD_TYPE, PromotionStatement, statement_id

HERE = Path(__file__).parent
FIRST_ROOT = "ee08f8f40e78618e28730f13edc7b5996836428049feedf56bc86542c7d81ae2"
STATEMENT_ID = "da36efb1fa2fb0f6877cf3ff3253eadbc48cbfefdae22d729ee76580f6beedb2"
NOW = 1_790_000_000_000


def data(name: str) -> bytes:
    return (HERE / name).read_bytes()


@pytest.mark.parametrize("person", ["alice", "bob"])
def test_a_bundle_of_the_first_release_verifies(person: str) -> None:
    bundle = parse_bundle(data(f"statement.{person}.sigstore.json").decode())
    payload = data("statement.json")
    key = data(f"{person}.pub").decode()
    verified = verify_bundle(bundle, key, payload_type=PAYLOAD_TYPE, payload=payload)
    assert statement_id(verified) == STATEMENT_ID


def test_a_statement_of_the_first_release_reads_and_writes_the_same() -> None:
    payload = data("statement.json")
    statement = PromotionStatement.parse(payload)
    assert statement.to_payload() == payload
    assert (statement.uri, statement.to_environment, statement.threshold) == (
        "models:/fraud/3",
        "prod",
        2,
    )


def test_trust_roots_of_the_first_release_read_and_write_the_same() -> None:
    first, second = (TrustRoots.parse(data(f"trust-roots.{n}.json")) for n in (1, 2))
    assert first.to_payload() == data("trust-roots.1.json")
    assert second.to_payload() == data("trust-roots.2.json")
    assert first.digest == second.previous == FIRST_ROOT


def test_approvals_of_the_first_release_count() -> None:
    payload = data("statement.json")
    bundles = [data(f"statement.{person}.sigstore.json").decode() for person in ("alice", "bob")]
    roots = TrustRoots.parse(data("trust-roots.2.json"))
    statement = PromotionStatement.parse(payload)
    counted = tally(statement, payload, bundles, roots, now_ms=NOW)
    assert counted.persons == ("alice", "bob")
    assert counted.problems == ()


def load(
    text: str, manifest: bytes, pin: str = FIRST_ROOT, *, name: str = "fraud", version: int = 3
) -> tuple[str, ...]:
    return verify_release(
        Release.parse(text, model=name, version=version),
        Manifest.from_json(manifest),
        environment="prod",
        require_signature=True,
        pinned_first_root=pin,
        now_ms=NOW,
    ).signers


def test_a_release_of_the_first_release_loads() -> None:
    text = data("release.json").decode()
    assert Release.parse(text).to_json() == text
    assert load(text, data("manifest.json")) == ("alice", "bob")


def test_a_copy_in_a_protected_registered_model_loads_under_its_name_only() -> None:
    payload = data("statement.served-as.json")
    statement = PromotionStatement.parse(payload)
    assert statement.to_payload() == payload
    assert (statement.uri, statement.served_as) == ("models:/fraud/3", "fraud-live")
    text = data("release.served-as.json").decode()
    assert Release.parse(text).to_json() == text
    manifest = data("manifest.json")
    assert load(text, manifest, name="fraud-live", version=1) == ("alice", "bob")
    with pytest.raises(UnsignedError):
        load(text.replace('"model":"fraud-live"', '"model":"fraud-loans"'), manifest,
             name="fraud-loans", version=1)  # fmt: skip


def test_and_still_refuses_other_bytes_roots_and_signatures() -> None:
    text = data("release.json").decode()
    other = data("manifest.json").replace(b'"size":"7"', b'"size":"8"')
    with pytest.raises(TamperedError):
        load(text, other)
    with pytest.raises(UntrustedKeyError):
        load(text, data("manifest.json"), pin="0" * 64)
    bundle = parse_bundle(data("statement.alice.sigstore.json").decode())
    with pytest.raises(SignatureError):
        verify_bundle(bundle, data("bob.pub").decode(), payload_type=PAYLOAD_TYPE)
