"""The port through which the controller starts and stops what answers.

A variant is an application of the cluster, one a version and deployment. The controller says what
should run; starting what runs already changes only what differs, and stopping what is gone does
nothing, so that a controller that takes over may say everything once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from governance.deployment_records import DeploymentRecord, Health, ServedVersion

__all__ = [
    "ClusterPort",
    "Running",
    "VariantSpec",
    "VariantState",
    "application_of",
    "health_after",
    "spec_of",
]


class Running(StrEnum):
    """How an application does."""

    ABSENT = "absent"
    STARTING = "starting"
    RUNNING = "running"
    REFUSED = "refused"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class VariantState:
    """How an application does.

    Attributes:
        running: In a word; ``REFUSED``: its bytes may not be loaded.
        reason: Why it does not run.
        replicas: How many there are, those that start included.
        answering: How many of them run.
        lacking: What no node of the cluster has, so that they may wait for ever.
    """

    running: Running
    reason: str = ""
    replicas: int = 0
    answering: int = 0
    lacking: str = ""

    @property
    def waiting(self) -> bool:
        """Whether some replicas do not run yet."""
        return self.running is Running.STARTING or self.answering < self.replicas


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """What should run.

    Attributes:
        application: Its name; not two versions have the same.
        model: Registered name.
        version: In the registry.
        signer: Who signed for it, as far as the deployment knows.
        node_pool: Pool of nodes; None: any.
        resources: ``replicas`` and what each needs.
        root_digest: Of the bytes that the gate let in; no others are loaded.
        route: That it answers on, for whoever records what was served.
    """

    application: str
    model: str
    version: int
    signer: str = ""
    node_pool: str | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    root_digest: str = ""
    route: str = ""

    @property
    def uri(self) -> str:
        """``models:/name/version``."""
        return f"models:/{self.model}/{self.version}"


class ClusterPort(Protocol):
    """May raise anything; the controller tries again."""

    def open(self, record: DeploymentRecord) -> None:
        """Have listeners for the route."""
        ...

    def start(self, spec: VariantSpec) -> None:
        """Have this variant run; does not wait for it. Its bytes are verified as it starts."""
        ...

    def state(self, application: str) -> VariantState:
        """How it does."""
        ...

    def stop(self, application: str) -> None:
        """Take it down, after what it is at."""
        ...

    def close(self, record: DeploymentRecord) -> None:
        """Take the route's listeners down."""
        ...


def application_of(record: DeploymentRecord, served: ServedVersion) -> str:
    """The application of a version in a deployment."""
    return f"{record.deploy_id[:12]}-v{served.version}"


def health_after(before: Health, running: Running) -> Health:
    """A deployment's health by how its stable does; what starts is not missed yet."""
    if running is Running.RUNNING:
        return Health.SERVING
    gone = running is Running.ABSENT and before is not Health.STARTING
    if gone or running in (Running.UNHEALTHY, Running.REFUSED):
        return Health.UNHEALTHY
    return before


def spec_of(record: DeploymentRecord, served: ServedVersion) -> VariantSpec:
    """What should run of it."""
    known = record.provenance.get("rootDigest", served.root_digest) == served.root_digest
    signers = record.provenance.get("signers", ()) if known and served == record.stable else ()
    return VariantSpec(
        application=application_of(record, served),
        model=record.model_name,
        version=served.version,
        signer=", ".join(signers),
        node_pool=record.node_pool,
        resources=dict(record.resources),
        root_digest=served.root_digest,
        route=record.route,
    )
