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
from typing import TYPE_CHECKING

from governance.errors import GovernanceError
from serve.answer import Answer
from serve.decode import Array, Layout
from serve.frames import (
    FrameError,
    Item,
    Named,
    Raw,
    Traced,
    pack_answers,
    pack_requests,
    unpack_answers,
    unpack_requests,
)
from serve.scoring import Identity, Scorer
from serve.stream import FrameProtocol

if TYPE_CHECKING:
    from serve.tracing import Tracing

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
        traces: Whether it takes traced requests (``serve.frames``).
        records: Whether it wants requests' ids.
    """

    identity: Identity
    layout: Layout | None
    batchable: bool
    pid: int
    traces: bool = False
    records: bool = False

    @classmethod
    def of(cls, scorer: Scorer, *, traces: bool = False) -> Hello:
        return cls(
            scorer.identity,
            scorer.layout,
            scorer.batchable,
            os.getpid(),
            traces,
            scorer.recorder is not None,
        )

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
            return cls(
                Identity(**found["identity"]),
                layout,
                found["batchable"],
                found["pid"],
                found.get("traces", False),
                found.get("records", False),
            )
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


def answer_frame(scorer: Scorer, frame: memoryview, tracing: Tracing | None = None) -> bytes:
    """The answers to a frame of requests, given without its length.

    What came whole only because it is large is decoded here, where no other client waits for it.

    Raises:
        FrameError: malformed.
    """
    found = unpack_requests(frame, scorer.layout)
    named = [one.item if isinstance(one, Traced) else one for one in found]
    items = [one.item if isinstance(one, Named) else one for one in named]
    ids = None
    if scorer.recorder is not None:
        ids = [one.request_id if isinstance(one, Named) else "" for one in named]
    if tracing is None or all(not isinstance(one, Traced) for one in found):
        return pack_answers(_answers(scorer, items, ids))
    begun_ns = time.time_ns()
    answers = _answers(scorer, items, ids)
    for one, answer in zip(found, answers, strict=True):
        if isinstance(one, Traced):
            _told(tracing, scorer, one, answer, len(found), begun_ns)
    return pack_answers(answers)


def _answers(
    scorer: Scorer, items: Sequence[Array | Raw], ids: Sequence[str] | None
) -> list[Answer]:
    """``ids``: of each request, where they are recorded."""
    decoded = [_decoded(scorer, item) for item in items]
    known = None
    if ids is not None:
        known = [name for name, rows in zip(ids, decoded, strict=True) if rows is not None]
    bodies = iter(scorer.score([rows for rows in decoded if rows is not None], known))
    answers = []
    for place, (item, rows) in enumerate(zip(items, decoded, strict=True)):
        body = None if rows is None else next(bodies)
        if body is not None:
            answers.append(scorer.succeeded(body))
        elif isinstance(item, Raw):
            request_id = "" if ids is None else ids[place]
            answers.append(scorer.answer_exactly(item.content_type, item.body, request_id))
        else:
            answers.append(Answer(UNANSWERED, b"", b""))
    return answers


def _told(
    tracing: Tracing, scorer: Scorer, asked: Traced, answer: Answer, together: int, begun_ns: int
) -> None:
    """The span of a request's prediction, which was the whole batch's."""
    above = {"traceparent": asked.traceparent, "tracestate": asked.tracestate}
    here = tracing.begin("predict", above, begun_ns)
    identity = scorer.identity
    request = asked.item.item if isinstance(asked.item, Named) else asked.item
    here.note(
        model=identity.model,
        version=identity.version,
        signer=identity.signer,
        run_id=identity.run_id,
        batch_size=together,
        rows=None if isinstance(request, Raw) else len(request),
        exactly=isinstance(request, Raw),
        pid=os.getpid(),
    )
    if answer.status == UNANSWERED:
        here.note(error="the rows were not taken: the request is sent again as it came")
    else:
        here.note_status(answer.status)
    here.span.end()


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
        tracing: Makes spans of what is traced; None: of nothing.
    """

    def __init__(self, path: Path, scorer: Scorer, tracing: Tracing | None = None) -> None:
        self.path = path
        self._scorer = scorer
        self._tracing = tracing
        self._server: asyncio.Server | None = None
        self._busy_since: float | None = None
        self._connections: set[_ModelEnd] = set()
        self.batches = 0

    @classmethod
    async def start(cls, path: Path, scorer: Scorer, tracing: Tracing | None = None) -> SocketModel:
        """Listen at ``path``; a socket that lies there from before is replaced.

        The socket appears under its name only when it listens: whoever finds it and is refused
        knows that its process is dead.
        """
        model = cls(path, scorer, tracing)
        hidden = path.with_suffix(".new")
        hidden.unlink(missing_ok=True)
        greeting = Hello.of(scorer, traces=tracing is not None).to_json()
        loop = asyncio.get_running_loop()
        model._server = await loop.create_unix_server(
            lambda: _ModelEnd(model, model._connections, greeting), str(hidden), backlog=64
        )
        hidden.rename(path)
        return model

    @property
    def busy_s(self) -> float:
        """Seconds since the model was asked what it is answering now; 0.0 when idle."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def answer(self, frame: bytes | memoryview) -> bytes:
        """The answers to a frame of requests, given without its length; on the model's loop.

        Raises:
            FrameError: malformed.
        """
        self._busy_since = time.monotonic()
        try:
            return answer_frame(self._scorer, memoryview(frame), self._tracing)
        finally:
            self._busy_since = None
            self.batches += 1

    async def close(self, patience_s: float = 0.0) -> None:
        """Accept nobody any more, answer what is asked until all have hung up, and hang up.

        Args:
            patience_s: Seconds that listeners have to see that the socket is gone and to leave;
                what they sent and was not read when the connection ends is lost.
        """
        self.path.unlink(missing_ok=True)
        if self._server is not None:
            self._server.close()
        until = time.monotonic() + patience_s
        while self._connections and time.monotonic() < until:
            await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.transport.close()


class _ModelEnd(FrameProtocol):
    """One listener's connection, as the model sees it."""

    def __init__(self, model: SocketModel, others: set[_ModelEnd], greeting: bytes) -> None:
        super().__init__()
        self._model = model
        self._others = others
        self._greeting = greeting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._others.add(self)
        self.send(self._greeting)

    def connection_lost(self, exc: Exception | None) -> None:
        self._others.discard(self)

    def frame(self, frame: memoryview) -> None:
        try:
            answers = self._model.answer(frame)
        except FrameError:  # the other end does not speak as agreed
            self.transport.close()
        except BaseException:
            self.transport.close()
            raise
        else:
            self.transport.write(answers)

    def pause_writing(self) -> None:
        self.transport.pause_reading()  # who does not fetch answers is asked nothing more

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class SocketLane(FrameProtocol):
    """The listener's end: one connection to one model process, one batch at a time.

    Attributes:
        hello: What the model said of itself.
    """

    hello: Hello

    def __init__(self) -> None:
        super().__init__()
        self._closed = False
        # What is waited for: first the greeting, then the answers to the batch that is out.
        self._awaited: asyncio.Future[memoryview] | None
        self._awaited = asyncio.get_running_loop().create_future()

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""
        return self._closed

    @classmethod
    async def connect(cls, path: Path, timeout_s: float = 5.0) -> SocketLane:
        """Connect to the model that listens at ``path``.

        Raises:
            LaneLostError: nobody listens there, or not another process of this user.
        """
        try:
            async with asyncio.timeout(timeout_s):
                loop = asyncio.get_running_loop()
                _, lane = await loop.create_unix_connection(cls, str(path))
                try:
                    _check_peer(lane.transport)
                    lane.hello = Hello.from_json(bytes(await lane._frame_that_comes()))
                except BaseException:
                    lane._awaited = None
                    lane.close()
                    raise
                return lane
        except (OSError, FrameError, TimeoutError) as error:
            raise LaneLostError(f"no model answers at {path}: {error!r}") from error

    async def __call__(self, batch: list[Item]) -> Sequence[Answer]:
        """Answers to a batch.

        An answer of status 0 means: send this request again as it came.

        Raises:
            LaneLostError: the connection broke.
        """
        if self._closed:
            raise LaneLostError("the model's process is gone")
        if self._awaited is not None:
            raise RuntimeError("a batch is out already")
        self._awaited = asyncio.get_running_loop().create_future()
        self.transport.write(pack_requests(batch))
        try:
            answers = unpack_answers(await self._frame_that_comes())
        except (OSError, FrameError) as error:
            self.close()
            raise LaneLostError(f"the model's process is gone: {error!r}") from error
        except asyncio.CancelledError:
            self.close()  # an answer may still come, and would be taken for the next one's
            raise
        if len(answers) != len(batch):
            self.close()
            raise LaneLostError(f"{len(answers)} answers came for {len(batch)} requests")
        return answers

    async def _frame_that_comes(self) -> memoryview:
        assert self._awaited is not None
        try:
            return await self._awaited
        finally:
            self._awaited = None

    def close(self) -> None:
        """Hang up."""
        self._closed = True
        self.transport.close()

    def frame(self, frame: memoryview) -> None:
        if self._awaited is None or self._awaited.done():
            self.close()  # nobody asked: from here on no answer can be trusted to be its batch's
        else:
            self._awaited.set_result(frame)

    def broken(self, error: FrameError) -> None:
        self._end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or ConnectionResetError("the connection ended"))

    def _end(self, error: Exception) -> None:
        self._closed = True
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_exception(error)


def _check_peer(transport: asyncio.Transport) -> None:
    """Only a process of this user may answer (``SO_PEERCRED``, where the system has it)."""
    connection = transport.get_extra_info("socket")
    if not hasattr(socket, "SO_PEERCRED"):
        return
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", found)
    if uid != os.getuid():
        raise FrameError(f"the process that listens belongs to user {uid}")
