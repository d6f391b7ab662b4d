"""Checks a file of scored rows against a version's profile, once: windows, verdicts, reports.

Rows become windows of W in their order; each is judged, and where it warns or alerts, detectors and
slices look at a sample of it beside the profile's own reference sample. The judge begins at zero:
a check says what this file looks like, not what came before it.

Nothing passes in silence: a file without rows, or with fewer than are judged at once, is refused.
A missing, new or changed column is no error but a finding, in each window.

Example::

    check = Check(load_profile("models:/fraud/3"))
    reports = list(check.reports(Path("rows.parquet"), label="bad"))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.batch import times_of
from drift.catalogue import build
from drift.checks import DETECTORS
from drift.cutter import Rows, WindowCutter
from drift.data_files import Columns, windows_of
from drift.detector import Detector, Finding
from drift.examine import examine
from drift.model_profile import VersionProfile
from drift.performance import PerformanceWatch
from drift.reference import sample_of
from drift.report import WindowReport
from drift.sample import Sample
from drift.sections import PerformanceSection
from drift.slices import Slice, find_slices
from drift.verdict import Judge, Level
from governance.clock import now_ms
from governance.errors import ConfigurationError, GovernanceError, MalformedRequestError

__all__ = ["Asked", "Check"]

_CONFIRMED = 10
"""Windows that detectors look at: of a long drift they would say the same again."""

_EVER = 2**53


@dataclass(frozen=True, slots=True)
class Asked:
    """How a file is read.

    Attributes:
        window: Rows of a window; 0: the profile's.
        label: The column that holds true values; empty: none. Without a section ``performance`` in
            the profile nothing is said of them.
        time: The column that holds times; empty: none, and rows count as of now.
        ignored: Columns that are neither inputs nor outputs.
        first_index: Of the first window.
    """

    window: int = 0
    label: str = ""
    time: str = ""
    ignored: tuple[str, ...] = ()
    first_index: int = 0


class Check:
    """See the module.

    Args:
        version: What is checked against.
        detectors: Asked about windows that warn or alert; None: those of the profile's backend.
        clock: Milliseconds since the epoch.
    """

    def __init__(
        self,
        version: VersionProfile,
        *,
        detectors: tuple[Detector, ...] | None = None,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._version = version
        self._profile = version.profile
        backend = version.profile.backend
        if detectors is None:
            detectors = tuple(build(name, backend) for name in DETECTORS[backend])
        self._detectors = detectors
        self._clock = clock
        self._confirmed = 0
        self._reference = version.reference()

    def reports(self, path: Path, asked: Asked | None = None) -> Iterator[WindowReport]:
        """One for each window, in their order.

        Raises:
            MalformedRequestError: the file cannot be read, has no rows, or fewer than are judged,
                or lacks a column that ``asked`` names.
            ConfigurationError: a window that is too large for the profile's reference.
        """
        asked = asked or Asked()
        profile = self._profile
        rows = asked.window or profile.window
        if not 1 <= rows <= profile.rows // 10:
            raise ConfigurationError(
                f"windows of {rows} rows, where the profile's reference has {profile.rows}",
                f"ask for windows of 1 to {profile.rows // 10} rows",
            )
        judge = Judge(profile)
        known = PerformanceSection.of(profile) is not None
        watch = PerformanceWatch(profile, labels=known and bool(asked.label), most_waiting=rows)
        cutter = WindowCutter(profile, rows=rows, lateness_ms=_EVER, ahead_ms=_EVER)
        seen = 0
        judged = False
        for number, (columns, count) in enumerate(windows_of(path, profile, rows)):
            seen += count
            labels, times, plain = self._parts(columns, count, asked, path)
            block = Rows("file", number, plain, times)
            closed = cutter.add(block, now_ms=self._clock()) or cutter.flush()
            for window in closed:
                index = window.index + asked.first_index
                watch.table(index, plain, labels, times.tolist())
                enough = judge.waiting.rows + window.counts.rows >= profile.rules.min_rows
                performance, facts = watch.closed(index, judged=enough)
                verdict = judge.step(replace(window, index=index), facts)
                judged = judged or verdict.judged
                alarm = verdict.judged and verdict.level is not Level.OK
                findings, slices = self._confirm(plain, index) if alarm else ((), ())
                yield WindowReport(
                    self._version.subject,
                    verdict,
                    window.counts,
                    findings,
                    slices,
                    performance,
                    window.tally,
                    self._clock(),
                )
                cutter.taken(window.index)
        if not judged:
            raise MalformedRequestError(
                f"{path} has {seen} rows, fewer than the {profile.rules.min_rows} that are judged "
                "at once",
                "give more rows",
            )

    def _parts(
        self, columns: Columns, rows: int, asked: Asked, path: Path
    ) -> tuple[list[Any] | None, NDArray[np.int64], Columns]:
        """Labels, times, and the model's own columns."""
        for name in filter(None, (asked.label, asked.time)):
            if name not in columns:
                raise MalformedRequestError(
                    f"{path} has no column {name!r}",
                    f"its columns are {', '.join(list(columns)[:20])}",
                )
        own = self._profile.inputs_by_name
        left = {*asked.ignored, asked.label, asked.time} - set(own)
        plain = {name: values for name, values in columns.items() if name not in left}
        labels = columns[asked.label].tolist() if asked.label else None
        return labels, self._times(columns, rows, asked, path), plain

    def _times(self, columns: Columns, rows: int, asked: Asked, path: Path) -> NDArray[np.int64]:
        if not asked.time:
            return np.full(rows, self._clock(), dtype=np.int64)
        values = columns[asked.time]
        if values.dtype.kind == "O":
            with suppress(TypeError, ValueError):  # else they are none, as is told
                values = values.astype("datetime64[ms]")
        return times_of(values, asked.time, str(path))

    def _confirm(
        self, columns: Columns, index: int
    ) -> tuple[tuple[Finding, ...], tuple[Slice, ...]]:
        """What detectors say, and where in the data it is."""
        if self._reference is None or self._confirmed == _CONFIRMED:
            return (), ()
        self._confirmed += 1
        window = sample_of(self._profile, columns)
        findings = tuple(
            examine(detector, self._reference, window, np.random.default_rng(index))
            for detector in self._detectors
        )
        return findings, _slices(self._reference, window, index)


def _slices(reference: Sample, window: Sample, seed: int) -> tuple[Slice, ...]:
    """None where the columns do not fit: that is told already."""
    shared = [name for name in reference.names if name in set(window.names)]
    kinds = dict(zip(reference.names, reference.kinds, strict=True))
    there = dict(zip(window.names, window.kinds, strict=True))
    same = [name for name in shared if kinds[name] is there[name]]
    try:
        ours = replace(reference.keep(same), outputs=None, labels=None, embeddings=None)
        theirs = replace(window.keep(same), outputs=None, labels=None, embeddings=None)
        return find_slices(ours, theirs, seed=seed)
    except GovernanceError:  # too few rows or no columns to look among: there is none to name
        return ()
