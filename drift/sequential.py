"""eSR: the always-on statistic, a binned e-value Shiryaev–Roberts procedure.

For each column and window: counts Q (one a bin) of m rows, reference probabilities p. Against rows
that come i.i.d. from p, bet that they come from a Dirichlet(K·p) distribution around it, for each
strength K of 30, 200 and 1000 (near and far alternatives), and average:

    e_K = Γ(K)/Γ(K+m) · Π_b Γ(a_b+Q_b)/Γ(a_b) · Π_b p_b^(−Q_b),   a = K·p,   e = mean over K

The same bet is made on two bins, the column cut near its median, and e is the mean of both: a
bet on every bin pays for shapes that seldom come, one on two finds a small move sooner.

e has the expectation 1 under p whatever m is, so it is an e-value, also for windows of different
sizes. The Shiryaev–Roberts recursion R ← (1 + R)·e starts a bet anew at every window, and each
R_t − t is a martingale under p; so is the mean over columns, whether or not they are independent.
Alarming when the mean R reaches A therefore has an expected run length to a false alarm of at
least A windows. The guarantee is for i.i.d. rows and exact p. Clustered rows break it, and p is
estimated from the reference: hence the second condition, a large PSI, in ``drift/verdict.py``.

Sources: A. N. Shiryaev 1963 and S. W. Roberts 1966 for the recursion; J. Shin, A. Ramdas and
A. Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", New England
Journal of Statistics in Data Science 2(2), 2024 (arXiv:2203.03532), section 2, for the guarantee
with e-values; the e-value is the Dirichlet-multinomial Bayes factor (I. J. Good, JRSS B 29, 1967).

Everything is kept in logarithms. R is cut at ``cap``: that can only delay an alarm, so the
guarantee stays. It lets the statistic of a column with several common bins come down again within
dozens of windows after the drift has gone, instead of never; one with a single common bin hardly
falls, whatever it sees. Acknowledging an alarm (``reset``) is what starts anew.

Example::

    statistic = ShiryaevRoberts(profile.probabilities, layout.starts)
    statistic.step(counts)            # flat counts (T,) of one window
    statistic.mean                    # alarm at 1000: one false alarm in ≥ 1000 windows
    statistic.reset()                 # after somebody acknowledged the alarm
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from drift.documents import Fields, number_text

__all__ = ["CAP", "STRENGTHS", "DirichletBets", "ShiryaevRoberts"]

STRENGTHS = (30.0, 200.0, 1000.0)
"""K: to how many rows the belief in p is worth; small K bets on far alternatives."""

CAP = 1e12

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


class DirichletBets:
    """The e-value of each column, with what does not change between windows computed once.

    Args:
        probabilities: Of the reference, above 0, all columns' bins after each other: (T,).
        starts: Where each column's bins begin: (d,).
        strengths: The K to average over.
    """

    def __init__(
        self,
        probabilities: Floats,
        starts: NDArray[np.int64],
        strengths: tuple[float, ...] = STRENGTHS,
    ) -> None:
        halves = _halves(probabilities, starts)
        self._into_halves = halves
        self.starts = starts
        total, columns = len(probabilities), len(starts)
        self._all_starts = np.concatenate([starts, total + 2 * np.arange(columns)])
        p = np.concatenate([probabilities, np.add.reduceat(probabilities, halves)])
        self._strengths = np.array(strengths)[:, None]
        self._a = self._strengths * p
        self._log_p = np.log(p)
        # Σ lnΓ(a) over a column's bins, less lnΓ(K).
        still = np.add.reduceat(gammaln(self._a), self._all_starts, axis=1)
        self._still = still - gammaln(self._strengths)
        self._average = math.log(2 * len(strengths))

    def log_e(self, counts: Counts) -> Floats:
        """Natural logarithm of each column's e-value (d,), of flat counts (T,)."""
        counts = np.concatenate([counts, np.add.reduceat(counts, self._into_halves)])
        rows = np.add.reduceat(counts, self._all_starts)
        moving = np.add.reduceat(gammaln(self._a + counts), self._all_starts, axis=1)
        reference = np.add.reduceat(counts * self._log_p, self._all_starts)
        logs = moving - gammaln(self._strengths + rows) - self._still - reference
        of_column = logs.reshape(2 * len(logs), len(self.starts))
        return np.asarray(np.logaddexp.reduce(of_column, axis=0) - self._average)


def _halves(probabilities: Floats, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the halves of each column begin (2 d,): at the bin after which about half has gone."""
    sizes = np.diff(starts, append=len(probabilities))
    gone = np.cumsum(probabilities)
    before = np.repeat(gone[starts] - probabilities[starts], sizes)
    distance = np.abs(gone - before - 0.5).round(9)  # of two alike the first
    distance[starts + sizes - 1] = np.inf  # both halves have a bin
    order = np.lexsort((distance, np.repeat(np.arange(len(starts)), sizes)))
    return np.column_stack([starts, order[starts] + 1]).ravel()


class ShiryaevRoberts:
    """ln R of every column (d,), window after window.

    Args:
        probabilities: As for ``DirichletBets``.
        starts: As for ``DirichletBets``.
        cap: The largest R that is kept.
    """

    def __init__(
        self, probabilities: Floats, starts: NDArray[np.int64], *, cap: float = CAP
    ) -> None:
        self._bets = DirichletBets(probabilities, starts)
        self._cap = math.log(cap)
        self.log_r: Floats = np.full(len(starts), -np.inf)
        self.windows = 0
        """Windows since the start or the last reset."""

    def step(self, counts: Counts) -> Floats:
        """Take one window's flat counts (T,); the columns' ln e (d,) of this window alone.

        A window without rows says nothing and is not counted.
        """
        log_e = self._bets.log_e(counts)
        if counts.any():
            self.log_r = np.minimum(np.logaddexp(0.0, self.log_r) + log_e, self._cap)
            self.windows += 1
        return log_e

    @property
    def log_mean(self) -> float:
        """ln of the mean R over columns; -inf before the first window."""
        return float(np.logaddexp.reduce(self.log_r) - math.log(len(self.log_r)))

    @property
    def mean(self) -> float:
        """The statistic: the mean R over columns, at most ``cap``."""
        return math.exp(self.log_mean)

    @property
    def by_column(self) -> Floats:
        """R of each column (d,)."""
        return np.asarray(np.exp(self.log_r))

    def reset(self) -> None:
        """Forget everything seen: somebody acknowledged the alarm."""
        self.log_r = np.full(len(self.log_r), -np.inf)
        self.windows = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without loss."""
        return {"log_r": [*map(number_text, self.log_r.tolist())], "windows": self.windows}

    def restore(self, fields: Fields) -> None:
        """Go on from ``to_dict`` of a statistic over the same columns.

        Raises:
            MalformedRequestError: another number of columns, or not such a document.
        """
        logs, windows = fields.numbers("log_r"), fields.integer("windows")
        if len(logs) != len(self.log_r):
            raise fields.wrong(f"has {len(logs)} columns, and the profile {len(self.log_r)}")
        if max(logs) > self._cap:
            raise fields.wrong("has a value above the cap")
        fields.done()
        self.log_r, self.windows = np.array(logs), windows
