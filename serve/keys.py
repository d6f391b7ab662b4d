"""Where a request's sticky key is: a header, a cookie, or a field of its body.

Example::

    read = key_reader("cookie:session")
    key = read(body, headers)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

__all__ = ["KeyReader", "key_reader"]

KeyReader = Callable[[bytes, Mapping[str, str]], str | None]
"""Body and headers (by lower-case name) to the key; None when there is none."""


def key_reader(sticky: str | None) -> KeyReader:
    """What reads the key that ``sticky`` (``header:NAME``, ``cookie:NAME``, ``field:NAME``) names.

    A field is looked for beside the data, in ``params``, and in the first row.

    Raises:
        ValueError: another place.
    """
    if sticky is None:
        return lambda body, headers: None
    place, _, name = sticky.partition(":")
    if place == "header":
        lower = name.lower()
        return lambda body, headers: headers.get(lower)
    if place == "cookie":
        return lambda body, headers: _cookie(headers.get("cookie", ""), name)
    if place == "field":
        return lambda body, headers: _field(body, name)
    raise ValueError(f"{sticky!r} does not say where the key is")


def _cookie(cookies: str, name: str) -> str | None:
    for part in cookies.split(";"):
        key, _, value = part.partition("=")
        if key.strip() == name:
            return value.strip().strip('"')
    return None


def _field(body: bytes, name: str) -> str | None:
    try:
        payload = orjson.loads(body)
    except ValueError:
        return None
    if not isinstance(payload, dict):
        return None
    if name in payload:
        return _text(payload[name])
    params = payload.get("params")
    if isinstance(params, dict) and name in params:
        return _text(params[name])
    split = payload.get("dataframe_split")
    if isinstance(split, dict):
        try:
            return _text(split["data"][0][split["columns"].index(name)])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            return None
    for format_ in ("dataframe_records", "instances", "inputs"):
        data = payload.get(format_)
        if isinstance(data, list) and data and isinstance(data[0], dict):
            return _text(data[0].get(name))
        if isinstance(data, dict):
            value = data.get(name)
            return _text(value[0] if isinstance(value, list) and value else value)
    return None


def _text(value: Any) -> str | None:
    """Numbers and texts are keys; anything else is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return None
