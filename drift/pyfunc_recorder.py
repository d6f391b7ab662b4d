"""Records what any pyfunc model sees and says, whoever serves it.

``recorded`` wraps a loaded model: it answers as before, and each request's rows, answers, time and
id become blocks, by ``drift.recording``, with what the profile says of personal columns applied. A
request costs an append; nothing that goes wrong with recording reaches an answer. For ``mlflow
models serve``, where the model is loaded by MLflow, there is ``drift.recorded_model``.

Ids: a column that carries them (``id_column``, one id a row), else the ``request_id`` among the
params, else one that is made up here. Only ids that the client knows join labels.

Rows are looked at later, so what was passed in must not be changed afterwards.

Example::

    model = recorded(mlflow.pyfunc.load_model(uri), profile, version="7", to=Path("blocks"))
    model.predict(frame, {"request_id": "r-1"})
    model.close()
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from itertools import count
from typing import Any

from drift.block_store import BlockPlace
from drift.places import blocks_folder
from drift.profile import DriftProfile
from drift.recorder import RecorderCounts
from drift.recording import Recording, recorder_of, share_of, spool_of

__all__ = ["RecordedModel", "recorded"]

_log = logging.getLogger(__name__)


def recorded(
    model: Any,
    profile: DriftProfile,
    *,
    version: str,
    to: BlockPlace,
    deployment: str = "",
    id_column: str = "",
    sample: float | None = None,
    environ: Mapping[str, str] = os.environ,
    **limits: Any,
) -> RecordedModel:
    """A model that is recorded.

    Args:
        model: Anything with ``predict(data)`` or ``predict(data, params)``.
        profile: The model's.
        version: Of the registered model.
        to: Folder, or ``s3://bucket/path``, below which its blocks go:
            ``<model>/<version>/<deployment or _>``.
        deployment: That answers.
        id_column: Column of requests' ids; it is recorded as nothing else.
        sample: Share of requests; None: as the settings say.
        environ: Of the settings.
        limits: Of ``drift.recorder.Recorder``.

    Raises:
        ConfigurationError: a setting is wrong.
        OSError: the spool cannot be used.
    """
    share = share_of(environ) if sample is None else sample
    recorder = recorder_of(profile, deployment=deployment, sample=share, **limits)
    place = blocks_folder(to, profile.model, version, deployment)
    recording = Recording.open(place, recorder, spool=spool_of(environ, place))
    return RecordedModel(model, recording, version, id_column)


class RecordedModel:
    """See the module. What it does not know itself is the model's.

    Args:
        model: Answers.
        recording: Of what it answers.
        version: Of the registered model.
        id_column: See ``recorded``.
    """

    def __init__(self, model: Any, recording: Recording, version: str, id_column: str = "") -> None:
        self._model = model
        self._recording = recording
        self._recorder = recording.recorder
        self._version = version
        self._id_column = id_column
        self._numbers = count()
        self._told = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @property
    def recorded(self) -> RecorderCounts:
        """What became of the rows."""
        return self._recorder.counts

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """The model's answer."""
        answer = self._model.predict(data) if params is None else self._model.predict(data, params)
        try:
            self.note(data, answer, params)
        except Exception as error:  # noqa: BLE001 - the recorder's, never the answer's
            self._recorder.lost(malformed=True)
            if not self._told:
                self._told = True
                _log.warning("a request could not be recorded: %r", error)
        return answer

    def note(self, data: Any, answer: Any, params: Mapping[str, Any] | None = None) -> None:
        """Record one request that was answered elsewhere."""
        given = "" if params is None else params.get("request_id")
        request_id = given or f"{self._recorder.source}-{next(self._numbers)}"
        if not self._id_column or self._id_column not in getattr(data, "columns", data):
            self._recorder.append(data, answer, self._version, request_id=str(request_id))
            return
        ids = [str(one) for one in data[self._id_column]]
        rest = (
            data.drop(columns=[self._id_column])
            if hasattr(data, "drop")
            else {name: values for name, values in data.items() if name != self._id_column}
        )
        self._recorder.append_together(rest, answer, ids, [1] * len(ids), self._version)

    def flush(self) -> None:
        """Write what waits, now."""
        self._recording.flush()

    def close(self) -> None:
        """Write what waits, and end."""
        self._recording.close()
