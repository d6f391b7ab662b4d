"""A deployment on a real Ray cluster: route, canary, takeover, promotion, revocation, the end."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import ray
from click.testing import CliRunner

from benchmarks.surroundings import free_port
from governance.cli import main
from governance.deployment_port import open_deployments
from governance.deployment_records import DeploymentRecord, DeploymentStatus
from serve.ray_cluster import NAMESPACE, actor_name
from tests.scenario import FEATURES, Scenario

pytestmark = pytest.mark.timeout(1800)
BODY = json.dumps({"inputs": [[1.0, 2.0]]}).encode()
METRICS = "tests.unit.serve.owner_metrics"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of our own for all tests of this file; nothing is told to anybody."""
    if ray.is_initialized():
        ray.shutdown()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="r") as folder:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("HOME", folder)
        root = str(Path(__file__).resolve().parents[2])
        patch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
        patch.setenv("CHANCERY_METRIC_MODULES", METRICS)  # each node says it itself
        ray.init(
            num_cpus=16,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            _temp_dir=folder,
            log_to_driver=False,
        )
        try:
            yield
        finally:
            from ray import serve

            serve.shutdown()
            ray.shutdown()


class Clients:
    """Ask without a pause until the end; what they were told. Each request is another user's."""

    def __init__(self, port: int, body: Callable[[], bytes] = lambda: BODY) -> None:
        self.port = port
        self.users = count()
        self.variants: Counter[str] = Counter()
        self.body = body
        self.statuses: Counter[int] = Counter()
        self.versions: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.lost = 0
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(4)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(20)

    def ask(self) -> tuple[int, bytes, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {"content-type": "application/json", "x-user": f"u{next(self.users)}"}
            connection.request("POST", "/invocations", self.body(), headers)
            answer = connection.getresponse()
            self.variants[answer.getheader("x-chancery-variant", "")] += 1
            return answer.status, answer.read(), answer.getheader("x-chancery-model") or ""
        finally:
            connection.close()

    def answer(self) -> bool:
        """Whether somebody answers."""
        try:
            return self.ask()[0] == 200
        except OSError:
            return False

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                status, answered, version = self.ask()
            except (OSError, http.client.HTTPException):
                self.lost += 1
            else:
                self.statuses[status] += 1
                self.versions[version] += 1
                if status != 200:
                    self.refusals[f"{time.strftime('%X')} {status} {answered.decode()}"] += 1
            time.sleep(0.01)


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"within {timeout_s:g} s it did not happen that {what}")
        time.sleep(0.1)


def test_a_deployment_from_start_to_end(scenario: Scenario, cluster: None, tmp_path: Path) -> None:
    stable, canary = scenario.train(), scenario.train()
    scenario.to_prod(stable)
    store, port = open_deployments(scenario.uri), free_port()

    def chancery(*args: str, code: int = 0) -> Any:
        result = CliRunner().invoke(main, ["deploy", *args, "--uri", scenario.uri, "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    def record() -> DeploymentRecord:
        return store.find(deployed["deployId"])

    deployed = chancery("models:/fraud@champion", "--port", str(port), "--cpus", "0.1")
    wait_for(lambda: record().status is DeploymentStatus.SERVING, "stable serves")
    clients = Clients(port)
    wait_for(clients.answer, "the route answers")
    with clients:
        time.sleep(1)
        config = tmp_path / "canary.yaml"
        config.write_text(
            "steps: [20, 100]\nmin_samples: 30\nmin_seconds: 8\n"
            "analysis: {latency: null}\non_success: {promote_alias: challenger}\n"
        )
        scenario.promote(canary, "challenger", "staging")
        scenario.clear(canary, "prod")
        chancery(f"models:/fraud/{canary}", "--route", "fraud", "--config", str(config))
        wait_for(lambda: chancery("why", "fraud")["phase"] == "canary", "the canary gets traffic")
        actor = ray.get_actor(actor_name(deployed["deployId"]), namespace=NAMESPACE)
        ray.kill(actor, no_restart=False)  # in the middle of a step
        wait_for(lambda: record().stable.version == canary, "the canary is promoted")
        assert record().fence >= 2
        time.sleep(2)
    assert set(clients.statuses) == {200}, clients.refusals
    assert clients.lost == 0
    outcomes = [d.document["outcome"] for d in store.decisions(deployed["deployId"])]
    assert outcomes == ["started", "verified", "advanced", "promoted"]

    scenario.backend.revoke("fraud", canary, "it leaks")
    # Each gateway asks for the plan in its own time: several answers tell of all of them.
    wait_for(lambda: {clients.ask()[0] for _ in range(16)} == {503}, "nobody answers", 15)
    assert b"it leaks" in clients.ask()[1]
    chancery("delete", "fraud")
    wait_for(lambda: record().stopped_ms is not None, "it is taken down")

    def gone() -> bool:
        try:
            ray.get_actor(actor_name(deployed["deployId"]), namespace=NAMESPACE)
        except ValueError:
            return True
        return False

    wait_for(gone, "its controller is gone")


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, too, these metrics may be named; before the store reads its settings."""
    monkeypatch.setenv("CHANCERY_METRIC_MODULES", METRICS)


def test_answers_and_owners_metrics_decide(
    allowed: None, scenario: Scenario, cluster: None, tmp_path: Path
) -> None:
    """A canary that answers without an error, but something else, is rolled back (AC-4)."""
    # Over the rows that clients send, stable says 1 for half of them, the canary for most.
    stable, canary = scenario.train(), scenario.train(labels=(FEATURES[:, 0] > 3).astype(int))
    store, port = open_deployments(scenario.uri), free_port()

    def chancery(*args: str, code: int = 0) -> Any:
        result = CliRunner().invoke(main, ["deploy", *args, "--uri", scenario.uri, "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if code == 0 else result.output

    def begin(analysis: str, code: int = 0, **changes: Any) -> Any:
        options = {"steps": [50, 100], "min_samples": 30, "min_seconds": 2, **changes}
        lines = "\n".join(f"{name}: {value}" for name, value in options.items())
        config = tmp_path / "canary.yaml"
        config.write_text(f"{lines}\nanalysis:\n  latency: null\n{analysis}")
        model = f"models:/fraud/{canary}"
        return chancery(model, "--route", "fraud", "--config", str(config), code=code)

    def rolled_back() -> bool:
        rollout = store.find("fraud")
        assert rollout.stable.version == stable
        return rollout.canary is None

    def why() -> str:
        return "\n".join(chancery("why", "fraud")["sentences"])

    def metric(name: str) -> str:
        return (
            f'    - {{name: {name}, kind: mean, range: [0, 1], source: "{METRICS}:'
            f'{name.replace("-", "_")}", tolerance: 0.1}}\n'
        )

    def body() -> bytes:
        row = [random.uniform(0, 38), random.uniform(1, 39)]
        return json.dumps({"inputs": [row]}).encode()

    first = f"models:/fraud/{stable}"
    chancery(first, "--port", str(port), "--cpus", "0.1", "--env", "sandbox")
    wait_for(lambda: store.find("fraud").status is DeploymentStatus.SERVING, "stable serves")
    clients = Clients(port, body)
    wait_for(clients.answer, "the route answers")
    refused = begin('  metrics: [{name: x, kind: rate, source: "os:system"}]\n', code=1)
    assert "CHANCERY_METRIC_MODULES" in refused
    with clients:
        begin("  outputs: {tolerance: 0.1}\n")
        wait_for(rolled_back, "the shifted answers are found")
        assert "Strongest: outputs: in the bins that the canary favours" in why()
        # Two bins differ by the same share: either may be told first.
        assert re.search(r"Answers by bin, where they differ most: [01]: ", why())

        # Time for the metric's worker to start at each gateway.
        begin(f"  metrics:\n{metric('first')}", min_seconds=60)
        wait_for(rolled_back, "the metric finds it")
        assert "Strongest: metric.first: mean" in why()

        begin(f"  metrics:\n{metric('raising')}{metric('stuck')}", on_timeout="advance")
        wait_for(lambda: "'stuck' is switched off at 2 gateways" in why(), "both noticed")
        wait_for(lambda: "'raising' failed in" in why(), "its errors are told")
        assert "which is no error of the model: KeyError at owner_metrics.py" in why()
        assert store.find("fraud").canary is not None
        assert chancery("why", "fraud")["step"] == 0
        chancery("abort", "fraud", "--reason", "seen enough")
        wait_for(rolled_back, "it is aborted")
    assert set(clients.statuses) == {200}, clients.refusals
    assert clients.lost == 0
    chancery("delete", "fraud")
    wait_for(lambda: store.find(chancery("list", "--all")[0]["deployId"]).stopped_ms, "it is gone")


def test_bytes_that_were_tampered_with_get_no_request(scenario: Scenario, cluster: None) -> None:
    first, second = scenario.train(), scenario.train()
    store = open_deployments(scenario.uri)
    run = CliRunner().invoke
    port = str(free_port())
    options = ["--uri", scenario.uri, "--env", "sandbox", "--cpus", "0.1"]
    done = run(main, ["deploy", f"models:/fraud/{first}", "--port", port, *options])
    assert done.exit_code == 0, done.output
    wait_for(lambda: store.find("fraud").status is DeploymentStatus.SERVING, "stable serves")
    folder = scenario.model_folder(second)
    victim = next(path for path in folder.rglob("*") if path.suffix in (".pkl", ".skops"))
    os.chmod(victim, 0o644)
    victim.write_bytes(victim.read_bytes() + b"x")
    done = run(main, ["deploy", f"models:/fraud/{second}", "--canary", "5%", "--uri", scenario.uri])
    assert done.exit_code == 0, done.output
    wait_for(lambda: store.find("fraud").canary is None, "the rollout ends")
    decision = store.decisions(store.find("fraud").deploy_id)[-1].document
    assert decision["outcome"] == "quarantined", decision
    assert "TAMPERED" in " ".join(decision["explanation"])


def test_an_experiment_and_a_shadow_from_start_to_end(scenario: Scenario, cluster: None) -> None:
    from ray import serve

    for _ in range(4):
        scenario.train()
    store, port = open_deployments(scenario.uri), free_port()

    def chancery(*args: str) -> Any:
        result = CliRunner().invoke(main, ["deploy", *args, "--uri", scenario.uri, "--json"])
        assert result.exit_code == 0, (result.output, result.stderr)
        return json.loads(result.stdout)

    def results() -> dict[str, Any]:
        found = chancery("results", "fraud")["experiment"]
        return {} if found is None else {arm["name"]: arm for arm in found["arms"]}

    def share(**weights: int) -> Any:
        arms = [f"{name}=models:/fraud/{version}:{weights[name]}"
                for version, name in enumerate(("control", "fresh", "bold"), 1)]  # fmt: skip
        listed = [part for arm in arms for part in ("--arm", arm)]
        return chancery("experiment", "fraud", *listed, "--name", "ab", "--sticky", "header:x-user")

    deployed = chancery("models:/fraud/1", "--env", "sandbox", "--port", str(port), "--cpus", "0.1")
    clients = Clients(port)

    def answers() -> bool:
        try:
            return clients.ask()[0] == 200
        except OSError:
            return False

    wait_for(answers, "the route answers")
    folder = scenario.model_folder(3)
    victim = next(path for path in folder.rglob("*") if path.suffix in (".pkl", ".skops"))
    os.chmod(victim, 0o644)
    victim.write_bytes(victim.read_bytes() + b"x")
    share(control=40, fresh=40, bold=20)
    chancery("shadow", "fraud", "models:/fraud/4", "--percent", "50")
    with clients:
        wait_for(lambda: results().get("fresh", {}).get("state") == "open", "an arm answers")
        wait_for(lambda: chancery("results", "fraud")["shadow"]["same"] > 20, "copies are compared")
        wait_for(lambda: results()["fresh"]["requests"] > 50, "requests are counted")
        before = results()
        actor = ray.get_actor(actor_name(deployed["deployId"]), namespace=NAMESPACE)
        ray.kill(actor, no_restart=False)
        share(control=20, fresh=60, bold=20)
        wait_for(lambda: store.find("fraud").fence >= 2, "another controller took over")
        counted = results()["fresh"]["requests"]
        assert counted >= before["fresh"]["requests"], "counts survive a takeover"
        wait_for(lambda: results()["fresh"]["requests"] > counted + 50, "it goes on counting")
        clients.variants.clear()
        wait_for(lambda: clients.variants.total() > 600, "the new shares are seen")
        seen, total = clients.variants.copy(), clients.variants.total()
        for name, part in (("control", 0.2), ("fresh", 0.6), ("stable", 0.2)):
            spread = 5 * (total * part * (1 - part)) ** 0.5
            assert abs(seen[name] - total * part) < spread, seen
        assert results()["bold"]["requests"] == 0, "bytes that do not verify answer nobody"
        assert "bold" not in clients.variants
        scenario.backend.revoke("fraud", 2, "it leaks")

        def arms() -> set[str]:
            clients.variants.clear()
            wait_for(lambda: clients.variants.total() > 60, "clients ask")
            return set(clients.variants)

        wait_for(lambda: arms() == {"control", "stable"}, "the revoked arm's clients are stable's")
    assert set(clients.statuses) == {200}, clients.refusals
    assert clients.lost == 0

    def alerted(arm: str, why: str) -> bool:
        texts = [e["data"]["text"] for e in scenario.events() if e["type"].endswith(":alerted")]
        return any(f"arm '{arm}'" in text and why in text for text in texts)

    # A plan goes out before what it tells people is written.
    wait_for(lambda: alerted("bold", "TAMPERED"), "people hear of the bytes", 60)
    wait_for(lambda: alerted("fresh", "it leaks"), "people hear of the revocation", 60)
    assert chancery("experiment", "fraud", "--end", "--keep", "control")["experiment"] is None
    assert chancery("shadow", "fraud", "--off")["shadow"] is None

    def left() -> list[str]:
        short = deployed["deployId"][:12]
        return [name for name in serve.status().applications if name.startswith(short)]

    names = {f"{deployed['deployId'][:12]}-{name}" for name in ("v1", "gateway")}
    wait_for(lambda: set(left()) == names, "arms and shadow are taken down")
    assert results()["control"]["state"] == "ended"
    chancery("delete", "fraud")
    wait_for(lambda: not left(), "nothing is left")
