"""Whether any node of a cluster could take a replica, and in which words it could not.

Ray lets a request that no node can meet wait for ever, and says nothing. A cluster that grows may
bring a node later, so this is something to tell people, not a refusal. `lacking` looks only at what
nodes have, not at what of it is taken; Ray Serve says when that is too much (`crowded`).

Example::

    lacking(ray.nodes(), Needs(gpus=2, labels={"pool": "gpu"}))
    # "no node has the label pool=gpu; there are pool=batch"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Needs", "crowded", "lacking"]


@dataclass(frozen=True, slots=True)
class Needs:
    """What one replica needs of a node."""

    cpus: float = 1.0
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)


def lacking(nodes: Sequence[Mapping[str, Any]], needs: Needs) -> str:
    """What no node has; empty when one has everything.

    Args:
        nodes: As ``ray.nodes()`` tells them.
        needs: Of one replica.
    """
    alive = [node for node in nodes if node.get("Alive")]
    wanted = dict(needs.labels)
    there = [
        node for node in alive if wanted.items() <= dict(node.get("Labels") or {}).items()
    ]  # fmt: skip
    label = ", ".join(f"{key}={value}" for key, value in sorted(wanted.items()))
    if not there:
        if not wanted:
            return "the cluster has no node"
        known = sorted(
            {f"{k}={v}" for n in alive for k, v in (n.get("Labels") or {}).items() if k in wanted}
        )
        others = f"; there are {', '.join(known)}" if known else ""
        return f"no node has the label {label}{others}"
    asked = _asked(needs)
    if any(all(_has(node, name) >= count for name, count in asked) for node in there):
        return ""
    among = f" with {label}" if label else ""
    for name, count in asked:
        most = max(_has(node, name) for node in there)
        if most < count:
            return f"no node{among} has {count:g} {name}s: the most is {most:g}"
    return f"no node{among} has {_written(asked)} at once"


def crowded(needs: Needs) -> str:
    """That nodes have what a replica needs, but others have taken it."""
    what = _written(_asked(needs)) or "room"
    return (
        f"no node has {what} free; they start when others end or nodes come. Ray counts promises, "
        "not cores: a deployment may ask for less (`--cpus`), a node may promise more "
        "(`ray start --num-cpus`)"
    )


def _asked(needs: Needs) -> list[tuple[str, float]]:
    """Resources of Ray, and how much of each."""
    return [(name, count) for name, count in (("GPU", needs.gpus), ("CPU", needs.cpus)) if count]


def _written(asked: Sequence[tuple[str, float]]) -> str:
    return " and ".join(f"{count:g} {name}s" for name, count in asked)


def _has(node: Mapping[str, Any], name: str) -> float:
    return float((node.get("Resources") or {}).get(name, 0))
