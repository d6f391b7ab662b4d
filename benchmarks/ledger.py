"""Measures the ledger: covering, sequencing, proofs, and verifying a million events.

    python benchmarks/ledger.py [--events 1000000] [--database URI] [--output FILE]

Without ``--database`` everything happens on SQLite in a temporary directory. With a PostgreSQL
URI, our tables in that database are DROPPED and made anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, insert

from governance.database import metadata, outbox
from governance.events import AuditEvent, EventName
from governance.identity import Actor, ProofLevel
from governance.ledger import FileWitness, Ledger, verify_ledger
from governance.signing.keys import FileSigner, create_key

LIMITS = {
    "cover_p50_ms": 20.0,
    "inclusion_proof_p50_ms": 1.0,
    "verify_s": 5.0,
}
"""What the ledger is meant to keep; ``sequenced_per_s`` is at least ``SEQUENCED``."""

SEQUENCED = 20_000
KEYS = ("log", "witness")


def machine() -> dict[str, Any]:
    """The machine that the figures belong to."""
    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "load_at_start": round(os.getloadavg()[0], 2),  # above ``cores``, times are too long
    }


def event(number: int) -> AuditEvent:
    return AuditEvent(
        EventName.ALIAS_SET,
        f"models:/fraud/{number}",
        {"alias": "champion", "version": str(number), "digest": "ab" * 32},
        Actor("alice", ProofLevel.LOCAL),
    )


def timed(act: Callable[[int], object], times: int) -> list[float]:
    """Milliseconds of each call."""
    result = []
    for number in range(times):
        start = time.perf_counter()
        act(number)
        result.append((time.perf_counter() - start) * 1e3)
    return result


def fill(engine: Engine, count: int) -> None:
    """Committed events in the outbox, from one template: making them is not what is measured."""
    template = event(7)
    leaf = template.to_leaf()
    with engine.begin() as connection:
        for start in range(0, count, 10_000):
            ids = [os.urandom(16).hex() for _ in range(min(10_000, count - start))]
            connection.execute(
                insert(outbox),
                [
                    {"event_id": one, "leaf": leaf.replace(template.id.encode(), one.encode())}
                    for one in ids
                ],
            )


def verify(uri: str, home: str) -> tuple[float, float]:
    """Wall and CPU seconds of one verification."""
    log_signer, witness_signer = (FileSigner(Path(home, f"{name}.key")) for name in KEYS)
    witness = FileWitness(Path(home, "witness"), witness_signer, log_signer.public_key_pem)
    start, cpu = time.perf_counter(), time.process_time()
    report = verify_ledger(
        create_engine(uri), log_public_key=log_signer.public_key_pem, witness=witness
    )
    if not report.ok:
        raise SystemExit("\n".join(report.problems))
    return time.perf_counter() - start, time.process_time() - cpu


def measure(engine: Engine, home: Path, events: int) -> dict[str, Any]:
    metadata.drop_all(engine)
    metadata.create_all(engine)
    log_signer, witness_signer = (create_key(home / f"{name}.key") for name in KEYS)
    witness = FileWitness(home / "witness", witness_signer, log_signer.public_key_pem)
    ledger = Ledger(engine, origin="chancery/benchmark", log_signer=log_signer, witness=witness)

    def cover(number: int) -> None:
        with engine.begin() as connection:
            event_id = ledger.record(connection, event(number))
        ledger.cover(event_id)

    timed(cover, 20)
    empty = timed(cover, 200)
    sequencing = 0.0
    while (missing := events - ledger.size()) > 0:
        fill(engine, min(missing, 100_000))
        start = time.perf_counter()
        ledger.sequence()
        sequencing += time.perf_counter() - start
    full = timed(cover, 200)
    size = ledger.size()
    proofs = timed(lambda number: ledger.inclusion_proof(number * 7919 % size), 1000)
    engine.dispose()
    with get_context("spawn").Pool(1) as pool:  # a fresh process, as an auditor's would be
        arguments = (engine.url.render_as_string(hide_password=False), str(home))
        verifying, cpu = min(pool.apply(verify, arguments) for _ in range(3))
    return {
        "database": engine.dialect.name,
        "events": size,
        "cover_p50_ms": round(statistics.median(full), 2),
        "cover_p95_ms": round(statistics.quantiles(full, n=20)[-1], 2),
        "cover_empty_ledger_p50_ms": round(statistics.median(empty), 2),
        "sequenced_per_s": round((events - 220) / sequencing),
        "inclusion_proof_p50_ms": round(statistics.median(proofs), 3),
        "inclusion_proof_p95_ms": round(statistics.quantiles(proofs, n=20)[-1], 3),
        "verify_s": round(verifying, 2),
        "verify_cpu_s": round(cpu, 2),
        "verified_per_s": round(size / verifying),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--database")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "ledger.json"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        described = machine()
        home = Path(directory)
        engine = create_engine(options.database or f"sqlite:///{home / 'ledger.sqlite'}")
        result = measure(engine, home, options.events)
        engine.dispose()
    kept = {name: result[name] <= limit for name, limit in LIMITS.items()}
    kept["sequenced_per_s"] = result["sequenced_per_s"] >= SEQUENCED
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    results[result["database"]] = {"machine": described, "result": result, "kept": kept}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results[result["database"]], indent=2))


if __name__ == "__main__":
    main()
