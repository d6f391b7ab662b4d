"""What people see of a deployment."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from governance.deployment_control import decisions_of
from governance.deployment_records import SignalKind
from serve.views import as_panel, as_table, describe, explain, explained
from tests.unit.serve.deployment_world import World, good, to_first_step


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def text_of(view: RenderableType) -> str:
    console = Console(width=200, record=True, file=StringIO())
    console.print(view)
    return console.export_text()


def decisions(world: World) -> tuple[object, ...]:
    with world.store.engine.connect() as connection:
        return decisions_of(connection, world.record.deploy_id)


def test_a_deployment_that_nobody_took_up(world: World) -> None:
    record = world.store.canary(world.record)
    assert explain(record, ()) == ["The route 'fraud' waits for a controller."]
    assert "waiting for a controller" in text_of(as_table([record]))
    assert "controller none yet: `chancery deploy operate` starts one" in describe(record, 0)
    assert "saved never" in text_of(as_panel(record, 0))


def test_a_canary_with_its_numbers(world: World) -> None:
    to_first_step(world)
    world.pass_(1)
    world.store.ask(world.record, SignalKind.PAUSE, "lunch")
    world.pass_(2)
    record = world.now_record
    table, panel = text_of(as_table([record])), text_of(as_panel(record, world.now))
    assert "step 1 of 2, 10 %" in table
    for part in ("models:/fraud/1", "models:/fraud/2", "90 %", "10 %", "errors", "lunch", "of 20"):
        assert part in panel
    sentences = "\n".join(explain(record, decisions(world)))  # type: ignore[arg-type]
    assert "requests needed" in sentences or "watched for" in sentences
    assert "lunch" in sentences
    assert "2. " in sentences
    assert "verified (10 %): The canary's bytes are verified." in sentences


def test_a_rollback_says_why(world: World) -> None:
    to_first_step(world)
    for _ in range(10):
        world.tell(good(10, 1.0), good(90))
    world.idle(1)
    record = world.now_record
    sentences = "\n".join(explain(record, decisions(world)))  # type: ignore[arg-type]
    assert "The canary is worse than stable at step 1 of 2 (10 %)" in sentences
    document = explained(record, decisions(world))  # type: ignore[arg-type]
    assert document["phase"] == "rolled_back"
    assert document["verdicts"][0]["test"] == "errors"
    assert len(document["decisions"][-1]["digest"]) == 64
    assert any(line.startswith("alert ") for line in describe(record, world.now))
    assert "rolled back" in text_of(as_table([record]))


def test_a_closed_and_an_ended_route(world: World) -> None:
    world.idle(1)
    world.store.revoked = {"uid-1": "leaks"}
    world.idle(1)
    record = world.now_record
    assert "leaks" in text_of(as_panel(record, world.now))
    assert explain(record, ())[0] == "models:/fraud/1 was revoked: leaks"
    world.store.end(record)
    world.idle(1)
    assert any("ended" in line and "done" in line for line in describe(world.now_record, world.now))
