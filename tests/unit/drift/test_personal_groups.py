"""Fairness by personal columns: by the groups that leave, and never by silence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drift.fairness import FairnessBounds
from drift.fitting import fit_profile
from drift.performance import PerformanceWatch
from drift.personal_groups import shown_groups
from drift.profile import DriftProfile
from drift.recording import recorder_of
from drift.rules import Rules
from drift.sections import FairnessSection, fit_fairness
from drift.training import fit_with_reference
from governance.errors import ConfigurationError
from tests.unit.drift.monitor_world import NOW, World
from tests.unit.drift.test_monitored_performance import scored

ROWS = 12_000
AGES = np.random.default_rng(1).integers(18, 80, ROWS)
BOUNDS = [
    FairnessBounds("age", against_champion=0.05, smallest_window=1000, smallest_group=10),
    FairnessBounds("sex", selection=0.8, smallest_window=1000),
]


def fitted(pii: dict[str, Any]) -> DriftProfile:
    rows = scored(ROWS, 0)
    return fit_with_reference(
        {"x": rows.x, "age": AGES, "sex": rows.sex},
        {"p": rows.p, "said": rows.said},
        model="fraud",
        labels=rows.true,
        prediction="said",
        fairness=BOUNDS,
        window=500,
        kinds={"said": "category"},
        rules=Rules(min_rows=100),
        pii=pii,
        reference=False,
    ).profile


def served(world: World, young: int) -> dict[str, Any]:
    """2,000 rows as a recorder lets them leave; those younger than ``young`` are not selected."""
    rows, ages = scored(2000, 9), np.random.default_rng(2).integers(18, 80, 2000)
    raw = {"x": rows.x, "age": ages, "sex": rows.sex}
    recorder = recorder_of(world.profile, source="r1")
    said = np.where(ages < young, 0, rows.said)
    recorder.append(raw, {"p": rows.p, "said": said}, "7", time_ms=NOW)
    for block in recorder.flush():
        world.blocks.write(block)
    return raw


def test_a_binned_column_is_compared_with_the_champion_by_its_bins(tmp_path: Path) -> None:
    profile = fitted({"age": "bin", "sex": "bin"})
    section = FairnessSection.of(profile)
    assert section is not None
    (age,) = (column for column in profile.columns if column.name == "age")
    assert set(section.reference["age"]) <= set(age.bins.names)
    assert set(section.reference["sex"]) == {"f", "m"}
    assert sum(one.rows for one in section.reference["age"].values()) == ROWS

    calm, changed = World(tmp_path / "calm", profile), World(tmp_path / "changed", profile)
    raw = served(calm, 0)
    served(changed, 30)
    for world in (calm, changed):
        world.run(world.monitor())
    groups = set(shown_groups(profile, "age", raw["age"]))
    assert groups == set(section.reference["age"])
    besides = [text for one in calm.notes.reports for text in one.verdict.besides]
    assert not any("fairness" in text for text in besides)
    besides = [text for one in changed.notes.reports for text in one.verdict.besides]
    assert any("age: selection" in text and ": worse" in text for text in besides)


@pytest.mark.parametrize("values", [np.full(6000, 1.0), np.full(6000, None)])
def test_a_column_of_which_nothing_leaves_is_refused_by_fairness(values: Any) -> None:
    said, true = [0, 1] * 3000, [0, 1] * 3000
    features = {"sex": values}
    pii: dict[str, Any] = {"sex": "mask" if values[0] else "bin"}
    section = fit_fairness(features, said, true, [FairnessBounds("sex")])
    with pytest.raises(ConfigurationError, match="nothing leaves"):
        fit_profile(
            features, model="fraud", window=100, pii=pii, kinds={"sex": "numeric"},
            fairness=section.to_dict(),
        )  # fmt: skip
    profile = fit_profile(features, model="fraud", window=100, pii=pii, kinds={"sex": "numeric"})
    with pytest.raises(ConfigurationError, match="nothing leaves"):
        fit_fairness(features, said, true, [FairnessBounds("sex")], profile=profile)


def test_training_refuses_fairness_by_a_masked_column() -> None:
    with pytest.raises(ConfigurationError, match="'sex', of whose values nothing leaves"):
        fitted({"sex": "mask"})


def test_groups_of_the_raw_values_of_a_binned_column_are_refused() -> None:
    rows = scored(ROWS, 0)
    features = {"age": AGES}
    raw = fit_fairness(features, rows.said.tolist(), rows.true, BOUNDS[:1])
    with pytest.raises(ConfigurationError, match="the reference's groups are other ones"):
        fit_profile(features, model="fraud", window=500, pii={"age": "bin"}, fairness=raw.to_dict())


def test_a_profile_of_before_says_what_it_does_not_watch(caplog: pytest.LogCaptureFixture) -> None:
    rows = scored(ROWS, 0)
    features = {"age": AGES, "sex": rows.sex}
    raw = fit_fairness(features, rows.said.tolist(), rows.true, BOUNDS)
    profile = fit_profile(features, model="fraud", window=500, pii={"age": "bin", "sex": "mask"})
    PerformanceWatch(profile)
    assert not caplog.records
    PerformanceWatch(replace(profile, fairness=raw.to_dict()))
    assert len(caplog.records) == 2
