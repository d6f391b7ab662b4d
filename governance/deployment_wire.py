"""Deployments and their decisions as JSON documents that say everything, there and back.

What a server answers is `record_document`: `DeploymentRecord.to_dict`, which people read, and the
rest of the record, so that a client's commands show the same as beside the database.

Example::

    record_from(json.loads(json.dumps(record_document(record)))) == record
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from governance.arms import ExperimentRecord, ShadowRecord
from governance.deployment_control import StoredDecision
from governance.deployment_records import DeploymentRecord, Health, ServedVersion

__all__ = ["decision_document", "decision_from", "record_document", "record_from"]


def record_document(record: DeploymentRecord) -> dict[str, Any]:
    """The *deployment* of the REST API."""
    return {
        **record.to_dict(),
        "stable": _served_document(record.stable),
        "canary": _served_document(record.canary),
        "previous": _served_document(record.previous),
        "rolloutBy": record.rollout_by,
        "rolloutMs": record.rollout_ms,
        "health": record.health.value,
        "leaseUntilMs": record.lease_until_ms,
        "fence": record.fence,
        "createdMs": record.created_ms,
        "endedBy": record.ended_by,
        "endedReason": record.ended_reason,
        "endedMs": record.ended_ms,
        "stoppedMs": record.stopped_ms,
        "state": None if record.state is None else record.state.decode(),
    }


def record_from(document: Mapping[str, Any]) -> DeploymentRecord:
    """Inverse of ``record_document``.

    Raises:
        KeyError, TypeError, ValueError: it is no such document.
    """
    stable = _served_from(document["stable"])
    if stable is None:
        raise ValueError("nothing is stable")
    config, state = document["canaryConfig"], document["state"]
    experiment, shadow = document.get("experiment"), document.get("shadow")
    return DeploymentRecord(
        deploy_id=document["deployId"],
        route=document["route"],
        environment=document["env"],
        model_uid=document["modelUid"],
        model_name=document["modelId"],
        stable=stable,
        canary=_served_from(document["canary"]),
        previous=_served_from(document["previous"]),
        rollout_id=document["rolloutId"],
        canary_config=None if config is None else _compact(config),
        rollout_by=document["rolloutBy"],
        rollout_ms=document["rolloutMs"],
        node_pool=document["nodePool"],
        resources=document["resources"],
        provenance=document["provenance"],
        port=document["port"],
        metrics_endpoint=document["metricsEndpoint"],
        health=Health(document["health"]),
        closed=document["closed"],
        state=None if state is None else state.encode(),
        plan_revision=document["planRevision"],
        saved_ms=document["savedMs"],
        lease_owner=document["controller"],
        lease_until_ms=document["leaseUntilMs"],
        fence=document["fence"],
        created_by=document["createdBy"],
        created_ms=document["createdMs"],
        ended_by=document["endedBy"],
        ended_reason=document["endedReason"],
        ended_ms=document["endedMs"],
        stopped_ms=document["stoppedMs"],
        experiment=None if experiment is None else ExperimentRecord.from_dict(experiment),
        shadow=None if shadow is None else ShadowRecord.from_dict(shadow),
    )


def decision_document(decision: StoredDecision) -> dict[str, Any]:
    """A *decision* of a rollout, as the REST API and ``chancery deploy why --json`` show it."""
    return {
        "rolloutId": decision.rollout_id,
        "number": decision.number,
        "digest": decision.digest,
        "decision": dict(decision.document),
    }


def decision_from(document: Mapping[str, Any]) -> StoredDecision:
    """Inverse of ``decision_document``; whether it ended the rollout is in its own words."""
    return StoredDecision(document["rolloutId"], document["number"], document["decision"])


def _served_document(served: ServedVersion | None) -> dict[str, Any] | None:
    if served is None:
        return None
    return {
        "version": served.version,
        "versionUid": served.version_uid,
        "rootDigest": served.root_digest,
    }


def _served_from(document: Mapping[str, Any] | None) -> ServedVersion | None:
    if document is None:
        return None
    return ServedVersion(document["version"], document["versionUid"], document["rootDigest"])


def _compact(config: Any) -> str:
    """As pydantic writes it, and so as it is stored."""
    return json.dumps(config, separators=(",", ":"), ensure_ascii=False)
