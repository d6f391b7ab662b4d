"""Sinks by name: where a monitor's reports go.

``folder`` is here; others are found through the entry-point group ``chancery.drift_sinks``, whose
entries are functions of a subject and options, and give a ``drift.report.Sink``.

Example::

    sink = open_sink("folder", subject, {"path": "reports"})
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from drift.report import Sink, Subject, WindowReport
from governance.errors import ConfigurationError

__all__ = ["GROUP", "ReportFolder", "open_folder", "open_sink"]

GROUP = "chancery.drift_sinks"

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
    return ReportFolder(Path(options["path"]))


class ReportFolder:
    """A sink: reports as JSON files, ``<subject>/<index>.json``, each whole or not there.

    Args:
        path: The folder; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def publish(self, report: WindowReport) -> None:
        """Write it; the same again changes nothing."""
        parts = [part for part in report.subject.key.split("/") if part not in ("", ".", "..")]
        folder = self.path.joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / f"{report.verdict.index:016d}.json"
        beside = folder / f".{place.name}.part"
        beside.write_bytes(report.to_json())
        os.replace(beside, place)
