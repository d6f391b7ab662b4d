"""Whatever the fast decoder reads is exactly what MLflow's own code would give the model."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.models.utils import _enforce_schema
from mlflow.pyfunc.scoring_server import _parse_json_data
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

from serve.decode import Array, Decoder, Layout, layout_of

JSON = "application/json"


def model(*specs: Any) -> Model:
    return Model(signature=ModelSignature(inputs=Schema(list(specs))))


def columns(kind: DataType, *names: str) -> Model:
    return model(*(ColSpec(kind, name) for name in names))


DOUBLES = columns(DataType.double, "a", "b")
LONGS = columns(DataType.long, "a", "b")
INTEGERS = columns(DataType.integer, "a", "b")
FLOATS = columns(DataType.float, "a", "b")
UNNAMED = model(ColSpec(DataType.double), ColSpec(DataType.double))
ONE = columns(DataType.double, "a")
MATRIX = model(TensorSpec(np.dtype("float32"), (-1, 2)))
IMAGES = model(TensorSpec(np.dtype("uint8"), (-1, 2, 3)))
SERIES = model(TensorSpec(np.dtype("float64"), (-1,)))
MODELS = {
    "doubles": DOUBLES, "longs": LONGS, "integers": INTEGERS, "floats": FLOATS,
    "unnamed": UNNAMED, "one": ONE, "matrix": MATRIX, "images": IMAGES, "series": SERIES,
}  # fmt: skip


def mlflows(metadata: Model, body: bytes) -> Array:
    """What MLflow would hand to the model, as an array."""
    schema = metadata.get_input_schema()
    data = _enforce_schema(_parse_json_data(body, metadata, schema).data, schema)
    if isinstance(data, pd.DataFrame):
        if schema.has_input_names():
            assert list(data.columns) == schema.input_names()
        assert len(set(data.dtypes)) == 1
        return np.asarray(data.to_numpy())
    return np.asarray(data)


def decoded(metadata: Model, payload: Any, content_type: str | None = JSON) -> Array | None:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return Decoder(layout_of(metadata)).decode(content_type, body)


READ = [
    ("doubles", {"dataframe_split": {"columns": ["a", "b"], "data": [[1.5, 2], [3, -4.25]]}}),
    ("doubles", {"dataframe_split": {"columns": ["b", "a"], "data": [[1.5, 2], [3, 4]]}}),
    ("doubles", {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]], "index": [0]}}),
    ("doubles", {"dataframe_records": [{"a": 1.5, "b": 2}, {"b": 3, "a": 1e-300}]}),
    ("doubles", {"inputs": {"b": [1.5, 2], "a": [3, 4]}}),
    ("doubles", {"instances": {"a": [1.5], "b": [3]}}),
    ("doubles", {"inputs": [{"a": 1.5, "b": 2}]}),
    ("doubles", {"instances": [{"a": 1.5, "b": 2}, {"a": 0, "b": 1}]}),
    ("doubles", {"inputs": {"a": [1], "b": [2]}, "params": None}),
    ("doubles", {"inputs": {"a": [1], "b": [2]}, "params": {}, "note": "passed over"}),
    ("doubles", {"inputs": {"a": [2**53 - 1], "b": [-(2**53) + 1]}}),
    ("doubles", {"inputs": {"a": [1e300], "b": [-0.0]}}),
    ("longs", {"dataframe_split": {"columns": ["a", "b"], "data": [[2**53 + 1, -(2**63)]]}}),
    ("longs", {"dataframe_records": [{"a": 2**63 - 1, "b": 0}]}),
    ("integers", {"dataframe_split": {"columns": ["a", "b"], "data": [[2**31 - 1, -(2**31)]]}}),
    ("integers", {"instances": [{"a": 1, "b": 2}]}),
    ("floats", {"dataframe_split": {"columns": ["a", "b"], "data": [[0.1, 16777217]]}}),
    ("floats", {"inputs": {"a": [0.1], "b": [1]}}),
    ("unnamed", {"dataframe_split": {"data": [[1.5, 2]]}}),
    ("unnamed", {"inputs": [[1.5, 2], [3, 4]]}),
    ("unnamed", {"instances": [[1.5, 2]]}),
    ("one", {"dataframe_records": [{"a": 1.5}, {"a": 2}]}),
    ("one", {"inputs": {"a": [1.5, 2]}}),
    ("one", {"dataframe_split": {"columns": ["a"], "data": [[1.5]]}}),
    ("matrix", {"inputs": [[0.1, 2], [3, 4]]}),
    ("matrix", {"instances": [[0.1, 2]]}),
    ("matrix", {"dataframe_split": {"columns": ["x", "y"], "data": [[0.1, 2], [3, 4]]}}),
    ("matrix", {"dataframe_split": {"data": [[0.1, 2]]}}),
    ("images", {"inputs": [[[0, 1, 2], [253, 254, 255]]]}),
    ("series", {"inputs": [1, 2.5, 3]}),
]


@pytest.mark.parametrize(("name", "payload"), READ, ids=lambda v: json.dumps(v)[:60])
def test_what_is_read_is_what_mlflow_reads(name: str, payload: dict[str, Any]) -> None:
    found = decoded(MODELS[name], payload)
    assert found is not None
    expected = mlflows(MODELS[name], json.dumps(payload).encode())
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


HANDED_OVER = [
    ("doubles", {"dataframe_split": {"columns": ["a", "b"], "data": [[1, None]]}}),
    ("doubles", {"dataframe_split": {"columns": ["a", "b"], "data": [[1, "2"]]}}),
    ("doubles", {"dataframe_split": {"columns": ["a", "b"], "data": [[1.5, True]]}}),
    ("doubles", {"dataframe_split": {"columns": ["a", "b"], "data": [[1], [2, 3]]}}),
    ("doubles", {"dataframe_split": {"columns": ["a", "b"], "data": []}}),
    ("doubles", {"dataframe_split": {"columns": ["a", "b"], "data": [[]]}}),
    ("doubles", {"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2, 3]]}}),
    ("doubles", {"dataframe_split": {"columns": ["a", "a"], "data": [[1, 2]]}}),
    ("doubles", {"dataframe_split": {"columns": ["a"], "data": [[1]]}}),
    ("doubles", {"dataframe_split": {"columns": "ab", "data": [[1, 2]]}}),
    ("doubles", {"dataframe_split": {"columns": {"a": 0, "b": 1}, "data": [[1, 2]]}}),
    ("doubles", {"dataframe_split": {"columns": [["a"], ["b"]], "data": [[1, 2]]}}),
    ("doubles", {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]], "index": [7]}}),
    ("doubles", {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]], "more": 1}}),
    ("doubles", {"dataframe_split": {"data": [[1, 2]]}}),
    ("doubles", {"dataframe_split": {"columns": ["a", "b"]}}),
    ("doubles", {"dataframe_split": [[1, 2]]}),
    ("doubles", {"dataframe_split": {"columns": ["a", "b"], "data": {"a": 1}}}),
    ("doubles", {"dataframe_records": [{"a": 1, "b": 2, "c": 3}]}),
    ("doubles", {"dataframe_records": [{"a": 1}, {"b": 2}]}),
    ("doubles", {"dataframe_records": {"a": [1], "b": [2]}}),
    ("doubles", {"dataframe_records": [[1, 2]]}),
    ("doubles", {"dataframe_records": []}),
    ("doubles", {"inputs": [[1, 2]]}),
    ("doubles", {"inputs": {"a": 1, "b": 2}}),
    ("doubles", {"inputs": {"a": [1], "b": [2, 3]}}),
    ("doubles", {"inputs": {"a": [[1]], "b": [[2]]}}),
    ("doubles", {"inputs": {"a": [2**53], "b": [1]}}),
    ("doubles", {"inputs": {"a": [2**70], "b": [1]}}),
    ("doubles", {"inputs": {"a": [1], "b": [2]}, "params": {"p": 1}}),
    ("doubles", {"inputs": {"a": [1], "b": [2]}, "params": []}),
    ("doubles", {"inputs": {"a": [1], "b": [2]}, "instances": []}),
    ("doubles", {"inputs": {"a": [1], "b": [2]}, "messages": []}),
    ("doubles", {"prompt": {"a": [1], "b": [2]}}),
    ("doubles", {"input": [{"a": 1, "b": 2}]}),
    ("doubles", {}),
    ("doubles", [1]),
    ("doubles", 1),
    ("doubles", None),
    ("doubles", b""),
    ("doubles", b"{"),
    ("doubles", b'{"inputs": {"a": [NaN], "b": [1]}}'),
    ("doubles", b'{"inputs": {"a": [1e400], "b": [1]}}'),
    ("doubles", b'\xff{"inputs": {"a": [1], "b": [1]}}'),
    ("doubles", b"[" * 100_000),
    ("longs", {"inputs": {"a": [1.0], "b": [2]}}),
    ("longs", {"inputs": {"a": [2**63], "b": [2]}}),
    ("integers", {"inputs": {"a": [2**31], "b": [2]}}),
    ("integers", {"inputs": [{"a": 1, "b": 2}]}),
    ("floats", {"inputs": {"a": [1e39], "b": [2]}}),
    ("floats", {"inputs": [{"a": 1.5, "b": 2}]}),
    ("unnamed", {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]]}}),
    ("unnamed", {"inputs": [[1, 2, 3]]}),
    ("unnamed", {"dataframe_records": [{"a": 1, "b": 2}]}),
    ("one", {"inputs": [1, 2]}),
    ("matrix", {"inputs": [[1, 2, 3]]}),
    ("matrix", {"inputs": {"x": [[1, 2]]}}),
    ("matrix", {"dataframe_split": {"columns": ["x", "x"], "data": [[0.1, 2]]}}),
    ("matrix", {"dataframe_records": [{"x": 1, "y": 2}]}),
    ("images", {"inputs": [[[0, 1, 2], [253, 254, 256]]]}),
    ("images", {"inputs": [[[0, 1, 2], [-1, 0, 0]]]}),
    ("images", {"inputs": [[[0, 1, 2], [1.0, 0, 0]]]}),
    ("series", {"inputs": [[1]]}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "payload"), HANDED_OVER, ids=lambda v: repr(v)[:60])
def test_what_is_not_plain_is_left_to_mlflow(name: str, payload: Any) -> None:
    assert decoded(MODELS[name], payload) is None


@pytest.mark.parametrize(
    ("content_type", "read"),
    [
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ("application/json;charset=UTF-8", True),
        ("application/json; charset=latin-1", False),
        ("application/json; profile=x", False),
        ("text/csv", False),
        ("", False),
        (None, False),
    ],
)
def test_only_json_in_utf_8_is_read(content_type: str | None, read: bool) -> None:
    found = decoded(DOUBLES, {"inputs": {"a": [1], "b": [2]}}, content_type)
    assert (found is not None) == read


@pytest.mark.parametrize(
    "metadata",
    [
        Model(),
        Model(signature=ModelSignature(params=ParamSchema([ParamSpec("p", DataType.long, 1)]))),
        model(ColSpec(DataType.double, "a"), ColSpec(DataType.long, "b")),
        model(ColSpec(DataType.double, "a"), ColSpec(DataType.double, "b", required=False)),
        columns(DataType.string, "a"),
        columns(DataType.boolean, "a"),
        columns(DataType.datetime, "a"),
        model(TensorSpec(np.dtype("float64"), (-1, -1))),
        model(TensorSpec(np.dtype("float64"), (1, 4))),
        model(TensorSpec(np.dtype("float64"), (-1, 4), name="x")),
        model(TensorSpec(np.dtype("O"), (-1,))),
        model(TensorSpec(np.dtype("bool"), (-1, 2))),
    ],
    ids=lambda m: str(m.signature and m.signature.inputs),
)
def test_other_signatures_have_no_layout(metadata: Model) -> None:
    assert layout_of(metadata) is None
    assert decoded(metadata, {"inputs": {"a": [1], "b": [2]}}) is None


def test_a_layout_says_what_rows_look_like() -> None:
    assert layout_of(FLOATS) == Layout("float32", ("a", "b"), (2,), tensor=False)
    assert layout_of(IMAGES) == Layout("uint8", None, (2, 3), tensor=True)


NUMBERS = st.one_of(
    st.floats(width=64), st.integers(), st.integers(-5, 5), st.integers(2**31 - 2, 2**31 + 2),
    st.sampled_from([0.5, 1e39, 2**53, 2**63, -(2**63), 2**64]),
)  # fmt: skip
ODD = st.one_of(st.none(), st.booleans(), st.just("1"), st.just([1]))
VALUES = st.one_of(NUMBERS, NUMBERS, NUMBERS, ODD)
NAMES = st.sampled_from([["a", "b"], ["b", "a"], ["a", "b"], ["a"], ["a", "b", "c"], ["a", "a"]])
ROWS = st.integers(1, 2).flatmap(
    lambda n: st.lists(st.lists(VALUES, min_size=2, max_size=2), min_size=n, max_size=n)
)
RECORDS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"a": VALUES, "b": VALUES}),
        st.fixed_dictionaries({"b": VALUES, "a": VALUES}),
        st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3),
    ),
    max_size=3,
)
BY_COLUMN = st.fixed_dictionaries(
    {name: st.lists(VALUES, min_size=1, max_size=2) for name in ("a", "b")}
)
PAYLOADS = st.one_of(
    st.builds(lambda c, d: {"dataframe_split": {"columns": c, "data": d}}, NAMES, ROWS),
    st.builds(lambda d: {"dataframe_split": {"data": d}}, ROWS),
    st.builds(lambda key, d: {key: d}, st.sampled_from(["inputs", "instances"]),
              st.one_of(ROWS, RECORDS, BY_COLUMN, st.lists(VALUES))),
    st.builds(lambda d: {"dataframe_records": d}, RECORDS),
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(payload=PAYLOADS, name=st.sampled_from(sorted(MODELS)))
def test_nothing_is_read_otherwise_than_by_mlflow(payload: dict[str, Any], name: str) -> None:
    found = decoded(MODELS[name], payload)
    if found is None:
        return
    expected = mlflows(MODELS[name], json.dumps(payload).encode())
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()
