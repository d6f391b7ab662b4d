"""Principal components: what columns do together is seen, and nothing is cried about."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from drift.components import Components
from drift.cutter import Window
from drift.fitting import fit_profile
from drift.profile import DriftProfile
from drift.sequential import ShiryaevRoberts
from drift.verdict import Judge
from drift.window import count_rows
from governance.canonical import canonical_json
from governance.errors import MalformedRequestError
from tests.unit.drift.reference import slow_components, slow_counts


def drawn(rows: int, seed: int, *, columns: int = 6) -> dict[str, Any]:
    """Columns that one hidden number moves together."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=rows)
    return {f"x{i}": 5 * i + hidden + 0.3 * rng.normal(size=rows) for i in range(columns)}


def windows_to(profile: DriftProfile, windows: list[dict[str, Any]], alarm: float = 1000.0) -> int:
    """How many windows eSR needs to reach an alarm; one more than there are where it does not."""
    statistic = ShiryaevRoberts(profile.probabilities, profile.layout.starts)
    for count, rows in enumerate(windows, start=1):
        statistic.step(count_rows(profile, rows).counts)
        if statistic.mean >= alarm:
            return count
    return len(windows) + 1


def apart(rows: dict[str, Any], seed: int) -> dict[str, Any]:
    """One column exchanged among the rows: its values are the same, its company is not."""
    return {**rows, "x0": np.random.default_rng(seed).permutation(rows["x0"])}


def test_columns_that_come_apart_are_noticed_at_once_and_by_components_only() -> None:
    reference = drawn(5000, 0)
    windows = [apart(drawn(100, seed), seed) for seed in range(1, 41)]
    profile = fit_profile(reference, model="m", window=100)
    assert windows_to(profile, windows) == 1
    assert windows_to(fit_profile(reference, model="m", window=100, components=0), windows) == 41


def test_the_name_of_the_component_tells_who_came_apart() -> None:
    profile = fit_profile(drawn(5000, 0, columns=3), model="m", window=100)
    counts = count_rows(profile, apart(drawn(1000, 1, columns=3), 2)).counts
    layout = profile.layout
    moved = {
        name: float(abs(layout.of_column(place, counts) / 1000 - column.shares).sum())
        for place, (name, column) in enumerate(zip(layout.names, profile.columns, strict=True))
    }
    worst = max(moved, key=lambda name: moved[name])
    assert worst.startswith("component#")
    assert "x0" in worst


def test_a_column_that_moved_by_itself_is_named_before_components() -> None:
    profile = fit_profile(drawn(5000, 0), model="m", window=500)
    moved = drawn(500, 1)
    moved["x2"] = moved["x2"] + 1.0
    judged = Judge(profile).step(Window(0, count_rows(profile, moved)))
    assert judged.worst[0].name == "x2"
    assert {one.role for one in judged.worst[1:]} == {"component"}
    assert judged.worst[1].psi > judged.worst[0].psi  # the largest, and less of an explanation
    assert any(reason.startswith("PSI of 'x2' is") for reason in judged.reasons)
    together = Judge(profile).step(Window(0, count_rows(profile, apart(drawn(500, 1), 2))))
    assert together.worst[0].role == "component"


@pytest.mark.parametrize("rows", [600, 5000])
def test_without_drift_it_is_calm_also_with_many_columns_for_its_rows(rows: int) -> None:
    """Directions of least variance look too calm in the rows that chose them: others count."""
    rng = np.random.default_rng(3)
    columns = 40
    profile = fit_profile(rng.normal(size=(rows, columns)), model="m", window=rows // 20)
    calm = [drawn_alone(rng, 30, columns) for _ in range(60)]
    assert windows_to(profile, calm) == 61


def drawn_alone(rng: np.random.Generator, rows: int, columns: int) -> dict[str, Any]:
    return {str(i): values for i, values in enumerate(rng.normal(size=(columns, rows)))}


@pytest.mark.parametrize("period", [2, 3, 5, 7, 24])
def test_a_reference_with_a_rhythm_is_no_trap(period: int) -> None:
    """One row in so many is of another kind; live ones come by chance."""

    def mixed(rows: int, seed: int, other: Any) -> dict[str, Any]:
        usual, strange = drawn(rows, seed), drawn(rows, seed + 1000)
        strange["x0"] = strange["x0"] + 10
        return {name: np.where(other, strange[name], usual[name]) for name in usual}

    reference = mixed(4000, 0, np.arange(4000) % period == 0)
    profile = fit_profile(reference, model="m", window=100)
    calm = [
        mixed(100, seed, np.random.default_rng(seed).random(100) < 1 / period)
        for seed in range(1, 41)
    ]
    assert windows_to(profile, calm) == 41


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_sum_that_always_held_is_zero_and_stands_out_once_it_is_broken(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    parts = rng.lognormal(3, 1, size=(2, 4000))
    reference = {"net": parts[0], "tax": parts[1], "total": parts.sum(axis=0)}
    profile = fit_profile(reference, model="m", window=100)
    assert profile.components is not None
    sums = profile.components.names[0]
    live = {name: values[:400].astype(dtype) for name, values in reference.items()}
    assert set(profile.components.columns(live, 400)[sums].tolist()) == {0.0}
    live["total"] = live["total"] * dtype(1.02)  # no column would tell
    assert windows_to(profile, [live]) == 1


def test_blocks_of_any_size_give_the_same_counts() -> None:
    profile = fit_profile(drawn(3000, 0), model="m", window=100)
    rows = drawn(997, 1)
    rows["x1"][5] = np.nan
    assert count_rows(profile, rows).counts.tolist() == slow_counts(profile, rows).tolist()
    rows["x2"][7], rows["x3"][7] = 1e300, -1e300
    whole = count_rows(profile, rows).counts
    for size in (1, 13, 250):
        parts = [
            count_rows(profile, {k: v[low : low + size] for k, v in rows.items()}).counts
            for low in range(0, 997, size)
        ]
        assert np.sum(parts, axis=0).tolist() == whole.tolist()


def test_whatever_is_no_number_stands_at_the_mean() -> None:
    profile = fit_profile(drawn(3000, 0), model="m", window=100)
    made = profile.components
    assert made is not None
    rows = drawn(5, 1)
    middle = {**rows, "x2": np.full(5, made.means[2])}
    wanted = {name: values.tolist() for name, values in made.columns(middle, 5).items()}
    assert wanted == {n: v.tolist() for n, v in slow_components(profile, middle).items()}
    texts = np.array(["one", None, "x", "y", np.nan], dtype=object)
    for strange in (texts, np.full(5, np.nan), np.full(5, np.inf), np.zeros((5, 2)), None):
        given = {**rows, "x2": strange}
        if strange is None:
            del given["x2"]
        found = made.columns(given, 5)
        assert {name: values.tolist() for name, values in found.items()} == wanted


def test_personal_columns_times_and_categories_take_no_part() -> None:
    rows = drawn(2000, 0)
    rows["x4"] = np.datetime64("2026-01-01") + rows["x4"].astype("m8[s]")
    rows["town"] = np.resize(["a", "b"], 2000)
    rows["same"] = np.full(2000, 0.1) + 1e-17
    profile = fit_profile(
        rows, {"score": rows["x0"]}, model="m", window=100, pii={"x1": "bin", "x2": "mask"}
    )
    assert profile.components is not None
    assert profile.components.features == ("x0", "x3", "x5")
    assert len(profile.components.names) == 3


@pytest.mark.parametrize(
    "rows",
    [
        {"x": np.arange(500)},
        {"x": np.arange(500), "town": np.resize(["a", "b"], 500)},
        {"x": np.arange(500), "y": np.zeros(500)},
        {"x": np.arange(500), "y": np.full(500, np.nan)},
        {"x": np.arange(60), "y": np.arange(60) % 7},
    ],
    ids=["one column", "one number", "a constant", "nothing but NaN", "few rows"],
)
def test_without_two_columns_that_vary_there_are_none(rows: dict[str, Any]) -> None:
    profile = fit_profile(rows, model="m", window=5)
    assert profile.components is None
    assert "components" not in json.loads(profile.to_json())


def test_later_rows_calibrate_components_too() -> None:
    given = fit_profile(
        drawn(3000, 0), model="m", window=100, calibration=apart(drawn(1000, 1), 2)
    ).calibration
    calm = fit_profile(drawn(3000, 0), model="m", window=100, calibration=drawn(1000, 1))
    assert given.largest > 5 * calm.calibration.largest


def test_the_order_of_columns_and_rows_of_time_do_not_matter() -> None:
    rows = drawn(2000, 0)
    mixed = np.random.default_rng(1).permutation(2000)
    shuffled = {name: values[mixed] for name, values in rows.items()}
    by_time = fit_profile(shuffled, model="m", window=100, times=mixed)
    assert by_time.digest == fit_profile(rows, model="m", window=100).digest


BAD: list[tuple[Any, str]] = [
    (lambda c: c.update(means=c["means"][:-1]), "do not fit its 6 features"),
    (lambda c: c["directions"][0].append("1.0"), "do not fit its 6 features"),
    (lambda c: c["directions"].append("1"), "no list"),
    (lambda c: c["spreads"].__setitem__(0, "0.0"), "not above 0"),
    (lambda c: c["means"].__setitem__(0, "inf"), "not finite"),
    (lambda c: c["features"].__setitem__(0, "x1"), "one twice"),
    (lambda c: c["features"].__setitem__(0, "score"), "no number that may be recorded"),
    (lambda c: c["directions"].pop(), "components do not make"),
    (lambda c: c.update(more=1), "unknown keys: more"),
]


@pytest.mark.parametrize(("change", "complaint"), BAD, ids=[text for _, text in BAD])
def test_changed_components_are_refused(change: Any, complaint: str) -> None:
    profile = fit_profile(drawn(500, 0), {"score": np.zeros(500)}, model="m", window=50)
    document = json.loads(profile.to_json())
    assert DriftProfile.from_json(canonical_json(document)).digest == profile.digest
    change(document["components"])
    with pytest.raises(MalformedRequestError, match=complaint):
        DriftProfile.from_json(canonical_json(document))


def test_personal_columns_are_refused_in_a_profile_too() -> None:
    document = json.loads(fit_profile(drawn(500, 0), model="m", window=50).to_json())
    document["columns"][0]["pii"] = "bin"
    with pytest.raises(MalformedRequestError, match="'x0', no number that may be recorded"):
        DriftProfile.from_json(canonical_json(document))


def test_none_are_fitted_where_none_are_wanted() -> None:
    assert Components.fit({"a": np.arange(100.0), "b": np.arange(100.0) ** 2}, 0) is None
