"""Canary configurations that come from elsewhere: checked, whole, and never a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from governance.deployment_port import canaries
from governance.errors import ConfigurationError
from serve.config import CanaryConfig
from serve.parsing import parse_canary


@pytest.mark.parametrize("config", ["5%", "5,25,50,100", {"steps": [5]}, '{"steps": [5]}'])
def test_what_is_right_becomes_whole(config: Any) -> None:
    text = canaries().checked(config)
    assert CanaryConfig.model_validate_json(text).steps[0] == 5
    assert set(json.loads(text)) == set(CanaryConfig.model_fields)
    assert canaries().checked(text) == text, "what is stored passes once more"


def test_short_forms_mean_what_they_mean_to_the_command() -> None:
    assert canaries().checked("1%") == parse_canary("1%").model_dump_json()


def test_weights_pass_once_more() -> None:
    text = canaries().checked({"weights": {"stable": 90, "canary": 10}})
    assert canaries().checked(text) == text


def test_going_back_is_a_configuration_like_any_other() -> None:
    text = canaries().at_once()
    assert canaries().checked(text) == text
    assert json.loads(text)["steps"] == [99.0, 100.0]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("", "not a percentage"),
        ("five", "not a percentage"),
        ("{", "no JSON"),
        ("[" * 100_000, "not a percentage"),
        ('{"a":' * 50_000, "no JSON"),
        ('{"steps": [5], "steps": [9, 2]}', "does not exceed"),
        ({"step": [5]}, "did you mean 'steps'"),
        ({"steps": "5"}, "steps"),
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": True}, "alpha"),
    ],
)
def test_what_is_wrong_is_named(config: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as error:
        canaries().checked(config)
    assert error.value.remedy


def test_a_file_that_is_there_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "canary.yaml"
    path.write_text("steps: [5, 100]\n")
    with pytest.raises(ConfigurationError, match="not a percentage"):
        canaries().checked(str(path))
