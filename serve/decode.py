"""MLflow's scoring protocol, decoded straight to a NumPy array where that is exactly the same.

A request to ``/invocations`` is JSON (``dataframe_split``, ``dataframe_records``, ``instances``,
``inputs``, with or without ``params``) or CSV. MLflow reads it with pandas and then enforces the
signature, which takes most of a request's time. Where the signature is one numeric type over all
columns, or one tensor, and the request holds nothing but plain numbers in a regular shape, the same
values can be had without pandas. `Decoder.decode` returns them; for everything else it returns
None, which means: ask MLflow's own code, so that answers and errors are MLflow's.

Handed over, and so never decoded here: nulls, strings, booleans, NaN and infinity, ragged or empty
data, missing, extra or repeated columns, fractions for whole-number columns, whole numbers beyond
2**53 or beyond the column's type, an index that is not 0, 1, 2, …, ``params``, CSV, and JSON that
is not valid UTF-8.

Example::

    layout = layout_of(model.metadata)
    decoder = Decoder(layout)
    rows = decoder.decode("application/json", b'{"inputs": {"a": [1.5], "b": [2]}}')
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Decoder", "Layout", "layout_of"]

Array = npt.NDArray[Any]

EXACT_INTEGERS = 2.0**53
"""Beyond this a float64 no longer tells whole numbers apart."""

_FORMATS = frozenset({"dataframe_split", "dataframe_records", "instances", "inputs"})
_LLM_KEYS = frozenset({"messages", "prompt", "input"})
_JSON_TYPES = frozenset(
    {"application/json"}
    | {f"application/json;{gap}charset={name}" for gap in ("", " ") for name in ("utf-8", "UTF-8")}
)
_NUMBERS = ({float}, {int}, {float, int})


@dataclass(frozen=True, slots=True)
class Layout:
    """What one request's rows look like, when that is one array.

    Args:
        dtype: NumPy name of the type of every value, such as ``float64``.
        names: Columns in the signature's order; None when the signature names none.
        shape: Shape of one row: ``(columns,)`` for columns, the inner dimensions for a tensor.
        tensor: Whether the signature is a tensor (the model is given the array itself) and not
            columns (the model is given a DataFrame).
    """

    dtype: str
    names: tuple[str, ...] | None
    shape: tuple[int, ...]
    tensor: bool

    @property
    def columns(self) -> int:
        """Number of values side by side in one row's first dimension; 1 for scalars."""
        return self.shape[0] if self.shape else 1


def layout_of(metadata: Any) -> Layout | None:
    """The layout of a model's input; None when its requests need MLflow's own code.

    Args:
        metadata: ``mlflow.models.Model`` of the loaded model.
    """
    from mlflow.types import DataType

    if metadata._is_signature_from_type_hint() or metadata._is_type_hint_from_example():
        return None
    schema = metadata.get_input_schema()
    if schema is None or not schema.inputs:
        return None
    if schema.is_tensor_spec():
        return _tensor_layout(schema)
    numeric = {DataType.integer, DataType.long, DataType.float, DataType.double}
    types = {spec.type for spec in schema.inputs if isinstance(spec.type, DataType)}
    if len(types) != 1 or not types <= numeric:
        return None
    if not all(spec.required and isinstance(spec.type, DataType) for spec in schema.inputs):
        return None
    names = tuple(spec.name for spec in schema.inputs) if schema.has_input_names() else None
    if names is not None and len(set(names)) != len(names):
        return None
    return Layout(types.pop().to_numpy().name, names, (len(schema.inputs),), tensor=False)


def _tensor_layout(schema: Any) -> Layout | None:
    if len(schema.inputs) != 1 or schema.has_input_names():
        return None
    spec = schema.inputs[0]
    first, *inner = spec.shape
    if first != -1 or any(size < 1 for size in inner):
        return None
    if spec.type.kind not in "iu" and spec.type not in (np.dtype("f4"), np.dtype("f8")):
        return None
    return Layout(spec.type.name, None, tuple(inner), tensor=True)


class Decoder:
    """Reads requests for one layout. Holds no state; safe in any thread."""

    def __init__(self, layout: Layout | None) -> None:
        import orjson

        self.layout = layout
        self._loads: Callable[[bytes], Any] = orjson.loads
        if layout is None:
            return
        self._dtype = np.dtype(layout.dtype)
        self._whole = self._dtype.kind in "iu"
        self._limits = np.iinfo(self._dtype) if self._whole else None
        self._largest = 0.0 if self._whole else float(np.finfo(self._dtype).max)
        if layout.names is not None:
            self._names = layout.names
            self._list_of_names = list(layout.names)
            self._index = {name: at for at, name in enumerate(layout.names)}
            pick = itemgetter(*layout.names)
            self._pick: Callable[[Any], Any] = (
                pick if len(layout.names) > 1 else lambda record: (pick(record),)
            )

    def decode(self, content_type: str | None, body: bytes) -> Array | None:
        """The rows of a request, or None: ask MLflow's own code.

        Args:
            content_type: The request's ``content-type``; None when it has none.
            body: The request's body.

        Returns:
            An array of shape ``(rows, *layout.shape)`` and type ``layout.dtype``, rows ≥ 1, equal
            to what MLflow would give the model; or None. Never raises.
        """
        if self.layout is None or content_type not in _JSON_TYPES:
            return None
        try:
            payload = self._loads(body)
        except ValueError:
            return None
        if type(payload) is not dict:
            return None
        if len(payload) > 1:
            if payload.get("params") not in (None, {}) or not _LLM_KEYS.isdisjoint(payload):
                return None
            for key in payload.keys() - _FORMATS:
                del payload[key]  # MLflow passes over what it does not know
        if len(payload) != 1:
            return None
        ((key, data),) = payload.items()
        if key not in _FORMATS or (key == "dataframe_split" and type(data) is not dict):
            return None
        try:
            rows = self._tensor(key, data) if self.layout.tensor else self._columns(key, data)
        except (KeyError, TypeError, ValueError, OverflowError):
            return None  # some other shape than a plain one: MLflow knows what to say
        return rows

    # -- one per format; each may raise what `decode` catches

    def _tensor(self, key: str, data: Any) -> Array | None:
        assert self.layout is not None
        if key in ("inputs", "instances"):
            return self._array(data, self.layout.shape)
        if key == "dataframe_split" and len(self.layout.shape) == 1 and self.layout.columns > 1:
            columns = data.get("columns")
            if columns is None or (
                type(columns) is list and len(set(columns)) == len(columns) == self.layout.columns
            ):
                return self._split_data(data)
        return None

    def _columns(self, key: str, data: Any) -> Array | None:
        assert self.layout is not None
        named = self.layout.names is not None
        if key == "dataframe_split":
            if not named:
                return self._split_data(data) if data.get("columns") is None else None
            return self._ordered(data["columns"], self._split_data(data))
        if key == "dataframe_records":
            return self._records(data) if named else None
        if not named:
            return self._array(data, self.layout.shape)
        if type(data) is dict:
            return self._by_column(data)
        # MLflow reads a list of records under "inputs" value by value, and then refuses the
        # narrow types it made; its own code says so.
        if key == "instances" or self._dtype.itemsize == 8:
            return self._records(data)
        return None

    def _split_data(self, data: dict[str, Any]) -> Array | None:
        assert self.layout is not None
        if not data.keys() <= {"columns", "data", "index"}:
            return None
        rows = self._array(data["data"], self.layout.shape)
        index = data.get("index")
        if rows is None or (index is not None and index != list(range(len(rows)))):
            return None
        return rows

    def _ordered(self, columns: list[str], rows: Array | None) -> Array | None:
        if rows is None or columns == self._list_of_names:
            return rows
        if type(columns) is not list or len(columns) != len(self._names):
            return None
        if set(columns) != self._index.keys():
            return None
        place = {name: at for at, name in enumerate(columns)}
        return np.ascontiguousarray(rows[:, [place[name] for name in self._names]])

    def _records(self, data: list[dict[str, Any]]) -> Array | None:
        assert self.layout is not None
        width = len(self._names)
        if type(data) is not list or any(type(r) is not dict or len(r) != width for r in data):
            return None
        return self._array([self._pick(record) for record in data], self.layout.shape, tuple)

    def _by_column(self, data: dict[str, Any]) -> Array | None:
        if len(data) != len(self._names):
            return None
        values = [data[name] for name in self._names]
        if type(values[0]) is not list:
            return None
        columns = self._array(values, (len(values[0]),))
        return None if columns is None else np.ascontiguousarray(columns.T)

    def _array(self, data: Any, shape: tuple[int, ...], row: type[Any] = list) -> Array | None:
        """Nested lists as an array of ``(len(data), *shape)``; None when anything is irregular."""
        if type(data) is not list or not data or 0 in shape:
            return None
        flat: Any = data
        for size in shape:
            if any(type(part) is not row or len(part) != size for part in flat):
                return None
            flat = flat[0] if len(flat) == 1 else list(chain.from_iterable(flat))
            row = list
        kinds = set(map(type, flat))
        if kinds not in _NUMBERS or (self._whole and kinds != {int}):
            return None  # also where a boolean hides among numbers: NumPy would not tell
        values: Array = np.array(flat, dtype=np.int64 if self._whole else np.float64)
        if self._limits is not None:
            if values.min() < self._limits.min or values.max() > self._limits.max:
                return None
        elif int in kinds or values.dtype != self._dtype:
            bound = min(EXACT_INTEGERS, self._largest) if int in kinds else self._largest
            # The square of the largest is at most the sum of squares, which is quicker to have.
            if not math.sqrt(values.dot(values)) < bound:
                largest = np.abs(values).max()
                if not largest <= self._largest or (int in kinds and largest >= EXACT_INTEGERS):
                    return None
        if values.dtype != self._dtype:
            values = values.astype(self._dtype)
        return values.reshape(len(data), *shape)
