"""What of an answer is looked at, and the bins in which answers are counted."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.outputs import (
    NO_PREDICTION,
    OutputBins,
    Reading,
    Seen,
    Vector,
    drawn,
    freeze,
    parse_seen,
    seen_text,
)


def answer(predictions: object) -> bytes:
    return json.dumps({"predictions": predictions}).encode()


def last(count: int) -> int:
    return count - 1


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        (answer([1, 2.5]), 2.5),
        (answer([3]), 3.0),
        (answer(["cat"]), "cat"),
        (answer([True]), "true"),
        (answer([None]), "null"),
        (answer([[0.5]]), 0.5),
        (answer([[0.2, 0.7, 0.1]]), Vector(0.2, 1, True)),
        (answer([[5, -7]]), Vector(5.0, 0, False)),
        (answer([{"score": 0.5, "label": "cat"}]), "cat"),
        (answer([[["x", 1], 2]]), "x"),
        (answer(0.25), 0.25),
        (answer({"b": 1, "a": [7]}), 7.0),
        (b'{"predictions": [NaN]}', "not a number"),
        (b'{"predictions": [[0.5, Infinity]]}', "not a number"),
        (answer([10**400]), "not a number"),
        (answer([]), NO_PREDICTION),
        (answer([[]]), NO_PREDICTION),
        (answer([{}]), NO_PREDICTION),
        (b'{"outputs": [1]}', NO_PREDICTION),
        (b"[1]", NO_PREDICTION),
        (b"{nonsense", NO_PREDICTION),
        (b"[" * 100_000, NO_PREDICTION),
        (answer([1]) + b" " * (1 << 20), NO_PREDICTION),
    ],
)
def test_one_prediction_of_an_answer_is_reduced(body: bytes, seen: Seen) -> None:
    assert drawn(body, last) == seen
    assert parse_seen(seen_text(seen)) == seen


def test_the_row_is_drawn() -> None:
    body = answer(list(range(10)))
    found = {drawn(body, random.Random(5).randrange) for _ in range(3)}
    assert found == {drawn(body, random.Random(5).randrange)}
    generator = random.Random(5)
    assert len({drawn(body, generator.randrange) for _ in range(200)}) == 10


def test_a_long_class_goes_by_its_digest() -> None:
    one, other = drawn(answer(["x" * 999]), last), drawn(answer(["x" * 998]), last)
    assert isinstance(one, str)
    assert len(one) < 64
    assert one != other


@pytest.mark.parametrize("text", ["", "n:", "n:inf", "n:x", "v:1", "v:1:2", "q:5", "0.5"])
def test_what_is_no_output_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_seen(text)


def test_numbers_get_bins_of_like_size() -> None:
    generator = random.Random(1)
    bins = freeze("r1", [generator.gauss(0, 1) for _ in range(1000)], 10)
    assert bins.reading is Reading.NUMBER
    assert len(bins.edges) == 9
    counts = [0] * (bins.other + 1)
    for _ in range(10_000):
        counts[bins.bin_of(generator.gauss(0, 1))] += 1
    assert counts[-1] == 0
    assert all(500 < count < 1500 for count in counts[:-1])
    assert bins.bin_of("cat") == bins.bin_of(Vector(0.0, 1, True)) == bins.other


def test_a_value_that_is_most_of_the_answers_has_a_bin_of_its_own() -> None:
    """Else a canary that answers something else above it would lie in the same bin."""
    samples: list[Seen] = [0.0] * 950 + [part / 50 for part in range(1, 51)]
    bins = freeze("r1", samples, 10)
    places = [bins.bin_of(value) for value in (-1e-9, 0.0, 1e-9, 0.5)]
    assert len(set(places[:3])) == 3
    assert places[2] == places[3]


def test_few_values_and_classes_are_their_own_bins() -> None:
    bins = freeze("r1", [0.0, 1.0, 1.0, 2.0], 10)
    assert [bins.bin_of(value) for value in (0.0, 1.0, 2.0, 3.0)] == [0, 1, 2, 3]
    assert bins.bin_of("1") == bins.other == 3
    bins = freeze("r1", ["cat", "dog", "cat"], 10)
    assert [bins.bin_of(value) for value in ("cat", "dog", "cow", 1.0)] == [0, 1, 2, 2]
    many = freeze("r1", [f"class {n}" for n in range(900)] + ["common"] * 9, 10)
    assert len(many.classes) == 50
    assert "common" in many.classes


def test_vectors_are_read_by_what_stable_showed() -> None:
    probabilities: list[Seen] = [Vector(0.9, 0, True), Vector(0.2, 2, True)]
    bins = freeze("r1", probabilities, 10)
    assert bins.reading is Reading.ARGMAX
    assert bins.bin_of(Vector(5.0, 2, False)) == bins.bin_of(Vector(0.1, 2, True))
    assert bins.bin_of(Vector(0.1, 1, True)) == bins.other
    assert bins.bin_of("2") == bins.bin_of(0.9) == bins.other
    numbers: list[Seen] = [Vector(float(n), 0, n % 2 == 0) for n in range(100)]
    bins = freeze("r1", numbers, 4)
    assert bins.reading is Reading.FIRST
    assert bins.bin_of(Vector(0.0, 1, True)) == 0
    assert bins.bin_of(Vector(99.0, 1, True)) == 3
    assert bins.bin_of(0.0) == bins.other


_SEEN = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=64),
    st.builds(
        Vector,
        st.floats(allow_nan=False, allow_infinity=False),
        st.integers(0, 1000),
        st.booleans(),
    ),
)


@given(st.lists(_SEEN, min_size=1, max_size=60), st.integers(2, 20), _SEEN)
def test_bins_survive_storage_and_take_in_anything(
    samples: list[Seen], wanted: int, other: Seen
) -> None:
    bins = freeze("r1", samples, wanted)
    again = OutputBins.from_dict(json.loads(json.dumps(bins.to_dict())))
    assert again == bins
    assert again.digest == bins.digest
    for seen in (*samples, other):
        place = again.bin_of(parse_seen(seen_text(seen)))
        assert place == bins.bin_of(seen)
        assert 0 <= place <= bins.other
        assert bins.name_of(place)


def test_the_order_of_samples_does_not_matter() -> None:
    samples: list[Seen] = [random.Random(3).random() for _ in range(500)]
    assert freeze("r1", samples, 10) == freeze("r1", samples[::-1], 10)
    assert freeze("r1", samples, 10).digest != freeze("r2", samples, 10).digest


def test_edges_that_do_not_increase_are_refused() -> None:
    document = OutputBins("r1", Reading.NUMBER, edges=(1.0, 2.0)).to_dict()
    document["edges"] = ["2.0", "1.0"]
    with pytest.raises(ValueError, match="increase"):
        OutputBins.from_dict(document)


def test_the_bins_that_differ_most_are_told() -> None:
    bins = OutputBins("r1", Reading.NUMBER, edges=(0.0, 1.0))
    said = bins.compared({0: 10, 2: 90}, {0: 50, 1: 50})
    assert "1 and more: 90 % of the canary's and 0 % of stable's" in said
    assert "below 0: 10 % of the canary's and 50 % of stable's" in said
    assert bins.compared({}, {0: 1}) == ""
    assert bins.name_of(3) == "anything else"
    assert OutputBins("r", Reading.CLASS, classes=("cat",)).name_of(0) == "'cat'"
