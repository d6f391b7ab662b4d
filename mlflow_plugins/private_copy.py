"""A model's files copied into a private folder, with the digest of the bytes that lie there.

- What is hashed is read back from the copy, never from the source: whoever can write to the
  artifact store cannot come between the check and the use.
- The copy is made of new files: it shares no inode with the source.
- The kernel copies (``copy_file_range``, which only clones where the file system copies on write).
  Where it refuses, say between file systems, the bytes are read and written.
- The digest of a block is taken while the next one is copied, and several files go at once.

The caller owns the folder, which nobody else may enter, and compares the digests.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from governance.canonical import IGNORED_FILES, FileDigest, Manifest, open_regular_file
from governance.errors import TamperedError

__all__ = ["copy_and_digest", "copy_file"]

_BLOCK = 16 << 20
"""What is copied before the digest follows."""

_PIECE = 1 << 18
"""What is read or written at once: it stays in the processor's cache from one to the other. Larger
writes are no quicker; those of 1 MiB and more took five times as long on ext4 (Linux 6.18)."""


def copy_and_digest(source: Path, target: Path, *, prefix: str = "") -> Manifest:
    """Copy a directory and digest the copy.

    Args:
        source: Where the files are.
        target: Where they go; made when it is missing.
        prefix: What the manifest's paths begin with.

    Raises:
        TamperedError: a symbolic link or special file is in it, or it changes meanwhile.
        FileNotFoundError: ``source`` does not exist.
    """
    files = list(_prepare(source, target, prefix))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return Manifest.of(pool.map(lambda file: copy_file(*file), files))


def _prepare(source: Path, target: Path, prefix: str) -> Iterator[tuple[Path, Path, str]]:
    """Make the directories; what is to be copied, as arguments of ``copy_file``."""
    target.mkdir(parents=True, exist_ok=True)
    with os.scandir(source) as entries:
        for entry in entries:
            path = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.is_symlink():
                raise TamperedError(f"{path} is a symbolic link; a model holds regular files only")
            if entry.is_dir(follow_symlinks=False):
                yield from _prepare(Path(entry.path), target / entry.name, path)
            elif path not in IGNORED_FILES:
                yield Path(entry.path), target / entry.name, path


def copy_file(source: Path, target: Path, path: str) -> FileDigest:
    """Copy one file to ``target``, which must not exist, and digest the copy.

    Raises:
        TamperedError: it is no regular file, or it grows or shrinks meanwhile.
    """
    digest = hashlib.sha256()
    done = 0
    with (
        open_regular_file(source, path) as reader,
        open(target, "x+b", buffering=0) as writer,
        ThreadPoolExecutor(1) as pool,  # ends before the files are closed
    ):
        size = os.fstat(reader.fileno()).st_size
        blocks = _copy_blocks(reader.fileno(), writer.fileno(), size)
        coming = pool.submit(next, blocks, 0)
        while count := coming.result():
            coming = pool.submit(next, blocks, 0)
            end = done + count
            while done < end:
                piece = os.pread(writer.fileno(), min(_PIECE, end - done), done)
                if not piece:
                    raise TamperedError(f"the private copy of {path} lost bytes")
                digest.update(piece)
                done += len(piece)
        now = os.fstat(reader.fileno()).st_size
    if not done == now == size:
        raise TamperedError(
            f"{path} changed while it was copied: {size} bytes at first, {done} copied, {now} now",
            "load again when nothing writes to the artifact store, and find out what did",
        )
    return FileDigest(path, size, digest.hexdigest())


def _copy_blocks(reader: int, writer: int, size: int) -> Iterator[int]:
    """Copy ``size`` bytes, fewer if there are no more; the length of each block once it is there.

    Any error of the kernel's copy leads to reading and writing, which works or says what is wrong.
    """
    kernel_copies = hasattr(os, "copy_file_range")  # Linux
    while size:
        count = 0
        if kernel_copies:
            try:
                count = os.copy_file_range(reader, writer, min(size, _BLOCK))
            except OSError:
                kernel_copies = False
        # Some file systems answer 0 instead of refusing.
        count = count or _read_and_write(reader, writer, min(size, _BLOCK))
        if not count:
            return
        size -= count
        yield count


def _read_and_write(reader: int, writer: int, size: int) -> int:
    """As ``os.copy_file_range``, without it."""
    count = 0
    while count < size and (piece := os.read(reader, min(_PIECE, size - count))):
        count += len(piece)
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(writer, rest) :]
    return count
