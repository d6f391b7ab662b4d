"""A bounded sample of the reference rows, beside the profile: what detectors compare windows with.

At most 2,000 rows, drawn at random and kept in their order, as Parquet of two types (numbers and
texts). It obeys the profile's rules for personal columns: a masked column is left out; of a binned
one each value becomes its bin (a range's lower end, a category's or a special bin's name). Texts
are cut as categories are (``drift.bins.category_of``). Windows go through the same rules before
they are compared, so that like is compared with like.

Columns are named ``feature:``, ``output:`` and ``embedding:`` (projections, never vectors).

Example::

    data = reference_parquet(profile, columns)                  # at training
    reference = reference_sample(profile, data)                 # a Sample
    examine(Default(), reference, sample_of(profile, window), rng)
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.bins import CategoryBins, NumericBins, category_of, numbers_of
from drift.embedding import Embedding
from drift.profile import Column, DriftProfile
from drift.sample import MOST_ROWS, Kind, Sample
from governance.errors import MalformedRequestError

__all__ = ["FILE", "reference_parquet", "reference_sample", "sample_of"]

FILE = "drift_reference.parquet"

_MOST_BYTES = 1 << 28
_LARGEST = 1e300  # of a number that detectors can compute with
_FEW = 0.5
"""Share of numbers below which a numeric column has changed its kind, and is shown as it is."""


def sample_of(profile: DriftProfile, columns: Mapping[str, Any]) -> Sample:
    """Rows as the profile lets them be kept; columns it does not know are left out.

    A column that is not there is not there in the sample: comparing tells it.
    """
    return _built(profile, _kept(profile, columns))


def reference_parquet(profile: DriftProfile, columns: Mapping[str, Any], seed: int = 0) -> bytes:
    """The file's bytes, of at most 2,000 of the rows."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    rows = len(np.asarray(next(iter(columns.values()))))
    places = np.arange(rows)
    if rows > MOST_ROWS:
        drawn = np.random.default_rng(seed).choice(rows, MOST_ROWS, replace=False)
        places = np.sort(drawn)
    part = {name: np.asarray(values)[places] for name, values in columns.items()}
    arrays = {}
    for name, values in _kept(profile, part, reference=True).items():
        kind = pa.float64() if values.dtype.kind == "f" else pa.string()
        arrays[name] = pa.array(values.tolist() if kind == pa.string() else values, kind)
    out = io.BytesIO()
    pq.write_table(pa.table(arrays), out, compression="zstd")
    return out.getvalue()


def reference_sample(profile: DriftProfile, data: bytes) -> Sample:
    """Inverse of ``reference_parquet``, as a sample.

    Raises:
        MalformedRequestError: no such file, too large, or not of this profile.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if len(data) > _MOST_BYTES:
        raise _unreadable(f"it has {len(data)} bytes")
    try:
        with pq.ParquetFile(io.BytesIO(data)) as file:
            if file.metadata.num_rows > MOST_ROWS:
                raise _unreadable(f"it has {file.metadata.num_rows} rows")
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(" ".join(str(error).split())[:200]) from error
    known = set(_names(profile).values())
    found: dict[str, NDArray[Any]] = {}
    for name, field in zip(table.schema.names, table.schema, strict=True):
        if name not in known or field.type not in (pa.float64(), pa.string()):
            raise _unreadable(f"its column {name!r} is not of this profile")
        values = table.column(name)
        if field.type == pa.string():
            texts = np.empty(len(values), dtype=object)
            texts[:] = values.to_pylist()
            found[name] = texts
        else:
            found[name] = values.to_numpy()
    return _built(profile, found)


def _names(profile: DriftProfile) -> dict[str, str]:
    """Column of the profile → of the file."""
    return {one.name: f"{one.role}:{one.name}" for one in profile.columns if one.pii != "mask"}


def _kept(
    profile: DriftProfile, columns: Mapping[str, Any], *, reference: bool = False
) -> dict[str, NDArray[Any]]:
    """By name in the file: float64 with NaN, or texts with None."""
    plain: dict[str, NDArray[Any]] = {}
    for name, known in profile.inputs_by_name.items():
        if name not in columns:
            continue
        if isinstance(known, Embedding):
            plain |= known.columns(columns[name])
        else:
            plain[name] = np.asarray(columns[name])
    names = _names(profile)
    return {
        names[one.name]: _values(one, plain[one.name], reference=reference)
        for one in profile.columns
        if one.name in names and one.name in plain and plain[one.name].ndim == 1
    }


def _values(column: Column, values: NDArray[Any], *, reference: bool) -> NDArray[Any]:
    bins = column.bins
    if column.pii == "bin":
        return _binned(column, values)
    if isinstance(bins, NumericBins):
        numbers, strange = _numbers(values)
        if reference or strange.mean() <= _FEW:
            return numbers
    return _texts(values)


def _binned(column: Column, values: NDArray[Any]) -> NDArray[Any]:
    """Each value as its bin."""
    bins = column.bins
    codes = bins.codes(values)
    if isinstance(bins, NumericBins):
        cuts = bins.cuts
        below = cuts[0] - max(1.0, abs(cuts[0])) if cuts else 0.0
        stand_ins = np.array([np.nan, np.nan, below, *cuts])
        return np.asarray(stand_ins[codes], dtype=np.float64)
    assert isinstance(bins, CategoryBins)
    names = np.array([None, *bins.names[1:]], dtype=object)
    return np.asarray(names[codes])


def _numbers(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Numbers as they are counted, with NaN for missing or none; which are something else."""
    numbers, strange = numbers_of(values)
    numbers[~(np.abs(numbers) < _LARGEST)] = np.nan
    return numbers, strange


def _texts(values: NDArray[Any]) -> NDArray[Any]:
    texts = np.empty(len(values), dtype=object)
    # Times as numpy has them: its list of them depends on their unit.
    listed = values if values.dtype.kind in "mM" else values.tolist()
    texts[:] = [category_of(value) for value in listed]
    return texts


def _built(profile: DriftProfile, kept: Mapping[str, NDArray[Any]]) -> Sample:
    rows = len(next(iter(kept.values()), ()))
    names: list[str] = []
    kinds: list[Kind] = []
    numbers: list[NDArray[Any]] = []
    categories: list[NDArray[Any]] = []
    outputs: list[NDArray[Any]] = []
    projections: list[NDArray[Any]] = []
    labels: NDArray[Any] | None = None
    for column in profile.columns:
        values = kept.get(f"{column.role}:{column.name}")
        if values is None:
            continue
        numeric = values.dtype.kind == "f"
        if column.role == "embedding" and numeric:
            projections.append(values)
        elif column.role == "output" and numeric:
            outputs.append(values)
        elif column.role == "output" and labels is None:
            labels = values
        else:
            names.append(column.name)
            kinds.append(Kind.NUMERIC if numeric else Kind.CATEGORICAL)
            (numbers if numeric else categories).append(values)
    return Sample(
        tuple(names),
        tuple(kinds),
        np.column_stack(numbers) if numbers else np.empty((rows, 0)),
        np.column_stack(categories) if categories else np.empty((rows, 0), object),
        np.column_stack(outputs) if outputs else None,
        labels,
        np.column_stack(projections) if projections else None,
    )


def _unreadable(why: str) -> MalformedRequestError:
    return MalformedRequestError(
        f"the reference sample {FILE} cannot be read: {why}",
        "log the profile again with the model",
    )
