"""Copying into protected registered models, in a few words: what tests of it share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlflow
import mlflow.pyfunc
import pytest
from mlflow.exceptions import MlflowException

from governance.backend import PromotionRequest
from governance.errors import GovernanceError
from mlflow_plugins.exceptions import GovernedMlflowException
from tests.scenario import Scenario

POLICY = """\
version: 1
environments:
  - name: staging
    aliases: [challenger]
    registered_models: ["staging.*"]
  - name: prod
    aliases: [champion]
    stages: [Production]
    registered_models: ["prod.*"]
    requires: {after: null}
"""


def apply_policy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the policy in force for stores that are opened from now on."""
    path = folder / "policy.yaml"
    path.write_text(POLICY)
    monkeypatch.setenv("CHANCERY_POLICY", str(path))
    return path


def clear(scenario: Scenario, version: int) -> PromotionRequest:
    """Request and approve that the version be served as ``prod.fraud``."""
    return scenario.clear(version, "prod", served_as="prod.fraud")


def copy(scenario: Scenario, version: int, to: str = "prod.fraud", name: str = "fraud") -> int:
    """What the UI's *Promote model* button does; the new version's number."""
    found = scenario.client.copy_model_version(f"models:/{name}/{version}", to)
    return int(found.version)


def governed(error: pytest.ExceptionInfo[MlflowException]) -> GovernanceError:
    """The refusal itself: MLflow's copy wraps it in an exception of its own."""
    cause: BaseException | None = error.value
    while cause is not None and not isinstance(cause, GovernedMlflowException):
        cause = cause.__cause__
    assert isinstance(cause, GovernedMlflowException), repr(error.value)
    assert cause.error_code == "PERMISSION_DENIED"
    return cause.governance_error


def refused(change: Callable[[], object]) -> GovernanceError:
    with pytest.raises(MlflowException) as error:
        change()
    return governed(error)


def refused_copy(scenario: Scenario, version: int, **where: str) -> GovernanceError:
    to = where.get("to", "prod.fraud")
    said = refused(lambda: copy(scenario, version, **where))
    assert not scenario.client.search_model_versions(f"name = '{to}'")
    return said


def load(uri: str = "models:/prod.fraud/1") -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model(uri)


def refused_load(uri: str = "models:/prod.fraud/1") -> GovernanceError:
    return refused(lambda: load(uri))
