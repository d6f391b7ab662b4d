"""The sequencer: moves events from the outbox into the tree, and signs a checkpoint.

Any process may sequence at any time ("helping"): there is no leader to elect or lose. The first
statement updates the ledger's one state row, which is a lock on SQLite (the write lock) and on
PostgreSQL (the row lock) alike, held until the commit. One transaction moves one batch: entries,
complete nodes, checkpoint and the emptied outbox become visible together or not at all.

No change can be skipped. An outbox row is deleted when, and only when, its entry is written; there
is no high-water mark that a transaction with a lower ``outbox_id`` could commit behind. Order
follows cause: an event's ``outbox_id`` is allocated within its change's transaction, so a change
that saw another one committed has the larger id, and is sequenced in the same batch behind it or
in a later one.

Before it signs, the sequencer checks that the tree it extends is the one of the last checkpoint,
and that the log's key signed that: it never lends its signature to rows it did not write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from sqlalchemy import Connection, Table, bindparam, delete, insert, select, text, update

from governance.database import checkpoints, ledger_entries, ledger_nodes, ledger_state, outbox
from governance.errors import LedgerTamperedError, VerificationError
from governance.ledger.merkle import EMPTY_ROOT, Node, append_leaves, fold, leaf_hash, peaks
from governance.ledger.note import Checkpoint, sign_checkpoint, verify_checkpoint
from governance.ledger.tree import read_peaks
from governance.signing.keys import Signer

__all__ = ["BATCH", "Sequenced", "sequence_batch"]

BATCH = 10_000
_KEPT = 256  # largest batch whose nodes are handed on: someone may be waiting for it

_LOCK = (
    update(ledger_state)
    .where(ledger_state.c.id == 1)
    .values(size=ledger_state.c.size)
    .returning(ledger_state.c.origin, ledger_state.c.size)
)
_OLDEST = select(outbox.c.outbox_id).order_by(outbox.c.outbox_id).limit(bindparam("batch"))
_TAKE = (
    delete(outbox)
    .where(outbox.c.outbox_id.in_(_OLDEST))
    .returning(outbox.c.outbox_id, outbox.c.event_id, outbox.c.leaf)
)
# By the rows' places: a join would read the whole table, with all that was deleted from it since
# the last vacuum. Rows of the outbox are never updated, so they stay in their places.
_TAKE_POSTGRESQL = text(
    f"DELETE FROM {outbox.name} WHERE ctid = ANY(ARRAY("
    f"SELECT ctid FROM {outbox.name} ORDER BY outbox_id LIMIT :batch"
    ")) RETURNING outbox_id, event_id, leaf"
)
_NEWEST = select(checkpoints.c.note).order_by(checkpoints.c.size.desc()).limit(1)
_CHECKPOINT = insert(checkpoints)
_GROW = update(ledger_state).where(ledger_state.c.id == 1).values(size=bindparam("grown"))


@dataclass(frozen=True, slots=True)
class Sequenced:
    """One batch: its events, the checkpoint and its note, and (if small) its nodes."""

    event_ids: Sequence[str]
    checkpoint: Checkpoint
    note: str
    nodes: Mapping[Node, bytes]


_verified = lru_cache(maxsize=64)(verify_checkpoint)


def sequence_batch(
    connection: Connection, signer: Signer, clock: Callable[[], datetime], batch: int = BATCH
) -> Sequenced | None:
    """Sequence up to ``batch`` events in the transaction that ``connection`` begins here.

    Returns:
        None when nothing was pending: roll back. Otherwise commit.

    Raises:
        LedgerTamperedError: the stored tree is not the one of the last checkpoint.
    """
    origin, size = connection.execute(_LOCK).one()  # must come first, see the module
    take = _TAKE_POSTGRESQL if connection.dialect.name == "postgresql" else _TAKE
    taken = sorted(tuple(row) for row in connection.execute(take, {"batch": batch}))
    if not taken:
        return None
    rows = [(event_id, leaf) for _, event_id, leaf in taken]
    frontier = read_peaks(connection, size)
    _check_last(connection, Checkpoint(origin, size, fold(frontier)), signer.public_key_pem)

    hashes = [leaf_hash(row[1]) for row in rows]
    old_frontier = frontier
    frontier, completed = append_leaves(size, frontier, hashes)
    _insert_many(
        connection,
        ledger_entries,
        [
            (index, row[0], row[1], value)
            for index, (row, value) in enumerate(zip(rows, hashes, strict=True), size)
        ],
    )
    _insert_many(connection, ledger_nodes, completed)
    nodes: dict[Node, bytes] = {}
    if len(rows) <= _KEPT:
        nodes.update(zip(peaks(size), old_frontier, strict=True))
        nodes.update(((0, index), value) for index, value in enumerate(hashes, size))
        nodes.update(((level, position), value) for level, position, value in completed)
    new = Checkpoint(origin, size + len(rows), fold(frontier))
    note = sign_checkpoint(new, signer)
    connection.execute(
        _CHECKPOINT,
        {"size": new.size, "note": note, "created_ms": int(clock().timestamp() * 1000)},
    )
    connection.execute(_GROW, {"grown": new.size})
    return Sequenced([row[0] for row in rows], new, note, nodes)


def _insert_many(connection: Connection, table: Table, rows: Sequence[tuple[object, ...]]) -> None:
    """Insert rows, in the order of the table's columns, the quickest way the driver has.

    A compiled insert looks at every value, and costs a server a round trip or parsing a row: for
    10,000 rows, one statement with an array a column is three to four times as quick.
    """
    if not rows:
        return
    names = ", ".join(column.name for column in table.columns)
    if connection.dialect.driver == "pysqlite":
        marks = ", ".join("?" for _ in table.columns)
        connection.exec_driver_sql(
            f"INSERT INTO {table.name} ({names}) VALUES ({marks})", list(rows)
        )
    elif connection.dialect.driver == "psycopg":
        kinds = (column.type.compile(connection.dialect) for column in table.columns)
        arrays = ", ".join(f"%b::{kind}[]" for kind in kinds)  # %b: binary, see psycopg
        connection.exec_driver_sql(
            f"INSERT INTO {table.name} ({names}) SELECT * FROM unnest({arrays})",
            tuple(list(values) for values in zip(*rows, strict=True)),
        )
    else:
        keys = [column.name for column in table.columns]
        connection.execute(insert(table), [dict(zip(keys, row, strict=True)) for row in rows])


def _check_last(connection: Connection, tree: Checkpoint, log_public_key: str) -> None:
    note = connection.execute(_NEWEST).scalar()
    try:
        last = (
            Checkpoint(tree.origin, 0, EMPTY_ROOT)
            if note is None
            else _verified(note, log_public_key, tree.origin)
        )
    except VerificationError as error:
        raise LedgerTamperedError(
            f"the ledger's last checkpoint does not hold: {error.message}",
            "run `chancery ledger verify`; check that CHANCERY_LOG_KEY names the ledger's key",
        ) from error
    if last != tree:
        raise LedgerTamperedError(
            f"the ledger's tree of {tree.size} is not the one of its last checkpoint "
            f"(size {last.size}): entries were changed outside the sequencer",
            "run `chancery ledger verify`, which names the first bad entry",
        )
