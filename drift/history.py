"""What pictures over time are drawn from: a few numbers a window, bounded, as one document.

The last 500 windows are kept, of each at most the 60 columns that moved most. A window that comes
again takes the place of itself.

Example::

    history = History.from_json(data) if data else History()
    history.add(report, profile)
    history.points[-1].columns         # {"age": 0.41, …}: PSI of each column
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift.documents import Fields, number_text
from drift.profile import DriftProfile
from drift.psi import psi
from drift.report import WindowReport
from drift.rules import Rules
from drift.verdict import Level, Verdict
from governance.canonical import canonical_json

__all__ = ["FORMAT", "History", "Point", "psi_thresholds", "score"]

FORMAT = "chancery.drift-history/v1"

_MOST = 500
_COLUMNS = 60


@dataclass(frozen=True, slots=True)
class Point:
    """One window.

    Attributes:
        index, rows, level, judged, esr, psi, psi_threshold: As the verdict's.
        first_ms, last_ms: Of its rows; None: unknown.
        columns: PSI by column, the largest first.
        estimated, estimated_sd, accuracy: As the report's performance.
    """

    index: int
    rows: int
    level: Level
    judged: bool
    esr: float
    psi: float
    psi_threshold: float
    first_ms: int | None
    last_ms: int | None
    columns: Mapping[str, float]
    estimated: float | None = None
    estimated_sd: float | None = None
    accuracy: float | None = None


class History:
    """See the module."""

    def __init__(self, points: tuple[Point, ...] = ()) -> None:
        self.points = points

    def add(self, report: WindowReport, profile: DriftProfile) -> Point:
        """One window more."""
        verdict, performance = report.verdict, report.performance
        columns: dict[str, float] = {}
        if verdict.judged and report.counts.rows:
            layout = profile.layout
            sizes = psi(report.counts.counts, profile.probabilities, layout.starts)
            for place in np.argsort(-sizes, kind="stable")[:_COLUMNS].tolist():
                columns[profile.columns[place].name] = float(sizes[place])
        point = Point(
            verdict.index,
            verdict.rows,
            verdict.level,
            verdict.judged,
            verdict.esr,
            verdict.psi,
            verdict.psi_threshold,
            verdict.first_ms,
            verdict.last_ms,
            columns,
            performance.estimated_accuracy,
            performance.estimated_sd,
            performance.accuracy,
        )
        others = [one for one in self.points if one.index != point.index]
        self.points = tuple(sorted([*others, point], key=lambda one: one.index)[-_MOST:])
        return point

    def to_json(self) -> bytes:
        """Canonical."""
        return canonical_json(
            {
                "format": FORMAT,
                "points": [
                    {
                        "index": one.index,
                        "rows": one.rows,
                        "level": one.level.value,
                        "judged": one.judged,
                        "esr": number_text(one.esr),
                        "psi": number_text(one.psi),
                        "psi_threshold": number_text(one.psi_threshold),
                        "first_ms": one.first_ms,
                        "last_ms": one.last_ms,
                        "columns": {name: number_text(x) for name, x in one.columns.items()},
                        "estimated": _text(one.estimated),
                        "estimated_sd": _text(one.estimated_sd),
                        "accuracy": _text(one.accuracy),
                    }
                    for one in self.points
                ],
            }
        )

    @classmethod
    def from_json(cls, data: bytes | str) -> History:
        """Inverse of ``to_json``.

        Raises:
            MalformedRequestError: not such a document.
        """
        fields = Fields.parse(data, FORMAT, "history of drift windows")
        points = []
        for one in fields.objects("points"):
            columns = {name: float(x) for name, x in one.named_texts("columns").items()}
            points.append(
                Point(
                    one.integer("index"),
                    one.integer("rows"),
                    Level(one.text("level", among=tuple(level.value for level in Level))),
                    one.flag("judged"),
                    one.number("esr"),
                    one.number("psi"),
                    one.number("psi_threshold"),
                    one.optional_integer("first_ms"),
                    one.optional_integer("last_ms"),
                    dict(sorted(columns.items(), key=lambda pair: -pair[1])),
                    _number(one.text("estimated")),
                    _number(one.text("estimated_sd")),
                    _number(one.text("accuracy")),
                )
            )
            one.done()
        fields.done()
        return cls(tuple(points))


def psi_thresholds(profile: DriftProfile) -> NDArray[np.float64]:
    """The PSI that an alert needs, for each column (d,), as the judge has them."""
    calibration, rules = profile.calibration, profile.rules
    own = np.array(calibration.largest_psi)
    base = own if rules.psi_scope == "column" else np.full(len(own), calibration.largest)
    return np.maximum(rules.alert_psi, rules.psi_margin * base)


def score(verdict: Verdict, rules: Rules) -> float:
    """How far a window is on its way to an alert: from 1 on it meets the alert's conditions.

    eSR counts by its logarithm, PSI by its share of the threshold.
    """
    if not verdict.judged:
        return 0.0
    likely = math.log1p(verdict.esr) / math.log1p(rules.alert_esr)
    large = verdict.psi / verdict.psi_threshold
    return {
        "both": min(likely, large),
        "either": max(likely, large),
        "esr": likely,
        "psi": large,
    }[rules.alert_needs]


def _text(value: float | None) -> str:
    return "" if value is None else number_text(value)


def _number(text: str) -> float | None:
    return float(text) if text else None
