"""Loads while the registry is away: from copies that are verified anew, and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow.pyfunc
import pytest
from mlflow.exceptions import MlflowException

from governance.backend import open_backend
from governance.canonical import Manifest, digest_directory
from governance.expected_bytes import expecting
from tests.conftest import StartServer
from tests.scenario import FEATURES, Scenario


def load(version: int, digest: str | None) -> None:
    with expecting(digest):
        model = mlflow.pyfunc.load_model(f"models:/fraud/{version}")
    assert len(model.predict(FEATURES)) == len(FEATURES)


def refused(version: int, digest: str | None) -> str:
    with pytest.raises(MlflowException) as error:
        load(version, digest)
    return str(error.value.json_kwargs["governance_code"])


def test_a_verified_copy_is_served_while_the_server_is_away(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"CHANCERY_HOME": str(tmp_path / "chancery")}
    server = start_server(environment=environment)
    home = tmp_path / "client"
    monkeypatch.setenv("CHANCERY_HOME", str(home))
    scenario = Scenario(server.uri, tmp_path / "chancery")
    version = scenario.train()
    scenario.to_prod(version)
    released = scenario.backend.release("fraud", version)
    digest = Manifest.from_json(released["manifest"]).root_digest
    kept, said = home / "copies" / "files", home / "copies" / "said"

    load(version, None)
    assert not kept.exists(), "nobody said which bytes it wants"
    assert refused(version, "0" * 64) == "TAMPERED"
    assert not kept.exists()
    load(version, digest)
    assert [path.name for path in kept.iterdir()] == [digest]

    server.stop()
    load(version, digest)
    assert refused(version, None) == "UNREACHABLE"
    assert refused(version, "0" * 64) == "UNREACHABLE"

    # Other files with a word of the registry that fits them: not what was let in.
    (note,) = said.iterdir()
    good = note.read_text()
    forged = tmp_path / "forged"
    forged.mkdir()
    (forged / "MLmodel").write_text("flavors: {}\n")
    manifest = digest_directory(forged)
    document = json.loads(good) | {
        "manifest": manifest.to_json().decode(), "requiresSignature": False, "environments": [],
    }  # fmt: skip
    note.write_text(json.dumps(document))
    (kept / digest).rename(kept / "aside")
    forged.rename(kept / digest)
    assert refused(version, digest) == "UNREACHABLE"
    assert not (kept / digest).exists()
    (kept / "aside").rename(kept / digest)
    assert refused(version, digest) == "TAMPERED", "the copy is not what the registry said"
    note.write_text(good)
    load(version, digest)

    # The server is back: everything as before. What it says of a revocation is remembered.
    server = start_server(environment=environment, port=int(server.uri.rpartition(":")[2]))
    load(version, digest)
    with monkeypatch.context() as administrator:
        administrator.setenv("CHANCERY_HOME", str(tmp_path / "chancery"))
        open_backend(server.store).revoke("fraud", version, "it leaks")
    assert refused(version, digest) == "REVOKED"
    server.stop()
    assert refused(version, digest) == "REVOKED"
