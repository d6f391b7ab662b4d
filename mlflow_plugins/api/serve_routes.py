"""The routes below ``/serve``: deployments, for clients that have no database.

Each parses, calls one method of the port and answers the deployment. What starts and decides is a
controller on the serving cluster, which sees what is written here (``chancery deploy operate``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter
from pydantic import Field, model_validator

from governance.deployment_port import DeploymentOrder, Deployments
from governance.deployment_records import SignalKind
from governance.deployment_wire import decision_document, record_document
from mlflow_plugins.api.requests import CheckedBody
from mlflow_plugins.api.serve_bodies import (
    MOST,
    Amount,
    Canary,
    Host,
    Name,
    Reason,
    Text,
    checked_canary,
)

__all__ = ["add_serve_routes"]

_LARGEST = 2**31 - 1  # of what the databases take as an integer


class ResourcesBody(CheckedBody):
    """What each variant needs; also where its listeners listen."""

    replicas: Annotated[int | None, Field(ge=1, le=MOST)] = None
    scale: dict[str, Any] | None = None
    gateways: Annotated[int | None, Field(ge=1, le=100)] = None
    gateway_cpus: Annotated[Amount | None, Field(alias="gatewayCpus")] = None
    gateway_pool: Annotated[Text | None, Field(alias="gatewayPool")] = None
    cpus: Annotated[Amount | None, Field(alias="numCpus")] = None
    gpus: Annotated[Amount | None, Field(alias="numGpus")] = None
    host: Host = "127.0.0.1"

    def amounts(self) -> dict[str, str]:
        """Those that were said."""
        said = {
            "numCpus": self.cpus,
            "numGpus": self.gpus,
            "gateways": self.gateways,
            "gatewayCpus": self.gateway_cpus,
            "gatewayPool": self.gateway_pool,
        }
        return {name: str(value) for name, value in said.items() if value is not None}


class DeployBody(CheckedBody):
    """The model by URI, or by ``modelId`` and ``version``; the rest as in a deployment."""

    model: Text | None = None
    model_id: Annotated[Text | None, Field(alias="modelId")] = None
    version: Annotated[int | None, Field(ge=1, le=_LARGEST)] = None
    route: Text | None = None
    environment: Annotated[Text | None, Field(alias="env")] = None
    stable: Text | None = None
    node_pool: Annotated[Text | None, Field(alias="nodePool")] = None
    port: Annotated[int | None, Field(ge=1, le=65535)] = None
    resources: ResourcesBody = ResourcesBody()
    canary_config: Annotated[Canary | None, Field(alias="canaryConfig")] = None

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        parts = (self.model_id is not None) + (self.version is not None)
        if parts != (0 if self.model is not None else 2):
            raise ValueError("say the model either as 'model' or as 'modelId' and 'version'")
        return self

    def to_order(self) -> DeploymentOrder:
        """Its canary configuration checked.

        Raises:
            MalformedRequestError: names what is wrong with the canary configuration.
        """
        return DeploymentOrder(
            model=self.model or f"models:/{self.model_id}/{self.version}",
            route=self.route,
            environment=self.environment,
            canary_config=checked_canary(self.canary_config),
            stable=self.stable,
            replicas=self.resources.replicas,
            scale=self.resources.scale,
            resources=self.resources.amounts(),
            node_pool=self.node_pool,
            host=self.resources.host,
            port=self.port,
        )


class ScaleBody(CheckedBody):
    replicas: Annotated[int | None, Field(ge=1, le=MOST)] = None
    scale: dict[str, Any] | None = None
    gateways: Annotated[int | None, Field(ge=1, le=100)] = None
    gateway_cpus: Annotated[Amount | None, Field(alias="gatewayCpus")] = None
    gateway_pool: Annotated[Text | None, Field(alias="gatewayPool")] = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self == ScaleBody.model_construct():
            raise ValueError("it is not said what changes")
        return self

    def amounts(self) -> dict[str, str]:
        """What is said of the gateways."""
        said = {
            "gateways": self.gateways,
            "gatewayCpus": self.gateway_cpus,
            "gatewayPool": self.gateway_pool,
        }
        return {name: str(value) for name, value in said.items() if value is not None}


class SignalBody(CheckedBody):
    signal: Literal["pause", "resume", "abort", "rollback", "quarantine", "warm"]
    reason: Reason = ""


class RollbackBody(CheckedBody):
    reason: Reason = ""
    canary_config: Annotated[Canary | None, Field(alias="canaryConfig")] = None


class EndBody(CheckedBody):
    reason: Reason = ""


def add_serve_routes(router: APIRouter, port: Callable[[], Deployments]) -> None:
    """The routes, on a port that is opened at first use.

    Args:
        router: Gets them.
        port: Opens it.
    """

    @router.post("/serve/deploy", status_code=201)
    def deploy(body: DeployBody) -> dict[str, Any]:
        return record_document(port().deploy(body.to_order()))

    @router.get("/serve")
    def deployments(ended: bool = False) -> dict[str, Any]:
        return {"deployments": [record_document(one) for one in port().list(ended=ended)]}

    @router.get("/serve/{deployId}")
    def deployment(name: Name) -> dict[str, Any]:
        return record_document(port().find(name))

    @router.get("/serve/{deployId}/decisions")
    def decisions(name: Name) -> dict[str, Any]:
        record = port().find(name)
        found = port().decisions(record.deploy_id)
        return {"decisions": [decision_document(one) for one in found]}

    @router.post("/serve/{deployId}/scale")
    def scale(name: Name, body: ScaleBody) -> dict[str, Any]:
        found = port().scale(name, body.replicas, scale=body.scale, resources=body.amounts())
        return record_document(found)

    @router.post("/serve/{deployId}/signals")
    def signal(name: Name, body: SignalBody) -> dict[str, Any]:
        return record_document(port().ask(name, SignalKind(body.signal), body.reason))

    @router.post("/serve/{deployId}/rollback")
    def rollback(name: Name, body: RollbackBody) -> dict[str, Any]:
        config = checked_canary(body.canary_config)
        if config is None and port().find(name).canary is not None:
            return record_document(port().ask(name, SignalKind.ROLLBACK, body.reason))
        return record_document(port().back(name, body.reason, config))

    @router.post("/serve/{deployId}/end")
    def end(name: Name, body: EndBody) -> dict[str, Any]:
        return record_document(port().end(name, body.reason))
