"""Where an owner's metrics may come from: checked before a rollout is written down.

A metric that is a function is code which every gateway runs, so whoever deploys could run anything
there. Only modules that the setting ``CHANCERY_METRIC_MODULES`` names are let through: here, and
once more in the gateway, by the setting of its own machine.

Example::

    require_sources(order.canary_config, settings)
"""

from __future__ import annotations

import json

from governance.errors import ConfigurationError, RefusedError
from governance.settings import METRIC_MODULES, Settings, module_allowed

__all__ = ["require_sources"]

_PROMQL = "promql:"


def require_sources(canary_config: str | None, settings: Settings, subject: str = "") -> None:
    """Let a configuration through whose metrics may be had from where they are.

    Args:
        canary_config: A canary's configuration, JSON text; None: there is no canary.
        settings: Of this process.
        subject: What the refusal is about.

    Raises:
        RefusedError: a metric is a function of a module that is not allowed.
        ConfigurationError: a metric asks Prometheus, and it is not known where that is.
    """
    document = {} if canary_config is None else json.loads(canary_config)
    for metric in document.get("analysis", {}).get("metrics", ()):
        source: str = metric["source"]
        if source.startswith(_PROMQL):
            if settings.prometheus_url is None:
                raise ConfigurationError(
                    f"the metric {metric['name']!r} asks Prometheus, and where it is is not known",
                    "set CHANCERY_PROMETHEUS_URL, as http://prometheus.example:9090",
                )
            continue
        module = source.partition(":")[0]
        if not module_allowed(module, settings.metric_modules):
            listed = ", ".join(settings.metric_modules) or "none"
            raise RefusedError(
                f"the metric {metric['name']!r} is a function of the module {module!r}, which "
                f"gateways would run; modules that are allowed: {listed}",
                f"have whoever runs the cluster name it in {METRIC_MODULES}, on the gateways' "
                "machines and here",
                subject=subject,
            )
