"""The picture of a rollout says what happened, and can be drawn of every rollout."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from governance.errors import RefusedError
from serve.config import CanaryConfig
from serve.course import Course
from serve.intervals import wilson
from serve.plot import drawn, headline, story_of
from serve.rollout_page import page
from tests.unit.serve.stories import Told, told_of


def words_of(svg: bytes) -> str:
    root = ElementTree.fromstring(svg)
    return "\n".join((node.text or "").strip() for node in root.iter())


@pytest.mark.parametrize("kind", ["verifying", "canary", "promoted", "rolled_back", "quarantined"])
def test_every_rollout_can_be_drawn(kind: str) -> None:
    told = told_of(kind)
    words = words_of(drawn(told.story, "svg"))
    assert headline(told.story) in words
    for part in ("Who gets the traffic", "% of requests", "milliseconds", "stable", "canary"):
        assert part in words
    if kind in ("promoted", "rolled_back", "quarantined", "aborted"):
        assert kind.replace("_", " ") in headline(told.story)
        assert f"{kind.replace('_', ' ')} after" in words
        first = str(told.decisions[-1].document["explanation"][0]).split()[:4]
        assert " ".join(first) in words.replace("\n", " ")


def test_a_rollout_that_nobody_took_up_yet_has_no_picture() -> None:
    told = told_of("pending")
    with pytest.raises(RefusedError, match="nothing was kept"):
        story_of(told.record(), told.decisions)
    with pytest.raises(RefusedError):
        story_of(told.record(state=Course().to_json()), ())
    with pytest.raises(RefusedError):
        story_of(told.record(state=None), ())


def test_a_png_is_large_enough_to_read_and_the_same_twice() -> None:
    story = told_of("rolled_back").story
    data = drawn(story)
    assert data.startswith(b"\x89PNG\r\n")
    width, height = (int.from_bytes(data[at : at + 4]) for at in (16, 20))
    assert (width, height) == (1100, 1320)
    assert drawn(story) == data


def test_one_point_and_many_tests_are_drawn_too() -> None:
    told = told_of("verifying")
    assert told.series is not None
    short = replace(told.story, series=replace(told.series, points=told.series.points[:1]))
    assert drawn(short, "pdf").startswith(b"%PDF")
    many = CanaryConfig.model_validate_json(
        '{"version":1,"analysis":{"metrics":['
        + ",".join(
            f'{{"name":"m{n}","kind":"rate","source":"package.module:function"}}' for n in range(8)
        )
        + "]}}"
    )
    words = words_of(drawn(Told("verifying", many).story, "svg"))
    assert "metric.m7" in words


def test_only_the_decisions_of_the_rollout_are_in_its_story() -> None:
    told = told_of("aborted")
    other = replace(told.decisions[0], rollout_id="other")
    story = story_of(told.record(), [other, *told.decisions])
    assert [document["outcome"] for document in story.decisions] == [
        "started", "verified", "advanced", "aborted",
    ]  # fmt: skip


class Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_every_decision_and_no_markup_of_others() -> None:
    told = told_of("aborted")
    story = replace(told.story, route="<script>alert(1)</script>")
    words = Words()
    words.feed(page(story, {"steps": [5.0]}, drawn(story, "svg")).decode())
    assert "script" not in words.tags
    assert "svg" in words.tags
    for decision in told.decisions:
        for sentence in decision.document["explanation"]:
            assert str(sentence) in words.text
    assert '"steps"' in words.text


@pytest.mark.parametrize(
    ("events", "n", "low", "high"),
    [(0, 0, 0.0, 1.0), (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)],
)
def test_an_interval_is_wilsons(events: int, n: int, low: float, high: float) -> None:
    found = wilson(events, n)
    assert found == pytest.approx((low, high), abs=1e-4)
