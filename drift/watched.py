"""What a monitor is told: the subject, its profile, where blocks come from, how windows are cut."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift.alibi_process import AlibiProcess
from drift.block_store import BlockPlace
from drift.checks import DETECTORS
from drift.cutter import WindowCutter
from drift.documents import Fields
from drift.monitor_state import States
from drift.profile import DriftProfile
from drift.report import Subject
from drift.sample import Sample
from governance.errors import ConfigurationError

__all__ = ["Watched"]

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Watched:
    """One subject.

    Attributes:
        subject: Model, version, deployment.
        profile: What it is compared with; its digest is the subject's.
        blocks: Where recorders deliver to.
        states: Where its state lies.
        rows: W, to cut by count; None with ``every_ms`` None: the profile's.
        every_ms: Length of a stretch, to cut by time.
        lateness_ms, ahead_ms: See ``drift.cutter``.
        labels: Folder of labels; None: none will come.
        reference: Rows of the reference, for detectors and slices; None: neither is asked.
        detectors: That confirm alarms; empty: the backend's usual ones.
        level: Of their false alarms.
        check_every_ms: Checks though all is well; 0: never.
        check_again_ms: Between two checks while windows keep warning.
        check_limit_s: For one detector; 0: a minute, and five for Alibi Detect, which starts first.
        check_wait_ms: That a report waits for a check to begin; then it says that there was none.
        most_reports: That wait for sinks; beyond it, blocks wait.
        save_every_ms: Between two states, while there is more to do.
        alibi: Where Alibi Detect runs; None: a process for each call.
    """

    subject: Subject
    profile: DriftProfile
    blocks: BlockPlace
    states: States
    rows: int | None = None
    every_ms: int | None = None
    lateness_ms: int = 60_000
    ahead_ms: int = 60_000
    labels: Path | None = None
    reference: Sample | None = None
    detectors: tuple[str, ...] = ()
    level: float = 0.05
    check_every_ms: int = _DAY_MS
    check_again_ms: int = 3_600_000
    check_limit_s: float = 0.0
    check_wait_ms: int = 60_000
    most_reports: int = 256
    save_every_ms: int = 1_000
    alibi: AlibiProcess | None = None

    def __post_init__(self) -> None:
        if self.rows is None and self.every_ms is None:
            object.__setattr__(self, "rows", self.profile.window)
        if not self.detectors:
            object.__setattr__(self, "detectors", DETECTORS[self.profile.backend])
        if self.check_limit_s == 0:
            limit = 300.0 if self.profile.backend == "alibi" else 60.0
            object.__setattr__(self, "check_limit_s", limit)
        if self.most_reports < 1 or self.check_limit_s < 0 or self.save_every_ms < 0:
            raise ConfigurationError(
                f"the monitor of {self.subject.key} has limits that cannot be met: most_reports="
                f"{self.most_reports}, check_limit_s={self.check_limit_s:g}, save_every_ms="
                f"{self.save_every_ms}",
                "let at least one report wait, and give checks some time",
            )

    def cutter(self, saved: Any, where: Path) -> WindowCutter:
        """Of its windows.

        Args:
            saved: What ``WindowCutter.to_dict`` said; None: it begins.
            where: It was saved, for errors.

        Raises:
            ConfigurationError: other windows are asked for than were saved.
            MalformedRequestError: it is no such state.
        """
        new = WindowCutter(
            self.profile,
            rows=self.rows,
            every_ms=self.every_ms,
            lateness_ms=self.lateness_ms,
            ahead_ms=self.ahead_ms,
        )
        if saved is None:
            return new
        cutter = WindowCutter.from_fields(self.profile, Fields(saved, "the state of its windows"))
        if (cutter.rows, cutter.every_ms) != (self.rows, self.every_ms):
            raise ConfigurationError(
                f"the state of {self.subject.key} in {where} has windows of {cutter.length}, and "
                f"windows of {new.length} are asked for",
                "give the windows it has, or another folder for the state",
            )
        cutter.lateness_ms, cutter.ahead_ms = self.lateness_ms, self.ahead_ms
        return cutter
