"""The native backend: detectors in numpy, scipy and scikit-learn.

============== =====================================================================================
``ks``         Kolmogorov-Smirnov for each numeric column
``chi2``       chi-square for each categorical column and the predicted classes
``tabular``    both: ``ks`` for numeric columns, ``chi2`` for the others
``bins``       chi-square for every column, numeric ones in ten quantile bins
``output-ks``  KS for each output (of two complementary ones, the first), chi-square for classes
``mmd``        squared maximum mean discrepancy, random Fourier features (``drift.kernel``)
``classifier`` a model that tells the window from the reference (``drift.domain``)
``default``    ``bins``, ``output-ks`` and ``classifier`` together, at one level
============== =====================================================================================

Tests of many columns are corrected by Bonferroni: the finding's p-value is the smallest times their
number. Call them by ``drift.examine.examine``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from drift.detector import Backend, ColumnFinding, Detector, Finding, Verdict
from drift.domain import out_of_block
from drift.kernel import permutation_mmd
from drift.marginal import binned_columns, categorical_columns, ks_columns, label_column
from drift.matrix import Part, dense, raw
from drift.sample import Floats, Sample, within_columns
from governance.errors import MalformedRequestError

__all__ = [
    "Bins",
    "ChiSquare",
    "Default",
    "DomainClassifier",
    "FourierMMD",
    "KolmogorovSmirnov",
    "OutputKS",
    "Tabular",
    "by_columns",
]

_MARGINAL_COLUMNS = 2_000
_JOINT_COLUMNS = 200


def by_columns(
    name: str,
    backend: Backend,
    threshold: float,
    columns: Iterable[ColumnFinding],
    notes: tuple[str, ...] = (),
) -> Finding:
    """The finding of many tests, by Bonferroni; its statistic is that of the smallest p-value.

    Raises:
        MalformedRequestError: there is no test; that is no proof of anything.
    """
    found = list(columns)
    tested = [column for column in found if column.p_value is not None]
    if not tested:
        raise MalformedRequestError(
            f"{name} has nothing to compare: no column of its kind with values",
            "choose a detector for the kinds of column that there are",
        )
    # Sorted by p-value; NaN first, so that it is not overlooked.
    tested.sort(key=lambda c: (c.p_value == c.p_value, c.p_value, -abs(c.statistic)))
    worst = tested[0]
    assert worst.p_value is not None
    p_value = worst.p_value * len(tested)
    p_value = min(1.0, p_value) if p_value == p_value else p_value
    return Finding(
        name,
        backend,
        Verdict.DRIFT if p_value <= threshold else Verdict.NO_DRIFT,
        worst.statistic,
        p_value,
        threshold,
        tuple(tested),
        notes=notes,
    )


@dataclass(frozen=True, slots=True)
class _Native:
    """A level, and how many columns are looked at."""

    threshold: float = 0.05
    most_columns: int = _MARGINAL_COLUMNS

    @property
    def backend(self) -> Backend:
        return Backend.NATIVE


@dataclass(frozen=True, slots=True)
class _ByColumn(_Native, ABC):
    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def tests(
        self, reference: Sample, window: Sample, rng: np.random.Generator
    ) -> Iterable[ColumnFinding]: ...

    def find(self, reference: Sample, window: Sample, rng: np.random.Generator) -> Finding:
        reference, window, notes = within_columns(reference, window, rng, self.most_columns)
        found = self.tests(reference, window, rng)
        return by_columns(self.name, self.backend, self.threshold, found, notes)


@dataclass(frozen=True, slots=True)
class KolmogorovSmirnov(_ByColumn):
    @property
    def name(self) -> str:
        return "ks"

    def tests(
        self, reference: Sample, window: Sample, rng: np.random.Generator
    ) -> Iterable[ColumnFinding]:
        return ks_columns(reference.numeric, reference.numbers, window.numbers)


@dataclass(frozen=True, slots=True)
class ChiSquare(_ByColumn):
    @property
    def name(self) -> str:
        return "chi2"

    def tests(
        self, reference: Sample, window: Sample, rng: np.random.Generator
    ) -> Iterable[ColumnFinding]:
        yield from _categories(reference, window, rng)
        if label := label_column(reference, window):
            yield label


@dataclass(frozen=True, slots=True)
class Tabular(_ByColumn):
    @property
    def name(self) -> str:
        return "tabular"

    def tests(
        self, reference: Sample, window: Sample, rng: np.random.Generator
    ) -> Iterable[ColumnFinding]:
        yield from ks_columns(reference.numeric, reference.numbers, window.numbers)
        yield from _categories(reference, window, rng)


@dataclass(frozen=True, slots=True)
class Bins(_ByColumn):
    @property
    def name(self) -> str:
        return "bins"

    def tests(
        self, reference: Sample, window: Sample, rng: np.random.Generator
    ) -> Iterable[ColumnFinding]:
        yield from binned_columns(reference.numeric, reference.numbers, window.numbers)
        yield from _categories(reference, window, rng)


@dataclass(frozen=True, slots=True)
class OutputKS(_ByColumn):
    @property
    def name(self) -> str:
        return "output-ks"

    def tests(
        self, reference: Sample, window: Sample, rng: np.random.Generator
    ) -> Iterable[ColumnFinding]:
        if reference.outputs is not None and window.outputs is not None:
            ours, theirs = reference.outputs, window.outputs
            if _complementary(ours) and _complementary(theirs):
                ours, theirs = ours[:, :1], theirs[:, :1]  # the other says the same again
            names = tuple(f"output {i}" for i in range(ours.shape[1]))
            yield from ks_columns(names, ours, theirs)
        if label := label_column(reference, window):
            yield label


def _complementary(outputs: Floats) -> bool:
    """Whether there are two, and either is 1 less the other, as probabilities of two classes."""
    return outputs.shape[1] == 2 and bool(np.allclose(outputs.sum(axis=1), 1.0, atol=1e-6))


def _categories(
    reference: Sample, window: Sample, rng: np.random.Generator
) -> Iterable[ColumnFinding]:
    return categorical_columns(reference.categorical, reference.categories, window.categories, rng)


@dataclass(frozen=True, slots=True)
class FourierMMD(_Native):
    """See ``drift.kernel``.

    Attributes:
        part: What is looked at.
        features: Random frequencies.
        permutations: Of the rows; the smallest p-value is one over their number plus one.
    """

    part: Part = Part.FEATURES
    features: int = 256
    permutations: int = 400

    @property
    def name(self) -> str:
        return "mmd"

    def find(self, reference: Sample, window: Sample, rng: np.random.Generator) -> Finding:
        reference, window, notes = within_columns(reference, window, rng, self.most_columns)
        ours, theirs = dense(reference, window, self.part)
        squared, p_value = permutation_mmd(ours, theirs, self.features, self.permutations, rng)
        return _joint(self, squared, p_value, notes)


@dataclass(frozen=True, slots=True)
class DomainClassifier(_Native):
    """See ``drift.domain``; the statistic is the area under the ROC curve, 0.5 under no drift."""

    most_columns: int = _JOINT_COLUMNS
    part: Part = Part.FEATURES

    @property
    def name(self) -> str:
        return "classifier"

    def find(self, reference: Sample, window: Sample, rng: np.random.Generator) -> Finding:
        reference, window, notes = within_columns(reference, window, rng, self.most_columns)
        area, p_value = out_of_block(*raw(reference, window, self.part), rng)
        return _joint(self, area, p_value, notes)


def _joint(detector: Detector, statistic: float, p_value: float, notes: tuple[str, ...]) -> Finding:
    verdict = Verdict.DRIFT if p_value <= detector.threshold else Verdict.NO_DRIFT
    return Finding(
        detector.name,
        detector.backend,
        verdict,
        statistic,
        p_value,
        detector.threshold,
        notes=notes,
    )


@dataclass(frozen=True, slots=True)
class Default(_Native):
    """``bins``, ``output-ks`` (where there are outputs or labels), ``classifier``, by Bonferroni.

    ``columns`` begins with one entry for each of the three, its p-value corrected within it; then
    come the columns and outputs with p-values of their own. The finding's p-value is the smallest
    of the three times their number; which of them drifted is Holm's (1979) to say: compare them
    with the level over 3, 2 and 1 in order.
    """

    joint_columns: int = _JOINT_COLUMNS

    @property
    def name(self) -> str:
        return "default"

    def parts(self, reference: Sample) -> tuple[Detector, ...]:
        """What it consists of for such samples."""
        found: list[Detector] = []
        if reference.names:
            found.append(Bins(self.threshold, self.most_columns))
        if reference.outputs is not None or reference.labels is not None:
            found.append(OutputKS(self.threshold))
        if reference.names:
            found.append(DomainClassifier(self.threshold, self.joint_columns))
        elif reference.embeddings is not None:
            found.append(DomainClassifier(self.threshold, self.joint_columns, part=Part.EMBEDDINGS))
        return tuple(found)

    def find(self, reference: Sample, window: Sample, rng: np.random.Generator) -> Finding:
        findings, absent = [], []
        for part in self.parts(reference):
            try:
                findings.append(part.find(reference, window, rng))
            except MalformedRequestError as error:
                absent.append(error.message)
        tests = [ColumnFinding("all", f.detector, f.statistic or 0.0, f.p_value) for f in findings]
        notes = tuple(dict.fromkeys([*absent, *(note for f in findings for note in f.notes)]))
        found = by_columns(self.name, self.backend, self.threshold, tests, notes)
        columns = [column for finding in findings for column in finding.columns]
        columns.sort(key=lambda c: 1.0 if c.p_value is None else c.p_value)
        return Finding(
            found.detector,
            found.backend,
            found.verdict,
            found.p_value,
            found.p_value,
            self.threshold,
            (*found.columns, *columns),
            notes=notes,
        )
