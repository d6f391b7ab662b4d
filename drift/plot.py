"""Drift as pictures that explain themselves.

==================  ================================================================================
``over_time``       eSR and PSI beside their thresholds, and accuracy: when it began, and how bad
``heat_map``        columns by windows: which columns moved, and since when
``before_after``    the worst columns' histograms, of the reference and of the window
``slices``          in which rows it is
==================  ================================================================================

They need numbers alone, so any machine draws the same. Colours are Okabe and Ito's, which
colour-blind people can tell apart; what is drawn twice differs in shape too.

Example::

    Path("drift.png").write_bytes(over_time(history, profile, "fraud/3"))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from io import BytesIO
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from drift.estimated import Estimated
from drift.history import History, Point, psi_thresholds
from drift.profile import DriftProfile
from drift.psi import psi
from drift.report import WindowReport
from drift.sections import PerformanceSection
from drift.verdict import Level
from governance.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["before_after", "heat_map", "over_time", "slices", "time_text"]

_REFERENCE, _WINDOW = "#0072B2", "#D55E00"
_BAD, _WARN, _PLAIN = "#B00020", "#B06A00", "#444444"
_MARKS = {
    Level.OK: ("o", "#0072B2", "a window that is ok"),
    Level.WARN: ("^", "#E69F00", "one that warns"),
    Level.ALERT: ("s", "#B00020", "one that alerts"),
}
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # words stay words
}
_ROWS = 25  # columns in the heat map
_CELLS = 120  # windows in it; more are drawn together
_BARS = 14
_MOVED = 0.5  # of what an alert needs: columns below it are not worth a histogram


def over_time(history: History, profile: DriftProfile, name: str, form: str = "png") -> bytes:
    """eSR, PSI and accuracy, window by window."""
    section = PerformanceSection.of(profile)
    points = history.points
    estimated = [one for one in points if one.estimated is not None or one.accuracy is not None]
    count = 3 if estimated else 2

    def draw(figure: Figure) -> None:
        axes = figure.subplots(count, 1, sharex=True, height_ratios=(1.3, 1.0, 1.0)[:count])
        figure.suptitle(
            f"{_as_it_is(name)}: drift over time", x=0.01, ha="left", fontsize=14, weight="bold"
        )
        _draw_esr(axes[0], points, profile)
        _draw_psi(axes[1], points)
        if estimated:
            reference = section.estimated if section else None
            _draw_accuracy(axes[2], estimated, reference)
        for ax in axes:
            ax.grid(axis="y", color="#DDDDDD", linewidth=0.6)
            ax.set_axisbelow(True)
        axes[-1].set_xlabel(_span(points))
        axes[-1].xaxis.get_major_locator().set_params(integer=True)
        _levels_legend(axes[0], points)

    return _drawn(draw, (10, 2.6 * count + 1.4), form, "over-time")


def heat_map(history: History, profile: DriftProfile, name: str, form: str = "png") -> bytes:
    """PSI of the columns that moved most, by window, as a share of what an alert needs."""
    points = [one for one in history.points if one.judged]
    limits = dict(zip((c.name for c in profile.columns), psi_thresholds(profile), strict=True))
    largest: dict[str, float] = {}
    for one in points:
        for column, value in one.columns.items():
            if column in limits:
                share = value / limits[column]
                largest[column] = max(largest.get(column, 0.0), share)
    shown = sorted(largest, key=lambda column: -largest[column])[:_ROWS]
    groups = [list(part) for part in np.array_split(np.arange(len(points)), _CELLS) if len(part)]
    if len(points) <= _CELLS:
        groups = [[place] for place in range(len(points))]
    shares = np.full((len(shown), len(groups)), np.nan)
    for x, group in enumerate(groups):
        for y, column in enumerate(shown):
            found = [points[p].columns[column] for p in group if column in points[p].columns]
            if found:
                shares[y, x] = max(found) / limits[column]

    def draw(figure: Figure) -> None:
        from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm

        ax = figure.subplots()
        figure.suptitle(
            f"{_as_it_is(name)}: which columns moved", x=0.01, ha="left", fontsize=14, weight="bold"
        )
        if not groups:
            ax.text(0.5, 0.5, "no window has been judged yet", ha="center", va="center")
            ax.set_axis_off()
            return
        colours = LinearSegmentedColormap.from_list(
            "drift", ["#F5F5F5", "#FCE3BE", "#F5A623", "#C62828", "#4A000C"]
        ).with_extremes(bad="#FFFFFF")
        image = ax.imshow(
            shares,
            aspect="auto",
            interpolation="nearest",
            cmap=colours,
            norm=TwoSlopeNorm(1.0, 0.0, 3.0),
        )
        ax.set_yticks(range(len(shown)), [_short(column) for column in shown])
        places = np.unique(np.linspace(0, len(groups) - 1, min(len(groups), 10)).astype(int))
        ax.set_xticks(places, [str(points[groups[p][0]].index) for p in places])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_xticks(np.arange(-0.5, len(groups)), minor=True)
        ax.set_yticks(np.arange(-0.5, len(shown)), minor=True)
        if len(groups) <= 60:
            ax.grid(which="minor", color="white", linewidth=1)
        ax.tick_params(which="minor", length=0)
        for x, group in enumerate(groups):
            worst = max((points[p].level for p in group), key=[*_MARKS].index)
            if worst is not Level.OK:
                mark, colour, _ = _MARKS[worst]
                ax.plot([x], [-0.75], mark, color=colour, markersize=6, clip_on=False)
        bar = figure.colorbar(image, ax=ax, shrink=0.9, pad=0.02, extend="max", extendfrac=0.03)
        bar.set_ticks([0, 0.5, 1, 2, 3], labels=["0", "½", "1: alert", "2", "3"])
        bar.set_label("PSI, in units of what an alert needs")
        ax.set_title(
            "Each row is a column, each cell a window. Above: ▲ warned, ■ alerted.",
            loc="left", fontsize=9, color="#333333", pad=16,
        )  # fmt: skip
        ax.set_xlabel(_span(points))

    return _drawn(draw, (10, 1.9 + 0.26 * max(len(shown), 4)), form, "heat-map")


def before_after(
    report: WindowReport, profile: DriftProfile, name: str, form: str = "png"
) -> bytes:
    """Histograms of the columns that moved most, most first."""
    order = {column.name: place for place, column in enumerate(profile.columns)}
    sizes = psi(report.counts.counts, profile.probabilities, profile.layout.starts)
    limits = psi_thresholds(profile)
    ranked = [one.name for one in report.verdict.worst if one.name in order]
    ranked = ranked or [column.name for column in profile.columns]
    moved = [name for name in ranked if sizes[order[name]] >= _MOVED * limits[order[name]]]
    worst = moved[:6] if len(moved) > 1 else ranked[:2]

    def draw(figure: Figure) -> None:
        axes = np.atleast_1d(figure.subplots(math.ceil(len(worst) / 2), 2)).ravel()
        figure.suptitle(
            f"{_as_it_is(name)}: before and after, window {report.verdict.index}",
            x=0.01, ha="left", fontsize=14, weight="bold",
        )  # fmt: skip
        for ax in axes[len(worst) :]:
            ax.set_axis_off()
        for ax, column in zip(axes, worst, strict=False):
            place = order[column]
            over = sizes[place] >= limits[place]
            _draw_column(ax, report, profile, place)
            ax.set_title(
                f"{_short(column, 40)} ({profile.columns[place].role})\n"
                f"PSI {sizes[place]:.3g}, alert from {limits[place]:.3g}",
                loc="left", fontsize=10, fontweight="bold", color=_BAD if over else _PLAIN,
            )  # fmt: skip
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="upper right", ncols=2, frameon=False, bbox_to_anchor=(0.99, 1.0)
        )

    return _drawn(draw, (10, 3.5 * math.ceil(len(worst) / 2) + 0.6), form, "before-after")


def slices(report: WindowReport, name: str, form: str = "png") -> bytes:
    """Which rows there are more of, or fewer."""
    found = report.slices[:6]

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        figure.suptitle(
            f"{_as_it_is(name)}: where it drifted, window {report.verdict.index}",
            x=0.01, ha="left", fontsize=14, weight="bold",
        )  # fmt: skip
        if not found:
            said = "No group of rows stands out: the change, if any, is spread over all."
            if not report.findings:
                said = "Nothing has looked for groups among the rows of this window."
            ax.text(0.0, 0.5, said, va="center")
            ax.set_axis_off()
            return
        heights = np.arange(len(found))[::-1]
        ours = [100 * one.reference_share for one in found]
        theirs = [100 * one.share for one in found]
        ax.barh(heights + 0.19, ours, 0.36, color=_REFERENCE, label="reference")
        ax.barh(heights - 0.19, theirs, 0.36, color=_WINDOW, hatch="//", edgecolor="white",
                label="this window")  # fmt: skip
        for height, one in zip(heights, found, strict=True):
            end = 100 * max(one.share, one.reference_share)
            said = (
                f"  {100 * one.reference_share:.3g} % → {100 * one.share:.3g} %"
                f" ({_times(one.share, one.reference_share)}, z = {one.z:.3g})"
            )
            ax.annotate(said, (end, height), va="center", fontsize=9)
        ax.set_yticks(
            heights, [_as_it_is(fill(_cut(str(one.predicate), 130), 44)) for one in found]
        )
        ax.set_xlim(0, 2.0 * max(*ours, *theirs, 1.0))
        ax.set_xlabel("% of the rows. z: how sure; from 4 on it is hardly chance")
        ax.grid(axis="x", color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False)

    return _drawn(draw, (10, 1.6 + 0.75 * len(found) if found else 1.0), form, "slices")


def time_text(ms: int | None) -> str:
    """As people read it; empty: unknown."""
    return "" if ms is None else f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def _drawn(
    draw: Callable[[Figure], None], size: tuple[float, float], form: str, salt: str
) -> bytes:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError(
            f"pictures need {error.name}, which is not installed", "pip install matplotlib"
        ) from error
    # The salt keeps the names inside several SVG pictures on one page apart.
    with rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=size, dpi=110, layout="constrained")
        draw(figure)
        out = BytesIO()
        metadata = {"Date": None} if form == "svg" else None
        figure.savefig(out, format=form, facecolor="white", metadata=metadata)
    return out.getvalue()


def _title(ax: Axes, title: str, unit: str) -> None:
    ax.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    ax.set_ylabel(unit)


def _line(ax: Axes, height: float, words: str, colour: str, style: str) -> None:
    ax.axhline(height, color=colour, linewidth=1.2, linestyle=style)
    ax.annotate(
        words, (0, height), (4, 3), xycoords=("axes fraction", "data"), color=colour,
        textcoords="offset points", fontsize=8.5,
    )  # fmt: skip


def _dots(ax: Axes, points: Sequence[Point], values: Sequence[float]) -> None:
    """A line with a mark for each level."""
    xs = [one.index for one in points]
    ax.plot(xs, values, color="#7F7F7F", linewidth=1.2, zorder=2)
    for level, (mark, colour, _) in _MARKS.items():
        at = [place for place, one in enumerate(points) if one.level is level]
        size = 3.5 if level is Level.OK else 6
        ax.plot([xs[p] for p in at], [values[p] for p in at], mark, color=colour, markersize=size,
                zorder=3)  # fmt: skip


def _levels_legend(ax: Axes, points: Sequence[Point]) -> None:
    from matplotlib.lines import Line2D

    present = {one.level for one in points}
    handles = [
        Line2D([], [], marker=mark, color=colour, linestyle="", label=word)
        for level, (mark, colour, word) in _MARKS.items()
        if level in present
    ]
    ax.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=3, frameon=False,
        fontsize=8.5,
    )  # fmt: skip


def _draw_esr(ax: Axes, points: Sequence[Point], profile: DriftProfile) -> None:
    rules = profile.rules
    _title(ax, "How unlikely by chance: one in so many windows (eSR)", "windows, log scale")
    seen = [one for one in points if one.judged]
    values = [max(one.esr, 0.1) for one in seen]
    top = 10 * max([*values, 3 * rules.alert_esr])
    ax.set_yscale("log")
    ax.set_ylim(min([0.3, *[0.5 * value for value in values]]), top)
    ax.axhspan(rules.alert_esr, top, color=_BAD, alpha=0.08, linewidth=0)
    also = {"both": ", together with PSI", "psi": " (not used: PSI alone decides)"}
    alert = f"alert from {rules.alert_esr:g}{also.get(rules.alert_needs, '')}"
    _line(ax, rules.alert_esr, alert, _BAD, "-")
    _line(ax, rules.warn_esr, f"warn from {rules.warn_esr:g}", _WARN, "--")
    _dots(ax, seen, values)


def _draw_psi(ax: Axes, points: Sequence[Point]) -> None:
    _title(ax, "How large: the column that moved most (PSI)", "PSI")
    seen = [one for one in points if one.judged]
    values = [one.psi for one in seen]
    limits = [one.psi_threshold for one in seen]
    top = 1.15 * max([*values, *[1.6 * limit for limit in limits], 0.01])
    ax.set_ylim(0, top)
    if limits:
        ax.axhspan(max(limits), top, color=_BAD, alpha=0.08, linewidth=0)
        ax.step([one.index for one in seen], limits, where="mid", color=_BAD, linewidth=1.2)
        if len(seen) == 1:
            ax.axhline(limits[0], color=_BAD, linewidth=1.2)
        ax.annotate(
            f"alert from {limits[-1]:.2g}", (0, limits[-1]), (4, 3), color=_BAD, fontsize=8.5,
            xycoords=("axes fraction", "data"), textcoords="offset points",
        )  # fmt: skip
    _dots(ax, seen, values)


def _draw_accuracy(ax: Axes, points: Sequence[Point], reference: object) -> None:
    _title(ax, "How well it does: accuracy", "% right")
    known = [one for one in points if one.estimated is not None]
    xs = [one.index for one in known]
    values = [100 * (one.estimated or 0.0) for one in known]
    spread = [200 * (one.estimated_sd or 0.0) for one in known]
    if known:
        low = [value - sd for value, sd in zip(values, spread, strict=True)]
        high = [value + sd for value, sd in zip(values, spread, strict=True)]
        ax.fill_between(xs, low, high, color=_REFERENCE, alpha=0.15, linewidth=0)
        ax.plot(xs, values, "--", color=_REFERENCE, linewidth=1.6, marker="o", markersize=3,
                label="estimated without labels, ± 2 sd")  # fmt: skip
    labelled = [one for one in points if one.accuracy is not None]
    if labelled:
        xs = [one.index for one in labelled]
        values = [100 * (one.accuracy or 0.0) for one in labelled]
        ax.plot(
            xs,
            values,
            "-D",
            color="#009E73",
            linewidth=1.6,
            markersize=4,
            label="on labels that came",
        )
    if isinstance(reference, Estimated):
        ax.axhline(100 * reference.reference.mean, color=_PLAIN, linewidth=1, linestyle=":",
                   label="reference")  # fmt: skip
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=3, frameon=False, fontsize=8.5)


def _draw_column(ax: Axes, report: WindowReport, profile: DriftProfile, place: int) -> None:
    column = profile.columns[place]
    counts = profile.layout.of_column(place, report.counts.counts)
    before = 100 * column.shares
    after = 100 * counts / max(report.counts.rows, 1)
    shown = [bin for bin in range(len(before)) if max(before[bin], after[bin]) >= 0.05]
    if len(shown) > _BARS:
        moved = sorted(shown, key=lambda bin: -abs(after[bin] - before[bin]))[:_BARS]
        shown = sorted(moved)
    names = [_short(column.bins.names[bin], 22) for bin in shown]
    at = np.arange(len(shown))
    ax.bar(at - 0.2, before[shown], 0.4, color=_REFERENCE, label="reference (training)")
    ax.bar(at + 0.2, after[shown], 0.4, color=_WINDOW, hatch="//", edgecolor="white",
           label="this window")  # fmt: skip
    ax.set_xticks(at, names, rotation=40, ha="right", rotation_mode="anchor", fontsize=7.5)
    ax.set_ylabel("% of rows")
    ax.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    ax.set_axisbelow(True)


def _span(points: Sequence[Point]) -> str:
    times = [(one.first_ms, one.last_ms) for one in points if one.first_ms is not None]
    if not times:
        return "window"
    first, last = time_text(times[0][0]), time_text(times[-1][1])
    return f"window ({first} to {last})" if first != last else f"window ({first})"


def _times(now: float, before: float) -> str:
    if before <= 0:
        return "new"
    ratio = now / before
    if ratio <= 0:
        return "gone"
    return f"{ratio:.2g} times as many" if ratio >= 1 else f"{ratio:.2g} of what there were"


def _short(text: str, most: int = 28) -> str:
    """For an axis."""
    return _as_it_is(_cut(text, most))


def _cut(text: str, most: int) -> str:
    end = most // 3  # what tells names apart may stand at either end
    return text if len(text) <= most else f"{text[: most - end - 1]}…{text[-end:]}"


def _as_it_is(text: str) -> str:
    """Somebody's words: a dollar sign would begin a formula, and half a character is none."""
    return text.encode(errors="replace").decode().replace("$", r"\$")
