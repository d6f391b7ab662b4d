"""Configuration of what stands beside a rollout: experiments, and shadows that nobody hears."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from governance.arms import RESERVED_NAMES
from serve.config import MistakeError, Name, Part, Percent, StickyKey, check_sum

__all__ = ["ABTestConfig", "Arm", "ShadowConfig"]


class Arm(Part):
    """One arm of an A/B test: a model version by URI, and its share in percent.

    Attributes:
        name: Unique in the test, and not that of a variant there is anyway.
        model: The version, by URI.
        weight: Percent.
        timeout_seconds: Of one request at the arm; then stable answers it.
        max_concurrency: Requests at the arm at a time; null: as many as its queue holds.
    """

    name: Name
    model: Annotated[str, Field(pattern=r"^models:/\S+$")]
    weight: Annotated[FiniteFloat, Field(gt=0, le=100)]
    timeout_seconds: Annotated[FiniteFloat, Field(gt=0, le=3600)] = 60.0
    max_concurrency: Annotated[int, Field(ge=1, le=100_000)] | None = None


class ABTestConfig(Part):
    """An experiment: fixed shares, assignments that are logged, no automatic decision.

    Attributes:
        name: What clients are dealt out by: the same name deals the same way.
        arms: The first is the one that others are compared with.
        sticky: Where the key is that keeps a client with its arm; who has none takes no part.
    """

    version: Literal[1] = 1
    name: Name
    arms: tuple[Arm, ...] = Field(min_length=2, max_length=20)
    sticky: StickyKey

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        names = [arm.name for arm in self.arms]
        for position, name in enumerate(names):
            if name in RESERVED_NAMES:
                raise MistakeError(
                    f"an arm cannot be named {name!r}: a route has such a variant anyway",
                    "rename it, as 'control'",
                    ("arms", position, "name"),
                )
            if name in names[:position]:
                raise MistakeError(
                    f"two arms are named {name!r}",
                    "rename one of them",
                    ("arms", position, "name"),
                )
        check_sum([arm.weight for arm in self.arms], ("arms",))
        return self


class ShadowConfig(Part):
    """Copies of requests to a version whose answers nobody sees.

    Attributes:
        model: The version, by URI.
        percent: Part of the requests that is copied.
        max_in_flight: Copies at a time; more are dropped and counted.
        timeout_seconds: After which a copy is given up.
        compare: Whether its answers are compared with stable's.
    """

    version: Literal[1] = 1
    model: Annotated[str, Field(pattern=r"^models:/\S+$")]
    percent: Percent = 100.0
    max_in_flight: Annotated[int, Field(ge=1, le=10_000)] = 32
    timeout_seconds: Annotated[FiniteFloat, Field(gt=0, le=3600)] = 10.0
    compare: bool = True
