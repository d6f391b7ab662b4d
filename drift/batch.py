"""Batch scoring: a DataFrame, or a folder of Parquet files, as blocks of bounded size.

One block at a time is in memory. Which columns are predictions, times and request ids is said by
name; the others are inputs. Rows keep their order, files the order of their names.

Example::

    table = Batch("nightly-2026-01-31", model="fraud", version="7", predictions=("score",))
    for block in blocks_of_parquet(Path("scored"), table):
        folder.write(block)
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.blocks import Block
from drift.columns import Column, columns_of, typed
from drift.cutter import LATEST_MS
from drift.privacy import Action, Privacy
from governance.errors import ConfigurationError, MalformedRequestError

__all__ = ["Batch", "blocks_of_frame", "blocks_of_parquet", "times_of"]

Columns = Mapping[str, Any]

_UNITS = {"microseconds": 10**17, "nanoseconds": 2**63}


@dataclass(frozen=True)
class Batch:
    """One run of batch scoring.

    Attributes:
        source: Its name; never used again.
        model, version, deployment: What answered.
        predictions: Columns that hold outputs, at least one.
        time: Column with times: whole milliseconds, or a column of dates; empty: now, for all.
        request_id: Column under whose values labels come; empty: none.
        ignored: Columns that are neither, such as labels.
        privacy: What may leave.
        block_rows: Rows of a block at most.
        clock: Milliseconds since the epoch.
        new_id: Ids of blocks, 32 hex digits.
    """

    source: str
    model: str
    version: str
    predictions: tuple[str, ...]
    deployment: str = ""
    time: str = ""
    request_id: str = ""
    ignored: tuple[str, ...] = ()
    privacy: Privacy = field(default_factory=Privacy)
    block_rows: int = 4096
    clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    new_id: Callable[[], str] = lambda: uuid.uuid4().hex

    def __post_init__(self) -> None:
        if self.block_rows < 1 or not self.predictions:
            raise ConfigurationError(
                f"a batch with blocks of {self.block_rows} rows and {len(self.predictions)} "
                "columns of predictions",
                "name the columns that hold predictions, and blocks of at least one row",
            )


def blocks_of_frame(frame: Any, batch: Batch) -> Iterator[Block]:
    """Of a DataFrame.

    Raises:
        MalformedRequestError: a column that the batch names is not there, or no times are in it.
    """
    columns = {str(name): frame[name] for name in frame.columns}
    if len(columns) != len(frame.columns):
        raise MalformedRequestError(
            "two columns of the frame have the same name", "rename one of them"
        )
    parts = (
        {name: values.iloc[start : start + batch.block_rows] for name, values in columns.items()}
        for start in range(0, len(frame), batch.block_rows)
    )
    return _blocks(parts, batch, "the frame")


def blocks_of_parquet(folder: Path, batch: Batch) -> Iterator[Block]:
    """Of all ``*.parquet`` files in a folder.

    Raises:
        MalformedRequestError: as above, or a file that is not Parquet, or none there.
    """
    return _blocks(_parts_of_parquet(folder, batch), batch, str(folder))


def _parts_of_parquet(folder: Path, batch: Batch) -> Iterator[Columns]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise MalformedRequestError(
            f"{folder} has no Parquet files", "name the folder that batch scoring wrote"
        )
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                for part in file.iter_batches(batch_size=batch.block_rows):
                    yield {name: part.column(name).to_pandas() for name in part.schema.names}
        except (pa.ArrowException, OSError) as error:
            raise MalformedRequestError(
                f"{path} cannot be read as Parquet: {' '.join(str(error).split())[:200]}",
                "score again, or leave the file out",
            ) from error


def _blocks(parts: Iterable[Columns], batch: Batch, name: str) -> Iterator[Block]:
    for sequence, columns in enumerate(part for part in parts if len(next(iter(part.values())))):
        named = {*batch.predictions, *filter(None, (batch.time, batch.request_id))}
        absent = sorted(named - set(columns))
        if absent:
            raise MalformedRequestError(
                f"{name} has no column {absent[0]!r}", f"its columns are {', '.join(columns)}"
            )
        yield _block(columns, batch, sequence, name)


def _block(columns: Columns, batch: Batch, sequence: int, name: str) -> Block:
    rows = len(columns[batch.predictions[0]])
    apart = {*batch.predictions, *batch.ignored, batch.time, batch.request_id}
    try:
        found = columns_of(columns, rows, known=columns.keys())
        plain = {key: typed(values) for key, values in found.items()}
    except ValueError as error:
        raise MalformedRequestError(f"{name}: {error}", "give flat columns") from error
    inputs, masked = batch.privacy.applied({k: v for k, v in plain.items() if k not in apart})
    outputs, masked_outputs = batch.privacy.applied(
        {key: plain[key] for key in batch.predictions}, "output:"
    )
    ids: Column | None = None
    if batch.request_id and batch.privacy.request_id == Action.KEEP:
        names = typed(found[batch.request_id], category=True).tolist()
        ids = np.array(list(map(str, names)), dtype=object)
    return Block(
        id=batch.new_id(),
        source=batch.source,
        sequence=sequence,
        model=batch.model,
        version=batch.version,
        deployment=batch.deployment,
        time_ms=_times(columns, batch, rows, name),
        inputs=inputs,
        outputs=outputs,
        request_id=ids,
        request_row=np.zeros(rows, dtype=np.int64),
        masked=masked + masked_outputs,
    )


def _times(columns: Columns, batch: Batch, rows: int, name: str) -> Column:
    if not batch.time:
        return np.full(rows, batch.clock(), dtype=np.int64)
    values = columns[batch.time]
    values = values.to_numpy() if hasattr(values, "to_numpy") else np.asarray(values)
    return times_of(values, batch.time, name)


def times_of(values: NDArray[Any], column: str, name: str) -> NDArray[np.int64]:
    """Dates, or whole numbers of milliseconds, of the years 1970 to 9999, as milliseconds.

    Args:
        values: (n,) of rows.
        column: That holds them.
        name: Of the data, for the error.

    Raises:
        MalformedRequestError: they are no times, or one is of another year; says what they look
            like.
    """
    if values.dtype.kind == "M" and not np.isnat(values).any():
        values = values.astype("datetime64[ms]").astype(np.int64)
    if values.dtype.kind not in "iu":
        raise MalformedRequestError(
            f"{name}: column {column!r} holds no times",
            "give whole milliseconds since the epoch, or dates, one for every row",
        )
    if not len(values) or (values.min() >= 0 and values.max() <= LATEST_MS):
        return values.astype(np.int64)
    worst = int(values.min() if values.min() < 0 else values.max())
    what = next((unit for unit, most in _UNITS.items() if worst <= most), "a broken clock's times")
    raise MalformedRequestError(
        f"{name}: column {column!r} holds {worst}, which is before 1970"
        if worst < 0
        else f"{name}: column {column!r} holds {worst}, after the year 9999 in milliseconds; they "
        f"look like {what}",
        "give milliseconds since 1970, or dates",
    )
