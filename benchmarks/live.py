"""Rollbacks of bad versions on the real Ray: how many requests they answer until then.

A deployment answers steady traffic; a canary begins whose requests fail, or take longer, at a given
rate, from its first request on. Counted by the clients: requests that the canary was asked
(answered by it, or by stable again after it), and answers that were no answer. Which requests fail
and how long each takes follows from the request, and both versions get the same mix.

Errors: the canary has a tenth of 100 requests/s. Latencies: a model answers one batch at a time, so
a version with more traffic is slower by itself; for latencies both versions get half of 20
requests/s, and a request takes 20 ms in the median (log-normal, sigma 0.4).

Beside each stand the rules of ``benchmarks/rollout.py`` on simulated traffic of the same rate,
share and error rates, with a log-normal latency of the same sigma.

Example::

    measure_live(rounds=3, longest_s=300, simulate=detect)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from deployed import Deployed, Store, cluster, wait_until
from load import Running, request_bytes
from models import Mood, moody_bodies
from surroundings import private_home, progress

__all__ = ["LIVE", "LiveCase", "measure_live"]

_CANARY, _AGAIN = "x-chancery-variant: canary", "x-chancery-retried: 1"


@dataclass(frozen=True, slots=True)
class LiveCase:
    """How the canary is worse, and what traffic there is.

    Attributes:
        name: As in the simulation.
        errors: Rate of requests that fail.
        slower: Factor of the time a request takes.
        rate: Requests a second.
        share: The canary's.
        median_ms: Time a request takes; 0: what serving takes.
    """

    name: str
    errors: float = 0.0
    slower: float = 1.0
    rate: float = 100.0
    share: float = 0.1
    median_ms: float = 0.0


LIVE = (
    LiveCase("errors 100 %", errors=1.0),
    LiveCase("errors 10 %", errors=0.1),
    LiveCase("errors 2 %", errors=0.02),
    LiveCase("latency +20 %", slower=1.2, rate=20.0, share=0.5, median_ms=20.0),
    LiveCase("latency +50 %", slower=1.5, rate=20.0, share=0.5, median_ms=20.0),
)


def measure_live(
    rounds: int,
    longest_s: float,
    simulate: Callable[[LiveCase], Mapping[str, Any]],
) -> dict[str, Any]:
    """All cases; each ``rounds`` times, and for ``longest_s`` a round at most.

    Args:
        rounds: Of each case.
        longest_s: After which a round ends without a rollback.
        simulate: What the rules do on simulated traffic like a case's.
    """
    result: dict[str, Any] = {}
    bodies = [body.decode() for body in moody_bodies()]
    with private_home() as home, cluster(home):
        store = Store(home)
        for median_ms in sorted({case.median_ms for case in LIVE}):
            route = f"moody-{median_ms:g}ms"
            moods = [Mood(home / f"{name}-{route}.json", median_ms) for name in ("good", "bad")]
            stable, canary = (store.register(route, mood.log) for mood in moods)
            request = request_bytes(bodies[0].encode())
            deployed = store.deploy(f"models:/{route}/{stable}", request)
            for case in (case for case in LIVE if case.median_ms == median_ms):
                found = []
                for turn in range(rounds):
                    moods[1].set(errors=case.errors, slower=case.slower)
                    found.append(_round(case, store, deployed, f"models:/{route}/{canary}", bodies,
                                        longest_s))  # fmt: skip
                    told = found[-1]
                    progress(
                        f"{case.name}, round {turn + 1} of {rounds}: {told['outcome']} after "
                        f"{told['served']} requests and {told['seconds']} s"
                    )
                result[case.name] = {
                    "requests_per_s": case.rate,
                    "canary_share": case.share,
                    "ours_live": _summary(found),
                    "simulated_at_the_same_traffic": dict(simulate(case)),
                }
            deployed.end()
    return result


def _round(
    case: LiveCase,
    store: Store,
    deployed: Deployed,
    canary: str,
    bodies: list[str],
    longest_s: float,
) -> dict[str, Any]:
    """One canary, from its first request to its end."""
    known = len(deployed.decisions())
    load = Running(
        {
            "port": deployed.port, "bodies": bodies, "clients": 32, "rate": case.rate,
            "seconds": longest_s + 600, "count": [_CANARY, _AGAIN], "timeline": True,
        }
    )  # fmt: skip
    config = {
        "steps": [100 * case.share],
        "min_seconds": 86400.0,
        "max_seconds": 86400.0,
    }
    store.roll_out(canary, deployed.record.route, json.dumps(config))
    begun: float | None = None

    def over() -> bool:
        nonlocal begun
        fresh = [decision["outcome"] for decision in deployed.decisions()[known:]]
        if begun is None and "verified" in fresh:
            begun = time.monotonic()
        if begun is not None and time.monotonic() - begun > longest_s:
            store.abort(deployed.record.route, "it took too long")
            begun = float("inf")
        return deployed.record.canary is None

    wait_until(over, f"{case.name}: the rollout ends", longest_s + 500)
    time.sleep(1.0)  # the gateways' last plan
    load.stop()
    found = load.result()
    decisions = deployed.decisions()[known:]
    at = {decision["outcome"]: int(decision["atMs"]) for decision in decisions}
    outcome = decisions[-1]["outcome"]
    failed = sum(count for status, count in found["statuses"].items() if status != "200")
    return {
        "outcome": outcome,
        "explanation": decisions[-1]["explanation"],
        "served": sum(found["counted"].values()),
        "seconds": round((at[outcome] - at["verified"]) / 1e3, 2),
        "answered_by_stable_again": found["counted"][_AGAIN],
        "errors_of_users": failed + found["lost"] + found["late"],
        "requests": found["answered"],
    }


def _summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    hits = [one for one in rounds if one["outcome"] == "rolled_back"]
    result: dict[str, Any] = {
        "rolled_back": f"{len(hits)} of {len(rounds)}",
        "errors_of_users": sum(one["errors_of_users"] for one in rounds),
        "requests": sum(one["requests"] for one in rounds),
        "rounds": rounds,
    }
    if hits:
        result["served_median"] = median(one["served"] for one in hits)
        result["seconds_median"] = median(one["seconds"] for one in hits)
    return result
