"""What a controller knows of its deployment and keeps in the database, and the plan it makes of it.

The plan follows from record and course alone, so that a controller that takes over makes the same
one. Revisions are ``fence · 2**20 + n``: whatever a controller with an older lease still says, a
gateway that heard of the newer one leaves aside.

Example::

    course = Course.from_json(record.state) if record.state else Course()
    plan = plan_of(record, course, revision=first_revision(record.fence))
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from governance.canonical import canonical_json, parse_json
from governance.deployment_records import DeploymentRecord, ServedVersion
from governance.deployment_resources import scale_of
from serve.arms import Beside
from serve.autoscaling import Scaled
from serve.beside import with_beside
from serve.cluster import application_of
from serve.outputs import OutputBins
from serve.plan import About, Plan, VariantPlan
from serve.records import Action, ActionKind, Phase
from serve.rollout import RolloutState
from serve.series import Series
from serve.watch import observing_of

__all__ = [
    "FORMAT",
    "Course",
    "Drain",
    "Notice",
    "OpenAction",
    "first_revision",
    "plan_of",
    "with_actions",
]

FORMAT = "chancery.deployment-course/v1"

_REVISIONS = 2**20


@dataclass(frozen=True, slots=True)
class OpenAction:
    """An alias that is to be set; which version was decided with the action."""

    id: str
    kind: ActionKind
    alias: str
    version: int


@dataclass(frozen=True, slots=True)
class Drain:
    """An application that is taken down when what it is at has had its time.

    Attributes:
        application: Its name.
        due_ms: Since the epoch.
        failed: A rollout that was not promoted left it: whoever wants it again starts it afresh.
    """

    application: str
    due_ms: int
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that people should see."""

    id: str
    at_ms: int
    text: str


@dataclass(frozen=True, slots=True)
class Course:
    """Where a deployment stands.

    Attributes:
        rollout: The rollout that runs, or the last one.
        open: Aliases to be set.
        drains: Applications to be taken down.
        paused: Why the rollout is paused; empty: it is not.
        closed: Why nobody answers; empty: they do.
        heard: Number of the last signal that is in here.
        notices: The newest alerts.
        series: How the rollout went over time.
        bins: In which the rollout's answers are counted; None: not known yet, or not wanted.
        beside: Experiment and shadow: those that run, or the last ones.
        scaled: How many replicas each application should have, where that follows demand.
        warmed_ms: When somebody asked last that there be a replica.
    """

    rollout: RolloutState | None = None
    open: tuple[OpenAction, ...] = ()
    drains: tuple[Drain, ...] = ()
    paused: str = ""
    closed: str = ""
    heard: int = 0
    notices: tuple[Notice, ...] = ()
    series: Series | None = None
    bins: OutputBins | None = None
    beside: Beside = field(default_factory=Beside)
    scaled: Mapping[str, Scaled] = field(default_factory=dict)
    warmed_ms: int = 0

    @property
    def running(self) -> RolloutState | None:
        """The rollout, while it runs."""
        rollout = self.rollout
        return None if rollout is None or rollout.phase.terminal else rollout

    def to_json(self) -> bytes:
        """Canonical JSON, format ``chancery.deployment-course/v1``."""
        rollout = self.rollout
        return canonical_json(
            {
                "format": FORMAT,
                "rollout": None if rollout is None else rollout.to_json().decode(),
                "open": [
                    {"id": a.id, "kind": a.kind.value, "alias": a.alias, "version": a.version}
                    for a in self.open
                ],
                "drains": [
                    {"application": d.application, "dueMs": d.due_ms}
                    | ({"failed": True} if d.failed else {})
                    for d in self.drains
                ],
                "paused": self.paused,
                "closed": self.closed,
                "heard": self.heard,
                "notices": [{"id": n.id, "atMs": n.at_ms, "text": n.text} for n in self.notices],
                "series": None if self.series is None else self.series.to_dict(),
                "bins": None if self.bins is None else self.bins.to_dict(),
                **({} if self.beside == Beside() else {"beside": self.beside.to_dict()}),
                "scaled": {name: scaled.to_dict() for name, scaled in self.scaled.items()},
                "warmedMs": self.warmed_ms,
            }
        )

    @classmethod
    def from_json(cls, data: bytes | str) -> Course:
        """Exact inverse of ``to_json``.

        Raises:
            ValueError: unknown format, or malformed.
        """
        document: Mapping[str, Any] = parse_json(data)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"not a {FORMAT} document")
        try:
            rollout, series = document["rollout"], document.get("series")
            bins = document.get("bins")
            beside = document.get("beside")
            return cls(
                rollout=None if rollout is None else RolloutState.from_json(rollout),
                open=tuple(
                    OpenAction(a["id"], ActionKind(a["kind"]), a["alias"], a["version"])
                    for a in document["open"]
                ),
                drains=tuple(
                    Drain(d["application"], d["dueMs"], d.get("failed", False))
                    for d in document["drains"]
                ),
                paused=document["paused"],
                closed=document["closed"],
                heard=document["heard"],
                notices=tuple(Notice(n["id"], n["atMs"], n["text"]) for n in document["notices"]),
                series=None if series is None else Series.from_dict(series),
                bins=None if bins is None else OutputBins.from_dict(bins),
                beside=Beside() if beside is None else Beside.from_dict(beside),
                scaled={
                    name: Scaled.from_dict(found)
                    for name, found in document.get("scaled", {}).items()
                },
                warmed_ms=document.get("warmedMs", 0),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"a malformed {FORMAT} document: {error}") from error


def with_actions(
    course: Course,
    record: DeploymentRecord,
    state: RolloutState,
    actions: Iterable[Action],
    drained_ms: int,
) -> Course:
    """The course with what there is to do. What should run, and weights, follow from state.

    Args:
        course: As it was.
        record: The deployment.
        state: The rollout's, after the actions were decided.
        actions: What there is to do.
        drained_ms: When what is left has had its time.
    """
    served = {"stable": record.stable, "canary": record.canary}
    opened, drains = list(course.open), list(course.drains)
    for action in actions:
        version = served.get(action.variant)
        if version is None:
            continue
        if action.kind in (ActionKind.PROMOTE_ALIAS, ActionKind.RESTORE_ALIAS):
            opened.append(OpenAction(action.id, action.kind, action.alias, version.version))
        elif action.kind is ActionKind.DRAIN:
            failed = state.phase is not Phase.PROMOTED
            drains.append(Drain(application_of(record, version), drained_ms, failed))
    return replace(course, rollout=state, open=tuple(opened), drains=tuple(drains))


def first_revision(fence: int) -> int:
    """Above every revision that was made under an earlier lease."""
    return fence * _REVISIONS + 1


def plan_of(
    record: DeploymentRecord,
    course: Course,
    *,
    revision: int,
    canary_runs: bool = True,
    canary_awaited: bool = False,
    running: Collection[str] = (),
) -> Plan:
    """What gateways are to do.

    Args:
        record: The deployment.
        course: Where it stands.
        revision: The plan's.
        canary_runs: Whether there is somebody to connect to; a canary gets its lanes before it
            gets traffic.
        canary_awaited: Whether it had traffic before this controller began and cannot be asked
            again yet: stable has all traffic meanwhile.
        running: Applications that run: arms and a shadow get lanes when theirs does.
    """
    about = _about(record, course)
    if course.closed:
        return Plan(revision, (), (), closed=course.closed, about=about)
    plan = _of_rollout(record, course, revision, canary_runs, canary_awaited)
    plan = replace(plan, about=about)
    return with_beside(plan, record, course.beside, running)


def _of_rollout(
    record: DeploymentRecord,
    course: Course,
    revision: int,
    canary_runs: bool,
    canary_awaited: bool,
) -> Plan:
    """Stable, and the canary while there is one."""
    variants = [_variant(record, "stable", record.stable)]
    weights = (("stable", 100.0),)
    rollout, canary = course.running, record.canary
    if rollout is None or canary is None or rollout.id != record.rollout_id:
        return Plan(revision, tuple(variants), weights, salt=record.route)
    config, percent = rollout.config, 0.0 if canary_awaited else rollout.percent
    if rollout.phase is Phase.CANARY or canary_runs:
        variants.append(
            _variant(
                record,
                "canary",
                canary,
                timeout_s=config.timeout_seconds,
                max_concurrency=config.max_concurrency,
            )
        )
    parts = (("canary", percent), ("stable", 100 - percent))
    return Plan(
        revision,
        tuple(variants),
        tuple((name, share) for name, share in parts if share),
        salt=f"{record.route}/{rollout.id}",
        sticky=config.sticky,
        retry_on_stable=config.retry_on_stable,
        observing=observing_of(rollout, course.bins),
    )


def _about(record: DeploymentRecord, course: Course) -> About:
    """What metrics and traces say of the deployment."""
    rollout = course.rollout
    if rollout is None or rollout.id != record.rollout_id:
        return About(record.deploy_id, record.route, record.environment)
    return About(
        record.deploy_id,
        record.route,
        record.environment,
        rollout.id,
        rollout.phase.value,
        rollout.step,
        len(rollout.config.steps),
    )


def _variant(
    record: DeploymentRecord, name: str, served: ServedVersion, **limits: Any
) -> VariantPlan:
    known = record.provenance.get("rootDigest") == served.root_digest
    scale = scale_of(record.resources)
    return VariantPlan(
        name,
        record.model_name,
        str(served.version),
        application_of(record, served),
        **limits,
        statement=(record.provenance.get("statementId") or "") if known else "",
        hold_s=0.0 if scale is None else scale.held_s,
    )
