"""The chain of trust roots: who may replace them, and where they are kept.

After TUF's root rotation. Version 1 is signed by its own administrators and is trusted because a
client pinned its digest (or saw it first). Every later version names the digest of the one before,
counts up by one, and is signed by enough administrators of the version before AND by enough of its
own: nobody joins without the old guard, and nobody is listed whose key does not work. What counts
is distinct people, never keys. A key once revoked stays revoked.

Example::

    with engine.begin() as connection:
        bootstrap(connection, signer, "alice", now_ms=now)
        roots = current(connection)
        draft = roots.successor().add_person("bob", "Bob", [pem], [approver("prod", "fraud*")])
        payload = draft.to_payload()
        append(connection, payload, [sign_roots(payload, signer)], now_ms=now)
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from governance import database
from governance.canonical import canonical_json, parse_json, sha256_hex
from governance.errors import RefusedError, SignatureError, TamperedError, UntrustedKeyError
from governance.signing.dsse import parse_bundle, sign_bundle, verify_bundle
from governance.signing.keys import Signer, normalize_public_key
from governance.signing.roots import (
    ADMIN,
    Person,
    Role,
    RoleKind,
    TrustRoots,
    approver,
    monitor,
)

__all__ = [
    "ADMIN",
    "PAYLOAD_TYPE",
    "ChainLink",
    "Person",
    "Role",
    "RoleKind",
    "TrustRoots",
    "append",
    "approver",
    "bootstrap",
    "current",
    "load_chain",
    "monitor",
    "sign_roots",
    "verify_chain",
]

PAYLOAD_TYPE = "application/vnd.chancery.trust-roots+json"

ChainLink = tuple[bytes, tuple[str, ...]]
"""One version's payload, and the bundles over it."""


def sign_roots(payload: bytes, signer: Signer) -> str:
    """An administrator's signature over trust roots (a bundle's JSON text)."""
    return sign_bundle(payload, PAYLOAD_TYPE, signer)


def verify_chain(
    chain: Sequence[tuple[bytes, Sequence[str]]], *, pinned_first: str | None
) -> TrustRoots:
    """Verify every version from the first on, and return the latest.

    Args:
        chain: Payload and bundles of each version, oldest first.
        pinned_first: Hex SHA-256 that the first payload must have; None accepts any first.

    Raises:
        UntrustedKeyError: empty, another first version than the pinned one, or too few
            administrators signed.
        SignatureError: a document or bundle is malformed or forged.
        TamperedError: a version is missing or does not follow the one before.
    """
    if not chain:
        raise UntrustedKeyError(
            "there are no trust roots, so no signature can be trusted",
            "create them with `chancery trust init`",
        )
    found = sha256_hex(chain[0][0])
    if pinned_first is not None and found != pinned_first:
        raise UntrustedKeyError(
            f"the trust roots begin with {found}, but {pinned_first} is pinned",
            "if the server was set up anew, compare the digest with its administrator and pin it",
        )
    latest: TrustRoots | None = None
    for payload, bundles in chain:
        latest = _verify_link(latest, payload, bundles)
    assert latest is not None
    return latest


def _verify_link(before: TrustRoots | None, payload: bytes, bundles: Sequence[str]) -> TrustRoots:
    """The document in ``payload``, once it is known to follow ``before``."""
    roots = TrustRoots.parse(payload)
    _check_sequence(before, roots)
    old: set[str] = set()
    new: set[str] = set()
    for text in bundles:
        bundle = parse_bundle(text)
        key = (before.public_key(bundle.keyid) if before else None) or roots.public_key(
            bundle.keyid
        )
        if key is None:
            raise UntrustedKeyError(
                f"version {roots.version} of the trust roots is signed with key "
                f"{bundle.keyid[:12]}…, which nobody holds or which is revoked",
                "leave this signature out",
            )
        verify_bundle(bundle, key, payload_type=PAYLOAD_TYPE, payload=payload)
        old |= _admin_behind(before, bundle.keyid)
        new |= _admin_behind(roots, bundle.keyid)
    if before is not None:
        _require(old, before, f"of version {before.version}", roots.version)
    _require(new, roots, "that it names itself", roots.version)
    return roots


def _check_sequence(before: TrustRoots | None, roots: TrustRoots) -> None:
    expected = before.version + 1 if before else 1
    if roots.version != expected:
        raise TamperedError(
            f"version {roots.version} of the trust roots stands where {expected} belongs",
            "fetch the whole chain, and make changes from its latest version",
        )
    if before is None:
        return
    if roots.previous != before.digest:
        raise TamperedError(
            f"version {roots.version} of the trust roots does not follow version {before.version}",
            "make the change again from the latest version",
        )
    forgiven = set(before.revoked_keys) - set(roots.revoked_keys)
    if forgiven:
        raise TamperedError(
            f"version {roots.version} of the trust roots takes back the revocation of key "
            f"{min(forgiven)[:12]}…",
            "a revoked key stays revoked: give the person a new key",
        )


def _admin_behind(roots: TrustRoots | None, keyid: str) -> set[str]:
    """The administrator who signed with the key by these roots; empty when none did."""
    if roots is None or roots.is_revoked(keyid):
        return set()
    person = roots.person_of(keyid)
    return {person.id} if person is not None and person.is_admin else set()


def _require(signed: set[str], roots: TrustRoots, whose: str, version: int) -> None:
    if len(signed) < roots.admin_threshold:
        names = ", ".join(sorted(signed)) or "nobody"
        raise UntrustedKeyError(
            f"version {version} of the trust roots needs {roots.admin_threshold} administrators "
            f"{whose}, but has {len(signed)} ({names})",
            "let more administrators sign the same bytes",
        )


def load_chain(connection: Connection) -> tuple[ChainLink, ...]:
    """The stored chain, oldest first; nothing is verified.

    Raises:
        SignatureError: a row is not what ``append`` writes.
    """
    table = database.trust_roots
    rows = connection.execute(select(table).order_by(table.c.version)).all()
    return tuple((bytes(row.payload), _bundles(row.bundles)) for row in rows)


def _bundles(text: str) -> tuple[str, ...]:
    try:
        bundles = parse_json(text)
    except ValueError as error:
        raise SignatureError("the stored signatures of the trust roots are not JSON") from error
    if not isinstance(bundles, list) or not all(isinstance(item, str) for item in bundles):
        raise SignatureError("the stored signatures of the trust roots are not a list of bundles")
    return tuple(bundles)


def current(connection: Connection, *, pinned_first: str | None = None) -> TrustRoots:
    """The latest stored trust roots, with the whole chain verified.

    Raises:
        UntrustedKeyError, SignatureError, TamperedError: as ``verify_chain``.
    """
    return verify_chain(load_chain(connection), pinned_first=pinned_first)


def append(
    connection: Connection, payload: bytes, bundles: Sequence[str], now_ms: int
) -> TrustRoots:
    """Store the next version, once it is known to follow the stored chain.

    Of two writers at once one wins: the version is the table's primary key. The loser's
    transaction must be rolled back.

    Raises:
        UntrustedKeyError, SignatureError, TamperedError: as ``verify_chain``.
        RefusedError: somebody else stored this version meanwhile.
    """
    roots = verify_chain((*load_chain(connection), (payload, tuple(bundles))), pinned_first=None)
    try:
        connection.execute(
            insert(database.trust_roots).values(
                version=roots.version,
                payload=payload,
                bundles=canonical_json(list(bundles)).decode("utf-8"),
                created_ms=now_ms,
            )
        )
    except IntegrityError as error:
        raise RefusedError(
            f"version {roots.version} of the trust roots was stored by somebody else just now",
            "make the change again from the latest version",
        ) from error
    return roots


def bootstrap(connection: Connection, signer: Signer, person_id: str, now_ms: int) -> TrustRoots:
    """Store a first version in which one person may do everything (for development).

    Raises:
        RefusedError: there are trust roots already.
    """
    if load_chain(connection):
        raise RefusedError("there are trust roots already", "change them instead")
    key = normalize_public_key(signer.public_key_pem)
    person = Person(person_id, person_id, (key,), (ADMIN, approver("*", "*"), monitor("*")))
    payload = TrustRoots(1, None, 1, (person,)).to_payload()
    return append(connection, payload, [sign_roots(payload, signer)], now_ms)
