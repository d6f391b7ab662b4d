"""Deployments on a governed database: the gate, then ``governance.deployments``.

A refusal is on the ledger, and leaves nothing behind.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.engine import Connection

from governance import deployment_control, deployments, registry
from governance.arms import ExperimentOrder, ShadowOrder
from governance.deployment_control import Progress, StoredDecision
from governance.deployment_port import DeploymentOrder, Deployments, Look, canaries
from governance.deployment_records import (
    DeploymentRecord,
    NewDeployment,
    NewRollout,
    SignalKind,
)
from governance.deployment_resources import resources_after, resources_for
from governance.errors import (
    ConfigurationError,
    LedgerError,
    NotFoundError,
    RefusedError,
    VerificationError,
)
from governance.identity import Actor, ProofLevel, acting_as
from governance.metric_sources import require_sources
from governance.settings import GOVERNED_PREFIX, Settings
from mlflow_plugins.deployment_arms import DeploymentArms
from mlflow_plugins.deployment_gate import Admitted, DeploymentGate
from mlflow_plugins.exceptions import GovernedMlflowException
from mlflow_plugins.governor import Governor, now_ms
from mlflow_plugins.local_backend import LocalBackend
from mlflow_plugins.refusals import refusals_of

__all__ = ["DeploymentStore", "open_deployments"]

_ROUTE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
_FIRST_PORT = 8080
_ATTEMPTS = 20


class DeploymentStore:
    """Implements ``governance.deployment_port.Deployments`` on a database.

    Args:
        governor: The database's governor.
        uri: The store's ``governed+…`` URI.
    """

    def __init__(self, governor: Governor, uri: str) -> None:
        self.governor = governor
        self._uri = uri
        self._backend = LocalBackend(governor)
        self._gate = DeploymentGate(governor, self._backend)
        self._arms = DeploymentArms(governor, self._gate, self._refusals_recorded, self._changing)
        self._controllers: dict[tuple[str, int], str] = {}

    # What people do ------------------------------------------------------------------------

    def deploy(self, order: DeploymentOrder) -> DeploymentRecord:
        if order.canary_config is not None:
            order = replace(order, canary_config=canaries().checked(order.canary_config))
        self.governor.ledger.ensure_witnessed()
        with self._refusals_recorded(order.model):
            return self._deploy(order)

    def _deploy(self, order: DeploymentOrder) -> DeploymentRecord:
        name, version, alias = self._gate.resolve(order.model)
        route = _checked_route(order.route or name)
        resources = resources_for(order.resources, order.host, order.replicas, order.scale)
        with self.governor.engine.connect() as connection:
            live = deployments.live_on(connection, route)
        if live is not None:
            return self._onto(live, order, name, version)
        if order.canary_config is not None and order.stable is None:
            raise RefusedError(
                f"nothing answers on the route {route!r} yet, so a canary has nothing to be "
                "compared with",
                f"deploy the stable version first (`chancery deploy MODEL --route {route}`), or "
                "name it with --stable",
                subject=order.model,
            )
        environment = self._gate.environment(name, alias, order.environment)
        self._gate.allow_acting(name, environment.name, order.model)
        rolled_out = order.canary_config is not None and order.stable is not None
        stable = canary = self._gate.admit(name, version, environment, as_canary=rolled_out)
        if order.canary_config is not None and order.stable is not None:
            other, number, _ = self._gate.resolve(order.stable)
            _same_model(other, name)
            stable = self._gate.admit(other, number, environment)
        now, deploy_id = now_ms(), uuid.uuid4().hex
        new = NewDeployment(
            deploy_id=deploy_id,
            route=route,
            environment=environment.name,
            model_uid=stable.candidate.model_uid,
            model_name=name,
            stable=stable.served,
            resources=resources,
            provenance=stable.provenance,
            node_pool=order.node_pool,
        )
        for _ in range(_ATTEMPTS):
            with self.governor.engine.connect() as connection:
                placed = _placed(connection, new, order)
            try:
                with self.governor.engine.begin() as connection, self._covering() as ledger:
                    record = deployments.create(connection, ledger, placed, now_ms=now)
                    if order.canary_config is not None:
                        record = self._begin(
                            connection, ledger, record, canary, order.canary_config
                        )
            except RefusedError:
                with self.governor.engine.connect() as connection:
                    taken = deployments.holder_of(connection, placed.port) is not None
                    gone = deployments.live_on(connection, route) is None
                if order.port is not None or not (taken and gone):
                    raise
            else:
                ledger.cover()
                return record
        raise RefusedError("others took each port that was free", "deploy again, or give a --port")

    def _onto(
        self, live: DeploymentRecord, order: DeploymentOrder, name: str, version: int
    ) -> DeploymentRecord:
        """A canary on a route that is taken."""
        if order.canary_config is None:
            raise deployments.route_taken(live, live.route)
        _same_model(name, live.model_name)
        asked = order.stable, order.replicas, order.scale
        if any(one is not None for one in asked) or order.resources:
            raise RefusedError(
                f"the route {live.route!r} has its stable version and its resources",
                "leave out --stable and the resources; `chancery deploy scale` changes them",
                subject=live.subject,
            )
        if order.environment not in (None, live.environment):
            raise RefusedError(
                f"the route {live.route!r} belongs to {live.environment}, not to "
                f"{order.environment}",
                "leave out --env, or choose another --route",
                subject=live.subject,
            )
        return self._canary_on(live, name, version, order.canary_config)

    def _canary_on(
        self, live: DeploymentRecord, name: str, version: int, config: str
    ) -> DeploymentRecord:
        self._gate.allow_acting(name, live.environment, live.subject)
        canary = self._gate.admit_beside(live, name, version, as_canary=True)
        with self.governor.engine.begin() as connection, self._covering() as ledger:
            record = self._begin(connection, ledger, live, canary, config)
        ledger.cover()
        return record

    def _begin(
        self,
        connection: Connection,
        ledger: _Covering,
        record: DeploymentRecord,
        canary: Admitted,
        config: str,
    ) -> DeploymentRecord:
        require_sources(config, self.governor.settings, record.subject)
        rollout = NewRollout(uuid.uuid4().hex, config, canary.provenance)
        return deployments.begin_canary(
            connection, ledger, record, canary.served, rollout, now_ms=now_ms()
        )

    def back(self, name: str, reason: str, canary_config: str | None = None) -> DeploymentRecord:
        checks = canaries()
        config = checks.at_once() if canary_config is None else checks.checked(canary_config)
        self.governor.ledger.ensure_witnessed()
        record = self.find(name)
        with self._refusals_recorded(record.subject):
            self._gate.allow_acting(record.model_name, record.environment, record.subject)
            if record.previous is None:
                raise RefusedError(
                    f"nothing was replaced on the route {record.route!r}, so there is nothing to "
                    "go back to",
                    "bring another version with --canary",
                    subject=record.subject,
                )
            return self._canary_on(record, record.model_name, record.previous.version, config)

    def find(self, name: str) -> DeploymentRecord:
        with self.governor.engine.connect() as connection:
            return deployments.find(connection, name)

    def list(self, *, ended: bool = False) -> Sequence[DeploymentRecord]:
        with self.governor.engine.connect() as connection:
            return deployments.list_deployments(connection, ended=ended)

    def decisions(self, deploy_id: str) -> Sequence[StoredDecision]:
        with self.governor.engine.connect() as connection:
            return deployment_control.decisions_of(connection, deploy_id)

    def ask(self, name: str, kind: SignalKind, reason: str) -> DeploymentRecord:
        with self._changing(name) as (connection, ledger, record):
            deployments.ask(connection, ledger, record, kind, reason, now_ms=now_ms())
        ledger.cover()
        return self._again(record)

    def scale(
        self,
        name: str,
        replicas: int | None = None,
        *,
        scale: Mapping[str, Any] | None = None,
        resources: Mapping[str, str] | None = None,
    ) -> DeploymentRecord:
        with self._changing(name) as (connection, ledger, record):
            after = resources_after(record.resources, replicas, scale, resources)
            deployments.scale(connection, ledger, record, after)
        ledger.cover()
        return self._again(record)

    def end(self, name: str, reason: str) -> DeploymentRecord:
        with self._changing(name) as (connection, ledger, record):
            deployments.end(connection, ledger, record, reason, now_ms=now_ms())
        ledger.cover()
        return self._again(record)

    def experiment(self, name: str, order: ExperimentOrder) -> DeploymentRecord:
        return self._arms.experiment(self.find(name), order)

    def end_experiment(
        self, name: str, reason: str, *, keep: str | None = None, canary_config: str | None = None
    ) -> DeploymentRecord:
        return self._arms.end_experiment(self.find(name), reason, keep, canary_config)

    def shadow(self, name: str, order: ShadowOrder) -> DeploymentRecord:
        return self._arms.shadow(self.find(name), order)

    def end_shadow(self, name: str, reason: str) -> DeploymentRecord:
        return self._arms.end_shadow(self.find(name), reason)

    def _again(self, record: DeploymentRecord) -> DeploymentRecord:
        with self.governor.engine.connect() as connection:
            return deployments.by_id(connection, record.deploy_id)

    @contextmanager
    def _changing(self, name: str) -> Iterator[tuple[Connection, _Covering, DeploymentRecord]]:
        record = self.find(name)
        with (
            self._refusals_recorded(record.subject),
            self.governor.engine.begin() as connection,
            self._covering() as ledger,
        ):
            self._gate.allow_acting(record.model_name, record.environment, record.subject)
            yield connection, ledger, record

    # What a controller does ----------------------------------------------------------------

    def standing(self, *, without_lease_at_ms: int | None = None) -> Sequence[DeploymentRecord]:
        with self.governor.engine.connect() as connection:
            return deployment_control.standing(connection, without_lease_at_ms=without_lease_at_ms)

    def take(self, deploy_id: str, owner: str, *, now_ms: int, ttl_ms: int) -> Look | None:
        with self.governor.engine.begin() as connection:
            record = deployment_control.take_lease(
                connection, deploy_id, owner, now_ms=now_ms, ttl_ms=ttl_ms
            )
        if record is None:
            self._require_standing(deploy_id)
            return None
        self._controllers[deploy_id, record.fence] = owner
        with self.governor.engine.connect() as connection:
            return _look(connection, record)

    def _require_standing(self, deploy_id: str) -> None:
        if self.find(deploy_id).stopped_ms is not None:
            raise NotFoundError(f"the deployment {deploy_id[:12]} was taken down")

    def look(self, deploy_id: str, fence: int, *, now_ms: int, ttl_ms: int) -> Look:
        with self.governor.engine.connect() as connection:
            record = deployments.by_id(connection, deploy_id)
            seen = _look(connection, record)
        if record.fence == fence and record.lease_until_ms - now_ms > ttl_ms // 2:
            return seen
        with self.governor.engine.begin() as connection:
            deployment_control.renew(connection, deploy_id, fence, now_ms=now_ms, ttl_ms=ttl_ms)
        return seen

    def save(
        self, deploy_id: str, fence: int, progress: Progress, *, now_ms: int
    ) -> DeploymentRecord:
        owner = self._controllers.get((deploy_id, fence), "unknown")
        actor = Actor(f"controller:{owner}", ProofLevel.LOCAL)
        with acting_as(actor), self.governor.engine.begin() as connection:
            return deployment_control.save(
                connection, self.governor.ledger, deploy_id, fence, progress, now_ms=now_ms
            )

    def release(self, deploy_id: str, fence: int) -> None:
        with self.governor.engine.begin() as connection:
            deployment_control.release(connection, deploy_id, fence)

    def set_alias(self, name: str, alias: str, version: int) -> bool:
        try:
            if self._backend.resolve(name, f"@{alias}") == version:
                return False
        except NotFoundError:
            pass  # it is not set yet
        self._prove_decisions()
        client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        try:
            client.set_registered_model_alias(name, alias, str(version))
        except GovernedMlflowException as error:
            raise error.governance_error from error
        except MlflowException as error:
            raise RefusedError(
                f"models:/{name}@{alias} cannot be set to version {version}: {error.message}",
                "set it by hand",
                subject=f"models:/{name}@{alias}",
            ) from error
        return True

    def _prove_decisions(self) -> None:
        """Have what was decided countersigned: the gate may ask for the verdict just recorded.

        Raises:
            ConnectionError: not now, and nothing was changed: it may be tried again.
        """
        try:
            self.governor.ledger.sequence()
        except LedgerError as error:
            raise ConnectionError(f"the ledger is not up to date: {error.message}") from error

    # What is shared ------------------------------------------------------------------------

    @contextmanager
    def _refusals_recorded(self, subject: str) -> Iterator[None]:
        """Put what was refused on the ledger; its transaction rolled back."""
        try:
            yield
        except (RefusedError, VerificationError) as error:
            refusals_of(self.governor).record_error(error, subject)
            raise

    @contextmanager
    def _covering(self) -> Iterator[_Covering]:
        yield _Covering(self.governor)


class _Covering:
    """Records events, and after the commit waits for those that others must be able to prove."""

    def __init__(self, governor: Governor) -> None:
        self._governor = governor
        self._waits: str | None = None

    def record(self, connection: Connection, event: Any) -> str:
        identifier = self._governor.ledger.record(connection, event)
        if event.name.awaits_checkpoint:
            self._waits = identifier
        return identifier

    def cover(self) -> None:
        """The last covers those before it: they were recorded in one transaction."""
        if self._waits is not None:
            self._governor.ledger.cover(self._waits)


def _look(connection: Connection, record: DeploymentRecord) -> Look:
    uids = [one.version_uid for one in record.served]
    found = {uid: registry.revocation(connection, uid) for uid in uids}
    return Look(
        record,
        deployment_control.open_signals(connection, record.deploy_id),
        {uid: reason[0] for uid, reason in found.items() if reason is not None},
    )


def _placed(connection: Connection, new: NewDeployment, order: DeploymentOrder) -> NewDeployment:
    """With a port: the one that was asked for, or the first that nobody has."""
    port = order.port or _FIRST_PORT
    while order.port is None and deployments.holder_of(connection, port) is not None:
        port += 1
    return replace(new, port=port, metrics_endpoint=f"http://{order.host}:{port}/metrics")


def _same_model(name: str, deployed: str) -> None:
    if name != deployed:
        raise RefusedError(
            f"versions of two registered models, {name!r} and {deployed!r}, do not share a route",
            "deploy it on a --route of its own",
            subject=f"models:/{name}",
        )


def _checked_route(route: str) -> str:
    if not _ROUTE.fullmatch(route):
        raise RefusedError(
            f"{route[:128]!r} cannot be a route",
            "give --route letters, digits, '.', '_' and '-', beginning with a letter or digit",
        )
    return route


def open_deployments(uri: str) -> Deployments:
    """The deployments of a governed database, or those of a server.

    Raises:
        ConfigurationError: neither ``governed+…`` nor ``http(s)://``.
    """
    if uri.startswith(GOVERNED_PREFIX):
        from mlflow_plugins.registry_store import governor_of

        return DeploymentStore(governor_of(uri), uri)
    if uri.startswith(("http://", "https://")):
        from mlflow_plugins.rest_deployments import RestDeployments

        return RestDeployments(uri, Settings.load())
    raise ConfigurationError(
        f"{uri!r} is not a governed store",
        "use governed+sqlite:///…, governed+postgresql+psycopg://… or the server's http:// address",
    )
