"""A soak as a picture: throughput, latency, what failed, and memory over time, with what happened.

Example::

    plot(json.loads(Path("benchmarks/results/soak-story.json").read_text()), Path("soak.png"))
    python benchmarks/soak_plot.py benchmarks/results/soak-story.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["plot"]

_COLOURS = {
    "gateway": "#1f77b4",
    "replica": "#ff7f0e",
    "controller": "#2ca02c",
    "ray": "#7f7f7f",
}


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw it as PNG; needs matplotlib, which MLflow brings."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        4, 1, figsize=(11, 11), sharex=True, height_ratios=(2, 2, 1.4, 3), layout="constrained"
    )
    rate, latency, failures, memory = axes
    timeline = result["timeline"][:-1]  # the last second is not whole
    minutes = [second["second"] / 60 for second in timeline]
    _draw_rate(rate, result, timeline, minutes)
    for name, colour in (("p50", "#1f77b4"), ("p99", "#d62728")):
        values = [second["latency_ms"].get(name) or float("nan") for second in timeline]
        latency.plot(minutes, values, color=colour, linewidth=0.8, label=name)
    latency.set_yscale("log")
    latency.set_ylabel("latency, ms")
    latency.legend(loc="upper right", ncols=2)
    _draw_failures(failures, timeline, minutes)
    _draw_memory(memory, result["memory_samples"])
    _draw_events(axes, result["events"])
    accounts = result["accounts"]
    told = f"{accounts['asked']} requests: {accounts['answered_2xx']} answered with 2xx, "
    told += f"{sum(accounts['answered_otherwise'].values())} otherwise, {accounts['late']} late, "
    told += f"{accounts['silence']} silence"
    figure.suptitle(told, fontsize=11)
    memory.set_xlabel("minutes")
    memory.set_xlim(0, max(minutes, default=1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_rate(axis: Any, result: Mapping[str, Any], timeline: Any, minutes: list[float]) -> None:
    def per_second(*names: str) -> list[int]:
        return [sum(second["counts"].get(name, 0) for name in names) for second in timeline]

    canary = per_second("x-chancery-variant: canary", "x-chancery-retried: 1")
    axis.plot(minutes, per_second("200"), color="#1f77b4", linewidth=0.8, label="answered with 200")
    if any(canary):
        axis.fill_between(minutes, canary, color="#ff7f0e", alpha=0.5, label="asked of a canary")
    axis.axhline(result["requests_per_s_asked"], color="black", linewidth=0.6, linestyle=":")
    axis.set_ylim(0, 1.35 * result["requests_per_s_asked"])
    axis.set_ylabel("requests/s")
    axis.legend(loc="lower right", ncols=2)


def _draw_failures(axis: Any, timeline: Any, minutes: list[float]) -> None:
    kinds = {
        "4xx, 5xx": lambda name: name[:1] in "45" and name.isdecimal(),
        "silence": lambda name: name == "lost",
        "late": lambda name: name == "late",
    }
    colours = ("#ff7f0e", "#d62728", "#9467bd")
    most = 0
    for (label, chosen), colour in zip(kinds.items(), colours, strict=True):
        counts = [sum(n for w, n in s["counts"].items() if chosen(w)) for s in timeline]
        most = max(most, *counts, 0)
        found = [(at, count) for at, count in zip(minutes, counts, strict=True) if count]
        axis.vlines([at for at, _ in found], 0, [n for _, n in found], color=colour, linewidth=2.5)
        axis.plot([], [], color=colour, linewidth=2.5, label=f"{label}: {sum(counts)}")
    axis.set_ylim(0, max(1.0, 1.15 * most))
    axis.set_ylabel("failures/s")
    axis.legend(loc="upper left", ncols=3)


def _draw_memory(axis: Any, samples: Mapping[str, Any]) -> None:
    shared: dict[float, float] = {}
    labelled = set()
    for name, points in samples.items():
        role = name.partition(" ")[0]
        if role == "ray":
            for at, _, pss in points:
                moment = round(at / 10) * 10.0
                shared[moment] = shared.get(moment, 0.0) + pss
            continue
        label = None if role in labelled else f"{role}s" if role != "controller" else role
        labelled.add(role)
        axis.plot(
            [at / 60 for at, _, _ in points], [pss for _, _, pss in points],
            color=_COLOURS[role], linewidth=1.2, label=label,
        )  # fmt: skip
    if shared:
        moments = sorted(shared)
        axis.plot(
            [at / 60 for at in moments], [shared[at] for at in moments],
            color=_COLOURS["ray"], linewidth=1.2, label="Ray's own, together",
        )  # fmt: skip
    axis.set_ylim(bottom=0)
    axis.set_ylabel("memory (PSS), MiB")
    axis.legend(loc="center right")


def _draw_events(axes: Any, events: Any) -> None:
    for number, event in enumerate(events):
        at = event["at_s"] / 60
        for axis in axes:
            axis.axvline(at, color="black", linewidth=0.7, alpha=0.45)
        text = event["what"] + (f": {event['outcome']}" if "outcome" in event else "")
        axes[0].annotate(
            text, (at, 1.0), xycoords=("data", "axes fraction"), fontsize=8, rotation=0,
            xytext=(2, 4 + 10 * (number % 4)), textcoords="offset points", annotation_clip=False,
        )  # fmt: skip


if __name__ == "__main__":
    for source in map(Path, sys.argv[1:]):
        plot(json.loads(source.read_text()), source.with_suffix(".png"))
