"""A window's report as one page that needs nothing else: what, when, how bad, where, what to do.

HTML without scripts and without anything to fetch, for MLflow's artifact viewer, a mail or a file.
It is written for somebody who sees such a page for the first time.

Example::

    Path("drift.html").write_bytes(page(report, profile, history))
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from drift.estimated import Estimated
from drift.history import History, Point
from drift.plot import before_after, heat_map, over_time, slices, time_text
from drift.profile import DriftProfile
from drift.report import WindowReport
from drift.sections import PerformanceSection
from drift.verdict import Level

__all__ = ["advice", "headline", "name_of", "page", "summary"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff }
h1 { font-size: 1.35em; margin-bottom: .2em } h2 { font-size: 1.1em; margin-top: 2em }
.level { display: inline-block; padding: .1em .6em; border-radius: .3em; color: #fff;
         font-size: .8em; vertical-align: middle; margin-right: .4em }
.ok { background: #00795C } .warn { background: #B06A00 } .alert { background: #B00020 }
dl { display: grid; grid-template-columns: 8.5em 1fr; gap: .45em .8em; background: #f6f8fa;
     padding: 1em; border-radius: .4em }
dt { font-weight: 600 } dd { margin: 0 } dd ul { margin: 0; padding-left: 1.2em }
svg { width: 100%; height: auto }
table { border-collapse: collapse; width: 100%; font-size: .9em }
td, th { border-bottom: 1px solid #ddd; padding: .4em .6em; text-align: left; vertical-align: top }
td.n, th.n { text-align: right; white-space: nowrap }
code { background: #f6f6f6; padding: 0 .2em; overflow-wrap: anywhere }
.small { font-size: .85em; color: #555 }
"""
_SAID = {
    Level.OK: "looks like the reference",
    Level.WARN: "may be drifting",
    Level.ALERT: "has drifted",
}
_ALARMS = 40


def name_of(report: WindowReport) -> str:
    """The version, and where it is served."""
    subject = report.subject
    where = f" at {subject.deployment}" if subject.deployment else ""
    return f"{subject.model}/{subject.version}{where}"


def headline(report: WindowReport) -> str:
    """In one line."""
    verdict = report.verdict
    if not verdict.judged:
        return f"{name_of(report)}: window {verdict.index} could not be judged"
    return f"{name_of(report)} {_SAID[verdict.level]}, window {verdict.index}"


def summary(
    report: WindowReport, profile: DriftProfile, history: History
) -> list[tuple[str, list[str]]]:
    """What a stranger asks first → sentences."""
    return [
        ("What", _what(report)),
        ("When", _when(report, history)),
        ("How bad", _how_bad(report, profile)),
        ("Where", _where(report)),
        ("What to do", advice(report)),
    ]


def advice(report: WindowReport) -> list[str]:
    """Steps, in order."""
    verdict, counts = report.verdict, report.counts
    steps = []
    if not verdict.judged:
        return ["Wait for more rows, or score more at once."]
    if counts.missing_columns or counts.extra_columns:
        steps.append(
            "Look at the data source first: columns are missing or new. That is mostly a changed "
            "export or a renamed field, not a changed world."
        )
    if verdict.level is Level.OK:
        return steps or ["Nothing."]
    if verdict.quarantine:
        steps.append(
            "A quarantine is proposed: the model's answers are likely worse. It needs a person's "
            "sign-off; nothing is taken out of service by itself."
        )
    if verdict.besides and not verdict.moved:
        steps.append(
            "Look at what is named above. The columns look as before: either what they mean has "
            "changed, or it was never learned."
        )
    # An answer moves because an input did, if one did.
    inputs = [one.name for one in verdict.worst[:3] if one.role == "feature"]
    named = inputs[:1] or [one.name for one in verdict.worst[:1]]
    for name in named if verdict.moved else []:
        steps.append(
            f"Ask whoever provides {name!r} what changed between the two histograms, before and "
            "after: a fault is repaired there, and a real change stays."
        )
    if verdict.level is Level.WARN:
        steps.append("Watch the next windows; a warning alone changes nothing.")
        return steps
    more = next((one for one in report.slices if one.z > 0), None)
    if more is not None:
        steps.append(
            f"Get labels for rows where {more.predicate}: they tell whether the model is still "
            "right there."
        )
    steps.append(
        "If the change is real and lasting: train again with rows of this kind, "
        "and register a new version with a profile of its own."
    )
    return steps


def page(report: WindowReport, profile: DriftProfile, history: History) -> bytes:
    """The page.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    name, level = name_of(report), report.verdict.level
    title = escape(headline(report))
    shown = {
        "Over time": over_time(history, profile, name, "svg"),
        "Which columns": heat_map(history, profile, name, "svg"),
        "Before and after": before_after(report, profile, name, "svg"),
        "Where in the data": slices(report, name, "svg"),
    }
    said = {
        "Over time": "eSR and PSI both have to cross their red line for an alert, unless the "
        "profile's rules say otherwise; what labels prove, and fairness, alert by themselves. eSR "
        "says how sure it is, PSI how large it is.",
        "Which columns": "Dark columns are those to look at; where a row turns dark, it began.",
        "Before and after": "Blue: the rows that the model was made from. Hatched: this window. "
        "Ranges of numbers were cut so that each holds about the same part of the reference.",
        "Where in the data": "Groups of rows that became more, or fewer, than they should be.",
    }
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f'<h1><span class="level {level.value}">{level.value}</span>{title}</h1>',
        "<dl>",
        *(
            f"<dt>{escape(question)}</dt><dd>{_listed(sentences)}</dd>"
            for question, sentences in summary(report, profile, history)
        ),
        "</dl>",
    ]
    for heading, picture in shown.items():
        svg = picture.decode()
        parts += [
            f"<h2>{heading}</h2><p class=small>{said[heading]}</p>",
            svg[svg.index("<svg") :],
        ]
    parts += [*_columns(report), *_findings(report), *_performance(report, profile)]
    parts += [*_alarms(history), *_glossary(profile), *_identity(report, profile), "</body></html>"]
    return "\n".join(parts).encode()


def _what(report: WindowReport) -> list[str]:
    verdict, counts = report.verdict, report.counts
    if not verdict.judged:
        return list(verdict.reasons)
    sentences = []
    if verdict.level is Level.OK:
        sentences.append("Inputs and outputs look like those that the model was made from.")
    for what, names in (
        ("The data lack", counts.missing_columns),
        ("The data have, and the model was not made with,", counts.extra_columns),
    ):
        if names:
            listed = ", ".join(map(repr, sorted(names)[:8]))
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            sentences.append(f"{what} {listed}{more}.")
    if verdict.level is Level.OK:
        return sentences
    for one in verdict.worst[:3]:
        if one.psi < 0.5 * verdict.psi_threshold or not one.grown:
            continue
        grown = one.grown[0]
        kind = {
            "output": "The model's answer",
            "embedding": "The embedding's direction",
            "component": "The direction",
        }
        sentences.append(
            f"{kind.get(one.role, 'The input')} {one.name!r}: {_share(grown.window)} of its values "
            f"are {_bin(grown.name)}, and {_share(grown.reference)} were (PSI {one.psi:.2g})."
        )
    if verdict.moved and not sentences:
        sentences.append("No single column moved much; together they did.")
    return sentences + [f"{one[0].upper()}{one[1:]}." for one in verdict.besides]


def _when(report: WindowReport, history: History) -> list[str]:
    verdict = report.verdict
    first, last = time_text(verdict.first_ms), time_text(verdict.last_ms)
    span = f", {first} to {last}" if first and first != last else f", {first}" if first else ""
    sentences = [f"Window {verdict.index}: {verdict.rows:,} rows{span}."]
    since = _since(history)
    if since is not None and since.index != verdict.index:
        began = time_text(since.first_ms)
        sentences.append(
            f"It has not been ok since window {since.index}{f' ({began})' if began else ''}."
        )
    return sentences


def _since(history: History) -> Point | None:
    """Where the stretch began that the last window ends."""
    found = None
    for one in reversed(history.points):
        if one.judged and one.level is Level.OK:
            break
        found = one if one.judged else found
    return found


def _how_bad(report: WindowReport, profile: DriftProfile) -> list[str]:
    verdict, rules, performance = report.verdict, profile.rules, report.performance
    sentences = []
    if verdict.judged:
        sure = f"eSR is {_big(verdict.esr)}"
        if verdict.esr >= 1e6:
            sure += ": chance alone would hardly reach that in a million windows"
        elif verdict.esr >= rules.warn_esr:
            sure += f": chance alone would reach that about once in {_big(verdict.esr)} windows"
        sentences.append(f"{sure} (warn at {rules.warn_esr:g}, alert at {rules.alert_esr:g}).")
        times = verdict.psi / verdict.psi_threshold
        sentences.append(
            f"The largest PSI is {verdict.psi:.3g}, {times:.3g} times what an alert needs "
            f"({verdict.psi_threshold:.3g})."
        )
    section = PerformanceSection.of(profile)
    if performance.estimated_accuracy is not None:
        sentence = f"Estimated accuracy is {100 * performance.estimated_accuracy:.3g} %"
        if section is not None and isinstance(section.estimated, Estimated):
            sentence += f", {100 * section.estimated.reference.mean:.3g} % in the reference"
        sentences.append(f"{sentence}. It is an estimate, made without labels.")
    if performance.accuracy is not None:
        right = 1 - section.errors.mean if section is not None else None
        before = "" if right is None else f", {100 * right:.3g} % in the reference"
        sentences.append(
            f"On {performance.labelled:,} labels the accuracy is "
            f"{100 * performance.accuracy:.3g} %{before}."
        )
    if performance.error_esr is not None:
        sentences.append(
            f"eSR of the errors that labels show is {_big(performance.error_esr)} (warn at "
            f"{rules.warn_esr:g}, alert at {rules.alert_esr:g})."
        )
    sentences += [f"Reason for a quarantine: {one}." for one in verdict.quarantine]
    return sentences or ["Not known yet."]


def _where(report: WindowReport) -> list[str]:
    sentences = [
        f"Rows where {one.predicate}: {_share(one.share)} of the window, "
        f"{_share(one.reference_share)} of the reference."
        for one in report.slices[:3]
    ]
    if sentences:
        return sentences
    if report.verdict.level is Level.OK:
        return ["Nowhere."]
    if not report.findings:
        return ["Nothing has looked for groups among the rows of this window."]
    return ["No group of rows stands out: the change is spread over all."]


def _columns(report: WindowReport) -> Iterator[str]:
    if not report.verdict.worst:
        return
    yield (
        "<h2>Columns that moved most</h2><table><tr><th>Column</th><th>Role</th><th class=n>PSI"
        "</th><th class=n>eSR of its own</th><th>What grew</th></tr>"
    )
    for one in report.verdict.worst:
        grown = "<br>".join(
            escape(f"{bin.name}: {_share(bin.reference)} → {_share(bin.window)}")
            for bin in one.grown
        )
        yield (
            f"<tr><td>{escape(one.name)}</td><td>{escape(one.role)}</td>"
            f"<td class=n>{one.psi:.3g}</td><td class=n>{_big(one.esr)}</td><td>{grown}</td></tr>"
        )
    yield "</table>"


def _findings(report: WindowReport) -> Iterator[str]:
    if not report.findings:
        return
    yield (
        "<h2>What other detectors say</h2><p class=small>Asked when a window warns or alerts, and "
        "by schedule, about a sample of its rows.</p><table><tr><th>Detector</th><th>Verdict</th>"
        "<th class=n>p-value</th><th>Notes</th></tr>"
    )
    for one in report.findings:
        p_value = "" if one.p_value is None else f"{one.p_value:.2g}"
        notes = escape("; ".join(filter(None, (one.trouble, *one.notes))))
        yield (
            f"<tr><td>{escape(one.detector)} ({escape(one.backend.value)})</td>"
            f"<td>{escape(one.verdict.value)}</td><td class=n>{p_value}</td><td>{notes}</td></tr>"
        )
    yield "</table>"


def _performance(report: WindowReport, profile: DriftProfile) -> Iterator[str]:
    if not report.performance.fairness:
        return
    yield ("<h2>Groups</h2><table><tr><th>Measure</th><th class=n>Value</th></tr>")
    for name, value in report.performance.fairness:
        measure, _, attribute = name.partition("/")
        said = f"{measure.replace('_', ' ')}, by {attribute}"
        yield f"<tr><td>{escape(said)}</td><td class=n>{value:.3g}</td></tr>"
    yield "</table>"


def _alarms(history: History) -> Iterator[str]:
    alarms = [one for one in history.points if one.level is not Level.OK][-_ALARMS:]
    if not alarms:
        return
    yield (
        "<h2>Windows that warned or alerted</h2><table><tr><th class=n>Window</th><th>From</th>"
        "<th>Level</th><th class=n>eSR</th><th class=n>PSI</th><th>Column</th></tr>"
    )
    for one in reversed(alarms):
        worst = next(iter(one.columns), "")
        yield (
            f"<tr><td class=n>{one.index}</td><td>{time_text(one.first_ms)}</td>"
            f"<td>{one.level.value}</td><td class=n>{_big(one.esr)}</td>"
            f"<td class=n>{one.psi:.3g}</td><td>{escape(worst)}</td></tr>"
        )
    yield "</table>"


def _glossary(profile: DriftProfile) -> Iterator[str]:
    note = profile.calibration.note
    yield (
        "<h2>How to read this</h2><p>The <b>reference</b> is the rows that the model was made "
        f"from: {profile.rows:,} of them. A <b>window</b> is some {profile.window:,} rows in a row "
        "of what it was asked since. <b>eSR</b> is a bet against “nothing has changed” that "
        "goes on from window to window: if nothing has changed, it reaches 1000 once in 1000 "
        "windows, at most. <b>PSI</b> says how far a column's histogram lies from the reference: "
        "0 is the same. Sure and large together make an alert; a small change can be sure, and a "
        "large one chance.</p>"
    )
    if note:
        yield f"<p class=small>Of this profile: {escape(note)}.</p>"


def _identity(report: WindowReport, profile: DriftProfile) -> Iterator[str]:
    subject = report.subject
    yield "<h2>What this is about</h2><table>"
    for what, value in (
        ("Model version", subject.uri),
        ("Logged model", subject.model_id),
        ("Route", subject.deployment),
        ("Owner", subject.owner),
        (
            "Data sets of the reference",
            ", ".join(f"{n} ({d})" for n, d in profile.datasets.items()),
        ),
        ("Profile, SHA-256", subject.profile),
        ("Report, SHA-256", report.digest),
        ("Made", time_text(report.made_ms)),
    ):
        if value:
            yield f"<tr><td>{what}</td><td><code>{escape(value)}</code></td></tr>"
    yield "</table>"


def _listed(sentences: list[str]) -> str:
    if len(sentences) == 1:
        return escape(sentences[0])
    return f"<ul>{''.join(f'<li>{escape(one)}</li>' for one in sentences)}</ul>"


def _bin(name: str) -> str:
    """A bin's name as the end of "its values are …"."""
    return name if name in ("missing", "rare") else f"“{name}”"


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _big(value: float) -> str:
    if value >= 1e6:
        return "over a million"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
