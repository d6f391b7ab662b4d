"""``chancery drift monitor``: watch served versions, many in one process.

Standard output has the result (``--once``), standard error the progress: a line when a subject's
level or trouble changes, and one a minute with sums. SIGTERM and SIGINT save and end. ``COMMANDS``
is what the group takes in.

======  ============================================================
exit    meaning
======  ============================================================
0       ended as asked; ``--once``: no window alerted
1       ``--once``: a subject could not be watched, or a sink did not take its reports
3       the configuration or its files cannot be used
4       ``--once``: a window alerted
======  ============================================================
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import click

from drift.block_store import place_of
from drift.model_profile import version_named
from drift.monitor_config import MonitorConfig, MonitorsConfig
from drift.profile import DriftProfile
from drift.service import Service, SubjectStatus
from drift.stored import plain
from governance.backend import open_backend
from governance.errors import ConfigurationError
from governance.terminal import (
    answer_errors,
    console,
    json_option,
    optional_uri_option,
    print_json,
)

__all__ = ["COMMANDS", "Progress", "monitor"]

_PROGRESS_S = 60.0
_ALERTED = 4


@click.command("monitor")
@click.argument("model", required=False)
@click.option("--blocks", help="Folder or s3://bucket/path that recorders write to.")
@click.option("--state", type=click.Path(path_type=Path), help="Folder for the monitor's state.")
@click.option("--deployment", default="", help="The route that serves it.")
@click.option("--labels", type=click.Path(path_type=Path), help="Folder of labels.")
@click.option("--reports", type=click.Path(path_type=Path), help="Folder for reports as JSON.")
@click.option("--no-publish", is_flag=True, help="Nothing goes into MLflow or the registry.")
@click.option("--profile", type=click.Path(path_type=Path), help="A file, instead of MODEL.")
@click.option("--reference", type=click.Path(path_type=Path), help="With --profile: its sample.")
@click.option("--version", "version", type=click.IntRange(1), help="With --profile: watched.")
@click.option(
    "--config",
    "config",
    type=click.Path(path_type=Path),
    help="monitors.yaml: many subjects. Instead of all that is above.",
)
@click.option(
    "--part",
    metavar="I/N",
    help="With --config: what this one of N processes monitors, which share the folder of states.",
)
@click.option("--once", is_flag=True, help="What there is now, then end.")
@click.option("--flush", is_flag=True, help="With --once: close windows that are open.")
@optional_uri_option
@json_option
@answer_errors
def monitor(
    config: Path | None,
    part: str | None,
    once: bool,
    flush: bool,
    uri: str | None,
    as_json: bool,
    **one: Any,
) -> None:
    """Watch the served version MODEL (models:/name/3) for drift, or many."""
    if flush and not once:
        raise ConfigurationError(
            "--flush ends a stream, and without --once none ends", "add --once"
        )
    found = _one(uri=uri, **one) if config is None else _many(config, one)
    if part is not None:
        if config is None:
            raise ConfigurationError("--part divides many subjects", "give --config too")
        found = found.part(*_part(part))
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(message)s"
    )
    stopped = Event()
    _until_signal(stopped)
    service = Service(found.openings(), checks=found.checks, couriers=found.couriers)
    progress = Progress(sys.stderr.write)
    if not once:
        progress.line(f"monitoring {len(found.monitors)} subjects")
        service.run(stopped, progress, alone=True)
        progress.line("saved; ended")
        return
    status = service.once(stopped, flush=flush)
    progress(status)
    _print(status, as_json)
    sys.exit(_exit_code(status))


def _part(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal()):
        raise ConfigurationError(f"--part {text} is no part", "give it as in 2/4")
    return int(number), int(of)


def _many(config: Path, one: Mapping[str, Any]) -> MonitorsConfig:
    given = sorted(name for name, value in one.items() if value)
    if given:
        raise ConfigurationError(
            f"{given[0].replace('_', '-')} is given, and --config says what is monitored",
            "write it into the file",
        )
    return MonitorsConfig.read(config)


def _one(
    *,
    uri: str | None,
    model: str | None,
    blocks: str | None,
    state: Path | None,
    deployment: str,
    labels: Path | None,
    reports: Path | None,
    no_publish: bool,
    profile: Path | None,
    reference: Path | None,
    version: int | None,
) -> MonitorsConfig:
    """One subject, by options."""
    what = {"--profile": profile, "--version": version} if model is None else {"--uri": uri}
    needed = {**what, "--blocks": blocks, "--state": state}
    lacking = [name for name, value in needed.items() if value is None]
    if lacking or blocks is None or state is None:
        raise ConfigurationError(
            f"it is not said what to monitor: {', '.join(lacking)} missing",
            "give MODEL, --blocks and --state; or --config",
        )
    if model is not None and (profile or reference or version):
        raise ConfigurationError(
            f"{model} and files are given", "name either a registered version, or its files"
        )
    sinks: list[tuple[str, Mapping[str, str]]] = []
    if reports is not None:
        sinks.append(("folder", {"path": str(reports)}))
    if model is not None and uri is not None:
        name, number = version_named(model, open_backend(uri))
        if not no_publish:
            sinks += [("mlflow", {"uri": uri}), ("registry", {"uri": uri})]
    else:
        assert profile is not None
        assert version is not None
        name, number = DriftProfile.from_json(profile.read_bytes()).model, version
    only = MonitorConfig(
        model=name,
        version=number,
        profile=profile,
        blocks=place_of(blocks),
        deployment=deployment,
        reference=reference,
        registry=uri or "",
        sinks=tuple(sinks),
        options={"labels": labels},
    )
    return MonitorsConfig((only,), state)


COMMANDS: Sequence[click.Command] = (monitor,)


class Progress:
    """Tells of changes, and sums once a minute.

    Args:
        write: Where lines go.
        clock: Seconds.
    """

    def __init__(
        self, write: Callable[[str], Any], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._clock = clock
        self._before: Mapping[str, tuple[str, str]] = {}
        self._due = clock() + _PROGRESS_S
        self._rows = 0

    def line(self, text: str) -> None:
        """One line."""
        self._write(f"{text}\n")

    def __call__(self, status: list[SubjectStatus]) -> None:
        now = {one.subject: (_level(one), _trouble(one)) for one in status}
        for subject, (level, trouble) in now.items():
            before = self._before.get(subject, ("ok", ""))
            if level != before[0]:
                self.line(f"{subject}: {level}")
            if trouble != before[1]:
                self.line(f"{subject}: {trouble or 'runs again'}")
        self._before = now
        if self._clock() >= self._due:
            self._due = self._clock() + _PROGRESS_S
            seen = [one.monitor for one in status if one.monitor is not None]
            rows = sum(one.rows for one in seen)
            self.line(
                f"{len(seen)} of {len(status)} subjects, {sum(one.windows for one in seen)} "
                f"windows, {rows} rows ({rows - self._rows} more), "
                f"{sum(one.waiting_reports for one in seen)} reports wait"
            )
            self._rows = rows


def _level(one: SubjectStatus) -> str:
    return "ok" if one.monitor is None else one.monitor.level.value


def _trouble(one: SubjectStatus) -> str:
    if one.trouble or one.monitor is None:
        return one.trouble
    return "; ".join(f"sink {name}: {why}" for name, why in sorted(one.monitor.trouble.items()))


def _exit_code(status: Sequence[SubjectStatus]) -> int:
    if any(_trouble(one) for one in status):
        return 1
    alerted = any(one.monitor is not None and one.monitor.new_alerts for one in status)
    return _ALERTED if alerted else 0


def _print(status: Sequence[SubjectStatus], as_json: bool) -> None:
    if as_json:
        print_json({"subjects": [plain(one) for one in status]})
        return
    for one in status:
        seen = one.monitor
        if seen is None:
            console.print(f"{one.subject}: not watched: {one.trouble}", markup=False)
            continue
        console.print(
            f"{one.subject}: {seen.level.value}; {seen.windows} windows, {seen.alerts} alerted; "
            f"{seen.rows} rows, {seen.open_rows} in an open window",
            markup=False,
        )
        for note in (*seen.notes, *filter(None, [_trouble(one)])):
            console.print(f"  {note}", markup=False)


def _until_signal(stopped: Event) -> None:
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: stopped.set())


if __name__ == "__main__":
    monitor()
