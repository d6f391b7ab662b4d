"""Turns pydantic's complaints about a policy file into sentences with line, field and remedy."""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from governance.errors import PolicyError
from governance.gates.document import Document, Path
from governance.gates.schema import PolicyFile

__all__ = ["first_mistake", "suggestion"]


def first_mistake(error: ValidationError, document: Document) -> PolicyError:
    """The mistake on the lowest line, with a count of the others."""
    mistakes = [_mistake(dict(item), document) for item in error.errors(include_url=False)]
    mistakes.sort(key=lambda mistake: mistake.line)
    first = mistakes[0]
    if len(mistakes) == 1:
        return first
    lines = ", ".join(str(n) for n in sorted({m.line for m in mistakes[1:]}))
    more = f" ({len(mistakes) - 1} more on line {lines})"
    return PolicyError(first.message + more, first.remedy, line=first.line, field=first.field)


def _mistake(item: dict[str, Any], document: Document) -> PolicyError:
    location: Path = tuple(part for part in item["loc"] if part != "[key]")
    kind, found = item["type"], item["input"]
    key = str(location[-1]) if location else ""
    if kind == "extra_forbidden":
        known = _fields_at(location[:-1])
        remedy = suggestion(key, known) or f"known keys: {', '.join(known)}"
        return document.error(location, f"unknown key {key!r}", remedy, of_key=True)
    if kind == "missing":
        return document.error(location, f"the key {key!r} is missing", f"add {key!r}")
    message = str(item["msg"]).removeprefix("Value error, ").replace("Input should", "should")
    if kind == "string_pattern_mismatch":
        message = (
            "should start with a small letter and have small letters, digits and '-' only"
            if "a-z" in message
            else "should not begin or end with a space"
        )
    remedy = "correct the value"
    if kind in ("enum", "literal_error") and isinstance(found, str):
        options = str(item["ctx"]["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
        remedy = suggestion(found, options) or remedy
    if kind != "value_error" and isinstance(found, str | int | float | None):
        message += f", but is {json.dumps(found, ensure_ascii=False)}"
    return document.error(location, message, remedy)


def _fields_at(location: Path) -> list[str]:
    """The keys that the part of the file at ``location`` may have."""
    model: type[BaseModel] = PolicyFile
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if (found := _model_in(argument)) is not None:
            return found
    return None


def suggestion(word: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the closest known name; empty when none is close."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.55)
    return f"did you mean {close[0]!r}?" if close else ""
