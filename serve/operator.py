"""Keeps a controller running for every deployment: what ``chancery deploy operate`` does.

Whoever deploys through a server has no Ray cluster to start a controller on. The operator stands
beside the cluster, looks into the database about once a second, and has a controller started for
each deployment that nobody has a lease of: one that is new, or whose controller was lost with its
cluster. It decides nothing itself, and holds nothing: any number of operators may run, and when
none does, what answers goes on answering.

Ray's client ends its own process when the cluster's head is gone for good, so it lives in a process
of its own (`LaunchProcess`), which is made anew when it ends or does not answer. What is away,
database or cluster, is said once, and again when it is back.

Example::

    operator = Operator(lambda: open_deployments(uri), LaunchProcess(uri, "auto"), say=print)
    operator.run(stop)
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

from governance.clock import now_ms
from governance.deployment_port import Deployments
from governance.deployment_records import DeploymentRecord
from governance.errors import ConfigurationError, GovernanceError, UnreachableError

__all__ = ["LaunchProcess", "Launcher", "Operator"]

_log = logging.getLogger(__name__)

_AGAIN_S = 10.0  # a controller that was started has so long to take its lease
_LONGEST_PAUSE_S = 5.0

_T = TypeVar("_T")


class Launcher(Protocol):
    """Starts controllers."""

    def ensure(self, record: DeploymentRecord) -> None:
        """Have the deployment's controller run.

        Raises:
            GovernanceError: it could not be started; it may work later.
        """
        ...

    def close(self) -> None:
        """Let go of the cluster; controllers go on."""
        ...


class Operator:
    """See the module.

    Args:
        store: The database's deployments.
        launcher: Starts controllers.
        say: Told, in one line, whatever changes.
        clock: Milliseconds since the epoch.
        monotonic: Seconds that only grow.
    """

    def __init__(
        self,
        store: Callable[[], Deployments],
        launcher: Launcher,
        *,
        say: Callable[[str], None],
        clock: Callable[[], int] = now_ms,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open = store
        self._store: Deployments | None = None
        self._launcher = launcher
        self._say = say
        self._clock = clock
        self._monotonic = monotonic
        self._tried: dict[str, float] = {}
        self._started: dict[str, float] = {}
        self._away: set[str] = set()

    def run(self, stop: threading.Event, *, every_s: float = 1.0) -> None:
        """Round after round until ``stop`` is set; slower while something is away.

        Raises:
            ConfigurationError: what time does not heal.
        """
        pause = every_s
        while not stop.is_set():
            try:
                self.round(stop)
                pause = every_s
            except ConfigurationError:
                raise
            except Exception as error:  # noqa: BLE001 - an operator outlives what it works with
                _log.debug("a round failed: %r", error)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            stop.wait(pause)

    def round(self, stop: threading.Event | None = None) -> int:
        """Look once, and start what is missing; how many controllers were started.

        Raises:
            Exception: the database or the cluster is away; `run` comes again.
        """
        waiting = self._watched("the database", self._look)
        alive = {record.deploy_id for record in waiting}
        for known in (self._tried, self._started):
            for key in known.keys() - alive:
                del known[key]
        started = 0
        # One that cannot be started does not keep the others waiting for ever.
        for record in sorted(waiting, key=lambda it: self._tried.get(it.deploy_id, float("-inf"))):
            key, now = record.deploy_id, self._monotonic()
            if stop is not None and stop.is_set():
                break
            if now - self._started.get(key, float("-inf")) < _AGAIN_S:
                continue
            self._tried[key] = now
            self._watched("the Ray cluster", partial(self._launcher.ensure, record))
            if key not in self._started:  # else it was said, and still has not taken its lease
                self._say(f"started the controller of {record.route} ({key[:12]})")
            self._started[key] = self._monotonic()
            started += 1
        return started

    def _look(self) -> list[DeploymentRecord]:
        if self._store is None:
            self._store = self._open()
        return list(self._store.standing(without_lease_at_ms=self._clock()))

    def _watched(self, what: str, act: Callable[[], _T]) -> _T:
        """Do it, and say when ``what`` went away or came back."""
        try:
            found = act()
        except ConfigurationError:
            raise
        except Exception as error:
            if what not in self._away:
                self._away.add(what)
                reason = error.message if isinstance(error, GovernanceError) else _line(error)
                self._say(f"{what} is away, it is tried again: {reason}")
            raise
        if what in self._away:
            self._away.remove(what)
            self._say(f"{what} is back")
        return found


def _line(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


class LaunchProcess:
    """Implements `Launcher` in a process of its own, which joins the cluster when first asked.

    Args:
        uri: The store, for the controllers.
        address: Of the Ray cluster.
        stop: When set, nobody waits for the cluster any more.
        answer_s: Seconds a controller's start may take; joining the cluster is part of the first.
    """

    def __init__(
        self,
        uri: str,
        address: str,
        *,
        stop: threading.Event | None = None,
        answer_s: float = 120.0,
    ) -> None:
        self._uri = uri
        self._address = address
        self._stop = stop or threading.Event()
        self._answer_s = answer_s
        self._process: Any = None
        self._pipe: Connection | None = None

    def ensure(self, record: DeploymentRecord) -> None:
        """See `Launcher`.

        Raises:
            GovernanceError: what the process ran into.
            UnreachableError: the process ended, or did not answer.
        """
        pipe = self._joined()
        try:
            pipe.send(record)
            answered = self._answered(pipe)
            error, leaves = pipe.recv() if answered else (None, True)
        except (EOFError, OSError) as lost:
            self.close()
            raise UnreachableError(
                f"the connection to the Ray cluster at {self._address!r} broke",
                "start the cluster, or correct --ray",
            ) from lost
        if leaves:
            self.close()
        if not answered:
            raise UnreachableError(
                f"the Ray cluster at {self._address!r} did not answer within {self._answer_s:g} s",
                "look whether its head runs",
            )
        if error is not None:
            raise error

    def _answered(self, pipe: Connection) -> bool:
        until = time.monotonic() + self._answer_s
        while not (answered := pipe.poll(0.2)):
            if self._stop.is_set() or time.monotonic() > until:
                break
        return answered

    def close(self) -> None:
        """End the process."""
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        if pipe is not None:
            pipe.close()
        if process is None:
            return
        process.join(5)  # it ends by itself when its pipe does
        if process.is_alive():
            process.kill()
            process.join()

    def _joined(self) -> Connection:
        if self._pipe is not None and self._process.is_alive():
            return self._pipe
        self.close()
        context = multiprocessing.get_context("spawn")  # Ray does not survive a fork
        ours, theirs = context.Pipe()
        self._process = context.Process(
            target=_launch, args=(theirs, self._uri, self._address), name="launch", daemon=True
        )
        self._process.start()
        theirs.close()
        self._pipe = ours
        return ours


def _launch(pipe: Connection, uri: str, address: str) -> None:
    """The process: for each record None or an error, and whether the process ends with it."""
    for number in (signal.SIGTERM, signal.SIGINT):  # to a group; our parent says when it is over
        signal.signal(number, signal.SIG_IGN)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")  # what is away, our parent says once
    sys.argv = sys.argv[:1]  # Ray keeps command lines, and ours may hold the store's password
    with suppress(EOFError, OSError):  # our parent has hung up
        while True:
            record = pipe.recv()
            error = _launched(record, uri, address)
            # One that has lost its cluster does not find another: the next process begins afresh.
            leaves = error is not None and _in_cluster()
            pipe.send((error, leaves))
            if leaves:
                return


def _launched(record: DeploymentRecord, uri: str, address: str) -> GovernanceError | None:
    from serve.launch import connect, ensure_controller

    try:
        connect(address, uri)
        ensure_controller(record, uri)
    except GovernanceError as error:
        return type(error)(error.message, error.remedy)  # its cause may not fit through a pipe
    except Exception as error:  # noqa: BLE001 - Ray raises what it likes
        return UnreachableError(f"the controller cannot be started: {error!r}"[:500])
    return None


def _in_cluster() -> bool:
    try:
        import ray
    except ImportError:
        return False
    return bool(ray.is_initialized())
