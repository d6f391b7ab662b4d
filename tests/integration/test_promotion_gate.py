"""Every way to promote, tried without approval and with it (AC-3, AC-8, AC-13)."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from governance.errors import (
    GovernanceError,
    PromotionDeniedError,
    RefusedError,
    SignatureError,
    UntrustedKeyError,
)
from governance.signing.dsse import sign_bundle
from governance.signing.keys import create_key
from governance.signing.statements import PAYLOAD_TYPE
from tests.scenario import Scenario


def refused(error: pytest.ExceptionInfo[MlflowException]) -> str:
    """The text of a refusal, which must be a 403."""
    assert error.value.error_code == "PERMISSION_DENIED", error.value.message
    return str(error.value.message)


def test_alias_is_refused_with_each_reason_and_remedy_then_allowed(scenario: Scenario) -> None:
    version = scenario.train()
    with pytest.raises(MlflowException) as error:
        scenario.client.set_registered_model_alias("fraud", "champion", str(version))
    text = refused(error)
    assert "staging" in text
    assert f"chancery request models:/fraud/{version} --to prod" in text
    assert scenario.alias("champion") is None
    denials = [e for e in scenario.events() if e["type"] == "gates:promotion:denied"]
    assert denials[-1]["subject"] == f"models:/fraud/{version}"
    assert any(not c["met"] for c in denials[-1]["data"]["conditions"])

    scenario.to_prod(version)
    assert scenario.alias("champion") == version
    types = [e["type"] for e in scenario.events()]
    assert types.count("gates:promotion:granted") == 2
    granted = [e for e in scenario.events() if e["type"] == "gates:promotion:granted"][-1]
    assert granted["data"]["statementId"]


@pytest.mark.parametrize("alias", ["Champion", "CHAMPION", "pRoD", "production"])
def test_letter_case_does_not_pass_the_gate_by(scenario: Scenario, alias: str) -> None:
    version = scenario.train()
    with pytest.raises(MlflowException) as error:
        scenario.client.set_registered_model_alias("fraud", alias, str(version))
    refused(error)


def test_an_alias_cannot_be_moved_to_an_unapproved_version(scenario: Scenario) -> None:
    first, second = scenario.train(), scenario.train()
    scenario.to_prod(first)
    with pytest.raises(MlflowException) as error:
        scenario.client.set_registered_model_alias("fraud", "champion", str(second))
    refused(error)
    assert scenario.alias("champion") == first


@pytest.mark.parametrize("stage", ["Staging", "Production"])
def test_stage_transition_passes_the_same_gate(scenario: Scenario, stage: str) -> None:
    version = scenario.train()
    with pytest.raises(MlflowException) as error:
        scenario.client.transition_model_version_stage("fraud", str(version), stage)
    refused(error)
    scenario.clear(version, "staging")
    scenario.client.transition_model_version_stage("fraud", str(version), "Staging")
    assert scenario.client.get_model_version("fraud", str(version)).current_stage == "Staging"


def test_archiving_on_transition_is_on_the_ledger(scenario: Scenario) -> None:
    first, second = scenario.train(), scenario.train()
    for version in (first, second):
        scenario.clear(version, "staging")
        scenario.client.transition_model_version_stage(
            "fraud", str(version), "Staging", archive_existing_versions=True
        )
    changes = [e["data"] for e in scenario.events() if e["type"] == "registry:stage:changed"]
    assert {"from": "Staging", "to": "Archived"} in changes


def test_a_copy_does_not_inherit_the_clearance(scenario: Scenario) -> None:
    version = scenario.train()
    scenario.to_prod(version)
    copy = scenario.client.copy_model_version(f"models:/fraud/{version}", "fraud-copy")
    with pytest.raises(MlflowException) as error:
        scenario.client.set_registered_model_alias("fraud-copy", "champion", copy.version)
    refused(error)


def test_a_renamed_model_does_not_keep_protected_aliases(scenario: Scenario) -> None:
    version = scenario.train()
    scenario.to_prod(version)
    with pytest.raises(MlflowException) as error:
        scenario.client.rename_registered_model("fraud", "payments")
    assert "champion" in refused(error)
    assert scenario.alias("champion") == version


def test_approvals_do_not_follow_a_rename(scenario: Scenario) -> None:
    version = scenario.train("toy")
    scenario.clear(version, "staging", "toy")
    scenario.client.rename_registered_model("toy", "fraud")
    with pytest.raises(MlflowException) as error:
        scenario.client.set_registered_model_alias("fraud", "challenger", str(version))
    refused(error)


def test_a_recreated_model_starts_without_approvals(scenario: Scenario) -> None:
    version = scenario.train()
    scenario.clear(version, "staging")
    scenario.client.delete_registered_model("fraud")
    assert scenario.train() == version  # the number is used again
    with pytest.raises(MlflowException) as error:
        scenario.client.set_registered_model_alias("fraud", "challenger", str(version))
    refused(error)


def test_forged_tags_are_no_evidence(scenario: Scenario) -> None:
    version = scenario.train()
    for key in ("chancery.approved", "CHANCERY.statement"):
        with pytest.raises(MlflowException) as error:
            scenario.client.set_model_version_tag("fraud", str(version), key, "yes")
        assert "reserved" in refused(error)
        with pytest.raises(MlflowException) as error:
            scenario.client.set_registered_model_tag("fraud", key, "yes")
        refused(error)
    scenario.client.set_model_version_tag("fraud", str(version), "approved", "alice")
    with pytest.raises(MlflowException):
        scenario.client.set_registered_model_alias("fraud", "champion", str(version))


def test_an_approval_cannot_be_replayed_for_another_version(scenario: Scenario) -> None:
    first, second = scenario.train(), scenario.train()
    bundle = sign_bundle(scenario.request(first, "staging").payload, PAYLOAD_TYPE, scenario.signer)
    other = scenario.request(second, "staging")
    with pytest.raises(SignatureError):
        scenario.backend.approve(other.statement_id, bundle)


def test_a_used_statement_cannot_be_used_again(scenario: Scenario) -> None:
    first, second = scenario.train(), scenario.train()
    scenario.promote(first, "challenger", "staging")
    scenario.promote(second, "challenger", "staging")
    with pytest.raises(MlflowException) as error:
        scenario.client.set_registered_model_alias("fraud", "challenger", str(first))
    refused(error)


def test_a_statement_goes_stale_when_another_version_was_promoted(scenario: Scenario) -> None:
    first, second = scenario.train(), scenario.train()
    scenario.clear(first, "staging")
    scenario.promote(second, "challenger", "staging")
    with pytest.raises(MlflowException) as error:
        scenario.client.set_registered_model_alias("fraud", "challenger", str(first))
    assert "stale" in refused(error)


def test_setting_the_same_alias_again_needs_no_new_approval(scenario: Scenario) -> None:
    version = scenario.train()
    scenario.promote(version, "challenger", "staging")
    scenario.client.set_registered_model_alias("fraud", "challenger", str(version))
    scenario.client.set_registered_model_alias("fraud", "staging", str(version))
    assert scenario.alias("staging") == version


def test_an_untrusted_key_cannot_approve(scenario: Scenario, tmp_path: Path) -> None:
    version = scenario.train()
    request = scenario.request(version, "staging")
    with pytest.raises(UntrustedKeyError):
        scenario.approve(request, create_key(tmp_path / "mallory.key"))
    refusal = [e for e in scenario.events() if e["type"] == "gates:change:refused"][-1]
    assert refusal["data"]["code"] == "UNTRUSTED_KEY"


def test_a_person_without_the_role_cannot_approve(scenario: Scenario) -> None:
    version = scenario.train()
    bea = scenario.add_person("bea", "staging")
    scenario.promote(version, "challenger", "staging")
    with pytest.raises(RefusedError, match="may not approve"):
        scenario.approve(scenario.request(version, "prod"), bea)


def test_two_keys_are_not_two_persons_and_two_persons_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "version: 1\n"
        "environments:\n"
        "  - name: staging\n"
        "    aliases: [challenger]\n"
        "    requires: {approvals: 2}\n"
    )
    monkeypatch.setenv("CHANCERY_POLICY", str(policy))
    scenario = Scenario.local(tmp_path)
    version = scenario.train()
    bea = scenario.add_person("bea", "staging")
    request = scenario.request(version, "staging")
    scenario.approve(request)
    with pytest.raises(GovernanceError):
        scenario.approve(request)
    with pytest.raises(MlflowException) as error:
        scenario.client.set_registered_model_alias("fraud", "challenger", str(version))
    assert "approve" in refused(error)
    scenario.approve(request, bea)
    scenario.client.set_registered_model_alias("fraud", "challenger", str(version))
    assert scenario.alias("challenger") == version


def test_metrics_below_the_threshold_are_refused_at_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "version: 1\n"
        "metrics: {accuracy: {goal: maximize}}\n"
        "environments:\n"
        "  - name: staging\n"
        "    aliases: [challenger]\n"
        "    requires:\n"
        "      metrics: [{name: accuracy, min: 0.9, source: run}]\n"
        "      provenance: [seed]\n"
    )
    monkeypatch.setenv("CHANCERY_POLICY", str(policy))
    scenario = Scenario.local(tmp_path)
    bad, good = scenario.train(accuracy=0.5), scenario.train(accuracy=0.95)
    with pytest.raises(PromotionDeniedError, match="accuracy"):
        scenario.request(bad, "staging")
    # The run is sealed, so better numbers cannot be written into it afterwards.
    run_id = scenario.client.get_model_version("fraud", str(bad)).run_id
    scenario.client.log_metric(run_id, "accuracy", 0.99)
    with pytest.raises(PromotionDeniedError, match="accuracy"):
        scenario.request(bad, "staging")
    scenario.promote(good, "challenger", "staging")


def test_a_good_runs_metrics_are_no_evidence_for_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients may name any run and any logged model when they register files."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "version: 1\n"
        "metrics: {accuracy: {goal: maximize}}\n"
        "environments:\n"
        "  - name: staging\n"
        "    aliases: [challenger]\n"
        "    requires:\n"
        "      metrics: [{name: accuracy, min: 0.9}]\n"
    )
    monkeypatch.setenv("CHANCERY_POLICY", str(policy))
    scenario = Scenario.local(tmp_path)
    good, bad = scenario.train(accuracy=0.95), scenario.train(accuracy=0.5)
    files = scenario.model_folder(bad).as_uri()
    run_id = scenario.client.get_model_version("fraud", str(good)).run_id
    source = scenario.client.get_model_version("fraud", str(good)).source
    model_id = source.removeprefix("models:/")
    claims = [
        scenario.client.create_model_version("fraud", files, run_id=run_id),
        scenario.client.create_model_version("fraud", files, run_id=run_id, model_id=model_id),
        scenario.client.create_model_version("fraud", f"models:/fraud/{bad}", run_id=run_id),
    ]
    for claim in claims:
        with pytest.raises(PromotionDeniedError, match="accuracy"):
            scenario.request(int(claim.version), "staging")
    told = [e["data"].get("claimedRunId") for e in scenario.events() if "source" in e["data"]]
    assert told[-3:] == [run_id] * 3
    # The files that the run did log are its own, wherever they are registered again.
    again = scenario.client.create_model_version("fraud", f"models:/fraud/{good}", run_id=run_id)
    assert scenario.request(int(again.version), "staging").statement_id


def test_a_run_that_ended_while_its_version_was_registered_keeps_its_record(
    scenario: Scenario,
) -> None:
    """Two transactions that do not see each other leave the version without its run's record."""
    from sqlalchemy import update

    from governance.database import connect, versions
    from governance.settings import plain_database_uri

    version = scenario.train()
    engine = connect(plain_database_uri(scenario.uri))
    with engine.begin() as connection:
        before = connection.execute(versions.select()).one().run_record
        connection.execute(update(versions).values(run_record=None))
    scenario.request(version, "staging")
    with engine.connect() as connection:
        assert connection.execute(versions.select()).one().run_record == before


def test_prompts_work_untouched(scenario: Scenario) -> None:
    mlflow.genai.register_prompt(name="greet", template="Hello {{name}}")
    mlflow.genai.set_prompt_alias("greet", alias="production", version=1)
    assert mlflow.genai.load_prompt("prompts:/greet@production").format(name="Ada") == "Hello Ada"


def test_a_malformed_policy_denies_and_names_line_and_field(
    scenario: Scenario, tmp_path: Path
) -> None:
    version = scenario.train()
    scenario.clear(version, "staging")
    (scenario.home / "policy.yaml").write_text(
        "version: 1\nenvironments: [{name: staging, alias: x}]\n"
    )
    from mlflow_plugins.governor import Governor

    governor = Governor.of(scenario.uri)
    object.__setattr__(governor.settings, "policy_file", scenario.home / "policy.yaml")
    with pytest.raises(MlflowException) as error:
        scenario.client.set_registered_model_alias("fraud", "challenger", str(version))
    assert "line 2" in error.value.message
    assert scenario.alias("challenger") is None


def test_a_failing_audit_insert_rolls_the_change_back(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = scenario.train()
    scenario.clear(version, "staging")
    from mlflow_plugins.governor import Governor

    def broken(*_: object) -> str:
        raise GovernanceError("the outbox cannot be written")

    monkeypatch.setattr(Governor.of(scenario.uri).ledger, "record", broken)
    with pytest.raises(MlflowException, match="outbox"):
        scenario.client.set_registered_model_alias("fraud", "challenger", str(version))
    monkeypatch.undo()
    assert scenario.alias("challenger") is None
    assert json.dumps(scenario.events()[-1])
    scenario.client.set_registered_model_alias("fraud", "challenger", str(version))


def test_a_sealed_run_is_refused_changes_but_its_model_takes_metrics(scenario: Scenario) -> None:
    version = scenario.train()
    found = scenario.client.get_model_version("fraud", str(version))
    run_id = found.run_id
    attempts = [
        lambda: scenario.client.log_param(run_id, "late", 1),
        lambda: scenario.client.set_tag(run_id, "provenance.seed", "8"),
        lambda: scenario.client.delete_tag(run_id, "provenance.seed"),
        lambda: scenario.client.delete_run(run_id),
        lambda: scenario.client.update_run(run_id, status="RUNNING"),
    ]
    for attempt in attempts:
        with pytest.raises(MlflowException) as error:
            attempt()
        assert "sealed" in refused(error)
    model_id = found.source.removeprefix("models:/")
    with pytest.raises(MlflowException) as error:
        scenario.client.delete_logged_model(model_id)
    refused(error)
    with mlflow.start_run() as evaluation:
        mlflow.log_metric("accuracy", 0.98, model_id=model_id)
    metrics = scenario.client.get_logged_model(model_id).metrics
    assert any(m.run_id == evaluation.info.run_id for m in metrics)


def test_plain_tracking_is_audited_and_a_finished_run_carries_its_digest(
    scenario: Scenario,
) -> None:
    with mlflow.start_run() as run:
        mlflow.log_params({"a": 1})
        mlflow.log_metric("loss", 0.5)
        mlflow.set_tag("note", "x")
    scenario.client.set_tag(run.info.run_id, "note", "y")
    scenario.client.delete_run(run.info.run_id)
    scenario.client.restore_run(run.info.run_id)
    experiment = scenario.client.create_experiment("other")
    scenario.client.delete_experiment(experiment)
    scenario.client.restore_experiment(experiment)
    from mlflow_plugins.governor import Governor

    Governor.of(scenario.uri).ledger.sequence()
    types = [e["type"] for e in scenario.events()]
    for expected in (
        "tracking:run:created", "tracking:run:finished", "tracking:tag:set",
        "tracking:run:deleted", "tracking:run:restored", "tracking:experiment:created",
        "tracking:experiment:deleted", "tracking:experiment:restored",
    ):  # fmt: skip
        assert expected in types, expected
    finished = [e for e in scenario.events() if e["type"] == "tracking:run:finished"][-1]
    assert len(finished["data"]["recordDigest"]) == 64
    assert "tracking:metric" not in "".join(types)


def test_workspaces_are_refused_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    from mlflow_plugins.entry import registry_store

    with pytest.raises(MlflowException, match="workspaces"):
        registry_store(store_uri=f"governed+sqlite:///{tmp_path}/w.db")


def test_bulk_statements_do_not_pass_seal_or_gate_by(scenario: Scenario) -> None:
    """``mlflow gc`` deletes rows in bulk, which no flush shows."""
    from mlflow.store.model_registry.dbmodels.models import SqlRegisteredModelAlias
    from mlflow.store.tracking.dbmodels.models import SqlTag
    from mlflow.tracking._model_registry.utils import _get_store as registry_store
    from mlflow.tracking._tracking_service.utils import _get_store as tracking_store
    from sqlalchemy import delete, insert, update

    version = scenario.train()
    run_id = scenario.client.get_model_version("fraud", str(version)).run_id
    tracking, registry = tracking_store(), registry_store()
    with pytest.raises(MlflowException) as error:
        tracking._hard_delete_run(run_id)
    assert "sealed" in refused(error)
    statements = [
        (tracking, update(SqlTag).where(SqlTag.run_uuid == run_id).values(value="forged")),
        (tracking, delete(SqlTag).where(SqlTag.run_uuid == run_id)),
        (registry, insert(SqlRegisteredModelAlias).values(
            name="fraud", alias="champion", version=version)),
        (registry, update(SqlRegisteredModelAlias).values(version=version)),
    ]  # fmt: skip
    for store, statement in statements:
        with pytest.raises(MlflowException) as error, store.ManagedSessionMaker(False) as session:
            session.execute(statement)
        refused(error)
    with (
        pytest.raises(MlflowException) as error,
        tracking.ManagedSessionMaker(read_only=False) as session,
    ):
        session.query(SqlTag).filter(SqlTag.run_uuid == run_id).delete()
    refused(error)
    with (
        pytest.raises(MlflowException) as error,
        tracking.ManagedSessionMaker(read_only=False) as session,
    ):
        session.query(SqlTag).filter(SqlTag.run_uuid == run_id).update({"value": "forged"})
    refused(error)
    assert scenario.alias("champion") is None
    assert scenario.client.get_run(run_id).data.tags["provenance.seed"] == "7"


def test_a_registry_from_before_governance_is_adopted_at_its_first_load(
    tmp_path: Path, sqlite_template: Path
) -> None:
    import shutil

    shutil.copyfile(sqlite_template, tmp_path / "mlflow.db")
    plain = Scenario(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "unused")
    mlflow.create_experiment("scenario", artifact_location=(tmp_path / "artifacts").as_uri())
    version = plain.train("old")
    plain.client.set_registered_model_alias("old", "blue", str(version))
    scenario = Scenario.again(tmp_path)
    assert mlflow.pyfunc.load_model(f"models:/old/{version}") is not None
    assert mlflow.pyfunc.load_model("models:/old@blue") is not None
    with pytest.raises(MlflowException) as error:
        scenario.client.set_registered_model_alias("old", "champion", str(version))
    refused(error)
    scenario.to_prod(version, "old")
    assert mlflow.pyfunc.load_model("models:/old@champion") is not None


def test_files_that_changed_since_they_were_registered_are_not_requested(
    scenario: Scenario,
) -> None:
    """The statement that people would sign names what was registered, not what lies there."""
    version = scenario.train()
    file = scenario.model_folder(version) / "MLmodel"
    file.write_text(file.read_text() + "\n# changed\n")
    with pytest.raises(RefusedError, match="are not the ones that were registered"):
        scenario.request(version, "staging")
    assert not [e for e in scenario.events() if e["type"] == "gates:promotion:requested"]
