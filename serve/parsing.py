"""Reads configurations from files and from the command line's short forms.

Short forms of ``--canary``: ``5%`` begins with 5 percent and goes on along the usual steps (5, 25,
50, 100); ``5,25,50,100`` lists the steps; a name that ends in ``.yaml`` or ``.yml`` is a file. An
arm of an experiment is ``NAME=models:/fraud/3:50``.

Example::

    parse_canary("1%").steps                    # (1.0, 5.0, 25.0, 50.0, 100.0)
    parse_canary_text("steps: [5, 25, 100]")    # the text of a file
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path as FilePath
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from governance.errors import ConfigurationError, PolicyError
from governance.gates.document import Document, Path, dotted, parse_document
from serve.arm_config import ABTestConfig, ShadowConfig
from serve.config import (
    DEFAULT_STEPS,
    CanaryConfig,
    MistakeError,
)

__all__ = [
    "canary_of",
    "load_ab_test",
    "load_canary",
    "parse_ab_test_text",
    "parse_arms",
    "parse_canary",
    "parse_canary_steps",
    "parse_canary_text",
    "parse_shadow",
    "parse_shadow_text",
]

_Config = TypeVar("_Config", bound=BaseModel)


def parse_canary(text: str) -> CanaryConfig:
    """The value of ``--canary``: ``5%``, ``5,25,50,100`` or the path of a YAML file.

    Raises:
        ConfigurationError: names what is wrong and how to put it right.
    """
    text = text.strip()
    if text.lower().endswith((".yaml", ".yml")):
        return load_canary(FilePath(text))
    return parse_canary_steps(text, "--canary")


def parse_canary_steps(text: str, name: str = "canaryConfig") -> CanaryConfig:
    """``5%`` or ``5,25,50,100``; never a file.

    Raises:
        ConfigurationError: names what is wrong and how to put it right.
    """
    steps = []
    for part in text.split(","):
        number = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*%?", part.strip())
        if number is None:
            raise ConfigurationError(
                f"{name}: {part.strip()!r} is not a percentage",
                "write 5%, or steps as 5,25,50,100"
                + (", or the path of a .yaml file" if name.startswith("--") else ""),
            )
        steps.append(float(number[1]))
    if len(steps) == 1 and steps[0] > 0:
        steps += [step for step in DEFAULT_STEPS if step > steps[0]]
    return _validate(CanaryConfig, Document(name, {"steps": steps}), lines=False)


def canary_of(value: Any, name: str = "canaryConfig") -> CanaryConfig:
    """A canary configuration from what was read out of JSON.

    Raises:
        ConfigurationError: names what is wrong and how to put it right.
    """
    if not isinstance(value, dict):
        raise ConfigurationError(
            f"{name}: the configuration is not an object", "write keys and values, as steps: [5]"
        )
    return _validate(CanaryConfig, Document(name, value), lines=False)


def load_canary(path: FilePath) -> CanaryConfig:
    """A canary configuration from a file.

    Raises:
        ConfigurationError: it cannot be read, or is malformed (names line and field).
    """
    return parse_canary_text(_read(path, "canary configuration"), str(path))


def load_ab_test(path: FilePath) -> ABTestConfig:
    """An A/B test from a file. Raises ``ConfigurationError`` as ``load_canary`` does."""
    return parse_ab_test_text(_read(path, "experiment"), str(path))


def _read(path: FilePath, what: str) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigurationError(
            f"{path}: the {what} cannot be read: {reason}",
            "correct the path, the permissions or the encoding",
        ) from error


def parse_canary_text(text: str, name: str = "canary.yaml") -> CanaryConfig:
    """A canary configuration from YAML.

    Raises:
        ConfigurationError: malformed; names the line and the field of the first mistake.
    """
    return _parse(CanaryConfig, text, name)


def parse_ab_test_text(text: str, name: str = "experiment.yaml") -> ABTestConfig:
    """An A/B test from YAML. Raises ``ConfigurationError`` as ``parse_canary_text`` does."""
    return _parse(ABTestConfig, text, name)


def parse_shadow_text(text: str, name: str = "shadow.yaml") -> ShadowConfig:
    """A shadow from YAML. Raises ``ConfigurationError`` as ``parse_canary_text`` does."""
    return _parse(ShadowConfig, text, name)


def parse_arms(name: str, arms: Sequence[str], sticky: str | None) -> ABTestConfig:
    """An A/B test from ``--name``, ``--arm`` (``NAME=models:/fraud/3:50``) and ``--sticky``.

    Raises:
        ConfigurationError: names what is wrong and how to put it right.
    """
    found = []
    for text in arms:
        arm = re.fullmatch(r"([^=]*)=(models:/\S+):([0-9]{1,3}(?:\.[0-9]{1,6})?)%?", text.strip())
        if arm is None:
            raise ConfigurationError(
                f"--arm: {text!r} is not an arm", "write NAME=models:/fraud/3:50"
            )
        found.append({"name": arm[1], "model": arm[2], "weight": float(arm[3])})
    if sticky is None:
        raise ConfigurationError(
            "it is not said what keeps a client with its arm",
            "add --sticky header:NAME, cookie:NAME or field:NAME",
        )
    document = {"name": name, "arms": found, "sticky": sticky}
    return _validate(ABTestConfig, Document("options", document), lines=False)


def parse_shadow(model: str, **options: Any) -> ShadowConfig:
    """A shadow from the command line's options; those that are None are left out.

    Raises:
        ConfigurationError: names what is wrong and how to put it right.
    """
    given = {key: value for key, value in options.items() if value is not None}
    return _validate(ShadowConfig, Document("options", {"model": model, **given}), lines=False)


def _parse(model: type[_Config], text: str, name: str) -> _Config:
    try:
        document = parse_document(text, name)
    except PolicyError as error:
        raise ConfigurationError(error.message, error.remedy) from error
    if not isinstance(document.value, dict):
        raise ConfigurationError(
            f"{name}: the configuration is not a mapping", "write keys and values, as steps: [5]"
        )
    return _validate(model, document)


def _validate(model: type[_Config], document: Document, *, lines: bool = True) -> _Config:
    try:
        # JSON mode: strict, yet lists may fill tuples and text may fill enums.
        return model.model_validate_json(json.dumps(document.value))
    except ValidationError as error:
        found = [
            _mistake(dict(item), model, document, lines) for item in error.errors(include_url=False)
        ]
    found.sort(key=lambda mistake: mistake[0])
    _, message, remedy = found[0]
    if len(found) > 1:
        message += f" (and {len(found) - 1} more)"
    raise ConfigurationError(message, remedy)


def _mistake(
    item: dict[str, Any], model: type[BaseModel], document: Document, lines: bool
) -> tuple[int, str, str]:
    """Line, message and remedy."""
    location: Path = tuple(part for part in item["loc"] if part != "[key]")
    kind, found = item["type"], item["input"]
    cause = item.get("ctx", {}).get("error")
    key = str(location[-1]) if location else ""
    of_key = kind == "extra_forbidden"
    if isinstance(cause, MistakeError):
        location, message, remedy = (*location, *cause.field), str(cause), cause.remedy
    elif of_key:
        known = list(_model_at(model, location[:-1]).model_fields)
        close = get_close_matches(key, known, n=1, cutoff=0.55)
        message = f"unknown key {key!r}"
        remedy = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
    elif kind == "missing":
        message, remedy = f"the key {key!r} is missing", f"add {key!r}"
    else:
        message = str(item["msg"]).removeprefix("Value error, ").replace("Input should", "should")
        if isinstance(found, str | int | float | None):
            message += f", but is {json.dumps(found, ensure_ascii=False)}"
        remedy = _remedy(item)
    line = document.line(location, of_key=of_key)
    where = dotted(location)
    place = document.name + (f", line {line}" if lines else "") + (f", {where}" if where else "")
    return line, f"{place}: {message}", remedy


def _remedy(item: dict[str, Any]) -> str:
    context = item.get("ctx", {})
    match item["type"]:
        case "greater_than":
            return f"use a number above {context['gt']:g}"
        case "greater_than_equal":
            return f"use {context['ge']:g} or more"
        case "less_than":
            return f"use a number below {context['lt']:g}"
        case "less_than_equal":
            return f"use {context['le']:g} or less"
        case "finite_number":
            return "use an ordinary number"
        case "enum" | "literal_error":
            return f"use {context['expected']}"
        case "string_pattern_mismatch" if "models:" in str(context.get("pattern")):
            return "write a model URI, as models:/fraud/3 or models:/fraud@champion"
        case "string_pattern_mismatch":
            return "begin with a small letter; use small letters, digits and '-'"
    return "correct the value"


def _model_at(model: type[BaseModel], location: Path) -> type[BaseModel]:
    """The model of the part at ``location``."""
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if (found := _model_in(argument)) is not None:
            return found
    return None
