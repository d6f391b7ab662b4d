"""The lineage graph in our tables: its records, how it is written and how it is walked.

Nodes are known by an id (``models:/fraud/3``, ``runs:/ab12``, ``datasets:/train/9f``); an id longer
than its column is kept as its beginning and a digest, in writing and in reading alike. Writing is
idempotent. A node without attributes is a mention: it never erases what is known already.

A walk goes level by level, so that every node and edge is read once: cycles end, and the work is
bounded by the part of the graph that is returned (a recursive query that counts depth visits a
node once a depth, which a cycle multiplies).

Example::

    record(connection, [Node("runs:/1", NodeKind.RUN), Node("datasets:/a/9f", NodeKind.DATASET)],
           [Edge("runs:/1", Relation.TRAINED_ON, "datasets:/a/9f", event.id)])
    walk(connection, "runs:/1", "up", 10).nodes
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeVar

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from governance.canonical import canonical_json, sha256_hex
from governance.database import lineage_edges, lineage_nodes
from governance.errors import NotFoundError

__all__ = [
    "MAX_DEPTH",
    "MAX_NODES",
    "Direction",
    "Edge",
    "Node",
    "NodeKind",
    "Relation",
    "Subgraph",
    "record",
    "walk",
]

MAX_DEPTH = 1_000
MAX_NODES = 20_000
_ID_LENGTH = 512
_BATCH = 500  # ids in one query: databases limit its variables

Direction = Literal["up", "down"]
"""``up``: where it came from; ``down``: what came of it."""

_T = TypeVar("_T")


class NodeKind(StrEnum):
    DATASET = "dataset"
    RUN = "run"
    LOGGED_MODEL = "logged_model"
    MODEL_VERSION = "model_version"
    STATEMENT = "statement"
    APPROVAL = "approval"
    ALIAS = "alias"
    ENVIRONMENT = "environment"
    DRIFT_ALERT = "drift_alert"
    UNKNOWN = "unknown"
    """Only an edge names it."""


class Relation(StrEnum):
    """How a source rests on a target: read it as source, relation, target."""

    TRAINED_ON = "trained_on"
    PRODUCED_BY = "produced_by"
    REGISTERED_FROM = "registered_from"
    COPIED_FROM = "copied_from"
    DERIVED_FROM = "derived_from"
    REQUESTED_FOR = "requested_for"
    APPROVES = "approves"
    PROMOTED_BY = "promoted_by"
    FOUND_IN = "found_in"


@dataclass(frozen=True, slots=True)
class Node:
    """A thing in the graph; ``attributes`` are JSON without floats."""

    id: str
    kind: NodeKind
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Edge:
    """``source`` rests on ``target``; ``event_id`` is the audit event that recorded it."""

    source: str
    relation: Relation
    target: str
    event_id: str


@dataclass(frozen=True, slots=True)
class Subgraph:
    """What a walk found.

    Attributes:
        root: Where it began.
        direction: ``up`` or ``down``.
        nodes: The root first, then by distance from it.
        edges: Edges that the walk followed; both ends are in ``nodes``.
        truncated: More lies beyond the depth or the size limit.
    """

    root: str
    direction: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    truncated: bool = False


def record(connection: Connection, nodes: Iterable[Node], edges: Iterable[Edge]) -> None:
    """Write nodes and edges in the caller's transaction; what is there already stays.

    A node's attributes are replaced by new ones that are not empty; an edge keeps its first event.

    Raises:
        ValueError: attributes that canonical JSON does not take (floats, for one).
    """
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    rows: dict[str, dict[str, str]] = {}
    for node in nodes:
        row = _node_row(node)
        if node.attributes or row["node_id"] not in rows:
            rows[row["node_id"]] = row
    # In one order everywhere, so that concurrent transactions cannot wait for each other.
    ordered = [rows[key] for key in sorted(rows)]
    known = [row for row in ordered if row["attributes"] != "{}"]
    mentions = [row for row in ordered if row["attributes"] == "{}"]
    upsert = insert(lineage_nodes)
    upsert = upsert.on_conflict_do_update(
        index_elements=["node_id"],
        set_={"kind": upsert.excluded.kind, "attributes": upsert.excluded.attributes},
    )
    links = {
        (_stored_id(edge.source), edge.relation.value, _stored_id(edge.target)): edge.event_id
        for edge in reversed(list(edges))
    }
    steps = [
        {"source_id": source, "relation": relation, "target_id": target, "event_id": event}
        for (source, relation, target), event in sorted(links.items())
    ]
    # Rows as parameters, not as VALUES: the command is compiled once and cached.
    if known:
        connection.execute(upsert, known)
    if mentions:
        connection.execute(insert(lineage_nodes).on_conflict_do_nothing(), mentions)
    if steps:
        connection.execute(insert(lineage_edges).on_conflict_do_nothing(), steps)


def walk(connection: Connection, node_id: str, direction: str, depth: int) -> Subgraph:
    """Everything within ``depth`` steps (``MAX_DEPTH`` at most) of a node in one direction.

    Raises:
        NotFoundError: the graph has no such node, or there is no such direction.
    """
    if direction not in ("up", "down"):
        raise NotFoundError(f"there is no direction {direction!r}", "use 'up' or 'down'")
    root = _stored_id(node_id)
    if (
        connection.execute(
            select(lineage_nodes.c.node_id).where(lineage_nodes.c.node_id == root)
        ).one_or_none()
        is None
    ):
        raise NotFoundError(
            f"lineage knows nothing about {node_id!r}",
            "give it as models:/name/version, runs:/id or datasets:/name/digest",
        )
    seen = {root: None}
    edges: list[Edge] = []
    truncated = False
    frontier = [root]
    for step in range(min(max(depth, 0), MAX_DEPTH) + 1):
        reached: list[str] = []
        for edge in _edges(connection, frontier, direction):
            far = edge.target if direction == "up" else edge.source
            if far not in seen:
                if step >= depth or step >= MAX_DEPTH or len(seen) >= MAX_NODES:
                    truncated = True
                    continue
                seen[far] = None
                reached.append(far)
            edges.append(edge)
        frontier = reached
        if not frontier:
            break
    nodes = _nodes(connection, list(seen))
    return Subgraph(root, direction, nodes, tuple(edges), truncated)


def _edges(connection: Connection, frontier: Sequence[str], direction: str) -> Iterator[Edge]:
    table = lineage_edges.c
    near = table.source_id if direction == "up" else table.target_id
    order = (table.source_id, table.relation, table.target_id)
    for batch in _batches(frontier):
        rows = connection.execute(select(lineage_edges).where(near.in_(batch)).order_by(*order))
        for row in rows:
            yield Edge(row.source_id, Relation(row.relation), row.target_id, row.event_id)


def _nodes(connection: Connection, ids: Sequence[str]) -> tuple[Node, ...]:
    found = {}
    for batch in _batches(ids):
        query = select(lineage_nodes).where(lineage_nodes.c.node_id.in_(batch))
        for row in connection.execute(query):
            found[row.node_id] = Node(row.node_id, NodeKind(row.kind), json.loads(row.attributes))
    return tuple(found.get(i) or Node(i, NodeKind.UNKNOWN) for i in ids)


def _node_row(node: Node) -> dict[str, str]:
    return {
        "node_id": _stored_id(node.id),
        "kind": node.kind.value,
        "attributes": canonical_json(dict(node.attributes)).decode(),
    }


def _stored_id(identifier: str) -> str:
    if len(identifier) <= _ID_LENGTH:
        return identifier
    return f"{identifier[: _ID_LENGTH - 34]}…#{sha256_hex(identifier.encode())[:32]}"


def _batches(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]
