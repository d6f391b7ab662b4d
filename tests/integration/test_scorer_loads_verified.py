"""What a scorer serves from a governed registry was verified before."""

from __future__ import annotations

import json

import pytest
from mlflow.exceptions import MlflowException

from serve.independence import Independent
from serve.scoring import Identity, Scorer
from tests.scenario import FEATURES, Scenario


@pytest.fixture(autouse=True)
def serving_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What loading a scorer tells MLflow's environment is taken back."""
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")


def test_a_promoted_version_answers_with_its_name(scenario: Scenario) -> None:
    version = scenario.train()
    scenario.to_prod(version)
    scorer = Scorer.load("models:/fraud@champion", Identity("fraud", str(version), "alice"))
    assert isinstance(scorer.prepare(FEATURES), Independent)
    body = json.dumps({"inputs": FEATURES.tolist()}).encode()
    answer = scorer.answer("application/json", body)
    assert answer.status == 200
    assert len(json.loads(answer.body)["predictions"]) == len(FEATURES)
    assert (b"x-chancery-version", str(version).encode()) in answer.headers


def test_a_tampered_version_is_not_loaded(scenario: Scenario) -> None:
    version = scenario.train()
    scenario.to_prod(version)
    (scenario.model_folder(version) / "conda.yaml").write_text("name: other\n")
    with pytest.raises(MlflowException) as error:
        Scorer.load(f"models:/fraud/{version}")
    assert error.value.json_kwargs["governance_code"] == "TAMPERED"
