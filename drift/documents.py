"""Strict reading of this room's JSON documents: every mistake names its place.

Numbers that are not whole travel as their shortest exact decimal text (``repr``), because canonical
JSON has no floats; a text that ``repr`` would not write is refused, so that a document has one
spelling and one digest. Keys that nobody asked for are refused too.

Example::

    fields = Fields.parse(data, "chancery.drift-profile/v1", "drift profile")
    window = fields.integer("window", least=1)
    fields.done()
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from governance.canonical import parse_json
from governance.errors import MalformedRequestError

__all__ = ["Fields", "number_text"]

_REMEDY = "write it again with the version of Chancery that reads it, or restore the file"
_NEEDED: Any = object()


def number_text(value: float) -> str:
    """The shortest decimal text that reads back as the same number."""
    return repr(float(value))


class Fields:
    """One JSON object, read key by key.

    Args:
        values: The object.
        where: What a message calls it.
    """

    __slots__ = ("_left", "_values", "where")

    def __init__(self, values: Any, where: str) -> None:
        self.where = where
        if not isinstance(values, dict):
            raise self.wrong("is not an object")
        self._values: Mapping[str, Any] = values
        self._left = set(values)

    @classmethod
    def parse(cls, data: bytes | str, document_format: str, what: str) -> Fields:
        """The top of a document.

        Raises:
            MalformedRequestError: no JSON, or of another format or version.
        """
        try:
            document = parse_json(data)
        except (ValueError, RecursionError) as error:
            raise MalformedRequestError(f"the {what} is not JSON: {error}", _REMEDY) from error
        fields = cls(document, f"the {what}")
        found = fields._take("format", None)
        if found != document_format:
            raise fields.wrong(
                f"has the format {found!r}, and this version reads {document_format!r}"
            )
        return fields

    def wrong(self, what: str) -> MalformedRequestError:
        """An error about this object."""
        return MalformedRequestError(f"{self.where} {what}", _REMEDY)

    def _take(self, key: str, default: Any) -> Any:
        self._left.discard(key)
        value = self._values.get(key, default)
        if value is _NEEDED:
            raise self.wrong(f"lacks {key!r}")
        return value

    def text(self, key: str, default: Any = _NEEDED, *, among: tuple[str, ...] = ()) -> str:
        """A text, one of ``among`` if given."""
        value = self._take(key, default)
        if not isinstance(value, str):
            raise self.wrong(f"has a {key!r} that is no text")
        if among and value not in among:
            raise self.wrong(f"has the {key!r} {value!r}, which is none of {', '.join(among)}")
        return value

    def flag(self, key: str, default: Any = _NEEDED) -> bool:
        """True or false."""
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self.wrong(f"has a {key!r} that is neither true nor false")
        return value

    def integer(self, key: str, default: Any = _NEEDED, *, least: int = 0) -> int:
        """A whole number."""
        return self._whole(self._take(key, default), repr(key), least)

    def optional_integer(self, key: str) -> int | None:
        """A whole number of any sign, or null."""
        value = self._take(key, None)
        return None if value is None else self._whole(value, repr(key), -(2**53))

    def _whole(self, value: Any, name: str, least: int) -> int:
        if type(value) is not int or value < least:
            raise self.wrong(f"has a {name} that is no whole number of at least {least}")
        return value

    def number(self, key: str, default: Any = _NEEDED, *, least: float = -math.inf) -> float:
        """A number written as text; infinities are allowed, NaN never."""
        value = self._take(key, default)
        if isinstance(value, float) and value is default:
            return value
        return self._number(value, repr(key), least)

    def _number(self, value: Any, name: str, least: float) -> float:
        try:
            number = float(value) if isinstance(value, str) else math.nan
        except ValueError:
            number = math.nan
        if math.isnan(number) or number < least or number_text(number) != value:
            raise self.wrong(f"has a {name} that is no number of at least {least} written as text")
        return number

    def items(self, key: str, default: Any = _NEEDED) -> list[Any]:
        """A list."""
        value = self._take(key, default)
        if not isinstance(value, list):
            raise self.wrong(f"has a {key!r} that is no list")
        return value

    def texts(self, key: str, default: Any = _NEEDED) -> tuple[str, ...]:
        """A list of texts."""
        values = self.items(key, default)
        if not all(isinstance(value, str) for value in values):
            raise self.wrong(f"has in {key!r} something that is no text")
        return tuple(values)

    def optional_texts(self, key: str) -> tuple[str, ...] | None:
        """A list of texts, or null."""
        return (
            None
            if self._values.get(key, ()) is None and self._take(key, None) is None
            else (self.texts(key))
        )

    def integers(self, key: str, default: Any = _NEEDED) -> list[int]:
        """A list of whole numbers, none below zero."""
        return [self._whole(value, f"{key!r} value", 0) for value in self.items(key, default)]

    def numbers(self, key: str, default: Any = _NEEDED, *, least: float = -math.inf) -> list[float]:
        """A list of numbers written as texts."""
        return [self._number(value, f"{key!r} value", least) for value in self.items(key, default)]

    def number_rows(self, key: str) -> list[list[float]]:
        """A list of lists of numbers written as texts."""
        rows = self.items(key)
        if not all(isinstance(row, list) for row in rows):
            raise self.wrong(f"has in {key!r} something that is no list")
        name = f"{key!r} value"
        return [[self._number(value, name, -math.inf) for value in row] for row in rows]

    def optional_object(self, key: str) -> Fields | None:
        """An object inside, or null."""
        value = self._take(key, None)
        return None if value is None else Fields(value, f"{self.where}, {key!r},")

    def object(self, key: str, default: Any = _NEEDED) -> Fields:
        """An object inside."""
        return Fields(self._take(key, default), f"{self.where}, {key!r},")

    def objects(self, key: str, default: Any = _NEEDED) -> Iterator[Fields]:
        """A list of objects."""
        for position, value in enumerate(self.items(key, default)):
            yield Fields(value, f"{self.where}, {key}[{position}],")

    def opaque(self, key: str) -> dict[str, Any] | None:
        """An object that somebody else reads, or null."""
        value = self._take(key, None)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(f"has a {key!r} that is neither an object nor null")
        return value

    def counts(self, key: str, default: Any = _NEEDED) -> dict[str, int]:
        """An object from names to whole numbers."""
        values = self._take(key, default)
        if not isinstance(values, dict):
            raise self.wrong(f"has a {key!r} that is no object")
        return {name: self._whole(count, f"{key}.{name}", 0) for name, count in values.items()}

    def named_texts(self, key: str, default: Any = _NEEDED) -> dict[str, str]:
        """An object from names to texts."""
        values = self._take(key, default)
        if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
            raise self.wrong(f"has a {key!r} that is no object of texts")
        return dict(values)

    def done(self) -> None:
        """Nothing may be left that nobody asked for."""
        if self._left:
            raise self.wrong(f"has unknown keys: {', '.join(sorted(self._left))}")
