"""Lineage as one self-contained HTML page: an SVG in layers, time running from left to right.

The page loads nothing: style and script are inline, and its content security policy allows only
that very script. Every name from outside is escaped. Without scripts it is complete too (tooltips
and the table of steps); the script shows details of what is pointed at and lights up its lineage.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from string import Template

from governance.lineage.graph import Edge, Node, Subgraph
from governance.lineage.layout import Box, Layout, lay_out
from governance.lineage.render import CUT, FORWARD, KIND_LABELS, SEE_MORE, plain

__all__ = ["MAX_DRAWN", "as_html"]

MAX_DRAWN = 400
"""Boxes on a page; beyond, the nearest to the root are drawn and the page says so."""

_WIDTH, _HEIGHT = 216, 66
_COLUMN, _ROW = 328, 88
_MARGIN = 28
_BUSY = 60  # with more arrows than this, their labels show only when pointed at


def as_html(graph: Subgraph) -> str:
    """The page."""
    nodes = graph.nodes[:MAX_DRAWN]
    drawn = {node.id: number for number, node in enumerate(nodes)}
    edges = [e for e in graph.edges if e.source in drawn and e.target in drawn]
    layout = lay_out(list(drawn), [(e.target, e.source) for e in edges])
    up = graph.direction == "up"
    template = files("governance.lineage").joinpath("page.html").read_text("utf-8")
    script = template.partition("<script>")[2].partition("</script>")[0]
    digest = hashlib.sha256(script.encode()).digest()
    question = "Where it came from" if up else "What came of it"
    return Template(template).substitute(
        root=_text(graph.root),
        heading=f"{question}: {_text(graph.root)}",
        explanation=(
            f"Time runs from left to right: each arrow leads from an earlier thing to what was "
            f"made from it or done with it. The {'last' if up else 'first'} box, with the thick "
            f"border, is the one that was asked about. {_count(len(graph.nodes), 'thing')}, "
            f"{_count(len(graph.edges), 'step')}."
        ),
        warning=_warning(graph, len(nodes)),
        legend="".join(
            f'<li style="--kind: var(--{kind.value})"><i></i>{label}</li>'
            for kind, label in KIND_LABELS.items()
            if any(node.kind is kind for node in nodes)
        ),
        drawing=_drawing(graph.root, nodes, edges, drawn, layout),
        details=_details(nodes, edges),
        rows="".join(_row(edge) for edge in graph.edges),
        step_count=len(graph.edges),
        script_hash=base64.b64encode(digest).decode(),
    )


def _warning(graph: Subgraph, drawn: int) -> str:
    notes = []
    if drawn < len(graph.nodes):
        notes.append(
            f"Only the {drawn} nearest of {len(graph.nodes)} things are drawn; the table below "
            "has every step."
        )
    if graph.truncated:
        notes.append(f"{CUT} To see it, {SEE_MORE}.")
    return f'<p class="warning">{" ".join(notes)}</p>' if notes else ""


def _drawing(
    root: str,
    nodes: tuple[Node, ...],
    edges: list[Edge],
    drawn: Mapping[str, int],
    layout: Layout,
) -> str:
    places = [*layout.boxes.values(), *(b for bends in layout.bends.values() for b in bends)]
    top = min((place.row for place in places), default=0.0)
    left = min((place.layer for place in places), default=0)

    def at(box: Box) -> tuple[float, float]:
        return (box.layer - left) * _COLUMN + _MARGIN, (box.row - top) * _ROW + _MARGIN

    width = max((at(p)[0] for p in places), default=0) + _WIDTH + _MARGIN
    height = max((at(p)[1] for p in places), default=0) + _HEIGHT + _MARGIN
    loops = sum(layout.boxes[e.target].layer >= layout.boxes[e.source].layer for e in edges)
    height += 30 if loops else 0
    busy = " busy" if len(edges) > _BUSY else ""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'style="width:min(100%,{width:.0f}px);min-width:{width * 0.8:.0f}px" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="group" aria-label="Lineage graph">'
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="12" '
        'markerHeight="12" markerUnits="userSpaceOnUse" orient="auto-start-reverse">'
        '<path d="M0 0 10 5 0 10z"/></marker></defs>'
    ]
    for number, edge in enumerate(edges):
        points = [at(layout.boxes[edge.target])]
        points += [at(bend) for bend in layout.bends.get((edge.target, edge.source), ())]
        points.append(at(layout.boxes[edge.source]))
        path, (x, y) = _curve(points)
        parts.append(
            f'<g class="edge{busy}" tabindex="0" data-detail="de{number}" '
            f'data-from="n{drawn[edge.target]}" data-to="n{drawn[edge.source]}">'
            f"<title>{_text(_sentence(edge))}\naudit event {_text(edge.event_id)}</title>"
            f'<path class="grip" d="{path}"/><path class="line" d="{path}" '
            f'marker-end="url(#tip)"/>'
            f'<text x="{x:.0f}" y="{y:.0f}">{FORWARD[edge.relation]}</text></g>'
        )
    parts += [_box(node, drawn[node.id], at(layout.boxes[node.id]), root) for node in nodes]
    return "".join(parts) + "</svg>"


def _curve(points: list[tuple[float, float]]) -> tuple[str, tuple[float, float]]:
    """A path from the right side of the first box to the last box's left, and its label's place."""
    (x1, y1), (x2, y2) = points[0], points[-1]
    middle = _HEIGHT / 2
    if x2 <= x1:  # a step backwards (a cycle) goes round below both boxes
        low = max(y1, y2) + _HEIGHT + 26
        start, end = (x1 + _WIDTH / 2, y1 + _HEIGHT), (x2 + _WIDTH / 2, y2 + _HEIGHT)
        path = f"M{start[0]:.0f} {start[1]:.0f}C{start[0]:.0f} {low:.0f} {end[0]:.0f} {low:.0f} "
        return path + f"{end[0]:.0f} {end[1]:.0f}", ((start[0] + end[0]) / 2, low - 4)
    path = f"M{x1 + _WIDTH:.0f} {y1 + middle:.0f}"
    here = (x1 + _WIDTH, y1 + middle)
    label = (0.0, 0.0)
    for number, (x, y) in enumerate(points[1:]):
        bend = (here[0] + x) / 2
        path += f"C{bend:.0f} {here[1]:.0f} {bend:.0f} {y + middle:.0f} {x:.0f} {y + middle:.0f}"
        if number == 0:
            label = (bend, (here[1] + y + middle) / 2 - 7)
        here = (x, y + middle)
        if number < len(points) - 2:  # straight past the boxes of a layer
            here = (x + _WIDTH, y + middle)
            path += f"H{here[0]:.0f}"
    return path, label


def _box(node: Node, number: int, place: tuple[float, float], root: str) -> str:
    x, y = place
    scheme, _, name = node.id.partition(":/")
    attributes = [f"{k}: {v}" for k, v in node.attributes.items() if v not in ("", None)]
    return (
        f'<g class="node{" root" if node.id == root else ""}" id="n{number}" tabindex="0" '
        f'data-detail="dn{number}" style="--kind: var(--{node.kind.value})" '
        f'transform="translate({x:.0f} {y:.0f})">'
        f"<title>{_text(node.id)}{''.join(chr(10) + _text(a) for a in attributes)}</title>"
        f'<rect class="box" width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>'
        f'<path class="bar" d="M8 0H6A6 6 0 0 0 0 8V{_HEIGHT - 8}A6 6 0 0 0 6 {_HEIGHT}H8z"/>'
        f'<text class="kind" x="18" y="19">{KIND_LABELS[node.kind]}</text>'
        f'<text class="name" x="18" y="38">{_text(_short(name or scheme, 20))}</text>'
        f'<text class="note" x="18" y="56">{_text(_short(attributes[0], 27) if attributes else "")}'
        "</text></g>"
    )


def _details(nodes: tuple[Node, ...], edges: list[Edge]) -> str:
    touching: dict[str, list[Edge]] = {}
    for edge in edges:
        touching.setdefault(edge.source, []).append(edge)
        touching.setdefault(edge.target, []).append(edge)
    parts = []
    for number, node in enumerate(nodes):
        facts = [
            (str(key), str(value)) for key, value in node.attributes.items() if value is not None
        ]
        facts += [
            (f"event {edge.event_id}", _sentence(edge)) for edge in touching.get(node.id, ())[:12]
        ]
        parts.append(_detail(f"dn{number}", f"{KIND_LABELS[node.kind]} {node.id}", facts))
    for number, edge in enumerate(edges):
        parts.append(_detail(f"de{number}", _sentence(edge), [("audit event", edge.event_id)]))
    return "".join(parts)


def _detail(identifier: str, heading: str, facts: list[tuple[str, str]]) -> str:
    lines = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in facts)
    return f'<div id="{identifier}"><h2>{_text(heading)}</h2><dl>{lines}</dl></div>'


def _row(edge: Edge) -> str:
    return (
        f"<tr><td>{_text(edge.target)}</td><td>{FORWARD[edge.relation]}</td>"
        f"<td>{_text(edge.source)}</td><td><code>{_text(edge.event_id)}</code></td></tr>"
    )


def _sentence(edge: Edge) -> str:
    return f"{edge.target} {FORWARD[edge.relation]} {edge.source}"


def _text(text: str) -> str:
    return escape(plain(text), quote=True)


def _short(text: str, length: int) -> str:
    """The beginning and the end, which tell names apart better than either."""
    if len(text) <= length:
        return text
    tail = length // 3
    return f"{text[: length - tail - 1]}…{text[-tail:]}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
