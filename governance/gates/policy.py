"""The promotion policy: reads the file, checks it as a whole, answers the gates' questions.

A malformed file is a ``PolicyError`` that names the file, the line and the dotted field, and the
known name that comes closest to an unknown one. Nothing is promoted while it is malformed.

Example::

    policy = load_policy(Path("policy.yaml"))
    environment = policy.environment_for_alias("Champion")      # prod, or None: not protected
    policy.requirements("fraud", environment.name).approvals    # with the model's own rules
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from functools import cached_property
from importlib.resources import files
from pathlib import Path as FilePath
from typing import Any

from pydantic import ConfigDict, ValidationError

from governance.canonical import canonical_json, sha256_hex
from governance.errors import NotFoundError, PolicyError, RefusedError
from governance.gates.consistency import check
from governance.gates.document import parse_document
from governance.gates.mistakes import first_mistake, suggestion
from governance.gates.schema import (
    PREVIOUS,
    CanaryRequirement,
    DriftRequirement,
    Environment,
    Load,
    MetricDeclaration,
    MetricRequirement,
    PolicyFile,
    Requires,
    folded,
)

__all__ = [
    "CanaryRequirement",
    "DriftRequirement",
    "Environment",
    "Load",
    "MetricDeclaration",
    "MetricRequirement",
    "Policy",
    "Requirements",
    "default_policy",
    "load_policy",
    "parse_policy",
]

_LONGEST_NAME = 256


class Requirements(Requires):
    """What one environment asks of one registered model, everything resolved.

    ``after`` names an environment or is None; ``provenance`` holds full tag names.
    """


class Policy(PolicyFile):
    """A policy file that passed every check."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @property
    def protected_environments(self) -> tuple[Environment, ...]:
        """The environments that have gates, in order."""
        return tuple(e for e in self.environments if e.protected)

    def environment(self, name: str) -> Environment:
        """An environment by name (letter case aside).

        Raises:
            NotFoundError: there is none.
        """
        for environment in self.environments:
            if environment.name == folded(name):
                return environment
        names = [e.name for e in self.environments]
        raise NotFoundError(
            f"the promotion policy has no environment {name!r}",
            suggestion(folded(name), names) or f"the environments are {', '.join(names)}",
        )

    def environment_for_alias(self, alias: str) -> Environment | None:
        """The protected environment that ``alias`` means; None when setting it needs no gate."""
        wanted = folded(alias)
        for environment in self.protected_environments:
            if wanted in map(folded, environment.aliases):
                return environment
        return None

    def environment_for_stage(self, stage: str) -> Environment | None:
        """The protected environment that ``stage`` means; None when it needs no gate."""
        wanted = folded(stage)
        for environment in self.protected_environments:
            if wanted in map(folded, environment.stages):
                return environment
        return None

    def environment_for_registered_model(self, name: str) -> Environment | None:
        """The protected environment whose registered models ``name`` is one of; None: no gate.

        Where the globs of two environments both match, the later one counts: a wide glob of
        staging cannot take a model out of prod.
        """
        wanted = folded(name)
        for environment in reversed(self.protected_environments):
            if any(fnmatchcase(wanted, folded(glob)) for glob in environment.registered_models):
                return environment
        return None

    def way_in(self, name: str, served_as: str | None) -> Environment:
        """The environment called ``name``, as the target of a promotion.

        Args:
            name: The environment.
            served_as: The registered model that a copy is to be served from; None: the version is
                to get an alias or stage.

        Raises:
            NotFoundError: there is no such environment.
            RefusedError: it is not entered that way.
        """
        target = self.environment(name)
        globs = ", ".join(target.registered_models)
        if served_as is None:
            if globs and not (target.aliases or target.stages):
                raise RefusedError(
                    f"{target.name} has no alias or stage; it is entered by copying into one of "
                    f"its registered models ({globs})",
                    "say which: add `--as <registered model>`",
                )
            return target
        found = self.environment_for_registered_model(served_as)
        if found is not None and found.name == target.name and _is_model_name(served_as):
            return target
        if found is None or not _is_model_name(served_as):
            why = "the policy protects no registered model of that name"
        else:
            why = f"it is one of {found.name}"
        raise RefusedError(
            f"{served_as[:_LONGEST_NAME]!r} is no registered model of {target.name}: {why}",
            f"name one that matches {globs}, or promote by alias or stage, without `--as`"
            if globs
            else f"give {target.name} registered_models in the policy, or promote by alias or "
            "stage, without `--as`",
        )

    def requirements(self, model_name: str, environment_name: str) -> Requirements:
        """What the environment asks of the model: its own, then each matching rule in order.

        A rule's single values replace; its metrics replace those of the same name and add the
        others; its provenance tags are added.
        """
        environment = self.environment(environment_name)
        merged = environment.requires
        for rule in self.models:
            change = rule.environments.get(environment.name)
            if change is not None and fnmatchcase(folded(model_name), folded(rule.match)):
                merged = _merge(merged, change)
        return Requirements.model_construct(
            **{
                **dict(merged),
                "after": self._earlier(environment, merged.after),
                "provenance": tuple(dict.fromkeys(merged.provenance)),
            }
        )

    def _earlier(self, environment: Environment, after: str | None) -> str | None:
        if after != PREVIOUS:
            return after
        position = self.environments.index(environment)
        earlier = [e.name for e in self.environments[:position] if e.protected]
        return earlier[-1] if earlier else None

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the policy's canonical JSON: its meaning, not its spelling."""
        document = self.model_dump(mode="json", exclude={"models"})
        for environment in document["environments"]:
            for later in ("canary", "drift"):  # a file without it means what it meant
                if environment["requires"][later] is None:
                    del environment["requires"][later]
        document["models"] = [r.model_dump(mode="json", exclude_unset=True) for r in self.models]
        return sha256_hex(canonical_json(_without_floats(document)))


def _is_model_name(name: str) -> bool:
    """Whether MLflow would make a registered model of this name."""
    return 0 < len(name) <= _LONGEST_NAME and not set(name) & set("/:")


def _merge(base: Requires, change: Requires) -> Requires:
    update: dict[str, Any] = {name: getattr(change, name) for name in change.model_fields_set}
    if "metrics" in update:
        metrics = {m.name: m for m in (*base.metrics, *change.metrics)}
        update["metrics"] = tuple(metrics.values())
    if "provenance" in update:
        update["provenance"] = base.provenance + change.provenance
    return base.model_copy(update=update)


def _without_floats(value: Any) -> Any:
    """Canonical JSON takes no floats: they travel as their shortest decimal text."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return {key: _without_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_floats(item) for item in value]
    return value


def load_policy(path: FilePath | str) -> Policy:
    """Read a policy file.

    Raises:
        PolicyError: it cannot be read or is malformed.
    """
    try:
        data = FilePath(path).read_bytes()
    except OSError as error:
        raise PolicyError(
            f"{path}: the policy file cannot be read: {error.strerror}",
            "correct the path or the file's permissions",
        ) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError(
            f"{path}, line {line}: not UTF-8 text", "save the file as UTF-8", line=line
        ) from error
    return parse_policy(text, str(path))


def default_policy() -> Policy:
    """The policy in force when there is no policy file."""
    name = "default_policy.yaml"
    return parse_policy(files("governance.gates").joinpath(name).read_text("utf-8"), name)


def parse_policy(text: str, name: str = "policy.yaml") -> Policy:
    """Parse the text of a policy file.

    Raises:
        PolicyError: malformed; names the line and the field of the first mistake.
    """
    document = parse_document(text, name)
    if not isinstance(document.value, dict) or not document.value:
        raise document.error(
            (),
            "the policy is empty" if not document.value else "the policy is not a mapping",
            "start from the example in docs/policy.md",
        )
    _open_sandbox(document.value.get("environments"))
    try:
        # JSON mode: strict, yet lists may fill tuples and text may fill enums.
        policy = Policy.model_validate_json(json.dumps(document.value))
    except ValidationError as error:
        raise first_mistake(error, document) from error
    check(policy, document)
    return policy


def _open_sandbox(environments: Any) -> None:
    """An environment called ``sandbox`` is not protected unless the file says so."""
    for environment in environments if isinstance(environments, list) else ():
        if isinstance(environment, dict) and environment.get("name") == "sandbox":
            environment.setdefault("protected", False)
