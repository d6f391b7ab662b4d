"""What every command shares: its terminal, its store and output options, its answer to errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click
from rich.console import Console

from governance.errors import ConfigurationError, GovernanceError, UnreachableError
from governance.settings import GOVERNED_PREFIX, Settings

__all__ = [
    "answer_errors",
    "console",
    "errors_console",
    "json_option",
    "optional_uri_option",
    "print_json",
    "settings_of",
    "uri_option",
]

_F = TypeVar("_F", bound=Callable[..., Any])
console = Console(highlight=False, soft_wrap=True)
errors_console = Console(stderr=True, highlight=False, soft_wrap=True)


def answer_errors(command: _F) -> _F:
    """Print a governance error in its own words and leave with its exit code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except GovernanceError as error:
            if kwargs.get("as_json"):
                print_json({"error": error.code, "message": error.message, "remedy": error.remedy})
            errors_console.print(f"[bold red]{error.code}[/]: ", end="")
            errors_console.print(error.message, markup=False)
            if error.remedy:
                errors_console.print(f"Remedy: {error.remedy}", markup=False)
            unavailable = isinstance(error, ConfigurationError | UnreachableError)
            sys.exit(3 if unavailable else 1)

    return wrapped  # type: ignore[return-value]


uri_option = click.option(
    "--uri",
    envvar=["MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"],
    required=True,
    show_envvar=True,
    help="Store: http://host:5000, governed+sqlite:///mlflow.db or governed+postgresql+psycopg://…",
)
optional_uri_option = click.option(
    "--uri", envvar=["MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"], show_envvar=True
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, sort_keys=True))


def settings_of(uri: str) -> Settings:
    return Settings.load(uri if uri.startswith(GOVERNED_PREFIX) else None)
