"""What drift leads to, on a database: reports, alerts, acts of people, and attacks (AC-5, AC-8)."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from drift.consequences import ConsequenceSink
from drift.report import WindowReport
from drift.verdict import Level
from governance import deployments
from governance.alert_records import Alert, AlertLevel, AlertState
from governance.clock import now_ms
from governance.database import metadata, versions
from governance.deployment_control import open_signals
from governance.deployment_port import DeploymentOrder, open_deployments
from governance.deployment_records import SignalKind
from governance.drift_alerts import AlertRules
from governance.drift_port import AlertOrder
from governance.drift_reports import DriftReport
from governance.drift_settings import DriftSettings
from governance.errors import (
    ConflictError,
    MalformedRequestError,
    NotFoundError,
    RefusedError,
    SignatureError,
    TooManyRequestsError,
    UnsignedError,
    UntrustedKeyError,
)
from governance.identity import Actor, ProofLevel, acting_as, current_actor
from governance.signing.drift_statements import QuarantineStatement, ReportStatement, sign_report
from governance.signing.dsse import sign_bundle
from governance.signing.keys import create_key
from governance.signing.statements import PAYLOAD_TYPE
from mlflow_plugins.drift_store import DriftStore, open_drift
from mlflow_plugins.governor import Governor
from mlflow_plugins.notifications import Notifier
from tests.integration.drift_world import of_type, report
from tests.scenario import Scenario

both = pytest.mark.parametrize("scenario", ["sqlite", "postgresql"], indirect=True)
RAISED, CLOSED = "drift:alert:raised", "drift:alert:closed"
STRANGER = Actor("mallory", ProofLevel.SIGNED, keyid="0" * 64)
OUTSIDE = AlertOrder("fraud", 1, "nanny", ("the mean of age moved",), columns=("age",))


class Told(Notifier):
    """Keeps what people would be told; the sending has tests of its own."""

    def __init__(self) -> None:
        self.alerts: list[Alert] = []

    def tell(self, alert: Alert) -> None:
        self.alerts.append(alert)


class World:
    """A registered version, a store and a monitor's sink on it."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        scenario.train()
        self.told = Told()
        settings = DriftSettings(rules=AlertRules(ok_windows=2))
        self.store = DriftStore(Governor.of(scenario.uri), settings, self.told)
        self.sink = ConsequenceSink(self.store, scenario.signer, ("train#4f2a",))

    def see(self, *reports: WindowReport) -> Alert | None:
        found = [self.sink.hand_over(one) for one in reports]
        assert all(one.recorded for one in found)
        return found[-1].alert

    def alert(self, **more: Any) -> Alert:
        alert = self.see(report(level=Level.ALERT, **more))
        assert alert is not None
        return alert

    def deployed(self) -> str:
        """On the route ``fraud`` of the sandbox; the deployment's id."""
        port = open_deployments(self.scenario.uri)
        return port.deploy(DeploymentOrder("models:/fraud/1", environment="sandbox")).deploy_id

    def state(self, alert: Alert) -> AlertState:
        return self.store.alert(alert.alert_id).alert.state


@pytest.fixture
def world(scenario: Scenario) -> World:
    return World(scenario)


# Windows -----------------------------------------------------------------------------------


@both
def test_the_tables_are_as_the_migrations_make_them(world: World) -> None:
    with Governor.of(world.scenario.uri).engine.connect() as connection:
        context = MigrationContext.configure(connection)
        found = compare_metadata(context, metadata)
    ours = [one for one in found if "chancery_drift" in str(one)]
    # What MLflow's tables look like is MLflow's business; ours must not differ at all.
    assert not ours


@both
def test_a_storm_is_one_alert_on_the_ledger_and_one_message(world: World) -> None:
    assert world.see(report()) is None
    first = world.alert()
    for _ in range(20):
        world.alert()
    stored = world.store.alert(first.alert_id).alert
    assert stored.windows == 21
    assert len(world.told.alerts) == 1
    assert len(world.store.alerts("fraud")) == 1
    [event] = of_type(world.scenario, RAISED)
    assert event["subject"] == "models:/fraud/1"
    assert event["data"]["alertId"] == first.alert_id
    assert event["data"]["owner"] == stored.owner
    assert event["data"]["slices"] == ["(age > 52.5 or age is missing)"]
    assert stored.retrain["datasets"] == ["train#4f2a"]
    assert stored.retrain["slices"][0]["predicate"][0]["column"] == "age"
    assert stored.retrain["job"]["runId"]
    assert stored.retrain["worstColumns"] == ["age"]


@both
def test_it_closes_by_itself_and_the_next_one_is_another(world: World) -> None:
    first = world.alert()
    world.see(report(), report(judged=False))
    assert world.state(first) is AlertState.OPEN
    closed = world.see(report())
    assert closed is not None
    assert closed.state is AlertState.CLOSED
    second = world.alert()
    assert second.identity.number == 2
    [event] = of_type(world.scenario, CLOSED)
    assert event["data"]["by"] == ""
    assert len(of_type(world.scenario, RAISED)) == 2
    assert len(world.told.alerts) == 1  # it flaps: people know


def test_a_report_that_was_seen_or_is_older_changes_nothing(world: World) -> None:
    early, bad = report(), report(level=Level.ALERT)
    alert = world.see(bad)
    before = world.store.status("fraud"), len(world.scenario.events())
    for again in (bad, early, bad):
        assert not world.sink.hand_over(again).recorded
    assert (world.store.status("fraud"), len(world.scenario.events())) == before
    assert alert is not None


@both
def test_windows_at_the_same_moment_open_one_alert_and_lose_none(world: World) -> None:
    reports = [report(level=Level.ALERT, deployment=f"r{n % 3}") for n in range(12)]
    barrier = threading.Barrier(12)

    def publish(one: WindowReport) -> bool:
        barrier.wait()
        return world.sink.hand_over(one).recorded

    with ThreadPoolExecutor(12) as pool:
        recorded = list(pool.map(publish, reports))
    alerts = [stored.alert for stored in world.store.alerts("fraud")]
    assert sorted(one.identity.number for one in alerts) == [1, 2, 3]
    assert {one.identity.deployment for one in alerts} == {"r0", "r1", "r2"}
    # Of one route, those that came after a later one are old news, and are not counted twice.
    assert sum(one.windows for one in alerts) == sum(recorded)


def test_the_ledger_gets_a_report_when_the_level_changes_not_each(world: World) -> None:
    begun = now_ms() - 10_000_000
    told = [("ok", 0), ("ok", 1), ("warn", 2), ("ok", 3), ("warn", 4), ("alert", 5), ("ok", 60_005),
            ("ok", 60_006), ("ok", 3_660_005), ("ok", 3_660_005)]  # fmt: skip
    world.see(*(report(level=Level(level), made_ms=begun + at) for level, at in told))
    kept = of_type(world.scenario, "drift:report:recorded")
    assert [(one["data"]["level"], one["data"]["madeMs"] - begun) for one in kept] == [
        ("ok", 0), ("warn", 2), ("alert", 5), ("ok", 60_005), ("ok", 3_660_005),
    ]  # fmt: skip
    assert [one["data"]["number"] for one in kept] == [1, 2, 3, 4, 5]


def test_the_status_tells_of_the_last_window_that_was_judged(world: World) -> None:
    assert world.store.status("fraud")["status"] == "unwatched"
    world.see(report(index=41), report(index=42, judged=False))
    status = world.store.status("fraud")
    assert status["status"] == "ok"
    assert status["watched"][0]["window"] == 41
    assert status["watched"][0]["metrics"]["estimatedAccuracy"] == 0.93
    assert status["watched"][0]["thresholds"] == {
        "warnEsr": 100.0, "alertEsr": 1000.0, "psi": 0.05, "needs": "both",
    }  # fmt: skip
    assert status["watched"][0]["signedBy"]
    world.alert()
    assert world.store.status("fraud")["status"] == "alert"
    with pytest.raises(NotFoundError):
        world.store.status("nothing")


def test_an_alert_is_always_somebodys(world: World) -> None:
    assert world.alert(owner="ann").owner == "ann"
    governor = Governor.of(world.scenario.uri)
    assert world.alert(deployment="r1").owner == current_actor().id  # who registered it
    with governor.engine.begin() as connection:
        connection.execute(versions.update().values(registered_by="anonymous"))
    world.scenario.client.set_registered_model_tag("fraud", "owner", "team-fraud")
    assert world.alert(deployment="r2").owner == "team-fraud"
    world.scenario.client.delete_registered_model_tag("fraud", "owner")
    [admin] = governor.roots(governor.engine.connect()).people
    assert world.alert(deployment="r3").owner == admin.id


# Who may report ----------------------------------------------------------------------------


def test_reports_count_for_what_they_are_signed_for(world: World) -> None:
    """Attacks: a forged, foreign, altered or replayed report."""
    scenario, store = world.scenario, world.store
    scenario.train()  # version 2
    good = report(version=2)
    document = good.to_json()
    binding, other = store.binding("fraud", 2), store.binding("fraud", 1)
    parsed = DriftReport.parse(document)
    statement = ReportStatement.of(parsed, binding)
    stranger = create_key(scenario.home / "stranger.key")
    person = scenario.add_person("carol", "prod")  # approves, and is no monitor
    attacks = [
        (sign_report(statement, stranger), UntrustedKeyError, "not in the trust roots"),
        (sign_report(statement, person), UntrustedKeyError, "no monitor"),
        (sign_report(replace(statement, binding=other), scenario.signer), UntrustedKeyError,
         "another"),
        (sign_report(replace(statement, profile="0" * 64), scenario.signer), UntrustedKeyError,
         "another"),
        (sign_report(replace(statement, report="0" * 64), scenario.signer), UntrustedKeyError,
         "another"),
        (sign_report(replace(statement, made_ms=1), scenario.signer), UntrustedKeyError, "another"),
        (sign_bundle(b"{}", PAYLOAD_TYPE, scenario.signer), SignatureError, "missing"),
        ("{", SignatureError, "JSON"),
    ]  # fmt: skip
    for bundle, error, words in attacks:
        with pytest.raises(error, match=words):
            store.publish(document, bundle)
    with pytest.raises(MalformedRequestError, match="future"):
        world.see(report(made_ms=now_ms() + 900_000))
    with pytest.raises(MalformedRequestError, match="canonical"):
        store.publish(document + b" ", sign_report(statement, scenario.signer))
    assert store.status("fraud")["status"] == "unwatched"
    refused = of_type(scenario, "gates:change:refused")
    assert any("no monitor" in one["data"]["reason"] for one in refused)
    assert store.publish(document, sign_report(statement, scenario.signer)).recorded


def test_an_unsigned_report_is_taken_beside_the_database_only(world: World) -> None:
    document = report().to_json()
    for proof in (ProofLevel.CLAIMED, ProofLevel.BASIC_AUTH, ProofLevel.SIGNED):
        with acting_as(Actor("bob", proof)), pytest.raises(UnsignedError):
            world.store.publish(document, None)
    assert world.store.publish(document, None).recorded
    assert world.store.status("fraud")["watched"][0]["signedBy"] is None


# Somebody outside --------------------------------------------------------------------------


def test_somebody_outside_raises_an_alert_that_windows_do_not_close(world: World) -> None:
    with acting_as(Actor("nanny-service", ProofLevel.BASIC_AUTH)):
        alert = world.store.raise_alert(OUTSIDE)
        again = world.store.raise_alert(OUTSIDE)
    assert alert is not None
    assert again is not None
    assert again.alert_id == alert.alert_id
    assert again.outside == ("nanny (nanny-service)",)
    world.see(*(report() for _ in range(5)))
    assert world.state(alert) is AlertState.OPEN
    assert world.store.raise_alert(replace(OUTSIDE, warn=True)) is not None
    world.store.close(alert.alert_id, "looked into")
    assert world.store.raise_alert(replace(OUTSIDE, warn=True)) is None
    with pytest.raises(NotFoundError):
        world.store.raise_alert(replace(OUTSIDE, version=9))
    with pytest.raises(NotFoundError, match="does not answer"):
        world.store.raise_alert(replace(OUTSIDE, deployment="nowhere"))


@pytest.mark.parametrize("proof", [ProofLevel.ANONYMOUS, ProofLevel.CLAIMED])
def test_nobody_unproven_raises_an_alert(world: World, proof: ProofLevel) -> None:
    with acting_as(Actor("mallory", proof)), pytest.raises(RefusedError, match="not proven"):
        world.store.raise_alert(OUTSIDE)
    assert not world.store.alerts("fraud")


def test_a_flood_is_one_alert_one_message_and_then_refused(world: World) -> None:
    """Attack: alerts without end."""
    flood = Actor("mallory", ProofLevel.SIGNED, keyid="0" * 64)
    refused = 0
    before = len(world.scenario.events())
    with acting_as(flood):
        for number in range(100):
            try:
                order = replace(OUTSIDE, reasons=(f"reason {number} " + "x" * 5000,) * 90)
                world.store.raise_alert(order)
            except TooManyRequestsError:
                refused += 1
    assert refused == 40
    [stored] = world.store.alerts("fraud")
    assert stored.alert.windows == 60
    assert len(stored.alert.reasons) == 20
    assert len(world.told.alerts) == 1
    assert len(world.scenario.events()) - before <= 3  # raised, refused once, and its count


# People ------------------------------------------------------------------------------------


def test_what_was_seen_last_is_told_though_windows_are_counted_anew(world: World) -> None:
    """A monitor whose state was lost begins at 0, and its alarms are to be acknowledged too."""
    world.store.close(world.alert(index=900).alert_id, "a holiday")
    alert = world.alert(index=3)
    assert world.sink.acknowledged() == 900
    world.store.acknowledge(alert.alert_id, "on it")
    world.see(report(level=Level.ALERT, index=4))
    assert world.sink.acknowledged() == 3


@both
def test_people_acknowledge_and_close(world: World) -> None:
    seen = report(level=Level.ALERT)
    alert = world.see(seen)
    assert alert is not None
    assert world.sink.acknowledged() is None
    world.store.acknowledge(alert.alert_id[:8], "on it")
    assert world.sink.acknowledged() is None, "told with the next report"
    assert world.sink.hand_over(seen).recorded is False, "or the last one, again"
    assert world.sink.acknowledged() == alert.last_window
    with pytest.raises(ConflictError, match="acknowledged already"):
        world.store.acknowledge(alert.alert_id, "me too")
    closed = world.store.close(alert.alert_id, "a holiday")
    assert [act.kind for act in closed.acts] == [AlertState.ACKNOWLEDGED, AlertState.CLOSED]
    events = of_type(world.scenario, "drift:alert:acknowledged", CLOSED)
    assert [event["data"]["reason"] for event in events] == ["on it", "a holiday"]
    assert world.store.alerts("fraud") == []
    assert len(world.store.alerts("fraud", closed=True)) == 1


def test_who_may_not_closes_nothing(world: World) -> None:
    """Attack: an alert closed by somebody who may not."""
    alert = world.alert(owner="ann")
    monitor = Actor("robot", ProofLevel.SIGNED)
    ann_claims = Actor("ann", ProofLevel.CLAIMED)
    ann_logs_in = Actor("ann", ProofLevel.BASIC_AUTH)
    for actor in (STRANGER, monitor, ann_claims, ann_logs_in, Actor("", ProofLevel.ANONYMOUS)):
        for act in (world.store.acknowledge, world.store.close):
            with acting_as(actor), pytest.raises(RefusedError, match="may not"):
                act(alert.alert_id, "never mind")
    assert world.state(alert) is AlertState.OPEN
    assert of_type(world.scenario, "gates:change:refused")
    with acting_as(Actor("ann", ProofLevel.SIGNED, keyid="1" * 64)):
        world.store.close(alert.alert_id, "mine")
    assert world.state(alert) is AlertState.CLOSED


# Quarantine --------------------------------------------------------------------------------


class Taken:
    """A deployment that an alert proposes to quarantine."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.deploy_id = world.deployed()
        self.alert = world.alert(deployment="fraud", quarantine=("accuracy fell by 4 sd",))
        self.proposal = world.store.alert(self.alert.alert_id).proposal
        assert self.proposal is not None

    @property
    def signals(self) -> list[SignalKind]:
        with Governor.of(self.world.scenario.uri).engine.connect() as connection:
            return [one.kind for one in open_signals(connection, self.deploy_id)]

    def signed(self, signer: Any) -> str:
        return sign_bundle(self.proposal, PAYLOAD_TYPE, signer)


@both
def test_a_person_signs_and_the_deployment_is_asked_to_take_it_down(world: World) -> None:
    taken = Taken(world)
    assert taken.alert.level is AlertLevel.QUARANTINE
    assert taken.signals == []  # nothing is taken down without a person
    said = QuarantineStatement.parse(taken.proposal)
    assert "accuracy fell by 4 sd" in said.describe()
    scenario = world.scenario
    bundle = taken.signed(scenario.signer)
    with acting_as(Actor("anonymous", ProofLevel.ANONYMOUS)):  # the signature is what counts
        done = world.store.quarantine(taken.alert.alert_id, bundle, "customers complain")
    assert done.state is AlertState.QUARANTINED
    assert taken.signals == [SignalKind.QUARANTINE]
    assert world.store.alert(done.alert_id).signoff == bundle
    [event] = of_type(scenario, "drift:quarantine:signed")
    assert event["actorproof"] == "signed"
    assert event["actorkey"] == scenario.signer.keyid
    assert event["data"]["deployId"] == taken.deploy_id
    [proposed] = of_type(scenario, "drift:quarantine:proposed")
    assert proposed["data"]["alertId"] == done.alert_id
    with pytest.raises(ConflictError, match="quarantined already"):
        world.store.quarantine(done.alert_id, bundle, "again")
    assert taken.signals == [SignalKind.QUARANTINE]


def test_without_a_sign_off_nothing_is_taken_down(world: World) -> None:
    """Attacks: no signature, a stranger's, another's, one's who may not approve there."""
    taken = Taken(world)
    scenario, store, name = world.scenario, world.store, taken.alert.alert_id
    stranger = create_key(scenario.home / "stranger.key")
    elsewhere = scenario.add_person("carol", "prod")
    said = QuarantineStatement.parse(taken.proposal)
    other = replace(said, alert_id="0" * 32).to_payload()
    for bundle, error in (
        ("", SignatureError),
        ("{}", SignatureError),
        (taken.signed(stranger), UntrustedKeyError),
        (taken.signed(elsewhere), RefusedError),
        (sign_bundle(other, PAYLOAD_TYPE, scenario.signer), UntrustedKeyError),
    ):
        with pytest.raises(error):
            store.quarantine(name, bundle, "I say so")
    assert taken.signals == []
    assert world.state(taken.alert) is AlertState.OPEN


def test_what_is_not_proposed_or_not_served_is_not_quarantined(world: World) -> None:
    alert = world.alert()
    signer = world.scenario.signer
    with pytest.raises(UntrustedKeyError):
        world.store.quarantine(alert.alert_id, sign_bundle(b"{}", PAYLOAD_TYPE, signer), "")
    batch = world.alert(quarantine=("accuracy fell",))
    with pytest.raises(RefusedError, match="answers on no route"):
        world.store.quarantine(batch.alert_id, sign_bundle(b"{}", PAYLOAD_TYPE, signer), "")


def test_the_version_that_would_be_hit_must_be_the_one_that_drifted(world: World) -> None:
    taken = Taken(world)
    world.scenario.train()
    port = open_deployments(world.scenario.uri)
    port.deploy(DeploymentOrder("models:/fraud/2", route="fraud", canary_config="50%,100%"))
    with pytest.raises(ConflictError, match="models:/fraud/2, not models:/fraud/1"):
        world.store.quarantine(taken.alert.alert_id, taken.signed(world.scenario.signer), "drift")
    assert taken.signals == []
    with Governor.of(world.scenario.uri).engine.connect() as connection:
        assert deployments.by_id(connection, taken.deploy_id).canary is not None


def test_the_port_is_found(scenario: Scenario) -> None:
    assert isinstance(open_drift(scenario.uri), DriftStore)
