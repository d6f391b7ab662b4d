"""Deployments on a governed database: the promotion gate, then ``governance.deployments``.

A version may answer in a protected environment when it was let in there (a clearance whose
signatures, trust roots, revocation and date hold today, as before a load), or when the policy would
let it in now (approved, not yet promoted). Who is told no is told every unmet condition, and the
refusal is on the ledger.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.engine import Connection

from governance import deployment_control, deployments, registry
from governance.canonical import Manifest
from governance.deployment_control import Progress, StoredDecision
from governance.deployment_port import DeploymentOrder, Look
from governance.deployment_records import (
    DeploymentRecord,
    NewDeployment,
    NewRollout,
    ServedVersion,
    SignalKind,
)
from governance.errors import (
    ConfigurationError,
    NotFoundError,
    PromotionDeniedError,
    RefusedError,
    RevokedError,
    TamperedError,
    UnreachableError,
    UnsignedError,
    VerificationError,
)
from governance.gates.policy import Environment
from governance.identity import Actor, ProofLevel, acting_as
from governance.records import Candidate
from governance.settings import GOVERNED_PREFIX
from governance.signing.release import Release, verify_release
from mlflow_plugins.adoption import adopt
from mlflow_plugins.exceptions import GovernedMlflowException
from mlflow_plugins.governor import Governor, now_ms
from mlflow_plugins.local_backend import LocalBackend
from mlflow_plugins.refusals import refusals_of

__all__ = ["DeploymentStore", "open_deployments"]

_ROUTE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
_LARGEST_VERSION = 2**31 - 1
_MOST_REPLICAS = 1000


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A version that passed the gate."""

    candidate: Candidate
    environment: str
    served: ServedVersion
    provenance: Mapping[str, Any]


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
        self._controllers: dict[tuple[str, int], str] = {}

    # What people do ------------------------------------------------------------------------

    def deploy(self, order: DeploymentOrder) -> DeploymentRecord:
        self.governor.ledger.ensure_witnessed()
        with self._refusals_recorded(order.model):
            return self._deploy(order)

    def _deploy(self, order: DeploymentOrder) -> DeploymentRecord:
        name, version, alias = self._resolve(order.model)
        route = _checked_route(order.route or name)
        resources = _checked_resources(order)
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
        environment = self._environment(name, alias, order.environment)
        canary = self._admit(name, version, environment)
        stable = canary
        if order.canary_config is not None and order.stable is not None:
            other, number, _ = self._resolve(order.stable)
            _same_model(other, name)
            stable = self._admit(other, number, environment)
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
        with self.governor.engine.begin() as connection, self._covering() as ledger:
            record = deployments.create(connection, ledger, new, now_ms=now)
            if order.canary_config is not None:
                record = self._begin(connection, ledger, record, canary, order.canary_config)
        ledger.cover()
        return record

    def _onto(
        self, live: DeploymentRecord, order: DeploymentOrder, name: str, version: int
    ) -> DeploymentRecord:
        """A canary on a route that is taken."""
        if order.canary_config is None:
            raise deployments.route_taken(live, live.route)
        _same_model(name, live.model_name)
        if order.stable is not None or order.replicas is not None or order.resources:
            raise RefusedError(
                f"the route {live.route!r} has its stable version and its resources",
                "leave out --stable and the resources; `chancery deploy scale` changes replicas",
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
        environment = self.governor.policy.environment(live.environment)
        canary = self._admit(name, version, environment)
        if canary.candidate.model_uid != live.model_uid:
            raise RefusedError(
                f"the registered model {name!r} was deleted and made anew since the route "
                f"{live.route!r} was deployed",
                f"`chancery deploy delete {live.route}`, and deploy the new one",
                subject=live.subject,
            )
        with self.governor.engine.begin() as connection, self._covering() as ledger:
            record = self._begin(connection, ledger, live, canary, config)
        ledger.cover()
        return record

    def _begin(
        self,
        connection: Connection,
        ledger: _Covering,
        record: DeploymentRecord,
        canary: _Admitted,
        config: str,
    ) -> DeploymentRecord:
        rollout = NewRollout(uuid.uuid4().hex, config, canary.provenance)
        return deployments.begin_canary(
            connection, ledger, record, canary.served, rollout, now_ms=now_ms()
        )

    def back(self, name: str, reason: str, canary_config: str) -> DeploymentRecord:
        self.governor.ledger.ensure_witnessed()
        record = self.find(name)
        with self._refusals_recorded(record.subject):
            if record.previous is None:
                raise RefusedError(
                    f"nothing was replaced on the route {record.route!r}, so there is nothing to "
                    "go back to",
                    "bring another version with --canary",
                    subject=record.subject,
                )
            return self._canary_on(
                record, record.model_name, record.previous.version, canary_config
            )

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

    def scale(self, name: str, replicas: int) -> DeploymentRecord:
        _checked_replicas(replicas)
        with self._changing(name) as (connection, ledger, record):
            resources = {**record.resources, "replicas": replicas}
            deployments.scale(connection, ledger, record, resources)
        ledger.cover()
        return self._again(record)

    def end(self, name: str, reason: str) -> DeploymentRecord:
        with self._changing(name) as (connection, ledger, record):
            deployments.end(connection, ledger, record, reason, now_ms=now_ms())
        ledger.cover()
        return self._again(record)

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
            yield connection, ledger, record

    # The gate ------------------------------------------------------------------------------

    def _resolve(self, model: str) -> tuple[str, int, str | None]:
        """Name, version and, when it was named so, alias."""
        rest = model.removeprefix("models:/")
        at = "@" in rest
        name, separator, last = rest.rpartition("@") if at else rest.rpartition("/")
        if not model.startswith("models:/") or not separator or not name or not last:
            raise RefusedError(
                f"{model!r} is not models:/name/version or models:/name@alias", "correct it"
            )
        if at:
            return name, self._backend.resolve(name, f"@{last}"), last
        if not (last.isascii() and last.isdigit() and 0 < int(last) <= _LARGEST_VERSION):
            raise NotFoundError(f"{last!r} is not a version number", "write models:/name/3")
        return name, int(last), None

    def _environment(self, name: str, alias: str | None, wanted: str | None) -> Environment:
        """Whose gate applies: what was asked for, else what the name or alias means."""
        policy = self.governor.policy
        meant = policy.environment_for_registered_model(name)
        if meant is None and alias is not None:
            meant = policy.environment_for_alias(alias)
        if wanted is None:
            if meant is not None:
                return meant
            raise RefusedError(
                f"it is not said which environment {name!r} is deployed to",
                "add --env "
                + " or --env ".join(environment.name for environment in policy.environments),
                subject=f"models:/{name}",
            )
        return policy.environment(wanted)

    def _admit(self, name: str, version: int, environment: Environment) -> _Admitted:
        """The version, when it may answer in the environment."""
        adopt(self.governor, name, version)
        with self.governor.engine.connect() as connection:
            candidate = registry.candidate(connection, name, version)
        if candidate.revoked_reason is not None:
            raise RevokedError(
                f"{candidate.uri} was revoked: {candidate.revoked_reason}", "deploy another version"
            )
        if candidate.root_digest is None:
            raise UnreachableError(
                f"{candidate.uri} was registered without a digest, so nobody can check its bytes: "
                f"{candidate.digest_error or 'no reason is known'}",
                "register it again from a place that the server can read",
            )
        provenance: dict[str, Any] = {
            "rootDigest": candidate.root_digest,
            "runId": candidate.run_id,
            "loggedModelId": candidate.logged_model_id,
            "policyDigest": self.governor.policy.digest,
        }
        if environment.protected:
            provenance |= self._let_in(candidate, environment.name)
        served = ServedVersion(version, candidate.version_uid, candidate.root_digest)
        return _Admitted(candidate, environment.name, served, provenance)

    def _let_in(self, candidate: Candidate, environment: str) -> dict[str, Any]:
        """Who let it in: by its clearance, as before a load, or by what is approved now."""
        document = self._backend.release(candidate.model_name, candidate.version)
        release = Release.parse(
            json.dumps(document), model=candidate.model_name, version=candidate.version
        )
        try:
            load = verify_release(
                release,
                Manifest.from_json(release.manifest or ""),
                environment=environment,
                require_signature=True,
                pinned_first_root=self.governor.settings.trust_root,
                now_ms=now_ms(),
            )
        except (RevokedError, TamperedError):
            raise
        except VerificationError as error:
            return self._would_be_let_in(candidate, environment, error)
        return {"signers": list(load.signers), "statementId": load.statement_id}

    def _would_be_let_in(
        self, candidate: Candidate, environment: str, error: VerificationError
    ) -> dict[str, Any]:
        if self.governor.policy.environment_for_registered_model(candidate.model_name):
            raise error  # a copy was let in when it was made, or not at all
        with self.governor.engine.connect() as connection:
            decision, standing = self.governor.decide(connection, candidate, environment)
        sufficient = standing.statement is not None and standing.tally.sufficient
        if decision.allowed and sufficient and standing.statement is not None:
            return {
                "signers": list(standing.tally.persons),
                "statementId": standing.statement.statement_id,
            }
        if isinstance(error, UnsignedError) and not decision.allowed:
            raise PromotionDeniedError(decision) from error
        raise error

    # What a controller does ----------------------------------------------------------------

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
    served = [one for one in (record.stable, record.canary) if one is not None]
    found = {one.version_uid: registry.revocation(connection, one.version_uid) for one in served}
    return Look(
        record,
        deployment_control.open_signals(connection, record.deploy_id),
        {uid: reason[0] for uid, reason in found.items() if reason is not None},
    )


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


def _checked_replicas(replicas: int) -> int:
    if not 0 <= replicas <= _MOST_REPLICAS:
        raise RefusedError(
            f"{replicas} replicas cannot be", f"ask for 0 to {_MOST_REPLICAS} replicas"
        )
    return replicas


def _checked_resources(order: DeploymentOrder) -> dict[str, Any]:
    replicas = _checked_replicas(1 if order.replicas is None else order.replicas)
    return {**order.resources, "replicas": replicas}


def open_deployments(uri: str) -> DeploymentStore:
    """The deployments of a governed database.

    Raises:
        ConfigurationError: not ``governed+…``.
    """
    if uri.startswith(GOVERNED_PREFIX):
        from mlflow_plugins.registry_store import governor_of

        return DeploymentStore(governor_of(uri), uri)
    raise ConfigurationError(
        f"deployments are not reached through {uri!r}",
        "name the governed database: governed+sqlite:///… or governed+postgresql+psycopg://…",
    )
