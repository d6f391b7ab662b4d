"""Sinks by name: where a monitor's reports go.

``folder`` is here; others are found through the entry-point group ``chancery.drift_sinks``, whose
entries are functions of a subject and options, and give a ``drift.report.Sink``.

Example::

    sink = open_sink("folder", subject, {"path": "reports"})
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from drift.places import subject_folder
from drift.report import Sink, Subject, WindowReport
from governance.errors import ConfigurationError

__all__ = ["GROUP", "ReportFolder", "open_folder", "open_sink"]

GROUP = "chancery.drift_sinks"

_MOST_BYTES = 64 << 20
_REPEATED = 256  # as many as wait for sinks at most
_TAIL = 16 << 20

Opener = Callable[[Subject, Mapping[str, str]], Sink]


def open_sink(name: str, subject: Subject, options: Mapping[str, str]) -> Sink:
    """A sink for one subject.

    Raises:
        ConfigurationError: there is none of that name, or its options are wrong.
    """
    points = _points()
    if name not in points:
        raise ConfigurationError(
            f"there is no sink {name!r} for drift reports",
            f"choose one of {', '.join(sorted(points)) or 'none, for none is installed'}",
        )
    opener: Opener = points[name].load()
    return opener(subject, options)


@lru_cache(maxsize=1)
def _points() -> Mapping[str, EntryPoint]:
    """Looked for once: that reads the metadata of every package."""
    return {point.name: point for point in entry_points(group=GROUP)}


def open_folder(subject: Subject, options: Mapping[str, str]) -> Sink:
    """The sink ``folder``; its option is ``path``.

    Raises:
        ConfigurationError: no path, or other options.
    """
    if set(options) != {"path"}:
        raise ConfigurationError(
            f"the sink 'folder' has the options {sorted(options)}", "give it a path, and no other"
        )
    return ReportFolder(Path(options["path"]), subject)


class ReportFolder:
    """A sink: reports as JSON Lines, ``<model>/<version>/<deployment or _>/<first index>.jsonl``.

    Each line is a report, canonical. A file of 64 MiB is followed by another one, named by the
    index that it begins with: a file for each report would be a million a day for a dozen models
    that are watched closely.

    Args:
        path: The folder; made if it is not there.
        subject: Whose reports they are.
        most_bytes: Of a file.
    """

    quick = True

    def __init__(self, path: Path, subject: Subject, *, most_bytes: int = _MOST_BYTES) -> None:
        self.folder = subject_folder(path, subject.model, subject.version, subject.deployment)
        self._most_bytes = most_bytes
        self._file: Path | None = None
        self._seen: set[bytes] = set()

    def publish(self, report: WindowReport) -> None:
        """Write it; one of the last 256 again changes nothing."""
        line = report.to_json() + b"\n"
        file = self._file or self._found()
        self._file = None  # until this went well
        if not self._seen or _digest(line) not in self._seen:
            if file is None or _size(file) >= self._most_bytes:
                file = self.folder / f"{report.verdict.index:016d}.jsonl"
            with file.open("ab") as opened:
                opened.write(line)
            self._seen.clear()  # what is repeated comes first
        self._file = file

    def _found(self) -> Path | None:
        """The file that is written to, without a line that was cut short; None: there is none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = sorted(self.folder.glob("*.jsonl"), key=lambda file: file.stat().st_mtime_ns)
        lines: list[bytes] = []
        for file in files[-2:]:
            with file.open("rb+") as opened:
                end = opened.seek(0, os.SEEK_END)
                opened.seek(max(0, end - _TAIL))
                tail = opened.read()
                whole = tail.rfind(b"\n") + 1
                opened.truncate(end - len(tail) + whole)
                lines += tail[:whole].splitlines(keepends=True)
        self._seen = set(map(_digest, lines[-_REPEATED:]))
        return files[-1] if files else None


def _size(file: Path) -> int:
    """In bytes; one that is gone has none."""
    try:
        return os.stat(file).st_size
    except FileNotFoundError:
        return 0


def _digest(line: bytes) -> bytes:
    return hashlib.sha256(line).digest()
