"""Population stability index: how far a window lies from the reference, as a size, not a test.

PSI = Σ (q − p) · ln(q / p) over the bins of a column: p from the reference (``bins.smoothed``), q
from the window. The window gets as many pseudo-counts as the column has bins, spread like the
reference: an empty bin then pulls q towards p instead of inventing a difference. (One pseudo-count
a bin, as the reference gets, would give each of the rare bins (missing, unseen, ends) the share 1/W
and make every small window look drifted.)

A fixed threshold means nothing without the window's size: i.i.d. windows of W rows have a PSI of
about (bins − 1) / W. The profile therefore carries the largest PSI of its own windows.

Source: the index is Jeffreys' divergence (H. Jeffreys, Proc. R. Soc. A 186, 1946); N. Siddiqi,
"Credit Risk Scorecards", Wiley 2006, for its use.

Example::

    psi(counts, probabilities, layout.starts)    # (d,) for flat counts (T,)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Psi", "psi"]


class Psi:
    """PSI against one reference, with what does not change between windows computed once.

    Args:
        probabilities: Of the reference, above 0, summing to 1 over each column: (…, T) or (T,).
        starts: Where each column's bins begin: (d,).
    """

    def __init__(self, probabilities: NDArray[np.float64], starts: NDArray[np.int64]) -> None:
        sizes = np.diff(starts, append=probabilities.shape[-1])
        self._starts = starts
        self._column = np.repeat(np.arange(len(starts)), sizes)
        self._probabilities = probabilities
        self._bins = sizes[self._column]
        self._pseudo = self._bins * probabilities

    def of(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """PSI of every column (…, d), of flat counts (…, T)."""
        rows = np.add.reduceat(counts, self._starts, axis=-1)
        shares = (counts + self._pseudo) / (rows.take(self._column, axis=-1) + self._bins)
        terms = (shares - self._probabilities) * np.log(shares / self._probabilities)
        return np.asarray(np.add.reduceat(terms, self._starts, axis=-1))


def psi(
    counts: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    starts: NDArray[np.int64],
) -> NDArray[np.float64]:
    """PSI of every column (…, d), of flat counts (…, T); the reference as for ``Psi``."""
    return Psi(probabilities, starts).of(counts)
