"""Each rollout as a run in MLflow, so that people see it where they see everything else.

The run has the rollout's numbers as metrics over time, and at the end its picture, a page with
every decision, the configuration and the numbers. It is a copy, for looking at: what counts is in
the database. Nothing here is ever waited for:

- the controller leaves its latest state with ``offer``, which costs nothing;
- a thread of its own logs what is new, every few seconds, and goes on trying while MLflow is away;
- a run is found by its tag ``chancery.rollout``, so a controller that takes over continues it, from
  the last point that is there.

Decisions are taken from the database, so none that was recorded is missing.

Example::

    journal = RolloutJournal(home_of(uri), "chancery/rollouts", store.decisions)
    journal.start()
    journal.offer(record, course)
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.deployment_control import StoredDecision
from governance.deployment_records import DeploymentRecord
from governance.settings import GOVERNED_PREFIX, Settings
from serve.course import Course
from serve.experiments import experiment_id
from serve.plot import Story, drawn
from serve.rollout_page import page
from serve.series import Point, Series, Side

__all__ = ["EXPERIMENT", "RolloutJournal", "RunHome", "experiment_name", "home_of"]

_log = logging.getLogger(__name__)

EXPERIMENT = "chancery/rollouts"
"""Name of the experiment, if ``CHANCERY_ROLLOUT_EXPERIMENT`` gives none; empty there: no runs."""

_TAG = "chancery.rollout"
_COMPLETE = "chancery.complete"
_KEPT = 8  # rollouts that may wait for MLflow
_BATCH = 800  # metrics in one call; MLflow takes 1000
_STATUS = {"promoted": "FINISHED", "aborted": "KILLED"}  # any other end is a failure

Decisions = Callable[[str], Sequence[StoredDecision]]


@dataclass(frozen=True, slots=True)
class RunHome:
    """Where runs are logged.

    Attributes:
        tracking_uri: Of the server, or the governed database itself.
        artifacts: Where artifacts go without a server; None: where the server says.
    """

    tracking_uri: str
    artifacts: str | None = None


def home_of(uri: str, server: str = "") -> RunHome:
    """Through the server where there is one; else the database, with artifacts in its home.

    Args:
        uri: Of the deployment's store.
        server: What replicas load through.
    """
    if server.startswith(("http://", "https://")):
        return RunHome(server)
    if uri.startswith(GOVERNED_PREFIX):
        return RunHome(uri, (Settings.load(uri).home / "rollouts").absolute().as_uri())
    return RunHome(uri)


class RolloutJournal:
    """See the module.

    Args:
        home: Where runs are logged.
        experiment: Name of their experiment.
        decisions: A deployment's, from the database.
        pause_s: Seconds between two looks.
    """

    def __init__(
        self, home: RunHome, experiment: str, decisions: Decisions, pause_s: float = 5.0
    ) -> None:
        self._home = home
        self._experiment = experiment
        self._decisions = decisions
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._news: dict[str, tuple[DeploymentRecord, Course]] = {}
        self._runs: dict[str, _Run] = {}
        self._done: set[str] = set()
        self._end = threading.Event()
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="rollout-run", daemon=True)

    def offer(self, record: DeploymentRecord, course: Course) -> None:
        """The latest; what was offered before and not logged yet is in it."""
        series = course.series
        if series is None or series.rollout_id in self._done:
            return
        with self._lock:
            self._news.pop(series.rollout_id, None)
            self._news[series.rollout_id] = (record, course)
            while len(self._news) > _KEPT:
                lost = next(iter(self._news))
                del self._news[lost]
                _log.warning("the rollout %s is not logged in MLflow: it is away too long", lost)

    def start(self) -> None:
        """Log from now on."""
        self._thread.start()

    def close(self, timeout_s: float = 10.0) -> None:
        """Log what is there, if that is quick, and end."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        ending = False
        while not ending:
            # A server that is away is asked ever less often.
            ending = self._end.wait(self._pause_s * 2**self._failures)
            self.flush()

    def flush(self) -> bool:
        """Log what is new; whether that went well."""
        with self._lock:
            news = list(self._news.items())
        well = True
        for rollout_id, offered in news:
            try:
                complete = self._log(*offered)
            except Exception as error:  # noqa: BLE001 - MLflow is away, or refuses: tried again
                well = False
                self._runs.pop(rollout_id, None)
                level = logging.DEBUG if self._failures else logging.WARNING
                _log.log(level, "rollout %s: not logged in MLflow now: %r", rollout_id[:12], error)
                continue
            with self._lock:
                if complete:
                    self._done.add(rollout_id)
                    self._runs.pop(rollout_id, None)
                if complete or self._news.get(rollout_id) is offered:
                    self._news.pop(rollout_id, None)
        self._failures = 0 if well else min(self._failures + 1, 4)
        return well

    def _log(self, record: DeploymentRecord, course: Course) -> bool:
        """Whether nothing more is to come."""
        from mlflow import MlflowClient

        series, rollout = course.series, course.rollout
        assert series is not None
        client = MlflowClient(self._home.tracking_uri, self._home.tracking_uri)
        run = self._runs.get(series.rollout_id)
        if run is None:
            run = self._runs[series.rollout_id] = self._found(client, record, series)
        if run.complete:
            return True
        run.log_points(client, series)
        ended = rollout is not None and rollout.id == series.rollout_id and rollout.phase.terminal
        if not ended:
            return False
        told = [
            one.document
            for one in self._decisions(record.deploy_id)
            if one.rollout_id == series.rollout_id
        ]
        if not told or told[-1]["outcome"] != series.phase:
            return False  # the last decision is not in the database yet
        assert rollout is not None
        config = json.loads(rollout.config.model_dump_json())
        story = Story(record.route, record.environment, record.model_name, series, told)
        run.finish(client, story, config)
        return True

    def _found(self, client: Any, record: DeploymentRecord, series: Series) -> _Run:
        """The rollout's run; made if it is missing."""
        experiment = experiment_id(client, self._experiment, self._home.artifacts)
        known = client.search_runs([experiment], f"tags.`{_TAG}` = '{series.rollout_id}'", 3, 1)
        if known:
            history = client.get_metric_history(known[0].info.run_id, "canary_percent")
            until = max((metric.timestamp for metric in history), default=0)
            complete = known[0].data.tags.get(_COMPLETE) == "1"
            return _Run(known[0].info.run_id, until, complete=complete)
        stable, canary = (*map(str, series.versions), "?", "?")[:2]
        made = client.create_run(
            experiment,
            start_time=series.began_ms,
            run_name=f"{record.route}: {record.model_name} {canary}",
            tags={
                _TAG: series.rollout_id,
                "chancery.deployment": record.deploy_id,
                "chancery.route": record.route,
                "chancery.environment": record.environment,
                "chancery.model": record.model_name,
                "chancery.version": canary,
                "chancery.stable": stable,
                "chancery.began_by": record.rollout_by or "",
            },
        )
        return _Run(made.info.run_id, 0, complete=False)


class _Run:
    """One run, and how far it is."""

    def __init__(self, run_id: str, until_ms: int, *, complete: bool) -> None:
        self.run_id = run_id
        self.complete = complete
        self._until_ms = until_ms

    def log_points(self, client: Any, series: Series) -> None:
        """Those that are not there yet."""
        from mlflow.entities import Metric

        waiting: list[Metric] = []
        canary = stable = 0
        for point in series.points:
            canary, stable = canary + point.canary.requests, stable + point.stable.requests
            if point.at_ms < self._until_ms:  # those of the last moment again: MLflow keeps one
                continue
            found = {"requests/canary": float(canary), "requests/stable": float(stable)}
            found |= _metrics(series, point)
            at = max(0, (point.at_ms - series.began_ms) // 1000)
            waiting += [Metric(name, value, point.at_ms, at) for name, value in found.items()]
            if len(waiting) > _BATCH:
                client.log_batch(self.run_id, metrics=waiting)
                self._until_ms, waiting = point.at_ms, []
        if waiting:
            client.log_batch(self.run_id, metrics=waiting)
            self._until_ms = series.points[-1].at_ms

    def finish(self, client: Any, story: Story, config: Mapping[str, Any]) -> None:
        """What is told at the end."""
        last = story.decisions[-1]
        with tempfile.TemporaryDirectory(prefix="rollout") as made:
            for name, data in _artifacts(story, config):
                Path(made, name).write_bytes(data)
            client.log_artifacts(self.run_id, made)
        sentences = " ".join(map(str, last["explanation"]))
        client.set_tag(self.run_id, "chancery.outcome", story.series.phase)
        client.set_tag(self.run_id, "mlflow.note.content", sentences)
        status = _STATUS.get(story.series.phase, "FAILED")
        client.set_terminated(self.run_id, status, end_time=int(last["atMs"]))
        client.set_tag(self.run_id, _COMPLETE, "1")


def _metrics(series: Series, point: Point) -> dict[str, float]:
    """Of one interval."""
    found = {"canary_percent": point.percent}
    for name, side in (("canary", point.canary), ("stable", point.stable)):
        found |= _of_side(name, side)
    found["log_e/all"] = point.log_e
    found["log_e/all_threshold"] = series.threshold
    for test, alone, value in zip(series.tests, series.thresholds, point.tests, strict=False):
        found[f"log_e/{test}"] = value
        found[f"log_e/{test}_threshold"] = alone
    return found


def _of_side(name: str, side: Side) -> dict[str, float]:
    found = {}
    if side.judged:
        found[f"error_percent/{name}"] = 100 * side.charged / side.judged
    for quantile, ms in (("p50", side.p50), ("p95", side.p95), ("p99", side.p99)):
        if ms is not None:
            found[f"latency_{quantile}_ms/{name}"] = ms
    return found


def _artifacts(story: Story, config: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    yield "rollout.png", drawn(story, "png")
    yield "rollout.html", page(story, config, drawn(story, "svg"))
    for name, document in (
        ("decisions.json", list(story.decisions)),
        ("config.json", config),
        ("series.json", story.series.to_dict()),
    ):
        yield name, json.dumps(document, indent=2).encode() + b"\n"


def experiment_name(environ: Mapping[str, str] = os.environ) -> str:
    """Where rollouts are logged; empty: nowhere."""
    return environ.get("CHANCERY_ROLLOUT_EXPERIMENT", EXPERIMENT)
