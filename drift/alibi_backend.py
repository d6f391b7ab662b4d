"""Alibi Detect behind the ``Detector`` protocol, always in a process of its own.

Our names ``ks``, ``chi2``, ``tabular``, ``mmd``, ``lsdd``, ``classifier``, ``mmd-online`` and
``lsdd-online`` are KSDrift, ChiSquareDrift, TabularDrift, MMDDrift, LSDDDrift, ClassifierDrift (a
scikit-learn model), MMDDriftOnline and LSDDDriftOnline. What Alibi Detect leaves open is filled in:

- One missing value makes its KS answer NaN, and NaN reads as "no drift". Here ``ks``, ``chi2`` and
  ``tabular`` see columns without missing values, whose share has a test beside them
  (``drift.marginal``); the others see them as a column of its own.
- Categories are numbered by us; it never sees texts. Its KS distances are 32-bit numbers.
- Online detectors see the window's rows in order. They raise an alarm on average once in
  ``expected_run`` rows without drift, and have no p-value: the statistic is the largest ratio of
  test statistic to threshold, and 1 the threshold.

Choose by ``drift.catalogue``, where the native backend stands in if the licence asks for it
(``drift.licence``); used directly, its process does not start then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from drift.alibi_process import AlibiProcess
from drift.detector import Backend, ColumnFinding, Finding, Verdict
from drift.marginal import missing_column
from drift.matrix import Part, coded, dense
from drift.native import by_columns
from drift.sample import Floats, Sample, within_columns
from governance.errors import ConfigurationError, MalformedRequestError

__all__ = ["ALIBI_DETECTORS", "AlibiDetector"]

ALIBI_DETECTORS: Mapping[str, str] = {
    "ks": "KSDrift",
    "chi2": "ChiSquareDrift",
    "tabular": "TabularDrift",
    "mmd": "MMDDrift",
    "lsdd": "LSDDDrift",
    "classifier": "ClassifierDrift",
    "mmd-online": "MMDDriftOnline",
    "lsdd-online": "LSDDDriftOnline",
}
_MARGINAL = {"ks", "chi2", "tabular"}
_ONLINE = {"mmd-online", "lsdd-online"}
_MARGINAL_COLUMNS = 2_000
_JOINT_COLUMNS = 200


@dataclass(frozen=True, slots=True)
class AlibiDetector:
    """One of ``ALIBI_DETECTORS``.

    Attributes:
        name: Ours.
        level: Of false alarms; online ones have ``expected_run`` in its place.
        process: Where it runs. It is ended after each call unless ``keep``.
        keep: Leave it running, with 500 MB, for the next call; the owner closes it.
        part: What joint detectors look at.
        permutations: Of ``mmd`` and ``lsdd``.
        expected_run: Rows between two false alarms of online detectors.
        online_window: Rows that they compare at a time.
        bootstraps: Simulations of their thresholds; ten times ``expected_run`` is right.

    Raises:
        ConfigurationError: there is no detector of that name.
    """

    name: str
    level: float = 0.05
    process: AlibiProcess = field(default_factory=AlibiProcess)
    keep: bool = False
    part: Part = Part.FEATURES
    permutations: int = 100
    expected_run: int = 1_000
    online_window: int = 20
    bootstraps: int = 10_000

    def __post_init__(self) -> None:
        if self.name not in ALIBI_DETECTORS:
            raise ConfigurationError(
                f"Alibi Detect has no detector {self.name!r} here",
                f"choose one of {', '.join(ALIBI_DETECTORS)}",
            )

    @property
    def backend(self) -> Backend:
        return Backend.ALIBI

    @property
    def threshold(self) -> float:
        return 1.0 if self.name in _ONLINE else self.level

    def find(self, reference: Sample, window: Sample, rng: np.random.Generator) -> Finding:
        """See ``Detector``.

        Raises:
            AlibiError: it raised, hung (and was killed), or its process ended.
            ConfigurationError: it is not installed.
        """
        try:
            if self.name in _MARGINAL:
                return self._by_column(reference, window, rng)
            return self._joint(reference, window, rng)
        finally:
            if not self.keep:
                self.process.close()

    def _ask(
        self,
        options: Mapping[str, Any],
        categorical: Iterable[int],
        ours: Floats,
        theirs: Floats,
        rng: np.random.Generator,
    ) -> dict[str, Any]:
        seed = int(rng.integers(2**31))
        kind = ALIBI_DETECTORS[self.name]
        return self.process.ask(kind, options, list(categorical), seed, ours, theirs)

    def _by_column(self, reference: Sample, window: Sample, rng: np.random.Generator) -> Finding:
        reference, window, notes = within_columns(reference, window, rng, _MARGINAL_COLUMNS)
        names: tuple[str, ...] = ()
        parts: list[tuple[Floats, Floats]] = []
        if self.name != "chi2":
            names += reference.numeric
            parts.append((reference.numbers, window.numbers))
        numeric = len(names)
        if self.name != "ks":
            names += reference.categorical
            parts.append(coded(reference.categories, window.categories))
        if not names:
            raise MalformedRequestError(
                f"{self.name} has nothing to compare: no column of its kind",
                "choose a detector for the kinds of column that there are",
            )
        ours = np.column_stack([part[0] for part in parts])
        theirs = np.column_stack([part[1] for part in parts])
        answer = self._ask({"p_val": self.level}, range(numeric, len(names)), ours, theirs, rng)
        columns = []
        for i, name in enumerate(names):
            gone = np.isnan(ours[:, i]), np.isnan(theirs[:, i])
            if missing := missing_column(name, *gone):
                columns.append(ColumnFinding(name, "missing", missing.statistic, missing.p_value))
            if not (gone[0].all() or gone[1].all()):
                test = "ks" if i < numeric else "chi2"
                found = answer["distances"][i], answer["p_values"][i]
                columns.append(ColumnFinding(name, test, *found))
        return by_columns(self.name, self.backend, self.level, columns, notes)

    def _joint(self, reference: Sample, window: Sample, rng: np.random.Generator) -> Finding:
        reference, window, notes = within_columns(reference, window, rng, _JOINT_COLUMNS)
        ours, theirs = dense(reference, window, self.part)
        if self.name in _ONLINE:
            options: dict[str, Any] = {
                "ert": self.expected_run,
                "window_size": self.online_window,
                "n_bootstraps": self.bootstraps,
            }
            answer = self._ask(options, (), ours, theirs, rng)
            return self._online(answer, notes)
        options = {"p_val": self.level}
        if self.name != "classifier":
            options["n_permutations"] = self.permutations
        answer = self._ask(options, (), ours, theirs, rng)
        (p_value,), (distance,) = answer["p_values"], answer["distances"]
        verdict = Verdict.DRIFT if p_value <= self.level else Verdict.NO_DRIFT
        return Finding(self.name, self.backend, verdict, distance, p_value, self.level, notes=notes)

    def _online(self, answer: Mapping[str, Any], notes: tuple[str, ...]) -> Finding:
        statistics = np.array(answer["distances"])
        thresholds = np.array(answer["thresholds"])
        # While the first window of rows fills there is no statistic, or it is nothing yet.
        ready = np.arange(1, len(statistics) + 1) > self.online_window
        ratios = statistics[ready] / thresholds[ready]
        if not len(ratios):
            raise MalformedRequestError(
                f"{self.name} needs more than {self.online_window} rows in the window"
            )
        if not np.isfinite(ratios).all():
            worst = float("nan")
            told: tuple[str, ...] = ()
        else:
            worst = float(ratios.max())
            first = np.flatnonzero(ratios > 1.0)
            row = self.online_window + 1 + int(first[0]) if len(first) else 0
            told = (f"first alarm at row {row} of the window",) if row else ()
        return Finding(
            self.name,
            self.backend,
            Verdict.DRIFT if worst > 1.0 else Verdict.NO_DRIFT,
            worst,
            None,
            1.0,
            notes=(*notes, *told, f"one false alarm in {self.expected_run} rows is expected"),
        )
