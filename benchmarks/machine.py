"""The machine a benchmark ran on, for the head of its results.

Numbers without a machine mean nothing, and a shared machine's numbers mean little without its load
average, so every results file carries both.
"""

from __future__ import annotations

import os
import platform
import sqlite3
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["describe_machine", "load_average"]

_PACKAGES = ("mlflow", "SQLAlchemy", "psycopg", "cryptography", "mlflow-chancery")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, system, and the versions that matter to the numbers."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{package.lower(): _version(package) for package in _PACKAGES},
    }


def load_average() -> list[float]:
    """Of the last 1, 5 and 15 minutes, the benchmark's own work included."""
    return [round(value, 2) for value in os.getloadavg()]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
