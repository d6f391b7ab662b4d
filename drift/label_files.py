"""Labels that come late, as files in a folder: each is read once, and then put away.

A file is Parquet (``.parquet``), JSON lines (``.jsonl``) or CSV (``.csv``) with the columns
``request_id``, ``label`` and, where requests have several rows, ``row`` (from 0). Files are read in
the order of their names. One that was read goes to ``read/`` once the state is saved that counted
its labels; one that cannot be read goes to ``refused/``. There it gets a number where another has
its name. Write a file elsewhere and move it in whole: a name that begins with a dot is left alone.

A file is known by its *mark*: name, size, time of the last change and inode. Another file by the
same name is another file; one that was changed after it was read is read again, and what it said
before counts as duplicates.

Example::

    labels = LabelFolder(Path("labels"))
    mark, found = labels.unread([])          # found: [("r-1", 1), …]
    labels.put_away([mark])
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any

from drift.labels import row_key
from governance.errors import MalformedRequestError

__all__ = ["LabelFolder"]

_log = logging.getLogger(__name__)

_MOST_BYTES = 256 << 20
_KINDS = (".csv", ".jsonl", ".parquet")

Label = tuple[str, Any]
"""Where it belongs (``drift.labels.row_key``), and what it says."""


class LabelFolder:
    """See the module.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def unread(self, read: Collection[str]) -> tuple[str, list[Label]] | None:
        """The next file's mark and labels; None: there is none.

        Args:
            read: Marks of files that were read already.

        Raises:
            OSError: the folder cannot be used.
        """
        if not self.path.is_dir():
            return None
        for place in sorted(self.path.iterdir()):
            if place.name.startswith(".") or place.suffix not in _KINDS:
                continue
            try:
                mark = _mark(place)
                if mark is None or mark in read:
                    continue
                return mark, labels_of(place)
            except FileNotFoundError:
                continue
            except MalformedRequestError as error:
                _log.warning("%s", error)
                self._move(place.name, "refused")
        return None

    def put_away(self, marks: Sequence[str]) -> list[str]:
        """Files that were read; the marks of those that could not be moved come back."""
        left = []
        for mark in marks:
            name = mark.partition("/")[2]
            try:
                if name and _mark(self.path / name) == mark:
                    self._move(name, "read")
            except FileNotFoundError:
                continue
            except OSError:
                left.append(mark)
        return left

    def _move(self, name: str, where: str) -> None:
        """Never over another file."""
        place = self.path / name
        aside = self.path / where
        aside.mkdir(exist_ok=True)
        target = aside / name
        number = 1
        while target.exists():
            number += 1
            target = aside / f"{place.stem}.{number}{place.suffix}"
        place.rename(target)


def _mark(place: Path) -> str | None:
    """What tells a file from others of its name, a name's only ``/`` before it; None: no file."""
    about = place.stat()
    if not S_ISREG(about.st_mode):
        return None
    return f"{about.st_size}-{about.st_mtime_ns}-{about.st_ino}/{place.name}"


def labels_of(place: Path) -> list[Label]:
    """All labels of a file.

    Raises:
        MalformedRequestError: it is no file of labels.
        OSError: it cannot be read.
    """
    if place.stat().st_size > _MOST_BYTES:
        raise _malformed(place, f"it has more than {_MOST_BYTES} bytes")
    data = place.read_bytes()
    try:
        rows = {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}[place.suffix](data)
        return [_label(row) for row in rows]
    except (KeyError, TypeError, ValueError, RecursionError, csv.Error) as error:
        raise _malformed(place, f"{type(error).__name__}: {error}") from error


def _label(row: Mapping[str, Any]) -> Label:
    key = row["request_id"]
    if key is None or key == "":
        raise ValueError("a request_id is empty")
    return row_key(str(key), int(row.get("row") or 0)), row["label"]


def _csv(data: bytes) -> Iterable[Mapping[str, Any]]:
    for row in csv.DictReader(io.StringIO(data.decode("utf-8-sig")), strict=True):
        yield {**row, "label": _as_meant(row["label"])}


def _as_meant(text: str | None) -> Any:
    """CSV has texts alone; a number is meant as one, nothing as missing."""
    if text is None or text == "":
        return None
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return {"true": True, "false": False}.get(text.lower(), text)


def _json_lines(data: bytes) -> Iterable[Mapping[str, Any]]:
    for line in data.decode().splitlines():
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("a line is no object")
            yield row


def _parquet(data: bytes) -> Iterable[Mapping[str, Any]]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        names = pq.read_schema(pa.BufferReader(data)).names
        wanted = [name for name in ("request_id", "label", "row") if name in names]
        table = pq.read_table(pa.BufferReader(data), columns=wanted)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error
    rows: list[Mapping[str, Any]] = table.to_pylist()
    return rows


def _malformed(place: Path, why: str) -> MalformedRequestError:
    return MalformedRequestError(
        f"{place} holds no labels that can be read: {' '.join(why.split())[:300]}",
        "write the columns request_id, label and, where needed, row",
    )
