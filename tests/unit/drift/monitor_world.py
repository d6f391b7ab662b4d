"""A monitored model, its blocks and its sinks, for tests of monitors."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from drift.block_folder import BlockFile, BlockFolder
from drift.block_rows import sample_of
from drift.blocks import Block
from drift.columns import columns_of, joined
from drift.monitor import Monitor
from drift.monitor_state import States
from drift.profile import DriftProfile
from drift.report import Sink, Subject, WindowReport
from drift.rules import Rules
from drift.sample import Sample
from drift.watched import Watched
from drift.window import WindowCounts, count_rows
from tests.unit.drift.reference import live_rows, small_profile

PROFILE = small_profile(20_000, 500, rules=Rules(min_rows=100))
NOW = 1_800_000_000_000
W = 500


def subject_of(profile: DriftProfile, deployment: str = "") -> Subject:
    return Subject(profile.model, 7, "m-1", deployment, profile.digest, "ana@example.org")


def block_of(
    number: int,
    rows: int = 250,
    *,
    source: str = "replica-1",
    shift: float = 0.0,
    time_ms: int | None = None,
    ids: bool = False,
    **change: Any,
) -> Block:
    """Rows from where the reference came from; ``shift`` moves the amounts."""
    table = live_rows(max(rows, 1), seed=number)
    table["amount"] = table["amount"] * np.exp(shift)
    table.update(change.pop("columns", {}))
    for name in change.pop("without", ()):
        del table[name]
    outputs = {"score": table.pop("score")}
    request_id = np.empty(rows, object)
    request_id[:] = [f"{source}-{number}-{row}" for row in range(rows)]
    facts: dict[str, Any] = {
        "id": f"{crc32(source.encode()):08x}{number:024x}",
        "source": source,
        "sequence": number,
        "model": "fraud",
        "version": "7",
        "deployment": "",
        "time_ms": np.full(rows, NOW + number * 1000 if time_ms is None else time_ms, np.int64),
        "inputs": joined([(rows, columns_of(table, rows))]),
        "outputs": joined([(rows, columns_of(outputs, rows))]),
        "request_id": request_id if ids else None,
        "request_row": np.zeros(rows, np.int64),
    }
    return Block(**{**facts, **change})


def reference_sample(profile: DriftProfile = PROFILE, rows: int = 1500) -> Sample:
    table = live_rows(rows, seed=4242)
    outputs = {"score": table.pop("score")}
    inputs = joined([(rows, columns_of(table, rows))])
    return sample_of(profile, inputs, joined([(rows, columns_of(outputs, rows))]))


def stored_state(folder: Path, subject: str = "fraud/7/") -> str:
    """The state of a subject as it lies in a folder that no monitor has open."""
    with closing(States(folder).of(subject, PROFILE)) as state:
        found = state.database.query("SELECT document FROM states WHERE subject = ?", subject)
    ((document,),) = found
    return str(document)


def store_state(folder: Path, document: str, subject: str = "fraud/7/") -> None:
    """Put a state of a subject into such a folder, whatever it is."""
    with closing(States(folder).of(subject, PROFILE)) as state:
        put = "INSERT OR REPLACE INTO states VALUES (?, ?)"
        state.database.change([(put, [(subject, document)])])
        state.database.commit()


@dataclass
class Notes:
    """A sink that keeps what it took, and raises while it is away."""

    reports: list[WindowReport] = field(default_factory=list)
    away: BaseException | None = None
    asked: int = 0

    def publish(self, report: WindowReport) -> None:
        self.asked += 1
        if self.away is not None:
            raise self.away
        self.reports.append(report)

    @property
    def indices(self) -> list[int]:
        return [report.verdict.index for report in self.reports]


@dataclass
class World:
    """One subject in a folder, with a clock that is set by hand."""

    path: Path
    profile: DriftProfile = PROFILE
    now: int = NOW
    sinks: dict[str, Sink] = field(default_factory=lambda: {"notes": Notes()})

    @property
    def blocks(self) -> BlockFolder:
        return BlockFolder(self.path / "blocks")

    @property
    def notes(self) -> Notes:
        found = self.sinks["notes"]
        assert isinstance(found, Notes)
        return found

    @property
    def files(self) -> list[BlockFile]:
        return self.blocks.entries()

    def watched(self, **change: Any) -> Watched:
        plain: dict[str, Any] = {
            "subject": subject_of(self.profile),
            "profile": self.profile,
            "blocks": self.path / "blocks",
            "states": States(self.path / "state", durable=False),
            "save_every_ms": 0,
        }
        return Watched(**{**plain, **change})

    def monitor(self, **change: Any) -> Monitor:
        threads = {name: change.pop(name) for name in ("checks", "couriers") if name in change}
        rng = np.random.default_rng(5)
        watched = self.watched(**change)
        return Monitor(watched, self.sinks, clock=lambda: self.now, rng=rng, **threads)

    def run(self, monitor: Monitor, most: int = 10_000) -> None:
        """Until there is nothing left to do."""
        for _ in range(most):
            if not monitor.step() and not monitor.busy:
                return
        raise AssertionError("the monitor never comes to rest")


def counted(world: World) -> WindowCounts:
    """All that was reported, as one window."""
    total = WindowCounts.empty(world.profile)
    for report in world.notes.reports:
        total = total + report.counts
    return total


def straight(world: World, *blocks: Any) -> WindowCounts:
    """The same rows, counted at once."""
    total = WindowCounts.empty(world.profile)
    for one in blocks:
        table = {**one.inputs, **one.outputs}
        total = total + count_rows(world.profile, table, times_ms=one.time_ms)
    return total
