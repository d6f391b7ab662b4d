"""Estimated accuracy, labels, errors and fairness on the way through a monitor."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift.block_rows import named, rows_of, sample_of
from drift.blocks import Block
from drift.estimated import Estimated
from drift.fairness import FairnessBounds
from drift.fitting import fit_profile
from drift.label_files import LabelFolder, labels_of
from drift.performance import PerformanceWatch
from drift.profile import DriftProfile
from drift.rules import Rules
from drift.sections import FairnessSection, PerformanceSection, fit_fairness, fit_performance
from drift.stored import plain, read
from drift.verdict import Level, Verdict
from governance.errors import ConfigurationError, MalformedRequestError
from tests.unit.drift.monitor_world import NOW, World, block_of

ROWS = 12_000


@dataclass(frozen=True)
class Scored:
    """Rows of a model that says how likely 1 is, and is right about it."""

    x: np.ndarray[Any, Any]
    sex: np.ndarray[Any, Any]
    p: np.ndarray[Any, Any]
    said: np.ndarray[Any, Any]
    true: np.ndarray[Any, Any]


def scored(rows: int, seed: int, middle: float = 0.0, wrong: float = 0.0) -> Scored:
    """``middle`` moves rows to where the model is unsure; ``wrong`` turns so many labels round."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows) * (1 - middle)
    p = 1 / (1 + np.exp(-4 * x))
    true = (rng.random(rows) < p).astype(int)
    turned = rng.random(rows) < wrong
    sex = np.array(["f", "m"], dtype=object)[rng.integers(0, 2, rows)]
    return Scored(x, sex, p, (p >= 0.5).astype(int), np.where(turned, 1 - true, true))


def profile_of() -> DriftProfile:
    rows = scored(ROWS, 0)
    features, outputs = {"x": rows.x, "sex": rows.sex}, {"p": rows.p, "said": rows.said}
    performance = fit_performance(
        outputs, rows.true, prediction="said", probabilities=["p"], window=500
    )
    bounds = FairnessBounds("sex", selection=0.8, smallest_window=1000)
    return fit_profile(
        features,
        outputs,
        model="fraud",
        window=500,
        kinds={"said": "category"},
        rules=Rules(min_rows=100),
        performance=performance.to_dict(),
        fairness=fit_fairness(features, rows.said.tolist(), rows.true, [bounds]).to_dict(),
    )


PROFILE = profile_of()


def block(number: int, rows: Scored) -> Block:
    return block_of(
        number,
        rows=len(rows.x),
        ids=True,
        inputs={"x": rows.x, "sex": rows.sex},
        outputs={"p": rows.p, "said": rows.said},
    )


def test_estimated_accuracy_falls_before_any_label_comes(tmp_path: Path) -> None:
    world = World(tmp_path, PROFILE)
    for number in range(8):
        world.blocks.write(
            block(number, scored(250, number + 1, middle=0.0 if number < 4 else 0.8))
        )
    world.run(world.monitor())
    accuracies = [report.performance.estimated_accuracy for report in world.notes.reports]
    assert all(one is not None for one in accuracies)
    calm, fallen = accuracies[0], accuracies[-1]
    assert calm is not None
    assert fallen is not None
    assert calm - fallen > 0.1
    before = world.notes.reports[-1].performance.reference_accuracy
    assert before == pytest.approx(calm, abs=0.03)
    last = world.notes.reports[-1].verdict
    assert last.level is Level.ALERT
    assert any("estimated accuracy fell" in text for text in last.quarantine)


def test_labels_are_joined_by_request_and_errors_alarm(tmp_path: Path) -> None:
    world = World(tmp_path, PROFILE)
    (tmp_path / "labels").mkdir()
    monitor = world.monitor(labels=tmp_path / "labels")
    for number in range(8):
        rows = scored(250, number + 1, wrong=0.0 if number < 4 else 0.5)
        lines = [
            json.dumps({"request_id": f"replica-1-{number}-{row}", "label": int(label)})
            for row, label in enumerate(rows.true)
        ]
        lines.append(json.dumps({"request_id": f"nobody-{number}", "label": 1}))
        (tmp_path / "labels" / f"{number}.jsonl").write_text("\n".join(lines))
        world.blocks.write(block(number, rows))
        world.run(monitor)
    performance = [report.performance for report in world.notes.reports]
    assert sum(one.labelled for one in performance) + monitor._watch.labels.counts["joined"] >= 2000
    assert performance[1].accuracy is not None
    assert performance[-1].accuracy is not None
    assert performance[1].accuracy > 0.8 > performance[-1].accuracy + 0.1
    assert performance[-1].error_esr is not None
    assert performance[-1].error_esr > 1000
    first, *_, last = [report.verdict for report in world.notes.reports]
    assert (first.level, first.besides) == (Level.OK, ())
    assert last.level is Level.ALERT
    assert not last.moved, "the columns look as before; only what they mean has changed"
    assert last.quarantine[0].startswith("labels: ")
    assert monitor._watch.labels is not None
    assert monitor._watch.labels.counts["unknown"] == 8
    assert sorted(p.name for p in (tmp_path / "labels" / "read").iterdir()) == [
        f"{number}.jsonl" for number in range(8)
    ]


def test_labels_of_a_restarted_monitor_join_and_count_once(tmp_path: Path) -> None:
    world = World(tmp_path, PROFILE)
    (tmp_path / "labels").mkdir()
    rows = scored(250, 1)
    world.blocks.write(block(0, rows))
    first = world.monitor(labels=tmp_path / "labels")
    world.run(first)
    first.close()
    text = "request_id,label\n" + "".join(
        f"replica-1-0-{row},{label}\n" for row, label in enumerate(rows.true)
    )
    (tmp_path / "labels" / "a.csv").write_text(text)
    (tmp_path / "labels" / "b.csv").write_text(text)
    second = world.monitor(labels=tmp_path / "labels")
    world.run(second)
    assert second._watch.labels is not None
    counts = second._watch.labels.counts
    assert (counts["joined"], counts["duplicates"], counts["unknown"]) == (250, 250, 0)


def test_a_group_that_is_selected_less_is_told(tmp_path: Path) -> None:
    world = World(tmp_path, PROFILE)
    for number in range(8):
        rows = scored(250, number + 1)
        said = np.where(rows.sex == "f", 0, rows.said)
        world.blocks.write(block(number, Scored(rows.x, rows.sex, rows.p, said, rows.true)))
    world.run(world.monitor())
    last = world.notes.reports[-1]
    assert dict(last.performance.fairness)["selection/sex"] == 0.0
    assert last.verdict.level is Level.ALERT
    assert any(text.startswith("fairness: sex: selection") for text in last.verdict.quarantine)
    broken = [r for r in world.notes.reports if any("fairness" in t for t in r.verdict.besides)]
    assert len(broken) >= 2


def test_sections_go_there_and_back() -> None:
    performance, fairness = PerformanceSection.of(PROFILE), FairnessSection.of(PROFILE)
    assert performance is not None
    assert fairness is not None
    assert performance.prediction == "said"
    assert isinstance(performance.estimated, Estimated)
    assert fairness.bounds[0].selection == 0.8
    watch, rows = PerformanceWatch(PROFILE, labels=True), scored(300, 3)
    watch.rows(0, block(0, rows), np.arange(300))
    watch.label("replica-1-0-5", int(rows.true[5]))
    document = json.loads(json.dumps(watch.to_dict()))
    again = PerformanceWatch(PROFILE, labels=True)
    again.restore(document)
    assert again.to_dict() == watch.to_dict()
    assert again.closed(0, judged=True) == watch.closed(0, judged=True)


def test_a_section_of_somebody_else_is_refused() -> None:
    odd = fit_profile({"x": np.arange(100.0)}, model="fraud", window=10, performance={"a": 1})
    with pytest.raises(ConfigurationError, match="cannot be read"):
        PerformanceWatch(odd)
    bare = fit_profile({"x": np.arange(100.0)}, model="fraud", window=10)
    assert not PerformanceWatch(bare).anything
    with pytest.raises(ConfigurationError, match="has no errors"):
        PerformanceWatch(bare, labels=True)


# -- files of labels


def test_labels_from_each_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("request_id,row,label\nr-1,0,1\nr-1,2,0.5\nr-2,,yes\nr-3,0,\n")
    assert labels_of(tmp_path / "a.csv") == [
        ("r-1", "1"),
        ("r-1#2", "0.5"),
        ("r-2", "yes"),
        ("r-3", None),
    ]
    (tmp_path / "b.jsonl").write_text('{"request_id": "r-1", "label": true}\n\n')
    assert labels_of(tmp_path / "b.jsonl") == [("r-1", True)]
    table = pa.table({"request_id": ["r-1", "r-2"], "label": [1, 0], "more": [1, 2]})
    pq.write_table(table, tmp_path / "c.parquet")
    assert labels_of(tmp_path / "c.parquet") == [("r-1", 1), ("r-2", 0)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "id,label\n1,2\n"),
        ("a.csv", "request_id,label\n,2\n"),
        ("a.csv", "request_id,row,label\nr,one,2\n"),
        ("a.jsonl", "[1]"),
        ("a.jsonl", "{"),
        ("a.parquet", "PAR1"),
    ],
)
def test_a_file_that_holds_no_labels_is_put_aside(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "z.csv").write_text("request_id,label\nr-1,1\n")
    with pytest.raises(MalformedRequestError, match="no labels that can be read"):
        labels_of(tmp_path / name)
    folder = LabelFolder(tmp_path)
    found = folder.unread([])
    assert found is not None
    mark, labels = found
    assert mark.endswith("/z.csv")
    assert labels == [("r-1", "1")]
    assert (tmp_path / "refused" / name).is_file()
    assert folder.put_away([mark]) == []
    assert (tmp_path / "read" / "z.csv").is_file()
    assert folder.unread([]) is None


# -- columns by name and by place


def test_columns_without_names_are_the_profiles_in_their_order() -> None:
    rows = scored(50, 1)
    one = block_of(
        0,
        rows=50,
        inputs={"0": rows.x, "1": rows.sex},
        outputs={"prediction.0": rows.p, "prediction.1": rows.said},
    )
    columns = rows_of(PROFILE, one).columns
    assert list(columns) == ["x", "sex", "p", "said"]
    sample = sample_of(PROFILE, one.inputs, one.outputs)
    assert sample.names == ("x", "sex")
    assert sample.outputs is not None
    assert sample.labels is not None
    inputs, outputs = named(PROFILE, {"x": rows.x, "new": rows.x}, {"x": rows.p})
    assert (list(inputs), list(outputs)) == (["x", "new"], ["output:x"])


def test_components_of_an_embedding_become_vectors_again() -> None:
    vectors = np.random.default_rng(0).normal(size=(1000, 4))
    profile = fit_profile({}, model="fraud", window=50, embeddings={"e": vectors}, directions=2)
    one = block_of(0, rows=40, inputs={f"e.{i}": vectors[:40, i] for i in range(4)}, outputs={})
    found = rows_of(profile, one)
    np.testing.assert_array_equal(found.columns["e"], vectors[:40])
    assert sample_of(profile, one.inputs, {}).embeddings is not None


# -- records as state


def test_records_are_read_as_they_were_written() -> None:
    verdict = Verdict(
        3, Level.WARN, True, 5, None, NOW, float("inf"), 0.1, 0.05, 2, (), ("a",), ("b",)
    )
    assert read(Verdict, json.loads(json.dumps(plain(verdict)))) == verdict
    assert plain((np.float64(0.5), np.int64(3), np.True_, Level.OK)) == [0.5, 3, True, "ok"]
    document = plain(verdict)
    for change in ({"level": "bad"}, {"rows": "5"}, {"more": 1}, {"worst": 3}):
        with pytest.raises(MalformedRequestError):
            read(Verdict, {**document, **change})
