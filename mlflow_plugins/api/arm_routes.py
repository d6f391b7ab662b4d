"""The routes for experiments and shadows, below a deployment's.

What an experiment and a shadow came to is in the deployment's ``state``, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter
from pydantic import Field

from governance.arms import ArmOrder, ExperimentOrder, ShadowOrder
from governance.deployment_port import Deployments
from governance.deployment_wire import record_document
from governance.errors import MalformedRequestError, RefusedError
from mlflow_plugins.api.requests import CheckedBody
from mlflow_plugins.api.serve_bodies import Amount, Canary, Name, Reason, Text, checked_canary

__all__ = ["add_arm_routes"]

_T = TypeVar("_T")


class ArmBody(CheckedBody):
    name: Text
    model: Text
    weight: Amount
    timeout_s: Annotated[Amount, Field(alias="timeoutSeconds")] = "60"
    max_concurrency: Annotated[int | None, Field(alias="maxConcurrency")] = None


class ExperimentBody(CheckedBody):
    name: Text
    sticky: Text
    arms: Annotated[list[ArmBody], Field(max_length=100)]

    def to_order(self) -> ExperimentOrder:
        """Raises ``MalformedRequestError``: names what is wrong with it."""
        return _meant(
            lambda: ExperimentOrder(
                self.name,
                self.sticky,
                tuple(
                    ArmOrder(
                        arm.name,
                        arm.model,
                        str(arm.weight),
                        str(arm.timeout_s),
                        arm.max_concurrency,
                    )
                    for arm in self.arms
                ),
            )
        )


class EndExperimentBody(CheckedBody):
    reason: Reason = ""
    keep: Text | None = None
    canary_config: Annotated[Canary | None, Field(alias="canaryConfig")] = None


class ShadowBody(CheckedBody):
    model: Text
    percent: Amount = "100"
    max_in_flight: Annotated[int, Field(alias="maxInFlight")] = 32
    timeout_s: Annotated[Amount, Field(alias="timeoutSeconds")] = "10"
    compare: bool = True

    def to_order(self) -> ShadowOrder:
        """Raises ``MalformedRequestError``: names what is wrong with it."""
        return _meant(
            lambda: ShadowOrder(
                self.model,
                str(self.percent),
                self.max_in_flight,
                str(self.timeout_s),
                self.compare,
            )
        )


class EndShadowBody(CheckedBody):
    reason: Reason = ""


def _meant(make: Callable[[], _T]) -> _T:
    try:
        return make()
    except RefusedError as error:
        raise MalformedRequestError(error.message, error.remedy) from error


def add_arm_routes(router: APIRouter, port: Callable[[], Deployments]) -> None:
    """The routes, on a port that is opened at first use.

    Args:
        router: Gets them.
        port: Opens it.
    """

    @router.post("/serve/{deployId}/experiment")
    def experiment(name: Name, body: ExperimentBody) -> dict[str, Any]:
        return record_document(port().experiment(name, body.to_order()))

    @router.post("/serve/{deployId}/experiment/end")
    def end_experiment(name: Name, body: EndExperimentBody) -> dict[str, Any]:
        config = checked_canary(body.canary_config)
        return record_document(
            port().end_experiment(name, body.reason, keep=body.keep, canary_config=config)
        )

    @router.post("/serve/{deployId}/shadow")
    def shadow(name: Name, body: ShadowBody) -> dict[str, Any]:
        return record_document(port().shadow(name, body.to_order()))

    @router.post("/serve/{deployId}/shadow/end")
    def end_shadow(name: Name, body: EndShadowBody) -> dict[str, Any]:
        return record_document(port().end_shadow(name, body.reason))
