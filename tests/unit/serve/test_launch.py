"""Where the processes of a deployment find store and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from governance.errors import ConfigurationError
from serve import launch


@pytest.mark.parametrize("scheme", ["sqlite", "governed+sqlite"])
def test_a_relative_file_is_the_same_from_any_folder(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert launch._absolute(f"{scheme}:///mlflow.db") == f"{scheme}:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize(
    "uri",
    ["governed+sqlite:////a/mlflow.db", "governed+postgresql+psycopg://u@h/db", "http://h:5000"],
)
def test_what_is_absolute_stays(uri: str) -> None:
    assert launch._absolute(uri) == uri


def test_replicas_load_through_the_server_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "governed+sqlite:///mlflow.db")
    assert launch._server() is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert launch._server() == "http://127.0.0.1:5000"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "https://registry")
    assert launch._server() == "https://registry"


def test_a_mistake_in_the_settings_of_traces_is_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHANCERY_TRACE_RATIO", "often")
    with pytest.raises(ConfigurationError, match="often"):
        launch.connect("127.0.0.1:1")
