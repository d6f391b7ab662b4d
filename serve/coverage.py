"""Whether enough was observed: no evidence is no good evidence.

The owner's metrics, and the outputs, may stay away without anybody being at fault: a function that
is switched off, a Prometheus that does not answer. So a step needs a number of observations of each
variant. Those count that the test could bet on: the first ones only tell it what to bet.

A configuration that does not say how many (one from before this was asked) needs none.

Example::

    observed = observed_with(config, judge, {}, canary, stable)
    missing(config, observed)    # sentences
"""

from __future__ import annotations

from collections.abc import Mapping

from serve.config import CanaryConfig
from serve.delta import Delta
from serve.judge import Judge

__all__ = ["Pairs", "missing", "observed_with"]

_OUTPUTS = "outputs"

Pairs = Mapping[str, tuple[int, int]]
"""Observations of canary and stable by source: a metric's name, or ``outputs``."""


def _needed(config: CanaryConfig) -> dict[str, int]:
    """Observations of each variant that a step needs, by source."""
    analysis = config.analysis
    needed = {metric.name: metric.min_samples for metric in analysis.metrics}
    if analysis.outputs is not None:
        needed[_OUTPUTS] = analysis.outputs.min_samples
    return {name: count for name, count in needed.items() if count is not None}


def observed_with(
    config: CanaryConfig, judge: Judge, before: Pairs, canary: Delta, stable: Delta
) -> dict[str, tuple[int, int]]:
    """What the step has seen of each source, with these deltas.

    Args:
        config: The rollout's.
        judge: As it was before the deltas.
        before: What the step had seen.
        canary: What the canary did.
        stable: What stable did.
    """
    needed, informed = _needed(config), judge.informed
    found = {name: before.get(name, (0, 0)) for name in needed}
    for name in needed.keys() & informed:
        here, there = (_count(name, delta) for delta in (canary, stable))
        found[name] = (found[name][0] + here, found[name][1] + there)
    return found


def _count(name: str, delta: Delta) -> int:
    if name == _OUTPUTS:
        return sum(delta.outputs.values())
    return delta.owner[name].n if name in delta.owner else 0


def missing(config: CanaryConfig, observed: Pairs) -> tuple[str, ...]:
    """What the step has not seen enough of, in sentences."""
    found = []
    for name, needed in _needed(config).items():
        canary, stable = observed.get(name, (0, 0))
        if min(canary, stable) < needed:
            what = "the outputs" if name == _OUTPUTS else f"the metric {name!r}"
            found.append(
                f"Of {what}, this step has {canary} observations of the canary and {stable} of "
                f"stable to go by; {needed} of each are needed."
            )
    return tuple(found)
