"""Where blocks and states of a subject lie below a common folder.

``<root>/<model>/<version>/<deployment>``, each name as one part of a path: what is no letter,
digit, ``_``, ``-`` or ``.`` is percent-encoded. A subject without deployment has ``_``.

Example::

    blocks_folder(Path("blocks"), "fraud", 7, "")     # blocks/fraud/7/_
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

__all__ = ["blocks_folder", "subject_folder"]


def subject_folder(root: Path, model: str, version: int | str, deployment: str) -> Path:
    """Of a monitor's state."""
    return root.joinpath(*(_part(part) for part in (model, str(version), deployment or "_")))


def blocks_folder(root: Path | None, model: str, version: int | str, deployment: str) -> Path:
    """Of what recorders deliver."""
    assert root is not None
    return subject_folder(root, model, version, deployment)


def _part(text: str) -> str:
    found = quote(text, safe="")
    return found.replace(".", "%2E") if set(found) == {"."} else found
