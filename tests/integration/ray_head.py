"""A Ray head as a process of its own, which a test may end, or kill like a node that burns down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from benchmarks.surroundings import free_port
from tests.integration.serving_world import command_line, kill, processes_of, wait_for


class Head:
    """Kept by its supervisor, and started again at its address.

    Args:
        folder: For its files and logs; short, since sockets lie below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._starts = 0
        self._mark = folder / "head-"  # known to each process that comes of it
        self._wanted = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._keeping: threading.Thread | None = None

    @property
    def _start(self) -> Path:
        """Where the latest start has its files."""
        return Path(f"{self._mark}{self._starts}")

    def start(self) -> None:
        """Return once it runs."""
        before = self._starts
        self._wanted.set()
        self._keeping = threading.Thread(target=self._keep, daemon=True)
        self._keeping.start()
        wait_for(lambda: self._starts > before and self._runs(), "the head runs")

    def _runs(self) -> bool:
        with suppress(FileNotFoundError):
            return b"Ray runtime started" in self._start.with_suffix(".log").read_bytes()
        return False

    def _keep(self) -> None:
        """Ray gives a head 30 seconds to start, which a busy machine may not have."""
        while self._wanted.is_set():
            self._starts += 1
            ports = [
                f"--{name}={free_port()}"
                for name in ("ray-client-server-port", "dashboard-agent-listen-port",
                             "dashboard-agent-grpc-port", "metrics-export-port")
            ]  # fmt: skip
            with self._start.with_suffix(".log").open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
                     f"--port={self.port}", "--num-cpus=16", "--include-dashboard=false",
                     "--node-ip-address=127.0.0.1", "--object-store-memory=104857600",
                     f"--temp-dir={self._start}", "--disable-usage-stats", *ports],
                    stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                    env={**os.environ, "CHANCERY_TEST_HEAD": str(self._start)},
                )  # fmt: skip
            self._process.wait()
            if self._wanted.is_set():  # what a failed start left holds the port
                kill(processes_of(self._mark))

    def stop(self) -> None:
        """End it, with all that it started."""
        self._end(signal.SIGTERM, 90)

    def burn(self) -> None:
        """Kill what makes it a cluster; workers end with their node."""
        self._wanted.clear()
        mine = processes_of(self._mark)
        kill({p for p in mine if any(n in command_line(p) for n in (b"/raylet", b"gcs_server"))})
        self._end(signal.SIGKILL, 30)
        wait_for(lambda: not self._listeners(), "its workers are gone")
        kill(processes_of(self._mark))

    def _listeners(self) -> list[int]:
        return [p for p in processes_of(self._mark) if b"ServeReplica" in command_line(p)]

    def _end(self, how: signal.Signals, timeout_s: float) -> None:
        self._wanted.clear()
        if self._process is None or self._keeping is None:
            return
        self._process.send_signal(how)
        self._keeping.join(timeout_s)
        if self._keeping.is_alive():  # it does not end, or a start came in between
            kill(processes_of(self._mark))
            self._keeping.join()
