"""What an experiment came to: intervals, quantiles, and comparisons valid at any look."""

from __future__ import annotations

import random
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from governance.arms import ArmRecord, ExperimentRecord, stretched
from serve.agreement import Agreement
from serve.arms import Beside, ExperimentCourse, ShadowCourse
from serve.course import Course
from serve.delta import Delta, ErrorClass, bucket_of
from serve.plan import Report
from serve.results import as_results, quantile, results, wilson
from serve.views import as_panel, as_table, describe
from tests.unit.serve.deployment_world import World, served

RECORD = ExperimentRecord(
    "e1", "ab", "header:x-user",
    tuple(ArmRecord(n, served(v), "50") for n, v in (("control", 1), ("fresh", 2))),
    stretched({"control": "50", "fresh": "50"}), "ann", 5,
)  # fmt: skip


@pytest.mark.parametrize(
    ("events", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),  # Brown, Cai and DasGupta 2001 and any calculator
        (1, 10, 0.0179, 0.4042),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (0, 0, 0.0, 1.0),
        (50, 1000, 0.0381, 0.0653),
    ],
)
def test_wilson(events: int, n: int, low: float, high: float) -> None:
    assert wilson(events, n) == pytest.approx((low, high), abs=1e-4)


def test_quantiles() -> None:
    counts: dict[int, int] = {}
    for ms in range(1, 1001):
        counts[bucket_of(ms)] = counts.get(bucket_of(ms), 0) + 1
    for part in (0.5, 0.95, 0.99):
        assert quantile(counts, part) == pytest.approx(1000 * part, rel=0.012)
    assert quantile({}, 0.5) is None


def played(rates: tuple[float, float], seed: int, looks: int = 150) -> ExperimentCourse:
    """An experiment in which arms fail at these rates."""
    draw = random.Random(seed)
    beside = Beside(ExperimentCourse.start(RECORD))
    for number in range(looks):
        deltas = {}
        for name, rate in zip(("control", "fresh"), rates, strict=True):
            bad = sum(draw.random() < rate for _ in range(10))
            deltas[name] = Delta(10, {ErrorClass.RAISED: bad} if bad else {})
        beside = beside.counted(Report("g", number, deltas, experiment="e1"))
    assert beside.experiment is not None
    return beside.experiment


def test_the_level_holds_however_often_one_looks() -> None:
    """At 5 % at most one experiment of equal arms in 20 may ever show a difference."""
    shown = sum(played((0.1, 0.1), seed).pairs[0].highest > 2.996 for seed in range(80))
    assert shown <= 10, "4 are allowed on average"


def test_a_difference_is_found_either_way() -> None:
    for rates in ((0.02, 0.2), (0.2, 0.02)):
        (pair,) = played(rates, 1).pairs
        assert pair.highest > 2.996
        more = pair.more.against.log_total > pair.less.against.log_total
        assert more == (rates[0] > rates[1])


def text_of(thing: object) -> str:
    console = Console(width=160, record=True, file=StringIO())
    console.print(thing)
    return console.export_text()


def test_it_is_told_in_numbers_and_sentences(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert "has had no experiment" in text_of(as_results(results(world.record)))
    experiment = played((0.02, 0.2), 1)
    arms = tuple(
        replace(arm, open=True, total=arm.total + Delta(5, {ErrorClass.CLIENT: 5}))
        for arm in experiment.arms
    )
    shadow = ShadowCourse(
        "s1", 4, 5, open=True, total=Delta(20), agreement=Agreement(same=18, different=2, dropped=3)
    )
    course = Course(beside=Beside(replace(experiment, arms=arms), shadow))
    record = replace(world.record, state=course.to_json(), experiment=RECORD, shadow=None)
    found = results(record)
    control, fresh = found["experiment"]["arms"]
    assert (control["requests"], control["clientErrors"]) == (1505, 5)
    assert control["errorRate"] == control["errors"] / 1500
    assert control["errorRateInterval"] == list(wilson(control["errors"], 1500))
    assert fresh["weight"] == "50"
    (pair,) = found["experiment"]["pairs"]
    assert (pair["differs"], pair["failsMore"]) == (True, "fresh")
    assert found["shadow"]["agreement"] == 0.9
    assert found["shadow"]["state"] == "ended"
    words = text_of(as_results(found))
    assert "fresh fails more often than control at level 0.05 over 1 pair" in words
    assert "Nothing is decided automatically" in words
    assert "agreed with stable in 90.00%" in words
    assert "3 dropped" in words
    ended = results(replace(record, experiment=None))["experiment"]
    assert (ended["running"], ended["arms"][0]["state"]) == (False, "ended")
    even = played((0.1, 0.1), 3)
    course = Course(beside=Beside(even))
    words = text_of(as_results(results(replace(record, state=course.to_json()))))
    assert "no difference is shown" in words


def test_show_list_and_watch_tell_of_them(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.store.experiment(
        world.now_record, {"control": "50", "fresh": "30", "bold": "20"},
        {"control": 1, "fresh": 2, "bold": 3},
    )  # fmt: skip
    record = world.store.shadow(world.now_record, 4, "12.5")
    for words in ("\n".join(describe(record, 7)), text_of(as_panel(record, 7))):
        assert "fresh" in words
        assert "models:/fraud/4" in words
    assert "fresh: 30 % to models:/fraud/2  waiting for a controller" in "\n".join(
        describe(record, 7)
    )
    world.idle(3)
    world.store.revoked["uid-3"] = "it leaks"
    world.idle(3)
    lines = "\n".join(describe(world.now_record, world.now))
    assert "bold: 20 % to models:/fraud/3  stopped: it was revoked: it leaks" in lines
    assert "copies of 12.5 % of the requests" in lines
    listed = text_of(as_table([world.now_record]))
    assert "experimenting" in listed
    assert "fresh v2 30 %" in listed
    assert "shadow v4 12.5 %" in listed
