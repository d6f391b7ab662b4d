"""Bad input and bad detectors: nothing that goes wrong reads as "no drift"."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Event

import numpy as np
import pytest

from drift.detector import Backend, ColumnFinding, Detector, Finding, Verdict
from drift.examine import examine
from drift.native import (
    Bins,
    ChiSquare,
    Default,
    DomainClassifier,
    FourierMMD,
    KolmogorovSmirnov,
    OutputKS,
    Tabular,
)
from drift.sample import Sample

EVERY = [KolmogorovSmirnov(), Tabular(), Bins(), FourierMMD(), DomainClassifier(), Default()]
NAMES = [detector.name for detector in EVERY]
every = pytest.mark.parametrize("detector", EVERY, ids=NAMES)


def matrix(seed: int, rows: int = 300, columns: int = 3, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, (rows, columns))


def ask(detector: Detector, reference: Sample, window: Sample, **more: float) -> Finding:
    return examine(detector, reference, window, np.random.default_rng(5), **more)


@dataclass(slots=True, eq=False)
class Scripted:
    """A detector that does what a test says."""

    act: Callable[[], object]
    name: str = "scripted"
    backend: Backend = Backend.NATIVE
    threshold: float = 0.05

    def find(self, *_: object) -> Finding:
        return self.act()  # type: ignore[return-value]


def finding(statistic: float | None, p_value: float | None) -> Finding:
    return Finding("scripted", Backend.NATIVE, Verdict.NO_DRIFT, statistic, p_value, 0.05)


@every
def test_a_shift_is_found(detector: Detector) -> None:
    found = ask(detector, Sample.of_matrix(matrix(0)), Sample.of_matrix(matrix(1, shift=0.8)))
    assert found.verdict is Verdict.DRIFT
    assert found.is_drift
    assert found.p_value is not None
    assert found.p_value <= 0.05
    json.dumps(found.to_dict())


@every
def test_identical_samples_do_not_drift(detector: Detector) -> None:
    sample = Sample.of_matrix(matrix(0))
    assert ask(detector, sample, sample).verdict is Verdict.NO_DRIFT


@every
@pytest.mark.parametrize("rows", [0, 1, 19])
def test_few_rows_are_no_answer(detector: Detector, rows: int) -> None:
    found = ask(detector, Sample.of_matrix(matrix(0)), Sample.of_matrix(matrix(1, rows)))
    assert found.verdict is Verdict.TOO_FEW_ROWS
    assert found.is_drift is None
    assert f"has {rows} of" in found.trouble


@every
def test_twenty_rows_are_enough_to_see_what_is_plain(detector: Detector) -> None:
    found = ask(detector, Sample.of_matrix(matrix(0)), Sample.of_matrix(matrix(1, 20, shift=3.0)))
    assert found.verdict is Verdict.DRIFT


@every
def test_one_missing_value_does_not_blind(detector: Detector) -> None:
    window = matrix(1, shift=1.0)
    window[0] = np.nan
    found = ask(detector, Sample.of_matrix(matrix(0)), Sample.of_matrix(window))
    assert found.verdict is Verdict.DRIFT


@every
def test_a_column_that_went_missing_is_drift(detector: Detector) -> None:
    window = matrix(1)
    window[:, 1] = np.nan
    found = ask(detector, Sample.of_matrix(matrix(0)), Sample.of_matrix(window))
    assert found.verdict is Verdict.DRIFT


@every
def test_columns_that_say_nothing_do_no_harm(detector: Detector) -> None:
    ours, theirs = matrix(0), matrix(1)
    for part in (ours, theirs):
        part[:, 1] = 7.0
        part[:, 2] = np.nan
    found = ask(detector, Sample.of_matrix(ours), Sample.of_matrix(theirs))
    assert found.verdict is Verdict.NO_DRIFT


@every
def test_infinite_values_are_values(detector: Detector) -> None:
    window = matrix(1, shift=0.8)
    window[:3, 0] = np.inf, -np.inf, 1e300
    found = ask(detector, Sample.of_matrix(matrix(0)), Sample.of_matrix(window))
    assert found.verdict is Verdict.DRIFT


@pytest.mark.parametrize("detector", [ChiSquare(), Tabular(), Bins(), FourierMMD(), Default()])
def test_a_new_category_is_drift(detector: Detector) -> None:
    rng = np.random.default_rng(0)
    ours = Sample.of_columns({"region": rng.choice(["west", "east"], 300)})
    theirs = Sample.of_columns({"region": rng.choice(["west", "east", "moon"], 300)})
    assert ask(detector, ours, theirs).verdict is Verdict.DRIFT


def test_identifiers_that_were_never_seen_are_drift() -> None:
    ours = Sample.of_columns({"user": [f"u{i % 150}" for i in range(300)]})
    theirs = Sample.of_columns({"user": [f"v{i % 150}" for i in range(300)]})
    found = ask(ChiSquare(), ours, theirs)
    assert found.verdict is Verdict.DRIFT
    assert found.columns[0].test == "unseen"


def test_nothing_to_compare_is_trouble() -> None:
    numbers = Sample.of_matrix(matrix(0))
    assert ask(ChiSquare(), numbers, numbers).verdict is Verdict.TROUBLE
    assert ask(OutputKS(), numbers, numbers).verdict is Verdict.TROUBLE
    empty = Sample.of_matrix(np.full((50, 2), np.nan))
    assert ask(KolmogorovSmirnov(), empty, empty).verdict is Verdict.TROUBLE


def test_columns_are_matched_by_name() -> None:
    ours = Sample.of_columns({"a": matrix(0)[:, 0], "b": matrix(0, shift=9.0)[:, 1]})
    theirs = Sample.of_columns(
        {"c": ["x"] * 300, "b": matrix(1, shift=9.0)[:, 1], "a": matrix(1)[:, 0]}
    )
    found = ask(KolmogorovSmirnov(), ours, theirs)
    assert found.verdict is Verdict.NO_DRIFT
    assert found.notes == ("not in the reference and left out: 'c'",)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"a": [1.0] * 50}, "lacks 'b'"),
        ({"a": ["1"] * 50, "b": [1.0] * 50}, "'a' (numeric in the reference, categorical here)"),
    ],
)
def test_another_shape_is_trouble(columns: dict[str, list[object]], told: str) -> None:
    ours = Sample.of_columns({"a": [1.0] * 50, "b": [1.0] * 50})
    found = ask(KolmogorovSmirnov(), ours, Sample.of_columns(columns))
    assert found.verdict is Verdict.TROUBLE
    assert told in found.trouble


def test_outputs_on_one_side_alone_are_trouble() -> None:
    ours = Sample.of_matrix(matrix(0), outputs=matrix(0))
    found = ask(Default(), ours, Sample.of_matrix(matrix(1)))
    assert found.verdict is Verdict.TROUBLE
    assert "only the reference has outputs" in found.trouble


@pytest.mark.parametrize("detector", [KolmogorovSmirnov(), FourierMMD(), Default()])
def test_ten_thousand_columns_are_bounded_and_that_is_said(detector: Detector) -> None:
    ours = Sample.of_matrix(matrix(0, 60, 10_000))
    theirs = Sample.of_matrix(matrix(1, 60, 10_000, shift=2.0))
    found = ask(detector, ours, theirs)
    assert found.verdict is Verdict.DRIFT
    assert any("of 10000 columns, drawn at random" in note for note in found.notes)


def test_a_detector_that_raises_is_an_alarm() -> None:
    def act() -> object:
        raise ZeroDivisionError("by zero")

    sample = Sample.of_matrix(matrix(0))
    found = ask(Scripted(act), sample, sample)
    assert found.verdict is Verdict.TROUBLE
    assert found.is_drift
    assert found.trouble == "it raised ZeroDivisionError: by zero"


def test_a_detector_that_hangs_is_an_alarm_and_is_not_asked_again() -> None:
    release, calls = Event(), []

    def act() -> object:
        calls.append(1)
        release.wait(60)
        return finding(0.1, 0.9)

    sample, detector = Sample.of_matrix(matrix(0)), Scripted(act)
    found = ask(detector, sample, sample, limit_s=0.5)
    assert found.verdict is Verdict.TROUBLE
    assert found.trouble == "it took longer than 0.5 s"
    again = ask(detector, sample, sample, limit_s=0.5)
    assert again.trouble == "an earlier check of this detector still hangs"
    assert len(calls) == 1
    release.set()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["statistic", "p_value", "column"])
def test_what_is_not_finite_is_an_alarm(which: str, value: float) -> None:
    answer = finding(0.1, 0.9)
    if which == "column":
        answer = replace(answer, columns=(ColumnFinding("a", "ks", 0.1, value),))
    else:
        answer = replace(answer, **{which: value})
    sample = Sample.of_matrix(matrix(0))
    found = ask(Scripted(lambda: answer), sample, sample)
    assert found.verdict is Verdict.TROUBLE
    assert "not finite" in found.trouble


@pytest.mark.parametrize("answer", [None, "fine", finding(None, None)])
def test_no_answer_is_an_alarm(answer: object) -> None:
    sample = Sample.of_matrix(matrix(0))
    assert ask(Scripted(lambda: answer), sample, sample).verdict is Verdict.TROUBLE


def test_at_most_two_thousand_rows_are_looked_at_in_their_order() -> None:
    seen = []

    class Looking(Scripted):
        def find(self, reference: Sample, window: Sample, rng: object) -> Finding:
            seen.extend([reference, window])
            return finding(0.1, 0.9)

    many = Sample.of_matrix(np.arange(5_000.0)[:, None])
    ask(Looking(lambda: None), many, many)
    assert [sample.rows for sample in seen] == [2_000, 2_000]
    assert all((np.diff(sample.numbers[:, 0]) > 0).all() for sample in seen)
