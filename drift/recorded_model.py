"""A recorded model as an MLflow model: for ``mlflow models serve`` and whatever else loads it.

The logged model wraps another one and its drift profile. Where it is loaded on a machine whose
setting ``CHANCERY_RECORD_TO`` names a folder, what it answers is recorded there; elsewhere it only
answers. Its version is the one it was loaded as (``models:/fraud/7``): a model that was loaded from
a path has none, and is not recorded.

This module imports MLflow.

Example::

    mlflow.pyfunc.log_model(
        name="model",
        **recorded_model("models:/m-0123", Path("drift_profile.json")),
        signature=signature,
    )
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import mlflow.pyfunc
import yaml

from drift.block_store import place_of
from drift.profile import DriftProfile
from drift.pyfunc_recorder import RecordedModel, recorded
from governance.errors import GovernanceError
from governance.recording_port import RECORD_TO

__all__ = ["RecordedPythonModel", "recorded_model"]

_log = logging.getLogger(__name__)

_META = "registered_model_meta"
_WRITE_S = 5.0  # to write what waits when the process is told to end


def recorded_model(model_uri: str, profile: Path, id_column: str = "") -> dict[str, Any]:
    """Arguments of ``mlflow.pyfunc.log_model`` and ``save_model``.

    Args:
        model_uri: Of the model that answers.
        profile: File with its drift profile.
        id_column: See ``drift.pyfunc_recorder``.
    """
    return {
        "python_model": RecordedPythonModel(id_column),
        "artifacts": {"model": model_uri, "drift_profile": str(profile)},
    }


class RecordedPythonModel(mlflow.pyfunc.PythonModel):
    """Answers as the model inside does, and records it.

    Args:
        id_column: See ``drift.pyfunc_recorder``.
    """

    def __init__(self, id_column: str = "") -> None:
        self._id_column = id_column
        self._model: Any = None

    def load_context(self, context: Any) -> None:
        """Load the model inside; record if this machine is told to."""
        place = Path(context.artifacts["model"])
        self._model = mlflow.pyfunc.load_model(str(place))
        to = os.environ.get(RECORD_TO, "")
        if not to:
            return
        try:
            profile = DriftProfile.from_json(Path(context.artifacts["drift_profile"]).read_bytes())
            version = _version(Path(context.artifacts["drift_profile"]))
            if not version:
                _log.warning("the model is not recorded: load it as models:/<name>/<version>")
                return
            found = recorded(
                self._model, profile, version=version, to=place_of(to), id_column=self._id_column
            )
        except (GovernanceError, OSError) as error:
            _log.warning("the model is not recorded: %s", error)
            return
        self._model = found
        atexit.register(found.close)
        _write_when_terminated(found)

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        """The answer of the model inside."""
        del context
        return self._model.predict(model_input, params)


def _write_when_terminated(model: RecordedModel) -> None:
    """Write what waits when the process is told to end.

    A server that handles ``SIGTERM`` itself has the signal kill the process at last (uvicorn does),
    and no exit function runs. Requests that are still being answered may go unrecorded.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # whoever serves from another thread sees to the end of it, too
    before = signal.getsignal(signal.SIGTERM)

    def ended(number: int, stack: FrameType | None) -> None:
        # In another thread and for so long: this one may have been interrupted while it records.
        writing = threading.Thread(target=model.flush, name="drift-recorder-end", daemon=True)
        writing.start()
        writing.join(_WRITE_S)
        if callable(before):
            before(number, stack)
        elif before is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    signal.signal(signal.SIGTERM, ended)


def _version(inside: Path) -> str:
    """The version that a folder was loaded as; empty: it does not say."""
    for folder in list(inside.parents)[:4]:
        try:
            found = yaml.safe_load((folder / _META).read_text("utf-8"))
            return str(found["model_version"])
        except (OSError, KeyError, TypeError, yaml.YAMLError):
            continue
    return ""
