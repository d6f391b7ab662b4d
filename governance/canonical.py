"""Canonical JSON (RFC 8785) and the digest of a directory.

Two digests identify a model directory:

- the *root digest* of OpenSSF Model Signing (OMS) 1.0: SHA-256 over the SHA-256 digests of the
  files, in the order of their paths. Any OMS tool computes the same.
- the *manifest digest*: SHA-256 of the canonical JSON manifest, which also binds every file's
  path and size (the root digest alone does not notice a renaming that keeps the order).

Symbolic links and special files are refused: what they point at could change after the digest.
``registered_model_meta`` at the top is MLflow's own note to the downloader and never counted.

Example::

    manifest = digest_directory(Path("model"))
    manifest.root_digest, manifest.manifest_digest
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

import orjson
import rfc8785

from governance.errors import TamperedError

__all__ = [
    "IGNORED_FILES",
    "FileDigest",
    "Manifest",
    "canonical_json",
    "digest_directory",
    "open_regular_file",
    "parse_json",
    "sha256_hex",
]

IGNORED_FILES = frozenset({"registered_model_meta"})
"""Files at the top of a model directory that MLflow writes after download."""

_CHUNK = 1 << 20
_SAFE = 2**53  # integers at and beyond it are not exact in every language


def sha256_hex(data: bytes) -> str:
    """Lower-case hex SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """RFC 8785 bytes of ``value``.

    Raises:
        ValueError: for floats (numbers travel as strings), integers of 2**53 and more, lone
            surrogates, or types that JSON does not have.
    """
    if _simple(value):
        with suppress(TypeError):  # lone surrogates, which rfc8785 words better
            return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    _reject_floats(value, "$")
    return rfc8785.dumps(value)


def _simple(value: Any) -> bool:
    """Whether orjson, which is many times as quick as rfc8785, writes the same: both escape alike,
    and code points sort like UTF-16 units as long as keys are ASCII."""
    kind = type(value)
    if kind is str:
        return True
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or not key.isascii() or not _simple(item):
                return False
        return True
    if kind is list or kind is tuple:
        kinds = set(map(type, value))
        if kinds == {int}:  # long ones are mostly counts
            return bool(min(value) > -_SAFE and max(value) < _SAFE)
        return kinds <= {str} or all(map(_simple, value))
    if kind is int:
        return bool(-_SAFE < value < _SAFE)
    return kind is bool or value is None


def _reject_floats(value: Any, where: str) -> None:
    if isinstance(value, float):
        raise ValueError(f"{where} is a float; write numbers that are hashed as strings")
    if isinstance(value, dict):
        for key, item in value.items():
            _reject_floats(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _reject_floats(item, f"{where}[{position}]")


def parse_json(data: bytes | str) -> Any:
    """Parse JSON, refusing duplicate keys, NaN and Infinity.

    Raises:
        ValueError: malformed, duplicate key, or a number JSON does not have.
    """
    if isinstance(data, bytes | bytearray):
        data = data.decode(json.detect_encoding(data), "surrogatepass")
    return _decode(data)


def _pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(items)
    if len(result) != len(items):
        raise ValueError("duplicate key in a JSON object")
    return result


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant).decode
"""Made once: ``json.loads`` makes one for each call that has a hook."""


@dataclass(frozen=True, slots=True, order=True)
class FileDigest:
    """One file: POSIX path relative to the directory, size in bytes, hex SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of a model directory, in the order of their paths."""

    files: tuple[FileDigest, ...]

    @classmethod
    def of(cls, files: Iterable[FileDigest]) -> Manifest:
        return cls(tuple(sorted(files)))

    @cached_property
    def root_digest(self) -> str:
        """OMS root digest (hex)."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(bytes.fromhex(file.sha256))
        return digest.hexdigest()

    @cached_property
    def manifest_digest(self) -> str:
        """SHA-256 (hex) of ``to_json``."""
        return sha256_hex(self._json)

    def to_json(self) -> bytes:
        """RFC 8785, format ``chancery.manifest/v1``."""
        return self._json

    @cached_property
    def _json(self) -> bytes:
        return canonical_json(
            {
                "format": "chancery.manifest/v1",
                "files": [
                    {"path": f.path, "size": str(f.size), "sha256": f.sha256} for f in self.files
                ],
            }
        )

    @classmethod
    def from_json(cls, data: bytes | str) -> Manifest:
        """Inverse of ``to_json``.

        Raises:
            ValueError: unknown format, or malformed.
        """
        document = parse_json(data)
        if not isinstance(document, dict) or document.get("format") != "chancery.manifest/v1":
            raise ValueError("not a chancery.manifest/v1 document")
        return cls.of(FileDigest(f["path"], int(f["size"]), f["sha256"]) for f in document["files"])

    def difference(self, other: Manifest) -> list[str]:
        """What changed from ``self`` (expected) to ``other`` (found), one line a file."""
        expected = {f.path: f for f in self.files}
        found = {f.path: f for f in other.files}
        lines = [f"removed file {path}" for path in sorted(expected.keys() - found.keys())]
        lines += [f"added file {path}" for path in sorted(found.keys() - expected.keys())]
        lines += [
            f"changed file {path} (expected sha256 {expected[path].sha256[:12]}…, "
            f"found {found[path].sha256[:12]}…)"
            for path in sorted(expected.keys() & found.keys())
            if expected[path] != found[path]
        ]
        return lines


def digest_directory(root: Path) -> Manifest:
    """Hash every file under ``root``.

    Raises:
        TamperedError: a symbolic link or special file is in the directory.
        FileNotFoundError: ``root`` does not exist.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a directory")
    files = sorted(_walk(str(root), ""))
    # hashlib releases the interpreter lock for large buffers, so threads use the cores; for a few
    # small files, starting them would take longer than the hashing.
    if sum(size for _, _, size in files) < _CHUNK:
        return Manifest.of(_digest_file(*file) for file in files)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return Manifest.of(pool.map(lambda file: _digest_file(*file), files))


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, str, int]]:
    """(path below the root, where it is, size in bytes now) of every file."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path = prefix + entry.name
            if entry.is_symlink():
                raise TamperedError(
                    f"{path} is a symbolic link; a model directory holds regular files only",
                    "log the file itself instead of a link to it",
                )
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, f"{path}/")
            elif path not in IGNORED_FILES:
                yield path, entry.path, entry.stat(follow_symlinks=False).st_size


def open_regular_file(file: Path | str, path: str) -> FileIO:
    """Open a file for reading, without following a link or waiting for a pipe's writer.

    Args:
        file: Where it is.
        path: What an error calls it.

    Raises:
        TamperedError: it is a symbolic link or a special file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        opened = FileIO(os.open(file, flags))
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise TamperedError(f"{path} is a symbolic link") from error
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise TamperedError(f"{path} is not a regular file")
    return opened


def _digest_file(path: str, file: str, expected: int) -> FileDigest:
    with open_regular_file(file, path) as opened:
        digest = hashlib.sha256()
        size = 0
        buffer = bytearray(min(_CHUNK, expected + 1))
        view = memoryview(buffer)
        while count := opened.readinto(buffer):
            digest.update(view[:count])
            size += count
    return FileDigest(path, size, digest.hexdigest())
