"""One registered model for each environment: copying into one is a promotion (AC-3, AC-8)."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import mlflow.pyfunc
import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy import select, update

from governance.database import connect, models, versions
from governance.errors import PromotionDeniedError, RefusedError
from governance.settings import plain_database_uri
from governance.signing.roots import approver
from governance.signing.trust import sign_roots, verify_chain
from tests.integration.copies import (
    POLICY,
    apply_policy,
    clear,
    copy,
    governed,
    load,
    refused_copy,
    refused_load,
)
from tests.scenario import FEATURES, Scenario

on_both = pytest.mark.parametrize("scenario", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(autouse=True)
def policy(private_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Read when the scenario opens its store; the fixture that uses it comes later."""
    return apply_policy(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["prod.fraud", "PROD.fraud"])
def test_nothing_is_registered_straight_into_it(scenario: Scenario, name: str) -> None:
    with pytest.raises(MlflowException) as error:
        scenario.train(name)
    said = governed(error)
    assert said.code == "REFUSED"
    assert "chancery request models:/<other>/<version> --to prod" in str(said)
    assert not scenario.client.search_model_versions(f"name = '{name}'")
    refusals = [e for e in scenario.events() if e["type"] == "gates:change:refused"]
    assert refusals[-1]["subject"] == f"models:/{name}/1"

    version = scenario.train()
    source = scenario.client.get_model_version("fraud", str(version)).source
    scenario.clear(version, "prod", served_as=name)
    for place in (source, scenario.model_folder(version).as_uri(), "models:/fraud@champion"):
        with pytest.raises(MlflowException):
            scenario.client.create_model_version(name, place)
    assert not scenario.client.search_model_versions(f"name = '{name}'")


@pytest.mark.parametrize("name", ["prod.fraud", "PROD.fraud"])
def test_an_unapproved_version_is_not_copied_into_it(scenario: Scenario, name: str) -> None:
    version = scenario.train()
    said = refused_copy(scenario, version, to=name)
    assert f"chancery request models:/fraud/{version} --to prod --as {name}`" in str(said)
    denied = [e for e in scenario.events() if e["type"] == "gates:promotion:denied"]
    assert denied[-1]["subject"] == f"models:/fraud/{version}"
    assert denied[-1]["data"]["servedAs"] == name


@on_both
def test_an_approved_version_is_copied_and_the_copy_loads(scenario: Scenario) -> None:
    version = scenario.train()
    request = scenario.clear(version, "prod", served_as="prod.fraud")
    assert request.served_as == "prod.fraud"
    assert copy(scenario, version) == 1
    assert len(load().predict(FEATURES)) == len(FEATURES)

    granted = [e for e in scenario.events() if e["type"] == "gates:promotion:granted"]
    assert [e["subject"] for e in granted] == [f"models:/fraud/{version}"]
    assert granted[0]["data"] == {
        "environment": "prod",
        "statementId": request.statement_id,
        "copiedTo": "models:/prod.fraud/1",
        "servedAs": "prod.fraud",
    }
    for kind in ("gates:promotion:requested", "gates:promotion:approved"):
        [event] = [e for e in scenario.events() if e["type"] == kind]
        assert event["data"]["servedAs"] == "prod.fraud"
    registered = [e for e in scenario.events() if e["type"] == "registry:model-version:registered"]
    assert registered[-1]["data"]["promotedFrom"] == f"models:/fraud/{version}"

    release = scenario.backend.release("prod.fraud", 1)
    assert release["environments"] == ["prod"]
    assert release["requiresSignature"] is True
    assert (release["origin"]["model"], release["origin"]["version"]) == ("fraud", version)
    assert release["origin"]["versionUid"] == registered[-1]["data"]["promotedFromUid"]
    assert scenario.backend.release("fraud", version)["origin"] is None


@on_both
def test_one_approval_makes_one_version_the_occupant(scenario: Scenario) -> None:
    first, second = scenario.train(), scenario.train()
    clear(scenario, first)
    assert copy(scenario, first) == 1
    assert copy(scenario, first) == 2  # the occupant needs no new approval
    with pytest.raises(MlflowException) as error:
        copy(scenario, second)
    governed(error)
    clear(scenario, second)
    assert copy(scenario, second) == 3
    with pytest.raises(MlflowException) as error:
        copy(scenario, first)
    assert "replayed" in str(governed(error))
    for version in (1, 2, 3):
        load(f"models:/prod.fraud/{version}")


def test_an_order_of_environments_is_kept_by_copies(scenario: Scenario, policy: Path) -> None:
    policy.write_text(POLICY.replace("after: null", "after: staging"))
    version = scenario.train()
    with pytest.raises(PromotionDeniedError, match="promoted to staging before prod"):
        scenario.request(version, "prod", served_as="prod.fraud")
    scenario.clear(version, "staging", served_as="staging.fraud")
    copy(scenario, version, to="staging.fraud")
    clear(scenario, version)
    copy(scenario, version)
    load()


def test_an_approval_for_another_environment_does_not_count(scenario: Scenario) -> None:
    version = scenario.train()
    scenario.clear(version, "staging", served_as="staging.fraud")
    refused_copy(scenario, version)
    assert copy(scenario, version, to="staging.fraud") == 1
    load("models:/staging.fraud/1")


def test_a_copy_of_tampered_files_is_refused(scenario: Scenario) -> None:
    version = scenario.train()
    clear(scenario, version)
    path = scenario.model_folder(version) / "MLmodel"
    path.write_text(path.read_text() + "\n# x")
    assert "are not those of" in str(refused_copy(scenario, version))


def test_a_copy_of_files_that_are_gone_is_refused(scenario: Scenario) -> None:
    version = scenario.train()
    clear(scenario, version)
    folder = scenario.model_folder(version)
    folder.rename(folder.with_name("gone"))
    assert "cannot read the files" in str(refused_copy(scenario, version))


def test_a_copy_cannot_name_one_version_and_another_ones_files(scenario: Scenario) -> None:
    good, bad = scenario.train(), scenario.train()
    clear(scenario, good)
    other = scenario.client.get_model_version("fraud", str(bad)).source.removeprefix("models:/")
    scenario.client.create_registered_model("prod.fraud")
    with pytest.raises(MlflowException) as error:
        scenario.client.create_model_version("prod.fraud", f"models:/fraud/{good}", model_id=other)
    assert f"is not where the files of logged model {other} lie" in str(governed(error))


def test_files_tampered_with_after_the_copy_do_not_load(scenario: Scenario) -> None:
    version = scenario.train()
    clear(scenario, version)
    copy(scenario, version)
    path = scenario.model_folder(1, "prod.fraud") / "MLmodel"
    path.write_text(path.read_text() + "\n# x")
    assert refused_load().code == "TAMPERED"


@pytest.mark.parametrize("name", ["prod.fraud", "PROD.fraud", "Staging.fraud"])
def test_a_model_with_versions_is_not_renamed_into_it(scenario: Scenario, name: str) -> None:
    scenario.train()
    with pytest.raises(MlflowException) as error:
        scenario.client.rename_registered_model("fraud", name)
    assert "cannot be renamed" in str(governed(error))
    assert scenario.client.get_registered_model("fraud")
    scenario.client.create_registered_model("empty")
    scenario.client.rename_registered_model("empty", name)


@pytest.mark.parametrize("name", ["elsewhere", "prod.other", "PROD.fraud"])
def test_nor_out_of_it(scenario: Scenario, name: str) -> None:
    version = scenario.train()
    clear(scenario, version)
    copy(scenario, version)
    with pytest.raises(MlflowException) as error:
        scenario.client.rename_registered_model("prod.fraud", name)
    assert "cannot be renamed" in str(governed(error))
    load()


def test_the_model_that_a_copy_came_from_keeps_its_name(scenario: Scenario) -> None:
    version = scenario.train()
    clear(scenario, version)
    copy(scenario, version)
    with pytest.raises(MlflowException) as error:
        scenario.client.rename_registered_model("fraud", "payments")
    assert "models:/prod.fraud/1 came from it" in str(governed(error))
    load()
    scenario.client.delete_model_version("prod.fraud", "1")
    scenario.client.rename_registered_model("fraud", "payments")


def test_a_revoked_source_is_not_copied(scenario: Scenario) -> None:
    version = scenario.train()
    clear(scenario, version)
    scenario.backend.revoke("fraud", version, "leaks personal data")
    assert "leaks personal data" in str(refused_copy(scenario, version))


def test_revoking_the_source_revokes_its_copies(scenario: Scenario) -> None:
    version = scenario.train()
    clear(scenario, version)
    copy(scenario, version)
    load()
    scenario.backend.revoke("fraud", version, "leaks personal data")
    said = refused_load()
    assert said.code == "REVOKED"
    assert f"its source models:/fraud/{version}: leaks personal data" in said.message
    with pytest.raises(MlflowException, match="leaks personal data"):
        scenario.client.get_model_version_download_uri("prod.fraud", "1")


def uid_of(scenario: Scenario, name: str, version: int) -> str:
    with connect(plain_database_uri(scenario.uri)).connect() as connection:
        return str(
            connection.execute(
                select(versions.c.version_uid)
                .join(models, models.c.model_uid == versions.c.model_uid)
                .where(models.c.name == name, versions.c.version == version)
            ).scalar_one()
        )


@pytest.mark.parametrize("cleared", [True, False])
def test_an_origin_swapped_in_the_database_is_refused(scenario: Scenario, cleared: bool) -> None:
    """A database administrator names another version as the origin, cleared or not, or none."""
    version, other = scenario.train(), scenario.train("toy")
    clear(scenario, version)
    copy(scenario, version)
    if cleared:
        scenario.clear(other, "prod", "toy", served_as="prod.fraud")
        copy(scenario, other, name="toy")
        load("models:/prod.fraud/2")
    copied = uid_of(scenario, "prod.fraud", 1)
    for origin in (uid_of(scenario, "toy", other), copied, "0" * 32, None):
        with connect(plain_database_uri(scenario.uri)).begin() as connection:
            connection.execute(
                update(versions)
                .where(versions.c.version_uid == copied)
                .values(promoted_from=origin)
            )
        swapped = cleared and origin == uid_of(scenario, "toy", other)
        assert refused_load().code == ("TAMPERED" if swapped else "UNSIGNED")


def test_approvers_of_another_model_do_not_fill_it(scenario: Scenario) -> None:
    """Whoever approves one of the two names only cannot bring ``toy`` into ``prod.fraud``."""
    version = scenario.train("toy")
    bea = scenario.add_person("bea")
    change_role(scenario, "bea", "grant", "toy")
    request = scenario.request(version, "prod", "toy", served_as="prod.fraud")
    with pytest.raises(RefusedError, match=r"bea may not approve prod\.fraud for prod"):
        scenario.approve(request, bea)
    change_role(scenario, "bea", "grant", "prod.*")
    scenario.approve(request, bea)
    change_role(scenario, "bea", "withdraw", "toy")
    said = refused_copy(scenario, version, name="toy")
    assert "bea has no role to approve toy for prod" in str(said)
    change_role(scenario, "bea", "grant", "toy")
    assert copy(scenario, version, name="toy") == 1
    load()
    change_role(scenario, "bea", "withdraw", "prod.*")
    assert refused_load().code == "UNTRUSTED_KEY"


def change_role(scenario: Scenario, person: str, change: str, glob: str) -> None:
    roots = verify_chain(scenario.backend.trust_roots(), pinned_first=None).successor()
    payload = getattr(roots, change)(person, approver("prod", glob)).to_payload()
    scenario.backend.change_trust_roots(payload, [sign_roots(payload, scenario.signer)])


def test_prompts_pass(scenario: Scenario) -> None:
    mlflow.genai.register_prompt(name="prod.greet", template="Hello {{name}}")
    assert mlflow.genai.load_prompt("prompts:/prod.greet/1").format(name="Ada") == "Hello Ada"
    assert json.dumps(scenario.events()[-1])
