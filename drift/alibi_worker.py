"""The process in which Alibi Detect runs; ``drift.alibi_process`` starts, watches and kills it.

``python -m drift.alibi_worker SOCKET LIMIT [MEMORY]``: it talks over the socket of that number (see
``drift.wire``); LIMIT is what its import may take, in seconds; MEMORY an address space in bytes.
Detectors are made from the samples that come in, never loaded from disk. It ends with its parent:
the socket closes, and an alarm that C code cannot hold up ends a call that outlives its limit.

============================================================  ====================================
to it, with the reference's and the window's matrix           from it
============================================================  ====================================
``detector``, ``options``, ``categorical``, ``seed``,         ``p_values``, ``distances``,
``limit_s``                                                   ``thresholds``, or ``error`` and
                                                              ``kind``
============================================================  ====================================

Of online detectors come the statistic and the threshold of every row, in the rows' order.
"""

from __future__ import annotations

import math
import os
import random
import resource
import signal
import socket
import sys
import traceback
import warnings
from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.wire import receive, send

__all__ = ["main"]

_NICE = 10
_GRACE_S = 2
_TORCH = {"MMDDrift", "LSDDDrift", "MMDDriftOnline", "LSDDDriftOnline"}
_ONLINE = {"MMDDriftOnline", "LSDDDriftOnline"}
_BY_COLUMN = {"KSDrift", "ChiSquareDrift", "TabularDrift"}
_KNOWN = _TORCH | _BY_COLUMN | {"ClassifierDrift"}


def main() -> None:
    """See the module."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _allow(float(sys.argv[2]))
    os.nice(_NICE)
    if len(sys.argv) > 3:
        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]), int(sys.argv[3])))
    with socket.socket(fileno=int(sys.argv[1])) as channel, suppress(EOFError, ConnectionError):
        warnings.simplefilter("ignore")
        try:
            version = import_module("alibi_detect").__version__
            detectors = import_module("alibi_detect.cd")
        except Exception as error:  # noqa: BLE001 - told to the parent, in its words
            missing = isinstance(error, ModuleNotFoundError) and error.name == "alibi_detect"
            _fail(channel, error, "not installed" if missing else "import")
            return
        send(channel, {"version": version})
        while True:
            signal.alarm(0)
            head, (reference, window) = receive(channel)
            _allow(head["limit_s"])
            try:
                answer = _run(detectors, head, reference, window)
            except Exception as error:  # noqa: BLE001 - a library's; the parent makes it an alarm
                _fail(channel, error, "call")
            else:
                send(channel, answer)


def _allow(seconds: float) -> None:
    """End this process soon after; the parent should have killed it by then."""
    signal.alarm(math.ceil(seconds) + _GRACE_S)


def _fail(channel: socket.socket, error: Exception, kind: str) -> None:
    traceback.print_exc()
    send(channel, {"error": f"{type(error).__name__}: {error}"[:500], "kind": kind})


def _run(
    detectors: Any, head: dict[str, Any], reference: NDArray[Any], window: NDArray[Any]
) -> dict[str, Any]:
    name, options = head["detector"], dict(head["options"])
    if name not in _KNOWN:
        raise ValueError(f"no detector {name!r}")
    random.seed(head["seed"])
    np.random.seed(head["seed"])  # Alibi Detect draws from the global state
    if name in _TORCH:
        import torch

        torch.manual_seed(head["seed"])
        torch.set_num_threads(1)
        options["backend"] = "pytorch"
        reference, window = reference.astype(np.float32), window.astype(np.float32)
    if name in _BY_COLUMN:
        return _by_column(getattr(detectors, name), name, options, head, reference, window)
    if name == "ClassifierDrift":
        from sklearn.ensemble import HistGradientBoostingClassifier

        options |= {"backend": "sklearn", "seed": head["seed"], "n_folds": 5}
        options["model"] = HistGradientBoostingClassifier(
            max_iter=40, max_leaf_nodes=8, early_stopping=False, random_state=head["seed"]
        )
    if name in _ONLINE:
        detector = getattr(detectors, name)(reference, verbose=False, **options)
        seen = [detector.predict(row)["data"] for row in window]
        return {
            "p_values": [],
            "distances": [_number(row["test_stat"]) for row in seen],
            "thresholds": [_number(row["threshold"]) for row in seen],
        }
    data = getattr(detectors, name)(reference, **options).predict(window)["data"]
    return {
        "p_values": [_number(data["p_val"])],
        "distances": [_number(data["distance"])],
        "thresholds": [],
    }


def _by_column(
    kind: Any,
    name: str,
    options: dict[str, Any],
    head: dict[str, Any],
    reference: NDArray[Any],
    window: NDArray[Any],
) -> dict[str, Any]:
    """Columns with missing values one by one, without those: one NaN makes the answer NaN."""
    categorical = set(head["categorical"])
    gone = np.isnan(reference).any(axis=0) | np.isnan(window).any(axis=0)
    p_values = np.full(reference.shape[1], np.nan)
    distances = np.full(reference.shape[1], np.nan)

    def ask(columns: NDArray[Any], ours: NDArray[Any], theirs: NDArray[Any]) -> None:
        if not len(columns) or not len(ours) or not len(theirs):
            return
        more = dict(options)
        if name == "TabularDrift":
            codes = [i for i, column in enumerate(columns) if int(column) in categorical]
            more["categories_per_feature"] = dict.fromkeys(codes) if codes else {}
        data = kind(ours, **more).predict(theirs, drift_type="feature")["data"]
        p_values[columns], distances[columns] = data["p_val"], data["distance"]

    whole = np.flatnonzero(~gone)
    ask(whole, reference[:, whole], window[:, whole])
    for column in np.flatnonzero(gone):
        ours, theirs = reference[:, column], window[:, column]
        one = np.array([column])
        ask(one, ours[~np.isnan(ours)][:, None], theirs[~np.isnan(theirs)][:, None])
    return {
        "p_values": [_number(value) for value in p_values],
        "distances": [_number(value) for value in distances],
        "thresholds": [],
    }


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


if __name__ == "__main__":
    main()
