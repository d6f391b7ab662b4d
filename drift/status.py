"""How a monitor does, for people and for whoever keeps it running."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drift.verdict import Level

__all__ = ["MonitorStatus"]


@dataclass(frozen=True, slots=True)
class MonitorStatus:
    """How a monitor does.

    Attributes:
        subject: What is watched, as ``model/version/deployment``.
        level: Of the last window that was judged.
        windows: Judged, or found too small, since the state began.
        alerts: Of them, windows that alerted.
        new_alerts: Since this monitor was opened.
        rows: Counted since the state began.
        open_rows: Of them, in windows that are not closed.
        refused_blocks: Put aside.
        waiting_reports: On their way to sinks.
        last_index: Of the last window.
        trouble: Why a sink did not take a report, by sink; those that do are not here.
        notes: What a reader must know, such as another backend than was asked for.
    """

    subject: str
    level: Level
    windows: int
    alerts: int
    new_alerts: int
    rows: int
    open_rows: int
    refused_blocks: int
    waiting_reports: int
    last_index: int | None
    trouble: Mapping[str, str]
    notes: tuple[str, ...] = ()
