"""JSON shapes of the REST API, and their inverses for the client."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from governance.backend import PromotionRequest
from governance.records import Condition, Decision

__all__ = ["decision_from_json", "request_from_json", "request_to_json"]


def request_to_json(request: PromotionRequest) -> dict[str, Any]:
    return {
        "statementId": request.statement_id,
        "payload": base64.b64encode(request.payload).decode(),
        "model": request.model,
        "environment": request.environment,
        "threshold": request.threshold,
        "approvals": list(request.approvals),
        "notAfterMs": request.not_after_ms,
        "requestedBy": request.requested_by,
        "used": request.used,
        "decision": dict(request.decision),
    }


def request_from_json(document: Mapping[str, Any]) -> PromotionRequest:
    return PromotionRequest(
        statement_id=document["statementId"],
        payload=base64.b64decode(document["payload"], validate=True),
        model=document["model"],
        environment=document["environment"],
        threshold=document["threshold"],
        approvals=tuple(document["approvals"]),
        not_after_ms=document["notAfterMs"],
        requested_by=document["requestedBy"],
        used=document["used"],
        decision=document["decision"],
    )


def decision_from_json(document: Mapping[str, Any]) -> Decision:
    return Decision(
        model=document["model"],
        environment=document["environment"],
        conditions=tuple(
            Condition(c["name"], c["met"], c["required"], c["found"], c["remedy"])
            for c in document["conditions"]
        ),
        policy_digest=document["policyDigest"],
    )
