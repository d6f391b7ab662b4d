"""What a monitor keeps on disk: one state file, and a file for each report that is on its way.

The state file is the point at which anything counts: it is written beside its place and renamed,
so a process that dies leaves the old one or the new one, whole. It names the reports that are on
their way; a report's file is written before the state that names it, and removed after one that
does not. What nobody names is left over, and removed at the start. Before the state is renamed
the disk confirms it and the reports that it names; many states can share that (``prepare``).

A report with a sample beside it waits for its checks. ``complete`` writes the report anew, and then
removes the sample. From there on the report does not change: a sink that sees it twice sees the
same document.

The folder belongs to one process at a time (a lock); another one is refused.

Example::

    with StateFolder(path, profile) as folder:
        folder.put(report, sample)
        folder.save({"cutter": ..., "reports": [4]})
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Self, get_type_hints

from drift.blocks import Block, from_parquet, to_parquet
from drift.checks import Checked
from drift.documents import Fields
from drift.profile import DriftProfile
from drift.report import WindowReport
from drift.stored import plain, read
from drift.window import WindowCounts
from governance.errors import ConflictError, MalformedRequestError, TamperedError

__all__ = ["StateFolder"]

_FORMAT = "chancery.drift-monitor/v1"
_BESIDE = ".state.json.part"
_CACHED = 4
_LIBC = ctypes.CDLL(None, use_errno=True)


class StateFolder:
    """Of one subject; see the module.

    Args:
        path: The folder; made if it is not there.
        profile: The reports' counts are of.
        durable: Have the disk confirm each state, so that it survives a loss of power. ``prepare``
            leaves that to ``sync``, once for many.

    Raises:
        ConflictError: another process has it.
    """

    def __init__(self, path: Path, profile: DriftProfile, *, durable: bool = True) -> None:
        self.path = path
        self._profile = profile
        self._durable = durable
        self._recent: dict[int, WindowReport] = {}
        (path / "reports").mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise ConflictError(
                f"another monitor has the state in {path}", "run one monitor for each subject"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others have it."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    # -- the state

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last; None: there is none.

        Raises:
            MalformedRequestError: it is no state.
            TamperedError: of another profile.
        """
        place = self.path / "state.json"
        document: Any
        try:
            document = json.loads(place.read_bytes())
        except FileNotFoundError:
            document = None
        except ValueError as error:
            raise MalformedRequestError(
                f"{place} is no state of a monitor: {error}", "restore it, or begin without it"
            ) from error
        if document is not None:
            if not isinstance(document, dict) or document.get("format") != _FORMAT:
                raise MalformedRequestError(
                    f"{place} is no state of a monitor", "restore it, or begin without it"
                )
            if document.get("profile") != self._profile.digest:
                raise TamperedError(
                    f"{place} was made with the profile {str(document.get('profile'))[:12]}…, not "
                    f"with {self._profile.digest[:12]}…",
                    "give the profile of the served version, or another folder for the state",
                )
        found: dict[str, Any] | None = document
        self._remove_all_but((found or {}).get("reports", ()))
        return found

    def save(self, document: Mapping[str, Any]) -> None:
        """Replace the state.

        Args:
            document: For JSON; ``reports`` names those on their way.
        """
        self.prepare(document)
        if self._durable:
            self.sync()
        self.commit()

    def prepare(self, document: Mapping[str, Any]) -> None:
        """Write a state that ``commit`` puts in place."""
        whole = {"format": _FORMAT, "profile": self._profile.digest, **document}
        (self.path / _BESIDE).write_bytes(json.dumps(whole).encode())

    def sync(self) -> None:
        """Have the disk confirm what was written to its file system, by whomever.

        Raises:
            OSError: it does not.
        """
        if _LIBC.syncfs(self._lock) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(self.path))

    @property
    def device(self) -> int:
        """The file system; ``sync`` on one state is enough for all on it."""
        return os.fstat(self._lock).st_dev

    def commit(self) -> None:
        """Put the prepared state in place."""
        os.replace(self.path / _BESIDE, self.path / "state.json")

    def _write(self, place: Path, data: bytes) -> None:
        beside = place.with_name(f".{place.name}.part")
        beside.write_bytes(data)
        os.replace(beside, place)

    # -- reports on their way

    def put(self, report: WindowReport, sample: Block | None = None) -> None:
        """Keep a report; with a sample, it waits for its checks."""
        index = report.verdict.index
        if sample is not None:
            self._write(self._sample(index), to_parquet(sample))
        self._put(report)

    def _put(self, report: WindowReport) -> None:
        document = {
            field.name: plain(getattr(report, field.name))
            for field in fields(report)
            if field.name != "counts"
        }
        document["counts"] = report.counts.to_dict()
        self._write(self._report(report.verdict.index), json.dumps(document).encode())
        self._recent[report.verdict.index] = report
        while len(self._recent) > _CACHED:
            del self._recent[next(iter(self._recent))]

    def report(self, index: int) -> WindowReport:
        """One that was put here.

        Raises:
            MalformedRequestError: its file was changed.
            OSError: it cannot be read.
        """
        recent = self._recent.get(index)
        if recent is not None:
            return recent
        place = self._report(index)
        where = f"{place} "
        try:
            document = json.loads(place.read_bytes())
            counts = document.pop("counts")
            hints = get_type_hints(WindowReport)
            found = {name: read(hints[name], one, where + name) for name, one in document.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MalformedRequestError(
                f"{place} is no report: {error}", "restore it from a copy of the state"
            ) from error
        return WindowReport(
            counts=WindowCounts.from_fields(self._profile, Fields(counts, where)), **found
        )

    def sample(self, index: int) -> Block | None:
        """What a report's checks are made of; None: it waits for none.

        Raises:
            MalformedRequestError: its file was changed.
        """
        try:
            data = self._sample(index).read_bytes()
        except FileNotFoundError:
            return None
        return from_parquet(data, self._sample(index).name)

    def waits(self, index: int) -> bool:
        """Whether a report waits for its checks."""
        return self._sample(index).exists()

    def complete(self, index: int, checked: Checked) -> None:
        """The checks of a report were made."""
        report = self.report(index)
        self._put(replace(report, findings=checked.findings, slices=checked.slices))
        self._sample(index).unlink(missing_ok=True)

    def remove(self, indices: Iterable[int]) -> None:
        """Reports that no saved state names any more."""
        for index in indices:
            self._recent.pop(index, None)
            self._report(index).unlink(missing_ok=True)
            self._sample(index).unlink(missing_ok=True)

    def _remove_all_but(self, indices: Iterable[int]) -> None:
        named = {place.name for i in indices for place in (self._report(i), self._sample(i))}
        for place in (self.path / "reports").iterdir():
            if place.name not in named:
                place.unlink(missing_ok=True)

    def _report(self, index: int) -> Path:
        return self.path / "reports" / f"{index:016d}.json"

    def _sample(self, index: int) -> Path:
        return self.path / "reports" / f"{index:016d}.parquet"
