"""Experiments and shadows on a database: the gate, the races, what is on the ledger, commands."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from click.testing import CliRunner, Result

from governance.arms import ArmOrder, ExperimentOrder, ShadowOrder
from governance.cli import main
from governance.database import _alembic_config, migrate, migrations_at_head
from governance.deployment_port import DeploymentOrder, Deployments, open_deployments
from governance.deployment_records import DeploymentRecord, DeploymentStatus
from governance.errors import NotFoundError, PromotionDeniedError, RefusedError, RevokedError
from governance.identity import Actor, ProofLevel, acting_as
from mlflow_plugins.governor import Governor
from tests.scenario import Scenario

pytestmark = pytest.mark.parametrize("scenario", ["sqlite", "postgresql"], indirect=True)

CONFIG = '{"version":1,"steps":[5.0,100.0]}'
AB = """\
name: ab
sticky: header:x-user
arms:
  - {name: control, model: models:/fraud/1, weight: 60}
  - {name: fresh, model: models:/fraud/2, weight: 40, timeout_seconds: 5, max_concurrency: 8}
"""


@pytest.fixture
def port(scenario: Scenario) -> Deployments:
    return open_deployments(scenario.uri)


def order(weights: tuple[str, str] = ("60", "40"), versions: tuple[Any, Any] = (1, 2), **more: Any):  # type: ignore[no-untyped-def]
    arms = (
        ArmOrder(name, f"models:/fraud/{version}", weight)
        for name, version, weight in zip(("control", "fresh"), versions, weights, strict=True)
    )
    return ExperimentOrder(more.get("name", "ab"), more.get("sticky", "header:x-user"), tuple(arms))


def serving(scenario: Scenario, port: Deployments, versions: int = 2) -> DeploymentRecord:
    """Version 1 on a route of the sandbox."""
    for _ in range(versions):
        scenario.train()
    return port.deploy(DeploymentOrder("models:/fraud/1", environment="sandbox"))


def of_type(scenario: Scenario, name: str) -> list[dict[str, Any]]:
    return [event for event in scenario.events() if event["type"] == name]


def at_once(count: int, act: Callable[[int], Any]) -> list[Any]:
    barrier = threading.Barrier(count)

    def one(number: int) -> Any:
        barrier.wait()
        try:
            with acting_as(Actor(f"person-{number}", ProofLevel.SIGNED)):
                return act(number)
        except RefusedError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_an_experiment_from_its_beginning_to_its_end(scenario: Scenario, port: Deployments) -> None:
    serving(scenario, port)
    record = port.experiment("fraud", order())
    assert record.status is DeploymentStatus.EXPERIMENTING
    assert record.experiment is not None
    assert port.find("fraud") == record
    assert [(a.name, a.served.version, a.weight) for a in record.experiment.arms] == [
        ("control", 1, "60"), ("fresh", 2, "40"),
    ]  # fmt: skip
    changed = port.experiment("fraud", order(("30", "70")))
    assert changed.experiment is not None
    assert changed.experiment.id == record.experiment.id
    assert changed.experiment.stretches == (("control", 300_000), ("fresh", 700_000))
    for other in (
        order(versions=(2, 1)),
        order(sticky="cookie:x"),
        order(name="another"),
    ):
        with pytest.raises(RefusedError, match="experiment 'ab' runs"):
            port.experiment("fraud", other)
    with pytest.raises(RefusedError, match="no arm 'nobody'"):
        port.end_experiment("fraud", "", keep="nobody", canary_config=CONFIG)
    ended = port.end_experiment("fraud", "done")
    assert ended.experiment is None
    assert ended.canary is None
    with pytest.raises(RefusedError, match="no experiment runs"):
        port.end_experiment("fraud", "again")
    begun = of_type(scenario, "serve:experiment:begun")
    assert len(begun) == 1
    assert begun[0]["data"]["arms"][1]["rootDigest"] == record.experiment.arms[1].served.root_digest
    assert begun[0]["data"]["provenance"]["fresh"]["rootDigest"]
    assert of_type(scenario, "serve:experiment:changed")[0]["data"]["from"]["fresh"] == "40"
    assert of_type(scenario, "serve:experiment:ended")[0]["data"]["reason"] == "done"


def test_the_arm_that_is_kept_is_rolled_out(scenario: Scenario, port: Deployments) -> None:
    serving(scenario, port)
    port.experiment("fraud", order())
    record = port.end_experiment("fraud", "better", keep="fresh", canary_config=CONFIG)
    assert record.experiment is None
    assert record.canary is not None
    assert record.canary.version == 2
    assert of_type(scenario, "serve:experiment:ended")[0]["data"]["kept"] == "fresh"
    assert of_type(scenario, "serve:rollout:started")


def test_keeping_what_is_stable_only_ends(scenario: Scenario, port: Deployments) -> None:
    serving(scenario, port)
    port.experiment("fraud", order())
    record = port.end_experiment("fraud", "", keep="control", canary_config=CONFIG)
    assert (record.experiment, record.canary) == (None, None)


def test_each_arm_and_a_shadow_pass_the_gate(scenario: Scenario, port: Deployments) -> None:
    stable, other = scenario.train(), scenario.train()
    scenario.to_prod(stable)
    scenario.promote(other, "challenger", "staging")
    port.deploy(DeploymentOrder("models:/fraud@champion"))
    with pytest.raises(PromotionDeniedError, match="prod"):
        port.experiment("fraud", order())
    with pytest.raises(PromotionDeniedError, match="prod"):
        port.shadow("fraud", ShadowOrder(f"models:/fraud/{other}"))
    found = port.find("fraud")
    assert (found.experiment, found.shadow) == (None, None)
    assert of_type(scenario, "gates:promotion:denied")
    scenario.clear(other, "prod")
    assert port.shadow("fraud", ShadowOrder("models:/fraud@challenger")).shadow is not None
    port.end_shadow("fraud", "")
    assert port.experiment("fraud", order()).experiment is not None
    scenario.backend.revoke("fraud", other, "leaks")
    with pytest.raises(RevokedError, match="leaks"):
        port.experiment("fraud", order(("50", "50")))
    with pytest.raises(RevokedError, match="leaks"):
        port.shadow("fraud", ShadowOrder(f"models:/fraud/{other}"))


def test_what_cannot_be_leaves_nothing_behind(scenario: Scenario, port: Deployments) -> None:
    serving(scenario, port)
    scenario.train("other")
    both = ("models:/fraud/1", "models:/other/1")
    arms = tuple(ArmOrder(f"a{n}", model, "50") for n, model in enumerate(both))
    with pytest.raises(RefusedError, match="do not share a route"):
        port.experiment("fraud", ExperimentOrder("ab", "header:x", arms))
    with pytest.raises(RefusedError, match="do not share a route"):
        port.shadow("fraud", ShadowOrder("models:/other/1"))
    with pytest.raises(RefusedError, match="answers on the route 'fraud' already"):
        port.shadow("fraud", ShadowOrder("models:/fraud/1"))
    for act in (
        lambda: port.experiment("fraud", order(versions=(1, 9))),
        lambda: port.shadow("fraud", ShadowOrder("models:/fraud/9")),
        lambda: port.experiment("nowhere", order()),
        lambda: port.shadow("nowhere", ShadowOrder("models:/fraud/2")),
    ):
        with pytest.raises(NotFoundError):
            act()
    for wrong in (
        lambda: order(("60", "30")),
        lambda: order(sticky="user"),
        lambda: order(name="A B"),
        lambda: ExperimentOrder("ab", "header:x", (ArmOrder("a", "models:/fraud/1", "100"),)),
        lambda: ExperimentOrder(
            "ab", "header:x", tuple(ArmOrder(n, "models:/fraud/1", "50") for n in ("a", "stable"))
        ),
        lambda: ExperimentOrder(
            "ab", "header:x", tuple(ArmOrder("a", "models:/fraud/1", "50") for _ in "ab")
        ),
        lambda: ShadowOrder("models:/fraud/2", percent="0"),
        lambda: ShadowOrder("models:/fraud/2", timeout_seconds="soon"),
        lambda: ShadowOrder("models:/fraud/2", max_in_flight=0),
    ):
        with pytest.raises(RefusedError) as caught:
            wrong()
        assert caught.value.remedy
    found = port.find("fraud")
    assert (found.experiment, found.shadow) == (None, None)
    assert not of_type(scenario, "serve:experiment:begun")
    assert not of_type(scenario, "serve:shadow:begun")


def test_a_rollout_and_an_experiment_exclude_each_other(
    scenario: Scenario, port: Deployments
) -> None:
    serving(scenario, port, 4)
    canary = DeploymentOrder("models:/fraud/3", route="fraud", canary_config=CONFIG)
    won = [
        found
        for found in at_once(
            4,
            # Each its own name: the same again, a moment later, is no second experiment.
            lambda n: (
                port.deploy(canary) if n % 2 else port.experiment("fraud", order(name=f"ab-{n}"))
            ),
        )
        if isinstance(found, DeploymentRecord)
    ]
    assert len(won) == 1
    after = port.find("fraud")
    assert (after.canary is None) != (after.experiment is None)
    assert port.shadow("fraud", ShadowOrder("models:/fraud/4")).shadow is not None
    if after.experiment is not None:
        with pytest.raises(
            RefusedError, match=r"the experiment 'ab-\d' runs .* person-\d began it"
        ):
            port.deploy(canary)
        port.end_experiment("fraud", "")
        port.deploy(canary)
    with pytest.raises(RefusedError, match="a rollout of models:/fraud/3 runs"):
        port.experiment("fraud", order())


def test_of_two_people_one_wins(scenario: Scenario, port: Deployments) -> None:
    serving(scenario, port, 3)
    for act, kind in (
        (lambda n: port.experiment("fraud", order(name=f"ab-{n}")), "experiment"),
        (lambda n: port.shadow("fraud", ShadowOrder("models:/fraud/3", percent=f"{n + 1}")), ""),
        (lambda n: port.end_experiment("fraud", f"{n}"), "ended"),
    ):
        found = at_once(4, act)
        won = [f for f in found if isinstance(f, DeploymentRecord)]
        if kind:
            assert len(won) == 1
        for error in found:
            if isinstance(error, RefusedError):
                assert error.remedy
    assert len(of_type(scenario, "serve:experiment:begun")) == 1
    assert len(of_type(scenario, "serve:experiment:ended")) == 1
    assert len(of_type(scenario, "serve:shadow:begun")) == 1


def test_revocation_of_an_arm_and_a_shadow_is_seen_at_the_next_look(
    scenario: Scenario, port: Deployments
) -> None:
    serving(scenario, port, 3)
    port.experiment("fraud", order())
    record = port.shadow("fraud", ShadowOrder("models:/fraud/3"))
    assert record.experiment is not None
    assert record.shadow is not None
    look = port.take(record.deploy_id, "one", now_ms=0, ttl_ms=3000)
    assert look is not None
    assert look.revoked == {}
    scenario.backend.revoke("fraud", 2, "leaks")
    scenario.backend.revoke("fraud", 3, "biased")
    seen = port.look(record.deploy_id, 1, now_ms=1, ttl_ms=3000)
    assert seen.record.experiment == record.experiment
    assert seen.revoked == {
        record.experiment.arms[1].served.version_uid: "leaks",
        record.shadow.served.version_uid: "biased",
    }


def test_a_database_of_the_release_before_is_migrated(
    scenario: Scenario, port: Deployments
) -> None:
    record = serving(scenario, port)
    engine = Governor.of(scenario.uri).engine
    config = _alembic_config()
    for act, revision in ((command.downgrade, "0002"), (command.upgrade, "head")):
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            act(config, revision)
            connection.commit()
        assert migrations_at_head(engine) == (revision == "head")
    migrate(engine)
    assert port.find("fraud") == record
    assert port.experiment("fraud", order()).experiment is not None


# -- commands


class Commands:
    def __init__(self, scenario: Scenario) -> None:
        self.uri = scenario.uri

    def run(self, *args: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, ["deploy", *args, "--uri", self.uri])
        assert result.exit_code == code, (result.output, result.stderr, result.exception)
        return result

    def json(self, *args: str) -> Any:
        return json.loads(self.run(*args, "--json").stdout)


def test_commands(scenario: Scenario, port: Deployments, tmp_path: Path) -> None:
    serving(scenario, port, 3)
    commands, config = Commands(scenario), tmp_path / "ab.yaml"
    config.write_text(AB)
    shown = commands.run("experiment", "fraud", "--config", str(config)).stdout
    assert "fresh: 40 % to models:/fraud/2  waiting for a controller" in shown
    arms = ("--arm", "control=models:/fraud/1:50", "--arm", "fresh=models:/fraud/2:50")
    begun = commands.json("experiment", "fraud", "--end")
    assert begun["experiment"] is None
    short = ("experiment", "fraud", *arms, "--name", "ab-2", "--sticky", "header:x-user")
    found = commands.json(*short)["experiment"]
    assert [(a["name"], a["version"], a["weight"]) for a in found["arms"]] == [
        ("control", 1, "50"), ("fresh", 2, "50"),
    ]  # fmt: skip
    shadow = commands.json("shadow", "fraud", "models:/fraud/3", "--percent", "10")["shadow"]
    assert (shadow["percent"], shadow["maxInFlight"], shadow["compare"]) == ("10", 32, True)
    changed = commands.json(
        "shadow", "fraud", "models:/fraud/3", "--max-in-flight", "4", "--timeout", "2.5",
        "--no-compare",
    )["shadow"]  # fmt: skip
    assert changed["shadowId"] == shadow["shadowId"]
    assert (changed["percent"], changed["maxInFlight"]) == ("100", 4)
    assert (changed["timeoutSeconds"], changed["compare"]) == ("2.5", False)
    listed = commands.run("list").stdout
    for words in ("experimenting", "ab-2", "control v1 50", "fresh v2 50", "shadow v3 100"):
        assert words in listed
    assert "no experiment and no shadow yet" in commands.run("results", "fraud").stdout
    assert commands.json("results", "fraud")["experiment"] is None
    assert "shadow" in commands.run("watch", "fraud", "--seconds", "0.1").stdout
    assert commands.json("watch", "fraud", "--seconds", "0.1")["route"] == "fraud"
    assert commands.json("shadow", "fraud", "--off", "--reason", "seen")["shadow"] is None
    kept = commands.json("experiment", "fraud", "--end", "--keep", "fresh")
    assert (kept["experiment"], kept["canaryVersion"]) == (None, 2)
    assert kept["canaryConfig"]["steps"] == [99.0, 100.0]


def test_what_is_wrong_is_told_and_nothing_is_written(
    scenario: Scenario, port: Deployments, tmp_path: Path
) -> None:
    serving(scenario, port)
    commands, config = Commands(scenario), tmp_path / "ab.yaml"
    config.write_text(AB.replace("40", "30"))
    one, two = "a=models:/fraud/1:50", "b=models:/fraud/2:50"
    arms = ("--arm", one, "--arm", two)
    named = ("--name", "ab", "--sticky", "header:x")
    for args, code, words in (
        (("--config", str(config)), 3, "the weights add up to 90 (60 + 30), not to 100"),
        (("--config", str(tmp_path / "none.yaml")), 3, "the experiment cannot be read"),
        ((), 3, "it is not said what the experiment is"),
        (("--end", *arms), 3, "said twice"),
        (("--keep", "a", *arms, *named), 3, "--keep goes with --end"),
        (arms, 3, "the experiment has no name"),
        ((*arms, "--name", "ab"), 3, "add --sticky"),
        ((*arms, "--name", "ab", "--sticky", "user"), 3, "does not say where the key is"),
        (("--arm", one, *named), 3, "arms"),
        (("--arm", "a=fraud:50", "--arm", two, *named), 3, "'a=fraud:50' is not an arm"),
        (("--arm", one, "--arm", one, *named), 3, "two arms are named 'a'"),
        (("--arm", "stable=models:/fraud/1:50", "--arm", two, *named), 3, "cannot be named"),
        (("--arm", one, "--arm", "b=models:/fraud/9:50", *named), 1, "models:/fraud/9"),
        (("--end",), 1, "no experiment runs on the route 'fraud'"),
    ):
        result = commands.run("experiment", "fraud", *args, code=code)
        assert words in result.stderr.replace("\n", " "), result.stderr
        assert "Remedy: " in result.stderr
    for args, code, words in (
        ((), 3, "it is not said which version"),
        (("models:/fraud/2", "--off"), 3, "both a version and --off"),
        (("models:/fraud/2", "--percent", "0"), 3, "percent"),
        (("models:/fraud/2", "--timeout", "-1"), 3, "timeout_seconds"),
        (("models:/fraud/1",), 1, "answers on the route 'fraud' already"),
        (("--off",), 1, "has no shadow"),
    ):
        result = commands.run("shadow", "fraud", *args, code=code)
        assert words in result.stderr.replace("\n", " "), result.stderr
        assert "Remedy: " in result.stderr
    after = port.find("fraud")
    assert (after.experiment, after.shadow) == (None, None)
