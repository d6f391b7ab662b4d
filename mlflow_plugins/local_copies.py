"""Verified copies of served versions on this disk: serving goes on while the registry is away.

``<CHANCERY_HOME>/copies`` holds a folder of files for each root digest, and for each version what
the registry last said of it. Only who says which bytes it wants (``governance.expected_bytes``, as
replicas do) reads or writes them.

- Nothing here is believed. Files are copied to a private folder and digested there at every load;
  they count only if they have the root digest that was asked for, which comes from the deployment
  and not from here. Who can write to this folder can take copies away, and no more than that.
- What the registry said last is verified again as if it had said it now: signatures, trust roots,
  dates. A revocation that was heard of is remembered and refuses the load, also offline.
- A copy that is damaged counts as none, and is removed.
- Copies that were not used for longest go first: `MOST` are kept, and a tenth of the disk stays
  free. A disk that is full costs the copy, not the load.

Example::

    copies = LocalCopies(settings.home / "copies")
    copies.remember(registry, "fraud", 3, release_text)
    copies.keep(root_digest, verified_folder)
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

from governance.canonical import Manifest, canonical_json, sha256_hex
from governance.errors import TamperedError
from mlflow_plugins.private_copy import copy_and_digest

__all__ = ["MOST", "LocalCopies"]

_log = logging.getLogger(__name__)

MOST = 32
_FREE = 10  # one part in so many of the disk is left alone


class LocalCopies:
    """See the module.

    Args:
        folder: Where they lie; made when something is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._files = folder / "files"
        self._said = folder / "said"

    def remember(self, registry: str, name: str, version: int, release: str) -> None:
        """Keep what the registry says of a version, in place of what it said before."""
        path = self._note(registry, name, version)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=".")
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(release)
            os.replace(partial, path)
        except OSError as error:
            _log.warning("what is known of models:/%s/%d is not kept: %s", name, version, error)

    def remembered(self, registry: str, name: str, version: int) -> str | None:
        """What the registry said last."""
        try:
            return self._note(registry, name, version).read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def _note(self, registry: str, name: str, version: int) -> Path:
        return self._said / f"{sha256_hex(canonical_json([registry, name, version]))}.json"

    def copy_to(self, target: Path, root_digest: str) -> Manifest | None:
        """The files with this digest, copied and digested again; None: there are none.

        Args:
            target: A private folder, empty; so it is again when the answer is None.
            root_digest: What they must have.
        """
        source = self._files / root_digest
        try:
            found = copy_and_digest(source, target)
            os.utime(source)
        except FileNotFoundError:  # never kept, or just removed by another process
            _empty(target)
            return None
        except (OSError, TamperedError) as error:
            why = str(error)
        else:
            if found.root_digest == root_digest:
                return found
            why = "it has other bytes"
        _log.warning("the local copy %s is removed: %s", source, why)
        shutil.rmtree(source, ignore_errors=True)
        _empty(target)
        return None

    def keep(self, root_digest: str, verified: Path) -> None:
        """Copy verified files here; does nothing where they are already, or no room is left."""
        kept = self._files / root_digest
        if kept.is_dir():
            return
        partial: Path | None = None
        try:
            self._files.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._make_room(sum(f.stat().st_size for f in verified.rglob("*"))):
                _log.warning("no room for a copy of %s in %s", verified, self._files)
                return
            partial = Path(tempfile.mkdtemp(dir=self._files, prefix="."))
            copy_and_digest(verified, partial / "model")
            os.rename(partial / "model", kept)  # complete, or not there
        except (OSError, TamperedError) as error:
            if not kept.is_dir():  # else another process was first
                _log.warning("no copy of %s is kept: %s", verified, error)
        finally:
            if partial is not None:
                shutil.rmtree(partial, ignore_errors=True)

    def _make_room(self, size: int) -> bool:
        """Whether so many bytes may be written, after older copies went."""
        copies = [path for path in self._files.iterdir() if not path.name.startswith(".")]
        oldest_first = sorted(copies, key=lambda path: path.stat().st_mtime)
        disk = shutil.disk_usage(self._files)
        while len(oldest_first) >= MOST or disk.free - size < disk.total // _FREE:
            if not oldest_first:
                return False
            shutil.rmtree(oldest_first.pop(0), ignore_errors=True)
            disk = shutil.disk_usage(self._files)
        return True


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
