"""Loads that must be refused, each attacked for real, and those that must not (AC-3, AC-9)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlflow
import mlflow.pyfunc
import mlflow.sklearn
import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy import delete, update

from governance.canonical import digest_directory
from governance.database import approvals, connect, versions
from governance.settings import plain_database_uri
from tests.scenario import FEATURES, Scenario


def code_of(error: pytest.ExceptionInfo[MlflowException]) -> str:
    """The governance code of a refusal."""
    assert "governance_code" in error.value.json_kwargs, repr(error.value)
    found: str = error.value.json_kwargs["governance_code"]
    return found


def load(uri: str) -> object:
    return mlflow.pyfunc.load_model(uri)


def model_file(folder: Path) -> Path:
    return next(p for p in folder.iterdir() if p.stem == "model")


def test_a_promoted_model_loads_by_alias_and_version_and_predicts(scenario: Scenario) -> None:
    version = scenario.train()
    scenario.to_prod(version)
    for uri in ("models:/fraud@champion", f"models:/fraud/{version}"):
        assert len(mlflow.pyfunc.load_model(uri).predict(FEATURES)) == len(FEATURES)
        assert mlflow.sklearn.load_model(uri).predict(FEATURES).shape == (len(FEATURES),)


def test_the_verified_copy_is_private_and_leaves_the_store_untouched(scenario: Scenario) -> None:
    version = scenario.train()
    folder = scenario.model_folder(version)
    before = sorted(p.name for p in folder.iterdir())
    path = Path(mlflow.artifacts.download_artifacts(f"models:/fraud/{version}"))
    assert not path.is_relative_to(folder)
    assert oct(path.stat().st_mode & 0o777) == "0o700" or path.parent.stat().st_mode & 0o077 == 0
    assert sorted(p.name for p in folder.iterdir()) == before


def flip(folder: Path) -> None:
    path = model_file(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def add(folder: Path) -> None:
    (folder / "sitecustomize.py").write_text("print('owned')\n")


def remove(folder: Path) -> None:
    (folder / "conda.yaml").unlink()


def rename(folder: Path) -> None:
    (folder / "conda.yaml").rename(folder / "conda.yam2")


def link(folder: Path) -> None:
    path = folder / "conda.yaml"
    other = folder.parent / "elsewhere"
    path.rename(other)
    path.symlink_to(other)


@pytest.mark.parametrize("attack", [flip, add, remove, rename, link])
@pytest.mark.parametrize("promoted", [True, False])
def test_tampered_files_are_refused(scenario: Scenario, attack: object, promoted: bool) -> None:
    version = scenario.train()
    if promoted:
        scenario.promote(version, "challenger", "staging")
    attack(scenario.model_folder(version))  # type: ignore[operator]
    for uri in (f"models:/fraud/{version}", *(["models:/fraud@challenger"] if promoted else [])):
        with pytest.raises(MlflowException) as error:
            load(uri)
        assert code_of(error) == "TAMPERED"


def test_nothing_is_left_where_a_refused_model_was_wanted(
    scenario: Scenario, tmp_path: Path
) -> None:
    version = scenario.train()
    flip(scenario.model_folder(version))
    wanted = tmp_path / "wanted"
    wanted.mkdir()
    with pytest.raises(MlflowException):
        mlflow.artifacts.download_artifacts(f"models:/fraud/{version}", dst_path=str(wanted))
    assert list(wanted.iterdir()) == []


def test_a_part_of_a_model_is_verified_too(scenario: Scenario) -> None:
    version = scenario.train()
    found = mlflow.artifacts.download_artifacts(f"models:/fraud/{version}/MLmodel")
    assert Path(found).read_text().startswith("artifact_path")
    path = scenario.model_folder(version) / "MLmodel"
    path.write_text(path.read_text() + "\n# x")
    with pytest.raises(MlflowException) as error:
        mlflow.artifacts.download_artifacts(f"models:/fraud/{version}/MLmodel")
    assert code_of(error) == "TAMPERED"


def test_tampering_with_files_and_the_registered_manifest_does_not_help(
    scenario: Scenario,
) -> None:
    """A database administrator rewrites our row to match; the signed statement still says no."""
    version = scenario.train()
    scenario.promote(version, "challenger", "staging")
    folder = scenario.model_folder(version)
    flip(folder)
    forged = digest_directory(folder)
    with connect(plain_database_uri(scenario.uri)).begin() as connection:
        connection.execute(
            update(versions).values(
                root_digest=forged.root_digest,
                manifest_digest=forged.manifest_digest,
                manifest=forged.to_json().decode(),
            )
        )
    with pytest.raises(MlflowException) as error:
        load("models:/fraud@challenger")
    assert code_of(error) == "TAMPERED"


def test_a_stripped_signature_is_refused(scenario: Scenario) -> None:
    version = scenario.train()
    scenario.promote(version, "challenger", "staging")
    with connect(plain_database_uri(scenario.uri)).begin() as connection:
        connection.execute(delete(approvals))
    with pytest.raises(MlflowException) as error:
        load("models:/fraud@challenger")
    assert code_of(error) in ("UNSIGNED", "UNTRUSTED_KEY")


def test_a_swapped_signature_is_refused(scenario: Scenario) -> None:
    """The bundle of another version's statement is put in place of this one's."""
    first, second = scenario.train(), scenario.train()
    other = scenario.request(first, "staging")
    scenario.approve(other)
    scenario.promote(second, "challenger", "staging")
    with connect(plain_database_uri(scenario.uri)).begin() as connection:
        stolen = connection.execute(
            approvals.select().where(approvals.c.statement_id == other.statement_id)
        ).one()
        connection.execute(
            update(approvals)
            .where(approvals.c.statement_id != other.statement_id)
            .values(bundle=stolen.bundle)
        )
    with pytest.raises(MlflowException) as error:
        load("models:/fraud@challenger")
    assert code_of(error) in ("BAD_SIGNATURE", "TAMPERED")


def test_a_signer_removed_from_the_trust_roots_is_no_signer(scenario: Scenario) -> None:
    from governance.signing.trust import sign_roots, verify_chain

    version = scenario.train()
    bea = scenario.add_person("bea", "staging", "prod")
    scenario.approve(scenario.request(version, "staging"), bea)
    scenario.client.set_registered_model_alias("fraud", "challenger", str(version))
    load("models:/fraud@challenger")
    roots = verify_chain(scenario.backend.trust_roots(), pinned_first=None).successor()
    payload = roots.remove_person("bea").to_payload()
    scenario.backend.change_trust_roots(payload, [sign_roots(payload, scenario.signer)])
    with pytest.raises(MlflowException) as error:
        load("models:/fraud@challenger")
    assert code_of(error) == "UNTRUSTED_KEY"


def test_a_revoked_version_is_refused_everywhere(scenario: Scenario) -> None:
    version = scenario.train()
    scenario.promote(version, "challenger", "staging")
    scenario.backend.revoke("fraud", version, "leaks personal data")
    for attempt in (
        lambda: load("models:/fraud@challenger"),
        lambda: load(f"models:/fraud/{version}"),
        lambda: scenario.client.get_model_version_download_uri("fraud", str(version)),
    ):
        with pytest.raises(MlflowException) as error:
            attempt()
        assert code_of(error) == "REVOKED"
        assert "leaks personal data" in error.value.message


def test_an_expired_clearance_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "version: 1\n"
        "environments:\n"
        "  - {name: staging, aliases: [challenger], requires: {clearance_days: 1}}\n"
    )
    monkeypatch.setenv("CHANCERY_POLICY", str(policy))
    scenario = Scenario.local(tmp_path)
    version = scenario.train()
    scenario.promote(version, "challenger", "staging")
    load("models:/fraud@challenger")
    import mlflow_plugins.artifact_repository as repository

    later = repository.now_ms() + 2 * 86_400_000
    monkeypatch.setattr(repository, "now_ms", lambda: later)
    with pytest.raises(MlflowException) as error:
        load("models:/fraud@challenger")
    assert code_of(error) == "EXPIRED"


def test_strict_mode_refuses_what_carries_no_clearance(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = scenario.train()
    source = scenario.client.get_model_version("fraud", str(version)).source
    run_id = scenario.client.get_model_version("fraud", str(version)).run_id
    load(source)
    monkeypatch.setenv("CHANCERY_STRICT", "1")
    for uri in (source, f"models:/fraud/{version}", f"runs:/{run_id}/model"):
        with pytest.raises(MlflowException) as error:
            load(uri)
        assert code_of(error) == "UNSIGNED", uri
    raw = scenario.model_folder(version).as_uri()
    with pytest.raises(MlflowException) as error:
        load(raw)
    assert code_of(error) == "UNSIGNED"
    monkeypatch.delenv("CHANCERY_STRICT")
    scenario.promote(version, "challenger", "staging")
    monkeypatch.setenv("CHANCERY_STRICT", "1")
    load("models:/fraud@challenger")


def test_missing_files_are_named(scenario: Scenario) -> None:
    version = scenario.train()
    folder = scenario.model_folder(version)
    folder.rename(folder.with_name("gone"))
    with pytest.raises(MlflowException) as error:
        load(f"models:/fraud/{version}")
    assert code_of(error) in ("TAMPERED", "UNREACHABLE")


def test_the_command_verifies_and_refuses(scenario: Scenario) -> None:
    version = scenario.train()
    scenario.promote(version, "challenger", "staging")
    command = [
        str(Path(sys.executable).parent / "chancery"), "verify", "models:/fraud@challenger",
        "--env", "staging", "--uri", scenario.uri,
    ]  # fmt: skip
    good = subprocess.run(command, capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    assert "signed by" in good.stdout
    flip(scenario.model_folder(version))
    bad = subprocess.run(command, capture_output=True, text=True)
    assert bad.returncode == 1
    assert "TAMPERED" in bad.stderr
