"""What several of these modules start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Server, servers
from tests.integration.served import POLICY, Served
from tests.scenario import Scenario


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path
) -> Iterator[tuple[Server, Path]]:
    """One server for the module, and its state directory."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "policy.yaml").write_text(POLICY)
    home = folder / "chancery"
    with servers(folder, sqlite_template) as start:
        here = {"CHANCERY_HOME": str(home), "CHANCERY_POLICY": str(folder / "policy.yaml")}
        server = start(environment=here)
        scenario = Scenario(server.uri, home)
        scenario.train()
        scenario.train()
        yield server, home


@pytest.fixture
def served(running: tuple[Server, Path], monkeypatch: pytest.MonkeyPatch) -> Served:
    """The server, with nothing deployed."""
    server, home = running
    # This process opens the server's database too, as its controllers would.
    monkeypatch.setenv("CHANCERY_HOME", str(home))
    monkeypatch.setenv("CHANCERY_POLICY", str(home.parent / "policy.yaml"))
    monkeypatch.setenv("CHANCERY_ACTOR", "ann")
    served = Served(server, Scenario(server.uri, home))
    for record in served.database.list():
        served.database.end(record.deploy_id, "another test begins")
    served.before = len(served.get("/serve?ended=true")["deployments"])
    served.events_before = len(served.events())
    return served
