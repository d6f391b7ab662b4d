"""What a gateway observes: samples until there are bins, then counts; fairly; nothing when off."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import replace
from typing import Any

import pytest

from serve.answer import Answer
from serve.config import MetricKind
from serve.delta import Delta
from serve.metrics import exposition
from serve.observer import Observer
from serve.observing import CallableMetric, Observing
from serve.outputs import OutputBins, Reading
from serve.plan import Plan, Report, VariantPlan
from tests.unit.serve.router_world import World, hangs, plan, predicts, run, says
from tests.unit.serve.sums import body
from tests.unit.serve.test_metric_process import MODULE, wait_for

STABLE = VariantPlan("stable", "fraud", "3", "s")
CANARY = VariantPlan("canary", "fraud", "4", "c")
BINS = OutputBins("r1", Reading.NUMBER, edges=(0.0, 1.0))
METRIC = CallableMetric("first", MetricKind.MEAN, f"{MODULE}:first")
ALLOWED = {"CHANCERY_METRIC_MODULES": "tests.unit"}
NOTHING = {"stable": Delta(), "canary": Delta()}


def answered(value: Any) -> Answer:
    return Answer(200, json.dumps({"predictions": [value]}).encode())


def saw(observer: Observer, variant: VariantPlan, value: Any) -> None:
    observer.saw(variant, "application/json", b"{}", answered(value), 1.0)


def test_nothing_is_on_until_a_plan_says_so() -> None:
    observer = Observer({})
    assert not observer.on
    observer.follow(Observing("r1", outputs=True))
    assert observer.on
    observer.follow(None)
    assert not observer.on
    assert observer.fill(NOTHING) == NOTHING
    assert observer.observed().rollout == ""


def test_samples_are_of_stable_and_told_once_then_bins_are_counted() -> None:
    observer = Observer({})
    learning = Observing("r1", outputs=True)
    observer.follow(learning)
    for value in range(3):
        saw(observer, STABLE, value / 10)
        saw(observer, CANARY, 99)
    told = observer.observed()
    assert told.samples == ("n:0.0", "n:0.1", "n:0.2")
    assert (told.rollout, told.bins) == ("r1", "")
    assert observer.observed().samples == ()
    assert observer.fill(NOTHING) == NOTHING

    observer.follow(replace(learning, bins=BINS))
    for value in (-1, 0.5, 7, "odd"):
        saw(observer, CANARY, value)
    saw(observer, STABLE, 7)
    filled = observer.fill(NOTHING)
    assert filled["canary"].outputs == {0: 1, 1: 1, 2: 1, 3: 1}
    assert filled["stable"].outputs == {2: 1}
    assert observer.observed().bins == BINS.digest
    assert observer.fill(NOTHING) == NOTHING


def test_counts_of_another_rollout_are_forgotten() -> None:
    observer = Observer({})
    observer.follow(Observing("r1", outputs=True, bins=BINS))
    saw(observer, CANARY, 7)
    observer.follow(Observing("r2", outputs=True, bins=replace(BINS, rollout="r2")))
    assert observer.fill(NOTHING) == NOTHING
    observer.follow(Observing("r2", outputs=True, bins=replace(BINS, rollout="r2")))
    saw(observer, CANARY, 7)
    assert observer.fill(NOTHING)["canary"].outputs == {2: 1}


def test_each_variant_has_an_allowance_of_its_own() -> None:
    observer = Observer({})
    observer.follow(Observing("r1", outputs=True, bins=BINS))
    large = Answer(200, json.dumps({"predictions": [0.5] * 20_000}).encode())
    counted = {"stable": 0, "canary": 0}
    begun = time.monotonic()
    for _ in range(3):
        for _ in range(500):
            observer.saw(CANARY, None, b"", large, 1.0)
            saw(observer, STABLE, 0.5)
        time.sleep(0.05)
        for name, delta in observer.fill(NOTHING).items():
            counted[name] += sum(delta.outputs.values())
    seconds = time.monotonic() - begun + 0.1  # which may be used ahead
    assert observer.skipped == 3000 - sum(counted.values())
    assert 50 <= counted["stable"] <= 500 * seconds + 3
    # The canary's answers are large: fewer of them, and stable's are not cut short by them.
    assert 1 <= counted["canary"] <= seconds * (2 << 20) / len(large.body) + 3
    assert counted["canary"] < counted["stable"]


def test_metrics_go_on_when_bins_come() -> None:
    observer = Observer(ALLOWED)
    learning = Observing("r1", (METRIC,), outputs=True)
    observer.follow(learning)
    saw(observer, CANARY, 0.25)
    observer.follow(replace(learning, bins=BINS))
    found: list[Delta] = []

    def observed() -> bool:
        found.append(observer.fill(NOTHING)["canary"])
        return any(delta.owner for delta in found)

    wait_for(observed)
    assert found[-1].owner["first"].total == 0.25
    observer.close()
    assert not observer.on


@pytest.mark.parametrize("environ", [{}, {"CHANCERY_METRIC_MODULES": "no module, ;"}])
def test_a_machine_that_allows_nothing_runs_nothing(environ: dict[str, str]) -> None:
    observer = Observer(environ)
    observer.follow(Observing("r1", (METRIC,)))
    assert "not allowed" in observer.news()["first"].off
    assert "not allowed" in observer.observed().metrics["first"].off
    saw(observer, CANARY, 1)
    assert observer.dropped == {"canary": 1}


# -- in the router


def observed_plan(canary: float = 100.0, **options: Any) -> Plan:
    return plan(canary, observing=Observing("r1", (METRIC,), True, BINS), **options)


def test_only_what_a_variant_answered_itself_and_by_chance_is_observed() -> None:
    async def test(world: World) -> None:
        await world.start(observed_plan())
        assert (await world.ask()).status == 200  # canary: 4
        world.behaviours["c"] = says(b"", 500)
        assert (await world.ask()).status == 200  # stable answers again
        world.behaviours["c"] = hangs
        assert (await world.ask()).status == 200
        world.behaviours["c"] = predicts(["text"])
        assert (await world.ask()).status == 200  # another shape: stable's answer
        world.behaviours["c"] = predicts([0.5])
        await world.ask({"x-chancery-variant": "canary"})  # a tester
        await world.ask({"x-chancery-variant": "stable"})
        report = world.report()
        assert report.deltas["canary"].outputs == {2: 1}
        assert report.deltas["canary"].requests == 4
        assert "stable" not in report.deltas
        assert report.observed.bins == BINS.digest
        assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report

    run(test, observer=Observer({}))


def test_metrics_see_the_request_and_come_with_a_later_report() -> None:
    async def test(world: World) -> None:
        await world.start(observed_plan())
        world.behaviours["c"] = predicts([0.75])
        await world.ask(sent=body((1, 2)))
        found = world.report().deltas.get("canary", Delta())
        while "first" not in found.owner:
            await asyncio.sleep(0.02)
            found += world.report().deltas.get("canary", Delta())
        assert found.owner["first"].total == 0.75
        assert found.requests == 1
        samples = {
            (line.partition("{")[0], *re.findall(r' ?(?:metric|variant)="(\w+)"', line)): (
                line.split()[-1]
            )
            for line in exposition(world.router).decode().splitlines()
        }
        assert samples["chancery_metric_calls_total", "first", "canary"] == "1"
        assert samples["chancery_metric_errors_total", "first", "canary"] == "0"
        assert samples["chancery_metric_off", "first"] == "0"
        assert samples["chancery_outputs_skipped_total",] == "0"
        await world.start(plan(revision=2))
        assert world.router.observer is not None
        assert not world.router.observer.on

    run(test, observer=Observer(ALLOWED))


def test_a_plan_without_observing_is_what_it_was() -> None:
    document = plan().to_dict()
    assert document.pop("observing") is None
    assert Plan.from_dict(document) == plan()
    assert Plan.from_dict(json.loads(json.dumps(observed_plan().to_dict()))) == observed_plan()
    document = Report("g", 1).to_dict()
    del document["observed"]
    assert Report.from_dict(document) == Report("g", 1)
