"""The tree as it lies in the database: nodes, peaks and proofs.

Leaf hashes are in ``chancery_ledger_entries``, complete subtrees of two leaves and more in
``chancery_ledger_nodes``. Every function takes the connection it reads on; a proof costs one
query a table, whatever the size of the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sqlalchemy import Connection, bindparam, select, tuple_

from governance.database import ledger_entries, ledger_nodes
from governance.errors import LedgerTamperedError
from governance.ledger.merkle import NodeGetter, consistency_proof, inclusion_proof, peaks

__all__ = ["read_consistency_proof", "read_inclusion_proof", "read_nodes", "read_peaks"]

_LEAVES = select(ledger_entries.c.idx, ledger_entries.c.leaf_hash).where(
    ledger_entries.c.idx.in_(bindparam("positions", expanding=True))
)
_NODES = select(ledger_nodes.c.level, ledger_nodes.c.position, ledger_nodes.c.hash).where(
    tuple_(ledger_nodes.c.level, ledger_nodes.c.position).in_(bindparam("nodes", expanding=True))
)


def read_nodes(
    connection: Connection, wanted: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], bytes]:
    """Hashes of complete subtrees, by (level, position).

    Raises:
        LedgerTamperedError: one is missing.
    """
    nodes = set(wanted)
    found: dict[tuple[int, int], bytes] = {}
    leaves = [position for level, position in nodes if level == 0]
    inner = [node for node in nodes if node[0]]
    if leaves:
        for position, value in connection.execute(_LEAVES, {"positions": leaves}):
            found[0, position] = value
    if inner:
        for level, position, value in connection.execute(_NODES, {"nodes": inner}):
            found[level, position] = value
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


def _read_proof(connection: Connection, build: Callable[[NodeGetter], list[bytes]]) -> list[bytes]:
    """Learn which nodes a proof needs by building it once over nothing; then fetch them at once."""
    wanted: list[tuple[int, int]] = []

    def note(node: tuple[int, int]) -> bytes:
        wanted.append(node)
        return b""

    build(note)
    return build(read_nodes(connection, wanted).__getitem__)


def read_inclusion_proof(connection: Connection, index: int, size: int) -> list[bytes]:
    """The inclusion proof of leaf ``index`` in the tree of ``size``."""
    return _read_proof(connection, lambda node: inclusion_proof(index, size, node))


def read_consistency_proof(connection: Connection, old: int, new: int) -> list[bytes]:
    """The proof that the tree of ``new`` extends the tree of ``old``."""
    return _read_proof(connection, lambda node: consistency_proof(old, new, node))
