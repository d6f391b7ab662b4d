"""What the profile lets leave is counted as the raw values would be."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from drift.block_folder import BlockFolder
from drift.block_rows import rows_of, sample_of
from drift.columns import typed
from drift.fitting import fit_profile
from drift.privacy_of import privacy_of
from drift.profile import DriftProfile
from drift.recorder import Recorder
from drift.recording import recorder_of
from drift.reference import reference_parquet, reference_sample
from drift.sample import Kind
from drift.window import count_rows
from governance.errors import MalformedRequestError
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


# -- embeddings

VECTORS = np.random.default_rng(4).normal(size=(1000, 8))


def embedded(**settings: Any) -> DriftProfile:
    return fit_profile(
        {"x": np.arange(1000)},
        {"score": np.random.default_rng(1).random(1000)},
        model="fraud",
        window=50,
        embeddings={"face": VECTORS},
        **settings,
    )


def test_a_masked_embedding_is_counted_by_presence_alone() -> None:
    profile = embedded(pii={"face": "mask"})
    assert DriftProfile.from_json(profile.to_json()).digest == profile.digest
    (face,) = [column for column in profile.columns if column.name.startswith("face")]
    assert (face.role, face.pii, face.bins.names) == ("feature", "mask", ("missing", "present"))
    assert (face.counts, profile.embeddings) == ((0, 1000), ())


@pytest.mark.parametrize("shape", ["array", "lists", "records", "frame", "components", "output"])
def test_nothing_of_a_masked_embedding_leaves(tmp_path: Path, shape: str) -> None:
    profile, rows = embedded(pii={"face": "mask"}), 20
    vectors: Any = [*VECTORS[: rows - 2].tolist(), None, None]
    if shape == "array":
        vectors = VECTORS[:rows].copy()
        vectors[-2:] = np.nan
    table: Any = {"x": np.arange(rows), "face": vectors}
    if shape == "records":
        table = [{"x": i, "face": vector} for i, vector in enumerate(vectors)]
    elif shape == "frame":
        table = pd.DataFrame({"x": np.arange(rows), "face": pd.Series(vectors)})
    elif shape == "components":
        table = {"x": np.arange(rows), **{f"face.{i}": VECTORS[:rows, i] for i in range(8)}}
    said: Any = {"score": np.zeros(rows)}
    if shape == "output":
        said["face"] = table.pop("face")
    recorder = recorder_of(profile, source="r-1")
    recorder.append(table, said, "7")
    folder = BlockFolder(tmp_path)
    entry = folder.write(recorder.flush()[0])
    data, block = (tmp_path / entry.name).read_bytes(), folder.read(entry)
    for value in VECTORS[:rows].ravel():
        assert value.tobytes() not in data
        assert repr(float(value)).encode() not in data
    place = profile.layout.names.index("face")
    told = count_rows(profile, rows_of(profile, block).columns)
    found = profile.layout.of_column(place, told.counts).tolist()
    assert found == ([rows, 0] if shape == "components" else [2, rows - 2])
    if shape != "components":
        raw = count_rows(profile, {"x": np.arange(rows), "face": vectors})
        assert profile.layout.of_column(place, raw.counts).tolist() == found
        assert told.extra_columns == {}


def test_calibration_rows_of_a_masked_embedding() -> None:
    later = {"x": np.arange(500), "score": np.zeros(500), "face": VECTORS[:500]}
    found = embedded(pii={"face": "mask"}, calibration=later)
    assert found.calibration.largest_psi[found.layout.names.index("face")] < 0.01


@pytest.mark.parametrize(
    ("pii", "told"),
    [
        ({"face": "bin"}, r"a vector has no bin.*write keep, or mask"),
        ({"face": "hide"}, r"write keep, or mask"),
        ({"face#00": "mask"}, r"a projection.*pii=\{'face': 'mask'\}"),
        ({"face#00": "bin"}, r"a projection"),
        ({"face.0": "mask"}, r"which the reference has not"),
    ],
    ids=str,
)
def test_what_would_not_protect_an_embedding_is_refused(pii: dict[str, Any], told: str) -> None:
    with pytest.raises(MalformedRequestError) as caught:
        embedded(pii=pii)
    assert re.search(told, f"{caught.value} {caught.value.remedy}", re.DOTALL)


def test_an_embedding_may_be_kept_in_so_many_words() -> None:
    kept, plain = embedded(pii={"face": "keep"}), embedded()
    assert kept.embeddings == plain.embeddings
    assert kept.digest == plain.digest


def test_a_profile_that_masks_a_projection_lets_no_component_leave() -> None:
    """Such profiles could be fitted once, and may be signed."""
    plain = embedded()
    columns = [replace(c, pii="bin") if c.name == "face#00" else c for c in plain.columns]
    recorder = recorder_of(replace(plain, columns=tuple(columns)), source="r-1")
    recorder.append({"x": np.arange(9), "face": VECTORS[:9]}, {"score": np.zeros(9)}, "7")
    (block,) = recorder.flush()
    assert set(block.inputs) == {"x"}
