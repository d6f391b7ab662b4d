"""How the drift benchmarks end: a results file, and their aims, met or missed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import Aim
from machine import describe_machine, load_average
from surroundings import progress

__all__ = ["conclude"]


def conclude(
    name: str,
    path: Path,
    aims: Sequence[Aim],
    parts: Mapping[str, Any],
    *,
    began: float,
    load_before: Sequence[float],
) -> None:
    """Write the results, and tell how the aims came out.

    Args:
        name: Of the benchmark.
        path: Of the file.
        aims: All of them.
        parts: What was measured.
        began: When, on the monotonic clock, in seconds.
        load_before: Load averages when it began.
    """
    result = {
        "benchmark": name,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": describe_machine(),
        "load_average": {"before": load_before, "after": load_average()},
        "seconds": round(time.monotonic() - began),
        "met": all(aim.met for aim in aims),
        "aims": [aim.to_dict() for aim in aims],
        **parts,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    for aim in aims:
        progress(str(aim))
    progress(f"{sum(aim.met for aim in aims)} of {len(aims)} aims met; {path}")
