"""``--json`` means that standard output is one JSON document, whatever libraries print."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from serve import cli


class Noisy:
    """A port whose library tells of itself, as Ray does of its workers."""

    def list(self, **_: Any) -> list[Any]:
        print("(raylet) WARNING: 8 worker processes have been started")
        return []


def test_json_is_alone_on_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "open_deployments", lambda uri: Noisy())
    run = CliRunner().invoke
    done = run(cli.deploy, ["list", "--uri", "governed+sqlite:///x.db", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == []
    assert "(raylet)" in done.stderr
    plain = run(cli.deploy, ["list", "--uri", "governed+sqlite:///x.db"])
    assert "(raylet)" in plain.stdout
