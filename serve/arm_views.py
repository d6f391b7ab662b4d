"""How experiments and shadows are shown among the rest of a deployment.

Example::

    lines += arm_lines(record, course.beside)
"""

from __future__ import annotations

from governance.deployment_records import DeploymentRecord, time_text
from serve.arms import Beside

__all__ = ["arm_bars", "arm_lines", "arm_places"]


def _states(record: DeploymentRecord, beside: Beside) -> dict[str, str]:
    """By arm, what people should know of it; empty: it answers its clients."""
    wanted, course = record.experiment, beside.experiment
    if wanted is None:
        return {}
    if course is None or course.id != wanted.id:
        return {arm.name: "waiting for a controller" for arm in wanted.arms}
    return {
        arm.name: f"stopped: {arm.stopped}"
        if arm.stopped
        else ""
        if arm.open
        else "away, stable answers its clients"
        for arm in course.arms
    }


def _of_shadow(record: DeploymentRecord, beside: Beside) -> str:
    """What people should know of the shadow; empty: it gets copies."""
    wanted, course = record.shadow, beside.shadow
    if wanted is None:
        return ""
    if course is None or course.id != wanted.id:
        return "waiting for a controller"
    return f"stopped: {course.stopped}" if course.stopped else "" if course.open else "away"


def arm_lines(record: DeploymentRecord, beside: Beside) -> list[str]:
    """An experiment and a shadow in lines."""
    lines, states = [], _states(record, beside)
    if (experiment := record.experiment) is not None:
        lines.append(
            f"experiment {experiment.name}, clients by {experiment.sticky}; {experiment.begun_by}, "
            f"{time_text(experiment.begun_ms)}"
        )
        for arm in experiment.arms:
            state = states[arm.name]
            words = f"  {state}" if state else ""
            lines.append(
                f"  arm      {arm.name}: {arm.weight} % to {record.uri_of(arm.served)}{words}"
            )
    if (shadow := record.shadow) is not None:
        state = _of_shadow(record, beside)
        lines.append(
            f"shadow     {record.uri_of(shadow.served)}, copies of {shadow.percent} % of the "
            f"requests{'  ' + state if state else ''}; {shadow.begun_by}, "
            f"{time_text(shadow.begun_ms)}"
        )
    return lines


def arm_places(record: DeploymentRecord) -> list[str]:
    """In the list: in a few words each."""
    found = []
    if (experiment := record.experiment) is not None:
        found.append(experiment.name)
        found += [f"{a.name} v{a.served.version} {a.weight} %" for a in experiment.arms]
    if (shadow := record.shadow) is not None:
        found.append(f"shadow v{shadow.served.version} {shadow.percent} %")
    return found


def arm_bars(
    record: DeploymentRecord, beside: Beside
) -> tuple[list[tuple[str, str, float]], float]:
    """Rows of the live view: name, version and percent; and what all arms have together."""
    rows, taken = [], 0.0
    states = _states(record, beside)
    for arm in record.experiment.arms if record.experiment else ():
        percent = 0.0 if record.closed or states[arm.name] else float(arm.weight)
        taken += percent
        rows.append((arm.name, record.uri_of(arm.served), percent))
    if record.shadow is not None:
        copied = (
            0.0 if record.closed or _of_shadow(record, beside) else float(record.shadow.percent)
        )
        rows.append(("shadow", f"{record.uri_of(record.shadow.served)} (copies)", copied))
    return rows, taken
