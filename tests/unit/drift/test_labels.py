"""Labels that come late, twice, to nobody, or across a restart."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest

from drift.error_rate import ErrorReference
from drift.group_counts import MOST_GROUPS, OTHERS, GroupCounts
from drift.labels import Labels, LabelSums, row_key
from governance.canonical import canonical_json, parse_json
from governance.errors import ConfigurationError

CLASSES = ErrorReference((900, 100), (), 0.1)
NUMBERS = ErrorReference((100, 100, 100), (1.0, 2.0), 1.0)


def stored(labels: Labels, reference: ErrorReference = CLASSES, most: int = 100_000) -> Labels:
    """What a restart makes of it."""
    document = parse_json(canonical_json(labels.to_dict()))
    return Labels.from_dict(document, reference, most=most)


def test_a_label_meets_its_prediction_in_the_predictions_window() -> None:
    labels = Labels(CLASSES)
    labels.expect("a", 1, window=3, groups={"sex": "f"})
    labels.expect("b", 1, window=4, groups={"sex": "f"})
    labels.expect("c", 0, window=4, groups={"sex": "m"})
    labels.label("a", 1)
    labels.label("b", 0)
    labels.label("c", 0)
    taken = labels.take()
    assert list(taken) == [3, 4]
    assert taken[4].outcomes == (1, 1)
    assert (taken[4].rows, taken[4].errors, taken[4].mean_error) == (2, 1, 0.5)
    assert taken[4].groups["sex"] == {
        "f": GroupCounts(1, 1, 1, 0, 0, 0, 1),
        "m": GroupCounts(1, 0, 1, 1, 0, 0, 0),
    }
    assert labels.take() == {}
    assert labels.waiting == 0


def test_a_regression_has_squared_errors() -> None:
    labels = Labels(NUMBERS)
    for key, (prediction, label) in enumerate([(1.0, 1.5), (1.0, 4.0), (math.nan, 1.0)]):
        labels.expect(str(key), prediction, window=0)
        labels.label(str(key), label)
    sums = labels.take()[0]
    assert sums.outcomes == (1, 0, 2)
    assert sums.squared == 0.25 + 9.0


def test_labels_for_unknown_ids_are_counted() -> None:
    labels = Labels(CLASSES, most=2)
    for key in ("x", "y", "z"):
        labels.label(key, 1)
    assert labels.counts["unknown"] == 3
    assert labels.take() == {}


def test_a_label_may_be_quicker_than_its_predictions_block() -> None:
    labels = Labels(CLASSES)
    labels.label("a", 1)
    labels.label("a", 1)
    labels.label("a", 0)
    labels.expect("a", 1, window=0)
    assert labels.take()[0].outcomes == (1, 0)
    counts = labels.counts
    assert (counts["unknown"], counts["joined"]) == (0, 1)
    assert (counts["duplicates"], counts["conflicts"]) == (1, 1)


def test_duplicates_and_conflicts() -> None:
    labels = Labels(CLASSES)
    labels.expect("a", 1, window=0)
    for label in (1, 1, 0, 1.0, np.int64(1)):
        labels.label("a", label)
    assert labels.take()[0].outcomes == (1, 0)
    assert (labels.counts["duplicates"], labels.counts["conflicts"]) == (3, 1)


def test_a_prediction_read_twice_counts_once() -> None:
    labels = Labels(CLASSES)
    labels.expect("a", 1, window=0)
    labels.expect("a", 1, window=0)
    labels.label("a", 1)
    labels.expect("a", 1, window=0)
    labels.label("a", 1)
    assert labels.take()[0].rows == 1
    assert labels.counts["repeated"] == 2


@pytest.mark.parametrize(
    ("reference", "label"),
    [
        (CLASSES, None), (CLASSES, math.nan), (CLASSES, np.nan),
        (NUMBERS, None), (NUMBERS, math.inf), (NUMBERS, "high"), (NUMBERS, 10**400),
    ],
)  # fmt: skip
def test_labels_that_are_none_are_counted(reference: ErrorReference, label: Any) -> None:
    labels = Labels(reference)
    labels.expect("a", 1, window=0)
    labels.label("a", label)
    assert labels.counts["unreadable"] == 1
    assert labels.waiting == 1, "it still waits for a usable one"


def test_memory_is_bounded_and_the_oldest_give_way() -> None:
    labels = Labels(CLASSES, most=3)
    for number in range(10):
        labels.expect(str(number), 1, window=0, time_ms=number)
    assert (labels.waiting, labels.counts["dropped"], labels.oldest_ms) == (3, 7, 7)
    for number in range(10):
        labels.label(str(number), 1)
    assert labels.take()[0].rows == 3
    assert labels.counts["unknown"] == 7
    for number in range(100):
        labels.expect(f"n{number}", 1, window=0)
        labels.label(f"n{number}", 1)
        labels.label(f"u{number}", 1)
    document = labels.to_dict()
    assert len(document["joined"]) == len(document["early"]) == 3


def test_rows_of_a_request_have_keys_of_their_own() -> None:
    assert [row_key("r", row) for row in range(3)] == ["r", "r#1", "r#2"]
    ids = ["r", "r#0", "r#1", "r#1#0", "#", "#1", "r#", "r##1", "k" * 300, "k" * 300 + "#1"]
    assert len({row_key(one, row) for one in ids for row in range(3)}) == 3 * len(ids)


def test_long_ids_stay_apart() -> None:
    labels = Labels(CLASSES)
    labels.expect("k" * 5000 + "1", 1, window=0)
    labels.expect("k" * 5000 + "2", 0, window=0)
    labels.label("k" * 5000 + "2", 0)
    assert labels.take()[0].outcomes == (1, 0)
    assert len(json.dumps(labels.to_dict())) < 2000


@pytest.mark.parametrize("cut", range(0, 400, 37))
def test_a_restart_in_the_middle_loses_nothing_and_counts_nothing_twice(cut: int) -> None:
    """Events are read on from where the state was stored, or a little before it."""
    rng = random.Random(5)
    events: list[tuple[str, str, Any, int]] = []
    for number in range(200):
        answer = rng.randrange(2)
        events.append(("expect", f"r{number}", answer, number // 50))
        events.append(("label", f"r{number}", rng.choice([answer, answer, 1 - answer]), 0))
    rng.shuffle(events)

    def carried_out(labels: Labels, some: list[tuple[str, str, Any, int]]) -> None:
        for kind, key, value, window in some:
            if kind == "expect":
                labels.expect(key, value, window=window, groups={"g": key[-1]})
            else:
                labels.label(key, value)

    whole = Labels(CLASSES)
    carried_out(whole, events)
    before = Labels(CLASSES)
    carried_out(before, events[:cut])
    taken = before.take() if cut % 2 else {}
    after = stored(before)
    carried_out(after, events[max(0, cut - 20) :])  # some events are read again
    empty = LabelSums((0, 0))
    rest = after.take()
    both = {w: taken.get(w, empty) + rest.get(w, empty) for w in sorted({**taken, **rest})}
    assert both == whole.take()
    assert after.counts["joined"] == 200
    assert after.counts["conflicts"] == 0
    assert after.waiting == 0


def test_the_state_keeps_every_kind_of_value() -> None:
    labels = Labels(CLASSES)
    for value in ("text", 1, 0.1, math.nan, math.inf, True, None, np.float64(2.5), [1]):
        labels.expect(f"k{value}", value, window=-1, groups={"g": value})
    assert str(stored(labels).to_dict()) == str(labels.to_dict())


def test_a_smaller_room_after_a_restart_is_counted() -> None:
    labels = Labels(CLASSES)
    for number in range(10):
        labels.expect(str(number), 1, window=0)
        labels.label(f"u{number}", 1)
    again = stored(labels, most=4)
    assert (again.waiting, again.counts["dropped"], again.counts["unknown"]) == (4, 6, 10)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "chancery.labels/v9"},
        {"waiting": [["a"]]},
        {"joined": [["a", "nonsense"]]},
        {"sums": {"0": {"outcomes": [1, 2, 3], "squared": "0.0", "groups": {}}}},
        {"counts": []},
        {"early": None},
    ],
)
def test_a_state_that_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="waiting labels"):
        Labels.from_dict({**Labels(CLASSES).to_dict(), **change}, CLASSES)


def test_no_room_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="room for 0"):
        Labels(CLASSES, most=0)


def test_an_attribute_with_a_value_a_person_fills_no_memory() -> None:
    labels = Labels(CLASSES)
    for number in range(300):
        labels.expect(str(number), 1, window=0, groups={"email": f"p{number}"})
        labels.label(str(number), 1)
    counts = labels.take()[0].groups["email"]
    assert len(counts) == MOST_GROUPS
    assert counts[OTHERS].rows == 300 - (MOST_GROUPS - 1)
