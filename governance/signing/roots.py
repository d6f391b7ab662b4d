"""The trust roots: which people there are, which keys they hold, and what they may approve.

A document of type ``chancery.trust-roots/v1``, after the root metadata of TUF. It decides nothing
about itself: who may replace it is the business of ``governance.signing.trust``.

Rules: no key belongs to two people; enough administrators with usable keys exist to change the
document; ``approvalThresholds`` is a floor that no single statement can go below, because a
statement states its own threshold and one approver alone could otherwise state "one".

Editing methods are pure and return a draft; ``successor()`` begins the next version::

    draft = roots.successor().add_person("bob", "Bob", [pem]).grant("bob", approver("prod", "*"))
    payload = draft.to_payload()  # refuses a draft that breaks a rule
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from governance.canonical import canonical_json, sha256_hex
from governance.errors import RefusedError, SignatureError
from governance.signing.documents import Fields, read_canonical
from governance.signing.keys import keyid_of, normalize_public_key

__all__ = ["ADMIN", "Person", "Role", "RoleKind", "TrustRoots", "approver", "monitor"]

_TYPE = "chancery.trust-roots/v1"
_SIZE_LIMIT = 40_000  # so that a bundle around it stays below the bundles' own limit
_ANY = "*"


class RoleKind(StrEnum):
    ADMIN = "admin"
    APPROVER = "approver"
    MONITOR = "monitor"


@dataclass(frozen=True, slots=True)
class Role:
    """What a person may do.

    Attributes:
        kind: Administer the trust roots, approve promotions, or sign reports on drift.
        environment: For approvers: one environment, or ``*``.
        models: For approvers and monitors: a glob over model names (case matters).
    """

    kind: RoleKind
    environment: str = ""
    models: str = ""


ADMIN = Role(RoleKind.ADMIN)


def approver(environment: str, models: str) -> Role:
    """The role to approve promotions of ``models`` (a glob) to ``environment`` (or ``*``)."""
    return Role(RoleKind.APPROVER, environment, models)


def monitor(models: str) -> Role:
    """The role to sign reports on the drift of ``models`` (a glob)."""
    return Role(RoleKind.MONITOR, "", models)


@dataclass(frozen=True, slots=True)
class Person:
    """A person, their public keys (normalized PEM) and their roles."""

    id: str
    display_name: str
    keys: tuple[str, ...]
    roles: tuple[Role, ...]

    @property
    def is_admin(self) -> bool:
        return ADMIN in self.roles

    @property
    def keyids(self) -> tuple[str, ...]:
        return tuple(keyid_of(key) for key in self.keys)


@dataclass(frozen=True, slots=True)
class TrustRoots:
    """One version of the document.

    Attributes:
        version: 1, 2, 3 …
        previous: Digest of the version before's payload (hex); None for the first.
        admin_threshold: How many administrators must sign a change.
        people: Everyone who may sign anything.
        revoked_keys: Key ids that count for nothing, ever again.
        approval_thresholds: Environment and the fewest approvals a promotion to it takes.
    """

    version: int
    previous: str | None
    admin_threshold: int
    people: tuple[Person, ...]
    revoked_keys: tuple[str, ...] = ()
    approval_thresholds: tuple[tuple[str, int], ...] = ()

    # --- questions

    def person_of(self, keyid: str) -> Person | None:
        """Who holds the key (revoked or not); None for a key nobody holds."""
        return next((p for p in self.people if keyid in p.keyids), None)

    def public_key(self, keyid: str) -> str | None:
        """The PEM of a key that somebody holds and that is not revoked."""
        if self.is_revoked(keyid):
            return None
        keys = (key for person in self.people for key in person.keys)
        return next((key for key in keys if keyid_of(key) == keyid), None)

    def is_revoked(self, keyid: str) -> bool:
        return keyid in self.revoked_keys

    def is_admin(self, person_id: str) -> bool:
        return any(p.id == person_id and p.is_admin for p in self.people)

    def may_approve(self, person_id: str, environment: str, model_name: str) -> bool:
        """Whether a role lets the person approve this model for this environment."""
        return any(
            role.kind is RoleKind.APPROVER
            and role.environment in (environment, _ANY)
            and fnmatchcase(model_name, role.models)
            for person in self.people
            if person.id == person_id
            for role in person.roles
        )

    def may_report(self, person_id: str, model_name: str) -> bool:
        """Whether a role lets the person sign reports on the drift of this model."""
        return any(
            role.kind is RoleKind.MONITOR and fnmatchcase(model_name, role.models)
            for person in self.people
            if person.id == person_id
            for role in person.roles
        )

    def minimum_approvals(self, environment: str) -> int:
        """The fewest approvals that any statement for the environment may ask for."""
        return dict(self.approval_thresholds).get(environment, 1)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the payload: what a successor names, and what a client pins."""
        return sha256_hex(self.to_payload())

    # --- editing; each returns a draft

    def successor(self) -> TrustRoots:
        """An equal document that is the next version of this one."""
        return replace(self, version=self.version + 1, previous=self.digest)

    def add_person(
        self, person_id: str, display_name: str, keys: Iterable[str], roles: Iterable[Role] = ()
    ) -> TrustRoots:
        if any(person.id == person_id for person in self.people):
            raise RefusedError(f"{person_id} is in the trust roots already", "add a key instead")
        normalized = tuple(normalize_public_key(key) for key in keys)
        person = Person(person_id, display_name, normalized, tuple(roles))
        return replace(self, people=(*self.people, person))

    def remove_person(self, person_id: str) -> TrustRoots:
        gone = self._person(person_id)
        return replace(self, people=tuple(p for p in self.people if p is not gone))

    def add_key(self, person_id: str, public_key_pem: str) -> TrustRoots:
        person = self._person(person_id)
        key = normalize_public_key(public_key_pem)
        return self._with(replace(person, keys=(*person.keys, key)))

    def revoke_key(self, keyid: str) -> TrustRoots:
        """Make a key worthless for good; it stays listed under its person."""
        return replace(self, revoked_keys=tuple(sorted({*self.revoked_keys, keyid})))

    def grant(self, person_id: str, role: Role) -> TrustRoots:
        person = self._person(person_id)
        if role in person.roles:
            return self
        return self._with(replace(person, roles=(*person.roles, role)))

    def withdraw(self, person_id: str, role: Role) -> TrustRoots:
        person = self._person(person_id)
        if role not in person.roles:
            raise RefusedError(f"{person_id} does not have this role", "list the roles first")
        return self._with(replace(person, roles=tuple(r for r in person.roles if r != role)))

    def with_admin_threshold(self, threshold: int) -> TrustRoots:
        return replace(self, admin_threshold=threshold)

    def with_approval_threshold(self, environment: str, threshold: int) -> TrustRoots:
        thresholds = {**dict(self.approval_thresholds), environment: threshold}
        return replace(self, approval_thresholds=tuple(sorted(thresholds.items())))

    def _person(self, person_id: str) -> Person:
        for person in self.people:
            if person.id == person_id:
                return person
        raise RefusedError(f"{person_id} is not in the trust roots", "add the person first")

    def _with(self, changed: Person) -> TrustRoots:
        people = tuple(changed if p.id == changed.id else p for p in self.people)
        return replace(self, people=people)

    # --- wire form

    def to_payload(self) -> bytes:
        """The canonical bytes to sign; ``parse`` is the inverse.

        Raises:
            SignatureError: the document breaks a rule.
        """
        document = {
            "type": _TYPE,
            "version": self.version,
            "previous": self.previous,
            "adminThreshold": self.admin_threshold,
            "people": [_person_document(person) for person in self.people],
            "revokedKeys": list(self.revoked_keys),
            "approvalThresholds": dict(self.approval_thresholds),
        }
        try:
            payload = canonical_json(document)
        except ValueError as error:
            raise SignatureError(f"the trust roots cannot be written: {error}") from error
        if TrustRoots.parse(payload) != self:
            raise SignatureError("the trust roots hold a value that has another canonical form")
        return payload

    @classmethod
    def parse(cls, payload: bytes) -> TrustRoots:
        """Read a payload strictly.

        Raises:
            SignatureError: malformed, not canonical, or the document breaks a rule.
        """
        fields = read_canonical(payload, "the trust roots", limit=_SIZE_LIMIT)
        fields.exactly("type", _TYPE)
        thresholds = fields.fields("approvalThresholds")
        roots = cls(
            version=fields.integer("version", minimum=1),
            previous=fields.optional_digest("previous"),
            admin_threshold=fields.integer("adminThreshold", minimum=1),
            people=tuple(_read_person(item) for item in fields.each("people")),
            revoked_keys=fields.digests("revokedKeys"),
            approval_thresholds=tuple(
                (name, thresholds.integer(name, minimum=1)) for name in sorted(thresholds.value)
            ),
        )
        fields.done()
        roots._check()
        return roots

    def _check(self) -> None:
        if (self.version == 1) != (self.previous is None):
            raise SignatureError("the trust roots' first version, and no other, has no previous")
        ids = [person.id for person in self.people]
        if len(set(ids)) != len(ids):
            raise SignatureError("two people in the trust roots have one id")
        keyids = [keyid for person in self.people for keyid in person.keyids]
        if len(set(keyids)) != len(keyids):
            raise SignatureError("a key is listed twice in the trust roots; each has one holder")
        if list(self.revoked_keys) != sorted(set(self.revoked_keys)):
            raise SignatureError("the trust roots' revoked keys are not sorted and distinct")
        able = [
            person.id
            for person in self.people
            if person.is_admin and any(not self.is_revoked(keyid) for keyid in person.keyids)
        ]
        if len(able) < self.admin_threshold:
            raise SignatureError(
                f"{len(able)} administrators with a usable key cannot meet the trust roots' "
                f"threshold of {self.admin_threshold}",
                "add an administrator, or lower the threshold",
            )


def _person_document(person: Person) -> dict[str, Any]:
    return {
        "id": person.id,
        "displayName": person.display_name,
        "keys": list(person.keys),
        "roles": [_role_document(role) for role in person.roles],
    }


def _role_document(role: Role) -> dict[str, Any]:
    said = {"environment": role.environment, "models": role.models}
    return {"role": role.kind.value, **{name: value for name, value in said.items() if value}}


def _read_person(fields: Fields) -> Person:
    keys = fields.texts("keys")
    if not keys:
        raise fields.error("keys", "a list of at least one key")
    if any(normalize_public_key(key) != key for key in keys):
        raise fields.error("keys", "a list of PEM keys in their normal spelling")
    roles = tuple(_read_role(item) for item in fields.each("roles"))
    if len(set(roles)) != len(roles):
        raise fields.error("roles", "a list of distinct roles")
    person = Person(fields.text("id"), fields.text("displayName"), keys, roles)
    fields.done()
    return person


def _read_role(fields: Fields) -> Role:
    kind = fields.text("role")
    if kind == RoleKind.ADMIN:
        role = ADMIN
    elif kind == RoleKind.APPROVER:
        role = approver(fields.text("environment"), fields.text("models"))
    elif kind == RoleKind.MONITOR:
        role = monitor(fields.text("models"))
    else:
        raise fields.error("role", "'admin', 'approver' or 'monitor'")
    fields.done()
    return role
