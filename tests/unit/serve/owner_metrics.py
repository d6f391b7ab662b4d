"""Metrics as an owner writes them; some misbehave. Imported by the process that calls metrics."""

from __future__ import annotations

import os
import re
import time

from serve.scored import ScoredRequest


def first(request: ScoredRequest) -> float:
    return float(request.predictions[0])


def positive(request: ScoredRequest) -> list[bool]:
    return [value > 0 for value in request.predictions]


def nothing(request: ScoredRequest) -> None:
    return None


def shouting(request: ScoredRequest) -> float:
    print("to whoever reads standard output")
    return 0.25


def raising(request: ScoredRequest) -> float:
    raise KeyError(request.body.decode())


def text(request: ScoredRequest) -> str:
    return "0.5"


def raising_for_the_canary(request: ScoredRequest) -> float:
    if request.variant == "canary":
        raise ValueError(request.answer)
    return 0.5


def hanging(request: ScoredRequest) -> float:
    if request.body == b"hang":
        time.sleep(600)
    return 0.5


def stuck(request: ScoredRequest) -> float:
    time.sleep(600)
    return 0.5


def hanging_in_c(request: ScoredRequest) -> float:
    """Never lets go of its interpreter's lock."""
    return float(bool(re.match(r"(a+)+$", "a" * 64 + "!")))


def deadly(request: ScoredRequest) -> float:
    if request.body == b"die":
        os._exit(9)
    return 0.5


not_a_function = 3
