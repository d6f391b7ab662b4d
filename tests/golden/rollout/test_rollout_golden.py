"""What the first release stored of rollouts. It must parse and decide the same forever.

A controller of a later release takes over rollouts that an earlier one began, and the gate reads
old decisions: never write these files anew. A format that changes gets new files beside these.
Later releases may add keys; what is here stays.

- ``*.jsonl`` of rollouts: configuration and first state, then every observation, with the decision
  and the actions that followed, and here and there the state as it was stored;
- ``canary-config.jsonl``: as stored, and what it means with every default;
- ``course.jsonl``: a controller's document, and the plan that follows from it;
- ``plan.jsonl``: what gateways and controllers send each other.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from governance.deployment_records import DeploymentRecord, NewDeployment, ServedVersion
from governance.deployments import create
from serve.config import CanaryConfig
from serve.course import Course, first_revision, plan_of
from serve.delta import Delta
from serve.plan import Plan, Report
from serve.records import Observation, RolloutDecision, Signal
from serve.rollout import RolloutState, advance
from tests.unit.serve.deployment_world import Store

HERE = Path(__file__).parent
STORIES = {
    "promoted": "promoted",
    "failing": "rolled_back",
    "slow": "rolled_back",
    "revoked": "quarantined",
    "aborted": "aborted",
}


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / name).read_text("utf-8").splitlines()]


def assert_still_says(now: Any, then: Any, where: str = "") -> None:
    """Every key and value of then is there; there may be more keys."""
    if isinstance(then, dict):
        for key, value in then.items():
            assert key in now, f"{where}.{key} is gone"
            assert_still_says(now[key], value, f"{where}.{key}")
    elif isinstance(then, list):
        assert len(now) == len(then), where
        for number, (one, other) in enumerate(zip(now, then, strict=True)):
            assert_still_says(one, other, f"{where}[{number}]")
    else:
        assert now == then, where


def observation_of(document: dict[str, Any]) -> Observation:
    return Observation(
        document["source"],
        document["sequence"],
        {name: Delta.from_dict(found) for name, found in document["deltas"].items()},
        frozenset(map(Signal, document["signals"])),
        document["reason"],
    )


@pytest.mark.parametrize("story", STORIES)
def test_a_rollout_of_the_first_release_is_decided_the_same(story: str) -> None:
    first, *rest = lines(f"{story}.jsonl")
    config = CanaryConfig.model_validate_json(first["config"])
    states = {
        "replayed": RolloutState.start(first["rolloutId"], config),
        "as stored": RolloutState.from_json(first["state"]),
    }
    changes = []
    for line in rest:
        seen = observation_of(line["observation"])
        for name, state in states.items():
            states[name], actions, decision = advance(state, seen, line["nowMs"])
            assert_still_says(decision.to_dict(), line["decision"], name)
            assert_still_says([action.to_dict() for action in actions], line["actions"], name)
        then = RolloutDecision.from_dict(line["decision"])
        assert_still_says(then.to_dict(), line["decision"])
        changes += [then.outcome.value] if then.changes else []
        if "state" in line:  # whoever takes over goes on from here
            states["as stored"] = RolloutState.from_json(line["state"])
            now = json.loads(states["as stored"].to_json())
            assert_still_says(now, json.loads(line["state"]) | {"config": now["config"]})
    assert changes[:2] == ["started", "verified"]
    assert changes[-1] == STORIES[story]
    assert {state.phase.value for state in states.values()} == {STORIES[story]}


def test_configurations_of_the_first_release_mean_the_same() -> None:
    for line in lines("canary-config.jsonl"):
        config = CanaryConfig.model_validate_json(line["stored"])
        assert_still_says(json.loads(config.model_dump_json()), line["means"])


def test_courses_of_the_first_release_give_the_same_plan(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for line in lines("course.jsonl"):
        course = Course.from_json(line["course"])
        again = Course.from_json(course.to_json())
        assert again == course
        stored = json.loads(line["course"]) | {"rollout": None}
        assert_still_says(json.loads(course.to_json()) | {"rollout": None}, stored)
        plan = plan_of(record(store, course), course, revision=first_revision(line["fence"]))
        assert_still_says(plan.to_dict(), line["plan"])


def test_plans_and_reports_of_the_first_release_are_understood() -> None:
    for line in lines("plan.jsonl"):
        for name, kind in (("plan", Plan), ("report", Report)):
            if name in line:
                read: Plan | Report = kind.from_dict(line[name])  # type: ignore[attr-defined]
                assert_still_says(read.to_dict(), line[name])


def record(store: Store, course: Course) -> DeploymentRecord:
    """The deployment that ``course.jsonl`` was written for."""
    new = NewDeployment(
        deploy_id="0123456789abcdef" * 2,
        route="fraud",
        environment="prod",
        model_uid="f" * 32,
        model_name="fraud",
        stable=ServedVersion(1, "1" * 32, "aa" * 32),
        resources={},
        provenance={},
    )
    with store.engine.connect() as connection:  # not committed
        made = create(connection, store.ledger, new, now_ms=0)
    return replace(
        made,
        canary=ServedVersion(2, "2" * 32, "bb" * 32) if course.running else None,
        rollout_id=course.rollout.id if course.rollout else None,
    )
