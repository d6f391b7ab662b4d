"""What watching for drift costs: a window's check, memory, recording, and a thousand models.

- *check*: from the rows of a window to its verdict (bins, eSR, PSI), at 10 and 100 columns and
  windows of 1,000 and 10,000 rows; beside it Alibi Detect's ``KSDrift`` against 100,000 reference
  rows, in its own process and timed there. The two do not answer the same question: ours is the
  pass that every window goes through, theirs what many people run on every window instead.
- *memory*: of a profile and a judge, for 10,000 to 1,000,000 reference rows.
- *recorder*: in the way of an answer (``append``), and all in all with blocks and their files.
- *monitor*: windows a second of one process, and of two that share the models, with a thousand
  models of ten columns that get windows of 200 rows; reports go to a folder.

A machine that others use too is slower by half for most of some minutes. What is held against an
aim in absolute time is measured in many short turns, and the quietest is what the code costs, as
for ``timeit``; the median of all turns stands beside it, and ratios are of medians.

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
from multiprocessing import get_context
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
from drift.blocks import Block, to_arrow
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
    reference = table(rng, 100_000, 100)
    checks: dict[str, Callable[[], object]] = {}
    for columns, rows in ((10, 1_000), (100, 1_000), (100, 10_000)):
        part = {name: reference[name] for name in list(reference)[:columns]}
        profile = profile_of(part, rows)
        live, judge, index = table(rng, rows, columns), Judge(profile), iter(range(10**9))

        def check(
            profile: DriftProfile = profile, live: Any = live, judge: Judge = judge,
            index: Any = index,
        ) -> None:  # fmt: skip
            judge.step(Window(next(index), count_rows(profile, live)))

        checks[f"{columns} columns, {rows} rows"] = check
    turns: dict[str, list[float]] = {name: [] for name in checks}

    def take_turns() -> None:
        for _ in range(2 if quick else 20):
            for name, check in checks.items():
                turns[name].append(median(timed(check, 50)))

    take_turns()
    alibi = ks_drift(rng, quick=quick)
    take_turns()
    found: dict[str, Any] = {
        name: {
            "ms": round(min(took) * _MS, 4),
            "ms_of_all_turns": round(median(took) * _MS, 4),
        }
        for name, took in turns.items()
    }
    hundred = found["100 columns, 1000 rows"]
    ours = hundred["ms_of_all_turns"]
    aims.append(Aim("check of 100 columns, 1,000 rows: ms", 1.0, hundred["ms"]))
    found["KSDrift"] = alibi
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
        size = sum(len(to_arrow(block)) for block in recorder.flush())
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


_ROWS, _COLUMNS, _ROUNDS = 200, 10, 20  # of the monitored models


def monitoring(aims: list[Aim], *, quick: bool) -> dict[str, Any]:
    """Many models; from a window's block to its report, written and forgotten."""
    models = 100 if quick else 1000
    profile = profile_of(table(np.random.default_rng(3), 20 * _ROWS, _COLUMNS), _ROWS)
    found: dict[str, Any] = {
        "models": models,
        "includes": "reading the block, state and report on disk, the report's sink",
    }
    for processes in (1, 2):
        found[f"processes: {processes}"] = one = _monitored(profile, models, processes)
        aim = "one process" if processes == 1 else f"{processes} processes that share the models"
        rate = one["windows_a_second"]
        aims.append(Aim(f"windows a second of {aim}", 1000.0, rate, at_least=True))
    return found


def _monitored(profile: DriftProfile, models: int, processes: int) -> dict[str, Any]:
    """Of processes that work at the same time, by the slowest of each round."""
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
        spawn = get_context("spawn")
        barrier, said = spawn.Barrier(processes), spawn.Queue()
        started = [
            spawn.Process(target=_rounds, args=(folder, (number + 1, processes), barrier, said))
            for number in range(processes)
        ]
        for process in started:
            process.start()
        took = [said.get(timeout=600) for _ in started]
        for process in started:
            process.join()
        files = (folder / "reports").rglob("*.jsonl")
        reports = sum(file.read_bytes().count(b"\n") for file in files)
    if reports != models * (_ROUNDS + 1):
        raise SystemExit(f"{reports} reports of {models * (_ROUNDS + 1)} windows")
    walls = [max(wall for wall, _ in turn) for turn in zip(*took, strict=True)]
    cpus = [sum(cpu for _, cpu in turn) for turn in zip(*took, strict=True)]
    return {
        "windows_a_second": round(models / min(walls[1:]), 1),
        "windows_a_second_of_all_rounds": round(models / median(walls[1:]), 1),
        "cpu_ms_a_window": round(min(cpus[1:]) / models * _MS, 3),
        "cpu_ms_a_window_of_all_rounds": round(median(cpus[1:]) / models * _MS, 3),
        "ms_a_model_to_open_and_for_its_first_window": round(walls[0] / models * _MS, 3),
    }


def _rounds(folder: Path, part: tuple[int, int], barrier: Any, said: Any) -> None:
    """One process: seconds and its own CPU of each round; the first opens all its models."""
    config = MonitorsConfig.read(folder / "monitors.yaml").part(*part)
    rng = np.random.default_rng(part[0])
    stopped = Event()
    took: list[tuple[float, float]] = []

    def deliver() -> tuple[float, float]:
        for one in config.monitors:
            block = Block(
                id=f"{len(took):032x}", source="r", sequence=len(took), model="m",
                version=str(one.version), deployment="",
                time_ms=np.full(_ROWS, time.time_ns() // 1_000_000),
                inputs=table(rng, _ROWS, _COLUMNS), outputs={},
                request_row=np.zeros(_ROWS, np.int64),
            )  # fmt: skip
            assert isinstance(one.blocks, Path)
            one.blocks.mkdir(parents=True, exist_ok=True)
            (one.blocks / BlockFile.of(block).name).write_bytes(to_arrow(block))
        barrier.wait(600)
        return time.perf_counter(), time.process_time()

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
        progress(f"  part {part[0]}/{part[1]}, round {len(took)} of {_ROUNDS + 1}")
        if len(took) > _ROUNDS:
            stopped.set()
        else:
            began = deliver()

    began = deliver()
    Service(config.openings(), idle_s=0.002).run(stopped, told, alone=True)
    said.put(took)


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
