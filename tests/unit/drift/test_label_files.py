"""Files of labels: each is read once, whatever it is called, and none stops a monitor."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift.blocks import Block
from drift.label_files import LabelFolder, labels_of
from governance.errors import MalformedRequestError
from tests.unit.drift.monitor_world import World, block_of, store_state, stored_state
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


# -- files that cannot be read


@pytest.mark.parametrize(
    "row",
    [
        '{"request_id": "a", "label": 1, "row": 1e999}',
        '{"request_id": "a", "label": 1, "row": -1}',
        '{"request_id": "a", "label": 1, "row": 0.5}',
        '{"request_id": "a", "label": 1, "row": [0]}',
        '{"request_id": "a", "label": 1, "row": %s}' % ("9" * 400),
        '{"request_id": NaN, "label": 1}',
        '{"request_id": "a"}',
        "[" * 100_000,
    ],
)
def test_a_line_that_says_nothing_puts_its_file_aside(tmp_path: Path, row: str) -> None:
    (tmp_path / "a.jsonl").write_text(row + "\n")
    assert LabelFolder(tmp_path).unread([]) is None
    assert (tmp_path / "refused" / "a.jsonl").is_file()


def test_a_file_without_the_columns_is_refused_also_without_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,true\n")
    (tmp_path / "b.csv").write_text("")
    assert LabelFolder(tmp_path).unread([]) is None
    assert len(list((tmp_path / "refused").iterdir())) == 2


@pytest.mark.parametrize(
    "row",
    [
        {"request_id": "\ud800" * 300, "label": 1},
        {"request_id": "a\ud800", "label": 1, "row": 1},
        {"request_id": "replica-1-0-0", "label": "\ud800" * 300},
        {"request_id": "replica-1-0-0", "label": "\ud800"},
        {"request_id": "replica-1-0-0", "label": [1, {"a": 2}]},
        {"request_id": "replica-1-0-0", "label": 10**400},
        {"request_id": 10**400, "label": True},
    ],
)
def test_odd_texts_and_numbers_stop_no_monitor(world: World, row: dict[str, object]) -> None:
    (world.path / "labels" / "a.jsonl").write_text(json.dumps(row))
    counts = one_run(world)
    assert sum(counts.values()) == 1
    assert (world.path / "labels" / "read" / "a.jsonl").is_file()
    assert one_run(world) == counts


def test_a_file_that_can_neither_be_read_nor_moved_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.csv").write_text("nothing\n")
    (tmp_path / "b.csv").write_text("request_id,label\na,1\n")
    (tmp_path / "refused").write_text("a file where the folder should be")
    folder = LabelFolder(tmp_path)
    for _ in range(2):
        found = folder.unread([])
        assert found is not None
        assert found[0].endswith("/b.csv")
    assert caplog.text.count("left alone") == 1


def test_a_file_of_too_many_rows_is_refused_before_they_are_made(tmp_path: Path) -> None:
    ones = pa.table({"request_id": pa.array(np.zeros(1_000_000, np.int8)), "label": ["x"] * 10**6})
    with pq.ParquetWriter(tmp_path / "a.parquet", ones.schema, compression="zstd") as writer:
        for _ in range(6):
            writer.write_table(ones)
    with pytest.raises(MalformedRequestError, match="more than 5000000 rows"):
        labels_of(tmp_path / "a.parquet")


def test_rows_that_share_a_long_text_take_no_room_of_their_own(tmp_path: Path) -> None:
    rows = 100_000
    ids = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), ["a" * 100_000])
    columns = {"request_id": ids, "label": np.ones(rows, np.int8), "row": np.arange(rows)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = labels_of(tmp_path / "a.parquet")
    assert len(found) == rows
    assert found[0][1] == 1
    assert len({key for key, _ in found}) == rows
    assert max(len(key) for key, _ in found) < 100


def test_columns_of_lists_are_no_labels(tmp_path: Path) -> None:
    pq.write_table(pa.table({"request_id": ["a"], "label": [[1]]}), tmp_path / "a.parquet")
    with pytest.raises(MalformedRequestError, match="no single values"):
        labels_of(tmp_path / "a.parquet")
    pq.write_table(pa.table({"request_id": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(MalformedRequestError, match="columns request_id and label"):
        labels_of(tmp_path / "b.parquet")


# -- values that a model's clients send


def odd(rows: int, first: object, second: object, score: object = None) -> Block:
    """A block whose groups begin with two odd values, and whose scores with one."""
    made = scored(rows, 3)
    sex = made.sex.copy()
    sex[0], sex[1 : rows // 3] = first, second
    said = np.where(np.arange(rows) < rows // 3, 0, made.said)
    p = made.p.astype(object)
    p[0] = p[0] if score is None else score
    inputs, outputs = {"x": made.x, "sex": sex}, {"p": p, "said": said}
    return block_of(0, rows=rows, ids=True, inputs=inputs, outputs=outputs)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("text", ["\ud800", "\ud800" * 300])
def test_groups_with_lone_surrogates_reach_the_report(
    tmp_path: Path, text: str, labels: bool
) -> None:
    world = World(tmp_path, PROFILE)
    world.blocks.write(odd(3000, 5, text))
    world.run(world.monitor(labels=tmp_path / "labels" if labels else None))
    assert sum(report.counts.rows for report in world.notes.reports) == 3000
    reasons = [text for report in world.notes.reports for text in report.verdict.besides]
    assert any("selection 0.000 (?" in text for text in reasons)


def test_a_score_beyond_every_float_is_no_number(tmp_path: Path) -> None:
    world = World(tmp_path, PROFILE)
    world.blocks.write(odd(500, "f", "m", score=10**400))
    world.run(world.monitor())
    assert [report.counts.rows for report in world.notes.reports] == [500]
