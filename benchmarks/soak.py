"""A deployment under steady load for half an hour: whether it grows, and whom it left unanswered.

Requests arrive at a fixed rate, whatever the servers do, on connections that are kept alive. Every
ten seconds the memory of each process is read: resident (RSS) and proportional (PSS, which counts
shared pages once). A straight line through the minutes after the warm-up, with its 95 % interval,
says by how much a process grows in half an hour; PSS is what is judged, because RSS counts a page
that another process began to share as its own.

With ``--story`` things happen meanwhile: a rollout that ends in a promotion, a gateway that is
killed, a rollout whose canary begins to fail and is rolled back, a model replica that is killed.
Every request is accounted for: answered with 2xx, with 4xx or 5xx, late (no answer in 30 s), or
*silence*: the connection ended after the request was sent and before its answer came.

What a kill may cost differs by what is killed. A model replica holds no client's connection: its
gateway asks another replica at once, or answers 503; silence is never allowed, and 5xx only for
what was on its way. A gateway holds its clients' TCP connections, and when it is killed the kernel
resets them: whoever waits on one hears nothing more from here. That silence can only be hidden by
whoever stands in front (HAProxy, a Kubernetes Service) or by a client that asks again; scoring
changes nothing, so asking again is safe. Which connections the gateway held is read the moment
before it is killed, and silence on any other connection counts as a failure.

Results go to ``benchmarks/results/soak.json`` (``soak-story.json``), with a plot beside them (PNG).
Takes ``--minutes`` and some two more.

    python benchmarks/soak.py --minutes 30
    python benchmarks/soak.py --minutes 30 --story
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparison import Aim
from deployed import Deployed, Process, Store, cluster, processes_of, wait_until
from load import Running, request_bytes
from machine import describe_machine, load_average
from memory import Sampler, growth
from models import Mood, moody_bodies
from soak_plot import plot
from surroundings import private_home, progress

RESULTS = Path(__file__).resolve().parent / "results"
ROUTE = "soak"
GROWTH_AIM = 0.02  # of what a process has, in half an hour
LATEST_S = 1200.0  # for which a story may go on after its time
AFTERMATH_S = 5.0  # in which a killed replica may cost 5xx
CANARY = {"steps": [20, 50, 100], "min_samples": 30, "analysis": {"latency": None}}


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        at_s: Seconds after the load began.
        what: In a few words.
        facts: More of it.
    """

    at_s: float
    what: str
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"at_s": round(self.at_s, 2), "what": self.what, **self.facts}


class Story:
    """What happens during the soak, one thing after the other.

    Args:
        store: Where versions are.
        deployed: What is under load.
        mood: Of the canary that turns bad.
        seconds: Of the whole soak.
    """

    def __init__(self, store: Store, deployed: Deployed, mood: Mood, seconds: float) -> None:
        self._store = store
        self._deployed = deployed
        self._mood = mood
        self._seconds = seconds
        self._begun = time.monotonic()
        self.events: list[Event] = []
        self.killed_connections: set[int] = set()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Wait for its end; what went wrong in it goes wrong here."""
        self._thread.join(LATEST_S)
        if self.failure is not None:
            raise self.failure

    @property
    def now_s(self) -> float:
        return time.monotonic() - self._begun

    def _run(self) -> None:
        acts: list[tuple[float, Callable[[], None]]] = [
            (0.15, self._promotion),
            (0.45, self._kill_gateway),
            (0.55, self._rollback),
            (0.80, self._kill_replica),
        ]
        try:
            for part, act in acts:
                while self.now_s < part * self._seconds:
                    time.sleep(0.2)
                act()
        except BaseException as error:  # noqa: BLE001 - handed to `join`
            self.failure = error

    def _note(self, what: str, **facts: Any) -> None:
        self.events.append(Event(self.now_s, what, facts))
        progress(f"  {self.now_s:6.1f} s: {what} {facts or ''}")

    def _rollout(self, version: int, step_s: float) -> None:
        config = {**CANARY, "min_seconds": step_s, "max_seconds": self._seconds}
        self._store.roll_out(f"models:/{ROUTE}/{version}", ROUTE, json.dumps(config))
        known = len(self._deployed.decisions())
        wait_until(lambda: len(self._deployed.decisions()) > known + 1, "the canary gets traffic")

    def _ended(self) -> str:
        wait_until(lambda: self._deployed.record.canary is None, "the rollout ends", self._seconds)
        return str(self._deployed.decisions()[-1]["outcome"])

    def _promotion(self) -> None:
        self._note("a good canary begins")
        self._rollout(2, max(5.0, 0.05 * self._seconds))
        self._note("rollout over", outcome=self._ended())

    def _rollback(self) -> None:
        self._note("another canary begins")
        self._rollout(3, self._seconds)
        time.sleep(max(2.0, 0.03 * self._seconds))
        self._mood.set(errors=0.2)
        self._note("a fifth of its requests fail")
        self._note("rollout over", outcome=self._ended())

    def _kill_gateway(self) -> None:
        victim = self._of_role("gateway")[0]
        held = victim.client_ports(self._deployed.port)
        victim.kill()
        self.killed_connections |= held
        self._note("a gateway is killed", connections=len(held))
        wait_until(lambda: len(self._of_role("gateway")) == 2, "another gateway is there")
        self._note("two gateways again")

    def _kill_replica(self) -> None:
        before = len(self._of_role("replica"))
        self._of_role("replica")[0].kill()
        self._note("a model replica is killed")
        wait_until(lambda: len(self._of_role("replica")) == before, "another replica is there")
        self._note("as many replicas again")

    def _of_role(self, role: str) -> list[Process]:
        return [one for one in self._deployed.processes() if one.role == role]


def judge(
    load: Mapping[str, Any], story: Story | None, memory: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Aim]]:
    """What became of every request, and whether that may be."""
    statuses = Counter({int(status): count for status, count in load["statuses"].items()})
    good = sum(count for status, count in statuses.items() if status < 300)
    held = story.killed_connections if story else set()
    losses = load.get("losses", [])
    excused = [loss for loss in losses if loss[1] in held]
    kills = [e.at_s for e in story.events if "replica is killed" in e.what] if story else []
    errors = [
        (second["second"], sum(n for what, n in second["counts"].items() if what[:1] in "45"))
        for second in load["timeline"]
    ]
    after_a_kill = sum(
        count for at, count in errors if any(kill - 2 <= at <= kill + AFTERMATH_S for kill in kills)
    )
    failed = sum(statuses.values()) - good
    accounts = {
        "asked": sum(statuses.values()) + load["lost"] + load["late"],
        "answered_2xx": good,
        "answered_otherwise": {str(s): n for s, n in sorted(statuses.items()) if s >= 300},
        "late": load["late"],
        "silence": load["lost"],
        "silence_on_connections_of_the_killed_gateway": len(excused),
        "5xx_within_seconds_of_the_killed_replica": after_a_kill,
    }
    aims = [
        Aim("silence that no killed gateway explains", 0, load["lost"] - len(excused)),
        Aim("late answers", 0, load["late"]),
        Aim("answers other than 2xx that no killed replica explains", 0, failed - after_a_kill),
    ]
    if story:
        outcomes = [e.facts["outcome"] for e in story.events if "outcome" in e.facts]
        aims.append(
            Aim("rollouts that ended otherwise", 0, outcomes != ["promoted", "rolled_back"])
        )
        aims.append(Aim("silence beyond one request a connection", len(held), len(excused)))
    for name, found in memory.items():
        if found.get("judged"):
            aims.append(Aim(f"growth in 30 min: {name}", GROWTH_AIM, found["pss_growth_30_min"]))
    return accounts, aims


def soak(minutes: float, rate: float, clients: int, *, story: bool) -> dict[str, Any]:
    """The whole of it; the result."""
    seconds = 60 * minutes
    with private_home() as home, cluster(home):
        store = Store(home)
        good, bad = Mood(home / "good.json"), Mood(home / "bad.json")
        for mood in (good, good, bad) if story else (good,):
            store.register(ROUTE, mood.log)
        bodies = moody_bodies()
        deployed = store.deploy(f"models:/{ROUTE}/1", request_bytes(bodies[0]), replicas=2)
        progress(f"{rate:g} requests/s for {minutes:g} minutes")
        load = Running(
            {
                "port": deployed.port, "bodies": [body.decode() for body in bodies],
                "clients": clients, "rate": rate, "seconds": seconds + LATEST_S, "timeline": True,
                "count": ["x-chancery-variant: canary", "x-chancery-retried: 1"],
            }
        )  # fmt: skip
        told = Story(store, deployed, bad, seconds) if story else None
        sampler = Sampler(lambda: processes_of(home))
        sampler.start()
        if told:
            told.start()
        time.sleep(seconds)
        if told:
            told.join()  # the load goes on until the story is told
        load.stop()
        found = load.result()
        sampler.stop()
        deployed.end()
    memory = growth(sampler.samples, warm_up_s=min(300.0, seconds / 4))
    accounts, aims = judge(found, told, memory)
    return {
        "minutes": minutes,
        "requests_per_s_asked": rate,
        "requests_per_s_answered": found["requests_per_s"],
        "connections": clients,
        "latency_ms": found["latency_ms"],
        "answered_by_canaries": found["counted"],
        "accounts": accounts,
        "met": all(aim.met for aim in aims),
        "aims": [aim.to_dict() for aim in aims],
        "events": [event.to_dict() for event in told.events] if told else [],
        "memory": memory,
        "memory_samples": sampler.to_dict(),
        "timeline": found["timeline"],
    }


def lines_of(result: Mapping[str, Any]) -> Sequence[str]:
    """The aims, for the terminal."""
    return [
        f"{'met   ' if aim['met'] else 'MISSED'} {aim['aim']}: {aim['measured']}"
        for aim in result["aims"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="Takes --minutes and some two more.",
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--story", action="store_true", help="rollouts and kills meanwhile")
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second")
    parser.add_argument("--clients", type=int, default=48, help="kept-alive connections")
    parser.add_argument("--output", type=Path, help="JSON; the plot lies beside it")
    options = parser.parse_args()
    name = "soak-story.json" if options.story else "soak.json"
    output: Path = options.output or RESULTS / name
    head = {
        "benchmark": "soak",
        "story": options.story,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": describe_machine(),
        "load_average_before": load_average(),
    }
    result = soak(options.minutes, options.rate, options.clients, story=options.story)
    output.parent.mkdir(parents=True, exist_ok=True)
    result = {**head, "load_average_after": load_average(), **result}
    output.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    plot(result, output.with_suffix(".png"))
    for line in lines_of(result):
        progress(f"  {line}")
    progress(f"{output}, {output.with_suffix('.png')}")


if __name__ == "__main__":
    main()
