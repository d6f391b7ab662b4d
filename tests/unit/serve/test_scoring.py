"""A scorer answers as MLflow's scoring code does, alone and in batches."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
from mlflow.models import infer_signature
from mlflow.models.signature import ModelSignature
from mlflow.pyfunc.scoring_server import predictions_to_json
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from sklearn.linear_model import LinearRegression

from serve.answer import JSON
from serve.encode import NotRowsError, encode, kind_of, slices, split
from serve.independence import Dependent, Independent, row_independence
from serve.scoring import Identity, Scorer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*An input example was not provided:UserWarning"),
    pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning"),
]

CONTENT_TYPE = "application/json"
EXAMPLE = pd.DataFrame({"a": [1.0, 2.0, 3.0, 5.0], "b": [0.5, -1.0, 4.0, 2.0]})
DOUBLES = Schema([ColSpec(DataType.double, "a"), ColSpec(DataType.double, "b")])


class Function(mlflow.pyfunc.PythonModel):
    """A model that is one function of its input."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        return self.function(model_input)


class Scaled(mlflow.pyfunc.PythonModel):
    """A model with a parameter."""

    def predict(self, context, model_input, params):  # type: ignore[no-untyped-def]
        return model_input["a"].to_numpy() * params["factor"]


def save(folder: Path, model: mlflow.pyfunc.PythonModel, **options: Any) -> Scorer:
    options.setdefault("signature", ModelSignature(inputs=DOUBLES))
    mlflow.pyfunc.save_model(folder / "model", python_model=model, pip_requirements=[], **options)
    return Scorer.load(str(folder / "model"), Identity("fraud", "3", "alice"))


@pytest.fixture
def scorer_of(tmp_path: Path) -> Callable[..., Scorer]:
    return lambda function, **options: save(tmp_path, Function(function), **options)


@pytest.fixture(scope="module", autouse=True)
def serving_environment() -> Iterator[None]:
    """What loading a scorer tells MLflow's environment is taken back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
        yield


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    path = tmp_path_factory.mktemp("linear") / "model"
    model = LinearRegression().fit(EXAMPLE, [1.0, 2.0, -3.0, 4.5])
    mlflow.sklearn.save_model(
        model, path, signature=infer_signature(EXAMPLE, [0.5]), input_example=EXAMPLE,
        pip_requirements=[],
    )  # fmt: skip
    return Scorer.load(str(path), Identity("fraud", "3", "alice"))


def request(*rows: list[Any], columns: tuple[str, ...] = ("a", "b")) -> tuple[str, bytes]:
    payload = {"dataframe_split": {"columns": list(columns), "data": list(rows)}}
    return CONTENT_TYPE, json.dumps(payload).encode()


def predictions(body: bytes) -> Any:
    return json.loads(body)["predictions"]


# -- one request


def test_good_requests_get_mlflows_answer(linear: Scorer) -> None:
    for good in (request([1, 2]), request([1.5, 2.5], [3, 4]), request([2, 1], columns=("b", "a"))):
        fast, exact = linear.answer(*good), linear.answer_exactly(*good)
        assert fast.status == exact.status == 200
        assert fast.content_type == exact.content_type == JSON
        assert predictions(fast.body) == pytest.approx(predictions(exact.body), rel=1e-12)


def test_the_answer_names_model_version_and_signer(linear: Scorer) -> None:
    expected = {
        b"x-chancery-model": b"fraud", b"x-chancery-version": b"3", b"x-chancery-signer": b"alice"
    }  # fmt: skip
    for body in (request([1, 2]), request([None, 2]), request(["x", 2])):
        assert dict(linear.answer(*body).headers) == expected


def test_a_signer_with_line_breaks_cannot_add_headers() -> None:
    headers = dict(Identity(signer="Zoë\r\nset-cookie: x=1 100%").headers())
    assert headers == {b"x-chancery-signer": b"Zo%C3%AB%0D%0Aset-cookie: x=1 100%25"}


@pytest.mark.parametrize(
    ("bad", "status", "words"),
    [
        (request(["x", 2]), 400, "Failed to convert column a"),
        (request([1], columns=("a",)), 400, "Model is missing inputs ['b']"),
        ((CONTENT_TYPE, b"{"), 400, "valid JSON"),
        ((CONTENT_TYPE, b""), 400, "valid JSON"),
        ((CONTENT_TYPE, b"[1]"), 400, "Received a list"),
        ((CONTENT_TYPE, b"{}"), 400, "exactly one of the input fields"),
        (("text/csv", b"\xff"), 400, "UTF-8"),
        (("text/plain", b"x"), 415, "only supports the following content types"),
        (("application/json; charset=latin-1", b"{}"), 415, "only supports UTF-8"),
        ((None, b"{}"), 500, "Internal Server Error"),
    ],
)
def test_errors_are_mlflows(
    linear: Scorer, bad: tuple[str | None, bytes], status: int, words: str
) -> None:
    answer = linear.answer(*bad)
    assert answer.status == status
    assert words in answer.body.decode()
    if status == 400:
        assert {"error_code", "message"} <= json.loads(answer.body).keys()


def test_csv_extra_columns_and_nulls_take_mlflows_way(linear: Scorer) -> None:
    one = linear.answer(*request([1, 2]))
    assert linear.answer("text/csv", b"a,b\n1,2\n").status == 200
    assert linear.answer(*request([1, 2, 9], columns=("a", "b", "c"))).body != b""
    wide = linear.answer(*request([1, 2, 9], columns=("a", "b", "c")))
    assert predictions(wide.body) == pytest.approx(predictions(one.body))
    assert linear.answer(*request([1, None])).status == 400  # scikit-learn refuses NaN


def test_params_reach_the_model(tmp_path: Path) -> None:
    params = ParamSchema([ParamSpec("factor", DataType.long, 2)])
    scorer = save(tmp_path, Scaled(), signature=ModelSignature(DOUBLES, params=params))
    scorer.prepare(EXAMPLE)
    payload: dict[str, Any] = {"inputs": {"a": [1.5, 2.0], "b": [0, 0]}}

    def ask(**more: Any) -> Any:
        return scorer.answer(CONTENT_TYPE, json.dumps({**payload, **more}).encode())

    assert predictions(ask().body) == [3.0, 4.0]
    assert predictions(ask(params={"factor": 10}).body) == [15.0, 20.0]
    assert predictions(ask(params={"unknown": 10}).body) == [3.0, 4.0]
    assert ask(params={"factor": "ten"}).status == 400
    assert ask(params=[]).status == 400
    assert scorer.batchable


def test_a_model_that_raises_is_answered_in_mlflows_words(scorer_of: Callable[..., Scorer]) -> None:
    def fail(frame: Any) -> Any:
        raise KeyError("broken")

    answer = scorer_of(fail).answer(*request([1, 2]))
    assert answer.status == 400
    body = json.loads(answer.body)
    assert body["error_code"] == "BAD_REQUEST"
    assert "unexpected error while evaluating the model" in body["message"]
    assert "KeyError: 'broken'" in body["stack_trace"]


def test_a_prediction_that_is_no_json_is_an_internal_error(
    scorer_of: Callable[..., Scorer],
) -> None:
    answer = scorer_of(lambda frame: {"set": {1, 2}}).answer(*request([1, 2]))
    assert (answer.status, answer.body) == (500, b"Internal Server Error")


def test_a_tensor_model_is_given_the_array(scorer_of: Callable[..., Scorer]) -> None:
    signature = ModelSignature(Schema([TensorSpec(np.dtype("float32"), (-1, 2))]))
    seen = []

    def remember(array: Any) -> Any:
        seen.append(array)
        return array.sum(axis=1)

    scorer = scorer_of(lambda array: array.sum(axis=1), signature=signature)
    scorer.model._predict_fn = remember
    answer = scorer.answer(CONTENT_TYPE, b'{"inputs": [[0.1, 2], [3, 4]]}')
    assert predictions(answer.body) == [float(np.float32(0.1) + np.float32(2)), 7.0]
    assert seen[0].dtype == np.float32


# -- batches


def test_requests_predicted_together_get_the_answers_of_single_ones(linear: Scorer) -> None:
    assert isinstance(linear.prepare(), Independent)
    assert linear.takes_arrays
    several = [request([i, i + 1], *([[0, 1]] * (i % 3))) for i in range(9)]
    together = linear.answer_batch(several)
    for asked, answer in zip(several, together, strict=True):
        exact = linear.answer_exactly(*asked)
        assert answer.status == 200
        assert predictions(answer.body) == pytest.approx(predictions(exact.body), rel=1e-9)


def test_one_call_serves_all_requests_of_a_batch(scorer_of: Callable[..., Scorer]) -> None:
    scorer = scorer_of(lambda frame: frame["a"].to_numpy() * 2)
    scorer.prepare(EXAMPLE)
    calls = []
    inner = scorer.model._predict_fn

    def counted(data: Any, params: Any = None) -> Any:
        calls.append(len(data))
        return inner(data)

    scorer.model._predict_fn = counted
    answers = scorer.answer_batch([request([i, 0]) for i in range(5)])
    assert calls == [5]
    assert [predictions(a.body) for a in answers] == [[0.0], [2.0], [4.0], [6.0], [8.0]]


def test_a_poison_row_fails_alone(scorer_of: Callable[..., Scorer]) -> None:
    def picky(frame: Any) -> Any:
        if (frame["a"] == 13).any():
            raise ValueError("thirteen")
        return frame["a"].to_numpy() + frame["b"].to_numpy()

    scorer = scorer_of(picky)
    assert isinstance(scorer.prepare(EXAMPLE), Independent)
    answers = scorer.answer_batch([request([1, 2]), request([13, 2]), request([5, 6])])
    assert [a.status for a in answers] == [200, 400, 200]
    assert predictions(answers[2].body) == [11.0]
    assert "thirteen" in json.loads(answers[1].body)["stack_trace"]


def test_requests_of_all_sorts_share_a_batch(linear: Scorer) -> None:
    linear.prepare()
    answers = linear.answer_batch(
        [
            request([1, 2]),
            ("text/csv", b"a,b\n1,2\n"),
            (None, b""),
            request(["x", 1]),
            request([1, 2]),
        ]
    )
    assert [a.status for a in answers] == [200, 200, 500, 400, 200]
    assert predictions(answers[0].body) == pytest.approx(predictions(answers[1].body))
    assert answers[0].body == answers[4].body


def test_a_batch_that_comes_back_otherwise_is_predicted_singly(
    scorer_of: Callable[..., Scorer],
) -> None:
    def sometimes(frame: Any) -> Any:
        whole = frame["a"].to_numpy() * 2
        return whole[:1] if len(frame) == 3 else whole

    scorer = scorer_of(sometimes)
    assert scorer.prepare(EXAMPLE[:2]), "the probe never sees three rows"
    answers = scorer.answer_batch([request([i, 0]) for i in range(3)])
    assert [predictions(a.body) for a in answers] == [[0.0], [2.0], [4.0]]


def test_unprobed_models_are_not_batched(scorer_of: Callable[..., Scorer]) -> None:
    scorer = scorer_of(lambda frame: [len(frame)] * len(frame))
    assert not scorer.batchable
    answers = scorer.answer_batch([request([1, 2]), request([3, 4])])
    assert [predictions(a.body) for a in answers] == [[1], [1]]


def test_predict_batch_gives_parts_of_the_models_own_type(scorer_of: Callable[..., Scorer]) -> None:
    scorer = scorer_of(lambda frame: frame * 2)
    scorer.prepare(EXAMPLE)
    one, two = scorer.predict_batch([np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]])])
    assert one.to_dict("list") == {"a": [2.0], "b": [4.0]}
    assert two.to_dict("list") == {"a": [6.0, 10.0], "b": [8.0, 12.0]}


def test_a_torch_model_is_batched_within_32_bit_accuracy(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    example = EXAMPLE.to_numpy(np.float32)
    mlflow.pytorch.save_model(
        net, tmp_path / "m", signature=infer_signature(example, example[:, :1]),
        input_example=example, pip_requirements=[],
    )  # fmt: skip
    scorer = Scorer.load(str(tmp_path / "m"))
    found = scorer.prepare()
    assert isinstance(found, Independent)
    assert found.deviation <= 1e-5
    asked = [(CONTENT_TYPE, json.dumps({"inputs": [[i, 0.5]]}).encode()) for i in range(8)]
    for body, answer in zip(asked, scorer.answer_batch(asked), strict=True):
        expected = predictions(scorer.answer_exactly(*body).body)[0]
        assert predictions(answer.body)[0] == pytest.approx(expected, rel=1e-5)


# -- the probe


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda f: f["a"].to_numpy() - f["a"].mean(), "same prediction"),
        (lambda f: (f["a"] / f["a"].sum() + f["b"]).to_numpy(), "changes with the rows beside it"),
        (lambda f: f["a"].to_numpy()[::-1], "changes with the rows beside it"),
        (lambda f: f["a"].to_numpy()[:1], "failed: NotRowsError"),
        (lambda f: f["a"].sum(), "too few"),
        (lambda f: np.random.default_rng().normal(size=len(f)), "different predictions"),
        (lambda f: [1] * len(f), "same prediction"),
        (lambda f: f["a"].to_numpy() if len(f) == 1 else list(f["a"]), "batches become"),
        (lambda f: 1 / 0, "division by zero"),
    ],
)
def test_models_whose_rows_depend_on_each_other(
    scorer_of: Callable[..., Scorer], function: Callable[[Any], Any], words: str
) -> None:
    scorer = scorer_of(function)
    found = scorer.prepare(EXAMPLE)
    assert isinstance(found, Dependent)
    assert words in found.reason
    assert not scorer.batchable


@pytest.mark.parametrize(
    "function",
    [
        lambda f: f["a"].to_numpy(),
        lambda f: f["a"] * f["b"],
        lambda f: f,
        lambda f: [{"label": "high" if a > 2 else "low", "score": a} for a in f["a"]],
        lambda f: f["a"].where(f["a"] > 2).to_numpy(),
        lambda f: np.where(f["a"] > 2, "high", "low"),
    ],
)
def test_models_whose_rows_are_independent(
    scorer_of: Callable[..., Scorer], function: Callable[[Any], Any]
) -> None:
    found = scorer_of(function).prepare(EXAMPLE)
    assert isinstance(found, Independent), found
    assert (found.exact, found.deviation) == (True, 0.0)
    assert found.rows >= 12


def test_how_far_batches_may_be_off(scorer_of: Callable[..., Scorer]) -> None:
    scorer = scorer_of(lambda f: f["a"].to_numpy() * (1 + 1e-12 * (len(f) > 1)))
    found = scorer.prepare(EXAMPLE)
    assert isinstance(found, Independent)
    assert not found.exact
    assert found.deviation == pytest.approx(1e-12, rel=0.01)


def test_32_bit_models_may_be_off_further(scorer_of: Callable[..., Scorer]) -> None:
    def rough(frame: Any) -> Any:
        return (frame["a"] * (1 + 1e-6 * (len(frame) > 1))).to_numpy(np.float32)

    assert isinstance(scorer_of(rough).prepare(EXAMPLE), Independent)


def test_without_an_example_rows_are_made_from_the_signature(
    scorer_of: Callable[..., Scorer],
) -> None:
    schema = Schema([ColSpec(DataType.integer, "a"), ColSpec(DataType.integer, "b")])
    scorer = scorer_of(lambda f: f["a"] * 2 + f["b"], signature=ModelSignature(schema))
    assert isinstance(row_independence(scorer), Independent)


def test_a_signature_that_is_not_one_type_is_not_batched(scorer_of: Callable[..., Scorer]) -> None:
    schema = Schema([ColSpec(DataType.double, "a"), ColSpec(DataType.string, "b")])
    found = scorer_of(lambda f: f["a"], signature=ModelSignature(schema)).prepare()
    assert isinstance(found, Dependent)
    assert "one numeric type" in found.reason


def test_only_models_that_answer_alike_are_given_arrays(tmp_path: Path) -> None:
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import make_pipeline

    needs_names = ColumnTransformer([("first", "passthrough", ["a"])])
    model = make_pipeline(needs_names, LinearRegression()).fit(EXAMPLE, EXAMPLE["a"] * 2)
    mlflow.sklearn.save_model(
        model, tmp_path / "m", signature=infer_signature(EXAMPLE), pip_requirements=[]
    )
    scorer = Scorer.load(str(tmp_path / "m"))
    assert isinstance(scorer.prepare(EXAMPLE), Independent)
    assert not scorer.takes_arrays
    assert predictions(scorer.answer(*request([1.0, 0.5])).body) == pytest.approx([2.0])


# -- the bytes


def mlflows(raw: Any) -> Any:
    from io import StringIO

    buffer = StringIO()
    predictions_to_json(raw, buffer)
    return json.loads(buffer.getvalue())


RAW = [
    np.array([0.1, 1e16, 5e-324, -0.0]),
    np.array([0.1, 3e38], dtype=np.float32),
    np.array([0.1], dtype=np.float16),
    np.array([[1, 2], [3, 2**62]]),
    np.array([2**64 - 1], dtype=np.uint64),
    np.array([True, False]),
    np.array(["a", "ü\u2028"]),
    np.array([{"a": 1}, None], dtype=object),
    np.array([np.datetime64("2026-01-01T00:00:00")]),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(6.0)[::2],
    np.array(3.5),
    np.empty((0, 2)),
    pd.DataFrame({"a": [0.1, 2], "b": [1, 2]}),
    pd.DataFrame({"a": np.array([0.1, 2], dtype=np.float32)}),
    pd.DataFrame(np.ones((2, 2))),
    pd.DataFrame({"a": ["x", None], "b": [True, False]}),
    pd.DataFrame({"a": pd.array([1, None], dtype="Int64").to_numpy(object)}),
    pd.DataFrame({"a": [1.0, math.nan]}),
    pd.DataFrame(),
    pd.Series([1.5, 2.5]),
    pd.Series([1, 2], name="n"),
    pd.Series(["a", "b"]),
    [1, 2.5, "x"],
    [np.float32(0.1), np.int64(3)],
    [math.inf, math.nan],
    ["\ud800"],
    [datetime.date(2026, 1, 1), b"bytes"],
    {"nested": [np.arange(3)]},
    "text",
    1.5,
    None,
]


@pytest.mark.parametrize("raw", RAW, ids=lambda r: repr(r)[:40])
def test_bodies_parse_to_what_mlflow_writes(raw: Any) -> None:
    try:
        expected = mlflows(raw)
    except TypeError:
        with pytest.raises(TypeError):
            encode(raw)
        return
    assert repr(json.loads(encode(raw))) == repr(expected)  # repr: NaN is NaN, 1 is not 1.0


@pytest.mark.parametrize("raw", RAW, ids=lambda r: repr(r)[:40])
def test_parts_of_a_batch_are_encoded_like_the_parts(raw: Any) -> None:
    try:
        one, two = slices(raw, [1, 1])
        expected = [mlflows(one), mlflows(two)]
    except (NotRowsError, TypeError):
        return
    assert [repr(json.loads(body)) for body in split(raw, [1, 1])] == list(map(repr, expected))


@pytest.mark.parametrize("raw", [np.ones(3), np.array(1.0), [1], {"a": 1}, "ab", None, 7])
def test_what_has_not_the_rows_cannot_be_split(raw: Any) -> None:
    with pytest.raises(NotRowsError):
        split(raw, [1, 1])


def test_kinds_tell_apart_what_is_encoded_differently() -> None:
    assert kind_of(np.array(["a"])) == kind_of(np.array(["longer"]))
    assert kind_of(np.array([1])) != kind_of(np.array([1.0]))
    assert kind_of(np.ones((2, 3))) != kind_of(np.ones((2, 4)))
    assert kind_of(pd.DataFrame({"a": [1]})) != kind_of(pd.DataFrame({"a": [1.5]}))
    assert kind_of(pd.Series([1])) != kind_of(pd.Series([1], name="n"))
