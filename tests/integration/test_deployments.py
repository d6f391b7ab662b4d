"""Deployments on a database: the gate, the races, the lease, and what is on the ledger."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from governance import deployment_control, deployments
from governance.database import metadata
from governance.deployment_control import Alert, Progress, StoredDecision
from governance.deployment_port import DeploymentOrder, Deployments, open_deployments
from governance.deployment_records import DeploymentRecord, DeploymentStatus, Health, SignalKind
from governance.errors import (
    NotFoundError,
    PromotionDeniedError,
    RefusedError,
    RevokedError,
    UntrustedKeyError,
)
from governance.identity import Actor, ProofLevel, acting_as
from mlflow_plugins.governor import Governor
from tests.scenario import Scenario

pytestmark = pytest.mark.parametrize("scenario", ["sqlite", "postgresql"], indirect=True)

CONFIG = '{"version":1,"steps":[5.0,100.0]}'
TTL = 3000


@pytest.fixture
def port(scenario: Scenario) -> Deployments:
    return open_deployments(scenario.uri)


def deploy(port: Deployments, /, model: str, **more: Any) -> DeploymentRecord:
    return port.deploy(DeploymentOrder(model, **more))


def sandbox(port: Deployments, /, model: str = "models:/fraud/1", **more: Any) -> DeploymentRecord:
    return deploy(port, model, environment="sandbox", **more)


def decision(outcome: str = "advanced", at_ms: int = 5) -> dict[str, Any]:
    return {"outcome": outcome, "phase": "canary", "atMs": at_ms, "explanation": ["because"]}


def progress(**more: Any) -> Progress:
    return Progress(state=b"{}", plan_revision=7, health=Health.SERVING, **more)


def at_once(count: int, act: Callable[[int], Any]) -> list[Any]:
    """The results or errors of ``count`` threads that act at the same moment."""
    barrier = threading.Barrier(count)

    def one(number: int) -> Any:
        barrier.wait()
        try:
            return act(number)
        except RefusedError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def of_type(scenario: Scenario, name: str) -> list[dict[str, Any]]:
    return [event for event in scenario.events() if event["type"] == name]


def test_the_tables_are_as_the_migrations_make_them(scenario: Scenario) -> None:
    scenario.train()
    with Governor.of(scenario.uri).engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_object": lambda thing, name, kind, *_: (
                    (kind != "table" or str(name).startswith("chancery_"))
                    and str(name) != "chancery_alembic_version"
                )
            },
        )
        assert compare_metadata(context, metadata) == []


# -- the gate


def test_a_version_that_was_let_in_is_deployed(scenario: Scenario, port: Deployments) -> None:
    version = scenario.train()
    scenario.to_prod(version)
    record = deploy(port, "models:/fraud@champion", replicas=2)
    assert record.environment == "prod"
    assert record.route == "fraud"
    assert record.status is DeploymentStatus.STARTING
    assert record.provenance["signers"]
    assert record.stable.root_digest == record.provenance["rootDigest"]
    document = record.to_dict()
    assert set(document) >= {
        "deployId", "modelId", "version", "env", "route", "nodePool", "resources", "status",
        "canaryConfig", "createdAt", "provenance", "metricsEndpoint",
    }  # fmt: skip
    assert document["resources"] == {"host": "127.0.0.1", "replicas": 2}
    assert document["metricsEndpoint"] == "http://127.0.0.1:8080/metrics"
    created = of_type(scenario, "serve:deployment:created")
    assert [event["subject"] for event in created] == [record.subject]
    assert created[0]["data"]["versionUid"] == record.stable.version_uid


def test_an_unapproved_version_is_denied_with_each_condition(
    scenario: Scenario, port: Deployments
) -> None:
    version = scenario.train()
    with pytest.raises(PromotionDeniedError, match=r"may not be promoted to prod.*Remedy"):
        deploy(port, f"models:/fraud/{version}", environment="prod")
    assert port.list(ended=True) == []
    assert of_type(scenario, "gates:promotion:denied")
    assert not of_type(scenario, "serve:deployment:created")


def test_an_approved_version_may_be_a_canary_before_its_alias_is_set(
    scenario: Scenario, port: Deployments
) -> None:
    stable, canary = scenario.train(), scenario.train()
    scenario.to_prod(stable)
    scenario.promote(canary, "challenger", "staging")
    deploy(port, "models:/fraud@champion")
    with pytest.raises(PromotionDeniedError):
        deploy(port, f"models:/fraud/{canary}", canary_config=CONFIG)
    request = scenario.clear(canary, "prod")
    record = deploy(port, f"models:/fraud/{canary}", canary_config=CONFIG)
    assert record.canary is not None
    assert record.canary.version == canary
    assert record.status is DeploymentStatus.ROLLING_OUT
    started = of_type(scenario, "serve:rollout:started")
    assert started[0]["data"]["provenance"]["statementId"] == request.statement_id
    assert json.loads(started[0]["data"]["config"]).items() >= json.loads(CONFIG).items()


def test_a_clearance_counts_only_while_its_signers_are_trusted(
    scenario: Scenario, port: Deployments
) -> None:
    from governance.signing.trust import sign_roots, verify_chain

    signer = scenario.add_person("bob", "staging")
    version = scenario.train()
    scenario.approve(scenario.request(version, "staging"), signer)
    scenario.client.set_registered_model_alias("fraud", "challenger", str(version))
    deploy(port, "models:/fraud@challenger", route="first")
    roots = verify_chain(scenario.backend.trust_roots(), pinned_first=None).successor()
    payload = roots.revoke_key(signer.keyid).to_payload()
    scenario.backend.change_trust_roots(payload, [sign_roots(payload, scenario.signer)])
    with pytest.raises(UntrustedKeyError):
        deploy(port, "models:/fraud@challenger", route="second")


def test_a_revoked_version_is_refused(scenario: Scenario, port: Deployments) -> None:
    version = scenario.train()
    scenario.to_prod(version)
    scenario.backend.revoke("fraud", version, "leaks")
    for environment in ("sandbox", "prod"):
        with pytest.raises(RevokedError, match="leaks"):
            deploy(port, f"models:/fraud/{version}", environment=environment)
    assert port.list() == []


def test_what_cannot_be_leaves_nothing_behind(scenario: Scenario, port: Deployments) -> None:
    scenario.train()
    one = "models:/fraud/1"
    for order, error, words in [
        (DeploymentOrder("models:/fraud/9", environment="sandbox"), NotFoundError, "fraud/9"),
        (DeploymentOrder("models:/nobody/1", environment="sandbox"), NotFoundError, "nobody"),
        (DeploymentOrder("models:/fraud@nope"), NotFoundError, "nope"),
        (DeploymentOrder("runs:/fraud/1"), RefusedError, "models:/name"),
        (DeploymentOrder("models:/fraud/x"), NotFoundError, "version number"),
        (DeploymentOrder(one), RefusedError, "which environment"),
        (DeploymentOrder(one, environment="moon"), NotFoundError, "moon"),
        (DeploymentOrder(one, "a b", "sandbox"), RefusedError, "route"),
        (DeploymentOrder(one, environment="sandbox", replicas=-1), RefusedError, "replicas"),
        (DeploymentOrder(one, None, "sandbox", CONFIG), RefusedError, "--stable"),
        (DeploymentOrder(one, None, "sandbox", CONFIG, one), RefusedError, "answers .* already"),
    ]:
        with pytest.raises(error, match=words):
            port.deploy(order)
        assert port.list(ended=True) == []
    assert not of_type(scenario, "serve:deployment:created")


def test_stable_and_canary_at_once(scenario: Scenario, port: Deployments) -> None:
    stable, canary = scenario.train(), scenario.train()
    record = sandbox(
        port, f"models:/fraud/{canary}", stable=f"models:/fraud/{stable}", canary_config=CONFIG
    )
    assert record.stable.version == stable
    assert record.canary is not None
    assert record.canary.version == canary


# -- two people at once


def test_of_two_people_on_one_route_one_wins(scenario: Scenario, port: Deployments) -> None:
    scenario.train()

    def one(number: int) -> Any:
        with acting_as(Actor(f"person-{number}", ProofLevel.SIGNED)):
            return sandbox(port)

    found = at_once(6, one)
    won = [f for f in found if isinstance(f, DeploymentRecord)]
    lost = [f for f in found if isinstance(f, RefusedError)]
    assert len(won) == 1
    assert len(lost) == 5
    for error in lost:
        assert re.search(
            rf"{won[0].created_by} deployed models:/fraud/1 there at 20\d\d-", str(error)
        )
    assert len(of_type(scenario, "serve:deployment:created")) == 1


def test_people_on_different_routes_get_different_ports(
    scenario: Scenario, port: Deployments
) -> None:
    scenario.train()
    found = at_once(5, lambda number: sandbox(port, route=f"r{number}"))
    assert sorted(record.port for record in found) == [8080, 8081, 8082, 8083, 8084]


def test_of_two_rollouts_one_begins(scenario: Scenario, port: Deployments) -> None:
    for _ in range(3):
        scenario.train()
    sandbox(port)

    def one(number: int) -> Any:
        with acting_as(Actor(f"person-{number}", ProofLevel.SIGNED)):
            return deploy(port, f"models:/fraud/{2 + number % 2}", route="fraud",
                          canary_config=CONFIG)  # fmt: skip

    found = at_once(4, one)
    won = [f for f in found if isinstance(f, DeploymentRecord)]
    assert len(won) == 1
    for error in found:
        if isinstance(error, RefusedError):
            assert f"{won[0].rollout_by} began it at 20" in str(error)
    assert len(of_type(scenario, "serve:rollout:started")) == 1


def test_a_route_is_free_again_after_its_end(scenario: Scenario, port: Deployments) -> None:
    scenario.train()
    first = sandbox(port)
    with pytest.raises(RefusedError, match="is taken"):
        sandbox(port)
    assert port.end("fraud", "done").status is DeploymentStatus.ENDED
    with pytest.raises(RefusedError, match="was ended by"):
        port.end(first.deploy_id, "again")
    second = sandbox(port)
    assert port.find("fraud").deploy_id == second.deploy_id
    assert port.find(first.deploy_id[:10]).ended_reason == "done"
    assert [r.deploy_id for r in port.list()] == [second.deploy_id]
    assert len(port.list(ended=True)) == 2
    assert of_type(scenario, "serve:deployment:ended")[0]["data"]["reason"] == "done"
    with pytest.raises(NotFoundError):
        port.find("nothing")


def test_no_two_deployments_share_a_port(scenario: Scenario, port: Deployments) -> None:
    scenario.train()
    assert sandbox(port, route="one").port == 8080
    assert sandbox(port, route="two", port=9000).port == 9000
    assert sandbox(port, route="three").port == 8081
    with pytest.raises(RefusedError, match="port 9000 belongs to the route 'two'"):
        sandbox(port, route="four", port=9000)
    two = port.end("two", "done")
    with pytest.raises(RefusedError, match="port 9000"):  # its listeners may still be there
        sandbox(port, route="four", port=9000)
    assert port.take(two.deploy_id, "one", now_ms=0, ttl_ms=TTL)
    port.save(two.deploy_id, 1, progress(stopped=True), now_ms=1)
    assert sandbox(port, route="four", port=9000).port == 9000


def test_a_canary_must_fit_its_route(scenario: Scenario, port: Deployments) -> None:
    scenario.train()
    scenario.train("other")
    sandbox(port)
    with pytest.raises(RefusedError, match="do not share a route"):
        deploy(port, "models:/other/1", route="fraud", canary_config=CONFIG)
    with pytest.raises(RefusedError, match="belongs to sandbox"):
        deploy(port, "models:/fraud/1", environment="prod", canary_config=CONFIG)
    with pytest.raises(RefusedError, match="its resources"):
        deploy(port, "models:/fraud/1", replicas=3, canary_config=CONFIG)


# -- controllers


def test_one_controller_has_the_lease(scenario: Scenario, port: Deployments) -> None:
    scenario.train()
    record = sandbox(port)

    def one(number: int) -> Any:
        return port.take(record.deploy_id, f"c{number}", now_ms=1000, ttl_ms=TTL)

    for _ in range(3):
        looks = [look for look in at_once(8, one) if look is not None]
        if looks:
            break
    assert len(looks) == 1
    held = looks[0].record
    assert held.fence == 1
    assert port.take(record.deploy_id, "late", now_ms=1000 + TTL - 1, ttl_ms=TTL) is None
    looked = port.look(record.deploy_id, held.fence, now_ms=3000, ttl_ms=TTL)
    assert looked.record.deploy_id == record.deploy_id
    assert port.take(record.deploy_id, "late", now_ms=5999, ttl_ms=TTL) is None
    taken = port.take(record.deploy_id, "late", now_ms=6000, ttl_ms=TTL)
    assert taken is not None
    assert taken.record.fence == 2
    for act in (
        lambda: port.look(record.deploy_id, 1, now_ms=7000, ttl_ms=TTL),
        lambda: port.save(record.deploy_id, 1, progress(), now_ms=7000),
    ):
        with pytest.raises(RefusedError, match="late has lease 2"):
            act()
    assert port.find(record.deploy_id).state is None
    port.release(record.deploy_id, 1)  # not its any more: nothing happens
    assert port.take(record.deploy_id, "third", now_ms=7000, ttl_ms=TTL) is None
    port.release(record.deploy_id, 2)
    third = port.take(record.deploy_id, "third", now_ms=7000, ttl_ms=TTL)
    assert third is not None
    assert third.record.fence == 3


def test_late_renewal_is_fine_while_nobody_took_it(scenario: Scenario, port: Deployments) -> None:
    scenario.train()
    record = sandbox(port)
    assert port.take(record.deploy_id, "one", now_ms=0, ttl_ms=TTL)
    port.look(record.deploy_id, 1, now_ms=60_000, ttl_ms=TTL)
    assert port.take(record.deploy_id, "two", now_ms=60_001, ttl_ms=TTL) is None


def test_progress_is_saved_once(scenario: Scenario, port: Deployments) -> None:
    scenario.train()
    scenario.train()
    sandbox(port)
    record = deploy(port, "models:/fraud/2", canary_config=CONFIG)
    assert record.rollout_id
    assert port.take(record.deploy_id, "one", now_ms=0, ttl_ms=TTL)
    first = StoredDecision(record.rollout_id, 1, decision("verified"))
    last = StoredDecision(record.rollout_id, 2, decision("promoted", 9), ended=True, promoted=True)
    port.save(record.deploy_id, 1, progress(decisions=(first,)), now_ms=10)
    for _ in range(2):  # a save whose answer was lost is repeated
        after = port.save(
            record.deploy_id,
            1,
            progress(decisions=(first, last), alerts=(Alert("a/1", "look"),)),
            now_ms=20,
        )
        assert after.canary is None
        assert after.stable.version == 2
        assert after.previous is not None
        assert after.previous.version == 1
        assert after.status is DeploymentStatus.SERVING
    assert [d.document["outcome"] for d in port.decisions(record.deploy_id)] == [
        "verified",
        "promoted",
    ]
    decided = of_type(scenario, "serve:rollout:decided")
    assert [event["data"]["digest"] for event in decided] == [first.digest, last.digest]
    assert decided[1]["data"]["model"] == "models:/fraud/2"
    assert decided[1]["actor"] == "controller:one"
    assert of_type(scenario, "serve:deployment:alerted")


def test_signals_are_taken_once_and_in_order(scenario: Scenario, port: Deployments) -> None:
    scenario.train()
    scenario.train()
    sandbox(port)
    with pytest.raises(RefusedError, match="no rollout runs"):
        port.ask("fraud", SignalKind.PAUSE, "wait")
    record = deploy(port, "models:/fraud/2", canary_config=CONFIG)
    kinds = [kind for kind in SignalKind if kind is not SignalKind.WARM]  # of any rollout
    at_once(5, lambda number: port.ask("fraud", kinds[number], f"reason {number}"))
    look = port.take(record.deploy_id, "one", now_ms=0, ttl_ms=TTL)
    assert look is not None
    assert [s.number for s in look.signals] == [1, 2, 3, 4, 5]
    assert {s.kind for s in look.signals} == set(kinds)
    assert all(s.rollout_id == record.rollout_id for s in look.signals)
    with pytest.raises(RefusedError):
        port.save(record.deploy_id, 9, progress(taken=(1, 2)), now_ms=1)
    port.save(record.deploy_id, 1, progress(taken=(1, 2)), now_ms=1)
    left = port.look(record.deploy_id, 1, now_ms=1, ttl_ms=TTL).signals
    assert [s.number for s in left] == [3, 4, 5]
    assert len(of_type(scenario, "serve:rollout:signalled")) == 5


def test_revocation_is_seen_at_the_next_look(scenario: Scenario, port: Deployments) -> None:
    version = scenario.train()
    record = sandbox(port)
    assert port.take(record.deploy_id, "one", now_ms=0, ttl_ms=TTL)
    assert port.look(record.deploy_id, 1, now_ms=1, ttl_ms=TTL).revoked == {}
    scenario.backend.revoke("fraud", version, "leaks")
    seen = port.look(record.deploy_id, 1, now_ms=2, ttl_ms=TTL).revoked
    assert seen == {record.stable.version_uid: "leaks"}


def test_an_ended_deployment_is_taken_down_once(scenario: Scenario, port: Deployments) -> None:
    scenario.train()
    record = sandbox(port)
    port.end("fraud", "done")
    assert port.take(record.deploy_id, "one", now_ms=0, ttl_ms=TTL)
    port.save(record.deploy_id, 1, progress(stopped=True), now_ms=1)
    with pytest.raises(NotFoundError, match="taken down"):
        port.take(record.deploy_id, "two", now_ms=10_000, ttl_ms=TTL)


def test_scale(scenario: Scenario, port: Deployments) -> None:
    scenario.train()
    sandbox(port, replicas=2)
    assert port.scale("fraud", 4).resources["replicas"] == 4
    with pytest.raises(RefusedError):
        port.scale("fraud", -1)
    scaled = of_type(scenario, "serve:deployment:scaled")[0]["data"]
    assert (scaled["from"]["replicas"], scaled["to"]["replicas"]) == (2, 4)


def test_the_alias_passes_the_gate(scenario: Scenario, port: Deployments) -> None:
    first, second = scenario.train(), scenario.train()
    scenario.to_prod(first)
    assert port.set_alias("fraud", "champion", first) is False
    with pytest.raises(PromotionDeniedError):
        port.set_alias("fraud", "champion", second)
    assert scenario.alias("champion") == first
    assert port.set_alias("fraud", "mine", second) is True
    with pytest.raises(RefusedError):
        port.set_alias("nobody", "mine", 1)


def test_going_back_passes_the_gate(scenario: Scenario, port: Deployments) -> None:
    scenario.train()
    scenario.train()
    sandbox(port)
    with pytest.raises(RefusedError, match="nothing was replaced"):
        port.back("fraud", "slow", CONFIG)
    record = deploy(port, "models:/fraud/2", canary_config=CONFIG)
    assert record.rollout_id
    assert port.take(record.deploy_id, "one", now_ms=0, ttl_ms=TTL)
    promoted = StoredDecision(record.rollout_id, 1, decision("promoted"), ended=True, promoted=True)
    port.save(record.deploy_id, 1, progress(decisions=(promoted,)), now_ms=1)
    back = port.back("fraud", "slow", CONFIG)
    assert back.canary is not None
    assert back.canary.version == 1
    assert back.rollout_id != record.rollout_id


def test_the_functions_refuse_what_is_not_there(scenario: Scenario, port: Deployments) -> None:
    with Governor.of(scenario.uri).engine.connect() as connection:
        with pytest.raises(NotFoundError):
            deployments.by_id(connection, "0" * 32)
        assert deployment_control.decisions_of(connection, "0" * 32) == ()
