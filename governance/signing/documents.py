"""Strict reading of JSON that decides something: every key named, every type checked.

A reader asks for each key once and then says ``done()``: a key that nobody asked for, a missing
key, another type or an odd spelling is a refusal, never a guess. Signed payloads must also be in
their one canonical form (RFC 8785), so that two spellings of one document cannot exist.

Example::

    fields = read_canonical(payload, "the statement", limit=4096)
    name = fields.text("name")
    fields.done()
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from governance.canonical import canonical_json, parse_json
from governance.errors import SignatureError

__all__ = ["Fields", "read_canonical", "read_json", "to_base64"]

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_MAX_INTEGER = 2**53 - 1


def to_base64(data: bytes) -> str:
    """Standard base64 with padding, in ASCII."""
    return base64.b64encode(data).decode("ascii")


def read_json(text: str, what: str, *, limit: int) -> Fields:
    """The JSON object in ``text``.

    Args:
        text: The document.
        what: What it is, in the error's words.
        limit: The most characters it may have.

    Raises:
        SignatureError: too long, not a JSON object, or a duplicate key.
    """
    if len(text) > limit:
        raise SignatureError(f"{what} has {len(text)} characters; at most {limit} are read")
    try:
        # A deep nest of brackets exhausts the interpreter's stack instead of failing to parse.
        return Fields(parse_json(text), what)
    except (ValueError, RecursionError) as error:
        raise SignatureError(f"{what} is not strict JSON: {error}") from error


def read_canonical(payload: bytes, what: str, *, limit: int) -> Fields:
    """Like ``read_json`` for bytes, which must be the canonical form of what they say.

    Raises:
        SignatureError: as ``read_json``, or not UTF-8, or not canonical.
    """
    if len(payload) > limit:
        raise SignatureError(f"{what} has {len(payload)} bytes; at most {limit} are read")
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SignatureError(f"{what} is not UTF-8") from error
    fields = read_json(text, what, limit=limit)
    try:
        canonical = canonical_json(fields.value)
    except (ValueError, RecursionError) as error:
        raise SignatureError(f"{what} has no canonical form: {error}") from error
    if canonical != payload:
        raise SignatureError(f"{what} is not in canonical form (RFC 8785)")
    return fields


class Fields:
    """One JSON object, read key by key. Every method raises SignatureError on a surprise."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise SignatureError(f"{where} is not a JSON object")
        self.value: dict[str, Any] = value
        self._where = where
        self._unread = set(value)

    def done(self) -> None:
        """Refuse keys that were not read."""
        if self._unread:
            names = ", ".join(repr(key) for key in sorted(self._unread)[:5])
            raise SignatureError(f"{self._where} has unknown fields: {names}")

    def error(self, key: str, expected: str) -> SignatureError:
        return SignatureError(f"{self._where}: {key!r} is not {expected}")

    def _take(self, key: str) -> Any:
        if key not in self.value:
            raise SignatureError(f"{self._where}: {key!r} is missing")
        self._unread.discard(key)
        return self.value[key]

    def exactly(self, key: str, expected: str) -> None:
        """The value must be this very string."""
        if self._take(key) != expected:
            raise self.error(key, repr(expected))

    def text(self, key: str) -> str:
        """A string that is not empty."""
        value = self._take(key)
        if not isinstance(value, str) or not value:
            raise self.error(key, "a non-empty string")
        return value

    def optional_text(self, key: str) -> str | None:
        return None if self._take(key) is None else self.text(key)

    def integer(self, key: str, *, minimum: int = 0) -> int:
        value = self._take(key)
        # bool is a subclass of int, and JSON true is no number.
        if type(value) is not int or not minimum <= value <= _MAX_INTEGER:
            raise self.error(key, f"an integer of at least {minimum}")
        return value

    def optional_integer(self, key: str) -> int | None:
        return None if self._take(key) is None else self.integer(key)

    def boolean(self, key: str) -> bool:
        value = self._take(key)
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def digest(self, key: str) -> str:
        """A SHA-256 in lower-case hex."""
        value = self._take(key)
        if not isinstance(value, str) or not _DIGEST.match(value):
            raise self.error(key, "a SHA-256 digest in lower-case hex")
        return value

    def optional_digest(self, key: str) -> str | None:
        return None if self._take(key) is None else self.digest(key)

    def binary(self, key: str) -> bytes:
        """Standard base64 in its one canonical spelling."""
        value = self._take(key)
        if not isinstance(value, str):
            raise self.error(key, "base64")
        try:
            data = base64.b64decode(value.encode("ascii"), validate=True)
        except (ValueError, binascii.Error) as error:
            raise self.error(key, "base64") from error
        if to_base64(data) != value:
            raise self.error(key, "canonical base64")
        return data

    def fields(self, key: str) -> Fields:
        return Fields(self._take(key), f"{self._where}: {key!r}")

    def optional_fields(self, key: str) -> Fields | None:
        return None if self._take(key) is None else self.fields(key)

    def later_fields(self, key: str) -> Fields | None:
        """As ``optional_fields``, for a key that older documents of the same format lack."""
        return self.optional_fields(key) if key in self.value else None

    def later_text(self, key: str) -> str | None:
        """As ``text``, for a key that is written only when there is something to say."""
        return self.text(key) if key in self.value else None

    def _list(self, key: str) -> list[Any]:
        value = self._take(key)
        if not isinstance(value, list):
            raise self.error(key, "a list")
        return value

    def each(self, key: str) -> tuple[Fields, ...]:
        """A list of objects."""
        return tuple(
            Fields(item, f"{self._where}: {key!r} item {position}")
            for position, item in enumerate(self._list(key), 1)
        )

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings that are not empty."""
        values = self._list(key)
        if not all(isinstance(item, str) and item for item in values):
            raise self.error(key, "a list of non-empty strings")
        return tuple(values)

    def digests(self, key: str) -> tuple[str, ...]:
        """A list of SHA-256 digests in lower-case hex."""
        values = self.texts(key)
        if not all(_DIGEST.match(value) for value in values):
            raise self.error(key, "a list of SHA-256 digests in lower-case hex")
        return values
