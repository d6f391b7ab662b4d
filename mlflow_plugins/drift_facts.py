"""What the registry knows that an alert needs: whose it is, what made the model, what serves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.store.model_registry.dbmodels.models import SqlRegisteredModelTag
from sqlalchemy import select
from sqlalchemy.engine import Connection

from governance import deployments, drift_records, registry
from governance.alert_records import Alert, first_owner
from governance.drift_records import StoredAlert
from governance.drift_reports import DriftReport
from governance.drift_retrain import suggestion
from governance.errors import GovernanceError, NotFoundError
from governance.records import Candidate
from governance.signing.drift_statements import Binding, QuarantineStatement
from mlflow_plugins.evidence import RunFacts
from mlflow_plugins.governor import Governor

__all__ = ["drift_status", "owner_of", "proposal_for", "retrain_for"]

_MOST_REASONS, _LONGEST_REASON = 3, 200  # a signer takes 4,096 bytes


def owner_of(
    governor: Governor,
    connection: Connection,
    candidate: Candidate,
    deployment: str,
    named: str,
    default: str,
) -> str:
    """Whom an alert is for; never nobody.

    Who is named; who deployed the version, or registered it; the model's tag ``owner``; the
    setting; an administrator.
    """
    live = deployments.live_on(connection, deployment) if deployment else None
    deployed = live.created_by if live and live.model_uid == candidate.model_uid else None
    registered = registry.version_row(connection, candidate.version_uid).registered_by
    tagged = connection.execute(
        select(SqlRegisteredModelTag.value).where(
            SqlRegisteredModelTag.name == candidate.model_name,
            SqlRegisteredModelTag.key == "owner",
        )
    ).scalar_one_or_none()
    try:
        people = governor.roots(connection).people
    except GovernanceError:  # there are none yet
        people = ()
    admins = [person.id for person in people if person.is_admin]
    return first_owner(named, deployed, registered, tagged, default, *admins)


def retrain_for(
    connection: Connection, candidate: Candidate, alert: Alert, datasets: Sequence[str]
) -> dict[str, Any]:
    """What is suggested; the data sets that an earlier window named stay."""
    facts = RunFacts(registry.run_record(connection, candidate.version_uid))
    known = [*datasets, *alert.retrain.get("datasets", ()), *facts.datasets]
    return suggestion(alert, datasets=tuple(known), run_id=candidate.run_id, tags=facts.tags)


def proposal_for(
    connection: Connection, stored: StoredAlert, binding: Binding, *, now_ms: int
) -> bytes | None:
    """What a person would sign; None: it is there already, or the version answers nowhere."""
    alert = stored.alert
    route = alert.identity.deployment
    live = deployments.live_on(connection, route) if route else None
    if live is None or binding.version_uid not in {one.version_uid for one in live.served}:
        return None
    if stored.proposal is not None:
        before = QuarantineStatement.parse(stored.proposal)
        if before.deploy_id == live.deploy_id and bool(before.report) == bool(alert.report):
            return None  # another window does not change what people are reading
    return QuarantineStatement(
        binding=binding,
        alert_id=alert.alert_id,
        deployment=route,
        deploy_id=live.deploy_id,
        environment=live.environment,
        reasons=tuple(reason[:_LONGEST_REASON] for reason in alert.quarantine[:_MOST_REASONS]),
        report=alert.report,
        proposed_ms=now_ms,
    ).to_payload()


def drift_status(connection: Connection, model: str) -> Mapping[str, Any]:
    """``chancery.drift-status/v1``: what is known of every version of the model that is watched.

    Raises:
        NotFoundError: there is no such model.
    """
    uid = registry.model_uid(connection, model)
    if uid is None:
        raise NotFoundError(f"there is no governed registered model {model!r}", "correct the name")
    watched = []
    for row in drift_records.subjects_of(connection, model_uid=uid):
        if row.document is None:
            continue
        report = DriftReport.parse(row.document.encode())
        watched.append({**report.summary(), "signedBy": row.signed_by, "seenMs": row.seen_ms})
    alerts = drift_records.list_alerts(connection, model_uid=uid, live=True)
    levels = {one["level"] for one in watched}
    status = "alert" if alerts else "warn" if levels & {"warn", "alert"} else "ok"
    return {
        "format": "chancery.drift-status/v1",
        "modelId": model,
        "status": status if watched or alerts else "unwatched",
        "watched": watched,
        "alerts": [one.alert.to_dict() for one in alerts],
    }
