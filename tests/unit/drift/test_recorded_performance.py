"""From answers to figures: recorded, spooled, read back, estimated, labelled and judged."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from drift.block_folder import BlockFolder
from drift.error_rate import ErrorRate, ErrorReference
from drift.estimated import EstimatedSums, fit_estimated
from drift.fairness import FairnessBounds, judge_fairness
from drift.labels import Labels, LabelSums, row_key
from drift.recorder import Recorder
from drift.spool import Spool
from governance.canonical import canonical_json, parse_json


@pytest.mark.parametrize("flip", [0.0, 0.5], ids=["unchanged", "one group served badly"])
def test_from_answers_to_verdicts(tmp_path: Path, flip: float) -> None:
    rng = np.random.default_rng(1)

    def traffic(rows: int, flip: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        sex = rng.integers(2, size=rows)
        p = rng.choice([0.05, 0.2, 0.8, 0.95], size=rows)
        truth = (rng.uniform(size=rows) < p).astype(int)
        turned = (sex == 1) & (rng.uniform(size=rows) < flip)
        return sex, p, np.where(turned, 1 - truth, truth)

    _, p, truth = traffic(10_000, 0.0)
    said = (p > 0.5).astype(int)
    estimated = fit_estimated(p, said, truth, classes=(0, 1), window=500)
    reference = ErrorReference.of_classes(said, truth)

    numbers = itertools.count(1)
    recorder = Recorder(
        "r1", model="m", columns=("sex",), block_rows=700, new_id=lambda: f"{next(numbers):032x}"
    )
    folder = BlockFolder(tmp_path / "there")
    spool = Spool(tmp_path / "here", folder)
    sex, p, truth = traffic(4000, flip)
    for start in range(0, 4000, 2):
        two = slice(start, start + 2)
        outputs = {"prediction": (p[two] > 0.5).astype(int), "probability": p[two]}
        recorder.append({"sex": sex[two]}, outputs, version="1", request_id=f"q{start}")
    for block in recorder.flush():
        spool.put(block)
    assert spool.deliver() == 6

    labels = Labels(reference)
    sums = EstimatedSums()
    for window, entry in enumerate(folder.entries()):
        block = folder.read(entry)
        answers = block.outputs["prediction"]
        sums += estimated.sums(block.outputs["probability"], answers)
        assert block.request_id is not None
        for request, row, answer, group in zip(
            block.request_id, block.request_row, answers, block.inputs["sex"], strict=True
        ):
            labels.expect(row_key(request, row), answer, window=window, groups={"sex": group})
        labels = Labels.from_dict(parse_json(canonical_json(labels.to_dict())), reference)
    for place in range(4000):
        labels.label(row_key(f"q{place - place % 2}", place % 2), truth[place])

    rate, total = ErrorRate(), LabelSums((0, 0))
    for window_sums in labels.take().values():
        rate = rate.after(reference, window_sums.outcomes)
        total += window_sums
    errors = int((truth != (p > 0.5)).sum())
    assert (total.rows, total.errors) == (4000, errors)
    bounds = FairnessBounds("sex", accuracy=0.8)
    report = judge_fairness(bounds, total.groups["sex"])
    assert not estimated.fell(sums), "what changed is no input: only labels tell"
    assert rate.alarms() == (flip > 0)
    assert report.broken == (flip > 0)
