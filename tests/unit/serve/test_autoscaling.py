"""How many replicas there should be (AC-15)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from governance.deployment_resources import Scale
from serve.autoscaling import Demand, Scaled, advance
from serve.demand import Demands
from serve.plan import Load, Report
from serve.schedule import Bounds

BEGIN = 1_000_000


@dataclass
class Variant:
    """One variant over time; a tick each quarter of a second."""

    scale: Scale
    now: int = BEGIN
    scaled: Scaled | None = None
    starts_in_ms: int = 5_000
    seen: list[int] = field(default_factory=list)
    running: int = 0

    def pass_(
        self, seconds: float, demand: Demand, bounds: Bounds | None = None, *, awake: bool = False
    ) -> int:
        """The replicas there are to be afterwards."""
        for _ in range(int(seconds * 4)):
            self.now += 250
            self.scaled = advance(
                self.scale,
                bounds or Bounds(self.scale.least, self.scale.most),
                self.scaled,
                demand,
                running=self.running,
                now_ms=self.now,
                awake=awake,
            )
            self.seen.append(self.scaled.replicas)
            if self.now - self.scaled.changed_ms >= self.starts_in_ms:
                self.running = self.scaled.replicas
            self.running = min(self.running, self.scaled.replicas)
        assert self.scaled is not None
        return self.scaled.replicas


RPS = Scale(1, 8, target_rps=50.0, quiet_s=60)
QUIET = Demand()


def test_more_demand_brings_replicas_at_once() -> None:
    variant = Variant(RPS)
    assert variant.pass_(10, Demand(rps=20.0)) == 1
    assert variant.pass_(0.25, Demand(rps=210.0)) == 5
    assert variant.scaled is not None
    assert variant.scaled.reason == "210 requests/s at 50 for each"


def test_a_tenth_more_is_no_reason() -> None:
    variant = Variant(RPS)
    assert variant.pass_(10, Demand(rps=55.0)) == 1
    assert variant.pass_(10, Demand(rps=56.0)) == 2


def test_what_starts_is_waited_for() -> None:
    variant = Variant(Scale(1, 100, target_in_flight=4.0))
    variant.pass_(10, Demand(in_flight=2.0))
    assert variant.pass_(1, Demand(in_flight=400.0)) == 5, "four more at first"
    assert variant.pass_(3, Demand(in_flight=400.0)) == 5, "they start"
    assert variant.pass_(2, Demand(in_flight=400.0)) == 10, "the double, once they answer"
    variant.starts_in_ms = 10**9
    assert variant.pass_(25, Demand(in_flight=400.0)) == 10
    assert variant.pass_(10, Demand(in_flight=400.0)) == 20, "they had their time"


def test_fewer_come_only_after_the_quiet_time_and_only_as_few_as_would_have_done() -> None:
    variant = Variant(RPS)
    variant.pass_(1, QUIET)
    assert variant.pass_(20, Demand(rps=400.0)) == 8
    variant.pass_(30, Demand(rps=40.0))
    variant.pass_(5, Demand(rps=140.0))
    assert variant.pass_(20, Demand(rps=40.0)) == 8
    assert variant.pass_(10, Demand(rps=40.0)) == 3, "140 requests/s were asked meanwhile"
    assert variant.pass_(50, Demand(rps=40.0)) == 3
    assert variant.pass_(10, Demand(rps=40.0)) == 1


def test_a_load_at_the_edge_changes_nothing() -> None:
    variant = Variant(Scale(1, 8, target_rps=50.0, quiet_s=5))
    variant.pass_(20, Demand(rps=160.0))
    variant.seen.clear()
    for second in range(200):
        variant.pass_(1, Demand(rps=150.0 + (second % 20)))
    assert set(variant.seen) == {4}


def test_bounds_hold_whatever_is_asked() -> None:
    variant = Variant(RPS)
    assert variant.pass_(60, Demand(rps=9_999.0)) == 8
    assert variant.pass_(0.25, Demand(rps=9_999.0), Bounds(1, 3, "by night")) == 3
    assert variant.pass_(0.25, QUIET, Bounds(6, 8, "by day")) == 6
    assert variant.scaled is not None
    assert variant.scaled.reason == "at least 6 (by day)"


def test_the_last_replica_ends_after_the_idle_time() -> None:
    variant = Variant(Scale(0, 4, idle_s=300, quiet_s=30))
    assert variant.pass_(60, Demand(in_flight=30.0)) == 4
    assert variant.pass_(200, QUIET) == 1
    assert variant.pass_(80, QUIET) == 1
    assert variant.pass_(30, QUIET) == 0
    assert variant.pass_(3600, QUIET) == 0
    assert variant.seen.count(0) > 3600


def test_a_request_that_waits_wakes_it_at_once() -> None:
    variant = Variant(Scale(0, 4, idle_s=60))
    variant.pass_(300, QUIET)
    assert variant.pass_(0.25, Demand(held=1)) == 1
    variant.pass_(300, QUIET)
    assert variant.pass_(0.25, Demand(held=100)) == 4, "as many as wait for one"


def test_it_does_not_sleep_while_it_must_be_awake() -> None:
    variant = Variant(Scale(0, 4, idle_s=60))
    variant.pass_(300, QUIET)
    assert variant.pass_(1, QUIET, awake=True) == 1
    assert variant.pass_(300, QUIET, awake=True) == 1


def test_without_reports_nothing_ends_and_nothing_wakes() -> None:
    unknown = Demand(known=False)
    variant = Variant(Scale(0, 8, target_rps=50.0, idle_s=60, quiet_s=30))
    variant.pass_(20, Demand(rps=200.0))
    assert variant.pass_(3600, unknown) == 4
    assert variant.pass_(20, QUIET) == 4, "the quiet time begins anew"
    assert variant.pass_(200, QUIET) == 0
    assert variant.pass_(3600, unknown) == 0
    assert variant.pass_(1, unknown, Bounds(2, 8, "by day")) == 2


def test_whoever_takes_over_goes_on() -> None:
    variant = Variant(Scale(0, 4, idle_s=60, quiet_s=30))
    variant.pass_(30, Demand(in_flight=30.0))
    for _ in range(40):
        assert variant.scaled is not None
        variant.scaled = Scaled.from_dict(json.loads(json.dumps(variant.scaled.to_dict())))
        variant.pass_(3, QUIET)
    assert variant.scaled is not None
    assert variant.scaled.replicas == 0


def test_what_runs_already_is_where_one_begins() -> None:
    variant = Variant(RPS, running=3)
    assert variant.pass_(0.25, QUIET) == 3


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e6), st.floats(0, 1e6), st.integers(0, 500), st.booleans(), st.booleans(),
            st.integers(0, 5), st.integers(0, 9),
        ),
        max_size=60,
    ),
    st.integers(0, 3),
)  # fmt: skip
def test_it_never_leaves_the_bounds(
    moments: list[tuple[float, float, int, bool, bool, int, int]], least: int
) -> None:
    scale = Scale(least, 8, target_rps=50.0, target_in_flight=4.0, idle_s=5, quiet_s=5)
    scaled: Scaled | None = None
    now = BEGIN
    for rps, in_flight, held, known, awake, low, more in moments:
        now += 1_000
        bounds = Bounds(low, low + more)
        demand = Demand(rps, in_flight, held, known)
        scaled = advance(scale, bounds, scaled, demand, running=0, now_ms=now, awake=awake)
        floor = 1 if awake or held else 0
        assert max(low, floor) <= scaled.replicas <= max(bounds.most, 1)


class TestDemand:
    """What gateways report, as one number."""

    def report(self, source: str, sequence: int, asked: int, flying: int = 0, held: int = 0):  # type: ignore[no-untyped-def]
        return Report(source, sequence, load={"app": Load(asked, flying, held)})

    def test_rates_of_all_gateways_add_up(self) -> None:
        demands = Demands()
        for tick in range(30):
            now = tick * 250
            demands.hear(self.report("a", tick, tick * 25, 4), now)
            demands.hear(self.report("b", tick, 1_000 + tick * 5, 2), now)
        found = demands.of("app", now)
        assert found == Demand(rps=120.0, in_flight=6.0)
        assert demands.of("other", now) == Demand()

    def test_a_report_that_comes_twice_or_never_changes_nothing(self) -> None:
        demands = Demands()
        for tick in (0, 1, 1, 2, 5, 6, 6, 7, 8, 9, 10, 12):
            demands.hear(self.report("a", tick, tick * 25), tick * 250)
        assert demands.of("app", 12 * 250).rps == 100.0

    def test_a_gateway_that_is_silent_does_not_count(self) -> None:
        demands = Demands()
        for tick in range(8):
            demands.hear(self.report("a", tick, tick * 25, 3), tick * 250)
        assert demands.of("app", 7 * 250 + 2_000).in_flight == 3.0
        assert demands.of("app", 7 * 250 + 2_001) == Demand(known=False)

    def test_held_requests_are_those_of_the_latest_report(self) -> None:
        demands = Demands()
        demands.hear(self.report("a", 1, 5, held=5), 0)
        assert demands.of("app", 0).held == 5
        demands.hear(self.report("a", 2, 5), 250)
        assert demands.of("app", 250).held == 0

    def test_a_gateway_of_an_earlier_release_tells_no_load(self) -> None:
        demands = Demands()
        demands.hear(Report.from_dict(Report("a", 1, lanes={"stable": 1}).to_dict()), 0)
        assert demands.of("app", 0) == Demand()
