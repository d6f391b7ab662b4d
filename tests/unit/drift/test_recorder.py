"""Recording: bounded, counted, whatever shape rows come in, and private before anything leaves."""

from __future__ import annotations

import itertools
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from drift.block_folder import BlockFolder
from drift.blocks import Block
from drift.privacy import OTHER, Privacy
from drift.recorder import Recorder
from governance.errors import ConfigurationError

IDS = (f"{number:032x}" for number in itertools.count())


def recorder(**options: Any) -> Recorder:
    options = {"columns": ("a", "b"), "clock": lambda: 1000, "new_id": lambda: next(IDS), **options}
    return Recorder("replica-1", model="fraud", **options)


def only(blocks: list[Block]) -> Block:
    (block,) = blocks
    return block


# -- shapes


@pytest.mark.parametrize(
    "data",
    [
        np.array([[1.0, 2.0], [3.0, 4.0]]),
        np.array([[1, 2], [3, 4]], dtype=np.int32),
        [[1.0, 2.0], [3.0, 4.0]],
        [(1.0, 2.0), (3.0, 4.0)],
        [{"b": 2.0, "a": 1.0}, {"a": 3.0, "b": 4.0}],
        {"b": [2.0, 4.0], "a": np.array([1.0, 3.0])},
        pd.DataFrame({"b": [2.0, 4.0], "a": [1.0, 3.0]}),
    ],
    ids=["array", "integers", "lists", "tuples", "objects", "columns", "frame"],
)
def test_rows_may_come_in_any_shape(data: Any) -> None:
    recording = recorder()
    assert recording.append(data, [0, 1], version="7", request_id="r")
    block = only(recording.flush())
    assert list(block.inputs) == ["a", "b"], "in the order of the schema"
    assert {name: values.tolist() for name, values in block.inputs.items()} == {
        "a": [1, 3],
        "b": [2, 4],
    }
    assert block.outputs["prediction"].tolist() == [0, 1]
    assert block.request_id is not None
    assert block.request_id.tolist() == ["r", "r"]
    assert block.request_row.tolist() == [0, 1]
    assert (block.model, block.version, block.first_ms) == ("fraud", "7", 1000)


@pytest.mark.parametrize(
    ("predictions", "outputs"),
    [
        (np.array([0.5, 0.25]), {"prediction": [0.5, 0.25]}),
        (np.array([[0.5, 0.5], [0.25, 0.75]]), {"prediction.0": [0.5, 0.25],
                                                "prediction.1": [0.5, 0.75]}),
        ([[0.5, 0.5], [0.25, 0.75]], {"prediction.0": [0.5, 0.25], "prediction.1": [0.5, 0.75]}),
        (["cat", None], {"prediction": ["cat", None]}),
        ([{"label": "x", "score": 1}, {"label": "y", "score": 2}],
         {"label": ["x", "y"], "score": [1, 2]}),
        ({"label": ["x", "y"], "p": np.array([[0.5, 0.5], [0.25, 0.75]])},
         {"label": ["x", "y"], "p.0": [0.5, 0.25], "p.1": [0.5, 0.75]}),
        (pd.Series([1, 2]), {"prediction": [1, 2]}),
    ],
    ids=["numbers", "matrix", "lists", "classes", "objects", "outputs", "series"],
)  # fmt: skip
def test_predictions_may_come_in_any_shape(predictions: Any, outputs: dict[str, Any]) -> None:
    recording = recorder()
    recording.append([[1, 2], [3, 4]], predictions)
    block = only(recording.flush())
    assert {name: values.tolist() for name, values in block.outputs.items()} == outputs


def test_single_rows_are_stacked_with_their_own_times_and_ids() -> None:
    recording = recorder()
    for number in range(5):
        row = np.array([[number, 10 * number]])
        recording.append(row, np.array([number]), time_ms=number, request_id=f"r{number}")
    recording.append([[5, 50], [6, 60]], [5, 6], time_ms=3, request_id="r5")
    block = only(recording.flush())
    assert block.inputs["b"].tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert block.time_ms.tolist() == [0, 1, 2, 3, 4, 3, 3], "a clock may go back"
    assert (block.first_ms, block.last_ms) == (0, 4)
    assert block.request_row.tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_missing_and_extra_columns() -> None:
    recording = recorder()
    recording.append([{"a": 1.0, "c": "secret"}], [0])
    block = only(recording.flush())
    assert block.inputs["b"].tolist() == [None]
    assert block.extra == ("c",)
    assert list(block.inputs) == ["a", "b"], "what nobody expected does not leave"
    anything = recorder(columns=None)
    anything.append([{"a": 1.0, "c": "text"}, {"a": None, "b": 2}], [0, 1])
    block = only(anything.flush())
    assert list(block.inputs) == ["a", "c", "b"]
    assert math.isnan(block.inputs["a"][1])


@pytest.mark.parametrize("row", [lambda row: [row], lambda row: {n: [v] for n, v in row.items()}])
def test_a_long_name_that_is_known_is_kept_whole(row: Any) -> None:
    one, other, output = "f" * 210 + "1", "f" * 210 + "2", "p" * 300
    recording = recorder(columns=(one, other), outputs=(output,))
    recording.append(row({one: 1, other: 2, "x" * 300: 3}), [{output: 4, "y" * 300: 5}])
    block = only(recording.flush())
    assert {name: int(values[0]) for name, values in block.inputs.items()} == {one: 1, other: 2}
    assert set(block.outputs) == {output, "y" * 200}
    assert block.extra == ("x" * 200,)


def test_values_of_several_types_stay_what_they_are() -> None:
    recording = recorder()
    values = [1, "one", None, 1.5, True, [1, 2], 10**30]
    recording.append([[value, 0] for value in values], [0] * len(values))
    block = only(recording.flush())
    assert block.inputs["a"].tolist() == values


def test_a_wide_input() -> None:
    recording = recorder(columns=None)
    recording.append(np.zeros((2, 10_000)), [0, 0])
    assert len(only(recording.flush()).inputs) == 10_000


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (np.zeros((3, 2)), 2), (np.zeros((2, 5)), 2), (np.zeros((2, 2, 2)), 2),
        ([[1, 2], [3]], 2), ([[1, 2]], 2), ([1, 2, 3], 3), ({"a": [1]}, 2), ({"a": 1}, 1),
        ([[1, 2], {"a": 1}], 2), ([], 1), (object, 1), (None, 1), ("text", 1),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_table_is_counted_and_takes_nothing_with_it(data: Any, rows: int) -> None:
    recording = recorder()
    recording.append([[1, 2]], [0])
    recording.append(data, [0] * rows)
    recording.append([[3, 4]], [0])
    block = only(recording.flush())
    assert block.inputs["a"].tolist() == [1, 3]
    assert recording.counts.malformed > 0
    assert only([block]).malformed == recording.counts.malformed


@pytest.mark.parametrize("predictions", [None, 5, {}, object])
def test_predictions_that_are_none_are_counted(predictions: Any) -> None:
    recording = recorder()
    assert not recording.append([[1, 2]], predictions)
    assert recording.counts.malformed == 1
    assert recording.flush() == []


def test_predictions_of_another_width_are_missing_in_their_request_alone() -> None:
    recording = recorder(outputs=("p", "q"))
    for number in range(20):
        recording.append([[number, 0]], [[0.5, 1.0]], request_id=f"r{number}")
    recording.append([[20, 0]], [[0.5, 1.0, 3.0]], request_id="wide")
    block = only(recording.flush())
    assert recording.counts.malformed == 0
    assert block.outputs["q"].tolist()[:20] == [1.0] * 20
    assert math.isnan(block.outputs["q"][20])
    assert block.outputs["prediction.2"].tolist()[20] == 3.0


def test_ids_and_names_that_are_no_unicode_are_told(tmp_path: Path) -> None:
    recording = recorder(columns=None)
    recording.append([{"a": 1}], [{"p": 1}], request_id="sound")
    recording.append([{"a\ud800": 1}], [{"p\ud800": 1}], request_id="\ud800")
    recording.append_together(np.ones((2, 1)), np.ones(2), ["\udfff", "b"], [1, 1])
    folder = BlockFolder(tmp_path)
    block = folder.read(folder.write(only(recording.flush())))
    assert block.request_id is not None
    assert block.request_id.tolist() == ["sound", "\\ud800", "\\udfff", "b"]
    assert {"a\\ud800"} < set(block.inputs)
    assert {"p\\ud800"} < set(block.outputs)


@pytest.mark.parametrize(
    ("change", "value"), [("time_ms", "noon"), ("time_ms", 2**70), ("request_id", 5)]
)
def test_what_a_caller_got_wrong_takes_nothing_with_it(change: str, value: Any) -> None:
    recording = recorder()
    for number in range(7):
        recording.append([[number, 0]], [0])
    odd: Any = {change: value}
    recording.append([[7, 0]], [0], **odd)
    blocks = recording.flush()
    assert sum(block.rows for block in blocks) + recording.counts.malformed == 8
    assert recording.counts.malformed == (change == "time_ms")
    assert [block.sequence for block in blocks] == list(range(len(blocks))), "no gap is made up"


def test_a_value_that_json_cannot_say_takes_nothing_with_it(tmp_path: Path) -> None:
    recording = recorder()
    within: list[Any] = []
    within.append(within)
    recording.append([["a", within], ["b", 10**5000]], [0, 0])
    folder = BlockFolder(tmp_path)
    block = folder.read(folder.write(only(recording.flush())))
    assert block.inputs["b"].tolist() == ["(list)", "(int)"]


def test_nothing_recorded_nothing_flushed() -> None:
    recording = recorder()
    assert recording.append(np.zeros((0, 2)), [])
    assert recording.flush() == []


# -- blocks


def test_a_block_is_of_one_version_and_of_bounded_size() -> None:
    recording = recorder(block_rows=4)
    for number in range(10):
        recording.append([[number, 0]], [0], version="7" if number < 6 else "8")
    blocks = recording.flush()
    assert [(b.version, b.rows, b.sequence) for b in blocks] == [
        ("7", 4, 0), ("7", 2, 1), ("8", 4, 2),
    ]  # fmt: skip
    recording.append([[1, 1]], [0])
    assert only(recording.flush()).sequence == 3


# -- bounds


def test_a_full_buffer_drops_and_counts() -> None:
    recording = recorder(most_rows=3)
    taken = [recording.append([[number, 0]], [0]) for number in range(10)]
    assert taken == [True] * 3 + [False] * 7
    counts = recording.counts
    assert (counts.recorded, counts.dropped, counts.waiting) == (3, 7, 3)
    assert only(recording.flush()).dropped == 7
    recording.append([[1, 1]], [0])
    assert only(recording.flush()).dropped == 0, "told once"
    assert recording.counts.waiting_bytes == 0


@pytest.mark.parametrize(
    ("data", "nbytes"),
    [
        (np.zeros((1, 2000)), 0),
        ([["x" * 16_000, 0]], 0),
        ([{"a": "x" * 16_000}], 0),
        ({"a": ["x" * 16_000]}, 0),
        ([[[0.0] * 600, 0]], 0),
        (pd.DataFrame(np.zeros((1, 500))), 0),
        ([[1, 2]], 16_000),
    ],
)
def test_memory_is_bounded_in_bytes(data: Any, nbytes: int) -> None:
    recording = recorder(most_bytes=100_000)
    for _ in range(100):
        recording.append(data, [0], nbytes=nbytes)
    assert 2 <= recording.counts.waiting <= 7
    assert recording.counts.waiting + recording.counts.dropped == 100
    assert recording.counts.waiting_bytes <= 100_000


def test_sampling_by_request_id_is_the_same_everywhere() -> None:
    def taken(source_seed: int) -> list[bool]:
        recording = recorder(sample=0.3, rng=np.random.default_rng(source_seed))
        return [recording.append([[1, 2]], [0], request_id=f"r{n}") for n in range(2000)]

    assert taken(1) == taken(2)
    assert 500 < sum(taken(1)) < 700


def test_sampling_by_chance_and_its_count() -> None:
    recording = recorder(sample=0.25, rng=np.random.default_rng(1))
    for _ in range(1000):
        recording.append([[1, 2]], [0])
    counts = recording.counts
    assert counts.recorded + counts.sampled_out == 1000
    assert 200 < counts.recorded < 300
    assert only(recording.flush()).sampled_out == counts.sampled_out


@pytest.mark.parametrize(
    "options",
    [{"sample": 0}, {"sample": 1.5}, {"sample": 0.5}, {"most_rows": 0}, {"block_rows": 0}],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        recorder(**options)


def test_threads_append_while_one_flushes() -> None:
    recording = recorder(columns=None)
    blocks: list[Block] = []

    def add() -> None:
        for _ in range(2000):
            recording.append(np.zeros((1, 2)), np.zeros(1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        blocks += recording.flush()
    blocks += recording.flush()
    assert sum(block.rows for block in blocks) == 8000
    assert [block.sequence for block in blocks] == list(range(len(blocks)))


# -- privacy


def test_masked_columns_never_appear_in_a_written_block(tmp_path: Path) -> None:
    privacy = Privacy(
        {"email": "mask", "age": "bin", "job": "bin", "output:reason": "mask"},
        edges={"age": (18.0, 30.0, 65.0)},
        categories={"job": ("cook",)},
        request_id="mask",
    )
    recording = recorder(columns=("email", "age", "job"), privacy=privacy)
    for _ in range(50):
        recording.append(
            [["ada@example.org", 41.735, "astronaut-secret"]],
            [{"score": 0.5, "reason": "because-of-ada"}],
            request_id="request-of-ada",
        )
        recording.append([{"email": "ada@example.org", "shoe": "size-forty"}], [{"score": 0.5}])
    folder = BlockFolder(tmp_path)
    entry = folder.write(only(recording.flush()))
    data = (tmp_path / entry.name).read_bytes()
    block = folder.read(entry)
    unpacked = repr([block.inputs, block.outputs, block.request_id, block.extra]).encode()
    for secret in (b"ada", b"41.7", b"astronaut", b"size-forty"):
        assert secret not in data
        assert secret not in unpacked
    assert np.float64(41.735).tobytes() not in data
    assert block.masked == ("email", "output:reason")
    assert list(block.inputs) == ["age", "job"]
    assert block.inputs["age"][0] == 30.0
    assert block.inputs["job"].tolist()[:2] == [OTHER, None]
    assert block.request_id is None
    assert block.extra == ("shoe",)


def test_only_what_is_named_leaves() -> None:
    privacy = Privacy({"a": "keep", "output:score": "keep"}, default="mask")
    recording = recorder(privacy=privacy, columns=None)
    recording.append([{"a": 1, "b": 2}], [{"score": 0.5, "why": "x"}])
    block = only(recording.flush())
    assert (list(block.inputs), list(block.outputs)) == (["a"], ["score"])
    strict = recorder(privacy=privacy)
    strict.append([{"a": 1, "ada@example.org": 2}], [0])
    assert only(strict.flush()).extra == ("(masked)",)


@pytest.mark.parametrize("closed", ["left", "right"])
def test_a_binned_number_stays_in_its_bin(closed: Any) -> None:
    edges = (0.0, 1.0, np.nextafter(1.0, 2.0), 5.0)
    privacy = Privacy({"a": "bin"}, edges={"a": edges}, closed=closed)
    values = np.array([-7.0, 0.0, 0.5, 1.0, 1.5, 5.0, 80.0, np.inf, -np.inf, np.nan])
    binned, _ = privacy.applied({"a": values})
    side: Any = "right" if closed == "left" else "left"
    before = np.searchsorted(edges, values[:-3], side)
    assert np.searchsorted(edges, binned["a"][:-3], side).tolist() == before.tolist()
    assert np.isnan(binned["a"][-3:]).all()  # infinite ones count as missing, as in a profile
    assert len(np.unique(binned["a"][:-3])) <= 5


def test_a_text_in_a_binned_number_leaves_as_missing() -> None:
    privacy = Privacy({"a": "bin"}, edges={"a": (1.0,)})
    binned, _ = privacy.applied({"a": np.array([2, "ada", None, 10**400], dtype=object)})
    assert binned["a"][0] == 1.0
    assert np.isnan(binned["a"][1:]).all()


@pytest.mark.parametrize(
    "options",
    [
        {"actions": {"a": "hide"}}, {"actions": {"a": "bin"}}, {"default": "bin"},
        {"request_id": "bin"}, {"closed": "both"},
        {"actions": {"a": "bin"}, "edges": {"a": (1.0,)}, "categories": {"a": ("x",)}},
        {"edges": {"a": (2.0, 1.0)}}, {"edges": {"a": ()}}, {"edges": {"a": (math.inf,)}},
    ],
    ids=str,
)  # fmt: skip
def test_rules_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="privacy"):
        Privacy(**options)
