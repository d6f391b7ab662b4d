"""How deployments are shown: lines, tables, and the panel of ``chancery deploy watch``.

Everything is made from what the database holds, so that any machine shows the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from governance.deployment_control import StoredDecision
from governance.deployment_records import DeploymentRecord, DeploymentStatus, time_text
from governance.deployment_resources import scale_of
from governance.deployment_wire import decision_document
from serve.arm_views import arm_bars, arm_lines, arm_places
from serve.cluster import application_of
from serve.course import Course
from serve.evidence import CanaryTestKind
from serve.records import Phase
from serve.rollout import RolloutState, why

__all__ = [
    "as_panel",
    "as_table",
    "course_of",
    "describe",
    "explain",
    "explained",
    "without_controller",
]

_COLOURS = {
    DeploymentStatus.SERVING: "green",
    DeploymentStatus.ROLLING_OUT: "cyan",
    DeploymentStatus.EXPERIMENTING: "cyan",
    DeploymentStatus.STARTING: "yellow",
    DeploymentStatus.UNHEALTHY: "red",
    DeploymentStatus.CLOSED: "red",
    DeploymentStatus.ENDED: "dim",
}


def course_of(record: DeploymentRecord) -> Course:
    """Where the deployment stands, as its controller saved it last."""
    try:
        return Course() if record.state is None else Course.from_json(record.state)
    except ValueError:
        return Course()


def _rollout(record: DeploymentRecord) -> RolloutState | None:
    """The rollout of the record; None while no controller has taken it up."""
    rollout = course_of(record).rollout
    return rollout if rollout is not None and rollout.id == record.rollout_id else None


def _place(record: DeploymentRecord) -> str:
    rollout = _rollout(record)
    if rollout is None:
        return "" if record.canary is None else "waiting for a controller"
    if rollout.phase is Phase.CANARY:
        return f"step {rollout.step + 1} of {len(rollout.config.steps)}, {rollout.percent:g} %"
    return rollout.phase.value.replace("_", " ")


def as_table(records: Sequence[DeploymentRecord]) -> Table:
    """One line a deployment."""
    table = Table(box=SIMPLE, pad_edge=False)
    for name in ("route", "env", "stable", "canary", "status", "port", "id"):
        table.add_column(name, overflow="fold")
    for record in records:
        status = Text(record.status.value.replace("_", " "), _COLOURS[record.status])
        if place := _place(record):
            status.append(f"\n{place}", "dim")
        for place in arm_places(record):
            status.append(f"\n{place}", "dim")
        table.add_row(
            record.route,
            record.environment,
            f"{record.model_name}/{record.stable.version}",
            f"{record.model_name}/{record.canary.version}" if record.canary else "",
            status,
            "" if record.port is None else str(record.port),
            record.deploy_id[:8],
        )
    return table


def without_controller(record: DeploymentRecord, now_ms: int) -> bool:
    """Whether nobody decides for it: not yet, or its controller was lost."""
    return record.stopped_ms is None and record.lease_until_ms <= now_ms


def _controller(record: DeploymentRecord, now_ms: int) -> str:
    if not without_controller(record, now_ms):
        return f"{record.lease_owner or 'none'}, lease {record.fence}"
    if record.lease_owner is None:
        return "none yet: `chancery deploy operate` starts one"
    since = time_text(record.lease_until_ms) if record.lease_until_ms else "it let go"
    return (
        f"none: that of {record.lease_owner} is gone since {since}; `chancery deploy operate` "
        "starts one"
    )


def _sizes(record: DeploymentRecord, course: Course) -> list[str]:
    """How many replicas there are to be, and why."""
    scale = scale_of(record.resources)
    if scale is None:
        return [f"replicas   {record.resources.get('replicas', 1)} of each variant"]
    lines = [f"scale      {scale.to_document()['replicas']}"]
    lines[0] += "".join(
        f", {target:g} {'requests/s' if name == 'rps' else 'at a time'} for each"
        for target, name in scale.targets
    )
    lines += [f"           {window}" for window in scale.schedule]
    names = {application_of(record, one): one for one in (record.stable, record.canary) if one}
    for name, served in names.items():
        scaled = course.scaled.get(name)
        if scaled is not None:
            count = str(scaled.replicas) if scaled.replicas else "none, it sleeps"
            since = time_text(scaled.changed_ms)
            lines.append(
                f"replicas   {count} of version {served.version} since {since}: {scaled.reason}"
            )
    return lines


def describe(record: DeploymentRecord, now_ms: int) -> list[str]:
    """A deployment in lines."""
    course = course_of(record)
    lines = [
        f"deployment {record.deploy_id}",
        f"route      {record.route} ({record.environment}), {record.status.value}"
        + (f", port {record.port}" if record.port else ""),
        f"stable     {record.uri_of(record.stable)}  {record.stable.root_digest[:16]}…",
    ]
    if record.canary is not None:
        lines.append(f"canary     {record.uri_of(record.canary)}  {_place(record)}")
        lines.append(f"began      {record.rollout_by}, {time_text(record.rollout_ms or 0)}")
    elif place := _place(record):
        lines.append(f"rollout    the last one was {place}")
    lines += arm_lines(record, course.beside)
    if record.previous is not None:
        lines.append(f"before     {record.uri_of(record.previous)}")
    signers = record.provenance.get("signers")
    if signers:
        lines.append(f"signed by  {', '.join(signers)}")
    lines += _sizes(record, course)
    lines.append(f"deployed   by {record.created_by}, {time_text(record.created_ms)}")
    lines.append(f"controller {_controller(record, now_ms)}")
    if course.paused:
        lines.append(f"paused     {course.paused}")
    if record.closed:
        lines.append(f"closed     {record.closed}")
    if record.ended_ms is not None:
        lines.append(f"ended      by {record.ended_by}: {record.ended_reason}")
    lines += [f"alert      {time_text(n.at_ms)} {n.text}" for n in course.notices[-5:]]
    return lines


def explain(record: DeploymentRecord, decisions: Sequence[StoredDecision]) -> list[str]:
    """Why the deployment is where it is, in sentences with the numbers."""
    lines = [record.closed] if record.closed else []
    rollout = _rollout(record)
    if rollout is None:
        waits = "waits for a controller" if record.canary else "has had no rollout yet"
        return [*lines, f"The route {record.route!r} {waits}."]
    lines += why(rollout)
    course = course_of(record)
    lines += _answers(rollout, course)
    if paused := course.paused:
        lines.append(f"It was paused by {paused}")
    ours = [notice for notice in course.notices if notice.id.startswith(f"{rollout.id}/metric/")]
    lines += [f"Noticed {time_text(notice.at_ms)}: {notice.text}" for notice in ours]
    past = [decision for decision in decisions if decision.rollout_id == rollout.id]
    if past:
        lines.append("Decisions:")
    for decision in past:
        said = decision.document
        words = " ".join(map(str, said["explanation"]))
        lines.append(
            f"  {decision.number}. {time_text(said['atMs'])} {said['outcome']} "
            f"({said['percent']} %): {words}"
        )
    return lines


def _answers(rollout: RolloutState, course: Course) -> list[str]:
    """Where the canary's answers lie, beside stable's."""
    if course.bins is None or course.bins.rollout != rollout.id:
        return []
    counts = next(
        evidence.buckets
        for test, evidence in zip(rollout.judge.tests, rollout.judge.evidence, strict=True)
        if test.kind is CanaryTestKind.OUTPUTS
    )
    said = course.bins.compared(*counts)
    return [said] if said else []


def explained(record: DeploymentRecord, decisions: Sequence[StoredDecision]) -> dict[str, Any]:
    """The same as JSON."""
    rollout = _rollout(record)
    return {
        "deployId": record.deploy_id,
        "route": record.route,
        "rolloutId": record.rollout_id,
        "phase": None if rollout is None else rollout.phase.value,
        "step": None if rollout is None else rollout.step,
        "percent": None if rollout is None else f"{rollout.percent:.10g}",
        "sentences": explain(record, ()),
        "verdicts": []
        if rollout is None
        else [verdict.to_dict() for verdict in rollout.judge.verdicts()],
        "decisions": [decision_document(one) for one in decisions],
    }


def as_panel(record: DeploymentRecord, now_ms: int) -> RenderableType:
    """The live view."""
    rollout, course = _rollout(record), course_of(record)
    parts: list[RenderableType] = [_bars(record, rollout)]
    if rollout is not None:
        parts += _progress(rollout)
        parts.append(_tests(rollout))
        if rollout.last_change is not None:
            parts.append(Text(rollout.last_change.explain(), "italic"))
    if course.paused:
        parts.append(Text(f"paused by {course.paused}", "yellow"))
    if record.closed:
        parts.append(Text(record.closed, "bold red"))
    parts += [Text(f"! {notice.text}", "yellow") for notice in course.notices[-3:]]
    age = "never" if record.saved_ms is None else f"{(now_ms - record.saved_ms) / 1000:.0f} s ago"
    return Panel(
        Group(*parts),
        title=f"{record.route} · {record.environment} · {record.status.value.replace('_', ' ')}",
        subtitle=f"{record.deploy_id[:12]} · controller {record.lease_owner or 'none'} · "
        f"saved {age}",
        border_style=_COLOURS[record.status],
    )


def _bars(record: DeploymentRecord, rollout: RolloutState | None) -> Table:
    running = rollout is not None and not rollout.phase.terminal and record.canary is not None
    share = rollout.percent if running and rollout is not None else 0.0
    grid = Table.grid(padding=(0, 1))
    arms, taken = arm_bars(record, course_of(record).beside)
    rest = 0.0 if record.closed else 100 - share - taken
    rows = [("stable", record.uri_of(record.stable), rest, "green")]
    if record.canary is not None:
        rows.append(("canary", record.uri_of(record.canary), share, "cyan"))
    rows += [(name, uri, percent, "magenta") for name, uri, percent in arms]
    for name, uri, percent, colour in rows:
        bar = ProgressBar(100, percent, width=40, complete_style=colour, finished_style=colour)
        grid.add_row(name, uri, bar, f"{percent:g} %")
    return grid


def _progress(rollout: RolloutState) -> list[RenderableType]:
    """The steps, and how far the present one is."""
    marks = Text()
    for position, percent in enumerate(rollout.config.steps):
        here = rollout.phase is Phase.CANARY and position == rollout.step
        done = rollout.phase is Phase.PROMOTED or (
            rollout.phase is Phase.CANARY and position < rollout.step
        )
        style = "bold cyan" if here else "green" if done else "dim"
        marks.append(f"{'●' if done or here else '○'} {percent:g} %  ", style)
    lines: list[RenderableType] = [marks]
    if rollout.phase is Phase.CANARY:
        config, log_e = rollout.config, rollout.judge.log_e
        lines.append(
            Text(
                f"{rollout.requests} of {config.min_samples} requests · "
                f"{rollout.watched_ms / 1000:.0f} of {config.min_seconds:g} s · evidence against "
                f"e^{log_e:.2f} of e^{rollout.judge.threshold:.2f}",
                "red" if rollout.judge.doubtful else "",
            )
        )
    return lines


def _tests(rollout: RolloutState) -> Table:
    table = Table("test", "canary", "stable", "n", "evidence", "needed", box=None, pad_edge=False)
    for verdict in rollout.judge.verdicts():
        table.add_row(
            verdict.test,
            f"{verdict.canary:.4g}" if verdict.n_canary else "–",
            f"{verdict.stable:.4g}" if verdict.n_stable else "–",
            f"{verdict.n_canary} / {verdict.n_stable}",
            Text(f"e^{verdict.log_e:.2f}", "red" if verdict.log_e > verdict.threshold / 2 else ""),
            f"e^{verdict.threshold:.2f}",
        )
    return table
