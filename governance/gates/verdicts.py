"""Reads what rollouts came to: evidence that the ledger proves.

The tables only say where to look. A verdict is what its entry in the ledger says, and it counts
only while log and witness vouch for that entry; a decision that was changed in its table does not
count at all, and says so. An event that is not yet under a countersigned checkpoint is no evidence
either: it will be, a second later.

Example::

    verdicts, problems = read_verdicts(connection, ledger, candidate, "staging")
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Protocol

from sqlalchemy import or_, select
from sqlalchemy.engine import Connection

from governance.canonical import canonical_json, sha256_hex
from governance.database import deployments, ledger_entries, rollout_decisions
from governance.deployment_control import decision_event_id
from governance.errors import LedgerError
from governance.events import EventName
from governance.ledger.log import Entry
from governance.records import CanaryVerdict, Candidate

__all__ = ["Prover", "read_verdicts"]

_ENDS = ("promoted", "rolled_back", "quarantined", "aborted")
_MOST = 200  # rollouts of one model in one environment that are looked at, the newest first


class Prover(Protocol):
    """Vouches for entries of the ledger (``governance.ledger.Ledger``)."""

    def is_countersigned(self, connection: Connection, entry: Entry) -> bool: ...


def read_verdicts(
    connection: Connection, ledger: Prover, candidate: Candidate, environment: str
) -> tuple[tuple[CanaryVerdict, ...], tuple[str, ...]]:
    """Verdicts on versions of the candidate's model, newest first, and why others do not count.

    Versions of earlier incarnations of the model are among them: ``decide`` tells them apart, and
    can then say why they do not count.
    """
    decided = rollout_decisions.c
    rows = connection.execute(
        select(decided.rollout_id, decided.number, decided.digest, decided.document)
        .join(deployments, deployments.c.deploy_id == decided.deploy_id)
        .where(
            or_(
                deployments.c.model_uid == candidate.model_uid,
                deployments.c.model_name == candidate.model_name,
            ),
            deployments.c.environment == environment,
            decided.outcome.in_(_ENDS),
        )
        .order_by(decided.at_ms.desc(), decided.rollout_id)
        .limit(_MOST)
    ).all()
    entries = _entries(connection, rows)
    verdicts, problems = [], []
    for row in rows:
        entry = entries.get(decision_event_id(row.rollout_id, row.number))
        found = _verdict(connection, ledger, candidate, row, entry)
        if isinstance(found, CanaryVerdict):
            verdicts.append(found)
        else:
            problems.append(f"rollout {row.rollout_id[:12]} {found}")
    return tuple(verdicts), tuple(problems)


def _entries(connection: Connection, rows: Any) -> dict[str, Entry]:
    wanted = [decision_event_id(row.rollout_id, row.number) for row in rows]
    columns = ledger_entries.c
    found = connection.execute(
        select(columns.idx, columns.event_id, columns.leaf, columns.leaf_hash).where(
            columns.event_id.in_(wanted)
        )
    )
    return {
        row.event_id: Entry(row.idx, row.event_id, bytes(row.leaf), bytes(row.leaf_hash))
        for row in found
    }


def _verdict(
    connection: Connection,
    ledger: Prover,
    candidate: Candidate,
    row: Any,
    entry: Entry | None,
) -> CanaryVerdict | str:
    """The verdict, or why there is none."""
    if entry is None:
        return "is not on the ledger (an event gets there within a second or two)"
    try:
        verdict, digest = _parsed(entry)
        stored = sha256_hex(canonical_json(json.loads(row.document)))
    except (KeyError, TypeError, ValueError, AttributeError):
        return "is not written as a decision is"
    if not row.digest == stored == digest == verdict.digest:
        return "is not stored as the ledger has it: its row was changed"
    if verdict.version_uid != candidate.version_uid:
        return verdict  # it does not count, and explains why
    try:
        if not ledger.is_countersigned(connection, entry):
            return "waits for the witness (run `chancery ledger checkpoint`)"
    except LedgerError as error:
        return f"cannot be proven: {error.message}"
    return verdict


def _parsed(entry: Entry) -> tuple[CanaryVerdict, str]:
    """What the entry says, and the digest of the decision in it."""
    event = entry.event()
    data: Mapping[str, Any] = event["data"]
    decision: Mapping[str, Any] = data["decision"]
    basis: Mapping[str, Any] = decision.get("basis") or {}
    if event["type"] != EventName.ROLLOUT_DECIDED.value:
        raise ValueError(f"entry {entry.index} is no decision")
    verdict = CanaryVerdict(
        rollout_id=str(data["rolloutId"]),
        environment=str(data["environment"]),
        model=str(data["model"]),
        version_uid=str(data["versionUid"]),
        root_digest=str(data["rootDigest"]),
        stable=str(data["stable"]),
        outcome=str(decision["outcome"]),
        ended_ms=int(decision["atMs"]),
        requests=int(basis.get("requests", 0)),
        alpha=_number(basis.get("alpha")),
        shown_alpha=_number(basis.get("advanceAlpha")),
        error_level=_number(basis.get("errorLevel")),
        error_tolerance=_number(basis.get("errorTolerance")) or 0.0,
        digest=str(data["digest"]),
    )
    return verdict, sha256_hex(canonical_json(dict(decision)))


def _number(text: str | None) -> float | None:
    """Decimal text as events have it.

    Raises:
        ValueError: no finite number.
    """
    if text is None:
        return None
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value
