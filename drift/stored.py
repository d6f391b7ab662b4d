"""Records of this room as JSON, there and back exactly; for state that only a monitor reads.

It follows the records' types: dataclasses, tuples, mappings, sets, enumerations, optional values,
plain ones. Floats keep their bits, infinite ones too, and may be texts (as in the documents that
others read). A document that does not fit the type is
refused, by its place. (Documents that others read have formats of their own.)

Example::

    read(Verdict, json.loads(json.dumps(plain(verdict)))) == verdict
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from governance.errors import MalformedRequestError

__all__ = ["field_names", "plain", "read"]

T = TypeVar("T")


def plain(value: Any) -> Any:
    """What JSON can hold of a record."""
    kind: Any = type(value)
    if kind in _SCALARS:
        return value
    names = field_names(kind)
    if names:
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, frozenset):
        return sorted(map(plain, value), key=lambda one: (one is None, str(one)))
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    raise TypeError(f"no JSON for {type(value).__name__}")  # a mistake of ours


_SCALARS = frozenset({type(None), bool, int, float, str})


@lru_cache(maxsize=256)
def field_names(kind: Any) -> tuple[str, ...]:
    """Of a record's fields; none of what is no record."""
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()


def read(kind: type[T], value: Any, where: str = "the state") -> T:
    """Inverse of ``plain``.

    Raises:
        MalformedRequestError: the document does not fit.
    """
    try:
        return cast(T, _read(kind, value, where))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise MalformedRequestError(
            f"{where} cannot be read: {error}", "restore the file, or begin without it"
        ) from error


@lru_cache(maxsize=256)
def _types(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _read(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{where} is {value!r}")
        return value
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (inner,) = (one for one in get_args(kind) if one is not type(None))
        return _read(inner, value, where)
    if origin is tuple:
        inner, *more = get_args(kind)
        if more == [Ellipsis]:
            return tuple(_read(inner, one, f"{where}[{i}]") for i, one in enumerate(value))
        pairs = zip((inner, *more), value, strict=True)
        return tuple(_read(part, one, where) for part, one in pairs)
    if origin is frozenset:
        return frozenset(_read(get_args(kind)[0], one, where) for one in value)
    if origin is not None and issubclass(origin, Mapping):
        inner = get_args(kind)[1]
        return {name: _read(inner, one, f"{where}.{name}") for name, one in value.items()}
    if isinstance(kind, type) and is_dataclass(kind):
        hints, known = _types(kind), {field.name for field in fields(kind)}
        if not isinstance(value, dict) or not set(value) <= known:
            raise ValueError(f"{where} is no {kind.__name__}")
        return kind(**{n: _read(hints[n], one, f"{where}.{n}") for n, one in value.items()})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{where} is a {type(value).__name__}, not a {kind.__name__}")
    return value
