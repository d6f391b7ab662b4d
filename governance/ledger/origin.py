"""Which ledger this is, remembered outside the database.

A whole database can be put in another's place: rows, keys' notes and name all agree with each
other, and the witness, who keeps its records by name, knows nothing of the new one. So the name
(``origin``) of the first ledger that a process sees is kept in a file in the state directory,
``ledger.origin``, and every later process holds its database against it. A restored backup bears
the same name. Servers with state directories of their own remember what each saw first.

A line without its end was torn by a crash, before anybody relied on it, and counts as nothing.

Example::

    pin = OriginPin(settings.home / ORIGIN_FILE)
    pin.check("chancery/3f0c")   # remembered now, or the same as before, or LedgerTamperedError
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from governance.errors import ConfigurationError, LedgerTamperedError

__all__ = ["ORIGIN_FILE", "OriginPin"]

ORIGIN_FILE = "ledger.origin"
"""Name of the file in the state directory."""

_LONGEST = 256


class OriginPin:
    """The remembered name in the file at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> str | None:
        """The remembered name; None when no ledger was seen yet.

        Raises:
            ConfigurationError: the file cannot be read, or holds no name.
        """
        try:
            with self.path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                return self._parse(file.read(_LONGEST + 2))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from error

    def check(self, found: str) -> None:
        """Remember the name of the database's ledger, or insist on the one that is remembered.

        Raises:
            LedgerTamperedError: the database holds another ledger.
            ConfigurationError: the file cannot be read or written.
        """
        try:
            remembered = self.read() or self._remember(found)
        except OSError as error:
            raise self._unusable(error) from error
        if remembered != found:
            raise LedgerTamperedError(
                f"the database holds the ledger {found!r}, and {self.path} remembers "
                f"{remembered!r}: this is another ledger than the one seen first",
                self._remedy(),
            )

    def emptied(self, remembered: str) -> LedgerTamperedError:
        """What to say of a database without a ledger, when there was one."""
        return LedgerTamperedError(
            f"the database holds no ledger, and {self.path} remembers {remembered!r}: "
            "the database was emptied, or this is another one",
            self._remedy(),
            index=0,
        )

    def _remedy(self) -> str:
        return (
            "correct the database's address or restore the database; each database needs a "
            f"CHANCERY_HOME of its own. If starting anew is meant, put {self.path.parent} away"
        )

    def _remember(self, origin: str) -> str:
        """What is remembered from now on: of several processes that start, the first one's."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        created = not self.path.exists()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            there = self._parse(os.pread(descriptor, _LONGEST + 2, 0))
            if there is not None:
                return there
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{origin}\n".encode(), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)  # also gives the lock back
        if created:
            _sync_directory(self.path.parent)
        return origin

    def _parse(self, text: bytes) -> str | None:
        line, end, rest = text.partition(b"\n")
        if not end:
            return None
        try:
            origin = line.decode()
        except UnicodeDecodeError:
            origin = ""
        if rest or not origin or not origin.isprintable():
            raise ConfigurationError(
                f"{self.path} is not one line with the name of a ledger",
                "write the name that `chancery ledger verify` shows into it, once you have "
                "compared it with an export or checkpoint that you trust",
            )
        return origin

    def _unusable(self, error: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"cannot remember which ledger this is in {self.path}: {error.strerror or error}",
            "make the state directory readable and writable, or set CHANCERY_HOME",
        )


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
