"""Blocks on their way: kept on this disk until their destination took them.

A block is first written here, then delivered, oldest first, and removed. While the destination is
away it stays, over restarts too. The room is bounded: when it is full the oldest blocks give way,
for drift is about what happens now; they are counted, and their numbers are missing at the
destination, where the gap is seen.

Example::

    spool = Spool(Path("spool"), BlockFolder(Path("/mnt/blocks")))
    spool.put(block)
    spool.deliver()
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from drift.block_folder import BlockFile, BlockFolder
from drift.blocks import Block
from governance.errors import ConfigurationError, ConflictError, GovernanceError

__all__ = ["Destination", "Spool", "SpoolCounts"]


class Destination(Protocol):
    """Where blocks are to go. The same file may come twice: its name says so."""

    def deliver(self, file: Path) -> None:
        """Take a file.

        Raises:
            OSError, GovernanceError: not now; it is tried again later.
            ConflictError: never; it is given up.
        """


@dataclass(frozen=True, slots=True)
class SpoolCounts:
    """Since this spool was opened.

    Attributes:
        delivered: Blocks that the destination took.
        given_up: Blocks that gave way to newer ones, or that the destination will never take.
        lost_rows: Rows in them, and in blocks that could not even be written here.
        unwritten: Blocks that could not be written here.
    """

    delivered: int = 0
    given_up: int = 0
    lost_rows: int = 0
    unwritten: int = 0


class Spool:
    """One recorder's; not for several processes.

    Args:
        path: A folder of its own.
        destination: Where blocks go.
        most_bytes: Room for files here.
        most_blocks: And for how many.
    """

    def __init__(
        self,
        path: Path,
        destination: Destination,
        *,
        most_bytes: int = 1 << 28,
        most_blocks: int = 10_000,
    ) -> None:
        if most_bytes < 1 or most_blocks < 1:
            raise ConfigurationError(
                f"a spool for {most_blocks} blocks and {most_bytes} bytes",
                "leave room for one block at least",
            )
        self._folder = BlockFolder(path)
        self.destination = destination
        self._most_bytes = most_bytes
        self._most_blocks = most_blocks
        self.counts = SpoolCounts()
        self.last_error = ""
        """Why the last delivery or writing failed; empty after one that did not."""

    def put(self, block: Block) -> bool:
        """Keep a block for delivery; false if it could not be written here (counted)."""
        try:
            self._folder.write(block)
        except Exception as error:  # noqa: BLE001 - the next block may be sound; this one is counted
            self.last_error = str(error) or type(error).__name__
            self._count(unwritten=1, lost_rows=block.rows)
            return False
        self._make_room()
        return True

    def deliver(self, most: int = 1000) -> int:
        """Hand over what waits, oldest first, at most ``most``; how many went.

        Stops at the first that the destination does not take now.
        """
        taken = 0
        for entry in self.waiting()[:most]:
            try:
                self.destination.deliver(self._folder.path / entry.name)
            except ConflictError as error:
                self.last_error = str(error)
                self._give_up(entry)
                continue
            except FileNotFoundError as error:
                self.last_error = str(error)
                if (self._folder.path / entry.name).exists():
                    break  # it is the destination that is not there
                self._count(given_up=1, lost_rows=entry.rows)  # somebody removed it here
                continue
            except (OSError, GovernanceError) as error:
                self.last_error = str(error)
                break
            self._folder.remove(entry)
            self._count(delivered=1)
            self.last_error = ""
            taken += 1
        return taken

    def waiting(self) -> list[BlockFile]:
        """Blocks that are still here, in order."""
        return self._folder.entries()

    def _make_room(self) -> None:
        waiting = self.waiting()
        sizes = {entry.name: self._size(entry) for entry in waiting}
        total = sum(sizes.values())
        spare = len(waiting) - self._most_blocks
        for place, entry in enumerate(waiting):
            if place >= spare and total <= self._most_bytes:
                return
            total -= sizes[entry.name]
            self._give_up(entry)

    def _size(self, entry: BlockFile) -> int:
        try:
            return (self._folder.path / entry.name).stat().st_size
        except OSError:
            return 0

    def _give_up(self, entry: BlockFile) -> None:
        self._folder.remove(entry)
        self._count(given_up=1, lost_rows=entry.rows)

    def _count(self, **more: int) -> None:
        counts = self.counts
        names: Iterable[str] = SpoolCounts.__dataclass_fields__
        self.counts = SpoolCounts(**{n: getattr(counts, n) + more.get(n, 0) for n in names})
