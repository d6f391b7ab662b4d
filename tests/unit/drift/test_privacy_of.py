"""What the profile lets leave is counted as the raw values would be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drift.blocks import from_parquet
from drift.fitting import fit_profile
from drift.privacy_of import privacy_of
from drift.recorder import Recorder
from drift.reference import read_reference, write_reference
from drift.window import count_rows
from governance.errors import RefusedError
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


def test_the_reference_sample_holds_what_may_leave(tmp_path: Path) -> None:
    place, table = tmp_path / "reference.parquet", reference_rows(5000)
    score = np.random.default_rng(1).random(5000)
    write_reference(place, PROFILE, table, {"score": score}, rows=300)
    sample = read_reference(place, PROFILE)
    assert (sample.rows, sample.outputs is not None) == (300, True)
    amounts = from_parquet(place.read_bytes()).inputs["amount"]
    assert len(np.unique(amounts)) <= 12
    other = fit_profile(reference_rows(1000), model="fraud", window=50)
    with pytest.raises(RefusedError, match="no reference sample of the profile"):
        read_reference(place, other)
