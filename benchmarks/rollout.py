"""How soon a bad version is rolled back, and how seldom a good one: simulated.

The same simulated traffic goes past four rules at once:

- *ours*: ``serve.rollout.advance`` with the default analysis, looking after every report;
- *fixed window*, as Argo Rollouts' analysis is commonly set up: every 60 s, more than 5 % errors,
  or a p95 more than 1.15 times stable's, in that window is a failure; one failure rolls back;
- *failure counter*, as Flagger's: every 60 s, less than 99 % successes, or a p99 more than 1.25
  times stable's, in that window is a failure; five failures roll back;
- *z-test each second*: two proportions (errors) and two means (logarithm of the latency), each at
  the same level α, on everything so far.

Regressions: the canary has a tenth of 100 requests/s from the start. Error rates are beside 1 % at
stable; latencies are log-normal (median 20 ms, sigma 0.4), and the canary's are longer by a factor.
"served" is the number of requests the canary answered until the rollback. The information bound is
what no test of level α can beat on average: ln(1/α)/KL, with KL between the canary's and stable's
distributions (stable's known exactly); the bound of two streams counts that stable, too, is only
sampled, in the same proportion; for latency, the bound beyond tolerance takes as the null a canary
that is slower by the tolerated 10 %.

Healthy rollouts: 5, 25, 50 and 100 % of the traffic for 30 s each, looked at after every report
(one a second), both versions alike. Ours has no tolerance here, which is the hardest case. How many
are rolled back must not exceed α.

With ``--live``, regressions are also rolled back on a real Ray cluster (``benchmarks/live.py``).

Results go to ``benchmarks/results/rollout.json``; some four minutes, with ``--live`` some 25 more
(a canary with 2 % errors may take five minutes a round), with ``--quick`` a tenth and a quarter.

    python benchmarks/rollout.py --live
    python benchmarks/rollout.py --quick
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, mean, median
from typing import TYPE_CHECKING, Any

import numpy as np
from machine import describe_machine, load_average

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from serve.config import Analysis, CanaryConfig, LatencyAnalysis, LatencyLimit  # noqa: E402
from serve.delta import SUBDIVISIONS, Delta, ErrorClass, lower_edge  # noqa: E402
from serve.records import Observation, Phase, Signal  # noqa: E402
from serve.rollout import RolloutState, advance  # noqa: E402

if TYPE_CHECKING:
    from live import LiveCase

RESULTS = Path(__file__).resolve().parent / "results" / "rollout.json"
ALPHA = 0.01
RATE = 100.0  # requests/s of both versions together
SHARE = 0.1  # of the canary, in the regressions
BASE_ERRORS = 0.01
MEDIAN_MS, SIGMA = 20.0, 0.4
TOLERATED = 1.1  # by CanaryConfig's analysis of the latency as a whole
WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Regression:
    """How the canary is worse, and the traffic."""

    name: str
    errors: float = BASE_ERRORS
    slower: float = 1.0
    rollouts: int = 100
    longest_s: float = 900.0
    base_errors: float = BASE_ERRORS
    rate: float = RATE
    share: float = SHARE


REGRESSIONS = (
    Regression("errors 100 %", errors=1.0),
    Regression("errors 10 %", errors=0.1),
    Regression("errors 2 %", errors=0.02, rollouts=60),
    Regression("latency +20 %", slower=1.2, rollouts=60),
    Regression("latency +50 %", slower=1.5),
)


@dataclass(frozen=True, slots=True)
class Side:
    """What one version did between two reports: requests, errors, latency counts by bucket."""

    n: int
    errors: int
    buckets: np.ndarray
    counts: np.ndarray

    def delta(self) -> Delta:
        return Delta(
            self.n,
            {ErrorClass.RAISED: self.errors} if self.errors else {},
            dict(zip(self.buckets.tolist(), self.counts.tolist(), strict=True)),
        )


def draw(random: np.random.Generator, n: int, errors: float, slower: float) -> Side:
    """``n`` requests."""
    latencies = random.lognormal(math.log(MEDIAN_MS * slower), SIGMA, n)
    buckets = np.floor(SUBDIVISIONS * np.log2(latencies / 1e-3)).astype(int)
    found, counts = np.unique(buckets, return_counts=True)
    return Side(n, int(random.binomial(n, errors)), found, counts)


class Ours:
    """The state machine, driven through its public function."""

    def __init__(self, config: CanaryConfig) -> None:
        self.state = RolloutState.start("simulated", config)
        self.number = 0
        for signal in (Signal.START, Signal.VERIFIED):
            self._advance(0.0, {}, frozenset({signal}))

    @property
    def share(self) -> float:
        return self.state.percent / 100

    def look(self, at_s: float, canary: Side, stable: Side) -> bool:
        """True when it rolls back now."""
        self._advance(at_s, {"canary": canary.delta(), "stable": stable.delta()}, frozenset())
        return self.state.phase is Phase.ROLLED_BACK

    def _advance(self, at_s: float, deltas: dict[str, Delta], signals: frozenset[Signal]) -> None:
        self.number += 1
        observation = Observation("simulated", self.number, deltas, signals)
        self.state, _, _ = advance(self.state, observation, round(1000 * at_s))


class Windows:
    """A rule that looks at windows of ``WINDOW_S`` and rolls back at the n-th failure."""

    def __init__(self, most_errors: float, quantile: float, ratio: float, failures: int) -> None:
        self.rule = (most_errors, quantile, ratio)
        self.left = failures
        self.ends = WINDOW_S
        self.sides: list[tuple[Side, Side]] = []

    def look(self, at_s: float, canary: Side, stable: Side) -> bool:
        self.sides.append((canary, stable))
        if at_s + 1e-9 < self.ends:
            return False
        most_errors, quantile, ratio = self.rule
        seen = [c for c, _ in self.sides]
        n = sum(side.n for side in seen)
        failed = sum(side.errors for side in seen) > most_errors * n
        if not failed and n:
            here = _quantile(seen, quantile)
            failed = here > ratio * _quantile([s for _, s in self.sides], quantile)
        self.left -= failed
        self.ends, self.sides = self.ends + WINDOW_S, []
        return self.left <= 0


def _quantile(sides: list[Side], quantile: float) -> float:
    buckets = np.concatenate([side.buckets for side in sides])
    counts = np.concatenate([side.counts for side in sides])
    if not counts.sum():
        return 0.0
    order = np.argsort(buckets)
    past = np.cumsum(counts[order])
    return lower_edge(int(buckets[order][np.searchsorted(past, quantile * past[-1])]))


class EverySecond:
    """Two z-tests a second, each one-sided at level α."""

    LIMIT = NormalDist().inv_cdf(1 - ALPHA)

    def __init__(self) -> None:
        self.sums = np.zeros((2, 4))  # requests, errors, sum and squares of log latencies
        self.next_s = 1.0

    def look(self, at_s: float, canary: Side, stable: Side) -> bool:
        for row, side in enumerate((canary, stable)):
            logs = (side.buckets + 0.5) * math.log(2) / SUBDIVISIONS
            self.sums[row] += (
                side.n,
                side.errors,
                (logs * side.counts).sum(),
                (logs * logs * side.counts).sum(),
            )
        if at_s + 1e-9 < self.next_s:
            return False
        self.next_s += 1
        (nc, bc, lc, qc), (ns, bs, ls, qs) = self.sums
        if nc < 2 or ns < 2:
            return False
        pooled = (bc + bs) / (nc + ns)
        spread = math.sqrt(pooled * (1 - pooled) * (1 / nc + 1 / ns))
        if spread and (bc / nc - bs / ns) / spread > self.LIMIT:
            return True
        spread = math.sqrt((qc / nc - (lc / nc) ** 2) / nc + (qs / ns - (ls / ns) ** 2) / ns)
        return bool(spread and (lc / nc - ls / ns) / spread > self.LIMIT)


def rivals() -> dict[str, Windows | EverySecond]:
    """The other rules, fresh."""
    return {
        "fixed_window": Windows(0.05, 0.95, 1.15, 1),
        "failure_counter": Windows(0.01, 0.99, 1.25, 5),
        "z_test_each_second": EverySecond(),
    }


def detect(regression: Regression, seed: int) -> dict[str, tuple[int, float] | None]:
    """Canary requests served and seconds until each rule rolls back; None: not in time."""
    random = np.random.default_rng(seed)
    config = CanaryConfig(steps=(100 * regression.share,), min_seconds=86400.0, max_seconds=86400.0)
    rules: dict[str, Any] = {"ours": Ours(config), **rivals()}
    found: dict[str, tuple[int, float] | None] = dict.fromkeys(rules)
    served, look = 0, 0.25
    for tick in range(1, round(regression.longest_s / look) + 1):
        n = int(random.poisson(regression.rate * look))
        to_canary = int(random.binomial(n, regression.share))
        canary = draw(random, to_canary, regression.errors, regression.slower)
        stable = draw(random, n - to_canary, regression.base_errors, 1.0)
        served += to_canary
        for name in [name for name in rules if found[name] is None]:
            if rules[name].look(tick * look, canary, stable):
                found[name] = (served, tick * look)
                del rules[name]
        if not rules:
            break
    return found


def healthy(seed: int, step_s: float, look: float) -> dict[str, bool]:
    """Which rules roll back a canary that is like stable."""
    random = np.random.default_rng(seed)
    exact = LatencyLimit(ratio=1.0)
    latency = LatencyAnalysis(overall=exact, p95=exact, p99=exact)
    ours = Ours(
        CanaryConfig(
            min_seconds=step_s,
            max_seconds=step_s * 20,
            alpha=ALPHA,
            analysis=Analysis(latency=latency),
        )
    )
    rules = rivals()
    found = {"ours": False, **dict.fromkeys(rules, False)}
    tick = 0
    while not ours.state.phase.terminal:
        tick += 1
        n = int(random.poisson(RATE * look))
        to_canary = int(random.binomial(n, ours.share))
        canary = draw(random, to_canary, BASE_ERRORS, 1.0)
        stable = draw(random, n - to_canary, BASE_ERRORS, 1.0)
        for name in [name for name in rules if not found[name]]:
            found[name] = rules[name].look(tick * look, canary, stable)
        ours.look(tick * look, canary, stable)
    found["ours"] = ours.state.phase is not Phase.PROMOTED
    return found


def wilson(count: int, n: int, level: float = 0.95) -> list[float]:
    """Wilson's interval of a proportion."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre = (count + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(count * (n - count) / n + z * z / 4)
    return [round(max(centre - half, 0.0), 5), round(min(centre + half, 1.0), 5)]


def divergence(p: float, q: float) -> float:
    """KL of two events' rates."""
    parts = ((p, q), (1 - p, 1 - q))
    return sum(a * math.log(a / b) for a, b in parts if a)


def bounds(regression: Regression) -> dict[str, float]:
    """Fewest canary requests on average, by assumption."""
    needed = -math.log(ALPHA)
    if regression.slower > 1:
        beyond = math.log(regression.slower / TOLERATED)
        return {
            "stable_known": round(needed * 2 * SIGMA**2 / math.log(regression.slower) ** 2, 1),
            "beyond_tolerance": round(needed * 2 * SIGMA**2 / beyond**2, 1),
        }
    pooled = SHARE * regression.errors + (1 - SHARE) * BASE_ERRORS
    both = divergence(regression.errors, pooled)
    both += (1 - SHARE) / SHARE * divergence(BASE_ERRORS, pooled)
    return {
        "stable_known": round(max(needed / divergence(regression.errors, BASE_ERRORS), 1.0), 1),
        "two_streams": round(max(needed / both, 1.0), 1),
    }


def measure_regression(regression: Regression, rollouts: int) -> dict[str, Any]:
    """All rules on one regression, with the bounds."""
    result: dict[str, Any] = {"rollouts": rollouts, "information_bound": bounds(regression)}
    result |= measure_rules(regression, rollouts)
    for name, bound in result["information_bound"].items():
        result[f"ours_mean_over_{name}"] = round(result["ours"]["served_mean"] / bound, 2)
    return result


def simulate_like(case: LiveCase) -> dict[str, Any]:
    """All rules on traffic like that of a live case."""
    like = Regression(
        case.name,
        errors=case.errors,
        slower=case.slower,
        base_errors=0.0,
        rate=case.rate,
        share=case.share,
    )
    return measure_rules(like, 20)


def measure_rules(regression: Regression, rollouts: int) -> dict[str, Any]:
    """All rules on one regression."""
    runs = [detect(regression, seed) for seed in range(rollouts)]
    result: dict[str, Any] = {}
    for name in runs[0]:
        found = [run[name] for run in runs]
        hits = [hit for hit in found if hit is not None]
        result[name] = {"rolled_back": f"{len(hits)} of {rollouts}"}
        if hits:
            served = sorted(hit[0] for hit in hits)
            result[name] |= {
                "served_median": median(served),
                "served_mean": round(mean(served), 1),
                "served_p90": served[int(0.9 * (len(served) - 1))],
                "seconds_median": median(hit[1] for hit in hits),
            }
    return result


def measure_healthy(rollouts: int) -> dict[str, Any]:
    """False rollbacks of all rules."""
    step_s, look = 30.0, 1.0
    runs = [healthy(10_000 + seed, step_s, look) for seed in range(rollouts)]
    result: dict[str, Any] = {
        "rollouts": rollouts,
        "seconds_a_step": step_s,
        "seconds_between_looks": look,
        "tolerance_of_ours": "none",
        "counted_as_false": "rolled back for whatever reason, time running out included",
    }
    for name in runs[0]:
        count = sum(run[name] for run in runs)
        result[name] = {
            "false_rollbacks": count,
            "rate": round(count / rollouts, 5),
            "wilson_95": wilson(count, rollouts),
        }
    return result


def progress(steps: list[str]) -> Iterator[str]:
    """Says what comes next, and when the last was done."""
    for step in steps:
        started = time.perf_counter()
        yield step
        print(f"{step}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="Takes some four minutes; with --live some 25 more.",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the rollouts")
    parser.add_argument("--live", action="store_true", help="on a real Ray cluster too")
    parser.add_argument("--live-rounds", type=int, help="of each regression; default 3")
    parser.add_argument("--live-seconds", type=float, help="of a round, at most; default 420")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    part = 10 if options.quick else 1
    by_name = {regression.name: regression for regression in REGRESSIONS}
    simulated: dict[str, Any] = {}
    for step in progress([*by_name, "healthy"]):
        if step == "healthy":
            simulated[step] = measure_healthy(1000 // part)
        else:
            regression = by_name[step]
            simulated[step] = measure_regression(regression, max(regression.rollouts // part, 5))
    result = {
        "machine": describe_machine(),
        "load_average": load_average(),
        "settings": {
            "alpha": ALPHA,
            "requests_per_second": RATE,
            "canary_share": SHARE,
            "stable_error_rate": BASE_ERRORS,
            "latency": f"log-normal, median {MEDIAN_MS:g} ms, sigma {SIGMA:g}",
            "tests": "errors, latency as a whole, its p95 and p99 (CanaryConfig's defaults)",
        },
        "simulated": simulated,
    }
    if options.live:
        from live import measure_live

        rounds = options.live_rounds or (1 if options.quick else 3)
        longest_s = options.live_seconds or (60.0 if options.quick else 420.0)
        result["live"] = measure_live(rounds, longest_s, simulate_like)
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(simulated, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
