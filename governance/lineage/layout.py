"""Places a lineage graph in layers, origins at the left: pure geometry, no drawing.

A node's layer is its longest way from an origin; edges that would close a cycle are left out of
that count and drawn backwards. Within a layer, nodes are ordered by the mean place of their
neighbours, a few sweeps to and fro, which keeps edges short and crossings few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Box", "Layout", "lay_out"]

_SWEEPS = 8

_Key = str | tuple[str, str, int]
"""An id, or the place where a link passes a layer."""


@dataclass(frozen=True, slots=True)
class Box:
    """Where a node goes: ``layer`` counts from the left, ``row`` is a height in rows."""

    layer: int
    row: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Boxes by id, and the points that a link over several layers passes between boxes."""

    boxes: Mapping[str, Box]
    bends: Mapping[tuple[str, str], tuple[Box, ...]]


def lay_out(ids: Sequence[str], links: Sequence[tuple[str, str]]) -> Layout:
    """A place for each id; ``links`` are (earlier, later) pairs of ids."""
    known = set(ids)
    pairs = list(dict.fromkeys((a, b) for a, b in links if a in known and b in known and a != b))
    layers = _layers(ids, _without_cycles(ids, pairs))
    columns: dict[int, list[_Key]] = {}
    for identifier in ids:
        columns.setdefault(layers[identifier], []).append(identifier)
    neighbours: dict[_Key, list[_Key]] = {identifier: [] for identifier in ids}
    via: dict[tuple[str, str], list[_Key]] = {}
    for a, b in pairs:
        chain: list[_Key] = [(a, b, at) for at in range(layers[a] + 1, layers[b])]
        via[a, b] = chain
        for at, bend in enumerate(chain, layers[a] + 1):
            layers[bend], neighbours[bend] = at, []
            columns[at].append(bend)
        for one, next_one in pairwise([a, *chain, b]):
            neighbours[one].append(next_one)
            neighbours[next_one].append(one)
    rows = {key: float(n) for column in columns.values() for n, key in enumerate(column)}
    for sweep in range(_SWEEPS):
        for layer in sorted(columns, reverse=bool(sweep % 2)):
            _order(columns[layer], layer, layers, neighbours, rows)
    boxes = {key: Box(layers[key], row) for key, row in rows.items()}
    return Layout(
        {identifier: boxes[identifier] for identifier in ids},
        {pair: tuple(boxes[bend] for bend in chain) for pair, chain in via.items()},
    )


def _without_cycles(ids: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs that a depth-first search does not see close a cycle."""
    following: dict[str, list[str]] = {identifier: [] for identifier in ids}
    for a, b in pairs:
        following[a].append(b)
    kept: list[tuple[str, str]] = []
    done: set[str] = set()
    active: set[str] = set()
    for start in ids:
        if start in done:
            continue
        stack = [(start, iter(following[start]))]
        active.add(start)
        while stack:
            current, rest = stack[-1]
            for later in rest:
                if later in active:
                    continue  # closes a cycle
                kept.append((current, later))
                if later not in done:
                    active.add(later)
                    stack.append((later, iter(following[later])))
                    break
            else:
                stack.pop()
                active.discard(current)
                done.add(current)
    return kept


def _layers(ids: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[_Key, int]:
    """Longest way from an origin; then origins move right, next to what they lead to."""
    following: dict[str, list[str]] = {identifier: [] for identifier in ids}
    waiting = dict.fromkeys(ids, 0)
    for a, b in pairs:
        following[a].append(b)
        waiting[b] += 1
    origins = [identifier for identifier in ids if waiting[identifier] == 0]
    layers: dict[_Key, int] = dict.fromkeys(ids, 0)
    ready = list(origins)
    for current in ready:
        for later in following[current]:
            layers[later] = max(layers[later], layers[current] + 1)
            waiting[later] -= 1
            if waiting[later] == 0:
                ready.append(later)
    for origin in origins:
        if following[origin]:
            layers[origin] = min(layers[later] for later in following[origin]) - 1
    return layers


def _order(
    column: list[_Key],
    layer: int,
    layers: Mapping[_Key, int],
    neighbours: Mapping[_Key, Sequence[_Key]],
    rows: dict[_Key, float],
) -> None:
    """Sort a column by its neighbours' mean row, then push rows apart to whole distances."""
    wish: dict[_Key, float] = {}
    for key in column:
        near = [rows[n] for n in neighbours[key] if layers[n] != layer]
        wish[key] = sum(near) / len(near) if near else rows[key]
    column.sort(key=lambda key: wish[key])
    placed: list[float] = []
    for key in column:
        placed.append(max(wish[key], placed[-1] + 1) if placed else wish[key])
    shift = sum(wish[i] - p for i, p in zip(column, placed, strict=True)) / len(column)
    for key, row in zip(column, placed, strict=True):
        rows[key] = row + shift
