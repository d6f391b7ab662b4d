"""Records what model replicas answer: the implementation of ``governance.recording_port``.

The profile of a version says which columns there are and what of personal ones may leave: the one
among its registered files, which is verified as every load is, or, where
``CHANCERY_RECORD_PROFILES`` names a folder, ``<model>/<version>.json`` in it. Without a profile
nobody said so, and nothing is recorded.

In the way of answers only references are kept. Requests that came as bytes are read in the
recorder's thread; their room is bounded by number and bytes.

Example::

    recorder = open_recorder(ServedModel("fraud", "7"), os.environ)
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from drift.bins import CategoryBins
from drift.block_store import BlockPlace, place_of
from drift.model_profile import load_profile
from drift.places import blocks_folder, subject_folder
from drift.profile import DriftProfile
from drift.recorder import Recorder, RecorderCounts
from drift.recording import Recording, recorder_of, share_of, spool_of
from drift.served_bodies import predictions_in, rows_in
from governance.errors import ConfigurationError
from governance.recording_port import RECORD_TO, ServedModel

__all__ = ["RECORD_PROFILES", "ServedRecorder", "open_recorder", "profile_for"]

RECORD_PROFILES = "CHANCERY_RECORD_PROFILES"

_log = logging.getLogger(__name__)

_MOST_BODIES = 2_000
_MOST_BYTES = 32 << 20


def profile_for(model: str, version: str, environ: Mapping[str, str]) -> DriftProfile:
    """The profile that says what may leave.

    Raises:
        ConfigurationError: there is none in the folder that the settings name.
        GovernanceError: there is none among the version's files, or it is another model's, or none.
    """
    root = environ.get(RECORD_PROFILES)
    if not root:
        return load_profile(f"models:/{model}/{version}").profile
    folder = subject_folder(Path(root), model, version, "").parent
    place = folder.with_name(f"{folder.name}.json")
    if not place.is_file():
        raise ConfigurationError(
            f"no drift profile says what of {model!r} version {version!r} may be recorded",
            f"put it into the folder that {RECORD_PROFILES} names, as <model>/<version>.json, or "
            "leave the setting out: then it is the one among the version's registered files",
        )
    profile = DriftProfile.from_json(place.read_bytes())
    profile.require(model)
    return profile


def open_recorder(served: ServedModel, environ: Mapping[str, str]) -> ServedRecorder | None:
    """See ``governance.recording_port``; None: recording is off.

    Raises:
        ConfigurationError: the settings are wrong, or there is no profile.
        OSError: spool or profile cannot be used.
    """
    target = environ.get(RECORD_TO, "")
    if not target:
        return None
    profile = profile_for(served.model, served.version, environ)
    recorder = recorder_of(
        profile,
        deployment=served.deployment,
        columns=served.columns,
        sample=share_of(environ),
    )
    place = blocks_folder(place_of(target), served.model, served.version, served.deployment)
    texts = [one.name for one in profile.features if isinstance(one.bins, CategoryBins)]
    return ServedRecorder(served, recorder, place, spool_of(environ, place), texts=texts)


class ServedRecorder:
    """See the module.

    Args:
        served: What answers.
        recorder: Takes rows.
        place: Where blocks go.
        spool: Where they wait.
        texts: Columns of CSV that are no numbers.
        flush_s: Seconds between two looks.
    """

    def __init__(
        self,
        served: ServedModel,
        recorder: Recorder,
        place: BlockPlace,
        spool: Path,
        *,
        texts: Collection[str] = (),
        flush_s: float = 1.0,
    ) -> None:
        self._version = served.version
        self._texts = frozenset(texts)
        self._recorder = recorder
        self._bodies: deque[tuple[str | None, bytes, bytes, str]] = deque()
        self._bytes = 0
        self._lock = Lock()
        self._recording = Recording.open(
            place, recorder, spool=spool, flush_s=flush_s, before=self._read
        )

    @property
    def counts(self) -> RecorderCounts:
        return self._recorder.counts

    def served(
        self, rows: Any, predictions: Any, request_ids: Sequence[str], counts: Sequence[int]
    ) -> None:
        """Rows of one or several requests."""
        self._recorder.append_together(
            rows, predictions, request_ids, counts, version=self._version
        )

    def exactly(
        self, content_type: str | None, body: bytes, answer: bytes, request_id: str
    ) -> None:
        """A request as it came."""
        size = len(body) + len(answer)
        with self._lock:
            if len(self._bodies) < _MOST_BODIES and self._bytes + size <= _MOST_BYTES:
                self._bodies.append((content_type, body, answer, request_id))
                self._bytes += size
                return
        self._recorder.lost()

    def _read(self) -> None:
        """In the recorder's thread: requests as rows."""
        with self._lock:
            bodies, self._bodies = self._bodies, deque()
            self._bytes = 0
        for content_type, body, answer, request_id in bodies:
            try:
                rows, said = rows_in(content_type, body, self._texts), predictions_in(answer)
                self._recorder.append(rows, said, self._version, request_id=request_id)
            except Exception:  # noqa: BLE001 - whatever a client sent; the next is read
                self._recorder.lost(malformed=True)

    def close(self) -> None:
        """Write what waits."""
        self._recording.close()
