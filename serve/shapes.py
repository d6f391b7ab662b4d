"""Whether an answer has the shape that stable's answers have.

The shape of ``{"predictions": …}`` is the number of predictions and the *form* of one: nested
lengths, keys, and whether its values are numbers, texts, booleans or null. A canary whose form
stable has not shown, or which does not give a prediction a row, is in doubt; whoever asks
(``serve.router``) then has stable answer the same request, and compares.

Example::

    shape_of(b'{"predictions": [[0.1, 0.9]]}')    # Shape(count=1, form=("list", 2, "number"))
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import orjson

from serve.answer import Answer

__all__ = ["Shape", "ShapeMemory", "shape_of"]

_LARGEST = 1 << 20  # bytes of an answer that is looked into
_REMEMBERED = 16
_DEEP = 8

Form = tuple[Any, ...] | str


@dataclass(frozen=True, slots=True)
class Shape:
    """Of an answer.

    Attributes:
        count: Number of predictions; None where they are no list.
        form: Of one prediction.
    """

    count: int | None
    form: Form


def shape_of(body: bytes) -> Shape | None:
    """The shape of an answer's body; None for one that is too large to look into."""
    if len(body) > _LARGEST:
        return None
    try:
        answer = orjson.loads(body)
    except ValueError:
        try:
            answer = json.loads(body)  # NaN and Infinity, which MLflow writes
        except ValueError:
            return Shape(None, "not JSON")
    if not isinstance(answer, dict) or "predictions" not in answer:
        return Shape(None, "no predictions")
    predictions = answer["predictions"]
    if not isinstance(predictions, list):
        return Shape(None, _form(predictions))
    return Shape(len(predictions), _form(predictions[0]) if predictions else "nothing")


def _form(value: Any, depth: int = 0) -> Form:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    if value is None:
        return "null"
    if depth >= _DEEP:
        return "deep"
    if isinstance(value, list):
        return ("list", len(value), _form(value[0], depth + 1) if value else "nothing")
    return ("object", *((key, _form(part, depth + 1)) for key, part in sorted(value.items())))


class ShapeMemory:
    """The forms of stable's latest good answers."""

    def __init__(self) -> None:
        self._forms: dict[Form, None] = {}

    def learn(self, answer: Answer) -> None:
        """Remember the form of a good answer of stable."""
        shape = shape_of(answer.body)
        if shape is not None:
            self._forms.pop(shape.form, None)
            self._forms[shape.form] = None
            if len(self._forms) > _REMEMBERED:
                del self._forms[next(iter(self._forms))]

    def __bool__(self) -> bool:
        return bool(self._forms)

    def doubtful(self, answer: Answer, rows: int) -> bool:
        """Whether a good answer has a form that stable has not shown, or not one result a row.

        Args:
            answer: Of another variant.
            rows: How many rows were asked, where stable gives a prediction a row; 0: not known.
        """
        if not self._forms:
            return False
        shape = shape_of(answer.body)
        if shape is None:
            return False
        return shape.form not in self._forms or bool(rows and shape.count != rows)

    @staticmethod
    def differ(one: Answer, other: Answer) -> bool:
        """Whether two answers to one request have different shapes."""
        return shape_of(one.body) != shape_of(other.body)
