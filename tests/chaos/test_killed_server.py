"""SIGKILL in the middle of 200 concurrent promotions and registrations (AC-13, AC-14)."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import StartServer
from tests.scenario import Scenario

MODELS = 10
OPERATIONS = 200


@pytest.mark.timeout(600)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_ledger_and_registry_agree_after_a_kill(
    database: str,
    request: pytest.FixtureRequest,
    start_server: StartServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = None
    if database == "postgresql":
        store = f"governed+{request.getfixturevalue('postgres_uri')}"
    home = tmp_path / "chancery"
    monkeypatch.setenv("CHANCERY_HOME", str(home))
    server = start_server(store, workers=2)
    scenario = Scenario(server.uri, home)
    first = scenario.train("m0")
    source = scenario.client.get_model_version("m0", str(first)).source
    for number in range(MODELS):
        if number:
            scenario.client.create_registered_model(f"m{number}")
            scenario.client.create_model_version(
                f"m{number}", source, model_id=source.removeprefix("models:/")
            )
        scenario.clear(1, "staging", f"m{number}")

    acknowledged: list[tuple[str, str, str]] = []
    lock = threading.Lock()
    started = threading.Event()

    def act(number: int) -> None:
        name = f"m{number % MODELS}"
        if number % 2:
            path = "registered-models/alias"
            body = {"name": name, "alias": "challenger", "version": "1"}
        else:
            path = "model-versions/create"
            model_id = source.removeprefix("models:/")
            body = {"name": name, "source": source, "model_id": model_id}
        try:
            answer = requests.post(f"{server.uri}/api/2.0/mlflow/{path}", json=body, timeout=30)
        except requests.RequestException:
            return  # never acknowledged
        if number > 40:
            started.set()
        if answer.status_code == 200:
            version = "1" if number % 2 else answer.json()["model_version"]["version"]
            with lock:
                acknowledged.append(("alias" if number % 2 else "version", name, str(version)))

    with ThreadPoolExecutor(16) as pool:
        for number in range(OPERATIONS):
            pool.submit(act, number)
        assert started.wait(60)
        time.sleep(0.3)
        server.kill()
    assert 10 < len(acknowledged) < OPERATIONS, len(acknowledged)

    again = start_server(server.store)
    scenario = Scenario(again.uri, home)
    report = verified(server.store)
    assert report["ok"], report

    entries: dict[tuple[str, str], int] = {}
    start = 0
    while page := scenario.backend.ledger_entries(start, 1000):
        for index, leaf in page:
            event = json.loads(leaf)
            entries[(event["type"], event["subject"])] = index
        start = page[-1][0] + 1
    registered: set[tuple[str, str]] = set()
    for number in range(MODELS):
        for found in scenario.client.search_model_versions(f"name='m{number}'", max_results=500):
            registered.add((found.name, str(found.version)))
    logged = {
        tuple(subject.removeprefix("models:/").split("/"))
        for (kind, subject) in entries
        if kind == "registry:model-version:registered"
    }
    assert registered == logged
    for kind, name, version in acknowledged:
        if kind == "version":
            assert (name, version) in registered
        else:
            assert scenario.alias("challenger", name) == 1
            index = entries[("registry:alias:set", f"models:/{name}@challenger")]
            assert index < report["witness_size"]


def verified(store: str) -> dict[str, Any]:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "chancery"), "ledger", "verify", "--json", "--uri",
         store],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report
