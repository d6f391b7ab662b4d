"""Recorders at work: of pyfunc models, and of what replicas answer."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from drift.bins import category_of
from drift.block_folder import BlockFolder
from drift.block_rows import rows_of
from drift.blocks import Block
from drift.fitting import fit_profile
from drift.profile import DriftProfile
from drift.pyfunc_recorder import recorded
from drift.recorder import Recorder
from drift.recording import RECORD_SAMPLE, RECORD_SPOOL, Recording, recorder_of, share_of
from drift.served_bodies import predictions_in, rows_in
from drift.served_recorder import RECORD_PROFILES, ServedRecorder, open_recorder
from drift.window import count_rows
from governance import recording_port
from governance.errors import ConfigurationError
from governance.recording_port import RECORD_TO, ServedModel
from tests.unit.drift.monitor_world import PROFILE, World
from tests.unit.drift.reference import live_rows, reference_rows


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "profiles" / "fraud"
    folder.mkdir(parents=True)
    (folder / "7.json").write_bytes(PROFILE.to_json())
    return {
        RECORD_TO: str(tmp_path / "blocks"),
        RECORD_PROFILES: str(tmp_path / "profiles"),
        RECORD_SPOOL: str(tmp_path / "spool"),
    }


def blocks_in(folder: Path) -> list[Block]:
    found = BlockFolder(folder)
    return [found.read(entry) for entry in found.entries()]


def where(tmp_path: Path) -> Path:
    return tmp_path / "blocks" / "fraud" / "7" / "_"


class Model:
    """Says how much the amount is."""

    answers = 0

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> Any:
        self.answers += 1
        return np.tanh(np.asarray(data["amount"], dtype=float))


def frame(rows: int, seed: int = 1) -> pd.DataFrame:
    table = live_rows(rows, seed)
    del table["score"]
    return pd.DataFrame(table)


# -- pyfunc


def test_a_recorded_model_answers_as_before_and_is_watched(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    model = recorded(Model(), PROFILE, version="7", to=tmp_path / "blocks", environ=environ)
    table = frame(600)
    answers = [
        model.predict(table.iloc[:500]),
        model.predict(table.iloc[500:], {"request_id": "mine"}),
    ]
    assert model.answers == 2
    np.testing.assert_array_equal(np.concatenate(answers), np.tanh(table["amount"]))
    model.close()
    (block,) = blocks_in(where(tmp_path))
    assert block.rows == 600
    assert list(block.outputs) == ["score"]
    assert block.request_id is not None
    assert block.request_id[599] == "mine"
    assert block.request_id[0].endswith("-0")
    assert block.request_row[[0, 499, 500, 599]].tolist() == [0, 499, 0, 99]
    np.testing.assert_array_equal(block.inputs["amount"], table["amount"])
    world = World(tmp_path)
    watched = world.monitor(blocks=where(tmp_path))
    world.now = int(time.time() * 1000)
    world.run(watched)
    assert watched.status.windows == 1
    assert world.notes.reports[0].counts.missing_columns == {}


def test_ids_may_be_a_column(tmp_path: Path, environ: dict[str, str]) -> None:
    model = recorded(
        Model(), PROFILE, version="7", to=tmp_path / "blocks", id_column="order", environ=environ
    )
    table = frame(3).assign(order=["a", "b", "c"])
    model.predict(table)
    model.close()
    (block,) = blocks_in(where(tmp_path))
    assert block.request_id is not None
    assert block.request_id.tolist() == ["a", "b", "c"]
    assert block.request_row.tolist() == [0, 0, 0]
    assert "order" not in block.inputs
    assert block.extra == ()


def test_what_cannot_be_recorded_is_answered_and_counted(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    class Odd(Model):
        def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> Any:
            return object()

    model = recorded(Odd(), PROFILE, version="7", to=tmp_path / "blocks", environ=environ)
    assert type(model.predict(frame(2))) is object
    assert model.recorded.malformed == 1
    model.close()


def test_personal_columns_leave_as_the_profile_says(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    profile = fit_profile(
        reference_rows(5000),
        {"score": np.random.default_rng(0).random(5000)},
        model="fraud",
        window=100,
        pii={"amount": "bin", "town": "mask"},
    )
    model = recorded(Model(), profile, version="7", to=tmp_path / "blocks", environ=environ)
    model.predict(frame(200).assign(name="Ada"))
    model.close()
    (block,) = blocks_in(where(tmp_path))
    assert len(np.unique(block.inputs["amount"])) <= 12
    assert set(block.inputs["town"]) == {1.0}
    assert "name" not in block.inputs
    (file,) = where(tmp_path).iterdir()
    assert b"Ada" not in file.read_bytes()
    assert b"Bergen" not in file.read_bytes()


# -- the thread, the spool


def test_while_the_folder_is_away_blocks_wait_over_a_restart(tmp_path: Path) -> None:
    (tmp_path / "blocks").write_text("not a folder")
    folder, spool = tmp_path / "blocks" / "fraud", tmp_path / "spool"
    first = Recording.open(folder, recorder_of(PROFILE), spool=spool, flush_s=0.01)
    first.recorder.append(frame(5), [0.1] * 5, "7")
    first.close()
    assert first.spool.last_error
    (tmp_path / "blocks").unlink()
    second = Recording.open(folder, recorder_of(PROFILE), spool=spool, flush_s=0.01)
    second.recorder.append(frame(7), [0.1] * 7, "7")
    second.close()
    assert sorted(block.rows for block in blocks_in(folder)) == [5, 7]
    assert len({block.source for block in blocks_in(folder)}) == 2
    assert [path.name for path in spool.iterdir()] == [second.recorder.source]


def test_a_living_recorders_spool_is_left_alone(tmp_path: Path) -> None:
    folder, spool = tmp_path / "blocks", tmp_path / "spool"
    first = Recording.open(folder, recorder_of(PROFILE), spool=spool, flush_s=3600)
    second = Recording.open(folder, recorder_of(PROFILE), spool=spool, flush_s=0.01)
    second.close()
    assert (spool / first.recorder.source).is_dir()
    first.recorder.append(frame(5), [0.1] * 5, "7")
    first.close()
    assert [block.rows for block in blocks_in(folder)] == [5]


def test_a_killed_process_loses_only_what_it_had_not_written(tmp_path: Path) -> None:
    folder, spool = tmp_path / "blocks", tmp_path / "spool"
    folder.write_text("not a folder")
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from drift.recording import Recording\nfrom drift.recorder import Recorder\n"
        "one = Recording.open(Path(sys.argv[1]), Recorder('s-1', model='fraud'),"
        " spool=Path(sys.argv[2]), flush_s=0.01)\n"
        "one.recorder.append([[1.0]], [2.0], '7')\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), str(spool)])
    until(lambda: bool(list(spool.rglob("*.arrow"))))
    process.kill()
    process.wait(30)
    folder.unlink()
    own = Recording.open(folder, Recorder("s-2", model="fraud"), spool=spool, flush_s=0.01)
    own.close()
    assert [block.source for block in blocks_in(folder)] == ["s-1"]


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("share", ["0", "2", "half", "nan"])
def test_a_share_that_is_none_is_refused(share: str) -> None:
    with pytest.raises(ConfigurationError, match=RECORD_SAMPLE):
        share_of({RECORD_SAMPLE: share})
    assert share_of({RECORD_SAMPLE: "0.25"}) == 0.25
    assert share_of({}) == 1.0


# -- the port


def test_recording_is_off_unless_the_machine_says_so(environ: dict[str, str]) -> None:
    assert recording_port.open_recorder(ServedModel("fraud", "7"), {}) is None
    found = recording_port.open_recorder(ServedModel("fraud", "7"), environ)
    assert isinstance(found, ServedRecorder)
    found.close()


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("loans", {}),  # has no profile
        ("fraud", {RECORD_SAMPLE: "all"}),
        ("fraud", {RECORD_TO: "http://somewhere/blocks"}),
    ],
)
def test_what_cannot_be_recorded_is_served_all_the_same(
    environ: dict[str, str], model: str, change: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    served = ServedModel(model, "7")
    with pytest.raises(ConfigurationError):
        open_recorder(served, {**environ, **change})
    assert recording_port.open_recorder(served, {**environ, **change}) is None
    assert "is not recorded" in caplog.text


def test_a_profile_of_another_model_records_nothing(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    document = json.loads(PROFILE.to_json())
    document["model"] = "loans"
    DriftProfile.from_json(json.dumps(document))
    (tmp_path / "profiles" / "fraud" / "7.json").write_text(json.dumps(document))
    assert recording_port.open_recorder(ServedModel("fraud", "7"), environ) is None


def test_batches_and_bodies_become_blocks(tmp_path: Path, environ: dict[str, str]) -> None:
    columns = ("amount", "visits", "fee")
    found = open_recorder(ServedModel("fraud", "7", columns), environ)
    assert found is not None
    found.served(np.arange(9.0).reshape(3, 3), np.array([0.1, 0.2, 0.3]), ["a", "b"], [1, 2])
    body = json.dumps({"dataframe_records": [{"amount": 5.0, "visits": 1, "fee": 7.5}]})
    found.exactly("application/json", body.encode(), b'{"predictions": [0.9]}', "c")
    found.exactly("application/json", b"{", b'{"predictions": [0.9]}', "d")
    found.close()
    assert (found.counts.recorded, found.counts.malformed) == (4, 1)
    rows = {}
    for block in blocks_in(where(tmp_path)):
        assert block.request_id is not None
        for i in range(block.rows):
            key = (block.request_id[i], int(block.request_row[i]))
            rows[key] = (float(block.inputs["amount"][i]), float(block.outputs["score"][i]))
    assert rows == {("a", 0): (0, 0.1), ("b", 0): (3, 0.2), ("b", 1): (6, 0.3), ("c", 0): (5, 0.9)}


def test_bodies_have_bounded_room(tmp_path: Path, environ: dict[str, str]) -> None:
    found = open_recorder(ServedModel("fraud", "7"), {**environ})
    assert found is not None
    found._recording._ended.set()
    found._recording._thread.join(30)  # nobody reads
    for _ in range(2_100):
        found.exactly(None, b"{}", b"", "")
    found.exactly(None, b"x" * (33 << 20), b"", "")
    assert found.counts.dropped == 101
    found.close()


@pytest.mark.parametrize(
    ("content_type", "body", "rows"),
    [
        (
            "application/json",
            {"dataframe_split": {"columns": ["a"], "data": [[1], [2]]}},
            {"a": [1, 2]},
        ),
        ("application/json", {"dataframe_records": [{"a": 1}]}, [{"a": 1}]),
        ("application/json; charset=utf-8", {"inputs": {"a": [1, 2]}}, {"a": [1, 2]}),
        ("application/json", {"instances": [[1, 2]]}, [[1, 2]]),
        ("text/csv", "a,b\n1,x\n,y\n", {"a": [1, None], "b": ["x", "y"]}),
    ],
)  # fmt: skip
def test_requests_as_rows(content_type: str, body: Any, rows: Any) -> None:
    data = body if isinstance(body, str) else json.dumps(body)
    assert rows_in(content_type, data.encode()) == rows


CSV = """flag,gap,zip,age,score,name,mixed,none
True,true,01234,1,1.5,ann,1,

False,NA,99999,NA,,None,x,NA
true,FALSE,00001, 3,1e3,1_0,,nan
"""


def test_csv_is_read_as_the_model_sees_it() -> None:
    """MLflow reads it with pandas, columns of texts by the signature."""
    found = rows_in("text/csv", b"\xef\xbb\xbf" + CSV.encode(), texts=("zip", "age"))
    seen = pd.read_csv(io.StringIO(CSV), dtype={"zip": str})
    assert list(found) == list(seen)
    for name, values in found.items():
        assert [category_of(v) for v in values] == [category_of(v) for v in seen[name]], name
    assert rows_in("text/csv", CSV.encode())["zip"] == [1234, 99999, 1]


def test_csv_of_categories_counts_as_the_reference_did(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    rng = np.random.default_rng(0)
    towns = np.array(["01234", "99999"], dtype=object)[rng.integers(0, 2, 1000)]
    profile = fit_profile(
        {"zip": towns, "flag": rng.random(1000) < 0.5, "x": rng.random(1000)},
        {"score": rng.random(1000)},
        model="fraud",
        window=50,
    )
    (tmp_path / "profiles" / "fraud" / "7.json").write_bytes(profile.to_json())
    found = open_recorder(ServedModel("fraud", "7"), environ)
    assert found is not None
    body = b"zip,flag,x\n01234,True,0.5\n01234,False,NA\n"
    found.exactly("text/csv", body, b'{"predictions": [0.5, 0.5]}', "a")
    found.close()
    (block,) = blocks_in(where(tmp_path))
    counts = count_rows(profile, rows_of(profile, block).columns)
    parts = {
        n: profile.layout.of_column(i, counts.counts) for i, n in enumerate(profile.layout.names)
    }
    assert parts["zip"].tolist() == [0, 0, 0, 2, 0]
    assert parts["flag"].tolist() == [0, 0, 0, 1, 1]
    assert parts["x"][:2].tolist() == [1, 0]


@pytest.mark.parametrize(
    "body", ["", "[]", "{}", '{"inputs": 1}', '{"dataframe_split": {"columns": ["a"]}}']
)
def test_what_is_no_request_is_told(body: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        rows_in("application/json", body.encode())


def test_answers_as_rows() -> None:
    assert predictions_in(b'{"predictions": [1, 2]}') == [1, 2]
    assert predictions_in(b'{"predictions": {"p": [1]}}') == {"p": [1]}
    with pytest.raises(ValueError, match="no predictions"):
        predictions_in(b'{"predictions": 1}')


def test_a_flush_that_fails_is_counted_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = recorder_of(PROFILE, source="s-1")
    found = Recording.open(tmp_path / "there", recorder, spool=tmp_path / "here", flush_s=0.01)
    write = BlockFolder.write

    def failing(*_: object) -> None:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(BlockFolder, "write", failing)
    recorder.append({"amount": [1.0, 2.0]}, [0.1, 0.2], "7")
    until(lambda: recorder.counts.dropped == 2)
    assert (found.spool.counts.unwritten, found.spool.counts.lost_rows) == (1, 2)
    monkeypatch.setattr(BlockFolder, "write", write)
    recorder.append({"amount": [3.0]}, [0.3], "7")
    found.close()
    (block,) = blocks_in(tmp_path / "there")
    assert (block.rows, block.dropped) == (1, 2)


def test_what_cannot_be_read_beforehand_takes_no_row_with_it(tmp_path: Path) -> None:
    def failing() -> None:
        raise RuntimeError("nobody thought of this")

    recorder = recorder_of(PROFILE, source="s-1")
    found = Recording.open(
        tmp_path / "there", recorder, spool=tmp_path / "here", flush_s=60, before=failing
    )
    recorder.append({"amount": [1.0]}, [0.1], "7")
    found.close()
    assert [block.rows for block in blocks_in(tmp_path / "there")] == [1]
    assert recorder.counts.dropped == 0


# -- what a row costs


def test_recording_a_batch_costs_little_beside_predicting() -> None:
    """A generous bound: the measured figure is in the benchmark of costs."""
    recorder = Recorder("s-1", model="fraud", most_rows=10**7, most_bytes=1 << 40)
    rows, said = np.zeros((64, 20)), np.zeros(64)
    ids, counts = [f"r-{i}" for i in range(64)], [1] * 64
    began = time.process_time()
    for _ in range(2_000):
        recorder.append_together(rows, said, ids, counts, "7")
    spent = (time.process_time() - began) / (2_000 * 64)
    assert spent < 2e-6
    assert recorder.counts.recorded == 128_000


def test_sampling_keeps_the_same_requests_whichever_way_they_came() -> None:
    together, alone = (
        Recorder(f"s-{i}", model="m", sample=0.4, rng=np.random.default_rng(i)) for i in range(2)
    )
    ids = [f"r-{i}" for i in range(200)]
    data = np.arange(200.0).reshape(-1, 1)
    together.append_together(data, data[:, 0], ids, [1] * 200, "7")
    for i, name in enumerate(ids):
        alone.append(data[i : i + 1], data[i : i + 1, 0], "7", request_id=name)
    (one,), (other,) = together.flush(), alone.flush()
    assert one.request_id is not None
    assert other.request_id is not None
    assert one.request_id.tolist() == other.request_id.tolist()
    assert 40 < one.rows < 120
