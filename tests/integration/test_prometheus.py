"""A real Prometheus, scraping a shop's counters: what it says becomes evidence."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.surroundings import free_port
from governance.errors import ConfigurationError, UnreachableError
from serve.config import MetricKind, OwnerMetric
from serve.delta import Delta, OwnerSums
from serve.polling import Asking, Poller
from serve.promql import Prometheus, substituted

VARIANTS = {name: {"version": version} for name, version in (("canary", "4"), ("stable", '3"x'))}


class Shop(ThreadingHTTPServer):
    """An exporter with two counters a version; a version's name is any text."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Metrics)
        self.port = int(self.server_address[1])
        self.lock = threading.Lock()
        self.counters: dict[tuple[str, str], int] = {}
        self.scrapes = 0

    def add(self, version: str, payments: int, chargebacks: int) -> None:
        with self.lock:
            for name, count in (("payments", payments), ("chargebacks", chargebacks)):
                key = f"shop_{name}_total", version
                self.counters[key] = self.counters.get(key, 0) + count

    def restart(self) -> None:
        with self.lock:
            self.counters = dict.fromkeys(self.counters, 0)


class _Metrics(BaseHTTPRequestHandler):
    server: Shop

    def do_GET(self) -> None:
        with self.server.lock:
            lines = [
                f'{name}{{version="{version.translate({34: chr(92) + chr(34)})}"}} {count}'
                for (name, version), count in self.server.counters.items()
            ]
            self.server.scrapes += 1
        self.send_response(200)
        self.send_header("content-type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(("\n".join(lines) + "\n").encode())

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def shop() -> Iterator[Shop]:
    with Shop() as shop:
        threading.Thread(target=shop.serve_forever, daemon=True).start()
        yield shop
        shop.shutdown()


@pytest.fixture
def prometheus(shop: Shop, tmp_path: Path) -> Iterator[Prometheus]:
    binary = shutil.which("prometheus")
    assert binary, "sh tests/install_system_packages.sh installs it"
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        "scrape_configs:\n- job_name: shop\n  static_configs:\n"
        f"  - targets: ['127.0.0.1:{shop.port}']\n"
    )
    process = subprocess.Popen(
        [
            binary, f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        found = Prometheus(f"http://127.0.0.1:{port}")
        wait_for(lambda: _answers(found))
        yield found
    finally:
        process.terminate()
        process.wait(20)


def _answers(prometheus: Prometheus) -> bool:
    try:
        return prometheus.value("vector(1)", time.time()) == 1.0
    except UnreachableError:
        return False


def wait_for(condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"it did not happen within {timeout_s:g} s")
        time.sleep(0.1)


METRIC = OwnerMetric(
    name="chargebacks",
    kind=MetricKind.RATE,
    source='promql:shop_chargebacks_total{version="$version"}',
    total="promql:sum(shop_payments_total{version='$version'})",
    every_seconds=1.0,
)


def test_counters_become_evidence_once_and_restarts_are_left_out(
    shop: Shop, prometheus: Prometheus
) -> None:
    shop.add("4", 1000, 100)
    shop.add('3"x', 9000, 90)
    poller = Poller(prometheus, lag_s=2.0)
    total: dict[str, OwnerSums] = {}
    troubles: dict[str, str] = {}

    def taken(name: str) -> OwnerSums:
        nonlocal troubles
        found, troubles = poller.take()
        for deltas in found:
            for variant, delta in deltas.items():
                assert isinstance(delta, Delta)
                total[variant] = total.get(variant, OwnerSums()) + delta.owner["chargebacks"]
        return total.get(name, OwnerSums())

    def looked() -> bool:
        return poller._metrics[0].before is not None

    try:
        scrapes = shop.scrapes
        wait_for(lambda: shop.scrapes > scrapes + 1)
        poller.ask(Asking("r1/3", (METRIC,), VARIANTS))
        wait_for(looked)
        assert taken("canary").n == 0  # what was before the rollout is no evidence
        for _ in range(5):
            shop.add("4", 20, 10)
            shop.add('3"x', 180, 2)
            time.sleep(0.4)
        wait_for(lambda: taken("canary").n == 100 and taken("stable").n == 900)
        assert total["canary"] == OwnerSums(100, 50.0, 50.0)
        assert total["stable"] == OwnerSums(900, 10.0, 10.0)
        shop.restart()
        before = poller._metrics[0].before
        wait_for(lambda: poller._metrics[0].before != before)
        shop.add("4", 7, 1)
        shop.add('3"x', 70, 0)
        wait_for(lambda: taken("canary").n == 107 and taken("stable").n == 970)
        assert not troubles
    finally:
        poller.close()


def test_what_a_real_prometheus_refuses_and_does_not_have(
    shop: Shop, prometheus: Prometheus
) -> None:
    shop.add("4", 10, 1)
    shop.add('3"x', 10, 1)
    now = time.time
    wait_for(lambda: prometheus.value("count(shop_payments_total)", now()) == 2)
    for odd in ('a"b\\c', "a'b", "a\nb", "$version", "{}"):
        for query in ('x{v="$version"}', "x{v='$version'}", "x{v=`$version`}"):
            assert prometheus.value(substituted(query, {"version": odd}), now()) is None
    assert prometheus.value('shop_payments_total{version="5"}', now()) is None
    assert prometheus.value('shop_payments_total{version="5"} or vector(0)', now()) == 0.0
    assert prometheus.value("scalar(vector(3))", now()) == 3.0
    with pytest.raises(ConfigurationError, match="parse error"):
        prometheus.value("sum(", now())
    with pytest.raises(ConfigurationError, match="gives 2 series"):
        prometheus.value("shop_payments_total", now())
    with pytest.raises(ConfigurationError, match="gives a matrix"):
        prometheus.value("shop_payments_total[1m]", now())
    with pytest.raises(UnreachableError, match="NaN"):
        prometheus.value("vector(0) / 0", now())
