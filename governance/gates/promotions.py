"""Promotion statements and clearances in our tables: issue, approve, tally, grant.

A promotion goes into a *place* of an environment: a model's own aliases and stages, or a protected
registered model (``served_as``), whichever model the copies come from. A statement is for one
place and counts in no other. The registry *epoch* of a place counts the promotions into it. A
statement is bound to the epoch of its request and a grant raises the epoch, so a statement can be
used once, and never after another version went in meanwhile. The version whose clearance carries
the present epoch is the place's *occupant*: pointing a second alias of the environment at it, or
repeating the call, needs no new approval (its signatures are checked again all the same).

Every function works on the caller's connection, in the caller's transaction.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, case, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from governance.database import approvals, clearances, epochs, statements
from governance.errors import NotFoundError, RefusedError, SignatureError
from governance.records import Approval, Candidate
from governance.signing.approvals import ApprovalTally, count_signers, tally
from governance.signing.statements import PromotionStatement, statement_id
from governance.signing.trust import TrustRoots

__all__ = [
    "Standing",
    "StoredStatement",
    "add_approval",
    "cleared_environments",
    "current_epoch",
    "find_statement",
    "grant",
    "issue",
    "list_statements",
    "release_clearances",
    "standing",
]

# Built once: each runs in the transaction of every gated change.
_EPOCH = select(epochs.c.epoch).where(
    epochs.c.place == bindparam("place"), epochs.c.environment == bindparam("to")
)
_APPROVALS = (
    select(approvals.c.bundle, approvals.c.person)
    .where(approvals.c.statement_id == bindparam("statement"))
    .order_by(approvals.c.created_ms)
)
_STATEMENTS = (
    select(
        statements,
        clearances.c.epoch.label("cleared_epoch"),
        clearances.c.granted_ms.label("granted_ms"),
    )
    .outerjoin(clearances, clearances.c.statement_id == statements.c.statement_id)
    .where(
        statements.c.version_uid == bindparam("candidate"),
        statements.c.environment == bindparam("to"),
    )
    # Those for other places only explain a refusal; however many there are, they come last.
    .order_by(
        case((statements.c.place == bindparam("place"), 0), else_=1),
        statements.c.created_ms.desc(),
    )
    .limit(50)
)
_CLEARED = (
    select(clearances.c.environment)
    .where(clearances.c.version_uid == bindparam("candidate"))
    .distinct()
)


@dataclass(frozen=True, slots=True)
class StoredStatement:
    """A statement as the tables hold it, with the bundles over it."""

    statement_id: str
    payload: bytes
    statement: PromotionStatement
    requested_by: str
    decision: Mapping[str, Any]
    created_ms: int
    used: bool
    bundles: tuple[str, ...]
    persons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a candidate stands with the approvals for an environment.

    Attributes:
        statement: The statement that counts; None when there is none.
        occupant: The candidate holds the environment's present clearance.
        tally: Who approved, and what did not count.
        granted_ms: When an occupant was let in.
    """

    statement: StoredStatement | None
    occupant: bool
    tally: ApprovalTally
    granted_ms: int | None = None


def _place(model_uid: str, served_as: str | None) -> str:
    """What an epoch counts promotions into; a uid has no colon, so the two cannot be mistaken."""
    return model_uid if served_as is None else f"models:/{served_as}"


def current_epoch(
    connection: Connection, model_uid: str, environment: str, served_as: str | None = None
) -> int:
    """Promotions into the place so far (0: none)."""
    parameters = {"place": _place(model_uid, served_as), "to": environment}
    found = connection.execute(_EPOCH, parameters).scalar_one_or_none()
    return 0 if found is None else int(found)


def issue(
    connection: Connection,
    statement: PromotionStatement,
    *,
    requested_by: str,
    decision: Mapping[str, Any],
    now_ms: int,
) -> StoredStatement:
    """Store a new statement for approval."""
    payload = statement.to_payload()
    identifier = statement_id(payload)
    connection.execute(
        insert(statements).values(
            statement_id=identifier,
            nonce=statement.nonce,
            payload=payload,
            model_uid=statement.model_uid,
            version_uid=statement.version_uid,
            environment=statement.to_environment,
            place=_place(statement.model_uid, statement.served_as),
            epoch=statement.registry_epoch,
            threshold=statement.threshold,
            not_after_ms=statement.not_after_ms,
            requested_by=requested_by,
            decision=json.dumps(decision, sort_keys=True),
            created_ms=now_ms,
        )
    )
    return find_statement(connection, identifier)


def find_statement(connection: Connection, identifier: str) -> StoredStatement:
    """By id or by a unique prefix of at least six digits.

    Raises:
        NotFoundError: none or several match.
    """
    prefix = identifier.lower()
    if len(prefix) < 6 or any(c not in "0123456789abcdef" for c in prefix):
        raise NotFoundError(
            f"{identifier!r} is not a statement id",
            "give at least six digits of the id that `chancery request` printed",
        )
    rows = connection.execute(
        select(statements).where(statements.c.statement_id.startswith(prefix)).limit(2)
    ).all()
    if len(rows) != 1:
        raise NotFoundError(
            f"{'no' if not rows else 'more than one'} statement has an id that starts with "
            f"{identifier}",
            "`chancery show` lists the open ones",
        )
    return _load(connection, rows[0])


def list_statements(
    connection: Connection, *, model_uid: str | None = None, limit: int = 100
) -> list[StoredStatement]:
    """Newest first."""
    query = select(statements).order_by(statements.c.created_ms.desc()).limit(limit)
    if model_uid is not None:
        query = query.where(statements.c.model_uid == model_uid)
    return [_load(connection, row) for row in connection.execute(query).all()]


def _load(connection: Connection, row: Row[Any]) -> StoredStatement:
    found = connection.execute(_APPROVALS, {"statement": row.statement_id}).all()
    payload = bytes(row.payload)
    if statement_id(payload) != row.statement_id:
        raise SignatureError(f"the stored statement {row.statement_id[:12]} was altered")
    return StoredStatement(
        statement_id=row.statement_id,
        payload=payload,
        statement=PromotionStatement.parse(payload),
        requested_by=row.requested_by,
        decision=json.loads(row.decision),
        created_ms=row.created_ms,
        used=row.used_ms is not None,
        bundles=tuple(r.bundle for r in found),
        persons=tuple(dict.fromkeys(r.person for r in found)),
    )


def add_approval(connection: Connection, approval: Approval) -> None:
    """Store one person's bundle.

    Raises:
        RefusedError: the same key approved this statement already.
    """
    try:
        connection.execute(
            insert(approvals).values(
                statement_id=approval.statement_id,
                keyid=approval.keyid,
                person=approval.person,
                bundle=approval.bundle,
                created_ms=approval.created_ms,
            )
        )
    except IntegrityError as error:
        raise RefusedError(
            f"key {approval.keyid[:12]}… approved statement {approval.statement_id[:12]} already",
            "another person has to approve; one signature of each counts",
        ) from error


def standing(
    connection: Connection,
    candidate: Candidate,
    environment: str,
    roots: TrustRoots,
    *,
    served_as: str | None,
    now_ms: int,
) -> Standing:
    """The best usable statement: the occupant's own, else the open one with most approvers."""
    epoch = current_epoch(connection, candidate.model_uid, environment, served_as)
    place = _place(candidate.model_uid, served_as)
    rows = connection.execute(
        _STATEMENTS, {"candidate": candidate.version_uid, "to": environment, "place": place}
    ).all()
    best: Standing | None = None
    notes: list[str] = []
    for row in rows:
        stored = _load(connection, row)
        occupant = row.cleared_epoch is not None and row.cleared_epoch == epoch
        reason = _for_another_place(stored.statement, served_as) or _unusable(
            stored, candidate, environment, epoch, now_ms, occupant=occupant
        )
        if reason:
            notes.append(f"statement {stored.statement_id[:12]} {reason}")
            continue
        if occupant:
            # It was used in time; only whether the signatures still hold matters now.
            found = count_signers(stored.statement, stored.payload, stored.bundles, roots)
            return Standing(stored, True, found, row.granted_ms)
        found = tally(stored.statement, stored.payload, stored.bundles, roots, now_ms=now_ms)
        if best is None or len(found.persons) > len(best.tally.persons):
            best = Standing(stored, False, found)
    if best is not None:
        return best
    return Standing(None, False, ApprovalTally((), tuple(notes[:3]), required=1))


def _for_another_place(said: PromotionStatement, served_as: str | None) -> str | None:
    """Why a statement does not count where the version is to go; the signed payload decides."""
    if said.served_as == served_as:
        return None
    if said.served_as is None:
        return f"lets {said.uri} in by alias or stage, not as {served_as}"
    return f"lets {said.uri} be served as {said.served_as} only"


def _unusable(
    stored: StoredStatement,
    candidate: Candidate,
    environment: str,
    epoch: int,
    now_ms: int,
    *,
    occupant: bool,
) -> str | None:
    """Why a statement cannot be used now; every binding is compared again."""
    said = stored.statement
    bound = (
        said.model_uid == candidate.model_uid
        and said.version_uid == candidate.version_uid
        and said.model_name == candidate.model_name
        and said.version == candidate.version
        and said.to_environment == environment
        and said.root_digest == candidate.root_digest
        and said.manifest_digest == candidate.manifest_digest
    )
    if not bound:
        return "was made for another name, version or artifact"
    if occupant:
        return None
    if stored.used:
        return "was used for an earlier promotion and cannot be replayed"
    if said.registry_epoch != epoch:
        return "is stale: another promotion went through since it was requested"
    if said.not_after_ms < now_ms:
        return "has expired"
    return None


def grant(connection: Connection, stored: StoredStatement, *, now_ms: int) -> int:
    """Use a statement: raise the epoch and record the clearance; the new epoch.

    Raises:
        RefusedError: another promotion won the race.
    """
    said = stored.statement
    lost = RefusedError(
        f"another promotion of {said.served_as or said.model_name} to {said.to_environment} went "
        "through at the same moment",
        "request the promotion again",
        subject=f"models:/{said.model_name}/{said.version}",
    )
    epoch, place = said.registry_epoch + 1, _place(said.model_uid, said.served_as)
    # No savepoints here: on SQLite they would commit by themselves, apart from the change.
    upsert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    raised = connection.execute(
        upsert(epochs)
        .values(place=place, environment=said.to_environment, epoch=epoch)
        .on_conflict_do_update(
            index_elements=["place", "environment"],
            set_={"epoch": epoch},
            where=epochs.c.epoch == said.registry_epoch,
        )
        .returning(epochs.c.epoch)
    ).scalar_one_or_none()
    if raised is None:
        raise lost
    connection.execute(
        update(statements)
        .where(statements.c.statement_id == stored.statement_id)
        .values(used_ms=now_ms)
    )
    connection.execute(
        insert(clearances).values(
            clearance_id=uuid.uuid4().hex,
            statement_id=stored.statement_id,
            model_uid=said.model_uid,
            version_uid=said.version_uid,
            environment=said.to_environment,
            place=place,
            epoch=epoch,
            granted_ms=now_ms,
        )
    )
    return epoch


def cleared_environments(connection: Connection, candidate: Candidate) -> frozenset[str]:
    """Environments this very version was ever let into, by alias, stage or copy."""
    return frozenset(connection.execute(_CLEARED, {"candidate": candidate.version_uid}).scalars())


def release_clearances(
    connection: Connection, candidate: Candidate
) -> Sequence[tuple[str, int, StoredStatement]]:
    """(environment, epoch, statement) of every clearance of the version, newest first."""
    rows = connection.execute(
        select(statements, clearances.c.epoch.label("cleared_epoch"))
        .join(clearances, clearances.c.statement_id == statements.c.statement_id)
        .where(clearances.c.version_uid == candidate.version_uid)
        .order_by(clearances.c.granted_ms.desc())
    ).all()
    return [(row.environment, row.cleared_epoch, _load(connection, row)) for row in rows]
