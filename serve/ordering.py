"""From what people type to what is ordered: canaries, amounts, and who starts the controller.

Example::

    canary_text("5%", None)          # the whole configuration, as JSON
    launch = launcher(uri, "auto")   # None against a server: its operator starts controllers
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from governance.deployment_records import DeploymentRecord
from governance.errors import ConfigurationError, RefusedError
from governance.settings import GOVERNED_PREFIX
from serve.canaries import stored
from serve.parsing import load_canary, parse_canary

__all__ = ["amounts", "canary_text", "is_database", "launcher", "require_database"]


def is_database(uri: str) -> bool:
    """Whether the store is a database, and not a server in front of one."""
    return uri.startswith(GOVERNED_PREFIX)


def require_database(uri: str) -> None:
    """Controllers work on the database: they go on while a server is away.

    Raises:
        ConfigurationError: the store is something else.
    """
    if not is_database(uri):
        raise ConfigurationError(
            f"controllers are started beside the database, not through {uri}",
            "name the database: --uri governed+sqlite:///… or governed+postgresql+psycopg://…",
        )


def canary_text(canary: str | None, config: Path | None) -> str | None:
    """The checked configuration as JSON text; nothing is written before it is right.

    Args:
        canary: ``5%``, steps, or a YAML file; may be None.
        config: A YAML file; may be None.

    Raises:
        ConfigurationError: names what is wrong and how to put it right.
    """
    if config is None:
        return None if canary is None else stored(parse_canary(canary))
    found = load_canary(config)
    if canary is None:
        return stored(found)
    if found.model_fields_set & {"steps", "weights"}:
        raise ConfigurationError(
            f"{config} and --canary both say how much the canary gets",
            "leave out --canary, or 'steps' and 'weights' in the file",
        )
    steps = parse_canary(canary).steps
    return stored(found.model_copy(update={"steps": steps}))


def amounts(**given: str | None) -> dict[str, str]:
    """Numbers as text, those that were given.

    Raises:
        RefusedError: one is no number.
    """
    found = {}
    for name, text in given.items():
        if text is None:
            continue
        try:
            if not 0 <= float(text) < 10_000:
                raise ValueError
        except ValueError as error:
            raise RefusedError(f"{name}: {text!r} is not a number", "write 1 or 0.5") from error
        found[name] = text
    return found


def launcher(uri: str, address: str) -> Callable[[DeploymentRecord], str] | None:
    """Starts controllers; None when the store is a server: an operator does so beside it.

    The cluster is asked for at once, so that nothing is written that nobody could start. What it
    lacks for the deployment's replicas is told, and may come.

    Raises:
        ConfigurationError: Ray is not installed.
        UnreachableError: there is no cluster at the address.
    """
    if not is_database(uri):
        return None
    from serve.launch import connect, ensure_controller, shortage

    connect(address, uri)

    def launch(record: DeploymentRecord) -> str:
        ensure_controller(record, uri)
        return shortage(record)

    return launch
