"""Fixtures for every test: a private home, no telemetry, servers on free ports, stopped by pid."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests

from benchmarks.surroundings import Postgres, free_port
from tests.scenario import Scenario

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["GIT_PYTHON_REFRESH"] = "quiet"
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "2"
# Replicas do not give way to whatever else runs there.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - as Ray spells it

# How long an example takes says how busy the machine is, and nothing about what is tested.
hypothesis.settings.register_profile("chancery", deadline=None)
hypothesis.settings.load_profile("chancery")


@pytest.fixture(autouse=True)
def private_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing outside the test's folder is read or written."""
    for name in list(os.environ):
        if name.startswith(("CHANCERY_", "MLFLOW_TRACKING", "MLFLOW_REGISTRY")):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))


class Server:
    """A running ``mlflow server --app-name governance``."""

    def __init__(self, uri: str, store: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.uri = uri
        self.store = store
        self.process = process
        self.log = log

    def kill(self) -> None:
        """SIGKILL to the whole process group."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> None:
        if self.process.poll() is not None:
            return
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(120)  # it may have much to write
        except subprocess.TimeoutExpired:
            self.kill()


StartServer = Callable[..., Server]


def launch_server(
    folder: Path,
    store: str,
    *,
    workers: int = 1,  # each costs seconds to start
    environment: dict[str, str] | None = None,
    app: str | None = "governance",
    port: int | None = None,
) -> Server:
    """Start a server and wait until it answers; whoever asks for it stops it."""
    port = port or free_port()
    log = folder / f"server-{port}.log"
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store,
        "--artifacts-destination", str(folder / "artifacts"),
        "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers),
    ]  # fmt: skip
    if app:
        command += ["--app-name", app]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env={
                **os.environ,
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                **(environment or {}),
            },
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=folder,
        )
    server = Server(f"http://127.0.0.1:{port}", store, process, log)
    try:
        _wait_until_ready(server)
    except BaseException:
        server.stop()
        raise
    return server


@contextmanager
def servers(folder: Path, template: Path) -> Iterator[StartServer]:
    """Start governed servers in the folder; all are stopped at the end."""
    running: list[Server] = []
    here = folder

    def start(store: str | None = None, *, folder: Path | None = None, **options: Any) -> Server:
        folder = folder or here
        if store is None:
            if not (folder / "mlflow.db").exists():
                shutil.copyfile(template, folder / "mlflow.db")
            store = f"governed+sqlite:///{folder}/mlflow.db"
        running.append(launch_server(folder, store, **options))
        return running[-1]

    try:
        yield start
    finally:
        for server in running:
            server.stop()


@pytest.fixture
def start_server(tmp_path: Path, sqlite_template: Path) -> Iterator[StartServer]:
    """Start governed servers; all are stopped at the end of the test."""
    with servers(tmp_path, sqlite_template) as start:
        yield start


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            pytest.fail(f"the server ended at its start:\n{server.log.read_text()[-4000:]}")
        try:
            if requests.get(f"{server.uri}/health", timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.2)
    pytest.fail(f"the server was not ready in time:\n{server.log.read_text()[-4000:]}")


@pytest.fixture(scope="session")
def postgres_process() -> Iterator[Postgres]:
    """A PostgreSQL of our own. Who stops it starts it again."""
    database = Postgres()
    try:
        database.start()
        yield database
    finally:
        database.remove()


@pytest.fixture(scope="session")
def postgres_server(postgres_process: Postgres) -> str:
    """The address of a PostgreSQL, without a database name."""
    return postgres_process.address


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> str:
    """A database that holds MLflow's own tables: making them takes seconds."""
    import psycopg

    with psycopg.connect(
        postgres_server.replace("+psycopg", "") + "/postgres", autocommit=True
    ) as connection:
        connection.execute("CREATE DATABASE mlflow_template")
    make_mlflow_tables(f"{postgres_server}/mlflow_template")
    return "mlflow_template"


@pytest.fixture
def postgres_uri(postgres_server: str, postgres_template: str) -> Iterator[str]:
    """A database of its own, with MLflow's tables and nothing in them."""
    with fresh_database(postgres_server, postgres_template) as uri:
        yield uri


@contextmanager
def fresh_database(server: str, template: str) -> Iterator[str]:
    """A copy of the template; afterwards nobody of this process holds on to it."""
    import psycopg

    from mlflow_plugins.governor import Governor

    name = f"t{os.getpid()}_{time.monotonic_ns()}"
    uri = f"{server}/{name}"
    address = server.replace("+psycopg", "") + "/postgres"
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE {template}')
    try:
        yield uri
    finally:
        for key, governor in list(Governor._instances.items()):
            if governor.uri == uri:
                governor.ledger.close()
                del Governor._instances[key]
        # Pools of this process keep connections for good, and the server has only so many.
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                (name,),
            )


def make_mlflow_tables(uri: str) -> None:
    """MLflow's own migrations on an empty database, in a process that then lets go of it."""
    subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", uri],
                   check=True, capture_output=True)  # fmt: skip


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file that holds MLflow's own tables: making them takes seconds."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    make_mlflow_tables(f"sqlite:///{path}")
    return path


@pytest.fixture
def scenario(
    request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path
) -> Iterator[Scenario]:
    """A governed store in this process: SQLite, or the database that the test's parameter names."""
    if getattr(request, "param", "sqlite") == "postgresql":
        uri = f"governed+{request.getfixturevalue('postgres_uri')}"
        scenario = Scenario.fresh(uri, tmp_path)
        yield scenario
        scenario.close()  # the server goes away before this process ends
    else:
        shutil.copyfile(sqlite_template, tmp_path / "mlflow.db")
        yield Scenario.local(tmp_path)
