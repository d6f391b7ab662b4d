"""Where the files of a subject lie below a common folder.

``<root>/<model>/<version>/<deployment>``, each name as one part of a path: what is no letter,
digit, ``_``, ``-`` or ``.`` is percent-encoded. A subject without deployment has ``_``.

Example::

    blocks_folder(Path("blocks"), "fraud", 7, "")     # blocks/fraud/7/_
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from drift.block_store import BlockPlace, below

__all__ = ["blocks_folder", "subject_folder"]


def subject_folder(root: Path, model: str, version: int | str, deployment: str) -> Path:
    """Of anything local: profiles, reports."""
    return root.joinpath(*_parts(model, version, deployment))


def blocks_folder(
    root: BlockPlace | None, model: str, version: int | str, deployment: str
) -> BlockPlace:
    """Of what recorders deliver."""
    assert root is not None
    return below(root, *_parts(model, version, deployment))


def _parts(model: str, version: int | str, deployment: str) -> list[str]:
    return [_part(part) for part in (model, str(version), deployment or "_")]


def _part(text: str) -> str:
    found = quote(text, safe="")
    return found.replace(".", "%2E") if set(found) == {"."} else found
