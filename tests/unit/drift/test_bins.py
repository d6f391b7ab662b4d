"""Every value falls into one bin, whatever it is."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import drift.cuts
from drift.bins import (
    CategoryBins,
    NumericBins,
    PresenceBins,
    bins_from,
    category_of,
    fit_bins,
    smoothed,
)
from drift.documents import Fields
from governance.errors import MalformedRequestError
from tests.unit.drift.reference import slow_bin

NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True)


def test_deciles_hold_a_tenth_each_and_nothing_outside() -> None:
    bins = NumericBins.fit(np.random.default_rng(0).standard_normal(10_000))
    counts = bins.count(np.random.default_rng(0).standard_normal(10_000))
    assert bins.names[:2] == ("missing", "unparsable")
    assert counts[[0, 1, 2, -1]].tolist() == [0, 0, 0, 0]
    # Ten ranges, each from one decile up to the next; the first and last decile are values too.
    assert len(counts) == 14
    assert np.abs(counts[3:-1] - 1000).max() <= 1


def test_a_constant_column_keeps_itself_apart() -> None:
    bins = NumericBins.fit(np.full(100, 3.0))
    assert bins.names == ("missing", "unparsable", "below 3", "3", "above 3")
    assert bins.count([3.0, 3.0, 2.9, 3.1, math.nan]).tolist() == [1, 0, 1, 2, 1]


def test_a_value_that_many_rows_have_gets_its_own_bin() -> None:
    values = np.concatenate([np.zeros(800), np.linspace(1, 100, 200)])
    bins = NumericBins.fit(values)
    assert "0" in bins.names
    assert bins.count(values)[bins.names.index("0")] == 800


def test_few_values_get_a_bin_each() -> None:
    bins = NumericBins.fit(np.array([0, 1] * 50 + [2]))
    assert bins.names[2:] == ("below 0", "0 to 1", "1 to 2", "2", "above 2")
    assert bins.count(np.array([0, 1, 2, 2, 3]))[2:].tolist() == [0, 1, 1, 2, 1]


def test_a_column_without_a_number_still_counts() -> None:
    bins = NumericBins.fit(np.full(50, math.nan))
    assert bins.names == ("missing", "unparsable", "any number")
    assert bins.count([math.nan, 1.0, "x", None]).tolist() == [2, 1, 1]


def test_what_is_no_number_is_missing_or_unparsable() -> None:
    bins = NumericBins.fit(np.arange(100.0))
    values = [
        None,
        math.nan,
        math.inf,
        -math.inf,
        pd.NA,
        pd.NaT,
        "12",
        b"12",
        object(),
        [1],
        10**400,
    ]
    counts = bins.count(np.array([*values, 5], dtype=object))
    assert counts[:2].tolist() == [6, 5]
    assert counts[2:].sum() == 1


def test_numbers_of_every_type_count_alike() -> None:
    bins = NumericBins.fit(np.arange(100.0))
    wanted = bins.count(np.array([5.0, 50.0])).tolist()
    for dtype in ("f4", "f2", "i8", "i2", "u1", "longdouble"):
        assert bins.count(np.array([5, 50], dtype=dtype)).tolist() == wanted, dtype
    mixed: list[Any] = [Decimal(5), np.int32(50)]
    assert bins.count(np.array(mixed, dtype=object)).tolist() == wanted
    assert bins.count(np.array([True, False])).sum() == 2


def test_strings_in_a_numeric_column_are_unparsable_even_if_they_look_like_numbers() -> None:
    bins = fit_bins(np.arange(100))
    assert bins.count(np.arange(100).astype(str))[1] == 100


def test_times_are_numbers() -> None:
    times = np.array(["2024-01-01", "2024-06-01", "NaT"], dtype="datetime64[ns]")
    bins = fit_bins(times)
    assert isinstance(bins, NumericBins)
    assert bins.count(times)[0] == 1
    aware = np.array([datetime(2024, 6, 1, tzinfo=UTC), datetime(2024, 6, 1)], dtype=object)
    assert (bins.codes(aware) == bins.codes(times[1:2])[0]).all()
    assert isinstance(fit_bins(aware), NumericBins)


@given(
    reference=arrays.arrays(np.float64, st.integers(1, 60), elements=NUMBERS),
    window=arrays.arrays(np.float64, st.integers(0, 60), elements=NUMBERS),
    bins=st.integers(1, 12),
)
def test_counting_agrees_with_looking_at_each_value(reference: Any, window: Any, bins: int) -> None:
    fitted = NumericBins.fit(reference, bins)
    assert list(fitted.cuts) == sorted(set(fitted.cuts))
    for values in (reference, window, window.astype(np.float32)):
        slow = np.zeros(fitted.size, dtype=np.int64)
        for value in values.tolist():
            slow[slow_bin(value, fitted.cuts)] += 1
        assert fitted.count(values).tolist() == slow.tolist()
        codes = np.bincount(fitted.codes(values), minlength=fitted.size)
        assert codes.tolist() == slow.tolist()
    # The reference never lies outside itself, and names tell bins apart.
    assert fitted.count(reference)[2] == 0 or not fitted.cuts
    assert fitted.count(reference)[-1] == 0 or not fitted.cuts
    assert len(set(fitted.names)) == fitted.size


def test_float32_values_fall_where_their_float64_do() -> None:
    rng = np.random.default_rng(5)
    single = rng.standard_normal(5000).astype(np.float32)
    for cuts in (rng.standard_normal(9), single[:9].astype(np.float64)):
        bins = NumericBins(tuple(sorted(cuts.tolist())))
        assert bins.count(single).tolist() == bins.count(single.astype(np.float64)).tolist()


def test_more_rows_than_fit_a_piece() -> None:
    bins = NumericBins.fit(np.arange(1000.0))
    many = np.tile(np.arange(1000.0), 9)[:8192]
    assert bins.count(many).tolist() == np.bincount(bins.codes(many), minlength=bins.size).tolist()


def test_categories_below_two_percent_are_merged_and_new_ones_are_unseen() -> None:
    reference = np.array(["a"] * 600 + ["b"] * 385 + ["c"] * 10 + ["d"] * 5)
    bins = CategoryBins.fit(reference)
    assert bins.names == ("missing", "unseen", "rare", "a", "b")
    assert bins.count(np.array(["a", "c", "d", "z", None], dtype=object)).tolist() == [
        1,
        1,
        2,
        1,
        0,
    ]
    assert bins.count(reference).tolist() == [0, 0, 15, 600, 385]


def test_a_column_of_identifiers_tells_no_unseen_from_rare() -> None:
    bins = CategoryBins.fit(np.array([f"id{i}" for i in range(5000)]))
    assert bins.rare is None
    assert bins.count(np.array(["id7", "new"], dtype=object)).tolist() == [0, 0, 2]


def test_categories_are_the_same_in_whatever_type_they_come() -> None:
    assert category_of(3) == category_of(3.0) == category_of(np.float32(3)) == category_of("3")
    assert category_of(True) == category_of(np.bool_(True)) == "true"
    assert category_of(2.5) == "2.5"
    assert category_of(b"a") == "a"
    assert category_of("\ud800") == "?"
    long = category_of("x" * 1000)
    assert long is not None
    assert len(long) == 64
    assert long != category_of("x" * 1001)
    for absent in (None, math.nan, np.datetime64("NaT"), pd.NaT, pd.NA, Decimal("NaN")):
        assert category_of(absent) is None


def test_a_category_called_missing_is_not_a_missing_value() -> None:
    bins = CategoryBins.fit(np.array(["missing", "unseen", "rare"] * 10))
    assert len(set(bins.names)) == bins.size
    assert bins.count(["missing"]).tolist() == [0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.bool_, object, "U1"])
def test_categories_count_as_they_code(dtype: Any) -> None:
    values = np.array([0, 1, 1, 0, 1]).astype(dtype)
    bins = CategoryBins.fit(values)
    assert bins.count(values).tolist() == np.bincount(bins.codes(values), minlength=5).tolist()
    assert bins.count(values)[3:].tolist() == [2, 3]


def test_the_kind_follows_from_the_values() -> None:
    def kind(values: Any) -> str:
        return fit_bins(values).kind

    assert kind([1, 2]) == kind([1.5]) == kind(np.array([1, None, 2], dtype=object)) == "numeric"
    assert kind(["a"]) == kind([True]) == kind(np.array([True, None], dtype=object)) == "category"
    assert kind(np.array([1] * 19 + ["n/a"], dtype=object)) == "numeric"
    assert kind(np.array([1] * 8 + ["a"] * 2, dtype=object)) == "category"
    assert kind(pd.Series([1, None], dtype="Int64")) == "numeric"
    assert kind(pd.Series(["a"], dtype="category")) == "category"
    with pytest.raises(MalformedRequestError, match="no kind of column"):
        fit_bins([1], kind="ordinal")


def test_a_private_column_tells_neither_its_extremes_nor_its_rare_categories() -> None:
    salaries = np.random.default_rng(0).lognormal(10, 1, 1000)
    bins = NumericBins.fit(salaries, private=True)
    assert salaries.min() not in bins.cuts
    assert max(bins.cuts) < salaries.max()
    assert bins.count(salaries)[2] == pytest.approx(100, abs=2)
    towns = CategoryBins.fit(np.array(["a"] * 99 + ["hamlet"]), private=True)
    assert towns.rare is None
    assert NumericBins.fit(np.full(9, 4.0), private=True).size >= 3


def test_a_masked_column_tells_only_whether_there_is_a_value() -> None:
    bins = PresenceBins()
    assert bins.count(np.array(["x", None, math.nan], dtype=object)).tolist() == [2, 1]
    assert bins.count(np.array([1.0, math.nan])).tolist() == [1, 1]
    assert bins.count(np.array([1, 2])).tolist() == [0, 2]
    assert bins.count(np.array(["NaT", 5], dtype="datetime64[s]")).tolist() == [1, 1]
    assert bins.count(np.array([], dtype=object)).tolist() == [0, 0]


def test_no_bin_is_without_probability() -> None:
    p = smoothed([0, 0, 98])
    assert p.tolist() == pytest.approx([1 / 101, 1 / 101, 99 / 101])
    assert smoothed([[0, 1], [3, 4]]).sum(axis=-1).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "bins",
    [
        NumericBins.fit(np.random.default_rng(0).standard_normal(500)),
        NumericBins(()),
        CategoryBins.fit(np.array(["a"] * 99 + ["b"])),
        CategoryBins(("ø",), None),
        PresenceBins(),
    ],
)
def test_bins_come_back_from_json(bins: Any) -> None:
    assert bins_from(Fields(bins.to_dict(), "bins")) == bins


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({"kind": "histogram"}, "none of numeric"),
        ({"kind": "numeric"}, "lacks 'cuts'"),
        ({"kind": "numeric", "cuts": ["2.0", "1.0"]}, "do not ascend"),
        ({"kind": "numeric", "cuts": ["1.0", "1.0"]}, "do not ascend"),
        ({"kind": "numeric", "cuts": ["inf"]}, "do not ascend"),
        ({"kind": "numeric", "cuts": ["nan"]}, "no number"),
        ({"kind": "numeric", "cuts": ["1.00"]}, "no number"),
        ({"kind": "numeric", "cuts": [1.0]}, "no number"),
        ({"kind": "numeric", "cuts": [], "more": 1}, "unknown keys: more"),
        ({"kind": "category", "categories": ["b", "a"], "rare": []}, "not in order"),
        ({"kind": "category", "categories": [1], "rare": []}, "no text"),
        ({"kind": "category", "categories": []}, "lacks 'rare'"),
        ([], "is not an object"),
    ],
)
def test_malformed_bins_are_refused(document: Any, complaint: str) -> None:
    with pytest.raises(MalformedRequestError, match=complaint):
        bins_from(Fields(document, "bins"))


def test_many_cuts_are_counted_in_parts() -> None:
    rng = np.random.default_rng(0)
    block = rng.normal(size=(3, 2_000))
    cuts = np.sort(rng.normal(size=(3, 800)))
    assert block.size * cuts.shape[1] > 2 * drift.cuts._AT_ONCE
    expected = (block[:, None, :] < cuts[:, :, None]).sum(axis=2)
    buffered = np.getbufsize()
    assert drift.cuts.below_cuts(block, cuts).tolist() == expected.tolist()
    assert np.getbufsize() == buffered
