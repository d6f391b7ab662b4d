"""Checks that hang, raise or find no place, beside counting that goes on."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from drift.checks import Checked, check, not_checked
from drift.detector import Backend, Finding, Verdict
from drift.history import History
from drift.page import summary
from drift.sample import Sample
from drift.verdict import Level
from drift.workers import Workers
from tests.unit.drift.monitor_world import (
    PROFILE,
    World,
    block_of,
    reference_sample,
)


class Hangs:
    """A detector that does as it likes."""

    name, backend, threshold = "hangs", Backend.NATIVE, 0.05

    def __init__(self, event: Event) -> None:
        self.event = event

    def find(self, reference: Sample, window: Sample, rng: np.random.Generator) -> Finding:
        self.event.wait(60)
        raise RuntimeError("at last")


def kept_busy(event: Event, *, most_waiting: int) -> Workers:
    """One thread that works until the event is set, and room for so many more calls."""
    workers = Workers("test", 1, most_waiting=most_waiting)
    first = workers.ask(lambda: event.wait(60))
    assert first is not None
    while not first.running():
        time.sleep(0.001)
    return workers


def test_a_check_that_hangs_delays_no_counting_and_ends_as_trouble(tmp_path: Path) -> None:
    world, event = World(tmp_path), Event()
    checks = Workers("check", 1)
    found = world.monitor(reference=reference_sample(), checks=checks, check_limit_s=0.3)
    found._detectors = [Hangs(event)]
    for i in range(2):
        world.blocks.write(block_of(i, shift=3.0))
    for i in range(2, 8):
        world.blocks.write(block_of(i))
    began = time.monotonic()
    for _ in range(5):
        found.step()
    counted = found.status.rows
    while found.busy and time.monotonic() - began < 60:
        found.step()
    world.run(found)
    event.set()
    checks.close()
    assert counted == 2000
    assert world.notes.indices == [0, 1, 2, 3]
    finding = world.notes.reports[0].findings[0]
    assert (finding.verdict, finding.is_drift) == (Verdict.TROUBLE, True)
    assert "longer than 0.3 s" in finding.trouble


def test_a_detector_that_raises_is_trouble(tmp_path: Path) -> None:
    world, event = World(tmp_path), Event()
    event.set()
    found = world.monitor(reference=reference_sample())
    found._detectors = [Hangs(event)]
    for i in range(2):
        world.blocks.write(block_of(i, shift=3.0))
    world.run(found)
    finding = world.notes.reports[0].findings[0]
    assert "RuntimeError: at last" in finding.trouble
    assert world.notes.reports[0].slices  # the slices are found all the same


class Sure:
    """A detector that finds drift where the counts show none."""

    name, backend, threshold = "sure", Backend.NATIVE, 0.05

    def find(self, reference: Sample, window: Sample, rng: np.random.Generator) -> Finding:
        return Finding("sure", Backend.NATIVE, Verdict.DRIFT, 0.9, 1e-12, 0.05)


@pytest.mark.parametrize("alarm", ["raises", "finds drift"])
def test_an_alarm_of_a_detector_on_calm_rows_is_no_silence(tmp_path: Path, alarm: str) -> None:
    """It warns, with the reason; a p-value alone does not alert."""
    world, event = World(tmp_path), Event()
    event.set()
    found = world.monitor(reference=reference_sample(), check_every_ms=1, check_again_ms=10**9)
    found._detectors = [Hangs(event) if alarm == "raises" else Sure()]
    for i in range(2):
        world.blocks.write(block_of(i))
    world.now += 1000
    world.run(found)
    (report,) = world.notes.reports
    verdict = report.verdict
    assert verdict.level is Level.WARN
    assert not verdict.moved
    (reason,) = verdict.besides
    assert reason in verdict.reasons
    assert {
        "raises": "detector 'hangs' (native) could not look: it raised RuntimeError: at last",
        "finds drift": "detector 'sure' (native) finds drift: p = 1e-12 (alarm below 0.05)",
    }[alarm] == reason
    assert found.status.level is Level.WARN
    what = dict(summary(report, PROFILE, History()))["What"]
    (told,) = [text for text in what if "etector" in text]
    assert told.startswith(f"Detector '{'hangs' if alarm == 'raises' else 'sure'}'")
    found._detectors = []
    for i in range(2, 4):
        world.blocks.write(block_of(i))
    world.now += 1000
    world.run(found)
    assert found.status.level is Level.OK


@pytest.mark.parametrize("full", [True, False])
def test_where_no_place_is_free_the_report_says_so(tmp_path: Path, full: bool) -> None:
    world, event = World(tmp_path), Event()
    checks = kept_busy(event, most_waiting=1)
    if full:
        assert checks.ask(lambda: None) is not None
    found = world.monitor(reference=reference_sample(), checks=checks, check_wait_ms=5000)
    for i in range(2):
        world.blocks.write(block_of(i, shift=3.0))
    for _ in range(5):
        found.step()
    assert world.notes.reports == []
    world.now += 6000
    world.run(found)
    event.set()
    checks.close()
    (report,) = world.notes.reports
    assert "no place was free for 5 s" in report.findings[0].trouble


def test_workers_take_no_more_than_they_have_room_for() -> None:
    event = Event()
    workers = kept_busy(event, most_waiting=2)
    taken = [workers.ask(lambda: 1) for _ in range(4)]
    assert [future is not None for future in taken] == [True, True, False, False]
    event.set()
    assert taken[0] is not None
    assert taken[0].result(30) == 1
    workers.close()


def test_a_check_of_an_odd_sample_is_trouble() -> None:
    from drift.checks import Check
    from drift.native import Default

    one = block_of(0, rows=30)
    asked = Check(PROFILE, reference_sample(), [Default()], one, seed=1)
    found = check(asked)
    assert isinstance(found, Checked)
    assert found.findings[-1].verdict is Verdict.TOO_FEW_ROWS  # the slices
    assert not_checked([Default()], "why").findings[0].is_drift


def test_a_scheduled_check_that_finds_no_place_is_no_alarm_and_comes_later(tmp_path: Path) -> None:
    world, event = World(tmp_path), Event()
    checks = kept_busy(event, most_waiting=1)
    found = world.monitor(
        reference=reference_sample(), checks=checks, check_wait_ms=5000, check_every_ms=1
    )
    for i in range(2):
        world.blocks.write(block_of(i))
    for _ in range(5):
        found.step()
    world.now += 6000
    world.run(found)
    assert [report.findings for report in world.notes.reports] == [()]
    event.set()
    for i in range(2, 4):
        world.blocks.write(block_of(i))
    deadline = time.monotonic() + 60
    while len(world.notes.reports) < 2 and time.monotonic() < deadline:
        found.step()
    checks.close()
    (finding,) = world.notes.reports[1].findings
    assert finding.verdict in (Verdict.NO_DRIFT, Verdict.DRIFT)  # it was asked
