"""Signed HTTP requests: RFC 9421 in one fixed profile, with RFC 9530 body digests.

A signed request carries exactly these three headers, once each::

    Content-Digest: sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:
    Signature-Input: chancery=("@method" "@path" "@query" "content-digest")
        ;created=1767225600;nonce="…";keyid="…";alg="ed25519"      (one line)
    Signature: chancery=:…:

Everything else is refused: another label, other or reordered components, a second signature, a
repeated header, optional white space. RFC 9421 allows much more; none of it is needed here, and
what is not accepted cannot be abused. Signers and verifiers of other makes interoperate as long
as they produce these bytes.

The signature base (RFC 9421, 2.5) covers the path and query *as sent on the wire*, before any
percent-decoding: the ASGI ``raw_path`` (which begins with ``root_path`` when the server knows the
prefix that a reverse proxy strips) and ``query_string``. An empty path is ``/`` and an absent
query is ``?`` (2.2.6, 2.2.7). Host and scheme are not covered, since proxies rewrite them.

The digest covers the body's bytes as sent and is always there, of the empty body if need be, so a
body cannot be added. This module checks the signature over the *claimed* digest; whoever reads the
body compares it with ``SignedRequest.content_sha256``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from governance.errors import AuthenticationError, SignatureError
from governance.signing.keys import Signer, keyid_of, verify_signature

__all__ = [
    "EMPTY_SHA256",
    "SIGNATURE_HEADERS",
    "WINDOW_SECONDS",
    "SignedRequest",
    "sign_request",
    "verify_request",
]

WINDOW_SECONDS = 300
"""How far ``created`` may lie from the server's clock, either way."""

EMPTY_SHA256 = hashlib.sha256(b"").digest()

SIGNATURE_HEADERS = ("signature", "signature-input")
"""A request with any of these claims to be signed, and is refused unless it verifies."""

_COMPONENTS = '("@method" "@path" "@query" "content-digest")'
_INPUT = re.compile(
    r"chancery=(?P<params>"
    + re.escape(_COMPONENTS)
    + r';created=(?P<created>[1-9][0-9]{0,11});nonce="(?P<nonce>[A-Za-z0-9_-]{22,64})"'
    r';keyid="(?P<keyid>[0-9a-f]{64})";alg="ed25519")'
)
_SIGNATURE = re.compile(r"chancery=:(?P<value>[A-Za-z0-9+/]{86}==):")
_DIGEST = re.compile(r"sha-256=:(?P<value>[A-Za-z0-9+/]{43}=):")
_METHOD = re.compile(r"[A-Z]{1,16}")
_TARGET = re.compile(r"[\x21-\x7e]*")  # no white space or line ends can enter the signature base
_NONCE = re.compile(r"[A-Za-z0-9_-]{22,64}")


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """What a verified signature says.

    Attributes:
        keyid: The key that signed.
        nonce: The client's own name for this request; it may be carried out once.
        created: When it was signed, in seconds since the epoch.
        content_sha256: SHA-256 that the body must have.
        base_digest: Hex SHA-256 of the signature base: names this exact request.
    """

    keyid: str
    nonce: str
    created: int
    content_sha256: bytes
    base_digest: str


def sign_request(
    signer: Signer,
    *,
    method: str,
    path: str,
    query: str,
    content_sha256: bytes,
    created: int,
    nonce: str,
) -> dict[str, str]:
    """The headers that sign one request.

    Args:
        signer: The person's key.
        method: HTTP method, upper case.
        path: Path as it will be sent, percent-encoded.
        query: Query as it will be sent, without ``?``; empty when there is none.
        content_sha256: SHA-256 of the body as it will be sent.
        created: The time, in seconds since the epoch.
        nonce: 22 to 64 characters of unpadded URL-safe base64, never used before by this key.

    Raises:
        AuthenticationError: a part cannot be signed in this profile.
    """
    if not _NONCE.fullmatch(nonce):
        raise AuthenticationError("the nonce is not 22 to 64 URL-safe base64 characters")
    digest = f"sha-256=:{base64.b64encode(content_sha256).decode()}:"
    params = f'{_COMPONENTS};created={created};nonce="{nonce}";keyid="{signer.keyid}";alg="ed25519"'
    base = _signature_base(method, path, query, digest, params)
    return {
        "Content-Digest": digest,
        "Signature-Input": f"chancery={params}",
        "Signature": f"chancery=:{base64.b64encode(signer.sign(base)).decode()}:",
    }


def verify_request(
    *,
    method: str,
    path: bytes,
    query: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    find_key: Callable[[str], str | None],
    now: datetime,
) -> SignedRequest:
    """Verify a request's signature; the body is still to be compared with its digest.

    Args:
        method: HTTP method.
        path: Path as received (ASGI ``raw_path``).
        query: Query as received, without ``?`` (ASGI ``query_string``).
        headers: All headers, names in lower case.
        find_key: PEM public key of a trusted keyid, else None.
        now: The server's time, with a time zone.

    Raises:
        AuthenticationError: anything is not exactly as this profile has it.
    """
    found = _one_each(headers, ("content-digest", "signature-input", "signature"))
    given = _INPUT.fullmatch(found["signature-input"])
    if given is None:
        raise AuthenticationError(
            "Signature-Input is not in the chancery profile",
            f"sign {_COMPONENTS} with created, nonce, keyid and alg, in this order, once",
        )
    signature = _base64(_SIGNATURE, found["signature"], "Signature")
    content_sha256 = _base64(_DIGEST, found["content-digest"], "Content-Digest")
    created = int(given["created"])
    _check_time(created, now)
    keyid = given["keyid"]
    key = find_key(keyid)
    if key is None:
        raise AuthenticationError(
            f"key {keyid[:12]}… is not in the trust roots, or was revoked",
            "ask an administrator to enrol the key, or sign with one that is enrolled",
        )
    base = _signature_base(
        method, _text(path), _text(query), found["content-digest"], given["params"]
    )
    try:
        if keyid_of(key) != keyid:  # a lookup that answers with another key proves nothing
            raise SignatureError(f"the key found for {keyid[:12]}… has another keyid")
        verify_signature(key, signature, base)
    except SignatureError as error:
        raise AuthenticationError(
            f"the request's signature is wrong: {error.message}",
            "method, path, query, digest and parameters must arrive as they were signed; a proxy "
            "that rewrites the path must be named by the server's root path",
        ) from error
    return SignedRequest(
        keyid=keyid,
        nonce=given["nonce"],
        created=created,
        content_sha256=content_sha256,
        base_digest=hashlib.sha256(base).hexdigest(),
    )


def _signature_base(method: str, path: str, query: str, digest: str, params: str) -> bytes:
    """RFC 9421, 2.5: one line a component, joined by LF, no LF at the end."""
    if not _METHOD.fullmatch(method):
        raise AuthenticationError(f"the method {method!r} cannot be signed")
    if not (_TARGET.fullmatch(path) and _TARGET.fullmatch(query)):
        raise AuthenticationError(
            "the path or query holds white space, control or non-ASCII characters",
            "percent-encode them before signing",
        )
    return "\n".join(
        (
            f'"@method": {method}',
            f'"@path": {path or "/"}',
            f'"@query": ?{query}',
            f'"content-digest": {digest}',
            f'"@signature-params": {params}',
        )
    ).encode("ascii")


def _one_each(headers: Iterable[tuple[bytes, bytes]], names: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name = raw_name.decode("latin-1").lower()
        if name not in names:
            continue
        if name in found:
            raise AuthenticationError(
                f"the header {name} is there more than once", "sign a request exactly once"
            )
        found[name] = _text(raw_value)
    for name in names:
        if name not in found:
            raise AuthenticationError(
                f"the request claims a signature but has no {name} header",
                "send Content-Digest, Signature-Input and Signature together",
            )
    return found


def _text(value: bytes) -> str:
    try:
        return value.decode("ascii")
    except UnicodeDecodeError as error:
        raise AuthenticationError("a signed part of the request is not ASCII") from error


def _base64(pattern: re.Pattern[str], text: str, header: str) -> bytes:
    """The one canonical spelling only, so that two header values never mean the same bytes."""
    match = pattern.fullmatch(text)
    if match is not None:
        try:
            value = base64.b64decode(match["value"], validate=True)
        except binascii.Error:
            value = b""
        if base64.b64encode(value).decode() == match["value"]:
            return value
    raise AuthenticationError(f"{header} is not in the chancery profile")


def _check_time(created: int, now: datetime) -> None:
    age = now.timestamp() - created
    if abs(age) > WINDOW_SECONDS:
        when = datetime.fromtimestamp(created, UTC).isoformat(timespec="seconds")
        raise AuthenticationError(
            f"the request was signed at {when}, {abs(age):.0f} s "
            f"{'ago' if age > 0 else 'in the future'}; {WINDOW_SECONDS} s are allowed",
            "set the client's clock, and sign anew instead of sending an old request again",
        )
