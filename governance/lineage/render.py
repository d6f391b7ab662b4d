"""Lineage as text: a tree for a terminal, JSON for programs. ``page`` draws it.

Names come from outside: what is not printable becomes a space, and nothing in them is markup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from governance.lineage.graph import Edge, Node, NodeKind, Relation, Subgraph

__all__ = [
    "CUT",
    "FORWARD",
    "KIND_LABELS",
    "SEE_MORE",
    "TreeText",
    "as_document",
    "as_json",
    "as_tree",
    "plain",
]

CUT = "This graph was cut: more lies beyond the steps that were followed."
SEE_MORE = (
    "follow more steps with --depth (at most 50), or ask for the lineage of one of its last things"
)

KIND_LABELS: Mapping[NodeKind, str] = {
    NodeKind.DATASET: "dataset",
    NodeKind.RUN: "run",
    NodeKind.LOGGED_MODEL: "logged model",
    NodeKind.MODEL_VERSION: "model version",
    NodeKind.STATEMENT: "promotion request",
    NodeKind.APPROVAL: "approval",
    NodeKind.ALIAS: "alias",
    NodeKind.ENVIRONMENT: "environment",
    NodeKind.DRIFT_ALERT: "alert about drift",
    NodeKind.UNKNOWN: "unknown",
}
FORWARD: Mapping[Relation, str] = {
    Relation.TRAINED_ON: "used to train",
    Relation.PRODUCED_BY: "produced",
    Relation.REGISTERED_FROM: "registered as",
    Relation.COPIED_FROM: "copied to",
    Relation.DERIVED_FROM: "starting point of",
    Relation.REQUESTED_FOR: "put forward in",
    Relation.APPROVES: "approved by",
    Relation.PROMOTED_BY: "promoted to",
    Relation.FOUND_IN: "drifted in",
}
"""From the earlier thing to the later."""

_BACKWARD: Mapping[Relation, str] = {
    Relation.TRAINED_ON: "trained on",
    Relation.PRODUCED_BY: "produced by",
    Relation.REGISTERED_FROM: "registered from",
    Relation.COPIED_FROM: "copied from",
    Relation.DERIVED_FROM: "derived from",
    Relation.REQUESTED_FOR: "puts forward",
    Relation.APPROVES: "approves",
    Relation.PROMOTED_BY: "was given",
    Relation.FOUND_IN: "found in",
}
_STYLES: Mapping[NodeKind, str] = {
    NodeKind.DATASET: "green",
    NodeKind.RUN: "blue",
    NodeKind.LOGGED_MODEL: "magenta",
    NodeKind.MODEL_VERSION: "bold magenta",
    NodeKind.STATEMENT: "yellow",
    NodeKind.APPROVAL: "cyan",
    NodeKind.ALIAS: "bold red",
    NodeKind.ENVIRONMENT: "bold red",
    NodeKind.DRIFT_ALERT: "red",
}
_MAX_INDENT = 60


@dataclass(frozen=True, slots=True)
class TreeText:
    """A tree: coloured when rich prints it, plain as a ``str``; lines are never wrapped."""

    text: Text

    def __str__(self) -> str:
        return self.text.plain

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text


def plain(text: str) -> str:
    """Text from outside without control characters, line ends or direction marks."""
    return "".join(c if c.isprintable() else " " for c in text)


def as_document(graph: Subgraph) -> dict[str, Any]:
    """Format ``chancery.lineage/v1``; ``remedy`` says how to see more of a graph that was cut."""
    return {
        "format": "chancery.lineage/v1",
        "root": graph.root,
        "direction": graph.direction,
        "truncated": graph.truncated,
        "remedy": SEE_MORE if graph.truncated else "",
        "nodes": [
            {"id": n.id, "kind": n.kind.value, "attributes": dict(n.attributes)}
            for n in graph.nodes
        ],
        "edges": [
            {
                "source": e.source,
                "relation": e.relation.value,
                "target": e.target,
                "eventId": e.event_id,
            }
            for e in graph.edges
        ],
    }


def as_json(graph: Subgraph) -> str:
    """``as_document`` as indented text."""
    return json.dumps(as_document(graph), indent=2, ensure_ascii=False)


def as_tree(graph: Subgraph) -> TreeText:
    """A tree from the root on.

    A node that is reached on several ways is unfolded once.
    """
    nodes = {node.id: node for node in graph.nodes}
    steps: dict[str, list[tuple[str, Edge]]] = {}
    for edge in graph.edges:
        near, far = edge.source, edge.target
        if graph.direction != "up":
            near, far = far, near
        steps.setdefault(near, []).append((far, edge))
    text = Text(no_wrap=True, overflow="ignore")
    phrases = _BACKWARD if graph.direction == "up" else FORWARD
    unfolded: set[str] = set()
    # Own stack instead of recursion: a chain of versions may be long.
    stack: list[tuple[str, Edge | None, str, str]] = [(graph.root, None, "", "")]
    while stack:
        identifier, via, indent, branch = stack.pop()
        node = nodes.get(identifier) or Node(identifier, NodeKind.UNKNOWN)
        text.append(indent + branch, style="dim")
        if via is not None:
            text.append(f"{phrases[via.relation]} ", style="dim italic")
        again = identifier in unfolded and identifier in steps
        text.append(f"{KIND_LABELS[node.kind]} ", style="dim")
        text.append(plain(node.id), style=_STYLES.get(node.kind, ""))
        if via is not None and via.event_id:
            text.append(f"  event {plain(via.event_id[:8])}", style="dim")
        text.append("  (see above)" if again else _attributes(node), style="dim")
        text.append("\n")
        if again:
            continue
        unfolded.add(identifier)
        below = indent if via is None else indent + ("   " if branch.startswith("└") else "│  ")
        if len(below) > _MAX_INDENT:  # deep chains go on without growing wider
            below = below[:_MAX_INDENT]
        children = steps.get(identifier, [])
        for position, (far, edge) in enumerate(reversed(children)):
            stack.append((far, edge, below, "└─ " if position == 0 else "├─ "))
    if not steps and not graph.truncated:
        where = "an origin" if graph.direction == "up" else "an end"
        text.append(f"nothing lies further {graph.direction}: this is {where}\n", style="dim")
    if graph.truncated:
        text.append(f"… {CUT} To see it, {SEE_MORE}.\n", style="bold")
    text.right_crop(1)
    return TreeText(text)


def _attributes(node: Node) -> str:
    shown = [
        f"{plain(str(key))}={plain(str(value))[:40]}"
        for key, value in node.attributes.items()
        if value not in ("", None)
    ]
    return f"  {', '.join(shown[:3])}" if shown else ""
