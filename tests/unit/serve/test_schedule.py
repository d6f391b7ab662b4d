"""Time windows, by the clock on the wall, through both changes of summer time (AC-15)."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from governance.deployment_resources import Scale, Window
from serve.schedule import Bounds, bounds_at

BERLIN = "Europe/Berlin"


def ms(text: str, zone: str = "UTC", fold: int = 0) -> int:
    at = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return int(at.timestamp() * 1000)


def least(window: str, at: int, prewarm_s: int = 0) -> int:
    scale = Scale(1, 2, prewarm_s=prewarm_s, schedule=(Window.parse(window),))
    return bounds_at(scale, at).least


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2026-07-06 07:59:59", 1),  # a Monday
        ("2026-07-06 08:00:00", 4),
        ("2026-07-06 17:59:59", 4),
        ("2026-07-06 18:00:00", 1),
        ("2026-07-11 12:00:00", 1),  # a Saturday
        ("2026-01-05 08:00:00", 4),  # in winter, too
        ("2026-01-05 07:59:59", 1),
    ],
)
def test_a_window_follows_its_zone(at: str, expected: int) -> None:
    window = f"Mon-Fri 08:00-18:00 {BERLIN} = 4..8"
    assert least(window, ms(at, BERLIN)) == expected


def test_the_days_are_those_of_the_zone() -> None:
    window = "Mon 00:00-24:00 Pacific/Auckland = 4"
    assert least(window, ms("2026-07-05 12:30")) == 4  # Sunday in UTC
    assert least(window, ms("2026-07-06 12:30")) == 1  # Tuesday there


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2026-07-10 21:59", 1),
        ("2026-07-10 22:00", 4),
        ("2026-07-11 05:59", 4),  # begun on Friday
        ("2026-07-11 06:00", 1),
        ("2026-07-10 05:59", 1),  # not begun on Thursday
    ],
)
def test_a_window_over_midnight_belongs_to_the_day_it_begins(at: str, expected: int) -> None:
    assert least(f"Fri 22:00-06:00 {BERLIN} = 4", ms(at, BERLIN)) == expected


class TestSpring:
    """2026-03-29 in Berlin: 01:59:59 is followed by 03:00:00, at 01:00 UTC."""

    def test_times_after_the_gap_are_those_of_summer(self) -> None:
        window = f"Sun 08:00-18:00 {BERLIN} = 4"
        assert least(window, ms("2026-03-29 05:59:59")) == 1
        assert least(window, ms("2026-03-29 06:00:00")) == 4
        assert least(window, ms("2026-03-29 15:59:59")) == 4
        assert least(window, ms("2026-03-29 16:00:00")) == 1

    def test_a_begin_in_the_gap_is_its_end(self) -> None:
        window = f"Sun 02:30-05:00 {BERLIN} = 4"
        assert least(window, ms("2026-03-29 00:59:59")) == 1
        assert least(window, ms("2026-03-29 01:00:00")) == 4
        assert least(window, ms("2026-03-29 03:00:00")) == 1

    def test_an_end_in_the_gap_is_its_end(self) -> None:
        window = f"Sun 01:00-02:30 {BERLIN} = 4"
        assert least(window, ms("2026-03-29 00:00:00")) == 4
        assert least(window, ms("2026-03-29 00:59:59")) == 4
        assert least(window, ms("2026-03-29 01:00:00")) == 1

    def test_a_window_in_the_gap_has_no_time(self) -> None:
        window = f"Sun 02:10-02:50 {BERLIN} = 4"
        assert not [m for m in range(180) if least(window, ms("2026-03-29") + m * 60_000) == 4]


class TestAutumn:
    """2026-10-25 in Berlin: 02:00 to 03:00 comes twice, from 00:00 to 02:00 UTC."""

    def test_a_window_with_both_hours_is_an_hour_longer(self) -> None:
        window = f"Sun 01:00-04:00 {BERLIN} = 4"
        minutes = [m for m in range(-240, 360) if least(window, ms("2026-10-25") + m * 60_000) == 4]
        assert (minutes[0], minutes[-1], len(minutes)) == (-60, 179, 240)

    def test_it_begins_with_the_first_and_ends_with_the_second(self) -> None:
        window = f"Sun 02:15-02:45 {BERLIN} = 4"
        minutes = [m for m in range(-60, 180) if least(window, ms("2026-10-25") + m * 60_000) == 4]
        assert minutes == list(range(15, 105)), "without a break between"


def test_replicas_are_there_before_the_window() -> None:
    window = f"Mon-Fri 08:00-18:00 {BERLIN} = 4..8"
    scale = Scale(0, 2, prewarm_s=300, schedule=(Window.parse(window),))
    assert bounds_at(scale, ms("2026-07-06 07:54:59", BERLIN)) == Bounds(0, 2)
    early = bounds_at(scale, ms("2026-07-06 07:55:00", BERLIN))
    assert (early.least, early.most) == (4, 4)
    assert "begins soon" in early.reason
    assert bounds_at(scale, ms("2026-07-06 08:00:00", BERLIN)).most == 8
    assert bounds_at(scale, ms("2026-07-05 23:59:00", BERLIN)) == Bounds(0, 2)


def test_replicas_of_a_window_after_midnight_are_there_the_evening_before() -> None:
    assert least("Tue 00:00-06:00 UTC = 4", ms("2026-07-06 23:55:00"), prewarm_s=600) == 4
    assert least("Tue 00:00-06:00 UTC = 4", ms("2026-07-06 23:49:59"), prewarm_s=600) == 1


def test_where_several_hold_the_highest_counts_and_none_lowers_what_comes() -> None:
    windows = ("08:00-18:00 UTC = 2..4", "12:00-13:00 UTC = 6..9", "18:00-20:00 UTC = 0")
    scale = Scale(1, 3, prewarm_s=60, schedule=tuple(map(Window.parse, windows)))

    def at(text: str) -> tuple[int, int]:
        found = bounds_at(scale, ms(f"2026-07-06 {text}"))
        return found.least, found.most

    assert at("07:00:00") == (1, 3)
    assert at("09:00:00") == (2, 4)
    assert at("11:59:30") == (6, 6)
    assert at("12:30:00") == (6, 9)
    assert at("17:59:30") == (2, 4)
    assert at("18:30:00") == (0, 0)
