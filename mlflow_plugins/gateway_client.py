"""Asks a route's gateways for predictions, as MLflow's own scoring client asks its server."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import urlsplit

import requests
from mlflow.deployments import PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    TEMPORARILY_UNAVAILABLE,
    ErrorCode,
)
from mlflow.utils.proto_json_utils import dump_input_data

from governance.deployment_records import DeploymentRecord

__all__ = ["address_of", "ask_gateway"]

_TIMEOUT_S = 120.0
_PROTOCOL = frozenset(
    {"inputs", "instances", "dataframe_split", "dataframe_records", "messages", "input", "params"}
)
_ANY_HOST = frozenset({"0.0.0.0", "::", ""})


def address_of(record: DeploymentRecord) -> str:
    """Where the gateways answer.

    ``CHANCERY_GATEWAY_HOST`` replaces the host they listen on, which another machine may not know.

    Raises:
        MlflowException: the deployment has no address.
    """
    host = str(record.resources.get("host", ""))
    if record.metrics_endpoint is not None:
        host = host or urlsplit(record.metrics_endpoint).hostname or ""
    if record.port is None:
        raise MlflowException(f"the deployment on {record.route!r} has no port", INTERNAL_ERROR)
    host = os.environ.get("CHANCERY_GATEWAY_HOST") or ("127.0.0.1" if host in _ANY_HOST else host)
    return f"http://{f'[{host}]' if ':' in host else host}:{record.port}"


def ask_gateway(record: DeploymentRecord, inputs: Any) -> PredictionsResponse:
    """Predictions for the inputs.

    Raises:
        MlflowException: the gateway cannot be reached, or says no; its words are in the message.
    """
    address, body = address_of(record), _body(inputs)
    try:
        response = requests.post(
            f"{address}/invocations",
            data=body,
            headers={"Content-Type": "application/json"},
            timeout=_TIMEOUT_S,
            allow_redirects=False,
        )
    except requests.RequestException as error:
        raise MlflowException(
            f"the gateways of the route {record.route!r} cannot be reached at {address} "
            f"({type(error).__name__}). The deployment is {record.status.value}. If they are known "
            "here by another name, set CHANCERY_GATEWAY_HOST.",
            TEMPORARILY_UNAVAILABLE,
        ) from error
    if response.status_code != 200:
        raise _told(record, response)
    return PredictionsResponse.from_json(response.text)


def _body(inputs: Any) -> str:
    """As the scoring protocol has it; a dict in its own form goes as it is."""
    if inputs is None:
        raise MlflowException("there is nothing to predict for", INVALID_PARAMETER_VALUE)
    try:
        if isinstance(inputs, dict):
            whole = bool(inputs) and inputs.keys() <= _PROTOCOL
            # MLflow's own encoder knows NumPy's numbers, but not a dict of columns.
            data = inputs if whole else {"inputs": inputs}
            return json.dumps(data, default=lambda value: value.tolist())
        return str(dump_input_data(inputs))
    except (TypeError, ValueError, AttributeError) as error:
        raise MlflowException(
            f"the inputs cannot be written as JSON: {error}", INVALID_PARAMETER_VALUE
        ) from error


def _told(record: DeploymentRecord, response: requests.Response) -> MlflowException:
    text, code = response.text[:2000], ""
    try:
        document = response.json()
        text, code = str(document["message"]), str(document["error_code"])
    except (ValueError, KeyError, TypeError):
        pass  # its words are all there is
    if code not in ErrorCode.keys():  # noqa: SIM118 - it is no dict
        by_status = {400: "BAD_REQUEST", 413: "REQUEST_LIMIT_EXCEEDED"}
        away = "TEMPORARILY_UNAVAILABLE" if response.status_code in (503, 504) else "INTERNAL_ERROR"
        code = by_status.get(response.status_code, away)
    return MlflowException(
        f"the route {record.route!r} answered {response.status_code}: {text}", ErrorCode.Value(code)
    )
