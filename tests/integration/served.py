"""A real server with two versions to deploy."""

from __future__ import annotations

from typing import Any

import requests
from click.testing import CliRunner, Result

from governance.cli import main
from governance.deployment_port import open_deployments
from mlflow_plugins.governor import Governor
from tests.conftest import Server
from tests.scenario import Scenario

POLICY = """\
version: 1
environments:
  - {name: sandbox}
  - name: strict
    aliases: [champion]
    requires: {actor_proof: signed, after: null}
"""


class Served:
    """A governed server with two versions of *fraud*."""

    def __init__(self, server: Server, scenario: Scenario) -> None:
        self.server = server
        self.scenario = scenario
        self.port = open_deployments(server.uri)
        self.database = open_deployments(server.store)
        self.before = self.events_before = 0

    def made(self) -> list[dict[str, Any]]:
        """Every deployment since the test began, newest first."""
        found: list[dict[str, Any]] = self.get("/serve?ended=true")["deployments"]
        return found[: len(found) - self.before]

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        url = f"{self.server.uri}/api/3.0/chancery{path}"
        return requests.post(url, **({"json": body} | options), timeout=60)

    def get(self, path: str) -> Any:
        answer = requests.get(f"{self.server.uri}/api/3.0/chancery{path}", timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def chancery(self, *args: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, ["deploy", *args, "--uri", self.server.uri])
        assert result.exit_code == code, (result.output, result.stderr, result.exception)
        return result

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """Those of a kind on the ledger, since the test began."""
        Governor.of(self.server.store).ledger.sequence()
        found = self.scenario.events()[self.events_before :]
        return [event for event in found if event["type"].startswith(kind)]
