"""A YAML document that remembers the line of everything in it.

The accepted YAML is a strict subset, so that a file means what it seems to mean: one document;
no duplicate keys, anchors, aliases, tags or merge keys; ``true``/``false`` are the only booleans
(``no``, ``on`` and the like stay text); bounded size and depth. Lines are 1-based.

Example::

    document = parse_document("version: 1\\n", "policy.yaml")
    document.value, document.line(("version",))    # {"version": 1}, 1
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from governance.errors import PolicyError

__all__ = ["Document", "Path", "dotted", "parse_document"]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 24

Path = tuple[str | int, ...]
"""Keys and list positions from the top of the document."""

_INTEGER = re.compile(r"[-+]?[0-9]{1,15}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS: dict[str, Any] = {
    "": None,
    "~": None,
    **dict.fromkeys(("null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **dict.fromkeys((".inf", ".Inf", "+.inf"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf"), float("-inf")),
}


def dotted(path: Path) -> str:
    """``environments[1].requires.metrics[0].name``; empty for the top."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed document.

    Attributes:
        name: How messages call the file.
        value: Plain dicts, lists and scalars.
        key_lines: Line of each entry: that of its key, or of a list item's start.
        value_lines: Line on which each value starts.
    """

    name: str
    value: Any
    key_lines: dict[Path, int] = field(default_factory=dict)
    value_lines: dict[Path, int] = field(default_factory=dict)

    def known(self, path: Path) -> Path:
        """The longest beginning of ``path`` that the document has."""
        while path and path not in self.key_lines:
            path = path[:-1]
        return path

    def line(self, path: Path, *, of_key: bool = False) -> int:
        """Line of a value (or of its key), or of the nearest thing around it."""
        found = self.known(path)
        return (self.key_lines if of_key else self.value_lines).get(found, 1)

    def error(
        self, path: Path, message: str, remedy: str = "", *, of_key: bool = False
    ) -> PolicyError:
        """An error that names file, line and field."""
        return _error(self.name, self.line(path, of_key=of_key), dotted(path), message, remedy)


def _error(name: str, line: int, where: str, message: str, remedy: str) -> PolicyError:
    place = f"{name}, line {line}" + (f", {where}" if where else "")
    return PolicyError(f"{place}: {message}", remedy, line=line, field=where)


@dataclass(slots=True)
class _Open:
    """A mapping or list that is being read."""

    path: Path
    value: dict[str, Any] | list[Any]
    key: str | None = None
    key_line: int = 0


def parse_document(text: str, name: str) -> Document:
    """Parse ``text``.

    Raises:
        PolicyError: not the accepted YAML; names the line and, where there is one, the field.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _error(name, 1, "", f"larger than {MAX_BYTES} bytes", "split or shorten the file")
    document = Document(name, None)
    try:
        value = _build(text, document)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _error(
            name, line, "", "a character that YAML does not allow", "remove the character"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise _error(
            name, line, "", f"not YAML: {error.problem or error}", "check indentation and quotes"
        ) from error
    return Document(name, value, document.key_lines, document.value_lines)


def _build(text: str, document: Document) -> Any:
    """Assemble values from parser events, without recursion."""
    root: list[Any] = []
    stack: list[_Open] = [_Open((), root)]
    documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _error(document.name, line, "", "a second document", "keep only one")
        if not isinstance(event, yaml.NodeEvent):
            if isinstance(event, yaml.CollectionEndEvent):
                stack.pop()
            continue
        parent = stack[-1]
        where = dotted(_place(parent) if len(stack) > 1 else ())
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            raise _error(
                document.name,
                line,
                where,
                "anchors (&) and aliases (*) are not allowed",
                "write the value out, or quote it if it begins with & or *",
            )
        if getattr(event, "tag", None) is not None:
            raise _error(document.name, line, where, "tags (!) are not allowed", "quote the value")
        if isinstance(parent.value, dict) and parent.key is None:
            _open_entry(parent, event, line, document)
            continue
        path = _place(parent) if len(stack) > 1 else ()
        document.key_lines[path] = parent.key_line or line
        document.value_lines[path] = line
        value = _value(event)
        if isinstance(parent.value, dict):
            parent.value[str(parent.key)] = value
            parent.key, parent.key_line = None, 0
        else:
            parent.value.append(value)
        if isinstance(event, yaml.CollectionStartEvent):
            if len(stack) > MAX_DEPTH:
                raise _error(document.name, line, where, "nested too deeply", "flatten it")
            stack.append(_Open(path, value))
    return root[0] if root else None


def _place(parent: _Open) -> Path:
    if isinstance(parent.value, dict):
        return parent.path if parent.key is None else (*parent.path, parent.key)
    return (*parent.path, len(parent.value))


def _open_entry(parent: _Open, event: yaml.NodeEvent, line: int, document: Document) -> None:
    if not isinstance(event, yaml.ScalarEvent):
        raise _error(
            document.name, line, dotted(parent.path), "a key that is not text", "use a plain word"
        )
    key = str(event.value)
    path = (*parent.path, key)
    if key in parent.value:
        first = document.key_lines[path]
        raise _error(
            document.name,
            line,
            dotted(path),
            f"key {key!r} appears twice (first on line {first})",
            "keep one of the two",
        )
    parent.key, parent.key_line = key, line


def _value(event: yaml.NodeEvent) -> Any:
    if isinstance(event, yaml.MappingStartEvent):
        return {}
    if isinstance(event, yaml.SequenceStartEvent):
        return []
    assert isinstance(event, yaml.ScalarEvent)
    return _scalar(event.value) if event.implicit[0] and event.style is None else event.value


def _scalar(text: str) -> Any:
    """YAML 1.2's core schema, less octal and hexadecimal numbers."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
