"""Ray, two gateways, a stable model, a moody canary and a controller that says what it is told."""

from __future__ import annotations

import http.client
import json
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import mlflow.sklearn
import pandas as pd
import pytest
import ray
from mlflow.models import infer_signature
from ray import serve
from sklearn.linear_model import LinearRegression

from benchmarks.surroundings import free_port
from governance.arms import Stretches
from serve.agreement import Agreement
from serve.batching import BatchLimits
from serve.delta import Delta
from serve.gateway import GatewaySpec, gateway_application
from serve.plan import ExperimentPlan, Plan, Report, ShadowPlan, VariantPlan
from serve.replica import ModelSpec, model_application
from tests.integration.collector import Collector

NAMESPACE = "chancery-test"
ROWS = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.5], "b": [2.0, 1.0, 0.5, 7.0]})
BODY = json.dumps({"inputs": {"a": [1.0], "b": [2.0]}}).encode()
HEADERS = {"content-type": "application/json"}

MOODY = '''
import os
import pathlib
import time

import mlflow


class Moody(mlflow.pyfunc.PythonModel):
    """Sums a row, or does what the file says."""

    def predict(self, context, model_input, params=None):
        mood = pathlib.Path(os.environ["CANARY_MOOD"]).read_text()
        good = model_input["a"].to_numpy() + model_input["b"].to_numpy()
        if mood == "raise":
            raise RuntimeError("a bad mood")
        if mood == "hang":
            time.sleep(600)
        if mood == "slow":
            time.sleep(0.1)
        if mood == "nested":
            return good.reshape(-1, 1)
        if mood == "short":
            return good[:0]
        if mood == "flood":
            return ["x" * (40 << 20)]
        if mood == "text":
            return [str(value) for value in good]
        return good


mlflow.models.set_model(Moody())
'''


class _Controller:
    """Gives the plan that was set; keeps what it was told, each report once."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._reports: dict[tuple[str, int], dict[str, Any]] = {}

    def exchange(self, report: dict[str, Any]) -> dict[str, Any]:
        self._reports[report["source"], report["sequence"]] = report
        return self._plan

    def set(self, plan: dict[str, Any]) -> None:
        self._plan = plan

    def reports(self) -> list[dict[str, Any]]:
        return list(self._reports.values())


@dataclass
class Load:
    """What clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    variants: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    lost: int = 0
    slowest_s: float = 0.0

    def await_answers(self, count: int) -> None:
        """Wait until the clients have so many more."""
        enough = self.statuses.total() + count
        wait_for(lambda: self.statuses.total() >= enough)


class Fleet:
    """Everything that serves, in one small cluster."""

    def __init__(self, folder: Path, collector: Collector) -> None:
        self.folder = folder
        self.collector = collector
        self.port = free_port()
        self.sockets = str(folder / "s")
        self.mood_file = folder / "mood"
        self.mood("good")
        self.stable_uri, self.canary_uri = str(folder / "stable"), str(folder / "canary")
        signature = infer_signature(ROWS, ROWS["a"] + ROWS["b"])
        mlflow.sklearn.save_model(
            LinearRegression().fit(ROWS, ROWS["a"] + ROWS["b"]), self.stable_uri,
            signature=signature, input_example=ROWS, pip_requirements=["scikit-learn"],
        )  # fmt: skip
        (folder / "moody.py").write_text(MOODY)
        mlflow.pyfunc.save_model(
            self.canary_uri, python_model=str(folder / "moody.py"),
            signature=signature, pip_requirements=["mlflow"],
        )  # fmt: skip
        self.revision = 0
        self._start_controller(self.plan())
        environment = {"CANARY_MOOD": str(self.mood_file)}
        self.stable = self.model("stable-3", "3", self.stable_uri, replicas=2)
        self.canary = self.model("canary-4", "4", self.canary_uri, environment=environment)
        gateway = GatewaySpec(
            self.port,
            self.sockets,
            "controller",
            NAMESPACE,
            header_s=1.0,
            batches=BatchLimits(items=8, queue=32),
            access_log=str(folder / "log"),
        )
        serve.run_many(
            [
                serve.RunTarget(application, name=name, route_prefix=None)
                for name, application in (
                    ("stable-3", model_application(self.stable)),
                    ("canary-4", model_application(self.canary)),
                    ("gateway", gateway_application(gateway)),
                )
            ]
        )

    def model(self, application: str, version: str, uri: str, **options: Any) -> ModelSpec:
        spec: dict[str, Any] = {
            "sockets": self.sockets, "signer": "alice", "uri": uri, "cpus": 0.5, "busy_limit_s": 3,
        }  # fmt: skip
        return ModelSpec("fraud", version, application, **{**spec, **options})

    def _start_controller(self, plan: Plan) -> None:
        actor = ray.remote(num_cpus=0)(_Controller)
        self.controller: Any = actor.options(name="controller").remote(plan.to_dict())

    def restart_controller(self, plan: Plan) -> None:
        self._start_controller(plan)

    def mood(self, mood: str) -> None:
        fresh = self.mood_file.with_suffix(".new")
        fresh.write_text(mood)
        fresh.replace(self.mood_file)

    # -- plans and reports

    def plan(self, canary: float = 0.0, **options: Any) -> Plan:
        self.revision += 1
        return Plan(
            self.revision,
            (
                VariantPlan("stable", "fraud", "3", options.pop("stable", "stable-3"), 10.0),
                VariantPlan("canary", "fraud", "4", "canary-4", options.pop("timeout_s", 5.0)),
            ),
            (("canary", canary), ("stable", 100.0 - canary)),
            salt="fraud/r1",
            **options,
        )

    def follow(self, plan: Plan) -> None:
        """Set the plan, and wait until both gateways are at it."""
        ray.get(self.controller.set.remote(plan.to_dict()))
        wait_for(lambda: self.revisions() == {plan.revision: 2})

    def revisions(self) -> Counter[int]:
        """How many gateways are at which plan; whichever is scraped answers for all."""
        return Counter(map(int, self.metric("chancery_plan_revision")))

    def metric(self, name: str, *having: str) -> list[float]:
        """The samples of one scrape that have these labels."""
        return samples(self.scrape(), name, *having)

    def scrape(self) -> str:
        """The metrics of all gateways, without those that took too long to tell theirs."""
        with self.connection() as client:
            client.request("GET", "/metrics")
            return client.getresponse().read().decode()

    def reports(self) -> list[Report]:
        return [Report.from_dict(r) for r in ray.get(self.controller.reports.remote())]

    def deltas(self) -> dict[str, Delta]:
        """Everything that was reported so far, by variant."""
        total: dict[str, Delta] = {}
        for report in self.reports():
            for name, delta in report.deltas.items():
                total[name] = total.get(name, Delta()) + delta
        return total

    def errors(self, act: Callable[[], Any], variant: str = "canary") -> dict[str, int]:
        """Errors of a variant that were reported because of what ``act`` does."""
        self.settled()
        before = self.deltas().get(variant, Delta())
        act()
        self.settled()
        after = self.deltas().get(variant, Delta())
        found = {e.value: n - before.errors.get(e, 0) for e, n in after.errors.items()}
        return {name: count for name, count in found.items() if count}

    def settled(self) -> None:
        """What happened until now is reported: it is in each gateway's second report from now."""
        gateways, before = len(self.pids("gateway")), self._sequences()

        def told() -> bool:
            now = self._sequences()
            return sum(now[name] >= before.get(name, -1) + 2 for name in now) >= gateways

        wait_for(told)

    def _sequences(self) -> dict[str, int]:
        """The number of each gateway's latest report."""
        latest: dict[str, int] = {}
        for report in self.reports():
            latest[report.source] = max(report.sequence, latest.get(report.source, -1))
        return latest

    def lanes(self, variant: str = "stable") -> list[int]:
        """Live lanes by gateway, from the latest report of each that still reports."""
        latest: dict[str, Report] = {}
        for report in self.reports():
            known = latest.get(report.source)
            if known is None or report.sequence > known.sequence:
                latest[report.source] = report
        return [report.lanes.get(variant, 0) for report in latest.values()]

    # -- requests

    @contextmanager
    def connection(self, timeout_s: float = 60.0) -> Iterator[http.client.HTTPConnection]:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            yield client
        finally:
            client.close()

    def ask(
        self, body: bytes = BODY, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        with self.connection() as client:
            client.request("POST", "/invocations", body, headers or HEADERS)
            answer = client.getresponse()
            return answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}

    @contextmanager
    def load(self, clients: int = 8, *, keyed: bool = False) -> Iterator[Load]:
        """Clients that ask without a pause, each on its connection; anew when it breaks.

        ``keyed``: each request is another user's, in the header ``x-user``.
        """
        load, ended, lock = Load(), threading.Event(), threading.Lock()
        users = count()

        def client() -> None:
            headers = dict(HEADERS)
            while not ended.is_set():
                with self.connection() as connection:
                    try:
                        while not ended.is_set():
                            begun = time.monotonic()
                            if keyed:
                                headers["x-user"] = f"user-{next(users)}"
                            connection.request("POST", "/invocations", BODY, headers)
                            answer = connection.getresponse()
                            answer.read()
                            took = time.monotonic() - begun
                            with lock:
                                load.statuses[answer.status] += 1
                                load.variants[answer.getheader("x-chancery-variant", "")] += 1
                                load.retried += answer.getheader("x-chancery-retried") == "1"
                                load.slowest_s = max(load.slowest_s, took)
                            if answer.getheader("connection") == "close":
                                break
                            if answer.status == 503:
                                time.sleep(0.02)
                    except (OSError, http.client.HTTPException):
                        with lock:
                            load.lost += 1
                        time.sleep(0.01)

        threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield load
        finally:
            ended.set()
            for thread in threads:
                thread.join(20)

    # -- processes

    def pids(self, application: str) -> set[int]:
        """Of the replicas of an application that live now."""
        found = set()
        for folder in Path("/proc").iterdir():
            try:
                line = (folder / "cmdline").read_bytes()
                mine = str(self.folder).encode() in (folder / "environ").read_bytes()
            except OSError:
                continue
            if mine and line.startswith(f"ray::ServeReplica:{application}:".encode()):
                found.add(int(folder.name))
        return found

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)


def samples(scraped: str, name: str, *having: str) -> list[float]:
    """The samples of a scrape that have these labels."""
    found = [line for line in scraped.splitlines() if line.startswith(f"{name}{{")]
    return [float(x.split()[-1]) for x in found if all(label in x for label in having)]


def wait_for(condition: Callable[[], Any], timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"it did not happen within {timeout_s:g} s")
        time.sleep(0.1)


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def running_fleet() -> Iterator[Fleet]:
    """A cluster of our own: own folders and home, no dashboard, nothing told to anybody."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="f") as made:
        folder = Path(made)
        (folder / "home").mkdir()
        patch.setenv("HOME", str(folder / "home"))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_SERVE_LOG_TO_STDERR", "0")
        patch.setenv("CHANCERY_TEST_FLEET", made)
        root = str(Path(__file__).resolve().parents[2])
        patch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
        collector = Collector()
        patch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", collector.address)
        ray.init(
            num_cpus=8,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            _temp_dir=str(folder / "r"),
            log_to_driver=False,
            namespace=NAMESPACE,
        )
        try:
            serve.start(proxy_location="Disabled")
            yield Fleet(folder, collector)
        finally:
            serve.shutdown()
            ray.shutdown()
            collector.close()


ARMS = {"control": "50", "fresh": "30", "bold": "20"}


def experiment(fleet: Fleet, stretches: Stretches, bold: str = "bold-5") -> Plan:
    """Three arms; the first is stable's own version."""
    shares = dict.fromkeys(ARMS, 0)
    for name, parts in stretches:
        shares[name] += parts
    fleet.revision += 1
    return Plan(
        fleet.revision,
        (
            VariantPlan("stable", "fraud", "3", "stable-3", 10.0),
            VariantPlan("control", "fraud", "3", "stable-3", 10.0),
            VariantPlan("fresh", "fraud", "4", "canary-4", 5.0),
            VariantPlan("bold", "fraud", "5", bold, 5.0),
        ),
        tuple((name, parts / 10_000) for name, parts in shares.items()),
        sticky="header:x-user",
        experiment=ExperimentPlan(f"e{fleet.revision}", "ab", stretches),
    )


def arms_of(fleet: Fleet, keys: int) -> dict[str, str]:
    """Which arm answers which user."""
    found = {}
    with fleet.connection() as client:
        for number in range(keys):
            headers = {**HEADERS, "x-user": f"u{number}"}
            client.request("POST", "/invocations", BODY, headers)
            answer = client.getresponse()
            answer.read()
            assert answer.status == 200
            found[f"u{number}"] = answer.getheader("x-chancery-variant", "")
    return found


def shadowed(fleet: Fleet, shadow: ShadowPlan | None = None, timeout_s: float = 30.0) -> Plan:
    plan = fleet.plan()
    stable, canary = plan.variants
    variant = replace(canary, name="shadow", timeout_s=timeout_s)
    shadow = shadow or ShadowPlan("shadow", f"s{plan.revision}", max_in_flight=4)
    return replace(
        plan, variants=(stable, variant), weights=(("stable", 100.0),), shadows=(shadow,)
    )


def agreement(fleet: Fleet, plan: Plan) -> Agreement:
    """What came of a shadow's copies once none is on its way, as it was reported."""
    wait_for(lambda: fleet.metric("chancery_in_flight", 'variant="shadow"') == [0, 0])
    fleet.settled()
    total = Agreement()
    for report in fleet.reports():
        total += report.shadows.get(plan.shadows[0].id, Agreement())
    return total
