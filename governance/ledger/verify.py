"""Verifies a ledger: every entry, node, checkpoint and cosignature, without trusting any row.

What each check catches, when a database administrator with full write access did it:

- a row edited, or dropped: its hash, or the gap;
- an edited row with its hash recomputed: the nodes above it, else the next checkpoint's root;
- everything recomputed without the log's key: the checkpoint's signature;
- a truncated tail: the witness has a larger size;
- everything rewritten with the stolen log key: the witness's roots differ.

The report names the first bad index. Where only hashes of several entries are left to go by, it is
the first of the range that the sentence gives.

Example::

    report = verify_ledger(engine, log_public_key=log_pem, witness=witness)
    report.ok, report.first_bad_index, report.problems
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, func, select

from governance.database import checkpoints, ledger_entries, ledger_nodes, ledger_state, outbox
from governance.errors import LedgerTamperedError, VerificationError, WitnessError
from governance.ledger.audit import BLOCK, Attestation, TreeAudit
from governance.ledger.note import parse_checkpoint, verify_checkpoint, verify_cosignature
from governance.ledger.witness import Witness

__all__ = ["LedgerReport", "database_checkpoints", "verify_ledger"]

_SHOWN = 20  # problems listed; the rest is counted


@dataclass(frozen=True, slots=True)
class LedgerReport:
    """What a verification found.

    Attributes:
        ok: Nothing is wrong.
        origin: The ledger's name.
        size: Entries verified.
        root: Root over them.
        first_bad_index: 0-based; None if no entry is in doubt.
        problems: One sentence each, the lowest index first.
        witness_size: What the witness has countersigned last; None if it never has.
        pending: Events in the outbox: committed, not yet in the tree.
        keys_pinned: Whether both public keys came from the caller, not from the data.
        origin_pinned: Whether the ledger's name did.
    """

    ok: bool
    origin: str
    size: int
    root: bytes
    first_bad_index: int | None
    problems: tuple[str, ...]
    witness_size: int | None
    pending: int
    keys_pinned: bool = True
    origin_pinned: bool = True

    @property
    def remedies(self) -> tuple[str, ...]:
        """What was taken from the very data that was verified, and how to pin it."""
        found = []
        if not self.keys_pinned:
            found.append(
                "a key was taken from the very data that was verified, which proves no more than "
                "that it agrees with itself: give both --log-key and --witness-key, with public "
                "keys that you got elsewhere"
            )
        if not self.origin_pinned:
            found.append(
                "the ledger's name was taken from the very data that was verified, which may be "
                "another ledger: give --origin with the name that you know"
            )
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """For JSON output."""
        return {
            "ok": self.ok,
            "origin": self.origin,
            "size": self.size,
            "root": self.root.hex(),
            "first_bad_index": self.first_bad_index,
            "problems": list(self.problems),
            "witness_size": self.witness_size,
            "pending": self.pending,
            "keys_pinned": self.keys_pinned,
            "origin_pinned": self.origin_pinned,
            "remedies": list(self.remedies),
        }

    def require_ok(self) -> None:
        """Raise what was found.

        Raises:
            LedgerTamperedError: something is wrong.
        """
        if not self.ok:
            raise LedgerTamperedError(
                self.problems[0],
                "run `chancery ledger verify` for all findings, and restore the database",
                index=self.first_bad_index,
            )


def report_of(
    audit: TreeAudit,
    *,
    origin: str,
    more: Iterable[tuple[int | None, str]],
    witness_size: int | None,
    pending: int = 0,
    keys_pinned: bool = True,
    origin_pinned: bool = True,
) -> LedgerReport:
    """The report over an audit and ``more`` findings (index or None, sentence)."""
    found: list[tuple[int | None, str]] = [*audit.conclude(), *more]
    found.sort(key=lambda item: (item[0] is None, item[0] or 0))
    problems = [sentence for _, sentence in found]
    if len(problems) > _SHOWN:
        problems = [*problems[:_SHOWN], f"{len(found) - _SHOWN} further problems"]
    indices = [index for index, _ in found if index is not None]
    return LedgerReport(
        ok=not found,
        origin=origin,
        size=audit.size,
        root=audit.root,
        first_bad_index=min(indices, default=None),
        problems=tuple(problems),
        witness_size=witness_size,
        pending=pending,
        keys_pinned=keys_pinned,
        origin_pinned=origin_pinned,
    )


def verify_ledger(
    engine: Engine,
    *,
    log_public_key: str,
    witness: Witness,
    origin: str | None = None,
) -> LedgerReport:
    """Verify the ledger in a database against the log's public key and the witness.

    The ledger may grow meanwhile: what was there at the start is verified.

    Args:
        engine: The database.
        log_public_key: PEM of the log's key.
        witness: Whose records, and key, the ledger is held against.
        origin: The name the ledger must have; None takes the database's word.

    Raises:
        LedgerTamperedError: the state row is missing, so that there is no ledger to verify.
    """
    with engine.connect() as connection:
        named = connection.execute(select(ledger_state.c.origin)).scalar()
    if named is None:
        raise LedgerTamperedError(
            "the database holds no ledger: its state row is missing",
            "check the database URI, or restore the database",
            index=0,
        )
    # The witness before the database: whatever it has seen by now must be in there.
    witnessed, witness_size, more = _witness_attestations(witness, origin or named, log_public_key)
    if origin is not None and named != origin:
        more.append((0, f"the database calls its ledger {named!r}, not {origin!r}"))
    with engine.connect() as connection:
        size, rows, pending, newest = _extent(connection)
        signed = database_checkpoints(connection, origin or named, log_public_key, size)
        audit = TreeAudit([one for one in (*signed, *witnessed) if one.size <= rows])
        _stream(connection, audit, rows)
        if audit.size == rows:
            more += _check_extent(audit.size, size, newest, witness_size or 0)
        else:
            more.append((audit.size, f"entry {audit.size} is missing"))
    return report_of(
        audit,
        origin=named,
        more=more,
        witness_size=witness_size,
        pending=pending,
        origin_pinned=origin is not None,
    )


def _witness_attestations(
    witness: Witness, origin: str, log_public_key: str
) -> tuple[list[Attestation], int | None, list[tuple[int | None, str]]]:
    try:
        latest = witness.latest(origin)
        if latest is None:
            return [], None, []
        checkpoint = verify_checkpoint(latest, log_public_key, origin)
        verify_cosignature(latest, witness.public_key_pem)
        # The witness wrote these itself, outside the database; the last is verified above.
        history = [parse_checkpoint(note) for note in witness.history(origin)]
    except (VerificationError, WitnessError) as error:
        return [], None, [(None, f"the witness's record does not hold: {error.message}")]
    roots = {
        Attestation(one.size, "the witness's record", one.root) for one in (*history, checkpoint)
    }
    return list(roots), checkpoint.size, []


def _extent(connection: Connection) -> tuple[int, int, int, int]:
    """Size by the state row, by the entries, events pending, and newest checkpoint's size.

    One statement, so that all are of the same moment.
    """
    last = select(func.max(ledger_entries.c.idx)).scalar_subquery()
    pending = select(func.count()).select_from(outbox).scalar_subquery()
    newest = select(func.max(checkpoints.c.size)).scalar_subquery()
    size, highest, waiting, signed = connection.execute(
        select(ledger_state.c.size, last, pending, newest)
    ).one()
    return size, 0 if highest is None else highest + 1, waiting, signed or 0


def database_checkpoints(
    connection: Connection, origin: str, log_public_key: str, up_to: int
) -> list[Attestation]:
    """The log's checkpoints; one that does not verify has a fault."""
    result = []
    query = select(checkpoints.c.size, checkpoints.c.note).where(checkpoints.c.size <= up_to)
    for size, note in connection.execute(query):
        fault, root = "", b""
        try:
            checkpoint = verify_checkpoint(note, log_public_key, origin)
            root = checkpoint.root
            if checkpoint.size != size:
                fault = f"it is a checkpoint of size {checkpoint.size}"
        except VerificationError as error:
            fault = error.message
        result.append(Attestation(size, "the checkpoint", root, fault))
    return result


def _stream(connection: Connection, audit: TreeAudit, rows: int) -> None:
    """Feed the entries; stops at the first gap, where ``audit.size`` then stays."""

    # The driver's own cursor: wrapping and typing a row costs as much as hashing it.
    cursor = connection.connection.cursor()

    def read(statement: str) -> list[tuple[Any, ...]]:
        cursor.execute(statement)
        return list(cursor.fetchall())

    def stored_nodes(level: int, start: int, end: int) -> list[bytes]:
        found = read(
            f"SELECT hash FROM {ledger_nodes.name} WHERE level = {level} "
            f"AND position >= {start} AND position < {end} ORDER BY position"
        )
        return [row[0] for row in found]

    for start in range(0, rows, BLOCK):
        block = read(
            f"SELECT idx, event_id, leaf, leaf_hash FROM {ledger_entries.name} "
            f"WHERE idx >= {start} AND idx < {min(start + BLOCK, rows)} ORDER BY idx"
        )
        indices = [row[0] for row in block]
        whole = len(block)
        if indices != list(range(start, start + len(block))):
            whole = next(i for i, index in enumerate(indices) if index != start + i)
        block = block[:whole]
        if block:
            audit.add(
                [row[1] for row in block],
                [row[2] for row in block],
                [row[3] for row in block],
                stored_nodes,
            )
        if audit.size < min(start + BLOCK, rows):
            return


def _check_extent(
    rows: int, size: int, newest: int, witness_size: int
) -> list[tuple[int | None, str]]:
    found: list[tuple[int | None, str]] = []
    if witness_size > rows:
        found.append(
            (
                rows,
                f"entry {rows} and later ones are missing: the witness countersigned "
                f"{witness_size} entries, the database has {rows}",
            )
        )
    if newest > rows:
        found.append((rows, f"entry {rows} is missing: there is a checkpoint of size {newest}"))
    if newest < rows:
        found.append((newest, f"entry {newest} and later ones are under no checkpoint"))
    if size != rows:
        found.append(
            (min(size, rows), f"the ledger's state says {size} entries, and there are {rows}")
        )
    if rows and not witness_size:
        found.append((None, "the witness has never countersigned this ledger"))
    return found
