"""The quick lane to a model on the same node: batches over a unix socket.

`SocketModel` is the model's end. It listens on a socket in a folder that only this user can enter,
tells everybody who connects what the model is (`Hello`), and answers frames in order. `SocketLane`
is the listener's end: one connection, one batch at a time, usable as the lane of a `Batcher`.

A model process that dies closes its connections, so everything that was on its way fails at once
(`LaneLostError`) and can be asked elsewhere.

Example::

    model = await SocketModel.start(path, scorer)
    lane = await SocketLane.connect(path)
    answers = await lane([rows, Raw("text/csv", b"…")])
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import struct
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from governance.errors import GovernanceError
from serve.answer import Answer
from serve.decode import Array, Layout
from serve.frames import (
    FrameError,
    Raw,
    pack_answers,
    pack_requests,
    unpack_answers,
    unpack_requests,
)
from serve.scoring import Identity, Scorer

__all__ = [
    "DECODED_BY_LISTENER",
    "UNANSWERED",
    "Hello",
    "LaneLostError",
    "SocketLane",
    "SocketModel",
    "answer_frame",
    "private_folder",
]

UNANSWERED = 0
"""Status of a request whose rows the model did not take: it is sent again as it came."""

DECODED_BY_LISTENER = 256 << 10
"""Bytes of a body up to which the listener decodes it; larger ones go to the model as they came."""

_U32 = struct.Struct("<I")
_LIMIT = 1 << 30  # bytes of one frame


class LaneLostError(GovernanceError):
    """The model's process is gone, or does not speak as agreed; ask another."""

    code = "LANE_LOST"
    http_status = 503


@dataclass(frozen=True, slots=True)
class Hello:
    """What a model says of itself.

    Args:
        identity: Named in each answer's headers.
        layout: What its rows look like; None when every request goes as it came.
        batchable: Whether rows of different requests may be predicted together.
        pid: Its process.
    """

    identity: Identity
    layout: Layout | None
    batchable: bool
    pid: int

    @classmethod
    def of(cls, scorer: Scorer) -> Hello:
        return cls(scorer.identity, scorer.layout, scorer.batchable, os.getpid())

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Hello:
        """Inverse of ``to_json``.

        Raises:
            FrameError: malformed.
        """
        try:
            found = json.loads(data)
            layout = found["layout"]
            if layout is not None:
                names = layout["names"]
                layout = Layout(
                    layout["dtype"],
                    None if names is None else tuple(names),
                    tuple(layout["shape"]),
                    layout["tensor"],
                )
            return cls(Identity(**found["identity"]), layout, found["batchable"], found["pid"])
        except (KeyError, TypeError, ValueError) as error:
            raise FrameError(f"not a greeting: {error}") from error


def private_folder(path: Path) -> Path:
    """A folder for sockets that nobody else may enter; made if missing.

    Raises:
        GovernanceError: it belongs to somebody else, or others may enter it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat(follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise GovernanceError(
            f"{path} is no folder of this user's alone",
            "remove it, or name another with CHANCERY_SERVE_SOCKETS",
        )
    return path


def answer_frame(scorer: Scorer, frame: memoryview) -> bytes:
    """The answers to a frame of requests, given without its length.

    What came whole only because it is large is decoded here, where no other client waits for it.

    Raises:
        FrameError: malformed.
    """
    items = unpack_requests(frame, scorer.layout)
    decoded = [_decoded(scorer, item) for item in items]
    bodies = iter(scorer.score([rows for rows in decoded if rows is not None]))
    answers = []
    for item, rows in zip(items, decoded, strict=True):
        body = None if rows is None else next(bodies)
        if body is not None:
            answers.append(scorer.succeeded(body))
        elif isinstance(item, Raw):
            answers.append(scorer.answer_exactly(item.content_type, item.body))
        else:
            answers.append(Answer(UNANSWERED, b"", b""))
    return pack_answers(answers)


def _decoded(scorer: Scorer, item: Array | Raw) -> Array | None:
    if not isinstance(item, Raw):
        return item
    if len(item.body) <= DECODED_BY_LISTENER:
        return None  # the listener tried
    return scorer.decoder.decode(item.content_type, item.body)


class SocketModel:
    """The model's end of the lane; runs on one event loop, and asks the model there.

    Args:
        path: Where it listens.
        scorer: Answers.
    """

    def __init__(self, path: Path, scorer: Scorer) -> None:
        self.path = path
        self._scorer = scorer
        self._server: asyncio.Server | None = None
        self._busy_since: float | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self.batches = 0

    @classmethod
    async def start(cls, path: Path, scorer: Scorer) -> SocketModel:
        """Listen at ``path``; a socket that lies there from before is replaced.

        The socket appears under its name only when it listens: whoever finds it and is refused
        knows that its process is dead.
        """
        model = cls(path, scorer)
        hidden = path.with_suffix(".new")
        hidden.unlink(missing_ok=True)
        model._server = await asyncio.start_unix_server(model._serve, str(hidden), backlog=64)
        hidden.rename(path)
        return model

    @property
    def busy_s(self) -> float:
        """Seconds since the model was asked what it is answering now; 0.0 when idle."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def answer(self, frame: bytes) -> bytes:
        """The answers to a frame of requests, given without its length; on the model's loop.

        Raises:
            FrameError: malformed.
        """
        self._busy_since = time.monotonic()
        try:
            return answer_frame(self._scorer, memoryview(frame))
        finally:
            self._busy_since = None
            self.batches += 1

    async def close(self) -> None:
        """Answer what was asked, accept nobody any more, and hang up."""
        self.path.unlink(missing_ok=True)
        if self._server is not None:
            self._server.close()
        for writer in list(self._connections):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            _send(writer, Hello.of(self._scorer).to_json())
            while True:
                writer.write(self.answer(await _receive(reader)))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, FrameError):
            pass  # the other end is gone, or does not speak as agreed
        finally:
            self._connections.discard(writer)
            writer.close()


class SocketLane:
    """The listener's end: one connection to one model process.

    Args:
        reader: Of the connection.
        writer: Of the connection.
        hello: What the model said of itself.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hello: Hello
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.hello = hello
        self._closed = False

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""
        return self._closed or self._reader.at_eof()

    @classmethod
    async def connect(cls, path: Path, timeout_s: float = 5.0) -> SocketLane:
        """Connect to the model that listens at ``path``.

        Raises:
            LaneLostError: nobody listens there, or not another process of this user.
        """
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 20)
                try:
                    _check_peer(writer)
                    return cls(reader, writer, Hello.from_json(await _receive(reader)))
                except BaseException:
                    writer.close()
                    raise
        except (OSError, asyncio.IncompleteReadError, FrameError, TimeoutError) as error:
            raise LaneLostError(f"no model answers at {path}: {error!r}") from error

    async def __call__(self, batch: list[Array | Raw]) -> Sequence[Answer]:
        """Answers to a batch.

        An answer of status 0 means: send this request again as it came.

        Raises:
            LaneLostError: the connection broke.
        """
        if self.lost:
            raise LaneLostError("the model's process is gone")
        try:
            self._writer.write(pack_requests(batch))
            await self._writer.drain()
            answers = unpack_answers(memoryview(await _receive(self._reader)))
        except (OSError, asyncio.IncompleteReadError, FrameError) as error:
            self.close()
            raise LaneLostError(f"the model's process is gone: {error!r}") from error
        except asyncio.CancelledError:
            self.close()  # an answer may still come, and would be taken for the next one's
            raise
        if len(answers) != len(batch):
            self.close()
            raise LaneLostError(f"{len(answers)} answers came for {len(batch)} requests")
        return answers

    def close(self) -> None:
        """Hang up."""
        self._closed = True
        self._writer.close()


def _check_peer(writer: asyncio.StreamWriter) -> None:
    """Only a process of this user may answer (``SO_PEERCRED``, where the system has it)."""
    connection = writer.get_extra_info("socket")
    if not hasattr(socket, "SO_PEERCRED"):
        return
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", found)
    if uid != os.getuid():
        raise FrameError(f"the process that listens belongs to user {uid}")


def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(_U32.pack(len(data)) + data)


async def _receive(reader: asyncio.StreamReader) -> bytes:
    (length,) = _U32.unpack(await reader.readexactly(4))
    if length > _LIMIT:
        raise FrameError(f"a frame of {length} bytes is too large")
    return await reader.readexactly(length)
