"""Windows: blocks as counts, merged in any order, each row once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.cutter import Rows, Tally, WindowCutter
from drift.fitting import fit_profile
from drift.profile import DriftProfile
from drift.window import WindowCounts, count_rows
from governance.canonical import canonical_json
from governance.errors import ConfigurationError, MalformedRequestError, TamperedError
from tests.unit.drift.reference import live_rows, slow_counts, small_profile

PROFILE = small_profile()
NOW = 10**12


def _column(counts: WindowCounts, name: str) -> dict[str, int]:
    """Counts of one column by bin name, without empty bins."""
    layout = PROFILE.layout
    place = layout.names.index(name)
    found = layout.of_column(place, counts.counts).tolist()
    return {n: c for n, c in zip(layout.bins[place].names, found, strict=True) if c}


def _part(rows: dict[str, Any], low: int, high: int) -> dict[str, Any]:
    return {name: values[low:high] for name, values in rows.items()}


def test_the_quick_way_counts_like_the_slow_one() -> None:
    rows = live_rows(5000)
    rows["amount"] = rows["amount"] * 3 - 20
    rows["amount"][::7] = np.nan
    rows["score"] = rows["score"].astype(np.float32)
    counts = count_rows(PROFILE, rows, times_ms=5)
    assert counts.counts.tolist() == slow_counts(PROFILE, rows).tolist()
    assert counts.rows == 5000
    assert (counts.first_ms, counts.last_ms) == (5, 5)


def test_a_data_frame_with_its_columns_in_another_order_counts_alike() -> None:
    rows = live_rows(300)
    frame = pd.DataFrame(dict(reversed(rows.items())))
    assert count_rows(PROFILE, frame) == count_rows(PROFILE, rows)


def test_a_missing_column_counts_as_missing_values_and_is_named() -> None:
    rows = live_rows(50)
    del rows["amount"]
    counts = count_rows(PROFILE, rows)
    assert counts.missing_columns == {"amount": 50}
    assert _column(counts, "amount") == {"missing": 50}


def test_an_extra_column_is_named_and_counted() -> None:
    counts = count_rows(PROFILE, {**live_rows(50), "new": np.zeros(50), "x\ud800" * 200: [1] * 50})
    assert counts.extra_columns["new"] == 50
    assert counts.extra_cells == 100
    again = WindowCounts.from_json(PROFILE, counts.to_json())
    assert again == counts


def test_integers_that_became_strings_are_unparsable() -> None:
    rows = live_rows(50)
    rows["visits"] = rows["visits"].astype(str)
    assert _column(count_rows(PROFILE, rows), "visits") == {"unparsable": 50}
    rows["visits"] = np.zeros((50, 2))
    rows["town"] = np.zeros((50, 2))
    counts = count_rows(PROFILE, rows)
    assert _column(counts, "visits") == {"unparsable": 50}
    assert _column(counts, "town") == {"unseen": 50}


def test_one_nan_row_blinds_nobody() -> None:
    rows = live_rows(400)
    rows["amount"][3] = np.nan
    found = _column(count_rows(PROFILE, rows), "amount")
    assert found.pop("missing") == 1
    assert sum(found.values()) == 399
    assert len(found) >= 10


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_missing_values_anywhere_count_like_the_slow_way(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((3000, 7)).astype(dtype)
    profile = fit_profile(matrix, model="m", window=300)
    for share in (0.001, 0.3):
        holes = matrix.copy()
        for hole in (np.nan, np.inf, -np.inf):
            holes[rng.random(matrix.shape) < share] = hole
        holes[:, 3] = np.nan
        columns = {str(place): holes[:, place] for place in range(7)}
        wanted = slow_counts(profile, columns).tolist()
        assert count_rows(profile, columns).counts.tolist() == wanted


def test_a_column_of_nan_only_is_missing_and_a_new_category_unseen() -> None:
    rows = live_rows(40)
    rows["amount"][:] = np.nan
    rows["town"] = np.array(["Espoo"] * 40)
    counts = count_rows(PROFILE, rows)
    assert _column(counts, "amount") == {"missing": 40}
    assert _column(counts, "town") == {"unseen": 40}


def test_lists_of_mixed_values_keep_their_types() -> None:
    rows = live_rows(4)
    rows["visits"] = [1, "2", None, 3.0]
    found = _column(count_rows(PROFILE, rows), "visits")
    assert (found.pop("missing"), found.pop("unparsable"), sum(found.values())) == (1, 1, 2)


def test_no_rows_and_one_row_are_windows_too() -> None:
    empty = count_rows(PROFILE, live_rows(0))
    assert empty == WindowCounts.empty(PROFILE)
    assert count_rows(PROFILE, {}) == empty
    one = count_rows(PROFILE, live_rows(1), times_ms=[7])
    assert (one.rows, one.first_ms, one.last_ms) == (1, 7, 7)
    assert one + empty == one
    assert WindowCounts.from_json(PROFILE, empty.to_json()) == empty


def test_columns_of_differing_lengths_are_refused() -> None:
    with pytest.raises(MalformedRequestError, match="'fee' has 2 values in a block of 3 rows"):
        count_rows(PROFILE, {**live_rows(3), "fee": [1, 2]})


BLOCKS = st.lists(
    st.tuples(
        st.integers(0, 6),
        st.integers(0, 10**6),
        st.sets(st.sampled_from(["amount", "town", "score", "fee"]), max_size=2),
        st.lists(st.integers(0, 300).map("extra{}".format), max_size=150, unique=True),
    ),
    min_size=3,
    max_size=3,
)


@settings(deadline=None, max_examples=40)
@given(BLOCKS, st.integers(0, 2**32 - 1))
def test_merging_is_commutative_and_associative_with_a_neutral_window(
    blocks: list[Any], seed: int
) -> None:
    counted = []
    for size, time, gone, extra in blocks:
        rows = {name: v for name, v in live_rows(size, seed).items() if name not in gone}
        rows |= {name: np.zeros(size) for name in extra}
        counted.append(count_rows(PROFILE, rows, times_ms=time, rows=size))
    a, b, c = counted
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + WindowCounts.empty(PROFILE) == a
    assert WindowCounts.from_json(PROFILE, (a + b + c).to_json()) == a + b + c


def test_it_does_not_matter_how_rows_are_cut_into_blocks() -> None:
    rows = live_rows(1000)
    whole = count_rows(PROFILE, rows)
    merged = WindowCounts.empty(PROFILE)
    for low, high in ((600, 1000), (0, 1), (1, 600)):
        merged += count_rows(PROFILE, _part(rows, low, high))
    assert merged == whole
    assert whole != WindowCounts.empty(PROFILE)
    assert whole != "a window"


def test_counts_by_another_profile_are_refused() -> None:
    other = small_profile(seed=1, window=400)
    with pytest.raises(TamperedError, match="cannot be added"):
        WindowCounts.empty(PROFILE) + WindowCounts.empty(other)
    with pytest.raises(TamperedError, match="was counted by"):
        WindowCounts.from_json(PROFILE, WindowCounts.empty(other).to_json())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": "chancery.drift-window/v9"}, "this version reads"),
        ({"rows": 3}, "do not sum"),
        ({"rows": -1}, "whole number"),
        ({"counts": [1, 2]}, "2 counts for"),
        ({"counts": "many"}, "no list"),
        ({"first_ms": 9, "last_ms": 8}, "ends before"),
        ({"first_ms": 9}, "ends before"),
        ({"extra_columns": {"x": -1}}, "whole number"),
        ({"more": 1}, "unknown keys"),
    ],
)
def test_a_malformed_window_is_refused(change: dict[str, Any], complaint: str) -> None:
    document = {**json.loads(WindowCounts.empty(PROFILE).to_json()), **change}
    with pytest.raises(MalformedRequestError, match=complaint):
        WindowCounts.from_json(PROFILE, canonical_json(document))


# -- cutting -------------------------------------------------------------------------------------


def _block(number: int, size: int, time: Any, source: str = "a", seed: int = 1) -> Rows:
    rows = live_rows(1000, seed)
    low = number * 37 % 700
    return Rows(source, number, _part(rows, low, low + size), time)


def test_windows_by_count_have_exactly_w_rows() -> None:
    cutter = WindowCutter(PROFILE, rows=100)
    closed = []
    for number, size in enumerate([64, 64, 250, 1, 0, 21]):
        closed += cutter.add(_block(number, size, NOW + number), now_ms=NOW)
    assert [window.index for window in closed] == [0, 1, 2, 3]
    assert [window.counts.rows for window in closed] == [100] * 4
    assert cutter.open_rows == 0
    total = closed[0].counts + closed[1].counts + closed[2].counts + closed[3].counts
    parts = [_block(n, s, 0) for n, s in enumerate([64, 64, 250, 1, 0, 21])]
    wanted = sum(slow_counts(PROFILE, part.columns) for part in parts)
    assert total.counts.tolist() == wanted.tolist()


def test_windows_by_time_hold_their_own_rows_in_whatever_order_they_come() -> None:
    rows, rng = live_rows(600), np.random.default_rng(0)
    times = NOW + np.arange(600) * 100  # a minute: six windows of ten seconds
    blocks = [
        Rows("ab"[i % 2], i // 2, _part(rows, i * 20, i * 20 + 20), times[i * 20 : i * 20 + 20])
        for i in range(30)
    ]
    ordered = WindowCutter(PROFILE, every_ms=10_000, lateness_ms=60_000)
    for block in blocks:
        ordered.add(block, now_ms=NOW + 60_000)
    ordered.flush()
    mixed = WindowCutter(PROFILE, every_ms=10_000, lateness_ms=60_000)
    for place in rng.permutation(30):
        mixed.add(blocks[place], now_ms=NOW + 60_000)
        mixed.add(blocks[place], now_ms=NOW + 60_000)  # and everything twice
    mixed.flush()
    assert [(w.index, w.counts) for w in mixed.ready] == [
        (w.index, w.counts) for w in ordered.ready
    ]
    assert [w.counts.rows for w in mixed.ready] == [100] * 6
    assert mixed.total.duplicate_blocks == 30
    assert mixed.total.late_rows == 0


def test_a_window_by_time_closes_when_nothing_can_come_any_more() -> None:
    cutter = WindowCutter(PROFILE, every_ms=1000, lateness_ms=500)
    assert cutter.add(_block(0, 3, NOW), now_ms=NOW) == ()
    assert cutter.tick(now_ms=NOW + 1499) == ()
    (window,) = cutter.tick(now_ms=NOW + 1500)
    assert (window.index, window.counts.rows) == (NOW // 1000, 3)
    assert cutter.tick(now_ms=NOW - 10**6) == ()
    # Five silent seconds give no windows; the index tells.
    (later,) = cutter.add(_block(1, 2, NOW + 6000), now_ms=NOW + 6000) + cutter.flush()
    assert later.index == window.index + 6


def test_rows_within_the_lateness_go_to_their_window_and_older_ones_are_counted_as_late() -> None:
    cutter = WindowCutter(PROFILE, every_ms=1000, lateness_ms=2000)
    cutter.add(_block(0, 3, NOW + 2500), now_ms=NOW + 2500)
    assert cutter.add(_block(1, 4, NOW), now_ms=NOW + 2500) == ()  # the clock went back; in time
    (first,) = cutter.add(_block(2, 1, NOW + 3000), now_ms=NOW + 3000)
    assert (first.index, first.counts.rows) == (NOW // 1000, 4)
    cutter.add(_block(3, 5, NOW + 100), now_ms=NOW + 3000)
    assert cutter.total.late_rows == 5
    (second,) = cutter.add(_block(4, 1, NOW + 5000), now_ms=NOW + 5000)
    assert second.tally == Tally(late_rows=5)
    assert second.index == first.index + 2


def test_a_clock_that_goes_back_by_count_is_late_or_not_by_the_same_rule() -> None:
    cutter = WindowCutter(PROFILE, rows=10, lateness_ms=1000)
    cutter.add(_block(0, 5, NOW), now_ms=NOW)
    (window,) = cutter.add(_block(1, 6, [NOW - 900] * 5 + [NOW - 1001]), now_ms=NOW)
    assert (window.counts.first_ms, window.counts.last_ms) == (NOW - 900, NOW)
    assert window.tally.late_rows == 1


def test_one_clock_in_the_future_makes_nobody_else_late() -> None:
    cutter = WindowCutter(PROFILE, rows=10, lateness_ms=1000, ahead_ms=1000)
    cutter.add(_block(0, 5, NOW + 10**9), now_ms=NOW)
    assert cutter.total == Tally(ahead_rows=5)
    (window,) = cutter.add(_block(1, 10, NOW), now_ms=NOW)
    assert window.counts.rows == 10
    assert window.tally.anything


def test_a_malformed_block_leaves_nothing_behind_and_may_be_sent_again() -> None:
    cutter = WindowCutter(PROFILE, rows=10)
    before = cutter.to_json()
    for bad in (
        Rows("a", 0, live_rows(5), [1, 2]),
        Rows("a", 0, live_rows(5), [1.5] * 5),
        Rows("a", 0, {**live_rows(5), "fee": [1]}, NOW),
        Rows("", 0, live_rows(5), NOW),
        Rows("x" * 200, 0, live_rows(5), NOW),
        Rows("a", -1, live_rows(5), NOW),
        Rows("a", True, live_rows(5), NOW),
    ):
        with pytest.raises(MalformedRequestError):
            cutter.add(bad, now_ms=NOW)
        assert cutter.to_json() == before
    cutter.add(Rows("a", 0, live_rows(5), NOW), now_ms=NOW)
    assert cutter.open_rows == 5


def test_blocks_that_their_source_counted_are_merged_whole() -> None:
    cutter = WindowCutter(PROFILE, rows=100)
    part = count_rows(PROFILE, live_rows(60), times_ms=NOW)
    assert cutter.add_counts("a", 0, part, now_ms=NOW) == ()
    assert cutter.add_counts("a", 0, part, now_ms=NOW) == ()
    (window,) = cutter.add_counts("b", 0, part, now_ms=NOW)
    assert window.counts == part + part
    assert window.tally == Tally(duplicate_blocks=1)
    cutter.add_counts("a", 1, count_rows(PROFILE, live_rows(2), times_ms=NOW - 10**6), now_ms=NOW)
    cutter.add_counts("a", 2, count_rows(PROFILE, live_rows(3), times_ms=NOW + 10**6), now_ms=NOW)
    cutter.add_counts("a", 3, WindowCounts.empty(PROFILE), now_ms=NOW)
    assert (cutter.total.late_rows, cutter.total.ahead_rows) == (2, 3)
    with pytest.raises(MalformedRequestError, match="without times"):
        cutter.add_counts("a", 4, count_rows(PROFILE, live_rows(2)), now_ms=NOW)
    by_time = WindowCutter(PROFILE, every_ms=1000)
    by_time.add_counts("a", 0, part, now_ms=NOW)
    assert by_time.flush()[0].index == NOW // 1000


def test_memory_of_block_numbers_is_bounded_and_gaps_are_counted_as_lost() -> None:
    cutter = WindowCutter(PROFILE, rows=10**6)
    nothing = {"amount": np.zeros(0)}
    for number in range(0, 12_000, 2):  # every second block never comes
        cutter.add(Rows("a", number, nothing, np.zeros(0, dtype=int)), now_ms=NOW)
    assert cutter.total.lost_blocks == 6000 - 1 - 4096
    assert len(cutter.to_json()) < 60_000
    for number in range(5000):
        cutter.add(Rows("b", number, nothing, np.zeros(0, dtype=int)), now_ms=NOW)
    seen = {one["source"]: one for one in json.loads(cutter.to_json())["seen"]}
    assert seen["b"] == {"source": "b", "floor": 4999, "above": []}


def test_windows_wait_until_they_are_taken() -> None:
    cutter = WindowCutter(PROFILE, rows=10)
    cutter.add(_block(0, 35, NOW), now_ms=NOW)
    assert [window.index for window in cutter.ready] == [0, 1, 2]
    cutter.taken(1)
    again = WindowCutter.from_json(PROFILE, cutter.to_json())
    assert [window.index for window in again.ready] == [2]
    assert again.ready == cutter.ready


@pytest.mark.parametrize("how", [{"rows": 50}, {"every_ms": 1000}])
def test_killed_and_restarted_anywhere_nothing_is_lost_and_nothing_counted_twice(
    how: dict[str, int],
) -> None:
    """The state is stored before a block is acknowledged; after a crash, the last is sent again."""
    rng = np.random.default_rng(2)
    blocks = [
        _block(i // 3, int(rng.integers(0, 40)), NOW + 100 * i, source="abc"[i % 3])
        for i in range(60)
    ]
    steady = WindowCutter(PROFILE, lateness_ms=5000, **how)
    for block in blocks:
        steady.add(block, now_ms=NOW + 10_000)
    steady.flush()
    shaky = WindowCutter(PROFILE, lateness_ms=5000, **how)
    stored, resent, taken = shaky.to_json(), 0, []
    place = 0
    while place < len(blocks):
        shaky.add(blocks[place], now_ms=NOW + 10_000)
        fate = rng.random()
        if fate < 0.3:  # died before storing: the block is unacknowledged, and comes again
            shaky = WindowCutter.from_json(PROFILE, stored)
            resent += 1
            continue
        for window in shaky.ready:
            if window.index not in {w.index for w in taken}:
                taken.append(window)
        stored = shaky.to_json()
        if fate < 0.6:  # died after storing, before the source heard: a duplicate comes
            shaky = WindowCutter.from_json(PROFILE, stored)
            shaky.add(blocks[place], now_ms=NOW + 10_000)
        place += 1
    assert resent > 5
    taken += [w for w in (*shaky.ready, *shaky.flush()) if w.index not in {t.index for t in taken}]
    assert [(w.index, w.counts) for w in taken] == [(w.index, w.counts) for w in steady.ready]
    assert sum(w.counts.rows for w in taken) == sum(len(b.columns["fee"]) for b in blocks)


@pytest.mark.parametrize(
    "how",
    [{}, {"rows": 5, "every_ms": 5}, {"rows": 0}, {"every_ms": -1}, {"rows": 5, "lateness_ms": -1}],
)
def test_windows_that_cannot_be_cut_are_refused(how: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        WindowCutter(PROFILE, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"format": "chancery.drift-cutter/v2"},
        {"rows": None},
        {"rows": 0},
        {"next": "1"},
        {"seen": [{"source": "a", "floor": 3, "above": [2]}]},
        {"seen": [{"source": "a", "floor": 3, "above": [6, 5]}]},
        {"open": [{"index": 0}]},
        {"total": {"late_rows": -1}},
        {"total": {"other": 1}},
        {"more": 1},
    ],
)
def test_a_malformed_state_is_refused(change: dict[str, Any]) -> None:
    document = {**json.loads(WindowCutter(PROFILE, rows=5).to_json()), **change}
    with pytest.raises(MalformedRequestError):
        WindowCutter.from_json(PROFILE, canonical_json(document))


def test_the_state_of_another_profile_is_refused() -> None:
    other: DriftProfile = small_profile(window=400)
    with pytest.raises(MalformedRequestError, match="profile"):
        WindowCutter.from_json(other, WindowCutter(PROFILE, rows=5).to_json())
