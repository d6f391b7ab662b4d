"""What governance costs: governed MLflow against plain MLflow, alternately in one run.

Writes and reads on SQLite, on a PostgreSQL of its own, and through REST (``mlflow server`` with one
worker each); the wait for the covering checkpoint is reported apart. Then eight clients at once on
PostgreSQL. Results go to ``benchmarks/results/overhead.json``.

    python benchmarks/overhead.py            # some ten minutes
    python benchmarks/overhead.py --quick    # one minute, for a first look
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from comparison import Aim, Interval, Samples, interleave, percentile, ratio
from covering import (
    TIMED_APP,
    covered_within,
    read_intervals,
    record_covers,
    timed_app_environment,
)
from machine import describe_machine, load_average
from surroundings import create_database, mlflow_server, postgres, private_home, progress

RESULTS = Path(__file__).resolve().parent / "results" / "overhead.json"
VARIANTS = ("plain", "governed", "control")
WRITE_AIM, REST_WRITE_AIM, READ_AIM = 1.15, 1.08, 1.02
WAIT_AIM_MS, CLIENTS_AIM = 20.0, 0.85
GATED = "set_protected_alias"
"""Reported without an aim: it does what plain MLflow does not (evidence, signatures, clearance)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where acts are compared: a plain, a governed and a second plain MLflow.

    Attributes:
        name: ``sqlite``, ``postgresql``, ``rest-sqlite``, ``rest-postgresql``.
        uris: Per variant.
        folder: For artifacts.
        covers: Intervals of covering so far, in this process or the server.
        home: State directory of the governed database.
    """

    name: str
    uris: dict[str, str]
    folder: Path
    covers: Callable[[], list[Interval]]
    home: Path

    @property
    def rest(self) -> bool:
        return self.name.startswith("rest")


@dataclass
class Report:
    """Results so far."""

    places: dict[str, Any] = field(default_factory=dict)
    clients: dict[str, Any] = field(default_factory=dict)
    aims: list[Aim] = field(default_factory=list)

    def aim(self, name: str, limit: float, measured: float, *, at_least: bool = False) -> None:
        found = Aim(name, limit, measured, at_least)
        self.aims.append(found)
        progress(f"  {found}")


def measure(place: Place, report: Report, rounds: int, only: set[str]) -> None:
    """Compare every operation at one place."""
    from operations import READS, WRITES, Target

    progress(f"{place.name}: preparing three stores")
    targets = {}
    for name, uri in place.uris.items():
        governed = name == "governed"
        folder = place.folder / name
        targets[name] = Target(uri, folder, governed, place.home if governed else None)
        targets[name].furnish()
    loads = [load_average()]
    found: dict[str, Any] = {}
    waits: list[float] = []
    for operation, act in {**WRITES, **READS}.items():
        if only and operation not in only:
            continue

        def prepare(variant: str, turn: int, act: Any = act) -> Callable[[], object]:
            target = targets[variant]
            target.enter()
            prepared: Callable[[], object] = act(target, turn)
            return prepared

        if operation == GATED:
            for target in targets.values():
                target.enter()
                target.registry.set_registered_model_alias("bench", "staging", "1")
        reads = operation in READS
        # Reads have the narrowest aim, so they get the most rounds.
        samples = interleave(VARIANTS, prepare, rounds * 3 if reads else rounds)
        found[operation], waited = _summary(samples, place.covers(), cpu=not place.rest)
        waits += waited
        if operation != GATED:
            limit = READ_AIM if reads else REST_WRITE_AIM if place.rest else WRITE_AIM
            report.aim(f"{place.name} {operation}", limit, found[operation]["ratio"])
    loads.append(load_average())
    report.places[place.name] = {
        "operations": found,
        "wait_for_checkpoint": _wait_summary(waits),
        "load_average": {"before": loads[0], "after": loads[1]},
    }
    if waits:
        report.aim(f"{place.name} wait for the checkpoint, p50 in ms", WAIT_AIM_MS, median(waits))


def _summary(
    samples: Samples, covers: list[Interval], *, cpu: bool
) -> tuple[dict[str, Any], list[float]]:
    """Medians, the ratio before the wait, and the waits (ms)."""
    whole = {name: [(i[1] - i[0]) / 1e6 for i in found] for name, found in samples.items()}
    covered = covered_within(samples["governed"], covers)
    waited = [passed / 1e6 for passed, _ in covered]
    before = [total - wait for total, wait in zip(whole["governed"], waited, strict=True)]
    found: dict[str, Any] = {
        "rounds": len(before),
        "plain_ms": round(median(whole["plain"]), 3),
        "governed_before_wait_ms": round(median(before), 3),
        **ratio(before, whole["plain"]),
        "control": ratio(whole["control"], whole["plain"]),
    }
    if cpu:
        plain = [i[2] / 1e6 for i in samples["plain"]]
        governed = [
            (i[2] - busy) / 1e6 for i, (_, busy) in zip(samples["governed"], covered, strict=True)
        ]
        found["cpu_of_thread"] = {
            "plain_ms": round(median(plain), 3),
            "governed_before_wait_ms": round(median(governed), 3),
            **ratio(governed, plain),
        }
    if any(waited):
        found["wait_ms"] = round(median(waited), 3)
        found["wait_cpu_ms"] = round(median(busy for _, busy in covered) / 1e6, 3)
        found["governed_with_wait_ms"] = round(median(whole["governed"]), 3)
    return found, [wait for wait in waited if wait]


def _wait_summary(waits: list[float]) -> dict[str, Any]:
    if not waits:
        return {"count": 0}
    return {
        "count": len(waits),
        "p50_ms": round(median(waits), 3),
        "p95_ms": round(percentile(waits, 95), 3),
        "p99_ms": round(percentile(waits, 99), 3),
    }


def databases(kind: str, label: str, folder: Path, server: str | None) -> dict[str, str]:
    """Three empty databases, one a variant."""
    folder.mkdir(parents=True, exist_ok=True)
    uris = {}
    for variant in VARIANTS:
        if kind == "sqlite":
            uri = f"sqlite:///{folder}/{variant}.db"
        else:
            assert server is not None
            uri = create_database(server, f"{label}_{variant}")
        uris[variant] = f"governed+{uri}" if variant == "governed" else uri
    return uris


@contextmanager
def local_place(
    kind: str, folder: Path, server: str | None, covers: list[Interval]
) -> Iterator[Place]:
    """Stores in this process."""
    from governance.settings import Settings
    from mlflow_plugins.governor import Governor

    uris = databases(kind, "local", folder, server)
    try:
        yield Place(kind, uris, folder, lambda: covers, Settings.load(uris["governed"]).home)
    finally:
        Governor.of(uris["governed"]).ledger.close()  # before its database goes away


@contextmanager
def rest_place(kind: str, folder: Path, server: str | None) -> Iterator[Place]:
    """Three servers of one worker each."""
    home, sink = folder / "home", folder / "covers.txt"
    environment = {
        "CHANCERY_HOME": str(home),
        **timed_app_environment(folder / "timed", sink),
    }
    with ExitStack() as stack:
        uris = {}
        for variant, store in databases(kind, "rest", folder, server).items():
            governed = variant == "governed"
            uris[variant] = stack.enter_context(
                mlflow_server(
                    folder / variant,
                    store,
                    app=TIMED_APP if governed else None,
                    environment=environment if governed else None,
                )
            )
        yield Place(f"rest-{kind}", uris, folder, lambda: read_intervals(sink), home)


def measure_clients(place: Place, report: Report, rounds: int, seconds: float) -> None:
    """Eight clients at ``place``."""
    from throughput import TargetSpec, measure_throughput

    progress(f"{place.name}: eight clients")
    before = load_average()
    specs = {
        name: TargetSpec(place.uris[name], place.folder / f"clients-{name}", name == "governed")
        for name in ("plain", "governed")
    }
    found = measure_throughput(specs, rounds=rounds, seconds=seconds)
    found["load_average"] = {"before": before, "after": load_average()}
    report.clients[place.name] = found
    for workload in ("logging", "training"):
        name = f"{place.name} eight clients, {workload}, throughput"
        report.aim(name, CLIENTS_AIM, found[workload]["ratio"], at_least=True)


def write_result(path: Path, head: dict[str, Any], report: Report) -> None:
    """Written after each place, so that an interrupted run leaves what it measured."""
    head["load_average"]["after"] = load_average()
    result = {
        **head,
        "met": all(aim.met for aim in report.aims),
        "aims": [aim.to_dict() for aim in report.aims],
        "places": report.places,
        "clients": report.clients,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds; for a first look")
    parser.add_argument("--rounds", type=int, help="rounds of each write (reads: three times)")
    parser.add_argument("--places", default="sqlite,postgresql,rest-sqlite,rest-postgresql")
    parser.add_argument("--operations", default="", help="only these, comma-separated")
    parser.add_argument("--no-clients", action="store_true", help="leave the eight clients out")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    rounds = options.rounds or (20 if options.quick else 100)
    places = options.places.split(",")
    only = set(filter(None, options.operations.split(",")))
    client_rounds, seconds = (2, 1.5) if options.quick else (4, 2.5)

    began, report = time.time(), Report()
    head: dict[str, Any] = {
        "benchmark": "overhead",
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "quick": options.quick,
        "machine": describe_machine(),
        "load_average": {"before": load_average()},
    }
    with private_home() as home, ExitStack() as stack:
        needs_postgres = any("postgresql" in name for name in places)
        server = stack.enter_context(postgres()) if needs_postgres else None
        covers: list[Interval] = []
        record_covers(covers.append)
        for name in places:
            kind = name.removeprefix("rest-")
            folder = home / name
            opened = (
                rest_place(kind, folder, server)
                if name.startswith("rest")
                else local_place(kind, folder, server, covers)
            )
            with opened as place:
                measure(place, report, rounds, only)
                if kind == "postgresql" and not options.no_clients:
                    measure_clients(place, report, client_rounds, seconds)
            head["seconds"] = round(time.time() - began)
            head["complete"] = name == places[-1]
            write_result(options.output, head, report)
    missed = [aim for aim in report.aims if not aim.met]
    progress(f"{len(report.aims) - len(missed)} of {len(report.aims)} aims met; {options.output}")
    for aim in missed:
        progress(f"  {aim}")


if __name__ == "__main__":
    main()
