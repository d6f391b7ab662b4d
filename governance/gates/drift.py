"""What monitors say of a version, as conditions of a promotion. Pure.

Reports count that a monitor signed for this version, with these files, and that were judged by the
version's own profile. At least one must be young enough, and every one that is must be good enough:
a version that does well on one route does not make up for another. Tags say nothing here.

Example::

    conditions = list(drift_conditions(candidate, evidence, requirements.drift))
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from governance.gates.schema import DriftRequirement
from governance.records import Candidate, Condition, DriftEvidence, DriftFound, Evidence

__all__ = ["counted_reports", "drift_conditions"]


def counted_reports(evidence: Evidence, needs: DriftRequirement) -> tuple[DriftFound, ...]:
    """Those that are young enough and judged by the version's own profile, newest first."""
    found = evidence.drift or DriftEvidence()
    young = [
        one
        for one in found.reports
        if one.own_profile and evidence.as_of_ms - one.made_ms <= needs.max_age_ms
    ]
    return tuple(sorted(young, key=lambda one: -one.made_ms))


def drift_conditions(
    candidate: Candidate, evidence: Evidence, needs: DriftRequirement
) -> Iterator[Condition]:
    """Whether the version was watched, and does well enough."""
    found = evidence.drift or DriftEvidence()
    counted = counted_reports(evidence, needs)
    yield _report(candidate, evidence, found, counted, needs)
    if needs.no_open_alert:
        yield _alerts(found)
    if needs.estimated_accuracy_at_least is not None:
        yield _at_least(counted, needs.estimated_accuracy_at_least)
    if needs.estimated_accuracy_within is not None:
        yield _within(counted, needs.estimated_accuracy_within)


def _condition(name: str, met: bool, required: str, found: str, remedy: str) -> Condition:
    return Condition(f"drift:{name}", met, required, found, "" if met else remedy)


def _report(
    candidate: Candidate,
    evidence: Evidence,
    found: DriftEvidence,
    counted: tuple[DriftFound, ...],
    needs: DriftRequirement,
) -> Condition:
    required = (
        "A monitor must have reported on the version, by its own profile and signed, within "
        f"{needs.report_younger_than}"
    )
    again = (
        f"check rows that it scored, with `chancery drift check {shlex.quote(candidate.uri)} "
        "--data PATH`"
    )
    if counted:
        one = counted[0]
        told = f"{one.signed_by} did {_ago(evidence.as_of_ms - one.made_ms)}{_where(one)}"
        return _condition("report", True, required, told, "")
    foreign = [one for one in found.reports if not one.own_profile]
    if foreign:
        told = (
            f"the report{_where(foreign[0])} was judged by the profile {foreign[0].profile[:12]}, "
            "which is none of the version's files"
        )
        remedy = "watch the version with the profile that was logged with it, then ask again."
    elif found.reports:
        newest = max(found.reports, key=lambda one: one.made_ms)
        told = f"the last report{_where(newest)} is from {_ago(evidence.as_of_ms - newest.made_ms)}"
        remedy = f"see to it that its monitor runs (`chancery drift status`), or {again}."
    elif found.problems:
        told = "; ".join(found.problems[:2])
        remedy = f"have a monitor of the trust roots sign a new report, or {again}."
    else:
        told = "no monitor did"
        remedy = f"serve it beside a monitor (`chancery drift monitor`), or {again}."
    return _condition("report", False, required, told, remedy)


def _alerts(found: DriftEvidence) -> Condition:
    return _condition(
        "alerts",
        not found.alerts,
        "No alert about its drift may be open",
        "; ".join(found.alerts[:3]) if found.alerts else "none is open",
        "find out why it drifted, and close the alert with `chancery drift close`, or promote a "
        "version that was trained again.",
    )


def _at_least(counted: tuple[DriftFound, ...], least: float) -> Condition:
    required = f"Its estimated accuracy must be at least {least:g} wherever it is watched"
    for one in counted:
        value = one.estimated_accuracy
        if value is None:
            return _condition("accuracy", False, required, _unsaid(one), _SAY)
        if value < least:
            told = f"it is estimated at {value:g}{_where(one)}"
            return _condition("accuracy", False, required, told, _BETTER)
    return _judged("accuracy", required, counted)


def _within(counted: tuple[DriftFound, ...], most: float) -> Condition:
    required = f"Its estimated accuracy may have fallen by at most {most:g}"
    for one in counted:
        value, before = one.estimated_accuracy, one.reference_accuracy
        if value is None or before is None:
            return _condition("accuracy-fall", False, required, _unsaid(one), _SAY)
        if before - value > most:
            told = f"it fell from {before:g} to {value:g}{_where(one)}"
            return _condition("accuracy-fall", False, required, told, _BETTER)
    return _judged("accuracy-fall", required, counted)


_SAY = "fit the profile with labels and probabilities, so that monitors can estimate accuracy."
_BETTER = "train a version on newer data, and promote that."


def _judged(name: str, required: str, counted: tuple[DriftFound, ...]) -> Condition:
    if not counted:
        return _condition(name, False, required, "no report counts", "see to the report first.")
    lowest = min(one.estimated_accuracy or 0.0 for one in counted)
    return _condition(name, True, required, f"it is estimated at {lowest:g}", "")


def _unsaid(one: DriftFound) -> str:
    return f"the report{_where(one)} does not say"


def _where(one: DriftFound) -> str:
    return f" on the route {one.deployment!r}" if one.deployment else ""


def _ago(ms: int) -> str:
    for unit, length in (("day", 86_400_000), ("hour", 3_600_000), ("minute", 60_000)):
        if ms >= length:
            count = ms // length
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
