"""A few threads for what must not delay counting: confirmatory checks, and sinks.

Their queue is bounded: what finds no place is not taken, and whoever asked keeps it. They are
daemons, for a detector or a sink may hang, and a process must end all the same: what they work on
is on disk and is done again.

Example::

    future = workers.ask(lambda: check(job))
    if future is None: ...                       # full: later
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, Full, Queue
from threading import Thread
from typing import Any, TypeVar

__all__ = ["Workers"]

T = TypeVar("T")


class Workers:
    """See the module.

    Args:
        name: Of the threads.
        threads: How many.
        most_waiting: Calls that wait for one.
    """

    def __init__(self, name: str, threads: int = 1, most_waiting: int = 64) -> None:
        self._queue: Queue[tuple[Future[Any], Callable[[], Any]] | None] = Queue(most_waiting)
        self._threads = [
            Thread(target=self._work, name=f"{name}-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def ask(self, call: Callable[[], T]) -> Future[T] | None:
        """Call it some time; None: there is no place."""
        future: Future[T] = Future()
        try:
            self._queue.put_nowait((future, call))
        except Full:
            return None
        return future

    def close(self) -> None:
        """Begin nothing more; what waits is cancelled."""
        while True:
            try:
                waiting = self._queue.get_nowait()
            except Empty:
                break
            if waiting is not None:
                waiting[0].cancel()
        for _ in self._threads:
            self._queue.put(None)

    def _work(self) -> None:
        while True:
            work = self._queue.get()
            if work is None:
                return
            future, call = work
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - whoever asked gets it
                future.set_exception(error)
