"""``chancery drift``: what a version sees and says, compared with what it was made from.

Thin: every verb loads the verified profile, calls one function elsewhere, and prints.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from drift import cli_alerts, cli_monitor
from drift.checking import Asked, Check
from drift.consequences import open_sink
from drift.data_files import digest_of
from drift.history import History, psi_thresholds
from drift.model_profile import VersionProfile, load_profile
from drift.monitoring_run import MlflowSink
from drift.page import page, summary
from drift.profile import DriftProfile
from drift.report import WindowReport
from drift.run_contents import experiment_of
from drift.verdict import Level
from governance.errors import ConfigurationError, RefusedError, UnsignedError, UntrustedKeyError
from governance.terminal import (
    JsonGroup,
    answer_errors,
    console,
    json_option,
    print_json,
    uri_option,
)

__all__ = ["ALERT", "drift"]

ALERT = 4
"""Exit code of a check that found an alert."""

_ORDER = (Level.OK, Level.WARN, Level.ALERT)
_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.ALERT: "bold red"}
_SHOWN = 40
_COLUMNS = 40


@click.group(cls=JsonGroup, context_settings={"help_option_names": ["-h", "--help"]})
def drift() -> None:
    """Compare what a version sees and says with what it was made from."""
    # Standard error tells of drift, not of each file that MLflow fetches.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


for _command in (*cli_monitor.COMMANDS, *cli_alerts.COMMANDS):
    drift.add_command(_command)


@drift.command()
@click.argument("model")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path),
    help="Scored rows: a .parquet or .csv file, or a folder of .parquet files.",
)  # fmt: skip
@click.option("--labels", "label", default="", metavar="COLUMN", help="Holds what was true.")
@click.option("--time", default="", metavar="COLUMN", help="Holds when a row came.")
@click.option("--ignore", multiple=True, metavar="COLUMN", help="Neither input nor output.")
@click.option(
    "--window", type=click.IntRange(min=1), help="Rows of a window; default: the profile's."
)
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write the page here."
)
@click.option("--no-publish", is_flag=True, help="Nothing goes into MLflow or the registry.")
@uri_option
@json_option
@answer_errors
def check(
    model: str,
    data: Path,
    label: str,
    time: str,
    ignore: tuple[str, ...],
    window: int | None,
    html: Path | None,
    no_publish: bool,
    uri: str,
    as_json: bool,
) -> None:
    """Compare scored rows with MODEL's profile, once. Exit code 4: an alert.

    Reports go into MLflow and, signed, into the registry, where alerts follow and promotion gates
    read them. Where you may not report there, that is said, and the check is made all the same.
    """
    version = load_profile(model, uri=uri)
    sink = None
    if not no_publish:
        sink = MlflowSink(uri, [version.profile], pictures_every_ms=None, tags_every_ms=None)
    digest = digest_of(data, str(window or 0), label, time, *ignore)
    first, again = sink.batch(version.subject, digest) if sink is not None else (0, False)
    asked = Asked(window or 0, label, time, ignore, first)
    reports = list(Check(version).reports(data, asked))
    history = History()
    for report in reports:
        history.add(report, version.profile)
    decisive = _decisive(reports)
    if html is not None:
        html.write_bytes(page(decisive, version.profile, history))
    if not as_json:
        _show(reports, decisive, version, history)
    run_id, missed = None, ""
    if sink is not None:
        if not again:
            sink.mark_batch(version.subject, digest, first, done=False)
            for report in reports:
                sink.publish(report)
            missed = _recorded(uri, version.profile, reports)
            sink.mark_batch(version.subject, digest, first, done=not missed)
            sink.close(decisive)
        run_id = sink.run_id(version.subject)
    level = decisive.verdict.level
    if as_json:
        print_json(
            {
                "model": version.subject.uri,
                "profile": version.profile.digest,
                "level": level.value,
                "decisiveWindow": decisive.verdict.index,
                "runId": run_id,
                "published": sink is not None and not again,
                "recorded": sink is not None and not missed,
                "notRecorded": missed,
                "reports": [report.to_dict() for report in reports],
            }
        )
    else:
        _show_run(version, run_id, missed, again=again)
    sys.exit(ALERT if level is Level.ALERT else 0)


@drift.command()
@click.argument("model")
@uri_option
@json_option
@answer_errors
def profile(model: str, uri: str, as_json: bool) -> None:
    """Show MODEL's profile, as it lies in its verified files."""
    version = load_profile(model, uri=uri)
    found = version.profile
    if as_json:
        return print_json(json.loads(found.to_json()))
    console.print(f"profile    of {version.subject.uri}, SHA-256 {found.digest}", markup=False)
    console.print(f"reference  {found.rows:,} rows; windows of {found.window:,}", markup=False)
    sample = version.reference()
    kept = f"{sample.rows:,} rows" if sample is not None else "none: nothing confirms an alarm"
    console.print(f"sample     {kept}")
    datasets = ", ".join(f"{name} ({value})" for name, value in found.datasets.items())
    console.print(f"data sets  {datasets or 'not named'}", markup=False)
    calibration, rules = found.calibration, found.rules
    console.print(
        f"calibrated on {calibration.windows} windows ({calibration.source}): largest PSI "
        f"{calibration.largest:.3g}, largest eSR {calibration.largest_esr:.3g}"
    )
    if calibration.note:
        console.print(f"note       {calibration.note}", markup=False)
    console.print(
        f"rules      warn at eSR {rules.warn_esr:g}; alert at eSR {rules.alert_esr:g} and PSI "
        f"{psi_thresholds(found).min():.3g} (needs {rules.alert_needs}, {rules.consecutive} in a "
        "row)"
    )
    sections = [n for n in ("performance", "fairness") if getattr(found, n) is not None]
    console.print(f"also       {', '.join(sections) or 'no performance, no fairness'}")
    console.print(_columns(found))
    return None


def _decisive(reports: Sequence[WindowReport]) -> WindowReport:
    """The first of the worst level that was judged: where it is told best."""
    judged = [report for report in reports if report.verdict.judged]
    worst = max((report.verdict.level for report in judged), key=_ORDER.index)
    if worst is Level.OK:
        return judged[-1]
    return next(report for report in judged if report.verdict.level is worst)


def _show(
    reports: Sequence[WindowReport],
    decisive: WindowReport,
    version: VersionProfile,
    history: History,
) -> None:
    table = Table("window", "rows", "", "eSR", "PSI", "column", "accuracy")
    shown = [one for one in reports if one.verdict.level is not Level.OK or len(reports) <= _SHOWN]
    for report in shown[:_SHOWN]:
        verdict, how = report.verdict, report.performance
        accuracy = "" if how.accuracy is None else f"{how.accuracy:.3f}"
        if not accuracy and how.estimated_accuracy is not None:
            accuracy = f"{how.estimated_accuracy:.3f} estimated"
        table.add_row(
            str(verdict.index),
            f"{verdict.rows:,}",
            f"[{_COLOURS[verdict.level]}]{verdict.level.value if verdict.judged else 'too few'}[/]",
            f"{verdict.esr:.3g}",
            f"{verdict.psi:.3g}" if verdict.judged else "",
            _escaped(verdict.worst[0].name) if verdict.worst else "",
            accuracy,
        )
    console.print(table)
    if len(shown) < len(reports) or len(shown) > _SHOWN:
        console.print(f"{len(reports)} windows; shown are the first that warned or alerted")
    level = decisive.verdict.level
    console.print(f"[{_COLOURS[level]}]{level.value}[/]  ", end="")
    console.print(f"{version.subject.uri}, window {decisive.verdict.index}", markup=False)
    for question, sentences in summary(decisive, version.profile, history):
        for place, sentence in enumerate(sentences):
            console.print(f"{question if not place else '':<11} {sentence}", markup=False)


def _recorded(uri: str, profile: DriftProfile, reports: Sequence[WindowReport]) -> str:
    """Hand the reports to the registry; why it did not take them, empty when it did.

    Raises:
        OSError, GovernanceError: it could not be asked.
    """
    try:
        sink = open_sink(uri, profile)
        for report in reports:
            sink.publish(report)
    except (ConfigurationError, RefusedError, UnsignedError, UntrustedKeyError) as error:
        return f"{error.message}. Remedy: {error.remedy}"
    return ""


def _show_run(version: VersionProfile, run_id: str | None, missed: str, *, again: bool) -> None:
    if run_id is None:
        return
    experiment = experiment_of(version.subject.model)
    done = "is there already" if again else "written"
    console.print(
        f"{'MLflow':<11} {done}: experiment {experiment}, run {run_id}; open drift.html there",
        markup=False,
    )
    told = f"not recorded: {missed}" if missed else "recorded; `chancery drift alerts` shows alerts"
    console.print(f"{'Registry':<11} {told}", markup=False)


def _columns(found: DriftProfile) -> Table:
    table = Table("column", "role", "kind", "bins", "personal data", "calibrated PSI")
    rows: list[tuple[Any, float]] = list(
        zip(found.columns, found.calibration.largest_psi, strict=True)
    )
    for column, largest in rows[:_COLUMNS]:
        table.add_row(
            _escaped(column.name),
            column.role,
            column.bins.kind,
            str(column.bins.size),
            {"keep": "", "bin": "binned only", "mask": "masked"}[column.pii],
            f"{largest:.3g}",
        )
    if len(rows) > _COLUMNS:
        table.add_row(f"and {len(rows) - _COLUMNS} more", "", "", "", "", "")
    return table


def _escaped(text: str) -> str:
    """A name from data is no markup."""
    return escape(text)
