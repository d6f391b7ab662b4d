"""Blocks in an object store: S3, Google Cloud Storage, or whatever speaks S3.

An object is there whole or not at all, so a block is written under its name at once. Names say as
much as in a folder (``drift.block_folder``), and nothing is opened to list them. Listing costs a
request, so what was listed holds for two seconds.

Keys come from where the AWS and Google libraries look; ``MLFLOW_S3_ENDPOINT_URL``, as for MLflow's
artifacts, or ``AWS_ENDPOINT_URL`` names another server. What pyarrow reaches is reached here
(``pyarrow.fs``), so nothing more is installed.

Example::

    bucket = BlockBucket.of("s3://ml-blocks/fraud/7/_")
    bucket.deliver(Path("spool/replica-1~….arrow"))
    for entry in bucket.entries():
        block = bucket.read(entry)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from drift.block_folder import BlockFile, in_order, named_block, require_no_rival
from drift.blocks import MOST_BYTES, Block, to_arrow
from governance.errors import ConfigurationError

__all__ = ["SCHEMES", "BlockBucket"]

SCHEMES = ("s3", "gs", "gcs")
_LISTED_S = 2.0
_ENDPOINTS = ("MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


class BlockBucket:
    """See the module; as ``drift.block_store.BlockStore``.

    Args:
        files: ``pyarrow.fs.FileSystem`` that shows whole files only.
        path: In it.
        listed_s: Seconds that a listing holds.
        clock: Seconds, of any beginning.
    """

    def __init__(
        self,
        files: Any,
        path: str,
        *,
        listed_s: float = _LISTED_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = files
        self.path = path.rstrip("/")
        self._listed_s = listed_s
        self._clock = clock
        self._names: set[str] = set()
        self._until = float("-inf")

    @classmethod
    def of(cls, uri: str, environ: Mapping[str, str] = os.environ) -> BlockBucket:
        """The bucket at a URI. Nothing is asked of it yet.

        Args:
            uri: ``s3://bucket/path`` or ``gs://bucket/path``.
            environ: Where another endpoint is named.

        Raises:
            ConfigurationError: no such URI.
        """
        from pyarrow import fs  # type: ignore[import-untyped]

        parts = urlsplit(uri)
        if parts.scheme not in SCHEMES or not parts.netloc or parts.query or parts.fragment:
            raise ConfigurationError(
                f"{uri!r} is no place for recorded blocks",
                "name a folder, or s3://bucket/path or gs://bucket/path",
            )
        path = parts.netloc + parts.path
        if parts.scheme != "s3":
            return cls(fs.GcsFileSystem(), path)
        region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
        options: dict[str, Any] = {"region": region} if region else {}
        named = next((found for name in _ENDPOINTS if (found := environ.get(name))), "")
        if named:
            endpoint = urlsplit(named)
            if endpoint.scheme not in ("http", "https") or not endpoint.netloc:
                raise ConfigurationError(
                    f"the S3 endpoint {named!r} is no address", "write it as https://host:port"
                )
            options |= {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme}
        return cls(fs.S3FileSystem(**options), path)

    def write(self, block: Block) -> BlockFile:
        """A block, whole or not at all; the same block again changes nothing.

        Raises:
            ConflictError: another block has the source and number.
            OSError: the bucket cannot be written.
        """
        entry = BlockFile.of(block)
        self._put(entry, to_arrow(block))
        return entry

    def deliver(self, file: Path) -> None:
        """A block's file from a folder, by its name.

        Raises:
            ConflictError, OSError: as ``write``.
            MalformedRequestError: the name is no block's.
        """
        self._put(BlockFile.delivered(file), file.read_bytes())

    def _put(self, entry: BlockFile, data: bytes) -> None:
        names = self._listed()
        if entry.name in names:
            return
        require_no_rival(self.path, entry, names)
        with self._files.open_output_stream(self._key(entry)) as stream:
            stream.write(data)
        self._names.add(entry.name)

    def entries(self, after: Mapping[str, int] | None = None) -> list[BlockFile]:
        """Blocks in the order in which they are to be read (``drift.block_folder.in_order``)."""
        return in_order(self._listed(), after)

    def read(self, entry: BlockFile) -> Block:
        """A block.

        Raises:
            MalformedRequestError: it is truncated, changed, or not the block it is named.
            OSError: it cannot be read, or is gone.
        """
        with self._files.open_input_stream(self._key(entry)) as stream:
            data = stream.read(MOST_BYTES + 1)
        return named_block(data, entry)

    def remove(self, entry: BlockFile) -> None:
        """A block that nobody needs any more; gone already is well."""
        with suppress(FileNotFoundError):
            self._files.delete_file(self._key(entry))
        self._names.discard(entry.name)

    def refuse(self, entry: BlockFile) -> None:
        """Put a block aside, below ``refused/``."""
        self._files.move(self._key(entry), f"{self.path}/refused/{entry.name}")
        self._names.discard(entry.name)

    def _key(self, entry: BlockFile) -> str:
        return f"{self.path}/{entry.name}"

    def _listed(self) -> set[str]:
        from pyarrow import fs

        now = self._clock()
        if now >= self._until:
            found = self._files.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
            self._names = {one.base_name for one in found if one.type == fs.FileType.File}
            self._until = now + self._listed_s
        return self._names
