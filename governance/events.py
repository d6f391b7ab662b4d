"""Audit events: their names, and the envelope they travel in.

A name is ``source:subject:action``. The envelope is CloudEvents 1.0 (extension attributes are
lower-case letters and digits only), and the whole event is canonical JSON (RFC 8785), whose bytes
are the ledger's leaf. Numbers inside ``data`` are strings or integers below 2**53: floats would
round-trip differently in other languages.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from governance.canonical import canonical_json
from governance.identity import Actor, current_actor

__all__ = ["AuditEvent", "EventName"]


class EventName(StrEnum):
    """Every event there is. ``docs/api.md`` lists them with their data."""

    EXPERIMENT_CREATED = "tracking:experiment:created"
    EXPERIMENT_UPDATED = "tracking:experiment:updated"
    EXPERIMENT_DELETED = "tracking:experiment:deleted"
    EXPERIMENT_RESTORED = "tracking:experiment:restored"
    RUN_CREATED = "tracking:run:created"
    RUN_UPDATED = "tracking:run:updated"
    RUN_FINISHED = "tracking:run:finished"
    RUN_DELETED = "tracking:run:deleted"
    RUN_RESTORED = "tracking:run:restored"
    LOGGED_MODEL_CREATED = "tracking:logged-model:created"
    LOGGED_MODEL_UPDATED = "tracking:logged-model:updated"
    LOGGED_MODEL_DELETED = "tracking:logged-model:deleted"
    TRACKING_TAG_SET = "tracking:tag:set"
    TRACKING_TAG_DELETED = "tracking:tag:deleted"
    MODEL_CREATED = "registry:model:created"
    MODEL_UPDATED = "registry:model:updated"
    MODEL_RENAMED = "registry:model:renamed"
    MODEL_DELETED = "registry:model:deleted"
    MODEL_TAG_SET = "registry:model-tag:set"
    MODEL_TAG_DELETED = "registry:model-tag:deleted"
    VERSION_REGISTERED = "registry:model-version:registered"
    VERSION_UPDATED = "registry:model-version:updated"
    VERSION_DELETED = "registry:model-version:deleted"
    VERSION_TAG_SET = "registry:model-version-tag:set"
    VERSION_TAG_DELETED = "registry:model-version-tag:deleted"
    VERSION_REVOKED = "registry:model-version:revoked"
    ALIAS_SET = "registry:alias:set"
    ALIAS_DELETED = "registry:alias:deleted"
    STAGE_CHANGED = "registry:stage:changed"
    WEBHOOK_CHANGED = "registry:webhook:changed"
    PROMOTION_REQUESTED = "gates:promotion:requested"
    PROMOTION_APPROVED = "gates:promotion:approved"
    PROMOTION_GRANTED = "gates:promotion:granted"
    PROMOTION_DENIED = "gates:promotion:denied"
    CHANGE_REFUSED = "gates:change:refused"
    REFUSALS_COUNTED = "gates:refusals:counted"
    TRUST_ROOTS_CHANGED = "signing:trust-roots:changed"
    REQUEST_REJECTED = "server:request:rejected"
    DEPLOYMENT_CREATED = "serve:deployment:created"
    DEPLOYMENT_SCALED = "serve:deployment:scaled"
    DEPLOYMENT_ALERTED = "serve:deployment:alerted"
    DEPLOYMENT_ENDED = "serve:deployment:ended"
    ROLLOUT_STARTED = "serve:rollout:started"
    ROLLOUT_SIGNALLED = "serve:rollout:signalled"
    ROLLOUT_DECIDED = "serve:rollout:decided"
    ARMS_BEGUN = "serve:experiment:begun"
    ARMS_CHANGED = "serve:experiment:changed"
    ARMS_ENDED = "serve:experiment:ended"
    SHADOW_BEGUN = "serve:shadow:begun"
    SHADOW_CHANGED = "serve:shadow:changed"
    SHADOW_ENDED = "serve:shadow:ended"
    DRIFT_REPORTED = "drift:report:recorded"
    DRIFT_ALERTED = "drift:alert:raised"
    DRIFT_ACKNOWLEDGED = "drift:alert:acknowledged"
    DRIFT_CLOSED = "drift:alert:closed"
    QUARANTINE_PROPOSED = "drift:quarantine:proposed"
    QUARANTINE_SIGNED = "drift:quarantine:signed"

    @property
    def awaits_checkpoint(self) -> bool:
        """Whether the act returns only after a witnessed checkpoint covers it."""
        return self in _AWAIT


_AWAIT = frozenset(
    {
        EventName.VERSION_REGISTERED,
        EventName.VERSION_DELETED,
        EventName.VERSION_REVOKED,
        EventName.MODEL_DELETED,
        EventName.MODEL_RENAMED,
        EventName.ALIAS_SET,
        EventName.ALIAS_DELETED,
        EventName.STAGE_CHANGED,
        EventName.PROMOTION_REQUESTED,
        EventName.PROMOTION_APPROVED,
        EventName.PROMOTION_GRANTED,
        EventName.PROMOTION_DENIED,
        EventName.TRUST_ROOTS_CHANGED,
        EventName.DEPLOYMENT_CREATED,
        EventName.DEPLOYMENT_ENDED,
        EventName.ROLLOUT_STARTED,
        EventName.ARMS_BEGUN,
        EventName.SHADOW_BEGUN,
        EventName.QUARANTINE_SIGNED,
    }
)


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One audit event.

    Attributes:
        name: What happened.
        subject: What it happened to, as a URI (``models:/fraud/3``, ``runs:/ab12``).
        data: Details; strings, integers, booleans, null, lists and mappings of these.
        actor: Who did it.
        id: Unique id (UUID4 hex).
        time: UTC time of the event.
    """

    name: EventName
    subject: str
    data: Mapping[str, Any]
    actor: Actor = field(default_factory=current_actor)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def now(
        cls,
        name: EventName,
        subject: str,
        data: Mapping[str, Any],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> AuditEvent:
        """An event at the clock's time by the current actor."""
        return cls(name=name, subject=subject, data=data, time=clock())

    def to_cloudevent(self) -> dict[str, Any]:
        """The CloudEvents 1.0 JSON object."""
        source = self.name.value.split(":", 1)[0]
        event: dict[str, Any] = {
            "specversion": "1.0",
            "id": self.id,
            "source": f"/chancery/{source}",
            "type": self.name.value,
            "subject": self.subject,
            "time": self.time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "datacontenttype": "application/json",
            "actor": self.actor.id,
            "actorproof": self.actor.proof.value,
            "data": dict(self.data),
        }
        if self.actor.keyid:
            event["actorkey"] = self.actor.keyid
        if self.actor.code_ref:
            event["coderef"] = self.actor.code_ref
        if self.actor.traceparent:
            event["traceparent"] = self.actor.traceparent
        return event

    def to_leaf(self) -> bytes:
        """The canonical bytes that the ledger hashes."""
        return canonical_json(self.to_cloudevent())
