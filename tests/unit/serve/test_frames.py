"""Batches travel as bytes and come back equal; anything else is refused, never misread."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from serve.answer import Answer
from serve.decode import Layout
from serve.frames import (
    FrameError,
    Raw,
    pack_answers,
    pack_requests,
    unpack_answers,
    unpack_requests,
)

LAYOUT = Layout("float32", None, (3, 2), tensor=True)

latin = st.text(st.characters(max_codepoint=255), max_size=40)
raws = st.builds(Raw, st.none() | latin, st.binary(max_size=200))
rows = stn.arrays("f4", st.tuples(st.integers(1, 4), st.just(3), st.just(2)))
answers = st.builds(
    Answer, st.integers(0, 65535), st.binary(max_size=200), st.binary(max_size=60), st.just(())
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Raw):
        return bool(one == other)
    return (
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    )


def inside(frame: bytes) -> memoryview:
    assert int.from_bytes(frame[:4], "little") == len(frame) - 4
    return memoryview(frame)[4:]


@given(st.lists(raws | rows, max_size=6))
def test_requests_come_back(items: list[Any]) -> None:
    found = unpack_requests(inside(pack_requests(items)), LAYOUT)
    assert len(found) == len(items)
    assert all(same(one, other) for one, other in zip(items, found, strict=True))


@given(st.lists(answers, max_size=6))
def test_answers_come_back(items: list[Answer]) -> None:
    assert unpack_answers(inside(pack_answers(items))) == items


def test_rows_that_do_not_lie_in_order_are_sent_in_order() -> None:
    turned = np.arange(6, dtype="f4").reshape(1, 2, 3).transpose(0, 2, 1)
    (found,) = unpack_requests(inside(pack_requests([turned])), LAYOUT)
    assert np.array_equal(found, turned)


@given(st.lists(raws | rows, min_size=1, max_size=3), st.data())
def test_a_truncated_frame_is_refused(items: list[Any], data: st.DataObject) -> None:
    frame = inside(pack_requests(items))
    cut = data.draw(st.integers(0, len(frame) - 1))
    with pytest.raises(FrameError):
        unpack_requests(frame[:cut], LAYOUT)


@given(st.lists(answers, min_size=1, max_size=3), st.data())
def test_a_truncated_answer_is_refused(items: list[Answer], data: st.DataObject) -> None:
    frame = inside(pack_answers(items))
    cut = data.draw(st.integers(0, len(frame) - 1))
    with pytest.raises(FrameError):
        unpack_answers(frame[:cut])


@given(st.binary(max_size=80))
def test_garbage_is_refused_or_means_something(garbage: bytes) -> None:
    for unpack in (unpack_answers, lambda frame: unpack_requests(frame, LAYOUT)):
        try:
            unpack(memoryview(garbage))
        except FrameError:
            continue


def test_what_follows_the_last_item_is_refused() -> None:
    with pytest.raises(FrameError, match="more in it"):
        unpack_requests(memoryview(pack_requests([Raw(None, b"x")])[4:] + b"!"), LAYOUT)
    with pytest.raises(FrameError, match="more in it"):
        unpack_answers(memoryview(pack_answers([Answer(200, b"x")])[4:] + b"!"))


@pytest.mark.parametrize("layout", [None, Layout("float32", None, (4,), tensor=True)])
def test_rows_of_another_layout_are_refused(layout: Layout | None) -> None:
    frame = pack_requests([np.zeros((1, 3, 2), "f4")])[4:]
    with pytest.raises(FrameError):
        unpack_requests(memoryview(frame), layout)


def test_a_content_type_longer_than_its_request_is_refused() -> None:
    frame = bytearray(pack_requests([Raw("a/b", b"")]))
    at = frame.index(b"a/b") - 2
    frame[at : at + 2] = (200).to_bytes(2, "little")
    with pytest.raises(FrameError):
        unpack_requests(memoryview(frame)[4:], LAYOUT)
