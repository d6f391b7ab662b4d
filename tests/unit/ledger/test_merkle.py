"""The tree agrees with an independent implementation (pymerkle), and corrupted proofs fail."""

from __future__ import annotations

import pymerkle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import VerificationError
from governance.ledger import merkle

SIZES = 300
LEAVES = [merkle.leaf_hash(b"entry %d" % i) for i in range(SIZES)]


def _nodes() -> dict[tuple[int, int], bytes]:
    _, completed = merkle.append_leaves(0, [], LEAVES)
    return {(0, i): leaf for i, leaf in enumerate(LEAVES)} | {
        (level, position): value for level, position, value in completed
    }


NODES = _nodes()
node = NODES.__getitem__
ROOTS = [merkle.root_hash(LEAVES[:size]) for size in range(SIZES + 1)]


@pytest.fixture(scope="module")
def oracle() -> pymerkle.InmemoryTree:
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for i in range(SIZES):
        tree.append_entry(b"entry %d" % i)
    return tree


def test_roots_and_inclusion_proofs_agree_with_pymerkle(oracle: pymerkle.InmemoryTree) -> None:
    for size in range(1, SIZES + 1):
        assert ROOTS[size] == oracle.get_root(size)
        for index in {0, size // 3, size // 2, size - 1}:
            # pymerkle counts leaves from 1 and repeats the leaf at the head of the path
            expected = oracle.prove_inclusion(index + 1, size).path[1:]
            assert merkle.inclusion_proof(index, size, node) == expected


def test_consistency_proofs_agree_with_pymerkle(oracle: pymerkle.InmemoryTree) -> None:
    for new in range(1, SIZES + 1):
        for old in {1, new // 3, new // 2, new - 1, new} - {0}:
            theirs = oracle.prove_consistency(old, new)
            pymerkle.verify_consistency(ROOTS[old], ROOTS[new], theirs)
            ours = merkle.consistency_proof(old, new, node)
            merkle.verify_consistency(old, new, ROOTS[old], ROOTS[new], ours)
            assert set(ours) <= set(theirs.path) | {ROOTS[old]} or old < new


def test_known_answers_of_rfc_6962() -> None:
    """The eight-leaf test vector of Certificate Transparency."""
    data = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ]
    leaves = [merkle.leaf_hash(bytes.fromhex(item)) for item in data]
    assert merkle.root_hash([]) == merkle.EMPTY_ROOT
    assert (
        merkle.root_hash(leaves[:1]).hex()
        == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    )
    assert (
        merkle.root_hash(leaves).hex()
        == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    )


@given(st.data())
def test_every_proof_verifies_and_no_corruption_does(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, SIZES))
    index = data.draw(st.integers(0, size - 1))
    proof = merkle.inclusion_proof(index, size, node)
    merkle.verify_inclusion(LEAVES[index], index, size, proof, ROOTS[size])
    for bad in _corruptions(proof, data):
        with pytest.raises(VerificationError):
            merkle.verify_inclusion(LEAVES[index], index, size, bad, ROOTS[size])
    other = data.draw(st.integers(0, SIZES - 1).filter(lambda i: i != index))
    with pytest.raises(VerificationError):
        merkle.verify_inclusion(LEAVES[other], index, size, proof, ROOTS[size])


@given(st.data())
def test_every_consistency_proof_verifies_and_no_corruption_does(data: st.DataObject) -> None:
    new = data.draw(st.integers(1, SIZES))
    old = data.draw(st.integers(0, new))
    proof = merkle.consistency_proof(old, new, node)
    merkle.verify_consistency(old, new, ROOTS[old], ROOTS[new], proof)
    for bad in _corruptions(proof, data):
        with pytest.raises(VerificationError):
            merkle.verify_consistency(old, new, ROOTS[old], ROOTS[new], bad)
    if old:
        with pytest.raises(VerificationError):
            merkle.verify_consistency(old, new, bytes(32), ROOTS[new], proof)


def _corruptions(proof: list[bytes], data: st.DataObject) -> list[list[bytes]]:
    bad = [[*proof, bytes(32)]]
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        flipped = bytes([proof[at][0] ^ 1]) + proof[at][1:]
        bad += [proof[:-1], proof[1:], [*proof[:at], flipped, *proof[at + 1 :]]]
    return bad


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_appending_in_parts_is_appending_at_once(first: int, second: int, third: int) -> None:
    frontier: list[bytes] = []
    size = 0
    nodes = []
    for count in (first, second, third):
        frontier, completed = merkle.append_leaves(size, frontier, LEAVES[size : size + count])
        size += count
        nodes += completed
    assert merkle.fold(frontier) == ROOTS[size]
    assert frontier == [NODES[peak] for peak in merkle.peaks(size)]
    assert all(NODES[level, position] == value for level, position, value in nodes)
    assert len(nodes) == sum(size >> level for level in range(1, 10))


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="not in a tree"):
        merkle.inclusion_proof(3, 3, node)
    with pytest.raises(ValueError, match="does not extend"):
        merkle.consistency_proof(4, 3, node)
    with pytest.raises(VerificationError):
        merkle.verify_inclusion(LEAVES[0], 3, 3, [], ROOTS[3])
    with pytest.raises(VerificationError):
        merkle.verify_consistency(4, 3, ROOTS[4], ROOTS[3], [])
    with pytest.raises(VerificationError):
        merkle.verify_consistency(3, 5, ROOTS[3], ROOTS[5], [])
