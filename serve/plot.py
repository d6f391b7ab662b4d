"""A rollout as a picture that explains itself: traffic, errors, latency, evidence, decisions.

Drawn from the series that lies in the deployment's course (``serve.series``) and its decisions, so
it needs neither MLflow nor the gateways, and any machine draws the same. Colours are Okabe and
Ito's, which colour-blind people can tell apart; the variants differ in their line styles too.

Example::

    story = Story("fraud", "prod", "fraud", series, decisions)
    Path("rollout.png").write_bytes(drawn(story, "png"))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from textwrap import fill
from typing import TYPE_CHECKING, Any

from governance.deployment_control import StoredDecision
from governance.deployment_records import DeploymentRecord, time_text
from governance.errors import ConfigurationError, RefusedError
from serve.intervals import wilson
from serve.series import Point, Series, Side
from serve.views import course_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FORMATS", "Story", "drawn", "headline", "story_of"]

FORMATS = ("png", "svg", "pdf")

_STABLE, _CANARY = "#0072B2", "#D55E00"
_BAD, _GOOD, _PLAIN = "#B00020", "#00795C", "#444444"
_TESTS = ("#CC79A7", "#009E73", "#56B4E9", "#E69F00", "#7F7F7F", "#8C6D31", "#5E3C99", "#000000")
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # words stay words
}
_ENDINGS = {
    "promoted": ("promoted", _GOOD),
    "rolled_back": ("rolled back", _BAD),
    "quarantined": ("quarantined", _BAD),
    "aborted": ("aborted", _PLAIN),
}
_WINDOW = 8  # points that a rate or a quantile is taken over


@dataclass(frozen=True, slots=True)
class Story:
    """What is drawn.

    Attributes:
        route: Where clients reach it.
        environment: Whose gate applies.
        model: Registered name.
        series: The rollout over time.
        decisions: What changed it, oldest first (``serve.records.RolloutDecision.to_dict``).
    """

    route: str
    environment: str
    model: str
    series: Series
    decisions: Sequence[Mapping[str, Any]]


def story_of(record: DeploymentRecord, decisions: Sequence[StoredDecision]) -> Story:
    """The rollout that runs, or the last one.

    Raises:
        RefusedError: there was none, or nothing of it was kept.
    """
    series = course_of(record).series
    if series is None or not series.points:
        raise RefusedError(
            f"nothing was kept of a rollout on the route {record.route!r}",
            "it is kept from a rollout's start on; ask again when one runs",
            subject=record.subject,
        )
    told = [one.document for one in decisions if one.rollout_id == series.rollout_id]
    return Story(record.route, record.environment, record.model_name, series, told)


def drawn(story: Story, form: str = "png") -> bytes:
    """The picture, in one of ``FORMATS``.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError(
            f"pictures need {error.name}, which is not installed", "pip install matplotlib"
        ) from error
    with rc_context(_STYLE):
        figure = Figure(figsize=(10, 12), dpi=110, layout="constrained")
        _draw(figure, story)
        out = BytesIO()
        figure.savefig(out, format=form, facecolor="white")
    return out.getvalue()


def _draw(figure: Figure, story: Story) -> None:
    axes = figure.subplots(4, 1, sharex=True, height_ratios=(1.0, 1.5, 1.5, 2.0))
    span = _Span.of(story.series)
    figure.suptitle(headline(story), x=0.01, ha="left", fontsize=14, fontweight="bold")
    share, errors, latency, evidence = axes
    _draw_share(share, story, span)
    _draw_errors(errors, story, span)
    _draw_latency(latency, story, span)
    _draw_evidence(evidence, story, span)
    for ax in axes:
        ax.set_xlim(0, span.length)
        ax.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
        for decision in story.decisions:
            ax.axvline(span.at(decision["atMs"]), color="#999999", linewidth=0.7, linestyle=":")
    began = time_text(story.series.began_ms)
    evidence.set_xlabel(f"Time since the rollout began, {began}, in {span.unit}")
    caption = "\n".join(fill(line, 145) for line in _caption(story).splitlines())
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8.5, color="#333333")


def headline(story: Story) -> str:
    """What it is about, and how it ended."""
    series = story.series
    stable, canary = (*series.versions, "?", "?")[:2]
    how, _ = _ENDINGS.get(series.phase, ("running", _PLAIN))
    last = next((p.percent for p in reversed(series.points) if p.phase == "canary"), None)
    known = last is not None and series.phase != "promoted"
    where = f" at {last:g} % of the traffic" if known else ""
    return (
        f"{story.route} ({story.environment}): canary {story.model}/{canary} "
        f"beside stable {story.model}/{stable}, {how}{where}"
    )


def _caption(story: Story) -> str:
    """The last decision in its own words, and how to read the lines of tests."""
    scaled = (
        "Dotted lines: decisions. Against a canary that is no worse, 100 : 1 ever comes up with "
        "probability 1/100 at most, however often one looks. Each test's line is drawn so that the "
        "red line is its own threshold too."
    )
    if not story.decisions:
        return scaled
    last = story.decisions[-1]
    said = " ".join(map(str, last["explanation"]))
    return f"Last decision ({last['outcome'].replace('_', ' ')}): {said}\n{scaled}"


@dataclass(frozen=True, slots=True)
class _Span:
    """Times on the axis."""

    began_ms: int
    unit: str
    unit_ms: float
    length: float

    @classmethod
    def of(cls, series: Series) -> _Span:
        length = max(series.points[-1].at_ms - series.began_ms, 1000)
        unit, unit_ms = "seconds", 1000.0
        if length > 10 * 60_000:
            unit, unit_ms = "minutes", 60_000.0
        if length > 10 * 3_600_000:
            unit, unit_ms = "hours", 3_600_000.0
        after = 1.03 if series.phase in _ENDINGS else 1.0  # what it led to is seen too
        return cls(series.began_ms, unit, unit_ms, after * length / unit_ms)

    def at(self, ms: int) -> float:
        return max(0.0, (ms - self.began_ms) / self.unit_ms)

    def times(self, points: Sequence[Point]) -> list[float]:
        return [self.at(point.at_ms) for point in points]


def _title(ax: Axes, title: str, unit: str) -> None:
    ax.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    ax.set_ylabel(unit)


def _legend(ax: Axes, columns: int = 2) -> None:
    """Above the axes, where no line is."""
    if not ax.get_legend_handles_labels()[0]:
        return
    ax.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 0.99),
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        borderaxespad=0.1,
        columnspacing=1.2,
    )


def _draw_share(ax: Axes, story: Story, span: _Span) -> None:
    _title(ax, "Who gets the traffic", "% of requests")
    points = story.series.points
    times = [0.0, *span.times(points), span.length]
    percents = [*(point.percent for point in points), *[points[-1].percent] * 2]
    ax.stackplot(
        times,
        percents,
        [100 - percent for percent in percents],
        step="post",
        colors=[_CANARY, _STABLE],
        alpha=0.75,
        labels=["canary", "stable"],
    )
    ax.set_ylim(0, 100)
    before = -math.inf
    for decision in story.decisions:
        if decision["outcome"] not in ("verified", "advanced"):
            continue
        at = span.at(decision["atMs"])
        if at - before > 0.05 * span.length:  # else one would lie on the other
            ax.annotate(
                f" {decision['percent']} %", (at, 88), color="white", fontsize=9.5, va="center"
            )
            before = at
    _legend(ax)


def _draw_errors(ax: Axes, story: Story, span: _Span) -> None:
    window_s = _WINDOW * story.series.every_ms / 1000
    title = f"Errors a variant is to blame for, over {window_s:g} s, with 95 % intervals"
    _title(ax, title, "% of requests")
    top = 1.0
    for name, colour, style, side in _sides():
        points = [point for point in story.series.points if side(point).judged]
        if not points:
            continue
        rates, lows, highs = [], [], []
        for at in range(len(points)):
            window = [side(point) for point in points[max(0, at - _WINDOW + 1) : at + 1]]
            bad, n = sum(one.charged for one in window), sum(one.judged for one in window)
            low, high = wilson(bad, n)
            rates.append(100 * bad / n)
            lows.append(100 * low)
            highs.append(100 * high)
        times = span.times(points)
        ax.fill_between(times, lows, highs, color=colour, alpha=0.18, linewidth=0)
        ax.plot(times, rates, style, color=colour, linewidth=1.8, label=name, **_marks(points))
        top = max(top, 1.6 * max(rates), min(_quarter(highs), 100))
    ax.set_ylim(0, min(top, 102))
    _legend(ax)


def _marks(points: Sequence[Point]) -> dict[str, Any]:
    """A point alone makes no line."""
    return {"marker": "o", "markersize": 4} if len(points) < 12 else {}


def _quarter(values: Sequence[float]) -> float:
    """So high that three quarters of the upper limits are seen: the first ones are all of it."""
    return sorted(values)[int(0.75 * (len(values) - 1))] if values else 0.0


def _draw_latency(ax: Axes, story: Story, span: _Span) -> None:
    _title(ax, "Latency: p95, with p50 to p99 as a band", "milliseconds")
    seen = []
    for name, colour, style, side in _sides():
        points = [point for point in story.series.points if side(point).p95 is not None]
        if not points:
            continue
        times = span.times(points)
        p50, p95, p99 = (
            _smoothed([side(point) for point in points], quantile)
            for quantile in ("p50", "p95", "p99")
        )
        ax.fill_between(times, p50, p99, color=colour, alpha=0.15, linewidth=0)
        said = f"{name} p95"
        ax.plot(times, p95, style, color=colour, linewidth=1.8, label=said, **_marks(points))
        seen += [*p95, *p50]
    if seen and max(seen) > 20 * max(min(seen), 0.05):
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    if seen:
        _legend(ax)


def _smoothed(sides: Sequence[Side], quantile: str) -> list[float]:
    """Means over a few points, weighted by requests: a second of a small canary says little."""
    found = []
    for at in range(len(sides)):
        window = sides[max(0, at - _WINDOW + 1) : at + 1]
        weights = [max(one.requests, 1) for one in window]
        values = [getattr(one, quantile) or 0.0 for one in window]
        total = sum(w * v for w, v in zip(weights, values, strict=True))
        found.append(total / sum(weights))
    return found


def _draw_evidence(ax: Axes, story: Story, span: _Span) -> None:
    _title(ax, "Evidence that the canary is worse", "e-value, as odds")
    series = story.series
    points = series.points
    times = span.times(points)
    ax.axhspan(series.threshold, 1e9, color=_BAD, alpha=0.10, linewidth=0)
    for height, words, colour, style in (
        (series.threshold, "is rolled back", _BAD, "-"),
        (series.threshold / 2, "gets no more traffic", _PLAIN, "--"),
    ):
        ax.axhline(height, color=colour, linewidth=1.2, linestyle=style)
        said = f"from {_odds(height)} on it {words}"
        ax.annotate(
            said, (0, height), (4, 3), textcoords="offset points", color=colour, fontsize=8.5
        )
    for at, (name, alone) in enumerate(zip(series.tests, series.thresholds, strict=True)):
        values = [point.tests[at] if at < len(point.tests) else 0.0 for point in points]
        # Drawn by how far each is on its own way, so that one line is every test's threshold.
        scaled = [value * series.threshold / alone for value in values]
        colour = _TESTS[at % len(_TESTS)]
        ax.plot(
            times, scaled, color=colour, linewidth=1.1, alpha=0.9, label=name,
            linestyle=("-", "--", "-.", ":")[at % 4],
        )  # fmt: skip
    whole = [point.log_e for point in points]
    ax.plot(times, whole, color="black", linewidth=2.2, label="all tests together")
    least = min([*whole, 0.0])
    low = max(1.15 * least, -2 * series.threshold) - 0.4
    high = min(max(1.5 * series.threshold, 1.1 * max(whole)), 3 * series.threshold)
    ax.set_ylim(low, high)
    ticks = [k * math.log(10) for k in range(-20, 21) if low <= k * math.log(10) <= high]
    ticks = ticks[:: max(1, len(ticks) // 6)]
    ax.set_yticks(ticks, [_odds(tick) for tick in ticks])
    _annotate(ax, story, span, whole)
    _legend(ax, columns=5)


def _annotate(ax: Axes, story: Story, span: _Span, whole: Sequence[float]) -> None:
    """The end, where it came."""
    if not story.decisions or story.series.phase not in _ENDINGS:
        return
    last = story.decisions[-1]
    words, colour = _ENDINGS[story.series.phase]
    low, high = ax.get_ylim()
    height = min(max(whole[-1], low), 0.97 * high)
    at = span.at(last["atMs"])
    said = fill(str(last["explanation"][0]), 72, max_lines=3, placeholder=" …")
    ax.plot([at], [height], "o", color=colour, markersize=8, clip_on=False, zorder=5)
    ax.annotate(
        f"{words} after {at:.3g} {span.unit}\n{said}",
        (at, height),
        xytext=(0.62, 0.93),
        textcoords="axes fraction",
        ha="center",
        va="top",
        fontsize=8.5,
        color=colour,
        bbox={"boxstyle": "round,pad=0.4", "fc": "white", "ec": colour, "alpha": 0.92},
        arrowprops={"arrowstyle": "->", "color": colour, "shrinkB": 5},
        zorder=6,
    )


def _odds(log_e: float) -> str:
    """As people say it."""
    if log_e < 0:
        return f"1 : {_count(-log_e)}"
    return f"{_count(log_e)} : 1"


def _count(log: float) -> str:
    if log > math.log(2e6):
        return f"10^{log / math.log(10):.3g}"
    value = float(f"{math.exp(log):.3g}")
    return f"{value:,.0f}" if value >= 100 else f"{value:g}"


def _sides() -> tuple[tuple[str, str, str, Any], ...]:
    return (
        ("stable", _STABLE, "--", lambda point: point.stable),
        ("canary", _CANARY, "-", lambda point: point.canary),
    )
