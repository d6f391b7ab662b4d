"""Recomputes a whole tree in one pass, and narrows down where it departs from what was signed.

Entries arrive in blocks, so that memory stays bounded and most comparisons are between two lists.
Each block is hashed from its stored leaf hashes upwards; the leaves are compared with these
separately. An edited row is thereby told from a recomputed tree, and both are found if both are
there.

An *attestation* is a root that somebody signed for some size: the log's checkpoints, and the
witness's records. All entries below a size whose root holds are good; the first bad entry is
therefore between the last size that holds and the first that does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from governance.canonical import parse_json
from governance.ledger.merkle import fold, node_hash, peaks

__all__ = ["BLOCK", "Attestation", "TreeAudit"]

_BLOCK_LEVEL = 13
BLOCK = 1 << _BLOCK_LEVEL
"""Entries a block; every block but the last must be full."""

StoredNodes = Callable[[int, int, int], list[bytes]]
"""Stored hashes of a level from one position up to, not including, another."""


@dataclass(frozen=True, slots=True, order=True)
class Attestation:
    """A root for a size. ``fault`` says why the signature does not count, if it does not."""

    size: int
    source: str
    root: bytes
    fault: str = ""


@dataclass(slots=True)
class TreeAudit:
    """The state of one pass; see the module.

    Attributes:
        attestations: To be checked, of any sizes.
        size: Entries seen so far.
        findings: (first index, sentence) of everything wrong with single entries.
    """

    attestations: Sequence[Attestation]
    size: int = 0
    findings: list[tuple[int, str]] = field(default_factory=list)
    _frontier: list[bytes] = field(default_factory=list)
    _bad_nodes: list[tuple[int, int]] = field(default_factory=list)
    _good: dict[str, list[int]] = field(default_factory=dict)
    _bad: dict[str, list[Attestation]] = field(default_factory=dict)
    _next: int = 0

    def __post_init__(self) -> None:
        self.attestations = sorted(self.attestations)

    @property
    def root(self) -> bytes:
        """Root over the leaf hashes seen so far."""
        return fold(self._frontier)

    def add(
        self,
        event_ids: Sequence[str] | None,
        leaves: Sequence[bytes],
        leaf_hashes: Sequence[bytes] | None = None,
        stored_nodes: StoredNodes | None = None,
    ) -> None:
        """The next block; without ``leaf_hashes`` those of the leaves are used."""
        computed = [sha256(b"\x00" + leaf).digest() for leaf in leaves]
        if leaf_hashes is None:
            leaf_hashes = computed
        elif computed != leaf_hashes:
            for offset, (ours, theirs) in enumerate(zip(computed, leaf_hashes, strict=True)):
                if ours != theirs:
                    self._find(offset, "its event does not have the hash that is in the tree")
        self._check_events(event_ids, leaves)
        levels = self._hash_block(leaf_hashes, stored_nodes)
        self._check_roots(levels, len(leaves))
        self._extend(levels, len(leaves), stored_nodes)

    def _find(self, offset: int, what: str) -> None:
        index = self.size + offset
        self.findings.append((index, f"entry {index} was changed: {what}"))

    def _check_events(self, event_ids: Sequence[str] | None, leaves: Sequence[bytes]) -> None:
        # In canonical JSON the id follows ``datacontenttype``, and ``data`` comes before both: the
        # last such place is the envelope's. A block that differs anywhere is parsed.
        starts = [leaf.rfind(_ID_PLACE) + len(_ID_PLACE) for leaf in leaves]
        found = [leaf[start : start + 34] for leaf, start in zip(leaves, starts, strict=True)]
        if event_ids is not None and found == [b'%b",' % one.encode() for one in event_ids]:
            return
        for offset, leaf in enumerate(leaves):
            try:
                named = parse_json(leaf)["id"]
            except (ValueError, KeyError, TypeError):
                self._find(offset, "it is not an event")
                continue
            if event_ids is not None and event_ids[offset] != named:
                self._find(offset, f"its row names event {event_ids[offset]}, its text {named}")

    def _hash_block(
        self, leaf_hashes: Sequence[bytes], stored_nodes: StoredNodes | None
    ) -> list[Sequence[bytes]]:
        """Complete nodes of the block by level, compared with the stored ones."""
        levels: list[Sequence[bytes]] = [leaf_hashes]
        while len(levels[-1]) > 1:
            pairs = iter(levels[-1])
            row = [
                sha256(b"\x01" + left + right).digest()
                for left, right in zip(pairs, pairs, strict=False)
            ]
            level = len(levels)
            levels.append(row)
            if stored_nodes is not None:
                first = self.size >> level
                self._compare(level, first, row, stored_nodes(level, first, first + len(row)))
        return levels

    def _compare(
        self, level: int, first: int, row: Sequence[bytes], stored: Sequence[bytes]
    ) -> None:
        if row != stored:
            offset = next(
                (i for i, (a, b) in enumerate(zip(row, stored, strict=False)) if a != b),
                len(stored),
            )
            self._bad_nodes.append((level, first + offset))

    def _check_roots(self, levels: Sequence[Sequence[bytes]], count: int) -> None:
        while self._next < len(self.attestations):
            attested = self.attestations[self._next]
            if attested.size > self.size + count:
                return
            within = [
                levels[level][position] for level, position in peaks(attested.size - self.size)
            ]
            fault = attested.fault
            if not fault and fold([*self._frontier, *within]) != attested.root:
                fault = "its root is not that of the entries"
            if fault:
                self._bad.setdefault(attested.source, []).append(
                    Attestation(attested.size, attested.source, attested.root, fault)
                )
            else:
                self._good.setdefault(attested.source, []).append(attested.size)
            self._next += 1

    def _extend(
        self, levels: Sequence[Sequence[bytes]], count: int, stored_nodes: StoredNodes | None
    ) -> None:
        if count == BLOCK:
            level, position, current = _BLOCK_LEVEL, self.size >> _BLOCK_LEVEL, levels[-1][0]
            while position & 1:
                current = node_hash(self._frontier.pop(), current)
                level, position = level + 1, position >> 1
                if stored_nodes is not None:
                    stored = stored_nodes(level, position, position + 1)
                    self._compare(level, position, [current], stored)
            self._frontier.append(current)
        else:
            self._frontier += [levels[level][position] for level, position in peaks(count)]
        self.size += count

    def conclude(self) -> list[tuple[int, str]]:
        """Everything found, each with the first index that may be bad, lowest index first."""
        found = list(self.findings)
        low, high, departures = self._narrow()
        wrong_nodes = [n for n in self._bad_nodes if (n[1] + 1) << n[0] > low]
        if wrong_nodes:
            level, position = min(wrong_nodes)  # the lowest level narrows it down most
            start, end = position << level, (position + 1) << level
            if start < high and end > low:
                low, high = max(low, start), min(high, end)
        if departures or wrong_nodes:
            what = f"entry {low}" if high - low == 1 else f"one of entries {low} to {high - 1}"
            found.append((low, f"{what} was changed or added, and its hash recomputed"))
        found += [(low, f"{bad.source} of size {bad.size}: {bad.fault}") for bad in departures]
        for source, bad in self._bad.items():
            found += [
                (one.size, f"{source} of size {one.size}: {one.fault}, but a later one holds")
                for one in bad
                if one not in departures and one.size < self._holds(source)
            ]
        found += [
            (position << level, f"tree node {position} of level {level} is not its entries'")
            for level, position in self._bad_nodes
            if (level, position) not in wrong_nodes
        ]
        return sorted(found)

    def _holds(self, source: str) -> int:
        """The largest size at which a source's root holds: all entries below it are good."""
        return max(self._good.get(source, []), default=0)

    def _narrow(self) -> tuple[int, int, list[Attestation]]:
        """The entries in doubt as far as attestations tell, and the first bad one a source.

        Without doubt, all entries below the first number are good.
        """
        low, high = 0, self.size
        departures = []
        for source, bad in sorted(self._bad.items()):
            holds = self._holds(source)
            first = next((one for one in bad if one.size > holds), None)
            if first is not None:
                departures.append(first)
                if holds < high and first.size > low:
                    low, high = max(low, holds), min(high, first.size)
        if not departures:
            low = max(map(self._holds, self._good), default=0)
        return low, high, departures


_ID_PLACE = b',"datacontenttype":"application/json","id":"'
