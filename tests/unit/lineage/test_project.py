"""The lineage graph as a view of the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, delete, select

from governance.database import (
    ledger_entries,
    ledger_state,
    lineage_edges,
    lineage_nodes,
    lineage_state,
    metadata,
)
from governance.events import AuditEvent, EventName
from governance.ledger.merkle import leaf_hash
from governance.lineage import NodeKind, Relation, catch_up, walk
from governance.lineage.render import as_tree


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path}/a.db", connect_args={"timeout": 20})
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(ledger_state.insert().values(id=1, origin="test", size=0))
    yield engine
    engine.dispose()


def sequence(engine: Engine, *events: tuple[EventName, str, dict[str, Any]]) -> None:
    """Append entries as the sequencer does, as far as the graph can see."""
    with engine.begin() as connection:
        size = connection.execute(select(ledger_state.c.size)).scalar_one()
        for index, (name, subject, data) in enumerate(events, size):
            leaf = AuditEvent.now(name, subject, data).to_leaf()
            connection.execute(
                ledger_entries.insert().values(
                    idx=index, event_id=f"e{index}", leaf=leaf, leaf_hash=leaf_hash(leaf)
                )
            )
        connection.execute(ledger_state.update().values(size=size + len(events)))


STORY: list[tuple[EventName, str, dict[str, Any]]] = [
    (EventName.RUN_CREATED, "runs:/r1", {}),
    (
        EventName.VERSION_REGISTERED,
        "models:/fraud/1",
        {"source": "models:/m-1", "loggedModelId": "m-1", "runId": "r1", "rootDigest": "ab"},
    ),
    (EventName.RUN_FINISHED, "runs:/r1", {"datasets": ["a#b#9f"], "modelInputs": ["m-0"]}),
    (
        EventName.PROMOTION_REQUESTED,
        "models:/fraud/1",
        {"environment": "staging", "statementId": "5" * 64},
    ),
    (
        EventName.PROMOTION_APPROVED,
        "models:/fraud/1",
        {"environment": "staging", "statementId": "5" * 64, "person": "jo", "keyid": "7" * 64},
    ),
    (
        EventName.PROMOTION_GRANTED,
        "models:/fraud/1",
        {"environment": "staging", "statementId": "5" * 64},
    ),
    (EventName.VERSION_REGISTERED, "models:/prompt/1", {"prompt": True, "source": "x"}),
    (
        EventName.VERSION_REGISTERED,
        "models:/prod.fraud/1",
        {"source": "models:/fraud/1", "loggedModelId": "", "runId": "", "rootDigest": "ab"},
    ),
]


def test_every_step_is_derived_from_its_event(engine: Engine) -> None:
    sequence(engine, *STORY)
    assert catch_up(engine) == len(STORY)
    with engine.connect() as connection:
        up = walk(connection, "environments:/staging/fraud", "up", 50)
        down = walk(connection, "models:/fraud/1", "down", 50)
    assert {(e.source, e.relation, e.target) for e in up.edges} == {
        ("environments:/staging/fraud", Relation.PROMOTED_BY, "models:/fraud/1"),
        ("models:/fraud/1", Relation.REGISTERED_FROM, "models:/m-1"),
        ("models:/m-1", Relation.PRODUCED_BY, "runs:/r1"),
        ("runs:/r1", Relation.TRAINED_ON, "datasets:/a#b/9f"),
        ("runs:/r1", Relation.DERIVED_FROM, "models:/m-0"),
    }
    assert {n.id: n.kind for n in up.nodes}["datasets:/a#b/9f"] is NodeKind.DATASET
    statement, approval = f"statements:/{'5' * 64}", f"approvals:/{'5' * 16}/{'7' * 16}"
    assert {(e.source, e.relation) for e in down.edges} == {
        ("environments:/staging/fraud", Relation.PROMOTED_BY),
        (statement, Relation.REQUESTED_FOR),
        (approval, Relation.APPROVES),
        ("models:/prod.fraud/1", Relation.COPIED_FROM),
    }
    with engine.connect() as connection:
        nodes = walk(connection, "models:/fraud/1", "up", 0).nodes
        ids = connection.execute(select(lineage_nodes.c.node_id)).scalars().all()
    assert nodes[0].attributes == {"rootDigest": "ab"}
    assert "models:/prompt/1" not in ids


def test_an_alert_about_drift_hangs_on_its_version_as_it_was_last(engine: Engine) -> None:
    data = {
        "alertId": "a" * 32,
        "level": "alert",
        "deployment": "fraud",
        "owner": "ann",
        "report": "9f",
        "reasons": ["PSI of 'age'", "more"],
        "slices": ["age > 52"],
    }
    worse = {**data, "level": "quarantine", "change": "escalated"}
    sequence(
        engine,
        *STORY,
        (EventName.DRIFT_ALERTED, "models:/fraud/1", data),
        (EventName.DRIFT_ALERTED, "models:/fraud/1", worse),
    )
    catch_up(engine)
    with engine.connect() as connection:
        down = walk(connection, "runs:/r1", "down", 50)
        up = walk(connection, f"drift-alerts:/{'a' * 32}", "up", 50)
    [alert] = [node for node in down.nodes if node.kind is NodeKind.DRIFT_ALERT]
    assert alert.attributes == {
        "level": "quarantine", "deployment": "fraud", "owner": "ann", "report": "9f",
        "reason": "PSI of 'age'", "slice": "age > 52",
    }  # fmt: skip
    assert "datasets:/a#b/9f" in {node.id for node in up.nodes}, "back to what it was made from"
    assert "found in" in str(as_tree(up))


def test_a_promotion_by_copy_fills_the_environment_of_the_served_name(engine: Engine) -> None:
    data = {"environment": "prod", "statementId": "6" * 64, "servedAs": "prod.fraud"}
    sequence(
        engine,
        (EventName.PROMOTION_REQUESTED, "models:/fraud/1", data),
        (EventName.PROMOTION_GRANTED, "models:/fraud/1", data),
    )
    catch_up(engine)
    with engine.connect() as connection:
        down = walk(connection, "models:/fraud/1", "down", 50)
    nodes = {node.id: node.attributes for node in down.nodes}
    assert nodes[f"statements:/{'6' * 64}"] == {"environment": "prod", "servedAs": "prod.fraud"}
    assert "environments:/prod/prod.fraud" in nodes
    assert "environments:/prod/fraud" not in nodes


def test_goes_on_where_it_stopped_and_can_be_built_anew(engine: Engine) -> None:
    sequence(engine, *STORY[:3])
    assert catch_up(engine) == 3
    assert catch_up(engine) == 0
    sequence(engine, *STORY[3:])
    assert catch_up(engine) == len(STORY) - 3
    everything = select(lineage_edges).order_by(*lineage_edges.primary_key)
    with engine.begin() as connection:
        before = connection.execute(everything).all()
        for table in (lineage_edges, lineage_nodes, lineage_state):
            connection.execute(delete(table))
    assert catch_up(engine) == len(STORY)
    with engine.connect() as connection:
        assert connection.execute(everything).all() == before


def test_processes_at_once_read_each_entry_once(engine: Engine) -> None:
    sequence(engine, *(STORY[1:2] * 1_500))
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda _: catch_up(engine), range(4)))
    assert sum(counts) == 1_500
