"""Requests and answers as bytes, in MLflow's scoring protocol, made into rows for a recorder.

What a serving path could not decode quickly is recorded as it came and read here, later, in the
recorder's thread: ``dataframe_split``, ``dataframe_records``, ``inputs``, ``instances`` and CSV;
of answers, ``predictions``. What is none of these cannot be recorded, and is counted.

Example::

    rows_in("application/json", b'{"dataframe_records": [{"age": 41}]}')     # [{"age": 41}]
    predictions_in(b'{"predictions": [0.5]}')                                # [0.5]
"""

from __future__ import annotations

import csv
import io
import json
from contextlib import suppress
from typing import Any

__all__ = ["predictions_in", "rows_in"]


def rows_in(content_type: str | None, body: bytes) -> Any:
    """A request's rows: columns by name, or a list of rows.

    Raises:
        ValueError: it is no request that can be read.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind == "text/csv":
        return _csv(body)
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError("the request is no object")
    if "dataframe_split" in document:
        return _split(document["dataframe_split"])
    for name in ("dataframe_records", "inputs", "instances"):
        if name in document:
            return _table(document[name])
    raise ValueError("the request has no rows")


def predictions_in(answer: bytes) -> Any:
    """An answer's predictions: columns by name, or a list.

    Raises:
        ValueError: it has none.
    """
    document = json.loads(answer)
    found = document.get("predictions") if isinstance(document, dict) else document
    if isinstance(found, dict):
        return _columns(found)
    if not isinstance(found, list):
        raise ValueError("the answer has no predictions")
    return found


def _split(part: Any) -> dict[str, list[Any]]:
    if not isinstance(part, dict):
        raise ValueError("dataframe_split is no object")
    names, rows = part.get("columns"), part.get("data")
    if not isinstance(names, list) or not isinstance(rows, list):
        raise ValueError("dataframe_split lacks columns or data")
    return {
        str(name): list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }


def _table(part: Any) -> Any:
    if isinstance(part, dict):
        return _columns(part)
    if isinstance(part, list):
        return part
    raise ValueError("the rows are neither a list nor columns")


def _columns(part: dict[str, Any]) -> dict[str, list[Any]]:
    return {
        str(name): values if isinstance(values, list) else [values] for name, values in part.items()
    }


def _csv(body: bytes) -> dict[str, list[Any]]:
    rows = list(csv.reader(io.StringIO(body.decode("utf-8"))))
    if len(rows) < 2:
        raise ValueError("the CSV has no rows")
    columns = zip(*rows[1:], strict=True)
    return {name: _typed(values) for name, values in zip(rows[0], columns, strict=True)}


def _typed(values: tuple[str, ...]) -> list[Any]:
    """As pandas reads them, near enough: a column of numbers is numbers, nothing is missing."""
    for kind in (int, float):
        with suppress(ValueError):
            return [None if value == "" else kind(value) for value in values]
    return [None if value == "" else value for value in values]
