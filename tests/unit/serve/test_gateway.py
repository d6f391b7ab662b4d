"""A gateway's threads, without Ray: fail static, health, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import http.client
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from serve import gateway
from serve.decode import Array
from serve.frames import pack_requests, unpack_answers
from serve.gateway import GatewaySpec, Listener
from serve.plan import Plan, Report, VariantPlan
from serve.replica import ModelThread, refusal_in
from serve.socket_lane import LaneLostError, SocketLane, private_folder
from tests.unit.serve.sums import SLOW, body, scorer

HEADERS = {"content-type": "application/json"}


class Controller:
    """Gives a plan, or nothing."""

    def __init__(self) -> None:
        self.plan = Plan(1, (VariantPlan("stable", "fraud", "3", "app"),), (("stable", 100.0),))
        self.away = False
        self.reports: list[Report] = []

    def exchange(self, report: Report) -> Plan:
        if self.away:
            raise ConnectionError("away")
        self.reports.append(report)
        return self.plan


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="g") as made:
        yield private_folder(Path(made) / "s")


@pytest.fixture
def gate() -> threading.Event:
    """Opens to the model's slow predictions."""
    return threading.Event()


@pytest.fixture
def model(base: Path, gate: threading.Event) -> Iterator[ModelThread]:
    thread = ModelThread(private_folder(base / "app") / "a.sock", scorer(gate=gate))
    thread.start()
    yield thread
    gate.set()
    thread.close()


@pytest.fixture
def controller() -> Controller:
    return Controller()


@pytest.fixture
def listener(base: Path, model: ModelThread, controller: Controller) -> Iterator[Listener]:
    spec = GatewaySpec(0, str(base), "", exchange_s=0.02, drain_s=0.3, stuck_s=1.0)
    listening = Listener(spec, controller, version="3.17")
    listening.start()
    wait_for(lambda: ask(listening)[0] == 200)
    yield listening
    listening.close()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(listener: Listener, sent: bytes | None = None) -> tuple[int, bytes, str | None]:
    client = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=10)
    client.request("POST", "/invocations", sent or body((1, 2)), HEADERS)
    answer = client.getresponse()
    found = answer.status, answer.read(), answer.getheader("connection")
    client.close()
    return found


def test_it_answers_and_reports(listener: Listener, controller: Controller) -> None:
    assert ask(listener)[:2] == (200, b'{"predictions":[3.0]}')
    listener.check()
    wait_for(lambda: sum(r.deltas["stable"].requests for r in controller.reports if r.deltas) >= 2)
    assert len({r.sequence for r in controller.reports}) == len(controller.reports)


def test_without_the_controller_the_last_plan_goes_on(
    listener: Listener, controller: Controller
) -> None:
    controller.away = True
    failed = listener.exchanges_failed
    wait_for(lambda: listener.exchanges_failed > failed + 2)
    assert ask(listener)[0] == 200
    told = sum(r.deltas["stable"].requests for r in controller.reports if r.deltas)
    controller.away = False
    wait_for(
        lambda: sum(r.deltas["stable"].requests for r in controller.reports if r.deltas) > told
    )


def test_a_plan_that_cannot_be_changes_nothing(listener: Listener, controller: Controller) -> None:
    controller.plan = Plan(9, controller.plan.variants, (("stable", 40.0),))
    failed = listener.exchanges_failed
    wait_for(lambda: listener.exchanges_failed > failed + 2)
    assert ask(listener)[0] == 200


def test_a_loop_that_does_not_turn_is_unhealthy(listener: Listener) -> None:
    assert listener._loop is not None
    turns = threading.Event()

    def complaint() -> str:
        try:
            listener.check()
        except RuntimeError as error:
            return str(error)
        return ""

    listener._loop.call_soon_threadsafe(turns.wait, 30)
    try:
        wait_for(complaint)
        assert "does not turn" in complaint()
    finally:
        turns.set()
    wait_for(lambda: ask(listener)[0] == 200)
    wait_for(lambda: not complaint())


def test_its_end_answers_what_was_asked(
    listener: Listener, model: ModelThread, gate: threading.Event
) -> None:
    found: list[tuple[int, bytes, str | None]] = []
    client = threading.Thread(target=lambda: found.append(ask(listener, body((SLOW, 1)))))
    client.start()
    wait_for(lambda: model.busy_s > 0)
    ending = threading.Thread(target=listener.close)
    ending.start()
    wait_for(lambda: listener._server.should_exit)
    gate.set()
    ending.join(20)
    client.join(10)
    assert found == [(200, b'{"predictions":[778.0]}', "close")]
    with pytest.raises(ConnectionRefusedError):
        ask(listener)
    with pytest.raises(RuntimeError):
        listener.check()


@pytest.fixture
def planless(
    base: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Listener, Controller]]:
    """Another listener on the port, whose controller is away."""
    monkeypatch.setattr(gateway, "_FIRST_PLAN_S", 0.1)
    controller = Controller()
    controller.away = True
    spec = GatewaySpec(listener.port, str(base), "", exchange_s=0.02, drain_s=0.1)
    other = Listener(spec, controller, version="3.17")
    other.start()
    yield other, controller
    other.close()


def test_a_listener_without_a_plan_leaves_clients_to_the_others(
    listener: Listener, planless: tuple[Listener, Controller]
) -> None:
    other, controller = planless
    assert {ask(listener)[0] for _ in range(60)} == {200}
    controller.away = False
    statuses = set()

    def other_answers() -> bool:
        statuses.add(ask(listener)[0])
        return any(report.deltas for report in controller.reports)

    wait_for(other_answers)
    assert statuses == {200}
    other.check()


def test_a_listener_ends_before_its_first_plan(planless: tuple[Listener, Controller]) -> None:
    other, _ = planless
    begun = time.monotonic()
    other.close()
    assert time.monotonic() - begun < 5
    assert not other._serving.is_alive()


def test_a_model_thread_answers_frames_and_says_how_long_it_is_busy(
    model: ModelThread, gate: threading.Event
) -> None:
    async def test() -> None:
        lane = await SocketLane.connect(model._path)
        begun = time.monotonic()
        slow = asyncio.ensure_future(lane([lane_rows(SLOW)]))
        while model.busy_s < 0.1:
            assert time.monotonic() - begun < 10
            await asyncio.sleep(0.01)
        assert model.busy_s < time.monotonic() - begun
        behind = asyncio.ensure_future(model.answer(pack_requests([lane_rows(1.0)])[4:]))
        await asyncio.sleep(0.01)
        gate.set()
        reply = await behind
        assert unpack_answers(memoryview(reply)[4:])[0].status == 200
        await slow
        assert (model.busy_s, model.batches) == (0.0, 2)
        model.close()
        assert not model.alive
        with pytest.raises(LaneLostError):
            await lane([lane_rows(1.0)])

    asyncio.run(test())


def lane_rows(first: float) -> Array:
    return np.array([[first, 1.0]])


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("… RefusedVersion: REFUSED_BY_GOVERNANCE[TAMPERED] models:/fraud/3: …", "TAMPERED"),
        ("REFUSED_BY_GOVERNANCE[REVOKED] models:/fraud/3", "REVOKED"),
        ("ModuleNotFoundError: No module named 'xgboost'", None),
        ("", None),
    ],
)
def test_a_refusal_is_told_apart_from_other_failures(message: str, code: str | None) -> None:
    assert refusal_in(message) == code
