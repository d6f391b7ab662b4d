"""Many subjects in one process, the command, and a process that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from drift.block_folder import BlockFolder
from drift.blocks import Block
from drift.checks import Checked, check, not_checked
from drift.cli_monitor import COMMANDS, Progress, monitor
from drift.detector import Backend, Finding, Verdict
from drift.monitor import Monitor
from drift.monitor_actor import MonitorRun, start_actor
from drift.monitor_config import MonitorsConfig
from drift.reference import reference_parquet
from drift.report import FORMAT
from drift.sample import Sample
from drift.service import Opening, Service
from drift.workers import Workers
from governance.clock import now_ms
from governance.errors import ConfigurationError
from tests.unit.drift.monitor_world import (
    PROFILE,
    World,
    block_of,
    reference_sample,
    store_state,
    stored_state,
)
from tests.unit.drift.reference import reference_rows


def write_config(folder: Path, monitors: list[dict[str, Any]], **more: Any) -> Path:
    (folder / "profile.json").write_bytes(PROFILE.to_json())
    document = {
        "format": "chancery.monitors/v1",
        "state": "state",
        "blocks": "blocks",
        "defaults": {"profile": "profile.json", "sinks": [{"folder": {"path": "reports"}}]},
        "monitors": monitors,
        **more,
    }
    place = folder / "monitors.yaml"
    place.write_text(yaml.safe_dump(document))
    return place


def folder_of(root: Path, version: int) -> BlockFolder:
    return BlockFolder(root / "blocks" / "fraud" / str(version) / "_")


def block_now(number: int, version: int = 7, **change: Any) -> Block:
    return block_of(number, version=str(version), time_ms=now_ms(), **change)


def reports_of(root: Path, version: int) -> list[dict[str, Any]]:
    files = sorted((root / "reports" / "fraud" / str(version) / "_").glob("*.jsonl"))
    lines = [line for file in files for line in file.read_bytes().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


# -- the service


def test_a_subject_that_fails_stops_nobody(tmp_path: Path) -> None:
    config = write_config(tmp_path, [{"model": "fraud", "version": v} for v in (1, 2, 3)])
    for version in (1, 2, 3):
        for number in range(2):
            folder_of(tmp_path, version).write(block_now(number, version))
    found = MonitorsConfig.read(config)
    store_state(tmp_path / "state", "{", "fraud/2/")
    status = Service(found.openings()).once()
    assert [one.trouble != "" for one in status] == [False, True, False]
    assert "no state of a monitor" in status[1].trouble
    assert [len(reports_of(tmp_path, version)) for version in (1, 2, 3)] == [1, 0, 1]


def test_a_subject_that_failed_runs_again_from_its_saved_state(tmp_path: Path) -> None:
    world, seconds, broken = World(tmp_path), [0.0], [True]
    for i in range(4):
        world.blocks.write(block_of(i))

    def opened(checks: Workers, couriers: Workers) -> Monitor:
        found = world.monitor()
        if broken.pop() if broken else False:
            found._folder.read = _raises  # type: ignore[method-assign]
        return found

    service = Service([Opening("fraud/7/", opened)], clock=lambda: seconds[0])
    for _ in range(5):
        service._round(Event())
    (status,) = service.status
    assert (status.failures, "the disk" in status.trouble) == (1, True)
    seconds[0] = 1.5
    for _ in range(5):
        service._round(Event())
    service.close()
    (status,) = service.status
    assert (status.failures, status.trouble) == (1, "")
    assert world.notes.indices == [0, 1]


def _raises(_: object) -> Block:
    raise OSError("the disk is away")


def test_many_subjects_in_one_process(tmp_path: Path) -> None:
    versions = range(1, 41)
    config = write_config(tmp_path, [{"model": "fraud", "version": v} for v in versions])
    for version in versions:
        for number in range(2):
            folder_of(tmp_path, version).write(block_now(number, version))
    service = Service(MonitorsConfig.read(config).openings())
    stopped = Event()
    thread = Thread(target=service.run, args=(stopped,))
    thread.start()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if all(reports_of(tmp_path, version) for version in versions):
            break
        time.sleep(0.05)
    stopped.set()
    thread.join(60)
    assert not thread.is_alive()
    assert all(one.monitor is not None and one.monitor.windows == 1 for one in service.status)
    assert all(len(reports_of(tmp_path, version)) == 1 for version in versions)
    assert reports_of(tmp_path, 1)[0]["format"] == FORMAT


def test_processes_share_the_subjects_and_one_folder_of_states(
    tmp_path: Path, ended: list[subprocess.Popen[bytes]]
) -> None:
    versions = range(1, 13)
    config = write_config(tmp_path, [{"model": "fraud", "version": v} for v in versions])
    for version in versions:
        for number in range(2):
            folder_of(tmp_path, version).write(block_now(number, version))
    for part in ("1/3", "2/3", "3/3"):
        ended.append(_started(config, "--part", part))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if all(reports_of(tmp_path, version) for version in versions):
            break
        time.sleep(0.05)
    for process in ended:
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 0, told.decode()
    # Another number of processes goes on where these were.
    for version in versions:
        folder_of(tmp_path, version).write(block_now(2, version))
        folder_of(tmp_path, version).write(block_now(3, version))
    found = MonitorsConfig.read(config)
    for number in (1, 2):
        Service(found.part(number, 2).openings()).once()
    for version in versions:
        assert [one["verdict"]["index"] for one in reports_of(tmp_path, version)] == [0, 1]


@pytest.mark.parametrize("part", ["0/2", "3/2", "1/17", "2", "a/b", "-1/2"])
def test_a_part_that_is_none_is_refused(tmp_path: Path, part: str) -> None:
    config = write_config(tmp_path, [{"model": "fraud", "version": 7}])
    found = CliRunner().invoke(monitor, ["--config", str(config), "--once", "--part", part])
    assert found.exit_code == 3
    assert "part" in found.output


# -- checks beside the counting


class Hangs:
    """A detector that does as it likes."""

    name, backend, threshold = "hangs", Backend.NATIVE, 0.05

    def __init__(self, event: Event) -> None:
        self.event = event

    def find(self, reference: Sample, window: Sample, rng: np.random.Generator) -> Finding:
        self.event.wait(60)
        raise RuntimeError("at last")


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


@pytest.mark.parametrize("full", [True, False])
def test_where_no_place_is_free_the_report_says_so(tmp_path: Path, full: bool) -> None:
    world, event = World(tmp_path), Event()
    checks = Workers("check", 1, most_waiting=1)
    busy = checks.ask(lambda: event.wait(60))
    assert busy is not None
    while not busy.running():
        time.sleep(0.001)
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
    workers, event = Workers("test", 1, most_waiting=2), Event()
    first = workers.ask(lambda: event.wait(60))
    assert first is not None
    while not first.running():
        time.sleep(0.001)
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


# -- killed


def _kill_when(process: subprocess.Popen[bytes], root: Path, reports: int) -> None:
    deadline = time.monotonic() + 120
    while len(reports_of(root, 7)) < reports:
        assert process.poll() is None, process.stderr
        assert time.monotonic() < deadline, "the monitor does not get on"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(60)


def _started(config: Path, *more: str) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "drift.cli_monitor", "--config", str(config), *more],
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait(60)


def test_killed_again_and_again_no_window_is_lost_and_none_counted_twice(
    tmp_path: Path, ended: list[subprocess.Popen[bytes]]
) -> None:
    """SIGKILL in the middle of windows, with blocks of 70 rows for windows of 500 (AC-5)."""
    config = write_config(tmp_path, [{"model": "fraud", "version": 7, "save_every": "0.001s"}])
    blocks = folder_of(tmp_path, 7)
    written = [block_now(number, rows=70) for number in range(60)]
    for place, one in enumerate(written):
        blocks.write(one)
        if place in (14, 29, 44):
            process = _started(config)
            ended.append(process)
            _kill_when(process, tmp_path, (place + 1) * 70 // 500 - 1)
    process = _started(config)
    ended.append(process)
    deadline = time.monotonic() + 120
    while len(reports_of(tmp_path, 7)) < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    for earlier in ended[:-1]:
        earlier.communicate(timeout=60)
    assert process.returncode == 0, told.decode()
    assert b"saved; ended" in told
    reports = reports_of(tmp_path, 7)
    assert [report["verdict"]["index"] for report in reports] == list(range(8))
    assert {report["verdict"]["rows"] for report in reports} == {500}
    assert all(report["tally"]["duplicate_blocks"] == 0 for report in reports)
    state = json.loads(stored_state(tmp_path / "state"))
    assert state["counts"]["rows"] == 4200
    assert sum(w["counts"]["rows"] for w in state["cutter"]["open"]) == 200


# -- the command


def test_once_tells_and_ends_with_its_code(tmp_path: Path) -> None:
    config = write_config(tmp_path, [{"model": "fraud", "version": 7}])
    for number in range(4):
        folder_of(tmp_path, 7).write(block_now(number))
    runner = CliRunner()
    calm = runner.invoke(monitor, ["--config", str(config), "--once", "--json"])
    assert calm.exit_code == 0, calm.output
    (subject,) = json.loads(calm.stdout)["subjects"]
    assert (subject["monitor"]["windows"], subject["monitor"]["level"]) == (2, "ok")
    for number in range(4, 12):
        folder_of(tmp_path, 7).write(block_now(number, shift=2.5))
    shifted = runner.invoke(monitor, ["--config", str(config), "--once"])
    assert shifted.exit_code == 4
    assert "fraud/7/: alert" in shifted.output
    again = runner.invoke(monitor, ["--config", str(config), "--once"])
    assert again.exit_code == 0  # nothing new alerted


def test_one_subject_by_options(tmp_path: Path) -> None:
    write_config(tmp_path, [])
    blocks = BlockFolder(tmp_path / "own")
    for number in range(3):
        blocks.write(block_now(number))
    sample = reference_parquet(PROFILE, reference_rows(3000))
    (tmp_path / "reference.parquet").write_bytes(sample)
    arguments = ["--profile", "profile.json", "--version", "7", "--blocks", "own", "--state"]
    arguments += ["states", "--reports", "reports", "--once", "--flush"]
    arguments += ["--reference", "reference.parquet"]
    folders = [a if a.startswith("-") or a == "7" else str(tmp_path / a) for a in arguments]
    found = CliRunner().invoke(monitor, folders)
    assert found.exit_code == 0, found.output
    assert [report["verdict"]["rows"] for report in reports_of(tmp_path, 7)] == [500, 250]


def test_what_cannot_be_watched_ends_with_one(tmp_path: Path) -> None:
    config = write_config(tmp_path, [{"model": "loans", "version": 7}])
    found = CliRunner().invoke(monitor, ["--config", str(config), "--once"])
    assert found.exit_code == 1
    assert "belongs to the model 'fraud', not to 'loans'" in found.output


@pytest.mark.parametrize(
    ("monitors", "more", "told"),
    [
        ([], {}, "names no monitors"),
        ([{"model": "fraud"}], {}, "lacks 'version'"),
        ([{"model": "fraud", "version": "7"}], {}, "not a whole number"),
        ([{"model": "fraud", "version": 7, "window": {}}], {}, "unknown names: window"),
        ([{"model": "fraud", "version": 7, "windows": {"every": "1 week"}}], {}, "not a time"),
        (
            [{"model": "fraud", "version": 7, "windows": {"every": "1h", "rows": 5}}],
            {},
            "both rows and every",
        ),
        ([{"model": "fraud", "version": 7, "sinks": [7]}], {}, "neither a name nor"),
        ([{"model": "fraud", "version": 7}] * 2, {}, "names 'fraud/7/' twice"),
        ([{"model": "fraud", "version": 7}], {"format": "v0"}, "not one of"),
        ([{"model": "fraud", "version": 7}], {"more": 1}, "unknown names: more"),
        (["fraud"], {}, "no mapping"),
    ],
)
def test_a_mistake_in_the_configuration_is_named(
    tmp_path: Path, monitors: list[Any], more: dict[str, Any], told: str
) -> None:
    config = write_config(tmp_path, monitors, **more)
    with pytest.raises(ConfigurationError, match=told):
        MonitorsConfig.read(config)
    found = CliRunner().invoke(monitor, ["--config", str(config), "--once"])
    assert found.exit_code == 3


def test_a_sink_that_is_not_installed_is_named(tmp_path: Path) -> None:
    config = write_config(tmp_path, [{"model": "fraud", "version": 7, "sinks": ["pigeon"]}])
    found = CliRunner().invoke(monitor, ["--config", str(config), "--once"])
    assert found.exit_code == 1
    assert "no sink 'pigeon'" in found.output


def test_nothing_to_monitor_is_an_error() -> None:
    found = CliRunner().invoke(COMMANDS[0], ["--profile", "p.json", "--once"])
    assert found.exit_code == 3
    assert "--version, --blocks, --state missing" in found.output


def test_progress_tells_changes_and_sums(tmp_path: Path) -> None:
    lines: list[str] = []
    seconds = [0.0]
    progress = Progress(lines.append, lambda: seconds[0])
    config = write_config(tmp_path, [{"model": "fraud", "version": 7}])
    for number in range(12):
        folder_of(tmp_path, 7).write(block_now(number, shift=2.5))
    status = Service(MonitorsConfig.read(config).openings()).once()
    progress(status)
    progress(status)
    seconds[0] = 61.0
    progress(status)
    assert lines[0] == "fraud/7/: alert\n"
    assert lines[1] == "1 of 1 subjects, 6 windows, 3000 rows (3000 more), 0 reports wait\n"
    assert len(lines) == 2


# -- as a Ray actor


class _Ray:
    """As much of Ray as starts an actor, in this process."""

    def __init__(self) -> None:
        self.options_given: dict[str, Any] = {}

    def remote(self, kind: type) -> _Ray:
        self.kind = kind
        return self

    def options(self, **options: Any) -> Any:
        self.options_given = options
        made = self.kind

        class Handle:
            @staticmethod
            def remote(*arguments: Any) -> Any:
                return made(*arguments)

        return Handle


def test_as_an_actor_it_is_found_by_name_and_starts_again(tmp_path: Path) -> None:
    config = write_config(tmp_path, [{"model": "fraud", "version": 7}])
    for number in range(2):
        folder_of(tmp_path, 7).write(block_now(number))
    ray = _Ray()
    actor = start_actor(config, ray=ray)
    assert isinstance(actor, MonitorRun)
    assert ray.options_given["lifetime"] == "detached"
    assert ray.options_given["max_restarts"] == -1
    deadline = time.monotonic() + 60
    while not reports_of(tmp_path, 7) and time.monotonic() < deadline:
        time.sleep(0.02)
    actor.check_health()
    assert actor.stop(60)
    (status,) = actor.status()
    assert (status["subject"], status["monitor"]["windows"]) == ("fraud/7/", 1)


def test_a_scheduled_check_that_finds_no_place_is_no_alarm_and_comes_later(tmp_path: Path) -> None:
    world, event = World(tmp_path), Event()
    checks = Workers("check", 1, most_waiting=1)
    busy = checks.ask(lambda: event.wait(60))
    assert busy is not None
    while not busy.running():
        time.sleep(0.001)
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
