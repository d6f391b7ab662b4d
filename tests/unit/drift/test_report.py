"""A window's report: one digest, nothing in it that canonical JSON cannot say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from drift.cutter import Window
from drift.examine import examine
from drift.fitting import fit_profile
from drift.native import Default
from drift.report import Performance, Subject, WindowReport
from drift.sample import Sample
from drift.slices import find_slices
from drift.verdict import Judge, Level
from drift.window import count_columns
from governance.canonical import parse_json


@pytest.fixture(scope="module")
def report() -> WindowReport:
    rng = np.random.default_rng(7)
    kinds = np.array(["east", "west"])
    before = {"age": rng.normal(40, 9, 4000), "region": kinds[rng.integers(0, 2, 4000)]}
    after = {"age": rng.normal(60, 9, 400), "region": kinds[rng.integers(0, 2, 400)]}
    after["age"][:3] = np.nan
    profile = fit_profile(before, model="fraud", window=400)
    counts = count_columns(profile, after, 400, None)
    verdict = Judge(profile).step(Window(0, counts))
    reference, window = Sample.of_columns(before), Sample.of_columns(after)
    finding = examine(Default(), reference, window, np.random.default_rng(1))
    slices = find_slices(reference, window, seed=1)
    subject = Subject("fraud", 3, "m-1", "fraud", profile.digest, "ann")
    performance = Performance(0.9, 0.01, fairness=(("tpr_gap/sex", 0.05),))
    return WindowReport(subject, verdict, counts, (finding,), slices, performance, made_ms=17)


def test_it_says_what_was_found(report: WindowReport) -> None:
    document = parse_json(report.to_json())
    assert document["subject"]["profile"] == report.subject.profile
    assert document["verdict"]["level"] == Level.ALERT.value
    assert document["findings"][0]["verdict"] == "drift"
    assert "age" in document["slices"][0]["text"]
    assert document["performance"]["estimated_accuracy"] == "0.9"
    assert document["performance"]["fairness"] == [["tpr_gap/sex", "0.05"]]
    assert document["madeMs"] == 17


def test_its_digest_is_that_of_all_it_says(report: WindowReport) -> None:
    assert report.digest == replace(report).digest
    others = (
        replace(report, made_ms=18),
        replace(report, subject=replace(report.subject, version=4)),
        replace(report, performance=Performance()),
        replace(report, slices=()),
    )
    assert len({report.digest, *(one.digest for one in others)}) == 5


def test_a_finding_on_ten_thousand_columns_stays_small(report: WindowReport) -> None:
    one = report.findings[0]
    columns = tuple(replace(one.columns[0], column=f"column {n}") for n in range(10_000))
    wide = replace(report, findings=(replace(one, columns=columns),) * 5)
    assert len(wide.to_json()) < 200_000
    told = parse_json(wide.to_json())["findings"][0]["columns"]
    assert [column["column"] for column in told[:2]] == ["column 0", "column 1"]
