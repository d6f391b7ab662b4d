"""Blocks in an object store, here one that is made of files; the real S3 is in integration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pyarrow import fs

from drift.block_bucket import BlockBucket
from drift.block_folder import BlockFile, BlockFolder
from drift.block_store import BlockStore, below, open_blocks, place_of
from drift.spool import Spool
from governance.errors import ConfigurationError, ConflictError, MalformedRequestError
from tests.unit.drift.monitor_world import block_of


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bucket(tmp_path: Path, clock: Clock) -> BlockBucket:
    (tmp_path / "b" / "refused").mkdir(parents=True)
    return BlockBucket(fs.LocalFileSystem(), str(tmp_path / "b"), clock=clock)


def test_blocks_come_back_in_order_and_whole(bucket: BlockBucket) -> None:
    for number in (2, 0, 1):
        bucket.write(block_of(number))
    entries = bucket.entries()
    assert [entry.sequence for entry in entries] == [0, 1, 2]
    assert [bucket.read(entry).sequence for entry in entries] == [0, 1, 2]
    assert [entry.sequence for entry in bucket.entries({"replica-1": 1})] == [2]
    bucket.remove(entries[0])
    bucket.remove(entries[0])
    assert [entry.sequence for entry in bucket.entries()] == [1, 2]


def test_a_listing_holds_for_a_while_but_knows_what_was_done_here(
    bucket: BlockBucket, clock: Clock, tmp_path: Path
) -> None:
    assert bucket.entries() == []
    BlockFolder(tmp_path / "b").write(block_of(0))  # somebody else
    assert bucket.entries() == []
    bucket.write(block_of(1))
    assert [entry.sequence for entry in bucket.entries()] == [1]
    clock.now = 2.0
    assert [entry.sequence for entry in bucket.entries()] == [0, 1]


def test_the_same_block_again_is_well_and_another_under_its_number_is_not(
    bucket: BlockBucket,
) -> None:
    entry = bucket.write(block_of(0))
    bucket.write(block_of(0))
    with pytest.raises(ConflictError, match="another block 0 of replica-1"):
        bucket.write(replace(block_of(0), id="f" * 32))
    assert bucket.entries() == [entry]


def test_what_is_no_block_is_refused_and_put_aside(bucket: BlockBucket, tmp_path: Path) -> None:
    entry = bucket.write(block_of(0))
    place = tmp_path / "b" / entry.name
    place.write_bytes(place.read_bytes()[:-20])
    with pytest.raises(MalformedRequestError, match="not a readable block"):
        bucket.read(entry)
    bucket.refuse(entry)
    assert bucket.entries() == []
    assert (tmp_path / "b" / "refused" / entry.name).exists()
    with pytest.raises(MalformedRequestError, match="no block's name"):
        bucket.deliver(tmp_path / "else.arrow")


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_a_huge_file_is_refused_and_not_read_to_its_end(
    bucket: BlockBucket, tmp_path: Path, kind: str
) -> None:
    entry = bucket.write(block_of(0))
    with (tmp_path / "b" / entry.name).open("ab") as file:
        file.truncate(1 << 33)  # a hole: it takes no room
    store: BlockStore = bucket if kind == "bucket" else BlockFolder(tmp_path / "b")
    with pytest.raises(MalformedRequestError, match="more than 268435456 bytes"):
        store.read(entry)


def test_a_spool_delivers_to_it(bucket: BlockBucket, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", bucket)
    for number in range(3):
        spool.put(block_of(number))
    assert spool.deliver() == 3
    assert [entry.sequence for entry in bucket.entries()] == [0, 1, 2]


@pytest.mark.parametrize(
    "uri", ["http://host/x", "s3://", "s3:///path", "hdfs://name/x", "s3://bucket/x?a=b"]
)
def test_other_places_are_refused_by_name(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="no place for recorded blocks"):
        BlockBucket.of(uri)


def test_an_endpoint_that_is_no_address_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is no address"):
        BlockBucket.of("s3://bucket/x", {"MLFLOW_S3_ENDPOINT_URL": "localhost:9000"})


def test_places(tmp_path: Path) -> None:
    assert place_of("blocks", tmp_path) == tmp_path / "blocks"
    assert place_of(f"file://{tmp_path}/b", Path("x")) == tmp_path / "b"
    assert place_of("s3://bucket/b", tmp_path) == "s3://bucket/b"
    assert below("s3://bucket/b/", "fraud", "7", "_") == "s3://bucket/b/fraud/7/_"
    assert isinstance(open_blocks(tmp_path), BlockFolder)
    bucket = open_blocks("s3://bucket/b/fraud")  # nothing is asked of it yet
    assert isinstance(bucket, BlockBucket)
    assert bucket.path == "bucket/b/fraud"
    assert BlockFile.parse("x") is None
