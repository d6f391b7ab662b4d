"""What no node of a cluster has."""

from __future__ import annotations

from typing import Any

import pytest

from serve.capacity import Needs, crowded, lacking


def node(cpus: float, gpus: float = 0, pool: str = "", alive: bool = True) -> dict[str, Any]:
    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    return {"Alive": alive, "Labels": {"pool": pool} if pool else {}, "Resources": resources}


NODES = [node(8), node(4, 1, "gpu"), node(64, pool="batch"), node(4, 8, "big", alive=False)]


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (Needs(), ""),
        (Needs(cpus=64), ""),
        (Needs(gpus=1, labels={"pool": "gpu"}), ""),
        (Needs(cpus=0, gpus=0.5), ""),
        (Needs(gpus=2), "no node has 2 GPUs: the most is 1"),
        (Needs(cpus=8, gpus=1, labels={"pool": "gpu"}), "no node with pool=gpu has 8 CPUs"),
        (Needs(gpus=1, labels={"pool": "batch"}), "no node with pool=batch has 1 GPUs"),
        (Needs(labels={"pool": "big"}), "no node has the label pool=big; there are pool=batch"),
        (Needs(cpus=8, gpus=1), "no node has 1 GPUs and 8 CPUs at once"),
    ],
)
def test_what_is_lacking(needs: Needs, words: str) -> None:
    found = lacking(NODES, needs)
    assert words in found
    assert bool(found) == bool(words)


def test_without_nodes() -> None:
    assert lacking([], Needs()) == "the cluster has no node"
    assert lacking([], Needs(labels={"pool": "gpu"})) == "no node has the label pool=gpu"


def test_a_full_cluster_says_what_is_taken_and_what_helps() -> None:
    assert crowded(Needs()).startswith("no node has 1 CPUs free; ")
    assert "1 GPUs and 0.5 CPUs" in crowded(Needs(cpus=0.5, gpus=1))
    assert "--num-cpus" in crowded(Needs(cpus=0))
