"""What a monitoring run holds of each window: metrics, and the full table.

All metrics are called ``drift/…``, on the logged model too: a gate that asks for ``accuracy`` never
takes a monitor's for its evidence. There are at most 20 of a window. Columns are no metrics: their
number is not bounded, and the heat map shows them better.

Example::

    metrics_of(report, profile, history)["drift/psi"]
"""

from __future__ import annotations

import csv
import io
import math
import re

from drift.bins import NumericBins
from drift.history import History, psi_thresholds, score
from drift.profile import DriftProfile
from drift.report import WindowReport
from drift.verdict import Level

__all__ = ["LEVELS", "experiment_of", "metrics_of", "table_of"]

LEVELS = {Level.OK: 0, Level.WARN: 1, Level.ALERT: 2}
"""As a metric."""

_MOST_METRICS = 20


def experiment_of(model: str) -> str:
    """Its name."""
    return f"monitoring/{model}"


def metrics_of(report: WindowReport, profile: DriftProfile, history: History) -> dict[str, float]:
    """Of one window, by name."""
    verdict, performance = report.verdict, report.performance
    found: dict[str, float] = {
        "drift/level": LEVELS[verdict.level],
        "drift/rows": verdict.rows,
        "drift/esr": verdict.esr,
        "drift/missing_columns": len(report.counts.missing_columns),
        "drift/new_columns": len(report.counts.extra_columns),
        "drift/rows_left_out": report.tally.late_rows + report.tally.ahead_rows,
    }
    if verdict.judged:
        limits = dict(zip((c.name for c in profile.columns), psi_thresholds(profile), strict=True))
        columns = history.points[-1].columns if history.points else {}
        found |= {
            "drift/score": score(verdict, profile.rules),
            "drift/psi": verdict.psi,
            "drift/psi_threshold": verdict.psi_threshold,
            "drift/columns_moved": sum(psi >= limits[name] for name, psi in columns.items()),
        }
    if report.findings:
        found["drift/detectors_alarmed"] = sum(one.is_drift is True for one in report.findings)
    optional = {
        "drift/estimated_accuracy": performance.estimated_accuracy,
        "drift/estimated_accuracy_sd": performance.estimated_sd,
        "drift/accuracy": performance.accuracy,
        "drift/error_esr": performance.error_esr,
    }
    found |= {name: value for name, value in optional.items() if value is not None}
    if performance.labelled:
        found["drift/labelled"] = performance.labelled
    for name, value in performance.fairness:
        if len(found) == _MOST_METRICS:
            break
        found[f"drift/fairness/{re.sub(r'[^A-Za-z0-9_ -]+', '_', name)}"] = value
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def table_of(report: WindowReport, profile: DriftProfile) -> bytes:
    """Every bin of every column, before and now."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["column", "role", "bin", "reference_rows", "reference_share", "rows", "share"])
    for place, column in enumerate(profile.columns):
        now = profile.layout.of_column(place, report.counts.counts)
        plain = isinstance(column.bins, NumericBins)
        before = zip(column.counts, column.shares.tolist(), strict=True)
        for name, (were, share), count in zip(column.bins.names, before, now.tolist(), strict=True):
            writer.writerow(
                [
                    _no_formula(column.name),
                    column.role,
                    name if plain else _no_formula(name),
                    were,
                    f"{share:.6g}",
                    count,
                    f"{count / max(report.counts.rows, 1):.6g}",
                ]
            )
    return out.getvalue().encode()


def _no_formula(text: str) -> str:
    """A text that a spreadsheet does not run; names come from data."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
