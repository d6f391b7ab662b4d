"""The options of ``chancery deploy start`` and ``scale`` that say how much a deployment gets.

``--replicas 3`` is a fixed number, ``--replicas 1..8`` a range that follows demand; how it follows
is told by further options, or by a file, of which options replace single parts.

Example::

    asked = Asked.of(replicas="1..8", target_rps=50.0, schedule=(), scale_file=None, …)
    port.scale(name, asked.replicas, scale=asked.scale(record.resources), resources=asked.resources)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from governance.deployment_resources import Scale, checked_resources, parse_range, parse_scale
from governance.errors import ConfigurationError, RefusedError

__all__ = ["Asked", "size_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--replicas", help="Of each variant: 3, or 1..8 as demand wants; 0..4 may sleep."),
    click.option("--target-rps", help="Requests a second that one replica is for."),
    click.option("--target-in-flight", help="Requests at a time that one is for; default 8."),
    click.option("--idle", type=int, help="Seconds without a request after which the last ends."),
    click.option(
        "--schedule", multiple=True,
        help="'Mon-Fri 08:00-18:00 Europe/Berlin = 4..8'; may be given several times.",
    ),
    click.option(
        "--scale", "scale_file", type=click.Path(path_type=Path), help="All of that as YAML."
    ),
    click.option("--gateways", help="Listeners of the route; default 2."),
    click.option("--gateway-cpus", help="CPUs of each, as Ray counts them; default 0.5."),
    click.option("--gateway-pool", help="Node pool that they run in; default: any."),
    click.option("--access-log", help="Folder for their access logs, on each node."),
)  # fmt: skip
_NAMES = (
    "replicas", "target_rps", "target_in_flight", "idle", "schedule", "scale_file", "gateways",
    "gateway_cpus", "gateway_pool", "access_log",
)  # fmt: skip


def size_options(command: _Command) -> _Command:
    """Adds the options; the command gets them as one `Asked`, named ``asked``."""

    @wraps(command)
    def called(*args: Any, **options: Any) -> Any:
        given = {name: options.pop(name) for name in _NAMES}
        return command(*args, asked=Asked(**given), **options)

    found: Any = called
    for option in reversed(_OPTIONS):
        found = option(found)
    return found  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody wrote, as the options are named."""

    replicas: str | None = None
    target_rps: str | None = None
    target_in_flight: str | None = None
    idle: int | None = None
    schedule: tuple[str, ...] = ()
    scale_file: Path | None = None
    gateways: str | None = None
    gateway_cpus: str | None = None
    gateway_pool: str | None = None
    access_log: str | None = None

    @property
    def fixed(self) -> int | None:
        """A number of replicas; None: none is given, or a range."""
        if self.replicas is None or ".." in self.replicas:
            return None
        return parse_range(self.replicas)[0]

    def resources(self, **more: str | None) -> dict[str, str]:
        """What is neither replicas nor scale.

        Raises:
            RefusedError: what cannot be.
        """
        more |= {"gateways": self.gateways, "gatewayCpus": self.gateway_cpus}
        more |= {"gatewayPool": self.gateway_pool, "accessLog": self.access_log}
        found = {name: value for name, value in more.items() if value is not None}
        checked_resources(found)
        return found

    def scale(self, before: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The scale; None: it is not spoken of.

        Args:
            before: Of the deployment that is changed: what is not named stays.

        Raises:
            RefusedError: what cannot be, or a detail of what is no range.
            ConfigurationError: the file cannot be read.
        """
        details: dict[str, Any] = {
            "target_rps": self.target_rps,
            "target_in_flight": self.target_in_flight,
            "idle_seconds": self.idle,
            "schedule": list(self.schedule) or None,
        }
        details = {name: value for name, value in details.items() if value is not None}
        known = _of_file(self.scale_file) if self.scale_file else dict(before or {})
        if self.fixed is not None:
            if details or self.scale_file:
                raise RefusedError(
                    f"--replicas {self.replicas} is a fixed number, and needs no scale",
                    "write a range, as --replicas 1..8",
                )
            return None
        if self.replicas is not None:
            details["replicas"] = self.replicas
        if not details and not self.scale_file:
            return None
        if "replicas" not in known | details:
            raise RefusedError(
                "it is not said between how many replicas to scale", "add --replicas 1..8"
            )
        if "target_rps" in details and "target_in_flight" not in details:
            known.pop("target_in_flight", None)
        if "target_in_flight" in details and "target_rps" not in details:
            known.pop("target_rps", None)
        return Scale.of(known | details).to_document()


def _of_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigurationError(
            f"{path}: the scale cannot be read: {reason}", "correct the path or the permissions"
        ) from error
    return parse_scale(text, str(path)).to_document()
