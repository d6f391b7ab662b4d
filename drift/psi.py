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

__all__ = ["psi"]


def psi(
    counts: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    starts: NDArray[np.int64],
) -> NDArray[np.float64]:
    """PSI of every column: (…, d).

    Args:
        counts: Of the window, all columns' bins after each other: (…, T).
        probabilities: Of the reference, above 0, summing to 1 over each column: (…, T) or (T,).
        starts: Where each column's bins begin: (d,).
    """
    sizes = np.diff(starts, append=counts.shape[-1])
    rows = np.add.reduceat(counts, starts, axis=-1)
    pseudo = np.repeat(sizes, sizes)
    shares = (counts + pseudo * probabilities) / (np.repeat(rows, sizes, axis=-1) + pseudo)
    terms = (shares - probabilities) * np.log(shares / probabilities)
    return np.asarray(np.add.reduceat(terms, starts, axis=-1))
