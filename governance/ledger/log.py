"""The ledger: records events, covers them with witnessed checkpoints, and answers questions.

``record`` writes to the outbox in the caller's own transaction, so that a change and its event
commit together. ``cover`` returns once a checkpoint that the witness countersigned includes the
event. Between the two a process may crash: the event stays in the outbox, or in the tree without a
cosignature, and the next one who sequences completes the work.

Example::

    with engine.begin() as connection:
        event_id = ledger.record(connection, event)
    ledger.cover(event_id)
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event, Lock, Thread
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, exists, func, insert, select, text
from sqlalchemy.exc import SQLAlchemyError

from governance.canonical import parse_json
from governance.database import (
    checkpoints,
    execute_compiled,
    ledger_entries,
    ledger_state,
    outbox,
)
from governance.errors import (
    GovernanceError,
    LedgerError,
    LedgerTamperedError,
    NotFoundError,
    VerificationError,
    WitnessError,
)
from governance.events import AuditEvent
from governance.ledger.merkle import EMPTY_ROOT, leaf_hash, verify_inclusion
from governance.ledger.note import Checkpoint, parse_checkpoint, verify_checkpoint
from governance.ledger.origin import OriginPin
from governance.ledger.proof import format_tlog_proof
from governance.ledger.sequencer import BATCH, Sequenced, sequence_batch
from governance.ledger.tree import read_consistency_proof, read_inclusion_proof
from governance.ledger.witness import Witness
from governance.signing.keys import Signer

__all__ = ["Entry", "Ledger"]

_log = logging.getLogger(__name__)
_RECORD = insert(outbox).inline()
_ENTRY = select(
    ledger_entries.c.idx,
    ledger_entries.c.event_id,
    ledger_entries.c.leaf,
    ledger_entries.c.leaf_hash,
)
_DUE = select(
    exists(select(outbox.c.outbox_id)),
    select(checkpoints.c.created_ms).order_by(checkpoints.c.size.desc()).limit(1).scalar_subquery(),
)
_INDEX = select(ledger_entries.c.idx).where(ledger_entries.c.event_id == bindparam("event"))
_NEWEST = (
    select(checkpoints.c.size, checkpoints.c.note).order_by(checkpoints.c.size.desc()).limit(1)
)
_COMMITTED = (
    "the change is committed and event {} is recorded, but it is not yet {}: {} "
    "Do not repeat the call."
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: ``leaf`` is the event's canonical JSON."""

    index: int
    event_id: str
    leaf: bytes
    leaf_hash: bytes

    def event(self) -> dict[str, Any]:
        """The CloudEvents object."""
        parsed: dict[str, Any] = parse_json(self.leaf)
        return parsed


class Ledger:
    """See the module. Safe to share among threads; each process has its own.

    Args:
        engine: For the ledger's own transactions; never the session of a change.
        origin: Name for a ledger that has none yet; the first process decides.
        pin: Remembers the name outside the database; None trusts the database.
        log_signer: Signs checkpoints.
        witness: Countersigns them.
        clock: The time of checkpoints.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        origin: str,
        log_signer: Signer,
        witness: Witness,
        pin: OriginPin | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.engine = engine
        self.log_signer = log_signer
        self.witness = witness
        self._clock = clock
        self._work = Lock()  # one thread sequences for all that wait
        self._covered: frozenset[str] = frozenset()  # events of the last batch that was covered
        self._healthy = False  # whether the last countersigning here succeeded
        self._stop = Event()
        self._thread: Thread | None = None
        self.origin = self._initialise(origin, pin)

    def _initialise(self, origin: str, pin: OriginPin | None) -> str:
        read = select(ledger_state.c.origin).where(ledger_state.c.id == 1)
        # The pin before the database: a name is remembered only once its row is committed.
        remembered = pin.read() if pin else None
        with self.engine.connect() as connection:
            stored = connection.execute(read).scalar()
        if stored is None:
            if pin is not None and remembered is not None:
                raise pin.emptied(remembered)
            with self.engine.begin() as connection:
                connection.execute(
                    text(
                        "INSERT INTO chancery_ledger_state (id, origin, size) "
                        "VALUES (1, :origin, 0) ON CONFLICT DO NOTHING"
                    ),
                    {"origin": origin},
                )
                stored = connection.execute(read).scalar_one()
        if pin is not None:
            pin.check(str(stored))
        return str(stored)

    # -- writing

    def record(self, connection: Connection, event: AuditEvent) -> str:
        """Put an event into the outbox, in the caller's transaction; returns the event's id."""
        row = {"event_id": event.id, "leaf": event.to_leaf()}
        execute_compiled(connection, _RECORD, row)
        return event.id

    def sequence(self) -> int:
        """Sequence whatever is pending and have it countersigned; returns how many events.

        Raises:
            WitnessError: sequenced, but the witness can or will not countersign.
            LedgerTamperedError: the database is not as the ledger left it.
        """
        with self._work:
            last, count, _ = self._sequence()
            self._countersign(last)
            return count

    def _sequence(self, event_id: str = "") -> tuple[Sequenced | None, int, bool]:
        """Sequence all that is pending: the last batch, how many, and whether the event was."""
        last, count, found = None, 0, False
        while count % BATCH == 0:  # a batch that is not full was the last
            with self.engine.connect() as connection:
                batch = sequence_batch(connection, self.log_signer, self._clock)
                if batch is None:
                    break
                connection.commit()
            last, count = batch, count + len(batch.event_ids)
            found = found or event_id in batch.event_ids
        return last, count, found

    def _countersign(self, batch: Sequenced | None = None) -> None:
        """Bring the witness up to the newest checkpoint, from whatever size it has.

        ``batch`` is the one just sequenced here, if any: it saves reading it back.
        """
        self._healthy = False
        known = batch.nodes if batch else {}
        while True:
            # The witness is read first: the database then holds at least what it has seen.
            seen = self._seen()
            with self.engine.connect() as connection:
                if batch is not None and seen.size < batch.checkpoint.size:
                    size, note = batch.checkpoint.size, batch.note
                else:
                    size, note = connection.execute(_NEWEST).first() or (0, "")
                if size < seen.size:
                    raise LedgerTamperedError(
                        f"the ledger was rolled back: the witness countersigned {seen.size} "
                        f"entries of {self.origin}, the database has {size}",
                        "restore the database; `chancery ledger verify` shows what is missing",
                        index=size,
                    )
                if size == 0 or (size == seen.size and parse_checkpoint(note) == seen):
                    break
                proof = read_consistency_proof(connection, seen.size, size, known)
            try:
                self.witness.cosign(note, seen.size, proof)
                break
            except WitnessError:
                if self._seen() == seen:
                    raise
                continue  # another process was quicker
        self._healthy = True

    def _seen(self) -> Checkpoint:
        note = self.witness.latest(self.origin)
        return parse_checkpoint(note) if note else Checkpoint(self.origin, 0, EMPTY_ROOT)

    def cover(self, event_id: str) -> None:
        """Return once the event is in a checkpoint that the witness countersigned.

        Whoever holds the lock sequences for everyone who waits.

        Raises:
            WitnessError: the event is committed and recorded, but not countersigned.
            LedgerTamperedError: the database is not as the ledger left it.
            LedgerError: no such event was committed, or the database failed.
        """
        try:
            with self._work:
                if event_id in self._covered:
                    return  # whoever held the lock before did it
                last, _, found = self._sequence(event_id)
                # Another process may have been quicker.
                if not found and not self._has(event_id):
                    raise LedgerError(
                        f"event {event_id} is neither pending nor in the ledger",
                        "cover an event only after its transaction has been committed",
                    )
                self._countersign(last)
                self._covered = frozenset(last.event_ids if last else ())
        except WitnessError as error:
            raise WitnessError(
                _COMMITTED.format(event_id, "countersigned", error.message),
                f"{error.remedy}; then run `chancery ledger checkpoint`",
            ) from error
        except SQLAlchemyError as error:
            raise LedgerError(
                _COMMITTED.format(event_id, "covered by a checkpoint", str(error).split("\n")[0]),
                "see to the database; then run `chancery ledger checkpoint`",
            ) from error

    def _has(self, event_id: str) -> bool:
        with self.engine.connect() as connection:
            return connection.execute(_INDEX, {"event": event_id}).scalar() is not None

    def ensure_witnessed(self) -> None:
        """Refuse to go on while the witness is down; free unless the last attempt failed.

        Raises:
            WitnessError: it still cannot or will not countersign.
            LedgerTamperedError: the database was rolled back or changed.
        """
        if not self._healthy:
            with self._work:
                if not self._healthy:
                    self._countersign()

    def start_background(
        self, interval_s: float = 1.0, then: Callable[[], object] | None = None
    ) -> None:
        """Sequence events that nobody waits for, in a daemon thread.

        Args:
            interval_s: Pause between two rounds.
            then: Called after each round, for views of the ledger that follow it.
        """
        if self._thread is None or not self._thread.is_alive():
            self._stop.clear()
            self._thread = Thread(
                target=self._run, args=(interval_s, then), name="chancery-ledger", daemon=True
            )
            self._thread.start()

    def _run(self, interval_s: float, then: Callable[[], object] | None) -> None:
        while not self._stop.wait(interval_s * random.uniform(0.8, 1.2)):
            try:
                if self._is_due(interval_s):
                    self.sequence()
                else:
                    self.ensure_witnessed()
                if then is not None:
                    then()
            except (GovernanceError, SQLAlchemyError) as error:  # told again to whoever waits
                _log.warning("the ledger could not be brought up to date: %s", error)

    def _is_due(self, interval_s: float) -> bool:
        """Whether events wait and nobody, in any process, has sequenced within the interval."""
        with self.engine.connect() as connection:
            waiting, latest_ms = connection.execute(_DUE).one()
        now_ms = self._clock().timestamp() * 1000
        return bool(waiting) and not 0 <= now_ms - (latest_ms or 0) < interval_s * 1000

    def close(self) -> None:
        """Stop the background thread; what is pending stays for the next process."""
        self._stop.set()
        if self._thread is not None:
            with suppress(RuntimeError):  # called from that thread itself
                self._thread.join(timeout=30)
            self._thread = None

    # -- reading

    def size(self) -> int:
        """Entries in the tree."""
        with self.engine.connect() as connection:
            return int(connection.execute(select(ledger_state.c.size)).scalar_one())

    def pending(self) -> int:
        """Committed events that are not in the tree yet."""
        with self.engine.connect() as connection:
            return int(connection.execute(select(func.count()).select_from(outbox)).scalar_one())

    def entries(self, start: int = 0, limit: int = 100) -> Sequence[Entry]:
        """Entries in order; a negative ``start`` counts from the end."""
        with self.engine.connect() as connection:
            if start < 0:
                size = connection.execute(select(ledger_state.c.size)).scalar_one()
                start = max(0, size + start)
            query = _ENTRY.where(ledger_entries.c.idx >= start).order_by(ledger_entries.c.idx)
            return [Entry(*row) for row in connection.execute(query.limit(limit))]

    def find(self, event_id: str) -> Entry:
        """The entry of an event.

        Raises:
            NotFoundError: there is none (it may be pending).
        """
        with self.engine.connect() as connection:
            row = connection.execute(_ENTRY.where(ledger_entries.c.event_id == event_id)).first()
        if row is None:
            raise NotFoundError(
                f"event {event_id} is not in the ledger",
                "if it was recorded just now, run `chancery ledger checkpoint`",
            )
        return Entry(*row)

    def is_countersigned(self, connection: Connection, entry: Entry) -> bool:
        """Whether log and witness vouch for the entry, as it was read on this connection.

        Raises:
            LedgerTamperedError: it is not the entry that they signed.
            WitnessError: the witness's records cannot be read.
        """
        newest, seen = connection.execute(_NEWEST).first(), self._seen()
        if newest is None or entry.index >= min(newest.size, seen.size):
            return False
        try:
            signed = verify_checkpoint(newest.note, self.log_signer.public_key_pem, self.origin)
            proof = read_inclusion_proof(connection, entry.index, signed.size)
            verify_inclusion(leaf_hash(entry.leaf), entry.index, signed.size, proof, signed.root)
        except VerificationError as error:
            raise LedgerTamperedError(
                f"entry {entry.index} is not the one that was signed: {error.message}",
                "run `chancery ledger verify`, and restore the database",
                index=entry.index,
            ) from error
        return signed.size != seen.size or signed == seen

    def checkpoint(self) -> str | None:
        """The newest checkpoint, with its cosignature if it has one; None while empty."""
        with self.engine.connect() as connection:
            newest = connection.execute(_NEWEST).first()
        note = newest.note if newest else None
        latest = self.witness.latest(self.origin)
        if note and latest and parse_checkpoint(latest) == parse_checkpoint(note):
            return latest
        return note

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """RFC 6962 section 2.1.1; in the present tree unless ``size`` is given."""
        with self.engine.connect() as connection:
            if size is None:
                size = int(connection.execute(select(ledger_state.c.size)).scalar_one())
            return read_inclusion_proof(connection, index, size)

    def consistency_proof(self, old: int, new: int) -> list[bytes]:
        """RFC 6962 section 2.1.2."""
        with self.engine.connect() as connection:
            return read_consistency_proof(connection, old, new)

    def tlog_proof(self, event_id: str) -> str:
        """The event's offline proof (C2SP ``.tlog-proof``) under the newest cosigned checkpoint.

        Raises:
            NotFoundError: no such entry.
            LedgerError: not countersigned yet.
        """
        index = self.find(event_id).index
        note = self.witness.latest(self.origin)
        size = parse_checkpoint(note).size if note else 0
        if note is None or index >= size:
            raise LedgerError(
                f"event {event_id} is not countersigned yet", "run `chancery ledger checkpoint`"
            )
        return format_tlog_proof(index, self.inclusion_proof(index, size), note)
