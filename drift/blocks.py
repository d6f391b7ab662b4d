"""A block: some rows of one version's traffic, as columns, and the file it travels in.

A block has an id, the *source* that recorded it (one life of one replica), and a sequence number
that counts the source's blocks from 0. Order is that of sequence numbers, never of clocks, which
may go back. What was not recorded is in the block too: rows dropped for lack of room, left out by
sampling, or malformed, since the source's block before.

The file is Apache Arrow's (IPC, also called Feather 2), so that anybody's tools read it: one record
batch, not compressed. Parquet takes three times as long to read, which is a quarter of what a small
window costs a monitor. Our facts about the block stand as JSON in its schema's metadata, with a
CRC-32 of the file: it is there twice (in the schema and in the footer) as ``<id>:<8 hex digits>``,
and computed with zeros for the digits. Columns of inputs are named ``input:``, of outputs
``output:``. Texts are texts; a column of values of several types is JSON, a value a text. There is
no pickle, and no type that would run code on reading: a reader accepts four column types and
refuses the rest, as it refuses what is truncated, changed, compressed or too large.

Example::

    data = to_arrow(block)
    from_arrow(data) == block            # field by field
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from drift.columns import Column, typed, unicode_of
from governance.canonical import parse_json
from governance.errors import ConfigurationError, MalformedRequestError

__all__ = ["MOST_BYTES", "SUFFIX", "Block", "from_arrow", "to_arrow"]

SUFFIX = ".arrow"
"""Of a block's file."""

_FORMAT = "chancery.block/v1"
_KEY = b"chancery.block"
_SOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_ID = re.compile(r"[0-9a-f]{32}")
MOST_BYTES = 1 << 28
"""Of a block's file; whoever reads one need not read further."""
_MOST_ROWS = 1 << 22
_MAGIC = b"ARROW1\0\0"
_CONTINUES = 0xFFFFFFFF
_NO_SUM = "00000000"
_DEEPEST = 64  # lists in lists: Python gives up on some thousands of them, wherever it meets them
_TOO_DEEP = "lists within lists"
_LONGEST = 4_300  # digits that Python reads into a whole number


@dataclass(frozen=True, eq=False)
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
        rows = self.rows
        if not 0 < rows <= _MOST_ROWS or any(len(column) != rows for column in columns):
            raise ConfigurationError(
                f"a block of {rows} rows, whose columns have "
                f"{sorted({len(column) for column in columns})}",
                "give every column of a block the same number of rows, at least one",
            )

    @property
    def rows(self) -> int:
        return len(self.time_ms)

    @cached_property
    def first_ms(self) -> int:
        """The earliest time in it."""
        return int(np.minimum.reduce(self.time_ms))

    @cached_property
    def last_ms(self) -> int:
        """The latest time in it."""
        return int(np.maximum.reduce(self.time_ms))


_PLAIN = (
    "id", "source", "sequence", "model", "version", "deployment", "dropped", "sampled_out",
    "malformed",
)  # fmt: skip


def to_arrow(block: Block) -> bytes:
    """The file's bytes."""
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import ipc

    arrays: dict[str, Any] = {
        "time_ms": pa.array(block.time_ms, pa.int64()),
        "request_row": pa.array(block.request_row, pa.int64()),
    }
    if block.request_id is not None:
        arrays["request_id"] = pa.array(_texts(block.request_id.tolist()), pa.string())
    written_as_json = []
    for prefix, columns in (("input:", block.inputs), ("output:", block.outputs)):
        for name, values in columns.items():
            arrays[prefix + name], is_json = _column_to_arrow(typed(values))
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
        "crc32": f"{block.id}:{_NO_SUM}",
    }
    batch = pa.record_batch(arrays).replace_schema_metadata({_KEY: json.dumps(document)})
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, batch.schema, options=ipc.IpcWriteOptions(compression=None)) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return _with_sum(data, block.id, _NO_SUM, f"{crc32(data):08x}")


def _with_sum(data: bytes, block_id: str, before: str, after: str) -> bytes:
    return data.replace(f"{block_id}:{before}".encode(), f"{block_id}:{after}".encode())


def _column_to_arrow(values: Column) -> tuple[Any, bool]:
    import pyarrow as pa

    if values.dtype != object:
        return pa.array(values), False
    listed = values.tolist()
    texts = all(value is None or type(value) is str for value in listed)
    if not texts:
        listed = [None if value is None else _json(value) for value in listed]
    return pa.array(_texts(listed), pa.string()), not texts


def _texts(values: list[str | None]) -> list[str | None]:
    return [None if value is None else unicode_of(value) for value in values]


def _json(value: Any) -> str:
    try:
        return json.dumps(value, default=str, skipkeys=True)
    except (ValueError, TypeError, RecursionError):  # it holds itself, or a number of 5,000 digits
        return json.dumps(f"({type(value).__name__})")


def from_arrow(data: bytes, name: str = "a block") -> Block:
    """Inverse of ``to_arrow``; nothing in the bytes is trusted.

    Args:
        data: The file's bytes.
        name: What it is called, for errors.

    Raises:
        MalformedRequestError: it is not a whole, unchanged block of a size that can be meant.
    """
    import pyarrow as pa

    if len(data) > MOST_BYTES:
        raise _malformed(name, f"it has more than {MOST_BYTES} bytes")
    try:
        return _read(data)
    except MalformedRequestError:
        raise
    except (pa.ArrowException, ConfigurationError, OSError, StopIteration, struct.error) as error:
        raise _malformed(name, str(error)) from error
    except MemoryError:
        raise
    except Exception as error:  # bytes from outside: whatever it is, it is no block
        raise _malformed(name, f"{type(error).__name__}: {error}") from error


def _read(data: bytes) -> Block:
    import pyarrow as pa
    from pyarrow import ipc

    if not data.startswith(_MAGIC):
        raise ValueError("it does not begin as a file of Arrow")
    # As a stream: one message after the other, as they lie there. The footer is not needed. (Arrow
    # verifies what it reads so, and not what ``ipc.read_schema`` is given.)
    buffer = pa.BufferReader(data)
    buffer.seek(len(_MAGIC))
    stream = ipc.open_stream(buffer)
    schema = stream.schema
    if not set(map(_kind, _TYPES)).issuperset([kind.id for kind in schema.types]):
        raise ValueError(f"its columns are of the types {sorted(set(map(str, schema.types)))}")
    document = parse_json((schema.metadata or {})[_KEY])
    if document["format"] != _FORMAT:
        raise ValueError(f"its format is {document['format']!r}")
    block_id, told = str(document["id"]), str(document["crc32"])[-len(_NO_SUM) :]
    found = crc32(_with_sum(data, block_id, told, _NO_SUM))
    if document["crc32"] != f"{block_id}:{found:08x}":
        raise ValueError("its checksum is not that of its bytes")
    if _is_compressed(data):
        raise ValueError("it is compressed, so that its size would not be known before")
    batch = stream.read_next_batch()
    if batch.num_rows > _MOST_ROWS:
        raise ValueError(f"it has {batch.num_rows} rows")
    batch.validate(full=True)
    return _block_of(document, batch)


_TYPES = ("float64", "int64", "bool_", "string")


@lru_cache(maxsize=len(_TYPES))
def _kind(name: str) -> int:
    """Arrow's number for a type that columns may have; none of them has parameters."""
    import pyarrow as pa

    return int(getattr(pa, name)().id)


def _is_compressed(data: bytes) -> bool:
    """Whether the second message, a record batch after the schema, names a compression.

    A message is ``ffffffff``, the length of its metadata, these, and a body, which a schema has not
    (Arrow's "Encapsulated message format"). The metadata are the FlatBuffers tables ``Message``
    (field 2, ``header``) and ``RecordBatch`` (field 3, ``compression``) of format/Message.fbs.
    """
    first, length = struct.unpack_from("<Ii", data, len(_MAGIC))
    place = len(_MAGIC) + 8 + length
    second, length = struct.unpack_from("<Ii", data, place)
    if length < 0 or (first, second) != (_CONTINUES, _CONTINUES):
        raise ValueError("its messages do not follow each other")
    metadata = data[place + 8 : place + 8 + length]
    (message,) = struct.unpack_from("<I", metadata, 0)
    header = message + _field(metadata, message, 2)
    header += struct.unpack_from("<I", metadata, header)[0]
    return _field(metadata, header, 3) != 0


def _field(metadata: bytes, table: int, number: int) -> int:
    """Where a table's field is, from the table's start; 0: it has none."""
    fields = table - struct.unpack_from("<i", metadata, table)[0]
    place = 4 + 2 * number
    size, found = struct.unpack_from("<H", metadata, fields)[0], 0
    if place < size:
        (found,) = struct.unpack_from("<H", metadata, fields + place)
    return int(found)


def _block_of(document: dict[str, Any], batch: Any) -> Block:
    names = batch.schema.names
    if len(set(names)) != len(names):
        raise ValueError("two columns have the same name")
    coded = set(document["json"])
    arrays = zip(names, batch.columns, strict=True)
    columns = {name: _column_from_arrow(array, name in coded) for name, array in arrays}
    if columns["time_ms"].dtype != np.int64 or columns["request_row"].dtype != np.int64:
        raise ValueError("its times or rows are no whole numbers")
    ids = columns.get("request_id")
    if ids is not None and not (
        ids.dtype == object and all(one is None or type(one) is str for one in ids)
    ):
        raise ValueError("its request ids are no texts")
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
        request_id=ids,
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


def _column_from_arrow(column: Any, is_json: bool) -> Column:
    kind = column.type.id
    if kind != _kind("string"):
        if kind != _kind("float64") and column.null_count:
            raise ValueError("a number is missing where none can be")
        values: Column = column.to_numpy(zero_copy_only=False)
        return values
    listed = column.to_pylist()
    if is_json:
        listed = [None if value is None else _value(value) for value in listed]
    found = np.empty(len(listed), dtype=object)
    for place, value in enumerate(listed):
        found[place] = value
    return found


def _value(text: str) -> Any:
    """A JSON value that whatever counts it can bear, whoever sent it."""
    try:
        value = json.loads(text, parse_int=_whole)
    except RecursionError:
        return _TOO_DEEP
    level = [value]
    for _ in range(_DEEPEST):
        level = [part for one in level if type(one) in (dict, list) for part in _parts(one)]
        if not level:
            return value
    return _TOO_DEEP


def _parts(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if type(value) is dict else value


def _whole(text: str) -> int | float:
    """Of any length; one too long to be read is infinite."""
    return int(text) if len(text) <= _LONGEST else float(text)


def _malformed(name: str, why: str) -> MalformedRequestError:
    why = " ".join(why.split())[:300]
    return MalformedRequestError(
        f"{name} is not a readable block: {why}",
        "leave it out and look at its source; if it was cut short, its rows are lost",
    )
