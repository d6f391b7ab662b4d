"""A recorded value is counted as the raw one is, whatever type it came in."""

from __future__ import annotations

import io
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from drift.bins import NumericBins
from drift.block_rows import rows_of, sample_of
from drift.blocks import Block, from_arrow, to_arrow
from drift.columns import typed
from drift.fitting import fit_profile
from drift.profile import DriftProfile, Pii
from drift.recorder import Recorder
from drift.recording import recorder_of
from drift.reference import reference_parquet, reference_sample
from drift.training import fit_with_reference
from drift.window import WindowCounts, count_rows

ROWS = 400


def _objects(*values: Any) -> pd.Series:
    rng = np.random.default_rng(5)
    found = np.empty(ROWS, dtype=object)
    for place, choice in enumerate(rng.integers(0, len(values), ROWS)):
        found[place] = values[choice]
    return pd.Series(found)


def _numbers() -> Any:
    return np.random.default_rng(3).integers(0, 40, ROWS)


def _times(start: str = "2024-01-01") -> pd.Series:
    return pd.Series(pd.Timestamp(start) + pd.to_timedelta(_numbers(), "h"))


def _with_gaps(values: pd.Series) -> pd.Series:
    values = values.copy()
    values[::7] = pd.NA
    return values


COLUMNS: dict[str, pd.Series] = {
    "float64": pd.Series(_numbers() / 7),
    "float32": pd.Series((_numbers() / 7).astype(np.float32)),
    "float16": pd.Series((_numbers() / 7).astype(np.float16)),
    "int8": pd.Series(_numbers().astype(np.int8)),
    "uint64": pd.Series(_numbers().astype(np.uint64) + np.uint64(2**63)),
    "bool": pd.Series(_numbers() < 10),
    "Int64": _with_gaps(pd.Series(_numbers(), dtype="Int64")),
    "large Int64": _with_gaps(pd.Series(_numbers() + 2**60, dtype="Int64")),
    "Float64": _with_gaps(pd.Series(_numbers() / 7, dtype="Float64")),
    "boolean": _with_gaps(pd.Series(_numbers() < 10, dtype="boolean")),
    "string": _with_gaps(pd.Series(_numbers() // 9, dtype="string")),
    "object with NaN": _objects("a", "b", np.nan, None),
    "category": pd.Series(pd.Categorical(["a", "b", None, "c"] * (ROWS // 4))),
    "datetime64[ns]": _times(),
    "datetime64[s]": _times().astype("datetime64[s]"),
    "datetime64[us] with NaT": _with_gaps(_times().astype("datetime64[us]")),
    "before 1970": _times("1931-05-01 01:02:03.456789"),
    "datetime64, Bergen": _times().dt.tz_localize("Europe/Oslo"),
    "datetime64, UTC with NaT": _with_gaps(_times().dt.tz_localize("UTC")),
    "timedelta64[ns]": _with_gaps(pd.Series(pd.to_timedelta(_numbers(), "h"))),
    "timedelta64[s]": pd.Series(pd.to_timedelta(_numbers(), "h")).astype("timedelta64[s]"),
    "datetimes": _objects(datetime(2024, 1, 2), datetime(2024, 5, 6, 7, 8, tzinfo=UTC), None),
    "dates": _objects(date(2024, 1, 2), date(2025, 3, 4), None),
    "timedeltas": _objects(timedelta(hours=1), timedelta(days=3), None),
    "times of numpy": _objects(np.datetime64("2024-01-02"), np.datetime64("NaT"), None),
    "Decimal": _objects(Decimal("1.50"), Decimal("2"), Decimal("Infinity"), Decimal("NaN")),
    "large Decimal": _objects(Decimal("1e400"), Decimal("-1e-400"), Decimal(10**30)),
    "Fraction": _objects(Fraction(1, 3), Fraction(7), Fraction(10**400)),
    "bytes": _objects(b"a", b"b\xff", b"", None),
    "numpy's": _objects(np.float32(0.1), np.int16(3), np.bool_(True), np.str_("a"), np.float64(2)),
    "mixed": _objects(1, "1", 1.5, True, None, [1, 2], {"k": 1}, (1, 2), 10**400),
    "numbers and infinity": _objects(1.0, np.inf, -np.inf, np.nan, "x"),
    "complex": pd.Series(_numbers() + 1j),
    "Period": pd.Series(pd.period_range("2024-01", periods=ROWS, freq="D")),
}  # fmt: skip

Kind = Literal["numeric", "category"]


def fitted(kind: Kind | None, pii: Pii, columns: dict[str, pd.Series]) -> DriftProfile:
    kinds = {} if kind is None else dict.fromkeys(columns, kind)
    return fit_profile(
        pd.DataFrame(columns),
        {"score": np.random.default_rng(1).random(ROWS)},
        model="fraud",
        window=20,
        kinds=kinds,
        pii=dict.fromkeys(columns, pii),
    )


def written(recorder: Recorder) -> Block:
    """What was recorded, from its file; as Parquet it is the same."""
    (block,) = recorder.flush()
    data = to_arrow(block)
    table, copy = feather.read_table(io.BytesIO(data)), io.BytesIO()
    pq.write_table(table, copy)
    assert repr(pq.read_table(copy).to_pydict()) == repr(table.to_pydict())
    return from_arrow(data)


def counted(profile: DriftProfile, block: Block) -> WindowCounts:
    return count_rows(profile, rows_of(profile, block).columns)


@pytest.mark.parametrize("pii", ["keep", "mask", "bin"])
@pytest.mark.parametrize("kind", [None, "numeric", "category"])
def test_recorded_rows_count_as_the_raw_ones(kind: Kind | None, pii: Pii) -> None:
    columns, score = dict(COLUMNS), np.random.default_rng(2).random(ROWS)
    profile = fitted(kind, pii, columns)
    raw = count_rows(profile, pd.DataFrame({**columns, "score": score}))
    recorder = recorder_of(profile, source="r-1")
    frame = pd.DataFrame(columns)
    recorder.append(frame.iloc[:150], score[:150], "7", request_id="a")
    recorder.append(frame.iloc[150:], score[150:], "7", request_id="b")
    told = counted(profile, written(recorder))
    for name in columns:
        place = profile.layout.names.index(name)
        ours = profile.layout.of_column(place, told.counts).tolist()
        theirs = profile.layout.of_column(place, raw.counts).tolist()
        bins = profile.columns[place].bins
        if pii == "bin" and isinstance(bins, NumericBins):
            # A binned value that is no number leaves as a missing one; of a column in which the
            # reference had no number, whether there is a value.
            missing, strange, *rest = theirs
            theirs = [missing + strange, 0, *rest] if bins.cuts else [missing, 0, strange + rest[0]]
        assert ours == theirs, name


@pytest.mark.parametrize("kind", [None, "category"])
def test_a_column_of_times_is_counted_like_its_own_reference(kind: Kind | None) -> None:
    """So that the first window does not alert."""
    columns = {name: COLUMNS[name] for name in COLUMNS if "datetime" in name or "delta" in name}
    profile = fitted(kind, "keep", columns)
    recorder = recorder_of(profile, source="r-1")
    recorder.append({name: list(values) for name, values in columns.items()}, np.zeros(ROWS), "7")
    frames = recorder_of(profile, source="r-2")
    frames.append(pd.DataFrame(columns), np.zeros(ROWS), "7")
    told = counted(profile, written(frames))
    for place, column in enumerate(profile.columns[: len(columns)]):
        found = profile.layout.of_column(place, told.counts).tolist()
        assert found == list(column.counts), column.name
    if kind is None:
        lists = counted(profile, written(recorder))
        stamps = [n for n in columns if "delta" not in n]  # pandas' lists of these are no numbers
        for name in stamps:
            place = profile.layout.names.index(name)
            found = profile.layout.of_column(place, lists.counts).tolist()
            assert found == list(profile.columns[place].counts), name


@pytest.mark.parametrize("pii", ["keep", "bin"])
@pytest.mark.parametrize("kind", [None, "category"])
def test_detectors_compare_recorded_rows_with_the_reference_as_it_was(
    kind: Kind | None, pii: Pii
) -> None:
    profile = fitted(kind, pii, COLUMNS)
    frame = pd.DataFrame(COLUMNS)
    score = np.random.default_rng(1).random(ROWS)
    reference = reference_sample(
        profile, reference_parquet(profile, {**COLUMNS, "score": pd.Series(score)})
    )
    recorder = recorder_of(profile, source="r-1")
    recorder.append(frame, score, "7")
    block = written(recorder)
    recorded = sample_of(profile, block.inputs, block.outputs)
    assert dict(zip(recorded.names, recorded.kinds, strict=True)) == dict(
        zip(reference.names, reference.kinds, strict=True)
    )
    for place, name in enumerate(reference.numeric):
        ours, theirs = recorded.numbers[:, place], reference.numbers[:, place]
        assert np.array_equal(ours, theirs, equal_nan=True), name
    for place, name in enumerate(reference.categorical):
        ours, theirs = recorded.categories[:, place], reference.categories[:, place]
        assert ours.tolist() == theirs.tolist(), name


def test_a_masked_embedding_is_not_in_the_reference_rows() -> None:
    fitted_rows = fit_with_reference(
        {"x": np.arange(ROWS)}, {"score": np.zeros(ROWS)}, model="fraud", window=20,
        embeddings={"e": VECTORS}, pii={"e": "mask"},
    )  # fmt: skip
    assert fitted_rows.reference is not None
    table = pq.read_table(io.BytesIO(fitted_rows.reference))
    assert table.column_names == ["feature:x", "output:score"]


def test_large_whole_numbers_beside_missing_ones_are_not_rounded() -> None:
    assert typed([2**53 + 1, None]).tolist() == [2**53 + 1, None]
    assert typed([3, None]).dtype == np.float64


# -- embeddings

WIDTH = 4
VECTORS = np.random.default_rng(8).normal(size=(ROWS, WIDTH))
EMBEDDED = fit_profile(
    {"x": np.arange(ROWS)},
    {"score": np.random.default_rng(1).random(ROWS)},
    model="fraud",
    window=20,
    embeddings={"e": VECTORS},
    directions=3,
)


def part(counts: WindowCounts, name: str) -> list[int]:
    place = EMBEDDED.layout.names.index(name)
    found: list[int] = EMBEDDED.layout.of_column(place, counts.counts).tolist()
    return found


def test_one_component_that_is_a_text_takes_its_own_vector_alone() -> None:
    """And not those of the whole block."""
    recorder = recorder_of(EMBEDDED, source="r-1")
    rows = [[i, *vector] for i, vector in enumerate(VECTORS.tolist())]
    recorder.append(rows, np.zeros(ROWS), "7")
    recorder.append([[1, 0.5, "oops", 0.5, 0.5], [2, 0.5, None, 0.5, 0.5]], [0.0, 0.0], "7")
    told = counted(EMBEDDED, written(recorder))
    whole = EMBEDDED.embeddings[0].columns(VECTORS)
    for column in EMBEDDED.columns[2:]:
        if column.role == "embedding":
            expected = column.bins.count(whole[column.name]).tolist()
            expected[0] += 1
            expected[1] += 1
            assert part(told, column.name) == expected
    assert (dict(told.missing_columns), dict(told.extra_columns)) == ({}, {})


def test_an_embedding_that_never_came_is_missing_and_no_more() -> None:
    recorder = recorder_of(EMBEDDED, source="r-1")
    recorder.append([{"x": 1}], [0.5], "7")
    told = counted(EMBEDDED, written(recorder))
    assert (dict(told.missing_columns), dict(told.extra_columns)) == ({"e": 1}, {})


def test_a_component_beyond_every_float_is_no_vector() -> None:
    vectors = [[1.0] * WIDTH, [10**400] * WIDTH, None]
    counts = part(count_rows(EMBEDDED, {"e": vectors}), "e#00")
    assert (counts[:2], sum(counts)) == ([1, 1], 3)


def _vectors_with_odd_ones() -> list[Any]:
    vectors: list[Any] = VECTORS.tolist()
    vectors[3:9] = [None, [1.0, 2.0], "text", [1.0, None, 0.5, 0.5], ["1"] * WIDTH, (1, 2, 3, 4)]
    return vectors


@pytest.mark.parametrize("where", ["inputs", "outputs"])
@pytest.mark.parametrize("shape", ["records", "columns", "frame", "arrays", "matrix", "wide"])
def test_vectors_count_as_the_raw_ones_whatever_they_come_in(shape: str, where: str) -> None:
    vectors: Any = _vectors_with_odd_ones()
    if shape in ("matrix", "wide"):
        vectors = VECTORS if shape == "matrix" else np.zeros((ROWS, WIDTH + 1))
    elif shape == "arrays":
        vectors = [np.array(v) if isinstance(v, list) else v for v in vectors]
    raw = count_rows(EMBEDDED, {"e": vectors})
    table: Any = {"e": vectors}
    if shape == "records":
        table = [{"e": vector} for vector in vectors]
    elif shape == "frame":
        table = pd.DataFrame({"e": pd.Series(vectors)})
    rest, score = {"x": np.arange(ROWS)}, np.zeros(ROWS)
    recorder = recorder_of(EMBEDDED, source="r-1")
    if where == "inputs":
        recorder.append(table, score, "7")
    else:
        recorder.append(rest, table, "7")
    told = counted(EMBEDDED, written(recorder))
    names = [column.name for column in EMBEDDED.columns if column.role == "embedding"]
    assert [part(told, name) for name in names] == [part(raw, name) for name in names]
    assert "e" not in told.missing_columns


def test_vectors_are_recorded_under_the_name_that_a_signature_has() -> None:
    recorder = recorder_of(EMBEDDED, source="r-1", columns=["e", "x"])
    recorder.append([[v, i] for i, v in enumerate(VECTORS.tolist())], np.zeros(ROWS), "7")
    recorder.append(pd.DataFrame({"x": [1], "e": [[1.0] * WIDTH]}), [0.5], "7")
    block = written(recorder)
    assert list(block.inputs) == [*(f"e.{place}" for place in range(WIDTH)), "x"]
    assert block.extra == ()
    assert np.array_equal(block.inputs["e.2"][:ROWS], VECTORS[:, 2])
