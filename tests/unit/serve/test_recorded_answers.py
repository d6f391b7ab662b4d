"""What replicas answer is handed to a recorder: rows as they were decoded, under requests' ids."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import uvloop
from mlflow.models import infer_signature
from sklearn.linear_model import LinearRegression

from serve.frames import FrameError, Named, Raw, Traced, pack_requests, unpack_requests
from serve.lanes import LanePool
from serve.plan import VariantPlan
from serve.scoring import Identity, Scorer
from serve.socket_lane import Hello, SocketModel
from serve.variant import Variant
from tests.unit.serve.sums import LAYOUT, NOT_TAKEN, Sums, body, scorer

JSON = "application/json"
EXAMPLE = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": [2.0, 1.0, 0.5, 8.0]})
REQUEST = b'{"dataframe_split": {"columns": ["a", "b"], "data": [[1.0, 2.0], [3.0, 0.5]]}}'


class Kept:
    """A recorder that keeps what it is given, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.rows: list[list[float]] = []
        self.said: list[float] = []
        self.requests: list[tuple[str, int]] = []
        self.bodies: list[tuple[str | None, bytes, bytes, str]] = []
        self.closed = False

    def served(
        self, rows: Any, predictions: Any, request_ids: Sequence[str], counts: Sequence[int]
    ) -> None:
        if self.error is not None:
            raise self.error
        assert rows.base is None or rows.flags.owndata
        self.rows += rows.tolist()
        self.said += np.asarray(predictions).tolist()
        self.requests += list(zip(request_ids, counts, strict=True))

    def exactly(
        self, content_type: str | None, body: bytes, answer: bytes, request_id: str
    ) -> None:
        if self.error is not None:
            raise self.error
        self.bodies.append((content_type, body, answer, request_id))

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("linear") / "model"
    model = LinearRegression().fit(EXAMPLE, [1.0, 2.0, -3.0, 4.5])
    mlflow.sklearn.save_model(
        model, path, signature=infer_signature(EXAMPLE, [0.5]), input_example=EXAMPLE,
        pip_requirements=[],
    )  # fmt: skip
    return path


@pytest.fixture
def linear(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Scorer:
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    found = Scorer.load(str(saved), Identity("fraud", "3"))
    found.prepare()
    return found


# -- the scorer


def test_batches_are_recorded_with_what_the_model_said(linear: Scorer) -> None:
    kept = Kept()
    linear.record(kept)
    assert linear.batchable
    batch = [np.array([[1.0, 2.0]]), np.array([[3.0, 0.5], [4.0, 8.0]])]
    bodies = linear.score(batch, ["r-1", "r-2"])
    assert kept.requests == [("r-1", 1), ("r-2", 2)]
    assert kept.rows == [[1.0, 2.0], [3.0, 0.5], [4.0, 8.0]]
    told = [value for one in bodies if one for value in json.loads(one)["predictions"]]
    assert kept.said == pytest.approx(told)


def test_one_request_is_recorded_as_a_copy_of_its_rows(linear: Scorer) -> None:
    kept = Kept()
    linear.record(kept)
    buffer = bytearray(np.array([[1.0, 2.0]]).tobytes())
    rows = np.frombuffer(buffer, np.float64).reshape(1, 2)
    linear.score([rows], ["r-1"])
    assert kept.requests == [("r-1", 1)]
    assert kept.rows == [[1.0, 2.0]]


def test_a_request_that_mlflow_answers_is_recorded_as_it_came(linear: Scorer) -> None:
    kept = Kept()
    linear.record(kept)
    answer = linear.answer_exactly(JSON, REQUEST, "r-9")
    assert kept.bodies == [(JSON, REQUEST, answer.body, "r-9")]
    assert linear.answer_exactly(JSON, b"{}", "r-10").status == 400
    assert len(kept.bodies) == 1  # what failed is no answer of the model's


def test_an_error_of_the_recorder_reaches_no_answer(linear: Scorer) -> None:
    batch = [np.array([[1.0, 2.0]]), np.array([[3.0, 0.5]])]
    before = linear.score(batch), linear.score(batch[:1]), linear.answer_exactly(JSON, REQUEST)
    linear.record(Kept(RuntimeError("full")))
    after = linear.score(batch), linear.score(batch[:1]), linear.answer_exactly(JSON, REQUEST)
    assert after == before
    assert None not in after[0]


def test_rows_that_the_model_does_not_take_are_not_recorded(linear: Scorer) -> None:
    kept = Kept()
    linear.record(kept)
    assert linear.score([np.array([[np.nan, 1.0]])], ["r-1"]) == [None]
    assert kept.rows == []


# -- on the way there


def test_a_named_request_travels_and_half_a_name_does_not() -> None:
    rows = np.array([[1.0, 2.0]])
    items = [Named(rows, "r-1"), Named(Raw(JSON, b"{}"), "r-2"), Raw(None, b"x")]
    traced = Traced(Named(rows, "r-3"), f"00-{'a' * 32}-{'b' * 16}-01")
    frame = pack_requests([*items, traced])
    first, second, third, fourth = unpack_requests(memoryview(frame)[4:], LAYOUT)
    assert isinstance(first, Named)
    np.testing.assert_array_equal(first.item, rows)
    assert (first.request_id, second, third) == ("r-1", items[1], items[2])
    assert isinstance(fourth, Traced)
    assert isinstance(fourth.item, Named)
    assert fourth.item.request_id == "r-3"
    for end in range(4, len(frame) - 4):
        with pytest.raises(FrameError):
            unpack_requests(memoryview(frame)[4 : 4 + end], LAYOUT)
    twice = bytearray(pack_requests([Named(rows, "r-1")])[4:])
    twice[4 + 5 + 3] = 3  # a name after a name
    with pytest.raises(FrameError):
        unpack_requests(memoryview(bytes(twice)), LAYOUT)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lane") as made:
        yield Path(made)


@pytest.mark.parametrize("records", [True, False])
def test_ids_go_to_replicas_that_record_and_to_no_others(folder: Path, records: bool) -> None:
    async def test() -> None:
        model = scorer()
        assert isinstance(model, Sums)
        model.recorder = Kept() if records else None
        end = await SocketModel.start(folder / "a.sock", model)
        pool = LanePool(folder, rescan_s=0.05)
        pool.start()
        assert await pool.ready(5)
        assert pool.hello is not None
        assert pool.hello.records is records
        variant = Variant(VariantPlan("stable", "fraud", "3", folder.name), pool)
        answer, _ = await variant.ask(JSON, body((1, 2)), "r-1")
        assert json.loads(answer.body) == {"predictions": [3]}
        await variant.ask(JSON, body((NOT_TAKEN, 2)), "r-2")
        await variant.ask("text/csv", b"a,b\n1,2", "r-3")
        wanted = ["r-1", "r-2", "exactly r-2"] if records else []
        assert [one for one in model.ids if one != "exactly r-3" and one != "r-3"] == wanted
        assert any("r-3" in one for one in model.ids) is records
        await pool.close()
        await end.close()

    uvloop.run(asyncio.wait_for(test(), 30))


def test_an_old_replicas_greeting_records_nothing() -> None:
    document = json.loads(Hello.of(scorer()).to_json())
    del document["records"]
    assert Hello.from_json(json.dumps(document).encode()).records is False
