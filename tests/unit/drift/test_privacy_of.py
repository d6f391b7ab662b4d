"""What the profile lets leave is counted as the raw values would be."""

from __future__ import annotations

import numpy as np

from drift.block_rows import sample_of
from drift.columns import typed
from drift.fitting import fit_profile
from drift.privacy_of import privacy_of
from drift.recorder import Recorder
from drift.reference import reference_parquet, reference_sample
from drift.sample import Kind
from drift.window import count_rows
from tests.unit.drift.reference import reference_rows

PROFILE = fit_profile(
    reference_rows(5000),
    {"score": np.random.default_rng(1).random(5000)},
    model="fraud",
    window=100,
    pii={"amount": "bin", "town": "bin", "known": "bin", "visits": "mask", "score": "bin"},
)


def live(rows: int) -> dict[str, object]:
    table = reference_rows(rows, seed=9)
    table["amount"][:3] = np.nan, np.inf, 1e12
    town = table["town"].astype(object)
    town[:3] = "Esbjerg", None, "Cork"
    visits = table["visits"].astype(float)
    visits[::7] = np.nan
    return {**table, "town": town, "visits": visits}


def test_binned_and_masked_columns_count_as_the_raw_ones() -> None:
    table, score = live(400), np.random.default_rng(2).random(400)
    raw = count_rows(PROFILE, {**table, "score": score})
    inputs, masked = privacy_of(PROFILE).applied(table)
    outputs, _ = privacy_of(PROFILE).applied({"score": score}, "output:")
    told = count_rows(PROFILE, {**inputs, **outputs})
    assert masked == ()
    assert told == raw
    assert set(np.unique(inputs["visits"][~np.isnan(inputs["visits"])])) == {1.0}
    assert len(np.unique(inputs["amount"][np.isfinite(inputs["amount"])])) <= 12
    assert "Esbjerg" not in inputs["town"].tolist()


def test_what_the_profile_does_not_know_does_not_leave() -> None:
    recorder = Recorder(
        "r-1", model="fraud", columns=[c.name for c in PROFILE.features], outputs=["score"],
        privacy=privacy_of(PROFILE),
    )  # fmt: skip
    table = {name: np.asarray(values)[:4] for name, values in live(20).items()}
    recorder.append({**table, "maiden_name": ["a", "b", "c", "d"]}, [0.1, 0.2, 0.3, 0.4])
    (block,) = recorder.flush()
    assert set(block.inputs) == {c.name for c in PROFILE.features}
    assert (list(block.outputs), block.extra) == (["score"], ("(masked)",))


def test_without_personal_columns_everything_is_kept() -> None:
    plain = fit_profile(reference_rows(1000), model="fraud", window=50)
    kept, masked = privacy_of(plain).applied({"amount": np.ones(3), "new": np.ones(3)})
    assert (list(kept), masked) == (["amount", "new"], ())


def test_recorded_rows_are_compared_as_the_reference_is() -> None:
    """A binned column has one stand-in a bin, whether it was binned here or by a recorder."""
    table, score = reference_rows(5000), np.random.default_rng(1).random(5000)
    data = reference_parquet(PROFILE, {**table, "score": score})
    reference = reference_sample(PROFILE, data)
    privacy = privacy_of(PROFILE)
    inputs, _ = privacy.applied({name: typed(values) for name, values in table.items()})
    recorded = sample_of(PROFILE, inputs, {"score": score})
    assert recorded.names == reference.names
    numeric = [
        name
        for name, kind in zip(reference.names, reference.kinds, strict=True)
        if kind is Kind.NUMERIC
    ]
    place = numeric.index("amount")
    known, seen = reference.numbers[:, place], recorded.numbers[:, place]
    assert set(known[~np.isnan(known)]) == set(seen[~np.isnan(seen)])
    assert len(np.unique(known)) <= 12
