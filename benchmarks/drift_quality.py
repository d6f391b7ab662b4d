"""How well drift is found, and how rarely it is cried without any.

- *power*: one window against a reference, at 5 % false alarms: our default combination, what it is
  made of, each of Alibi Detect's detectors that takes a table, and PSI above 0.1 as people use it.
  Mean over the shifts of ``drift_data``, on five data sets.
- *streams*: windows of fifty rows after each other. Each statistic gets the threshold at which it
  cries once in a hundred windows without drift, found on streams without any; then a shift comes,
  and windows are counted until the alarm, sixty at most. Ours is eSR, over columns and principal
  components as a profile has them; beside it the largest PSI of the columns, the smallest p-value
  of KS, and the statistics of Alibi Detect's MMD, LSDD and classifier.

Results go to ``benchmarks/results/drift_quality.json``: power took an hour on an idle machine.
Streams with Alibi Detect, twenty minutes each (``--parts streams --data census``), are in
``drift_streams_census.json``, ``drift_streams_normal.json`` and ``drift_streams_mixed.json``.

    python benchmarks/drift_quality.py
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from comparison import Aim
from drift_data import DATA, SHIFTS, Data, shifts
from drift_results import conclude
from machine import load_average
from surroundings import progress

from drift.alibi_process import AlibiProcess
from drift.catalogue import build
from drift.detector import Detector
from drift.examine import examine
from drift.fitting import fit_profile
from drift.native import (
    Default,
    DomainClassifier,
    FourierMMD,
    KolmogorovSmirnov,
    OutputKS,
    Tabular,
)
from drift.psi import psi
from drift.sample import Sample
from drift.sequential import ShiryaevRoberts
from drift.window import count_rows

RESULTS = Path(__file__).resolve().parent / "results" / "drift_quality.json"
ALIBI = ("ks", "tabular", "mmd", "lsdd", "classifier")
RUN_LENGTH = 100
"""Windows between two false alarms at which statistics are compared."""

_ALIBI_ROUNDS = 10  # of the 40: Alibi Detect's take a second and more
_ALIBI_CALM, _ALIBI_RUNS = 200, 3  # of the 1,500 windows without drift, and 30 streams
_LONGEST = 60  # windows of a stream after a shift; no alarm by then counts as these

_PARTS = {"breast cancer": (150, 280, 100), "digits": (600, 700, 150)}
"""Rows to train on, of the reference, of a window; others: 2,000, 2,000, 300."""


def model_of(data: Data, rows: Any) -> Callable[[Any], Any]:
    """Probabilities of a classifier that was trained on these rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    middle = data.x[rows].mean(axis=0)
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    fitted.fit(data.x[rows], data.y[rows])
    return lambda x: fitted.predict_proba(np.where(np.isnan(x), middle, x))


def sample(x: Any, model: Callable[[Any], Any]) -> Sample:
    said = model(x)
    return Sample.of_matrix(x, outputs=said, labels=said.argmax(axis=1).astype(str))


# -- power


def power(
    aims: list[Aim], alibi: AlibiProcess | None, names: Sequence[str], *, quick: bool
) -> dict[str, Any]:
    """Share of alarms, by data set, shift and detector."""
    native: list[Detector] = [
        Default(), KolmogorovSmirnov(), Tabular(), OutputKS(), FourierMMD(), DomainClassifier()
    ]  # fmt: skip
    theirs = [] if alibi is None else [build(name, "alibi", process=alibi) for name in ALIBI]
    found: dict[str, Any] = {}
    for name in names:
        data = DATA[name]()
        found[name] = one = _power_of(name, data, [*native, *theirs], 6 if quick else 40)
        default = one["mean"]["default, native"]
        aims.append(Aim(f"{name}: mean power of the default", 0.8, default, at_least=True))
        said = ", ".join(f"{key} {value:.2f}" for key, value in one["mean"].items())
        progress(f"  {name}: {said}")
    return found


def _power_of(name: str, data: Data, detectors: Sequence[Detector], rounds: int) -> dict[str, Any]:
    train, known, window = _PARTS.get(name, (2000, 2000, 300))
    kinds = {"none": None, **shifts(data)}
    alarms: dict[str, dict[str, list[bool]]] = {}
    for turn in range(rounds):
        rng = np.random.default_rng(turn)
        order = rng.permutation(len(data.x))
        model = model_of(data, order[:train])
        reference = sample(data.x[order[train : train + known]], model)
        rest = order[train + known :][: 4 * window]
        asked = [one for one in detectors if one.backend == "native" or turn < _ALIBI_ROUNDS]
        for kind, shift in kinds.items():
            x, y = data.x[rest], data.y[rest]
            if shift is not None:
                x, y = shift(x, y, rng)
            live = sample(x[:window], model)
            into = alarms.setdefault(kind, {})
            for one in asked:
                told = examine(one, reference, live, rng, limit_s=300.0)
                if told.trouble:
                    raise SystemExit(f"{name}, {kind}: {one.name}: {told.trouble}")
                into.setdefault(f"{one.name}, {one.backend}", []).append(bool(told.is_drift))
            into.setdefault("PSI > 0.1", []).append(_psi_alarm(reference, live))
    rates = {kind: {who: mean(hits) for who, hits in by.items()} for kind, by in alarms.items()}
    who = list(rates["none"])
    return {
        "rows": {"reference": known, "window": window},
        "rounds": {"native": rounds, "alibi": min(rounds, _ALIBI_ROUNDS)},
        "false_alarms": rates.pop("none"),
        "power": rates,
        "mean": {one: round(mean(rates[kind][one] for kind in SHIFTS), 4) for one in who},
    }


def _psi_alarm(reference: Sample, window: Sample) -> bool:
    columns = dict(zip(reference.names, reference.numbers.T, strict=True))
    profile = fit_profile(columns, model="m", window=len(reference.numbers) // 10, components=0)
    counts = count_rows(profile, dict(zip(window.names, window.numbers.T, strict=True)))
    return bool(psi(counts.counts, profile.probabilities, profile.layout.starts).max() > 0.1)


# -- streams

Statistic = Callable[[Any], float]
"""Of the next window's rows; larger is worse. It may remember the windows before."""


def streams(
    aims: list[Aim], alibi: AlibiProcess | None, names: Sequence[str], *, quick: bool
) -> dict[str, Any]:
    """Windows until the alarm, at equal run length to a false one."""
    found = {}
    for name in names:
        if name in _PARTS:
            continue  # too few rows for a stream
        data = DATA[name]()
        found[name] = one = _streams_of(data, alibi, quick=quick)
        delays = one["mean_delay"]
        others = min(value for who, value in delays.items() if who != "eSR")
        aims.append(
            Aim(f"{name}: eSR's delay over the quickest other's", 1.0, delays["eSR"] / others)
        )
        progress(f"  {name}: " + ", ".join(f"{who} {value:.1f}" for who, value in delays.items()))
    return found


class Rival:
    """A statistic that looks at each window alone.

    Args:
        detector: Asked.
        reference: Compared with.
    """

    def __init__(self, detector: Detector, reference: Sample) -> None:
        self._detector, self._reference = detector, reference
        self._rng = np.random.default_rng(0)

    def __call__(self, rows: Any) -> float:
        told = examine(
            self._detector, self._reference, Sample.of_matrix(rows), self._rng, limit_s=300.0
        )
        if told.trouble or told.statistic is None:
            raise SystemExit(f"{self._detector.name}: {told.trouble}")
        if self._detector.name == "ks":
            smallest = min(column.p_value or 1e-300 for column in told.columns)
            return float(-np.log(max(smallest, 1e-300)))
        return told.statistic


def _streams_of(data: Data, alibi: AlibiProcess | None, *, quick: bool) -> dict[str, Any]:
    window, known = 50, 8_000
    rng = np.random.default_rng(5)
    order = rng.permutation(len(data.x))
    reference, pool = data.x[order[:known]], order[known:]
    profile = fit_profile(_columns(reference), model="m", window=window)
    plain = fit_profile(_columns(reference), model="m", window=window, components=0)
    few = Sample.of_matrix(reference[rng.choice(known, 500, replace=False)])

    def esr() -> Statistic:
        statistic = ShiryaevRoberts(profile.probabilities, profile.layout.starts)

        def step(rows: Any) -> float:
            statistic.step(count_rows(profile, _columns(rows)).counts)
            return statistic.log_mean

        return step

    def largest_psi() -> Statistic:
        def step(rows: Any) -> float:
            counts = count_rows(plain, _columns(rows)).counts
            return float(psi(counts, plain.probabilities, plain.layout.starts).max())

        return step

    statistics: dict[str, Callable[[], Statistic]] = {
        "eSR": esr,
        "PSI": largest_psi,
        "KS": lambda: Rival(KolmogorovSmirnov(), few),
    }
    if alibi is not None:
        for name in ("mmd", "lsdd", "classifier"):
            detector = build(name, "alibi", process=alibi)
            statistics[f"{name}, alibi"] = lambda detector=detector: Rival(detector, few)
    calm, runs = (120, 6) if quick else (1500, 30)
    kinds = shifts(data)
    result: dict[str, Any] = {"window": window, "threshold": {}, "delay": {}}
    for who, make in statistics.items():
        slow = "alibi" in who
        windows = list(
            _windows(data, pool, window, min(calm, _ALIBI_CALM) if slow else calm, seed=1)
        )
        threshold = _threshold(make, windows)
        result["threshold"][who] = threshold
        result["delay"][who] = {
            kind: mean(
                _delay(make(), threshold, data, pool, window, kinds[kind], seed)
                for seed in range(min(runs, _ALIBI_RUNS) if slow else runs)
            )
            for kind in SHIFTS
            if kind != "missing"  # half of the others cannot take a missing value
        }
        said = ", ".join(f"{kind} {delay:.1f}" for kind, delay in result["delay"][who].items())
        progress(f"    {who}: {said}")
    result["mean_delay"] = {who: round(mean(by.values()), 2) for who, by in result["delay"].items()}
    return result


def _columns(rows: Any) -> Mapping[str, Any]:
    return {f"x{at}": values for at, values in enumerate(rows.T)}


def _windows(data: Data, pool: Any, window: int, count: int, seed: int) -> Iterator[Any]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield data.x[rng.choice(pool, window)]


def _threshold(make: Callable[[], Statistic], windows: Sequence[Any]) -> float:
    """At which the mean run to a false alarm is ``RUN_LENGTH``, each alarm beginning anew."""
    low, high = -50.0, 500.0
    alone = make()
    values = [alone(rows) for rows in windows]
    again = make()
    memory = any(
        again(rows) != value for rows, value in zip(windows[5:8], values[5:8], strict=True)
    )
    if not memory:
        return float(np.quantile(values, 1 - 1 / RUN_LENGTH))
    for _ in range(18):
        middle = (low + high) / 2
        statistic, alarms = make(), 0
        for rows in windows:
            if statistic(rows) > middle:
                statistic, alarms = make(), alarms + 1
        if alarms and len(windows) / alarms < RUN_LENGTH:
            low = middle
        else:
            high = middle
    return high


def _delay(
    statistic: Statistic,
    threshold: float,
    data: Data,
    pool: Any,
    window: int,
    shift: Any,
    seed: int,
) -> int:
    """Windows from the shift to the alarm, after ten calm ones; at most ``_LONGEST``."""
    rng = np.random.default_rng(100 + seed)
    for _ in range(10):
        statistic(data.x[rng.choice(pool, window)])
    chosen = rng.choice(pool, 4 * window * 40)
    x, _ = shift(data.x[chosen], data.y[chosen], np.random.default_rng(seed))
    for count in range(1, _LONGEST + 1):
        if statistic(x[rng.choice(len(x), window)]) > threshold:
            return count
    return _LONGEST


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds; a first look")
    parser.add_argument("--native", action="store_true", help="without Alibi Detect")
    parser.add_argument("--parts", default="power,streams")
    parser.add_argument("--data", default=",".join(DATA), help="names, with commas")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    aims: list[Aim] = []
    began, before = time.monotonic(), load_average()
    parts: dict[str, Any] = {}
    alibi = None if options.native else AlibiProcess()
    known = {"power": power, "streams": streams}
    try:
        for name in options.parts.split(","):
            progress(name)
            parts[name] = known[name](aims, alibi, options.data.split(","), quick=options.quick)
    finally:
        if alibi is not None:
            alibi.close()
    parts = {"quick": options.quick, **parts}
    conclude("drift quality", options.output, aims, parts, began=began, load_before=before)


if __name__ == "__main__":
    main()
