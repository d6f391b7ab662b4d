"""The sink ``folder``: every report once, whole, however its process ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drift.report import WindowReport
from drift.sinks import ReportFolder
from tests.unit.drift.monitor_world import PROFILE, World, block_of, subject_of


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[WindowReport]:
    world = World(tmp_path_factory.mktemp("world"))
    for number in range(8):
        world.blocks.write(block_of(number))
    world.run(world.monitor())
    return world.notes.reports


def sink(folder: Path, **more: int) -> ReportFolder:
    return ReportFolder(folder, subject_of(PROFILE), **more)


def lines(folder: Path) -> list[int]:
    files = sorted((folder / "fraud" / "7" / "_").iterdir())
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [one["verdict"]["index"] for one in found]


def test_reports_are_lines_and_one_that_comes_again_is_there_once(
    tmp_path: Path, reports: list[WindowReport]
) -> None:
    first = sink(tmp_path)
    for report in reports[:3]:
        first.publish(report)
    again = sink(tmp_path)  # a process that died before it could say what was taken
    for report in reports[1:]:
        again.publish(report)
    assert lines(tmp_path) == [0, 1, 2, 3]
    (file,) = (tmp_path / "fraud" / "7" / "_").iterdir()
    assert file.read_bytes() == b"".join(report.to_json() + b"\n" for report in reports)


@pytest.mark.parametrize("left", [1, 100])
def test_a_line_that_was_cut_short_is_written_anew(
    tmp_path: Path, reports: list[WindowReport], left: int
) -> None:
    for report in reports[:2]:
        sink(tmp_path).publish(report)
    (file,) = (tmp_path / "fraud" / "7" / "_").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.index(b"\n") + left])
    again = sink(tmp_path)
    for report in reports[1:3]:
        again.publish(report)
    assert lines(tmp_path) == [0, 1, 2]


def test_a_large_file_is_followed_by_another(tmp_path: Path, reports: list[WindowReport]) -> None:
    size = len(reports[0].to_json())
    for report in reports:
        sink(tmp_path, most_bytes=2 * size).publish(report)
    names = sorted(file.name for file in (tmp_path / "fraud" / "7" / "_").iterdir())
    assert len(names) == 2
    assert names[0] == "0000000000000000.jsonl"
    assert lines(tmp_path) == [0, 1, 2, 3]
    sink(tmp_path, most_bytes=2 * size).publish(reports[-1])
    assert lines(tmp_path) == [0, 1, 2, 3]


def test_a_sink_that_could_not_write_goes_on_where_it_was(
    tmp_path: Path, reports: list[WindowReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = sink(tmp_path)
    kept.publish(reports[0])
    whole = Path.open

    def torn(self: Path, mode: str = "r", **more: object) -> object:
        if mode == "ab":
            with whole(self, "ab") as opened:
                opened.write(b'{"half')
            raise OSError("no space left on device")
        return whole(self, mode, **more)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", torn)
        with pytest.raises(OSError, match="no space"):
            kept.publish(reports[1])
    kept.publish(reports[1])
    assert lines(tmp_path) == [0, 1]
