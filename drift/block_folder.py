"""Blocks in a folder: one file each, whole or not there at all.

A file is written beside its place under a name that no reader looks at, and renamed. Its name says
source, sequence number, first and last time, rows and id, so that order, gaps and how much waits
are known without opening anything::

    replica-1~000000000042~1700000000000~1700000009000~256~0123…cdef.arrow

Blocks are read in the order of each source's sequence numbers; between sources, by time. A file
whose name is none of ours is left alone; one that does not hold what its name says is refused, by
name, and the others can still be read.

Example::

    folder = BlockFolder(Path("blocks"))
    folder.write(block)
    for entry in folder.entries(after={"replica-1": 41}):
        block = folder.read(entry)
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from heapq import merge
from pathlib import Path

from drift.blocks import MOST_BYTES, SUFFIX, Block, from_arrow, to_arrow
from governance.errors import ConflictError, MalformedRequestError

__all__ = ["BlockFile", "BlockFolder", "gaps", "in_order", "named_block", "require_no_rival"]

_NAME = re.compile(
    r"(?P<source>[A-Za-z0-9][A-Za-z0-9_.-]{0,99})~(?P<sequence>[0-9]{12})~(?P<first>-?[0-9]{1,16})"
    r"~(?P<last>-?[0-9]{1,16})~(?P<rows>[0-9]{1,9})~(?P<id>[0-9a-f]{32})" + re.escape(SUFFIX)
)
_SETTLED_NS = 100_000_000
"""A folder that changed longer ago shows the next change by another time: file systems count in a
few milliseconds."""
_LISTED_FOR_NS = 5_000_000_000
"""And where one counts in seconds, or its clock is not ours, a block is seen this much later."""


@dataclass(frozen=True, slots=True)
class BlockFile:
    """What a file's name says.

    Attributes:
        source, sequence: See ``Block``.
        first_ms, last_ms: Times of its rows.
        rows: How many.
        id: The block's.
        name: The file's, in its folder.
    """

    source: str
    sequence: int
    first_ms: int
    last_ms: int
    rows: int
    id: str
    name: str

    @classmethod
    def of(cls, block: Block) -> BlockFile:
        name = (
            f"{block.source}~{block.sequence:012d}~{block.first_ms}~{block.last_ms}"
            f"~{block.rows}~{block.id}{SUFFIX}"
        )
        return cls(
            block.source, block.sequence, block.first_ms, block.last_ms, block.rows, block.id, name
        )

    @classmethod
    def delivered(cls, file: Path) -> BlockFile:
        """Of a file that is handed over.

        Raises:
            MalformedRequestError: its name is no block's.
        """
        entry = cls.parse(file.name)
        if entry is None:
            raise MalformedRequestError(
                f"{file.name} is no block's name", "deliver files that a recorder wrote"
            )
        return entry

    @classmethod
    def parse(cls, name: str) -> BlockFile | None:
        """None for a name that is none of ours."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        sequence, first, last, rows = map(int, found.group("sequence", "first", "last", "rows"))
        return cls(found["source"], sequence, first, last, rows, found["id"], name)


class BlockFolder:
    """A local folder of blocks; made if it is not there.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listed: list[str] = []
        self._listed_ns, self._changed_ns = 0, 0  # of it, and of the folder then; 0: not settled

    def write(self, block: Block) -> BlockFile:
        """A block, whole or not at all; the same block again changes nothing.

        Raises:
            ConflictError: another block has the source and number.
            OSError: the folder cannot be written.
        """
        entry = BlockFile.of(block)
        data = to_arrow(block)
        self._placed(entry, lambda target: target.write_bytes(data))
        return entry

    def deliver(self, file: Path) -> None:
        """A block's file from another folder, by its name.

        Raises:
            ConflictError, OSError: as ``write``.
            MalformedRequestError: the name is no block's.
        """
        entry = BlockFile.delivered(file)
        self._placed(entry, lambda target: shutil.copyfile(file, target))

    def _placed(self, entry: BlockFile, fill: Callable[[Path], object]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        place = self.path / entry.name
        if place.exists():
            return
        require_no_rival(self.path, entry, os.listdir(self.path))
        beside = self.path / f".{entry.name}.{os.getpid()}.part"
        try:
            fill(beside)
            with beside.open("rb+") as written:
                os.fsync(written.fileno())
            os.replace(beside, place)
        finally:
            beside.unlink(missing_ok=True)

    def entries(self, after: Mapping[str, int] | None = None) -> list[BlockFile]:
        """Files in the order in which they are to be read.

        Args:
            after: Source → the last sequence number that was read already.
        """
        now_ns = time.time_ns()
        try:
            changed_ns = os.stat(self.path).st_mtime_ns
            if changed_ns != self._changed_ns or now_ns - self._listed_ns > _LISTED_FOR_NS:
                self._listed, self._listed_ns = os.listdir(self.path), now_ns
                self._changed_ns = changed_ns if now_ns - changed_ns > _SETTLED_NS else 0
        except (FileNotFoundError, NotADirectoryError):
            return []
        return in_order(self._listed, after) if self._listed else []

    def read(self, entry: BlockFile) -> Block:
        """A block.

        Raises:
            MalformedRequestError: it is no file, or truncated, changed, or not the block it is
                named.
            OSError: it cannot be read, or is gone.
        """
        with os.fdopen(_opened(os.path.join(self.path, entry.name)), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, MOST_BYTES) + 1)  # no more room than it takes
        return named_block(data, entry)

    def remove(self, entry: BlockFile) -> None:
        """A block that nobody needs any more; gone already is well."""
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self.path, entry.name))

    def refuse(self, entry: BlockFile) -> None:
        """Put a block aside, into ``refused/``."""
        aside = self.path / "refused"
        aside.mkdir(exist_ok=True)
        place = aside / entry.name
        while place.is_dir():  # a folder with a block's name was put aside before
            place = place.with_name(f"{place.name}~")
        (self.path / entry.name).rename(place)


def _opened(path: str) -> int:
    """A file, open for reading. Whatever else has a block's name is not waited for.

    Raises:
        MalformedRequestError: it is none.
        OSError: it cannot be opened.
    """
    found = -1
    try:
        found = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        if stat.S_ISREG(os.fstat(found).st_mode):
            return found
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise
    if found >= 0:
        os.close(found)
    raise MalformedRequestError(
        f"{os.path.basename(path)} is no regular file", "put blocks themselves into the folder"
    )


def in_order(names: Iterable[str], after: Mapping[str, int] | None = None) -> list[BlockFile]:
    """The blocks among files' names, in the order in which they are to be read.

    Args:
        names: Of all files of a place.
        after: Source → the last sequence number that was read already.
    """
    after = after or {}
    sources: dict[str, list[BlockFile]] = {}
    for name in sorted(names):  # by source, then by number
        entry = BlockFile.parse(name)
        if entry is not None and entry.sequence > after.get(entry.source, -1):
            sources.setdefault(entry.source, []).append(entry)
    # A clock that went back does not put a source's own blocks out of order.
    timed = []
    for files in sources.values():
        latest = files[0].last_ms
        line = []
        for file in sorted(files, key=lambda file: file.sequence):
            latest = max(latest, file.last_ms)
            line.append((latest, file.source, file.sequence, file))
        timed.append(line)
    ordered = timed[0] if len(timed) == 1 else merge(*timed, key=lambda item: item[:3])
    return [file for *_, file in ordered]


def named_block(data: bytes, entry: BlockFile) -> Block:
    """The block in a file's bytes, if it is the one that the file's name says.

    Raises:
        MalformedRequestError: the bytes are truncated, changed, or another block's.
    """
    block = from_arrow(data, entry.name)
    if BlockFile.of(block) != entry:
        raise MalformedRequestError(
            f"{entry.name} holds block {block.sequence} of {block.source}",
            "leave it out: it was renamed, or written by something else",
        )
    return block


def require_no_rival(where: object, entry: BlockFile, names: Iterable[str]) -> None:
    """That no other block has a block's source and number.

    Args:
        where: The place, for the error.
        entry: The block's.
        names: Of the place's files.

    Raises:
        ConflictError: one has.
    """
    start = f"{entry.source}~{entry.sequence:012d}~"
    for name in names:
        if name.startswith(start) and name.endswith(SUFFIX) and name != entry.name:
            raise ConflictError(
                f"{where} has another block {entry.sequence} of {entry.source}: {name}",
                "give every life of a replica a source of its own",
            )


def gaps(entries: Iterable[BlockFile], after: Mapping[str, int] | None = None) -> dict[str, int]:
    """How many blocks of each source are missing between those that are there."""
    last = dict(after or {})
    missing: dict[str, int] = {}
    for entry in sorted(entries, key=lambda entry: (entry.source, entry.sequence)):
        absent = entry.sequence - last.get(entry.source, -1) - 1
        if absent > 0:
            missing[entry.source] = missing.get(entry.source, 0) + absent
        last[entry.source] = max(entry.sequence, last.get(entry.source, -1))
    return missing
