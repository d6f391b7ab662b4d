"""Other servers of MLflow models, started as their documents say, each in a session of its own.

``mlflow models serve`` runs in this environment, with one worker, as it does by default. MLServer
wants an environment of its own (``venv``); what its packages are pinned to is in `PINS`. A server
that cannot be had is reported with the reason, never left out silently.

Example::

    with mlflow_models_serve(folder) as rival:
        rival.port, rival.cpu_seconds()
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deployed import answers, wait_until
from surroundings import free_port, progress

__all__ = [
    "PINS",
    "MissingError",
    "Rival",
    "has_module",
    "mlflow_models_serve",
    "mlserver",
    "mlserver_venv",
]

PINS = (
    "mlserver==1.7.1",
    "mlserver-mlflow==1.7.1",
    "mlflow==3.17.2",
    "scikit-learn==1.9.1",
    "uvloop==0.21.0",  # with later ones MLServer's workers do not start
)
_TICK = os.sysconf("SC_CLK_TCK")


class MissingError(Exception):
    """A server cannot be had here; why."""


@dataclass(frozen=True, slots=True)
class Rival:
    """A server that answers.

    Attributes:
        name: For the results.
        port: Where.
        session: Of its processes.
    """

    name: str
    port: int
    session: int

    def cpu_seconds(self) -> float:
        """Used so far by all its processes that live."""
        total = 0
        for place in Path("/proc").iterdir():
            if place.name.isdecimal():
                try:
                    fields = (place / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == self.session:
                    total += int(fields[11]) + int(fields[12])
        return total / _TICK


@contextmanager
def mlflow_models_serve(model: Path, request: bytes) -> Iterator[Rival]:
    """MLflow's own server.

    Args:
        model: Folder of the model.
        request: Asked to find out whether it answers.
    """
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(model)]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with _started("mlflow models serve", command, port, request, model.parent) as rival:
        yield rival


@contextmanager
def mlserver(python: Path, model: Path, request: bytes) -> Iterator[Rival]:
    """MLServer with its runtime for MLflow, and its defaults.

    Args:
        python: The interpreter of its environment.
        model: Folder of the model.
        request: Asked to find out whether it answers.

    Raises:
        MissingError: it does not start.
    """
    port, folder = free_port(), model.parent / f"{model.name}-mlserver"
    folder.mkdir()
    settings = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    (folder / "settings.json").write_text(json.dumps({**settings, "host": "127.0.0.1"}))
    (folder / "model-settings.json").write_text(
        json.dumps(
            {
                "name": model.name,
                "implementation": "mlserver_mlflow.MLflowRuntime",
                "parameters": {"uri": str(model)},
            }
        )
    )
    command = [str(python.parent / "mlserver"), "start", str(folder)]
    name = "MLServer"
    try:
        with _started(name, command, port, request, model.parent, cwd=folder) as rival:
            yield rival
    except SystemExit as error:
        raise MissingError(str(error)) from error


def mlserver_venv(folder: Path) -> Path:
    """The interpreter of an environment with MLServer; made, and filled by pip, if missing.

    Raises:
        MissingError: pip cannot install it; the end of what pip said.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        progress(f"installing {', '.join(PINS)} into {folder}")
        venv.create(folder, with_pip=True)
    if not has_module(python, "mlserver_mlflow"):
        done = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *PINS],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise MissingError(f"pip could not install it: {done.stderr.strip()[-500:]}")
    return python


def has_module(python: Path, module: str) -> bool:
    """Whether an environment can import a module."""
    return not subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode


@contextmanager
def _started(
    name: str,
    command: Sequence[str],
    port: int,
    request: bytes,
    logs: Path,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Rival]:
    log = logs / f"{name.replace(' ', '-')}-{port}.log"
    path = os.pathsep.join([str(Path(command[0]).parent), os.environ["PATH"]])
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONWARNINGS")}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            # Neither server has more threads in its arithmetic than our replicas have.
            env={**clean, "PATH": path, "OMP_NUM_THREADS": "1", **(environment or {})},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ready() -> bool:
        if process.poll() is not None:
            said = log.read_text(errors="replace")[-1500:]
            raise SystemExit(f"{name} ended with {process.returncode}: {said}")
        return answers(port, request)

    try:
        wait_until(ready, f"{name} answers")
        yield Rival(name, port, process.pid)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for how, patience in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
        if process.poll() is None:
            os.killpg(process.pid, how)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
    # Workers that outlived their parent are in its group still.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
