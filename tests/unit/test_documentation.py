"""What exists is documented, and what is documented exists.

docs/api.md must mention every event, error code, setting, entry point, command with its options,
and route, and no other; links and the files and tests that documents name must be there.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from governance import errors
from governance.cli import main
from governance.events import EventName

ROOT = Path(__file__).resolve().parents[2]
API = (ROOT / "docs" / "api.md").read_text("utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
ROOMS = ("governance", "mlflow_plugins", "serve", "drift")
OUR_SOURCES = [file for room in ROOMS for file in (ROOT / room).rglob("*.py")]
SHARED_OPTIONS = {"--uri", "--json", "--help"}


def _name(document: Path) -> str:
    return str(document.relative_to(ROOT))


def _code_words(text: str) -> set[str]:
    """What stands between single backticks."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)))


def _section(text: str, heading: str) -> str:
    """From a heading to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#|\Z)", text, re.M | re.S)
    return found[1] if found else ""


def _rows(*words: str) -> list[str]:
    """Lines of docs/api.md with all these words in backticks."""
    return [line for line in API.splitlines() if all(f"`{w}`" in line for w in words)]


# -- docs/api.md says what there is


@pytest.mark.parametrize("event", list(EventName), ids=str)
def test_event(event: EventName) -> None:
    row = next(iter(_rows(event.value)), "")
    assert row, f"docs/api.md does not mention the event {event.value}"
    waits = "yes" if event.awaits_checkpoint else "no"
    assert f"| {waits} |" in row, f"docs/api.md: does {event.value} wait for a checkpoint? {waits}"


def test_no_event_is_made_up() -> None:
    known = {event.value for event in EventName}
    told = {w for w in _code_words(API) if re.fullmatch(r"[a-z-]+:[a-z-]+:[a-z-]+", w)}
    assert told <= known, f"docs/api.md names events that do not exist: {told - known}"


@pytest.mark.parametrize("name", errors.__all__)
def test_error(name: str) -> None:
    kind = getattr(errors, name)
    row = next(iter(_rows(kind.code, name)), "")
    assert row, f"docs/api.md has no row with `{kind.code}` and `{name}`"
    assert f"| {kind.http_status} |" in row, f"docs/api.md: {kind.code} is {kind.http_status}"


def _settings_in_code() -> set[str]:
    return {
        word
        for file in OUR_SOURCES
        for word in re.findall(r"\bCHANCERY_[A-Z]+(?:_[A-Z]+)*\b", file.read_text("utf-8"))
    }


@pytest.mark.parametrize("setting", sorted(_settings_in_code()))
def test_setting(setting: str) -> None:
    assert _rows(setting), f"docs/api.md does not mention the setting {setting}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_no_setting_is_made_up(document: Path) -> None:
    told = set(re.findall(r"\bCHANCERY_[A-Z]+(?:_[A-Z]+)*\b", document.read_text("utf-8")))
    assert told <= _settings_in_code(), f"{_name(document)}: {told - _settings_in_code()}"


def _entry_points() -> Iterator[tuple[str, str, str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    yield from (("console_scripts", n, t) for n, t in project["scripts"].items())
    for group, entries in project["entry-points"].items():
        yield from ((group, name, target) for name, target in entries.items())


@pytest.mark.parametrize(("group", "name", "target"), list(_entry_points()))
def test_entry_point(group: str, name: str, target: str) -> None:
    assert _rows(group, name, target), (
        f"docs/api.md has no row with `{group}`, `{name}` and `{target}`"
    )


def _commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from _commands(below, f"{path} {name}")
    else:
        yield path, command


COMMANDS = dict(_commands(main, "chancery"))


@pytest.mark.parametrize("path", COMMANDS)
def test_command(path: str) -> None:
    section = _section(API, f"`{path}`")
    assert section, f"docs/api.md has no heading `{path}`"
    for parameter in COMMANDS[path].params:
        if isinstance(parameter, click.Argument):
            assert parameter.make_metavar(click.Context(COMMANDS[path])).strip("[]") in section
        elif not SHARED_OPTIONS & set(parameter.opts):
            missing = [o for o in parameter.opts if o not in section]
            assert not missing, f"docs/api.md: `{path}` does not explain {missing}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_no_command_is_made_up(document: Path) -> None:
    """Each ``chancery verb`` in code, in any document, is a command there is."""
    text = document.read_text("utf-8")
    blocks = re.findall(r"^```.*?^```", text, flags=re.M | re.S)
    groups = {name for name, below in main.commands.items() if isinstance(below, click.Group)}
    for code in [*_code_words(text), *(line for block in blocks for line in block.splitlines())]:
        for found in re.finditer(r"(?<![\w/.-])chancery ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?", code):
            first, second = found.groups()
            path = f"chancery {first} {second}" if first in groups and second else ""
            known = first in main.commands and (not path or path in COMMANDS)
            assert known, f"{_name(document)}: there is no `{found[0]}`"


def _routes() -> list[tuple[str, str]]:
    from mlflow_plugins.api.routes import build_router

    def no_backend() -> None:
        raise AssertionError("no route is called here")

    router = build_router(no_backend, no_backend, no_backend)  # type: ignore[arg-type]
    return [(method, r.path) for r in router.routes for method in sorted(r.methods)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("method", "path"), _routes())
def test_route(method: str, path: str) -> None:
    assert _rows(method, path), f"docs/api.md has no row with `{method}` and `{path}`"


def test_no_route_is_made_up() -> None:
    told = set(re.findall(r"^\| `(GET|POST|PUT|PATCH|DELETE)` \| `(/[^`]*)`", API, re.M))
    assert told == set(_routes())


# -- what documents point at is there


def _slug(heading: str) -> str:
    """As GitHub makes anchors."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_links(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(<?([^)>\s]+)>?\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{_name(document)}: {target} leads nowhere"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.M)
            assert anchor in map(_slug, headings), f"{_name(document)}: no heading {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_files_and_tests_that_are_named(document: Path) -> None:
    """```governance/gates/decide.py`` and ``tests/….py::test_name`` must be there."""
    for word in _code_words(document.read_text("utf-8")):
        found = re.fullmatch(
            r"((?:governance|mlflow_plugins|tests|examples|docs|benchmarks)/[\w./-]+\.\w+)"
            r"(?:::(\w+))?",
            word,
        )
        if not found:
            continue
        file = ROOT / found[1]
        assert file.is_file(), f"{_name(document)}: {found[1]} is not there"
        if found[2]:
            defined = re.search(rf"^\s*(?:def|class) {found[2]}\b", file.read_text("utf-8"), re.M)
            assert defined, f"{_name(document)}: {found[1]} has no {found[2]}"
