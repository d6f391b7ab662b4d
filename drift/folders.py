"""Refuses folders of saved detectors that could run code when they are loaded.

Alibi Detect saves parts of detectors with dill, and its ``load_detector`` runs them even with
``enable_unsafe_loading=False``. We never load detectors from disk: a profile is JSON. Where
somebody hands a folder over nevertheless, this says whether it holds plain data alone: texts that
parse and arrays without objects. What is not known to be harmless is refused.
"""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import numpy as np

from governance.errors import RefusedError

__all__ = ["refuse_pickles"]

_REMEDY = "make the detector anew from a reference sample; saved detectors are not loaded"
_TEXTS = {".json", ".md", ".toml", ".txt"}
_MOST_BYTES = 64 << 20


def refuse_pickles(folder: Path) -> None:
    """Return only if the folder holds texts and plain arrays alone.

    Raises:
        RefusedError: it holds a pickle in whatever dress, a link, or something unknown.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise RefusedError(f"{folder} is no folder of its own", _REMEDY)

    def unreadable(error: OSError) -> None:
        raise RefusedError(f"{error.filename} cannot be read", _REMEDY)

    for place, folders, files in os.walk(folder, onerror=unreadable):
        for name in (*folders, *files):
            path = Path(place, name)
            shown = path.relative_to(folder)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise RefusedError(f"{shown} is a link or no plain file", _REMEDY)
            if path.is_file() and not _plain(path):
                raise RefusedError(
                    f"{shown} is not plain data: a pickle (dill, joblib, torch) runs code when it "
                    "is loaded",
                    _REMEDY,
                )


def _plain(path: Path) -> bool:
    """Whether the file's content is what its name says, and that is harmless."""
    if path.stat().st_size > _MOST_BYTES:
        return False
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                np.load(file, allow_pickle=False)
            return True
        if path.suffix not in _TEXTS:
            return False
        text = path.read_text("utf-8")
        if path.suffix == ".json":
            json.loads(text)
        if path.suffix == ".toml":
            tomllib.loads(text)
    except (ValueError, EOFError, OSError, RecursionError):
        return False
    return "\0" not in text
