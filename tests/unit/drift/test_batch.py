"""Batch scoring: frames and folders become blocks of bounded size."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from drift.batch import Batch, blocks_of_frame, blocks_of_parquet
from drift.block_folder import BlockFolder
from drift.privacy import Privacy
from governance.errors import ConfigurationError, MalformedRequestError


def batch(**options: Any) -> Batch:
    return Batch(
        **{
            "source": "nightly", "model": "fraud", "version": "7", "predictions": ("score",),
            "time": "at", "request_id": "key", "ignored": ("label",), "block_rows": 4,
            "clock": lambda: 77, **options,
        }
    )  # fmt: skip


def frame(rows: int = 10) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "amount": np.arange(rows) / 2,
            "job": ["cook", None] * (rows // 2),
            "score": np.arange(rows) / 10,
            "at": pd.date_range("2026-01-01", periods=rows, freq="s"),
            "key": [f"k{n}" for n in range(rows)],
            "label": 1,
        }
    )


def test_a_frame_in_blocks(tmp_path: Path) -> None:
    folder = BlockFolder(tmp_path)
    for block in blocks_of_frame(frame(), batch()):
        folder.write(block)
    blocks = [folder.read(entry) for entry in folder.entries()]
    assert [(block.sequence, block.rows) for block in blocks] == [(0, 4), (1, 4), (2, 2)]
    assert list(blocks[0].inputs) == ["amount", "job"]
    assert blocks[0].inputs["job"].tolist() == ["cook", None, "cook", None]
    assert blocks[2].outputs["score"].tolist() == [0.8, 0.9]
    assert blocks[1].request_id is not None
    assert blocks[1].request_id.tolist() == ["k4", "k5", "k6", "k7"]
    assert blocks[0].first_ms == 1_767_225_600_000


def test_a_folder_in_blocks(tmp_path: Path) -> None:
    for place, part in enumerate((frame(6), frame(4))):
        part.to_parquet(tmp_path / f"part-{place}.parquet")
    blocks = list(blocks_of_parquet(tmp_path, batch()))
    assert [block.rows for block in blocks] == [4, 2, 4]
    assert [block.sequence for block in blocks] == [0, 1, 2]
    whole = np.concatenate([block.inputs["amount"] for block in blocks])
    assert whole.tolist() == [*np.arange(6) / 2, *np.arange(4) / 2]


def test_masked_columns_do_not_leave() -> None:
    privacy = Privacy({"job": "mask"}, request_id="mask")
    block = next(blocks_of_frame(frame(), batch(privacy=privacy)))
    assert (list(block.inputs), block.masked, block.request_id) == (["amount"], ("job",), None)


def test_times_may_be_milliseconds_or_now() -> None:
    numbers = frame().assign(at=np.arange(10))
    assert next(blocks_of_frame(numbers, batch())).time_ms.tolist() == [0, 1, 2, 3]
    without = next(blocks_of_frame(frame(), batch(time="", ignored=("label", "at"))))
    assert without.time_ms.tolist() == [77] * 4


def test_an_empty_frame_has_no_blocks() -> None:
    assert list(blocks_of_frame(frame(0), batch())) == []


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        (frame().drop(columns="score"), {}, "'score'"),
        (frame(), {"time": "when"}, "'when'"),
        (frame().assign(at="noon"), {}, "no times"),
        (frame().assign(at=pd.NaT), {}, "no times"),
        (frame().assign(at=1_800_000_000_000_000), {}, "'at' holds .* look like microseconds"),
        (frame().assign(at=1_800_000_000_000_000_000), {}, "'at' holds .* look like nanoseconds"),
        (frame().assign(at=pd.Timestamp("1969-12-31")), {}, "'at' holds .* before 1970"),
        (frame().set_axis(["a", "a", "score", "at", "key", "label"], axis=1), {}, "same name"),
    ],
)
def test_frames_that_do_not_fit_are_refused(
    given: pd.DataFrame, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(MalformedRequestError, match=words):
        list(blocks_of_frame(given, batch(**options)))


def test_folders_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MalformedRequestError, match="no Parquet files"):
        list(blocks_of_parquet(tmp_path, batch()))
    frame().to_parquet(tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[: len(data) // 2])
    blocks = blocks_of_parquet(tmp_path, batch())
    assert sum(next(blocks).rows for _ in range(3)) == 10
    with pytest.raises(MalformedRequestError, match=r"b\.parquet cannot be read"):
        next(blocks)


@pytest.mark.parametrize("options", [{"predictions": ()}, {"block_rows": 0}])
def test_a_batch_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="a batch"):
        batch(**options)


@pytest.mark.parametrize(
    ("values", "ids"),
    [
        ([Decimal("1"), Decimal("20")], ["1", "20"]),
        (pd.to_datetime(["2026-01-01", "2026-01-02"]), ["2026-01-01T00", "2026-01-02T00"]),
    ],
    ids=["decimals", "times"],
)
def test_ids_are_no_numbers(values: Any, ids: list[str]) -> None:
    table = frame(2).assign(key=values)
    (block,) = blocks_of_frame(table, batch())
    assert block.request_id is not None
    found = block.request_id.tolist()
    assert [one[: len(name)] for one, name in zip(found, ids, strict=True)] == ids
    assert "." not in "".join(found).replace(".000000000", "")


def test_a_long_name_is_kept_whole() -> None:
    name, said = "f" * 300, "p" * 300
    table = frame(2).rename(columns={"amount": name, "score": said})
    (block,) = blocks_of_frame(table, batch(predictions=(said,)))
    assert (list(block.inputs), list(block.outputs)) == ([name, "job"], [said])
