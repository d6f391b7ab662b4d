"""A sampled request is told as spans, in the gateway and in the replica; another costs nothing."""

from __future__ import annotations

import http.client
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from governance.errors import ConfigurationError
from serve.frames import Raw, Traced, pack_requests, unpack_answers, unpack_requests
from serve.gateway import GatewaySpec, Listener
from serve.lanes import Carrier, RemoteLane
from serve.plan import About, Plan, Report, ShadowPlan, VariantPlan
from serve.replica import ModelThread
from serve.scoring import Identity
from serve.socket_lane import FrameError, Hello, private_folder
from serve.spans import CURRENT
from serve.tracing import SpanCounts, TraceSettings, Tracing
from tests.unit.serve.sums import LAYOUT, NOT_TAKEN, SLOW, body, scorer

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=blue"}
ABOUT = About("d" * 32, "fraud", "prod", "r1", "canary", 0, 4)


class Controller:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def exchange(self, report: Report) -> Plan:
        return self.plan


def plan(canary: float, revision: int = 1, **options: Any) -> Plan:
    return Plan(
        revision,
        (
            VariantPlan("stable", "fraud", "3", "stable", statement="s" * 64),
            VariantPlan("canary", "fraud", "4", "canary"),
        ),
        (("canary", canary), ("stable", 100 - canary)),
        about=ABOUT,
        **options,
    )


class Deployed:
    """A gateway and two replicas, each with its spans."""

    def __init__(
        self, base: Path, *, remote: bool = False, gate: threading.Event | None = None
    ) -> None:
        self.gateway, self.replica = InMemorySpanExporter(), InMemorySpanExporter()
        self.draw, self.tracing = 1.0, Tracing(self.gateway, ratio=0.5, draw=lambda: self.draw)
        self.replicas = Tracing(self.replica)
        self.models = {}
        for name, version, result in (("stable", "3", None), ("canary", "4", {"odd": 1})):
            identity = Identity("fraud", version, "alice", "run7")
            model = scorer(identity=identity, result=result, gate=gate)
            folder = base / (f"away-{name}" if remote else name)
            self.models[name] = ModelThread(private_folder(folder) / "a.sock", model, self.replicas)
            self.models[name].start()
        self.controller = Controller(plan(0))
        spec = GatewaySpec(0, str(base), "", exchange_s=0.02, drain_s=0.1)
        self.listener = Listener(
            spec, self.controller, self._handle if remote else None, "3.17", self.tracing
        )
        self.listener.start()
        wait_for(lambda: self.ask()[0] == 200)
        self.follow(plan(0, 2))
        self.spans(0)

    def _handle(self, application: str) -> RemoteLane:
        model = self.models[application]

        async def carry(batch: list[Any]) -> Sequence[Any]:
            return unpack_answers(memoryview(await model.answer(pack_requests(batch)[4:]))[4:])

        async def find() -> tuple[Carrier, Hello]:
            return carry, Hello.of(model._scorer, traces=True)

        return find

    def follow(self, plan: Plan) -> None:
        self.controller.plan = plan
        revision = f'chancery_plan_revision{{gateway="{self.listener.source}"'
        wait_for(
            lambda: any(
                line.startswith(revision) and line.endswith(f" {plan.revision}")
                for line in self.metrics().splitlines()
            )
        )

    def metrics(self) -> str:
        client = http.client.HTTPConnection("127.0.0.1", self.listener.port, timeout=10)
        client.request("GET", "/metrics")
        text = client.getresponse().read().decode()
        client.close()
        return text

    def ask(self, sent: bytes | None = None, **headers: str) -> tuple[int, dict[str, str]]:
        client = http.client.HTTPConnection("127.0.0.1", self.listener.port, timeout=10)
        known = {"content-type": "application/json", **headers}
        client.request("POST", "/invocations", sent or body((1, 2)), known)
        answer = client.getresponse()
        answer.read()
        client.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}

    def spans(self, count: int) -> dict[str, ReadableSpan]:
        """All spans since the last time, by name."""
        found: list[ReadableSpan] = []

        def all_there() -> bool:
            self.tracing.flush()
            self.replicas.flush()
            for exporter in (self.gateway, self.replica):
                found.extend(exporter.get_finished_spans())
                exporter.clear()
            return len(found) >= count

        wait_for(all_there)
        assert len(found) == count, [span.name for span in found]
        return {f"{span.name}{_of(span)}": span for span in found}

    def close(self) -> None:
        self.listener.close()
        for model in self.models.values():
            model.close()


def _of(span: ReadableSpan) -> str:
    attributes = span.attributes or {}
    return f" {attributes['chancery.version']}" if span.name == "predict" else ""


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="t") as made:
        yield private_folder(Path(made) / "s")


@pytest.fixture(params=[False, True], ids=["socket", "handle"])
def deployed(base: Path, request: pytest.FixtureRequest) -> Iterator[Deployed]:
    found = Deployed(base, remote=request.param)
    yield found
    found.close()


def below(span: ReadableSpan, above: ReadableSpan) -> bool:
    return (
        span.parent is not None
        and span.context.trace_id == above.context.trace_id
        and span.parent.span_id == above.context.span_id
    )


def test_a_request_is_told_from_the_client_to_the_model(deployed: Deployed) -> None:
    status, headers = deployed.ask(**SAMPLED, **{"x-request-id": "r-17"})
    assert status == 200
    spans = deployed.spans(3)
    gateway, ask, predict = spans["gateway"], spans["ask stable"], spans["predict 3"]
    assert gateway.parent is not None
    assert f"{gateway.parent.span_id:016x}" == PARENT
    assert headers["traceparent"] == f"00-{TRACE}-{gateway.context.span_id:016x}-01"
    assert headers["x-request-id"] == "r-17"
    assert below(ask, gateway)
    assert below(predict, ask)
    for span in spans.values():
        assert f"{span.context.trace_id:032x}" == TRACE
        assert span.context.trace_state.get("vendor") == "blue"
        assert span.status.status_code is StatusCode.OK
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.end_time >= span.start_time
    told = dict(gateway.attributes or {})
    assert told == {
        "http.response.status_code": 200,
        "chancery.request_id": "r-17",
        "chancery.deployment": "d" * 32,
        "chancery.route": "fraud",
        "chancery.environment": "prod",
        "chancery.rollout": "r1",
        "chancery.rollout_phase": "canary",
        "chancery.plan": 2,
        "chancery.assigned": "stable",
        "chancery.reason": "random",
        "chancery.variant": "stable",
        "chancery.model": "fraud",
        "chancery.version": "3",
        "chancery.signer": "alice",
        "chancery.run_id": "run7",
        "chancery.batch_size": 1,
    }
    told = dict(ask.attributes or {})
    assert told["chancery.statement"] == "s" * 64
    told = dict(predict.attributes or {})
    assert (told["chancery.rows"], told["chancery.batch_size"]) == (1, 1)
    assert (told["chancery.model"], told["chancery.run_id"]) == ("fraud", "run7")


def test_nothing_is_told_of_a_request_that_is_not_sampled(deployed: Deployed) -> None:
    status, headers = deployed.ask(traceparent=f"00-{TRACE}-{PARENT}-00")
    assert status == 200
    assert headers["traceparent"].startswith(f"00-{TRACE}-")
    assert headers["traceparent"].endswith("-00")
    for wrong in ("garbage", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01"):
        assert deployed.ask(traceparent=wrong)[0] == 200
    assert deployed.ask()[0] == 200
    deployed.spans(0)


def test_stable_asked_again_is_a_second_child(deployed: Deployed) -> None:
    for _ in range(3):
        deployed.ask()  # stable's shape is known
    deployed.follow(plan(100, 3))
    deployed.ask(**SAMPLED)
    spans = deployed.spans(5)
    gateway = spans["gateway"]
    assert below(spans["ask canary"], gateway)
    assert below(spans["ask stable"], gateway)
    assert below(spans["predict 4"], spans["ask canary"])
    assert below(spans["predict 3"], spans["ask stable"])
    told = dict(gateway.attributes or {})
    assert told["chancery.assigned"] == "canary"
    assert told["chancery.variant"] == "stable"
    assert told["chancery.retried"] is True
    assert told["chancery.error"] == "wrong_shape"


def test_a_shadow_is_a_trace_of_its_own_that_is_linked(deployed: Deployed) -> None:
    deployed.follow(plan(0, 3, shadows=(ShadowPlan("canary"),)))
    deployed.ask(**SAMPLED)
    spans = deployed.spans(6)
    gateway, shadow = spans["gateway"], spans["shadow"]
    assert shadow.parent is None
    assert shadow.context.trace_id != gateway.context.trace_id
    (link,) = shadow.links
    assert link.context.span_id == gateway.context.span_id
    assert below(spans["ask canary"], shadow)
    assert below(spans["predict 4"], spans["ask canary"])


def test_rows_that_go_a_second_time_are_two_predictions(deployed: Deployed) -> None:
    deployed.ask(body((NOT_TAKEN, 1)), **SAMPLED)
    deployed.tracing.flush()
    deployed.replicas.flush()
    found = deployed.replica.get_finished_spans()
    told = [dict(span.attributes or {}) for span in found]
    assert [one["chancery.exactly"] for one in told] == [False, True]
    assert "sent again" in str(told[0]["chancery.error"])


def test_requests_that_travel_together_have_spans_of_their_own(base: Path) -> None:
    gate = threading.Event()
    deployed = Deployed(base, gate=gate)
    slow = threading.Thread(target=deployed.ask, args=(body((SLOW, 1)),))
    slow.start()
    wait_for(lambda: deployed.models["stable"].busy_s > 0)
    threads = [
        threading.Thread(target=deployed.ask, kwargs={"traceparent": f"00-{at:032x}-{PARENT}-01"})
        for at in range(1, 4)
    ]
    for thread in threads:
        thread.start()
    waiting = re.compile(r'^chancery_waiting\{.*variant="stable".*\} 3$', re.M)
    wait_for(lambda: waiting.search(deployed.metrics()))
    gate.set()
    for thread in (slow, *threads):
        thread.join(10)
    deployed.tracing.flush()
    deployed.replicas.flush()
    found = deployed.replica.get_finished_spans()
    assert {span.context.trace_id for span in found} == {1, 2, 3}
    assert {dict(span.attributes or {})["chancery.batch_size"] for span in found} == {3}
    sizes = {
        dict(span.attributes or {})["chancery.batch_size"]
        for span in deployed.gateway.get_finished_spans()
        if span.name == "gateway"
    }
    assert sizes == {3}
    deployed.close()


def test_a_ratio_traces_whoever_says_nothing(base: Path) -> None:
    deployed = Deployed(base)
    deployed.draw = 0.4
    _, headers = deployed.ask(tracestate="vendor=blue")
    spans = deployed.spans(3)
    assert spans["gateway"].parent is None
    assert len(spans["gateway"].context.trace_state) == 0
    assert headers["traceparent"].split("-")[1] == f"{spans['gateway'].context.trace_id:032x}"
    assert re.fullmatch(r"[0-9a-f]{32}", headers["x-request-id"])
    deployed.ask(traceparent=f"00-{TRACE}-{PARENT}-00")
    deployed.spans(0)
    assert CURRENT.get() is None
    deployed.close()


def test_a_replica_of_another_release_gets_plain_requests(base: Path) -> None:
    deployed = Deployed(base)
    deployed.close()
    plain = ModelThread(private_folder(base / "plain") / "a.sock", scorer())
    plain.start()
    deployed.controller.plan = Plan(
        9, (VariantPlan("stable", "fraud", "3", "plain"),), (("stable", 100.0),)
    )
    gateway = InMemorySpanExporter()
    tracing = Tracing(gateway)
    spec = GatewaySpec(0, str(base), "", exchange_s=0.02, drain_s=0.1)
    deployed.listener = Listener(spec, deployed.controller, None, "3.17", tracing)
    deployed.listener.start()
    wait_for(lambda: deployed.ask(**SAMPLED)[0] == 200)
    tracing.flush()
    assert {span.name for span in gateway.get_finished_spans()} == {"gateway", "ask stable"}
    deployed.listener.close()
    plain.close()


class Stuck(SpanExporter):
    """Takes a batch and does not return; or refuses."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.go_on = threading.Event()
        self.refuses = refuses

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.refuses:
            raise ConnectionError("away")
        self.go_on.wait(20)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


def test_what_nobody_takes_is_counted_and_nobody_waits() -> None:
    exporter = Stuck()
    tracing = Tracing(exporter, waiting=10)
    begun = time.monotonic()
    for _ in range(500):
        tracing.begin("gateway", {}).span.end()
    assert time.monotonic() - begun < 5
    assert tracing.counts.dropped >= 400
    exporter.go_on.set()
    tracing.flush()
    counts = tracing.counts
    assert counts.sent + counts.dropped == 500
    assert counts.failed == 0
    tracing.close()


def test_an_exporter_that_fails_is_counted_and_the_end_is_quick() -> None:
    tracing = Tracing(Stuck(refuses=True))
    tracing.begin("gateway", {}).span.end()
    tracing.flush()
    assert tracing.counts == SpanCounts(failed=1)
    exporter = Stuck()
    tracing = Tracing(exporter)
    tracing.begin("gateway", {}).span.end()
    begun = time.monotonic()
    tracing.close(0.2)
    assert time.monotonic() - begun < 5
    exporter.go_on.set()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, TraceSettings()),
        ({"CHANCERY_TRACE_RATIO": "0.5"}, TraceSettings(ratio=0.5)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, TraceSettings(endpoint=True)),
        (
            {"CHANCERY_TRACE_EXPERIMENT": "x", "MLFLOW_TRACKING_URI": "http://m:5000"},
            TraceSettings(experiment="x", server="http://m:5000"),
        ),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/v1", "OTEL_SDK_DISABLED": "true"},
            TraceSettings(),
        ),
    ],
)
def test_settings(environ: dict[str, str], expected: TraceSettings) -> None:
    assert TraceSettings.load(environ) == expected


@pytest.mark.parametrize(
    "environ",
    [
        {"CHANCERY_TRACE_RATIO": "often"},
        {"CHANCERY_TRACE_RATIO": "1.5"},
        {"CHANCERY_TRACE_RATIO": "nan"},
        {"CHANCERY_TRACE_EXPERIMENT": "x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://bea:pa55@collector:4318"},
        {"CHANCERY_TRACE_EXPERIMENT": "x", "MLFLOW_TRACKING_URI": "governed+sqlite:///a.db"},
    ],
)
def test_settings_that_cannot_be_are_refused_and_a_gateway_lives_on(
    environ: dict[str, str],
) -> None:
    with pytest.raises(ConfigurationError) as found:
        TraceSettings.load(environ)
    assert found.value.remedy
    assert Tracing.from_environment("gateway", environ) is None


def test_a_traced_request_travels_and_half_a_trace_does_not() -> None:
    told = Traced(Raw("text/csv", b"a"), f"00-{TRACE}-{PARENT}-01", "vendor=blue")
    frame = pack_requests([Raw(None, b"x"), told])
    assert told.together == 2
    first, second = unpack_requests(memoryview(frame)[4:], LAYOUT)
    assert first == Raw(None, b"x")
    assert isinstance(second, Traced)
    assert (second.item, second.traceparent) == (told.item, told.traceparent)
    assert second.tracestate == "vendor=blue"
    for end in range(4, len(frame) - 4):
        with pytest.raises(FrameError):
            unpack_requests(memoryview(frame)[4 : 4 + end], LAYOUT)
    twice = bytearray(pack_requests([told])[4:])
    at = 4 + 5 + 2 + 55 + len("vendor=blue")
    twice[at] = 2  # a trace after a trace
    with pytest.raises(FrameError):
        unpack_requests(memoryview(bytes(twice)), LAYOUT)
