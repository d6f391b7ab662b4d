"""Frames come out whole, however their bytes arrive."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from serve.frames import FrameError
from serve.stream import FrameProtocol


class Transport:
    """Knows whether it was closed."""

    closed = False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


class Kept(FrameProtocol):
    def __init__(self) -> None:
        super().__init__()
        self.frames: list[bytes] = []
        self.errors: list[FrameError] = []
        made: Any = Transport()
        self.connection_made(made)

    def frame(self, frame: memoryview) -> None:
        self.frames.append(bytes(frame))

    def broken(self, error: FrameError) -> None:
        self.errors.append(error)


def framed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "little") + frame for frame in frames)


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(1, 30)))
def test_cuts_do_not_matter(frames: list[bytes], cuts: list[int]) -> None:
    kept, data, at = Kept(), framed(*frames), 0
    for cut in cuts:
        if at < len(data):
            kept.data_received(data[at : at + cut])
            at += cut
    if at < len(data):
        kept.data_received(data[at:])
    assert kept.frames == frames
    assert not kept.errors


def test_a_frame_that_is_too_large_ends_the_connection_before_it_is_read() -> None:
    kept = Kept()
    kept.largest = 10
    kept.data_received(framed(b"x" * 10, b"y" * 11)[:-5])
    assert kept.frames == [b"x" * 10]
    assert len(kept.errors) == 1
    assert kept.transport.is_closing()


def test_nothing_is_handed_over_after_the_end() -> None:
    class Once(Kept):
        def frame(self, frame: memoryview) -> None:
            super().frame(frame)
            self.transport.close()

    kept = Once()
    kept.data_received(framed(b"1", b"2"))
    assert kept.frames == [b"1"]


def test_it_sends_what_it_reads() -> None:
    async def test() -> None:
        kept, sent = Kept(), bytearray()
        kept.transport.write = sent.extend  # type: ignore[assignment, method-assign]
        kept.send(b"abc")
        kept.data_received(bytes(sent))
        assert kept.frames == [b"abc"]

    asyncio.run(test())
