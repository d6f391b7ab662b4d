"""A recorder at work: what it takes becomes blocks in a folder, by a thread of its own.

The thread empties the recorder every second, writes blocks into a spool on this disk, and delivers
them. While the folder cannot be written they stay in the spool, over restarts too: the spool of a
process that died is delivered by the next one that opens it.

Example::

    recording = Recording.open(Path("blocks"), recorder_of(profile), spool=Path("spool"))
    recording.recorder.append(rows, predictions, request_id="r-1")
    recording.close()
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np

from drift.bins import CategoryBins
from drift.block_store import BlockPlace, open_blocks
from drift.privacy_of import privacy_of
from drift.profile import DriftProfile
from drift.recorder import Recorder
from drift.spool import Spool
from governance.errors import ConfigurationError

__all__ = ["RECORD_SAMPLE", "RECORD_SPOOL", "Recording", "recorder_of", "share_of", "spool_of"]

RECORD_SAMPLE = "CHANCERY_RECORD_SAMPLE"
RECORD_SPOOL = "CHANCERY_RECORD_SPOOL"

_log = logging.getLogger(__name__)


def new_source() -> str:
    """A name for this life of this process, never used again."""
    host = "".join(c if c.isalnum() or c in "_-" else "-" for c in socket.gethostname())[:40]
    return f"{host.strip('-_') or 'host'}.{os.getpid()}.{secrets.token_hex(4)}"


def recorder_of(
    profile: DriftProfile,
    *,
    deployment: str = "",
    columns: Sequence[str] | None = None,
    sample: float = 1.0,
    source: str = "",
    **limits: Any,
) -> Recorder:
    """A recorder that lets leave what the profile says.

    Args:
        profile: Of the version.
        deployment: That answers.
        columns: Of arrays, in their order; None: the profile's.
        sample: Share of requests.
        source: Name of this life; made up where it is not given.
        limits: Of ``drift.recorder.Recorder``.
    """
    features = [column.name for column in profile.features]
    for one in profile.embeddings:
        features += [f"{one.name}.{place}" for place in range(one.width)]
    return Recorder(
        source or new_source(),
        model=profile.model,
        deployment=deployment,
        columns=features if columns is None else columns,
        outputs=[column.name for column in profile.outputs],
        categories=[one.name for one in profile.columns if isinstance(one.bins, CategoryBins)],
        vectors={one.name: one.width for one in profile.embeddings}
        | {one.name: 0 for one in profile.columns if one.pii == "mask"},
        privacy=privacy_of(profile),
        sample=sample,
        rng=np.random.default_rng(),
        **limits,
    )


def share_of(environ: Mapping[str, str]) -> float:
    """The share of requests that the settings ask for.

    Raises:
        ConfigurationError: it is none.
    """
    text = environ.get(RECORD_SAMPLE, "") or "1"
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise ConfigurationError(
            f"{RECORD_SAMPLE} is {text!r}", "write a share above 0 and at most 1, such as 0.1"
        )
    return share


def spool_of(environ: Mapping[str, str], place: BlockPlace) -> Path:
    """The folder of the spools for a place, on this machine."""
    named = environ.get(RECORD_SPOOL)
    root = Path(named) if named else Path(tempfile.gettempdir()) / f"chancery-spool-{os.getuid()}"
    meant = str(place.absolute() if isinstance(place, Path) else place)
    return root / blake2b(meant.encode(), digest_size=8).hexdigest()


class Recording:
    """See the module.

    Args:
        recorder: Takes rows.
        spool: Where its blocks wait.
        flush_s: Seconds between two looks.
        before: Called in the thread before each look.
    """

    def __init__(
        self,
        recorder: Recorder,
        spool: Spool,
        *,
        flush_s: float = 1.0,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        self.recorder = recorder
        self.spool = spool
        self._before = before
        self._flush_s = flush_s
        self._lock = -1
        self._ended = Event()
        self._thread = Thread(target=self._work, name="drift-recorder", daemon=True)
        self._trouble = ""

    @classmethod
    def open(
        cls,
        folder: BlockPlace,
        recorder: Recorder,
        *,
        spool: Path,
        flush_s: float = 1.0,
        before: Callable[[], object] = lambda: None,
    ) -> Recording:
        """Begin.

        Args:
            folder: Where blocks go.
            recorder: Takes rows.
            spool: For the blocks of this folder, on this machine; readable by this user alone.
            flush_s, before: See the class.

        Raises:
            OSError: the spool cannot be used.
        """
        destination = open_blocks(folder)
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = spool / recorder.source
        own.mkdir(mode=0o700)
        found = cls(recorder, Spool(own / "blocks", destination), flush_s=flush_s, before=before)
        found._lock = os.open(own / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(found._lock, fcntl.LOCK_EX)
        found._left = [path for path in spool.iterdir() if path != own]
        found._thread.start()
        return found

    _left: Sequence[Path] = ()
    """Spools of others, who may be dead."""

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits; what cannot be delivered in time stays in the spool."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def _work(self) -> None:
        while True:
            ended = self._ended.wait(self._flush_s)
            try:
                self.flush()
            except Exception:  # noqa: BLE001 - the thread must go on
                _log.exception("recording goes on; what was lost is counted")
            if ended:
                return

    def flush(self) -> None:
        """What waits, as blocks, on its way."""
        try:
            self._before()
        except Exception:  # noqa: BLE001 - what was taken before goes its way
            _log.exception("rows could not be looked at before they were recorded")
        for block in self.recorder.flush():
            if not self.spool.put(block):
                self.recorder.lost(block.rows)
        self.spool.deliver()
        if self.spool.last_error != self._trouble:
            self._trouble = self.spool.last_error
            _log.warning("blocks wait in the spool: %s", self._trouble or "no longer")
        left, self._left = self._left, ()
        for path in left:
            self._adopt(path)

    def _adopt(self, path: Path) -> None:
        """Deliver what a dead process left."""
        try:
            lock = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left = Spool(path / "blocks", self.spool.destination)
            while left.deliver():
                pass
            if left.waiting():
                self._left = (*self._left, path)  # not now
                return
            with suppress(OSError):
                (path / "lock").unlink()
                (path / "blocks").rmdir()
                path.rmdir()
        except OSError:
            return  # its process lives
        finally:
            os.close(lock)
