"""Slices: an injected one is named, chance ones are not."""

from __future__ import annotations

import numpy as np
import pytest

from drift.predicate import Condition, Predicate
from drift.sample import Sample
from drift.slices import find_slices
from governance.errors import MalformedRequestError


def world(seed: int, rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    income = rng.lognormal(10, 1, rows)
    income[rng.random(rows) < 0.1] = np.nan
    return {
        "age": rng.uniform(18, 80, rows),
        "income": income,
        "region": rng.choice(["north", "south", "west", "east"], rows),
        "noise": rng.normal(size=rows),
    }


def kept(columns: dict[str, np.ndarray], rows: np.ndarray) -> Sample:
    return Sample.of_columns({name: values[rows] for name, values in columns.items()})


REFERENCE = Sample.of_columns(world(0, 2_000))


@pytest.mark.parametrize("seed", range(1, 6))
def test_an_injected_slice_is_named(seed: int) -> None:
    columns = world(seed, 3_000)
    inside = (columns["age"] > 52) & (columns["region"] == "west")
    thinned = np.random.default_rng(seed).random(3_000) < 0.25
    (found,) = find_slices(REFERENCE, kept(columns, inside | thinned), seed=seed)
    by_column = {condition.column: condition for condition in found.predicate.conditions}
    assert by_column.keys() == {"age", "region"}
    assert by_column["region"].values == {"west"}
    assert abs(by_column["age"].above - 52) < 4
    assert by_column["age"].upto == np.inf
    assert "region in {'west'}" in str(found.predicate)
    assert f"age > {by_column['age'].above:.6g}" in str(found.predicate)
    assert found.z > 6
    assert found.share > 2 * found.reference_share


@pytest.mark.parametrize("upwards", [True, False])
def test_of_two_mirror_images_the_part_that_moved_is_named(upwards: bool) -> None:
    columns = world(9, 1_000)
    moved = np.random.default_rng(9).random(1_000) < 0.15
    columns["noise"][moved] = 9.0 if upwards else -9.0
    found, *_ = find_slices(REFERENCE, Sample.of_columns(columns), seed=1)
    assert str(found.predicate).startswith("noise > " if upwards else "noise <= ")
    assert found.z > 0
    assert found.share < 0.3


def test_missing_values_are_a_slice() -> None:
    columns = world(7, 1_000)
    columns["income"][np.random.default_rng(7).random(1_000) < 0.3] = np.nan
    (found,) = find_slices(REFERENCE, Sample.of_columns(columns), seed=1)
    assert str(found.predicate) == "income is missing"
    assert found.rows > 100


def test_a_group_that_vanished_has_a_negative_z() -> None:
    columns = world(8, 1_500)
    found = find_slices(REFERENCE, kept(columns, columns["region"] != "south"), seed=1)
    assert str(found[0].predicate) in ("region in {'south'}", "region in {'east', 'north', 'west'}")
    south = found[0].predicate.conditions[0].values == {"south"}
    assert found[0].z < -6 if south else found[0].z > 6


def test_chance_is_rarely_named() -> None:
    named = sum(
        bool(find_slices(REFERENCE, Sample.of_columns(world(seed, 800)), seed=seed))
        for seed in range(100, 160)
    )
    assert named <= 2


def test_the_same_seed_gives_the_same_slices() -> None:
    columns = world(9, 2_000)
    window = kept(columns, columns["age"] > 40)
    assert find_slices(REFERENCE, window, seed=3) == find_slices(REFERENCE, window, seed=3)


def test_rare_and_infinite_values_do_no_harm() -> None:
    ours, theirs = world(10, 500), world(11, 500)
    for seed, columns in enumerate((ours, theirs)):
        columns["noise"][:3] = np.inf, -np.inf, 1e300
        columns["user"] = np.array([f"u{seed}-{i}" for i in range(500)])
    assert find_slices(Sample.of_columns(ours), Sample.of_columns(theirs), seed=1) == ()


def test_few_rows_are_refused() -> None:
    with pytest.raises(MalformedRequestError, match="the window has 39 rows; slices need 40"):
        find_slices(REFERENCE, Sample.of_columns(world(1, 39)), seed=1)


@pytest.mark.parametrize(
    ("condition", "text", "rows"),
    [
        (Condition("x", above=2.0, missing=False), "x > 2", [2]),
        (Condition("x", upto=2.0, missing=False), "x <= 2", [0, 1]),
        (Condition("x", 1.0, 2.0, missing=False), "1 < x <= 2", [1]),
        (Condition("x", above=2.0), "(x > 2 or x is missing)", [2, 3]),
        (Condition("x", above=np.inf), "x is missing", [3]),
        (Condition("x", missing=False), "x is not missing", [0, 1, 2]),
        (Condition("c", values=frozenset({"a", None})), "c in {'a', missing}", [0, 3]),
        (Condition("c", values=frozenset({"a"}), excluded=True), "c not in {'a'}", [1, 2, 3]),
    ],
)
def test_a_predicate_takes_the_rows_that_its_text_says(
    condition: Condition, text: str, rows: list[int]
) -> None:
    sample = Sample.of_columns({"x": [1.0, 2.0, 3.0, np.nan], "c": ["a", "b", "d", None]})
    assert str(Predicate((condition,))) == text
    assert np.flatnonzero(condition.matches(sample)).tolist() == rows
