"""The tree as it lies in the database: nodes, peaks and proofs.

Leaf hashes are in ``chancery_ledger_entries``, complete subtrees of two leaves and more in
``chancery_ledger_nodes``. Every function takes the connection it reads on; a proof costs one
query, whatever the size of the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from sqlalchemy import Connection

from governance.database import ledger_entries, ledger_nodes
from governance.errors import LedgerTamperedError
from governance.ledger.merkle import Node, NodeGetter, consistency_proof, inclusion_proof, peaks

__all__ = ["read_consistency_proof", "read_inclusion_proof", "read_nodes", "read_peaks"]

_NOTHING: Mapping[Node, bytes] = {}


def read_nodes(connection: Connection, wanted: Iterable[Node]) -> dict[Node, bytes]:
    """Hashes of complete subtrees, by (level, position).

    Raises:
        LedgerTamperedError: one is missing.
    """
    nodes = set(wanted)
    leaves = ",".join(str(int(position)) for level, position in nodes if level == 0)
    # Not ``(level, position) IN (VALUES …)``: SQLite scans the table for that.
    inner = " OR ".join(
        f"(level = {int(level)} AND position = {int(position)})"
        for level, position in nodes
        if level
    )
    queries = []
    if leaves:
        queries.append(
            f"SELECT 0, idx, leaf_hash FROM {ledger_entries.name} WHERE idx IN ({leaves})"
        )
    if inner:
        queries.append(f"SELECT level, position, hash FROM {ledger_nodes.name} WHERE {inner}")
    found: dict[Node, bytes] = {}
    if queries:
        for level, position, value in connection.exec_driver_sql(" UNION ALL ".join(queries)):
            found[level, position] = bytes(value)
    for level, position in nodes - found.keys():
        raise LedgerTamperedError(
            f"the ledger's tree node {position} of level {level} is missing",
            "run `chancery ledger verify`, and restore the database",
            index=position << level,
        )
    return found


def read_peaks(connection: Connection, size: int) -> list[bytes]:
    """Hashes of the complete subtrees of a tree, largest first."""
    wanted = peaks(size)
    found = read_nodes(connection, wanted)
    return [found[node] for node in wanted]


def _read_proof(
    connection: Connection,
    build: Callable[[NodeGetter], list[bytes]],
    known: Mapping[Node, bytes] = _NOTHING,
) -> list[bytes]:
    """Learn which nodes a proof needs by building it once over nothing; then fetch them at once."""
    wanted: list[Node] = []

    def note(node: Node) -> bytes:
        wanted.append(node)
        return b""

    build(note)
    if all(node in known for node in wanted):
        return build(known.__getitem__)
    return build(read_nodes(connection, wanted).__getitem__)


def read_inclusion_proof(connection: Connection, index: int, size: int) -> list[bytes]:
    """The inclusion proof of leaf ``index`` in the tree of ``size``."""
    return _read_proof(connection, lambda node: inclusion_proof(index, size, node))


def read_consistency_proof(
    connection: Connection, old: int, new: int, known: Mapping[Node, bytes] = _NOTHING
) -> list[bytes]:
    """The proof that the tree of ``new`` extends the tree of ``old``.

    ``known`` holds nodes that need not be read, such as those just written.
    """
    return _read_proof(connection, lambda node: consistency_proof(old, new, node), known)
