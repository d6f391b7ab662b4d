"""Counters become evidence once; whatever Prometheus says or does not, the controller goes on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from governance.errors import ConfigurationError, UnreachableError
from serve.config import CanaryConfig, OwnerMetric
from serve.delta import OwnerSums
from serve.growth import Reading, UnsettledError, fell, grown
from serve.polling import Asking, Poller
from serve.records import Phase
from tests.unit.serve.deployment_world import World, weights
from tests.unit.serve.test_metric_process import wait_for

TOLD_APART = {name: {"version": name} for name in ("canary", "stable")}


def metric(**options: Any) -> OwnerMetric:
    document = {
        "name": "bad", "kind": "rate", "source": 'promql:bad{v="$version"}',
        "total": 'promql:all{v="$version"}', "every_seconds": 1, **options,
    }  # fmt: skip
    return OwnerMetric.model_validate_json(json.dumps(document))


RATE = metric()
MEAN = metric(kind="mean", range=[0, 10])
GAUGE = metric(kind="mean", range=[0, 10], total=None)

# -- growth


@pytest.mark.parametrize(
    ("what", "before", "now", "sums"),
    [
        (RATE, (10, 100), (12, 150), OwnerSums(50, 2.0, 2.0)),
        (RATE, (10, 100), (10, 100), OwnerSums(0, 0.0, 0.0)),
        (RATE, (1e15, 3e15), (1e15 + 2, 3e15 + 5), OwnerSums(5, 2.0, 2.0)),
        (MEAN, (100.5, 50), (120.5, 60), OwnerSums(10, 2.0, None)),
        (MEAN, (0, 0), (100.0000001, 10), OwnerSums(10, 10.0, None)),
        (GAUGE, (1, None), (2.5, None), OwnerSums(1, 0.25, 0.0625)),
        (GAUGE, (1, None), (99, None), OwnerSums(1, 1.0, 1.0)),
        (GAUGE, (1, None), (-99, None), OwnerSums(1, 0.0, 0.0)),
        (metric(kind="mean", range=[-10, 10]), (5, 1), (-5, 2), OwnerSums(1, 0.0, None)),
    ],
)
def test_what_counters_grew_by(
    what: OwnerMetric, before: tuple[Any, Any], now: tuple[Any, Any], sums: OwnerSums
) -> None:
    found = grown(what, Reading(*before), Reading(*now))
    assert (found.n, found.squares) == (sums.n, sums.squares)
    assert found.total == pytest.approx(sums.total)


@pytest.mark.parametrize(
    ("what", "before", "now", "error"),
    [
        (RATE, (0, 0), (3, 2), UnsettledError),
        (RATE, (0, 0), (0.5, 2), ConfigurationError),
        (RATE, (0, 0), (0, 2.5), ConfigurationError),
        (MEAN, (0, 0), (30, 2), ConfigurationError),
        (MEAN, (0, 0), (5, 0), UnsettledError),
        (MEAN, (0, 0), (5, 1.5), ConfigurationError),
    ],
)
def test_numbers_that_are_no_counts(
    what: OwnerMetric, before: tuple[Any, Any], now: tuple[Any, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        grown(what, Reading(*before), Reading(*now))


def test_a_counter_that_was_started_anew() -> None:
    assert fell(RATE, Reading(5, 100), Reading(0, 3))
    assert fell(RATE, Reading(5, 100), Reading(4, 200))
    assert fell(MEAN, Reading(5, 100), Reading(4, 200))
    assert not fell(RATE, Reading(5, 100), Reading(5, 100))
    assert not fell(GAUGE, Reading(5), Reading(1))
    assert not fell(metric(kind="mean", range=[-1, 1]), Reading(5, 100), Reading(4, 200))


# -- looking


class Values:
    """A Prometheus of four counters, with switches for what may fail."""

    def __init__(self) -> None:
        self.numbers: dict[str, float | None] = {}
        self.error: Exception | None = None
        self.free = threading.Event()
        self.free.set()
        self.asked: list[tuple[str, float]] = []
        self.set(bad=(0, 0), all=(0, 0))

    def set(self, **counters: tuple[float | None, float | None]) -> None:
        for name, (canary, stable) in counters.items():
            self.numbers[f'{name}{{v="canary"}}'] = canary
            self.numbers[f'{name}{{v="stable"}}'] = stable

    def value(self, query: str, at: float) -> float | None:
        self.free.wait(30)
        self.asked.append((query, at))
        if self.error is not None:
            raise self.error
        return self.numbers[query]


Three = tuple[int, float, float] | tuple[()]


def both(canary: Three, stable: Three) -> dict[str, OwnerSums]:
    return {"canary": OwnerSums(*canary), "stable": OwnerSums(*stable)}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Looking:
    """A poller whose time passes when a test says so."""

    def __init__(self) -> None:
        self.values, self.clock = Values(), Clock()
        self.poller = Poller(self.values, self.clock)
        self.found: list[dict[str, OwnerSums]] = []
        self.troubles: dict[str, str] = {}

    def ask(self, what: OwnerMetric = RATE, stretch: str = "r1/3") -> None:
        self.poller.ask(Asking(stretch, (what,), TOLD_APART))

    def look(self, seconds: float = 1.0) -> list[dict[str, OwnerSums]]:
        """One look; what it found."""
        one = self.poller._metrics[0]
        due = one.due
        self.clock.now = max(self.clock.now + seconds, due)
        with self.poller._room:
            self.poller._room.notify()
        wait_for(lambda: one.due > due, 20)
        found, self.troubles = self.poller.take()
        return [{name: d.owner["bad"] for name, d in one.items()} for one in found]


@pytest.fixture
def looking() -> Iterator[Looking]:
    looking = Looking()
    yield looking
    looking.values.free.set()
    looking.poller.close()


def test_each_growth_counts_once_for_both_variants(looking: Looking) -> None:
    looking.values.set(bad=(5, 50), all=(100, 1000))
    looking.ask()
    assert looking.look() == []  # the first look knows no growth
    looking.values.set(bad=(7, 51), all=(120, 1200))
    assert looking.look() == [both((20, 2.0, 2.0), (200, 1.0, 1.0))]
    assert looking.look() == []  # nothing grew
    looking.values.set(all=(121, 1200))
    assert looking.look() == [both((1, 0.0, 0.0), ())]
    assert looking.troubles == {}
    moments = {at for _, at in looking.values.asked}
    assert len(moments) == 4  # all four queries of a look ask for one moment
    assert max(moments) == looking.clock.now - 5


def test_a_restart_leaves_the_stretch_out(looking: Looking) -> None:
    looking.values.set(bad=(5, 50), all=(100, 1000))
    looking.ask()
    looking.look()
    looking.values.set(bad=(0, 55), all=(10, 1100))
    assert looking.look() == []
    looking.values.set(bad=(1, 56), all=(20, 1200))
    assert looking.look() == [both((10, 1.0, 1.0), (100, 1.0, 1.0))]


def test_another_step_begins_anew(looking: Looking) -> None:
    looking.ask()
    looking.look()
    looking.values.set(bad=(5, 5), all=(10, 10))
    looking.ask(stretch="r1/4")
    assert looking.look() == []
    looking.values.set(bad=(5, 5), all=(11, 12))
    assert looking.look()[0]["canary"].n == 1


def test_counters_that_do_not_fit_wait_for_the_next_look(looking: Looking) -> None:
    looking.ask()
    looking.look()
    looking.values.set(bad=(3, 0), all=(2, 10))
    assert looking.look() == []
    assert looking.troubles == {}
    looking.values.set(bad=(3, 0), all=(5, 20))
    assert looking.look() == [both((5, 3.0, 3.0), (20, 0.0, 0.0))]
    looking.values.set(bad=(99, 0), all=(6, 30))
    assert [looking.look() for _ in range(3)] == [[], [], []]
    assert "exceed its trials" in looking.troubles["bad"]
    looking.values.set(bad=(99, 0), all=(506, 30))  # what did not fit counts for nothing
    assert looking.look() == [both((500, 0.0, 0.0), ())]
    assert looking.troubles == {}


def test_a_series_that_is_not_there_is_no_evidence(looking: Looking) -> None:
    looking.ask()
    looking.look()
    looking.values.set(bad=(None, 5), all=(10, 20))
    assert looking.look() == []
    assert looking.troubles == {}  # it may come yet
    assert looking.look() == []
    assert looking.troubles == {"bad": "there is no such series for canary."}
    looking.values.set(bad=(1, 5), all=(20, 40))
    assert looking.look() == [both((20, 1.0, 1.0), (40, 5.0, 5.0))]
    assert looking.troubles == {}


def test_away_odd_and_wrong_are_told(looking: Looking) -> None:
    looking.ask()
    looking.look()
    looking.values.error = UnreachableError("Prometheus does not answer: refused")
    looking.look()
    looking.look()
    assert looking.troubles == {"bad": "Prometheus does not answer: refused."}
    looking.values.error = RuntimeError("a bug")
    looking.look()
    assert looking.troubles == {"bad": "looking failed (RuntimeError)."}
    looking.values.error = None
    looking.values.set(all=(10, 10))
    assert looking.look()[0]["canary"].n == 10
    looking.values.error = ConfigurationError("Prometheus refuses the query: parse error")
    looking.look()  # told at once: it will not mend itself
    assert looking.troubles == {"bad": "Prometheus refuses the query: parse error."}


def test_a_look_that_never_ends_is_a_trouble_too(looking: Looking) -> None:
    looking.values.free.clear()
    looking.ask()
    begun = time.monotonic()
    looking.clock.now += 200
    with looking.poller._room:
        looking.poller._room.notify()
    assert "takes 195 s already" in looking.poller.take()[1]["bad"]
    looking.ask(stretch="r1/4")
    assert time.monotonic() - begun < 5  # nobody waits for it
    looking.values.free.set()


def test_without_an_address_that_is_the_trouble() -> None:
    poller = Poller(None)
    poller.ask(Asking("r1/3", (RATE,), TOLD_APART))
    assert "CHANCERY_PROMETHEUS_URL is not set" in poller.take()[1]["bad"]
    poller.ask(None)
    assert poller.take() == ([], {})


def test_a_gauge_is_one_observation_a_look(looking: Looking) -> None:
    looking.values.set(bad=(2.5, 5))
    looking.ask(GAUGE)
    assert looking.look() == [both((1, 0.25, 0.0625), (1, 0.5, 0.25))]


# -- in a controller


class Shop(World):
    """Counters that grow with time, and a controller whose Prometheus knows them."""

    def __init__(self, path: Path) -> None:
        self.values = Values()
        super().__init__(path)
        self.bad = 0.05
        self.growing = True

    def start(self, owner: str) -> Any:
        controller = super().start(owner)
        controller._poller = Poller(self.values, lambda: self.now / 1000)
        return controller

    def until_(self, done: Callable[[], bool], turns: int = 4000) -> None:
        for turn in range(turns):
            plan = self.pass_(0.25)
            if self.growing and weights(plan).get("canary"):
                events = int(turn * 2 * self.bad * 10)
                self.values.set(bad=(events, turn // 2), all=(turn * 20, turn * 20))
            poller = self.controller._poller
            with poller._room:
                poller._room.notify()
            late = [one for one in poller._metrics if one.due <= self.now / 1000]
            if late and self.values.free.is_set():
                wait_for(lambda late=late: all(o.due > self.now / 1000 for o in late), 20)
            if done():
                return
        raise AssertionError("it did not come")


def config(**changes: Any) -> str:
    source = {"source": 'promql:bad{v="$variant"}', "total": 'promql:all{v="$variant"}'}
    document = {
        "steps": [50, 100], "min_samples": 20, "min_seconds": 2, "max_seconds": 300,
        "analysis": {"latency": None, "metrics": [
            {"name": "bad", "kind": "rate", "every_seconds": 2, "tolerance": 0.01, **source}
        ]}, **changes,
    }  # fmt: skip
    return CanaryConfig.model_validate_json(json.dumps(document)).model_dump_json()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    shop.idle(1)
    yield shop
    shop.values.free.set()
    shop.controller._poller.close()


@pytest.mark.parametrize(("bad", "outcome"), [(0.025, "promoted"), (0.5, "rolled_back")])
def test_counters_decide(shop: Shop, bad: float, outcome: str) -> None:
    shop.bad = bad
    shop.begin(config())
    shop.until_(lambda: shop.store.outcomes(shop.record)[-1:] == [outcome])


def test_prometheus_away_holds_says_why_and_is_no_reason_to_go_on(shop: Shop) -> None:
    shop.values.error = UnreachableError("Prometheus does not answer: refused")
    shop.begin(config(max_seconds=60, on_timeout="advance"))

    def told() -> bool:
        state = shop.now_record.state
        return state is not None and any("refused" in n.text for n in shop.course.notices)

    shop.until_(told)
    began = shop.now
    shop.until_(lambda: shop.now - began > 100_000)
    assert shop.phase is Phase.CANARY
    rollout = shop.course.rollout
    assert rollout is not None
    assert rollout.step == 0
    assert "The metric 'bad' has no values: Prometheus does not answer" in rollout.obstacles[0]
    shop.values.error = None
    shop.until_(lambda: shop.store.outcomes(shop.record)[-1:] == ["promoted"])


def test_a_prometheus_that_hangs_holds_no_tick_up(shop: Shop) -> None:
    shop.values.free.clear()
    shop.begin(config())
    began, asked = time.monotonic(), shop.now
    shop.until_(lambda: shop.now - asked > 120_000)
    assert time.monotonic() - began < 60
    assert shop.phase is Phase.CANARY
    assert "takes" in str(shop.course.rollout.obstacles)  # type: ignore[union-attr]
