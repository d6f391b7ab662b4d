"""The real MLflow UI, driven by Chromium, in front of a governed server (AC-3)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, Request, expect, sync_playwright

from tests.conftest import Server, StartServer
from tests.scenario import Scenario

CHROMIUM = Path("/usr/bin/chromium")
IMAGES = Path(__file__).parents[2] / "docs" / "images"
# Read here, since no test sees the CHANCERY_ variables of the developer's shell.
KEEP_SCREENSHOTS = os.environ.get("CHANCERY_KEEP_SCREENSHOTS") == "1"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip
# MLflow opens its chat assistant beside the page on the first visit; tell it that it already did.
CLOSE_ASSISTANT = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""
ALIAS_ROUTE = "/mlflow/registered-models/alias"


@pytest.fixture
def page() -> Iterator[Page]:
    """A fresh browser profile; nothing but loopback can be reached from it."""
    if not CHROMIUM.exists():
        pytest.fail(f"{CHROMIUM} is not installed; run `make system`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 720}, locale="en-US")
        page.add_init_script(CLOSE_ASSISTANT)
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        yield page
        browser.close()


@pytest.fixture
def governed(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Server, Scenario]:
    home = tmp_path / "chancery"
    server = start_server(environment={"CHANCERY_HOME": str(home)})
    monkeypatch.setenv("CHANCERY_HOME", str(tmp_path / "client"))
    return server, Scenario(server.uri, home)


def keep(page: Page, folder: Path, name: str) -> None:
    """A screenshot in the test's folder, and among the documentation's images if asked."""
    taken = folder / name
    page.screenshot(path=taken, animations="disabled")
    assert taken.stat().st_size < 300_000
    if KEEP_SCREENSHOTS:
        IMAGES.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(taken, IMAGES / name)


def version_page(page: Page, server: Server, version: int) -> Locator:
    """Open the model version's page; its main part."""
    page.goto(f"{server.uri}/#/models/fraud/versions/{version}")
    main = page.get_by_role("main")
    expect(main.get_by_role("heading", name=f"Version {version}")).to_be_visible()
    return main


def aliases_cell(page: Page, version: int) -> Locator:
    """The version's cell under "Aliases" in the table of the registered model's page."""
    row = page.get_by_role("row").filter(has_text=f"Version {version}")
    expect(row).to_be_visible()
    headers = page.get_by_role("columnheader").all_inner_texts()
    return row.get_by_role("cell").nth([h.strip() for h in headers].index("Aliases"))


def alias_dialog(page: Page, version: int) -> Locator:
    dialog = page.get_by_role("dialog", name=f"alias for model version {version}")
    expect(dialog).to_be_visible()
    return dialog


def add_alias(page: Page, dialog: Locator, alias: str) -> int:
    """Type the alias into the dialog and save; the status of the server's answer."""
    dialog.get_by_role("combobox").fill(alias)
    page.keyboard.press("Enter")
    expect(shown(dialog, alias)).to_be_visible()

    def sets_alias(request: Request) -> bool:
        return request.method == "POST" and request.url.endswith(ALIAS_ROUTE)

    with page.expect_request(sets_alias) as sent:
        dialog.get_by_role("button", name="Save aliases").click()
    answer = sent.value.response()
    assert answer is not None
    return answer.status


def shown(place: Locator, alias: str) -> Locator:
    """The alias as a badge."""
    return place.get_by_role("status", name=alias, exact=True)


def expect_refusal(dialog: Locator, version: int) -> None:
    alert = dialog.get_by_role("alert")
    expect(alert).to_contain_text("PROMOTION_DENIED")
    expect(alert).to_contain_text(f"models:/fraud/{version}")
    expect(alert).to_contain_text(f"chancery request models:/fraud/{version} --to prod")
    expect(alert).to_be_in_viewport(ratio=1)


def test_the_version_page_refuses_an_unapproved_alias_and_sets_an_approved_one(
    governed: tuple[Server, Scenario], page: Page, tmp_path: Path
) -> None:
    server, scenario = governed
    version = scenario.train()

    main = version_page(page, server, version)
    main.get_by_role("button", name="Add", exact=True).click()
    dialog = alias_dialog(page, version)
    assert add_alias(page, dialog, "champion") == 403
    expect_refusal(dialog, version)
    keep(page, tmp_path, "alias-refused.png")
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()
    expect(main.get_by_role("button", name="Add", exact=True)).to_be_visible()
    expect(shown(main, "champion")).to_have_count(0)
    page.reload()
    expect(main.get_by_role("button", name="Add", exact=True)).to_be_visible()
    expect(shown(main, "champion")).to_have_count(0)
    assert scenario.alias("champion") is None

    scenario.promote(version, "challenger", "staging")
    scenario.clear(version, "prod")
    page.reload()
    expect(shown(main, "challenger")).to_be_visible()
    main.get_by_role("button", name="Edit aliases").click()
    dialog = alias_dialog(page, version)
    assert add_alias(page, dialog, "champion") == 200
    expect(dialog).to_be_hidden()
    expect(shown(main, "champion")).to_be_visible()
    expect(shown(main, "challenger")).to_be_visible()
    keep(page, tmp_path, "alias-allowed.png")
    page.reload()
    expect(shown(main, "champion")).to_be_visible()
    assert scenario.alias("champion") == version


def test_the_model_page_refuses_an_unapproved_alias_and_sets_an_approved_one(
    governed: tuple[Server, Scenario], page: Page
) -> None:
    server, scenario = governed
    version = scenario.train()

    page.goto(f"{server.uri}/#/models/fraud")
    cell = aliases_cell(page, version)
    cell.get_by_role("button").click()
    dialog = alias_dialog(page, version)
    assert add_alias(page, dialog, "champion") == 403
    expect_refusal(dialog, version)
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()
    page.reload()  # this page of MLflow's does not fetch the aliases again by itself
    expect(cell.get_by_role("button")).to_be_visible()
    expect(shown(cell, "champion")).to_have_count(0)
    assert scenario.alias("champion") is None

    scenario.promote(version, "challenger", "staging")
    scenario.clear(version, "prod")
    page.reload()
    expect(shown(cell, "challenger")).to_be_visible()
    cell.get_by_role("button").click()
    dialog = alias_dialog(page, version)
    assert add_alias(page, dialog, "champion") == 200
    expect(dialog).to_be_hidden()
    page.reload()
    expect(shown(cell, "champion")).to_be_visible()
    assert scenario.alias("champion") == version
