"""The same requests to ``mlflow models serve`` and to our listener get the same answers.

Status, content type and body are compared. What cannot be equal to the byte, and why:

- JSON texts differ in spaces and in the form of numbers (``1e16``, ``1e+16``): values are compared,
  floats within 1e-12, because a prediction from an array may add in another order than one from a
  DataFrame.
- MLflow's messages print Python sets, whose order changes from process to process, and addresses of
  objects: messages are compared as bags of words, without addresses.
- An error that holds a stack trace names the frames that led there: only the error code and the
  first line of the message are compared, and that both hold a trace.
- ``/docs``, ``/redoc`` and ``/openapi.json``, which FastAPI adds by itself, are not ours.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import requests
import uvicorn
from mlflow.models import infer_signature
from mlflow.models.signature import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from sklearn.linear_model import LinearRegression

from benchmarks.surroundings import free_port
from serve.answer import Answer
from serve.asgi import ScoringApp
from serve.batching import Batcher, ThreadLane
from serve.scoring import Identity, Scorer

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:mlflow.*"),
    pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning"),
    pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning"),
]

JSON = {"content-type": "application/json"}
FRAME = pd.DataFrame({"a": [1.0, 2.0, 3.0, 5.0], "größe": [0.5, -1.0, 4.0, 2.0]})


# -- models: plain numbers, mixed columns with params, whole numbers, a tensor


def save_models(folder: Path) -> dict[str, Path]:
    """One model for each way a request can go. Local classes travel inside the model."""

    class Mixed(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params):  # type: ignore[no-untyped-def]
            if (model_input["text"] == "raise").any():
                raise RuntimeError("asked to")
            long = model_input["text"].str.len() * params["factor"]
            return pd.DataFrame({"text": model_input["text"], "long": long})

    class Whole(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            return model_input["n"] - model_input["m"]

    class Tensor(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            return np.sqrt(model_input)

    mixed = Schema([ColSpec(DataType.string, "text"), ColSpec(DataType.double, "x", False)])
    params = ParamSchema([ParamSpec("factor", DataType.long, 1)])
    whole = Schema([ColSpec(DataType.long, "n"), ColSpec(DataType.long, "m")])
    tensor = Schema([TensorSpec(np.dtype("float32"), (-1, 2))])
    signatures = {
        Mixed: ModelSignature(mixed, params=params),
        Whole: ModelSignature(whole),
        Tensor: ModelSignature(tensor),
    }
    for model, signature in signatures.items():
        mlflow.pyfunc.save_model(
            folder / model.__name__.lower(), python_model=model(), signature=signature,
            pip_requirements=[],
        )  # fmt: skip
    linear = LinearRegression().fit(FRAME, [1.0, 2.0, -3.0, 4.5])
    mlflow.sklearn.save_model(
        linear, folder / "linear", signature=infer_signature(FRAME, [0.5]), input_example=FRAME,
        pip_requirements=[],
    )  # fmt: skip
    return {name: folder / name for name in ("linear", "mixed", "whole", "tensor")}


# -- both servers


class Pair(NamedTuple):
    """Addresses of MLflow's server and of ours, for one model."""

    mlflows: str
    ours: str


def start_mlflows(model: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model),
        "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with log.open("wb") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def our_server(model: Path, port: int) -> uvicorn.Server:
    scorer = Scorer.load(str(model), Identity("fraud", "3", "alice"))
    scorer.prepare()
    batcher: Batcher[tuple[str | None, bytes], Answer] = Batcher(ThreadLane(scorer.answer_batch))

    async def submit(body: bytes, headers: Mapping[str, str]) -> Answer:
        return await batcher.submit((headers.get("content-type"), body))

    app: Any = ScoringApp(submit, version=mlflow.__version__)
    return uvicorn.Server(
        uvicorn.Config(app, port=port, interface="asgi3", log_config=None, access_log=False)
    )


def wait_for(address: str, process: subprocess.Popen[bytes] | None, log: Path | None) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        try:
            if requests.get(f"{address}/ping", timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(0.2)
    pytest.fail(f"{address} was not ready:\n{log.read_text()[-3000:] if log else ''}")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pair]]:
    folder = tmp_path_factory.mktemp("serving")
    models = save_models(folder)
    pairs, processes, threads, ours = {}, {}, [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")  # taken back afterwards
        try:
            for name, path in models.items():
                theirs, own = free_port(), free_port()
                pairs[name] = Pair(f"http://127.0.0.1:{theirs}", f"http://127.0.0.1:{own}")
                processes[name] = start_mlflows(path, theirs, folder / f"{name}.log")
                ours.append(our_server(path, own))
                threads.append(threading.Thread(target=ours[-1].run, daemon=True))
                threads[-1].start()
            for name, pair in pairs.items():
                wait_for(pair.ours, None, None)
                wait_for(pair.mlflows, processes[name], folder / f"{name}.log")
            yield pairs
        finally:
            for server in ours:
                server.should_exit = True
            for process in processes.values():
                os.killpg(process.pid, signal.SIGTERM)
            for process in processes.values():
                process.wait(30)
            for thread in threads:
                thread.join(30)


# -- comparing


def ask(address: str, method: str, path: str, **options: Any) -> requests.Response:
    return requests.request(
        method, f"{address}{path}", timeout=60, allow_redirects=False, **options
    )


def words(message: str) -> list[str]:
    return sorted(re.findall(r"\w+", re.sub(r"0x[0-9a-f]+", "", message)))


def same(one: Any, two: Any) -> bool:
    """Equal but for the last digits of floats; NaN is NaN."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=1e-12) or (math.isnan(one) and math.isnan(two))
    return type(one) is type(two) and bool(one == two)


def compare(pair: Pair, method: str, path: str, **options: Any) -> requests.Response:
    """Ask both; fail where they differ. MLflow's answer."""
    theirs = ask(pair.mlflows, method, path, **options)
    ours = ask(pair.ours, method, path, **options)
    assert ours.status_code == theirs.status_code, (theirs.text, ours.text)
    assert ours.headers.get("content-type") == theirs.headers.get("content-type")
    assert ours.headers.get("allow") == theirs.headers.get("allow")
    try:
        expected, found = theirs.json(), ours.json()
    except ValueError:
        assert words(ours.text) == words(theirs.text)
        return theirs
    if isinstance(expected, dict) and "error_code" in expected:
        assert found.keys() == expected.keys()
        traced = "stack_trace" in expected
        for key in expected.keys() - {"message", "stack_trace"}:
            assert found[key] == expected[key]
        one, two = expected["message"], found["message"]
        assert words(two.split("\n")[0] if traced else two) == words(
            one.split("\n")[0] if traced else one
        )
    else:
        assert same(expected, found), (theirs.text[:500], ours.text[:500])
    return theirs


def body_of(payload: Any) -> bytes:
    return payload if isinstance(payload, bytes) else json.dumps(payload).encode()


def split(*rows: list[Any], columns: Any = ("a", "größe"), **more: Any) -> dict[str, Any]:
    return {"dataframe_split": {"columns": list(columns), "data": list(rows), **more}}


NAN, INF = math.nan, math.inf

NUMBERS: list[tuple[int, Any]] = [
    (200, split([1.5, 2])),
    (200, split([1.5, 2], [3, 4], [-1e300, 5e-324])),
    (200, split([1.5, 2], columns=("größe", "a"))),
    (200, split([1.5, 2], index=[0])),
    (200, split([1.5, 2], index=["x"])),
    (200, split([1.5, 2, 3], columns=("a", "größe", "extra"))),
    (200, {"dataframe_records": [{"a": 1, "größe": 2.5}, {"größe": 1, "a": 0}]}),
    (200, {"dataframe_records": [{"a": 1, "größe": 2.5, "extra": "x"}]}),
    (200, {"instances": [{"a": 1, "größe": 2.5}]}),
    (200, {"inputs": {"a": [1, 2], "größe": [2.5, 3]}}),
    (200, {"inputs": [{"a": 1.5, "größe": 2.5}]}),
    (200, {"inputs": {"a": 1, "größe": 2}}),
    (200, split([True, 2])),
    (200, split([2**53 + 1, 2**60 + 1])),
    (200, split([2**70, 1])),
    (200, {**split([1.5, 2]), "params": {"unknown": 1}}),
    (200, {**split([1.5, 2]), "params": None}),
    (200, {**split([1.5, 2]), "anything": 1}),
    (200, split(["1.5", "2"])),
    (400, split([None, 2])),
    (400, split([NAN, 2])),
    (400, split([INF, 2])),
    (400, split(["x", 2])),
    (400, split([1.5])),
    (400, split([1.5, 2], [3])),
    (400, split([1.5], columns=("a",))),
    (400, split([[1.5], 2])),
    (400, split()),
    (400, split([1, 1], columns=("a", "a"))),
    (200, split([1.5, 2], index=[0, 1])),  # pandas repeats the row
    (400, split([1.5, 2], [3, 4], index=[0])),
    (400, split([1.5, 2], more=1)),
    (400, {"dataframe_split": {"columns": ["a", "größe"]}}),
    (400, {"dataframe_split": [[1, 2]]}),
    (400, {"dataframe_records": {"a": 1, "größe": 2}}),
    (400, {"dataframe_records": []}),
    (400, {"dataframe_records": [{"a": 1}, {"größe": 2}]}),
    (400, {"inputs": [[1.5, 2]]}),
    (400, {"inputs": {"a": [1], "größe": [2, 3]}}),
    (400, {"inputs": {"a": [[1, 2]], "größe": [[3, 4]]}}),
    (400, {"instances": {"a": [1], "größe": [2, 3]}}),
    (400, {"instances": [[1, [2, 3]]]}),
    (400, {"inputs": None}),
    (400, {"inputs": []}),
    (400, {"inputs": {"a": [1], "größe": [2]}, "instances": []}),
    (400, {"input": {"a": [1], "größe": [2]}}),
    (400, {"messages": []}),
    (400, {"predictions": [1]}),
    (400, {}),
    (400, [1]),
    (400, "text"),
    (400, None),
    (400, b""),
    (400, b"{"),
    (400, b'{"inputs": [1,]}'),
    (400, b"\xff\xfe"),
    (400, b'{"inputs": "\xff"}'),
    (200, "\ufeff".encode() + json.dumps(split([1.5, 2])).encode()),
    (400, '{"inputs": {"a": ["ünïcödé \U0001f600 \\ud800"], "größe": [1]}}'.encode()),
    (500, b"[" * 200_000),
]  # fmt: skip

MIXED: list[tuple[int, Any]] = [
    (200, {"dataframe_split": {"columns": ["text", "x"], "data": [["ünï\U0001f600", 1.5]]}}),
    (200, {"dataframe_records": [{"text": "a"}, {"text": "bcd"}]}),
    (200, {"inputs": {"text": ["a"], "x": [1.5]}}),
    (200, {"inputs": {"text": ["a"]}, "params": {"factor": 3}}),
    (200, {"inputs": {"text": ["a"]}, "params": {"unknown": 3}}),
    (200, {"inputs": {"text": ["a"]}, "params": {}}),
    (400, {"inputs": {"text": ["a"]}, "params": {"factor": "x"}}),
    (400, {"inputs": {"text": ["a"]}, "params": {"factor": 1.5}}),
    (400, {"inputs": {"text": ["a"]}, "params": [1]}),
    (400, {"inputs": {"x": [1.5]}}),
    (400, {"inputs": {"text": ["raise"]}}),
    (400, {"dataframe_records": [{"text": "a", "x": "y"}]}),
    (400, {"dataframe_records": [{"text": 5}]}),
]

WHOLE: list[tuple[int, Any]] = [
    (200, split([7, 2], columns=("n", "m"))),
    (200, split([2**53 + 1, 1], [2**63 - 1, 0], columns=("n", "m"))),
    (200, split([7.0, 2], columns=("n", "m"))),
    (200, split([7.5, 2], columns=("n", "m"))),
    (200, {"inputs": {"n": [1], "m": [-1]}}),
    (200, {"inputs": {"n": [1.5], "m": [True]}}),
    (200, split([2**63, 1], columns=("n", "m"))),  # wraps round
    (400, split([2**70, 1], columns=("n", "m"))),
    (400, split([None, 1], columns=("n", "m"))),
    (400, {"inputs": {"n": [2**70], "m": [1]}}),
    (400, {"inputs": {"n": ["x"], "m": [1]}}),
]

TENSOR: list[tuple[int, Any]] = [
    (200, {"inputs": [[0.1, 2], [3, 4]]}),
    (200, {"instances": [[0.1, 2]]}),
    (200, {"inputs": [[-1.0, 2]]}),
    (200, {"inputs": [[1e39, 2]]}),
    (200, {"inputs": [[None, 2]]}),
    (200, {"inputs": [["1.5", True]]}),
    (200, {"dataframe_split": {"columns": ["x", "y"], "data": [[0.1, 2], [3, 4]]}}),
    (200, {"dataframe_records": [{"x": 0.1, "y": 2}]}),
    (400, {"inputs": [[1, 2, 3]]}),
    (400, {"inputs": [[1, 2], [3]]}),
    (400, {"inputs": [1, 2]}),
    (400, {"inputs": [["x", 2]]}),
    (400, {"inputs": {"x": [[1, 2]]}}),
    (400, {"dataframe_split": {"columns": ["x"], "data": [[1]]}}),
    (400, {"dataframe_split": {"columns": ["x"], "data": []}}),
]

CASES = [
    pytest.param(name, status, body_of(payload), id=f"{name}-{body_of(payload)[:70]!r}")
    for name, cases in (("linear", NUMBERS), ("mixed", MIXED), ("whole", WHOLE), ("tensor", TENSOR))
    for status, payload in cases
]


@pytest.mark.parametrize(("name", "status", "body"), CASES)
def test_json(servers: dict[str, Pair], name: str, status: int, body: bytes) -> None:
    told = compare(servers[name], "POST", "/invocations", data=body, headers=JSON)
    assert told.status_code == status, told.text[:500]


@pytest.mark.parametrize(
    "body",
    [b"a,gr\xc3\xb6\xc3\x9fe\n1.5,2\n3,4\n", b"gr\xc3\xb6\xc3\x9fe,a\n1,2\n", b"a\n1\n",
     b"a,gr\xc3\xb6\xc3\x9fe\nx,2\n", b"a,gr\xc3\xb6\xc3\x9fe\n", b"a,gr\xc3\xb6\xc3\x9fe\n,2\n",
     b"", b"\xff\xfe"],
)  # fmt: skip
def test_csv(servers: dict[str, Pair], body: bytes) -> None:
    compare(servers["linear"], "POST", "/invocations", data=body,
            headers={"content-type": "text/csv"})  # fmt: skip


def test_parquet(servers: dict[str, Pair]) -> None:
    buffer = io.BytesIO()
    FRAME.to_parquet(buffer)
    headers = {"content-type": "application/vnd.apache.parquet"}
    for body in (buffer.getvalue(), b"PAR1"):
        compare(servers["linear"], "POST", "/invocations", data=body, headers=headers)


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "application/json; charset=utf-8", "application/json;charset=UTF-8",
     "application/json; charset=latin-1", "application/json; profile=x", "APPLICATION/JSON",
     "application/x-www-form-urlencoded", "text/csv; charset=utf-8", "application/json;"],
)  # fmt: skip
def test_content_types(servers: dict[str, Pair], content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    body = json.dumps(split([1.5, 2])).encode()
    compare(servers["linear"], "POST", "/invocations", data=body, headers=headers)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/ping"), ("GET", "/health"), ("GET", "/version"), ("GET", "/invocations"),
     ("PUT", "/invocations"), ("DELETE", "/invocations"), ("OPTIONS", "/invocations"),
     ("HEAD", "/invocations"), ("POST", "/ping"), ("HEAD", "/ping"), ("GET", "/"),
     ("GET", "/nowhere"), ("POST", "/nowhere"), ("GET", "/metrics")],
)  # fmt: skip
def test_routes(servers: dict[str, Pair], method: str, path: str) -> None:
    compare(servers["linear"], method, path)


def test_a_trailing_slash(servers: dict[str, Pair]) -> None:
    pair = servers["linear"]
    theirs = compare(pair, "POST", "/invocations/?x=1%2F2", data=b"{}", headers=JSON)
    ours = ask(pair.ours, "POST", "/invocations/?x=1%2F2", data=b"{}", headers=JSON)
    assert theirs.status_code == 307
    assert ours.headers["location"] == theirs.headers["location"].replace(pair.mlflows, pair.ours)


def test_many_at_once_get_the_same_answers(servers: dict[str, Pair]) -> None:
    """Batched with strangers, some of whose requests are bad."""
    pair = servers["linear"]
    good = [body_of(split(*[[i, j] for j in range(1 + i % 3)])) for i in range(20)]
    bad = [body_of(split([None, i])) for i in range(4)]
    expected = {
        body: ask(pair.mlflows, "POST", "/invocations", data=body, headers=JSON)
        for body in (*good, *bad)
    }
    with ThreadPoolExecutor(16) as pool:
        bodies = [*good, *bad] * 6
        answers = list(
            pool.map(lambda b: ask(pair.ours, "POST", "/invocations", data=b, headers=JSON), bodies)
        )
    for body, answer in zip(bodies, answers, strict=True):
        assert answer.status_code == expected[body].status_code
        assert answer.headers["x-chancery-version"] == "3"
        if answer.ok:
            assert same(expected[body].json(), answer.json())
