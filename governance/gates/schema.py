"""What the promotion policy file may contain: the models of its parts.

Unknown keys are errors everywhere, numbers must be finite, types are not converted. Rules that
span several parts (declared metrics, order of environments, one environment an alias) are checked
in ``governance.gates.policy``, where lines are known. ``docs/policy.md`` is the reference.
"""

from __future__ import annotations

import re
import unicodedata
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    model_validator,
)

from governance.identity import ProofLevel

__all__ = [
    "PREVIOUS",
    "PROVENANCE_TAGS",
    "CanaryRequirement",
    "DriftRequirement",
    "Environment",
    "Goal",
    "Load",
    "MetricDeclaration",
    "MetricRequirement",
    "MetricSource",
    "ModelRule",
    "PolicyFile",
    "Requires",
    "folded",
]

PREVIOUS = "previous"
"""Value of ``after``: the closest earlier protected environment, if there is one."""

PROVENANCE_TAGS = {
    "code": "mlflow.source.git.commit",
    "environment": "provenance.environment",
    "seed": "provenance.seed",
}
"""Short names for the run tags that ``provenance`` may ask for."""


def folded(name: str) -> str:
    """The form in which names are compared: letter case, width and compatibility forms aside.

    ``Champion``, ``CHAMPION`` and full-width ``ｃｈａｍｐｉｏｎ`` are one alias. MLflow's own
    check lets a line end follow an alias, hence the strip.
    """
    text = name
    for _ in range(2):  # folding can open up another compatibility form
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return text.strip()


class Goal(StrEnum):
    MAXIMIZE = "maximize"
    MINIMIZE = "minimize"


class MetricSource(StrEnum):
    """Where a metric value may come from."""

    RUN = "run"
    LOGGED_MODEL = "logged_model"
    EVALUATION = "evaluation"
    ANY = "any"


def _alias(value: str) -> str:
    if not re.fullmatch(r"[\w-]{1,255}", value):
        raise ValueError("an alias has letters, digits, '_' and '-' only")
    if folded(value) == "latest" or re.fullmatch(r"[vV]\d+", value):
        raise ValueError(f"MLflow reserves the alias {value!r}")
    return value


def _stage(value: str) -> str:
    for stage in ("Staging", "Production"):
        if folded(value) == folded(stage):
            return stage
    raise ValueError("a stage is 'Staging' or 'Production' (Archived is no promotion)")


def _count(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _tag(value: str) -> str:
    return PROVENANCE_TAGS.get(value, value)


_UNITS_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}


def _duration(value: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,3}[mhd]", value):
        raise ValueError("a time is a whole number with m, h or d, such as 90m, 12h or 7d")
    return value


Name = Annotated[str, Field(min_length=1, max_length=250, pattern=r"^\S(.*\S)?$")]
EnvironmentName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
AliasName = Annotated[str, AfterValidator(_alias)]
StageName = Annotated[str, AfterValidator(_stage)]
TagName = Annotated[Name, AfterValidator(_tag)]
Duration = Annotated[str, AfterValidator(_duration)]
Level = Annotated[FiniteFloat, Field(gt=0, lt=0.5)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class MetricDeclaration(_Part):
    """A metric that requirements may name, and which way is better."""

    goal: Goal
    description: str = ""


class MetricRequirement(_Part):
    """A threshold: ``min`` and ``max`` are inclusive; at least one is there."""

    name: Name
    min: FiniteFloat | None = None
    max: FiniteFloat | None = None
    source: MetricSource = MetricSource.ANY

    @model_validator(mode="after")
    def _has_bounds(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("state 'min', 'max' or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"no value is at least {self.min:g} and at most {self.max:g}")
        return self


class CanaryRequirement(_Part):
    """The rollout that a version must have passed.

    The limits keep out rollouts that could hardly have ended otherwise: nobody can configure a
    rollout so that it proves nothing, and have its verdict count.
    """

    environment: EnvironmentName
    outcome: Literal["promoted"] = "promoted"
    max_age: Duration = "7d"
    min_requests: Annotated[int, Field(ge=1, le=1_000_000_000)] = 1000
    min_alpha: Level = 0.0001
    max_alpha: Level = 0.1
    max_tolerance: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.05
    unless_first: bool = False

    @property
    def max_age_ms(self) -> int:
        return int(self.max_age[:-1]) * _UNITS_MS[self.max_age[-1]]

    @model_validator(mode="after")
    def _levels(self) -> Self:
        if self.min_alpha > self.max_alpha:
            raise ValueError(f"no level is from {self.min_alpha:g} to {self.max_alpha:g}")
        return self


Share = Annotated[FiniteFloat, Field(ge=0, le=1)]


class DriftRequirement(_Part):
    """What monitors must have said of a version.

    Reports count that were signed by a monitor for this very version and judged by its own profile.
    """

    no_open_alert: bool = True
    report_younger_than: Duration = "7d"
    estimated_accuracy_at_least: Share | None = None
    estimated_accuracy_within: Share | None = None

    @property
    def max_age_ms(self) -> int:
        return int(self.report_younger_than[:-1]) * _UNITS_MS[self.report_younger_than[-1]]


class Requires(_Part):
    """What an environment asks for; also, in part, what a model rule changes."""

    metrics: tuple[MetricRequirement, ...] = ()
    provenance: tuple[TagName, ...] = ()
    datasets: Annotated[int, BeforeValidator(_count), Field(ge=0, le=1000)] = 0
    finished_run: bool = True
    after: EnvironmentName | None = PREVIOUS
    canary: CanaryRequirement | None = None
    drift: DriftRequirement | None = None
    approvals: Annotated[int, Field(ge=1, le=100)] = 1
    actor_proof: ProofLevel = ProofLevel.ANONYMOUS
    request_ttl_hours: Annotated[int, Field(ge=1, le=8760)] = 72
    clearance_days: Annotated[int, Field(ge=1, le=3650)] | None = None


class Environment(_Part):
    """A place a version is promoted to: the aliases, stages and registered models that mean it."""

    name: EnvironmentName
    aliases: tuple[AliasName, ...] = ()
    stages: tuple[StageName, ...] = ()
    registered_models: tuple[Name, ...] = ()  # globs: whatever is in such a model is here
    protected: bool = True  # parsing makes it false for an environment called sandbox
    requires: Requires = Requires()


class ModelRule(_Part):
    """Other requirements for registered models whose name matches ``match``."""

    match: Name
    environments: dict[EnvironmentName, Requires] = Field(min_length=1)


class Load(_Part):
    """Which loads must be signed."""

    require_signature: Literal["protected", "all"] = "protected"


class PolicyFile(_Part):
    """The whole file."""

    version: Literal[1]
    metrics: dict[Name, MetricDeclaration] = Field(default_factory=dict)
    environments: tuple[Environment, ...] = Field(min_length=1)
    models: tuple[ModelRule, ...] = ()
    load: Load = Load()
