"""DSSE envelopes in sigstore bundles (v0.3): the one container for every signature we make.

A bundle holds one payload and one Ed25519 signature. Several people sign with several bundles over
identical payload bytes, never with several signatures in one envelope: other verifiers demand
exactly one. ``keyid`` and ``hint`` are the same: the SHA-256 of the PEM SubjectPublicKeyInfo.

The signature covers the DSSE pre-authentication encoding (``pae``), so a payload signed as one
type cannot be passed off as another.

Example::

    text = sign_bundle(b"{}", "application/vnd.in-toto+json", signer)
    payload = verify_bundle(
        parse_bundle(text), signer.public_key_pem, payload_type="application/vnd.in-toto+json"
    )
"""

from __future__ import annotations

from dataclasses import dataclass

from governance.canonical import canonical_json
from governance.errors import SignatureError
from governance.signing.documents import read_json, to_base64
from governance.signing.keys import Signer, keyid_of, verify_signature

__all__ = [
    "MEDIA_TYPE",
    "SIZE_LIMIT",
    "Bundle",
    "pae",
    "parse_bundle",
    "sign_bundle",
    "verify_bundle",
]

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIZE_LIMIT = 64 * 1024
"""The most characters of a bundle's JSON text."""

_SIGNATURE_SIZE = 64


@dataclass(frozen=True, slots=True)
class Bundle:
    """A parsed bundle. Nothing in it is verified yet.

    Attributes:
        payload: The signed bytes.
        payload_type: Their media type.
        keyid: Which key is said to have signed them.
        signature: The Ed25519 signature of ``pae(payload_type, payload)``.
    """

    payload: bytes
    payload_type: str
    keyid: str
    signature: bytes


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE v1 pre-authentication encoding: the bytes that are signed."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign_bundle(payload: bytes, payload_type: str, signer: Signer) -> str:
    """A bundle's JSON text, with the signer's signature over the payload.

    Raises:
        SignatureError: the bundle would be too large for any reader.
    """
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": signer.keyid}},
        "dsseEnvelope": {
            "payload": to_base64(payload),
            "payloadType": payload_type,
            "signatures": [
                {"keyid": signer.keyid, "sig": to_base64(signer.sign(pae(payload_type, payload)))}
            ],
        },
    }
    text = canonical_json(bundle).decode("utf-8")
    if len(text) > SIZE_LIMIT:
        raise SignatureError(
            f"the bundle would have {len(text)} characters; readers take at most {SIZE_LIMIT}"
        )
    return text


def parse_bundle(text: str) -> Bundle:
    """Read a bundle's JSON text strictly; this verifies nothing.

    Raises:
        SignatureError: too large, malformed, a duplicate or unknown key, another media type,
            not exactly one signature, or a hint that names another key than the signature.
    """
    document = read_json(text, "the bundle", limit=SIZE_LIMIT)
    document.exactly("mediaType", MEDIA_TYPE)
    material = document.fields("verificationMaterial")
    public_key = material.fields("publicKey")
    hint = public_key.digest("hint")
    envelope = document.fields("dsseEnvelope")
    payload = envelope.binary("payload")
    payload_type = envelope.text("payloadType")
    signatures = envelope.each("signatures")
    if len(signatures) != 1:
        raise SignatureError(f"the envelope has {len(signatures)} signatures, not exactly one")
    keyid = signatures[0].digest("keyid")
    signature = signatures[0].binary("sig")
    for fields in (document, material, public_key, envelope, signatures[0]):
        fields.done()
    if keyid != hint:
        raise SignatureError("the bundle's hint and its signature's keyid name different keys")
    if len(signature) != _SIGNATURE_SIZE:
        raise SignatureError(f"the signature has {len(signature)} bytes, not {_SIGNATURE_SIZE}")
    return Bundle(payload, payload_type, keyid, signature)


def verify_bundle(
    bundle: Bundle, public_key_pem: str, *, payload_type: str, payload: bytes | None = None
) -> bytes:
    """The bundle's payload, once its signature is known to be this key's.

    Args:
        bundle: From ``parse_bundle``.
        public_key_pem: The key that must have signed.
        payload_type: What the payload must have been signed as.
        payload: What must have been signed, when the caller has the bytes already.

    Raises:
        SignatureError: another key, type or payload, or the signature is forged.
    """
    if bundle.keyid != keyid_of(public_key_pem):
        raise SignatureError(f"the bundle names key {bundle.keyid[:12]}…, which is another key")
    if bundle.payload_type != payload_type:
        raise SignatureError(f"the bundle signs a {bundle.payload_type!r}, not a {payload_type!r}")
    if payload is not None and bundle.payload != payload:
        raise SignatureError("the bundle signs other bytes than the document at hand")
    verify_signature(public_key_pem, bundle.signature, pae(payload_type, bundle.payload))
    return bundle.payload
