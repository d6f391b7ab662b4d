"""The witness: countersigns only a ledger that grows, and remembers outside the database.

A checkpoint alone does not stop the holder of the log's key from rewriting or truncating the
ledger. The witness keeps what it last countersigned, asks for a consistency proof from there (as
in C2SP tlog-witness), and refuses a smaller tree or another root.

``FileWitness`` keeps one append-only file an origin: a JSON string a line, each a cosigned note.
A record is on disk (fsync) before it is returned. A last line without its newline was torn by a
crash, was never returned to anyone, and is dropped. A file lock lets several processes share it.

Give the directory to another user, host or write-once share than the database's: whoever can
rewrite both, and holds the log's key, can rewrite history.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Protocol

from governance.errors import VerificationError, WitnessError
from governance.ledger.merkle import EMPTY_ROOT, verify_consistency
from governance.ledger.note import (
    Checkpoint,
    cosign_note,
    parse_checkpoint,
    verify_checkpoint,
    verify_cosignature,
)
from governance.signing.keys import Signer

__all__ = ["FileWitness", "Witness"]

_TAIL = 1 << 14  # more than any one record


class Witness(Protocol):
    """Countersigns checkpoints of a ledger that only grows."""

    @property
    def public_key_pem(self) -> str: ...

    def cosign(self, note: str, old_size: int, proof: Sequence[bytes]) -> str:
        """The note with the witness's cosignature, remembered.

        Raises:
            WitnessError: it will not (rollback, fork, wrong signature) or cannot (disk full).
        """
        ...

    def latest(self, origin: str) -> str | None:
        """The last note it countersigned for this origin."""
        ...

    def history(self, origin: str) -> Iterator[str]:
        """Every note it countersigned for this origin, oldest first."""
        ...


class FileWitness:
    """See the module.

    Args:
        directory: Where it keeps its files; made on first use.
        signer: The witness's key, another one than the log's.
        log_public_key: PEM of the key that must have signed each checkpoint.
        clock: The time for cosignatures.
    """

    def __init__(
        self,
        directory: Path,
        signer: Signer,
        log_public_key: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.directory = directory
        self._signer = signer
        self._log_public_key = log_public_key
        self._clock = clock
        self._cache: dict[str, tuple[tuple[int, int, int, int], str | None]] = {}
        self._threads = Lock()

    @property
    def public_key_pem(self) -> str:
        return self._signer.public_key_pem

    def path(self, origin: str) -> Path:
        """The file of an origin."""
        return self.directory / f"{sha256(origin.encode()).hexdigest()[:32]}.cosigned"

    def latest(self, origin: str) -> str | None:
        path = self.path(origin)
        with self._failing_at(path), self._threads:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)  # never read a record not yet synced
                return self._last(descriptor, origin)[0]
            finally:
                os.close(descriptor)

    def history(self, origin: str) -> Iterator[str]:
        path = self.path(origin)
        with self._failing_at(path):
            if not path.exists():
                return
            with path.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        yield _decode(line, path)

    def cosign(self, note: str, old_size: int, proof: Sequence[bytes]) -> str:
        try:
            checkpoint = verify_checkpoint(note, self._log_public_key)
        except VerificationError as error:
            raise WitnessError(
                f"the witness refuses the checkpoint: {error.message}",
                "find out who signs checkpoints with another key than the log's",
            ) from error
        path = self.path(checkpoint.origin)
        with self._failing_at(path), self._locked(path) as descriptor:
            known, end = self._last(descriptor, checkpoint.origin)
            if known is not None:
                last = parse_checkpoint(known)
                if last == checkpoint:
                    return known
            else:
                last = Checkpoint(checkpoint.origin, 0, EMPTY_ROOT)
            self._check_growth(last, checkpoint, old_size, proof)
            cosigned = cosign_note(note, self._signer, int(self._clock().timestamp()))
            self._append(descriptor, end, json.dumps(cosigned).encode() + b"\n")
            self._remember(descriptor, checkpoint.origin, cosigned)
            return cosigned

    def _check_growth(
        self, last: Checkpoint, new: Checkpoint, old_size: int, proof: Sequence[bytes]
    ) -> None:
        if new.size < last.size:
            raise WitnessError(
                f"the ledger was rolled back: the witness countersigned size {last.size} of "
                f"{new.origin}, and is now shown size {new.size}",
                "run `chancery ledger verify`; restore the database that has all entries",
            )
        if old_size != last.size:
            raise WitnessError(
                f"the witness countersigned size {last.size} of {new.origin} meanwhile, and the "
                f"proof starts at {old_size}",
                "ask again with a proof from its latest size",
            )
        try:
            verify_consistency(last.size, new.size, last.root, new.root, proof)
        except VerificationError as error:
            raise WitnessError(
                f"the ledger was rewritten: the tree of {new.size} does not extend the tree of "
                f"{last.size} that the witness countersigned for {new.origin}",
                "run `chancery ledger verify`, which names the first entry that differs",
            ) from error

    def _last(self, descriptor: int, origin: str) -> tuple[str | None, int]:
        """The last whole record, and where it ends."""
        status = os.fstat(descriptor)
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        cached = self._cache.get(origin)
        if cached is not None and cached[0] == identity:
            return cached[1], status.st_size
        path = self.path(origin)
        start = max(0, status.st_size - _TAIL)
        tail = os.pread(descriptor, _TAIL, start)
        whole, newline, torn = tail.rpartition(b"\n")
        if not newline:
            if start:
                raise _damaged(path, "its last record is not a line")
            return None, 0
        note = _decode(whole.rpartition(b"\n")[2], path)
        try:
            if parse_checkpoint(note).origin != origin:
                raise _damaged(path, "it holds a checkpoint of another origin")
            verify_cosignature(note, self.public_key_pem)
        except VerificationError as error:
            raise _damaged(path, error.message) from error
        if not torn:
            self._cache[origin] = (identity, note)
        return note, start + len(whole) + 1

    def _remember(self, descriptor: int, origin: str, note: str) -> None:
        status = os.fstat(descriptor)
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        self._cache[origin] = (identity, note)

    @staticmethod
    def _append(descriptor: int, end: int, record: bytes) -> None:
        os.ftruncate(descriptor, end)  # drops a torn record
        try:
            written = 0
            while written < len(record):
                written += os.pwrite(descriptor, record[written:], end + written)
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):  # the torn record is ignored in any case
                os.ftruncate(descriptor, end)
            raise

    @contextmanager
    def _locked(self, path: Path) -> Iterator[int]:
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._threads:
            created = not path.exists()
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if created:
                    _sync_directory(self.directory)
                yield descriptor
            finally:
                os.close(descriptor)  # also gives the lock back

    @contextmanager
    def _failing_at(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WitnessError(
                f"the witness file {path} cannot be used: {error.strerror or error}",
                f"free space on, or restore access to, the disk of {self.directory}",
            ) from error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(path: Path, why: str) -> WitnessError:
    return WitnessError(
        f"the witness file {path} is damaged: {why}",
        "restore it from its copy; without it a rollback of the ledger would go unnoticed",
    )


def _decode(line: bytes, path: Path) -> str:
    try:
        note = json.loads(line)
    except ValueError as error:
        raise _damaged(path, "a record is not a JSON string") from error
    if not isinstance(note, str):
        raise _damaged(path, "a record is not a JSON string")
    return note
