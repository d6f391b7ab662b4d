"""Checks the configurations of canaries for those who may not import this package.

Implements ``governance.deployment_port.Canaries``, as the entry point ``chancery.canaries``: a
server takes configurations from clients, and stores none that a controller could not follow.
Nothing here reads a file: what a client names is not looked up on the server.

Example::

    checked("5%")                         # '{"version":1,"steps":[5.0,25.0,50.0,100.0],…'
    checked({"steps": [5, 25, 100]})
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from governance.errors import ConfigurationError
from serve.config import PROMQL, CanaryConfig, OnTimeout
from serve.parsing import canary_of, parse_canary_steps
from serve.promql import check_query

__all__ = ["at_once", "checked", "stored"]

_AT_ONCE = CanaryConfig(
    steps=(99.0, 100.0), min_samples=1, min_seconds=0.0, on_timeout=OnTimeout.HOLD
)


def stored(config: CanaryConfig) -> str:
    """As JSON text, when what it asks of Prometheus can be asked.

    Raises:
        ConfigurationError: a query that cannot, or that asks the same of stable and canary.
    """
    for metric in config.analysis.metrics:
        for source in (metric.source, metric.total or ""):
            if source.startswith(PROMQL):
                check_query(source.removeprefix(PROMQL))
    return config.model_dump_json()


def checked(config: str | Mapping[str, Any]) -> str:
    """See ``governance.deployment_port.Canaries``.

    Raises:
        ConfigurationError: names what is wrong and how to put it right.
    """
    if not isinstance(config, str):
        return stored(canary_of(dict(config)))
    if not config.lstrip().startswith("{"):
        return parse_canary_steps(config).model_dump_json()
    try:
        found = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"canaryConfig: it is no JSON: {error}", "send one JSON object, or steps as 5,25,100"
        ) from error
    return stored(canary_of(found))


def at_once() -> str:
    """See ``governance.deployment_port.Canaries``."""
    return _AT_ONCE.model_dump_json()
