"""What a served model saw and said, put aside at the cost of a queue's append.

``append`` keeps a reference to what it is given and counts it; everything else (columns, types,
privacy) happens in ``flush``, off the way of answers. So hand over arrays and lists that nobody
changes afterwards.

Memory is bounded by rows and bytes. What has no room is dropped and counted; what sampling leaves
out is counted; what is no table is counted as malformed when it is looked at, and takes no other
request with it. These counts are in the next block, so a monitor knows how much it did not see.
Sampling goes by the request's id (the same requests on every replica, so that labels find their
predictions) or, without one, by chance.

Bytes are those of arrays, or what the caller says (``nbytes``: the length of the request's body is
a good figure), or estimated: from the first row of lists, from the shape of a DataFrame.

Example::

    recorder = Recorder("replica-1.3f2a", model="fraud", columns=("amount", "age"),
                        privacy=Privacy({"age": "bin"}, edges={"age": (18.0, 65.0)}))
    recorder.append([[12.5, 41]], [0.93], version="7", request_id="r-1")
    for block in recorder.flush():
        spool.put(block)
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from threading import Lock
from typing import Any
from zlib import crc32

import numpy as np

from drift.blocks import Block
from drift.columns import Column, columns_of, joined, typed, unicode_of
from drift.privacy import Action, Privacy
from governance.errors import ConfigurationError

__all__ = ["Recorder", "RecorderCounts"]

_MOST_EXTRA = 20
_ALONE = "prediction"  # what has no name is called so, or prediction.0, prediction.1 …
_VALUE = 32  # bytes of a Python number in a list, about


@dataclass(frozen=True, slots=True)
class RecorderCounts:
    """Rows since the recorder began.

    Attributes:
        recorded: Taken into the queue.
        dropped: For which there was no room.
        sampled_out: Left out on purpose.
        malformed: Taken, and no table when looked at.
        waiting: In the queue now.
        waiting_bytes: Of them, about.
    """

    recorded: int
    dropped: int
    sampled_out: int
    malformed: int
    waiting: int
    waiting_bytes: int


_Ids = str | tuple[Sequence[str], Sequence[int]]
"""A request's id; or of several requests, with the rows of each."""
_Entry = tuple[Any, Any, str, int, _Ids, int, int]
"""Data, predictions, version, time, ids, rows, bytes."""

_log = logging.getLogger(__name__)


class Recorder:
    """One per process that answers; ``append`` and ``flush`` may run in different threads.

    Args:
        source: This life of this replica; never used again after a restart.
        model, deployment: What answers.
        columns: The inputs that are expected, in order; None takes whatever comes.
        outputs: Names for predictions that have none, where they are as many.
        categories: Columns that are counted by categories, not as numbers.
        vectors: Embedding → its width; a column of vectors is recorded as its components. 0: as
            whether there is one.
        privacy: What may leave.
        most_rows, most_bytes: Of the queue.
        block_rows: Rows of a block at most, except that a request is not cut.
        sample: Share of requests that are recorded, in (0, 1].
        rng: For requests without id; needed when ``sample`` is below 1.
        clock: Milliseconds since the epoch.
        new_id: Ids of blocks, 32 hex digits.
    """

    def __init__(
        self,
        source: str,
        *,
        model: str,
        deployment: str = "",
        columns: Sequence[str] | None = None,
        outputs: Sequence[str] = (),
        categories: Collection[str] = (),
        vectors: Mapping[str, int] | None = None,
        privacy: Privacy | None = None,
        most_rows: int = 100_000,
        most_bytes: int = 1 << 26,
        block_rows: int = 4096,
        sample: float = 1.0,
        rng: np.random.Generator | None = None,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        if not 0 < sample <= 1 or (sample < 1 and rng is None):
            raise ConfigurationError(
                f"a sample of {sample}, {'with' if rng else 'without'} a generator",
                "sample a share above 0, and give a generator when it is below 1",
            )
        if min(most_rows, most_bytes, block_rows) < 1:
            raise ConfigurationError(
                f"room for {most_rows} rows, {most_bytes} bytes, blocks of {block_rows}",
                "leave room for at least one of each",
            )
        self.source = source
        self._model = model
        self._deployment = deployment
        self._columns = None if columns is None else tuple(columns)
        self._outputs = tuple(outputs)
        self._categories = frozenset(categories)
        self._vectors = dict(vectors or {})
        self._privacy = privacy or Privacy()
        self._most_rows = most_rows
        self._most_bytes = most_bytes
        self._block_rows = block_rows
        self._threshold = int(sample * 2**32)
        self._sample = sample
        self._rng = rng
        self._clock = clock
        self._new_id = new_id
        self._lock = Lock()
        self._flushing = Lock()
        self._queue: deque[_Entry] = deque()
        self._rows = self._bytes = self._sequence = 0
        self._recorded = self._dropped = self._sampled_out = self._malformed = 0
        self._told = (0, 0, 0)

    def append(
        self,
        data: Any,
        predictions: Any,
        version: str = "",
        time_ms: int | None = None,
        request_id: str = "",
        nbytes: int = 0,
    ) -> bool:
        """One request's rows; false if they were dropped or left out (counted).

        Args:
            data: Array (rows, width), columns by name, DataFrame, or a list of rows.
            predictions: Array (rows,) or (rows, width), outputs by name, or a list.
            version: That answered.
            time_ms: When; now if it is not said.
            request_id: Under which labels come.
            nbytes: Size of it all, if known.
        """
        try:
            rows = len(predictions)
            if type(predictions) is dict:
                rows = len(next(iter(predictions.values())))
            nbytes = nbytes or _size_of(data, rows)
        except (TypeError, AttributeError, LookupError, StopIteration):
            with self._lock:
                self._malformed += 1
            return False
        if not rows:
            return True
        if self._sample < 1 and not self._drawn(request_id):
            with self._lock:
                self._sampled_out += rows
            return False
        return self._put(data, predictions, version, time_ms, request_id, rows, nbytes)

    def append_together(
        self,
        data: Any,
        predictions: Any,
        request_ids: Sequence[str],
        counts: Sequence[int],
        version: str = "",
        time_ms: int | None = None,
    ) -> bool:
        """Rows of several requests that were predicted together; false if any were dropped.

        Args:
            data: Of all, as ``append`` takes them; an array (rows, …).
            predictions: Of all: an array, a list or a DataFrame.
            request_ids: Of each request.
            counts: Rows of each request.
            version: That answered.
            time_ms: When; now if it is not said.
        """
        if self._sample < 1:
            kept, start = True, 0
            for request_id, count in zip(request_ids, counts, strict=True):
                part = slice(start, start + count)
                start += count
                rows_there, said = _part(data, part), _part(predictions, part)
                kept &= self.append(rows_there, said, version, time_ms, request_id)
            return kept
        ids: _Ids
        if len(counts) == 1:
            rows, ids = counts[0], request_ids[0]
        else:
            rows, ids = sum(counts), (request_ids, counts)
        if not rows:
            return True
        nbytes = data.nbytes if type(data) is np.ndarray else _size_of(data, rows)
        return self._put(data, predictions, version, time_ms, ids, rows, nbytes)

    def lost(self, rows: int = 1, *, malformed: bool = False) -> None:
        """Count rows that somebody before us could not keep, or could not read."""
        with self._lock:
            if malformed:
                self._malformed += rows
            else:
                self._dropped += rows

    def _put(
        self,
        data: Any,
        predictions: Any,
        version: str,
        time_ms: int | None,
        ids: _Ids,
        rows: int,
        nbytes: int,
    ) -> bool:
        if time_ms is None:
            time_ms = self._clock()
        with self._lock:
            if self._rows + rows > self._most_rows or self._bytes + nbytes > self._most_bytes:
                self._dropped += rows
                return False
            self._queue.append((data, predictions, version, time_ms, ids, rows, nbytes))
            self._rows += rows
            self._bytes += nbytes
            self._recorded += rows
        return True

    def _drawn(self, request_id: str) -> bool:
        if request_id:
            return crc32(request_id.encode("utf-8", "replace")) < self._threshold
        return self._rng is not None and self._rng.random() < self._sample

    @property
    def counts(self) -> RecorderCounts:
        with self._lock:
            return RecorderCounts(
                self._recorded,
                self._dropped,
                self._sampled_out,
                self._malformed,
                self._rows,
                self._bytes,
            )

    def flush(self) -> list[Block]:
        """What waits, as blocks of one version each, in order."""
        with self._flushing:
            with self._lock:
                entries, self._queue = self._queue, deque()
                self._rows = self._bytes = 0
            blocks: list[Block] = []
            for version, run in groupby(entries, key=lambda entry: entry[2]):
                for chunk in self._chunks(run):
                    blocks += self._blocks(str(version), chunk)
            return blocks

    def _chunks(self, entries: Iterable[_Entry]) -> list[list[_Entry]]:
        chunks: list[list[_Entry]] = []
        room = 0
        for entry in entries:
            if entry[5] > room or not chunks:
                chunks.append([])
                room = self._block_rows
            chunks[-1].append(entry)
            room -= entry[5]
        return chunks

    def _blocks(self, version: str, entries: list[_Entry]) -> list[Block]:
        """One block, of the requests that are tables."""
        try:
            return [self._built(version, entries, *self._tables(entries))]
        except Exception:  # noqa: BLE001 - whatever a client sent; what is left out is counted
            good = [entry for entry in entries if self._is_table(entry)]
            self.lost(_rows_of(entries) - _rows_of(good), malformed=True)
            return self._apart(version, good)

    def _apart(self, version: str, entries: list[_Entry]) -> list[Block]:
        """Requests that are tables, each alone; if they are none together, in as few blocks as
        it takes."""
        if not entries:
            return []
        try:
            return [self._built(version, entries, *self._tables(entries))]
        except Exception:  # noqa: BLE001 - as above
            if len(entries) == 1:
                self.lost(_rows_of(entries), malformed=True)
                _log.exception("a request could not be recorded")
                return []
            half = len(entries) // 2
            return [
                *self._apart(version, entries[:half]),
                *self._apart(version, entries[half:]),
            ]

    def _tables(self, entries: list[_Entry]) -> tuple[dict[str, Column], dict[str, Column]]:
        seen, said = [], []
        for _, run in groupby(entries, key=_alike):
            data, predictions, rows = _stacked(list(run))
            seen.append((rows, columns_of(data, rows, self._columns, vectors=self._vectors)))
            outputs = columns_of(
                predictions, rows, alone=_ALONE, vectors=self._vectors, known=self._outputs
            )
            said.append((rows, self._named(outputs)))
        return joined(seen, self._categories), joined(said, self._categories)

    def _named(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """Predictions without names under those that are known, where they are as many."""
        unnamed = all(name.partition(".")[0] == _ALONE for name in outputs)
        if unnamed and len(outputs) == len(self._outputs):
            return dict(zip(self._outputs, outputs.values(), strict=True))
        return outputs

    def _expected(
        self, inputs: Mapping[str, Column], outputs: Mapping[str, Column]
    ) -> dict[str, None]:
        """Columns of a block. An embedding of which nothing came in may be what the model gives."""
        parts = {
            name: [f"{name}.{place}" for place in range(width)] or [name]
            for name, width in self._vectors.items()
        }
        elsewhere: set[str] = set()
        for name, components in parts.items():
            given = components[0] in outputs or components != [name]
            if given and not any(part in inputs for part in components):
                elsewhere.update(components)
        named = chain.from_iterable(parts.get(name, (name,)) for name in self._columns or ())
        return {name: None for name in named if name not in elsewhere}

    def _is_table(self, entry: _Entry) -> bool:
        try:
            self._tables([entry])
        except Exception:  # noqa: BLE001 - as above
            return False
        return True

    def _built(
        self,
        version: str,
        good: list[_Entry],
        inputs: dict[str, Column],
        outputs: dict[str, Column],
    ) -> Block:
        rows = _rows_of(good)
        extra: tuple[str, ...] = ()
        if self._columns is not None:
            expected = self._expected(inputs, outputs)
            strange = [name for name in inputs if name not in expected]
            hidden = self._privacy.default == Action.MASK
            extra = tuple(strange[:_MOST_EXTRA]) if not hidden else ("(masked)",) * bool(strange)
            absent = typed([None] * rows)
            inputs = {name: inputs.get(name, absent) for name in expected}
        inputs, masked = self._privacy.applied(inputs)
        outputs, masked_outputs = self._privacy.applied(outputs, "output:")
        each = [entry[5] for entry in good]
        names, lengths = _requests(good)
        ids = None
        if self._privacy.request_id == Action.KEEP:
            ids = np.repeat(np.array(names, dtype=object), lengths)
        times = np.repeat(np.array([entry[3] for entry in good], dtype=np.int64), each)
        places = np.arange(rows) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        with self._lock:  # from here on nothing fails: a number is not used up in vain
            now = (self._dropped, self._sampled_out, self._malformed)
            dropped, sampled_out, malformed = (a - b for a, b in zip(now, self._told, strict=True))
            self._told = now
            sequence, self._sequence = self._sequence, self._sequence + 1
        return Block(
            id=self._new_id(),
            source=self.source,
            sequence=sequence,
            model=self._model,
            version=version,
            deployment=self._deployment,
            time_ms=times,
            inputs=inputs,
            outputs=outputs,
            request_id=ids,
            request_row=places,
            dropped=dropped,
            sampled_out=sampled_out,
            malformed=malformed,
            masked=masked + masked_outputs,
            extra=extra,
        )


def _part(table: Any, rows: slice) -> Any:
    """Some rows of whatever a table comes in."""
    if isinstance(table, Mapping):
        return {name: values[rows] for name, values in table.items()}
    return table.iloc[rows] if hasattr(table, "iloc") else table[rows]


def _rows_of(entries: list[_Entry]) -> int:
    return sum(entry[5] for entry in entries)


def _requests(entries: list[_Entry]) -> tuple[list[str], list[int]]:
    """Ids of requests, and the rows of each."""
    names: list[str] = []
    lengths: list[int] = []
    for entry in entries:
        ids = entry[4]
        if isinstance(ids, tuple):
            names += map(unicode_of, ids[0])
            lengths += ids[1]
        else:
            names.append(unicode_of(ids))
            lengths.append(entry[5])
    return names, lengths


def _size_of(data: Any, rows: int) -> int:
    """Bytes of a request, about: of an array's exactly, else by the first row."""
    known = getattr(data, "nbytes", None)
    if type(known) is int:
        return known
    if isinstance(data, list | tuple):
        return 64 + rows * _size_of_row(data[0] if data else ())
    if isinstance(data, Mapping):
        return 64 + sum(
            values.nbytes if isinstance(values, np.ndarray) else rows * _size_of_row(values[:1])
            for values in data.values()
        )
    return int(rows * data.shape[1] * _VALUE)  # a DataFrame; asking it would take a millisecond


def _size_of_row(row: Any) -> int:
    if isinstance(row, dict):
        row = row.values()
    elif not isinstance(row, list | tuple):
        row = (row,)
    size = _VALUE * len(row)
    for value in row:  # a plain loop over plain types: this runs while a client waits
        kind = type(value)
        if kind is str or kind is bytes or kind is list:
            size += len(value) * (_VALUE if kind is list else 1)
    return size


def _alike(entry: _Entry) -> Any:
    """Neighbours of the same kind are stacked before they are looked at: 256 arrays of one row
    each make one array, not 256 tables."""
    data, predictions, rows = entry[0], entry[1], entry[5]
    if type(data) is np.ndarray and type(predictions) is np.ndarray:
        if data.ndim == 2 and len(data) == rows:
            kinds = (data.dtype.kind, predictions.dtype.kind)
            return (*kinds, data.shape[1], predictions.shape[1:])
    elif type(data) is list and type(predictions) is list and len(data) == rows:
        first, said = type(data[0]), predictions[0]
        if first in (list, dict):
            width = len(said) if isinstance(said, list | tuple | np.ndarray) else 0
            return first, len(data[0]) if first is list else 0, type(said), width
    return id(entry)


def _stacked(run: list[_Entry]) -> tuple[Any, Any, int]:
    if len(run) == 1:
        return run[0][0], run[0][1], run[0][5]
    rows = sum(entry[5] for entry in run)
    if type(run[0][0]) is np.ndarray:
        arrays = np.concatenate([entry[0] for entry in run])
        return arrays, np.concatenate([entry[1] for entry in run]), rows
    data = list(chain.from_iterable(entry[0] for entry in run))
    return data, list(chain.from_iterable(entry[1] for entry in run)), rows
