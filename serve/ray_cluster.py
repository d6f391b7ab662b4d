"""The controller's cluster port on Ray Serve.

A variant is an application of its own, so that starting or stopping one touches nothing else; a
route has an application of gateways. Nothing here waits for Ray: an application is asked for, and
``state`` tells how it does. Starting, scaling and restarting replicas is Ray's own work.

An application is declared under a version of our own: a digest of what runs in its replicas. Ray
would otherwise give each declaration a new one and replace every replica, also when a controller
that takes over says the same once more, or asks for one replica more.

Only this module, ``serve.replica`` and ``serve.gateway`` know Ray Serve.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from governance.deployment_records import DeploymentRecord
from serve.capacity import Needs, crowded, lacking
from serve.cluster import Running, VariantSpec, VariantState

if TYPE_CHECKING:
    from serve.gateway import GatewaySpec
    from serve.replica import ModelSpec

__all__ = ["NAMESPACE", "RayCluster", "RayOptions", "actor_name", "gateway_name", "needs_of"]

NAMESPACE = "chancery"

_LONGEST = 500
# For so long one answer of Serve's controller does for all applications; it is asked less often
# while all of them run.
_FRESH_S = 0.2
_STEADY_S = 1.0
_NODES_FRESH_S = 5.0
_BEGUN = ("STARTING", "UPDATING", "RECOVERING", "RUNNING")


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
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    sockets: str = field(default_factory=_sockets)


class RayCluster:
    """Implements ``serve.cluster.ClusterPort``.

    Args:
        options: How applications run.
    """

    def __init__(self, options: RayOptions) -> None:
        self._options = options
        self._seen: dict[str, Any] = {}
        self._seen_s = float("-inf")
        self._fresh_s = _FRESH_S
        self._nodes: list[dict[str, Any]] = []
        self._nodes_s = float("-inf")
        self._needs: dict[str, Needs] = {}
        self._again: dict[str, str] = {}

    def open(self, record: DeploymentRecord) -> None:
        """Have gateways for the route."""
        from serve.gateway import GatewaySpec, gateway_application

        if record.port is None:
            return
        options, resources = self._options, record.resources
        spec = GatewaySpec(
            port=record.port,
            sockets=options.sockets,
            controller=actor_name(record.deploy_id),
            namespace=NAMESPACE,
            host=str(resources.get("host", "127.0.0.1")),
            replicas=int(resources.get("gateways", 2)),
            access_log=str(resources.get("accessLog", "")),
            environment=options.environment,
            cpus=float(resources.get("gatewayCpus", 0.5)),
            labels=_labels(resources.get("gatewayPool")),
        )
        self._have(
            gateway_name(record.deploy_id), spec, lambda code: gateway_application(spec, code)
        )

    def start(self, spec: VariantSpec) -> None:
        """Have this variant run; does not wait for it."""
        from serve.replica import ModelSpec, model_application

        options, needs = self._options, needs_of(spec.resources, spec.node_pool)
        model = ModelSpec(
            model=spec.model,
            version=str(spec.version),
            application=spec.application,
            sockets=options.sockets,
            signer=spec.signer,
            replicas=int(spec.resources.get("replicas", 1)),
            environment=options.environment,
            cpus=needs.cpus,
            gpus=needs.gpus,
            labels=needs.labels,
            root_digest=spec.root_digest,
            route=spec.route,
        )
        self._needs[spec.application] = needs
        self._have(spec.application, model, lambda code: model_application(model, code))

    def _have(
        self, name: str, spec: ModelSpec | GatewaySpec, application: Callable[[str], Any]
    ) -> None:
        from ray import serve
        from ray.serve import RunTarget

        serve.start(proxy_location="Disabled")
        known = _applications().get(name)
        if known is not None and _status(known) == "DEPLOY_FAILED":
            self._again[name] = uuid4().hex[:8]  # Ray tries the same version only so often
        code = f"{_digest(spec)}{self._again.get(name, '')}"
        serve.run_many(
            [RunTarget(target=application(code), name=name, route_prefix=None)],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        self._seen_s = float("-inf")

    def state(self, application: str) -> VariantState:
        """How it does, as Ray Serve sees it."""
        if time.monotonic() - self._seen_s > self._fresh_s:
            self._seen = dict(_applications())
            self._seen_s = time.monotonic()
            steady = all(_status(found) == "RUNNING" for found in self._seen.values())
            self._fresh_s = _STEADY_S if steady else _FRESH_S
        state = _state(self._seen.get(application))
        needs = self._needs.get(application)
        if needs is None or not state.waiting:
            return state
        words = lacking(self._all_nodes(), needs)
        if not words and _unplaced(self._seen.get(application)):
            words = crowded(needs)
        return replace(state, lacking=words)

    def _all_nodes(self) -> list[dict[str, Any]]:
        import ray

        if time.monotonic() - self._nodes_s > _NODES_FRESH_S:
            self._nodes = ray.nodes()  # type: ignore[no-untyped-call]
            self._nodes_s = time.monotonic()
        return self._nodes

    def stop(self, application: str) -> None:
        """Take it down; Ray lets its replicas finish."""
        from ray import serve

        if application in _applications():
            serve.delete(application, _blocking=False)
        self._seen_s = float("-inf")

    def close(self, record: DeploymentRecord) -> None:
        """Take the gateways down."""
        self.stop(gateway_name(record.deploy_id))


def needs_of(resources: Mapping[str, Any], pool: str | None) -> Needs:
    """What one replica of a deployment needs."""
    return Needs(
        cpus=float(resources.get("numCpus", 1)),
        gpus=float(resources.get("numGpus", 0)),
        labels=_labels(pool),
    )


def _labels(pool: str | None) -> dict[str, str]:
    return {"pool": pool} if pool else {}


def _digest(spec: ModelSpec | GatewaySpec) -> str:
    """Of what runs in a replica, not of how many there are."""
    try:
        package = version("mlflow-chancery")
    except PackageNotFoundError:
        package = ""
    said = {**asdict(spec), "replicas": 0, "package": package}
    return blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=12).hexdigest()


def _applications() -> Mapping[str, Mapping[str, Any]]:
    """What ``serve.status()`` is made of, by name; empty where Serve does not run.

    ``status()`` itself checks every option of every application once more, and pickles classes for
    it: some 50 ms of CPU an application, each time.
    """
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return {}
    found: Mapping[str, Mapping[str, Any]] = client.get_serve_details()["applications"]
    return found


def _state(found: Mapping[str, Any] | None) -> VariantState:
    """From Ray Serve's details of an application."""
    from serve.replica import refusal_in

    if found is None:
        return VariantState(Running.ABSENT)
    deployments = found["deployments"].values()
    messages = [found["message"], *(one["message"] for one in deployments)]
    told = "\n".join(message for message in messages if message)
    status = _status(found)
    counts: Counter[str] = Counter()
    for one in deployments:
        for replica in one["replicas"]:
            counts[_text(replica["state"])] += 1
    replicas, answering = sum(counts[name] for name in _BEGUN), counts["RUNNING"]
    if refused := refusal_in(told):
        return VariantState(Running.REFUSED, f"{refused}: {_line_with(refused, told)}")
    reason = _short(told)
    if status in ("UNHEALTHY", "DEPLOY_FAILED"):
        return VariantState(Running.UNHEALTHY, reason, replicas, answering)
    if status == "DELETING":  # some may answer until Ray comes to them
        return VariantState(Running.ABSENT, "", replicas, answering)
    if status == "RUNNING" or answering:  # while it changes, the replicas before answer
        return VariantState(Running.RUNNING, "", replicas, answering)
    return VariantState(Running.STARTING, reason, replicas, answering)


def _unplaced(found: Mapping[str, Any] | None) -> bool:
    """Whether Ray looks for room for some of its replicas, for half a minute or more."""
    deployments = () if found is None else found["deployments"].values()
    return any("to be scheduled" in one["message"] for one in deployments)


def _status(found: Mapping[str, Any]) -> str:
    return _text(found["status"])


def _text(value: Any) -> str:
    """Of an enumeration's member, or of what came as a text already."""
    return str(getattr(value, "value", value))


def _line_with(code: str, told: str) -> str:
    """The sentence about the refusal, out of Ray's traceback."""
    lines = [line.partition(f"[{code}]")[2] for line in told.splitlines() if f"[{code}]" in line]
    return _short(next((line.strip() for line in lines if line.strip()), told))


def _short(told: str) -> str:
    """The end of a traceback says what happened."""
    return told.strip()[-_LONGEST:]
