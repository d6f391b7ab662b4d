"""How long what lasts in a controller."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Timing"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds.

    Attributes:
        lease: How long a lease lasts; half-way it is renewed.
        look: Between two looks at the database: how late a revocation may be seen.
        save: Between two saves of evidence.
        drain: What an application that is left has for what it is at.
        again: Between two attempts at something that failed.
        gateway: After which silence a gateway does not count as there.
        settle: After taking over, time for gateways to show up.
    """

    lease: int = 3_000
    look: int = 500
    save: int = 2_000
    drain: int = 10_000
    again: int = 2_000
    gateway: int = 2_000
    settle: int = 2_000
