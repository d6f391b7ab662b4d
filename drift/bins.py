"""What one column is counted by: its bins, fitted on the reference once, and the counting.

Every value of a column falls into exactly one bin, whatever it is, so that a window's counts always
sum to its rows. Three kinds:

============  ======================================================================================
numeric       missing, unparsable, below the first cut, between two cuts …, from the last cut on
category      missing, unseen, rare, one for each category with at least 2 % of the reference
presence      missing, present (a masked column: nothing else of it is known)
============  ======================================================================================

*missing*: None, NaN, NaT, pandas' NA, and ±infinity, which is as little a number to compute with.
*unparsable*: what is no number, such as every value after a change from integers to strings; a
string that looks like a number is still one. *unseen*: a category that the reference had not.
Booleans are categories; integers count as their nearest float64, times as seconds since 1970.
A column with more than 1,000 rare categories (an identifier) cannot tell rare from unseen: all of
them count as rare.

Cuts are values of the reference, at its quantiles. A value that holds two quantiles or more gets a
bin of its own, so a column that is 80 % zero keeps its zeros apart, and a constant column has the
bins below, itself, above. The reference's least value is the first cut and the number after its
largest is the last: outside them lies what the reference never saw. ``private=True`` (a PII column)
leaves these two out, and the rare categories, because they would tell of single people.

Smoothing (``smoothed``): one pseudo-count in each bin. It leaves no bin without probability, and is
the honest mass for an end that the reference never reached: the chance that the next of n + 1
exchangeable values is a new smallest is 1 / (n + 1).

Example::

    bins = NumericBins.fit(reference)            # float64 (n,)
    bins.count(window)                           # int64 (bins.size,)
    bins.names                                   # ("missing", "unparsable", "below 0.5", …)
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift.cuts import MOST_ROWS, below_cuts, is_fast, single_cuts
from drift.documents import Fields, number_text
from drift.tables import one_dimensional
from governance.errors import MalformedRequestError

__all__ = [
    "MISSING",
    "Bins",
    "CategoryBins",
    "NumericBins",
    "PresenceBins",
    "absent",
    "bins_from",
    "category_of",
    "fit_bins",
    "numbers_of",
    "smoothed",
]

MISSING = 0
"""The place of the bin for missing values, in every kind."""

_RARE_SHARE = 0.02
_MOST_RARE = 1000
_LONGEST = 64  # letters of a category; a longer one is cut and told apart by its digest
_MOSTLY = 0.9  # an object column with this share of numbers is numeric
_ABSENT_TYPES = frozenset({"NAType", "NaTType"})

Codes = NDArray[np.int64]
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def smoothed(counts: ArrayLike) -> Floats:
    """Reference probabilities (…, bins) of reference counts (…, bins): one pseudo-count a bin."""
    raised = np.asarray(counts, dtype=np.float64) + 1.0
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))


def absent(value: Any) -> bool:
    """Whether a value counts as missing."""
    if value is None or type(value).__name__ in _ABSENT_TYPES:
        return True
    if isinstance(value, float | np.floating | Decimal):
        return not math.isfinite(value)
    return isinstance(value, np.datetime64 | np.timedelta64) and bool(np.isnat(value))


def category_of(value: Any) -> str | None:
    """The category a value is counted as; None for a missing one.

    Whole numbers are written alike whether they come as 3, 3.0 or numpy's: pandas turns integers
    into floats when a value is missing.
    """
    if type(value) is not str:
        if absent(value):
            return None
        if isinstance(value, bool | np.bool_):
            return "true" if value else "false"
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        elif isinstance(value, float | np.floating | Decimal) and value == int(value):
            value = int(value)
    text = str(value)
    if len(text) > _LONGEST:
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
        text = f"{text[: _LONGEST - 13]}…{digest[:12]}"
    # A lone surrogate has no place in JSON, and so not in a profile.
    return text if text.isascii() else text.encode(errors="replace").decode()


def numbers_of(values: NDArray[Any]) -> tuple[Floats, NDArray[np.bool_]]:
    """(n,) floats with NaN for what is missing or no number, and which of them are no number."""
    kind = values.dtype.kind
    if kind in "fiub":
        return values.astype(np.float64), np.zeros(values.shape, dtype=np.bool_)
    if kind in "mM":
        numbers = values.astype(f"{kind}8[us]").astype(np.float64) / 1e6
        numbers[np.isnat(values)] = np.nan
        return numbers, np.zeros(values.shape, dtype=np.bool_)
    numbers = np.full(values.shape, np.nan)
    strange = np.ones(values.shape, dtype=np.bool_)
    if kind != "O":
        return numbers, strange
    for place, value in enumerate(values.tolist()):
        if absent(value):
            strange[place] = False
        elif isinstance(value, datetime):
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            numbers[place], strange[place] = aware.timestamp(), False
        elif isinstance(value, Real | Decimal | np.bool_):
            try:
                numbers[place] = float(value)
            except OverflowError:
                continue  # an integer beyond every float
            strange[place] = False
    return numbers, strange


@dataclass(frozen=True, slots=True)
class NumericBins:
    """Bins between cuts: bin ``2 + i`` holds the values in [cuts[i - 1], cuts[i]).

    Attributes:
        cuts: Ascending; none for a column without a single number.
    """

    kind: ClassVar[str] = "numeric"
    cuts: tuple[float, ...]

    @classmethod
    def fit(cls, values: ArrayLike, bins: int = 10, *, private: bool = False) -> NumericBins:
        """Cuts at the quantiles of ``values`` (n,); what is no finite number is left out."""
        numbers, _ = numbers_of(one_dimensional(values, "values"))
        ordered = np.sort(numbers[np.isfinite(numbers)])
        if not len(ordered):
            return cls(())
        last = float(ordered[-1])
        rises = np.flatnonzero(ordered[1:] > ordered[:-1])
        if len(rises) < bins:  # few values: each has its bin
            cuts = {float(ordered[0]), *ordered[rises + 1].tolist()}
        else:
            # Values of the sample itself, never between two: equal quantiles are equal exactly.
            places = np.maximum(-(-np.arange(bins + 1) * len(ordered) // bins) - 1, 0)
            quantiles = Counter(ordered[places].tolist())
            cuts = {value for value, times in quantiles.items() if value != last or times > 1}
            cuts |= {_next(value) for value, times in quantiles.items() if times > 1}
        cuts.add(_next(last))
        if private:
            cuts -= {float(ordered[0]), _next(last)}
        return cls(tuple(sorted(cuts)))

    @property
    def size(self) -> int:
        """How many bins."""
        return len(self.cuts) + 3

    @property
    def names(self) -> tuple[str, ...]:
        """Of the bins, for people."""
        return ("missing", "unparsable", *_range_names(self.cuts))

    def codes(self, values: ArrayLike) -> Codes:
        """The bin of each value (n,)."""
        numbers, strange = numbers_of(one_dimensional(values, "values"))
        codes = np.searchsorted(np.asarray(self.cuts, dtype=np.float64), numbers, side="right") + 2
        codes[~np.isfinite(numbers)] = MISSING
        codes[strange] = 1
        return codes.astype(np.int64)

    def count(self, values: ArrayLike) -> Counts:
        """How many values fall into each bin: (size,)."""
        array = one_dimensional(values, "values")
        if not is_fast(array.dtype):
            return np.bincount(self.codes(array), minlength=self.size).astype(np.int64)
        if array.dtype.kind != "f" or array.dtype.itemsize < 4:
            array = array.astype(np.float64)
        finite = array[np.isfinite(array)]
        exact = np.asarray(self.cuts, dtype=np.float64)[None, :]
        cuts: NDArray[Any] = single_cuts(exact) if array.dtype == np.float32 else exact
        below = np.zeros(len(self.cuts), dtype=np.int64)
        for start in range(0, len(finite), MOST_ROWS):
            block = np.ascontiguousarray(finite[None, start : start + MOST_ROWS])
            below += below_cuts(block, cuts)[0]
        counts = np.zeros(self.size, dtype=np.int64)
        counts[MISSING] = len(array) - len(finite)
        counts[2:] = np.diff(below, prepend=0, append=len(finite))
        return counts

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"kind": self.kind, "cuts": [*map(number_text, self.cuts)]}


@lru_cache(maxsize=4096)
def _range_names(cuts: tuple[float, ...]) -> tuple[str, ...]:
    """Names of the ranges that cuts make; with as many digits as it takes to tell them apart."""
    if not cuts:
        return ("any number",)
    singles = {low for low, high in pairwise(cuts) if _next(low) == high}
    # The number right after a value is that value, to a reader.
    shown = [low if _next(low) == cut else cut for low, cut in pairwise([math.nan, *cuts])]
    if len(cuts) == 1 or _next(cuts[-2]) != cuts[-1]:
        shown[-1] = math.nextafter(cuts[-1], -math.inf)
    for digits in (4, 6, 9, 12, 17):
        texts = [f"{value:.{digits}g}" for value in shown]
        names = [f"below {texts[0]}"]
        for i, low in enumerate(cuts[:-1]):
            names.append(texts[i] if low in singles else f"{texts[i]} to {texts[i + 1]}")
        names.append(f"above {texts[-1]}")
        if len(set(names)) == len(names):
            break
    return tuple(names)


def _next(value: float) -> float:
    return math.nextafter(value, math.inf)


@dataclass(frozen=True, slots=True)
class CategoryBins:
    """A bin for each category that is common in the reference.

    Attributes:
        categories: In the order of their code points.
        rare: Categories of the reference below 2 %, by the first 16 hex digits of their SHA-256,
            which tells rare from unseen without their names. None: too many or too private to
            remember, and whatever is not common counts as rare.
    """

    kind: ClassVar[str] = "category"
    categories: tuple[str, ...]
    rare: frozenset[str] | None = frozenset()

    @classmethod
    def fit(cls, values: ArrayLike, *, private: bool = False) -> CategoryBins:
        """The categories with at least 2 % of ``values`` (n,)."""
        found = _tally(one_dimensional(values, "values"))
        least = _RARE_SHARE * sum(found.values())
        common = sorted(name for name, n in found.items() if name is not None and n >= least)
        others = [name for name, n in found.items() if name is not None and n < least]
        if private or len(others) > _MOST_RARE:
            return cls(tuple(common), None)
        return cls(tuple(common), frozenset(map(_short_digest, others)))

    @property
    def size(self) -> int:
        """How many bins."""
        return len(self.categories) + 3

    @property
    def names(self) -> tuple[str, ...]:
        """Of the bins, for people."""
        special = ("missing", "unseen", "rare")
        return (
            *special,
            *(f"“{name}”" if name in special else name for name in self.categories),
        )

    def codes(self, values: ArrayLike) -> Codes:
        """The bin of each value (n,)."""
        array = one_dimensional(values, "values")
        place = self._places()
        known: dict[str | None, int] = {None: MISSING}
        codes = []
        # Times as numpy has them, as they are tallied: its list of them depends on their unit.
        for value in array if array.dtype.kind in "mM" else array.tolist():
            name = category_of(value)
            code = known.get(name)
            if code is None:
                code = known[name] = self._code(name, place)
            codes.append(code)
        return np.array(codes, dtype=np.int64)

    def count(self, values: ArrayLike) -> Counts:
        """How many values fall into each bin: (size,)."""
        place = self._places()
        counts = np.zeros(self.size, dtype=np.int64)
        for name, count in _tally(one_dimensional(values, "values")).items():
            counts[self._code(name, place)] += count
        return counts

    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.categories, start=3)}

    def _code(self, name: str | None, place: dict[str, int]) -> int:
        if name is None:
            return MISSING
        code = place.get(name)
        if code is None:
            code = 2 if self.rare is None or _short_digest(name) in self.rare else 1
        return code

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": self.kind,
            "categories": list(self.categories),
            "rare": None if self.rare is None else sorted(self.rare),
        }


def _short_digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def _tally(array: NDArray[Any]) -> Counter[str | None]:
    """How often each category occurs; None is missing."""
    tally: Counter[str | None] = Counter()
    if array.dtype.kind in "fiubmM":
        found, counts = np.unique(array, return_counts=True)
        for value, count in zip(found, counts.tolist(), strict=True):
            tally[category_of(value.item() if array.dtype.kind in "fiub" else value)] += count
    else:
        tally.update(map(category_of, array.tolist()))
    return tally


@dataclass(frozen=True, slots=True)
class PresenceBins:
    """Of a masked column: whether there is a value."""

    kind: ClassVar[str] = "presence"

    @property
    def size(self) -> int:
        """How many bins."""
        return 2

    @property
    def names(self) -> tuple[str, ...]:
        """Of the bins, for people."""
        return ("missing", "present")

    def codes(self, values: ArrayLike) -> Codes:
        """The bin of each value (n,)."""
        array = one_dimensional(values, "values")
        if array.dtype.kind == "f":
            return np.asarray(np.isfinite(array), dtype=np.int64)
        if array.dtype.kind in "mM":
            return np.asarray(~np.isnat(array), dtype=np.int64)
        if array.dtype.kind != "O":
            return np.ones(len(array), dtype=np.int64)
        return np.array([not absent(value) for value in array.tolist()], dtype=np.int64)

    def count(self, values: ArrayLike) -> Counts:
        """How many values fall into each bin: (2,)."""
        return np.bincount(self.codes(values), minlength=2).astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"kind": self.kind}


Bins = NumericBins | CategoryBins | PresenceBins


def fit_bins(
    values: ArrayLike, *, bins: int = 10, kind: str | None = None, private: bool = False
) -> Bins:
    """Bins of the kind that suits ``values`` (n,), or of the ``kind`` asked for.

    Numbers and times are numeric; booleans and texts categories; an object column is numeric when
    at least nine in ten of its present values are numbers.
    """
    array = one_dimensional(values, "values")
    if kind is None:
        kind = "numeric" if _looks_numeric(array) else "category"
    match kind:
        case "numeric":
            return NumericBins.fit(array, bins, private=private)
        case "category":
            return CategoryBins.fit(array, private=private)
        case "presence":
            return PresenceBins()
    raise MalformedRequestError(
        f"{kind!r} is no kind of column", "it is one of numeric, category, presence"
    )


def _looks_numeric(array: NDArray[Any]) -> bool:
    if array.dtype.kind != "O":
        return array.dtype.kind in "fiumM"
    present = [value for value in array.tolist() if not absent(value)]
    numbers = sum(
        isinstance(value, Real | Decimal | datetime) and not isinstance(value, bool)
        for value in present
    )
    return numbers >= _MOSTLY * len(present)  # also a column of which nothing is present


def bins_from(fields: Fields) -> Bins:
    """Inverse of ``to_dict``.

    Raises:
        MalformedRequestError: names the place.
    """
    kind = fields.text("kind", among=("numeric", "category", "presence"))
    bins: Bins
    if kind == "numeric":
        cuts = fields.numbers("cuts")
        if not all(math.isfinite(cut) for cut in cuts) or sorted(set(cuts)) != cuts:
            raise fields.wrong("has cuts that do not ascend")
        bins = NumericBins(tuple(cuts))
    elif kind == "category":
        categories = fields.texts("categories")
        if list(categories) != sorted(set(categories)):
            raise fields.wrong("has categories that are not in order")
        rare = fields.optional_texts("rare")
        bins = CategoryBins(categories, None if rare is None else frozenset(rare))
    else:
        bins = PresenceBins()
    fields.done()
    return bins
