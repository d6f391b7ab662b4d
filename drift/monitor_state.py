"""What monitors keep on disk: their states and the reports that are on their way, in SQLite.

A folder of states has up to 16 databases; which one a subject's is in, its name says. A file for
each state and each report would be most of what a window costs. A monitor *prepares* its state;
``commit`` makes everything in a database that was prepared count, at once, once the disk has
confirmed it. A process that dies leaves what was committed last, whole.

The state names the reports that are on their way. A report with a sample beside it waits for its
checks; ``complete`` takes the sample away. A report that a committed state names and that waits for
no checks does not change any more: a sink that sees it twice sees the same document.

A database belongs to one process at a time (SQLite's exclusive lock, which also makes do without
shared memory, so that the folder may lie on a network's file system); another one is refused. So
processes that share the subjects among themselves by ``part_of`` can share a folder.

Example::

    states = States(Path("state"))
    state = states.of("fraud/7/", profile)
    state.put(report, sample)
    state.prepare({"cutter": ..., "reports": [4]})
    state.database.commit()
    state.commit()
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from threading import RLock
from typing import Any, get_type_hints
from zlib import crc32

import orjson

from drift.blocks import Block, from_arrow, to_arrow
from drift.checks import Checked, with_findings
from drift.documents import Fields
from drift.profile import DriftProfile
from drift.report import WindowReport
from drift.stored import plain, read
from drift.window import WindowCounts
from governance.errors import ConflictError, MalformedRequestError, TamperedError

__all__ = ["PARTS", "MonitorState", "StateDatabase", "States", "part_of"]

PARTS = 16
"""Databases of a folder, and so the most processes that can share one."""

_FORMAT = "chancery.drift-monitor/v1"
_CACHED = 4
_RESTORE = "restore it, or begin without it"
_TABLES = (
    "CREATE TABLE IF NOT EXISTS states (subject TEXT PRIMARY KEY, document TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS reports (subject TEXT, number INTEGER, document TEXT NOT NULL, "
    "sample BLOB, PRIMARY KEY (subject, number))",
)
_WRITTEN = ("subject", "verdict", "performance", "tally")
_PUT_STATE = "INSERT OR REPLACE INTO states VALUES (?, ?)"
_PUT_REPORT = "INSERT OR REPLACE INTO reports VALUES (?, ?, ?, ?)"
_REMOVE_REPORT = "DELETE FROM reports WHERE subject = ? AND number = ?"


def part_of(subject: str) -> int:
    """Which database of a folder a subject's state is in, from 0; the same for ever."""
    return crc32(subject.encode()) % PARTS


class States:
    """A folder of states.

    Args:
        folder: Made if it is not there.
        durable: Have the disk confirm what is committed, so that it survives a loss of power.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self.folder = folder
        self.databases = [
            StateDatabase(folder / f"{part:02d}.sqlite", durable=durable) for part in range(PARTS)
        ]

    def of(self, subject: str, profile: DriftProfile) -> MonitorState:
        """The state of one subject; as ``StateDatabase.of``."""
        return self.databases[part_of(subject)].of(subject, profile)


class StateDatabase:
    """One file; opened with the first subject, closed with the last.

    Args:
        file: Made if it is not there.
        durable: See ``States``.
    """

    def __init__(self, file: Path, *, durable: bool = True) -> None:
        self.file = file
        self._durable = durable
        self._open: set[str] = set()
        self._connection: sqlite3.Connection | None = None
        self._prepared = False  # something waits for ``commit``
        self._lost = False  # SQLite gave it up, as it may where the disk is full
        self._mutex = RLock()  # sinks and checks read from threads of their own

    def of(self, subject: str, profile: DriftProfile) -> MonitorState:
        """The state of one subject.

        Args:
            subject: ``model/version/deployment``.
            profile: That the reports' counts are of.

        Raises:
            ConflictError: it is open already, or another process has the file.
            MalformedRequestError: the file is no database.
            OSError: it cannot be used.
        """
        with self._mutex:
            if subject in self._open:
                raise ConflictError(
                    f"another monitor has the state of {subject} in {self.file}",
                    "run one monitor for each subject",
                )
            if self._connection is None:
                self._connection = self._connected()
            self._open.add(subject)
        return MonitorState(self, subject, profile)

    def _connected(self) -> sqlite3.Connection:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self._told():
            made = sqlite3.connect(
                self.file, timeout=0, isolation_level=None, check_same_thread=False
            )
            try:
                made.execute("PRAGMA locking_mode = EXCLUSIVE")
                made.execute("PRAGMA journal_mode = WAL")
                made.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'OFF'}")
                made.execute("BEGIN IMMEDIATE")
                for table in _TABLES:
                    made.execute(table)
                made.execute("COMMIT")
            except BaseException:
                made.close()
                raise
        return made

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise ConflictError(
                    f"another process has the states in {self.file}",
                    "run one for each folder of states, or give each its part of them",
                ) from error
            raise OSError(f"the states in {self.file}: {error}") from error
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise  # a mistake of ours, not of the file
            raise MalformedRequestError(
                f"{self.file} is no database of states: {error}", _RESTORE
            ) from error

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of a statement, of what is committed or prepared.

        Raises:
            MalformedRequestError, OSError: the database cannot be read.
        """
        with self._mutex, self._told():
            return self._used().execute(statement, values).fetchall()

    def change(self, work: Iterable[tuple[str, Sequence[Sequence[Any]]]]) -> None:
        """Execute statements, each for all of its values; all or none. It counts with ``commit``.

        Raises:
            MalformedRequestError, OSError: the database cannot be written.
        """
        with self._mutex, self._told():
            used = self._used()
            if not used.in_transaction:
                used.execute("BEGIN")
            used.execute("SAVEPOINT one")
            try:
                for statement, values in work:
                    used.executemany(statement, values)
            except BaseException:
                with suppress(sqlite3.Error):
                    used.execute("ROLLBACK TO one")
                self._lost |= self._prepared and not used.in_transaction
                raise
            finally:
                with suppress(sqlite3.Error):
                    used.execute("RELEASE one")
            self._prepared = True

    def commit(self) -> None:
        """Have everything that was prepared count, if this process dies or the power fails.

        Raises:
            MalformedRequestError, OSError: nothing of it counts.
        """
        with self._mutex:
            used = self._used()
            lost, self._prepared, self._lost = self._lost, False, False
            try:
                with self._told():
                    if lost:
                        raise OSError(f"the states in {self.file} could not be written")
                    if used.in_transaction:
                        used.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    used.execute("ROLLBACK")
                raise

    def _used(self) -> sqlite3.Connection:
        if self._connection is None:
            raise OSError(f"the states in {self.file} are closed")
        return self._connection

    def let_go(self, subject: str) -> None:
        """Let others have a subject; with the last one, the file."""
        with self._mutex:
            self._open.discard(subject)
            if not self._open and self._connection is not None:
                connection, self._connection = self._connection, None
                connection.close()


class MonitorState:
    """Of one subject; made by ``States.of``.

    Args:
        database: Where it lies.
        subject: ``model/version/deployment``.
        profile: The reports' counts are of.
    """

    def __init__(self, database: StateDatabase, subject: str, profile: DriftProfile) -> None:
        self.database = database
        self.subject = subject
        self._profile = profile
        self._recent: dict[int, WindowReport] = {}
        self._unsaved: dict[int, tuple[WindowReport, bytes | None]] = {}
        self._preparing: tuple[int, ...] = ()
        self._closed = False

    def close(self) -> None:
        """Let others have it."""
        if not self._closed:
            self._closed = True
            self.database.let_go(self.subject)

    def _where(self, what: str = "the state") -> str:
        return f"{what} of {self.subject} in {self.database.file}"

    # -- the state

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last; None: there is none.

        Raises:
            MalformedRequestError: it is no state.
            TamperedError: of another profile.
        """
        found = self.database.query("SELECT document FROM states WHERE subject = ?", self.subject)
        if not found:
            return None
        try:
            document = json.loads(found[0][0])
        except (ValueError, TypeError) as error:
            raise MalformedRequestError(
                f"{self._where()} is no state of a monitor: {error}", _RESTORE
            ) from error
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise MalformedRequestError(f"{self._where()} is no state of a monitor", _RESTORE)
        if document.get("profile") != self._profile.digest:
            raise TamperedError(
                f"{self._where()} was made with the profile {str(document.get('profile'))[:12]}…, "
                f"not with {self._profile.digest[:12]}…",
                "give the profile of the served version, or another folder for the state",
            )
        return document

    def prepare(self, document: Mapping[str, Any], done: Iterable[int] = ()) -> None:
        """Write the state, and the reports put here since the one before.

        Args:
            document: For JSON; ``reports`` names those on their way.
            done: Reports that nobody needs any more.
        """
        whole = {"format": _FORMAT, "profile": self._profile.digest, **document}
        reports = [
            (self.subject, index, self._document(report), sample)
            for index, (report, sample) in self._unsaved.items()
        ]
        self.database.change(
            (
                (_PUT_STATE, [(self.subject, _json(whole))]),
                (_PUT_REPORT, reports),
                (_REMOVE_REPORT, [(self.subject, index) for index in done]),
            )
        )
        self._preparing = tuple(self._unsaved)

    def commit(self) -> None:
        """What was prepared is committed."""
        for index in self._preparing:
            self._unsaved.pop(index, None)
        self._preparing = ()

    # -- reports on their way

    def put(self, report: WindowReport, sample: Block | None = None) -> None:
        """Keep a report; with a sample, it waits for its checks."""
        self._put(report, None if sample is None else to_arrow(sample))

    def _put(self, report: WindowReport, sample: bytes | None) -> None:
        index = report.verdict.index
        self._unsaved[index] = report, sample
        self._recent[index] = report
        while len(self._recent) > _CACHED:
            del self._recent[next(iter(self._recent))]

    @staticmethod
    def _document(report: WindowReport) -> str:
        if not report.findings and not report.slices:  # then what sinks get says everything else
            written, counts = report.to_json().decode(), _json(report.counts.to_dict())
            return f'{{"written": {written}, "counts": {counts}}}'
        document = {
            field.name: plain(getattr(report, field.name))
            for field in fields(report)
            if field.name != "counts"
        }
        document["counts"] = report.counts.to_dict()
        return json.dumps(document)

    @property
    def waiting(self) -> list[int]:
        """Saved reports that wait for their checks."""
        found = self.database.query(
            "SELECT number FROM reports WHERE subject = ? AND sample IS NOT NULL", self.subject
        )
        return [index for (index,) in found]

    @property
    def saved(self) -> list[int]:
        """Reports that are saved."""
        found = self.database.query("SELECT number FROM reports WHERE subject = ?", self.subject)
        return [index for (index,) in found]

    def report(self, index: int) -> WindowReport:
        """One that was put here.

        Raises:
            MalformedRequestError: it was changed, or is gone.
            OSError: it cannot be read.
        """
        unsaved, recent = self._unsaved.get(index), self._recent.get(index)
        if recent is not None:
            return recent
        if unsaved is not None:
            return unsaved[0]
        where = self._where(f"report {index}")
        found = self.database.query(
            "SELECT document FROM reports WHERE subject = ? AND number = ?", self.subject, index
        )
        try:
            document = json.loads(found[0][0])
            counts = document.pop("counts")
            if "written" in document:
                written = document["written"]
                document = {name: written[name] for name in _WRITTEN}
                document["made_ms"] = written["madeMs"]
            hints = get_type_hints(WindowReport)
            parts = {
                name: read(hints[name], one, f"{where}: {name}") for name, one in document.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise MalformedRequestError(
                f"{where} is no report: {error}", "restore it from a copy of the state"
            ) from error
        return WindowReport(
            counts=WindowCounts.from_fields(self._profile, Fields(counts, where)), **parts
        )

    def sample(self, index: int) -> Block | None:
        """What a report's checks are made of; None: it waits for none.

        Raises:
            MalformedRequestError: it was changed.
        """
        unsaved = self._unsaved.get(index)
        data = None if unsaved is None else unsaved[1]
        if unsaved is None:
            found = self.database.query(
                "SELECT sample FROM reports WHERE subject = ? AND number = ?", self.subject, index
            )
            data = found[0][0] if found else None
        return None if data is None else from_arrow(data, self._where(f"the sample {index}"))

    def complete(self, index: int, checked: Checked) -> None:
        """The checks of a report were made; it is to be saved."""
        report = self.report(index)
        verdict = with_findings(report.verdict, checked.findings)
        self._put(
            replace(report, verdict=verdict, findings=checked.findings, slices=checked.slices), None
        )


def _json(document: Mapping[str, Any]) -> str:
    """Of documents whose fractions are texts: orjson would write null for a NaN."""
    try:
        return orjson.dumps(document).decode()
    except TypeError:  # half of a surrogate pair, in a file's name
        return json.dumps(document)
