"""Scored rows in files, as windows of columns: Parquet, a folder of Parquet files, or CSV.

A window of rows is in memory at a time. Files of a folder come in the order of their names, rows in
the order of the file. A CSV file's types are guessed for each part of it, except that a column
which holds categories with leading zeros in the profile is read as texts.

Example::

    for columns, rows in windows_of(Path("rows.parquet"), profile, rows=1000):
        columns["age"]            # an array of at most 1000 values
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.bins import CategoryBins
from drift.profile import DriftProfile
from governance.errors import MalformedRequestError

__all__ = ["digest_of", "windows_of"]

Columns = dict[str, NDArray[Any]]

_READ = 65_536
_ZEROS = re.compile(r"0\d+")
_REMEDY = "give a .parquet or .csv file with a header, or a folder of .parquet files"


def windows_of(path: Path, profile: DriftProfile, rows: int) -> Iterator[tuple[Columns, int]]:
    """Columns and the number of rows, ``rows`` at a time; the last may have fewer.

    Raises:
        MalformedRequestError: not such a file, no rows in it, a column twice, or files of a folder
            that have different columns.
    """
    waiting: list[Any] = []
    held = 0
    names: list[str] | None = None
    for file, frame in _frames(path, profile):
        found = list(map(str, frame.columns))
        if len(set(found)) != len(found):
            twice = next(name for name in found if found.count(name) > 1)
            raise MalformedRequestError(
                f"{file} has the column {twice!r} twice", "rename one of them"
            )
        if names is not None and set(names) != set(found):
            odd = sorted(set(names) ^ set(found))
            raise MalformedRequestError(
                f"{file} has other columns than the files before it: {odd[0]!r}",
                "check files of different columns apart from each other",
            )
        names = names or found
        waiting.append(frame)
        held += len(frame)
        while held >= rows:
            whole = _together(waiting)
            yield _columns(whole.iloc[:rows]), rows
            waiting, held = [whole.iloc[rows:]], held - rows
    if names is None:
        raise MalformedRequestError(f"{path} has no rows", "check what wrote it")
    if held:
        yield _columns(_together(waiting)), held


def digest_of(path: Path, *more: str) -> str:
    """SHA-256 of all bytes that are read, and of how they are."""
    digest = hashlib.sha256("\n".join(more).encode())
    for file in _files(path):
        digest.update(f"\n{file.name}\n".encode())
        with open(file, "rb") as reader:
            while piece := reader.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise MalformedRequestError(f"{path} has no Parquet files", _REMEDY)
        return files
    if not path.is_file():
        raise MalformedRequestError(f"{path} does not exist", _REMEDY)
    if path.suffix.lower() not in (".parquet", ".csv"):
        raise MalformedRequestError(f"{path} is neither .parquet nor .csv", _REMEDY)
    return [path]


def _frames(path: Path, profile: DriftProfile) -> Iterator[tuple[Path, Any]]:
    """Parts with rows in them."""
    for file in _files(path):
        parts = _csv(file, profile) if file.suffix.lower() == ".csv" else _parquet(file)
        yield from ((file, part) for part in parts if len(part))


def _parquet(file: Path) -> Iterator[Any]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        with pq.ParquetFile(file) as reader:
            for part in reader.iter_batches(batch_size=_READ):
                yield part.to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, "Parquet", error) from error


def _csv(file: Path, profile: DriftProfile) -> Iterator[Any]:
    import pandas as pd  # type: ignore[import-untyped]

    texts: dict[Any, Any] = {
        column.name: str
        for column in profile.columns
        if isinstance(column.bins, CategoryBins)
        and any(_ZEROS.fullmatch(name) for name in column.bins.categories)
    }
    try:
        header = list(pd.read_csv(file, nrows=0).columns)
        known = {name: kind for name, kind in texts.items() if name in header}
        with pd.read_csv(file, chunksize=_READ, dtype=known, low_memory=False) as reader:
            yield from reader
    except pd.errors.EmptyDataError as error:
        raise MalformedRequestError(f"{file} has no rows", "check what wrote it") from error
    except (pd.errors.ParserError, UnicodeDecodeError, ValueError) as error:
        raise _unreadable(file, "CSV", error) from error


def _together(frames: list[Any]) -> Any:
    import pandas as pd

    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)


def _columns(frame: Any) -> Columns:
    """Arrays; pandas' own types as numpy's."""
    found = {}
    for name in frame.columns:
        values = frame[name]
        if not isinstance(values.dtype, np.dtype):  # nullable numbers, strings, categories
            # Nullable numbers with nothing missing are numbers; others are objects with NA.
            kind = getattr(values.dtype, "kind", "O")
            whole = kind in "iufb" and not values.isna().any()
            values = values.astype(
                getattr(values.dtype, "numpy_dtype", object) if whole else object
            )
        found[str(name)] = values.to_numpy()
    return found


def _unreadable(file: Path, kind: str, error: Exception) -> MalformedRequestError:
    return MalformedRequestError(
        f"{file} cannot be read as {kind}: {' '.join(str(error).split())[:200]}", _REMEDY
    )
