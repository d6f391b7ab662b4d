"""A gateway's counts as Prometheus reads them (text format 0.0.4).

Nothing is counted for Prometheus alone: requests, errors and latencies come from the variants'
tallies, batch sizes from their lanes, when somebody asks. Bounds of the latency histogram are
rounded up to the tally's buckets, which are 1.1 % wide.

Each gateway names itself in the label ``gateway``: all of a node share one port, a scrape meets any
of them, and that one answers for all (``serve.siblings``). Every sample also names the
``deployment`` (its id) and its ``route``, as the plan
does; they are empty before the first plan.

Example::

    body = exposition(router, held_bytes=0)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate

from serve.delta import ErrorClass, first_bucket_from
from serve.observer import Observer
from serve.plan import About
from serve.records import Phase
from serve.router import Router
from serve.routing import Route
from serve.tally import Tally
from serve.tracing import SpanCounts

__all__ = ["CONTENT_TYPE", "exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BOUNDS_MS = (1, 2.5, 5, 10, 25, 50, 100, 250, 1000, 5000)
_EDGES = tuple(first_bucket_from(bound) for bound in _BOUNDS_MS)


def exposition(router: Router, held_bytes: int = 0, spans: SpanCounts | None = None) -> bytes:
    """All metrics of a gateway.

    Args:
        router: Its router.
        held_bytes: Size of all bodies that are being read or answered.
        spans: What became of its spans; None: nothing is traced.
    """
    routing = router.routing
    about = routing.plan.about if routing else About()
    gateway = {"gateway": router.source, "deployment": about.deployment, "route": about.route}
    lines: list[str] = []
    requests, latency = [], []
    for (variant, model, version), tally in router.tallies.items():
        labels = {**gateway, "variant": variant, "model": model, "version": version}
        requests += _requests(labels, tally)
        latency += _latency(labels, tally)
    lines += _family("chancery_requests_total", "counter", "Requests by outcome.", requests)
    lines += _family(
        "chancery_request_duration_seconds", "histogram", "Latency of good answers.", latency
    )
    routes = routing.routes if routing else {}
    weights = dict(routing.plan.weights) if routing else {}
    lines += _of_variants(gateway, routes, weights)
    lines += _of_rollout(gateway, about)
    if spans is not None:
        lines += _of_spans(gateway, spans)
    closed = routing is not None and bool(routing.plan.closed)
    if router.observer is not None:
        lines += _of_observer(gateway, router.observer)
    single = (
        ("chancery_plan_revision", "gauge", "Plan.", routing.plan.revision if routing else -1),
        ("chancery_closed", "gauge", "1: nobody answers on the route.", int(closed)),
        ("chancery_held_bytes", "gauge", "Size of bodies in memory.", held_bytes),
    )
    for name, kind, text, value in single:
        lines += _family(name, kind, text, [_sample(name, gateway, value)])
    lines += _of_shadows(gateway, router)
    return ("\n".join(lines) + "\n").encode()


def _of_spans(gateway: Mapping[str, str], spans: SpanCounts) -> list[str]:
    name = "chancery_spans_total"
    counts = {"sent": spans.sent, "failed": spans.failed, "dropped": spans.dropped}
    samples = [_sample(name, {**gateway, "outcome": key}, n) for key, n in counts.items()]
    return _family(name, "counter", "Spans of traced requests by what became of them.", samples)


def _of_rollout(gateway: Mapping[str, str], about: About) -> list[str]:
    """Where the rollout stands: of the phases one is 1."""
    phases, steps, all_steps = [], [], []
    if about.rollout:
        labels = {**gateway, "rollout": about.rollout}
        for phase in Phase:
            here = {**labels, "phase": phase.value}
            phases.append(_sample("chancery_rollout_phase", here, int(phase == about.phase)))
        step = about.step + 1 if about.phase == Phase.CANARY else 0
        steps.append(_sample("chancery_rollout_step", labels, step))
        all_steps.append(_sample("chancery_rollout_steps", labels, about.steps))
    return [
        *_family("chancery_rollout_phase", "gauge", "1 for the rollout's present phase.", phases),
        *_family("chancery_rollout_step", "gauge", "Step it is at, from 1; 0: at none.", steps),
        *_family("chancery_rollout_steps", "gauge", "Steps it has.", all_steps),
    ]


def _of_shadows(gateway: Mapping[str, str], router: Router) -> list[str]:
    dropped, answers = [], []
    for shadow, route in router.routing.shadows if router.routing else ():
        plan, found = route.variant.plan, router.shadows.total(shadow.id)
        labels = {**gateway, "variant": shadow.name, "model": plan.model, "version": plan.version}
        dropped.append(_sample("chancery_shadow_dropped_total", labels, found.dropped))
        for result, count in (
            ("same", found.same),
            ("different", found.different),
            ("uncompared", found.uncompared),
        ):
            compared = {**labels, "result": result}
            answers.append(_sample("chancery_shadow_answers_total", compared, count))
    held = [_sample("chancery_shadow_held_bytes", gateway, router.shadows.held_bytes)]
    return [
        *_family("chancery_shadow_dropped_total", "counter", "Copies not sent.", dropped),
        *_family("chancery_shadow_answers_total", "counter", "Beside stable's.", answers),
        *_family("chancery_shadow_held_bytes", "gauge", "Of bodies that copies hold.", held),
    ]


def _of_variants(
    gateway: Mapping[str, str], routes: Mapping[str, Route], weights: Mapping[str, float]
) -> list[str]:
    weight, flying, lanes, waiting, held, sizes = [], [], [], [], [], []
    for name, route in routes.items():
        variant, pool = route.variant, route.variant.pool
        labels = {
            **gateway,
            "variant": name,
            "model": variant.plan.model,
            "version": variant.plan.version,
        }
        weight.append(_sample("chancery_weight_percent", labels, weights.get(name, 0.0)))
        flying.append(_sample("chancery_in_flight", labels, variant.in_flight))
        lanes.append(_sample("chancery_lanes", labels, pool.lanes))
        waiting.append(_sample("chancery_waiting", labels, pool.depth))
        held.append(_sample("chancery_held_requests", labels, pool.room.held))
        counts = pool.sizes()
        for at, total in enumerate(accumulate(counts)):
            bound = {**labels, "le": str(2 ** (at + 1) - 1)}
            sizes.append(_sample("chancery_batch_size_bucket", bound, total))
        sizes.append(_sample("chancery_batch_size_bucket", {**labels, "le": "+Inf"}, sum(counts)))
        sizes.append(_sample("chancery_batch_size_count", labels, sum(counts)))
        sizes.append(_sample("chancery_batch_size_sum", labels, pool.carried))
    return [
        *_family("chancery_weight_percent", "gauge", "Share of the traffic.", weight),
        *_family("chancery_in_flight", "gauge", "Requests on their way.", flying),
        *_family("chancery_lanes", "gauge", "Replicas that can be asked.", lanes),
        *_family("chancery_waiting", "gauge", "Requests that wait for a batch.", waiting),
        *_family("chancery_held_requests", "gauge", "That wait for a first replica.", held),
        *_family("chancery_batch_size", "histogram", "Requests in a batch.", sizes),
    ]


def _of_observer(gateway: Mapping[str, str], observer: Observer) -> list[str]:
    """The owner's metrics and the outputs, where a rollout has them observed."""
    calls, errors, off = [], [], []
    for name, news in observer.news().items():
        labels = {**gateway, "metric": name}
        off.append(_sample("chancery_metric_off", labels, bool(news.off)))
        for variant, count in news.calls.items():
            of = {**labels, "variant": variant}
            calls.append(_sample("chancery_metric_calls_total", of, count))
            failed = news.errors.get(variant, 0)
            errors.append(_sample("chancery_metric_errors_total", of, failed))
    dropped = [
        _sample("chancery_metric_dropped_total", {**gateway, "variant": variant}, count)
        for variant, count in observer.dropped.items()
    ]
    skipped = [_sample("chancery_outputs_skipped_total", gateway, observer.skipped)]
    return [
        *_family("chancery_metric_calls_total", "counter", "Calls of owner's metrics.", calls),
        *_family("chancery_metric_errors_total", "counter", "Calls that failed.", errors),
        *_family("chancery_metric_off", "gauge", "Whether it is switched off.", off),
        *_family("chancery_metric_dropped_total", "counter", "Requests not shown.", dropped),
        *_family("chancery_outputs_skipped_total", "counter", "Answers not binned.", skipped),
    ]


def _requests(labels: Mapping[str, str], tally: Tally) -> list[str]:
    total = tally.total()
    good = total.requests - sum(total.errors.values())
    found = [_sample("chancery_requests_total", {**labels, "outcome": "ok"}, good)]
    for error in ErrorClass:
        count = total.errors.get(error, 0)
        outcome = {**labels, "outcome": error.value}
        found.append(_sample("chancery_requests_total", outcome, count))
    return found


def _latency(labels: Mapping[str, str], tally: Tally) -> list[str]:
    name, total = "chancery_request_duration_seconds", tally.total()
    found = []
    for bound, edge in zip(_BOUNDS_MS, _EDGES, strict=True):
        below = sum(count for bucket, count in total.latency.items() if bucket < edge)
        found.append(_sample(f"{name}_bucket", {**labels, "le": f"{bound / 1e3:g}"}, below))
    count = sum(total.latency.values())
    found.append(_sample(f"{name}_bucket", {**labels, "le": "+Inf"}, count))
    found.append(_sample(f"{name}_count", labels, count))
    found.append(_sample(f"{name}_sum", labels, total.total_ms / 1e3))
    return found


def _family(name: str, kind: str, text: str, samples: Iterable[str]) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *samples]


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    written = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{written}}} {value:.10g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
