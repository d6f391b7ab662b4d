"""Data quality that is critical: columns most of whose values are none that the model can know.

A value is *faulty* where it is missing, no number, a category that the reference had not, or beyond
the reference's range. A column fails when the share of its faulty values is larger than in the
reference by ``Rules.quality_share`` (0.5). Components are left out: they are made of other columns.

Example::

    Quality(profile).failed(counts)     # ("97 % of the values of 'age' are faulty (…)",)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drift.bins import CategoryBins, NumericBins
from drift.profile import Column, DriftProfile
from drift.window import WindowCounts

__all__ = ["Quality"]

_NAMED = 5
_TOLD = 0.01  # kinds of fault with a smaller share are not named


class Quality:
    """Looks at windows of one profile."""

    def __init__(self, profile: DriftProfile) -> None:
        self._columns: list[tuple[Column, tuple[int, ...]]] = []
        starts: list[int] = []
        places: list[int] = []
        for first, column in zip(profile.layout.starts.tolist(), profile.columns, strict=True):
            if column.role != "component":
                faults = _faults(column)
                self._columns.append((column, faults))
                starts.append(len(places))
                places += [first + at for at in faults]
        self._starts = np.array(starts, dtype=np.int64)
        self._places = np.array(places, dtype=np.int64)
        self._before = np.array(
            [
                sum(column.counts[at] for at in faults) / max(1, sum(column.counts))
                for column, faults in self._columns
            ]
        )
        self._share = profile.rules.quality_share

    def failed(self, counts: WindowCounts) -> tuple[str, ...]:
        """Sentences, the worst column first; of many columns the first five."""
        if not counts.rows or not self._columns:
            return ()
        faulty = counts.counts[self._places]
        more = np.add.reduceat(faulty, self._starts) / counts.rows - self._before
        failed = np.flatnonzero(more >= self._share)
        if not len(failed):
            return ()
        worst = failed[np.argsort(-more[failed], kind="stable")].tolist()
        told = [self._sentence(at, faulty, counts.rows) for at in worst[:_NAMED]]
        if len(worst) > _NAMED:
            told.append(f"and {len(worst) - _NAMED} columns more")
        return tuple(told)

    def _sentence(self, at: int, faulty: NDArray[np.int64], rows: int) -> str:
        column, faults = self._columns[at]
        first = int(self._starts[at])
        shares = [int(count) / rows for count in faulty[first : first + len(faults)]]
        names = column.bins.names
        kinds = ", ".join(
            f"{100 * share:.3g} % {names[place]}"
            for share, place in zip(shares, faults, strict=True)
            if share >= _TOLD
        )
        return (
            f"{100 * sum(shares):.3g} % of the values of {column.name!r} are faulty ({kinds}), "
            f"{100 * self._before[at]:.3g} % in the reference"
        )


def _faults(column: Column) -> tuple[int, ...]:
    """Places of the bins of a column's faulty values; the first is always one."""
    if isinstance(column.bins, NumericBins):
        # The ranges at both ends are beyond the reference, unless its extremes are not told.
        ends = {2, column.bins.size - 1}
        return (0, 1, *sorted(end for end in ends if not column.counts[end]))
    return (0, 1) if isinstance(column.bins, CategoryBins) else (0,)
