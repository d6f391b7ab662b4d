"""Drift in our tables: what is watched, and alerts; each change with its event on the ledger.

Every function works on the caller's connection, in the caller's transaction. Whoever changes
something takes the subject's row first (``hold``), so that of two windows, or a window and a
person, at the same moment, one comes after the other.

Ids of events follow from what they are about, so that the promotion gate finds the entries that
prove (or belie) a row, and sees it when rows are missing: alerts of a version, and reports that
are kept, are numbered without gaps.

Example::

    with engine.begin() as connection:
        subject = hold(connection, candidate, "fraud")
        alert = see(connection, ledger, subject, seen, rules, make, now_ms=now).alert
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from governance.alert_records import Act, Alert, AlertIdentity, AlertState, Change, Sighting
from governance.canonical import sha256_hex
from governance.drift_alerts import AlertRules, Step, after, opened, with_act
from governance.drift_reports import DriftReport
from governance.drift_tables import drift_alerts, drift_subjects
from governance.errors import NotFoundError
from governance.events import AuditEvent, EventName
from governance.records import Candidate

__all__ = [
    "Recorder",
    "StoredAlert",
    "acknowledged",
    "act_on",
    "alert_event_id",
    "closing_event_id",
    "find_alert",
    "hold",
    "hold_again",
    "keep_report",
    "list_alerts",
    "report_event_id",
    "see",
    "set_proposal",
    "set_signoff",
    "subjects_of",
]

_KEEP_EVERY_MS = 3_600_000
"""A report is put on the ledger when its level gets worse, and at most this long after the last;"""
_KEEP_BETTER_MS = 60_000
"""and when its level gets better, but not so often."""
_LOOKED_AT = 16
"""Alerts of a subject in which the last thing that a person did is looked for."""


class Recorder(Protocol):
    """Puts an event into the ledger's outbox, in the caller's transaction (``Ledger``)."""

    def record(self, connection: Connection, event: AuditEvent) -> str: ...


@dataclass(frozen=True, slots=True)
class StoredAlert:
    """An alert, and what a person signs to quarantine, with their bundle once they did."""

    alert: Alert
    proposal: bytes | None = None
    signoff: str | None = None


def alert_event_id(version_uid: str, number: int) -> str:
    """Of the event that an alert was opened."""
    return sha256_hex(f"chancery.drift-alert/{version_uid}/{number}".encode())[:32]


def closing_event_id(version_uid: str, number: int) -> str:
    """Of the event that it was closed."""
    return sha256_hex(f"chancery.drift-alert-closed/{version_uid}/{number}".encode())[:32]


def report_event_id(version_uid: str, deployment: str, number: int) -> str:
    """Of the event of a report that was kept."""
    name = f"chancery.drift-report/{version_uid}/{deployment}/{number}"
    return sha256_hex(name.encode())[:32]


# Subjects ----------------------------------------------------------------------------------


def hold(connection: Connection, candidate: Candidate, deployment: str) -> Row[Any]:
    """The row of what is watched, made if need be, and nobody else's until the commit."""
    upsert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(
        upsert(drift_subjects)
        .values(
            version_uid=candidate.version_uid,
            deployment=deployment,
            model_uid=candidate.model_uid,
            revision=0,
            seen_ms=0,
            seen_window=-1,
            seen_digest="",
            made_ms=0,
            kept_number=0,
            kept_ms=0,
            kept_as="",
        )
        .on_conflict_do_nothing()
    )
    return connection.execute(
        update(drift_subjects)
        .where(*_subject(candidate.version_uid, deployment))
        .values(revision=drift_subjects.c.revision + 1)
        .returning(*drift_subjects.c)
    ).one()


def hold_again(connection: Connection, alert: Alert) -> None:
    """The row of what an alert is about, nobody else's until the commit."""
    one = alert.identity
    connection.execute(
        update(drift_subjects)
        .where(*_subject(one.version_uid, one.deployment))
        .values(revision=drift_subjects.c.revision + 1)
    )


def _subject(version_uid: str, deployment: str) -> tuple[Any, Any]:
    columns = drift_subjects.c
    return columns.version_uid == version_uid, columns.deployment == deployment


def keep_report(
    connection: Connection,
    ledger: Recorder,
    subject: Row[Any],
    report: DriftReport,
    document: bytes,
    bundle: str | None,
    signed_by: str | None,
) -> bool:
    """Make a report the last one; False: it, or a later one, is there already.

    A window that had too few rows to be judged says nothing, and leaves the last one that did.
    """
    if (report.made_ms, report.window) <= (subject.seen_ms, subject.seen_window):
        return False
    values: dict[str, Any] = {
        "seen_ms": report.made_ms,
        "seen_window": report.window,
        "seen_digest": report.digest,
    }
    if report.judged:
        values |= {
            "made_ms": report.made_ms,
            "document": document.decode(),
            "bundle": bundle,
            "signed_by": signed_by,
        }
        kept_as = _kept_as(report)
        if _is_kept(subject, report, kept_as):
            number = subject.kept_number + 1
            values |= {"kept_number": number, "kept_ms": report.made_ms, "kept_as": kept_as}
            _record_report(connection, ledger, subject, report, number, signed_by)
    connection.execute(
        update(drift_subjects)
        .where(*_subject(subject.version_uid, subject.deployment))
        .values(**values)
    )
    return True


def _kept_as(report: DriftReport) -> str:
    """What makes a report another than the one before: rank of its level, level and profile."""
    if report.level is None:
        return f"0/ok/{report.profile}"
    return f"{report.level.rank + 1}/{report.level.value}/{report.profile}"


def _is_kept(subject: Row[Any], report: DriftReport, kept_as: str) -> bool:
    """Bad news at once; good news, and no news, after a while: levels may go to and fro."""
    age_ms = report.made_ms - int(subject.kept_ms)
    if kept_as == subject.kept_as:
        return age_ms >= _KEEP_EVERY_MS
    before = str(subject.kept_as)
    better = before.endswith(f"/{report.profile}") and kept_as < before
    return not better or age_ms >= _KEEP_BETTER_MS


def _record_report(
    connection: Connection,
    ledger: Recorder,
    subject: Row[Any],
    report: DriftReport,
    number: int,
    signed_by: str | None,
) -> None:
    ledger.record(
        connection,
        AuditEvent(
            EventName.DRIFT_REPORTED,
            report.uri,
            {
                "versionUid": subject.version_uid,
                "deployment": report.deployment,
                "number": number,
                "report": report.digest,
                "profile": report.profile,
                "level": "ok" if report.level is None else report.level.value,
                "window": report.window,
                "madeMs": report.made_ms,
                "signedBy": signed_by,
            },
            id=report_event_id(subject.version_uid, report.deployment, number),
        ),
    )


def subjects_of(
    connection: Connection, *, model_uid: str | None = None, version_uid: str | None = None
) -> Sequence[Row[Any]]:
    """What is watched of a model or version, the newest report first."""
    query = select(drift_subjects).order_by(drift_subjects.c.made_ms.desc()).limit(500)
    if model_uid is not None:
        query = query.where(drift_subjects.c.model_uid == model_uid)
    if version_uid is not None:
        query = query.where(drift_subjects.c.version_uid == version_uid)
    return connection.execute(query).all()


# Alerts ------------------------------------------------------------------------------------


def find_alert(connection: Connection, name: str) -> StoredAlert:
    """By id, or a unique prefix of at least six digits.

    Raises:
        NotFoundError: there is none, or several have such an id.
    """
    prefix, rows = name.lower(), []
    if 6 <= len(prefix) <= 32 and all(c in "0123456789abcdef" for c in prefix):
        matching = drift_alerts.c.alert_id.startswith(prefix)
        rows = list(connection.execute(select(drift_alerts).where(matching).limit(2)))
    if len(rows) != 1:
        raise NotFoundError(
            f"{'more than one' if rows else 'no'} alert has the id {name[:40]!r}",
            "`chancery drift alerts` shows those there are",
        )
    return _stored(rows[0])


def list_alerts(
    connection: Connection,
    *,
    model_uid: str | None = None,
    version_uid: str | None = None,
    live: bool = False,
    limit: int = 100,
) -> list[StoredAlert]:
    """Newest first."""
    query = select(drift_alerts).order_by(drift_alerts.c.opened_ms.desc()).limit(limit)
    if model_uid is not None:
        query = query.where(drift_alerts.c.model_uid == model_uid)
    if version_uid is not None:
        query = query.where(drift_alerts.c.version_uid == version_uid)
    if live:
        query = query.where(drift_alerts.c.state != AlertState.CLOSED.value)
    return [_stored(row) for row in connection.execute(query)]


def _stored(row: Row[Any]) -> StoredAlert:
    proposal = None if row.proposal is None else bytes(row.proposal)
    return StoredAlert(Alert.from_dict(json.loads(row.document)), proposal, row.signoff)


def see(
    connection: Connection,
    ledger: Recorder,
    candidate: Candidate,
    deployment: str,
    seen: Sighting,
    rules: AlertRules,
    owner: Callable[[], str],
    suggest: Callable[[Alert], Mapping[str, Any]],
    *,
    now_ms: int,
) -> Step | None:
    """What follows from a sighting, in the tables and on the ledger; None: nothing does.

    Args:
        connection: The subject's row is held on it.
        ledger: Gets the events.
        candidate: The version.
        deployment: Its route.
        seen: What was seen.
        rules: Of the alert.
        owner: Whom a new alert is for; asked only then.
        suggest: The retrain suggestion of an alert that changed.
        now_ms: The time.
    """
    last = _last(connection, candidate.version_uid, deployment)
    if last is not None and last.live:
        step: Step | None = after(last, seen, rules, now_ms=now_ms)
    else:
        if seen.level is None:
            return None
        identity = _identity(connection, candidate, deployment, owner())
        step = opened(identity, seen, rules, now_ms=now_ms, before=last)
    if step is None or step.alert == last:
        return None
    if seen.level is not None:
        step = replace(step, alert=replace(step.alert, retrain=suggest(step.alert)))
    _write(connection, step.alert, new=Change.OPENED in step.changes)
    for change in step.changes:
        ledger.record(connection, _event(step.alert, change))
    return step


def _last(connection: Connection, version_uid: str, deployment: str) -> Alert | None:
    return next(iter(_newest(connection, version_uid, deployment, 1)), None)


def _newest(connection: Connection, version_uid: str, deployment: str, limit: int) -> list[Alert]:
    """Alerts of a subject, the newest first."""
    columns = drift_alerts.c
    rows = connection.execute(
        select(drift_alerts)
        .where(columns.version_uid == version_uid, columns.deployment == deployment)
        .order_by(columns.number.desc())
        .limit(limit)
    )
    return [_stored(row).alert for row in rows]


def acknowledged(connection: Connection, version_uid: str, deployment: str) -> int | None:
    """The window of a subject whose alarm a person has seen last; None: nobody has seen any.

    Its newest alerts are looked at: a monitor asks with each report, and acts on what is new. The
    last in time, not the largest: a monitor that begins anew counts from 0 again.
    """
    for alert in _newest(connection, version_uid, deployment, _LOOKED_AT):
        for act in reversed(alert.acts):
            if act.by and act.window is not None:
                return act.window
    return None


def _identity(
    connection: Connection, candidate: Candidate, deployment: str, owner: str
) -> AlertIdentity:
    columns = drift_alerts.c
    most = connection.execute(
        select(func.max(columns.number)).where(columns.version_uid == candidate.version_uid)
    ).scalar_one()
    return AlertIdentity(
        alert_id=uuid.uuid4().hex,
        number=(most or 0) + 1,
        model_uid=candidate.model_uid,
        version_uid=candidate.version_uid,
        model=candidate.model_name,
        version=candidate.version,
        deployment=deployment,
        owner=owner,
    )


def _write(connection: Connection, alert: Alert, *, new: bool) -> None:
    values = {
        "state": alert.state.value,
        "level": alert.level.value,
        "document": json.dumps(alert.to_dict(), sort_keys=True),
    }
    one = alert.identity
    if not new:
        connection.execute(
            update(drift_alerts).where(drift_alerts.c.alert_id == one.alert_id).values(**values)
        )
        return
    connection.execute(
        insert(drift_alerts).values(
            alert_id=one.alert_id,
            version_uid=one.version_uid,
            number=one.number,
            model_uid=one.model_uid,
            deployment=one.deployment,
            owner=one.owner,
            opened_ms=alert.opened_ms,
            **values,
        )
    )


def _event(alert: Alert, change: Change) -> AuditEvent:
    one = alert.identity
    data = _subject_of_event(alert)
    match change:
        case Change.CLOSED:
            return _closed_event(alert, alert.acts[-1])
        case Change.PROPOSED:
            data |= {"reasons": list(alert.quarantine), "report": alert.report}
            return AuditEvent(EventName.QUARANTINE_PROPOSED, alert.uri, data)
    data |= {
        "change": change.value,
        "number": one.number,
        "owner": one.owner,
        "level": alert.level.value,
        "window": alert.last_window,
        "report": alert.report,
        "profile": alert.profile,
        "outside": list(alert.outside),
        "reasons": list(alert.reasons),
        "worstColumns": [str(column.get("name", "")) for column in alert.worst],
        "slices": [str(found.get("text", "")) for found in alert.slices],
        "retrain": str(alert.retrain.get("text", "")),
    }
    if change is Change.OPENED:
        return AuditEvent(
            EventName.DRIFT_ALERTED,
            alert.uri,
            data,
            id=alert_event_id(one.version_uid, one.number),
        )
    return AuditEvent(EventName.DRIFT_ALERTED, alert.uri, data)


def _subject_of_event(alert: Alert) -> dict[str, Any]:
    one = alert.identity
    return {
        "alertId": one.alert_id,
        "versionUid": one.version_uid,
        "deployment": one.deployment,
    }


def _closed_event(alert: Alert, act: Act) -> AuditEvent:
    one = alert.identity
    return AuditEvent(
        EventName.DRIFT_CLOSED,
        alert.uri,
        {
            **_subject_of_event(alert),
            "number": one.number,
            "by": act.by,
            "reason": act.reason,
            "windows": alert.windows,
        },
        id=closing_event_id(one.version_uid, one.number),
    )


def set_proposal(connection: Connection, alert: Alert, proposal: bytes) -> None:
    """What a person signs to quarantine, from now on."""
    connection.execute(
        update(drift_alerts)
        .where(drift_alerts.c.alert_id == alert.alert_id)
        .values(proposal=proposal)
    )


def set_signoff(connection: Connection, alert: Alert, bundle: str) -> None:
    """Keep the bundle that a person signed."""
    connection.execute(
        update(drift_alerts).where(drift_alerts.c.alert_id == alert.alert_id).values(signoff=bundle)
    )


def act_on(
    connection: Connection,
    ledger: Recorder,
    alert: Alert,
    act: Act,
    more: Mapping[str, Any] | None = None,
) -> tuple[Alert, str]:
    """Record what a person did; the alert, and the event's id.

    Raises:
        ConflictError, RefusedError: as ``with_act``.
    """
    changed = with_act(alert, act)
    _write(connection, changed, new=False)
    if act.kind is AlertState.CLOSED:
        event = _closed_event(changed, changed.acts[-1])
    else:
        name = {
            AlertState.ACKNOWLEDGED: EventName.DRIFT_ACKNOWLEDGED,
            AlertState.QUARANTINED: EventName.QUARANTINE_SIGNED,
        }[act.kind]
        data = {**_subject_of_event(changed), "by": act.by, "reason": act.reason, **(more or {})}
        event = AuditEvent(name, changed.uri, data)
    return changed, ledger.record(connection, event)
