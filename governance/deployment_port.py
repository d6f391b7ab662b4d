"""The ports between those who keep deployments and those who serve.

`Deployments`: how commands and controllers reach deployments. ``mlflow_plugins`` implements it on a
governed database, with the promotion gate in front, and over REST. It is found through the
entry-point group ``chancery.deployments``, so that neither this package nor ``serve`` imports
MLflow.

`Canaries`: how those who keep deployments have a canary's configuration checked, so that none is
stored that no controller could follow. ``serve`` implements it, behind ``chancery.canaries``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol

from governance.arms import ExperimentOrder, ShadowOrder
from governance.deployment_control import AskedSignal, Progress, StoredDecision
from governance.deployment_records import DeploymentRecord, SignalKind
from governance.errors import ConfigurationError

__all__ = ["Canaries", "DeploymentOrder", "Deployments", "Look", "canaries", "open_deployments"]


@dataclass(frozen=True, slots=True)
class DeploymentOrder:
    """What somebody wants to be served.

    Attributes:
        model: ``models:/name/version`` or ``models:/name@alias``.
        route: Where; None: the registered model's name.
        environment: Whose gate applies; None: that of the alias or protected registered model.
        canary_config: Configuration of a canary: JSON text, or steps as ``5%`` and ``5,25,100``;
            None: no canary.
        stable: With a canary on a route that is free: what it is compared with.
        replicas: Of each variant; None: one, or as ``scale`` says.
        scale: That their number follows demand and clock (``deployment_resources.Scale``); None:
            it does not.
        resources: What each replica, and the gateways, get (``deployment_resources``), as text.
        node_pool: Pool of nodes; None: any.
        host: Address that its listeners listen on.
        port: Their port; None: the first one from 8080 that no deployment has.
    """

    model: str
    route: str | None = None
    environment: str | None = None
    canary_config: str | None = None
    stable: str | None = None
    replicas: int | None = None
    scale: Mapping[str, Any] | None = None
    resources: Mapping[str, str] = field(default_factory=dict)
    node_pool: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What a controller sees of the database at once.

    Attributes:
        record: The deployment.
        signals: What people asked and nobody took yet.
        revoked: Why a version may not answer any more, by ``version_uid``.
    """

    record: DeploymentRecord
    signals: tuple[AskedSignal, ...] = ()
    revoked: Mapping[str, str] = field(default_factory=dict)


class Deployments(Protocol):
    """Every method raises a ``GovernanceError`` with a remedy when it cannot do as asked."""

    # What people do ------------------------------------------------------------------------

    def deploy(self, order: DeploymentOrder) -> DeploymentRecord:
        """Let a version answer on a route, or be rolled out there: all of it or nothing.

        Raises:
            RefusedError: the gate says no, the route is taken, or a rollout runs there.
            RevokedError: the version was revoked.
            NotFoundError: no such model, version or environment.
        """
        ...

    def back(self, name: str, reason: str, canary_config: str | None = None) -> DeploymentRecord:
        """Roll out what the last promotion replaced; it passes the gate again.

        Args:
            name: Of the deployment.
            reason: Why.
            canary_config: How; None: nearly everything at once, as soon as it is verified.
        """
        ...

    def find(self, name: str) -> DeploymentRecord:
        """By route, id or at least six digits of the id."""
        ...

    def list(self, *, ended: bool = False) -> Sequence[DeploymentRecord]:
        """Newest first."""
        ...

    def decisions(self, deploy_id: str) -> Sequence[StoredDecision]:
        """What changed its rollouts, oldest first."""
        ...

    def ask(self, name: str, kind: SignalKind, reason: str) -> DeploymentRecord:
        """Leave a signal for the controller."""
        ...

    def scale(
        self,
        name: str,
        replicas: int | None = None,
        *,
        scale: Mapping[str, Any] | None = None,
        resources: Mapping[str, str] | None = None,
    ) -> DeploymentRecord:
        """Change how much a deployment gets, while it serves.

        Args:
            name: Of the deployment.
            replicas: Of each variant, from now on.
            scale: Or that their number follows demand and clock.
            resources: What else changes; what is not named stays.

        Raises:
            RefusedError: nothing is named, or what cannot be.
        """
        ...

    def end(self, name: str, reason: str) -> DeploymentRecord:
        """Free the route and take the deployment down."""
        ...

    def experiment(self, name: str, order: ExperimentOrder) -> DeploymentRecord:
        """Share the route's clients between versions, each behind the gate.

        Asked again under the same name with the same arms, only their shares change.

        Raises:
            RefusedError: the gate says no, or a rollout or another experiment runs there.
            RevokedError: a version was revoked.
            NotFoundError: no such model or version.
        """
        ...

    def end_experiment(
        self, name: str, reason: str, *, keep: str | None = None, canary_config: str | None = None
    ) -> DeploymentRecord:
        """End the experiment, and roll an arm out if one is kept; it passes the gate again.

        Args:
            name: Of the deployment.
            reason: Why.
            keep: The arm.
            canary_config: How it is rolled out; None: nearly everything at once.
        """
        ...

    def shadow(self, name: str, order: ShadowOrder) -> DeploymentRecord:
        """Send copies of the route's requests to a version that passed the gate.

        Asked again for the same version, only the settings change.
        """
        ...

    def end_shadow(self, name: str, reason: str) -> DeploymentRecord:
        """Send no more copies."""
        ...

    # What a controller does; on a database only --------------------------------------------

    def standing(self, *, without_lease_at_ms: int | None = None) -> Sequence[DeploymentRecord]:
        """Every deployment that is not taken down, oldest first.

        Args:
            without_lease_at_ms: Only those that no controller has a lease of at this time.
        """
        ...

    def take(self, deploy_id: str, owner: str, *, now_ms: int, ttl_ms: int) -> Look | None:
        """Take the lease under a new fence; None while another controller has it.

        Raises:
            NotFoundError: there is no such deployment, or it was ended and taken down.
        """
        ...

    def look(self, deploy_id: str, fence: int, *, now_ms: int, ttl_ms: int) -> Look:
        """Keep the lease, and see what is new.

        Raises:
            RefusedError: another controller has the lease.
        """
        ...

    def save(
        self, deploy_id: str, fence: int, progress: Progress, *, now_ms: int
    ) -> DeploymentRecord:
        """Save progress, decisions and alerts at once.

        Raises:
            RefusedError: another controller has the lease.
        """
        ...

    def release(self, deploy_id: str, fence: int) -> None:
        """Let another controller have the lease at once."""
        ...

    def set_alias(self, name: str, alias: str, version: int) -> bool:
        """Point the alias at the version, through the promotion gate; False: it did already.

        Raises:
            RefusedError: the gate says no.
        """
        ...


class Canaries(Protocol):
    """Checks the configurations of canaries. Reads no files."""

    def checked(self, config: str | Mapping[str, Any]) -> str:
        """The whole configuration, defaults included, as JSON text.

        Args:
            config: JSON text or what was read from it, or steps as ``5%`` and ``5,25,100``.

        Raises:
            ConfigurationError: names what is wrong and how to put it right.
        """
        ...

    def at_once(self) -> str:
        """How one goes back: verified first, then nearly everything, then all of it."""
        ...


def canaries() -> Canaries:
    """Whoever checks the configurations of canaries.

    Raises:
        ConfigurationError: no installed package does.
    """
    for point in entry_points(group="chancery.canaries"):
        found: Canaries = point.load()
        return found
    raise ConfigurationError(
        "no package checks the configurations of canaries",
        "reinstall with `pip install mlflow-chancery`",
    )


def open_deployments(uri: str) -> Deployments:
    """The deployments of a store.

    Raises:
        ConfigurationError: no installed package provides them, or the URI is not supported.
    """
    for point in entry_points(group="chancery.deployments"):
        opened: Deployments = point.load()(uri)
        return opened
    raise ConfigurationError(
        "no package provides deployments for chancery",
        "reinstall with `pip install mlflow-chancery`",
    )
