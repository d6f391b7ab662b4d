"""A process of its own for Alibi Detect: started when asked, bounded in time, killed when it hangs.

Alibi Detect takes seconds and 500 MB to import and runs other people's code, so it never shares a
process with us. The child has one thread for numbers, a lower priority, a limit of its address
space where one is set, and of our environment only the names in ``_KEPT``: no secret reaches it.

Example::

    with AlibiProcess() as process:
        process.ask("KSDrift", {"p_val": 0.05}, [], 7, reference, window)
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Self

from drift.licence import require
from drift.sample import Floats
from drift.wire import Deadline, receive, send
from governance.errors import ConfigurationError, GovernanceError

__all__ = ["INSTALL_HINT", "AlibiError", "AlibiLimits", "AlibiProcess"]

INSTALL_HINT = "pip install 'mlflow-chancery[alibi]'"
_TORCH_HINT = "pip install torch"
_KEPT = {"HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ", "VIRTUAL_ENV"}
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class AlibiError(Exception):
    """A call that gave no answer: it raised, took too long, or ended its process."""


@dataclass(frozen=True, slots=True)
class AlibiLimits:
    """What the process may take.

    Attributes:
        import_s: Starting it and importing Alibi Detect.
        call_s: One call.
        memory_bytes: Address space (RLIMIT_AS); None: no limit. PyTorch reserves more than it uses:
            below 4 GiB it may not start.
    """

    import_s: float = 120.0
    call_s: float = 120.0
    memory_bytes: int | None = None


class AlibiProcess:
    """See the module. One call at a time; others wait.

    Args:
        limits: What it may take.
        interpreter: A Python that has Alibi Detect.
        environ: Ours.
    """

    def __init__(
        self,
        limits: AlibiLimits | None = None,
        interpreter: str = sys.executable,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.limits = limits or AlibiLimits()
        self._interpreter = interpreter
        self._environ = dict(environ)
        self._lock = Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self.version = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Of the child; None: there is none."""
        return None if self._child is None else self._child.pid

    def start(self) -> None:
        """Start it unless it runs.

        Raises:
            ConfigurationError: Alibi Detect is not installed there, or its licence forbids it.
            AlibiError: it cannot be imported, or not in time.
        """
        with self._lock:
            self._started()

    def ask(
        self,
        detector: str,
        options: Mapping[str, Any],
        categorical: Sequence[int],
        seed: int,
        reference: Floats,
        window: Floats,
    ) -> dict[str, Any]:
        """The worker's answer: ``p_values``, ``distances``, ``thresholds``.

        Raises:
            ConfigurationError: Alibi Detect, or PyTorch where it is needed, is not installed.
            AlibiError: there is no answer; after a limit the process is killed.
        """
        head = {
            "detector": detector,
            "options": dict(options),
            "categorical": list(categorical),
            "seed": seed,
            "limit_s": self.limits.call_s,
        }
        with self._lock:
            channel = self._started()
            deadline = Deadline(self.limits.call_s)
            try:
                send(channel, head, (reference, window), deadline)
                answer, _ = receive(channel, deadline)
            except BaseException as error:
                self._end()
                why = f"{detector} took longer than {self.limits.call_s:g} s and was killed"
                raise self._told(error, why) from error
        if "error" in answer:
            missing = "No module named 'torch'" in answer["error"]
            if missing:
                raise ConfigurationError(f"{detector} needs PyTorch", _TORCH_HINT)
            raise AlibiError(f"{detector} raised {answer['error']}")
        return answer

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            self._end()

    def _started(self) -> socket.socket:
        if self._channel is not None:
            return self._channel
        require(self._environ)
        ours, theirs = socket.socketpair()
        limits = self.limits
        arguments = [str(theirs.fileno()), str(limits.import_s)]
        if limits.memory_bytes is not None:
            arguments.append(str(limits.memory_bytes))
        self._channel = ours
        try:
            with theirs:
                self._child = subprocess.Popen(
                    [self._interpreter, "-P", "-m", "drift.alibi_worker", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env=self._child_environment(),
                )
            answer, _ = receive(ours, Deadline(limits.import_s))
            if "error" in answer:
                raise _cannot_import(answer, self._interpreter)
        except BaseException as error:
            self._end()
            if isinstance(error, GovernanceError | AlibiError):
                raise
            why = f"importing Alibi Detect took longer than {limits.import_s:g} s"
            raise self._told(error, why) from error
        self.version = str(answer["version"])
        return ours

    def _told(self, error: BaseException, late: str) -> BaseException:
        if isinstance(error, TimeoutError):
            return AlibiError(late)
        if isinstance(error, OSError | EOFError | ValueError):
            return AlibiError(f"the process of Alibi Detect ended ({type(error).__name__})")
        return error

    def _end(self) -> None:
        child, self._child = self._child, None
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        if child is not None:
            child.kill()
            child.wait()

    def _child_environment(self) -> dict[str, str]:
        kept = {k: v for k, v in self._environ.items() if k in _KEPT or k.startswith("LC_")}
        # Another interpreter has libraries of its own, ours would be in their way.
        root = str(Path(__file__).resolve().parents[1])
        same = self._interpreter == sys.executable
        paths = [path or os.getcwd() for path in sys.path] if same else [root]
        threads = dict.fromkeys(_ONE_THREAD, "1")
        return {**kept, **threads, "PYTHONPATH": os.pathsep.join(paths)}


def _cannot_import(answer: Mapping[str, Any], interpreter: str) -> Exception:
    if answer.get("kind") == "not installed":
        return ConfigurationError(
            f"the drift backend alibi is chosen, and {interpreter} has no Alibi Detect",
            f"{INSTALL_HINT}, or choose the backend native",
        )
    return AlibiError(f"Alibi Detect cannot be imported: {answer['error']}")
