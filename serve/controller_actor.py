"""The controller as a detached Ray actor, ``chancery-<deployId>`` in the namespace ``chancery``.

Ray starts it again wherever it can when it dies; then it takes over from the database like any
other. One actor a deployment bears the name; should there be two for a moment, the lease decides.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from typing import Any
from uuid import uuid4

from governance.clock import now_ms
from governance.deployment_port import open_deployments
from governance.settings import prometheus_url
from serve.controller import Controller
from serve.plan import Report
from serve.polling import Poller
from serve.promql import Prometheus
from serve.ray_cluster import RayCluster, RayOptions
from serve.rollout_run import RolloutJournal, experiment_name, home_of

__all__ = ["TICK_S", "ControllerActor"]

_log = logging.getLogger(__name__)

TICK_S = 0.25


class ControllerActor:
    """See the module.

    Args:
        deploy_id: The deployment.
        uri: Its store.
        options: How its applications run.
    """

    def __init__(self, deploy_id: str, uri: str, options: RayOptions) -> None:
        self._uri = uri
        self._deploy_id = deploy_id
        self._options = options
        self._controller: Controller | None = None
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)
        self._thread.start()

    def exchange(self, report: dict[str, Any]) -> dict[str, Any]:
        """A gateway's report (``Report.to_dict``) for the plan (``Plan.to_dict``).

        Raises:
            RuntimeError: it does not decide, yet or any more.
        """
        if self._controller is None:
            raise RuntimeError("the controller is starting")
        return self._controller.exchange(Report.from_dict(report)).to_dict()

    def facts(self) -> dict[str, Any]:
        """For tests and ``doctor``."""
        controller = self._controller
        return {
            "pid": os.getpid(),
            "holding": controller is not None and controller.holding,
            "databaseAway": controller is None or controller.away,
        }

    def check(self) -> bool:
        """Whether it ticks."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while self._controller is None:
            try:
                self._controller = self._open()
            except Exception as error:  # noqa: BLE001 - the database is away: tried again
                _log.warning("the controller cannot start yet: %r", error)
                time.sleep(2)
        controller, journal = self._controller, self._journal()
        while not controller.finished:
            began = time.monotonic()
            try:
                controller.tick(now_ms())
                if journal is not None and (standing := controller.standing()) is not None:
                    journal.offer(*standing)
            except Exception:  # noqa: BLE001 - a deployment goes on with its last plan meanwhile
                _log.exception("a tick of deployment %s failed", self._deploy_id)
            time.sleep(max(0.02, TICK_S - (time.monotonic() - began)))
        if journal is not None:
            journal.close()
        self._leave()

    def _journal(self) -> RolloutJournal | None:
        """Logs rollouts in MLflow, where that is wanted."""
        experiment = experiment_name()
        if not experiment:
            return None
        home = home_of(self._uri, self._options.environment.get("MLFLOW_TRACKING_URI", ""))
        journal = RolloutJournal(home, experiment, open_deployments(self._uri).decisions)
        journal.start()
        return journal

    def _open(self) -> Controller:
        url = prometheus_url()
        return Controller(
            self._deploy_id,
            open_deployments(self._uri),
            RayCluster(self._options),
            owner=f"{socket.gethostname()}/{os.getpid()}/{uuid4().hex[:6]}",
            clock=now_ms,
            poller=Poller(None if url is None else Prometheus(url)),
        )

    @staticmethod
    def _leave() -> None:
        """For good: Ray would start it again otherwise."""
        import ray

        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
