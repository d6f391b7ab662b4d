"""The MLflow target: its interface, its config, and how it talks to a gateway."""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.deployments import BaseDeploymentClient, get_deploy_client
from mlflow.deployments.interface import plugin_store
from mlflow.exceptions import MlflowException

from governance.errors import MalformedRequestError
from mlflow_plugins import deployment_target
from mlflow_plugins.deployment_target import ChanceryDeploymentClient, target_help
from mlflow_plugins.gateway_client import address_of, ask_gateway
from mlflow_plugins.target_config import HELP, KEYS, TargetConfig
from tests.unit.test_deployment_wire import FULL


class Gateway:
    """Answers as it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.status, self.answer = 200, b'{"predictions": [1, 0]}'
        self.asked: list[Any] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                gateway.asked.append((self.path, json.loads(self.rfile.read(length))))
                self.send_response(gateway.status)
                self.end_headers()
                self.wfile.write(gateway.answer)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.record = replace(FULL, port=self.server.server_port, resources={"host": "127.0.0.1"})
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_mlflow_finds_the_target_and_all_of_its_interface() -> None:
    assert plugin_store["chancery"] is deployment_target
    for name, ours in inspect.getmembers(ChanceryDeploymentClient, inspect.isfunction):
        theirs = getattr(BaseDeploymentClient, name, None)
        if name.startswith("_") or theirs is None or theirs is ours:
            continue
        assert list(inspect.signature(ours).parameters) == list(
            inspect.signature(theirs).parameters
        )


def test_the_store_of_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    for target, uri in (
        ("chancery:/http://host:5000", "http://host:5000"),
        ("chancery:/https://host/prefix", "https://host/prefix"),
    ):
        client = get_deploy_client(target)
        assert isinstance(client, ChanceryDeploymentClient)
        assert client._uri == uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:1")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://registry:1")
    monkeypatch.setattr("mlflow.get_registry_uri", lambda: "http://registry:1")
    assert ChanceryDeploymentClient("chancery")._uri == "http://registry:1"
    monkeypatch.setattr("mlflow.get_registry_uri", lambda: "sqlite:///plain.db")
    for target in ("chancery", "chancery:/", "chancery:/sqlite:///a.db", "chancery://host:5000"):
        with pytest.raises(MlflowException, match="which is not governed") as error:
            ChanceryDeploymentClient(target)
        assert error.value.error_code == "INVALID_PARAMETER_VALUE"


def test_what_is_no_config_is_told_before_anything_is_asked() -> None:
    client = ChanceryDeploymentClient("chancery:/http://127.0.0.1:1")
    model = "models:/fraud/1"
    for act, words in (
        (lambda: client.create_deployment("r", model, config={"canery": "5%"}), "'canery'.*known"),
        (lambda: client.create_deployment("r", model, config={"reason": "x"}), "'reason'"),
        (lambda: client.create_deployment("r", model, config={"replicas": "two"}), "whole number"),
        (lambda: client.create_deployment("r", model, config={"replicas": -1}), "whole number"),
        (lambda: client.create_deployment("r", model, config={"cpus": "many"}), "not a number"),
        (lambda: client.create_deployment("r", model, config={"wait": "inf"}), "seconds"),
        (lambda: client.create_deployment("r", model, config={"canary": "abc"}), "percentage"),
        (lambda: client.create_deployment("r", model, config={"config": "no.yaml"}), "no.yaml"),
        (lambda: client.create_deployment("r", model, config={"config": {"step": []}}), "steps"),
        (lambda: client.create_deployment("r", model, "keras"), "flavor 'keras'"),
        (lambda: client.create_deployment("r", "runs:/1/model"), "no registered version"),
        (lambda: client.update_deployment("r"), "nothing to update"),
        (lambda: client.predict(), "which deployment"),
    ):
        with pytest.raises(MlflowException, match=words) as error:
            act()  # type: ignore[no-untyped-call]
        assert error.value.get_http_status_code() in (400, 403)
    with pytest.raises(MlflowException, match="cannot be reached"):
        client.list_deployments()


def test_endpoints_are_not_there() -> None:
    client = ChanceryDeploymentClient("chancery:/http://127.0.0.1:1")
    for act in (
        lambda: client.create_endpoint("e"),
        lambda: client.update_endpoint("e"),
        lambda: client.delete_endpoint("e"),
        lambda: client.list_endpoints(),
        lambda: client.get_endpoint("e"),
        lambda: client.predict("r", [], endpoint="e"),
        lambda: client.create_deployment("r", "models:/fraud/1", endpoint="e"),
    ):
        with pytest.raises(MlflowException, match="no endpoints") as error:
            act()
        assert error.value.error_code == "NOT_IMPLEMENTED"


def test_the_help_names_every_key() -> None:
    assert target_help() == HELP
    for keys in KEYS.values():
        for key in keys:
            assert key in HELP


def test_values_are_text_or_what_python_callers_give() -> None:
    config = TargetConfig({"replicas": 2, "wait": 1.5, "cpus": 0.5}, KEYS["create"])
    assert (config.number("replicas"), config.seconds("wait", 9)) == (2, 1.5)
    assert config.amounts(numCpus="cpus", numGpus="gpus") == {"numCpus": "0.5"}
    assert TargetConfig(None, ()).seconds("wait", 9) == 9
    with pytest.raises(MalformedRequestError):
        TargetConfig({"replicas": True}, KEYS["create"]).number("replicas")


def test_where_gateways_are_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    for host, address in (
        ("10.0.0.7", "http://10.0.0.7:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::1", "http://[::1]:8080"),
    ):
        assert address_of(replace(FULL, resources={"host": host})) == address
    monkeypatch.setenv("CHANCERY_GATEWAY_HOST", "models.example")
    assert address_of(FULL) == "http://models.example:8080"
    with pytest.raises(MlflowException, match="no port"):
        address_of(replace(FULL, port=None))


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        (pd.DataFrame({"a": [1, 2]}),
         {"dataframe_split": {"index": [0, 1], "columns": ["a"], "data": [[1], [2]]}}),
        (np.array([[1.5]]), {"inputs": [[1.5]]}),
        ([[1.5]], {"inputs": [[1.5]]}),
        ({"inputs": [1], "params": {"x": 1}}, {"inputs": [1], "params": {"x": 1}}),
        ({"dataframe_records": [{"a": 1}]}, {"dataframe_records": [{"a": 1}]}),
        ({"a": np.array([1, 2])}, {"inputs": {"a": [1, 2]}}),
    ],
)  # fmt: skip
def test_a_gateway_is_asked_in_mlflow_s_protocol(gateway: Gateway, inputs: Any, body: Any) -> None:
    found = ask_gateway(gateway.record, inputs)
    assert gateway.asked == [("/invocations", body)]
    assert found.get_predictions()[0].tolist() == [1, 0]


def test_the_gateway_s_own_words_are_in_the_error(gateway: Gateway) -> None:
    for status, answer, code in (
        (400, b'{"error_code": "BAD_REQUEST", "message": "no column b"}', "BAD_REQUEST"),
        (503, b'{"error_code": "CLOSED", "message": "it leaks"}', "TEMPORARILY_UNAVAILABLE"),
        (500, b"Internal Server Error", "INTERNAL_ERROR"),
    ):
        gateway.status, gateway.answer = status, answer
        with pytest.raises(MlflowException) as error:
            ask_gateway(gateway.record, [[1]])
        assert f"the route 'fraud' answered {status}" in error.value.message
        assert error.value.error_code == code
        words = json.loads(answer)["message"] if answer.startswith(b"{") else answer.decode()
        assert words in error.value.message
    gateway.status, gateway.answer = 200, b'{"no": 1}'
    with pytest.raises(MlflowException, match="predictions"):
        ask_gateway(gateway.record, [[1]])
    with pytest.raises(MlflowException, match="nothing to predict"):
        ask_gateway(gateway.record, None)
    with pytest.raises(MlflowException, match="cannot be written as JSON"):
        ask_gateway(gateway.record, {"inputs": object()})
