"""What an owner's metric is asked with, and what it may say.

A metric is a function of one argument that the owner of a model writes::

    # fraud_metrics.py
    from serve.scored import ScoredRequest

    def blocked(request: ScoredRequest) -> list[bool] | None:
        predictions = request.predictions
        return None if predictions is None else [score > 0.9 for score in predictions]

- It is called once for each request that a variant answered well (status below 400) when it was
  assigned by chance. Requests that failed are the error test's business; what stable answered again
  for another, copies to shadows, and requests of testers are no fair sample and are not shown.
- It returns None (no observation), a number, or several (any iterable). For a *rate* a value is
  true or false (or 1 or 0); for a *mean* a finite number, cut to the configured range; for a
  *quantile* a finite number, 0 or more.
- Several values are one observation: rows of one request are not independent of each other, and the
  tests count independent observations. For a mean it is their average, else one drawn by chance.
- It runs in a process of its own beside the gateway (``serve.metric_process``), one call at a time,
  while the answer goes its way. It may be slow (requests are then left out by chance, and counted),
  it may raise (an error of the metric, not of the model). One that takes too long, or ends the
  process, is switched off, and the rollout holds.
- It sees requests of many clients: it should keep and send nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson

from serve.config import MetricKind
from serve.observing import CallableMetric
from serve.outputs import predictions_in

__all__ = ["ImproperValueError", "ScoredRequest", "Shown", "observation"]

_MOST_VALUES = 100_000


Shown = tuple[str, str, str, int, float, str, bytes, bytes]
"""The fields of a ``ScoredRequest``, as a gateway keeps them until it is asked about."""


class ImproperValueError(ValueError):
    """A metric gave what is no value of its kind; the text holds nothing of the request."""


@dataclass(frozen=True)  # not slotted: what is parsed is kept
class ScoredRequest:
    """A request and the answer that a variant gave.

    Attributes:
        variant: ``stable``, ``canary``, or an experiment's arm.
        model: Registered name.
        version: Version in the registry.
        status: Of the answer.
        latency_ms: Until the variant's answer.
        content_type: Of the request.
        body: The request's bytes.
        answer: The answer's bytes.
    """

    variant: str
    model: str
    version: str
    status: int
    latency_ms: float
    content_type: str
    body: bytes = field(repr=False)
    answer: bytes = field(repr=False)

    @cached_property
    def json(self) -> Any:
        """The request's body, parsed; None where it is not JSON."""
        try:
            return orjson.loads(self.body)
        except ValueError:
            try:
                return json.loads(self.body)  # NaN and Infinity
            except (ValueError, RecursionError):
                return None

    @cached_property
    def predictions(self) -> Any:
        """``predictions`` of the answer; None where there are none, or where it exceeds 1 MiB."""
        return predictions_in(self.answer)


def observation(metric: CallableMetric, returned: Any, draw: Callable[[int], int]) -> float | None:
    """What a result counts as: of a rate 0 or 1, of a mean a part of its range, from 0 to 1.

    Args:
        metric: Which.
        returned: What the function returned.
        draw: ``draw(n)`` is a number below n, by chance.

    Raises:
        ImproperValueError: it is no value of the metric's kind.
    """
    if returned is None:
        return None
    values = _values(returned)
    if not values:
        return None
    if metric.kind is MetricKind.MEAN:
        width = metric.high - metric.low
        parts = (min(max((_finite(v) - metric.low) / width, 0.0), 1.0) for v in values)
        return math.fsum(parts) / len(values)
    value = _finite(values[draw(len(values)) if len(values) > 1 else 0])
    if metric.kind is MetricKind.RATE and value not in (0.0, 1.0):
        raise ImproperValueError("a rate's value is neither true nor false, 0 nor 1")
    if value < 0:
        raise ImproperValueError("a quantile's value is below 0")
    return value


def _values(returned: Any) -> list[Any]:
    if isinstance(returned, str | bytes | dict):
        raise ImproperValueError(f"a {type(returned).__name__} is no number")
    if not isinstance(returned, Iterable) or getattr(returned, "shape", None) == ():
        return [returned]
    found = []
    for value in returned:
        found.append(value)
        if len(found) > _MOST_VALUES:
            raise ImproperValueError(f"more than {_MOST_VALUES} values")
    return found


def _finite(value: Any) -> float:
    """A number, or what knows how to be one (NumPy's)."""
    if isinstance(value, str | bytes):
        raise ImproperValueError(f"a {type(value).__name__} is no number")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ImproperValueError(f"a {type(value).__name__} is no number") from error
    if not math.isfinite(number):
        raise ImproperValueError("a value is not finite")
    return number
