"""Calls a detector so that nothing it does can pass for "no drift".

What happens                                        the finding
=================================================  ==============================================
a column is missing or changed its kind             trouble: which
an empty or one-row window, or one below 20 rows    too few rows: how many
it raises                                           trouble: the error
it takes longer than the limit                      trouble: the limit
its p-value or statistic is NaN or infinite         trouble: not finite
its statistics of a column are not finite           trouble: which column
=================================================  ==============================================

A detector runs in a thread, which Python cannot end: one that hangs is left behind. While it hangs
it is not asked again (``trouble`` at once), nor is any other once eight hang, so that threads do
not pile up. What runs in a process of its own (``drift.alibi_backend``) is killed.

Example::

    finding = examine(Default(), reference, window, np.random.default_rng(7))
    finding.verdict, finding.p_value
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from threading import Lock, Thread

import numpy as np

from drift.detector import FEWEST_ROWS, Detector, Finding, Verdict
from drift.sample import MOST_ROWS, Sample, aligned
from governance.errors import GovernanceError

__all__ = ["examine"]

_MOST_HANGING = 8
_hanging: list[tuple[Detector, Thread]] = []
_guard = Lock()


def examine(
    detector: Detector,
    reference: Sample,
    window: Sample,
    rng: np.random.Generator,
    *,
    limit_s: float = 60.0,
    most_rows: int = MOST_ROWS,
    clock: Callable[[], float] = time.monotonic,
) -> Finding:
    """Ask a detector about a window. Raises nothing that the detector raises; see the module."""
    began = clock()
    notes: tuple[str, ...] = ()

    def ended(verdict: Verdict, why: str) -> Finding:
        return Finding(
            detector.name,
            detector.backend,
            verdict,
            statistic=None,
            p_value=None,
            threshold=detector.threshold,
            seconds=clock() - began,
            trouble=why,
            notes=notes,
        )

    for what, sample in (("window", window), ("reference", reference)):
        if sample.rows < FEWEST_ROWS:
            few = f"too few rows: the {what} has {sample.rows} of at least {FEWEST_ROWS}"
            return ended(Verdict.TOO_FEW_ROWS, few)
    try:
        window, notes = aligned(reference, window)
    except GovernanceError as error:
        return ended(Verdict.TROUBLE, error.message)
    ours, theirs = reference.drawn(rng, most_rows), window.drawn(rng, most_rows)
    answer = _bounded(detector, ours, theirs, rng, limit_s)
    if isinstance(answer, str):
        return ended(Verdict.TROUBLE, answer)
    finding = replace(answer, seconds=clock() - began, notes=(*notes, *answer.notes))
    why = _not_finite(finding)
    if not why:
        return finding
    return replace(
        finding,
        verdict=Verdict.TROUBLE,
        statistic=_finite_or_none(finding.statistic),
        p_value=_finite_or_none(finding.p_value),
        columns=tuple(c for c in finding.columns if math.isfinite(c.statistic)),
        trouble=why,
    )


def _bounded(
    detector: Detector, ours: Sample, theirs: Sample, rng: np.random.Generator, limit_s: float
) -> Finding | str:
    """The detector's answer; a text: why there is none."""
    own = rng.spawn(1)[0]  # one left behind must not draw from the caller's
    answers: list[Finding | str] = []

    def ask() -> None:
        try:
            answers.append(detector.find(ours, theirs, own))
        except GovernanceError as error:
            answers.append(str(error))
        except BaseException as error:  # noqa: BLE001 - becomes an alarm, whatever it is
            answers.append(f"it raised {type(error).__name__}: {error}"[:500])

    with _guard:
        _hanging[:] = [(d, thread) for d, thread in _hanging if thread.is_alive()]
        if any(hangs is detector for hangs, _ in _hanging):
            return "an earlier check of this detector still hangs"
        if len(_hanging) >= _MOST_HANGING:
            return f"{_MOST_HANGING} checks of other detectors still hang in this process"
    thread = Thread(target=ask, name=f"drift-{detector.name}", daemon=True)
    thread.start()
    thread.join(limit_s)
    if not answers:
        with _guard:
            _hanging.append((detector, thread))
        return f"it took longer than {limit_s:g} s"
    answer = answers[0]
    if not isinstance(answer, Finding | str):
        return f"it answered {type(answer).__name__}, not a finding"
    return answer


def _not_finite(finding: Finding) -> str:
    """Why this cannot count as an answer; empty: it can."""
    if finding.verdict is not Verdict.DRIFT and finding.verdict is not Verdict.NO_DRIFT:
        return ""
    if finding.statistic is None and finding.p_value is None:
        return "it found neither a statistic nor a p-value"
    for what, value in (("p-value", finding.p_value), ("statistic", finding.statistic)):
        if value is not None and not math.isfinite(value):
            return f"its {what} is not finite"
    for column in finding.columns:
        values = column.statistic, column.p_value
        if any(value is not None and not math.isfinite(value) for value in values):
            return f"its {column.test} of {column.column!r} is not finite"
    return ""


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
