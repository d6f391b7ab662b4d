"""A profile goes into the model's files before they are sealed, and comes back verified."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import drift
from drift.fairness import FairnessBounds
from drift.fitting import fit_profile
from drift.model_profile import FILE, load_profile
from drift.reference import FILE as REFERENCE_FILE
from drift.reference import reference_parquet, reference_sample, sample_of
from drift.sections import FairnessSection, PerformanceSection
from drift.training import fit_with_reference
from governance.errors import (
    ConfigurationError,
    ConflictError,
    MalformedRequestError,
    NotFoundError,
    RefusedError,
    RevokedError,
    SealedError,
    TamperedError,
)
from tests.scenario import Scenario
from tests.unit.drift.governed import (
    fitted_model,
    log_model,
    profile_arguments,
    reference,
    registered,
)


def test_the_room_itself_is_light() -> None:
    code = (
        "import sys, drift; "
        "assert not {'numpy', 'pandas', 'mlflow', 'sklearn'} & set(sys.modules); "
        "assert callable(drift.fit_profile) and callable(drift.log_profile)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        drift.nothing  # noqa: B018


def test_one_call_before_registering(scenario: Scenario) -> None:
    model = fitted_model()
    frame = reference(model)
    mlflow.set_experiment("scenario")
    with mlflow.start_run():
        data = mlflow.data.from_pandas(frame, name="applications")
        mlflow.log_input(data, context="training")
        info = log_model(frame, model)
        logged = drift.log_profile(info, **profile_arguments(frame))
        with pytest.raises(ConflictError, match="has a drift profile"):
            drift.log_profile(info, **profile_arguments(frame))
        version = mlflow.register_model(info.model_uri, "fraud")
    found = load_profile(f"models:/fraud/{version.version}", uri=scenario.uri)
    assert found.profile == logged
    assert found.profile.datasets == {"applications": data.digest}
    assert found.subject.model_id == info.model_id
    assert found.subject.profile == logged.digest
    sample = found.reference()
    assert sample is not None
    assert sample.rows == 2000
    assert sample.outputs is not None
    with pytest.raises(SealedError, match="models:/fraud/1, so its files are sealed"):
        drift.log_profile(info, **profile_arguments(frame))


def test_around_a_call_that_registers_by_itself(scenario: Scenario) -> None:
    profile, _ = registered(scenario)
    files = {path.name for path in scenario.model_folder(1).iterdir()}
    assert {FILE, REFERENCE_FILE, "MLmodel"} <= files
    assert load_profile("models:/fraud/1").profile == profile
    section = PerformanceSection.of(profile)
    assert section is not None
    assert section.positive == 1
    assert 0.6 < section.estimated.reference.mean < 0.95  # type: ignore[union-attr]
    # The model itself is what it was, and the verified load takes it.
    assert mlflow.pyfunc.load_model("models:/fraud/1") is not None


def test_autoprofile_refuses_what_would_go_unnoticed(scenario: Scenario) -> None:
    model = fitted_model()
    frame = reference(model)
    mlflow.set_experiment("scenario")
    with (
        pytest.raises(ConfigurationError, match="no model was logged"),
        drift.autoprofile(**profile_arguments(frame)),
    ):
        pass
    with mlflow.start_run(), drift.autoprofile(**profile_arguments(frame)):
        log_model(frame, model)
        with pytest.raises(ConflictError, match="a second model"):
            log_model(frame, model)
    other = frame.rename(columns={"age": "years"})
    features = other[["years", "income", "region"]]
    with (
        mlflow.start_run(),
        pytest.raises(MalformedRequestError, match="'years', which is no input"),
        drift.autoprofile(features, model="fraud", window=200),
    ):
        log_model(frame, model, registered_model_name="fraud")
    assert not scenario.client.search_registered_models()
    # Outside, models are logged as ever.
    with mlflow.start_run():
        info = log_model(frame, model)
    listed = scenario.client.list_logged_model_artifacts(info.model_id)
    assert FILE not in [file.path for file in listed]


def test_what_cannot_be_read_back_is_refused_clearly(scenario: Scenario) -> None:
    scenario.train("plain")
    with pytest.raises(NotFoundError, match="models:/plain/1 has no drift profile"):
        load_profile("models:/plain/1")
    with pytest.raises(NotFoundError):
        load_profile("models:/nobody/1")
    with pytest.raises(MalformedRequestError, match="names no version"):
        load_profile("models:/fraud")
    registered(scenario)
    registered(scenario, name="loans")  # the profile says fraud
    with pytest.raises(RefusedError, match="belongs to the model 'fraud', not to 'loans'"):
        load_profile("models:/loans/1")
    path = scenario.model_folder(1) / FILE
    text = path.read_text()
    path.write_text(text.replace('"warn_esr":"100.0"', '"warn_esr":"900.0"'))
    assert path.read_text() != text
    with pytest.raises(TamperedError, match=FILE):
        load_profile("models:/fraud/1")
    path.write_text(text)
    sample = scenario.model_folder(1) / REFERENCE_FILE
    sample.write_bytes(sample.read_bytes() + b"x")
    with pytest.raises(TamperedError, match=REFERENCE_FILE):
        load_profile("models:/fraud/1")
    scenario.backend.revoke("fraud", 1, "trained on leaked labels")
    with pytest.raises(RevokedError, match="leaked labels"):
        load_profile("models:/fraud/1")


def test_a_copy_carries_its_origins_profile(scenario: Scenario) -> None:
    profile, _ = registered(scenario)
    scenario.client.copy_model_version("models:/fraud/1", "fraud-eu")
    found = load_profile("models:/fraud-eu/1")
    assert found.profile == profile
    assert found.subject.model == "fraud-eu"


def test_the_owner_is_who_the_registry_says(scenario: Scenario) -> None:
    registered(scenario)
    assert load_profile("models:/fraud/1").subject.owner == ""
    scenario.client.set_registered_model_tag("fraud", "owner", "team-risk")
    assert load_profile("models:/fraud/1").subject.owner == "team-risk"
    scenario.client.set_model_version_tag("fraud", "1", "owner", "ann")
    found = load_profile("models:/fraud/1", deployment="prod")
    assert (found.subject.owner, found.subject.deployment) == ("ann", "prod")


# -- the sample beside it


def _personal() -> tuple[Any, dict[str, Any]]:
    rng = np.random.default_rng(3)
    columns = {
        "age": rng.integers(18, 90, 3000).astype(float),
        "town": np.array(["a", "b", "rare"])[rng.choice(3, 3000, p=[0.6, 0.399, 0.001])],
        "email": np.array([f"{i}@example.org" for i in range(3000)], dtype=object),
        "amount": rng.normal(size=3000),
    }
    columns["amount"][:5] = np.nan
    pii = {"age": "bin", "town": "bin", "email": "mask"}
    vectors = rng.normal(size=(3000, 8))
    profile = fit_profile(
        columns, {"label": np.where(columns["age"] > 50, "yes", "no")}, model="fraud",
        window=200, pii=pii, embeddings={"text": vectors}, directions=4,
    )  # fmt: skip
    answers = np.where(columns["age"] > 50, "yes", "no")
    return profile, {**columns, "label": answers, "text": vectors}


def test_the_sample_keeps_no_more_than_it_may() -> None:
    profile, columns = _personal()
    data = reference_parquet(profile, columns)
    table = pq.read_table(io.BytesIO(data))
    assert table.num_rows == 2000
    assert "email" not in " ".join(table.schema.names)
    assert b"example.org" not in data
    ages = set(table.column("feature:age").to_pylist())
    cuts = set(profile.columns[0].bins.cuts)
    assert len(ages) <= len(cuts) + 1  # ends of ranges, not ages
    assert {"a", "b"} <= set(table.column("feature:town").to_pylist()) <= {"a", "b", "rare"}
    assert sum(v is None for v in table.column("feature:amount").to_pylist()) <= 5
    sample = reference_sample(profile, data)
    assert sample.names == ("age", "town", "amount")
    assert sample.labels is not None
    assert sample.embeddings is not None
    assert sample.embeddings.shape == (2000, 4)


def test_windows_go_through_the_same_rules() -> None:
    profile, columns = _personal()
    ours = reference_sample(profile, reference_parquet(profile, columns))
    window = sample_of(profile, {name: values[:500] for name, values in columns.items()})
    assert window.names == ours.names
    assert set(np.unique(window.numbers[:, 0])) <= set(np.unique(ours.numbers[:, 0]))
    changed = {**columns, "amount": np.array(["x"] * 3000, dtype=object)}
    assert sample_of(profile, changed).kinds != ours.kinds
    assert "age" not in sample_of(profile, {"town": columns["town"]}).names


def test_a_sample_of_something_else_is_refused() -> None:
    profile, columns = _personal()
    with pytest.raises(MalformedRequestError, match="cannot be read"):
        reference_sample(profile, b"no parquet")
    other = fit_profile({"x": np.arange(3000.0)}, model="fraud", window=200)
    data = reference_parquet(profile, columns)
    with pytest.raises(MalformedRequestError, match="not of this profile"):
        reference_sample(other, data)


# -- performance and fairness in the profile


def test_sections_go_there_and_back() -> None:
    model = fitted_model()
    frame = reference(model)
    bounds = [FairnessBounds("region", selection=0.5)]
    fitted = fit_with_reference(**profile_arguments(frame, fairness=bounds))
    again = type(fitted.profile).from_json(fitted.profile.to_json())
    performance, fairness = PerformanceSection.of(again), FairnessSection.of(again)
    assert performance == PerformanceSection.of(fitted.profile)
    assert fairness == FairnessSection.of(fitted.profile)
    assert fairness is not None
    assert set(fairness.reference["region"]) == {"east", "north", "west"}
    assert [one.name for one in again.columns if one.protected] == ["region"]


def test_regression_waits_for_labels() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=3000)
    truth = x + rng.normal(size=3000)
    fitted = fit_with_reference(
        {"x": x}, {"value": x}, model="price", window=200, labels=truth, prediction="value"
    )
    section = PerformanceSection.of(fitted.profile)
    assert section is not None
    assert not section.classes
    assert section.errors.edges
    assert section.errors.mean == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": None}, "no labels"),
        ({"probabilities": ["nothing"]}, "no column 'nothing'"),
        ({"probabilities": []}, "no output is named"),
        ({"labels": [0, 1, 1]}, "3 labels for 4000 rows"),
        ({"probabilities": ["score"], "classes": [0, 1, 2]}, "1 columns of probabilities"),
        ({"fairness": [FairnessBounds("shoe size")]}, "'shoe size', which is no feature"),
    ],
)
def test_mistakes_at_training_are_told(change: dict[str, Any], said: str) -> None:
    frame = reference(fitted_model())
    with pytest.raises((ConfigurationError, MalformedRequestError), match=said):
        fit_with_reference(**profile_arguments(frame, **change))


def test_a_section_that_was_changed_by_hand_is_refused() -> None:
    profile = fit_profile(
        pd.DataFrame({"x": np.arange(2000.0)}), model="fraud", window=200,
        performance={"format": "chancery.drift-performance/v9"}, fairness={},
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match="'performance' cannot be read"):
        PerformanceSection.of(profile)
    with pytest.raises(ConfigurationError, match="'fairness' cannot be read"):
        FairnessSection.of(profile)
