"""A promotion by copy is for the one name that people signed (AC-3, AC-8)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.dbmodels.models import (
    SqlModelVersion,
    SqlRegisteredModel,
    SqlRegisteredModelAlias,
)
from sqlalchemy import insert, update

from governance.database import clearances, connect, epochs, models, statements
from governance.errors import RefusedError
from governance.settings import plain_database_uri
from tests.conftest import StartServer
from tests.integration.copies import (
    apply_policy,
    clear,
    copy,
    governed,
    load,
    refused,
    refused_copy,
    refused_load,
)
from tests.scenario import FEATURES, Scenario

on_both = pytest.mark.parametrize("scenario", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(autouse=True)
def policy(private_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Read when the scenario opens its store; the fixture that uses it comes later."""
    return apply_policy(tmp_path, monkeypatch)


@on_both
def test_each_protected_model_has_an_occupant_of_its_own(scenario: Scenario) -> None:
    """Copies into two names do not make each other stale, nor the alias; one name's copies do."""
    first, other = scenario.train(), scenario.train("toy")
    for served_as in ("prod.fraud", "prod.backup", None):
        scenario.clear(first, "prod", served_as=served_as)
    late = scenario.clear(other, "prod", "toy", served_as="prod.fraud")
    assert copy(scenario, first) == 1
    assert copy(scenario, first, to="prod.backup") == 1
    scenario.client.set_registered_model_alias("fraud", "champion", str(first))
    with pytest.raises(MlflowException) as error:  # another model is in prod.fraud by now
        copy(scenario, other, name="toy")
    assert f"{late.statement_id[:12]} is stale" in str(governed(error))
    scenario.clear(other, "prod", "toy", served_as="prod.fraud")
    assert copy(scenario, other, name="toy") == 2
    with pytest.raises(MlflowException) as error:
        copy(scenario, first)
    assert "replayed" in str(governed(error))
    assert copy(scenario, first, to="prod.backup") == 2  # still the occupant there
    for uri in ("prod.fraud/1", "prod.fraud/2", "prod.backup/2", "fraud@champion"):
        load(f"models:/{uri}")


@on_both
def test_approved_as_one_model_is_not_served_as_another(scenario: Scenario) -> None:
    """The attack: whoever may use MLflow copies what was approved as prod.fraud to prod.loans."""
    version = scenario.train()
    clear(scenario, version)
    said = refused_copy(scenario, version, to="prod.loans")
    assert f"`chancery request models:/fraud/{version} --to prod --as prod.loans`" in str(said)
    assert f"lets models:/fraud/{version} be served as prod.fraud only" in str(said)
    refused_copy(scenario, version, to="PROD.fraud")
    copy(scenario, version)
    refused_copy(scenario, version, to="prod.loans")  # nor once the statement was used
    assert len(load().predict(FEATURES)) == len(FEATURES)


@on_both
@pytest.mark.parametrize("cleared", [True, False])
def test_nor_by_rows_forged_in_the_database(scenario: Scenario, cleared: bool) -> None:
    """An administrator of the database gives the copy another protected name."""
    version = scenario.train()
    clear(scenario, version)
    copy(scenario, version)
    if cleared:  # for its own name too: that is no clearance for a copy
        scenario.promote(version, "champion", "prod")
    load()
    with connect(plain_database_uri(scenario.uri)).begin() as connection:
        connection.execute(insert(SqlRegisteredModel).values(name="prod.loans"))
        for table in (SqlModelVersion.__table__, models):
            column = table.c.name
            connection.execute(
                update(table).where(column == "prod.fraud").values(name="prod.loans")
            )
        # What governance believes of the statement besides what was signed is forged too.
        for table in (statements, clearances, epochs):
            connection.execute(
                update(table)
                .where(table.c.place == "models:/prod.fraud")
                .values(place="models:/prod.loans")
            )
    said = refused_load("models:/prod.loans/1")
    assert said.code == "UNSIGNED"
    assert f"what is shown is for models:/fraud/{version} to prod as prod.fraud" in said.message
    assert said.remedy.endswith(f"models:/fraud/{version} --to prod --as prod.loans`")
    with pytest.raises(MlflowException) as error:
        copy(scenario, version, to="prod.loans")
    assert "be served as prod.fraud only" in str(governed(error))


@on_both
def test_an_approval_to_serve_a_copy_sets_no_alias_or_stage_and_the_reverse(
    scenario: Scenario,
) -> None:
    version = scenario.train()
    clear(scenario, version)
    for change in (
        lambda: scenario.client.set_registered_model_alias("fraud", "champion", str(version)),
        lambda: scenario.client.transition_model_version_stage("fraud", str(version), "Production"),
    ):
        with pytest.raises(MlflowException) as error:
            change()
        said = str(governed(error))
        assert "served as prod.fraud only" in said
        assert f"`chancery request models:/fraud/{version} --to prod`" in said
    copy(scenario, version)
    with pytest.raises(MlflowException) as error:  # nor is it the alias's occupant now
        scenario.client.set_registered_model_alias("fraud", "champion", str(version))
    governed(error)
    with connect(plain_database_uri(scenario.uri)).begin() as connection:
        connection.execute(
            insert(SqlRegisteredModelAlias).values(name="fraud", alias="champion", version=version)
        )
    assert refused_load("models:/fraud@champion").code == "UNSIGNED"

    second = scenario.train()
    scenario.promote(second, "champion", "prod")
    assert "by alias or stage, not as prod.fraud" in str(refused(lambda: copy(scenario, second)))
    load("models:/fraud@champion")


@pytest.mark.parametrize(
    ("environment", "served_as", "words"),
    [
        ("prod", "fraud", "the policy protects no registered model of that name"),
        ("prod", "staging.fraud", "it is one of staging"),
        ("staging", "prod.fraud", "it is one of prod"),
        ("prod", "", "no registered model of that name"),
        ("prod", "prod.a/1", "no registered model of that name"),
    ],
)
def test_a_request_for_a_name_that_is_not_protected_is_refused(
    scenario: Scenario, environment: str, served_as: str, words: str
) -> None:
    version = scenario.train()
    with pytest.raises(RefusedError, match=words) as error:
        scenario.request(version, environment, served_as=served_as)
    assert "name one that matches" in error.value.remedy
    refusals = [e for e in scenario.events() if e["type"] == "gates:change:refused"]
    assert refusals[-1]["subject"] == f"models:/fraud/{version}"
    assert not scenario.backend.promotion_requests("fraud")


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_whole_way_over_rest(
    database: str,
    request: pytest.FixtureRequest,
    start_server: StartServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = None
    if database == "postgresql":
        store = f"governed+{request.getfixturevalue('postgres_uri')}"
    server = start_server(store, environment={"CHANCERY_HOME": str(tmp_path / "chancery")})
    monkeypatch.setenv("CHANCERY_HOME", str(tmp_path / "client"))
    scenario = Scenario(server.uri, tmp_path / "chancery")
    sources = [(name, scenario.train(name)) for name in ("fraud", "toy")]

    promotions = f"{server.uri}/api/3.0/chancery/promotions"
    body = {"name": "fraud", "version": 1, "environment": "prod", "servedAs": "loans"}
    refused = requests.post(promotions, json=body, timeout=60)
    assert (refused.status_code, refused.json()["error_code"]) == (403, "REFUSED")
    assert "'loans' is no registered model of prod" in refused.json()["message"]
    for odd in ("", 1, "x" * 257):
        again = requests.post(promotions, json={**body, "servedAs": odd}, timeout=60)
        assert again.status_code == 400
    for name, version in sources:
        assert scenario.clear(version, "prod", name, served_as="prod.fraud").served_as
    decision = scenario.backend.evaluate("fraud", 1, "prod", served_as="prod.fraud")
    assert (decision.allowed, decision.served_as) == (True, "prod.fraud")
    assert not scenario.backend.evaluate("fraud", 1, "prod", served_as="prod.loans").allowed
    with pytest.raises(MlflowException, match=r"--as prod\.loans"):
        copy(scenario, 1, to="prod.loans")

    # Both were approved for the same place: whoever comes first goes in, the other is stale.
    scenario.client.create_registered_model("prod.fraud")

    def enter(source: tuple[str, int]) -> bool:
        try:
            return bool(copy(scenario, source[1], name=source[0]))
        except MlflowException:
            return False

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(enter, sources * 4))
    assert any(done)
    granted = {e["subject"] for e in scenario.events() if e["type"] == "gates:promotion:granted"}
    assert len(granted) == 1
    load()


@on_both
def test_the_lineage_of_a_copy_leads_to_what_was_approved(scenario: Scenario) -> None:
    version = scenario.train()
    request = clear(scenario, version)
    copy(scenario, version)
    up = scenario.backend.lineage("models:/prod.fraud/1", direction="up", depth=1)
    assert f"models:/fraud/{version}" in {node.id for node in up.nodes}
    down = scenario.backend.lineage(f"models:/fraud/{version}", direction="down", depth=2)
    found = {node.id: node.attributes for node in down.nodes}
    assert found[f"statements:/{request.statement_id}"] == {
        "environment": "prod",
        "servedAs": "prod.fraud",
    }
    assert "environments:/prod/prod.fraud" in found
    assert "environments:/prod/fraud" not in found
