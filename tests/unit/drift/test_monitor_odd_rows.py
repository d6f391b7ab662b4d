"""What a monitor makes of blocks and rows that are not as they should be (AC-5)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drift.block_rows import rows_of
from drift.blocks import Block
from drift.embedding import Embedding
from drift.fitting import fit_profile
from drift.performance import PerformanceWatch
from drift.recording import recorder_of
from drift.verdict import Level
from governance.drift_reports import DriftReport
from tests.unit.drift.monitor_world import (
    NOW,
    World,
    block_of,
    counted,
    reference_sample,
    straight,
)
from tests.unit.drift.reference import live_rows

# -- odd blocks


def test_a_block_that_comes_twice_counts_once(world: World) -> None:
    blocks = [block_of(i) for i in range(4)]
    for one in blocks[:2]:
        world.blocks.write(one)
    monitor = world.monitor()
    world.run(monitor)
    for one in blocks:
        world.blocks.write(one)  # the first two were delivered before, and are gone already
    world.run(monitor)
    assert world.notes.indices == [0, 1]
    assert counted(world) == straight(world, *blocks)
    assert world.notes.reports[1].tally.duplicate_blocks == 2
    assert world.files == []


def test_blocks_out_of_order_count_once_each(world: World) -> None:
    blocks = [block_of(i, source=f"replica-{i % 3}", time_ms=NOW + i) for i in range(12)]
    monitor = world.monitor()
    for place in (5, 2, 11, 8, 0, 1, 4, 3, 7, 6, 10, 9):
        world.blocks.write(blocks[place])
        world.run(monitor)
    assert counted(world) == straight(world, *blocks)
    assert sum(report.tally.lost_blocks for report in world.notes.reports) == 0


@pytest.mark.parametrize("every_ms", [None, 60_000])
def test_a_clock_that_goes_back_loses_no_window(world: World, every_ms: int | None) -> None:
    settings: dict[str, Any] = {"every_ms": every_ms, "lateness_ms": 0} if every_ms else {}
    monitor = world.monitor(**settings)
    for i in range(8):
        world.blocks.write(block_of(i, time_ms=NOW + i * 30_000))
        world.now = NOW + i * 30_000 if i < 4 else NOW - 3_600_000
        world.run(monitor)
    monitor.flush()
    world.run(monitor)
    # Rows whose time lies before our own clock's latest, or a minute after, count.
    assert counted(world).rows + monitor.status.open_rows >= 250 * 6
    total = sum(r.counts.rows + r.tally.ahead_rows + r.tally.late_rows for r in world.notes.reports)
    assert total + monitor._cutter._untold.ahead_rows == 2000
    assert world.notes.indices == sorted(set(world.notes.indices))


_YEARS = 20 * 365 * 86_400_000
_BY_TIME = {"every_ms": 60_000, "lateness_ms": 0}


@pytest.mark.parametrize("again", [False, True], ids=["the same monitor", "opened again"])
@pytest.mark.parametrize("sources", [False, True], ids=["our clock", "sources' clocks too"])
@pytest.mark.parametrize("settings", [{}, _BY_TIME], ids=["by count", "by time"])
def test_a_clock_that_was_years_ahead_for_a_moment_ends_nothing(
    world: World, settings: dict[str, Any], sources: bool, again: bool
) -> None:
    monitor = world.monitor(**settings)
    world.blocks.write(block_of(0))
    world.run(monitor)
    world.now = NOW + _YEARS
    if sources:
        world.blocks.write(block_of(1, time_ms=world.now))
    world.run(monitor)
    if again:
        monitor.save()
        monitor.close()
        monitor = world.monitor(**settings)
    for i in range(2, 20):
        world.now = NOW + i * 60_000
        world.blocks.write(block_of(i, time_ms=world.now))
        world.run(monitor)
    monitor.flush()
    world.run(monitor)
    assert monitor._cutter.total.late_rows == 0
    reported = sum(report.counts.rows for report in world.notes.reports)
    assert reported + monitor._cutter.total.ahead_rows == 250 * (19 + sources)
    assert monitor._cutter.total.ahead_rows in (0, 250 * sources)
    assert world.notes.indices == sorted(set(world.notes.indices))
    made = [report.made_ms for report in world.notes.reports]
    assert max(made[-3:]) <= world.now
    assert any("hours ahead" in note for note in monitor.status.notes)


def test_where_later_windows_were_closed_people_are_told_until_when(world: World) -> None:
    """Their indices were judged, and are not judged again."""
    monitor = world.monitor(**_BY_TIME)
    for i in range(3):
        world.now = NOW + _YEARS + i * 60_000
        world.blocks.write(block_of(i, time_ms=world.now))
        world.run(monitor)
    world.now = NOW
    world.blocks.write(block_of(3, time_ms=NOW))
    world.run(monitor)
    assert monitor._cutter.total.late_rows == 250
    (note,) = monitor.status.notes
    assert "rows are late until then" in note


def test_a_clock_that_is_wrong_itself_is_not_followed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine that begins in 1970, until the network tells the time."""
    monitor = world.monitor()
    world.blocks.write(block_of(0))
    world.run(monitor)
    monitor.close()
    world.now = 1000
    monitor = world.monitor()
    world.blocks.write(block_of(1))
    world.run(monitor)
    assert monitor.status.rows == 500
    assert monitor._cutter.total.ahead_rows == 0
    assert any("behind the rows that came" in note for note in monitor.status.notes)
    assert caplog.text.count("behind the rows that came") == 1
    world.now = NOW + 3_600_000
    world.blocks.write(block_of(2, time_ms=world.now))
    world.run(monitor)
    assert monitor.status.rows == 750
    assert monitor.status.notes == ()


def test_rows_with_times_that_nobody_can_write_are_told_and_reports_can_be_read(
    world: World,
) -> None:
    for i, time in enumerate((-86_400_000, -9_900_000_000_000_000, NOW)):
        one = block_of(i, rows=700, time_ms=time)
        one.time_ms[-1:] = NOW
        world.blocks.write(Block(**{**vars(one)}))
    monitor = world.monitor()
    world.run(monitor)
    monitor.close()
    monitor = world.monitor()
    world.run(monitor)
    (report,) = world.notes.reports
    assert DriftReport.parse(report.to_json()).first_ms == NOW
    assert monitor._cutter.total.late_rows == 2 * 699
    assert monitor._cutter.total.ahead_rows == 0


def test_windows_by_time_wait_for_blocks_that_lie_there(world: World) -> None:
    """After a pause of the monitor, the clock alone closes nothing."""
    for i in range(80):
        world.blocks.write(block_of(i, rows=20, time_ms=NOW + i * 5_000))
    world.now = NOW + 10_000_000
    monitor = world.monitor(every_ms=60_000, lateness_ms=60_000)
    world.run(monitor)
    assert sum(report.counts.rows for report in world.notes.reports) == 1600
    assert sum(report.tally.late_rows for report in world.notes.reports) == 0


def test_a_block_that_cannot_be_read_is_put_aside(world: World) -> None:
    for i in range(3):
        world.blocks.write(block_of(i))
    spoilt = world.path / "blocks" / world.files[1].name
    spoilt.write_bytes(spoilt.read_bytes()[:-100])
    monitor = world.monitor()
    world.run(monitor)
    assert monitor.status.refused_blocks == 1
    assert monitor.status.rows == 500
    assert (world.path / "blocks" / "refused" / spoilt.name).is_file()


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_block_at_all_is_put_aside(world: World, kind: str) -> None:
    for i in range(2):
        world.blocks.write(block_of(i))
    place = world.path / "blocks" / world.files[0].name.replace("000000000000~", "000000000007~")
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    monitor = world.monitor()
    world.run(monitor)
    assert (monitor.status.refused_blocks, monitor.status.rows) == (1, 500)
    assert (place.parent / "refused" / place.name).exists()


def test_a_block_that_nobody_foresaw_is_put_aside(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is counted, and the others are."""

    def of_two(profile: Any, block: Any) -> Any:
        if block.sequence == 1:
            raise ZeroDivisionError("nobody thought of it")
        return rows_of(profile, block)

    monkeypatch.setattr("drift.monitor.rows_of", of_two)
    blocks = [block_of(i) for i in range(3)]
    for one in blocks:
        world.blocks.write(one)
    monitor = world.monitor()
    world.run(monitor)
    assert monitor.status.refused_blocks == 1
    assert counted(world) == straight(world, blocks[0], blocks[2])
    monitor.close()
    world.run(world.monitor())


def test_a_block_that_fails_half_counted_is_met_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monitor is opened anew from its saved state, which has nothing of it."""
    plain = PerformanceWatch.rows

    def rows(watch: Any, index: int, block: Any, places: Any) -> None:
        if block.sequence == 1:
            raise ZeroDivisionError("nobody thought of it")
        plain(watch, index, block, places)

    monkeypatch.setattr(PerformanceWatch, "rows", rows)
    blocks = [block_of(i) for i in range(3)]
    for one in blocks:
        world.blocks.write(one)
    monitor = world.monitor()
    with pytest.raises(ZeroDivisionError):
        world.run(monitor)
    monitor.abandon()
    world.run(world.monitor())
    assert counted(world) == straight(world, blocks[0], blocks[2])
    assert len(list((world.path / "blocks" / "refused").iterdir())) == 1


@pytest.mark.parametrize("number", [10**400, -(10**400)])
def test_a_vector_of_numbers_without_end_is_unparsable(number: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 4))
    embedding = Embedding.fit("text", vectors, directions=2)
    listed = [*vectors[:3].tolist(), [number] * 4]
    assert embedding.columns(listed)["text#00"].tolist()[3] == "no vector"


def test_a_source_that_lost_more_than_anybody_can_count_is_told(world: World) -> None:
    world.blocks.write(block_of(0, dropped=10**30))
    world.blocks.write(block_of(1, dropped=10**30))
    monitor = world.monitor()
    world.run(monitor)
    monitor.close()
    (report,) = world.notes.reports
    assert report.to_json()
    assert report.tally.unrecorded_rows == 2**53 - 1
    world.run(world.monitor())


def test_blocks_of_another_version_are_put_aside(world: World) -> None:
    world.blocks.write(block_of(0, version="8"))
    world.blocks.write(block_of(1, model="other"))
    monitor = world.monitor()
    world.run(monitor)
    assert (monitor.status.refused_blocks, monitor.status.rows) == (2, 0)


def test_what_recorders_could_not_keep_is_told(world: World) -> None:
    world.blocks.write(block_of(0, dropped=40, malformed=2, sampled_out=9))
    world.blocks.write(block_of(1))
    world.run(world.monitor())
    (report,) = world.notes.reports
    assert report.tally.unrecorded_rows == 42
    assert any("42 rows could not be recorded" in text for text in report.verdict.reasons)


# -- odd rows


def test_one_nan_row_blinds_nobody(world: World) -> None:
    for i in range(6):
        one = block_of(i, shift=2.5)
        one.inputs["amount"][3] = np.nan
        world.blocks.write(one)
    world.run(world.monitor(reference=reference_sample()))
    assert world.notes.reports[-1].verdict.level is Level.ALERT
    checked = [report for report in world.notes.reports if report.findings]
    assert all(report.findings[0].is_drift for report in checked)
    assert all(np.isfinite(report.findings[0].p_value or 0.0) for report in checked)


def test_a_new_category_is_seen(world: World) -> None:
    town = np.array(["Esbjerg"] * 250, dtype=object)
    for i in range(8):
        world.blocks.write(block_of(i, columns={"town": town}))
    world.run(world.monitor())
    last = world.notes.reports[-1].verdict
    assert last.level is Level.ALERT
    assert (last.worst[0].name, last.worst[0].grown[0].name) == ("town", "unseen")


def test_a_missing_column_warns_and_its_check_is_trouble(world: World) -> None:
    for i in range(2):
        world.blocks.write(block_of(i, without=["visits"]))
    world.run(world.monitor(reference=reference_sample()))
    (report,) = world.notes.reports
    assert report.verdict.level is not Level.OK
    assert any("missing: 'visits'" in text for text in report.verdict.reasons)
    assert "visits" in report.findings[0].trouble


def test_ten_thousand_columns(tmp_path: Path) -> None:
    width, rng = 10_000, np.random.default_rng(0)
    names = [f"x{i}" for i in range(width)]
    table = dict(zip(names, rng.normal(size=(width, 200)), strict=True))
    profile = fit_profile(table, {"score": rng.random(200)}, model="fraud", window=20, bins=3)
    world = World(tmp_path, profile)
    inputs = dict(zip(names, rng.normal(size=(width, 40)), strict=True))
    world.blocks.write(block_of(0, rows=40, inputs=inputs, outputs={"score": rng.random(40)}))
    monitor = world.monitor(save_every_ms=10**9)
    world.run(monitor)
    assert [report.verdict.rows for report in world.notes.reports] == [20, 40]
    assert all(sample._most <= 400 for sample in [monitor._open_rows._carried] if sample)


def test_an_empty_window_and_one_row(world: World) -> None:
    monitor = world.monitor(every_ms=60_000, lateness_ms=0, reference=reference_sample())
    world.blocks.write(block_of(0, rows=1, time_ms=NOW))
    world.now = NOW + 200_000
    world.run(monitor)
    assert monitor.status.windows == 1  # stretches without rows give no window
    (report,) = world.notes.reports
    assert (report.verdict.judged, report.verdict.rows, report.findings) == (False, 1, ())
    world.run(monitor)
    assert monitor.status.windows == 1


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("amount", np.full(250, np.nan), "missing"),
        ("visits", np.array(["3"] * 250, dtype=object), "unparsable"),
        ("fee", np.full(250, 8.5), "above"),
    ],
    ids=["only missing values", "integers became texts", "a constant changed"],
)
def test_a_column_gone_odd_alerts_and_is_named(
    world: World, name: str, values: Any, told: str
) -> None:
    for i in range(6):
        world.blocks.write(block_of(i, columns={name: values}))
    world.run(world.monitor(reference=reference_sample()))
    last = world.notes.reports[-1].verdict
    assert last.level is Level.ALERT
    assert last.worst[0].name == name
    assert last.worst[0].grown[0].name.startswith(told)
    checked = next(report for report in world.notes.reports if report.findings)
    assert checked.findings[0].is_drift


def test_another_order_of_columns_is_no_drift(world: World) -> None:
    blocks = [block_of(i) for i in range(4)]
    for one in blocks:
        turned = dict(reversed(one.inputs.items()))
        world.blocks.write(block_of(one.sequence, inputs=turned))
    world.run(world.monitor(reference=reference_sample(), check_every_ms=1))
    assert {report.verdict.level for report in world.notes.reports} == {Level.OK}
    assert counted(world) == straight(world, *blocks)


def test_a_column_that_nobody_expected_warns(world: World) -> None:
    for i in range(2):
        world.blocks.write(block_of(i, columns={"new": np.zeros(250)}))
    world.run(world.monitor())
    (report,) = world.notes.reports
    assert report.verdict.level is Level.WARN
    assert any("'new'" in text for text in report.verdict.reasons)


@pytest.mark.parametrize("personal", [False, True])
def test_a_recorded_column_that_nobody_expected_warns(tmp_path: Path, personal: bool) -> None:
    """By its name, unless any column is personal: then only that there is one."""
    table = live_rows(5000, 3)
    score = {"score": table.pop("score")}
    pii: dict[str, Any] = {"town": "mask"} if personal else {}
    profile = fit_profile(table, score, model="fraud", window=250, pii=pii)
    world = World(tmp_path, profile)
    recorder = recorder_of(profile, source="r-1")
    rows = live_rows(500, 4)
    said = rows.pop("score")
    recorder.append({**rows, "maiden": ["x"] * 500}, said, "7", time_ms=NOW)
    (block,) = recorder.flush()
    assert "maiden" not in block.inputs
    world.blocks.write(block)
    world.run(world.monitor())
    report = world.notes.reports[-1]
    name = "(masked)" if personal else "maiden"
    assert report.verdict.level is Level.WARN
    assert any(f"'{name}'" in text for text in report.verdict.reasons)
    assert report.counts.extra_columns == {name: report.counts.rows}
    assert report.counts.extra_cells == report.counts.rows


def test_a_new_input_that_is_called_like_an_output_hides_nothing(world: World) -> None:
    world.blocks.write(block_of(0, rows=500, extra=("score",)))
    world.run(world.monitor())
    (report,) = world.notes.reports
    assert dict(report.counts.extra_columns) == {"input:score": 500}
    assert report.counts.missing_columns == {}
