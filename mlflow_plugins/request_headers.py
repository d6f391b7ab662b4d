"""The headers that say who sends a request, from which code, within which trace.

========================  ================================================================
``X-Chancery-Actor``      ``CHANCERY_ACTOR``, else the operating-system user; a claim only
``X-Chancery-Code-Ref``   commit of the git checkout around the working directory, if any
``traceparent``           W3C trace context: the current OpenTelemetry span, else a new one
========================  ================================================================

MLflow asks for them at each request and loads this module while ``import mlflow`` is half done.
The class fits ``mlflow.tracking.request_header.abstract_request_header_provider`` by shape instead
of by inheritance: were this module to import MLflow, importing it first would make MLflow load it
half-made, and MLflow would drop the provider with a warning.
"""

from __future__ import annotations

import getpass
import os
import re
import secrets
from pathlib import Path
from urllib.parse import quote

__all__ = ["GovernanceHeaderProvider", "code_ref_of"]

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REF = re.compile(r"refs/[A-Za-z0-9_./@+#=-]+")
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


class GovernanceHeaderProvider:
    """An MLflow ``RequestHeaderProvider``."""

    def in_context(self) -> bool:
        return True

    def request_headers(self) -> dict[str, str]:
        headers = {"traceparent": _traceparent()}
        if actor := _actor():
            headers["X-Chancery-Actor"] = actor
        if code_ref := _code_ref():
            headers["X-Chancery-Code-Ref"] = code_ref
        return headers


def _actor() -> str | None:
    """Percent-encoded where a header cannot hold it; the server decodes."""
    name = os.environ.get("CHANCERY_ACTOR")
    if not name:
        try:
            name = getpass.getuser()
        except (KeyError, OSError):  # a container without a passwd entry
            return None
    return quote(name.strip(), safe=_PLAIN) or None


def _code_ref() -> str | None:
    try:
        return code_ref_of(Path.cwd())
    except OSError:  # the working directory is gone
        return None


def code_ref_of(directory: Path) -> str | None:
    """Commit checked out around ``directory``, read from git's files without starting git."""
    for place in (directory, *directory.parents):
        marker = place / ".git"
        if not marker.exists():
            continue
        try:
            return _head(marker)
        except (OSError, ValueError):
            return None
    return None


def _head(marker: Path) -> str | None:
    git = marker
    if marker.is_file():  # a worktree or submodule: "gitdir: <path>"
        git = marker.parent / marker.read_text().removeprefix("gitdir:").strip()
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return head if _COMMIT.fullmatch(head) else None
    ref = head.removeprefix("ref:").strip()
    if not _REF.fullmatch(ref) or ".." in ref:
        return None
    shared = git / "commondir"
    common = git / shared.read_text().strip() if shared.is_file() else git
    for base in (git, common):
        if (base / ref).is_file():
            commit = (base / ref).read_text().strip()
            return commit if _COMMIT.fullmatch(commit) else None
    packed = common / "packed-refs"
    if packed.is_file():
        for line in packed.read_text().splitlines():
            commit, _, name = line.partition(" ")
            if name == ref and _COMMIT.fullmatch(commit):
                return commit
    return None


def _traceparent() -> str:
    try:
        from opentelemetry.trace import get_current_span
    except ImportError:
        pass
    else:
        span = get_current_span().get_span_context()
        if span.is_valid:
            return f"00-{span.trace_id:032x}-{span.span_id:016x}-{int(span.trace_flags):02x}"
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"
