"""Labels that come late, as files in a folder: each is read once, and then put away.

A file is Parquet (``.parquet``), JSON lines (``.jsonl``) or CSV (``.csv``) with the columns
``request_id``, ``label`` and, where requests have several rows, ``row`` (from 0). Files are read in
the order of their names. One that was read goes to ``read/`` once the state is saved that counted
its labels; one that cannot be read, or is too large (256 MiB, 1 GiB unpacked, 5,000,000 rows), goes
to ``refused/``. There it gets a number where another has its name. Write a file elsewhere and move
it in whole: a name that begins with a dot is left alone. A label of a CSV is a text; which class or
number it means, the profile knows (``drift.known_classes``).

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
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from stat import S_ISREG
from typing import Any

from drift.group_counts import is_missing
from drift.labels import row_key
from governance.errors import MalformedRequestError

__all__ = ["LabelFolder"]

_log = logging.getLogger(__name__)

_MOST_BYTES = 256 << 20
_MOST_UNPACKED = 1 << 30
_MOST_ROWS = 5_000_000
_COLUMNS = ("request_id", "label", "row")
_NO_LABELS = (
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    csv.Error,
)
_KINDS = (".csv", ".jsonl", ".parquet")

Label = tuple[str, Any]
"""Where it belongs (``drift.labels.row_key``), and what it says."""
Row = tuple[Any, Any, Any]
"""Request id, label, row, as a file has them."""


class LabelFolder:
    """See the module.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stuck: set[str] = set()  # marks of files that can be neither read nor moved

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
                if not mark or mark in read or mark in self._stuck:
                    continue
                return mark, labels_of(place)
            except FileNotFoundError:
                continue
            except MalformedRequestError as error:
                self._refuse(place.name, mark, error)
        return None

    def _refuse(self, name: str, mark: str, error: MalformedRequestError) -> None:
        _log.warning("%s", error)
        try:
            self._move(name, "refused")
        except OSError as problem:
            _log.warning("%s stays where it is, and is left alone: %s", name, problem)
            self._stuck.add(mark)

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


def _mark(place: Path) -> str:
    """What tells a file from others of its name, a ``/``, and its name; empty: it is no file."""
    about = place.stat()
    if not S_ISREG(about.st_mode):
        return ""
    return f"{about.st_size}-{about.st_mtime_ns}-{about.st_ino}/{place.name}"


def labels_of(place: Path) -> list[Label]:
    """All labels of a file.

    Raises:
        MalformedRequestError: it is no file of labels, or too large a one.
        OSError: it cannot be read.
    """
    try:
        with place.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except PermissionError as error:
        raise _malformed(place, str(error)) from error
    if len(data) > _MOST_BYTES:
        raise _malformed(place, f"it has more than {_MOST_BYTES} bytes")
    found: list[Label] = []
    try:
        for row in {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}[place.suffix](data):
            found.append(_label(*row))
            if len(found) > _MOST_ROWS:
                raise ValueError(f"it has more than {_MOST_ROWS} rows")
    except _NO_LABELS as error:
        raise _malformed(place, f"{type(error).__name__}: {error}") from error
    return found


def _label(request_id: Any, label: Any, row: Any) -> Label:
    if is_missing(request_id) or request_id == "":
        raise ValueError("a request_id is empty")
    if isinstance(request_id, bytes):
        request_id = request_id.decode()
    number = 0 if is_missing(row) or row == "" else int(row)
    if not 0 <= number < _MOST_ROWS or (isinstance(row, float) and row != number):
        raise ValueError(f"there is no row {str(row)[:20]}")
    # What is no single value is no label, and is counted as one that is missing.
    return row_key(str(request_id), number), None if isinstance(label, list | dict) else label


def _csv(data: bytes) -> Iterator[Row]:
    rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig")), strict=True)
    if not {"request_id", "label"} <= set(rows.fieldnames or ()):
        raise ValueError("its first line does not name request_id and label")
    for row in rows:
        yield row["request_id"], row["label"] or None, row.get("row")


def _json_lines(data: bytes) -> Iterator[Row]:
    for line in io.TextIOWrapper(io.BytesIO(data), "utf-8-sig"):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("a line is no object")
            yield row["request_id"], row["label"], row.get("row")


def _parquet(data: bytes) -> Iterator[Row]:
    """A value that many rows share is one object here, as it is in the file: no few bytes there
    are many here."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        schema = pq.read_schema(pa.BufferReader(data))
        names = [name for name in _COLUMNS if name in schema.names]
        if not {"request_id", "label"} <= set(names):
            raise ValueError("it does not have the columns request_id and label")
        for field in map(schema.field, names):
            if pa.types.is_nested(field.type):
                raise ValueError(f"its column {field.name} holds no single values")
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=["request_id", "label"])
        if file.metadata.num_rows > _MOST_ROWS:
            raise ValueError(f"it has more than {_MOST_ROWS} rows")
        if _unpacked(file.metadata) > _MOST_UNPACKED:
            raise ValueError(f"it has more than {_MOST_UNPACKED} bytes when it is unpacked")
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=names)
            columns: list[Iterable[Any]] = [_values(table.column(name)) for name in names]
            if "row" not in names:
                columns.append(repeat(None))
            yield from zip(*columns, strict=False)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error


def _unpacked(metadata: Any) -> int:
    """Bytes of the columns that are read, with each value of a dictionary once."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    parts = (group.column(place) for group in groups for place in range(group.num_columns))
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema in _COLUMNS)


def _values(column: Any) -> Iterator[Any]:
    for part in column.chunks:
        if hasattr(part, "dictionary"):
            known = part.dictionary.to_pylist()
            yield from (None if at is None else known[at] for at in part.indices.to_pylist())
        else:
            yield from part.to_pylist()


def _malformed(place: Path, why: str) -> MalformedRequestError:
    return MalformedRequestError(
        f"{place} holds no labels that can be read: {' '.join(why.split())[:300]}",
        "write the columns request_id, label and, where needed, row",
    )
