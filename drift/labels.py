"""Labels that come later, joined with their predictions by request id.

A prediction waits under its key (``row_key``: the request's id, and the row where a request has
several) until its label comes. What was joined is summed by the window that the prediction was in,
and handed out once (``take``).

What else can come is counted, never silent:

=================  =================================================================================
``joined``         labels that met their prediction
``unknown``        labels whose prediction is not known; the newest are kept, for a label may be
                   quicker than the block that its prediction is in
``duplicates``     the same label again: ignored
``conflicts``      another label for the same key: the first counts
``repeated``       the same prediction again, as when a block is read twice: ignored
``dropped``        predictions that gave up waiting, because newer ones needed the room
``unreadable``     labels that are none (missing, or for a regression no finite number)
=================  =================================================================================

Memory is bounded: ``most`` predictions wait, as many joined keys are remembered, and as many labels
without prediction. Whoever stores the state (``to_dict``) together with how far blocks and labels
were read, and reads on from there, loses nothing and counts nothing twice.

Example::

    labels = Labels(reference, most=100_000)
    labels.expect("r-1", prediction=1, window=4, groups={"sex": "f"})
    labels.label("r-1", 0)
    labels.take()[4].outcomes        # (0, 1): none right, one wrong
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from drift.error_rate import ErrorReference
from drift.group_counts import (
    MOST_GROUPS,
    OTHERS,
    GroupCounts,
    counts_from_dict,
    counts_to_dict,
    group_name,
    is_missing,
    merged,
    row_counts,
)
from governance.canonical import sha256_hex
from governance.errors import ConfigurationError

__all__ = ["LabelSums", "Labels", "row_key"]

_FORMAT = "chancery.labels/v1"
_LONGEST = 256

Scalar = str | int | float | bool | None


def row_key(request_id: str, row: int = 0) -> str:
    """Where the label of a request's row belongs; the first row's is the request's id itself,
    unless that would look like another request's row."""
    text = _short(request_id)
    return f"{text}#{row}" if row or "#" in text else text


@dataclass(frozen=True, slots=True)
class LabelSums:
    """Of joined rows; two windows' sums merge by ``+``.

    Attributes:
        outcomes: Rows in each outcome of the ``ErrorReference``, best to worst.
        squared: Sum of squared errors; of a classifier, of errors.
        groups: Attribute → group → counts.
    """

    outcomes: tuple[int, ...]
    squared: float = 0.0
    groups: Mapping[str, Mapping[str, GroupCounts]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(self.outcomes)

    @property
    def errors(self) -> int:
        """Rows in the worst outcome; of a classifier: errors."""
        return self.outcomes[-1]

    @property
    def mean_error(self) -> float | None:
        """Error rate, or mean squared error; None of nothing."""
        return self.squared / self.rows if self.rows else None

    def __add__(self, other: LabelSums) -> LabelSums:
        return LabelSums(
            tuple(a + b for a, b in zip(self.outcomes, other.outcomes, strict=True)),
            self.squared + other.squared,
            {
                name: merged(self.groups.get(name, {}), other.groups.get(name, {}))
                for name in {**self.groups, **other.groups}
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON: fractions as their shortest exact decimal text."""
        return {
            "outcomes": list(self.outcomes),
            "squared": repr(self.squared),
            "groups": {name: counts_to_dict(counts) for name, counts in self.groups.items()},
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> LabelSums:
        """Exact inverse of ``to_dict``."""
        return cls(
            tuple(int(count) for count in document["outcomes"]),
            float(document["squared"]),
            {name: counts_from_dict(counts) for name, counts in document["groups"].items()},
        )


@dataclass(frozen=True, slots=True)
class _Waiting:
    prediction: Scalar
    window: int
    time_ms: int
    groups: Mapping[str, Scalar]


@dataclass(slots=True)
class _Sums:
    """``LabelSums`` while they grow: a label costs additions, not objects."""

    outcomes: list[int]
    squared: float = 0.0
    groups: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def add(self, attribute: str, group: str, row: Sequence[int]) -> None:
        counts = self.groups.setdefault(attribute, {})
        if group not in counts:
            group = group if len(counts) < MOST_GROUPS - 1 else OTHERS
            counts.setdefault(group, [0] * len(row))
        counts[group] = [a + b for a, b in zip(counts[group], row, strict=True)]

    def frozen(self) -> LabelSums:
        groups = {
            name: {group: GroupCounts(*row) for group, row in sorted(counts.items())}
            for name, counts in self.groups.items()
        }
        return LabelSums(tuple(self.outcomes), self.squared, groups)

    @classmethod
    def of(cls, sums: LabelSums) -> _Sums:
        groups = {
            name: {group: list(astuple(counts)) for group, counts in named.items()}
            for name, named in sums.groups.items()
        }
        return cls(list(sums.outcomes), sums.squared, groups)


class Labels:
    """Predictions that wait, labels that came, and what joined. Not for several threads.

    Args:
        reference: Says which outcome an answer falls into.
        positive: The class that fairness asks about.
        most: Predictions that wait at the same time, at least 1.
    """

    def __init__(
        self, reference: ErrorReference, *, positive: Scalar = 1, most: int = 100_000
    ) -> None:
        if most < 1:
            raise ConfigurationError(
                f"room for {most} waiting predictions", "let at least one wait for its label"
            )
        self._reference = reference
        self._positive = positive
        self._most = most
        # All three in the order of arrival: dictionaries keep it, and the first is the oldest.
        self._waiting: dict[str, _Waiting] = {}
        self._joined: dict[str, Scalar] = {}
        self._early: dict[str, Scalar] = {}
        self._sums: dict[int, _Sums] = {}
        self._counts: Counter[str] = Counter()

    def expect(
        self,
        key: str,
        prediction: Any,
        *,
        window: int,
        time_ms: int = 0,
        groups: Mapping[str, Any] | None = None,
    ) -> None:
        """A prediction that waits for its label.

        Args:
            key: See ``row_key``.
            prediction: Class or number.
            window: Whose sums it counts in.
            time_ms: When it was made; kept to tell how old what waits is.
            groups: Attribute → the row's value.
        """
        key = _short(key)
        if key in self._waiting or key in self._joined:
            self._counts["repeated"] += 1
            return
        plain = {name: _plain(value) for name, value in (groups or {}).items()}
        waiting = _Waiting(_plain(prediction), window, time_ms, plain)
        if key in self._early:
            self._join(key, waiting, self._early.pop(key))
            return
        self._waiting[key] = waiting
        if len(self._waiting) > self._most:
            del self._waiting[next(iter(self._waiting))]
            self._counts["dropped"] += 1

    def label(self, key: str, label: Any) -> None:
        """A label that came."""
        key, label = _short(key), _plain(label)
        if not self._usable(label):
            self._counts["unreadable"] += 1
        elif key in self._joined:
            self._again(self._joined[key], label)
        elif key in self._waiting:
            self._join(key, self._waiting.pop(key), label)
        elif key in self._early:
            self._again(self._early[key], label)
        else:
            self._early[key] = label
            if len(self._early) > self._most:
                del self._early[next(iter(self._early))]
                self._counts["unknown"] += 1

    def _usable(self, label: Scalar) -> bool:
        if not self._reference.edges:
            return not is_missing(label)
        try:
            return label is not None and math.isfinite(float(label))
        except (ValueError, OverflowError):
            return False

    def _again(self, first: Scalar, second: Scalar) -> None:
        self._counts["duplicates" if first == second else "conflicts"] += 1

    def _join(self, key: str, waiting: _Waiting, label: Scalar) -> None:
        reference, answer = self._reference, waiting.prediction
        sums = self._sums.get(waiting.window)
        if sums is None:
            sums = self._sums[waiting.window] = _Sums([0] * reference.outcomes)
        sums.outcomes[reference.outcome(answer, label)] += 1
        sums.squared += reference.squared(answer, label)
        if waiting.groups:
            row = row_counts(answer, label, self._positive)
            for name, value in waiting.groups.items():
                sums.add(name, group_name(value), row)
        self._counts["joined"] += 1
        self._joined[key] = label
        if len(self._joined) > self._most:
            del self._joined[next(iter(self._joined))]

    def take(self) -> dict[int, LabelSums]:
        """What was joined since the last call, by the predictions' windows; oldest window first."""
        taken = {window: self._sums[window].frozen() for window in sorted(self._sums)}
        self._sums = {}
        return taken

    @property
    def waiting(self) -> int:
        """Predictions without a label so far."""
        return len(self._waiting)

    @property
    def oldest_ms(self) -> int | None:
        """When the prediction that waits longest was made."""
        return next((waiting.time_ms for waiting in self._waiting.values()), None)

    @property
    def counts(self) -> dict[str, int]:
        """See the module's table; ``unknown`` counts those that are kept, too."""
        names = ("joined", "unknown", "duplicates", "conflicts", "repeated", "dropped")
        counts = {name: self._counts[name] for name in (*names, "unreadable")}
        counts["unknown"] += len(self._early)
        return counts

    def to_dict(self) -> dict[str, Any]:
        """The whole state, for JSON; what was not taken yet is in it."""
        return {
            "format": _FORMAT,
            "waiting": [
                [key, _text(w.prediction), w.window, w.time_ms, _texts(w.groups)]
                for key, w in self._waiting.items()
            ],
            "joined": [[key, _text(label)] for key, label in self._joined.items()],
            "early": [[key, _text(label)] for key, label in self._early.items()],
            "sums": {str(window): sums.frozen().to_dict() for window, sums in self._sums.items()},
            "counts": dict(self._counts),
        }

    @classmethod
    def from_dict(
        cls,
        document: Mapping[str, Any],
        reference: ErrorReference,
        *,
        positive: Scalar = 1,
        most: int = 100_000,
    ) -> Labels:
        """Inverse of ``to_dict``; a smaller ``most`` drops the oldest, and counts them.

        Raises:
            ConfigurationError: it is no such state, or one of another reference.
        """
        labels = cls(reference, positive=positive, most=most)
        try:
            if document["format"] != _FORMAT:
                raise ValueError(f"its format is {document['format']!r}")
            for key, prediction, window, time_ms, groups in document["waiting"]:
                plain = {name: json.loads(value) for name, value in groups.items()}
                labels._waiting[str(key)] = _Waiting(
                    json.loads(prediction), int(window), int(time_ms), plain
                )
            labels._joined = {str(key): json.loads(label) for key, label in document["joined"]}
            labels._early = {str(key): json.loads(label) for key, label in document["early"]}
            labels._sums = {
                int(window): _Sums.of(LabelSums.from_dict(sums))
                for window, sums in document["sums"].items()
            }
            labels._counts = Counter({str(k): int(v) for k, v in document["counts"].items()})
            if any(len(s.outcomes) != reference.outcomes for s in labels._sums.values()):
                raise ValueError("its outcomes are not the reference's")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(
                f"the state of waiting labels cannot be read: {error}",
                "begin without it; predictions that waited then count as unknown",
            ) from error
        labels._shrink()
        return labels

    def _shrink(self) -> None:
        for kept, name in ((self._waiting, "dropped"), (self._early, "unknown")):
            for key in list(kept)[: max(0, len(kept) - self._most)]:
                del kept[key]
                self._counts[name] += 1
        for key in list(self._joined)[: max(0, len(self._joined) - self._most)]:
            del self._joined[key]


def _short(text: str) -> str:
    """Bounded; a longer one goes by its digest, so that two of them stay two. A lone surrogate has
    no place in a document: it becomes a question mark."""
    if not text.isascii():
        text = text.encode(errors="replace").decode()
    return text if len(text) <= _LONGEST else f"sha256:{sha256_hex(text.encode())}"


def _plain(value: Any) -> Scalar:
    """A scalar that JSON has: numpy's as Python's, missing as None, anything else as its text."""
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    if isinstance(value, str):
        return _short(value)
    if isinstance(value, bool | int | float):
        return value
    return None if is_missing(value) else _short(str(value))


def _text(value: Scalar) -> str:
    return json.dumps(value)  # floats exactly, NaN and infinity too


def _texts(values: Mapping[str, Scalar]) -> dict[str, str]:
    return {name: _text(value) for name, value in values.items()}
