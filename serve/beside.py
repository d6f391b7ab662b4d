"""What follows from an experiment and a shadow: what runs, who gets traffic, and when they end.

All of it follows from the deployment's record and the controller's course, so that whoever takes
over does the same.

- An arm's application is started, verified as it loads, and gets its clients only when it runs and
  every gateway can ask it; until then, and whenever it does not run, stable answers them. The
  others' clients stay where they are.
- A revoked version stops at once, for good: its clients are stable's, and people are told.
- A shadow has an application of its own. One whose version answers on the route (it was rolled
  out, or became an arm) stops: its copies would wait in line with clients.

Example::

    change = after_look(beside, record, revoked)
    change.beside, change.left, change.notices
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from governance.arms import WHOLE, ServedVersion
from governance.deployment_records import DeploymentRecord
from serve.arms import SHADOW, ArmCourse, Beside, ExperimentCourse, ShadowCourse
from serve.cluster import Running, VariantSpec, VariantState, application_of, spec_of
from serve.plan import ExperimentPlan, Plan, ShadowPlan, VariantPlan
from serve.presence import Presence

__all__ = ["Change", "after_look", "applications", "opened", "specs", "with_beside"]


@dataclass(frozen=True, slots=True)
class Change:
    """What a look brought.

    Attributes:
        beside: What is there now.
        left: Applications that are wanted no more.
        notices: What people should see, by an id.
    """

    beside: Beside
    left: tuple[str, ...] = ()
    notices: tuple[tuple[str, str], ...] = ()


def after_look(beside: Beside, record: DeploymentRecord, revoked: Mapping[str, str]) -> Change:
    """Take in what people wrote of experiments and shadows, and which versions were revoked.

    Args:
        beside: What was there.
        record: The deployment as it is now.
        revoked: Why a version may not answer any more, by its uid.
    """
    before = _known(record, beside)
    notices: list[tuple[str, str]] = []
    experiment = beside.experiment
    wanted = record.experiment
    if experiment is not None and (wanted is None or wanted.id != experiment.id):
        experiment = replace(experiment, ended=True)
    if wanted is not None:
        if experiment is None or experiment.id != wanted.id:
            experiment = ExperimentCourse.start(wanted)
        uids = {arm.name: arm.served for arm in wanted.arms}
        arms = []
        for arm in experiment.arms:
            served = uids[arm.name]
            why = revoked.get(served.version_uid)
            if why is not None and not arm.stopped:
                arm = replace(arm, open=False, stopped=f"it was revoked: {why}")
                notices.append(
                    (
                        f"{experiment.id}/{arm.name}/revoked",
                        f"{record.uri_of(served)}, arm {arm.name!r} of the experiment "
                        f"{experiment.name!r} on the route {record.route!r}, was revoked: {why}. "
                        "Stable answers its clients.",
                    )
                )
            arms.append(arm)
        experiment = replace(experiment, arms=tuple(arms))
    shadow = beside.shadow
    copied = record.shadow
    if shadow is not None and (copied is None or copied.id != shadow.id):
        shadow = replace(shadow, ended=True)
    if copied is not None:
        if shadow is None or shadow.id != copied.id:
            shadow = ShadowCourse.start(copied)
        why = revoked.get(copied.served.version_uid)
        stopped = "" if why is None else f"it was revoked: {why}"
        if copied.served in replace(record, shadow=None).served:
            stopped = stopped or "its version answers on the route itself"
        if stopped and not shadow.stopped:
            shadow = replace(shadow, open=False, stopped=stopped)
            notices.append(
                (
                    f"{shadow.id}/stopped",
                    f"{record.uri_of(copied.served)} gets no more copies on the route "
                    f"{record.route!r}: {stopped}.",
                )
            )
    after = Beside(experiment, shadow, beside.seen)
    left = before - {spec.application for spec in specs(record, after)}
    return Change(after, tuple(sorted(left)), tuple(notices))


def applications(record: DeploymentRecord, beside: Beside) -> set[str]:
    """All that may run of a deployment, by what record and course know."""
    served = (*record.served, record.previous)
    return {application_of(record, one) for one in served if one} | _known(record, beside)


def _known(record: DeploymentRecord, beside: Beside) -> set[str]:
    """What the course knows to run of arms and shadow."""
    versions: set[int] = set()
    if beside.experiment is not None and not beside.experiment.ended:
        versions |= {arm.version for arm in beside.experiment.arms if not arm.stopped}
    if beside.shadow is not None and not (beside.shadow.ended or beside.shadow.stopped):
        versions.add(beside.shadow.version)
    return {application_of(record, ServedVersion(version, "", "")) for version in versions}


def specs(record: DeploymentRecord, beside: Beside) -> list[VariantSpec]:
    """What should run of them."""
    return [spec_of(record, served) for _, served in _running(record, beside)]


def _running(record: DeploymentRecord, beside: Beside) -> list[tuple[str, ServedVersion]]:
    """Variants and their versions that may run: not stopped, and known to the course."""
    found = []
    wanted, course = record.experiment, beside.experiment
    if wanted is not None and course is not None and course.id == wanted.id:
        stopped = {arm.name for arm in course.arms if arm.stopped}
        found += [(arm.name, arm.served) for arm in wanted.arms if arm.name not in stopped]
    shadow = beside.shadow
    if record.shadow is not None and shadow is not None and shadow.id == record.shadow.id:
        found += [] if shadow.stopped else [(SHADOW, record.shadow.served)]
    return found


def opened(
    beside: Beside,
    record: DeploymentRecord,
    states: Mapping[str, VariantState],
    presence: Presence,
    *,
    away: bool,
    now: int,
) -> Change:
    """Who may get traffic, by how the applications do.

    Args:
        beside: What is there.
        record: The deployment.
        states: How applications do; those that are not told stay as they are.
        presence: Which gateways are there, and whom they can ask.
        away: The database is away: nobody gets traffic who had none, for a revocation would not
            be seen.
        now: The time.
    """
    notices: list[tuple[str, str]] = []
    changed: dict[str, bool] = {}
    present = {arm.name: arm.open for arm in (beside.experiment.arms if beside.experiment else ())}
    if beside.shadow is not None:
        present[SHADOW] = beside.shadow.open
    for name, served in _running(record, beside):
        state = states.get(application_of(record, served))
        if state is None:
            continue
        if state.running is Running.RUNNING:
            if not present[name] and not away and presence.connected(name, now):
                changed[name] = True
        elif state.running is not Running.STARTING:
            if present[name]:
                changed[name] = False
            if present[name] or state.running is not Running.ABSENT:
                notices.append(_told(record, beside, name, served, state, now, present[name]))
    if not changed:
        return Change(beside, notices=tuple(notices))
    experiment, shadow = beside.experiment, beside.shadow
    if experiment is not None:
        arms = tuple(replace(a, open=changed.get(a.name, a.open)) for a in experiment.arms)
        experiment = replace(experiment, arms=arms)
    if shadow is not None:
        shadow = replace(shadow, open=changed.get(SHADOW, shadow.open))
    return Change(Beside(experiment, shadow, beside.seen), notices=tuple(notices))


def _told(
    record: DeploymentRecord,
    beside: Beside,
    name: str,
    served: ServedVersion,
    state: VariantState,
    now: int,
    was_open: bool,
) -> tuple[str, str]:
    """What people see of one that does not run: once when it never did, else each time."""
    why = f"is {state.running.value}: {state.reason or 'no reason is known'}"
    where = f"on the route {record.route!r} {why}."
    if name == SHADOW and beside.shadow is not None:
        words = f"The shadow {record.uri_of(served)} {where} No copies are sent."
        identifier = f"{beside.shadow.id}/{state.running.value}"
    else:
        assert beside.experiment is not None
        words = f"{record.uri_of(served)}, arm {name!r}, {where} Stable answers its clients."
        identifier = f"{beside.experiment.id}/{name}/{state.running.value}"
    return (f"{identifier}/{now}" if was_open else identifier), words


def with_beside(
    plan: Plan, record: DeploymentRecord, beside: Beside, running: Collection[str]
) -> Plan:
    """A plan with the arms' clients and the shadow's copies.

    Args:
        plan: With stable, and the canary if there is one.
        record: The deployment.
        beside: What is there beside them.
        running: Applications that run: they get lanes before they get traffic.
    """
    if plan.closed:
        return plan
    allowed = dict(_running(record, beside))
    variants = list(plan.variants)
    weights, experiment, shadows = plan.weights, plan.experiment, plan.shadows
    wanted, course = record.experiment, beside.experiment
    if wanted is not None and course is not None and course.id == wanted.id:
        present = _ready(course.arms, record, allowed, running)
        limits = {arm.name: arm for arm in wanted.arms}
        for arm in present:
            order = limits[arm.name]
            variants.append(
                VariantPlan(
                    arm.name,
                    record.model_name,
                    str(order.served.version),
                    application_of(record, order.served),
                    float(order.timeout_seconds),
                    order.max_concurrency,
                )
            )
        weights = _weights(dict(_parts(wanted.stretches)), present)
        experiment = ExperimentPlan(wanted.id, wanted.name, wanted.stretches)
    copied, shadow = record.shadow, beside.shadow
    if copied is not None and shadow is not None and SHADOW in allowed:
        application = application_of(record, copied.served)
        if shadow.open or application in running:
            variants.append(
                VariantPlan(
                    SHADOW,
                    record.model_name,
                    str(copied.served.version),
                    application,
                    float(copied.timeout_seconds),
                    copied.max_in_flight,
                )
            )
        if shadow.open:
            shadows = (
                ShadowPlan(
                    SHADOW, shadow.id, float(copied.percent), copied.max_in_flight, copied.compare
                ),
            )
    sticky = plan.sticky if wanted is None or experiment is None else wanted.sticky
    return replace(
        plan,
        variants=tuple(variants),
        weights=weights,
        sticky=sticky,
        shadows=shadows,
        experiment=experiment,
    )


def _parts(stretches: tuple[tuple[str, int], ...]) -> dict[str, int]:
    """Parts of the line by arm."""
    found: dict[str, int] = {}
    for name, parts in stretches:
        found[name] = found.get(name, 0) + parts
    return found


def _ready(
    arms: tuple[ArmCourse, ...],
    record: DeploymentRecord,
    allowed: Mapping[str, ServedVersion],
    running: Collection[str],
) -> list[ArmCourse]:
    """Arms that gateways are told of."""
    return [
        arm
        for arm in arms
        if arm.name in allowed
        and (arm.open or application_of(record, allowed[arm.name]) in running)
    ]


def _weights(parts: Mapping[str, int], arms: list[ArmCourse]) -> tuple[tuple[str, float], ...]:
    """Percent by open arm; stable has the rest."""
    shares = [(arm.name, parts[arm.name] * 100 / WHOLE) for arm in arms if arm.open]
    rest = WHOLE - sum(parts[arm.name] for arm in arms if arm.open)
    return (*shares, ("stable", rest * 100 / WHOLE)) if rest else tuple(shares)
