"""Where recorded blocks go and come from: a folder, or an object store by its URI.

Example::

    store = open_blocks(below(place_of("s3://ml-blocks"), "fraud", "7", "_"))
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeAlias

from drift.block_bucket import BlockBucket
from drift.block_folder import BlockFile, BlockFolder
from drift.blocks import Block

__all__ = ["BlockPlace", "BlockStore", "below", "open_blocks", "place_of"]

BlockPlace: TypeAlias = Path | str
"""A folder, or the URI of a place in an object store."""


class BlockStore(Protocol):
    """Blocks by their names; see ``drift.block_folder.BlockFolder``, which is one."""

    def write(self, block: Block) -> BlockFile: ...

    def deliver(self, file: Path) -> None: ...

    def entries(self, after: Mapping[str, int] | None = None) -> list[BlockFile]: ...

    def read(self, entry: BlockFile) -> Block: ...

    def remove(self, entry: BlockFile) -> None: ...

    def refuse(self, entry: BlockFile) -> None: ...


def place_of(text: str, base: Path = Path()) -> BlockPlace:
    """A place as settings name it: a path (``file://`` or not), or a URI.

    Args:
        text: The setting.
        base: What a relative path is relative to.
    """
    text = text.removeprefix("file://")
    return text if "://" in text else base / text


def below(place: BlockPlace, *parts: str) -> BlockPlace:
    """A place within another."""
    if isinstance(place, Path):
        return place.joinpath(*parts)
    return "/".join((place.rstrip("/"), *parts))


def open_blocks(place: BlockPlace) -> BlockStore:
    """The blocks of a place.

    Raises:
        ConfigurationError: a URI that is no place for them.
    """
    return BlockFolder(place) if isinstance(place, Path) else BlockBucket.of(place)
