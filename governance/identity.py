"""Who acts: the actor of the current request or process, and how it was proven.

An outermost ASGI middleware sets the actor for the time of a request; a process that opens a store
by itself is its operating-system user (``local``). Every audit event carries the actor.

Example::

    with acting_as(Actor("alice", ProofLevel.SIGNED, keyid="ab12…")):
        store.set_registered_model_alias("fraud", "champion", "3")
"""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

__all__ = ["Actor", "ProofLevel", "acting_as", "current_actor"]


class ProofLevel(StrEnum):
    """How an actor's identity was proven, weakest first."""

    ANONYMOUS = "anonymous"
    CLAIMED = "claimed"
    LOCAL = "local"
    BASIC_AUTH = "basic-auth"
    SIGNED = "signed"

    @property
    def rank(self) -> int:
        """Position in the order of strength; 0 is the weakest."""
        return list(ProofLevel).index(self)


@dataclass(frozen=True, slots=True)
class Actor:
    """A person or service.

    Attributes:
        id: Name of the person or service.
        proof: How the name was proven.
        keyid: Hex SHA-256 of the signing key's SubjectPublicKeyInfo PEM, when ``proof`` is
            ``signed``.
        code_ref: Git commit the client claims to run, if any.
        traceparent: W3C trace context of the request, if any.
    """

    id: str
    proof: ProofLevel
    keyid: str | None = None
    code_ref: str | None = None
    traceparent: str | None = None


_current: ContextVar[Actor | None] = ContextVar("chancery_actor", default=None)


def current_actor() -> Actor:
    """The actor of this request, or the operating-system user of this process."""
    return _current.get() or _process_owner()


@lru_cache(maxsize=1)
def _process_owner() -> Actor:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        name = "unknown"
    return Actor(name, ProofLevel.LOCAL)


@contextmanager
def acting_as(actor: Actor) -> Iterator[None]:
    """Make ``actor`` the current one within the block."""
    token = _current.set(actor)
    try:
        yield
    finally:
        _current.reset(token)
