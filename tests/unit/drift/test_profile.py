"""Profiles: fitted from every container, kept as one document, refused when something is off."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from drift.bins import NumericBins, PresenceBins
from drift.embedding import Embedding
from drift.fitting import fit_profile
from drift.profile import DriftProfile
from drift.rules import Rules
from drift.tables import columns_of
from drift.window import count_rows
from governance.canonical import canonical_json
from governance.errors import MalformedRequestError, RefusedError, TamperedError
from tests.unit.drift.reference import reference_rows, small_profile


@pytest.fixture(scope="module")
def profile() -> DriftProfile:
    vectors = np.random.default_rng(3).standard_normal((20_000, 8))
    return small_profile(
        embeddings={"text": vectors},
        directions=3,
        datasets={"payments-2024": "ab" * 32},
        pii={"town": "bin", "known": "mask"},
        protected=("town",),
        rules=Rules(consecutive=2, psi_scope="column"),
        performance={"bins": ["0.5"]},
    )


def test_a_profile_comes_back_from_json_byte_for_byte(profile: DriftProfile) -> None:
    again = DriftProfile.from_json(profile.to_json())
    assert again == profile
    assert again.to_json() == profile.to_json()
    assert again.digest == profile.digest
    assert again.rules.consecutive == 2
    assert again.performance == {"bins": ["0.5"]}
    assert again.calibration.largest == profile.calibration.largest


def test_the_roles_and_what_may_be_recorded(profile: DriftProfile) -> None:
    assert [c.name for c in profile.features] == ["amount", "visits", "town", "known", "fee"]
    assert [c.name for c in profile.outputs] == ["score"]
    assert [c.name for c in profile.columns[6:9]] == ["text#00", "text#01", "text#02"]
    assert [c.name for c in profile.columns[9:]] == [
        "component#00 of amount and visits", "component#01 of amount and visits",
    ]  # fmt: skip
    columns = {column.name: column for column in profile.columns}
    assert columns["town"].pii == "bin"
    assert columns["town"].protected
    assert isinstance(columns["known"].bins, PresenceBins)
    assert set(profile.inputs_by_name) == {
        "amount", "visits", "town", "known", "fee", "score", "text",
    }  # fmt: skip
    assert profile.probabilities.shape == (profile.layout.total,)
    assert (profile.probabilities > 0).all()


def test_every_container_gives_the_same_profile() -> None:
    table = {
        "a": np.random.default_rng(0).standard_normal(2000),
        "b": np.random.default_rng(1).standard_normal(2000),
    }
    structured = np.empty(2000, dtype=[("a", "f8"), ("b", "f8")])
    structured["a"], structured["b"] = table["a"], table["b"]
    wanted = fit_profile(table, model="m", window=100).digest
    lists = {name: values.tolist() for name, values in table.items()}
    for other in (pd.DataFrame(table), structured, lists):
        assert fit_profile(other, model="m", window=100).digest == wanted
    matrix = fit_profile(np.column_stack([table["a"], table["b"]]), model="m", window=100)
    assert [column.name for column in matrix.features] == ["0", "1"]


def test_windows_are_cut_in_the_order_of_time_and_never_shuffled() -> None:
    """A reference that wanders is calm only when shuffled."""
    rng = np.random.default_rng(0)
    wandering = np.cumsum(rng.standard_normal(10_000)) / 30
    calm = fit_profile({"x": rng.permutation(wandering)}, model="m", window=200)
    told = fit_profile({"x": wandering}, model="m", window=200)
    assert told.calibration.windows == 50
    assert told.calibration.largest > 5 * calm.calibration.largest
    assert "not independent of time" in told.calibration.note
    assert calm.calibration.note == ""
    mixed = rng.permutation(10_000)
    by_time = fit_profile({"x": wandering[mixed]}, model="m", window=200, times=mixed)
    assert by_time.digest == told.digest


def test_few_rows_give_few_windows_and_the_profile_says_so() -> None:
    calibration = small_profile(rows=5000, window=500).calibration
    assert (calibration.windows, calibration.rows) == (10, 500)
    assert "10 windows of 500 rows, fewer than 30" in calibration.note
    many = fit_profile({"x": np.arange(30_000) % 97}, model="m", window=100).calibration
    assert many.windows == 100


def test_later_rows_can_be_given_to_calibrate_on() -> None:
    rng = np.random.default_rng(0)
    later = {"x": rng.standard_normal(4000) + 0.5, "v": rng.standard_normal((4000, 4))}
    before = {"x": rng.standard_normal(4000)}
    vectors = {"v": rng.standard_normal((4000, 4))}
    own = fit_profile(before, model="m", window=100, embeddings=vectors)
    given = fit_profile(before, model="m", window=100, embeddings=vectors, calibration=later)
    assert given.calibration.source == "given"
    assert given.calibration.windows == 40
    assert given.calibration.largest_psi[0] > own.calibration.largest_psi[0] + 0.1
    with pytest.raises(MalformedRequestError, match="lack the column 'x'"):
        fit_profile(before, model="m", window=100, calibration={"y": later["x"]})
    with pytest.raises(MalformedRequestError, match="lengths \\[50\\]"):
        fit_profile(before, model="m", window=100, calibration={"x": later["x"][:50]})


def test_ten_thousand_columns_are_fitted_counted_and_kept() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((1000, 10_000)).astype(np.float32)
    profile = fit_profile(matrix, model="wide", window=100, bins=4)
    again = DriftProfile.from_json(profile.to_json())
    assert again.digest == profile.digest
    assert again.components is not None
    assert len(again.components.features) == 100  # of 200 rows that choose, half as many
    assert count_rows(again, matrix[:100]).counts.sum() == 100 * (10_000 + 8)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"features": {}}, "no columns"),
    ({"features": {"x": []}}, "no rows"),
    ({"features": {"x": range(100), "y": range(99)}}, "'y' has 99 rows, and 'x' has 100"),
    ({"outputs": {"y": range(99)}}, "'y' has 99 rows"),
    ({"window": 1000}, "2000 rows, and windows of 1000 rows need at least 10000.*window=200"),
    ({"features": {"x": range(5)}, "window": 1}, "5 rows, and windows of 1 rows.*more rows"),
    ({"window": 0}, "none"),
    ({"bins": 0}, "bins=0"),
    ({"outputs": {"x": range(2000)}}, "'x' comes twice"),
    ({"embeddings": {"x": np.zeros((2000, 2))}}, "'x' comes twice"),
    ({"outputs": {"e#00": range(2000)}, "embeddings": {"e": np.zeros((2000, 2))}}, "comes twice"),
    ({"embeddings": {"e": np.zeros(2000)}}, "not a vector of numbers a row"),
    ({"features": {"x": np.zeros((2000, 2))}}, r"shape \(2000, 2\)"),
    ({"features": {1: range(2000), "1": range(2000)}}, "the column '1' twice"),
    ({"features": {"": range(2000)}}, "without a name"),
    ({"features": pd.DataFrame(np.zeros((2000, 2)), columns=["a", "a"])}, "the column 'a' twice"),
    ({"features": 3}, "of type int"),
    ({"pii": {"z": "bin"}}, "pii names the column 'z'"),
    ({"pii": {"x": "hide"}}, "write keep, bin or mask"),
    ({"protected": ("z",)}, "protected names"),
    ({"kinds": {"z": "numeric"}}, "kinds names"),
    ({"kinds": {"x": "ordinal"}}, "no kind of column"),
    ({"times": [1, 2]}, "2 values"),
]


@pytest.mark.parametrize(("change", "complaint"), BAD, ids=[text for _, text in BAD])
def test_bad_rows_are_refused_in_one_line(change: dict[str, Any], complaint: str) -> None:
    settings = {"features": {"x": range(2000)}, "model": "m", "window": 100, **change}
    with pytest.raises(MalformedRequestError, match=complaint) as caught:
        fit_profile(settings.pop("features"), **settings)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_columns_that_say_nothing_are_fitted_all_the_same() -> None:
    table = {
        "nan": np.full(1000, np.nan),
        "none": np.full(1000, None, dtype=object),
        "constant": np.zeros(1000),
        "one name": np.full(1000, "a"),
    }
    profile = fit_profile(table, model="m", window=100)
    assert profile.calibration.largest < 0.02
    assert DriftProfile.from_json(profile.to_json()) == profile


def _changed(profile: DriftProfile, change: Any) -> bytes:
    document = json.loads(profile.to_json())
    change(document)
    return canonical_json(document)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d.update(format="chancery.drift-profile/v2"), "this version reads"),
        (lambda d: d.pop("format"), "format None"),
        (lambda d: d.pop("columns"), "lacks 'columns'"),
        (lambda d: d.update(columns=[]), "no columns|does not make|calibrated"),
        (lambda d: d.update(extra=1), "unknown keys: extra"),
        (lambda d: d["columns"][0]["counts"].pop(), "counts for 14 bins"),
        (lambda d: d["columns"][0]["counts"].__setitem__(3, 7), "'amount' for 20000 rows"),
        (lambda d: d["columns"][0].update(name="visits"), "column 'visits' twice"),
        (lambda d: d["columns"][0].update(role="label"), "none of feature"),
        (lambda d: d["columns"][0].update(pii="mask"), "masked, but counted"),
        (lambda d: d["columns"][2]["bins"].update(rare=[]), "lists rare categories"),
        (lambda d: d["calibration"]["largest_psi"].pop(), "10 calibrated columns for 11"),
        (lambda d: d["calibration"].update(note="all is well"), "do not bear out"),
        (lambda d: d["embeddings"][0].update(directions=2), "embeddings do not make"),
        (lambda d: d["embeddings"][0].update(width=10**9), "more than 65536"),
        (lambda d: d.update(window=2001), "too few for windows of 2001"),
        (lambda d: d.update(window="500"), "no whole number"),
        (lambda d: d.update(window=True), "no whole number"),
        (lambda d: d.update(backend="evidently"), "none of native, alibi"),
        (lambda d: d["rules"].update(warn_esr="0.0"), "warn_esr"),
        (lambda d: d["rules"].update(quarantine_signoff=False), "unknown keys"),
        (lambda d: d.update(datasets={"x": 1}), "no object of texts"),
        (lambda d: d.update(fairness=[1]), "neither an object nor null"),
    ],
)
def test_a_malformed_profile_is_refused(profile: DriftProfile, change: Any, complaint: str) -> None:
    with pytest.raises(MalformedRequestError, match=complaint):
        DriftProfile.from_json(_changed(profile, change))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'{"a":1,"a":2}', b"[" * 100_000])
def test_what_is_no_profile_at_all_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        DriftProfile.from_json(data)


def test_what_an_older_writer_left_out_has_its_default(profile: DriftProfile) -> None:
    def strip(document: Any) -> None:
        for key in ("rules", "backend", "performance", "fairness", "datasets"):
            document.pop(key)
        for column in document["columns"]:
            column.pop("protected")

    old = DriftProfile.from_json(_changed(profile, strip))
    assert old.rules == Rules()
    assert old.backend == "native"


def test_the_profile_of_another_model_and_a_tampered_one_are_refused(profile: DriftProfile) -> None:
    profile.require("fraud", digest=profile.digest)
    with pytest.raises(RefusedError, match="belongs to the model 'fraud', not to 'churn'"):
        profile.require("churn")
    tampered = DriftProfile.from_json(
        _changed(profile, lambda d: d["rules"].update(alert_esr="5000.0"))
    )
    with pytest.raises(TamperedError):
        tampered.require("fraud", digest=profile.digest)


def test_floats_in_a_foreign_section_are_refused_when_written() -> None:
    profile = fit_profile({"x": range(1000)}, model="m", window=100, fairness={"gap": 0.1})
    with pytest.raises(MalformedRequestError, match=r"fairness\.gap"):
        profile.to_json()


@pytest.mark.parametrize(
    "rule",
    [
        {"warn_esr": 0}, {"alert_esr": 50}, {"alert_esr": 1e9}, {"alert_psi": float("nan")},
        {"psi_margin": -1}, {"consecutive": 0}, {"min_rows": 1.5}, {"alert_needs": "any"},
        {"psi_scope": "row"}, {"quality_share": 1.5},
    ],
)  # fmt: skip
def test_rules_that_cannot_be_meant_are_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(MalformedRequestError, match=next(iter(rule))):
        Rules(**rule)


def test_projections_are_the_same_in_every_block_and_for_ever() -> None:
    vectors = np.random.default_rng(0).standard_normal((300, 50))
    embedding = Embedding.fit("e", vectors, directions=2, seed=7)
    whole = embedding.columns(vectors)["e#01"]
    for low, high in ((0, 1), (5, 12), (100, 300)):
        part = embedding.columns(vectors[low:high])["e#01"]
        assert part.tolist() == whole[low:high].tolist()
    # The stream of RandomState(7) is frozen: 1.6905257 and -0.46593737 are its first two numbers.
    first = Embedding("e", 2, directions=1, seed=7).columns(np.eye(2))["e#00"]
    assert first * np.sqrt(2) == pytest.approx([1.6905257, -0.46593737], rel=1e-6)


def test_vectors_that_are_none_are_missing_or_unparsable() -> None:
    reference = np.random.default_rng(0).standard_normal((100, 3))
    embedding = Embedding.fit("e", reference, directions=1)
    bins = NumericBins.fit(embedding.columns(reference)["e#00"])

    def special(vectors: Any) -> list[int]:
        counts: list[int] = bins.count(embedding.columns(vectors)["e#00"])[:2].tolist()
        return counts

    assert special(np.array([[1, 2, np.nan], [1, 2, 3]])) == [1, 0]
    assert special([[1, 2, 3], None, [1, 2], "abc", ["1", "2", "3"], [1, 2, np.inf]]) == [2, 3]
    assert special(np.zeros((4, 5))) == [0, 4]
    assert special(np.zeros((0, 3))) == [0, 0]
    assert special(np.zeros(4)) == [0, 4]


def test_names_are_texts_however_they_come() -> None:
    assert list(columns_of({1: [1], "b": [2]})) == ["1", "b"]
    assert columns_of(None) == {}
    assert reference_rows(3).keys() == columns_of(reference_rows(3)).keys()
