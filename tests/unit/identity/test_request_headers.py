"""The header provider, and that MLflow loads both providers without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from mlflow_plugins.request_facts import RequestFacts
from mlflow_plugins.request_headers import GovernanceHeaderProvider, code_ref_of


def git(*arguments: str, cwd: Path) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    place = tmp_path / "repository"
    place.mkdir()
    git("init", "-q", "-b", "main", cwd=place)
    git("commit", "-q", "--allow-empty", "-m", "one", cwd=place)
    return place


@pytest.mark.parametrize("state", ["branch", "detached", "packed", "below", "worktree"])
def test_the_commit_is_what_git_says(repository: Path, state: str) -> None:
    place = repository
    if state == "detached":
        git("checkout", "-q", "--detach", cwd=place)
    if state == "packed":
        git("pack-refs", "--all", cwd=place)
    if state == "below":
        place = repository / "a" / "b"
        place.mkdir(parents=True)
    if state == "worktree":
        place = repository.parent / "worktree"
        git("worktree", "add", "-q", str(place), "-b", "feature/x", cwd=repository)
        git("commit", "-q", "--allow-empty", "-m", "two", cwd=place)
    assert code_ref_of(place) == git("rev-parse", "HEAD", cwd=place).strip()


def test_no_commit_is_no_header_and_no_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert code_ref_of(tmp_path) is None
    (tmp_path / ".git").mkdir()
    assert code_ref_of(tmp_path) is None
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/../../../../etc/passwd")
    assert code_ref_of(tmp_path) is None
    (tmp_path / ".git" / "HEAD").write_bytes(b"\xff\xfe")
    assert code_ref_of(tmp_path) is None
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "X-Chancery-Code-Ref" not in GovernanceHeaderProvider().request_headers()


@pytest.mark.parametrize("name", ["alice", "Jürgen 100%", "a\r\nEvil: 1", "李"])
def test_a_name_survives_the_header(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("CHANCERY_ACTOR", name)
    value = GovernanceHeaderProvider().request_headers()["X-Chancery-Actor"]
    assert value.isascii()
    assert value.isprintable()
    if name.isprintable():
        scope = {"method": "GET", "path": "/", "headers": [(b"x-chancery-actor", value.encode())]}
        assert RequestFacts(scope).claimed_actor == name


def test_the_trace_is_the_current_span_s_or_a_new_one() -> None:
    provider = GovernanceHeaderProvider()
    first, second = (provider.request_headers()["traceparent"] for _ in range(2))
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", first)
    assert first != second
    span = NonRecordingSpan(SpanContext(0xA, 0xB, is_remote=False, trace_flags=TraceFlags(1)))
    with trace.use_span(span):
        assert provider.request_headers()["traceparent"] == f"00-{0xA:032x}-{0xB:016x}-01"


@pytest.mark.parametrize(
    "first", ["mlflow", "mlflow_plugins.request_headers", "mlflow_plugins.request_auth"]
)
def test_mlflow_loads_both_providers_without_a_warning(first: str, tmp_path: Path) -> None:
    program = (
        f"import {first}, mlflow\n"
        "from mlflow.tracking.request_auth.registry import _request_auth_provider_registry as a\n"
        "from mlflow.tracking.request_header.registry import "
        "_request_header_provider_registry as h\n"
        "print(sorted(type(p).__name__ for r in (a, h) for p in r "
        "if type(p).__module__.startswith('mlflow_plugins')))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "['GovernanceHeaderProvider', 'SignedRequestAuthProvider']"
    assert done.stderr == ""
