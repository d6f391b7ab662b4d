"""Lineage: what a model came from and what came of it, each step with its audit event.

The graph is derived from the ledger (``catch_up``).

An edge points from the later thing (``source``) to the earlier thing it rests on (``target``):
version → logged model → run → dataset; statement → version; approval → statement;
environment → version. ``up`` follows edges (where it came from), ``down`` goes against them (what
came of it).
"""

from governance.lineage.graph import (
    Direction,
    Edge,
    Node,
    NodeKind,
    Relation,
    Subgraph,
    record,
    walk,
)
from governance.lineage.page import as_html
from governance.lineage.project import catch_up
from governance.lineage.render import as_json, as_tree

__all__ = [
    "Direction",
    "Edge",
    "Node",
    "NodeKind",
    "Relation",
    "Subgraph",
    "as_html",
    "as_json",
    "as_tree",
    "catch_up",
    "record",
    "walk",
]
