"""Messages between a drift check and its worker process: JSON and arrays over a socket, no pickle.

A message is a head (JSON) and the arrays that it counts, each as ``.npy`` bytes read with
``allow_pickle=False``; every part has its length before it. Sizes are bounded on both sides.
"""

from __future__ import annotations

import io
import json
import socket
import struct
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Deadline", "receive", "send"]

_LENGTH = struct.Struct("!Q")
_MOST_BYTES = 1 << 30
_MOST_ARRAYS = 8


class Deadline:
    """A moment by which all of an exchange must be over.

    Args:
        seconds: From now; None: never.
    """

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def arm(self, channel: socket.socket) -> None:
        """Give the next call on the socket what is left.

        Raises:
            TimeoutError: nothing is.
        """
        if self._end is None:
            channel.settimeout(None)
            return
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        channel.settimeout(left)


def send(
    channel: socket.socket,
    head: dict[str, Any],
    arrays: tuple[NDArray[Any], ...] = (),
    deadline: Deadline | None = None,
) -> None:
    """One message.

    Raises:
        ValueError: an array holds objects.
    """
    parts = [json.dumps({**head, "arrays": len(arrays)}).encode()]
    for array in arrays:
        written = io.BytesIO()
        np.save(written, array, allow_pickle=False)
        parts.append(written.getvalue())
    for part in parts:
        (deadline or Deadline(None)).arm(channel)
        channel.sendall(_LENGTH.pack(len(part)))
        channel.sendall(part)


def receive(
    channel: socket.socket, deadline: Deadline | None = None
) -> tuple[dict[str, Any], tuple[NDArray[Any], ...]]:
    """One message.

    Raises:
        EOFError: the other side is gone.
        TimeoutError: the deadline is over.
        ValueError: it is no message.
    """
    limit = deadline or Deadline(None)
    head = json.loads(_part(channel, limit))
    if not isinstance(head, dict) or not isinstance(head.get("arrays"), int):
        raise ValueError("no message")
    if not 0 <= head["arrays"] <= _MOST_ARRAYS:
        raise ValueError("too many arrays")
    parts = [_part(channel, limit) for _ in range(head.pop("arrays"))]
    return head, tuple(np.load(io.BytesIO(part), allow_pickle=False) for part in parts)


def _part(channel: socket.socket, deadline: Deadline) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size, deadline))
    if length > _MOST_BYTES:
        raise ValueError("a part is too long")
    return _exactly(channel, length, deadline)


def _exactly(channel: socket.socket, length: int, deadline: Deadline) -> bytes:
    parts, left = [], length
    while left:
        deadline.arm(channel)
        part = channel.recv(min(left, 1 << 20))
        if not part:
            raise EOFError("the other side is gone")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
