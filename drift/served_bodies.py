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
from collections.abc import Container
from contextlib import suppress
from typing import Any

__all__ = ["predictions_in", "rows_in"]


_ABSENT = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
     "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
)  # fmt: skip
_TRUTH = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}


def rows_in(content_type: str | None, body: bytes, texts: Container[str] = ()) -> Any:
    """A request's rows: columns by name, or a list of rows.

    Args:
        content_type: Of the request.
        body: As it came.
        texts: Columns of CSV that are categories, not numbers: 01234 stays what it is.

    Raises:
        ValueError: it is no request that can be read.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind == "text/csv":
        return _csv(body, texts)
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


def _csv(body: bytes, texts: Container[str]) -> dict[str, list[Any]]:
    rows = list(filter(None, csv.reader(io.StringIO(body.decode("utf-8-sig")))))
    if len(rows) < 2:
        raise ValueError("the CSV has no rows")
    columns = zip(*rows[1:], strict=True)
    return {
        name: _typed(values, name in texts) for name, values in zip(rows[0], columns, strict=True)
    }


def _typed(values: tuple[str, ...], category: bool) -> list[Any]:
    """As pandas reads them, with which MLflow does: a column of numbers, or of truth values, is
    one though some are missing."""
    found = [None if value in _ABSENT else value for value in values]
    present = [value for value in found if value is not None]
    if all(value in _TRUTH for value in present):
        return [None if value is None else _TRUTH[value] for value in found]
    if any("_" in value for value in present):  # Python's own way to write numbers
        return found
    for kind in (int, float):
        with suppress(ValueError):
            numbers = [None if value is None else kind(value) for value in found]
            names = kind is int and any(v.startswith("0") and v != "0" for v in present)
            return found if category and names else numbers
    return found
