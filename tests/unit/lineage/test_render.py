"""Lineage as a tree, as JSON and as a page."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from governance.lineage import Edge, Node, NodeKind, Relation, Subgraph, as_html, as_json, as_tree
from governance.lineage.layout import lay_out
from governance.lineage.render import CUT, FORWARD, KIND_LABELS, SEE_MORE

VERSION = Node("models:/fraud/3", NodeKind.MODEL_VERSION, {"rootDigest": "ab" * 32, "empty": ""})
RUN = Node("runs:/9c1f", NodeKind.RUN, {"user": "maria"})
DATA = Node("datasets:/train/5f3a", NodeKind.DATASET)
UP = Subgraph(
    VERSION.id,
    "up",
    (VERSION, RUN, DATA),
    (
        Edge(VERSION.id, Relation.PRODUCED_BY, RUN.id, "e1" * 16),
        Edge(RUN.id, Relation.TRAINED_ON, DATA.id, "e2" * 16),
    ),
)
EVIL = "</title></script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\x1b[2J\n\u202e"


def test_the_tree_upwards() -> None:
    assert str(as_tree(UP)).splitlines() == [
        f"model version models:/fraud/3  rootDigest={'ab' * 20}",
        "└─ produced by run runs:/9c1f  event e1e1e1e1  user=maria",
        "   └─ trained on dataset datasets:/train/5f3a  event e2e2e2e2",
    ]


def test_the_tree_downwards() -> None:
    down = Subgraph(DATA.id, "down", UP.nodes, UP.edges, truncated=True)
    assert [line.strip() for line in str(as_tree(down)).splitlines()] == [
        "dataset datasets:/train/5f3a",
        "└─ used to train run runs:/9c1f  event e2e2e2e2  user=maria",
        f"└─ produced model version models:/fraud/3  event e1e1e1e1  rootDigest={'ab' * 20}",
        f"… {CUT} To see it, {SEE_MORE}.",
    ]


def test_a_node_without_steps_says_so() -> None:
    assert "this is an origin" in str(as_tree(Subgraph(DATA.id, "up", (DATA,), ())))


def test_rich_prints_the_tree_as_it_is() -> None:
    out = io.StringIO()
    Console(file=out, width=200, color_system=None).print(as_tree(UP))
    assert out.getvalue().rstrip() == str(as_tree(UP))


def test_a_tree_of_cycles_and_diamonds_ends() -> None:
    nodes = tuple(Node(c, NodeKind.RUN) for c in "abcd")
    pairs = ("ab", "ac", "bd", "cd", "da")
    edges = tuple(Edge(a, Relation.DERIVED_FROM, b, "") for a, b in pairs)
    text = str(as_tree(Subgraph("a", "up", nodes, edges)))
    assert text.count("run d") == 2
    assert text.count("(see above)") == 2


def test_a_long_chain_is_no_recursion() -> None:
    names = [f"n{i}" for i in range(5000)]
    edges = tuple(Edge(a, Relation.COPIED_FROM, b, "e") for a, b in itertools.pairwise(names))
    graph = Subgraph("n0", "up", tuple(Node(n, NodeKind.RUN) for n in names), edges)
    lines = str(as_tree(graph)).splitlines()
    assert len(lines) == 5000
    assert max(map(len, lines)) < 140


def test_no_control_character_reaches_the_terminal() -> None:
    node = Node(f"models:/{EVIL}/1", NodeKind.MODEL_VERSION, {EVIL: EVIL})
    text = str(
        as_tree(
            Subgraph(node.id, "up", (node,), (Edge(node.id, Relation.COPIED_FROM, node.id, EVIL),))
        )
    )
    assert all(c.isprintable() or c == "\n" for c in text)


def test_json() -> None:
    document = json.loads(as_json(UP))
    assert document["format"] == "chancery.lineage/v1"
    assert (document["root"], document["direction"]) == (VERSION.id, "up")
    assert document["nodes"][1] == {"id": RUN.id, "kind": "run", "attributes": {"user": "maria"}}
    assert document["edges"][0] == {
        "source": VERSION.id,
        "relation": "produced_by",
        "target": RUN.id,
        "eventId": "e1" * 16,
    }


def test_a_graph_that_was_cut_says_so_and_how_to_see_more() -> None:
    cut = Subgraph(VERSION.id, "up", (VERSION,), (), truncated=True)
    assert json.loads(as_json(cut))["truncated"] is True
    for text in (str(as_tree(cut)), json.loads(as_json(cut))["remedy"], Page(as_html(cut)).text):
        assert "--depth" in text
    assert "this is an origin" not in str(as_tree(cut))
    for text in (str(as_tree(UP)), as_json(UP), Page(as_html(UP)).text):
        assert "--depth" not in text
    assert (json.loads(as_json(UP))["truncated"], json.loads(as_json(UP))["remedy"]) == (False, "")


class Page(HTMLParser):
    """Collects tags, attributes and the texts within each kind of tag."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts.append(data)
        elif self._open != "style":
            self.text += data

    def count(self, tag: str, css_class: str) -> int:
        return sum(t == tag and css_class in (a.get("class") or "").split() for t, a in self.tags)


def test_the_page_shows_every_node_step_and_event() -> None:
    page = Page(as_html(UP))
    assert page.count("g", "node") == 3
    assert page.count("g", "edge") == 2
    assert page.count("g", "root") == 1
    assert "Where it came from: models:/fraud/3" in page.text
    assert "datasets:/train/5f3a used to train runs:/9c1f" in page.text
    assert "e2" * 16 in page.text
    assert "rootDigest" in page.text
    assert "3 things, 2 steps" in page.text


def test_the_page_is_complete_in_itself() -> None:
    text = as_html(UP)
    page = Page(text)
    assert [a for t, a in page.tags if {"src", "href", "data", "action"} & set(a)] == []
    assert "@import" not in text
    assert re.findall(r"https?://[^\s\"<]+", text) == ["http://www.w3.org/2000/svg"]
    assert [m for m in re.findall(r"url\(([^)]*)\)", text) if m != "#tip"] == []


def test_the_content_security_policy_allows_exactly_the_script() -> None:
    page = Page(as_html(UP))
    [script] = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [rules] = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert rules is not None
    assert rules.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in rules
    assert "innerHTML = idle" in script


def test_nothing_in_a_name_becomes_markup() -> None:
    node = Node(f"models:/{EVIL}/1", NodeKind.MODEL_VERSION, {EVIL: EVIL})
    other = Node(EVIL, NodeKind.UNKNOWN, {"a": EVIL})
    edges = (Edge(node.id, Relation.COPIED_FROM, other.id, EVIL),)
    plain = Page(as_html(Subgraph("a", "up", (Node("a", NodeKind.RUN), DATA), ())))
    page = Page(as_html(Subgraph(node.id, "up", (node, other), edges)))
    assert len(page.scripts) == 1
    assert "img" not in {t for t, _ in page.tags}
    known = {name for _, attributes in plain.tags for name in attributes}
    known |= {"marker-end", "data-from", "data-to"}
    assert {name for _, attributes in page.tags for name in attributes} <= known
    assert "alert(1)" in page.text
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=10))
def test_any_name_leaves_the_structure_alone(name: str, value: str, event: str) -> None:
    def shape(a: str, b: str, v: str, e: str) -> list[str]:
        graph = Subgraph(
            a,
            "down",
            (Node(a, NodeKind.RUN, {"k": v}), Node(b, NodeKind.DATASET)),
            (Edge(a, Relation.TRAINED_ON, b, e),),
        )
        return [tag for tag, _ in Page(as_html(graph)).tags]

    assert shape("x" + name, "y" + name, "v" + value, event) == shape("x", "y", "v", "")


def test_ten_thousand_nodes_are_cut_to_what_can_be_read() -> None:
    names = [f"n{i}" for i in range(10_000)]
    edges = tuple(Edge(names[i // 3], Relation.TRAINED_ON, names[i], "e") for i in range(1, 10_000))
    graph = Subgraph("n0", "up", tuple(Node(n, NodeKind.DATASET) for n in names), edges)
    started = time.perf_counter()
    page = Page(as_html(graph))
    assert time.perf_counter() - started < 10
    assert page.count("g", "node") == 400
    assert (
        "Only the 400 nearest of 10000 things are drawn; the table below has every step."
        in page.text
    )


def test_every_kind_and_relation_has_words() -> None:
    assert set(KIND_LABELS) == set(NodeKind)
    assert set(FORWARD) == set(Relation)
    for relation in Relation:
        graph = Subgraph("a", "up", (RUN, DATA), (Edge(RUN.id, relation, DATA.id, "e"),))
        assert str(as_tree(Subgraph(RUN.id, "up", graph.nodes, graph.edges)))


def test_time_runs_from_left_to_right() -> None:
    layout = lay_out(["d", "c", "b", "a"], [("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")])
    assert [layout.boxes[i].layer for i in "abcd"] == [0, 1, 2, 3]
    bends = layout.bends["a", "d"]
    assert [b.layer for b in bends] == [1, 2]
    for bend in bends:  # it passes beside the boxes, not through them
        box = layout.boxes["bc"[bend.layer - 1]]
        assert abs(bend.row - box.row) >= 1 - 1e-9


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=30).map(
        lambda pairs: [(str(a), str(b)) for a, b in pairs]
    )
)
def test_no_two_boxes_overlap_whatever_the_graph(links: list[tuple[str, str]]) -> None:
    names = [str(i) for i in range(13)]
    layout = lay_out(names, links)
    boxes = sorted((b.layer, b.row) for b in layout.boxes.values())
    for (layer, row), (next_layer, next_row) in itertools.pairwise(boxes):
        assert layer != next_layer or next_row - row >= 1 - 1e-6


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_single_node_is_a_page(direction: str) -> None:
    page = Page(as_html(Subgraph(DATA.id, direction, (DATA,), ())))
    assert page.count("g", "node") == 1
