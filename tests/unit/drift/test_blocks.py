"""Blocks on disk: whole or absent, in order, and refused when they are not what they say."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import pickle
import re
import socket
import time
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, ipc

from drift.block_folder import BlockFile, BlockFolder, gaps
from drift.blocks import Block, from_arrow, to_arrow
from drift.spool import Spool
from governance.errors import (
    ConfigurationError,
    ConflictError,
    MalformedRequestError,
    UnreachableError,
)


def block(sequence: int = 0, source: str = "r1", start: int = 1000, **change: Any) -> Block:
    rows = 3
    facts: dict[str, Any] = {
        "id": f"{crc32(repr((source, sequence, start)).encode()):032x}",
        "source": source,
        "sequence": sequence,
        "model": "fraud",
        "version": "7",
        "deployment": "shop",
        "time_ms": np.arange(start, start + rows, dtype=np.int64),
        "inputs": {
            "number": np.array([1.5, math.nan, math.inf]),
            "whole": np.array([1, -(2**62), 3]),
            "flag": np.array([True, False, True]),
            "text": np.array(["ä", None, ""], dtype=object),
            "mixed": np.array([1, "one", {"k": [1.5, None]}], dtype=object),
            "none": np.array([None, None, None], dtype=object),
        },
        "outputs": {"prediction": np.array([0.1, 0.2, 0.3])},
        "request_id": np.array(["a", "a", "b"], dtype=object),
        "request_row": np.array([0, 1, 0]),
        "dropped": 4,
        "sampled_out": 5,
        "malformed": 6,
        "masked": ("email",),
        "extra": ("shoe",),
    }
    return Block(**{**facts, **change})


def same(a: Block, b: Block) -> bool:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, np.ndarray):
            return (value.dtype.str, repr(value.tolist()))
        return value

    names = [field.name for field in dataclasses.fields(Block)]
    return all(plain(getattr(a, n)) == plain(getattr(b, n)) for n in names)


# -- the file


def test_a_block_comes_back_as_it_was() -> None:
    assert same(from_arrow(to_arrow(block())), block())
    without = block(request_id=None, inputs={}, outputs={})
    assert same(from_arrow(to_arrow(without)), without)


def test_anybodys_tools_read_it() -> None:
    table = feather.read_table(io.BytesIO(to_arrow(block())))
    assert table.column("input:text").to_pylist() == ["ä", None, ""]
    assert table.column("output:prediction").to_pylist() == [0.1, 0.2, 0.3]


def test_texts_that_are_no_unicode_are_told() -> None:
    column = np.array(["a\ud800", "b", None], dtype=object)
    found = from_arrow(to_arrow(block(inputs={"t": column})))
    assert found.inputs["t"].tolist() == ["a\\ud800", "b", None]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_block_is_refused(share: float) -> None:
    data = to_arrow(block())
    with pytest.raises(MalformedRequestError, match=r"x\.arrow is not a readable block"):
        from_arrow(data[: int(len(data) * share)], "x.arrow")


def test_a_changed_byte_is_refused() -> None:
    data = to_arrow(block())
    for place in range(0, len(data), 7):
        changed = bytearray(data)
        changed[place] ^= 0x55
        with pytest.raises(MalformedRequestError):
            from_arrow(bytes(changed))


def test_a_changed_byte_is_refused_though_somebody_computed_the_sum_anew() -> None:
    """Or changes a value; whatever it is, nothing is read that is not in the file."""
    data, known = to_arrow(block()), f"{block().id}:".encode()
    (told,) = set(re.findall(known + b"([0-9a-f]{8})", data))
    blank = data.replace(known + told, known + b"00000000")
    refused = 0
    for place in range(0, len(blank), 7):
        changed = bytearray(blank)
        changed[place] ^= 0x55
        again = bytes(changed).replace(known + b"00000000", known + b"%08x" % crc32(changed))
        try:
            assert from_arrow(again).rows == 3
        except MalformedRequestError:
            refused += 1
    assert refused > 100


def test_a_compressed_block_is_refused_before_it_is_unpacked() -> None:
    """A few bytes that claim to be many."""
    for codec in ("lz4", "zstd"):
        with pytest.raises(MalformedRequestError, match="compressed"):
            from_arrow(rewritten(codec=codec))


def rewritten(**change: Any) -> bytes:
    """A block's file whose facts were changed; ``columns`` replaces or adds columns."""
    table, codec = feather.read_table(io.BytesIO(to_arrow(block()))), change.pop("codec", None)
    columns = {name: table.column(name) for name in table.column_names}
    columns.update(change.pop("columns", {}))
    document = {**json.loads(table.schema.metadata[b"chancery.block"]), **change}
    document = {name: value for name, value in document.items() if value is not ...}
    columns = {name: value for name, value in columns.items() if value is not ...}
    if "crc32" not in change:
        document["crc32"] = f"{document.get('id')}:00000000"
    made = pa.table(columns).replace_schema_metadata({b"chancery.block": json.dumps(document)})
    data = arrow_file(made, codec)
    start = f"{document.get('id')}:".encode()
    return data.replace(start + b"00000000", start + b"%08x" % crc32(data))


def arrow_file(table: Any, codec: str | None = None) -> bytes:
    sink = io.BytesIO()
    with ipc.new_file(sink, table.schema, options=ipc.IpcWriteOptions(compression=codec)) as file:
        file.write_table(table.combine_chunks())
    return sink.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        {"format": "chancery.block/v9"},
        {"sequence": -1}, {"sequence": "0"}, {"sequence": True}, {"sequence": ...},
        {"source": "../../etc"}, {"source": 7}, {"id": "x"}, {"model": None},
        {"rows": 2}, {"first_ms": 0}, {"dropped": 1.5}, {"masked": 5},
        {"json": ["input:text"]}, {"crc32": ...}, {"crc32": 5}, {"crc32": "0" * 8},
        {"columns": {"time_ms": ...}},
        {"columns": {"time_ms": pa.array([1000, None, 1002])}},
        {"columns": {"time_ms": pa.array([1000.0, 1001.0, 1002.0])}},
        {"columns": {"input:whole": pa.array([1, None, 3])}},
        {"columns": {"input:list": pa.array([[1], [2], [3]])}},
        {"columns": {"input:bytes": pa.array([b"1", b"2", b"3"])}},
        {"columns": {"request_id": pa.array([1, 2, 3])}},
        {"columns": {"request_id": pa.array(["1", "{}", "[]"])}, "json": ["request_id"]},
    ],
    ids=lambda change: re.sub(r" object at 0x[0-9a-f]+", "", str(change)),
)  # fmt: skip
def test_facts_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedRequestError, match="not a readable block"):
        from_arrow(rewritten(**change))


def test_a_rewritten_block_without_changes_is_read() -> None:
    assert same(from_arrow(rewritten()), block())


def test_values_that_python_chokes_on_are_read_as_what_it_bears() -> None:
    """A client sends them, and nobody else's rows are to suffer for it."""
    huge, short, deep = "1" + "0" * 5000, "1" + "0" * 30, "[" * 900 + "]" * 900
    found = from_arrow(
        rewritten(columns={"input:mixed": pa.array([huge, short, deep])}, json=["input:mixed"])
    )
    assert found.inputs["mixed"].tolist() == [math.inf, 10**30, "lists within lists"]
    flat = json.dumps([0] * 100 + [{"k": [1]}] * 100)
    found = from_arrow(
        rewritten(columns={"input:mixed": pa.array([flat] * 3)}, json=["input:mixed"])
    )
    assert found.inputs["mixed"][2] == json.loads(flat)


@pytest.mark.parametrize(
    "data",
    [b"", b"ARROW1\0\0", b"ARROW1\0\0" + b"\xff" * 99, pickle.dumps({"a": 1}), bytes(1000), b"{}"],
    ids=["empty", "magic", "no message", "pickle", "zeros", "json"],
)
def test_what_is_no_block_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        from_arrow(data)


def test_a_table_of_something_else_is_refused() -> None:
    with pytest.raises(MalformedRequestError, match=r"chancery\.block"):
        from_arrow(arrow_file(pa.table({"a": [1]})))


@pytest.mark.parametrize(
    "change",
    [
        {"source": "a~b"}, {"source": ""}, {"source": ".x"}, {"id": "1"}, {"sequence": -1},
        {"time_ms": np.zeros(0, dtype=np.int64)}, {"time_ms": np.zeros(2, dtype=np.int64)},
        {"request_row": np.zeros(1, dtype=np.int64)}, {"dropped": -1},
    ],
    ids=str,
)  # fmt: skip
def test_a_block_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        block(**change)


# -- the folder


def test_blocks_are_read_in_order_whatever_the_clock_did(tmp_path: Path) -> None:
    folder = BlockFolder(tmp_path / "new")
    assert folder.entries() == []
    times = {"r1": [1000, 5000, 2000, 6000], "r2": [1500, 5500]}
    for source, starts in reversed(times.items()):
        for sequence, start in reversed(list(enumerate(starts))):
            folder.write(block(sequence, source, start))
    order = [(entry.source, entry.sequence) for entry in folder.entries()]
    assert order == [("r1", 0), ("r2", 0), ("r1", 1), ("r1", 2), ("r2", 1), ("r1", 3)]
    rest = folder.entries(after={"r1": 2, "r2": 1})
    assert [(entry.source, entry.sequence) for entry in rest] == [("r1", 3)]
    assert same(folder.read(rest[0]), block(3, "r1", 6000))


def test_the_same_block_twice_is_one_and_another_is_refused(tmp_path: Path) -> None:
    folder = BlockFolder(tmp_path / "blocks")
    entry = folder.write(block())
    before = (folder.path / entry.name).stat().st_mtime_ns
    assert folder.write(block()) == entry
    assert (folder.path / entry.name).stat().st_mtime_ns == before
    with pytest.raises(ConflictError, match="another block 0 of r1"):
        folder.write(block(id="f" * 32))
    assert len(list(folder.path.iterdir())) == 1, "nothing half done is left"


def test_gaps_are_seen() -> None:
    entries = [BlockFile.of(block(n, s)) for s, n in (("a", 0), ("a", 3), ("a", 4), ("b", 7))]
    assert gaps(entries) == {"a": 2, "b": 7}
    assert gaps(entries, after={"b": 6}) == {"a": 2}


def test_half_written_and_foreign_files_are_not_read(tmp_path: Path) -> None:
    folder = BlockFolder(tmp_path)
    entry = folder.write(block())
    (tmp_path / f".{entry.name}.1.part").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "other.arrow").write_bytes(b"x")
    assert folder.entries() == [entry]


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "socket"])
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = BlockFolder(tmp_path / "blocks")
    entry = folder.write(block())
    place = folder.path / entry.name
    place.rename(tmp_path / "elsewhere")
    for _ in range(2):
        if kind == "pipe":
            os.mkfifo(place)
        elif kind == "folder":
            place.mkdir()
        elif kind == "link":
            place.symlink_to(tmp_path / "elsewhere")
        else:
            monkeypatch.chdir(place.parent)  # a socket's path is short
            with socket.socket(socket.AF_UNIX) as made:
                made.bind("s")
            Path("s").rename(place)
        with pytest.raises(MalformedRequestError, match="no regular file"):
            folder.read(entry)
        folder.refuse(entry)
        assert folder.entries() == []


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        BlockFolder(tmp_path / "blocks").write(block())
    assert list((tmp_path / "blocks").iterdir()) == []


def test_a_truncated_file_is_refused_and_the_next_is_read(tmp_path: Path) -> None:
    folder = BlockFolder(tmp_path)
    first, second = folder.write(block(0)), folder.write(block(1))
    data = (tmp_path / first.name).read_bytes()
    (tmp_path / first.name).write_bytes(data[: len(data) // 2])
    with pytest.raises(MalformedRequestError, match=first.name):
        folder.read(first)
    assert folder.read(second).sequence == 1


def test_a_renamed_file_is_refused(tmp_path: Path) -> None:
    folder = BlockFolder(tmp_path)
    entry = folder.write(block(0))
    other = BlockFile.of(block(1))
    (tmp_path / entry.name).rename(tmp_path / other.name)
    with pytest.raises(MalformedRequestError, match="holds block 0 of r1"):
        folder.read(other)


# -- the spool


class Away:
    """A destination that is away until ``there`` is set."""

    def __init__(self, folder: BlockFolder, error: Exception) -> None:
        self.folder, self.error, self.there = folder, error, False

    def deliver(self, file: Path) -> None:
        if not self.there:
            raise self.error
        self.folder.deliver(file)


@pytest.mark.parametrize(
    "error",
    [OSError("unplugged"), FileNotFoundError("no share"), UnreachableError("server is away")],
    ids=lambda error: type(error).__name__,
)
def test_nothing_is_lost_while_the_destination_is_away(tmp_path: Path, error: Exception) -> None:
    away = Away(BlockFolder(tmp_path / "there"), error)
    spool = Spool(tmp_path / "here", away)
    for sequence in range(3):
        assert spool.put(block(sequence))
        assert spool.deliver() == 0
    assert str(error) in spool.last_error
    again = Spool(tmp_path / "here", away)  # after a restart
    again.put(block(3))
    away.there = True
    assert again.deliver(most=1) == 1
    assert again.deliver() == 3
    assert (again.waiting(), again.last_error) == ([], "")
    assert [entry.sequence for entry in away.folder.entries()] == [0, 1, 2, 3]
    assert same(away.folder.read(away.folder.entries()[2]), block(2))
    assert again.counts.delivered == 4


def test_beyond_its_room_the_oldest_give_way_and_are_counted(tmp_path: Path) -> None:
    there = BlockFolder(tmp_path / "there")
    away = Away(there, OSError("away"))
    spool = Spool(tmp_path / "here", away, most_blocks=2)
    for sequence in range(5):
        spool.put(block(sequence))
    assert [entry.sequence for entry in spool.waiting()] == [3, 4]
    assert (spool.counts.given_up, spool.counts.lost_rows) == (3, 9)
    away.there = True
    spool.deliver()
    assert gaps(there.entries()) == {"r1": 3}, "and the gap is seen"


def test_the_room_is_bounded_in_bytes(tmp_path: Path) -> None:
    size = len(to_arrow(block()))
    away = Away(BlockFolder(tmp_path / "there"), OSError("away"))
    spool = Spool(tmp_path / "here", away, most_bytes=3 * size)
    for sequence in range(6):
        spool.put(block(sequence))
    assert sum(file.stat().st_size for file in (tmp_path / "here").iterdir()) <= 3 * size
    assert spool.counts.given_up >= 3


def test_a_block_delivered_before_a_crash_is_not_delivered_twice(tmp_path: Path) -> None:
    there = BlockFolder(tmp_path / "there")
    spool = Spool(tmp_path / "here", there)
    spool.put(block())
    there.deliver(tmp_path / "here" / spool.waiting()[0].name)  # and then it died
    assert Spool(tmp_path / "here", there).deliver() == 1
    assert len(there.entries()) == 1


def test_what_the_destination_will_never_take_is_given_up(tmp_path: Path) -> None:
    there = BlockFolder(tmp_path / "there")
    there.write(block(0, id="f" * 32))
    spool = Spool(tmp_path / "here", there)
    spool.put(block(0))
    spool.put(block(1))
    assert spool.deliver() == 1
    assert (spool.counts.given_up, spool.counts.lost_rows) == (1, 3)


def test_a_full_disk_is_counted_and_answers_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    spool = Spool(tmp_path / "here", BlockFolder(tmp_path / "there"))
    monkeypatch.setattr("os.fsync", full)
    assert not spool.put(block())
    assert (spool.counts.unwritten, spool.counts.lost_rows) == (1, 3)
    assert "no space" in spool.last_error


def test_a_spooled_file_that_somebody_removed_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "here", BlockFolder(tmp_path / "there"))
    spool.put(block(0))
    spool.put(block(1))
    waiting = spool.waiting()
    (tmp_path / "here" / waiting[0].name).unlink()
    monkeypatch.setattr(spool, "waiting", lambda: waiting)
    assert spool.deliver() == 1
    assert (spool.counts.given_up, spool.counts.lost_rows) == (1, 3)


def test_no_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="0 blocks"):
        Spool(tmp_path, BlockFolder(tmp_path), most_blocks=0)


def test_a_folder_that_lay_still_shows_what_comes_at_once(tmp_path: Path) -> None:
    folder, recorder = BlockFolder(tmp_path), BlockFolder(tmp_path)
    recorder.write(block(0))
    os.utime(tmp_path, ns=(0, 1_000_000_000))  # long ago: its listing is kept
    assert [entry.sequence for entry in folder.entries()] == [0]
    assert [entry.sequence for entry in folder.entries()] == [0]
    recorder.write(block(1))
    assert [entry.sequence for entry in folder.entries()] == [0, 1]


def test_where_a_change_leaves_the_time_as_it_was_it_is_seen_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems that count in seconds, or whose clock is far from ours."""
    folder = BlockFolder(tmp_path)
    folder.write(block(0))
    os.utime(tmp_path, ns=(0, 1_000_000_000))
    assert len(folder.entries()) == 1
    folder.write(block(1))
    os.utime(tmp_path, ns=(0, 1_000_000_000))
    assert len(folder.entries()) == 1
    later = time.time_ns() + 5_100_000_000
    monkeypatch.setattr("drift.block_folder.time.time_ns", lambda: later)
    assert len(folder.entries()) == 2
