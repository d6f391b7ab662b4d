"""A window's counts: what is kept of rows, and how it merges.

A block of rows becomes one flat vector of counts (``drift/layout.py``) and a few facts about its
columns. Merging is addition, so it does not matter how rows were cut into blocks, over which
replicas they came, or in which order blocks are merged. Rows are not kept.

Nothing that a block of rows says is lost:

- columns are taken by name, so their order does not matter;
- a column that is missing counts as a missing value in every row, and is named;
- a column that the profile does not know is named (of many, the first 100 in the order of their
  code points, a choice that merging does not change) and their cells are counted;
- values of another type go to the bins for what is unparsable or unseen.

Example::

    counts = count_rows(profile, frame, times_ms=arrived)
    window = counts + from_another_replica
    WindowCounts.from_json(profile, window.to_json()) == window
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift.bins import PresenceBins
from drift.documents import Fields
from drift.embedding import Embedding, presence_of
from drift.profile import DriftProfile
from drift.tables import Table, aligned, clean_name, columns_of
from governance.canonical import canonical_json
from governance.errors import TamperedError

__all__ = ["FORMAT", "WindowCounts", "count_columns", "count_rows"]

FORMAT = "chancery.drift-window/v1"

_MOST_EXTRA = 100

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class WindowCounts:
    """Counts of some rows, by the bins of one profile.

    Attributes:
        profile: Digest of the profile.
        counts: All columns' bins after each other: (T,), read-only.
        rows: How many were counted.
        first_ms: Time of the earliest row, in milliseconds since 1970; None if there is none.
        last_ms: Of the latest.
        missing_columns: Column or embedding that blocks lacked → rows that lacked it.
        extra_columns: Unknown column → rows that had it; at most 100 names.
        extra_cells: Values in unknown columns, named or not.
    """

    profile: str
    counts: Counts
    rows: int
    first_ms: int | None = None
    last_ms: int | None = None
    missing_columns: Mapping[str, int] = field(default_factory=dict)
    extra_columns: Mapping[str, int] = field(default_factory=dict)
    extra_cells: int = 0

    def __post_init__(self) -> None:
        self.counts.flags.writeable = False

    @classmethod
    def empty(cls, profile: DriftProfile) -> WindowCounts:
        """No rows: adding it changes nothing."""
        return cls(profile.digest, np.zeros(profile.layout.total, dtype=np.int64), 0)

    def __add__(self, other: WindowCounts) -> WindowCounts:
        """Both together.

        Raises:
            TamperedError: counted by another profile.
        """
        if self.profile != other.profile:
            raise TamperedError(
                f"counts by the drift profile {other.profile[:12]}… cannot be added to counts by "
                f"{self.profile[:12]}…",
                "count with the profile that is signed with the served version",
            )
        if not self.rows or not other.rows:
            return self if self.rows else other
        return WindowCounts(
            self.profile,
            self.counts + other.counts,
            self.rows + other.rows,
            _either(min, self.first_ms, other.first_ms),
            _either(max, self.last_ms, other.last_ms),
            _added(self.missing_columns, other.missing_columns),
            _first_names(_added(self.extra_columns, other.extra_columns)),
            self.extra_cells + other.extra_cells,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WindowCounts):
            return NotImplemented
        return self._key() == other._key() and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]

    def _key(self) -> tuple[object, ...]:
        return (
            self.profile, self.rows, self.first_ms, self.last_ms, dict(self.missing_columns),
            dict(self.extra_columns), self.extra_cells,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": FORMAT,
            "profile": self.profile,
            "counts": self.counts.tolist(),
            "rows": self.rows,
            "first_ms": self.first_ms,
            "last_ms": self.last_ms,
            "missing_columns": dict(self.missing_columns),
            "extra_columns": dict(self.extra_columns),
            "extra_cells": self.extra_cells,
        }

    def to_json(self) -> bytes:
        """Canonical JSON, format ``chancery.drift-window/v1``."""
        return canonical_json(self.to_dict())

    @classmethod
    def from_json(cls, profile: DriftProfile, data: bytes | str) -> WindowCounts:
        """Inverse of ``to_json``.

        Raises:
            MalformedRequestError: not such a document, or its numbers do not fit together.
            TamperedError: counted by another profile.
        """
        return cls.from_fields(profile, Fields.parse(data, FORMAT, "drift window"))

    @classmethod
    def from_fields(cls, profile: DriftProfile, fields: Fields) -> WindowCounts:
        """Inverse of ``to_dict``; raises as ``from_json``."""
        if fields.text("format", FORMAT) != FORMAT:
            raise fields.wrong(f"is not of the format {FORMAT!r}")
        digest = fields.text("profile")
        if digest != profile.digest:
            raise TamperedError(
                f"{fields.where} was counted by the drift profile {digest[:12]}…, not by "
                f"{profile.digest[:12]}…",
                "pass the profile that is signed with the served version",
            )
        counts = np.array(fields.integers("counts"), dtype=np.int64)
        window = cls(
            digest,
            counts,
            fields.integer("rows"),
            fields.optional_integer("first_ms"),
            fields.optional_integer("last_ms"),
            fields.counts("missing_columns", {}),
            fields.counts("extra_columns", {}),
            fields.integer("extra_cells", 0),
        )
        fields.done()
        layout = profile.layout
        if len(counts) != layout.total:
            raise fields.wrong(f"has {len(counts)} counts for {layout.total} bins")
        if (np.add.reduceat(counts, layout.starts) != window.rows).any():
            raise fields.wrong(f"has columns whose counts do not sum to its {window.rows} rows")
        if (window.first_ms is None) != (window.last_ms is None) or (
            window.first_ms is not None
            and window.last_ms is not None
            and window.first_ms > window.last_ms
        ):
            raise fields.wrong("ends before it begins")
        return window


def count_rows(
    profile: DriftProfile,
    table: Table,
    *,
    times_ms: ArrayLike | None = None,
    rows: int | None = None,
) -> WindowCounts:
    """The counts of a block of rows.

    Args:
        profile: What to count by.
        table: Features, outputs and embeddings by name.
        times_ms: When each row came (n,), or one time for all, in milliseconds since 1970.
        rows: How many, where the table has no column to tell.

    Raises:
        MalformedRequestError: columns of differing lengths, or a name twice.
    """
    return count_columns(profile, *aligned(columns_of(table), rows), times_ms)


def count_columns(
    profile: DriftProfile,
    columns: Mapping[str, NDArray[Any]],
    rows: int,
    times_ms: ArrayLike | None,
) -> WindowCounts:
    """``count_rows`` for columns that ``aligned`` has seen."""
    known = profile.inputs_by_name
    plain: dict[str, NDArray[Any]] = {}
    for name, column in known.items():
        values = columns.get(name)
        if values is None:
            continue
        if isinstance(column, Embedding):
            plain |= column.columns(values)
        elif isinstance(column.bins, PresenceBins):
            plain[name] = presence_of(values)
        else:
            plain[name] = values if values.ndim == 1 else _no_scalars(rows)
    if profile.components is not None and rows:
        plain |= profile.components.columns(plain, rows)
    times = np.atleast_1d(np.asarray(times_ms if times_ms is not None else (), dtype=np.int64))
    unknown = [clean_name(name) for name in columns if name not in known] if rows else []
    extra = {name: rows * count for name, count in Counter(unknown).items()}
    return WindowCounts(
        profile.digest,
        profile.layout.count(plain, rows),
        rows,
        int(np.minimum.reduce(times)) if len(times) and rows else None,
        int(np.maximum.reduce(times)) if len(times) and rows else None,
        {name: rows for name in known if name not in columns} if rows else {},
        _first_names(extra),
        rows * len(unknown),
    )


def _no_scalars(rows: int) -> NDArray[Any]:
    """Vectors where the profile has one value a row: no number, and no category it knows."""
    return np.full(rows, "a vector", dtype=object)


def _either(choose: Any, one: int | None, other: int | None) -> int | None:
    found = [value for value in (one, other) if value is not None]
    return choose(found) if found else None


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}


def _first_names(extra: dict[str, int]) -> dict[str, int]:
    """The first names in order. What is first of the whole is first of each part that has it, so
    its count is whole too."""
    return {name: extra[name] for name in sorted(extra)[:_MOST_EXTRA]}
