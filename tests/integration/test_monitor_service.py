"""Many subjects in one process, or several, and processes that are killed."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest
from click.testing import CliRunner

from drift.blocks import Block
from drift.cli_monitor import monitor
from drift.monitor import Monitor
from drift.monitor_config import MonitorsConfig
from drift.report import FORMAT
from drift.service import Opening, Service
from drift.workers import Workers
from tests.integration.monitors import block_now, folder_of, reports_of, write_config
from tests.unit.drift.monitor_world import (
    World,
    block_of,
    store_state,
    stored_state,
)

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


@pytest.mark.parametrize("alone", [True, False])
def test_in_a_process_of_its_own_what_stays_is_left_out_of_garbage_collection(
    tmp_path: Path, alone: bool
) -> None:
    config = write_config(tmp_path, [{"model": "fraud", "version": 7}])
    stopped, rounds = Event(), []

    def told(_: object) -> None:
        rounds.append(gc.get_freeze_count())
        if len(rounds) == 2:
            stopped.set()

    try:
        Service(MonitorsConfig.read(config).openings(), idle_s=0.0).run(stopped, told, alone=alone)
        assert (rounds[0] > 0) is (rounds[1] > 0) is alone
    finally:
        gc.unfreeze()


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
