"""Fixed people, keys and documents for the signing tests.

The private keys are derived from names, so golden files can be made again byte for byte.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from governance.canonical import FileDigest, Manifest
from governance.signing.dsse import sign_bundle
from governance.signing.keys import keyid_of
from governance.signing.release import Clearance, Release
from governance.signing.roots import ADMIN, Person, TrustRoots, approver
from governance.signing.statements import PAYLOAD_TYPE, InputAttestation, PromotionStatement
from governance.signing.trust import ChainLink, sign_roots

NOW = 1_790_000_000_000
DAY = 86_400_000


@dataclass(frozen=True)
class MemorySigner:
    """A signer whose private key is the hash of its name: for tests only."""

    name: str
    key: Ed25519PrivateKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        seed = hashlib.sha256(f"test key of {self.name}".encode()).digest()
        object.__setattr__(self, "key", Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def public_key_pem(self) -> str:
        public = self.key.public_key()
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    @property
    def keyid(self) -> str:
        return keyid_of(self.public_key_pem)

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data)


ALICE, BOB, CAROL, MALLORY = (MemorySigner(name) for name in ("alice", "bob", "carol", "mallory"))
ALICE_SECOND = MemorySigner("alice, second key")


def manifest(content: str = "weights") -> Manifest:
    digest = hashlib.sha256(content.encode()).hexdigest()
    other = hashlib.sha256(b"MLmodel").hexdigest()
    return Manifest.of(
        [FileDigest("model.pkl", len(content), digest), FileDigest("MLmodel", 7, other)]
    )


def statement(**changes: object) -> PromotionStatement:
    files = manifest()
    values: dict[str, object] = {
        "model_uid": "a" * 32,
        "version_uid": "b" * 32,
        "model_name": "fraud",
        "version": 3,
        "logged_model_id": "m-0123456789abcdef",
        "root_digest": files.root_digest,
        "manifest_digest": files.manifest_digest,
        "from_environment": "staging",
        "to_environment": "prod",
        "registry_epoch": 7,
        "nonce": "c" * 32,
        "not_after_ms": NOW + DAY,
        "threshold": 2,
        "decision_digest": "d" * 64,
        "policy_uri": "chancery:policy",
        "policy_digest": "e" * 64,
        "verifier_id": "https://chancery.example/gate",
        "time_verified_ms": NOW,
        "inputs": (InputAttestation("runs:/0123", "f" * 64),),
        "verified_levels": ("CHANCERY_GATE",),
    }
    return PromotionStatement(**{**values, **changes})  # type: ignore[arg-type]


def roots() -> TrustRoots:
    """Alice (two keys) and Bob are administrators and approve all; Carol approves credit models."""
    return TrustRoots(
        version=1,
        previous=None,
        admin_threshold=2,
        people=(
            Person(
                "alice",
                "Alice",
                (ALICE.public_key_pem, ALICE_SECOND.public_key_pem),
                (ADMIN, approver("prod", "*")),
            ),
            Person("bob", "Bob", (BOB.public_key_pem,), (ADMIN, approver("*", "fraud*"))),
            Person("carol", "Carol", (CAROL.public_key_pem,), (approver("prod", "credit*"),)),
        ),
    )


def link(document: TrustRoots, *signers: MemorySigner) -> ChainLink:
    payload = document.to_payload()
    return payload, tuple(sign_roots(payload, signer) for signer in signers)


def bundles(payload: bytes, *signers: MemorySigner) -> tuple[str, ...]:
    return tuple(sign_bundle(payload, PAYLOAD_TYPE, signer) for signer in signers)


def clearance(signed: PromotionStatement | None = None, *signers: MemorySigner) -> Clearance:
    signed = signed or statement()
    payload = signed.to_payload()
    return Clearance(
        signed.to_environment,
        signed.registry_epoch,
        payload,
        bundles(payload, *(signers or (ALICE, BOB))),
    )


def release(**changes: object) -> Release:
    values: dict[str, object] = {
        "model": "fraud",
        "version": 3,
        "model_uid": "a" * 32,
        "version_uid": "b" * 32,
        "logged_model_id": "m-0123456789abcdef",
        "manifest": manifest().to_json().decode(),
        "digest_error": None,
        "revoked": None,
        "environments": ("prod",),
        "requires_signature": True,
        "clearances": (clearance(),),
        "trust_roots": (link(roots(), ALICE, BOB),),
    }
    return Release(**{**values, **changes})  # type: ignore[arg-type]
