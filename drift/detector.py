"""The protocol of confirmatory detectors, and what they answer.

A ``Detector`` compares two samples and may do as it likes: raise, hang, answer nonsense. Call it
by ``drift.examine.examine`` alone, which lines the samples up, bounds rows and time, and turns all
that goes wrong into an alarm: a check that could not be made never reads as "no drift".

``too few rows`` is an answer of its own: neither drift nor its absence.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np

from drift.sample import Kind, Sample

__all__ = [
    "FEWEST_ROWS",
    "Backend",
    "ColumnFinding",
    "Detector",
    "Finding",
    "Kind",
    "Sample",
    "Verdict",
]

FEWEST_ROWS = 20
"""Of the reference and of the window: below it the approximations to p-values do not hold."""


class Backend(StrEnum):
    NATIVE = "native"
    ALIBI = "alibi"


class Verdict(StrEnum):
    DRIFT = "drift"
    NO_DRIFT = "no drift"
    TOO_FEW_ROWS = "too few rows"
    TROUBLE = "trouble"


@dataclass(frozen=True, slots=True)
class ColumnFinding:
    """What a detector found for one column, or one test of several.

    Attributes:
        column: Its name; ``output 0``, ``label`` and the like for what is no column.
        test: ``ks``, ``chi2``, ``missing``, ``unseen``; in a combination the detector's name.
        statistic: Distance, chi-square, difference of shares …
        p_value: Before any correction for many tests; None: the test has none.
    """

    column: str
    test: str
    statistic: float
    p_value: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A detector's answer.

    Attributes:
        detector: Its name.
        backend: Who computed it.
        verdict: In one word.
        statistic: What the detector decides by, None where it could not be had.
        p_value: Corrected for the tests that it took; None: none, as of online detectors.
        threshold: The level of ``p_value``, or of ``statistic`` where there is no p-value.
        columns: By column or by test, smallest p-value first.
        seconds: It took.
        trouble: Why the verdict is ``trouble`` or ``too few rows``.
        notes: What a reader must know: columns left out, another backend than asked for.
    """

    detector: str
    backend: Backend
    verdict: Verdict
    statistic: float | None
    p_value: float | None
    threshold: float
    columns: tuple[ColumnFinding, ...] = ()
    seconds: float = 0.0
    trouble: str = ""
    notes: tuple[str, ...] = ()

    @property
    def is_drift(self) -> bool | None:
        """True also in trouble: it is an alarm. None: too few rows to say."""
        if self.verdict is Verdict.TOO_FEW_ROWS:
            return None
        return self.verdict is not Verdict.NO_DRIFT

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "is_drift": self.is_drift}


class Detector(Protocol):
    """Compares a window with a reference.

    Both have the same columns and at least ``FEWEST_ROWS`` rows each.
    """

    @property
    def name(self) -> str: ...

    @property
    def backend(self) -> Backend: ...

    @property
    def threshold(self) -> float:
        """The level at which it decides."""
        ...

    def find(self, reference: Sample, window: Sample, rng: np.random.Generator) -> Finding:
        """All randomness comes from ``rng``."""
        ...
