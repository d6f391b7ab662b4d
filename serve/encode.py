"""Predictions as the JSON that ``mlflow models serve`` answers with.

``{"predictions": …}`` is written by orjson where its bytes parse to the same values as those of
MLflow's encoder, and by MLflow's encoder everywhere else: NaN and infinity (orjson would write
null), strings, dates, bytes, nested objects. 32-bit floats are widened first, because MLflow writes
them as Python floats.

A prediction over many requests' rows is encoded request by request with `split`, from one
conversion of the whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import orjson

__all__ = ["Kind", "NotRowsError", "encode", "kind_of", "rows_of", "slices", "split"]

Kind = tuple[Any, ...]
"""What a prediction is made of, apart from its values and number of rows."""

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


class NotRowsError(ValueError):
    """A prediction does not have one row for each row it was asked for."""


def encode(raw: Any) -> bytes:
    """One request's prediction as the body of its answer.

    Args:
        raw: What the model returned: array, DataFrame, Series, list or anything else.

    Returns:
        UTF-8 JSON that parses to what MLflow would have written.

    Raises:
        TypeError: MLflow's encoder does not know the type either.
        ValueError: the same, for circular objects.
    """
    if _is_plain_array(raw):
        return _fast(_widened(raw))
    return _encoder(raw)(_jsonable(raw))


def split(raw: Any, counts: Sequence[int]) -> list[bytes]:
    """A prediction over several requests' rows, as one body each.

    Args:
        raw: What the model returned for all rows together.
        counts: Rows of each request, in order.

    Raises:
        NotRowsError: ``raw`` has not ``sum(counts)`` rows.
        TypeError, ValueError: as `encode`.
    """
    if _is_plain_array(raw):
        return [_fast(part) for part in slices(_widened(raw), counts)]
    write = _encoder(raw)
    return [write(part) for part in slices(rows_of(raw, sum(counts)), counts)]


def slices(rows: Any, counts: Sequence[int]) -> list[Any]:
    """Consecutive parts of an array, DataFrame, Series or list.

    Raises:
        NotRowsError: there are not ``sum(counts)`` rows.
    """
    total = sum(counts)
    if isinstance(rows, np.ndarray):
        fits = rows.ndim > 0 and len(rows) == total
    else:
        fits = (isinstance(rows, list) or hasattr(rows, "iloc")) and len(rows) == total
    if not fits:
        raise NotRowsError(f"the model answered {total} rows with {_describe(rows)}")
    source = rows.iloc if hasattr(rows, "iloc") else rows
    return [source[start:end] for start, end in pairwise(accumulate(counts, initial=0))]


def rows_of(raw: Any, count: int) -> list[Any]:
    """A prediction as one JSON-able Python object a row.

    Raises:
        NotRowsError: it is nothing with ``count`` rows.
    """
    rows = _jsonable(raw)
    if not isinstance(rows, list) or len(rows) != count:
        raise NotRowsError(f"the model answered {count} rows with {_describe(raw)}")
    return rows


def kind_of(raw: Any) -> Kind:
    """The type, element types and inner shape of a prediction.

    Two predictions of one kind are encoded alike; a batch whose kind differs from that of single
    rows cannot be taken apart.
    """
    if isinstance(raw, np.ndarray):
        return ("ndarray", _element(raw.dtype), raw.shape[1:])
    if hasattr(raw, "columns") and hasattr(raw, "dtypes"):
        return ("DataFrame", *zip(raw.columns, map(_element, raw.dtypes), strict=True))
    if hasattr(raw, "iloc"):
        return ("Series", raw.name, _element(raw.dtype))
    return (type(raw).__name__,)


def _element(dtype: Any) -> str:
    """Texts of any length are one element type."""
    return dtype.kind if getattr(dtype, "kind", "") in "US" else str(dtype)


def _describe(raw: Any) -> str:
    shape = getattr(raw, "shape", None)
    if shape is not None:
        return f"{type(raw).__name__} of shape {shape}"
    return f"{type(raw).__name__} of length {len(raw)}" if hasattr(raw, "__len__") else repr(raw)


def _is_plain_array(raw: Any) -> bool:
    """Whether orjson writes an array as MLflow would."""
    if type(raw) is not np.ndarray or not raw.ndim or not raw.size:
        return False
    kind = raw.dtype.kind
    if kind == "f":
        return raw.dtype.itemsize <= 8 and bool(np.isfinite(raw).all())
    return kind in "iub"


def _widened(raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if raw.dtype.kind == "b":
        return np.ascontiguousarray(raw)
    wide = {"f": np.float64, "i": np.int64, "u": np.uint64}[raw.dtype.kind]
    return np.ascontiguousarray(raw, dtype=wide)


def _encoder(raw: Any) -> Callable[[Any], bytes]:
    """What writes the JSON-able form of ``raw``: orjson for columns of finite numbers."""
    if kind_of(raw)[0] in ("DataFrame", "Series"):
        frame = raw if hasattr(raw, "columns") else raw.to_frame()
        numeric = all(isinstance(d, np.dtype) and d.kind in "iufb" for d in frame.dtypes)
        keys = all(type(c) in (str, int) for c in frame.columns.tolist())
        if numeric and keys and not frame.empty and np.isfinite(frame.to_numpy(float)).all():
            return _fast
    return _exact


def _fast(predictions: Any) -> bytes:
    return orjson.dumps({"predictions": predictions}, option=_OPTIONS)


def _exact(predictions: Any) -> bytes:
    from mlflow.utils.proto_json_utils import NumpyEncoder

    return json.dumps({"predictions": predictions}, cls=NumpyEncoder).encode()


def _jsonable(raw: Any) -> Any:
    from mlflow.utils.proto_json_utils import _get_jsonable_obj

    return _get_jsonable_obj(raw, pandas_orient="records")
