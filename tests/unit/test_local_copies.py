"""Copies on this disk: what is kept, what is removed, and that none of it is believed."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from governance.canonical import digest_directory
from mlflow_plugins import local_copies
from mlflow_plugins.local_copies import LocalCopies


@pytest.fixture
def copies(tmp_path: Path) -> LocalCopies:
    return LocalCopies(tmp_path / "copies")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "copies" / "files"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    folder = tmp_path / "private"
    folder.mkdir()
    return folder


def model(tmp_path: Path, content: str = "weights") -> tuple[Path, str]:
    folder = tmp_path / f"model-{content}"
    (folder / "data").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors")
    (folder / "data" / "model.bin").write_text(content)
    return folder, digest_directory(folder).root_digest


def test_what_is_kept_comes_back_as_new_files(
    copies: LocalCopies, kept: Path, private: Path, tmp_path: Path
) -> None:
    folder, digest = model(tmp_path)
    assert copies.copy_to(private, digest) is None
    copies.keep(digest, folder)
    copies.keep(digest, folder)
    found = copies.copy_to(private, digest)
    assert found == digest_directory(folder) == digest_directory(private)
    inodes = {path.stat().st_ino for path in private.rglob("*")}
    assert not inodes & {path.stat().st_ino for path in (kept / digest).rglob("*")}
    assert os.listdir(kept) == [digest]
    assert kept.stat().st_mode & 0o077 == 0


def _more(copy: Path) -> None:
    (copy / "more").write_text("x")


def _less(copy: Path) -> None:
    (copy / "MLmodel").unlink()


def _other(copy: Path) -> None:
    (copy / "data" / "model.bin").write_text("changed")


def _link(copy: Path) -> None:
    (copy / "MLmodel").unlink()
    (copy / "MLmodel").symlink_to("/etc/passwd")


@pytest.mark.parametrize("damage", [_more, _less, _other, _link])
def test_a_damaged_copy_counts_as_none_and_is_removed(
    copies: LocalCopies, kept: Path, private: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder, digest = model(tmp_path)
    copies.keep(digest, folder)
    damage(kept / digest)
    assert copies.copy_to(private, digest) is None
    assert os.listdir(private) == []
    assert not (kept / digest).exists()
    copies.keep(digest, folder)
    assert copies.copy_to(private, digest) is not None


def test_the_copies_used_longest_ago_go_first(
    copies: LocalCopies, kept: Path, private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_copies, "MOST", 3)
    digests = []
    for number in range(3):
        folder, digest = model(tmp_path, str(number))
        copies.keep(digest, folder)
        os.utime(kept / digest, (number, number))
        digests.append(digest)
    assert copies.copy_to(private, digests[0])  # used now
    folder, newest = model(tmp_path, "newest")
    copies.keep(newest, folder)
    assert set(os.listdir(kept)) == {digests[0], digests[2], newest}


def test_a_disk_without_room_costs_the_copy_and_nothing_else(
    copies: LocalCopies, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, digest = model(tmp_path)
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 950, 50))
    copies.keep(digest, folder)
    assert os.listdir(kept) == []


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path, private: Path) -> None:
    (tmp_path / "copies").write_text("a file")
    copies = LocalCopies(tmp_path / "copies")
    folder, digest = model(tmp_path)
    copies.keep(digest, folder)
    copies.remember("http://here", "fraud", 3, "said")
    assert copies.remembered("http://here", "fraud", 3) is None
    assert copies.copy_to(private, digest) is None


def test_the_last_word_is_kept_by_registry_model_and_version(copies: LocalCopies) -> None:
    copies.remember("http://here", "fraud", 3, "first")
    copies.remember("http://here", "fraud", 3, "last")
    assert copies.remembered("http://here", "fraud", 3) == "last"
    for other in (
        ("http://there", "fraud", 3),
        ("http://here", "f", 3),
        ("http://here", "fraud", 4),
    ):
        assert copies.remembered(*other) is None
