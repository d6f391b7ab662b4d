"""The monitor as a Ray actor: the same service, where a cluster keeps it running.

The actor is detached and named, so whoever finds it under its name asks it for its status; Ray
starts it anew when its process dies, and it goes on from its saved state. Folders of blocks and
states must be where the actor's node sees them. Ray is imported when the actor is started, and
``MonitorRun`` needs none.

Example::

    actor = start_actor(Path("/shared/monitors.yaml"))
    ray.get(actor.status.remote())
    ray.get(actor.stop.remote())
"""

from __future__ import annotations

from pathlib import Path
from threading import Event, Thread
from typing import Any

from drift.monitor_config import MonitorsConfig
from drift.service import Service
from drift.stored import plain

__all__ = ["NAME", "MonitorRun", "start_actor"]

NAME = "chancery-drift"
_NAMESPACE = "chancery"


class MonitorRun:
    """A service in a thread of its own; what the actor is made of.

    Args:
        config: ``monitors.yaml``.
        part: Number and count, where several share the subjects (``MonitorsConfig.part``).

    Raises:
        ConfigurationError: it cannot be used.
    """

    def __init__(self, config: str, part: tuple[int, int] = (1, 1)) -> None:
        found = MonitorsConfig.read(Path(config)).part(*part)
        self._service = Service(found.openings(), checks=found.checks, couriers=found.couriers)
        self._stopped = Event()
        self._thread = Thread(
            target=self._service.run,
            args=(self._stopped,),
            kwargs={"alone": True},
            name="drift-monitor",
            daemon=True,
        )
        self._thread.start()

    def status(self) -> list[dict[str, Any]]:
        """Of each subject (``drift.service.SubjectStatus``), as JSON has it."""
        return [plain(one) for one in self._service.status]

    def check_health(self) -> None:
        """Raises when Ray should start it anew."""
        if not self._thread.is_alive() and not self._stopped.is_set():
            raise RuntimeError("the monitor's thread ended")

    def stop(self, timeout_s: float = 60.0) -> bool:
        """Save and end; whether it did in time."""
        self._stopped.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


def start_actor(
    config: Path,
    *,
    name: str = NAME,
    part: tuple[int, int] = (1, 1),
    cpus: float = 1.0,
    ray: Any = None,
) -> Any:
    """Have the actor run; one of that name that runs already is given back.

    Args:
        config: ``monitors.yaml``, where the actor's node sees it.
        name: Of the actor; each part has one of its own.
        part: As ``MonitorRun``'s.
        cpus: That Ray sets aside for it.
        ray: The module; imported where it is not given.
    """
    if ray is None:
        import ray
    made = ray.remote(MonitorRun).options(
        name=name,
        namespace=_NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        num_cpus=cpus,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
    )
    return made.remote(str(config), part)
