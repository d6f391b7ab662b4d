"""What is sent about drift is as ``docs/schemas`` says, and says everything that is sent."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from drift.verdict import Level
from governance.alert_records import Act, AlertIdentity, AlertState
from governance.drift_alerts import AlertRules, opened, with_act
from governance.drift_reports import DriftReport
from governance.drift_retrain import suggestion
from tests.integration.drift_world import report
from tests.unit.drift.monitor_world import World, block_of, reference_sample

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "schemas"
SCHEMAS: dict[str, Any] = {
    path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.schema.json"))
}
REGISTRY: Registry[Any] = Registry().with_resources(
    [(name, Resource.from_contents(schema)) for name, schema in SCHEMAS.items()]
)


def faults(name: str, document: Any) -> list[str]:
    validator = Draft202012Validator(SCHEMAS[f"{name}.schema.json"], registry=REGISTRY)
    plain = json.loads(json.dumps(document, allow_nan=False))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(plain)]


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_the_schemas_are_schemas_and_say_what_everything_is(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])

    def undescribed(schema: Any, where: str) -> list[str]:
        found = []
        for key, part in schema.get("properties", {}).items():
            here = f"{where}.{key}"
            found += [] if part.get("description") or "job" in where else [here]
            found += undescribed(part, here) + undescribed(part.get("items") or {}, here)
        for part in schema.get("oneOf", ()):
            found += undescribed(part, where)
        return found

    assert undescribed(SCHEMAS[name], "") == []


@pytest.mark.parametrize("level", list(Level))
def test_reports(level: Level) -> None:
    assert faults("drift-report-v1", report(level=level).to_dict()) == []


def test_reports_of_a_monitor(tmp_path: Path) -> None:
    """With findings, slices, an empty window's zeros and infinities."""
    world = World(tmp_path)
    for i in range(6):
        world.blocks.write(block_of(i, shift=3.0 * (i > 1)))
    world.run(world.monitor(reference=reference_sample()))
    documents = [found.to_dict() for found in world.notes.reports]
    assert any(one["findings"] and one["slices"] for one in documents)
    for document in documents:
        assert faults("drift-report-v1", document) == []


def test_alerts_and_what_to_train_again() -> None:
    who = AlertIdentity("0" * 32, 1, "m", "v", "fraud", 3, "", "ann")
    seen = DriftReport.parse(report(3, Level.ALERT).to_json()).to_sighting()
    step = opened(who, seen, AlertRules(), now_ms=5)
    assert step is not None
    assert faults("drift-alert-v1", step.alert.to_dict()) == []
    tags = {"mlflow.project.entryPoint": "train", "mlflow.source.git.commit": "4f2a"}
    document = suggestion(step.alert, datasets=("train#4f2a",), run_id=None, tags=tags)
    assert faults("retrain-v1", document) == []
    act = Act(AlertState.ACKNOWLEDGED, "ann", "signed", "on it", 6, 1)
    alert = replace(with_act(step.alert, act), retrain=document)
    assert faults("drift-alert-v1", alert.to_dict()) == []
    status = {
        "format": "chancery.drift-status/v1",
        "modelId": "fraud",
        "status": "alert",
        "watched": [
            {
                **DriftReport.parse(report(3, Level.ALERT).to_json()).summary(),
                "signedBy": "bob",
                "seenMs": 7,
            }
        ],
        "alerts": [alert.to_dict()],
    }
    assert faults("drift-status-v1", status) == []
    assert faults("drift-status-v1", {**status, "more": 1})
    status["alerts"][0]["retrain"]["job"] = {}  # type: ignore[index]
    assert faults("drift-status-v1", status)
