"""Labels as the profile spells them: a class ``01`` is a text, whatever a file makes of it.

CSV has texts alone, JSON and Parquet what their writer took a class for. A label is the class that
it equals; else the one class that is written alike, or that is the same number; where two are, it
is neither. What is no known class stays what it is, as a number where the classes are numbers, as a
text where they are texts. ``nan`` is missing unless it is a class. Without classes, labels are
numbers.

Example::

    KnownClasses(["01", "02"]).meant(1)          # "01"
    KnownClasses([0, 1]).meant("1")              # 1
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from drift.confidences import Class
from drift.group_counts import is_missing

__all__ = ["KnownClasses"]


class KnownClasses:
    """See the module.

    Args:
        classes: The profile's; empty for a regression.
    """

    def __init__(self, classes: Sequence[Class]) -> None:
        self._own = {(isinstance(one, str), one): one for one in classes}
        self._spelled = _alone((_spelled(one), one) for one in classes)
        self._numbers = _alone((_number(one), one) for one in classes)
        self._are_texts = bool(classes) and all(isinstance(one, str) for one in classes)
        self._are_numbers = not any(isinstance(one, str) for one in classes)

    def meant(self, label: Any) -> Any:
        """The class, or the number, that a label means; None: it is missing."""
        if is_missing(label):
            return None
        text = isinstance(label, str)
        with suppress(TypeError):  # what has no hash is no class
            found = self._own.get((text, label))
            if found is not None:
                return found
        spelled, number = _spelled(label), _number(label)
        for known, key in ((self._spelled, spelled), (self._numbers, number)):
            found = known.get(key)
            if found is not None:
                return found
        if number is not None and math.isnan(number):
            return None
        if self._are_texts:
            return spelled
        return _as_number(label, number) if text and self._are_numbers else label


def _alone(pairs: Iterable[tuple[Hashable, Class]]) -> dict[Hashable, Class]:
    """Without keys that are of several classes, and without None."""
    found: dict[Hashable, Class] = {}
    twice = set()
    for key, one in pairs:
        if key in found:
            twice.add(key)
        found[key] = one
    return {key: one for key, one in found.items() if key is not None and key not in twice}


def _spelled(value: Any) -> str:
    """As text: whole numbers and truths alike, whichever type they come in."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    return text.lower() if text.lower() in ("true", "false") else text


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        if value.lower() in ("true", "false"):
            return float(value.lower() == "true")
        if "_" in value:  # Python reads 1_0 as 10
            return None
    try:
        return float(value)
    except (TypeError, ValueError, ArithmeticError):
        return None


def _as_number(text: str, number: float | None) -> Any:
    """A text that is no known class, where classes are numbers; whole ones exactly."""
    if number is None:
        return text
    with suppress(ValueError):
        return int(text)
    return number
