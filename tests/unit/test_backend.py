"""What the port's records look like in JSON, and that nothing is lost on the way."""

from __future__ import annotations

import json
from dataclasses import replace

from governance.backend import PromotionRequest
from governance.records import Condition, Decision

DECISION = Decision(
    model="models:/fraud/3",
    environment="prod",
    conditions=(
        Condition("revoked", True, "The version must not be revoked", "it is not revoked"),
        Condition("metric:accuracy", False, "at least 0.9", "it is 0.8", "improve the model."),
    ),
    policy_digest="ab" * 32,
)
REQUEST = PromotionRequest(
    statement_id="cd" * 32,
    payload=b'{"_type":"https://in-toto.io/Statement/v1"}\xc3\xa9',
    model="models:/fraud/3",
    environment="prod",
    threshold=2,
    approvals=("alice", "Zoë"),
    not_after_ms=1767225600000,
    requested_by="bea",
    used=False,
    decision=DECISION.to_dict(),
)


def test_a_decision_comes_back_as_it_went() -> None:
    assert Decision.from_dict(json.loads(json.dumps(DECISION.to_dict()))) == DECISION


def test_a_promotion_comes_back_as_it_went() -> None:
    for request in (REQUEST, replace(REQUEST, served_as="prod.fraud")):
        assert PromotionRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request
