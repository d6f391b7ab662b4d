"""What an answer says, and the bins in which answers are counted.

Of each answer one prediction is looked at, drawn by chance: rows of one request are not independent
of each other, and the tests count independent observations. It is reduced to a number, a class, or
a vector:

=======================  ===========================================================================
prediction               counts as
=======================  ===========================================================================
a number                 itself; one that is not finite: the class ``not a number``
a text, a boolean, null  its class
a list of one, an object its element; the value of its first key in alphabetical order
a list of numbers        a vector
another list             its first element
no predictions at all    the class ``no prediction``
=======================  ===========================================================================

Bins are frozen once, from answers of stable alone, before any answer is compared. Numbers get bins
between quantiles of stable's answers, or a bin a value where there are few; classes are bins.
Vectors are read as probabilities when all of stable's are (then the class is the place of the
largest), else by their first number. Whatever the bins do not know (another class, a text among
numbers) lies in one bin more, the last.

Example::

    bins = freeze("r1", samples, wanted=10)
    bins.bin_of(drawn(body, draw))
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import Any

import orjson

from governance.canonical import canonical_json, sha256_hex

__all__ = [
    "NO_PREDICTION",
    "OutputBins",
    "Reading",
    "Seen",
    "Vector",
    "drawn",
    "freeze",
    "needed_samples",
    "parse_seen",
    "predictions_in",
    "seen_text",
]

NO_PREDICTION = "no prediction"
_NOT_A_NUMBER = "not a number"

_LARGEST = 1 << 20  # bytes of an answer that is looked into
_CLASSES = 50
_LONGEST = 64  # letters of a class; a longer one goes by its digest
_DEEP = 8
_NORMALISED = 1e-3


class Reading(StrEnum):
    """What of a prediction is binned."""

    NUMBER = "number"
    CLASS = "class"
    ARGMAX = "argmax"
    FIRST = "first"


@dataclass(frozen=True, slots=True)
class Vector:
    """A list of numbers: its first, the place of its largest, and whether it is a probability."""

    first: float
    largest: int
    probability: bool


Seen = float | str | Vector
"""A prediction, reduced."""


def predictions_in(body: bytes) -> Any:
    """The predictions of an answer; None where there are none."""
    if len(body) > _LARGEST:
        return None
    try:
        answer = orjson.loads(body)
    except ValueError:
        try:
            answer = json.loads(body)  # NaN and Infinity, which MLflow writes
        except (ValueError, RecursionError):
            return None
    return answer.get("predictions") if isinstance(answer, dict) else None


def drawn(body: bytes, draw: Callable[[int], int]) -> Seen:
    """One prediction of an answer, by chance (``draw(n)``: a number below n), reduced."""
    predictions = predictions_in(body)
    if predictions is None or predictions == []:
        return NO_PREDICTION
    if isinstance(predictions, list):
        return _reduced(predictions[draw(len(predictions)) if len(predictions) > 1 else 0])
    return _reduced(predictions)


def _reduced(value: Any) -> Seen:
    for _ in range(_DEEP):
        if isinstance(value, bool) or value is None:
            return json.dumps(value)
        if isinstance(value, int | float):
            return _number(value)
        if isinstance(value, str):
            return _class(value)
        if isinstance(value, dict) and value:
            value = value[min(value)]
        elif isinstance(value, list) and value:
            if len(value) > 1 and all(type(part) in (int, float) for part in value):
                return _vector(value)
            value = value[0]
        else:
            break
    return NO_PREDICTION


def _number(value: float) -> float | str:
    try:
        number = float(value)
    except OverflowError:
        return _NOT_A_NUMBER
    return number if math.isfinite(number) else _NOT_A_NUMBER


def _class(text: str) -> str:
    return text if len(text) <= _LONGEST else f"sha256:{sha256_hex(text.encode())[:32]}"


def _vector(values: list[float]) -> Seen:
    if any(isinstance(_number(value), str) for value in values):
        return _NOT_A_NUMBER
    first = float(values[0])
    probability = min(values) >= 0 and abs(sum(values) - 1) <= _NORMALISED
    return Vector(first, max(range(len(values)), key=values.__getitem__), probability)


def seen_text(seen: Seen) -> str:
    """For a report; ``parse_seen`` is its inverse."""
    if isinstance(seen, Vector):
        return f"v:{seen.largest}:{seen.probability:d}:{seen.first!r}"
    return f"c:{seen}" if isinstance(seen, str) else f"n:{seen!r}"


def parse_seen(text: str) -> Seen:
    """Inverse of ``seen_text``.

    Raises:
        ValueError: it is none.
    """
    kind, separator, rest = text.partition(":")
    if separator and kind == "c":
        return _class(rest)
    if separator and kind == "n":
        number = float(rest)
        if math.isfinite(number):
            return number
    if separator and kind == "v":
        largest, probability, first = rest.split(":")
        return Vector(float(first), int(largest), probability == "1")
    raise ValueError(f"not an output: {text[:40]!r}")


@dataclass(frozen=True)  # not slotted: the places of classes are looked up once
class OutputBins:
    """Frozen for one rollout.

    Attributes:
        rollout: Its id.
        reading: What of a prediction is binned.
        edges: Of numbers, increasing; n edges make n + 1 bins.
        classes: One bin each.
    """

    rollout: str
    reading: Reading
    edges: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.classes)}

    @cached_property
    def digest(self) -> str:
        """Names these bins in reports: counts in others are never added to them."""
        return sha256_hex(canonical_json(self.to_dict()))[:32]

    @property
    def other(self) -> int:
        """The bin of whatever the others do not know."""
        return len(self.classes) if self.classes else len(self.edges) + 1

    def bin_of(self, seen: Seen) -> int:
        """Where a prediction counts."""
        if isinstance(seen, Vector):
            if self.reading is Reading.ARGMAX:
                return self._places.get(str(seen.largest), self.other)
            if self.reading is not Reading.FIRST:
                return self.other
            number = seen.first
        elif self.reading in (Reading.ARGMAX, Reading.FIRST):
            return self.other
        elif isinstance(seen, str):
            known = self.reading is Reading.CLASS
            return self._places.get(seen, self.other) if known else self.other
        elif self.reading is Reading.CLASS:
            return self.other
        else:
            number = seen
        if self.classes:
            return self._places.get(_written(number), self.other)
        return bisect_right(self.edges, number)

    def name_of(self, place: int) -> str:
        """A bin in words."""
        if place >= self.other:
            return "anything else"
        if self.classes:
            text = self.classes[place]
            return repr(text) if self.reading is Reading.CLASS else text
        if not self.edges:
            return "any number"
        if place == 0:
            return f"below {self.edges[0]:.4g}"
        if place == len(self.edges):
            return f"{self.edges[-1]:.4g} and more"
        return f"{self.edges[place - 1]:.4g} to {self.edges[place]:.4g}"

    def compared(self, canary: Mapping[int, int], stable: Mapping[int, int]) -> str:
        """The bins that differ most, in one sentence; empty while there is nothing to say."""
        nc, ns = sum(canary.values()), sum(stable.values())
        if not nc or not ns:
            return ""
        shares = {b: (canary.get(b, 0) / nc, stable.get(b, 0) / ns) for b in {*canary, *stable}}
        most = sorted(shares, key=lambda b: -abs(shares[b][0] - shares[b][1]))[:3]
        parts = (
            f"{self.name_of(b)}: {100 * shares[b][0]:.3g} % of the canary's and "
            f"{100 * shares[b][1]:.3g} % of stable's"
            for b in most
        )
        return f"Answers by bin, where they differ most: {'; '.join(parts)}."

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without floats."""
        return {
            "rollout": self.rollout,
            "reading": self.reading.value,
            "edges": [repr(edge) for edge in self.edges],
            "classes": list(self.classes),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> OutputBins:
        """Inverse of ``to_dict``.

        Raises:
            ValueError: edges that do not increase, or an unknown reading.
        """
        edges = tuple(float(edge) for edge in document["edges"])
        if any(not low < high for low, high in pairwise(edges)):
            raise ValueError("the bins' edges do not increase")
        classes = tuple(str(name) for name in document["classes"])
        return cls(document["rollout"], Reading(document["reading"]), edges, classes)


def needed_samples(wanted: int) -> int:
    """How many answers of stable are looked at before bins are frozen."""
    return max(200, 20 * wanted)


def freeze(rollout: str, samples: Sequence[Seen], wanted: int) -> OutputBins:
    """Bins from answers of stable.

    Args:
        rollout: Its id.
        samples: The answers, reduced; at least one.
        wanted: How many bins numbers get, at most.
    """
    vectors = [seen for seen in samples if isinstance(seen, Vector)]
    numbers = [seen for seen in samples if isinstance(seen, float)]
    classes = [seen for seen in samples if isinstance(seen, str)]
    if len(vectors) > max(len(numbers), len(classes)):
        if all(vector.probability for vector in vectors):
            places = [str(vector.largest) for vector in vectors]
            return OutputBins(rollout, Reading.ARGMAX, classes=_commonest(places))
        return _of_numbers(rollout, Reading.FIRST, [v.first for v in vectors], wanted)
    if len(numbers) >= len(classes):
        return _of_numbers(rollout, Reading.NUMBER, numbers, wanted)
    return OutputBins(rollout, Reading.CLASS, classes=_commonest(classes))


def _of_numbers(rollout: str, reading: Reading, numbers: list[float], wanted: int) -> OutputBins:
    if len(set(numbers)) <= wanted:
        return OutputBins(rollout, reading, classes=_commonest([_written(n) for n in numbers]))
    ordered = sorted(numbers)
    edges = {ordered[len(ordered) * part // wanted] for part in range(1, wanted)}
    for value, count in Counter(numbers).items():
        if count * wanted >= len(numbers):  # many answers are just this: a bin of its own
            edges |= {value, math.nextafter(value, math.inf)}
    return OutputBins(rollout, reading, edges=tuple(sorted(edges)))


def _written(number: float) -> str:
    return f"{number:.12g}"


def _commonest(names: list[str]) -> tuple[str, ...]:
    """Bounded; in alphabetical order, so that the order of requests does not matter."""
    return tuple(sorted(name for name, _ in Counter(sorted(names)).most_common(_CLASSES)))
