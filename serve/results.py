"""What an experiment and a shadow came to so far, in numbers and in sentences.

Each arm by itself: requests, the rate of errors with its Wilson interval, and quantiles of the
latency. Each pair: an e-value against "both fail alike" (``serve.arms``) and the p-value that
follows from its highest value so far, valid however often somebody looked. A pair differs at the
level over all pairs when its p-value is below level / pairs. Wilson's interval is for one look at
one arm; it is not what pairs are judged by. Nothing is decided here: people do.

An arm's errors are those of ``serve.delta.ErrorClass`` but the client's own; ``shared`` ones are
those that stable had as well.

Example::

    found = results(record)
    found["experiment"]["arms"][0]["errorRate"]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from governance.deployment_records import DeploymentRecord, time_text
from serve.arms import ArmCourse, ExperimentCourse, PairCourse, ShadowCourse
from serve.delta import Delta, ErrorClass, lower_edge
from serve.views import course_of

__all__ = ["LEVEL", "as_results", "quantile", "results", "wilson"]

LEVEL = 0.05
"""Of the comparisons of all pairs together."""

_Z = 1.959963984540054  # of a 95 % interval
_NO_DECISION = "Nothing is decided automatically: an experiment runs until somebody ends it."


def wilson(events: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a rate, after Wilson (1927); (0, 1) where nothing was seen."""
    if not n:
        return 0.0, 1.0
    rate, square = events / n, _Z * _Z
    middle = (rate + square / (2 * n)) / (1 + square / n)
    half = _Z * math.sqrt(rate * (1 - rate) / n + square / (4 * n * n)) / (1 + square / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def quantile(buckets: Mapping[int, int], part: float) -> float | None:
    """A quantile of what was counted in buckets, within 1.1 %; None where nothing was."""
    total = sum(buckets.values())
    if not total:
        return None
    needed, seen = part * total, 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if seen >= needed:
            return lower_edge(bucket)
    raise AssertionError("the last bucket reaches the total")


def results(record: DeploymentRecord) -> dict[str, Any]:
    """Of the experiment and the shadow that run, or of the last ones; None where there was none."""
    beside = course_of(record).beside
    experiment, shadow = beside.experiment, beside.shadow
    return {
        "deployId": record.deploy_id,
        "route": record.route,
        "experiment": None if experiment is None else _of_experiment(record, experiment),
        "shadow": None if shadow is None else _of_shadow(record, shadow),
    }


def _of_experiment(record: DeploymentRecord, course: ExperimentCourse) -> dict[str, Any]:
    running = record.experiment is not None and record.experiment.id == course.id
    weights = {arm.name: arm.weight for arm in record.experiment.arms} if record.experiment else {}
    return {
        "experimentId": course.id,
        "name": course.name,
        "running": running,
        "begunAt": time_text(course.begun_ms),
        "arms": [
            {
                "name": arm.name,
                "model": f"models:/{record.model_name}/{arm.version}",
                "weight": weights.get(arm.name) if running else None,
                "state": _state(arm) if running else "ended",
                **_of_delta(arm.total),
            }
            for arm in course.arms
        ],
        "level": LEVEL,
        "pairs": [_of_pair(pair, len(course.pairs)) for pair in course.pairs],
        "decision": _NO_DECISION,
    }


def _state(arm: ArmCourse) -> str:
    return f"stopped: {arm.stopped}" if arm.stopped else "open" if arm.open else "away"


def _of_delta(delta: Delta) -> dict[str, Any]:
    client = delta.errors.get(ErrorClass.CLIENT, 0)
    errors, judged = sum(delta.errors.values()) - client, delta.requests - client
    low, high = wilson(errors, judged)
    return {
        "requests": delta.requests,
        "clientErrors": client,
        "errors": errors,
        "sharedErrors": delta.errors.get(ErrorClass.SHARED, 0),
        "errorRate": errors / judged if judged else None,
        "errorRateInterval": [low, high],
        **{f"p{part:g}Ms": quantile(delta.latency, part / 100) for part in (50, 95, 99)},
    }


def _of_pair(pair: PairCourse, pairs: int) -> dict[str, Any]:
    p_value = min(1.0, math.exp(-pair.highest))
    differs = p_value < LEVEL / pairs
    more = pair.more.against.log_total >= pair.less.against.log_total
    return {
        "first": pair.first,
        "second": pair.second,
        "logEValue": pair.log_e,
        "pValue": p_value,
        "differs": differs,
        "failsMore": (pair.first if more else pair.second) if differs else None,
    }


def _of_shadow(record: DeploymentRecord, course: ShadowCourse) -> dict[str, Any]:
    found = course.agreement
    running = record.shadow is not None and record.shadow.id == course.id
    low, high = wilson(found.same, found.compared)
    state = f"stopped: {course.stopped}" if course.stopped else "open" if course.open else "away"
    return {
        "shadowId": course.id,
        "model": f"models:/{record.model_name}/{course.version}",
        "running": running,
        "state": state if running else "ended",
        "begunAt": time_text(course.begun_ms),
        **_of_delta(course.total),
        **found.to_dict(),
        "agreement": found.same / found.compared if found.compared else None,
        "agreementInterval": [low, high],
    }


def as_results(found: Mapping[str, Any]) -> RenderableType:
    """For people."""
    parts: list[RenderableType] = []
    if (experiment := found["experiment"]) is not None:
        parts.append(
            f"experiment {experiment['name']}, {'runs' if experiment['running'] else 'ended'}, "
            f"begun {experiment['begunAt']}"
        )
        parts.append(_table(experiment["arms"]))
        parts += [Text(_sentence(pair, len(experiment["pairs"]))) for pair in experiment["pairs"]]
        parts.append(Text(experiment["decision"]))
    if (shadow := found["shadow"]) is not None:
        parts.append(f"shadow {shadow['model']}, {shadow['state']}, begun {shadow['begunAt']}")
        parts.append(_table([{"name": "shadow", **shadow}]))
        parts.append(Text(_agreed(shadow)))
    if not parts:
        parts.append(f"the route {found['route']!r} has had no experiment and no shadow yet")
    return Group(*parts)


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE, pad_edge=False)
    for name in (
        "arm",
        "version",
        "state",
        "requests",
        "errors",
        "rate (95 %)",
        "p50",
        "p95",
        "p99",
    ):
        table.add_column(name, overflow="fold")
    for row in rows:
        low, high = row["errorRateInterval"]
        rate = "–" if row["errorRate"] is None else f"{row['errorRate']:.2%} ({low:.2%}–{high:.2%})"
        shared = f" ({row['sharedErrors']} stable's too)" if row["sharedErrors"] else ""
        table.add_row(
            row["name"],
            row["model"].removeprefix("models:/"),
            row["state"] + (f" {row['weight']} %" if row.get("weight") else ""),
            str(row["requests"]),
            f"{row['errors']}{shared}",
            rate,
            *("–" if row[p] is None else f"{row[p]:.3g} ms" for p in ("p50Ms", "p95Ms", "p99Ms")),
        )
    return table


def _sentence(pair: Mapping[str, Any], pairs: int) -> str:
    numbers = f"p = {pair['pValue']:.2g}, valid at any look, e^{pair['logEValue']:.2f}"
    level = f"at level {LEVEL:g} over {pairs} pair{'s' if pairs > 1 else ''}"
    if pair["differs"]:
        other = pair["second"] if pair["failsMore"] == pair["first"] else pair["first"]
        return f"{pair['failsMore']} fails more often than {other} {level} ({numbers})."
    return f"{pair['first']} and {pair['second']}: no difference is shown {level} ({numbers})."


def _agreed(shadow: Mapping[str, Any]) -> str:
    counts = f"{shadow['uncompared']} not compared, {shadow['dropped']} dropped"
    if shadow["agreement"] is None:
        return f"No answer was compared with stable's yet; {counts}."
    low, high = shadow["agreementInterval"]
    return (
        f"It agreed with stable in {shadow['agreement']:.2%} ({low:.2%}–{high:.2%}) of "
        f"{shadow['same'] + shadow['different']} answers; {counts}."
    )
