"""A slice as a predicate: conditions on columns, all of which hold for its rows.

Its text is for people and for retrain suggestions: ``age > 52.5 and region in {'west'}``,
``income is missing``, ``10 < x <= 20 or x is missing``. ``matches`` follows the text exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.sample import Sample

__all__ = ["Condition", "Predicate"]


@dataclass(frozen=True, slots=True)
class Condition:
    """On one column.

    Attributes:
        column: Its name.
        above: A number must be greater.
        upto: A number must not be greater.
        missing: A missing value (numeric columns) satisfies it too.
        values: Of a categorical column; None stands for missing.
        excluded: ``values`` are those that do not satisfy it.
    """

    column: str
    above: float = -math.inf
    upto: float = math.inf
    missing: bool = True
    values: frozenset[str | None] | None = None
    excluded: bool = False

    def matches(self, sample: Sample) -> NDArray[np.bool_]:
        """(rows,)."""
        if self.values is not None:
            texts = sample.categories[:, sample.categorical.index(self.column)]
            inside = np.array([text in self.values for text in texts], bool)
            return ~inside if self.excluded else inside
        numbers = sample.numbers[:, sample.numeric.index(self.column)]
        gone = np.isnan(numbers)
        # Nothing is greater than infinity: such a condition takes missing values alone.
        held: NDArray[np.bool_] = ~gone & (numbers > self.above) & (numbers <= self.upto)
        if self.above == -math.inf:
            held |= numbers == -math.inf
        if self.missing:
            held |= gone
        return held

    def __str__(self) -> str:
        if self.values is not None:
            shown = sorted(self.values, key=lambda v: (v is None, v or ""))
            inner = ", ".join("missing" if value is None else repr(value) for value in shown)
            return f"{self.column} {'not in' if self.excluded else 'in'} {{{inner}}}"
        above, upto = self.above > -math.inf, self.upto < math.inf
        if self.above == math.inf or (above and self.above >= self.upto):
            return f"{self.column} is missing" if self.missing else "nothing"
        if not above and not upto:
            return "anything" if self.missing else f"{self.column} is not missing"
        if above and upto:
            text = f"{self.above:.6g} < {self.column} <= {self.upto:.6g}"
        elif above:
            text = f"{self.column} > {self.above:.6g}"
        else:
            text = f"{self.column} <= {self.upto:.6g}"
        return f"({text} or {self.column} is missing)" if self.missing else text

    def to_dict(self) -> dict[str, Any]:
        """For JSON; an open end is None."""
        if self.values is not None:
            values = sorted(self.values, key=lambda v: (v is None, v or ""))
            return {"column": self.column, "values": values, "excluded": self.excluded}
        return {
            "column": self.column,
            "above": self.above if math.isfinite(self.above) else None,
            "upto": self.upto if math.isfinite(self.upto) else None,
            "missing": self.missing,
            "present": self.above < self.upto,
        }


@dataclass(frozen=True, slots=True)
class Predicate:
    """All conditions hold; one for each column at most."""

    conditions: tuple[Condition, ...]

    def matches(self, sample: Sample) -> NDArray[np.bool_]:
        """(rows,)."""
        found = np.ones(sample.rows, bool)
        for condition in self.conditions:
            found &= condition.matches(sample)
        return found

    def without(self, column: str) -> Predicate:
        """The others."""
        return Predicate(tuple(c for c in self.conditions if c.column != column))

    def also(self, condition: Condition) -> Predicate:
        """With a condition on a column that has none yet."""
        return Predicate((*self.conditions, condition))

    def merged(
        self, condition: Condition, domain: Mapping[str, frozenset[str | None]]
    ) -> Predicate:
        """With one condition more; ``domain`` has all values of each categorical column."""
        old = next((c for c in self.conditions if c.column == condition.column), None)
        if old is None:
            return Predicate((*self.conditions, condition))
        if condition.values is None or old.values is None:
            both = Condition(
                condition.column,
                max(old.above, condition.above),
                min(old.upto, condition.upto),
                old.missing and condition.missing,
            )
        else:
            every = domain[condition.column]
            first = every - old.values if old.excluded else old.values
            second = every - condition.values if condition.excluded else condition.values
            # Values seen by neither sample belong to it only if both leave them in.
            excluded = old.excluded and condition.excluded
            kept = first & second
            both = Condition(
                condition.column, values=every - kept if excluded else kept, excluded=excluded
            )
        return Predicate(tuple(both if c is old else c for c in self.conditions))

    def __str__(self) -> str:
        return " and ".join(map(str, self.conditions)) or "every row"
