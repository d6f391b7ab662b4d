"""What watching for drift costs: a window's check, memory, recording, and a thousand models.

- *check*: from the rows of a window to its verdict (bins, eSR, PSI), at 10 and 100 columns and
  windows of 1,000 and 10,000 rows; beside it Alibi Detect's ``KSDrift`` against 100,000 reference
  rows, in its own process and timed there. The two do not answer the same question: ours is the
  pass that every window goes through, theirs what many people run on every window instead.
- *memory*: of a profile and a judge, for 10,000 to 1,000,000 reference rows.
- *recorder*: in the way of an answer (``append``), and all in all with blocks and their Parquet.
- *monitor*: windows a second of one process, and its share of one core, with a thousand models of
  ten columns that get a window of 200 rows a second each; reports go to a folder.

Results go to ``benchmarks/results/drift_cost.json``; some five minutes, with ``--quick`` one.

    python benchmarks/drift_cost.py
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median
from threading import Event
from typing import Any

import numpy as np
import yaml
from comparison import Aim
from drift_results import conclude
from machine import load_average
from surroundings import progress

from drift.block_folder import BlockFile
from drift.blocks import Block, to_parquet
from drift.catalogue import build
from drift.cutter import Window
from drift.examine import examine
from drift.fitting import fit_profile
from drift.monitor_config import MonitorsConfig
from drift.profile import DriftProfile
from drift.recorder import Recorder
from drift.sample import Sample
from drift.service import Service, SubjectStatus
from drift.verdict import Judge
from drift.window import count_rows

RESULTS = Path(__file__).resolve().parent / "results" / "drift_cost.json"
_MS = 1e3
_US = 1e6


def timed(act: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each call."""
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        act()
        found.append(time.perf_counter() - began)
    return found


def table(rng: np.random.Generator, rows: int, columns: int) -> dict[str, Any]:
    """Normal columns."""
    return {f"x{at}": values for at, values in enumerate(rng.normal(size=(columns, rows)))}


def profile_of(reference: dict[str, Any], window: int) -> DriftProfile:
    return fit_profile(reference, model="m", window=window)


def checking(aims: list[Aim], *, quick: bool) -> dict[str, Any]:
    """A window's pass, and Alibi Detect's KSDrift beside it."""
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    reference = table(rng, 100_000, 100)
    for columns, rows in ((10, 1_000), (100, 1_000), (100, 10_000)):
        part = {name: reference[name] for name in list(reference)[:columns]}
        profile = profile_of(part, rows)
        live, judge, index = table(rng, rows, columns), Judge(profile), iter(range(10**9))

        def check(
            profile: DriftProfile = profile, live: Any = live, judge: Judge = judge,
            index: Any = index,
        ) -> None:  # fmt: skip
            counts = count_rows(profile, live)
            judge.step(Window(next(index), counts))

        timed(check, 10)
        took = timed(check, 30 if quick else 200)
        found[f"{columns} columns, {rows} rows"] = {
            "ms": round(median(took) * _MS, 4),
            "p95_ms": round(float(np.percentile(took, 95)) * _MS, 4),
        }
    ours = found["100 columns, 1000 rows"]["ms"]
    aims.append(Aim("check of 100 columns, 1,000 rows: ms", 1.0, ours))
    found["KSDrift"] = alibi = ks_drift(rng, quick=quick)
    if "ms" in alibi:
        name = "KSDrift of 100,000 reference rows takes so many times as long"
        aims.append(Aim(name, 300.0, alibi["ms"] / ours, at_least=True))
    return found


def ks_drift(rng: np.random.Generator, *, quick: bool) -> dict[str, Any]:
    """Timed where it runs, by the seconds that it tells of itself."""
    try:
        detector = build("ks", "alibi")
        reference = Sample.of_matrix(rng.normal(size=(100_000, 100)))
        window = Sample.of_matrix(rng.normal(size=(1_000, 100)))
        seconds = []
        for _ in range(2 if quick else 7):
            told = examine(detector, reference, window, rng, limit_s=300.0, most_rows=100_000)
            if told.trouble:
                return {"not measured": told.trouble}
            seconds.append(told.seconds)
    except Exception as error:  # noqa: BLE001 - told in the results
        return {"not measured": repr(error)}
    return {"ms": round(median(seconds) * _MS, 1), "includes": "handing the rows over"}


def memory(aims: list[Aim], *, quick: bool) -> dict[str, Any]:
    """Of what a monitor keeps of a model."""
    rng = np.random.default_rng(1)
    kept = {}
    for rows in (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000):
        document = profile_of(table(rng, rows, 100), 1_000).to_json()
        gc.collect()
        tracemalloc.start()
        held = [Judge(DriftProfile.from_json(document)) for _ in range(3)]
        gc.collect()
        kept[f"{rows} reference rows"] = tracemalloc.get_traced_memory()[0] // len(held)
        tracemalloc.stop()
    sizes = list(kept.values())
    aims.append(
        Aim("memory of the largest reference over the smallest's", 1.1, sizes[-1] / sizes[0])
    )
    return {"bytes": kept}


def recording(aims: list[Aim], *, quick: bool) -> dict[str, Any]:
    """Per row: in the way of an answer, and with everything."""
    rng = np.random.default_rng(2)
    names = [f"x{at}" for at in range(10)]
    found = {}
    for rows_at_once in (1, 64):
        batches = (20_000 if quick else 100_000) // rows_at_once
        rows = rng.normal(size=(rows_at_once, 10))
        said = rng.random(rows_at_once)
        recorder = Recorder(
            "bench", model="m", columns=names, outputs=["score"], most_rows=200_000,
            most_bytes=1 << 30,
        )  # fmt: skip
        ids = ("r-1",) * rows_at_once
        ones = (1,) * rows_at_once
        began = time.perf_counter()
        for _ in range(batches):
            recorder.append_together(rows, said, ids, ones, version="1")
        appended = time.perf_counter()
        size = sum(len(to_parquet(block)) for block in recorder.flush())
        ended = time.perf_counter()
        count = batches * rows_at_once
        if recorder.counts.dropped:
            raise SystemExit(f"{recorder.counts.dropped} rows were dropped")
        found[f"{rows_at_once} requests together"] = {
            "append_us_a_row": round((appended - began) / count * _US, 3),
            "all_us_a_row": round((ended - began) / count * _US, 3),
            "bytes_a_row": round(size / count, 1),
        }
    single = found["1 requests together"]["append_us_a_row"]
    aims.append(Aim("recording one row, in the way of its answer: µs", 2.0, single))
    return found


def monitoring(aims: list[Aim], *, quick: bool) -> dict[str, Any]:
    """One process, many models; from a window's block to its report, written and forgotten."""
    models, rows, columns, rounds = (100 if quick else 1000), 200, 10, 5
    rng = np.random.default_rng(3)
    profile = profile_of(table(rng, 20 * rows, columns), rows)
    with tempfile.TemporaryDirectory(prefix="chancery-bench-") as made:
        folder = Path(made)
        (folder / "p.json").write_bytes(profile.to_json())
        (folder / "monitors.yaml").write_text(
            yaml.safe_dump(
                {
                    "format": "chancery.monitors/v1", "state": "state", "blocks": "blocks",
                    "defaults": {"profile": "p.json", "sinks": [{"folder": {"path": "reports"}}]},
                    "monitors": [{"model": "m", "version": at + 1} for at in range(models)],
                }
            )
        )  # fmt: skip

        def deliver(number: int) -> None:
            for version in range(1, models + 1):
                block = Block(
                    id=f"{number:032x}", source="r", sequence=number, model="m",
                    version=str(version), deployment="",
                    time_ms=np.full(rows, time.time_ns() // 1_000_000),
                    inputs=table(rng, rows, columns), outputs={},
                    request_row=np.zeros(rows, np.int64),
                )  # fmt: skip
                place = folder / "blocks" / "m" / str(version) / "_"
                place.mkdir(parents=True, exist_ok=True)
                (place / BlockFile.of(block).name).write_bytes(to_parquet(block))

        stopped = Event()
        took: list[tuple[float, float]] = []  # of each round; the first opens all of them
        began = (0.0, 0.0)

        def told(status: list[SubjectStatus]) -> None:
            """After each turn of the service, whose clock stands still meanwhile."""
            nonlocal began
            for one in status:
                if one.trouble:
                    raise SystemExit(f"{one.subject}: {one.trouble}")
                done = one.monitor is not None and (
                    one.monitor.windows > len(took) and not one.monitor.waiting_reports
                )
                if not done:
                    return
            took.append((time.perf_counter() - began[0], time.process_time() - began[1]))
            progress(f"  {models} models, round {len(took)} of {rounds + 1}")
            if len(took) > rounds:
                stopped.set()
            else:
                deliver(len(took))
            began = time.perf_counter(), time.process_time()

        deliver(0)
        service = Service(MonitorsConfig.read(folder / "monitors.yaml").openings(), idle_s=0.002)
        began = time.perf_counter(), time.process_time()
        service.run(stopped, told)
        files = (folder / "reports").rglob("*.jsonl")
        reports = sum(file.read_bytes().count(b"\n") for file in files)
    if reports != models * (rounds + 1):
        raise SystemExit(f"{reports} reports of {models * (rounds + 1)} windows")
    (opening, _), *steady = took
    a_second = models / median(wall for wall, _ in steady)
    aims.append(Aim("windows a second of one process", 1000.0, a_second, at_least=True))
    return {
        "models": models,
        "windows_a_second": round(a_second, 1),
        "cpu_ms_a_window": round(median(cpu for _, cpu in steady) / models * _MS, 3),
        "ms_a_model_to_open_and_for_its_first_window": round(opening / models * _MS, 3),
        "includes": "reading the block, state and report on disk, the report's sink",
    }


SCENES = {
    "check": checking, "memory": memory, "recorder": recording, "monitor": monitoring
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a first look")
    parser.add_argument("--scenes", default=",".join(SCENES))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    aims: list[Aim] = []
    before = load_average()
    began = time.monotonic()
    scenes = {}
    for name in options.scenes.split(","):
        progress(f"scene: {name}")
        scenes[name] = SCENES[name](aims, quick=options.quick)
    parts = {"quick": options.quick, "scenes": scenes}
    conclude("drift cost", options.output, aims, parts, began=began, load_before=before)


if __name__ == "__main__":
    main()
