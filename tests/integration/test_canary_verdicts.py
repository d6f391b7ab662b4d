"""A canary's verdict as evidence that a promotion demands (AC-3, AC-4, AC-8).

The rollouts are decided by the real state machine and written by the real store; only the traffic
is made up. The attacks write to the database as its administrator could.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy import insert, update

from governance.clock import now_ms
from governance.database import (
    connect,
    deployments,
    ledger_entries,
    rollout_decisions,
    versions,
)
from governance.deployment_control import Progress, StoredDecision, decision_event_id
from governance.deployment_port import DeploymentOrder, Deployments, open_deployments
from governance.deployment_records import DeploymentRecord, Health
from governance.errors import (
    LedgerTamperedError,
    PromotionDeniedError,
    RefusedError,
    WitnessError,
)
from governance.records import Condition
from governance.settings import plain_database_uri
from mlflow_plugins.governor import Governor
from serve.config import CanaryConfig
from serve.controller import Controller
from serve.delta import Delta, ErrorClass
from serve.plan import Report
from serve.records import Observation, Signal
from serve.rollout import RolloutState, advance
from tests.integration.copies import governed
from tests.scenario import Scenario
from tests.unit.serve.deployment_world import Cluster

POLICY = """
version: 1
environments:
  - name: sandbox
  - name: staging
    aliases: [challenger]
  - name: prod
    aliases: [champion, second]
    requires:
      canary: {environment: staging, min_requests: 100, max_age: 7d}
"""
OWN = POLICY.replace("environment: staging, ", "environment: prod, unless_first: true, ")
CONFIG = '{"steps":[50.0,100.0],"min_samples":100,"min_seconds":0.0,"analysis":{"latency":null}}'
DAY = 86_400_000
_LONGEST = 50
"""Milliseconds that a rollout is dated back: the same for all, so that one that begins later ends
later, however soon it ends."""

on_both = pytest.mark.parametrize("scenario", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(autouse=True)
def policy(private_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Read when the scenario opens its store."""
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    monkeypatch.setenv("CHANCERY_POLICY", str(path))
    return path


class Rollouts:
    """Rolls versions out, with made-up traffic, and says what the gate of prod finds."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.port: Deployments = open_deployments(scenario.uri)

    def stable(self) -> int:
        """One that answers in staging."""
        version = self.scenario.train()
        self.scenario.promote(version, "challenger", "staging")
        self.port.deploy(DeploymentOrder("models:/fraud@challenger", route="staging"))
        return version

    def version(self) -> int:
        """One that was let into staging."""
        version = self.scenario.train()
        self.scenario.promote(version, "challenger", "staging")
        return version

    def begin(self, version: int, route: str = "staging", config: str = CONFIG) -> DeploymentRecord:
        order = DeploymentOrder(f"models:/fraud/{version}", route=route, canary_config=config)
        return self.port.deploy(order)

    def run(
        self,
        version: int,
        *,
        route: str = "staging",
        config: str = CONFIG,
        bad: float = 0.0,
        ago_ms: int = 0,
        signal: Signal | None = None,
        rounds: int = 40,
    ) -> str:
        """A rollout from its start to its end; the outcome."""
        record = self.begin(version, route, config)
        assert record.rollout_id
        state = RolloutState.start(record.rollout_id, CanaryConfig.model_validate_json(config))
        decisions = list(decided(state, bad=bad, at_ms=now_ms() - ago_ms, signal=signal,
                                 rounds=rounds))  # fmt: skip
        self.save(record, decisions)
        self.ledger.sequence()
        return str(decisions[-1].document["outcome"])

    def save(self, record: DeploymentRecord, decisions: list[StoredDecision]) -> None:
        look = self.port.take(record.deploy_id, "one", now_ms=now_ms(), ttl_ms=1)
        assert look is not None
        progress = Progress(b"{}", 1, Health.SERVING, decisions=tuple(decisions))
        self.port.save(record.deploy_id, look.record.fence, progress, now_ms=now_ms())
        self.port.release(record.deploy_id, look.record.fence)

    @property
    def ledger(self) -> Any:
        return Governor.of(self.scenario.uri).ledger

    def found(self, version: int) -> Condition:
        """The canary's condition for prod."""
        decision = self.scenario.backend.evaluate("fraud", version, "prod")
        [condition] = [c for c in decision.conditions if c.name == "canary"]
        return condition

    def sql(self) -> Any:
        return connect(plain_database_uri(self.scenario.uri)).begin()

    def ended(self) -> Any:
        """The row of the last rollout's end."""
        with self.sql() as connection:
            return connection.execute(
                rollout_decisions.select().order_by(rollout_decisions.c.at_ms.desc()).limit(1)
            ).one()


def decided(
    state: RolloutState, *, bad: float, at_ms: int, signal: Signal | None, rounds: int
) -> Iterator[StoredDecision]:
    steps: list[tuple[Signal | None, bool]] = [(Signal.START, False), (Signal.VERIFIED, False)]
    steps += [(None, True)] * (3 if signal else rounds)
    steps += [(signal, False)] if signal else []
    for number, (told, traffic) in enumerate(steps, 1):
        failed = round(20 * bad)
        errors = {ErrorClass.RAISED: failed} if failed else {}
        deltas = {"canary": Delta(20, errors), "stable": Delta(20)} if traffic else {}
        seen = Observation("gateway", number, deltas, frozenset({told} if told else ()))
        state, _, decision = advance(state, seen, at_ms - _LONGEST + number)
        if decision.changes:
            yield StoredDecision(
                state.id,
                state.transitions,
                decision.to_dict(),
                ended=state.phase.terminal,
                promoted=state.phase.value == "promoted",
            )
        if state.phase.terminal:
            return


@pytest.fixture
def rollouts(scenario: Scenario) -> Rollouts:
    found = Rollouts(scenario)
    found.stable()
    return found


def denied(rollouts: Rollouts, version: int, *words: str) -> None:
    """Neither a request nor the alias gets through; the condition says why."""
    found = rollouts.found(version)
    assert not found.met
    for word in words:
        assert word in f"{found.found} {found.remedy}"
    with pytest.raises(PromotionDeniedError) as error:
        rollouts.scenario.request(version, "prod")
    assert found.required in str(error.value)


@on_both
def test_a_verdict_lets_the_version_in_and_is_in_what_people_sign(
    scenario: Scenario, rollouts: Rollouts
) -> None:
    version = rollouts.version()
    denied(rollouts, version, f"chancery deploy start models:/fraud/{version} --env staging")
    assert rollouts.run(version) == "promoted"
    request = scenario.request(version, "prod")
    [condition] = [c for c in request.decision["conditions"] if c["name"] == "canary"]
    assert "beside models:/fraud/1 ended promoted just now" in condition["found"]
    row = rollouts.ended()
    inputs = json.loads(request.payload)["predicate"]["inputAttestations"]
    assert {"uri": f"rollouts:/{row.rollout_id}", "digest": {"sha256": row.digest}} in inputs
    scenario.approve(request)
    scenario.client.set_registered_model_alias("fraud", "champion", str(version))
    assert scenario.alias("champion") == version


@on_both
def test_the_tables_only_say_where_to_look(scenario: Scenario, rollouts: Rollouts) -> None:
    """An end that the ledger does not have, or has otherwise, is none."""
    version = rollouts.version()
    assert rollouts.run(version, bad=0.8) == "rolled_back"
    denied(rollouts, version, "ended rolled back just now", "chancery deploy why")
    row = rollouts.ended()
    edited = json.loads(row.document) | {"outcome": "promoted", "phase": "promoted"}
    digest = StoredDecision(row.rollout_id, row.number, edited).digest
    forged = {"outcome": "promoted", "document": json.dumps(edited), "digest": digest}
    where = rollout_decisions.c.rollout_id == row.rollout_id
    with rollouts.sql() as connection:  # the row is changed, with its digest
        connection.execute(
            update(rollout_decisions)
            .where(where, rollout_decisions.c.number == row.number)
            .values(**forged)
        )
    denied(rollouts, version, "its row was changed")
    with rollouts.sql() as connection:  # a decision is added to the table
        connection.execute(
            insert(rollout_decisions).values({**row._mapping, **forged, "number": row.number + 1})
        )
    denied(rollouts, version, "is not on the ledger")


def test_an_entry_of_the_ledger_that_was_changed_is_noticed(
    scenario: Scenario, rollouts: Rollouts
) -> None:
    version = rollouts.version()
    assert rollouts.run(version, bad=0.8) == "rolled_back"
    row = rollouts.ended()
    event_id = decision_event_id(row.rollout_id, row.number)
    leaf = rollouts.ledger.find(event_id).leaf.replace(b"rolled_back", b"promoted")
    document = json.loads(leaf)["data"]["decision"]
    digest = StoredDecision(row.rollout_id, row.number, document).digest
    leaf = leaf.replace(row.digest.encode(), digest.encode())
    with rollouts.sql() as connection:
        connection.execute(
            update(ledger_entries).where(ledger_entries.c.event_id == event_id).values(leaf=leaf)
        )
        connection.execute(
            update(rollout_decisions)
            .where(rollout_decisions.c.rollout_id == row.rollout_id)
            .where(rollout_decisions.c.number == row.number)
            .values(outcome="promoted", document=json.dumps(document), digest=digest)
        )
    denied(rollouts, version, "is not the one that was signed")
    with rollouts.sql() as connection, pytest.raises(LedgerTamperedError):
        rollouts.ledger.is_countersigned(connection, rollouts.ledger.find(event_id))


def test_what_is_not_countersigned_yet_is_no_evidence(
    scenario: Scenario, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = rollouts.version()
    with monkeypatch.context() as stopped:
        stopped.setattr(rollouts.ledger, "sequence", lambda: 0)
        rollouts.ledger.close()  # nor in the background
        rollouts.run(version)
        assert "is not on the ledger" in rollouts.found(version).found
    latest = rollouts.ledger.witness.latest(rollouts.ledger.origin)
    rollouts.ledger.sequence()
    with monkeypatch.context() as behind:
        behind.setattr(rollouts.ledger.witness, "latest", lambda origin: latest)
        assert "waits for the witness" in rollouts.found(version).found
    assert rollouts.found(version).met


TOLERANT = CONFIG.replace('"latency":null', '"latency":null,"errors":{"tolerance":0.9}')
BLIND = CONFIG.replace('"latency":null', '"errors":null')
ALONE = CONFIG.replace("[50.0,100.0]", "[100.0]")[:-1] + ',"guard_rails":{"max_error_rate":0.5}}'
TOO_LITTLE: list[tuple[dict[str, Any], str]] = [
    ({"ago_ms": 8 * DAY}, "ended promoted 8 days ago"),
    ({"signal": Signal.ABORT}, "was aborted"),
    ({"signal": Signal.VERIFICATION_FAILED}, "ended quarantined"),
    ({"signal": Signal.REVOKED}, "ended quarantined"),
    ({"config": CONFIG.replace('":100,', '":1,')}, "compared 20 requests of each"),
    ({"config": CONFIG[:-1] + ',"alpha":0.49}'}, "decided at level 0.49"),
    ({"config": CONFIG[:-1] + ',"alpha":1e-9}'}, "at level 1e-09 only"),
    ({"config": TOLERANT}, "tolerated an error rate 0.9 higher"),
    ({"config": BLIND}, "did not compare errors"),
    ({"config": ALONE}, "compared 0 requests of each"),
]


def test_a_rollout_that_ended_otherwise_or_proves_too_little(
    scenario: Scenario, rollouts: Rollouts
) -> None:
    """Two versions take turns; each time the newest verdict is the one that is found."""
    here, there = rollouts.version(), 1
    for how, words in TOO_LITTLE:
        outcome = rollouts.run(here, **how)
        found = rollouts.found(here)
        assert not found.met
        if outcome == "aborted":
            continue  # it says nothing: what was found before still counts
        assert words in found.found
        if outcome == "promoted":
            here, there = there, here
    assert rollouts.run(here) == "promoted"
    assert rollouts.found(here).met
    assert rollouts.run(there, signal=Signal.ABORT) == "aborted"


def test_only_this_version_in_this_incarnation_with_these_files_in_that_environment(
    scenario: Scenario, rollouts: Rollouts
) -> None:
    version, other = rollouts.version(), rollouts.version()
    assert rollouts.run(other) == "promoted"
    denied(rollouts, version, f"was of models:/fraud/{other}")

    order = DeploymentOrder(f"models:/fraud/{other}", route="sandbox", environment="sandbox")
    rollouts.port.deploy(order)
    assert rollouts.run(version, route="sandbox") == "promoted"
    denied(rollouts, version, f"was of models:/fraud/{other}")
    with rollouts.sql() as connection:  # the deployment is said to have been in staging
        connection.execute(
            update(deployments)
            .where(deployments.c.route == "sandbox")
            .values(environment="staging")
        )
    denied(rollouts, version, "was in sandbox")

    assert rollouts.found(other).met
    with rollouts.sql() as connection:  # other files are registered under its name
        connection.execute(
            update(versions).where(versions.c.version == other).values(root_digest="ab" * 32)
        )
    assert "was of other files" in rollouts.found(other).found


def test_a_version_that_was_deleted_and_made_anew_has_no_verdict(
    scenario: Scenario, rollouts: Rollouts
) -> None:
    version = rollouts.version()
    assert rollouts.run(version) == "promoted"
    assert rollouts.found(version).met
    scenario.client.delete_registered_model_alias("fraud", "challenger")
    scenario.client.delete_registered_model("fraud")
    for _ in range(version):
        again = scenario.train()
    assert again == version
    found = rollouts.found(again)
    assert not found.met
    assert f"was of an earlier models:/fraud/{version}, which was deleted" in found.found


def test_only_who_has_the_lease_decides(scenario: Scenario, rollouts: Rollouts) -> None:
    version = rollouts.version()
    record = rollouts.begin(version)
    assert record.rollout_id
    state = RolloutState.start(record.rollout_id, CanaryConfig.model_validate_json(CONFIG))
    ends = tuple(decided(state, bad=0.0, at_ms=now_ms(), signal=None, rounds=40))
    look = rollouts.port.take(record.deploy_id, "one", now_ms=now_ms(), ttl_ms=60_000)
    assert look is not None
    for fence in (look.record.fence - 1, look.record.fence + 1):
        with pytest.raises(RefusedError, match="is not the present one"):
            rollouts.port.save(record.deploy_id, fence, Progress(b"{}", 1, Health.SERVING,
                               decisions=ends), now_ms=now_ms())  # fmt: skip
    rollouts.ledger.sequence()
    denied(rollouts, version, "no rollout of it in staging")
    # with the lease, but for a rollout that is not the one that runs: bound to no version
    strange = tuple(replace(one, rollout_id="e" * 32) for one in ends)
    progress = Progress(b"{}", 1, Health.SERVING, decisions=strange)
    rollouts.port.save(record.deploy_id, look.record.fence, progress, now_ms=now_ms())
    rollouts.ledger.sequence()
    denied(rollouts, version, "rollout eeeeeeeeeeee was of None")


# -- a canary in the environment itself


@on_both
def test_prod_asks_for_a_canary_in_prod_and_the_controller_sets_the_alias(
    scenario: Scenario, policy: Path
) -> None:
    """Request, approval and canary come before the verdict; alias and plain deployment after."""
    policy.write_text(OWN)
    first = scenario.train()
    scenario.to_prod(first)  # there was nothing before it
    scenario.client.set_registered_model_alias("fraud", "second", str(first))
    port = open_deployments(scenario.uri)
    record = port.deploy(DeploymentOrder("models:/fraud@champion"))
    version = scenario.train()
    scenario.promote(version, "challenger", "staging")
    config = CONFIG[:-1] + ',"on_success":{"promote_alias":"champion"}}'
    order = DeploymentOrder(f"models:/fraud/{version}", route="fraud", canary_config=config)
    with pytest.raises(PromotionDeniedError) as unapproved:
        port.deploy(order)
    assert "must approve" in str(unapproved.value)
    assert "A canary" not in str(unapproved.value)
    scenario.clear(version, "prod")
    with pytest.raises(MlflowException) as early:
        scenario.client.set_registered_model_alias("fraud", "champion", str(version))
    assert "A canary of the same version in prod must have ended" in str(governed(early))
    with pytest.raises(PromotionDeniedError, match="A canary of the same version in prod"):
        port.deploy(replace(order, route="else", environment="prod", canary_config=None))

    port.deploy(order)
    clock = now_ms()
    controller = Controller(record.deploy_id, port, Cluster(), owner="one", clock=lambda: clock)
    for sequence in range(1, 120):
        clock += 250
        controller.tick(clock)
        deltas = {"canary": Delta(20), "stable": Delta(20)}
        controller.exchange(Report("gateway", sequence, deltas, {"stable": 1, "canary": 1}))
        if scenario.alias("champion") == version:
            break
    assert scenario.alias("champion") == version
    last = {event["type"]: number for number, event in enumerate(scenario.events())}
    assert last["serve:rollout:decided"] < last["gates:promotion:granted"]
    assert "serve:deployment:alerted" not in last


def test_a_verdict_against_it_keeps_the_alias_where_it_is(scenario: Scenario, policy: Path) -> None:
    policy.write_text(OWN)
    first = scenario.train()
    scenario.to_prod(first)
    rollouts = Rollouts(scenario)
    rollouts.port.deploy(DeploymentOrder("models:/fraud@champion"))
    version = scenario.train()
    scenario.promote(version, "challenger", "staging")
    scenario.clear(version, "prod")
    assert rollouts.run(version, route="fraud", bad=0.8) == "rolled_back"
    with pytest.raises(MlflowException) as error:
        scenario.client.set_registered_model_alias("fraud", "champion", str(version))
    assert "ended rolled back just now" in str(governed(error))
    assert scenario.alias("champion") == first
    with pytest.raises(PromotionDeniedError):
        rollouts.port.set_alias("fraud", "champion", version)


def test_who_is_there_keeps_its_place_when_the_verdict_has_aged(
    scenario: Scenario, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second alias of the environment, a month later: it was let in with a fresh verdict."""
    version = rollouts.version()
    rollouts.run(version)
    scenario.clear(version, "prod")
    scenario.client.set_registered_model_alias("fraud", "champion", str(version))
    monkeypatch.setattr("mlflow_plugins.governor.now_ms", lambda: now_ms() + 30 * DAY)
    scenario.client.set_registered_model_alias("fraud", "second", str(version))
    assert scenario.alias("second") == version


def test_while_the_witness_is_away_the_controller_sets_no_alias_and_tries_again(
    scenario: Scenario, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither refused, which is final, nor "set, but not covered", which would be untrue."""
    version = rollouts.version()
    rollouts.run(version)
    scenario.clear(version, "prod")

    def away(*_: object) -> str:
        raise WitnessError("the disk is full", "make room")

    with monkeypatch.context() as without:
        without.setattr(rollouts.ledger.witness, "latest", away)
        with pytest.raises(ConnectionError, match="the disk is full"):
            rollouts.port.set_alias("fraud", "champion", version)
    assert scenario.alias("champion") is None
    assert rollouts.port.set_alias("fraud", "champion", version)
