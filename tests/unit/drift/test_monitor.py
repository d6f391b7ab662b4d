"""The monitor: blocks in, reports out, nothing lost and nothing twice."""

from __future__ import annotations

from typing import Any

import pytest

from drift.cutter import Rows, WindowCutter
from drift.monitor import Monitor
from drift.verdict import Level
from governance.errors import (
    ConflictError,
    MalformedRequestError,
    TooManyRequestsError,
    UnreachableError,
)
from tests.unit.drift.monitor_world import (
    NOW,
    PROFILE,
    Notes,
    W,
    World,
    block_of,
    counted,
    reference_sample,
    straight,
)


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
    alarms = [f.is_drift for r in world.notes.reports for f in r.findings]
    assert sum(alarms) <= 1  # each cries wolf once in twenty times


@pytest.mark.parametrize("sampled", [True, False])
def test_blocks_of_an_open_window_are_kept_only_for_a_sample(world: World, sampled: bool) -> None:
    world.blocks.write(block_of(0))
    monitor = world.monitor(reference=reference_sample() if sampled else None)
    world.run(monitor)
    monitor.close()
    assert monitor.status.open_rows > 0
    assert len(world.blocks.entries()) == sampled
    again = world.monitor()
    world.blocks.write(block_of(1))
    world.run(again)
    assert world.notes.reports[0].counts.rows == 500
    assert world.blocks.entries() == []


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
    assert monitor.state.saved == [0, 1, 2, 3, 4, 5]
    monitor.close()
    again = world.monitor()  # over a restart too
    world.notes.away = None
    world.now += 400_000
    world.run(again)
    assert world.notes.indices == [0, 1, 2, 3, 4, 5]
    assert other.indices == [0, 1, 2, 3, 4, 5]
    assert again.status.trouble == {}
    again.save()
    assert again.state.saved == []
    again.close()


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


class Picky(Notes):
    """Refuses one window, as a registry that cannot read its report."""

    def __init__(self, refuses: int = 1) -> None:
        super().__init__()
        self.refuses = refuses
        self.error: Exception = MalformedRequestError("the report has a time that cannot be")

    def publish(self, report: Any) -> None:
        if report.verdict.index == self.refuses:
            self.asked += 1
            raise self.error
        super().publish(report)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_report_that_is_refused_for_good_holds_up_no_other(world: World, restarted: bool) -> None:
    picky = Picky()
    world.sinks = {"picky": picky, "notes": Notes()}
    monitor = world.monitor()
    for i in range(8):
        world.blocks.write(block_of(i))
    for _ in range(30):
        world.run(monitor)
        world.now += 300_000
        if restarted:  # as with `--once`
            monitor.close()
            monitor = world.monitor()
    assert world.notes.indices == [0, 1, 2, 3]
    assert picky.indices == [0, 2, 3]
    (file,) = (world.path / "state").rglob("refused/fraud/7/_/*.json")
    assert file.read_bytes() == world.notes.reports[1].to_json()
    assert monitor.status.trouble == {}
    assert monitor.status.waiting_reports == 0
    assert any("picky refused 1 report" in note for note in monitor.status.notes)
    monitor.close()


@pytest.mark.parametrize(
    "error",
    [
        UnreachableError("away"),
        TooManyRequestsError("later"),
        ConflictError("somebody was first"),
        OSError("away"),
    ],
    ids=repr,
)
def test_what_a_sink_does_not_take_now_is_never_put_aside(world: World, error: Exception) -> None:
    picky = Picky(refuses=0)
    picky.error = error
    world.sinks = {"picky": picky}
    monitor = world.monitor()
    for i in range(4):
        world.blocks.write(block_of(i))
    for _ in range(30):
        world.run(monitor)
        world.now += 300_000
    assert picky.asked == 30
    assert monitor.status.waiting_reports == 2
    picky.refuses = -1
    world.run(monitor)
    assert picky.indices == [0, 1]


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


def _alarmed(world: World, alerts: Notes) -> Monitor:
    """A monitor that has told a sink of eight shifted blocks."""
    world.sinks = {"alerts": alerts}
    monitor = world.monitor()
    for i in range(8):
        world.blocks.write(block_of(i, shift=2.5))
    world.run(monitor)
    return monitor


def test_a_sink_tells_what_was_acknowledged_and_it_counts_once(world: World) -> None:
    class Alerts(Notes):
        seen: int | None = None

        def acknowledged(self) -> int | None:
            if self.seen == 13:
                raise OSError("the database is away")
            return self.seen

    alerts = Alerts()
    monitor = _alarmed(world, alerts)
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


def test_what_was_acknowledged_in_another_life_is_no_news_and_what_is_later_is(
    world: World,
) -> None:
    """With a new folder for the state, indices begin at 0 again."""

    class Alerts(Notes):
        seen: int | None = 900

        def acknowledged(self) -> int | None:
            return self.seen

    alerts = Alerts()
    monitor = _alarmed(world, alerts)
    for i in range(8, 10):  # well again, and nobody has seen the alarm
        world.blocks.write(block_of(i))
    world.run(monitor)
    assert monitor.status.level is not Level.OK
    alerts.seen = 4
    for i in range(10, 14):
        world.blocks.write(block_of(i))
    world.run(monitor)
    assert monitor.status.level is Level.OK
