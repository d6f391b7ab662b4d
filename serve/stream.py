"""Cuts a stream of bytes into frames, each with its length in front (``serve.frames``).

A protocol of asyncio's lower kind: a frame is handed over in the turn of the loop in which its last
byte came, without a task, a future or a reader in between. For small batches that was half of what
a lane cost.

Example::

    class Printer(FrameProtocol):
        def frame(self, frame: memoryview) -> None:
            print(len(frame))

    await loop.create_unix_connection(Printer, path)
"""

from __future__ import annotations

import asyncio
import struct
from abc import ABC, abstractmethod

from serve.frames import FrameError

__all__ = ["LARGEST_FRAME", "FrameProtocol"]

LARGEST_FRAME = 1 << 30
"""Bytes of a frame, as long as nobody sets a lower limit."""

_U32 = struct.Struct("<I")


class FrameProtocol(asyncio.Protocol, ABC):
    """Hands over whole frames.

    Attributes:
        transport: Of the connection.
        largest: Bytes of a frame, at most.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.largest = LARGEST_FRAME
        self._pieces: list[bytes] = []  # of a frame that has not ended
        self._size = 0
        self._wanted = 0

    @abstractmethod
    def frame(self, frame: memoryview) -> None:
        """A frame came, given without its length."""

    def broken(self, error: FrameError) -> None:
        """What comes is no frame; the connection is closed already."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is of no such class

    def data_received(self, data: bytes) -> None:
        if self._size:
            self._pieces.append(data)
            self._size += len(data)
            if self._size < self._wanted:
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._size = 0
        view, at, wanted = memoryview(data), 0, 4
        while len(data) - at >= 4 and not self.transport.is_closing():
            (length,) = _U32.unpack_from(data, at)
            if length > self.largest:
                self.transport.close()
                self.broken(FrameError(f"a frame of {length} bytes is too large"))
                return
            wanted = 4 + length
            if len(data) - at < wanted:
                break
            self.frame(view[at + 4 : at + wanted])
            at, wanted = at + wanted, 4
        if at < len(data):
            self._pieces.append(data[at:])
            self._size, self._wanted = len(data) - at, wanted

    def send(self, data: bytes) -> None:
        """Send bytes as a frame."""
        self.transport.write(_U32.pack(len(data)) + data)
