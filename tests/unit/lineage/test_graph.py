"""The lineage graph in the database."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from governance.database import lineage_edges, lineage_nodes, metadata
from governance.errors import NotFoundError
from governance.lineage import Edge, Node, NodeKind, Relation, graph, record, walk


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    metadata.create_all(engine)
    with engine.begin() as open_connection:
        yield open_connection
    engine.dispose()


def chain(connection: Connection, *ids: str) -> None:
    """Each id rests on the next."""
    record(
        connection,
        [Node(i, NodeKind.MODEL_VERSION) for i in ids],
        [Edge(a, Relation.COPIED_FROM, b, f"event-{a}") for a, b in itertools.pairwise(ids)],
    )


def ids(connection: Connection, start: str, direction: str, depth: int = 50) -> list[str]:
    return [node.id for node in walk(connection, start, direction, depth).nodes]


def test_up_is_where_it_came_from_and_down_what_came_of_it(connection: Connection) -> None:
    chain(connection, "c", "b", "a")
    assert ids(connection, "b", "up") == ["b", "a"]
    assert ids(connection, "b", "down") == ["b", "c"]
    found = walk(connection, "c", "up", 50)
    assert found.edges == (
        Edge("c", Relation.COPIED_FROM, "b", "event-c"),
        Edge("b", Relation.COPIED_FROM, "a", "event-b"),
    )
    assert not found.truncated


def test_recording_again_changes_nothing(connection: Connection) -> None:
    nodes = [Node("runs:/1", NodeKind.RUN, {"user": "maria", "steps": 3})]
    edges = [Edge("runs:/1", Relation.TRAINED_ON, "datasets:/a/9f", "first")]
    for event in ("first", "second"):
        record(connection, nodes * 2, [Edge(e.source, e.relation, e.target, event) for e in edges])
    found = walk(connection, "runs:/1", "up", 5)
    assert found.edges == tuple(edges)
    assert found.nodes[0] == nodes[0]
    assert found.nodes[1].kind is NodeKind.UNKNOWN


def test_attributes_are_updated_but_a_mention_erases_nothing(connection: Connection) -> None:
    record(connection, [Node("runs:/1", NodeKind.RUN)], [])
    record(connection, [Node("runs:/1", NodeKind.RUN, {"user": "maria"})], [])
    record(connection, [Node("runs:/1", NodeKind.RUN)], [])
    assert walk(connection, "runs:/1", "up", 1).nodes[0].attributes == {"user": "maria"}
    both = [Node("runs:/1", NodeKind.RUN, {"user": "jo"}), Node("runs:/1", NodeKind.RUN)]
    record(connection, both, [])
    assert walk(connection, "runs:/1", "up", 1).nodes[0].attributes == {"user": "jo"}


def test_floats_are_refused(connection: Connection) -> None:
    with pytest.raises(ValueError, match="float"):
        record(connection, [Node("runs:/1", NodeKind.RUN, {"accuracy": 0.9})], [])


def test_nothing_to_record(connection: Connection) -> None:
    record(connection, [], [])
    assert connection.execute(select(lineage_nodes)).all() == []
    assert connection.execute(select(lineage_edges)).all() == []


def test_depth_limits_and_says_so(connection: Connection) -> None:
    chain(connection, "d", "c", "b", "a")
    found = walk(connection, "d", "up", 2)
    assert [n.id for n in found.nodes] == ["d", "c", "b"]
    assert len(found.edges) == 2
    assert found.truncated
    assert not walk(connection, "d", "up", 3).truncated
    assert ids(connection, "d", "up", 0) == ["d"]
    assert ids(connection, "d", "up", -5) == ["d"]


def test_cycles_end(connection: Connection) -> None:
    chain(connection, "a", "b", "c", "a")
    chain(connection, "c", "c")
    found = walk(connection, "a", "up", 10**9)
    assert [n.id for n in found.nodes] == ["a", "b", "c"]
    assert len(found.edges) == 4
    assert not found.truncated


def test_diamonds_are_read_once(connection: Connection) -> None:
    chain(connection, "d", "b", "a")
    chain(connection, "d", "c", "a")
    found = walk(connection, "d", "up", 9)
    assert sorted(n.id for n in found.nodes) == ["a", "b", "c", "d"]
    assert len(found.edges) == 4


def test_the_size_limit(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "MAX_NODES", 3)
    chain(connection, "e", "d", "c", "b", "a")
    found = walk(connection, "e", "up", 9)
    assert [n.id for n in found.nodes] == ["e", "d", "c"]
    assert found.truncated
    assert {e.target for e in found.edges} <= {n.id for n in found.nodes}


def test_unknown_node_and_direction(connection: Connection) -> None:
    with pytest.raises(NotFoundError, match="knows nothing about 'models:/x/1'"):
        walk(connection, "models:/x/1", "up", 3)
    chain(connection, "a", "b")
    with pytest.raises(NotFoundError, match="use 'up' or 'down'"):
        walk(connection, "a", "sideways", 3)


def test_an_overlong_id_is_found_again(connection: Connection) -> None:
    one, other = ("datasets:/" + "x" * 600 + tail for tail in "12")
    chain(connection, one, "a")
    chain(connection, other, "b")
    assert ids(connection, one, "up")[1:] == ["a"]
    assert ids(connection, other, "up")[1:] == ["b"]
    assert len(ids(connection, one, "up")[0]) <= 512


def test_hostile_ids_are_only_text(connection: Connection) -> None:
    name = "models:/'; DROP TABLE chancery_lineage_nodes; --%_\\/1"
    chain(connection, name, "a")
    assert ids(connection, name, "up") == [name, "a"]


@pytest.mark.parametrize("shape", ["chain", "star", "dense"])
@pytest.mark.timeout(60)  # each node once: any number of paths leads to it
def test_ten_thousand_nodes_within_reason(connection: Connection, shape: str) -> None:
    count, rng = 10_000, random.Random(7)
    names = [f"n{i}" for i in range(count)]
    if shape == "chain":
        links = [(i, i + 1) for i in range(count - 1)]
    elif shape == "star":
        links = [(0, i) for i in range(1, count)]
    else:  # with cycles
        links = [(i, rng.randrange(count)) for i in range(count) for _ in range(4)]
    record(
        connection,
        [Node(n, NodeKind.RUN, {"n": n}) for n in names],
        [Edge(names[a], Relation.DERIVED_FROM, names[b], "e") for a, b in links],
    )
    found = walk(connection, "n0", "up", 10_000)
    assert len(found.nodes) == {"chain": 1001, "star": 10_000}.get(shape, len(found.nodes))
    assert found.truncated is (shape == "chain")
    if shape == "dense":
        assert len(found.nodes) > 9_000


def test_the_commands_compile_for_postgresql() -> None:
    insert = postgresql.insert(lineage_nodes).values([{"node_id": "a"}])
    upsert = insert.on_conflict_do_update(
        index_elements=["node_id"], set_={"kind": insert.excluded.kind}
    )
    text = str(upsert.compile(dialect=postgresql.dialect()))
    assert "ON CONFLICT (node_id) DO UPDATE" in text
