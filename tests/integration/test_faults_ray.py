"""Whatever breaks in a canary phase: users get answers, and the rollout ends or goes on rightly.

One route on one cluster, with the real controller, PostgreSQL and an MLflow server; each test
leaves it as it found it.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from click.testing import CliRunner
from ray import serve

from benchmarks.surroundings import Postgres, free_port
from governance.cli import main
from governance.deployment_port import DeploymentOrder
from governance.deployment_records import DeploymentRecord, DeploymentStatus
from governance.errors import RefusedError
from governance.identity import Actor, ProofLevel, acting_as
from serve.launch import ensure_controller
from serve.ray_cluster import actor_name
from tests.conftest import fresh_database
from tests.integration.ray_head import Head
from tests.integration.serving_world import (
    ROUTE,
    World,
    kill,
    resident_bytes,
    running_world,
    wait_for,
)

pytestmark = pytest.mark.timeout(1800)
ERRORS = {"latency": None}
"""What a canary is judged by where its speed is not the point."""
SLOW_S = 0.06
"""What a prediction takes where speed is the point: a fifth of it is more than a busy machine's
waiting."""


@pytest.fixture(scope="module")
def running(
    postgres_process: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    tmp_path_factory.getbasetemp()  # before the world has a folder for temporary files
    with (
        fresh_database(postgres_process.address, postgres_template) as uri,
        running_world(postgres_process, f"governed+{uri}") as world,
    ):
        yield world


@pytest.fixture
def world(running: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    running.enter(monkeypatch)
    yield running
    running.restore()


# -- the canary


@pytest.mark.parametrize("mood", ["raise", "nested", "hang"])
def test_a_bad_canary_is_rolled_back_and_no_user_sees_it(world: World, mood: str) -> None:
    world.roll_out(analysis=ERRORS, timeout_seconds=0.5)
    with world.clients() as seen:
        world.mood("canary", mood)
        world.wait_for_outcome("rolled_back")
        time.sleep(0.5)
    assert set(seen.statuses) == {200}
    assert seen.lost == 0
    assert seen.retried > 0
    assert "errors: " in world.explanation
    assert {world.ask()[2]["x-chancery-variant"] for _ in range(16)} == {"stable"}


def _until_rolled_back(world: World, most_s: float) -> int:
    """How many requests the clients made until the rollout ended, or until the time was over."""
    with world.clients() as seen:
        deadline = time.monotonic() + most_s
        while time.monotonic() < deadline and world.record.canary is not None:
            time.sleep(0.2)
    assert set(seen.statuses) == {200}
    assert seen.lost == 0
    return seen.statuses[200]


def test_a_canary_that_is_a_fifth_slower_is_rolled_back_and_an_equal_one_is_not(
    world: World,
) -> None:
    world.mood("stable", f"slow {SLOW_S}")
    world.mood("canary", f"slow {SLOW_S}")
    world.roll_out()
    world.mood("canary", f"slow {1.2 * SLOW_S}")
    needed = _until_rolled_back(world, 280)
    assert world.outcomes[-1] == "rolled_back"
    assert "latency." in world.explanation
    world.mood("canary", f"slow {SLOW_S}")
    world.roll_out()
    enough = 0
    while enough < needed:
        enough += _until_rolled_back(world, 2)
        assert world.record.canary is not None, world.explanation


@pytest.mark.parametrize("limited", [False, True])
def test_a_canary_that_leaks_until_memory_is_gone_harms_nobody(world: World, limited: bool) -> None:
    """Killed as by the kernel, or told at each allocation that there is no more."""
    world.roll_out(analysis=ERRORS)
    (pid,) = world.pids(2)
    before = resident_bytes(pid)
    if limited:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + (64 << 20)
        resource.prlimit(pid, resource.RLIMIT_AS, (most, most))
    with world.clients() as seen:
        world.mood("canary", "leak")
        if not limited:
            wait_for(lambda: resident_bytes(pid) > before + (128 << 20), "it leaks")
            kill({pid})
        world.wait_for_outcome("rolled_back")
    assert set(seen.statuses) == {200}
    assert seen.lost == 0
    kill({pid})  # what it kept is gone with it


# -- stable, database, server, head


def test_a_canary_is_not_blamed_for_stables_death(world: World) -> None:
    world.roll_out(analysis=ERRORS)
    with world.clients() as seen:
        kill(world.pids(1))
        time.sleep(1)
        # Half of all answers are the canary's: several 200s alone do not tell of stable.
        wait_for(world.both_answer, "stable answers again")
        time.sleep(1)
    assert set(seen.statuses) <= {200, 503}  # 503 where nobody else could be asked
    assert seen.lost == 0
    assert seen.slowest_s < 15
    assert world.outcomes == ["started", "verified"]
    world.wait_for_canary()


def test_without_the_database_steps_hold_and_a_bad_canary_goes_back_at_once(world: World) -> None:
    # More samples than the canary gets before the database is away.
    world.roll_out(analysis=ERRORS, min_samples=200, min_seconds=3)
    begun = time.monotonic()
    world.database.stop()
    wait_for(lambda: ray.get(world.controller.facts.remote())["databaseAway"], "it is noticed")
    with world.clients() as seen:
        wait_for(
            lambda: seen.variants["canary"] >= 200 and time.monotonic() > begun + 3,
            "the step has its samples and its time",
        )
        time.sleep(1)  # several ticks of the controller
        assert world.both_answer(), "at half the traffic, still"
        assert seen.variants["stable"] > 0
        world.mood("canary", "raise")

        def all_on_stable() -> bool:
            asked = [world.ask()[2] for _ in range(16)]
            return all(
                told["x-chancery-variant"] == "stable" and "x-chancery-retried" not in told
                for told in asked
            )

        wait_for(all_on_stable, "all traffic is on stable, though it cannot be written down", 30)
        world.database.start()
        world.wait_for_outcome("rolled_back")
    assert set(seen.statuses) == {200}
    assert seen.lost == 0
    assert world.outcomes == ["started", "verified", "rolled_back"]


def test_serving_goes_on_without_the_server_and_what_is_new_waits_for_it(world: World) -> None:
    before = world.pids(1)
    with world.clients() as seen:
        world.server.stop()
        kill(before)
        time.sleep(0.5)
        wait_for(lambda: world.answers() == {200}, "the copy answers")
        assert not before & world.pids(1)
        world.begin(3, analysis=ERRORS)
        wait_for(lambda: world.pids(3), "its replica starts")
        time.sleep(8)  # longer than it takes to be refused for good
        assert world.outcomes == ["started"]
        assert world.ask()[2]["x-chancery-version"] == "1"
        world.start_server()
        world.wait_for_canary()
    assert world.outcomes == ["started", "verified"]
    assert set(seen.statuses) <= {200, 503}  # 503 while stable's only replica was away
    assert seen.lost == 0


# -- people


def _overview() -> tuple[set[str], set[str]]:
    """Applications and controllers of the cluster."""
    actors = {a["name"] for a in ray.util.list_named_actors(all_namespaces=True)}
    names = {name for name in actors if name.startswith("chancery-")}
    return set(serve.status().applications), names


def test_what_is_wrong_is_told_and_nothing_is_half_deployed(world: World, tmp_path: Path) -> None:
    before, records = _overview(), [r.deploy_id for r in world.deployments.list(ended=True)]
    files = {
        "weights": "weights: {stable: 90, canary: 20}\n",
        "typing": "min_samples: many\n",
        "unknown": "step: [5]\n",
        "yaml": "steps: [5\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)

    def config(name: str) -> tuple[str, ...]:
        return (f"models:/{ROUTE}/2", "--config", str(tmp_path / f"{name}.yaml"))

    one = f"models:/{ROUTE}/1"
    for args, words in (
        (("models:/nobody/1", "--env", "sandbox"), "nobody"),
        ((f"models:/{ROUTE}/9", "--env", "sandbox", "--route", "c"), f"models:/{ROUTE}/9"),
        ((f"models:/{ROUTE}@nope",), "nope"),
        ((one, "--env", "sandbox"), "is taken"),
        ((one, "--env", "sandbox", "--route", "b", "--port", str(world.port)), "port"),
        ((one, "--canary", "5%"), "answers"),
        (config("weights"), "add up to 110"),
        (config("typing"), "min_samples"),
        (config("unknown"), "unknown key"),
        (config("yaml"), "line"),
        (config("missing"), "cannot be read"),
    ):
        done = CliRunner().invoke(main, ["deploy", *args, "--uri", world.uri])
        assert done.exit_code in (1, 3), (args, done.output)
        assert words in done.stderr, (args, done.stderr)
        assert "Remedy: " in done.stderr, (args, done.stderr)
        assert "Traceback" not in done.stderr, args
    assert _overview() == before
    assert [r.deploy_id for r in world.deployments.list(ended=True)] == records
    assert world.record.canary is None


def test_of_two_people_who_deploy_at_once_one_gets_the_route(world: World) -> None:
    before, port, meet = _overview(), free_port(), threading.Barrier(2)

    def one(person: str) -> DeploymentRecord | RefusedError:
        order = DeploymentOrder(
            f"models:/{ROUTE}/1", route="contested", environment="sandbox", port=port,
            resources={"numCpus": "0.1"},
        )  # fmt: skip
        meet.wait()
        try:
            with acting_as(Actor(person, ProofLevel.SIGNED)):
                record = world.deployments.deploy(order)
            ensure_controller(record, world.uri)
        except RefusedError as error:
            return error
        return record

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(one, ["ann", "bob"]))
    (won,) = [f for f in found if isinstance(f, DeploymentRecord)]
    (lost,) = [f for f in found if isinstance(f, RefusedError)]
    assert f"{won.created_by} deployed models:/{ROUTE}/1 there at 20" in str(lost)
    assert lost.remedy
    new = [name for name in _overview()[1] if name not in before[1]]
    assert new == [actor_name(won.deploy_id)]
    world.deployments.end("contested", "it was a test")
    wait_for(lambda: world.deployments.find(won.deploy_id).stopped_ms, "it is taken down")
    wait_for(
        lambda: all(now <= was for now, was in zip(_overview(), before, strict=True)),
        "nothing of it is left",
    )


# -- the head of the cluster


@pytest.fixture
def head() -> Iterator[Head]:
    with tempfile.TemporaryDirectory(prefix="h", dir="/tmp", ignore_cleanup_errors=True) as made:
        head = Head(Path(made))
        try:
            head.start()
            yield head
        finally:
            head.burn()


def test_a_cluster_that_lost_its_head_is_recovered_from_the_database(
    world: World, head: Head
) -> None:
    def chancery(*args: str) -> Any:
        done = subprocess.run(
            [str(Path(sys.executable).parent / "chancery"), "deploy", *args, "--json",
             "--ray", head.address, "--uri", world.uri],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    other = World.__new__(World)  # the same world, another route
    other.__dict__.update(world.__dict__, port=free_port())
    made = chancery(
        f"models:/{ROUTE}/1", "--route", "burning", "--env", "sandbox", "--cpus", "0.1",
        "--port", str(other.port),
    )  # fmt: skip
    other.deploy_id = made["deployId"]
    wait_for(lambda: other.answers() == {200}, "the route answers")
    config = {"steps": [50.0, 100.0], "min_samples": 30, "min_seconds": 4, "analysis": ERRORS}
    order = DeploymentOrder(f"models:/{ROUTE}/2", route="burning", canary_config=_text(config))
    other.deployments.deploy(order)
    other.wait_for_canary()
    head.burn()
    assert other.answers() == {0}
    held = other.record
    assert held.canary is not None

    head.start()
    recovered = chancery("recover", "burning")
    assert [one["deployId"] for one in recovered] == [held.deploy_id]
    wait_for(lambda: other.answers() == {200}, "the route answers again")
    with other.clients(2) as seen:
        other.wait_for_outcome("promoted")
    assert set(seen.statuses) == {200}
    assert other.outcomes == ["started", "verified", "advanced", "promoted"]
    assert other.record.fence > held.fence
    other.deployments.end("burning", "it was a test")
    wait_for(lambda: other.record.stopped_ms, "it is taken down")
    assert world.record.status is DeploymentStatus.SERVING


def _text(config: dict[str, Any]) -> str:
    from serve.config import CanaryConfig

    return CanaryConfig.model_validate_json(json.dumps(config)).model_dump_json()
