"""The real ``mlflow server``, on SQLite and PostgreSQL, over REST (AC-3, AC-13)."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from mlflow.exceptions import MlflowException

from tests.conftest import Server, StartServer
from tests.scenario import Scenario

CHANCERY = str(Path(sys.executable).parent / "chancery")


def governed(
    start_server: StartServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    store: str | None,
    *,
    workers: int = 1,
    **environment: str,
) -> tuple[Server, Scenario]:
    home = tmp_path / "chancery"
    server = start_server(
        store, workers=workers, environment={"CHANCERY_HOME": str(home), **environment}
    )
    monkeypatch.setenv("CHANCERY_HOME", str(tmp_path / "client"))
    return server, Scenario(server.uri, home)


@pytest.fixture(params=["sqlite", "postgresql"])
def pair(
    request: pytest.FixtureRequest,
    start_server: StartServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Server, Scenario]:
    store = None
    if request.param == "postgresql":
        store = f"governed+{request.getfixturevalue('postgres_uri')}"
    return governed(start_server, tmp_path, monkeypatch, store, workers=2)


def post(server: Server, path: str, body: dict[str, Any], **options: Any) -> requests.Response:
    return requests.post(f"{server.uri}{path}", json=body, timeout=60, **options)


def report_of(server: Server, tmp_path: Path) -> dict[str, Any]:
    """``chancery ledger verify`` on the server's own database."""
    import os

    done = subprocess.run(
        [CHANCERY, "ledger", "verify", "--json", "--uri", server.store],
        capture_output=True, text=True,
        env={**os.environ, "CHANCERY_HOME": str(tmp_path / "chancery")},
    )  # fmt: skip
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_the_whole_story_over_rest(pair: tuple[Server, Scenario], tmp_path: Path) -> None:
    server, scenario = pair
    version = scenario.train()
    for path in ("/api/2.0", "/ajax-api/2.0"):
        denied = post(
            server,
            f"{path}/mlflow/registered-models/alias",
            {"name": "fraud", "alias": "Champion", "version": str(version)},
        )
        assert denied.status_code == 403
        assert "chancery request" in denied.json()["message"]
    denied = post(
        server,
        "/api/2.0/mlflow/model-versions/transition-stage",
        {"name": "fraud", "version": str(version), "stage": "Production",
         "archive_existing_versions": False},
    )  # fmt: skip
    assert denied.status_code == 403
    scenario.to_prod(version)
    assert scenario.alias("champion") == version
    model = mlflow.pyfunc.load_model("models:/fraud@champion")
    assert model is not None

    # Signed files cannot be overwritten or deleted through the artifact proxy.
    location = scenario.client.get_logged_model(
        scenario.client.get_model_version("fraud", str(version)).source.removeprefix("models:/")
    ).artifact_location
    below = location.removeprefix("mlflow-artifacts:/")
    url = f"{server.uri}/api/2.0/mlflow-artifacts/artifacts/{below}"
    assert requests.put(f"{url}/MLmodel", data=b"x", timeout=60).status_code == 403
    assert requests.delete(url, timeout=60).status_code == 403
    assert requests.delete(url.rsplit("/models/", 1)[0], timeout=60).status_code == 403
    assert mlflow.pyfunc.load_model("models:/fraud@champion") is not None

    report = report_of(server, tmp_path)
    assert report["ok"], report
    assert report["witness_size"] >= report["size"] - report["pending"] - 50

    # A revoked version's download URI is refused to clients without our package.
    local_scenario_revoke(server, tmp_path, version)
    refused = requests.get(
        f"{server.uri}/api/2.0/mlflow/model-versions/get-download-uri",
        params={"name": "fraud", "version": str(version)},
        timeout=60,
    )
    assert refused.status_code == 403
    with pytest.raises(MlflowException, match="REVOKED"):
        mlflow.pyfunc.load_model("models:/fraud@champion")


def local_scenario_revoke(server: Server, tmp_path: Path, version: int) -> None:
    import os

    done = subprocess.run(
        [CHANCERY, "revoke", f"models:/fraud/{version}", "--reason", "biased", "--uri",
         server.store],
        capture_output=True, text=True,
        env={**os.environ, "CHANCERY_HOME": str(tmp_path / "chancery")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_concurrent_promotions_leave_one_occupant_and_a_whole_ledger(
    pair: tuple[Server, Scenario], tmp_path: Path
) -> None:
    server, scenario = pair
    versions = [scenario.train() for _ in range(3)]
    for version in versions:
        scenario.clear(version, "staging")

    def promote(version: int) -> int:
        body = {"name": "fraud", "alias": "challenger", "version": str(version)}
        return post(server, "/api/2.0/mlflow/registered-models/alias", body).status_code

    with ThreadPoolExecutor(12) as pool:
        codes = list(pool.map(promote, versions * 8))
    assert set(codes) <= {200, 403}
    occupant = scenario.alias("challenger")
    assert occupant in versions
    granted = {e["subject"] for e in scenario.events() if e["type"] == "gates:promotion:granted"}
    assert granted == {f"models:/fraud/{occupant}"}
    assert report_of(server, tmp_path)["ok"]


def test_a_signed_client_is_known_by_name(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "version: 1\n"
        "environments:\n"
        "  - {name: staging, aliases: [challenger], requires: {actor_proof: signed}}\n"
    )
    server, scenario = governed(
        start_server, tmp_path, monkeypatch, None, CHANCERY_POLICY=str(policy)
    )
    version = scenario.train()
    with pytest.raises(Exception, match="signed"):
        scenario.request(version, "staging")
    monkeypatch.setenv("CHANCERY_KEY", f"file:{scenario.home / 'approver.key'}")
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "chancery")
    scenario.promote(version, "challenger", "staging")
    event = [e for e in scenario.events() if e["type"] == "registry:alias:set"][-1]
    assert event["actorproof"] == "signed"
    assert event["actorkey"]
    version = scenario.train()
    scenario.backend.revoke("fraud", version, "not needed")
    # Without the key the same client is only a claim, and may not revoke.
    monkeypatch.delenv("CHANCERY_KEY")
    monkeypatch.delenv("MLFLOW_TRACKING_AUTH")
    with pytest.raises(Exception, match="may not revoke"):
        scenario.backend.revoke("fraud", 1, "mischief")
    assert server.process.poll() is None


def test_an_ungoverned_server_refuses_to_look_governed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    done = subprocess.run(
        [sys.executable, "-c", "from mlflow_plugins.server_app import create_app; create_app()"],
        capture_output=True, text=True,
        env={**os.environ, "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{tmp_path}/x.db"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "not governed" in done.stderr
    assert "governed+sqlite" in done.stderr


def test_doctor_finds_the_installation_whole(tmp_path: Path) -> None:
    uri = f"governed+sqlite:///{tmp_path}/d.db"
    done = subprocess.run([CHANCERY, "doctor", "--json", "--uri", uri],
                          capture_output=True, text=True)  # fmt: skip
    findings = json.loads(done.stdout)
    assert all(f["ok"] for f in findings), [f for f in findings if not f["ok"]]
    assert done.returncode == 0


def test_production_mode_refuses_development_keys(tmp_path: Path) -> None:
    import os

    done = subprocess.run(
        [CHANCERY, "doctor", "--uri", f"governed+sqlite:///{tmp_path}/p.db"],
        capture_output=True, text=True, env={**os.environ, "CHANCERY_MODE": "production"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "production mode refuses file keys" in done.stdout + done.stderr


def test_a_read_only_database_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change on a read-only database fails clearly and leaves nothing behind."""
    scenario = Scenario.local(tmp_path)
    version = scenario.train()
    scenario.clear(version, "staging")
    database = tmp_path / "mlflow.db"
    script = (
        "import mlflow, sys\n"
        "from sqlalchemy import event\n"
        f"mlflow.set_tracking_uri({scenario.uri!r})\n"
        "client = mlflow.MlflowClient()\n"
        "client.get_registered_model('fraud')\n"
        "import mlflow_plugins.governor as g\n"
        "from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore\n"
        "for engine in SqlAlchemyStore._engine_map.values():\n"
        "    event.listen(engine, 'connect', lambda c, r: c.execute('PRAGMA query_only=ON'))\n"
        "    engine.dispose()\n"
        "try:\n"
        f"    client.set_registered_model_alias('fraud', 'challenger', '{version}')\n"
        "except mlflow.exceptions.MlflowException as error:\n"
        "    print('REFUSED', error.message)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "REFUSED" in done.stdout, done.stderr
    assert "readonly" in done.stdout
    assert database.exists()
    assert scenario.alias("challenger") is None
    scenario.client.set_registered_model_alias("fraud", "challenger", str(version))


def test_a_read_replica_is_honoured(
    tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads go to the replica, writes to the primary, both with their ``governed+`` prefix."""
    import shutil

    from mlflow.server.constants import READ_REPLICA_BACKEND_STORE_URI_ENV_VAR

    from mlflow_plugins.entry import registry_store

    for name in ("primary", "replica"):
        shutil.copyfile(sqlite_template, tmp_path / f"{name}.db")
    monkeypatch.setenv(
        READ_REPLICA_BACKEND_STORE_URI_ENV_VAR, f"governed+sqlite:///{tmp_path}/replica.db"
    )
    store = registry_store(store_uri=f"governed+sqlite:///{tmp_path}/primary.db")
    store.create_registered_model("fraud")
    assert [m.name for m in store.search_registered_models()] == []
    shutil.copyfile(tmp_path / "primary.db", tmp_path / "replica.db")  # as replication would
    assert [m.name for m in store.search_registered_models()] == ["fraud"]
