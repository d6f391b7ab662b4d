"""A model that needs no MLflow: it sums each row. Some rows it does not take, or takes its time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any, cast

import orjson

from serve.answer import JSON, Answer
from serve.decode import Array, Decoder, Layout
from serve.scoring import Identity, Scorer

LAYOUT = Layout("float64", ("a", "b"), (2,), tensor=False)

NOT_TAKEN = 666.0
"""A row that begins so is not taken as rows; MLflow's code (here: ``exactly``) is asked."""
SLOW = 777.0
"""Takes a second, or until the gate opens."""
DEADLY = 888.0
"""Ends the process."""


def body(*rows: Sequence[float]) -> bytes:
    return orjson.dumps({"dataframe_split": {"columns": ["a", "b"], "data": rows}})


class Sums:
    """What `Scorer` offers to a lane."""

    layout = LAYOUT
    batchable = True

    def __init__(
        self,
        identity: Identity | None = None,
        result: Any = None,
        gate: threading.Event | None = None,
    ) -> None:
        self.identity = identity or Identity("fraud", "3", "alice")
        self.decoder = Decoder(LAYOUT)
        self.result = result
        self.gate = gate
        self.batches: list[int] = []
        self.recorder: Any = None
        self.ids: list[str] = []

    def score(self, batch: Sequence[Array], ids: Sequence[str] | None = None) -> list[bytes | None]:
        self.batches.append(len(batch))
        self.ids += ids or ()
        return [self._one(rows) for rows in batch]

    def _one(self, rows: Array) -> bytes | None:
        if rows[0, 0] == DEADLY:
            os._exit(9)
        if rows[0, 0] == SLOW:
            if self.gate is None:
                time.sleep(1.0)
            else:
                self.gate.wait(30)
        if rows[0, 0] == NOT_TAKEN:
            return None
        if self.result is not None:
            return orjson.dumps(self.result)
        return orjson.dumps({"predictions": rows.sum(axis=1).tolist()})

    def succeeded(self, body: bytes) -> Answer:
        return Answer(200, body, JSON)

    def answer_exactly(self, content_type: str | None, body: bytes, request_id: str = "") -> Answer:
        if self.recorder is not None:
            self.ids.append(f"exactly {request_id}")
        return Answer(400, b"exactly " + body, b"text/x; kind=" + (content_type or "none").encode())


def scorer(**options: Any) -> Scorer:
    return cast(Scorer, Sums(**options))
