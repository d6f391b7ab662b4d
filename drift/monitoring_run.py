"""Brings reports into MLflow: a ``Sink`` that writes each window to the version's monitoring run.

One run for each version, route and profile, in the experiment ``monitoring/<model>``; it is found
again by its tag after a restart. Of each window:

1. files: the report (``reports/<window>-<digest>.json``); on warn and alert the full table
   (``tables/``); on the way up to alert the page (``alerts/``);
2. tags on the version: ``drift.score|window_end|report|run_id`` and, last, ``drift.status``: who
   is told of that one finds the others there. When the status changes, else once a minute;
3. at most 20 metrics in one call, also on the logged model, whose last words are the tag that
   remembers the window: what comes again after that is nothing. What was interrupted before is
   done again, with the same names and the same numbers, which MLflow keeps once.

Pictures and the page (``drift.html``) are drawn on warn and alert, at most every ten minutes, and
at the end (``close``). Tags and metrics are for looking at and searching; gates read signed
digests.

Example::

    with MlflowSink("http://mlflow:5000", [profile]) as sink:
        sink.publish(report)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from drift.history import History, score
from drift.model_profile import governance_error, load_profile
from drift.page import headline, name_of, page
from drift.plot import before_after, heat_map, over_time, slices
from drift.profile import DriftProfile
from drift.report import Subject, WindowReport
from drift.run_contents import LEVELS, experiment_of, metrics_of, table_of
from drift.verdict import Level
from governance.canonical import sha256_hex
from governance.clock import now_ms
from governance.errors import ConfigurationError, UnreachableError
from governance.settings import GOVERNED_PREFIX, Settings

__all__ = ["MlflowSink", "open_mlflow"]

_RUN = "chancery.monitor"
_LAST = "chancery.last_window"
_BATCH = "chancery.last_batch"
_HISTORY = "state/history.json"


@dataclass(slots=True)
class _Run:
    """A run, and how far it is.

    Attributes:
        subject: What is watched.
        run_id: Empty: to be looked for.
        last: Index of the last window that is there whole.
        batch: Digest, first index and state of the last batch.
        active: Marked as running.
        history: For pictures.
        judged: The last report that was judged; None: none came since the start.
        told: What the page tells of: of a stretch that is not ok the last of the worst level.
        tagged: Status and time of the last tags.
        drawn_ms: When pictures were drawn.
        stale: There are windows that are not in the pictures.
    """

    subject: Subject
    run_id: str
    last: int = -1
    batch: str = ""
    active: bool = False
    history: History = field(default_factory=History)
    judged: WindowReport | None = None
    told: WindowReport | None = None
    tagged: tuple[str, int] | None = None
    drawn_ms: int = 0
    stale: bool = False

    def level_before(self, index: int) -> Level:
        """Of the last window before this one that was judged."""
        judged = [one.level for one in self.history.points if one.judged and one.index < index]
        return judged[-1] if judged else Level.OK

    def take(self, report: WindowReport) -> None:
        """One window more."""
        self.stale = True
        if not report.verdict.judged:
            return
        level, self.judged = report.verdict.level, report
        if (
            self.told is None
            or level is Level.OK
            or LEVELS[level] >= LEVELS[self.told.verdict.level]
        ):
            self.told = report


class MlflowSink:
    """See the module.

    Args:
        uri: Of the server, or of the governed database.
        profiles: Of what is watched; others are loaded from the version.
        pictures_every_ms: Least time between two drawings; None: they are drawn at the end alone.
        tags_every_ms: Least time between two settings of tags with the same status; None: tags
            are set at the end alone.
        clock: Milliseconds since the epoch.
    """

    def __init__(
        self,
        uri: str,
        profiles: Iterable[DriftProfile] = (),
        *,
        pictures_every_ms: int | None = 600_000,
        tags_every_ms: int | None = 60_000,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._uri = uri
        self._profiles = {profile.digest: profile for profile in profiles}
        self._pictures_every_ms = pictures_every_ms
        self._tags_every_ms = tags_every_ms
        self._clock = clock
        self._runs: dict[str, _Run] = {}

    def __enter__(self) -> MlflowSink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()

    def publish(self, report: WindowReport) -> None:
        """Write one window; nothing, if it is there.

        Raises:
            OSError, GovernanceError: MLflow is away, or refuses. Ask again with the same report.
        """
        with self._asking(report.subject):
            run = self._run(report.subject)
            if report.verdict.index > run.last:
                self._publish(run, report)

    def run_id(self, subject: Subject) -> str:
        """The monitoring run; empty: there is none yet. Raises as ``publish``."""
        with self._asking(subject):
            run = self._found(subject)
            return "" if run is None else run.run_id

    def batch(self, subject: Subject, digest: str) -> tuple[int, bool]:
        """Which index a batch begins with, and whether all of it is there already.

        A batch that was interrupted begins where it began. Makes nothing; raises as ``publish``.
        """
        with self._asking(subject):
            run = self._found(subject)
            if run is None:
                return 0, False
            known, _, rest = run.batch.partition(":")
            first, _, done = rest.partition(":")
            if known == digest and first.isdigit():
                return int(first), done == "done"
            return run.last + 1, False

    def mark_batch(self, subject: Subject, digest: str, first: int, *, done: bool) -> None:
        """Remember a batch before its first window, and after its last; raises as ``publish``."""
        with self._asking(subject):
            run = self._run(subject)
            run.batch = f"{digest}:{first}:{'done' if done else 'begun'}"
            self._client().set_tag(run.run_id, _BATCH, run.batch)

    def close(self, about: WindowReport | None = None) -> None:
        """Draw what was not drawn yet, and end the runs; a later report begins them again.

        Args:
            about: The report that page and tags tell of; default: the last, or of a stretch that
                is not ok the last of the worst level.

        Raises:
            OSError, GovernanceError: as ``publish``; call it again.
        """
        for key, known in list(self._runs.items()):
            if known.active or known.stale or known.judged is not None:
                with self._asking(known.subject):
                    self._end(self._run(known.subject), about)
            self._runs.pop(key, None)

    def _end(self, run: _Run, about: WindowReport | None) -> None:
        client = self._client()
        told, latest = about or run.told, about or run.judged
        if (run.stale or about is not None) and told is not None:
            with tempfile.TemporaryDirectory(prefix="drift-") as made:
                self._draw(run, told, Path(made))
                client.log_artifacts(run.run_id, made)
            run.stale = False
        if latest is not None:
            self._tag(client, run, latest, always=True)
        client.set_terminated(run.run_id, "FINISHED")
        run.active = False

    @contextmanager
    def _asking(self, subject: Subject) -> Iterator[None]:
        """MLflow's errors as ours; what was cached of the run is read anew after one."""
        from mlflow.exceptions import MlflowException

        what = f"MLflow does not take the drift report of {subject.uri}"
        try:
            yield
        except MlflowException as error:
            self._forget(subject)
            raise governance_error(error, what) from error
        except SQLAlchemyError as error:
            self._forget(subject)
            reason = str(getattr(error, "orig", None) or error).split("\n")[0]
            raise UnreachableError(f"{what}: {reason}", "try again when it answers") from error
        except OSError:
            self._forget(subject)
            raise

    def _forget(self, subject: Subject) -> None:
        """So that the next attempt sees what is really there; the history stays."""
        run = self._runs.get(_key(subject))
        if run is not None:
            run.run_id = ""

    def _client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self._uri, self._uri)

    def _profile(self, subject: Subject) -> DriftProfile:
        found = self._profiles.get(subject.profile)
        if found is None:
            found = load_profile(subject.uri, uri=self._uri).profile
            found.require(found.model, digest=subject.profile)
            self._profiles[found.digest] = found
        return found

    def _publish(self, run: _Run, report: WindowReport) -> None:
        from mlflow.entities import Metric, RunTag

        profile = self._profile(report.subject)
        client = self._client()
        verdict = report.verdict
        run.history.add(report, profile)
        run.take(report)
        with tempfile.TemporaryDirectory(prefix="drift-") as made:
            drawn = self._write(run, report, profile, Path(made))
            client.log_artifacts(run.run_id, made)
        if drawn:
            run.drawn_ms, run.stale = self._clock(), False
        if verdict.judged:
            self._tag(client, run, report)
        at = verdict.last_ms if verdict.last_ms is not None else report.made_ms
        metrics = [
            Metric(name, value, at, verdict.index, model_id=report.subject.model_id or None)
            for name, value in metrics_of(report, profile, run.history).items()
        ]
        client.log_batch(run.run_id, metrics, tags=[RunTag(_LAST, str(verdict.index))])
        run.last = verdict.index

    def _write(self, run: _Run, report: WindowReport, profile: DriftProfile, folder: Path) -> bool:
        """The window's files; whether pictures are among them."""
        name = f"{report.verdict.index:06d}-{report.digest[:12]}"
        _put(folder / "reports" / f"{name}.json", report.to_json())
        if report.verdict.level is Level.OK:
            return False
        _put(folder / "tables" / f"{name}.csv", table_of(report, profile))
        before = run.level_before(report.verdict.index)
        higher = LEVELS[report.verdict.level] > LEVELS[before]
        if higher and report.verdict.level is Level.ALERT:
            _put(folder / "alerts" / f"{name}.html", page(report, profile, run.history))
        every = self._pictures_every_ms
        draws = every is not None and (higher or self._clock() - run.drawn_ms >= every)
        if draws:
            self._draw(run, run.told or report, folder)
        return draws

    def _draw(self, run: _Run, report: WindowReport, folder: Path) -> None:
        """The pictures, the page, and what they are drawn from."""
        profile, name = self._profile(report.subject), name_of(report)
        _put(folder / "drift.html", page(report, profile, run.history))
        _put(folder / "pictures" / "over_time.png", over_time(run.history, profile, name))
        _put(folder / "pictures" / "columns.png", heat_map(run.history, profile, name))
        _put(folder / "pictures" / "before_after.png", before_after(report, profile, name))
        _put(folder / "pictures" / "slices.png", slices(report, name))
        _put(folder / _HISTORY, run.history.to_json())

    def _tag(self, client: Any, run: _Run, report: WindowReport, *, always: bool = False) -> None:
        """On the version; ``drift.status`` last."""
        verdict, subject = report.verdict, report.subject
        now = (verdict.level.value, report.made_ms)
        if not verdict.judged or run.tagged == now:
            return
        if not always:
            same = run.tagged is not None and run.tagged[0] == now[0]
            every = self._tags_every_ms
            if every is None or (same and now[1] - (run.tagged or now)[1] < every):
                return
        end = verdict.last_ms if verdict.last_ms is not None else report.made_ms
        for key, value in (
            ("score", f"{score(verdict, self._profile(subject).rules):.3g}"),
            ("window_end", datetime.fromtimestamp(end / 1000, UTC).isoformat(timespec="seconds")),
            ("report", report.digest),
            ("run_id", run.run_id),
            ("status", verdict.level.value),
        ):
            client.set_model_version_tag(subject.model, str(subject.version), f"drift.{key}", value)
        client.set_tag(run.run_id, "mlflow.note.content", headline(report))
        run.tagged = now

    def _run(self, subject: Subject) -> _Run:
        """The run of what is watched, going on; made if it is missing."""
        run = self._found(subject)
        if run is None:
            client = self._client()
            experiment = _experiment_id(client, experiment_of(subject.model), self._artifacts())
            made = self._made(client, experiment, subject, _key(subject))
            run = self._known(subject, _Run(subject, made.info.run_id, active=True))
        if not run.active:
            self._client().update_run(run.run_id, status="RUNNING")
            run.active = True
        return run

    def _found(self, subject: Subject) -> _Run | None:
        """The run, if there is one."""
        known = self._runs.get(_key(subject))
        if known is not None and known.run_id:
            return known
        client = self._client()
        experiment = client.get_experiment_by_name(experiment_of(subject.model))
        if experiment is None:
            return None
        runs = client.search_runs(
            [experiment.experiment_id],
            f"tags.`{_RUN}` = '{_key(subject)}'",
            max_results=1,
            order_by=["attributes.start_time ASC"],
        )
        if not runs:
            return None
        info, tags = runs[0].info, runs[0].data.tags
        last = tags.get(_LAST, "")
        run = _Run(
            subject,
            info.run_id,
            int(last) if last.isdigit() else -1,
            tags.get(_BATCH, ""),
            active=info.status == "RUNNING",
        )
        if known is None:
            run.history = self._history(client, run)
        return self._known(subject, run)

    def _known(self, subject: Subject, run: _Run) -> _Run:
        """Remembered; with what is not in MLflow of one that was forgotten."""
        before = self._runs.get(_key(subject))
        if before is not None:
            run.history, run.judged, run.told = before.history, before.judged, before.told
            run.tagged, run.drawn_ms, run.stale = before.tagged, before.drawn_ms, before.stale
        self._runs[_key(subject)] = run
        return run

    def _made(self, client: Any, experiment: str, subject: Subject, key: str) -> Any:
        rules = self._profile(subject).rules
        made = client.create_run(
            experiment,
            run_name=f"{subject.model} {subject.version}"
            + (f" at {subject.deployment}" if subject.deployment else ", in batches"),
            tags={
                _RUN: key,
                "chancery.model": subject.model,
                "chancery.version": str(subject.version),
                "chancery.route": subject.deployment,
                "chancery.profile": subject.profile,
                "chancery.owner": subject.owner,
            },
        )
        for name, value in (
            ("window", self._profile(subject).window),
            ("warn_esr", rules.warn_esr),
            ("alert_esr", rules.alert_esr),
            ("alert_needs", rules.alert_needs),
        ):
            client.log_param(made.info.run_id, name, value)
        return made

    def _history(self, client: Any, run: _Run) -> History:
        """As it was drawn last; windows since then are missing in pictures, not in metrics."""
        from mlflow.exceptions import MlflowException

        listed = [] if run.last < 0 else client.list_artifacts(run.run_id, "state")
        if _HISTORY not in [file.path for file in listed]:
            return History()
        with tempfile.TemporaryDirectory(prefix="drift-") as folder:
            try:
                path = client.download_artifacts(run.run_id, _HISTORY, folder)
            except MlflowException:
                return History()
            return History.from_json(Path(path).read_bytes())

    def _artifacts(self) -> str | None:
        """Where a database without a server keeps files: in its home, wherever we were called."""
        if not self._uri.startswith(GOVERNED_PREFIX):
            return None
        return (Settings.load(self._uri).home / "monitoring").absolute().as_uri()


def _key(subject: Subject) -> str:
    """A version that was made anew under the same number has another profile."""
    return sha256_hex(f"{subject.key}\n{subject.profile}".encode())[:32]


def _experiment_id(client: Any, name: str, artifacts: str | None) -> str:
    """Found by its name, or made; several processes may do so at once."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def open_mlflow(subject: Subject, options: Mapping[str, str]) -> MlflowSink:
    """The sink ``mlflow`` of a monitor; its option is ``uri``, by default MLflow's registry.

    Raises:
        ConfigurationError: other options.
    """
    import mlflow

    if set(options) - {"uri"}:
        raise ConfigurationError(
            f"the sink 'mlflow' has the options {sorted(options)}", "give it a uri, or nothing"
        )
    return MlflowSink(options.get("uri") or mlflow.get_registry_uri())
