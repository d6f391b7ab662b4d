"""Keeps the garbage collector from stopping a process that answers requests.

A gateway or replica has a quarter of a million objects when it starts to serve: modules, and what
MLflow, Ray and the model keep. Each full collection looks at all of them, for 100 to 250 ms in
which nobody is answered, and finds nothing. They are set aside once; what comes later is collected
as ever.

Example::

    settle_memory()    # last, before the first request
"""

from __future__ import annotations

import gc

__all__ = ["settle_memory"]


def settle_memory() -> None:
    """Collect once, and leave alone from now on what stayed."""
    gc.collect()
    gc.freeze()
