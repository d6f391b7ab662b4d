"""The private copy: its digest is that of what lies there, whatever the source does meanwhile."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from governance.canonical import FileDigest, digest_directory
from governance.errors import TamperedError
from mlflow_plugins import private_copy
from mlflow_plugins.private_copy import copy_and_digest, copy_file

BLOCK = 4096
CONTENT = os.urandom(5 * BLOCK + 7)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_copy, "_BLOCK", BLOCK)
    monkeypatch.setattr(private_copy, "_PIECE", 1000)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


def refused(*_: Any) -> int:
    raise OSError(errno.EXDEV, "not between file systems")


def nothing(*_: Any) -> int:
    return 0


class RefusedLater:
    """The kernel's copy, which stops working after the first block."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, reader: int, writer: int, size: int) -> int:
        self.calls += 1
        if self.calls > 1:
            raise OSError(errno.EIO, "no more")
        return os.write(writer, os.read(reader, size // 2))


def after_first_block(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], *, kernel: bool
) -> None:
    """Do ``act`` when the first block has been copied."""
    acted = False
    original = private_copy._read_and_write

    def copy(reader: int, writer: int, size: int) -> int:
        nonlocal acted
        count = original(reader, writer, size)
        if not acted:
            acted = True
            act()
        return count

    if kernel:
        monkeypatch.setattr(os, "copy_file_range", copy, raising=False)
    else:
        monkeypatch.setattr(os, "copy_file_range", refused, raising=False)
        monkeypatch.setattr(private_copy, "_read_and_write", copy)


def expected(data: bytes) -> FileDigest:
    return FileDigest("model.bin", len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, len(CONTENT)])
@pytest.mark.parametrize("kernel", [None, refused, nothing, RefusedLater()])
def test_copy_and_digest_whatever_the_kernel_s_copy_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: Any, size: int
) -> None:
    if isinstance(kernel, RefusedLater):
        kernel.calls = 0
    if kernel is not None:
        monkeypatch.setattr(os, "copy_file_range", kernel, raising=False)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(CONTENT[:size])
    assert copy_file(source, target, "model.bin") == expected(CONTENT[:size])
    assert target.read_bytes() == CONTENT[:size]


def test_without_a_kernel_s_copy(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    assert copy_file(source, tmp_path / "target", "model.bin") == expected(CONTENT)


def test_what_is_hashed_is_the_copy_not_the_source(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that go wrong on the way show in the digest."""

    def wrong(reader: int, writer: int, size: int) -> int:
        return os.write(writer, os.read(reader, size).swapcase())

    monkeypatch.setattr(os, "copy_file_range", wrong, raising=False)
    target = tmp_path / "target"
    found = copy_file(source, target, "model.bin")
    assert found == expected(target.read_bytes()) != expected(CONTENT)


@pytest.mark.parametrize("kernel", [True, False])
def test_a_source_rewritten_during_the_copy_cannot_pass_for_either(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: bool
) -> None:
    other = os.urandom(len(CONTENT))
    after_first_block(monkeypatch, lambda: source.write_bytes(other), kernel=kernel)
    target = tmp_path / "target"
    found = copy_file(source, target, "model.bin")
    assert found == expected(target.read_bytes())
    assert found not in (expected(CONTENT), expected(other))


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("size", [0, 2 * BLOCK, len(CONTENT) + 1])
def test_a_source_that_shrinks_or_grows_is_refused_by_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: bool, size: int
) -> None:
    after_first_block(monkeypatch, lambda: os.truncate(source, size), kernel=kernel)
    with pytest.raises(TamperedError, match=r"model\.bin changed while it was copied"):
        copy_file(source, tmp_path / "target", "model.bin")


def test_a_copy_that_loses_bytes_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"

    def lose(reader: int, writer: int, size: int) -> int:
        return len(os.read(reader, size))

    monkeypatch.setattr(os, "copy_file_range", lose, raising=False)
    with pytest.raises(TamperedError, match="lost bytes"):
        copy_file(source, target, "model.bin")


def test_a_full_disk_is_no_digest(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    monkeypatch.setattr(private_copy, "_read_and_write", full)
    with pytest.raises(OSError, match="no space left"):
        copy_file(source, tmp_path / "target", "model.bin")


def test_the_copy_shares_no_inode_with_a_hard_linked_source(source: Path, tmp_path: Path) -> None:
    os.link(source, tmp_path / "another name")
    target = tmp_path / "target"
    found = copy_file(source, target, "model.bin")
    (tmp_path / "another name").write_bytes(b"owned")
    assert not target.samefile(source)
    assert expected(target.read_bytes()) == found


@pytest.mark.parametrize("waiting", ["file", "link"])
def test_what_waits_at_the_target_is_not_written_to(
    source: Path, tmp_path: Path, waiting: str
) -> None:
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    if waiting == "link":
        target.symlink_to(elsewhere)
    else:
        target.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        copy_file(source, target, "model.bin")
    assert target.read_bytes() == b"mine"


def test_a_link_as_the_source_is_refused(source: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(source)
    with pytest.raises(TamperedError, match="symbolic link"):
        copy_file(link, tmp_path / "target", "model.bin")


@pytest.mark.parametrize("kind", ["pipe", "file link", "directory link"])
def test_a_directory_with_something_special_is_refused(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    if kind == "pipe":
        os.mkfifo(source / "model.bin")  # nobody writes to it: reading would wait forever
    else:
        (source / "model.bin").symlink_to("/etc/hostname" if kind == "file link" else "/etc")
    refusal = r"model\.bin is (not a regular file|a symbolic)"
    with pytest.raises(TamperedError, match=refusal):
        copy_and_digest(source, tmp_path / "copy")
    with pytest.raises(TamperedError, match=refusal):
        digest_directory(source)


def test_copy_and_digest_agrees_with_digest_directory(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "deeper").mkdir(parents=True)
    (source / "empty").write_bytes(b"")
    (source / "deep" / "big").write_bytes(CONTENT)
    (source / "deep" / "deeper" / "small").write_bytes(b"x")
    for shard in range(9):
        (source / f"shard-{shard}").write_bytes(os.urandom(shard * BLOCK))
    (source / "registered_model_meta").write_text("MLflow's own note")
    copied = copy_and_digest(source, tmp_path / "copy")
    assert copied == digest_directory(source) == digest_directory(tmp_path / "copy")
    assert len(copied.files) == 12
    assert not (tmp_path / "copy" / "registered_model_meta").exists()


def test_a_prefix_is_part_of_the_manifest_s_paths(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    source.rename(folder / "model.bin")
    found = copy_and_digest(folder, tmp_path / "copy", prefix="data/part")
    assert [file.path for file in found.files] == ["data/part/model.bin"]
