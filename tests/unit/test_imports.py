"""The arrows of docs/architecture.md, read from the source: who may import whom.

``governance ← train, serve, drift ← mlflow_plugins``, and no arrow between train, serve and drift.
Every import counts, also one inside a function or written as ``import_module("…")``. What MLflow
loads while ``import mlflow`` is half done must not import MLflow at its top, directly or through
our own modules: MLflow would drop the plugin with no more than a warning.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("governance", "train", "serve", "drift", "mlflow_plugins")
FORBIDDEN = {
    "governance": {
        "mlflow", "ray", "torch", "alibi_detect", "mlflow_plugins", "train", "serve", "drift",
    },
    "train": {"serve", "drift", "mlflow_plugins"},
    "serve": {"train", "drift", "mlflow_plugins"},
    "drift": {"train", "serve", "mlflow_plugins"},
}  # fmt: skip

PURE = {
    "drift": {
        "bins", "calibration", "components", "confidences", "cuts", "cutter", "documents",
        "embedding", "error_rate", "estimated", "fairness", "fitting", "group_counts",
        "intervals", "known_classes", "labels", "layout", "personal_groups", "profile",
        "psi", "quality", "rules", "sections", "seen_numbers", "sequential", "tables",
        "verdict", "window",
    },
    "serve": {
        "arm_config", "bets", "config", "coverage", "delta", "evidence", "judge", "parsing",
        "records", "rollout", "split", "wealth",
    },
}  # fmt: skip
"""Modules that decide: they import the standard library, pydantic, governance and each other."""
COMPUTE_WITH = {"drift": {"numpy", "scipy"}}
"""What the deciding modules of a room compute with."""

Import = tuple[int, str]
"""Line and full module name."""


def _named(node: ast.AST) -> Iterator[Import]:
    match node:
        case ast.Import(names=names):
            for alias in names:
                yield node.lineno, alias.name
        case ast.ImportFrom(level=0, module=str(module), names=names):
            yield node.lineno, module
            for alias in names:
                yield node.lineno, f"{module}.{alias.name}"
        case ast.Call(
            func=ast.Name(id="import_module" | "__import__")
            | ast.Attribute(attr="import_module" | "__import__"),
            args=[ast.Constant(value=str(module)), *_],
        ):
            yield node.lineno, module


def every_import(source: str) -> list[Import]:
    """All imports of a module, wherever they stand."""
    return [found for node in ast.walk(ast.parse(source)) for found in _named(node)]


def imports_at_load(source: str) -> list[Import]:
    """Imports that run when the module is loaded: not in functions, not for type checkers only."""

    def walk(node: ast.AST) -> Iterator[Import]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield from walk(other)
            return
        yield from _named(node)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    return list(walk(ast.parse(source)))


def violations(root: Path) -> list[str]:
    """``file:line: package imports module`` for every import against the arrows."""
    found = []
    for package, forbidden in FORBIDDEN.items():
        for file in sorted((root / package).rglob("*.py")):
            for line, module in every_import(file.read_text("utf-8")):
                if module.partition(".")[0] in forbidden:
                    place = file.relative_to(root)
                    found.append(f"{place}:{line}: {package} must not import {module}")
    return list(dict.fromkeys(found))


def _file_of(module: str) -> Path | None:
    """The source of one of our modules; None for anything else."""
    if module.partition(".")[0] not in PACKAGES:
        return None
    path = ROOT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _mlflow_at_load(module: str) -> list[str]:
    """Where loading ``module`` would import MLflow, through our own modules too."""
    found, seen, waiting = [], set(), [module]
    while waiting:
        name = waiting.pop()
        parents = [".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)]
        file = _file_of(name)
        if file is None or file in seen:
            continue
        seen.add(file)
        waiting += parents
        for line, imported in imports_at_load(file.read_text("utf-8")):
            if imported.partition(".")[0] == "mlflow":
                found.append(f"{file.relative_to(ROOT)}:{line}: imports {imported} at load")
            waiting.append(imported)
    return found


LOADED_WHEN_ASKED_FOR = {"mlflow.deployments"}
"""Groups whose modules MLflow loads when somebody names them, long after ``import mlflow``."""


def _plugin_modules() -> list[str]:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    return sorted(
        {
            target.partition(":")[0]
            for group, entries in points.items()
            if group.startswith("mlflow.") and group not in LOADED_WHEN_ASKED_FOR
            for target in entries.values()
        }
    )


def test_no_import_goes_against_the_arrows() -> None:
    assert not violations(ROOT), "\n" + "\n".join(violations(ROOT))


@pytest.mark.parametrize("package", sorted(PURE))
def test_what_decides_is_pure(package: str) -> None:
    allowed = {*sys.stdlib_module_names, "pydantic", "governance", *COMPUTE_WITH.get(package, ())}
    own = {f"{package}.{module}" for module in PURE[package]}
    foreign = [
        f"{package}/{module}.py:{line}: {package}.{module} must stay pure: {imported}"
        for module in sorted(PURE[package])
        for line, imported in every_import((ROOT / package / f"{module}.py").read_text("utf-8"))
        if imported.partition(".")[0] not in allowed
        and ".".join(imported.split(".")[:2]) not in own
    ]
    assert not foreign, "\n" + "\n".join(foreign)


def test_the_entry_module_imports_only_the_standard_library_at_the_top() -> None:
    source = (ROOT / "mlflow_plugins" / "entry.py").read_text("utf-8")
    foreign = [
        f"mlflow_plugins/entry.py:{line}: imports {module} at load"
        for line, module in imports_at_load(source)
        if module.partition(".")[0] not in sys.stdlib_module_names
    ]
    assert not foreign, "\n" + "\n".join(foreign)


@pytest.mark.parametrize("module", _plugin_modules())
def test_a_module_that_mlflow_loads_imports_no_mlflow_at_the_top(module: str) -> None:
    assert _file_of(module), f"pyproject.toml names {module}, which is not here"
    assert not _mlflow_at_load(module), "\n" + "\n".join(_mlflow_at_load(module))


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("import mlflow", 1),
        ("import json\nfrom mlflow.entities import Run", 2),
        ("def late():\n    import mlflow.tracking", 2),
        ("try:\n    pass\nexcept ImportError:\n    import mlflow_plugins.backend", 4),
        ("from importlib import import_module\n\nimport_module('ray.train')", 3),
        ("import importlib\nimportlib.import_module('serve.canary')", 2),
    ],
)
def test_an_offending_line_is_named(tmp_path: Path, source: str, line: int) -> None:
    (tmp_path / "governance" / "room").mkdir(parents=True)
    (tmp_path / "governance" / "room" / "bad.py").write_text(source)
    found = violations(tmp_path)
    assert found
    assert all(f.startswith(f"governance/room/bad.py:{line}: governance must not") for f in found)


def test_the_rooms_at_the_side_do_not_meet(tmp_path: Path) -> None:
    (tmp_path / "serve").mkdir()
    (tmp_path / "serve" / "router.py").write_text("import governance.errors\nfrom drift import x\n")
    assert violations(tmp_path) == [
        "serve/router.py:2: serve must not import drift",
        "serve/router.py:2: serve must not import drift.x",
    ]


def test_words_that_only_look_like_imports_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "governance").mkdir()
    (tmp_path / "governance" / "good.py").write_text(
        '"""import mlflow"""\nimport mlflowish\nfrom governance.train import serve\n'
    )
    assert violations(tmp_path) == []


def test_only_what_runs_at_load_counts_as_such() -> None:
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import mlflow\n"
        "def late():\n    import mlflow\n"
        "class C:\n    import requests\n"
    )
    assert [m for _, m in imports_at_load(source)] == ["typing", "typing.TYPE_CHECKING", "requests"]
