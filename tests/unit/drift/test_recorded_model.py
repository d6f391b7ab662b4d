"""A recorded model under MLflow's own scoring server: saved, loaded, asked over its protocol."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from fastapi.testclient import TestClient
from mlflow.models import infer_signature
from mlflow.pyfunc import scoring_server
from sklearn.linear_model import LinearRegression

from drift.block_folder import BlockFolder
from drift.recorded_model import recorded_model
from drift.recording import RECORD_SPOOL
from governance.recording_port import RECORD_TO
from tests.unit.drift.monitor_world import PROFILE
from tests.unit.drift.test_recording import frame

NUMBERS = ["amount", "visits", "fee"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    table = frame(100)[NUMBERS].astype(float)
    inner = LinearRegression().fit(table, table["amount"])
    signature = infer_signature(table, [0.5])
    mlflow.sklearn.save_model(inner, folder / "inner", signature=signature, pip_requirements=[])
    (folder / "profile.json").write_bytes(PROFILE.to_json())
    mlflow.pyfunc.save_model(
        folder / "outer",
        **recorded_model(str(folder / "inner"), folder / "profile.json"),
        signature=signature,
        pip_requirements=[],
    )
    return folder / "outer"


def as_version(folder: Path, version: str) -> None:
    """What loading ``models:/fraud/7`` leaves beside the files."""
    meta = {"model_name": "fraud", "model_version": version}
    (folder / "registered_model_meta").write_text(yaml.safe_dump(meta))


def asked(model: Any, rows: int) -> Any:
    client = TestClient(scoring_server.init(model))
    split = frame(rows)[NUMBERS].astype(float).to_dict(orient="split", index=False)
    answer = client.post("/invocations", json={"dataframe_split": split})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def test_what_it_answers_is_recorded_where_the_machine_says_so(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RECORD_TO, f"file://{tmp_path / 'blocks'}")
    monkeypatch.setenv(RECORD_SPOOL, str(tmp_path / "spool"))
    as_version(saved, "7")
    model = mlflow.pyfunc.load_model(str(saved))
    said = asked(model, 20)
    assert said == pytest.approx(frame(20)["amount"].tolist())
    model.unwrap_python_model()._model.close()
    folder = BlockFolder(tmp_path / "blocks" / "fraud" / "7" / "_")
    (entry,) = folder.entries()
    block = folder.read(entry)
    assert (block.rows, block.version, block.model) == (20, "7", "fraud")
    assert block.inputs["amount"].tolist() == pytest.approx(frame(20)["amount"].tolist())
    assert block.outputs["score"].tolist() == pytest.approx(said)


def test_elsewhere_it_only_answers(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(RECORD_TO, raising=False)
    assert len(asked(mlflow.pyfunc.load_model(str(saved)), 3)) == 3
    monkeypatch.setenv(RECORD_TO, str(tmp_path / "blocks"))
    (saved / "registered_model_meta").unlink(missing_ok=True)
    with caplog.at_level(logging.WARNING, "drift"):
        assert len(asked(mlflow.pyfunc.load_model(str(saved)), 3)) == 3
    assert "load it as models:/" in caplog.text
    assert not (tmp_path / "blocks").exists()
