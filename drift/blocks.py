"""A block: some rows of one version's traffic, as columns, and the file it travels in.

A block has an id, the *source* that recorded it (one life of one replica), and a sequence number
that counts the source's blocks from 0. Order is that of sequence numbers, never of clocks, which
may go back. What was not recorded is in the block too: rows dropped for lack of room, left out by
sampling, or malformed, since the source's block before.

The file is Parquet, so that anybody's tools read it, with page checksums. Our facts about the block
stand as JSON in its schema's metadata. Columns of inputs are named ``input:``, of outputs
``output:``. Texts are texts; a column of values of several types is JSON, a value a text. There is
no pickle, and no type that would run code on reading: a reader accepts four column types and
refuses the rest, as it refuses what is truncated, changed or too large.

Example::

    data = to_parquet(block)
    from_parquet(data) == block          # field by field
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.columns import Column, typed
from governance.canonical import parse_json
from governance.errors import ConfigurationError, MalformedRequestError

__all__ = ["MOST_BYTES", "Block", "from_parquet", "to_parquet"]

_FORMAT = "chancery.block/v1"
_KEY = b"chancery.block"
_SOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_ID = re.compile(r"[0-9a-f]{32}")
MOST_BYTES = 1 << 28
"""Of a block's file; whoever reads one need not read further."""
_MOST_ROWS = 1 << 22
_MOST_UNPACKED = 1 << 31


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows of one version, in the order they were recorded.

    Attributes:
        id: 32 hex digits.
        source: Who recorded it; letters, digits, ``_ . -``.
        sequence: Of the source's blocks, from 0.
        model, version, deployment: What answered.
        time_ms: (n,) int64, milliseconds since the epoch.
        inputs, outputs: Name → (n,) column.
        request_id: (n,) object, texts; None where ids do not leave.
        request_row: (n,) int64, the row's place in its request.
        dropped, sampled_out, malformed: Rows that are not here, since the block before.
        masked: Names of columns that do not leave; outputs' with ``output:``.
        extra: Names of columns that nobody expected; they do not leave either.
    """

    id: str
    source: str
    sequence: int
    model: str
    version: str
    deployment: str
    time_ms: NDArray[np.int64]
    inputs: Mapping[str, Column]
    outputs: Mapping[str, Column]
    request_id: Column | None = None
    request_row: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    dropped: int = 0
    sampled_out: int = 0
    malformed: int = 0
    masked: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _SOURCE.fullmatch(self.source):
            raise ConfigurationError(
                f"{self.source[:120]!r} cannot be the source of a block",
                "use 1 to 100 letters, digits, '_', '.' and '-', beginning with a letter or digit",
            )
        if not _ID.fullmatch(self.id):
            raise ConfigurationError(f"{self.id[:60]!r} is no block's id", "use 32 hex digits")
        counts = (self.sequence, self.dropped, self.sampled_out, self.malformed)
        if min(counts) < 0:
            raise ConfigurationError(f"a block's counts are negative: {counts}", "count up from 0")
        ids = [] if self.request_id is None else [self.request_id]
        columns = (*self.inputs.values(), *self.outputs.values(), self.request_row, *ids)
        if not 0 < self.rows <= _MOST_ROWS or any(len(c) != self.rows for c in columns):
            raise ConfigurationError(
                f"a block of {self.rows} rows, whose columns have "
                f"{sorted({len(column) for column in columns})}",
                "give every column of a block the same number of rows, at least one",
            )

    @property
    def rows(self) -> int:
        return len(self.time_ms)

    @property
    def first_ms(self) -> int:
        """The earliest time in it."""
        return int(self.time_ms.min())

    @property
    def last_ms(self) -> int:
        """The latest time in it."""
        return int(self.time_ms.max())


_PLAIN = (
    "id", "source", "sequence", "model", "version", "deployment", "dropped", "sampled_out",
    "malformed",
)  # fmt: skip


def to_parquet(block: Block) -> bytes:
    """The file's bytes."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    arrays: dict[str, Any] = {
        "time_ms": pa.array(block.time_ms, pa.int64()),
        "request_row": pa.array(block.request_row, pa.int64()),
    }
    if block.request_id is not None:
        arrays["request_id"] = pa.array(block.request_id.tolist(), pa.string())
    written_as_json = []
    for prefix, columns in (("input:", block.inputs), ("output:", block.outputs)):
        for name, values in columns.items():
            arrays[prefix + name], is_json = _to_arrow(typed(values))
            if is_json:
                written_as_json.append(prefix + name)
    document = {
        "format": _FORMAT,
        **{name: getattr(block, name) for name in _PLAIN},
        "rows": block.rows,
        "first_ms": block.first_ms,
        "last_ms": block.last_ms,
        "masked": list(block.masked),
        "extra": list(block.extra),
        "json": written_as_json,
    }
    texts = [name for name, array in arrays.items() if array.type == pa.string()]
    table = pa.table(arrays).replace_schema_metadata({_KEY: json.dumps(document)})
    sink = pa.BufferOutputStream()
    # LZ4, and no dictionary of numbers: half the time to write and to read, for no more bytes.
    pq.write_table(table, sink, compression="lz4", use_dictionary=texts, write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _to_arrow(values: Column) -> tuple[Any, bool]:
    import pyarrow as pa

    if values.dtype != object:
        return pa.array(values), False
    listed = values.tolist()
    texts = all(value is None or type(value) is str for value in listed)
    if not texts:
        listed = [None if value is None else _json(value) for value in listed]
    # A lone surrogate is no Unicode; it is told, not silently lost.
    safe = [v if v is None else v.encode("utf-8", "backslashreplace").decode() for v in listed]
    return pa.array(safe, pa.string()), not texts


def _json(value: Any) -> str:
    return json.dumps(value, default=str, skipkeys=True)


def from_parquet(data: bytes, name: str = "a block") -> Block:
    """Inverse of ``to_parquet``; nothing in the bytes is trusted.

    Args:
        data: The file's bytes.
        name: What it is called, for errors.

    Raises:
        MalformedRequestError: it is not a whole, unchanged block of a size that can be meant.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if len(data) > MOST_BYTES:
        raise _malformed(name, f"it has more than {MOST_BYTES} bytes")
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        _check_size(file.metadata)
        schema = file.schema_arrow
        if not {pa.float64(), pa.int64(), pa.bool_(), pa.string()}.issuperset(schema.types):
            raise ValueError(f"its columns are of the types {sorted(set(map(str, schema.types)))}")
        document = parse_json((schema.metadata or {})[_KEY])
        if document["format"] != _FORMAT:
            raise ValueError(f"its format is {document['format']!r}")
        return _read(document, file.read(use_threads=False))
    except MalformedRequestError:
        raise
    except (pa.ArrowException, ConfigurationError, OSError) as error:
        raise _malformed(name, str(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _malformed(name, f"{type(error).__name__}: {error}") from error


def _check_size(metadata: Any) -> None:
    unpacked = sum(
        metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)
    )
    if metadata.num_rows > _MOST_ROWS or unpacked > _MOST_UNPACKED:
        raise ValueError(f"it would unpack to {metadata.num_rows} rows, {unpacked} bytes")


def _read(document: dict[str, Any], table: Any) -> Block:
    names = table.column_names
    if len(set(names)) != len(names):
        raise ValueError("two columns have the same name")
    coded = set(document["json"])
    arrays = zip(names, table.columns, strict=True)
    columns = {name: _from_arrow(array, name in coded) for name, array in arrays}
    if columns["time_ms"].dtype != np.int64 or columns["request_row"].dtype != np.int64:
        raise ValueError("its times or rows are no whole numbers")
    plain: dict[str, Any] = {}
    for field_name in _PLAIN:
        kind = int if field_name in ("sequence", "dropped", "sampled_out", "malformed") else str
        if type(document[field_name]) is not kind:
            raise ValueError(f"its {field_name} is {document[field_name]!r}")
        plain[field_name] = document[field_name]
    block = Block(
        **plain,
        time_ms=columns["time_ms"],
        inputs=_under("input:", columns),
        outputs=_under("output:", columns),
        request_id=columns.get("request_id"),
        request_row=columns["request_row"],
        masked=tuple(map(str, document["masked"])),
        extra=tuple(map(str, document["extra"])),
    )
    said = (document["rows"], document["first_ms"], document["last_ms"])
    if said != (block.rows, block.first_ms, block.last_ms):
        raise ValueError("its rows are not those that it says")
    return block


def _under(prefix: str, columns: Mapping[str, Column]) -> dict[str, Column]:
    return {
        name.removeprefix(prefix): values
        for name, values in columns.items()
        if name.startswith(prefix)
    }


def _from_arrow(column: Any, is_json: bool) -> Column:
    kind = str(column.type)
    if kind != "string":
        if column.null_count and kind != "double":
            raise ValueError("a number is missing where none can be")
        values: Column = column.to_numpy()
        return values
    listed = column.to_pylist()
    if is_json:
        listed = [None if value is None else json.loads(value) for value in listed]
    found = np.empty(len(listed), dtype=object)
    for place, value in enumerate(listed):
        found[place] = value
    return found


def _malformed(name: str, why: str) -> MalformedRequestError:
    why = " ".join(why.split())[:300]
    return MalformedRequestError(
        f"{name} is not a readable block: {why}",
        "leave it out and look at its source; if it was cut short, its rows are lost",
    )
