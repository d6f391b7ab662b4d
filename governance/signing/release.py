"""The check before a model is loaded: are these bytes the ones that people released?

``chancery.release/v1`` is what a server says about a version: the registered manifest, revocation,
the clearances with their signatures, the chain of trust roots. It is evidence, not authority: the
digests that count are recomputed from the bytes that will be loaded, and the signatures are
followed back to the loader's own pinned first trust roots.

The caller compares ``release.model`` and ``release.version`` with what it asked for, or passes
both to ``Release.parse``. Law: ``Release.parse(release.to_json()) == release``.

A version of a *protected registered model* (``prod.fraud/1``) is a copy of a version that was
approved under another name (``fraud/3``), its ``origin``. The statement binds the origin's
identity, the digests, and the name that the copy is served from (``served_as``). So a clearance
whose statement is for the origin is compared with the origin's identity, and counts for a copy of
that very name only. That the copy is of this origin is the server's word, and a server that lies
gains nothing: these bytes under this name are what people signed.

Example::

    release = Release.parse(text, model="fraud", version=3)
    verified = verify_release(
        release, digest_directory(path), environment="prod", require_signature=True,
        pinned_first_root=pin, now_ms=now,
    )
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from governance.canonical import Manifest, canonical_json
from governance.errors import (
    ExpiredError,
    RevokedError,
    SignatureError,
    TamperedError,
    UnreachableError,
    UnsignedError,
    UntrustedKeyError,
)
from governance.signing.approvals import count_signers
from governance.signing.documents import Fields, read_json, to_base64
from governance.signing.statements import PromotionStatement, request_command, statement_id
from governance.signing.trust import ChainLink, TrustRoots, verify_chain

__all__ = [
    "FORMAT",
    "Clearance",
    "Origin",
    "Release",
    "Revocation",
    "VerifiedLoad",
    "check_standing",
    "verify_release",
]

FORMAT = "chancery.release/v1"
_SIZE_LIMIT = 64 * 1024 * 1024  # the manifest of a model with very many files is the bulk
_SHOWN_DIFFERENCES = 10


@dataclass(frozen=True, slots=True)
class Revocation:
    """Why and when a version was revoked."""

    reason: str
    time_ms: int


@dataclass(frozen=True, slots=True)
class Clearance:
    """A used statement: environment, registry epoch, the signed payload and its bundles."""

    environment: str
    epoch: int
    payload: bytes
    bundles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """The version that this one is a promoted copy of: whom the signed statement names."""

    model: str
    version: int
    model_uid: str
    version_uid: str


@dataclass(frozen=True, slots=True)
class Release:
    """What a server says about one version.

    Attributes:
        model: Name of the registered model.
        version: Its number.
        model_uid: Incarnation of the model.
        version_uid: Incarnation of the version.
        logged_model_id: MLflow's ``m-…`` id, if any.
        manifest: Canonical JSON of the registered manifest; None when it could not be read.
        digest_error: Why not.
        revoked: Set when the version was revoked.
        environments: Protected environments that point at the version now. Each must have a
            clearance where signatures are required.
        requires_signature: Whether the server wants signatures checked.
        clearances: Every promotion of this version, with its signatures; of a promoted copy, also
            the origin's for the copy's environment.
        trust_roots: The chain, oldest first.
        deleted_ms: When the version was deleted from the registry.
        origin: What a version of a protected registered model was promoted from.
    """

    model: str
    version: int
    model_uid: str
    version_uid: str
    logged_model_id: str | None
    manifest: str | None
    digest_error: str | None
    revoked: Revocation | None
    environments: tuple[str, ...]
    requires_signature: bool
    clearances: tuple[Clearance, ...]
    trust_roots: tuple[ChainLink, ...]
    deleted_ms: int | None = None
    origin: Origin | None = None

    @property
    def uri(self) -> str:
        return f"models:/{self.model}/{self.version}"

    def to_json(self) -> str:
        revoked = self.revoked
        document: dict[str, Any] = {
            "format": FORMAT,
            "model": self.model,
            "version": self.version,
            "modelUid": self.model_uid,
            "versionUid": self.version_uid,
            "loggedModelId": self.logged_model_id,
            "manifest": self.manifest,
            "digestError": self.digest_error,
            "revoked": revoked and {"reason": revoked.reason, "timeMs": revoked.time_ms},
            "environments": list(self.environments),
            "requiresSignature": self.requires_signature,
            "clearances": [
                {
                    "environment": c.environment,
                    "epoch": c.epoch,
                    "payload": to_base64(c.payload),
                    "bundles": list(c.bundles),
                }
                for c in self.clearances
            ],
            "trustRoots": [
                {"payload": to_base64(payload), "bundles": list(bundles)}
                for payload, bundles in self.trust_roots
            ],
            "deletedMs": self.deleted_ms,
        }
        if self.origin is not None:
            document["origin"] = {
                "model": self.origin.model,
                "version": self.origin.version,
                "modelUid": self.origin.model_uid,
                "versionUid": self.origin.version_uid,
            }
        return canonical_json(document).decode("utf-8")

    @classmethod
    def parse(cls, text: str, *, model: str | None = None, version: int | None = None) -> Release:
        """Read the document strictly.

        Args:
            text: The JSON text.
            model: The name that was asked for.
            version: The number that was asked for.

        Raises:
            SignatureError: malformed, or a missing or unknown field.
            TamperedError: it is about another version than was asked for.
        """
        fields = read_json(text, "the release document", limit=_SIZE_LIMIT)
        fields.exactly("format", FORMAT)
        release = cls(
            model=fields.text("model"),
            version=fields.integer("version", minimum=1),
            model_uid=fields.text("modelUid"),
            version_uid=fields.text("versionUid"),
            logged_model_id=fields.optional_text("loggedModelId"),
            manifest=fields.optional_text("manifest"),
            digest_error=fields.optional_text("digestError"),
            revoked=_read_revocation(fields.optional_fields("revoked")),
            environments=fields.texts("environments"),
            requires_signature=fields.boolean("requiresSignature"),
            clearances=tuple(_read_clearance(item) for item in fields.each("clearances")),
            trust_roots=tuple(_read_link(item) for item in fields.each("trustRoots")),
            deleted_ms=fields.optional_integer("deletedMs"),
            origin=_read_origin(fields.later_fields("origin")),
        )
        fields.done()
        if model not in (None, release.model) or version not in (None, release.version):
            raise TamperedError(f"the release document is about {release.uri}, not what was asked")
        return release


@dataclass(frozen=True, slots=True)
class VerifiedLoad:
    """Bytes that may be loaded, and who stands behind them.

    Attributes:
        model: Name of the registered model.
        version: Its number.
        root_digest: OMS root digest of the bytes.
        signers: Distinct people whose signatures were counted; empty when none were required.
        environments: Environments whose clearance was verified.
        statement_id: The statement of the first of them.
    """

    model: str
    version: int
    root_digest: str
    signers: tuple[str, ...]
    environments: tuple[str, ...]
    statement_id: str | None


def verify_release(
    release: Release,
    found: Manifest,
    *,
    environment: str | None,
    require_signature: bool,
    pinned_first_root: str | None,
    now_ms: int,
) -> VerifiedLoad:
    """Decide whether the found bytes may be loaded.

    Args:
        release: What the server says.
        found: The manifest of the very bytes that will be loaded.
        environment: What the bytes are loaded for; it must have a clearance of its own.
        require_signature: Check signatures even if the server does not ask for it.
        pinned_first_root: Digest of the first trust roots this loader accepts (``KnownRoots``).
        now_ms: The time.

    Raises:
        RevokedError: the version was revoked or deleted.
        UnreachableError: the artifact was never digested, so there is nothing to compare with.
        TamperedError: the bytes differ from the registered ones, the statement is bound to
            something else, or the chain of trust roots does not hold.
        UnsignedError: a required clearance is missing, or was given for another served name.
        SignatureError: a signature or signed document is malformed or forged.
        UntrustedKeyError: too few people of the trust roots stand behind the signatures.
        ExpiredError: the clearance may not be used for loading any more.
    """
    check_standing(release)
    _check_bytes(release, found)
    if not (release.requires_signature or require_signature or environment is not None):
        return VerifiedLoad(release.model, release.version, found.root_digest, (), (), None)
    clearances = _required_clearances(release, environment)
    roots = verify_chain(release.trust_roots, pinned_first=pinned_first_root)
    signers: set[str] = set()
    for clearance, statement in clearances:
        persons = _check_signatures(release, clearance, statement, roots)
        _check_binding(release, clearance, statement, found)
        _check_date(release, statement, now_ms)
        signers.update(persons)
    return VerifiedLoad(
        model=release.model,
        version=release.version,
        root_digest=found.root_digest,
        signers=tuple(sorted(signers)),
        environments=tuple(clearance.environment for clearance, _ in clearances),
        statement_id=statement_id(clearances[0][0].payload),
    )


def check_standing(release: Release) -> None:
    """Refuse a version that was revoked or deleted.

    Raises:
        RevokedError: it was.
    """
    if release.revoked is not None:
        raise RevokedError(
            f"{release.uri} was revoked: {release.revoked.reason}", "load another version"
        )
    if release.deleted_ms is not None:
        raise RevokedError(f"{release.uri} was deleted from the registry", "load another version")


def _check_bytes(release: Release, found: Manifest) -> None:
    if release.manifest is None:
        raise UnreachableError(
            f"{release.uri} was registered without a digest "
            f"({release.digest_error or 'no reason is known'}), so its bytes cannot be checked",
            "register the artifact again from a place that the server can read",
        )
    try:
        registered = Manifest.from_json(release.manifest)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SignatureError(f"the registered manifest of {release.uri} is malformed") from error
    if registered == found and registered.to_json() == release.manifest.encode("utf-8"):
        return
    lines = registered.difference(found) or ["the manifest is oddly written"]
    shown = "; ".join(lines[:_SHOWN_DIFFERENCES])
    more = len(lines) - _SHOWN_DIFFERENCES
    raise TamperedError(
        f"the files of {release.uri} differ from the registered ones: {shown}"
        + (f"; and {more} more" if more > 0 else ""),
        "do not load them; restore the artifact, or register the new bytes as a new version",
    )


def _required_clearances(
    release: Release, environment: str | None
) -> tuple[tuple[Clearance, PromotionStatement], ...]:
    """The newest clearance of each environment that must have one; at least one in all."""
    required = (environment,) if environment is not None else tuple(sorted(release.environments))
    newest: dict[str, tuple[Clearance, PromotionStatement]] = {}
    others: list[str] = []
    for clearance in sorted(release.clearances, key=lambda item: item.epoch):
        if required and clearance.environment not in required:
            continue
        statement = PromotionStatement.parse(clearance.payload)
        if _is_for_another_name(release, statement):
            others.append(_way_in(statement))
            continue
        # Epochs of the origin and of the copy count different things. The copy's own is later.
        known = newest.get(clearance.environment)
        if known is None or _of_origin(release, known[1]) or not _of_origin(release, statement):
            newest[clearance.environment] = (clearance, statement)
    missing = [name for name in required if name not in newest]
    if missing or not newest:
        where = f"for {', '.join(missing)}" if missing else "for any environment"
        but = f"; what is shown is for {'; '.join(sorted(set(others)))}" if others else ""
        raise UnsignedError(
            f"{release.uri} has no signed clearance {where}{but}",
            f"request the promotion and have it approved: `{_command(release, missing)}`",
        )
    if required:
        return tuple(newest[name] for name in dict.fromkeys(required))
    return (max(newest.values(), key=lambda item: item[0].epoch),)


def _of_origin(release: Release, statement: PromotionStatement) -> bool:
    return release.origin is not None and statement.version_uid == release.origin.version_uid


def _served_name(release: Release, statement: PromotionStatement) -> str | None:
    """What the statement must say of the served name, to count for this release."""
    return release.model if _of_origin(release, statement) else None


def _is_for_another_name(release: Release, statement: PromotionStatement) -> bool:
    """A statement about this version or its origin that lets it in elsewhere.

    Statements about other versions are not set aside: their binding fails.
    """
    here = _of_origin(release, statement) or statement.version_uid == release.version_uid
    return here and statement.served_as != _served_name(release, statement)


def _command(release: Release, missing: list[str]) -> str:
    if not missing:
        return "chancery request"
    if release.origin is None:
        return request_command(release.uri, missing[0])
    source = f"models:/{release.origin.model}/{release.origin.version}"
    return request_command(source, missing[0], release.model)


def _way_in(statement: PromotionStatement) -> str:
    how = "under its own name" if statement.served_as is None else f"as {statement.served_as}"
    return f"{statement.uri} to {statement.to_environment} {how}"


def _check_signatures(
    release: Release, clearance: Clearance, statement: PromotionStatement, roots: TrustRoots
) -> tuple[str, ...]:
    counted = count_signers(statement, clearance.payload, clearance.bundles, roots)
    if not counted.sufficient:
        reasons = " ".join(counted.problems)
        message = (
            f"the clearance of {release.uri} for {clearance.environment} needs {counted.required} "
            f"people, but {len(counted.persons)} signed validly. {reasons}"
        ).rstrip()
        if not clearance.bundles:
            raise UnsignedError(message, "have the promotion approved")
        if counted.forged:
            raise SignatureError(message, "request the promotion again")
        raise UntrustedKeyError(message, "have people of today's trust roots approve it again")
    return counted.persons


def _check_binding(
    release: Release, clearance: Clearance, statement: PromotionStatement, found: Manifest
) -> None:
    signed_for: Release | Origin = release
    if release.origin is not None and _of_origin(release, statement):
        signed_for = release.origin
    bound = {
        "root digest": (statement.root_digest, found.root_digest),
        "manifest digest": (statement.manifest_digest, found.manifest_digest),
        "model": (statement.model_name, signed_for.model),
        "version": (statement.version, signed_for.version),
        "model uid": (statement.model_uid, signed_for.model_uid),
        "version uid": (statement.version_uid, signed_for.version_uid),
        "environment": (statement.to_environment, clearance.environment),
        "served name": (statement.served_as, _served_name(release, statement)),
    }
    wrong = [name for name, (signed, actual) in bound.items() if signed != actual]
    if wrong:
        raise TamperedError(
            f"the clearance shown for {release.uri} was signed for something else: "
            f"{_way_in(statement)} (other {', '.join(wrong)})",
            "do not load it; if the model was renamed, have it approved under its new name",
        )


def _check_date(release: Release, statement: PromotionStatement, now_ms: int) -> None:
    if statement.valid_until_ms is not None and now_ms > statement.valid_until_ms:
        raise ExpiredError(
            f"the clearance of {release.uri} for {statement.to_environment} is past its date",
            "request the promotion again",
        )


def _read_revocation(fields: Fields | None) -> Revocation | None:
    if fields is None:
        return None
    revocation = Revocation(fields.text("reason"), fields.integer("timeMs"))
    fields.done()
    return revocation


def _read_origin(fields: Fields | None) -> Origin | None:
    if fields is None:
        return None
    origin = Origin(
        fields.text("model"),
        fields.integer("version", minimum=1),
        fields.text("modelUid"),
        fields.text("versionUid"),
    )
    fields.done()
    return origin


def _read_clearance(fields: Fields) -> Clearance:
    clearance = Clearance(
        fields.text("environment"),
        fields.integer("epoch"),
        fields.binary("payload"),
        fields.texts("bundles"),
    )
    fields.done()
    return clearance


def _read_link(fields: Fields) -> ChainLink:
    link = (fields.binary("payload"), fields.texts("bundles"))
    fields.done()
    return link
