"""Files of labels: each is read once, whatever it is called, and none stops a monitor."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from drift.label_files import LabelFolder
from tests.unit.drift.monitor_world import World, store_state, stored_state
from tests.unit.drift.test_monitored_performance import PROFILE, block, scored

ROWS = scored(400, 1)


def text_of(first: int, last: int) -> str:
    lines = [f"replica-1-0-{row},{ROWS.true[row]}" for row in range(first, last)]
    return "\n".join(["request_id,label", *lines, ""])


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world with predictions that wait for labels."""
    (tmp_path / "labels").mkdir()
    world = World(tmp_path, PROFILE)
    world.blocks.write(block(0, ROWS))
    return world


def one_run(world: World) -> dict[str, int]:
    """A monitor from its start to its end; what it has counted of labels since ever."""
    monitor = world.monitor(labels=world.path / "labels")
    world.run(monitor)
    monitor.close()
    assert monitor._watch.labels is not None
    return monitor._watch.labels.counts


def test_a_name_that_is_used_again_is_another_file(world: World) -> None:
    file = world.path / "labels" / "labels.csv"
    for day in range(4):
        file.write_text(text_of(day * 100, day * 100 + 100))
        counts = one_run(world)
        assert (counts["joined"], counts["duplicates"]) == (day * 100 + 100, 0)
        world.now += 86_400_000
    kept = world.path / "labels" / "read"
    assert sorted(one.name for one in kept.iterdir()) == [
        "labels.2.csv",
        "labels.3.csv",
        "labels.4.csv",
        "labels.csv",
    ]
    assert (kept / "labels.3.csv").read_text() == text_of(200, 300)


def test_a_file_that_was_counted_but_not_put_away_is_not_read_again(world: World) -> None:
    file = world.path / "labels" / "labels.csv"
    file.write_text(text_of(0, 100))
    first = world.monitor(labels=world.path / "labels")
    first._count(world.now, 1)
    first._read_labels()
    first.prepare()
    first.state.database.commit()
    first.abandon()  # it died before the file was moved
    assert file.is_file()
    counts = one_run(world)
    assert (counts["joined"], counts["duplicates"]) == (100, 0)
    world.now += 1000
    world.blocks.write(block(1, scored(250, 2)))
    one_run(world)
    assert not file.exists()
    assert (world.path / "labels" / "read" / "labels.csv").is_file()


def test_a_file_that_takes_the_place_of_one_that_was_read_stays_to_be_read(tmp_path: Path) -> None:
    file, beside = tmp_path / "labels.csv", tmp_path / ".labels.csv"
    file.write_text("request_id,label\na,1\n")
    folder = LabelFolder(tmp_path)
    first = folder.unread([])
    assert first is not None
    beside.write_text("request_id,label\nb,1\n")  # as long, and of the same time
    os.utime(beside, ns=(0, file.stat().st_mtime_ns))
    beside.replace(file)
    assert folder.put_away([first[0]]) == []
    second = folder.unread([first[0]])
    assert second is not None
    assert [key for key, _ in second[1]] == ["b"]


def test_a_state_that_knew_names_alone_reads_what_is_there(world: World) -> None:
    one_run(world)
    state = json.loads(stored_state(world.path / "state"))
    store_state(world.path / "state", json.dumps({**state, "labels_read": ["labels.csv"]}))
    (world.path / "labels" / "labels.csv").write_text(text_of(0, 100))
    assert one_run(world)["joined"] == 100
    assert not (world.path / "labels" / "labels.csv").exists()


def test_refused_files_of_one_name_are_all_kept(tmp_path: Path) -> None:
    folder = LabelFolder(tmp_path)
    one, two = "request_id,label\n,1\n", "request_id,label\n,2\n"
    for text in (one, two):
        (tmp_path / "labels.csv").write_text(text)
        assert folder.unread([]) is None
    assert (tmp_path / "refused" / "labels.csv").read_text() == one
    assert (tmp_path / "refused" / "labels.2.csv").read_text() == two


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    os.mkfifo(tmp_path / "b.csv")
    (tmp_path / "c.csv").symlink_to(tmp_path / "nowhere")
    (tmp_path / "d.csv").write_text("request_id,label\na,1\n")
    found = LabelFolder(tmp_path).unread([])
    assert found is not None
    assert found[0].endswith("/d.csv")
