"""Folders of saved detectors: what could run code is refused, and nothing of it ran."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drift.folders import refuse_pickles
from governance.errors import RefusedError


class Poison:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "detector"
    (folder / "kernel").mkdir(parents=True)
    (folder / "config.toml").write_text('name = "KSDrift"\nx_ref = "x_ref.npy"\n')
    (folder / "meta.json").write_text("{}")
    np.save(folder / "x_ref.npy", np.zeros((3, 2)))
    return folder


def test_plain_data_pass(folder: Path) -> None:
    refuse_pickles(folder)


@pytest.mark.parametrize(
    "name",
    [
        "preprocess_fn.dill",
        "kernel/kernel.dill",
        "model.pkl",
        "model.joblib",
        "model.pt",
        ".hidden.dill",
        "config.json",
        "config.toml",
        "notes.txt",
        "x.npy",
        "dill",
    ],
)
def test_poison_is_refused_and_does_not_run(folder: Path, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "ran"
    (folder / name).write_bytes(pickle.dumps(Poison(mark)))
    with pytest.raises(RefusedError, match="runs code when it is loaded"):
        refuse_pickles(folder)
    assert not mark.exists()
    # The poison is one: whoever loads it runs it.
    load = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    subprocess.run([sys.executable, "-c", load, str(folder / name)], check=True)
    assert mark.exists()


def test_an_array_of_objects_is_a_pickle(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    np.save(folder / "x_ref.npy", np.array([Poison(mark)], object), allow_pickle=True)
    with pytest.raises(RefusedError, match=r"x_ref\.npy"):
        refuse_pickles(folder)
    assert not mark.exists()


def test_links_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "more").symlink_to(tmp_path)
    with pytest.raises(RefusedError, match="is a link"):
        refuse_pickles(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError):
        refuse_pickles(tmp_path / "nothing")
