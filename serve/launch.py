"""Starts controllers on a Ray cluster.

The cluster is asked for first, so that nothing is written about a deployment that nobody could
start. Starting a controller that is there already does nothing.

Ray gets no password (``serve.credentials``), and of this process's variables only those that
actors need.
"""

from __future__ import annotations

import logging
import os
import re
import socket

from governance.deployment_records import DeploymentRecord
from governance.errors import ConfigurationError, UnreachableError
from governance.terminal import settings_of
from serve.capacity import lacking
from serve.credentials import hide_in_arguments, passed_on, without_password
from serve.tracing import TraceSettings

__all__ = ["connect", "ensure_controller", "shortage"]


def connect(address: str = "auto", uri: str = "") -> None:
    """Join the cluster as a client, unless this process is in one.

    Args:
        address: Of the cluster.
        uri: Of the store, if the command line may name it.

    Raises:
        ConfigurationError: Ray is not installed, the command line holds a password that Ray would
            keep, or traces are to go to a place that cannot be.
        UnreachableError: there is no cluster at the address.
    """
    TraceSettings.load(passed_on(os.environ) | _stores(_server() or ""))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no call home unless somebody wants it
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ConfigurationError(
            f"serving needs {error.name or 'ray'}, which is not installed",
            "pip install 'mlflow-chancery[serve]'",
        ) from error
    if ray.is_initialized():
        return
    hide_in_arguments(uri, _shown(uri))
    _require_listening(address)
    from serve.ray_cluster import NAMESPACE

    try:
        ray.init(
            address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise _no_cluster(address, str(error).splitlines()[0]) from error
    serve.start(proxy_location="Disabled")


def _require_listening(address: str) -> None:
    """Ray itself waits a minute for a head that is not there."""
    named = re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+)\]?:([0-9]{1,5})", address)
    if named is None:
        return  # Ray looks for it
    try:
        socket.create_connection((named[1], int(named[2])), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, why: str) -> UnreachableError:
    return UnreachableError(
        f"there is no Ray cluster at {address!r}: {why}",
        "`ray start --head` on this machine, or name another cluster with --ray; "
        "--record-only starts nothing",
    )


def ensure_controller(record: DeploymentRecord, uri: str) -> None:
    """Have the deployment's controller run, detached from this process."""
    import ray

    from serve.controller_actor import ControllerActor
    from serve.ray_cluster import NAMESPACE, RayOptions, actor_name

    uri = _shown(_absolute(uri))
    environment = passed_on(os.environ)
    options = RayOptions(environment=environment | _stores(_shown(_server() or uri)))
    ray.remote(ControllerActor).options(
        name=actor_name(record.deploy_id),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_concurrency=64,
        num_cpus=0,
        runtime_env={"env_vars": environment | _stores(uri)},
    ).remote(record.deploy_id, uri, options)


def shortage(record: DeploymentRecord) -> str:
    """What no node of the cluster has that the deployment's replicas need; empty: nothing."""
    import ray

    from serve.ray_cluster import needs_of

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return lacking(nodes, needs_of(record.resources, record.node_pool))


def _shown(uri: str) -> str:
    """The URI without its password."""
    return without_password(uri, settings_of(uri).home)


def _stores(uri: str) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": uri, "MLFLOW_REGISTRY_URI": uri}


def _server() -> str | None:
    """The MLflow server that this process was told of: replicas load through it.

    Artifacts that a server keeps for its clients (``mlflow-artifacts:``) have no other way.
    """
    named = (os.environ.get(name, "") for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"))
    return next((uri for uri in named if uri.startswith(("http://", "https://"))), None)


def _absolute(uri: str) -> str:
    """A SQLite file's URI as it reads from any folder: an actor has another than we have."""
    scheme, separator, path = uri.partition(":///")
    if separator and scheme.endswith("sqlite") and path and not path.startswith("/"):
        return f"{scheme}:///{os.path.abspath(path)}"
    return uri
