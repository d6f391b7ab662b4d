"""Derives the lineage graph from the ledger.

The graph says nothing that the ledger does not prove: every node and edge follows from an audit
event, and the tables can be built anew from the entries at any time. They are brought up to date
once a second by the process that sequences, and before every walk, so that changes need not wait
for it.

Example::

    catch_up(engine)  # how many entries were read
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from governance.canonical import parse_json
from governance.database import ledger_entries, ledger_state, lineage_state
from governance.events import EventName
from governance.lineage.graph import Edge, Node, NodeKind, Relation, record

__all__ = ["catch_up", "derive"]

_BATCH = 1_000
_POSITION = select(
    select(lineage_state.c.next_index).where(lineage_state.c.id == 1).scalar_subquery(),
    select(ledger_state.c.size).where(ledger_state.c.id == 1).scalar_subquery(),
)
_LOCK = (
    update(lineage_state)
    .where(lineage_state.c.id == 1)
    .values(next_index=lineage_state.c.next_index)
    .returning(lineage_state.c.next_index)
)

Graph = tuple[list[Node], list[Edge]]


def catch_up(engine: Engine) -> int:
    """Read the entries that the graph does not tell of yet; how many there were.

    Safe for several processes at once: each batch is read under a row lock.
    """
    with engine.connect() as connection:
        position, size = connection.execute(_POSITION).one()
    read = 0
    while (position or 0) + read < (size or 0):
        with engine.begin() as connection:
            count = _read_batch(connection)
        if count == 0:
            break  # another process was quicker
        read += count
    return read


def _read_batch(connection: Connection) -> int:
    start = connection.execute(_LOCK).scalar_one_or_none()
    if start is None:
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        first = insert(lineage_state).values(id=1, next_index=0)
        connection.execute(first.on_conflict_do_nothing())
        start = connection.execute(_LOCK).scalar_one()
    leaves = connection.execute(
        select(ledger_entries.c.leaf)
        .where(ledger_entries.c.idx >= start)
        .order_by(ledger_entries.c.idx)
        .limit(_BATCH)
    ).scalars()
    nodes: list[Node] = []
    edges: list[Edge] = []
    count = 0
    for leaf in leaves:
        count += 1
        if any(name in leaf for name in _NAMES):  # most events tell of no lineage: not parsed
            more_nodes, more_edges = derive(parse_json(bytes(leaf)))
            nodes += more_nodes
            edges += more_edges
    record(connection, nodes, edges)
    connection.execute(
        update(lineage_state).where(lineage_state.c.id == 1).values(next_index=start + count)
    )
    return count


def derive(event: Mapping[str, Any]) -> Graph:
    """Nodes and edges that an audit event (CloudEvents object) tells of."""
    match event["type"]:
        case EventName.VERSION_REGISTERED:
            return _registered(event)
        case EventName.RUN_FINISHED:
            return _trained(event["subject"], event["data"], event["id"])
        case EventName.PROMOTION_REQUESTED:
            return _requested(event)
        case EventName.PROMOTION_APPROVED:
            return _approved(event)
        case EventName.PROMOTION_GRANTED:
            return _granted(event)
        case EventName.DRIFT_ALERTED:
            return _drifted(event)
    return [], []


_NAMES = [
    f'"type":"{name.value}"'.encode()
    for name in (
        EventName.VERSION_REGISTERED,
        EventName.RUN_FINISHED,
        EventName.PROMOTION_REQUESTED,
        EventName.PROMOTION_APPROVED,
        EventName.PROMOTION_GRANTED,
        EventName.DRIFT_ALERTED,
    )
]


def _registered(event: Mapping[str, Any]) -> Graph:
    version, data, event_id = event["subject"], event["data"], event["id"]
    if data.get("prompt"):
        return [], []
    nodes = [Node(version, NodeKind.MODEL_VERSION, {"rootDigest": data.get("rootDigest", "")})]
    edges = []
    child = version
    if logged_model := data.get("loggedModelId"):
        child = f"models:/{logged_model}"
        nodes.append(Node(child, NodeKind.LOGGED_MODEL))
        edges.append(Edge(version, Relation.REGISTERED_FROM, child, event_id))
    source = data.get("source", "")
    if source.startswith("models:/") and source != f"models:/{logged_model}":
        nodes.append(Node(source, NodeKind.MODEL_VERSION))
        edges.append(Edge(version, Relation.COPIED_FROM, source, event_id))
    if run_id := data.get("runId"):
        run = f"runs:/{run_id}"
        nodes.append(Node(run, NodeKind.RUN))
        edges.append(Edge(child, Relation.PRODUCED_BY, run, event_id))
        more_nodes, more_edges = _trained(run, data, event_id)
        nodes += more_nodes
        edges += more_edges
    return nodes, edges


def _trained(run: str, data: Mapping[str, Any], event_id: str) -> Graph:
    nodes: list[Node] = []
    edges: list[Edge] = []
    for dataset in data.get("datasets", ()):
        name, _, digest = dataset.rpartition("#")
        node = f"datasets:/{name}/{digest}"
        nodes.append(Node(node, NodeKind.DATASET))
        edges.append(Edge(run, Relation.TRAINED_ON, node, event_id))
    for model in data.get("modelInputs", ()):
        nodes.append(Node(f"models:/{model}", NodeKind.LOGGED_MODEL))
        edges.append(Edge(run, Relation.DERIVED_FROM, f"models:/{model}", event_id))
    if edges:
        nodes.append(Node(run, NodeKind.RUN))
    return nodes, edges


def _requested(event: Mapping[str, Any]) -> Graph:
    statement = f"statements:/{event['data']['statementId']}"
    return [
        Node(statement, NodeKind.STATEMENT, _target(event["data"])),
        Node(event["subject"], NodeKind.MODEL_VERSION),
    ], [Edge(statement, Relation.REQUESTED_FOR, event["subject"], event["id"])]


def _approved(event: Mapping[str, Any]) -> Graph:
    data = event["data"]
    statement = f"statements:/{data['statementId']}"
    approval = f"approvals:/{data['statementId'][:16]}/{data['keyid'][:16]}"
    return [
        Node(approval, NodeKind.APPROVAL, {"person": data["person"]}),
        Node(statement, NodeKind.STATEMENT, _target(data)),
    ], [Edge(approval, Relation.APPROVES, statement, event["id"])]


def _target(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: data[key] for key in ("environment", "servedAs") if key in data}


def _granted(event: Mapping[str, Any]) -> Graph:
    version = event["subject"]
    model = event["data"].get("servedAs") or version.removeprefix("models:/").rpartition("/")[0]
    environment = f"environments:/{event['data']['environment']}/{model}"
    return [
        Node(version, NodeKind.MODEL_VERSION),
        Node(environment, NodeKind.ENVIRONMENT),
    ], [Edge(environment, Relation.PROMOTED_BY, version, event["id"])]


def _drifted(event: Mapping[str, Any]) -> Graph:
    """What was found when the alert opened, or got worse: why, and in which rows."""
    data = event["data"]
    alert = f"drift-alerts:/{data['alertId']}"
    told = {name: data.get(name) for name in ("level", "deployment", "owner", "report")}
    told["reason"] = next(iter(data.get("reasons", ())), "")
    told["slice"] = next(iter(data.get("slices", ())), "")
    return [
        Node(alert, NodeKind.DRIFT_ALERT, told),
        Node(event["subject"], NodeKind.MODEL_VERSION),
    ], [Edge(alert, Relation.FOUND_IN, event["subject"], event["id"])]
