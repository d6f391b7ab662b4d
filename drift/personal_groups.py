"""Groups of a personal column, as they can be seen of what is served.

Of a binned column a value's bin is all that leaves (``drift.privacy``), so its bins are its groups:
of live traffic, of files that have raw values, and of the reference. Of a masked one nothing leaves
to make groups of, and fairness by it cannot be watched.

Example::

    shown_groups(profile, "age", [41, 17.0])        # ["35 to 48", "below 18"]
"""

from __future__ import annotations

from typing import Any

import numpy as np

from drift.bins import MISSING, Bins, NumericBins, PresenceBins
from drift.profile import Column, DriftProfile

__all__ = ["group_bins", "shown_groups", "unseen"]


def shown_groups(profile: DriftProfile, attribute: str, values: Any) -> list[Any]:
    """The group of each value (n,), None for a missing one; of a column that is not personal, the
    values."""
    array = np.asarray(values)
    bins = group_bins(profile, attribute)
    if bins is None:
        return list(array.tolist())
    names = list(bins.names)
    return [None if code == MISSING else names[code] for code in bins.codes(array).tolist()]


def group_bins(profile: DriftProfile, attribute: str) -> Bins | None:
    """The bins that are its groups; None: its values are."""
    column = _column(profile, attribute)
    return None if column is None or column.pii == "keep" else column.bins


def unseen(profile: DriftProfile, attribute: str) -> bool:
    """Whether nothing leaves of a column but whether there is a value."""
    bins = group_bins(profile, attribute)
    return isinstance(bins, PresenceBins) or (isinstance(bins, NumericBins) and not bins.cuts)


def _column(profile: DriftProfile, attribute: str) -> Column | None:
    return next((column for column in profile.features if column.name == attribute), None)
