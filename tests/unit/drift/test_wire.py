"""Messages to the worker: plain data alone, bounded in size and time."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from drift.wire import Deadline, receive, send

Pair = tuple[socket.socket, socket.socket]


class Poison:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def raw(channel: socket.socket, *parts: bytes) -> None:
    for part in parts:
        channel.sendall(struct.pack("!Q", len(part)) + part)


def test_what_is_sent_arrives(pair: Pair) -> None:
    array = np.array([[1.0, np.nan], [np.inf, -0.0]])
    send(pair[0], {"detector": "KSDrift"}, (array, array[:0]))
    head, arrays = receive(pair[1])
    assert head == {"detector": "KSDrift"}
    np.testing.assert_array_equal(arrays[0], array)
    assert arrays[1].shape == (0, 2)


def test_objects_are_not_sent(pair: Pair) -> None:
    with pytest.raises(ValueError, match="pickle"):
        send(pair[0], {}, (np.array([object()]),))


@pytest.mark.parametrize("dressed", [True, False])
def test_a_pickle_is_not_read(pair: Pair, tmp_path: Path, dressed: bool) -> None:
    mark = tmp_path / "ran"
    written = io.BytesIO()
    if dressed:
        np.save(written, np.array([Poison(mark)], object), allow_pickle=True)
    else:
        pickle.dump(Poison(mark), written)
    raw(pair[0], json.dumps({"arrays": 1}).encode(), written.getvalue())
    with pytest.raises(ValueError, match="allow_pickle=False"):
        receive(pair[1])
    assert not mark.exists()


@pytest.mark.parametrize("head", [b"[]", b"{}", b'{"arrays": -1}', b'{"arrays": 99}', b"{"])
def test_a_wrong_head_is_refused(pair: Pair, head: bytes) -> None:
    raw(pair[0], head)
    with pytest.raises(ValueError):  # noqa: PT011 - JSON's own text for one of them
        receive(pair[1])


def test_a_part_that_is_too_long_is_refused_before_it_is_read(pair: Pair) -> None:
    pair[0].sendall(struct.pack("!Q", 1 << 40))
    with pytest.raises(ValueError, match="too long"):
        receive(pair[1])


def test_a_deadline_holds_for_all_of_a_message(pair: Pair) -> None:
    pair[0].sendall(b"\0")
    with pytest.raises(TimeoutError):
        receive(pair[1], Deadline(0.05))
    with pytest.raises(TimeoutError):
        receive(pair[1], Deadline(0.0))


def test_the_end_of_the_other_side_is_told(pair: Pair) -> None:
    pair[0].close()
    with pytest.raises(EOFError):
        receive(pair[1])
