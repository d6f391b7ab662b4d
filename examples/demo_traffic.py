"""Clients of a route: threads that ask all the time, and count what they were told.

One patient a request, from scikit-learn's breast-cancer data. One in five comes from "another
clinic", with tumours twice as large as in the data set. Once ``changed`` is set, a new scanner
measures every other tumour as rougher than it is.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter

from sklearn.datasets import load_breast_cancer

__all__ = ["CHANGED", "Traffic"]

CHANGED = "mean smoothness"

_CLIENTS = 4
_PAUSE_S = 0.04
_LARGER = 0.2
_ROUGHER = 0.5
_HEADERS = {"content-type": "application/json"}


class Traffic:
    """See the module; a context.

    Args:
        port: Of the route, on this machine.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: Counter[str] = Counter()
        """Good answers by the version that gave them."""
        self.repeated = 0
        """Good answers of stable to what the canary could not answer."""
        self.errors: Counter[str] = Counter()
        """Everything else."""
        frame = load_breast_cancer(as_frame=True).frame.drop(columns="target")
        larger = frame.head(100).assign(**{"mean radius": frame["mean radius"] * 2})
        self.changed = False
        self._bodies, self._larger, self._rougher = (
            [_body(part.iloc[[row]]) for row in range(len(part))]
            for part in (frame, larger, frame.assign(**{CHANGED: frame[CHANGED] * 1.5}))
        )
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(_CLIENTS)
        ]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(15)

    def reached(self, version: str) -> int:
        """How many requests got to a canary's version, whoever answered in the end."""
        return self.answers[version] + self.repeated

    def told(self) -> str:
        by = ", ".join(f"{n} by version {v}" for v, n in sorted(self.answers.items()))
        return (
            f"clients: {sum(self.answers.values())} good answers ({by}), "
            f"{sum(self.errors.values())} errors"
        )

    def ask(self, body: bytes | None = None) -> tuple[int, bytes, dict[str, str]]:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            return _ask(connection, body or self._bodies[0])
        finally:
            connection.close()

    def _run(self, number: int) -> None:
        draw = random.Random(number)
        while not self._ended.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            try:
                while not self._ended.is_set():
                    bodies = self._larger if draw.random() < _LARGER else self._bodies
                    if self.changed and draw.random() < _ROUGHER:
                        bodies = self._rougher
                    status, body, headers = _ask(connection, draw.choice(bodies))
                    self._count(status, body, headers)
                    if headers.get("connection") == "close":
                        break
                    time.sleep(_PAUSE_S)
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.errors[repr(error)] += 1
                time.sleep(0.2)
            finally:
                connection.close()

    def _count(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        with self._lock:
            if status == 200:
                self.answers[headers.get("x-chancery-version", "?")] += 1
                self.repeated += headers.get("x-chancery-retried") == "1"
            else:
                self.errors[f"{status} {body[:200]!r}"] += 1


def _ask(connection: http.client.HTTPConnection, body: bytes) -> tuple[int, bytes, dict[str, str]]:
    connection.request("POST", "/invocations", body, _HEADERS)
    answer = connection.getresponse()
    read = answer.read()
    return answer.status, read, {name.lower(): value for name, value in answer.getheaders()}


def _body(patient) -> bytes:  # type: ignore[no-untyped-def]  # a pandas.DataFrame
    return json.dumps({"dataframe_split": patient.to_dict(orient="split")}).encode()
