"""Probabilities and predictions as models give them, read into scores and places of classes.

What cannot be used is marked, row by row, and never guessed: NaN, a probability outside [0, 1],
rows that do not add up to 1, a class that is not known. Shapes that cannot be meant are refused.

Example::

    scores, chosen, usable = read_confidences([[0.2, 0.8]], ["yes"], ("no", "yes"), "yes")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from governance.errors import ConfigurationError

__all__ = ["Class", "checked_classes", "mistake", "places_of", "read_confidences"]

Floats = NDArray[np.float64]
Class = str | int | bool
"""As a label says it; a JSON value."""

_SLACK = 1e-6  # rounding of a softmax in 32 bits


def read_confidences(
    probabilities: Any, predictions: Any, classes: tuple[Class, ...], positive: Class | None
) -> tuple[Floats, NDArray[np.int64], NDArray[np.bool_]]:
    """Scores (of the positive, or the predicted class), places of predictions, which are usable."""
    chosen = places_of(predictions, classes)
    values = _numbers(probabilities)
    if len(values) != len(chosen):
        raise mistake(f"{len(values)} rows of probabilities and {len(chosen)} predictions")
    if not len(chosen):
        return np.zeros(0), chosen, np.zeros(0, dtype=bool)
    if values.ndim == 1 and positive is not None:
        scores = values
        usable = np.ones(len(values), dtype=bool)
    elif values.ndim == 2 and values.shape[1] == len(classes):
        place = chosen if positive is None else np.full(len(chosen), classes.index(positive))
        scores = values[np.arange(len(values)), np.maximum(place, 0)]
        with np.errstate(invalid="ignore"):
            usable = (np.abs(values.sum(axis=1) - 1) <= 1e-3) & (values >= -_SLACK).all(axis=1)
    else:
        raise mistake(
            f"probabilities of shape {values.shape} for the {len(classes)} classes {list(classes)}"
        )
    with np.errstate(invalid="ignore"):
        usable &= (chosen >= 0) & (scores >= -_SLACK) & (scores <= 1 + _SLACK)
    return np.clip(scores, 0.0, 1.0), chosen, usable


def _numbers(values: Any) -> Floats:
    """As floats; what is no number is NaN, and its row is counted as unusable."""
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        pass
    try:
        loose = np.asarray(values, dtype=object)
    except ValueError as error:  # ragged
        raise mistake("rows of probabilities are not equally long") from error
    return np.array([_number(value) for value in loose.ravel()]).reshape(loose.shape)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def places_of(values: Any, classes: tuple[Class, ...]) -> NDArray[np.int64]:
    """Of classes; -1 for what is none of them."""
    known = {name: place for place, name in enumerate(classes)}
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    try:
        return np.array([known.get(value, -1) for value in listed], dtype=np.int64)
    except TypeError:  # a list or an object among them
        return np.array(
            [known.get(v, -1) if isinstance(v, str | int) else -1 for v in listed],
            dtype=np.int64,
        )


def checked_classes(
    classes: Sequence[Any], positive: Class | None
) -> tuple[tuple[Class, ...], Class | None]:
    """Checked; numpy's scalars as Python's."""
    plain = tuple(name.item() if isinstance(name, np.generic) else name for name in classes)
    positive = positive.item() if isinstance(positive, np.generic) else positive
    if len(set(plain)) != len(plain) or len(plain) < 2:
        raise mistake(f"classes must be two or more, each once; got {list(plain)}")
    if not all(isinstance(name, str | int) for name in plain):
        raise mistake(f"classes must be texts, integers or booleans; got {list(plain)}")
    if len(plain) > 2:
        if positive is not None:
            raise mistake(f"a positive class is for two classes; there are {len(plain)}")
        return plain, None
    if positive is None:
        return plain, plain[1]
    if positive not in plain:
        raise mistake(f"the positive class {positive!r} is not one of {list(plain)}")
    return plain, positive


def mistake(text: str) -> ConfigurationError:
    return ConfigurationError(
        f"estimated accuracy: {text}",
        "give held-out predictions with probabilities in [0, 1] and labels, in the order of time, "
        "at least ten windows of them; or leave estimated accuracy out of the profile",
    )
