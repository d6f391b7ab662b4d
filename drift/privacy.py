"""What may leave of each column: all of it, its bin, or nothing.

``keep``  the value leaves as it is.
``bin``   a number leaves as the edge of the bin it lies in, which a profile with the same edges
          counts in the same bin; what is no finite number leaves as missing. A text leaves if it is
          one of the known categories, else as ``(other)``.
``presence``  whether there is a value leaves, as 1 or missing: what a profile counts of a masked
          column.
``mask``  the column does not leave at all; its name does.

It is applied before a block exists, so nothing that is masked is ever written, spooled or sent.
Outputs are named ``output:`` and their name. A column that the mapping does not name gets
``default``; with ``default=mask`` only what is named leaves, and of a column that nobody
expected not even the name: that there was one is told, as ``(masked)``.

Example::

    Privacy({"email": "mask", "age": "bin"}, edges={"age": (18.0, 30.0, 65.0)})
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from drift.bins import PresenceBins, category_of
from drift.columns import Column
from governance.errors import ConfigurationError

__all__ = ["OTHER", "Action", "Privacy"]

OTHER = "(other)"


class Action(StrEnum):
    """What happens to a column."""

    KEEP = "keep"
    BIN = "bin"
    PRESENCE = "presence"
    MASK = "mask"


@dataclass(frozen=True)
class Privacy:
    """Rules for one model.

    Attributes:
        actions: Column → ``keep``, ``bin``, ``presence`` or ``mask``.
        edges: Of binned numbers, increasing, in the column's unit.
        categories: Of binned texts.
        default: For columns that ``actions`` does not name; ``keep`` or ``mask``.
        request_id: ``keep`` or ``mask``; a masked one joins no label.
        closed: Which edge belongs to a bin: ``left`` ([low, high)) or ``right`` ((low, high]).
    """

    actions: Mapping[str, str] = field(default_factory=dict)
    edges: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    default: str = Action.KEEP
    request_id: str = Action.KEEP
    closed: Literal["left", "right"] = "left"

    def __post_init__(self) -> None:
        known = [action.value for action in Action]
        for name, action in {**self.actions, "default": self.default}.items():
            if action not in known:
                raise _mistake(f"{name!r}: {action!r} is none of {', '.join(known)}")
        for name, action in (("default", self.default), ("request_id", self.request_id)):
            if action not in (Action.KEEP, Action.MASK):
                raise _mistake(f"{name} must be keep or mask, not {action!r}")
        if self.closed not in ("left", "right"):
            raise _mistake(f"closed must be left or right, not {self.closed!r}")
        for name, action in self.actions.items():
            if action == Action.BIN and (name in self.edges) == (name in self.categories):
                raise _mistake(f"{name!r} is binned and needs either edges or categories")
        for name, edges in self.edges.items():
            if not edges or not all(low < high for low, high in pairwise(edges)):
                raise _mistake(f"the edges of {name!r} must increase")
            if not np.isfinite(edges).all():
                raise _mistake(f"the edges of {name!r} must be finite")

    def action(self, name: str) -> Action:
        return Action(self.actions.get(name, self.default))

    def applied(
        self, columns: Mapping[str, Column], prefix: str = ""
    ) -> tuple[dict[str, Column], tuple[str, ...]]:
        """What may leave, and the names of what may not."""
        kept: dict[str, Column] = {}
        masked = []
        for name, values in columns.items():
            action = self.action(prefix + name)
            if action is Action.MASK:
                masked.append(prefix + name)
            elif action is Action.BIN:
                kept[name] = self._binned(prefix + name, values)
            elif action is Action.PRESENCE:
                kept[name] = np.where(PresenceBins().codes(values), 1.0, np.nan)
            else:
                kept[name] = values
        return kept, tuple(masked)

    def _binned(self, name: str, values: Column) -> Column:
        if name in self.categories:
            known = set(self.categories[name])
            found = np.empty(len(values), dtype=object)
            for place, value in enumerate(values.tolist()):
                found[place] = _category(value, known)
            return found
        numbers = _numbers(values)
        numbers = np.where(np.isfinite(numbers), numbers, np.nan)
        edges = np.asarray(self.edges[name], dtype=float)
        # The edge that belongs to a bin lies in it, also where two edges are neighbouring floats.
        width = edges[-1] - edges[0] if len(edges) > 1 else 1.0
        if self.closed == "left":
            below = min(edges[0] - width, np.nextafter(edges[0], -np.inf))  # also of large ones
            stand_ins = np.concatenate([[below], edges])
            places = np.searchsorted(edges, numbers, side="right")
        else:
            above = max(edges[-1] + width, np.nextafter(edges[-1], np.inf))
            stand_ins = np.concatenate([edges, [above]])
            places = np.searchsorted(edges, numbers, side="left")
        return np.where(np.isnan(numbers), np.nan, stand_ins[places])


def _category(value: Any, known: set[str]) -> str | None:
    text = category_of(value)
    return text if text is None or text in known else OTHER


def _numbers(values: Column) -> NDArray[np.float64]:
    if values.dtype != object:
        return values.astype(np.float64)
    return np.array(
        [float(v) if isinstance(v, int | float) and abs(v) < 1e308 else np.nan for v in values],
        dtype=np.float64,
    )


def _mistake(text: str) -> ConfigurationError:
    return ConfigurationError(f"privacy: {text}", "correct the privacy mapping of the recorder")
