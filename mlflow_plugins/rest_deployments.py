"""Deployments over REST: what ``chancery deploy`` and the MLflow target use against a server.

Implements what people do of ``governance.deployment_port.Deployments``. What controllers do needs
the database: they hold leases of it, and go on while a server is away.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from governance.arms import ExperimentOrder, ShadowOrder
from governance.deployment_control import Progress, StoredDecision
from governance.deployment_port import DeploymentOrder, Look
from governance.deployment_records import DeploymentRecord, SignalKind
from governance.deployment_wire import decision_from, record_from
from governance.errors import ConfigurationError, NotFoundError, RefusedError
from governance.settings import Settings
from mlflow_plugins.rest_session import ServerSession

__all__ = ["RestDeployments"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")

_T = TypeVar("_T")


class RestDeployments:
    """Implements ``governance.deployment_port.Deployments`` against ``http(s)://…``.

    Args:
        uri: Address of the MLflow server (with its static prefix, if any).
        settings: Settings of this client.
    """

    def __init__(self, uri: str, settings: Settings) -> None:
        self._server = ServerSession(uri, settings)

    # What people do ------------------------------------------------------------------------

    def deploy(self, order: DeploymentOrder) -> DeploymentRecord:
        body: dict[str, Any] = {
            "model": order.model,
            "route": order.route,
            "env": order.environment,
            "stable": order.stable,
            "nodePool": order.node_pool,
            "port": order.port,
            "resources": {
                "replicas": order.replicas,
                "scale": order.scale,
                "host": order.host,
                **_amounts(order.resources),
            },
        }
        if order.canary_config is not None:
            body["canaryConfig"] = _canary(order.canary_config)
        return self._changed("/serve/deploy", body)

    def back(self, name: str, reason: str, canary_config: str | None = None) -> DeploymentRecord:
        body: dict[str, Any] = {"reason": reason}
        if canary_config is not None:
            body["canaryConfig"] = _canary(canary_config)
        return self._changed(f"{_place(name)}/rollback", body)

    def find(self, name: str) -> DeploymentRecord:
        return self._read(record_from, self._server.get(_place(name)))

    def list(self, *, ended: bool = False) -> Sequence[DeploymentRecord]:
        found = self._server.get("/serve", ended=str(ended).lower())
        return self._read(lambda it: [record_from(one) for one in it["deployments"]], found)

    def decisions(self, deploy_id: str) -> Sequence[StoredDecision]:
        found = self._server.get(f"{_place(deploy_id)}/decisions")
        return self._read(lambda it: [decision_from(one) for one in it["decisions"]], found)

    def ask(self, name: str, kind: SignalKind, reason: str) -> DeploymentRecord:
        body = {"signal": kind.value, "reason": reason}
        return self._changed(f"{_place(name)}/signals", body)

    def scale(
        self,
        name: str,
        replicas: int | None = None,
        *,
        scale: Mapping[str, Any] | None = None,
        resources: Mapping[str, str] | None = None,
    ) -> DeploymentRecord:
        body = {"replicas": replicas, "scale": scale, **_amounts(resources or {})}
        return self._changed(f"{_place(name)}/scale", body)

    def end(self, name: str, reason: str) -> DeploymentRecord:
        return self._changed(f"{_place(name)}/end", {"reason": reason})

    def experiment(self, name: str, order: ExperimentOrder) -> DeploymentRecord:
        arms = [
            {
                "name": arm.name,
                "model": arm.model,
                "weight": arm.weight,
                "timeoutSeconds": arm.timeout_seconds,
                "maxConcurrency": arm.max_concurrency,
            }
            for arm in order.arms
        ]
        body = {"name": order.name, "sticky": order.sticky, "arms": arms}
        return self._changed(f"{_place(name)}/experiment", body)

    def end_experiment(
        self, name: str, reason: str, *, keep: str | None = None, canary_config: str | None = None
    ) -> DeploymentRecord:
        body: dict[str, Any] = {"reason": reason, "keep": keep}
        if canary_config is not None:
            body["canaryConfig"] = _canary(canary_config)
        return self._changed(f"{_place(name)}/experiment/end", body)

    def shadow(self, name: str, order: ShadowOrder) -> DeploymentRecord:
        body = {
            "model": order.model,
            "percent": order.percent,
            "maxInFlight": order.max_in_flight,
            "timeoutSeconds": order.timeout_seconds,
            "compare": order.compare,
        }
        return self._changed(f"{_place(name)}/shadow", body)

    def end_shadow(self, name: str, reason: str) -> DeploymentRecord:
        return self._changed(f"{_place(name)}/shadow/end", {"reason": reason})

    def _changed(self, path: str, body: Mapping[str, Any]) -> DeploymentRecord:
        return self._read(record_from, self._server.post(path, body))

    def _read(self, parse: Callable[[Mapping[str, Any]], _T], document: Mapping[str, Any]) -> _T:
        try:
            return parse(document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._server.strange("something that is no deployment") from error

    # What a controller does ----------------------------------------------------------------

    def standing(self, *, without_lease_at_ms: int | None = None) -> Sequence[DeploymentRecord]:
        self._needs_database()

    def take(self, deploy_id: str, owner: str, *, now_ms: int, ttl_ms: int) -> Look | None:
        self._needs_database()

    def look(self, deploy_id: str, fence: int, *, now_ms: int, ttl_ms: int) -> Look:
        self._needs_database()

    def save(
        self, deploy_id: str, fence: int, progress: Progress, *, now_ms: int
    ) -> DeploymentRecord:
        self._needs_database()

    def release(self, deploy_id: str, fence: int) -> None:
        self._needs_database()

    def set_alias(self, name: str, alias: str, version: int) -> bool:
        self._needs_database()

    def _needs_database(self) -> NoReturn:
        raise ConfigurationError(
            f"controllers of deployments work on the database, not through {self._server.uri}",
            "name the database: --uri governed+sqlite:///… or governed+postgresql+psycopg://…",
        )


def _place(name: str) -> str:
    """Of a deployment. A name that cannot be is not put into a path."""
    if not _NAME.fullmatch(name):
        raise NotFoundError(
            f"no deployment has the route or id {name!r}",
            "`chancery deploy list` shows those there are",
        )
    return f"/serve/{name}"


def _amounts(resources: Mapping[str, str]) -> dict[str, Any]:
    """As the routes take them. Where nodes keep logs is said beside the cluster only."""
    found: dict[str, Any] = dict(resources)
    if "accessLog" in found:
        raise RefusedError(
            "a folder on the cluster's nodes is not named through a server",
            "leave out --access-log, or name the database with --uri",
        )
    if "gateways" in found:
        found["gateways"] = int(found["gateways"])
    return found


def _canary(config: str) -> Any:
    """As the route takes it: an object, or steps as text."""
    try:
        return json.loads(config) if config.lstrip().startswith("{") else config
    except ValueError:
        return config  # the server says what is wrong with it
