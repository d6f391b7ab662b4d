"""The contract of an owner's metric: what it is asked with and what it may say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from serve.config import MetricKind
from serve.observing import CallableMetric
from serve.scored import ImproperValueError, ScoredRequest, observation

RATE = CallableMetric("share", MetricKind.RATE, "m:f")
MEAN = CallableMetric("score", MetricKind.MEAN, "m:f", -10.0, 10.0)
QUANTILE = CallableMetric("tokens", MetricKind.QUANTILE, "m:f")


def last(count: int) -> int:
    return count - 1


@pytest.mark.parametrize(
    ("metric", "returned", "value"),
    [
        (RATE, True, 1.0),
        (RATE, 0, 0.0),
        (RATE, np.bool_(True), 1.0),
        (RATE, [True, True, False], 0.0),
        (MEAN, 5, 0.75),
        (MEAN, 99, 1.0),
        (MEAN, -math.pi * 1e6, 0.0),
        (MEAN, np.float32(-10), 0.0),
        (MEAN, [0, 10], 0.75),
        (MEAN, np.array([0.0, 10.0, 1e300]), (0.5 + 1 + 1) / 3),
        (MEAN, np.array(5.0), 0.75),
        (MEAN, (value for value in (0, 0)), 0.5),
        (QUANTILE, [3, 7.5], 7.5),
        (QUANTILE, 0, 0.0),
        (RATE, None, None),
        (MEAN, [], None),
        (QUANTILE, iter(()), None),
    ],
)
def test_a_value(metric: CallableMetric, returned: Any, value: float | None) -> None:
    assert observation(metric, returned, last) == pytest.approx(value)


@pytest.mark.parametrize(
    ("metric", "returned"),
    [
        (RATE, 0.5),
        (RATE, [True, 2]),
        (RATE, "true"),
        (MEAN, float("nan")),
        (MEAN, [1.0, float("inf")]),
        (MEAN, "5"),
        (MEAN, ["5"]),
        (MEAN, {"value": 5}),
        (MEAN, object()),
        (MEAN, 10**400),
        (MEAN, 1j),
        (QUANTILE, -1),
        (QUANTILE, range(200_000)),
    ],
)
def test_what_is_no_value(metric: CallableMetric, returned: Any) -> None:
    with pytest.raises(ImproperValueError):
        observation(metric, returned, last)


def test_the_request_and_its_answer_are_parsed_when_asked_for() -> None:
    request = ScoredRequest(
        "canary", "fraud", "4", 200, 3.5, "application/json", b'{"inputs": [1]}',
        b'{"predictions": [0.5, NaN]}',
    )  # fmt: skip
    assert request.json == {"inputs": [1]}
    assert request.predictions[0] == 0.5
    assert request.predictions is request.predictions
    assert "inputs" not in repr(request)
    other = ScoredRequest("stable", "fraud", "3", 200, 3.5, "text/csv", b"a,b\n1,2", b"[" * 9999)
    assert other.json is None
    assert other.predictions is None
