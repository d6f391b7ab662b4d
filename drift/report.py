"""What a monitor found in one window, as one document.

``chancery.drift-report/v1`` is canonical JSON: it has one digest, which is signed, put beside the
metrics, and read by the promotion gate. It names model, version, deployment and the digest of the
profile it was judged by, so that no report serves for another. Numbers that are not whole travel as
texts; there are no rows in it.

A ``Sink`` takes reports, in order and each at least once: what it does for a report that it saw
already must be nothing.

Example::

    report = WindowReport(subject, verdict, counts, made_ms=now_ms())
    report.digest, report.to_json()
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, is_dataclass
from enum import Enum
from functools import cached_property
from typing import Any, Protocol

from drift.cutter import Tally
from drift.detector import Finding
from drift.slices import Slice
from drift.stored import field_names
from drift.verdict import Verdict
from drift.window import WindowCounts
from governance.canonical import canonical_json, sha256_hex

__all__ = ["FORMAT", "Performance", "Sink", "Subject", "WindowReport"]

FORMAT = "chancery.drift-report/v1"

_MOST_COLUMNS = 100  # of each finding


@dataclass(frozen=True, slots=True)
class Subject:
    """What is watched.

    Attributes:
        model: Name of the registered model.
        version: Of the model.
        model_id: Of MLflow's logged model; empty: it has none.
        deployment: The route that serves it; empty: scored in batches.
        profile: Digest of the profile.
        owner: Whom alerts are for; empty: nobody is named.
    """

    model: str
    version: int
    model_id: str
    deployment: str
    profile: str
    owner: str = ""

    @property
    def uri(self) -> str:
        return f"models:/{self.model}/{self.version}"

    @property
    def key(self) -> str:
        """Of a monitoring run, an alert and a monitor's state: one for each thing watched."""
        return f"{self.model}/{self.version}/{self.deployment}"


@dataclass(frozen=True, slots=True)
class Performance:
    """How well the model did in the window. Shares are of 1; None: not known.

    Attributes:
        estimated_accuracy: Without labels; always called estimated.
        estimated_sd: Of the estimate.
        accuracy: On labels that came.
        labelled: Rows with a label.
        error_esr: Of the errors, as ``drift.error_rate`` has it.
        fairness: Name of a gap or ratio by attribute → its value.
        reference_accuracy: What the estimate is compared with; the promotion gate asks for it.
    """

    estimated_accuracy: float | None = None
    estimated_sd: float | None = None
    accuracy: float | None = None
    labelled: int = 0
    error_esr: float | None = None
    fairness: tuple[tuple[str, float], ...] = ()
    reference_accuracy: float | None = None


@dataclass(frozen=True)
class WindowReport:
    """See the module.

    Attributes:
        subject: What is watched.
        verdict: On the window.
        counts: By bin, of every column: what pictures are drawn from. Not in the document.
        findings: Of the detectors that were asked.
        slices: Where it drifted, strongest first.
        performance: Estimated and true.
        tally: What did not go into windows since the one before.
        made_ms: When it was made, since the epoch.
    """

    subject: Subject
    verdict: Verdict
    counts: WindowCounts
    findings: tuple[Finding, ...] = ()
    slices: tuple[Slice, ...] = ()
    performance: Performance = field(default_factory=Performance)
    tally: Tally = field(default_factory=Tally)
    made_ms: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        slices = [
            {**_plain_fields(one), "predicate": _conditions(one), "text": str(one.predicate)}
            for one in self.slices
        ]
        return {
            "format": FORMAT,
            "subject": _plain_fields(self.subject),
            "verdict": self.verdict.to_dict(),
            "findings": [_finding(one) for one in self.findings],
            "slices": _plain(slices),
            "performance": _plain(self.performance),
            "tally": self.tally.to_dict(),
            "madeMs": self.made_ms,
        }

    def to_json(self) -> bytes:
        """Canonical."""
        return self._json

    @cached_property
    def _json(self) -> bytes:
        return canonical_json(self.to_dict())

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of ``to_json``."""
        return sha256_hex(self.to_json())


class Sink(Protocol):
    """Takes reports; see the module. May raise ``OSError`` or ``GovernanceError``: asked again."""

    def publish(self, report: WindowReport) -> None: ...


def _finding(one: Finding) -> dict[str, Any]:
    """With the columns that moved most: a report on ten thousand stays small."""
    told: dict[str, Any] = _plain({**one.to_dict(), "columns": list(one.columns[:_MOST_COLUMNS])})
    return told


def _conditions(one: Slice) -> list[dict[str, Any]]:
    return [condition.to_dict() for condition in one.predicate.conditions]


def _plain_fields(one: Any) -> dict[str, Any]:
    kind: Any = type(one)
    return {name: getattr(one, name) for name in field_names(kind)}


def _plain(value: Any) -> Any:
    """Texts for numbers that are not whole; values of enumerations; lists for tuples."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(_plain_fields(value))
    raise TypeError(f"no JSON for {type(value).__name__}")  # a mistake of ours
