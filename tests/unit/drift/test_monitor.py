"""The monitor: blocks in, reports out, nothing lost and nothing twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drift.cutter import Rows, WindowCutter
from drift.fitting import fit_profile
from drift.profile import DriftProfile
from drift.verdict import Level
from drift.window import WindowCounts, count_rows
from governance.errors import (
    ConfigurationError,
    ConflictError,
    MalformedRequestError,
    RefusedError,
    TamperedError,
    UnreachableError,
)
from tests.unit.drift.monitor_world import (
    NOW,
    PROFILE,
    Notes,
    W,
    World,
    block_of,
    reference_sample,
)
from tests.unit.drift.reference import small_profile


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


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


def test_windows_become_reports_and_blocks_go(world: World) -> None:
    blocks = [block_of(i) for i in range(8)]
    for one in blocks:
        world.blocks.write(one)
    monitor = world.monitor()
    world.run(monitor)
    assert world.notes.indices == [0, 1, 2, 3]
    assert counted(world) == straight(world, *blocks)
    assert world.files == []
    assert [report.verdict.rows for report in world.notes.reports] == [W] * 4
    assert all(report.verdict.level is Level.OK for report in world.notes.reports)
    status = monitor.status
    assert (status.windows, status.rows, status.alerts, status.waiting_reports) == (4, 2000, 0, 0)
    monitor.close()


def test_a_shift_alerts_and_names_its_slice(world: World) -> None:
    for i in range(12):
        world.blocks.write(block_of(i, shift=0.0 if i < 4 else 2.5))
    monitor = world.monitor(reference=reference_sample())
    world.run(monitor)
    levels = [report.verdict.level for report in world.notes.reports]
    assert levels[:2] == [Level.OK, Level.OK]
    assert Level.ALERT in levels
    first = next(r for r in world.notes.reports if r.verdict.level is not Level.OK)
    assert first.findings[0].is_drift
    assert "amount" in str(first.slices[0].predicate)
    assert world.notes.reports[-1].verdict.worst[0].name == "amount"
    assert monitor.status.level is Level.ALERT


def test_while_it_keeps_alerting_checks_are_made_now_and_then(world: World) -> None:
    for i in range(16):
        world.blocks.write(block_of(i, shift=2.5))
    world.run(world.monitor(reference=reference_sample(), check_again_ms=3_600_000))
    made = [bool(report.findings) for report in world.notes.reports]
    assert made[0]
    assert sum(made) <= 2  # when it rose to a warning, and to an alert


def test_without_alarm_checks_follow_the_schedule(world: World) -> None:
    monitor = world.monitor(reference=reference_sample(), check_every_ms=1000)
    for i in range(7):
        world.now += 600
        world.blocks.write(block_of(2 * i))
        world.blocks.write(block_of(2 * i + 1))
        world.run(monitor)
    made = [bool(report.findings) for report in world.notes.reports]
    first = made.index(True)  # subjects begin at different times, not all at once
    assert first < 2
    assert made[first:] == [True, False] * ((7 - first) // 2) + [True] * ((7 - first) % 2)
    assert {f.is_drift for r in world.notes.reports for f in r.findings} == {False}


def test_in_the_middle_of_a_window_it_goes_on_where_it_was(world: World) -> None:
    blocks = [block_of(i) for i in range(7)]
    for one in blocks[:3]:
        world.blocks.write(one)
    first = world.monitor()
    world.run(first)
    first.close()
    assert world.notes.indices == [0]
    for one in blocks[3:]:
        world.blocks.write(one)
    second = world.monitor()
    assert second.status.open_rows == 250
    world.run(second)
    second.flush()
    world.run(second)
    assert world.notes.indices == [0, 1, 2, 3]
    assert counted(world) == straight(world, *blocks)
    assert [report.tally.anything for report in world.notes.reports] == [False] * 4


def test_what_was_not_saved_is_done_again_and_counts_once(world: World) -> None:
    blocks = [block_of(i) for i in range(5)]
    for one in blocks:
        world.blocks.write(one)
    first = world.monitor(save_every_ms=10**15)
    first.step(most_blocks=3)  # counted, and not saved
    first.abandon()
    assert len(world.files) == 5
    second = world.monitor()
    world.run(second)
    assert world.notes.indices == [0, 1]
    assert second.status.rows == 1250
    assert second.status.open_rows == 250


def test_the_sample_of_an_open_window_is_drawn_again_after_a_restart(world: World) -> None:
    for i in range(3):
        world.blocks.write(block_of(i, shift=3.0))
    first = world.monitor(reference=reference_sample())
    world.run(first)
    first.close()
    assert [entry.sequence for entry in world.files] == [2]  # counted, and its window is open
    world.notes.reports.clear()
    second = world.monitor(reference=reference_sample(), check_again_ms=0)
    world.blocks.write(block_of(3, shift=3.0))
    world.run(second)
    (report,) = world.notes.reports
    assert report.verdict.rows == W
    assert report.slices
    assert report.tally.duplicate_blocks == 0
    assert world.files == []


def test_a_killed_monitors_report_is_the_same_document(world: World) -> None:
    for i in range(2):
        world.blocks.write(block_of(i, shift=3.0))
    world.notes.away = OSError("away")
    first = world.monitor(reference=reference_sample())
    for _ in range(4):
        first.step()
    first.abandon()
    first_sight = first.state.report(0)
    world.notes.away = None
    second = world.monitor(reference=reference_sample())
    world.run(second)
    (report,) = world.notes.reports
    assert report.to_json() == first_sight.to_json()
    assert report.counts == first_sight.counts
    assert report.findings


def test_a_sink_that_is_away_gets_everything_later_and_stops_nobody(world: World) -> None:
    other = Notes()
    world.sinks["other"] = other
    world.notes.away = UnreachableError("the tracking server is away", "wait")
    monitor = world.monitor()
    for i in range(12):
        world.blocks.write(block_of(i))
    world.run(monitor)
    assert other.indices == [0, 1, 2, 3, 4, 5]
    assert world.notes.reports == []
    assert monitor.status.waiting_reports == 6
    assert "away" in monitor.status.trouble["notes"]
    assert len(list((world.path / "state" / "reports").iterdir())) == 6
    monitor.close()
    again = world.monitor()  # over a restart too
    world.notes.away = None
    world.now += 400_000
    world.run(again)
    assert world.notes.indices == [0, 1, 2, 3, 4, 5]
    assert other.indices == [0, 1, 2, 3, 4, 5]
    assert again.status.trouble == {}
    again.close()
    assert list((world.path / "state" / "reports").iterdir()) == []


def test_a_sink_that_is_away_is_asked_less_and_less(world: World) -> None:
    world.notes.away = OSError("away")
    for i in range(2):
        world.blocks.write(block_of(i))
    monitor = world.monitor()
    for _ in range(600):
        monitor.step()
        world.now += 1000
    assert 8 <= world.notes.asked <= 12  # after 1, 2, 4 … 256, 300 s


def test_while_too_much_waits_blocks_stay_where_they_are(world: World) -> None:
    world.notes.away = OSError("away")
    for i in range(20):
        world.blocks.write(block_of(i))
    monitor = world.monitor(most_reports=2)
    for _ in range(50):
        monitor.step(most_blocks=1)
    assert monitor.status.waiting_reports == 2
    assert len(world.files) == 16
    world.notes.away = None
    world.now += 400_000
    for _ in range(200):
        monitor.step(most_blocks=1)
        world.now += 1
    assert world.notes.indices == list(range(10))
    assert world.files == []


def test_a_sink_that_raises_what_it_should_not_is_asked_again(world: World) -> None:
    world.notes.away = ZeroDivisionError("a mistake")
    for i in range(2):
        world.blocks.write(block_of(i))
    monitor = world.monitor()
    world.run(monitor)
    assert "ZeroDivisionError" in monitor.status.trouble["notes"]
    world.notes.away = None
    world.now += 2000
    world.run(monitor)
    assert world.notes.indices == [0]


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


# -- who may use a state


def test_a_profile_of_another_model_is_refused(world: World) -> None:
    other = small_profile(5000, 100)
    document = json.loads(other.to_json())
    document["model"] = "loans"
    wrong = DriftProfile.from_json(json.dumps(document))
    with pytest.raises(RefusedError, match="belongs to the model 'loans'"):
        world.monitor(profile=wrong)


def test_a_tampered_profile_is_refused(world: World) -> None:
    document = json.loads(PROFILE.to_json())
    document["rules"]["alert_esr"] = "1000000.0"
    changed = DriftProfile.from_json(json.dumps(document))
    with pytest.raises(TamperedError, match="was signed"):
        world.monitor(profile=changed)


def test_a_state_belongs_to_one_monitor_and_one_profile(world: World) -> None:
    monitor = world.monitor()
    monitor.save()
    with pytest.raises(ConflictError, match="another monitor"):
        world.monitor()
    monitor.close()
    world.profile = small_profile(5000, 100)
    with pytest.raises(TamperedError, match="was made with the profile"):
        world.monitor()
    world.profile = PROFILE
    with pytest.raises(ConfigurationError, match="windows of 500 rows"):
        world.monitor(rows=100)


def test_a_state_that_was_cut_short_is_refused(world: World) -> None:
    monitor = world.monitor()
    monitor.close()
    place = world.path / "state" / "state.json"
    whole = place.read_bytes()
    place.write_bytes(whole[:-10])
    with pytest.raises(MalformedRequestError, match="no state of a monitor"):
        world.monitor()
    document = json.loads(whole)
    for change in ({"counts": 3}, {"level": "bad"}, {"reports": ["a"]}, {"cutter": "{}"}):
        place.write_text(json.dumps({**document, **change}))
        with pytest.raises(MalformedRequestError):
            world.monitor()
    place.write_text(json.dumps({"format": document["format"], "profile": document["profile"]}))
    with pytest.raises(MalformedRequestError, match="cannot be read"):
        world.monitor()
    place.unlink()
    world.monitor().close()


def test_an_acknowledged_alarm_begins_anew(world: World) -> None:
    for i in range(8):
        world.blocks.write(block_of(i, shift=2.5))
    monitor = world.monitor()
    world.run(monitor)
    assert monitor.status.level is Level.ALERT
    monitor.acknowledge()
    for i in range(8, 12):
        world.blocks.write(block_of(i))
    world.run(monitor)
    assert monitor.status.level is Level.OK


def test_the_cutter_says_which_rows_went_where() -> None:
    cutter = WindowCutter(PROFILE, rows=100)
    table = {**block_of(0).inputs, **block_of(0).outputs}
    cutter.add(Rows("a", 0, table, NOW), now_ms=NOW)
    assert [(index, len(places)) for index, places in cutter.split] == [(0, 100), (1, 100), (2, 50)]
    cutter.add(Rows("a", 0, table, NOW), now_ms=NOW)
    assert cutter.split == ()


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


def test_sinks_are_asked_in_their_order_and_none_is_forgotten(world: World) -> None:
    order: list[tuple[str, int]] = []

    class Ordered(Notes):
        name = ""

        def publish(self, report: Any) -> None:
            order.append((self.name, report.verdict.index))
            super().publish(report)

    first, second = Ordered(), Ordered()
    first.name, second.name = "first", "second"
    world.sinks = {"first": first, "second": second}
    for i in range(4):
        world.blocks.write(block_of(i))
    monitor = world.monitor()
    world.run(monitor)
    monitor.close()
    assert order == [("first", 0), ("second", 0), ("first", 1), ("second", 1)]


def test_a_report_is_published_only_once_it_is_saved(world: World) -> None:
    seen: list[list[int]] = []

    class Looks(Notes):
        def publish(self, report: Any) -> None:
            state = json.loads((world.path / "state" / "state.json").read_bytes())
            seen.append([report.verdict.index, *state["reports"]])

    world.sinks = {"looks": Looks()}
    for i in range(6):
        world.blocks.write(block_of(i))
    world.run(world.monitor())
    assert [one[0] for one in seen] == [0, 1, 2]
    assert all(one[0] in one[1:] for one in seen)


def test_a_sink_tells_what_was_acknowledged_and_it_counts_once(world: World) -> None:
    class Alerts(Notes):
        seen: int | None = None

        def acknowledged(self) -> int | None:
            if self.seen == 13:
                raise OSError("the database is away")
            return self.seen

    alerts = Alerts()
    world.sinks = {"alerts": alerts}
    monitor = world.monitor()
    for i in range(8):
        world.blocks.write(block_of(i, shift=2.5))
    world.run(monitor)
    assert monitor.status.level is Level.ALERT
    alerts.seen = 13
    world.blocks.write(block_of(8))
    world.blocks.write(block_of(9))
    world.run(monitor)
    assert monitor.status.level is not Level.OK  # eSR has not come down
    alerts.seen = alerts.indices[-1]
    for i in range(10, 14):
        world.blocks.write(block_of(i))
    world.run(monitor)
    assert monitor.status.level is Level.OK
    monitor.close()
    world.blocks.write(block_of(14, shift=2.5))
    world.blocks.write(block_of(15, shift=2.5))
    again = world.monitor()
    world.run(again)
    assert again.status.level is not Level.OK  # what was acknowledged before resets nothing
