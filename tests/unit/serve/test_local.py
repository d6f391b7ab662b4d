"""A model served in this process says that it answers when it can be connected to."""

from __future__ import annotations

import builtins
import socket
from typing import Any

import pytest
import uvicorn

from serve.local import serve_locally
from serve.scoring import Scorer


class Prepared:
    def prepare(self) -> None:
        pass

    def answer_batch(self, batch: list[Any]) -> list[Any]:
        raise AssertionError("nobody asks it here")


def test_who_reads_the_address_may_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[str] = []

    def read(words: str, *, flush: bool) -> None:
        assert flush
        with socket.create_connection(("127.0.0.1", int(words.rsplit(":", 1)[1])), timeout=5):
            connected.append(words)

    def run(_: uvicorn.Server, sockets: list[socket.socket]) -> None:
        for each in sockets:
            each.close()

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(Scorer, "load", lambda *_: Prepared())
    monkeypatch.setattr(uvicorn.Server, "run", run)
    monkeypatch.setattr(builtins, "print", read)
    serve_locally("fraud", "models:/fraud/3", port=0)
    assert len(connected) == 1
    assert connected[0].startswith("models:/fraud/3 answers on http://127.0.0.1:")
