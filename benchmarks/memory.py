"""The memory of processes over time, and whether it grows.

`growth` puts a straight line through the means of a minute each: neighbouring samples resemble each
other, and their number would make the interval look narrower than it is. With fewer than four
blocks there is no interval, and nothing is judged.

Example::

    sampler = Sampler(lambda: processes_of(folder))
    sampler.start()
    …
    sampler.stop()
    growth(sampler.samples, warm_up_s=300)["gateway 1234"]["pss_growth_30_min"]
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from deployed import Process

__all__ = ["Sample", "Sampler", "growth"]

_HALF_HOUR_S = 1800.0
_BLOCKS = 20
_T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)  # by degrees of freedom
_T_MANY = 2.1


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory of one process at one time.

    Attributes:
        at_s: Seconds after the sampler began.
        name: Role and process id.
        rss: Resident bytes.
        pss: Proportional bytes.
    """

    at_s: float
    name: str
    rss: int
    pss: int


class Sampler:
    """Reads memory every ``pause_s`` seconds, in a thread.

    Args:
        processes: Those that live.
        pause_s: Between two readings.
    """

    def __init__(self, processes: Callable[[], Sequence[Process]], pause_s: float = 10.0) -> None:
        self._processes = processes
        self._pause_s = pause_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples: list[Sample] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(30)

    def _run(self) -> None:
        begun = time.monotonic()
        while True:
            for one in self._processes():
                memory = one.memory()
                if memory:
                    at = time.monotonic() - begun
                    name = f"{one.role} {one.pid}"
                    self.samples.append(Sample(at, name, memory["rss"], memory["pss"]))
            if self._ended.wait(self._pause_s):
                return

    def to_dict(self) -> dict[str, list[list[float]]]:
        """By process: seconds, RSS and PSS in MiB."""
        found: dict[str, list[list[float]]] = {}
        for one in self.samples:
            found.setdefault(one.name, []).append(
                [round(one.at_s, 1), round(one.rss / 2**20, 2), round(one.pss / 2**20, 2)]
            )
        return found


def growth(samples: Sequence[Sample], warm_up_s: float) -> dict[str, Any]:
    """By process: size, growth in half an hour as a share of it, with its 95 % interval.

    Only processes that lived from the warm-up's end to the last sample are judged; all of Ray's own
    processes together are one.
    """
    series: dict[str, dict[float, tuple[int, int]]] = {}
    last = max((one.at_s for one in samples), default=0.0)
    for one in samples:
        if one.at_s >= warm_up_s:
            name = "ray, all its processes" if one.name.startswith("ray ") else one.name
            # One reading takes a moment; ten seconds lie between two.
            at = round(one.at_s / 5) * 5.0
            rss, pss = series.setdefault(name, {}).get(at, (0, 0))
            series[name][at] = (rss + one.rss, pss + one.pss)
    return {
        name: _growth(points, whole=min(points) < warm_up_s + 30 and max(points) > last - 30)
        for name, points in sorted(series.items())
    }


def _growth(points: Mapping[float, tuple[int, int]], *, whole: bool) -> dict[str, Any]:
    times = sorted(points)
    found: dict[str, Any] = {
        "samples": len(times),
        "rss_mib": round(fmean(points[at][0] for at in times) / 2**20, 1),
        "pss_mib": round(fmean(points[at][1] for at in times) / 2**20, 1),
        "judged": False,
    }
    width = max(60.0, (times[-1] - times[0]) / _BLOCKS)
    for which, name in enumerate(("rss", "pss")):
        blocks: dict[int, list[tuple[float, int]]] = {}
        for at in times:
            blocks.setdefault(int((at - times[0]) / width), []).append((at, points[at][which]))
        means = [(fmean(a for a, _ in b), fmean(v for _, v in b)) for b in blocks.values()]
        if len(means) < 4:
            continue
        slope, error = _line(means)
        size = fmean(value for _, value in means)
        share, spread = slope * _HALF_HOUR_S / size, error * _HALF_HOUR_S / size
        found[f"{name}_growth_30_min"] = round(share, 5)
        found[f"{name}_growth_95"] = [round(share - spread, 5), round(share + spread, 5)]
        found["judged"] = whole
    return found


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope of the least-squares line, and half the width of its 95 % interval."""
    n = len(points)
    x0, y0 = fmean(x for x, _ in points), fmean(y for _, y in points)
    across = sum((x - x0) ** 2 for x, _ in points)
    slope = sum((x - x0) * (y - y0) for x, y in points) / across
    left = sum((y - y0 - slope * (x - x0)) ** 2 for x, y in points)
    free = n - 2
    t = _T_95[free - 1] if free <= len(_T_95) else _T_MANY
    return slope, t * (left / free / across) ** 0.5
