"""Starts controllers on a Ray cluster.

The cluster is asked for first, so that nothing is written about a deployment that nobody could
start. Starting a controller that is there already does nothing.
"""

from __future__ import annotations

import logging
import os

from governance.deployment_records import DeploymentRecord
from governance.errors import ConfigurationError, UnreachableError

__all__ = ["connect", "ensure_controller"]

_PASSED_ON = ("CHANCERY_",)


def connect(address: str = "auto") -> None:
    """Join the cluster as a client, unless this process is in one.

    Raises:
        ConfigurationError: Ray is not installed.
        UnreachableError: there is no cluster at the address.
    """
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
    from serve.ray_cluster import NAMESPACE

    try:
        ray.init(
            address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise UnreachableError(
            f"there is no Ray cluster at {address!r}: {str(error).splitlines()[0]}",
            "`ray start --head` on this machine, or name another cluster with --ray; "
            "--record-only starts nothing",
        ) from error
    serve.start(proxy_location="Disabled")


def ensure_controller(record: DeploymentRecord, uri: str) -> None:
    """Have the deployment's controller run, detached from this process."""
    import ray

    from serve.controller_actor import ControllerActor
    from serve.ray_cluster import NAMESPACE, RayOptions, actor_name

    environment = {
        name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)
    } | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_REGISTRY_URI": uri}
    options = RayOptions(environment=environment)
    ray.remote(ControllerActor).options(
        name=actor_name(record.deploy_id),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_concurrency=64,
        num_cpus=0,
        runtime_env={"env_vars": environment},
    ).remote(record.deploy_id, uri, options)
