"""The controller's cluster port on Ray Serve.

A variant is an application of its own, so that starting or stopping one touches nothing else; a
route has an application of gateways. Nothing here waits for Ray: an application is asked for, and
``state`` tells how it does. Starting, scaling and restarting replicas is Ray's own work.

Only this module, ``serve.replica`` and ``serve.gateway`` know Ray Serve.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from governance.deployment_records import DeploymentRecord
from serve.cluster import Running, VariantSpec, VariantState

__all__ = ["NAMESPACE", "RayCluster", "RayOptions", "actor_name", "gateway_name"]

NAMESPACE = "chancery"

_LONGEST = 500
_FRESH_S = 0.2  # for which one answer of Serve's controller does for all applications


def actor_name(deploy_id: str) -> str:
    """Of a deployment's controller."""
    return f"chancery-{deploy_id}"


def gateway_name(deploy_id: str) -> str:
    """Of a deployment's application of gateways."""
    return f"{deploy_id[:12]}-gateway"


def _sockets() -> str:
    """A short path: a socket's may have 107 bytes."""
    if named := os.environ.get("CHANCERY_SERVE_SOCKETS"):
        return named
    return str(Path(tempfile.gettempdir()) / f"chancery-{os.getuid()}")


@dataclass(frozen=True, slots=True)
class RayOptions:
    """How applications run.

    Attributes:
        environment: Variables of replicas, as the store's address.
        sockets: Folder of the replicas' sockets, on each node.
        gateways: Listeners of a route; two or more survive each other.
        gateway_cpus: Of each, as Ray counts them.
        access_log: Folder for the gateways' access logs; empty: none.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    sockets: str = field(default_factory=_sockets)
    gateways: int = 2
    gateway_cpus: float = 0.5
    access_log: str = ""


class RayCluster:
    """Implements ``serve.cluster.ClusterPort``.

    Args:
        options: How applications run.
    """

    def __init__(self, options: RayOptions) -> None:
        self._options = options
        self._seen: dict[str, Any] = {}
        self._seen_s = float("-inf")

    def open(self, record: DeploymentRecord) -> None:
        """Have gateways for the route."""
        from serve.gateway import GatewaySpec, gateway_application

        if record.port is None:
            return
        options = self._options
        spec = GatewaySpec(
            port=record.port,
            sockets=options.sockets,
            controller=actor_name(record.deploy_id),
            namespace=NAMESPACE,
            host=str(record.resources.get("host", "127.0.0.1")),
            replicas=options.gateways,
            access_log=options.access_log,
            environment=options.environment,
            cpus=options.gateway_cpus,
        )
        self._have(gateway_name(record.deploy_id), gateway_application(spec))

    def start(self, spec: VariantSpec) -> None:
        """Have this variant run; does not wait for it."""
        from serve.replica import ModelSpec, model_application

        options, resources = self._options, spec.resources
        model = ModelSpec(
            model=spec.model,
            version=str(spec.version),
            application=spec.application,
            sockets=options.sockets,
            signer=spec.signer,
            replicas=int(resources.get("replicas", 1)),
            environment=options.environment,
            cpus=float(resources.get("numCpus", 1)),
            gpus=float(resources.get("numGpus", 0)),
            labels={"pool": spec.node_pool} if spec.node_pool else {},
        )
        self._have(spec.application, model_application(model))

    def _have(self, name: str, application: Any) -> None:
        from ray import serve
        from ray.serve import RunTarget

        serve.start(proxy_location="Disabled")
        serve.run_many(
            [RunTarget(target=application, name=name, route_prefix=None)],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        self._seen_s = float("-inf")

    def state(self, application: str) -> VariantState:
        """How it does, as Ray Serve sees it."""
        from ray import serve

        if time.monotonic() - self._seen_s > _FRESH_S:
            self._seen = dict(serve.status().applications)
            self._seen_s = time.monotonic()
        return _state(self._seen.get(application))

    def stop(self, application: str) -> None:
        """Take it down; Ray lets its replicas finish."""
        from ray import serve

        if application in serve.status().applications:
            serve.delete(application, _blocking=False)
        self._seen_s = float("-inf")

    def close(self, record: DeploymentRecord) -> None:
        """Take the gateways down."""
        self.stop(gateway_name(record.deploy_id))


def _state(found: Any) -> VariantState:
    """From Ray Serve's overview of an application."""
    from serve.replica import refusal_in

    if found is None:
        return VariantState(Running.ABSENT)
    messages = [found.message, *(one.message for one in found.deployments.values())]
    told = "\n".join(message for message in messages if message)
    status = str(getattr(found.status, "value", found.status))
    if refused := refusal_in(told):
        return VariantState(Running.REFUSED, f"{refused}: {_line_with(refused, told)}")
    reason = _short(told)
    if status in ("UNHEALTHY", "DEPLOY_FAILED"):
        return VariantState(Running.UNHEALTHY, reason)
    if status == "DELETING":
        return VariantState(Running.ABSENT)
    answering = sum(
        count
        for one in found.deployments.values()
        for state, count in one.replica_states.items()
        if str(getattr(state, "value", state)) == "RUNNING"
    )
    if status == "RUNNING" or answering:  # while it is changed, the replicas before it answer
        return VariantState(Running.RUNNING)
    return VariantState(Running.STARTING, reason)


def _line_with(code: str, told: str) -> str:
    """The sentence about the refusal, out of Ray's traceback."""
    lines = [line.partition(f"[{code}]")[2] for line in told.splitlines() if f"[{code}]" in line]
    return _short(next((line.strip() for line in lines if line.strip()), told))


def _short(told: str) -> str:
    """The end of a traceback says what happened."""
    return told.strip()[-_LONGEST:]
