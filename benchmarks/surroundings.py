"""What a benchmark runs in: a private home, a PostgreSQL of its own, MLflow servers on loopback.

Everything lies in temporary folders and is ended by process id; nothing outside them is touched.
``private_home`` must come before ``import mlflow``, which reads the environment.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

__all__ = [
    "Postgres",
    "create_database",
    "free_port",
    "mlflow_server",
    "postgres",
    "private_home",
    "progress",
]


def progress(text: str) -> None:
    """One line to standard error, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _interrupted(*_: object) -> NoReturn:
    raise SystemExit("interrupted")


@contextmanager
def private_home() -> Iterator[Path]:
    """A temporary folder that is ``HOME`` and ``TMPDIR``; no MLflow or chancery settings."""
    signal.signal(signal.SIGTERM, _interrupted)  # so that what was started is ended
    for name in list(os.environ):
        if name.startswith(("CHANCERY_", "MLFLOW_")):
            del os.environ[name]
    folder = Path(tempfile.mkdtemp(prefix="chancery-bench-", dir="/tmp"))
    os.environ.update(
        HOME=str(folder),
        TMPDIR=str(folder),
        MLFLOW_DISABLE_TELEMETRY="true",
        GIT_PYTHON_REFRESH="quiet",
        PYTHONWARNINGS="ignore",
    )
    tempfile.tempdir = str(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """A PostgreSQL of our own with its defaults (fsync on); may be stopped and started again.

    Attributes:
        address: Its URI without a database name.
    """

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        if not found:
            raise SystemExit(
                "PostgreSQL is not installed; run `make system`, or use --skip-postgresql"
            )
        self._binaries = found[-1].parent
        self._folder = Path(tempfile.mkdtemp(prefix="chancery-bench-pg-", dir="/tmp"))
        self._options: dict[str, Any] = {"cwd": self._folder}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            account = pwd.getpwnam("postgres")
            os.chown(self._folder, account.pw_uid, account.pw_gid)
            self._options |= {"user": account.pw_uid, "group": account.pw_gid}
        self._process: subprocess.Popen[bytes] | None = None
        self._port = free_port()
        self.address = f"postgresql+psycopg://chancery@127.0.0.1:{self._port}"

    def start(self) -> None:
        """Have it answer, with what it held before; does nothing where it does."""
        if self._process is not None:
            return
        data = self._folder / "data"
        if not data.exists():
            subprocess.run(
                [self._binaries / "initdb", "-D", data, "-U", "chancery", "--auth=trust",
                 "--no-sync"],
                check=True, stdout=subprocess.DEVNULL, **self._options,
            )  # fmt: skip
        command = [self._binaries / "postgres", "-D", data, "-p", str(self._port)]
        command += ["-k", self._folder]
        for setting in ("listen_addresses=127.0.0.1", "max_connections=400"):
            command += ["-c", setting]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self._options
        )
        ready = [self._binaries / "pg_isready", "-h", "127.0.0.1", "-p", str(self._port)]
        _wait(
            self._process, lambda: not subprocess.run(ready, stdout=subprocess.DEVNULL).returncode
        )

    def stop(self) -> None:
        """End it, and every connection to it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)
            self._process = None

    def remove(self) -> None:
        """End it for good."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL that answers; its URI without a database name."""
    database = Postgres()
    try:
        database.start()
        yield database.address
    finally:
        database.remove()


def create_database(server: str, name: str) -> str:
    """An empty database; its URI."""
    import psycopg

    address = f"{server.replace('+psycopg', '')}/postgres"
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"{server}/{name}"


@contextmanager
def mlflow_server(
    folder: Path,
    store: str,
    *,
    app: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """A real ``mlflow server`` with one worker; its address."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    if app:
        command += ["--app-name", app]
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            # The governed scheme runs no jobs; neither does the one it is compared with.
            env={
                **os.environ,
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                **(environment or {}),
            },
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        _wait(process, lambda: _answers(uri), log)
        yield uri
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)


def _answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _wait(process: subprocess.Popen[bytes], ready: Any, log: Path | None = None) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-3000:] if log else ""
            raise SystemExit(f"process {process.args!r} did not start\n{said}")
        time.sleep(0.2)
