"""A deployment goes over the wire and comes back as it was."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, replace

import pytest

from governance.arms import ArmRecord, ExperimentRecord, ShadowRecord
from governance.deployment_control import StoredDecision
from governance.deployment_records import DeploymentRecord, Health, ServedVersion
from governance.deployment_wire import (
    decision_document,
    decision_from,
    record_document,
    record_from,
)
from serve.canaries import checked

FULL = DeploymentRecord(
    deploy_id="d" * 32,
    route="fraud",
    environment="prod",
    model_uid="m" * 32,
    model_name="fraud",
    stable=ServedVersion(1, "u1", "r1"),
    canary=ServedVersion(2, "u2", "r2"),
    previous=ServedVersion(3, "u3", "r3"),
    rollout_id="o" * 32,
    canary_config=checked({"steps": [5, 25, 100], "sticky": "header:x-user"}),
    rollout_by="bea",
    rollout_ms=1_700_000_000_123,
    node_pool="big",
    resources={"replicas": 2, "numCpus": "0.5"},
    provenance={"signers": ["añn"]},
    port=8080,
    metrics_endpoint="http://127.0.0.1:8080/metrics",
    health=Health.UNHEALTHY,
    closed="it leaks",
    state='{"course": "ü"}'.encode(),
    plan_revision=2**40,
    saved_ms=1_700_000_000_456,
    lease_owner="host/1",
    lease_until_ms=1_700_000_001_000,
    fence=7,
    created_by="ann",
    created_ms=1_699_999_999_999,
    ended_by="carl",
    ended_reason="old",
    ended_ms=1_700_000_002_001,
    stopped_ms=1_700_000_003_002,
    experiment=ExperimentRecord(
        "e" * 32,
        "ab",
        "header:x-user",
        (
            ArmRecord("control", ServedVersion(1, "u1", "r1"), "60"),
            ArmRecord("fresh", ServedVersion(2, "u2", "r2"), "40", "2.5", 8),
        ),
        (("control", 600_000), ("fresh", 400_000)),
        "dora",
        1_700_000_000_789,
        3,
    ),
    shadow=ShadowRecord(
        "s" * 32, ServedVersion(4, "u4", "r4"), "12.5", 4, "2", False, "eve", 1_700_000_000_790
    ),
)


def there_and_back(record: DeploymentRecord) -> DeploymentRecord:
    return record_from(json.loads(json.dumps(record_document(record))))


def test_everything_that_a_record_says_comes_back() -> None:
    empty = [
        field.name
        for field in fields(FULL)
        if getattr(FULL, field.name) in (None, "", MISSING, field.default)
    ]
    assert not empty, f"give FULL a value for {empty}, so that this test sees whether it travels"
    assert there_and_back(FULL) == FULL


def test_what_is_not_there_is_not_there_afterwards() -> None:
    optional = {
        field.name: None
        for field in fields(FULL)
        if "None" in str(field.type) and field.name != "stable"
    }
    bare = replace(FULL, **optional)  # type: ignore[arg-type]
    assert there_and_back(bare) == bare


@pytest.mark.parametrize("missing", ["stable", "health", "fence", "deployId"])
def test_a_document_that_lacks_something_is_none(missing: str) -> None:
    document = record_document(FULL)
    if missing == "stable":
        document[missing] = None
    else:
        del document[missing]
    with pytest.raises((KeyError, ValueError)):
        record_from(document)


def test_a_decision_comes_back() -> None:
    decision = StoredDecision("o" * 32, 3, {"outcome": "advanced", "atMs": 1})
    again = decision_from(json.loads(json.dumps(decision_document(decision))))
    assert again == decision
    assert again.digest == decision.digest
