"""Commands of other packages, found through the entry-point group ``chancery.commands``.

They are loaded when they are called, not for ``chancery --help``: a package that is not installed
wholly, or takes long to load, is nobody's trouble but its callers'.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from governance.errors import ConfigurationError
from governance.terminal import answer_errors

__all__ = ["LazyGroup", "add_lazy_commands"]

_TOLD = {
    "deploy": "Serve versions behind routes, with canaries that decide by themselves.",
    "drift": "Compare what a version sees and says with what it was made from.",
}
_EXTRAS = {"deploy": "serve"}


class LazyGroup(click.Group):
    """A group that is loaded when it is called.

    Args:
        point: Names a ``click.Group``.
    """

    def __init__(self, point: EntryPoint) -> None:
        self._point = point
        self._loaded: click.Group | None = None
        super().__init__(point.name, short_help=_TOLD.get(point.name, f"From {point.module}."))

    def load(self) -> click.Group:
        """The group itself.

        Raises:
            ConfigurationError: something it needs is not installed.
        """
        if self._loaded is None:
            try:
                found = self._point.load()
            except ImportError as error:
                extra = _EXTRAS.get(self._point.name, self._point.name)
                raise ConfigurationError(
                    f"`chancery {self._point.name}` needs {error.name or error}, which is not "
                    "installed",
                    f"pip install 'mlflow-chancery[{extra}]'",
                ) from error
            assert isinstance(found, click.Group)
            self._loaded = found
        return self._loaded

    @property
    def commands(self) -> MutableMapping[str, click.Command]:
        """Its commands; loads them."""
        return self.load().commands

    @commands.setter
    def commands(self, _: object) -> None:
        """The group's own are those that count."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """The loaded group's: it goes on by itself."""
        group: click.Group = answer_errors(self.load)()
        return group.make_context(info_name, args, parent, **extra)


def add_lazy_commands(main: click.Group) -> None:
    """Add every group that is installed."""
    for point in entry_points(group="chancery.commands"):
        main.add_command(LazyGroup(point))
