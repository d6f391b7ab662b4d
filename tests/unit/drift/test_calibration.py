"""Isotonic calibration: the same as scikit-learn's, kept as knots."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from drift.calibration import IDENTITY, Calibration, isotonic
from governance.canonical import canonical_json, parse_json
from governance.errors import ConfigurationError


def test_the_knots_are_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    scores = np.round(rng.uniform(size=4000), 3)  # with ties
    ones = (rng.uniform(size=4000) < scores**2).astype(float)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(scores, ones)
    places = np.linspace(0, 1, 5001)
    assert np.abs(isotonic(scores, ones).apply(places) - theirs.predict(places)).max() < 1e-12


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=60))
def test_it_never_falls_and_keeps_the_mean(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([score / 8 for score, _ in rows])
    ones = np.array([float(one) for _, one in rows])
    found = isotonic(scores, ones)  # refuses falling knots itself
    assert found.apply(scores).mean() == pytest.approx(ones.mean(), abs=1e-12)


def test_it_is_stored_exactly_and_can_be_signed() -> None:
    rng = np.random.default_rng(2)
    scores = rng.uniform(size=500)
    found = isotonic(scores, (rng.uniform(size=500) < scores).astype(float))
    assert Calibration.from_dict(parse_json(canonical_json(found.to_dict()))) == found


def test_identity_leaves_scores_as_they_are() -> None:
    assert IDENTITY.apply(np.array([0.1, 0.9])).tolist() == [0.1, 0.9]


def test_one_class_only_is_flat() -> None:
    found = isotonic(np.array([0.2, 0.4, 0.9]), np.ones(3))
    assert found.apply(np.array([0.0, 0.5, 1.0])).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "document",
    [
        {"scores": ["0.1", "0.1"], "probabilities": ["0.1", "0.2"]},
        {"scores": ["0.1", "0.2"], "probabilities": ["0.3", "0.2"]},
        {"scores": ["0.1"], "probabilities": []},
        {"scores": ["0.1"], "probabilities": ["1.5"]},
        {"scores": ["nan"], "probabilities": ["0.5"]},
    ],
)
def test_knots_that_are_no_calibration_are_refused(document: dict[str, list[str]]) -> None:
    with pytest.raises(ConfigurationError, match="knots"):
        Calibration.from_dict(document)


def test_nothing_to_fit_on_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="0 scores"):
        isotonic(np.zeros(0), np.zeros(0))
