"""What a profile knows of performance and fairness, and what it takes labels for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from drift.sections import fit_performance
from governance.errors import ConfigurationError

ROWS = 5000
RNG = np.random.default_rng(0)
PRICES = RNG.integers(50_000, 900_000, ROWS)
COUNTS = RNG.poisson(4.0, ROWS)
DIGITS = RNG.integers(0, 10, ROWS)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (PRICES, PRICES + RNG.normal(0, 5000, ROWS)),
        (PRICES.astype(object), PRICES + RNG.integers(-5000, 5000, ROWS)),
        (PRICES.astype(float), PRICES + RNG.integers(-5000, 5000, ROWS)),
        (COUNTS, COUNTS + RNG.normal(0, 1, ROWS)),
    ],
    ids=["whole prices", "whole predictions too", "floats", "few whole numbers"],
)
def test_amounts_are_a_regression(labels: np.ndarray[Any, Any], said: Any) -> None:
    section = fit_performance({"said": said}, labels, prediction="said")
    assert section.classes == ()
    assert len(section.errors.edges) > 1


@pytest.mark.parametrize(
    "said",
    [DIGITS, np.roll(DIGITS, 1).astype(float), DIGITS.astype(object)],
    ids=["whole", "floats", "objects"],
)
def test_whole_numbers_that_come_again_and_again_are_classes(said: Any) -> None:
    section = fit_performance({"said": said}, DIGITS, prediction="said")
    assert section.classes == tuple(range(10))
    assert section.errors.edges == ()


def test_what_labels_are_can_be_said() -> None:
    said = {"said": COUNTS + RNG.integers(-2, 2, ROWS)}
    assert fit_performance(said, COUNTS, prediction="said").classes
    assert fit_performance(said, COUNTS, prediction="said", classes=()).errors.edges
    halves = {"said": DIGITS + 0.5}
    found = fit_performance(halves, DIGITS, prediction="said", classes=list(range(10)))
    assert found.errors.mean == 1.0
    for odd in ({"labels": COUNTS, "probabilities": ["said"]}, {"labels": COUNTS.astype(str)}):
        with pytest.raises(ConfigurationError, match="of a regression"):
            fit_performance(said, prediction="said", classes=(), **odd)
