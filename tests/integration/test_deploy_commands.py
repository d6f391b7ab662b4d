"""``chancery deploy`` on a database, without a cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from governance.cli import main
from governance.cli_lazy import LazyGroup
from governance.deployment_control import Progress, StoredDecision
from governance.deployment_port import open_deployments
from governance.deployment_records import Health
from tests.scenario import Scenario


class Commands:
    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario

    def run(self, *args: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, ["deploy", *args, "--uri", self.scenario.uri])
        assert result.exit_code == code, (result.output, result.stderr, result.exception)
        return result

    def json(self, *args: str) -> Any:
        return json.loads(self.run(*args, "--json").stdout)

    def start(self, *args: str, code: int = 0) -> Result:
        return self.run(*args, "--record-only", code=code)


@pytest.fixture
def commands(scenario: Scenario) -> Commands:
    scenario.train()
    scenario.train()
    return Commands(scenario)


def test_a_deployment_from_its_start_to_its_end(commands: Commands, tmp_path: Path) -> None:
    assert "nothing is deployed" in commands.run("list").stdout
    shown = commands.start("models:/fraud/1", "--env", "sandbox", "--replicas", "2").stdout
    assert "models:/fraud/1" in shown
    config = tmp_path / "canary.yaml"
    config.write_text("min_samples: 7\n")
    commands.start("models:/fraud/2", "--canary", "5%", "--config", str(config))
    record = commands.json("show", "fraud")
    assert record["canaryVersion"] == 2
    assert record["canaryConfig"]["steps"] == [5.0, 25.0, 50.0, 100.0]
    assert record["canaryConfig"]["min_samples"] == 7
    assert "fraud/2" in commands.run("list").stdout
    for verb in ("pause", "resume", "abort", "rollback", "quarantine"):
        assert verb in commands.run(verb, "fraud", "--reason", "because").stdout
    assert commands.json("scale", "fraud", "--replicas", "3")["resources"]["replicas"] == 3
    assert "waits for a controller" in commands.run("why", "fraud").stdout
    assert commands.json("why", record["deployId"][:8])["phase"] is None
    assert commands.json("watch", "fraud", "--seconds", "0.1")["route"] == "fraud"
    assert "fraud" in commands.run("watch", "fraud", "--seconds", "0.1").stdout
    assert commands.json("delete", "fraud")["status"] == "ended"
    assert commands.json("list") == []
    assert len(commands.json("list", "--all")) == 1


def test_what_is_wrong_is_told_and_nothing_is_written(commands: Commands, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("steps: [5, 25]\nmin_sample: 3\n")
    steps = tmp_path / "steps.yaml"
    steps.write_text("steps: [5, 25]\n")
    one = ("models:/fraud/1", "--env", "sandbox")
    for args, code, words in (
        ((*one, "--config", str(bad)), 3, "line 2, min_sample: unknown key"),
        ((*one, "--config", str(tmp_path / "none.yaml")), 3, "cannot be read"),
        ((*one, "--config", str(steps), "--canary", "5%"), 3, "both say"),
        ((*one, "--canary", "abc"), 3, "not a percentage"),
        ((*one, "--canary", "50,25"), 3, "does not exceed"),
        ((*one, "--canary", "5%"), 1, "nothing answers on the route"),
        ((*one, "--cpus", "many"), 1, "not a number"),
        (("models:/fraud/1", "--env", "prod"), 1, "may not be promoted to prod yet"),
        (("models:/fraud/7", "--env", "sandbox"), 1, "models:/fraud/7"),
        (("models:/fraud/1",), 1, "--env"),
    ):
        result = commands.start(*args, code=code)
        assert words in result.stderr
        assert "Remedy: " in result.stderr
    commands.run("nonsense", code=2)
    assert commands.json("list", "--all") == []


def test_how_much_a_deployment_gets(commands: Commands, tmp_path: Path) -> None:
    file = tmp_path / "scale.yaml"
    file.write_text("replicas: 0..4\ntarget_rps: 20\nquiet_seconds: 30\n")
    window = "Mon-Fri 08:00-18:00 Europe/Berlin = 4..8"
    commands.start(
        "models:/fraud/1", "--env", "sandbox", "--scale", str(file), "--replicas", "0..6",
        "--schedule", window, "--gateways", "3", "--gateway-cpus", "0.25", "--access-log", "/l",
        "--gpus", "0.5", "--pool", "gpu",
    )  # fmt: skip
    first = commands.json("show", "fraud")
    scale = first["resources"].pop("scale")
    assert first["resources"] == {
        "replicas": 1, "gateways": 3, "gatewayCpus": "0.25", "accessLog": "/l", "numGpus": "0.5",
        "host": "127.0.0.1",
    }  # fmt: skip
    assert (scale["replicas"], scale["target_rps"], scale["quiet_seconds"]) == ("0..6", "20", 30)
    assert scale["schedule"] == ["Mon,Tue,Wed,Thu,Fri 08:00-18:00 Europe/Berlin = 4..8"]
    assert "asked  warm of fraud" in commands.run("warm", "fraud").stdout

    after = commands.json("scale", "fraud", "--target-in-flight", "4")["resources"]
    assert after["scale"] == {
        **{name: value for name, value in scale.items() if name != "target_rps"},
        "target_in_flight": "4",
    }
    after = commands.json("scale", "fraud", "--gateways", "2")["resources"]
    assert (after["gateways"], after["scale"]["target_in_flight"]) == (2, "4")
    after = commands.json("scale", "fraud", "--replicas", "2..8")["resources"]
    assert (after["replicas"], after["scale"]["replicas"]) == (2, "2..8")
    assert "2..8, 4 at a time for each" in commands.run("show", "fraud").stdout
    assert "scale" not in commands.json("scale", "fraud", "--replicas", "3")["resources"]
    assert "always has a replica" in commands.run("warm", "fraud", code=1).stderr

    before = commands.json("show", "fraud")["resources"]
    for args, words in (
        ((), "not said what changes"),
        (("--replicas", "8..2"), "cannot be 8..2 replicas"),
        (("--replicas", "0"), "nobody would ever answer"),
        (("--replicas", "3", "--target-rps", "5"), "fixed number"),
        (("--target-rps", "5"), "between how many"),
        (("--replicas", "1..8", "--target-rps", "no"), "not a number"),
        (("--replicas", "1..8", "--schedule", "at night"), "no time window"),
        (("--gateways", "0"), "listeners cannot be"),
        (("--access-log", "here"), "path of a folder"),
    ):
        result = commands.run("scale", "fraud", *args, code=1)
        assert words in result.stderr
        assert "Remedy: " in result.stderr
    commands.run("scale", "fraud", "--scale", str(tmp_path / "none.yaml"), code=3)
    assert commands.json("show", "fraud")["resources"] == before


def test_who_comes_second_is_told_who_was_first(commands: Commands) -> None:
    commands.start("models:/fraud/1", "--env", "sandbox")
    result = commands.start("start", "models:/fraud/1", "--env", "sandbox", "--json", code=1)
    document = json.loads(result.stdout)
    assert document["error"] == "CONFLICT"
    assert "deployed models:/fraud/1 there at 20" in document["message"]
    assert "--canary" in document["remedy"]


def test_going_back_after_a_promotion(commands: Commands) -> None:
    commands.start("models:/fraud/1", "--env", "sandbox")
    commands.start("models:/fraud/2", "--canary", "5%")
    port = open_deployments(commands.scenario.uri)
    record = port.find("fraud")
    assert record.rollout_id
    assert port.take(record.deploy_id, "one", now_ms=0, ttl_ms=10)
    said = {
        "outcome": "promoted", "phase": "promoted", "percent": "100", "atMs": 1,
        "explanation": ["All steps are passed."],
    }  # fmt: skip
    promoted = StoredDecision(record.rollout_id, 4, said, ended=True, promoted=True)
    port.save(
        record.deploy_id, 1, Progress(b"{}", 1, Health.SERVING, decisions=(promoted,)), now_ms=1
    )
    after = commands.json("rollback", "fraud", "--reason", "too slow")
    assert (after["version"], after["canaryVersion"]) == (2, 1)
    assert after["canaryConfig"]["steps"] == [99.0, 100.0]


def test_nothing_is_written_without_a_cluster(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "ray", None)
        result = commands.run("models:/fraud/1", "--env", "sandbox", code=3)
    assert "pip install 'mlflow-chancery[serve]'" in result.stderr
    assert commands.json("list", "--all") == []


def test_a_group_that_cannot_be_loaded_says_what_to_install() -> None:
    point = EntryPoint("deploy", "nowhere.at.all:deploy", "chancery.commands")
    main.add_command(LazyGroup(point), "broken")
    try:
        result = CliRunner().invoke(main, ["broken", "list"])
        assert result.exit_code == 3
        assert "pip install 'mlflow-chancery[serve]'" in result.stderr
        assert "Serve versions" in CliRunner().invoke(main, ["--help"]).stdout
    finally:
        del main.commands["broken"]


def test_help_loads_nothing_of_it() -> None:
    code = (
        "import sys; from governance.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('serve', 'ray', 'mlflow')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "deploy" in done.stdout
