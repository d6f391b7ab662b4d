"""Labels mean the profile's classes, whatever types files give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drift.fitting import fit_profile
from drift.known_classes import KnownClasses
from drift.rules import Rules
from drift.sections import fit_performance
from tests.unit.drift.monitor_world import World, block_of
from tests.unit.drift.test_monitored_performance import scored


@pytest.mark.parametrize(
    ("classes", "label", "meant"),
    [
        (["01", "02"], "01", "01"),
        (["01", "02"], 1, "01"),
        (["01", "02"], "1", "01"),
        (["01", "02"], "3", "3"),
        (["01", "02"], 3, "3"),
        (["1", "01"], 1, "1"),
        (["01", "001"], 1, "1"),
        (["1", "2"], 1.0, "1"),
        (["yes", "no"], "yes", "yes"),
        (["yes", "no"], "nan", None),
        (["nan", "no"], "nan", "nan"),
        (["1_0", "2"], "1_0", "1_0"),
        (["True", "False"], True, "True"),
        ([0, 1], "1", 1),
        ([0, 1], "1.0", 1),
        ([0, 1], "true", 1),
        ([0, 1], True, 1),
        ([0, 1], "7", 7),
        ([0, 1], "9007199254740993", 9007199254740993),
        ([0, 1], "maybe", "maybe"),
        ([0, 1], "1_0", "1_0"),
        ([0, 1], float("nan"), None),
        ([False, True], "TRUE", True),
        ([False, True], "0", False),
        ([0, "1"], "0", 0),
        ([0, "1"], "x", "x"),
        ([9007199254740992, 9007199254740993], "9007199254740993", 9007199254740993),
        ([], "1.5", 1.5),
        ([], "nan", None),
        ([], "x", "x"),
        ([], 2, 2),
        ([], 10**400, 10**400),
    ],
)
def test_what_a_label_means(classes: list[Any], label: Any, meant: Any) -> None:
    found = KnownClasses(classes).meant(label)
    assert (type(found), found) == (type(meant), meant)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_classes_that_look_like_numbers_are_right_when_they_are(tmp_path: Path, kind: str) -> None:
    def texts(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.where(values == 1, "01", "02").astype(object)

    rows = scored(6000, 0)
    outputs = {"said": texts(rows.said)}
    performance = fit_performance(outputs, texts(rows.true), prediction="said", window=500)
    profile = fit_profile(
        {"x": rows.x},
        outputs,
        model="fraud",
        window=500,
        rules=Rules(min_rows=100),
        performance=performance.to_dict(),
    )
    world = World(tmp_path, profile)
    (tmp_path / "labels").mkdir()
    monitor = world.monitor(labels=tmp_path / "labels")
    for number in range(2):
        rows = scored(500, number + 5)
        world.blocks.write(
            block_of(
                number,
                rows=500,
                ids=True,
                inputs={"x": rows.x},
                outputs={"said": texts(rows.said)},
            )
        )
        keys = [f"replica-1-{number}-{row}" for row in range(500)]
        if kind == "csv":
            lines = [
                "request_id,label",
                *(f"{k},{v}" for k, v in zip(keys, texts(rows.true), strict=True)),
            ]
        else:
            lines = [
                f'{{"request_id": "{k}", "label": {2 - v}}}'
                for k, v in zip(keys, rows.true, strict=True)
            ]
        (tmp_path / "labels" / f"{number}.{kind}").write_text("\n".join(lines))
        world.run(monitor)
    last = world.notes.reports[-1].performance
    assert last.labelled == 500
    assert last.accuracy == pytest.approx(1 - performance.errors.mean, abs=0.05)
    assert last.error_esr is not None
    assert last.error_esr < 10
