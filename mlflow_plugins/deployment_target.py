"""The target ``chancery`` of ``mlflow deployments``: routes as MLflow's deployments.

A deployment's name is its route. What MLflow's interface has no word for (environments, canaries)
is in the config, under the names that the options of ``chancery deploy start`` have.

Example::

    client = mlflow.deployments.get_deploy_client("chancery:/http://127.0.0.1:5000")
    client.create_deployment("fraud", "models:/fraud@champion")
    client.update_deployment("fraud", "models:/fraud/4", config={"canary": "5%"})
    client.predict("fraud", rows)

MLflow loads this module when the target is first named, after ``import mlflow``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import NOT_IMPLEMENTED
from sqlalchemy.exc import SQLAlchemyError

from governance.clock import now_ms
from governance.deployment_port import DeploymentOrder, Deployments, canaries, open_deployments
from governance.deployment_records import DeploymentRecord, DeploymentStatus
from governance.errors import (
    ConfigurationError,
    GovernanceError,
    MalformedRequestError,
    NotFoundError,
    RefusedError,
    UnreachableError,
)
from governance.settings import GOVERNED_PREFIX
from mlflow_plugins.exceptions import to_mlflow
from mlflow_plugins.gateway_client import ask_gateway
from mlflow_plugins.target_config import HELP, KEYS, TargetConfig

__all__ = ["ChanceryDeploymentClient", "run_local", "target_help"]

FLAVOR = "python_function"

_LOOK_S = 0.5
_GETS_TRAFFIC = frozenset({"verified", "advanced", "promoted"})
_FAILED = frozenset({"rolled_back", "quarantined", "aborted"})


class ChanceryDeploymentClient(BaseDeploymentClient):
    """Deployments of a governed store, on a database or a server.

    Args:
        target_uri: ``chancery``, or ``chancery:/`` and the store's URI.
    """

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)
        with _told():
            self._uri = _store_of(target_uri)
            self._port: Deployments = open_deployments(self._uri)

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Let a registered version answer on the route ``name``, and wait until it does.

        Args:
            name: The route. One that is taken is refused, unless ``config`` has a canary: then the
                version is rolled out beside what answers there.
            model_uri: ``models:/name/version`` or ``models:/name@alias``.
            flavor: ``python_function``, or nothing.
            config: See ``mlflow deployments help -t chancery``.
            endpoint: Not supported: a route is all there is.
        """
        with _told():
            _check(flavor, endpoint)
            wishes = TargetConfig(config, KEYS["create"])
            order = DeploymentOrder(
                model=_registered(model_uri),
                route=name,
                environment=wishes.text("env"),
                canary_config=_canary(wishes),
                stable=wishes.text("stable"),
                replicas=wishes.number("replicas"),
                resources=wishes.amounts(numCpus="cpus", numGpus="gpus"),
                node_pool=wishes.text("pool"),
                host=wishes.text("host") or "127.0.0.1",
                port=wishes.number("port"),
            )
            return self._deployed(order, wishes)

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Roll a version out on the route ``name``, or give its variants other resources.

        A version never replaces another without a canary: by default with the usual steps
        (5, 25, 50, 100 %), with ``canary: at-once`` as soon as it is verified. Waits until it gets
        requests; what becomes of it then, ``get_deployment`` tells.
        """
        with _told():
            _check(flavor, endpoint)
            wishes = TargetConfig(config, KEYS["update"])
            replicas = wishes.number("replicas")
            if model_uri is None and replicas is None:
                raise MalformedRequestError(
                    "there is nothing to update", "name a model, or -C replicas=N"
                )
            record = self._port.find(name)
            if model_uri is not None:
                order = DeploymentOrder(
                    model=_registered(model_uri),
                    route=record.route,
                    canary_config=_canary(wishes) or canaries().checked("5%"),
                )
                described = self._deployed(order, wishes)
            if replicas is not None:
                described = _described(self._port.scale(record.deploy_id, replicas))
            return described

    def delete_deployment(
        self, name: str, config: Mapping[str, Any] | None = None, endpoint: str | None = None
    ) -> None:
        """End the deployment; nothing happens when there is none."""
        with _told():
            _check(None, endpoint)
            reason = TargetConfig(config, KEYS["delete"]).text("reason") or ""
            try:
                record = self._port.find(name)
            except NotFoundError:
                return
            if record.ended_ms is None:
                self._port.end(record.deploy_id, reason)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """Those that live, newest first."""
        with _told():
            _check(None, endpoint)
            return [_described(record) for record in self._port.list()]

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """One, by its route or id."""
        with _told():
            _check(None, endpoint)
            return _described(self._port.find(name))

    def predict(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> PredictionsResponse:
        """Ask the route's gateway, by MLflow's scoring protocol.

        Args:
            deployment_name: The route.
            inputs: A DataFrame, an array, a list, or the body itself as a dict
                (``{"inputs": …}``, ``{"dataframe_split": …}``).
            endpoint: Not supported.
        """
        with _told():
            _check(None, endpoint)
            if deployment_name is None:
                raise MalformedRequestError("it is not said which deployment", "name its route")
            record = self._port.find(deployment_name)
        return ask_gateway(record, inputs)

    def predict_stream(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> NoReturn:
        """Not supported: gateways answer whole."""
        raise MlflowException("chancery does not stream predictions", NOT_IMPLEMENTED)

    def create_endpoint(self, name: str, config: Mapping[str, Any] | None = None) -> NoReturn:
        """Not supported."""
        raise _no_endpoints()

    def update_endpoint(self, endpoint: str, config: Mapping[str, Any] | None = None) -> NoReturn:
        """Not supported."""
        raise _no_endpoints()

    def delete_endpoint(self, endpoint: str) -> NoReturn:
        """Not supported."""
        raise _no_endpoints()

    def list_endpoints(self) -> NoReturn:
        """Not supported."""
        raise _no_endpoints()

    def get_endpoint(self, endpoint: str) -> NoReturn:
        """Not supported."""
        raise _no_endpoints()

    def _deployed(self, order: DeploymentOrder, wishes: TargetConfig) -> dict[str, Any]:
        """The deployment, once it answers. The cluster is asked for before anything is written."""
        from serve.ordering import launcher

        wait_s = wishes.seconds("wait", 300.0)
        launch = launcher(self._uri, wishes.text("ray") or os.environ.get("RAY_ADDRESS", "auto"))
        record = self._port.deploy(order)
        if launch is not None:
            launch(record)
        rollout = record.rollout_id if order.canary_config is not None else None
        return _described(self._answering(record, rollout, wait_s))

    def _answering(
        self, record: DeploymentRecord, rollout: str | None, wait_s: float
    ) -> DeploymentRecord:
        until = time.monotonic() + wait_s
        while wait_s > 0 and not self._answers(record, rollout):
            if time.monotonic() > until:
                raise UnreachableError(
                    f"the deployment on {record.route!r} is recorded, but does not answer yet "
                    f"after {wait_s:g} s{_nobody(record)}",
                    f"see `chancery deploy show {record.route}`; it goes on by itself",
                )
            time.sleep(_LOOK_S)
            record = self._port.find(record.deploy_id)
        return record

    def _answers(self, record: DeploymentRecord, rollout: str | None) -> bool:
        """Whether requests are answered as they were asked to be.

        Raises:
            RefusedError: they will not be.
        """
        if record.ended_ms is not None or record.closed:
            why = record.closed or f"it was ended by {record.ended_by}"
            raise RefusedError(f"nobody answers on the route {record.route!r}: {why}")
        if rollout is None:
            return record.status in (DeploymentStatus.SERVING, DeploymentStatus.ROLLING_OUT)
        found = [one for one in self._port.decisions(record.deploy_id) if one.rollout_id == rollout]
        for decision in found:
            if decision.document["outcome"] in _FAILED:
                words = " ".join(map(str, decision.document["explanation"]))
                outcome = str(decision.document["outcome"]).replace("_", " ")
                raise RefusedError(
                    f"the rollout on {record.route!r} was {outcome}: {words}",
                    f"see `chancery deploy why {record.route}`",
                )
        return any(decision.document["outcome"] in _GETS_TRAFFIC for decision in found)


def run_local(
    name: str,
    model_uri: str,
    flavor: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Serve a model on this machine until Ctrl-C, by the same listener and scoring.

    No route, no canary, nothing in the registry, one process. A ``models:/`` URI is verified
    before it is loaded, as on a cluster.
    """
    with _told():
        _check(flavor, None)
        wishes = TargetConfig(config, KEYS["run-local"])
        from serve.local import serve_locally

        host, port = wishes.text("host") or "127.0.0.1", wishes.number("port")
        serve_locally(name, model_uri, host=host, port=8080 if port is None else port)


def target_help() -> str:
    """What ``mlflow deployments help -t chancery`` prints."""
    return HELP


@contextmanager
def _told() -> Iterator[None]:
    """Our errors in MLflow's form."""
    try:
        yield
    except GovernanceError as error:
        raise to_mlflow(error) from error
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
        away = UnreachableError(f"the database cannot be used: {reason}", "start it")
        raise to_mlflow(away) from error


def _store_of(target_uri: str) -> str:
    """The store that the target names, else the one that this process uses."""
    import mlflow

    named = target_uri.partition(":")[2].lstrip("/")
    uri = named or str(mlflow.get_registry_uri())
    if not uri.startswith((GOVERNED_PREFIX, "http://", "https://")):
        raise MalformedRequestError(
            f"the target {target_uri!r} leads to the store {uri!r}, which is not governed",
            "set MLFLOW_TRACKING_URI, or write the store into the target: "
            "chancery:/http://host:5000 or chancery:/governed+sqlite:////srv/mlflow.db",
        )
    return uri


def _check(flavor: str | None, endpoint: str | None) -> None:
    if endpoint is not None:
        raise _no_endpoints()
    if flavor not in (None, FLAVOR):
        raise MalformedRequestError(
            f"the flavor {flavor!r} cannot be deployed", f"leave it out, or say {FLAVOR!r}"
        )


def _no_endpoints() -> MlflowException:
    return MlflowException(
        "chancery has no endpoints: a deployment's name is the route where it answers. Leave out "
        "the endpoint.",
        NOT_IMPLEMENTED,
    )


def _registered(model_uri: str) -> str:
    if not model_uri.startswith("models:/"):
        raise MalformedRequestError(
            f"{model_uri!r} is no registered version, and only those can be deployed",
            "register the model, and write models:/name/version or models:/name@alias",
        )
    return model_uri


def _canary(wishes: TargetConfig) -> str | None:
    """The checked configuration as JSON text."""
    from serve.ordering import canary_text

    steps, config = wishes.text("canary"), wishes.value("config")
    if steps == "at-once" and config is None:
        return canaries().at_once()
    return _meant(lambda: _text_of(canary_text, steps, config))


def _text_of(canary_text: Callable[..., str | None], steps: str | None, config: Any) -> str | None:
    if not isinstance(config, Mapping):
        return canary_text(steps, None if config is None else Path(str(config)))
    if steps is not None:
        raise ConfigurationError("'canary' and 'config' both are there", "put the steps into one")
    return canaries().checked(config)


def _meant(act: Callable[[], str | None]) -> str | None:
    """A mistake in what was asked for is the caller's, not the installation's."""
    try:
        return act()
    except ConfigurationError as error:
        raise MalformedRequestError(error.message, error.remedy) from error


def _nobody(record: DeploymentRecord) -> str:
    if record.lease_until_ms > now_ms():
        return ""
    return ": no controller has taken it up (does `chancery deploy operate` run?)"


def _described(record: DeploymentRecord) -> dict[str, Any]:
    return {"name": record.route, "flavor": FLAVOR, **record.to_dict()}
