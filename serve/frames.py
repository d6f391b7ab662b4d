"""How a batch of requests travels from the listener to a model, and the answers back.

One frame is one batch, the same on a unix socket and through a Ray handle. All integers are
little-endian::

    frame    = u32 length of what follows, u32 n, n × item
    request  = u8 0, u32 length, rows (the array's own bytes, C order, dtype and shape as agreed)
             | u8 1, u32 length, u16 length of content type + 1 (0: none), content type, body
             | u8 2, u32 length, u16 length of traceparent, traceparent, tracestate,
               and then one of the others: a request that is traced
             | u8 3, u32 length, request id, and then one of the first two: one that is recorded
    answer   = u16 status, u16 length, content type, u32 length, body

Rows are sent where the listener could decode the request; anything else goes as it came, for
MLflow's own code. Traces and ids go only to replicas whose greeting says that they take them.
Identity headers are not repeated in each answer: the listener knows whom it asks.

Example::

    frame = pack_requests([rows, Raw("text/csv", b"a,b\\n1,2")])
    items = unpack_requests(memoryview(frame)[4:], layout)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve.answer import Answer
from serve.decode import Array, Layout

__all__ = [
    "FrameError",
    "Item",
    "Named",
    "Raw",
    "Traced",
    "pack_answers",
    "pack_requests",
    "unpack_answers",
    "unpack_requests",
]

_U32 = struct.Struct("<I")
_ITEM = struct.Struct("<BI")
_U16 = struct.Struct("<H")
_ANSWER = struct.Struct("<HH")
_ROWS, _RAW, _TRACED, _NAMED = 0, 1, 2, 3


class FrameError(ValueError):
    """A frame that is not what ``pack_…`` writes."""


@dataclass(frozen=True, slots=True)
class Raw:
    """A request as it came, for MLflow's own code."""

    content_type: str | None
    body: bytes


@dataclass(slots=True)
class Named:
    """A request that is recorded under its id.

    Attributes:
        item: The request.
        request_id: As the client has it, or was told.
    """

    item: Array | Raw
    request_id: str


@dataclass(slots=True)
class Traced:
    """A request whose spans go on in the replica.

    Attributes:
        item: The request.
        traceparent: The span that it was sent from.
        tracestate: What others wrote into its trace.
        together: Requests in its batch, once it was sent.
    """

    item: Array | Raw | Named
    traceparent: str
    tracestate: str = ""
    together: int = 0


Item = Array | Raw | Named | Traced
"""A request of a batch."""


def _frame(parts: list[bytes], count: int) -> bytes:
    body = b"".join(parts)
    return b"".join((_U32.pack(len(body) + 4), _U32.pack(count), body))


def pack_requests(items: Sequence[Item]) -> bytes:
    """The frame of a batch of requests, its length in front; those traced learn of its size."""
    parts: list[bytes] = []
    for item in items:
        if isinstance(item, Traced):
            item.together = len(items)
            above = item.traceparent.encode("latin-1")
            part = _U16.pack(len(above)) + above + item.tracestate.encode("latin-1")
            parts += (_ITEM.pack(_TRACED, len(part)), part)
            item = item.item
        if isinstance(item, Named):
            name = item.request_id.encode("latin-1", "replace")
            parts += (_ITEM.pack(_NAMED, len(name)), name)
            item = item.item
        if isinstance(item, Raw):
            kind = None if item.content_type is None else item.content_type.encode("latin-1")
            head = _U16.pack(0) if kind is None else _U16.pack(len(kind) + 1) + kind
            parts += (_ITEM.pack(_RAW, len(head) + len(item.body)), head, item.body)
        else:
            rows = item.tobytes()
            parts += (_ITEM.pack(_ROWS, len(rows)), rows)
    return _frame(parts, len(items))


def unpack_requests(frame: memoryview, layout: Layout | None) -> list[Item]:
    """The requests of a frame, given without its length.

    Raises:
        FrameError: malformed, or rows that the layout has no place for.
    """
    items: list[Item] = []
    dtype = np.dtype(layout.dtype) if layout else None
    try:
        (count,) = _U32.unpack_from(frame)
        at = 4
        for _ in range(count):
            kind, part, at = _part(frame, at)
            above = None
            if kind == _TRACED:
                above = part
                kind, part, at = _part(frame, at)
            name = None
            if kind == _NAMED:
                name = bytes(part).decode("latin-1")
                kind, part, at = _part(frame, at)
            item: Array | Raw | Named
            if kind == _RAW:
                item = _unpack_raw(part)
            elif kind == _ROWS and layout is not None and dtype is not None:
                item = np.frombuffer(part, dtype).reshape(-1, *layout.shape)
            else:
                raise FrameError(f"a request of kind {kind} has no place here")
            if name is not None:
                item = Named(item, name)
            items.append(item if above is None else _unpack_traced(above, item))
    except (struct.error, ValueError) as error:
        raise FrameError(str(error)) from error
    if at != len(frame):
        raise FrameError("a frame has more in it than its requests")
    return items


def _part(frame: memoryview, at: int) -> tuple[int, memoryview, int]:
    """A kind, what follows it, and where the next one is."""
    kind, length = _ITEM.unpack_from(frame, at)
    at += _ITEM.size
    part = frame[at : at + length]
    if len(part) != length:
        raise FrameError("a request is cut off")
    return kind, part, at + length


def _unpack_traced(part: memoryview, item: Array | Raw | Named) -> Traced:
    (length,) = _U16.unpack_from(part)
    if 2 + length > len(part):
        raise FrameError("a trace is cut off")
    text = bytes(part[2:]).decode("latin-1")
    return Traced(item, text[:length], text[length:])


def _unpack_raw(part: memoryview) -> Raw:
    (length,) = _U16.unpack_from(part)
    if length == 0:
        return Raw(None, bytes(part[2:]))
    end = 2 + length - 1
    if end > len(part):
        raise FrameError("a content type is cut off")
    return Raw(bytes(part[2:end]).decode("latin-1"), bytes(part[end:]))


def pack_answers(answers: Sequence[Answer]) -> bytes:
    """The frame of a batch of answers, its length in front."""
    parts: list[bytes] = []
    for answer in answers:
        parts += (
            _ANSWER.pack(answer.status, len(answer.content_type)),
            answer.content_type,
            _U32.pack(len(answer.body)),
            answer.body,
        )
    return _frame(parts, len(answers))


def unpack_answers(frame: memoryview) -> list[Answer]:
    """The answers of a frame, given without its length.

    Raises:
        FrameError: malformed.
    """
    answers = []
    try:
        (count,) = _U32.unpack_from(frame)
        at = 4
        for _ in range(count):
            status, length = _ANSWER.unpack_from(frame, at)
            at += _ANSWER.size
            kind = bytes(frame[at : at + length])
            at += length
            (size,) = _U32.unpack_from(frame, at)
            at += 4
            body = bytes(frame[at : at + size])
            if len(kind) != length or len(body) != size:
                raise FrameError("an answer is cut off")
            at += size
            answers.append(Answer(status, body, kind))
    except struct.error as error:
        raise FrameError(str(error)) from error
    if at != len(frame):
        raise FrameError("a frame has more in it than its answers")
    return answers
