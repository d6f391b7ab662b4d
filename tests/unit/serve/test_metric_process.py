"""Metrics in a process of their own: sums, errors, hangs, deaths, a full backlog, permission."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from serve.config import MetricKind
from serve.delta import OwnerSums, bucket_of
from serve.metric_process import MetricLimits, MetricProcess
from serve.metric_worker import pack_batch, unpack_batch
from serve.observing import CallableMetric
from serve.scored import Shown

MODULE = "tests.unit.serve.owner_metrics"
ALLOWED = ("tests.unit",)
QUICK = MetricLimits(hang_s=3.0)

Start = Callable[..., MetricProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[MetricProcess] = []

    def begin(
        *metrics: CallableMetric,
        allowed: tuple[str, ...] = ALLOWED,
        limits: MetricLimits = QUICK,
    ) -> MetricProcess:
        running.append(MetricProcess(metrics, allowed, limits))
        return running[-1]

    yield begin
    for process in running:
        process.close()


def metric(name: str, kind: MetricKind = MetricKind.MEAN) -> CallableMetric:
    return CallableMetric(name.replace("_", "-"), kind, f"{MODULE}:{name}")


def shown(value: float = 0.5, variant: str = "canary", body: bytes = b"{}") -> Shown:
    answer = b'{"predictions": [%r]}' % value
    return variant, "fraud", "4", 200, 3.5, "application/json", body, answer


class Taken:
    """Everything that came, by variant and metric."""

    def __init__(self, process: MetricProcess) -> None:
        self.process = process
        self.sums: dict[tuple[str, str], OwnerSums] = {}

    def __call__(self, name: str, variant: str = "canary") -> OwnerSums:
        for found, owner in self.process.take().items():
            for other, sums in owner.items():
                key = found, other
                self.sums[key] = self.sums.get(key, OwnerSums()) + sums
        return self.sums.get((variant, name), OwnerSums())


def wait_for(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"it did not happen within {timeout_s:g} s")
        time.sleep(0.02)


def test_sums_by_variant_and_metric(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    process = start(
        metric("first"),
        metric("positive", MetricKind.RATE),
        CallableMetric("tokens", MetricKind.QUANTILE, f"{MODULE}:first"),
        metric("nothing"),
        metric("shouting"),
    )
    taken = Taken(process)
    for value in (0.25, 0.5, 7.0):
        process.offer(shown(value))
    process.offer(shown(0.0, "stable"))
    wait_for(lambda: taken("first").n == 3 and taken("first", "stable").n == 1)
    assert taken("first") == OwnerSums(3, 1.75, 0.0625 + 0.25 + 1)
    assert taken("positive") == OwnerSums(3, 3.0, 3.0)
    assert taken("positive", "stable") == OwnerSums(1, 0.0, 0.0)
    assert taken("tokens").buckets == {bucket_of(v): 1 for v in (0.25, 0.5, 7.0)}
    assert taken("nothing").n == 0
    assert taken("shouting").n == 3
    news = process.news()
    assert news["nothing"].calls == {"canary": 3, "stable": 1}
    assert not any(one.off or one.first or any(one.errors.values()) for one in news.values())
    assert process.dropped == {}


def test_errors_are_counted_and_tell_nothing_of_the_request(start: Start) -> None:
    process = start(metric("raising"), metric("text"), metric("raising_for_the_canary"))
    taken = Taken(process)
    for variant in ("canary", "stable"):
        for _ in range(5):
            process.offer(shown(variant=variant, body=b"the client's secret"))
    name = "raising-for-the-canary"
    wait_for(lambda: taken(name, "stable").n == 5)
    wait_for(lambda: sum(process.news()[name].calls.values()) == 10)
    news = process.news()
    assert news["raising"].errors == {"canary": 5, "stable": 5}
    assert news["raising"].first.startswith("KeyError at owner_metrics.py:")
    assert "no number" in news["text"].first
    assert news[name].errors == {"canary": 5, "stable": 0}
    assert "secret" not in repr(news)
    assert not any(one.off for one in news.values())
    assert taken("raising").n == taken(name).n == 0


def test_one_that_hangs_is_switched_off_and_the_others_go_on(start: Start) -> None:
    process = start(metric("hanging"), metric("first"))
    taken = Taken(process)
    process.offer(shown())
    wait_for(lambda: taken("hanging").n == 1)
    process.offer(shown(body=b"hang"))
    wait_for(lambda: process.news()["hanging"].off)
    assert "longer than 3 s" in process.news()["hanging"].off
    assert process.dropped == {"canary": 1}
    before = taken("first").n
    for _ in range(3):
        process.offer(shown())
    wait_for(lambda: taken("first").n == before + 3)
    assert not process.news()["first"].off
    assert taken("hanging").n == 1


def test_one_that_never_lets_go_of_the_interpreter_holds_nobody_up(start: Start) -> None:
    process = start(metric("hanging_in_c"), limits=MetricLimits(hang_s=1.0))
    process.offer(shown())
    begun = time.monotonic()
    wait_for(lambda: process.news()["hanging-in-c"].off)
    assert time.monotonic() - begun < 50
    process.offer(shown(variant="stable"))  # nobody asks any more
    assert process.dropped == {"canary": 1, "stable": 1}


def test_one_that_ends_the_process_is_switched_off(start: Start) -> None:
    process = start(metric("deadly"), metric("first"))
    taken = Taken(process)
    process.offer(shown(body=b"die"))
    wait_for(lambda: process.news()["deadly"].off)
    assert "ended" in process.news()["deadly"].off
    process.offer(shown())
    wait_for(lambda: taken("first").n == 1)


def test_a_process_that_somebody_else_kills_is_started_again(start: Start) -> None:
    process = start(metric("first"))
    taken = Taken(process)
    process.offer(shown())
    wait_for(lambda: taken("first").n == 1)
    child = process._child
    assert child is not None
    child.kill()
    child.wait()

    def answered() -> bool:
        process.offer(shown())
        return taken("first").n > 1

    wait_for(answered)
    assert not process.news()["first"].off


@pytest.mark.parametrize(
    ("source", "allowed", "why"),
    [
        (f"{MODULE}:first", (), "not allowed on this machine"),
        (f"{MODULE}:first", ("tests.unit.serve.owner",), "not allowed"),
        ("os:system", ALLOWED, "not allowed"),
        ("tests.unit.serve.no_such:first", ALLOWED, "ModuleNotFoundError"),
        (f"{MODULE}:no_such", ALLOWED, "AttributeError"),
        (f"{MODULE}:not_a_function", ALLOWED, "is no function"),
    ],
)
def test_what_cannot_be_called_says_why(
    start: Start, source: str, allowed: tuple[str, ...], why: str
) -> None:
    process = start(CallableMetric("odd", MetricKind.MEAN, source), allowed=allowed)
    wait_for(lambda: process.news()["odd"].off)
    assert why in process.news()["odd"].off
    process.offer(shown())
    assert process.dropped == {"canary": 1}


def test_a_full_backlog_drops_whatever_the_variant(start: Start) -> None:
    process = start(metric("hanging"), limits=MetricLimits(backlog=40, hang_s=60))
    process.offer(shown(body=b"hang"))
    wait_for(lambda: not process._backlog)
    for turn in range(400):
        process.offer(shown(variant=("canary", "stable")[turn % 2], body=b"x" * (turn % 2 * 9999)))
    assert sum(process.dropped.values()) == 360
    assert process.dropped["canary"] == process.dropped["stable"] == 180


def test_a_backlog_of_large_requests_is_bounded_too(start: Start) -> None:
    process = start(metric("hanging"), limits=MetricLimits(backlog_bytes=1 << 20, hang_s=60))
    process.offer(shown(body=b"hang"))
    wait_for(lambda: not process._backlog)
    for _ in range(10):
        process.offer(shown(body=b"x" * (1 << 19)))
    assert process.dropped == {"canary": 8}


def test_closing_ends_the_process_even_when_it_hangs(start: Start) -> None:
    process = start(metric("hanging"), limits=MetricLimits(hang_s=60))
    process.offer(shown(body=b"hang"))
    wait_for(lambda: process._child is not None and not process._backlog)
    child = process._child
    assert child is not None
    process.close()
    process._thread.join(20)
    assert not process._thread.is_alive()
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_the_process_sees_none_of_the_gateways_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    from serve.metric_process import _environment

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "governed+postgresql://user:password@db/mlflow")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("CHANCERY_KEY", "file:me.key")
    monkeypatch.setenv("FRAUD_THRESHOLD", "0.9")
    found = _environment()
    assert found["FRAUD_THRESHOLD"] == "0.9"
    assert not [name for name in found if name.startswith(("MLFLOW_", "AWS_", "CHANCERY_"))]


def test_a_batch_survives_the_way() -> None:
    batch = [shown(0.5, "stable", b"\x00\xff"), shown(0.1, "canary", b"")]
    found = unpack_batch(pack_batch(batch))
    assert [r.variant for r in found] == ["stable", "canary"]
    assert (found[0].body, found[1].body) == (b"\x00\xff", b"")
    assert found[1].predictions == [0.1]
    assert (found[0].model, found[0].version, found[0].status) == ("fraud", "4", 200)
