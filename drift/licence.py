"""Which backend may run: Alibi Detect's licence, kept.

Alibi Detect is, since 0.12, under the Business Source License 1.1: free for non-production use
only; production needs a licence from its owner. So in production mode (``CHANCERY_MODE``) the
native backend stands in, and every finding says so, until somebody who holds a licence sets

    CHANCERY_ALIBI_LICENCE=acknowledged

Elsewhere the backend asked for is used. A process that would run Alibi Detect asks once more
(``require``), whoever starts it. This is a reminder for the operator, no legal advice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from drift.detector import Backend
from governance.errors import ConfigurationError
from governance.settings import Settings

__all__ = ["ALIBI_LICENCE", "Choice", "choose", "require"]

ALIBI_LICENCE = "CHANCERY_ALIBI_LICENCE"
_ACKNOWLEDGED = "acknowledged"


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend that runs; what findings say of it, empty where it is the one asked for."""

    backend: Backend
    note: str = ""


def choose(wanted: str, environ: Mapping[str, str] = os.environ) -> Choice:
    """Which backend runs when a model's configuration asks for one.

    Raises:
        ConfigurationError: there is no such backend; a setting has a value that means nothing.
    """
    try:
        backend = Backend(wanted)
    except ValueError:
        raise ConfigurationError(
            f"there is no drift backend {wanted!r}", "write native or alibi"
        ) from None
    said = environ.get(ALIBI_LICENCE, "")
    if said not in ("", _ACKNOWLEDGED):
        raise ConfigurationError(
            f"{ALIBI_LICENCE} is {said!r}",
            f"set it to {_ACKNOWLEDGED!r} if you hold a licence for production use, or unset it",
        )
    if backend is Backend.ALIBI and not said and Settings.load(environ=environ).production:
        return Choice(
            Backend.NATIVE,
            "native instead of alibi: Alibi Detect's licence (BSL 1.1) allows production use "
            f"only with a licence of its own, and {ALIBI_LICENCE} does not say there is one",
        )
    return Choice(backend)


def require(environ: Mapping[str, str] = os.environ) -> None:
    """Raises where Alibi Detect may not run.

    Raises:
        ConfigurationError: production mode, and nobody said that there is a licence.
    """
    note = choose(Backend.ALIBI, environ).note
    if note:
        raise ConfigurationError(
            f"Alibi Detect does not start in production: {note.removeprefix('native instead of ')}",
            f"use backend: native, or set {ALIBI_LICENCE}={_ACKNOWLEDGED} if you hold a licence",
        )
