"""The port from who serves to who records what was served.

A model's replica asks for a recorder once, when its model is loaded. Recording is off unless the
machine's own setting ``CHANCERY_RECORD_TO`` names where records go; it is never handed on by who
deploys, for that person would decide where other people's traffic ends up.

``drift`` implements the port; it is found through the entry-point group ``chancery.recorders``, so
that ``serve`` does not import it. Whatever goes wrong with recording stays there: a version that
cannot be recorded is served all the same, and told in the log.

Example::

    recorder = open_recorder(ServedModel("fraud", "7", columns=("amount",)))
    if recorder is not None:
        recorder.served(rows, predictions, ("r-1", "r-2"), (1, 3))
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

__all__ = ["GROUP", "RECORD_TO", "Recording", "ServedModel", "open_recorder"]

GROUP = "chancery.recorders"
RECORD_TO = "CHANCERY_RECORD_TO"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What answers.

    Attributes:
        model: Registered name.
        version: In the registry.
        columns: Names of the columns of decoded rows, in order; None: they have none.
        deployment: The route; empty: whichever.
    """

    model: str
    version: str
    columns: tuple[str, ...] | None = None
    deployment: str = ""


class Recording(Protocol):
    """Takes what was served. Every method returns at once, drops what there is no room for, and
    counts it."""

    def served(
        self, rows: Any, predictions: Any, request_ids: Sequence[str], counts: Sequence[int]
    ) -> None:
        """Rows of one or several requests, predicted together.

        Args:
            rows: (n, …) of all of them, which nobody changes afterwards.
            predictions: Of all of them, as the model gave them.
            request_ids: Of each request; empty texts where there is none.
            counts: Rows of each request.
        """
        ...

    def exactly(
        self, content_type: str | None, body: bytes, answer: bytes, request_id: str
    ) -> None:
        """A request as it came, and the body of its good answer."""
        ...

    def close(self) -> None:
        """Write what waits."""
        ...


Opener = Callable[[ServedModel, Mapping[str, str]], "Recording | None"]


def open_recorder(served: ServedModel, environ: Mapping[str, str] = os.environ) -> Recording | None:
    """A recorder, where one is wanted and can be had. Does not raise.

    Args:
        served: What answers.
        environ: Of the settings.
    """
    if not environ.get(RECORD_TO):
        return None
    for point in entry_points(group=GROUP):
        try:
            opener: Opener = point.load()
            found = opener(served, environ)
        except Exception as error:  # noqa: BLE001 - somebody else's; serving goes on without it
            _log.warning("models:/%s/%s is not recorded: %s", served.model, served.version, error)
            continue
        if found is not None:
            return found
    return None
