"""Real data, real drift: 2016 stays calm, and the change of 2017 is caught at once (AC-5)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from drift.verdict import Level

_EXAMPLE = Path(__file__).parents[2] / "examples" / "census.py"


@pytest.fixture(scope="module")
def census() -> ModuleType:
    spec = importlib.util.spec_from_file_location("census_example", _EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["census_example"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def people(census: ModuleType) -> Any:
    return census.rows()


@pytest.fixture(scope="module")
def fitted(census: ModuleType, people: Any) -> Any:
    return census.fitted_on(people)


def test_a_whole_year_without_drift_raises_no_alert(
    census: ModuleType, people: Any, fitted: Any
) -> None:
    judged = [one for one in census.watched(people, fitted, 2016) if one.verdict.judged]
    assert len(judged) >= 60
    assert [one.verdict.index for one in judged if one.verdict.level is Level.ALERT] == []


def test_the_changed_questionnaire_alerts_in_its_first_window_and_is_named(
    census: ModuleType, people: Any, fitted: Any
) -> None:
    first, *_ = census.watched(people, fitted, 2017, most=2)
    assert first.verdict.level is Level.ALERT
    assert first.verdict.worst[0].name == "RELP"
    assert first.slices
    assert "RELP" in str(first.slices[0].predicate)
