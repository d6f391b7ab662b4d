"""Reads what monitors said of a version: evidence whose signatures and ledger entries hold.

The tables only say where to look. A report counts when a monitor of the trust roots signed it for
this incarnation of the version and these files, and when the ledger knows of none after it. Alerts
are numbered: one that the ledger knows and the table does not is open, and so is one that is closed
in the table only. Tags of MLflow are not read.

Example::

    found = read_drift(connection, ledger, roots, candidate)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Protocol

from sqlalchemy import Row, select
from sqlalchemy.engine import Connection

from governance import drift_records, registry
from governance.alert_records import Alert
from governance.canonical import Manifest, parse_json
from governance.database import ledger_entries, outbox
from governance.deployment_records import time_text
from governance.drift_reports import DriftReport
from governance.drift_tables import drift_alerts
from governance.errors import GovernanceError, LedgerError
from governance.events import EventName
from governance.ledger.log import Entry
from governance.records import Candidate, DriftEvidence, DriftFound
from governance.signing.drift_statements import ReportStatement, verify_report
from governance.signing.roots import TrustRoots

__all__ = ["Prover", "read_drift"]

_AT_ONCE = 500  # alerts that are read together


class Prover(Protocol):
    """Vouches for entries of the ledger (``governance.ledger.Ledger``)."""

    def is_countersigned(self, connection: Connection, entry: Entry) -> bool: ...


def read_drift(
    connection: Connection, ledger: Prover, roots: TrustRoots, candidate: Candidate
) -> DriftEvidence:
    """All that is known of the version's drift, and why some of it does not count."""
    files = _files_of(connection, candidate)
    reports, problems = [], []
    for row in drift_records.subjects_of(connection, version_uid=candidate.version_uid):
        if row.document is None and row.kept_number == 0:
            continue  # somebody outside raised an alert; nothing was reported
        where = f"on the route {row.deployment!r}" if row.deployment else "on batches"
        try:
            reports.append(_report(connection, roots, candidate, row, files))
        except (GovernanceError, KeyError, TypeError, ValueError) as error:
            why = error.message if isinstance(error, GovernanceError) else "it is not readable"
            problems.append(f"the report {where} does not count: {why}")
    alerts = tuple(_open_alerts(connection, ledger, candidate))
    return DriftEvidence(tuple(reports), tuple(problems), alerts)


def _files_of(connection: Connection, candidate: Candidate) -> frozenset[str]:
    """SHA-256 of each of the version's files: its profile is one of them."""
    text = registry.version_row(connection, candidate.version_uid).manifest
    if not text or candidate.manifest_digest is None:
        return frozenset()
    manifest = Manifest.from_json(text)
    if manifest.manifest_digest != candidate.manifest_digest:
        return frozenset()
    return frozenset(file.sha256 for file in manifest.files)


def _report(
    connection: Connection,
    roots: TrustRoots,
    candidate: Candidate,
    row: Row[Any],
    files: frozenset[str],
) -> DriftFound:
    """Raises ``GovernanceError`` with a message that says why it does not count."""
    if row.document is None:
        raise _NoEvidence("it was removed")
    if row.bundle is None:
        raise _NoEvidence("it is not signed")
    report = DriftReport.parse(row.document.encode())
    person, statement = verify_report(row.bundle, roots)
    signed_for = statement.binding
    true = candidate.version_uid, candidate.root_digest
    if (signed_for.version_uid, signed_for.root_digest) != true:
        raise _NoEvidence(f"it was signed for {signed_for.uri} with other files or another life")
    if statement != ReportStatement.of(report, signed_for):
        raise _NoEvidence("what is signed is another report")
    if report.deployment != row.deployment or report.version != candidate.version:
        raise _NoEvidence(f"it is about {report.uri} on {report.deployment!r}")
    if not report.judged:
        raise _NoEvidence("its window had too few rows to be judged")
    _not_rolled_back(connection, row, report)
    return DriftFound(
        deployment=report.deployment,
        report=report.digest,
        profile=report.profile,
        own_profile=report.profile in files,
        window=report.window,
        level="ok" if report.level is None else report.level.value,
        made_ms=report.made_ms,
        signed_by=person.id,
        estimated_accuracy=report.estimated_accuracy,
        reference_accuracy=report.reference_accuracy,
    )


class _NoEvidence(GovernanceError):
    """Why a report does not count; never leaves this module."""


def _not_rolled_back(connection: Connection, row: Row[Any], report: DriftReport) -> None:
    """An old report put back into the table is older than what the ledger has."""
    number = row.kept_number

    def event_id(of: int) -> str:
        return drift_records.report_event_id(row.version_uid, row.deployment, of)

    kept = _event(connection, event_id(number)) if number else None
    if kept is None or _event(connection, event_id(number + 1)) is not None:
        raise _NoEvidence("the ledger has another report as the last one: its row was changed")
    if int(kept["data"]["madeMs"]) > report.made_ms:
        raise _NoEvidence("the ledger has a later report: its row was changed")


def _event(connection: Connection, event_id: str) -> dict[str, Any] | None:
    """From the ledger, or on its way there."""
    for table in (ledger_entries, outbox):
        leaf = connection.execute(
            select(table.c.leaf).where(table.c.event_id == event_id).limit(1)
        ).scalar_one_or_none()
        if leaf is not None:
            event: dict[str, Any] = parse_json(bytes(leaf))
            return event
    return None


def _open_alerts(connection: Connection, ledger: Prover, candidate: Candidate) -> Iterable[str]:
    number = 0
    for found, alert in _by_number(connection, candidate.version_uid):
        yield from _missing(connection, candidate, range(number + 1, found))
        number = found
        if alert.identity.number != found or alert.identity.version_uid != candidate.version_uid:
            yield f"alert number {found} is another one in its row, which was changed"
        elif alert.live:
            yield (
                f"alert {alert.alert_id[:12]} ({alert.level.value}, {alert.owner}'s) is "
                f"{alert.state.value} since {time_text(alert.opened_ms)}"
            )
        elif (doubt := _not_closed(connection, ledger, alert)) is not None:
            yield f"alert {alert.alert_id[:12]} {doubt}"
    while _event(connection, drift_records.alert_event_id(candidate.version_uid, number + 1)):
        number += 1
        yield f"alert number {number} is on the ledger, and its row was removed"


def _by_number(connection: Connection, version_uid: str) -> Iterable[tuple[int, Alert]]:
    """All alerts of a version, some at a time: there may be any number of them."""
    columns, after = drift_alerts.c, 0
    while True:
        rows = connection.execute(
            select(columns.number, columns.document)
            .where(columns.version_uid == version_uid, columns.number > after)
            .order_by(columns.number)
            .limit(_AT_ONCE)
        ).all()
        for row in rows:
            yield row.number, Alert.from_dict(json.loads(row.document))
        if len(rows) < _AT_ONCE:
            return
        after = rows[-1].number


def _missing(connection: Connection, candidate: Candidate, numbers: range) -> Iterable[str]:
    for number in numbers[:_AT_ONCE]:
        opened = drift_records.alert_event_id(candidate.version_uid, number)
        if _event(connection, opened) is not None:
            yield f"alert number {number} is on the ledger, and its row was removed"
        else:
            yield f"alert number {number} is nowhere, though there are later ones"
    if len(numbers) > _AT_ONCE:
        yield f"alerts up to number {numbers[-1]} are missing too"


def _not_closed(connection: Connection, ledger: Prover, alert: Alert) -> str | None:
    """Why an alert that its row calls closed is not; None: it is."""
    one = alert.identity
    wanted = drift_records.closing_event_id(one.version_uid, one.number)
    columns = ledger_entries.c
    row = connection.execute(
        select(columns.idx, columns.event_id, columns.leaf, columns.leaf_hash).where(
            columns.event_id == wanted
        )
    ).one_or_none()
    if row is None:
        return "is closed in its row, and not on the ledger (an event takes a second to get there)"
    entry = Entry(row.idx, row.event_id, bytes(row.leaf), bytes(row.leaf_hash))
    try:
        event = entry.event()
        if event["type"] != EventName.DRIFT_CLOSED.value or (
            event["data"]["alertId"] != one.alert_id
        ):
            return "is closed by an entry of the ledger that is about something else"
        if not ledger.is_countersigned(connection, entry):
            return "is closed, and its entry waits for the witness"
    except LedgerError as error:
        return f"is closed, which cannot be proven: {error.message}"
    except (KeyError, TypeError, json.JSONDecodeError):
        return "is closed by an entry of the ledger that cannot be read"
    return None
