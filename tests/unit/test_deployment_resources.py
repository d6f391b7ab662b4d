"""How much a deployment gets, and what people are told who ask for what cannot be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from governance.deployment_resources import (
    Scale,
    Window,
    checked_resources,
    parse_range,
    parse_scale,
    scale_of,
)
from governance.errors import PolicyError, RefusedError


@pytest.mark.parametrize(
    ("text", "range_"),
    [("3", (3, 3)), (2, (2, 2)), ("1..8", (1, 8)), (" 0 .. 4 ", (0, 4)), ("0", (0, 0))],
)
def test_ranges(text: str | int, range_: tuple[int, int]) -> None:
    assert parse_range(text) == range_


@pytest.mark.parametrize("text", ["", "many", "8..1", "1..", "..3", "-1", "1..5000", "0..0", "1.5"])
def test_ranges_that_cannot_be(text: str) -> None:
    with pytest.raises(RefusedError) as refused:
        parse_range(text)
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("text", "window", "again"),
    [
        (
            "Mon-Fri 08:00-18:00 Europe/Berlin = 4..8",
            Window((0, 1, 2, 3, 4), 480, 1080, "Europe/Berlin", 4, 8),
            "Mon,Tue,Wed,Thu,Fri 08:00-18:00 Europe/Berlin = 4..8",
        ),
        (
            "sat,Sunday 0:00 - 24:00 UTC=0",
            Window((5, 6), 0, 1440, "UTC", 0, 0),
            "Sat,Sun 00:00-24:00 UTC = 0",
        ),
        (
            "22:00-06:00 America/New_York = 2",
            Window((0, 1, 2, 3, 4, 5, 6), 1320, 360, "America/New_York", 2, 2),
            "22:00-06:00 America/New_York = 2",
        ),
        (
            "Fri-Mon, Wed 09:30-10:00 Asia/Kolkata = 1..2",
            Window((0, 2, 4, 5, 6), 570, 600, "Asia/Kolkata", 1, 2),
            "Mon,Wed,Fri,Sat,Sun 09:30-10:00 Asia/Kolkata = 1..2",
        ),
    ],
)
def test_windows(text: str, window: Window, again: str) -> None:
    assert Window.parse(text) == window
    assert str(window) == again
    assert Window.parse(again) == window


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("08:00-18:00 = 4", "is no time window"),
        ("Mon 08:00-18:00 Europe/Atlantis = 4", "no time zone 'Europe/Atlantis'"),
        ("Mon 08:00-18:00 ../../etc/passwd = 4", "is no time window"),
        ("Mox 08:00-18:00 UTC = 4", "'Mox' is no day"),
        ("Mon 25:00-26:00 UTC = 4", "'25:00' is no time of day"),
        ("Mon 24:00-08:00 UTC = 4", "'24:00' is no time of day"),
        ("Mon 08:60-09:00 UTC = 4", "'08:60' is no time of day"),
        ("Mon 08:00-08:00 UTC = 4", "ends when it begins"),
        ("Mon 08:00-09:00 UTC = 9..4", "cannot be 9..4 replicas"),
    ],
)
def test_windows_that_cannot_be(text: str, words: str) -> None:
    with pytest.raises(RefusedError) as refused:
        Window.parse(text)
    assert words in refused.value.message
    assert refused.value.remedy


FULL = """
replicas: 0..8
target_rps: 50
target_in_flight: 2.5
idle_seconds: 900
quiet_seconds: 60
prewarm_seconds: 120
hold_seconds: 30
schedule:
  - Mon-Fri 08:00-18:00 Europe/Berlin = 4..8
"""


def test_a_file_says_everything_and_is_kept_without_floats() -> None:
    scale = parse_scale(FULL)
    assert scale == Scale(
        0, 8, 50.0, 2.5, 900, 60, 120, 30,
        (Window((0, 1, 2, 3, 4), 480, 1080, "Europe/Berlin", 4, 8),),
    )  # fmt: skip
    document = json.loads(json.dumps(scale.to_document()))
    assert Scale.of(document) == scale
    assert not [value for value in document.values() if isinstance(value, float)]
    assert scale_of({"replicas": 1, "scale": document}) == scale
    assert scale.may_sleep
    assert scale.held_s == 30


def test_what_is_left_out() -> None:
    scale = Scale.of({"replicas": "1..8"})
    assert scale.targets == ((8.0, "in_flight"),)
    assert Scale.of({"replicas": 3}).to_document()["replicas"] == "3"
    assert (scale.may_sleep, scale.held_s, scale.begins_with) == (False, 0.0, 1)
    assert scale_of({"replicas": 3}) is None
    assert scale_of({"scale": {"replicas": "1..8", "of_a_later_version": 1}}) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("replicas: 1..8\ntarget_rp: 50\n", "line 2, target_rp: unknown key"),
        ("target_rps: 50\n", "'replicas' is missing"),
        ("replicas: [1, 8]\n", "line 1, replicas:"),
        ("replicas: true\n", "line 1, replicas:"),
        ("replicas: 0\n", "never be a replica"),
        ("replicas: 1..8\ntarget_rps: 0\n", "line 2, target_rps: 0 is not a number"),
        ("replicas: 1..8\ntarget_rps: .inf\n", "line 2, target_rps"),
        ("replicas: 1..8\nidle_seconds: -1\n", "line 2, idle_seconds"),
        ("replicas: 1..8\nhold_seconds: 4000\n", "whole number up to 600"),
        ("replicas: 1..8\nschedule: Mon\n", "line 2, schedule: not a list"),
        ("replicas: 1..8\nschedule:\n  - Mon 8-9 UTC = 1\n", "line 3, schedule: 'Mon 8-9 UTC"),
        ("- replicas\n", "not a mapping"),
    ],
)
def test_files_that_cannot_be(text: str, words: str) -> None:
    with pytest.raises(RefusedError) as refused:
        parse_scale(text)
    assert words in str(refused.value)
    assert refused.value.remedy


def test_what_is_no_yaml() -> None:
    with pytest.raises(PolicyError):
        parse_scale("replicas: [1")


def test_resources_are_kept_as_they_were_asked_for() -> None:
    asked = {"numCpus": "0.5", "numGpus": "1", "gateways": "3", "gatewayCpus": "0.25"}
    asked |= {"gatewayPool": "edge", "accessLog": "/var/log/chancery"}
    assert checked_resources(asked) == {**asked, "gateways": 3}
    assert checked_resources({"numGpus": "0.5"}) == {"numGpus": "0.5"}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"numCpus": "many"}, "is not a number"),
        ({"numCpus": "-1"}, "is not a number"),
        ({"numCpus": "nan"}, "is not a number"),
        ({"numCpus": True}, "is not a number"),
        ({"numGpus": "1.5"}, "1.5 GPUs cannot be given"),
        ({"gateways": "0"}, "listeners cannot be"),
        ({"gateways": "1.5"}, "listeners cannot be"),
        ({"gateways": "101"}, "listeners cannot be"),
        ({"accessLog": "log"}, "path of a folder"),
        ({"gatewayPool": "a=b"}, "cannot be a node's label"),
        ({"replicas": 3}, "is not something"),
        ({"host": "0.0.0.0"}, "is not something"),
    ],
)
def test_resources_that_cannot_be(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(RefusedError) as refused:
        checked_resources(asked)
    assert words in refused.value.message
    assert refused.value.remedy
