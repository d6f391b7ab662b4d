"""How well a model did in each window: estimated accuracy, and true accuracy where labels came.

Takes the rows of a window as columns, with labels that lie beside them (scored batches); labels
that come later are joined by ``drift.labels``. What the window lacks is not guessed: an output
that is missing leaves its figures unknown, and the drift report names the missing column.

Example::

    watch = PerformanceWatch(profile)
    performance, facts = watch.step(columns, labels)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from drift.error_rate import ErrorRate
from drift.estimated import Estimated
from drift.fairness import judge_fairness
from drift.group_counts import count_groups, is_missing
from drift.profile import DriftProfile
from drift.report import Performance
from drift.sections import FairnessSection, PerformanceSection
from drift.verdict import Facts
from governance.errors import ConfigurationError

__all__ = ["PerformanceWatch"]


class PerformanceWatch:
    """Over the windows of one version, in their order.

    Args:
        profile: Whose sections are compared with.

    Raises:
        ConfigurationError: a section cannot be read.
    """

    def __init__(self, profile: DriftProfile) -> None:
        self._performance = PerformanceSection.of(profile)
        self._fairness = FairnessSection.of(profile)
        self._rate = ErrorRate()

    @property
    def section(self) -> PerformanceSection | None:
        """The profile's, if it has one."""
        return self._performance

    def step(
        self, columns: Mapping[str, Any], labels: Any | None = None
    ) -> tuple[Performance, Facts]:
        """The next window.

        Args:
            columns: Inputs and outputs.
            labels: (rows,) true values, missing ones None or NaN; None: there are none.

        Raises:
            ConfigurationError: outputs of a shape that cannot be meant.
        """
        section = self._performance
        if section is None or any(name not in columns for name in section.needs):
            return Performance(), Facts()
        answers = section.predicted(columns)
        accuracy = sd = fall = None
        if isinstance(section.estimated, Estimated):
            sums = section.estimated.sums(section.scores(columns), answers)
            estimate = section.estimated.estimate(sums)
            accuracy, sd = estimate.accuracy, estimate.sd
            fall = section.estimated.distance(sums)
        truths = [] if labels is None else list(np.asarray(labels).tolist())
        if truths and len(truths) != len(answers):
            raise ConfigurationError(
                f"{len(truths)} labels for {len(answers)} rows", "give a label a row, or none"
            )
        known = [
            (answer, truth)
            for answer, truth in zip(answers, truths, strict=False)
            if not is_missing(truth)
        ]
        true_accuracy = esr = None
        if known:
            counts = [0] * section.errors.outcomes
            for answer, truth in known:
                counts[section.errors.outcome(answer, truth)] += 1
            if not section.errors.edges:
                true_accuracy = counts[0] / len(known)
            self._rate = self._rate.after(section.errors, counts)
            esr = math.exp(min(self._rate.log_r, math.log(1e12)))
        values, broken = self._groups(columns, answers, truths or None)
        performance = Performance(accuracy, sd, true_accuracy, len(known), esr, values)
        return performance, Facts(accuracy_fall_sd=fall, fairness_broken=broken)

    def _groups(
        self, columns: Mapping[str, Any], answers: list[Any], truths: list[Any] | None
    ) -> tuple[tuple[tuple[str, float], ...], tuple[str, ...]]:
        """Measures by attribute, and sentences about the bounds that broke."""
        values: list[tuple[str, float]] = []
        broken: list[str] = []
        section = self._fairness
        for bounds in section.bounds if section else ():
            if section is None or bounds.attribute not in columns:
                continue
            groups = np.asarray(columns[bounds.attribute]).tolist()
            counts = count_groups(
                groups, answers, truths, positive=section.positive, attribute=bounds.attribute
            )
            report = judge_fairness(bounds, counts, section.reference.get(bounds.attribute))
            for one in report.measures:
                if not math.isnan(one.value):
                    values.append((f"{one.name.replace(' ', '_')}/{bounds.attribute}", one.value))
                if one.broken or one.worse:
                    broken.append(f"{bounds.attribute}: {one.sentence}")
        return tuple(values), tuple(broken)
