"""The command `chancery drift monitor`, its configuration, and the monitor as an actor."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from drift.block_folder import BlockFolder
from drift.cli_monitor import COMMANDS, Progress, monitor
from drift.monitor_actor import MonitorRun, start_actor
from drift.monitor_config import MonitorsConfig
from drift.reference import reference_parquet
from drift.service import Service
from governance.errors import ConfigurationError
from tests.integration.monitors import block_now, folder_of, reports_of, write_config
from tests.unit.drift.monitor_world import (
    PROFILE,
)
from tests.unit.drift.reference import reference_rows


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


@pytest.mark.parametrize("what", ["profile", "reference"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, what: str) -> None:
    config = write_config(tmp_path, [{"model": "fraud", "version": 7, what: "gone.json"}])
    found = CliRunner().invoke(monitor, ["--config", str(config), "--once"])
    assert found.exit_code == 1
    assert f"the {what} of fraud/7/, {tmp_path}/gone.json, cannot be read" in found.output
    assert f"correct `{what}`" in found.output


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
