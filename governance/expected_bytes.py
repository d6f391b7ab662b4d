"""Which bytes whoever loads a model has been told to load.

A deployment knows the root digest of each version that it serves, from the gate that let it in.
Its replicas load under that expectation: other bytes are refused, whatever a registry says
meanwhile, and where the registry cannot be reached a copy on this disk will do
(``mlflow_plugins.local_copies``), since nobody can put other bytes in its place.

Example::

    with expecting("9f86d0…"):
        model = mlflow.pyfunc.load_model("models:/fraud/3")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["expected_root_digest", "expecting"]

_expected: ContextVar[str | None] = ContextVar("chancery_expected_root_digest", default=None)


@contextmanager
def expecting(root_digest: str | None) -> Iterator[None]:
    """Within, registered versions are loaded only if they have this root digest (None: any)."""
    token = _expected.set(root_digest or None)
    try:
        yield
    finally:
        _expected.reset(token)


def expected_root_digest() -> str | None:
    """What ``expecting`` was told; None: nobody said."""
    return _expected.get()
