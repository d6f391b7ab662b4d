"""The routes below ``/drift``: reports of monitors, alerts, and what people do about them.

Each parses, bounds what it takes, and calls one method of the port. Who may is decided there; a
report and a sign-off carry signatures of their own, whoever sends them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import Field

from governance.alert_records import Alert
from governance.drift_port import AlertOrder, DriftPort
from governance.drift_reports import SIZE_LIMIT
from governance.signing.dsse import SIZE_LIMIT as BUNDLE_LIMIT
from mlflow_plugins.api.requests import CheckedBody
from mlflow_plugins.api.serve_bodies import Reason, Text
from mlflow_plugins.rest_drift import stored_document

__all__ = ["add_drift_routes"]

_LARGEST = 2**31 - 1
Model = Annotated[str, Path(alias="modelId", min_length=1, max_length=256)]
AlertName = Annotated[str, Path(alias="alertId", pattern=r"^[0-9a-fA-F]{6,32}$")]
Sentence = Annotated[str, Field(min_length=1, max_length=500)]
Bundle = Annotated[str, Field(min_length=2, max_length=BUNDLE_LIMIT)]


class ReportBody(CheckedBody):
    """The report as text: what is signed is these very bytes."""

    report: Annotated[str, Field(max_length=SIZE_LIMIT)]
    bundle: Bundle | None = None
    datasets: Annotated[list[Text], Field(default_factory=list, max_length=50)]


class AlertBody(CheckedBody):
    model_id: Annotated[Text, Field(alias="modelId")]
    version: Annotated[int, Field(ge=1, le=_LARGEST)]
    deployment: Annotated[str, Field(max_length=128, pattern=r"^[^\x00-\x1f]*$")] = ""
    source: Annotated[str, Field(min_length=1, max_length=100)]
    level: Literal["warn", "alert"] = "alert"
    reasons: Annotated[list[Sentence], Field(min_length=1, max_length=20)]
    columns: Annotated[list[Text], Field(default_factory=list, max_length=20)]
    quarantine: Annotated[list[Sentence], Field(default_factory=list, max_length=5)]

    def to_order(self) -> AlertOrder:
        return AlertOrder(
            model=self.model_id,
            version=self.version,
            source=self.source,
            reasons=tuple(self.reasons),
            deployment=self.deployment,
            columns=tuple(self.columns),
            quarantine=tuple(self.quarantine),
            warn=self.level == "warn",
        )


class ActBody(CheckedBody):
    reason: Reason = ""


class QuarantineBody(CheckedBody):
    bundle: Bundle
    reason: Reason = ""


def add_drift_routes(router: APIRouter, port: Callable[[], DriftPort]) -> None:
    """The routes, on a port that is opened at first use.

    Args:
        router: Gets them.
        port: Opens it.
    """

    @router.post("/drift/report")
    def report(body: ReportBody) -> dict[str, Any]:
        found = port().publish(body.report.encode(), body.bundle, body.datasets)
        return {
            "recorded": found.recorded,
            "alert": _document(found.alert),
            "acknowledged": found.acknowledged,
        }

    @router.post("/drift/alert")
    def alert(body: AlertBody) -> dict[str, Any]:
        return {"alert": _document(port().raise_alert(body.to_order()))}

    @router.get("/drift/alerts")
    def alerts(
        model: Annotated[str | None, Query(alias="modelId", max_length=256)] = None,
        closed: bool = False,
    ) -> dict[str, Any]:
        return {"alerts": [stored_document(one) for one in port().alerts(model, closed=closed)]}

    @router.get("/drift/alerts/{alertId}")
    def one_alert(name: AlertName) -> dict[str, Any]:
        return stored_document(port().alert(name))

    @router.post("/drift/alerts/{alertId}/acknowledge")
    def acknowledge(name: AlertName, body: ActBody) -> dict[str, Any]:
        return port().acknowledge(name, body.reason).to_dict()

    @router.post("/drift/alerts/{alertId}/close")
    def close(name: AlertName, body: ActBody) -> dict[str, Any]:
        return port().close(name, body.reason).to_dict()

    @router.post("/drift/alerts/{alertId}/quarantine")
    def quarantine(name: AlertName, body: QuarantineBody) -> dict[str, Any]:
        return port().quarantine(name, body.bundle, body.reason).to_dict()

    @router.get("/drift/{modelId}")
    def status(model: Model) -> dict[str, Any]:
        return dict(port().status(model))

    @router.get("/drift/{modelId}/versions/{version}/binding")
    def binding(model: Model, version: Annotated[int, Path(ge=1, le=_LARGEST)]) -> dict[str, Any]:
        found = port().binding(model, version)
        return {
            "modelId": found.model,
            "version": found.version,
            "versionUid": found.version_uid,
            "rootDigest": found.root_digest,
        }


def _document(alert: Alert | None) -> dict[str, Any] | None:
    return None if alert is None else alert.to_dict()
