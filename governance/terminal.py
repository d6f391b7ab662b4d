"""What every command shares: its terminal, its store and output options, its answer to errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from functools import wraps
from typing import IO, Any, NoReturn, TypeVar

import click
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from governance.errors import ConfigurationError, GovernanceError, UnreachableError
from governance.settings import GOVERNED_PREFIX, Settings

__all__ = [
    "JsonGroup",
    "answer_errors",
    "console",
    "errors_console",
    "json_alone",
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
    """Print an error in its own words and leave with its exit code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except GovernanceError as error:
            _leave(error, as_json=bool(kwargs.get("as_json")))
        except BrokenPipeError:
            raise  # whoever read our output has left: click knows what to do
        except SQLAlchemyError as error:
            _leave(_of_database(error), as_json=bool(kwargs.get("as_json")))
        except OSError as error:
            _leave(_of_file(error), as_json=bool(kwargs.get("as_json")))

    return wrapped  # type: ignore[return-value]


def _leave(error: GovernanceError, *, as_json: bool) -> NoReturn:
    if as_json:
        print_json({"error": error.code, "message": error.message, "remedy": error.remedy})
    errors_console.print(f"[bold red]{error.code}[/]: ", end="")
    errors_console.print(error.message, markup=False)
    if error.remedy:
        errors_console.print(f"Remedy: {error.remedy}", markup=False)
    sys.exit(3 if isinstance(error, ConfigurationError | UnreachableError) else 1)


def _of_database(error: SQLAlchemyError) -> GovernanceError:
    reason = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
    return UnreachableError(
        f"the database cannot be used: {reason}",
        "start it, or correct the address in --uri",
    )


def _of_file(error: OSError) -> GovernanceError:
    what = f"{error.filename}: " if error.filename else ""
    return ConfigurationError(f"{what}{error.strerror or error}", "correct the path, or its rights")


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


_WANTS_JSON = f"{__name__}.json"
_json_out: ContextVar[IO[str] | None] = ContextVar("json_out", default=None)


@contextmanager
def json_alone() -> Iterator[None]:
    """Standard output is ``print_json``'s alone; what libraries print goes to standard error."""
    token = _json_out.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _json_out.reset(token)


class JsonGroup(click.Group):
    """Commands with ``--json`` have standard output to themselves (``json_alone``)."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_WANTS_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        if not ctx.meta[_WANTS_JSON]:
            return super().invoke(ctx)
        with json_alone():
            return super().invoke(ctx)


def print_json(document: Any) -> None:
    """The one JSON document on standard output."""
    click.echo(json.dumps(document, indent=2, sort_keys=True), file=_json_out.get())


def settings_of(uri: str) -> Settings:
    """The settings for a store; those of a client when it is not a database."""
    return Settings.load(uri if uri.startswith(GOVERNED_PREFIX) else None)
