"""A controller that watches metrics and outputs: bins frozen once, holding where it is blind."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve.config import CanaryConfig
from serve.controller import Controller
from serve.course import Course
from serve.delta import Delta, ErrorClass, OwnerSums, bucket_of
from serve.observing import MetricNews, Observed
from serve.outputs import NO_PREDICTION, OutputBins, seen_text
from serve.plan import Plan, Report
from serve.records import Phase
from serve.views import explain
from tests.unit.serve.deployment_world import STEP, World, weights

METRIC = {"name": "score", "kind": "mean", "range": [0, 1], "source": "fraud_metrics:score"}
OUTPUTS = {"tolerance": 0.1, "bins": 5}


def config(**changes: Any) -> str:
    analysis = {"latency": None, **changes.pop("analysis", {})}
    document = {"steps": [20, 50, 100], "min_samples": 20, "min_seconds": 2, "max_seconds": 60}
    return CanaryConfig.model_validate_json(
        json.dumps({**document, "analysis": analysis, **changes})
    ).model_dump_json()


class Watched(World):
    """A gateway that observes what the plan says: scores around ``stable``, ``canary``."""

    def __init__(self, path: Path, seed: int = 1) -> None:
        super().__init__(path)
        self.random = random.Random(seed)
        self.stable, self.canary = 0.4, 0.4
        self.news: dict[str, MetricNews] = {"score": MetricNews()}
        self.metric_on = True
        self.unreadable = False
        self.plan: Plan | None = None

    def _scores(self, centre: float, count: int) -> list[float]:
        return [min(max(self.random.gauss(centre, 0.1), 0.0), 1.0) for _ in range(count)]

    def _delta(self, scores: list[float], bins: OutputBins | None, *, metric: bool) -> Delta:
        outputs: dict[int, int] = {}
        for score in scores if bins is not None else ():
            place = bins.bin_of(score)  # type: ignore[union-attr]
            outputs[place] = outputs.get(place, 0) + 1
        owner = {"score": OwnerSums(len(scores), sum(scores), sum(s * s for s in scores))}
        latency = {bucket_of(5.0): len(scores)} if scores else {}
        return Delta(len(scores), {}, latency, owner if metric and scores else {}, outputs)

    def turn(self, controller: Controller | None = None, rate: int = 20) -> Plan | None:
        """A quarter of a second of traffic, as the last plan says."""
        self.now += STEP
        acting = controller or self.controller
        acting.tick(self.now)
        if not acting.holding:
            return None
        observing = self.plan.observing if self.plan is not None else None
        share = weights(self.plan).get("canary", 0.0) / 100 if self.plan is not None else 0.0
        here = self._scores(self.canary, round(rate * share))
        there = self._scores(self.stable, rate - len(here))
        told, bins = Observed(), None
        if observing is not None:
            bins = observing.bins
            samples = ()
            if observing.outputs and bins is None:
                seen = [NO_PREDICTION if self.unreadable else score for score in there]
                samples = tuple(map(seen_text, seen))
            digest = "" if bins is None else bins.digest
            told = Observed(observing.rollout, digest, samples, self.news)
        metric = self.metric_on and observing is not None and bool(observing.metrics)
        self.sequence += 1
        deltas = {
            "canary": self._delta(here, bins, metric=metric),
            "stable": self._delta(there, bins, metric=metric),
        }
        lanes = {"stable": 1, "canary": 1}
        self.plan = acting.exchange(Report("gateway", self.sequence, deltas, lanes, told))
        return self.plan

    def turns(self, seconds: float) -> None:
        for _ in range(int(seconds * 1000 / STEP)):
            self.turn()

    def ended(self, longest: float = 200) -> str:
        """How the rollout ends."""
        for _ in range(int(longest * 1000 / STEP)):
            self.turn()
            last = self.store.outcomes(self.record)[-1:]
            if last and last[0] in ("promoted", "rolled_back"):
                return last[0]
        raise AssertionError(self.why())

    def why(self) -> str:
        with self.store.engine.connect() as connection:
            from governance import deployment_control

            decisions = deployment_control.decisions_of(connection, self.record.deploy_id)
        return "\n".join(explain(self.now_record, decisions))


@pytest.fixture
def world(tmp_path: Path) -> Watched:
    world = Watched(tmp_path)
    world.idle(1)
    return world


# -- outputs


@pytest.mark.parametrize(("shift", "outcome"), [(0.0, "promoted"), (0.3, "rolled_back")])
@pytest.mark.parametrize("seed", range(4))
def test_shifted_answers_without_an_error_are_rolled_back_and_healthy_ones_not(
    tmp_path: Path, shift: float, outcome: str, seed: int
) -> None:
    world = Watched(tmp_path, seed)
    world.idle(1)
    world.canary += shift
    world.begin(config(analysis={"outputs": OUTPUTS}))
    assert world.ended() == outcome
    if outcome == "rolled_back":
        assert "Strongest: outputs: in the bins that the canary favours" in world.why()
        assert "Answers by bin, where they differ most" in world.why()
        assert "and more:" in world.why()


def test_bins_are_frozen_once_before_anything_is_compared(world: Watched) -> None:
    world.begin(config(analysis={"outputs": OUTPUTS}, min_seconds=30))
    seen: list[OutputBins] = []
    for _ in range(40):
        world.turn()
        observing = world.plan.observing if world.plan else None
        if observing is not None and observing.bins is not None:
            seen.append(observing.bins)
    assert len(seen) > 5
    assert len(set(seen)) == 1
    course = world.course
    assert course.bins == seen[0]
    assert Course.from_json(course.to_json()) == course
    rollout = course.rollout
    assert rollout is not None
    assert seen[0].rollout == rollout.id
    other = world.start("two")  # a controller that takes over has the same
    world.controller.close()
    for _ in range(10):
        world.turn(other)
    assert world.plan is not None
    assert world.plan.observing is not None
    assert world.plan.observing.bins == seen[0]


def test_without_bins_the_step_holds_and_says_so(world: Watched) -> None:
    world.begin(config(analysis={"outputs": OUTPUTS}))
    for _ in range(60):
        world.turn(rate=2)
    assert world.phase is Phase.CANARY
    assert "bins of the outputs are not known yet" in world.why()
    assert "of 200 answers of stable were looked at" in world.why()
    assert world.ended() == "promoted"


def test_answers_that_cannot_be_binned_hold_until_the_time_is_over(world: Watched) -> None:
    world.unreadable = True
    world.begin(config(analysis={"outputs": OUTPUTS}))
    world.turns(10)
    assert "have no predictions that could be binned" in world.why()
    assert world.ended() == "rolled_back"
    assert "longest time" in world.why()


def test_counts_in_other_bins_or_of_another_rollout_are_left_out(world: Watched) -> None:
    world.begin(config(analysis={"outputs": OUTPUTS, "metrics": [METRIC]}))
    for _ in range(60):
        world.turn()
        rollout = world.course.rollout
        if world.course.bins is not None and rollout is not None and rollout.requests:
            break
    rollout = world.course.rollout
    assert rollout is not None
    sums = OwnerSums(50, 50.0, 50.0)
    delta = Delta(50, {}, {bucket_of(5.0): 50}, {"score": sums}, {5: 50})
    before = world.controller._held.course.rollout.observed  # type: ignore[union-attr]
    for told in (Observed(), Observed("another"), Observed(rollout.id, "other bins")):
        world.sequence += 1
        deltas = {"canary": delta, "stable": delta}
        world.controller.exchange(Report("gateway", world.sequence, deltas, {}, told))
    after = world.controller._held.course.rollout.observed  # type: ignore[union-attr]
    assert after["outputs"] == before["outputs"]
    assert after["score"] == tuple(count + 50 for count in before["score"])


# -- callables


@pytest.mark.parametrize(("shift", "outcome"), [(0.0, "promoted"), (0.2, "rolled_back")])
def test_a_metric_decides(world: Watched, shift: float, outcome: str) -> None:
    world.canary += shift
    world.begin(config(analysis={"metrics": [{**METRIC, "tolerance": 0.02}]}))
    assert world.ended() == outcome
    if shift:
        assert "Strongest: metric.score: mean 0.6" in world.why()


def test_a_metric_that_says_nothing_holds_until_the_time_is_over(world: Watched) -> None:
    world.metric_on = False
    world.begin(config(analysis={"metrics": [METRIC]}))
    world.turns(20)
    assert world.phase is Phase.CANARY
    needed = "has 0 observations of the canary and 0 of stable to go by; 20 of each are needed"
    assert needed in world.why()
    assert world.ended() == "rolled_back"
    assert "has not earned the next step" in world.why()


@pytest.mark.parametrize("on_timeout", ["hold", "advance"])
def test_a_metric_that_is_off_holds_whatever_the_timeout_says(
    world: Watched, on_timeout: str
) -> None:
    world.begin(config(analysis={"metrics": [METRIC]}, on_timeout=on_timeout, max_seconds=5))
    while world.plan is None or not weights(world.plan).get("canary"):
        world.turn()
    world.turns(1)  # some observations there are
    world.news = {"score": MetricNews(off="a call took longer than 10 s")}
    world.turns(20)
    assert world.phase is Phase.CANARY
    assert world.course.rollout is not None
    assert world.course.rollout.step == 0
    why = world.why()
    assert "The metric 'score' is switched off at 1 gateway: a call took longer than 10 s" in why
    assert "Noticed" in why
    assert why.count("The rollout holds meanwhile.") == 1
    assert world.store.ledger.names().count("serve:deployment:alerted") == 1
    world.news = {"score": MetricNews()}
    assert world.ended() == "promoted"


def test_a_gateway_that_is_gone_is_no_obstacle(world: Watched) -> None:
    world.begin(config(analysis={"metrics": [METRIC]}))
    world.turns(2)
    rollout = world.course.rollout
    assert rollout is not None
    told = Observed(rollout.id, metrics={"score": MetricNews(off="it hung")})
    world.controller.exchange(Report("another", 1, {}, {"canary": 1}, told))
    world.turns(1)
    assert "it hung" in world.why()
    assert world.ended() == "promoted"


def test_few_errors_are_told_and_many_hold(world: Watched) -> None:
    world.begin(config(analysis={"metrics": [METRIC]}))
    calls = {"canary": 100, "stable": 1000}
    world.news = {"score": MetricNews(calls, {"canary": 50}, "KeyError at m.py:3")}
    world.turns(20)
    assert world.phase is Phase.CANARY
    assert "failed in 50 of 100 calls for canary: too often" in world.why()
    assert "which is no error of the model: KeyError at m.py:3" in world.why()
    world.news = {"score": replace(world.news["score"], errors={"canary": 2})}
    assert world.ended() == "promoted"


def test_errors_of_a_metric_are_no_errors_of_the_model(world: Watched) -> None:
    world.begin(config(analysis={"metrics": [METRIC]}))
    world.news = {"score": MetricNews({"canary": 9}, {"canary": 9}, "KeyError at m.py:3")}
    world.metric_on = False
    world.turns(20)
    rollout = world.course.rollout
    assert rollout is not None
    assert not rollout.judge.doubtful
    assert all(error not in rollout.judge.verdicts()[0].reason for error in ErrorClass)


def test_an_old_rollout_goes_on_without_the_needed_samples() -> None:
    stored = CanaryConfig.model_validate_json(config(analysis={"metrics": [METRIC]}))
    assert stored.analysis.metrics[0].min_samples is None
    from serve.signals import begun

    state = begun("r1", stored.model_dump_json(), 0)
    assert not isinstance(state, tuple)
    assert state.config.analysis.metrics[0].min_samples == 20
    own = {**METRIC, "min_samples": 7}
    state = begun("r1", config(analysis={"metrics": [own], "outputs": OUTPUTS}), 0)
    assert not isinstance(state, tuple)
    assert state.config.analysis.metrics[0].min_samples == 7
    assert state.config.analysis.outputs is not None
    assert state.config.analysis.outputs.min_samples == 20
