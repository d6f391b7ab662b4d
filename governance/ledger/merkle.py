"""The Merkle tree of RFC 6962 section 2.1 (unchanged in RFC 9162 section 2.1), SHA-256.

Pure functions. A tree of ``size`` leaves is addressed by *complete subtrees*: the node at
``(level, position)`` covers the leaves ``position * 2**level`` up to ``(position + 1) * 2**level``.
Proofs are made from a getter of such nodes, so that they read O(log size) of them.

Example::

    hashes = [leaf_hash(b"a"), leaf_hash(b"b"), leaf_hash(b"c")]
    proof = inclusion_proof(1, 3, nodes.__getitem__)
    verify_inclusion(hashes[1], 1, 3, proof, root_hash(hashes))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

from governance.errors import VerificationError

__all__ = [
    "EMPTY_ROOT",
    "Node",
    "NodeGetter",
    "append_leaves",
    "consistency_proof",
    "fold",
    "inclusion_proof",
    "leaf_hash",
    "node_hash",
    "peaks",
    "root_hash",
    "verify_consistency",
    "verify_inclusion",
]

Node = tuple[int, int]
"""Level (0 = leaves) and position."""

NodeGetter = Callable[[Node], bytes]

EMPTY_ROOT = sha256(b"").digest()
"""Root of a tree without leaves (RFC 6962 section 2.1)."""


def leaf_hash(data: bytes) -> bytes:
    """Hash of a leaf: SHA-256(0x00 || data)."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node: SHA-256(0x01 || left || right)."""
    return sha256(b"\x01" + left + right).digest()


def peaks(size: int, first_leaf: int = 0) -> list[Node]:
    """The complete subtrees, largest first, of the ``size`` leaves from ``first_leaf`` on.

    ``first_leaf`` must be a multiple of the smallest power of two that is not below ``size``,
    as it is for every subtree of RFC 6962.
    """
    return [
        (level, ((first_leaf + size) >> level) - 1)
        for level in reversed(range(size.bit_length()))
        if size >> level & 1
    ]


def fold(hashes: Sequence[bytes]) -> bytes:
    """The root over the hashes of the peaks, largest first."""
    if not hashes:
        return EMPTY_ROOT
    root = hashes[-1]
    for left in reversed(hashes[:-1]):
        root = node_hash(left, root)
    return root


def append_leaves(
    size: int, frontier: Sequence[bytes], leaf_hashes: Iterable[bytes]
) -> tuple[list[bytes], list[tuple[int, int, bytes]]]:
    """Append leaves to a tree that is known by its peaks only.

    Returns:
        The new peaks, and the nodes (level, position, hash) of level 1 and above that have become
        complete, in the order of completion.
    """
    stack = list(frontier)
    completed: list[tuple[int, int, bytes]] = []
    for current in leaf_hashes:
        level, position = 0, size
        while position & 1:
            current = node_hash(stack.pop(), current)
            level += 1
            position >>= 1
            completed.append((level, position, current))
        stack.append(current)
        size += 1
    return stack, completed


def root_hash(leaf_hashes: Iterable[bytes]) -> bytes:
    """Root of the tree over ``leaf_hashes``."""
    return fold(append_leaves(0, [], leaf_hashes)[0])


def _range_root(start: int, end: int, node: NodeGetter) -> bytes:
    return fold([node(peak) for peak in peaks(end - start, start)])


def _split(count: int) -> int:
    """The largest power of two below ``count``."""
    return 1 << (count - 1).bit_length() - 1


def inclusion_proof(index: int, size: int, node: NodeGetter) -> list[bytes]:
    """PATH(index, D[size]) of RFC 6962 section 2.1.1, from the leaf's sibling upwards."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    start, end = 0, size
    path = []
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(_range_root(middle, end, node))
            end = middle
        else:
            path.append(_range_root(start, middle, node))
            start = middle
    path.reverse()
    return path


def consistency_proof(old: int, new: int, node: NodeGetter) -> list[bytes]:
    """PROOF(old, D[new]) of RFC 6962 section 2.1.2; empty from size 0 and to the same size."""
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {new} does not extend one of {old}")
    if old in (0, new):
        return []
    start, end = 0, new
    path = []
    while end != old:
        middle = start + _split(end - start)
        if old <= middle:
            path.append(_range_root(middle, end, node))
            end = middle
        else:
            path.append(_range_root(start, middle, node))
            start = middle
    if start:  # the old tree is not itself a complete left subtree: its last part leads
        path.append(_range_root(start, end, node))
    path.reverse()
    return path


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Check an inclusion proof for a leaf hash (RFC 9162 section 2.1.3.2).

    Raises:
        VerificationError: the proof does not lead to ``root``.
    """
    if not 0 <= index < size:
        raise VerificationError(f"leaf {index} is not in a tree of {size}")
    fn, sn, current = index, size - 1, leaf
    for sibling in proof:
        if sn == 0:
            raise VerificationError("the inclusion proof is too long")
        if fn & 1 or fn == sn:
            current = node_hash(sibling, current)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            current = node_hash(current, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn or current != root:
        raise VerificationError(f"the inclusion proof of leaf {index} does not lead to the root")


def verify_consistency(
    old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the tree of ``new`` leaves extends that of ``old`` (RFC 9162 section 2.1.4.2).

    Raises:
        VerificationError: it does not, or the proof is malformed.
    """
    wrong = VerificationError(f"the tree of {new} does not extend the tree of {old}")
    if not 0 <= old <= new:
        raise wrong
    if old == 0 or old == new:
        if proof or (old == new and old_root != new_root) or (old == 0 and old_root != EMPTY_ROOT):
            raise wrong
        return
    path = list(proof)
    if old & (old - 1) == 0:  # a power of two: its root is not repeated in the proof
        path.insert(0, old_root)
    if not path:
        raise wrong
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if sn == 0:
            raise wrong
        if fn & 1 or fn == sn:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            second = node_hash(second, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn or first != old_root or second != new_root:
        raise wrong
