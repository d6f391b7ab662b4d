"""Confirmatory checks of a window: detectors and slices, on a sample of its rows.

They are asked when a window warns or alerts, and now and then by schedule; they explain and
confirm, and never take back a verdict. What they cannot do is a finding too: a detector that raises
or hangs, a slice tree that cannot be grown, a sample that lacks a column. A window that was ok and
has such findings warns. It does not alert: a p-value says how sure a detector is of independent
rows, and nothing of how large the change is.

Example::

    checked = check(Check(profile, reference, detectors, sample, seed=7))
    checked.findings, checked.slices
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from drift.block_rows import sample_of
from drift.blocks import Block
from drift.detector import FEWEST_ROWS, Backend, Detector, Finding, Verdict
from drift.examine import examine
from drift.profile import DriftProfile
from drift.sample import Sample
from drift.slices import STRONG_Z, Slice, find_slices
from drift.verdict import Level
from drift.verdict import Verdict as WindowVerdict
from governance.errors import GovernanceError, MalformedRequestError

__all__ = [
    "DETECTORS",
    "Check",
    "Checked",
    "check",
    "check_kept",
    "not_checked",
    "with_findings",
]

DETECTORS = {"native": ("default",), "alibi": ("tabular", "mmd", "classifier")}
"""What confirms an alarm where a configuration does not say."""


@dataclass(frozen=True, slots=True)
class Check:
    """What is to be checked.

    Attributes:
        profile: Names the columns.
        reference: A sample of the reference.
        detectors: Asked one after the other.
        rows: A sample of the window.
        seed: Of all that is drawn.
        limit_s: For each detector.
    """

    profile: DriftProfile
    reference: Sample
    detectors: Sequence[Detector]
    rows: Block
    seed: int
    limit_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found."""

    findings: tuple[Finding, ...]
    slices: tuple[Slice, ...] = ()


def check(asked: Check) -> Checked:
    """Ask the detectors, and look for slices. Raises nothing that they raise."""
    try:
        window = sample_of(asked.profile, asked.rows.inputs, asked.rows.outputs)
    except (GovernanceError, ValueError, TypeError) as error:
        return not_checked(asked.detectors, f"the sample cannot be read: {error}")
    rng = np.random.default_rng(asked.seed)
    findings = [
        examine(one, asked.reference, window, rng, limit_s=asked.limit_s) for one in asked.detectors
    ]
    few = min(window.rows, asked.reference.rows)
    if few < 2 * FEWEST_ROWS:
        why = f"too few rows: {few} of at least {2 * FEWEST_ROWS}"
        return Checked((*findings, _slices(Verdict.TOO_FEW_ROWS, why)))
    try:
        slices = find_slices(asked.reference, window, seed=asked.seed)
    except Exception as error:  # noqa: BLE001 - becomes an alarm, whatever it is
        why = error.message if isinstance(error, GovernanceError) else repr(error)
        return Checked((*findings, _slices(Verdict.TROUBLE, why[:500])))
    return Checked(tuple(findings), slices)


def check_kept(
    find: Callable[[], Block | None],
    profile: DriftProfile,
    reference: Sample,
    detectors: Sequence[Detector],
    *,
    index: int,
    limit_s: float,
) -> Checked:
    """``check``, of the sample that was kept of a window.

    Args:
        find: Reads it; None: it is gone.
        profile, reference, detectors, limit_s: As of ``Check``.
        index: Of the window.
    """
    try:
        rows = find()
    except MalformedRequestError as error:
        return not_checked(detectors, error.message)
    if rows is None:
        return not_checked(detectors, "its sample is gone")
    seed = (index ^ int(profile.digest[:8], 16)) & 0x7FFFFFFF
    return check(Check(profile, reference, detectors, rows, seed, limit_s))


def not_checked(detectors: Sequence[Detector], why: str) -> Checked:
    """A check that was not made reads as trouble."""
    return Checked(
        tuple(
            Finding(
                one.name, one.backend, Verdict.TROUBLE, None, None, one.threshold, trouble=why[:500]
            )
            for one in detectors
        )
    )


def with_findings(verdict: WindowVerdict, findings: Sequence[Finding]) -> WindowVerdict:
    """What a window's verdict is once it was checked."""
    alarms = tuple(_sentence(one) for one in findings if one.is_drift)
    if verdict.level is not Level.OK or not alarms:
        return verdict
    return replace(
        verdict,
        level=Level.WARN,
        reasons=(*verdict.reasons, *alarms),
        besides=(*verdict.besides, *alarms),
    )


def _sentence(one: Finding) -> str:
    name = f"detector {one.detector!r} ({one.backend.value})"
    if one.verdict is Verdict.TROUBLE:
        return f"{name} could not look: {one.trouble}"
    if one.p_value is not None:
        return f"{name} finds drift: p = {one.p_value:.2g} (alarm below {one.threshold:.3g})"
    if one.statistic is not None:
        return f"{name} finds drift: {one.statistic:.3g} (alarm from {one.threshold:.3g})"
    return f"{name} finds drift"


def _slices(verdict: Verdict, why: str) -> Finding:
    return Finding("slices", Backend.NATIVE, verdict, None, None, STRONG_Z, trouble=why)
