"""Rules that span several parts of a policy file: one meaning a name, an order that can be met."""

from __future__ import annotations

from typing import TYPE_CHECKING

from governance.gates.document import Document, Path
from governance.gates.mistakes import suggestion
from governance.gates.schema import PREVIOUS, Goal, MetricDeclaration, Requires, folded

if TYPE_CHECKING:
    from governance.gates.policy import Policy

__all__ = ["check"]


def check(policy: Policy, document: Document) -> None:
    """Check everything that needs more than one part of the file.

    Raises:
        PolicyError: the first rule that does not hold.
    """
    _names(policy, document)
    for position, environment in enumerate(policy.environments):
        path: Path = ("environments", position)
        if environment.protected:
            if not (environment.aliases or environment.stages or environment.registered_models):
                raise document.error(
                    path,
                    f"{environment.name} has neither aliases nor stages nor registered_models, "
                    "so nothing leads there",
                    "name at least one alias, stage or registered model",
                )
        elif environment.requires.model_fields_set:
            raise document.error(
                (*path, "requires"),
                f"{environment.name} is not protected, so its requirements would never be read",
                "set 'protected: true' or take 'requires' out",
                of_key=True,
            )
        _requires(policy, document, (*path, "requires"), environment.name, environment.requires)
    if not policy.protected_environments:
        raise document.error(
            ("environments",),
            "no environment is protected, so the policy would govern nothing",
            "set 'protected: true' on at least one",
        )
    for position, rule in enumerate(policy.models):
        for name, requires in rule.environments.items():
            path = ("models", position, "environments", name)
            target = next((e for e in policy.environments if e.name == name), None)
            if target is None:
                raise _unknown_environment(policy, document, path, name)
            if not target.protected:
                raise document.error(
                    path,
                    f"{name} is not protected, so its requirements would never be read",
                    f"protect {name} or take the rule out",
                    of_key=True,
                )
            _requires(policy, document, path, name, requires)


def _names(policy: Policy, document: Document) -> None:
    """No environment, alias, stage or glob of registered models twice, in any spelling."""
    seen: dict[tuple[str, str], str] = {}

    def once(kind: str, name: str, owner: str, path: Path) -> None:
        first = seen.setdefault((kind, folded(name)), owner)
        if first != owner:
            raise document.error(
                path,
                f"{kind} {name!r} belongs to {first} already (letter case does not count)",
                f"keep it in {first} or in {owner}",
            )

    for position, environment in enumerate(policy.environments):
        path: Path = ("environments", position)
        if environment.name == PREVIOUS:
            raise document.error(
                (*path, "name"), f"{PREVIOUS!r} has a meaning in 'after'", "choose another name"
            )
        if any(e.name == environment.name for e in policy.environments[:position]):
            raise document.error(
                (*path, "name"), f"environment {environment.name!r} appears twice", "rename one"
            )
        for number, alias in enumerate(environment.aliases):
            once("alias", alias, environment.name, (*path, "aliases", number))
        for number, stage in enumerate(environment.stages):
            once("stage", stage, environment.name, (*path, "stages", number))
        for number, glob in enumerate(environment.registered_models):
            where = (*path, "registered_models", number)
            once("registered-model glob", glob, environment.name, where)


def _requires(
    policy: Policy, document: Document, path: Path, environment: str, requires: Requires
) -> None:
    seen: set[str] = set()
    for number, metric in enumerate(requires.metrics):
        place: Path = (*path, "metrics", number)
        declared = policy.metrics.get(metric.name)
        if declared is None:
            known = ", ".join(policy.metrics) or "none"
            raise document.error(
                (*place, "name"),
                f"metric {metric.name!r} is not declared under 'metrics'",
                suggestion(metric.name, policy.metrics)
                or f"declare it with its goal (declared: {known})",
            )
        if metric.name in seen:
            raise document.error(
                (*place, "name"), f"metric {metric.name!r} appears twice", "merge the two"
            )
        seen.add(metric.name)
        _right_way(document, place, declared, metric.name, metric.min, metric.max)
    _after(policy, document, (*path, "after"), environment, requires.after)
    if requires.canary is not None:
        place = (*path, "canary", "environment")
        _canary(policy, document, place, environment, requires.canary.environment)


def _canary(
    policy: Policy, document: Document, path: Path, environment: str, rolled_out_in: str
) -> None:
    names = [e.name for e in policy.environments]
    if rolled_out_in not in names:
        raise _unknown_environment(policy, document, path, rolled_out_in)
    if names.index(rolled_out_in) > names.index(environment):
        raise document.error(
            path,
            f"{rolled_out_in} comes after {environment}, where a version gets only later",
            f"name {environment} itself or an earlier environment",
        )


def _right_way(
    document: Document,
    place: Path,
    declared: MetricDeclaration,
    name: str,
    low: float | None,
    high: float | None,
) -> None:
    """A swapped min and max would let the worst models in."""
    up = declared.goal is Goal.MAXIMIZE
    if (low if up else high) is None:
        given, wanted = ("max", "min") if up else ("min", "max")
        raise document.error(
            (*place, given),
            f"{name} is to {declared.goal.value}, and {given!r} alone lets its worst values in",
            f"did you mean {wanted!r}?",
            of_key=True,
        )


def _after(
    policy: Policy, document: Document, path: Path, environment: str, after: str | None
) -> None:
    if after is None or after == PREVIOUS:
        return
    names = [e.name for e in policy.environments]
    if after not in names:
        raise _unknown_environment(policy, document, path, after)
    if names.index(after) >= names.index(environment):
        raise document.error(
            path,
            f"{after} does not come before {environment}",
            "name an earlier environment, or change the order of 'environments'",
        )
    if not policy.environments[names.index(after)].protected:
        raise document.error(
            path,
            f"{after} is not protected, so nothing is ever cleared for it",
            f"protect {after} or name another environment",
        )


def _unknown_environment(policy: Policy, document: Document, path: Path, name: str) -> Exception:
    names = [e.name for e in policy.environments]
    return document.error(
        path,
        f"there is no environment {name!r}",
        suggestion(name, names) or f"the environments are {', '.join(names)}",
    )
