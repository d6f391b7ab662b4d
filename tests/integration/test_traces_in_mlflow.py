"""Traces of requests are seen in MLflow, and a server that is away is felt by nobody (AC-10)."""

from __future__ import annotations

import http.client
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Trace

from benchmarks.surroundings import free_port
from serve.gateway import GatewaySpec, Listener
from serve.plan import About, Plan, Report, VariantPlan
from serve.replica import ModelThread
from serve.scoring import Identity
from serve.socket_lane import private_folder
from serve.tracing import Tracing
from tests.conftest import StartServer
from tests.unit.serve.sums import body, scorer

PARENT = f"{0xCAFE:016x}"
PLAN = Plan(
    1,
    (VariantPlan("stable", "fraud", "3", "stable", statement="s" * 64),),
    (("stable", 100.0),),
    about=About("d" * 32, "fraud", "prod"),
)


class Controller:
    def exchange(self, report: Report) -> Plan:
        return PLAN


class Route:
    """A gateway and a replica that send their spans as the environment says."""

    def __init__(self, base: Path, environ: dict[str, str]) -> None:
        self.tracings = [Tracing.from_environment(n, environ) for n in ("gateway", "replica")]
        gateway, replica = self.tracings
        assert gateway is not None
        self.gateway = gateway
        self.model = ModelThread(
            private_folder(base / "stable") / "a.sock",
            scorer(identity=Identity("fraud", "3", "alice", "run7")),
            replica,
        )
        self.model.start()
        spec = GatewaySpec(0, str(base), "", exchange_s=0.02, drain_s=0.1)
        self.listener = Listener(spec, Controller(), None, "3.17", gateway)
        self.listener.start()
        wait_for(lambda: self.ask() == 200)

    def ask(self, **headers: str) -> int:
        client = http.client.HTTPConnection("127.0.0.1", self.listener.port, timeout=10)
        try:
            known = {"content-type": "application/json", **headers}
            client.request("POST", "/invocations", body((1, 2)), known)
            answer = client.getresponse()
            answer.read()
            return answer.status
        finally:
            client.close()

    def close(self) -> None:
        self.listener.close()
        self.model.close()


@pytest.fixture
def route() -> Iterator[Callable[[dict[str, str]], Route]]:
    made: list[Route] = []
    with tempfile.TemporaryDirectory(prefix="t") as folder:

        def make(environ: dict[str, str]) -> Route:
            made.append(Route(private_folder(Path(folder) / "s"), environ))
            return made[-1]

        yield make
        for one in made:
            one.close()


def wait_for(condition: Callable[[], Any], timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_sampled_request_is_seen_in_mlflow(
    route: Callable[[dict[str, str]], Route],
    start_server: StartServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = start_server(workers=1)
    answering = route(
        {
            "MLFLOW_TRACKING_URI": server.uri,
            "CHANCERY_TRACE_EXPERIMENT": "fraud/requests",
            "CHANCERY_TRACE_RATIO": "1",
        }
    )
    client = MlflowClient(tracking_uri=server.uri, registry_uri=server.uri)

    def traces() -> list[Trace]:
        found = client.get_experiment_by_name("fraud/requests")
        if found is None:
            return []
        return list(client.search_traces(locations=[found.experiment_id]))

    def whole(count: int) -> bool:
        return [len(trace.data.spans) for trace in traces()].count(3) >= count

    answering.ask()
    wait_for(lambda: whole(1))
    trace = next(one for one in traces() if len(one.data.spans) == 3)  # others may be on their way
    names = {span.name: span for span in trace.data.spans}
    assert trace.info.state.value == "OK"
    gateway, ask, predict = names["gateway"], names["ask stable"], names["predict"]
    assert gateway.parent_id is None
    assert (ask.parent_id, predict.parent_id) == (gateway.span_id, ask.span_id)
    assert gateway.attributes["chancery.version"] == "3"
    assert gateway.attributes["chancery.run_id"] == "run7"
    assert ask.attributes["chancery.statement"] == "s" * 64

    # What the client says goes: not sampled is not sent, sampled goes on below its own span.
    assert answering.ask(traceparent=f"00-{0xDEAD:032x}-{PARENT}-00") == 200
    assert answering.ask(traceparent=f"00-{0xFADE:032x}-{PARENT}-01") == 200
    continued = f"tr-{0xFADE:032x}"
    wait_for(lambda: continued in {t.info.trace_id for t in traces()} and whole(3))
    assert f"tr-{0xDEAD:032x}" not in {t.info.trace_id for t in traces()}
    (found,) = [t for t in traces() if t.info.trace_id == continued]
    assert {s.name: s.parent_id for s in found.data.spans}["gateway"] == PARENT

    # The server goes away: requests are answered, spans are counted as failed.
    server.kill()
    begun = time.monotonic()
    assert {answering.ask() for _ in range(50)} == {200}
    assert time.monotonic() - begun < 20
    wait_for(lambda: answering.gateway.counts.failed > 0)
    assert answering.ask() == 200
    begun = time.monotonic()
    answering.gateway.close()
    assert time.monotonic() - begun < 10


def test_an_endpoint_that_never_was_harms_nobody(
    route: Callable[[dict[str, str]], Route], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1")
    nobody = f"http://127.0.0.1:{free_port()}/v1/traces"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", nobody)
    environ = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": nobody, "CHANCERY_TRACE_RATIO": "1"}
    answering = route(environ)
    assert {answering.ask() for _ in range(50)} == {200}
    wait_for(lambda: answering.gateway.counts.failed > 0)
