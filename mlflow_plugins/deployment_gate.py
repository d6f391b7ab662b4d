"""The gate before a version answers on a route.

A version may answer in a protected environment when it was let in there (a clearance whose
signatures, trust roots, revocation and date hold today, as before a load), or when the policy would
let it in now (approved, not yet promoted). Who is told no is told every unmet condition.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from governance import registry
from governance.canonical import Manifest
from governance.deployment_records import DeploymentRecord, ServedVersion
from governance.errors import (
    NotFoundError,
    PromotionDeniedError,
    RefusedError,
    RevokedError,
    TamperedError,
    UnreachableError,
    UnsignedError,
    VerificationError,
)
from governance.gates.policy import Environment
from governance.identity import ProofLevel, current_actor
from governance.records import Candidate
from governance.signing.release import Release, verify_release
from mlflow_plugins.adoption import adopt
from mlflow_plugins.governor import Governor, now_ms
from mlflow_plugins.local_backend import LocalBackend

__all__ = ["Admitted", "DeploymentGate"]

_LARGEST_VERSION = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Admitted:
    """A version that passed the gate."""

    candidate: Candidate
    environment: str
    served: ServedVersion
    provenance: Mapping[str, Any]


class DeploymentGate:
    """See the module.

    Args:
        governor: The database's governor.
        backend: What a load is told of a version.
    """

    def __init__(self, governor: Governor, backend: LocalBackend) -> None:
        self._governor = governor
        self._backend = backend

    def resolve(self, model: str) -> tuple[str, int, str | None]:
        """Name, version and, when it was named so, alias."""
        rest = model.removeprefix("models:/")
        at = "@" in rest
        name, separator, last = rest.rpartition("@") if at else rest.rpartition("/")
        if not model.startswith("models:/") or not separator or not name or not last:
            raise RefusedError(
                f"{model!r} is not models:/name/version or models:/name@alias",
                f"write models:/{name or rest or 'name'}/1, say",
            )
        if at:
            return name, self._backend.resolve(name, f"@{last}"), last
        if not (last.isascii() and last.isdigit() and 0 < int(last) <= _LARGEST_VERSION):
            raise NotFoundError(f"{last!r} is not a version number", "write models:/name/3")
        return name, int(last), None

    def environment(self, name: str, alias: str | None, wanted: str | None) -> Environment:
        """Whose gate applies: what was asked for, else what the name or alias means."""
        policy = self._governor.policy
        meant = policy.environment_for_registered_model(name)
        if meant is None and alias is not None:
            meant = policy.environment_for_alias(alias)
        if wanted is None:
            if meant is not None:
                return meant
            raise RefusedError(
                f"it is not said which environment {name!r} is deployed to",
                "add --env "
                + " or --env ".join(environment.name for environment in policy.environments),
                subject=f"models:/{name}",
            )
        return policy.environment(wanted)

    def allow_acting(self, name: str, environment: str, subject: str) -> None:
        """Refuse an actor who is not proven as the environment asks of whoever moves its aliases.

        Raises:
            RefusedError: the policy wants a better proof.
        """
        actor = current_actor()
        least = self._governor.policy.requirements(name, environment).actor_proof
        if actor.proof is ProofLevel.LOCAL or actor.proof.rank >= least.rank:
            return  # whoever opened the database needs no server to let them
        raise RefusedError(
            f"{actor.id or 'an anonymous client'} ({actor.proof.value}) may not change what "
            f"answers in {environment}, which asks for the proof {least.value!r} or better",
            "send a signed request (CHANCERY_KEY)",
            subject=subject,
        )

    def admit(
        self, name: str, version: int, environment: Environment, *, as_canary: bool = False
    ) -> Admitted:
        """The version, when it may answer in the environment.

        Args:
            name: Registered model.
            version: Which.
            environment: Where it would answer.
            as_canary: Beside a stable version that answers again what it cannot. Where the policy
                asks for the verdict of a canary in this very environment, this is how one gets it.
        """
        adopt(self._governor, name, version)
        with self._governor.engine.connect() as connection:
            candidate = registry.candidate(connection, name, version)
        if candidate.revoked_reason is not None:
            raise RevokedError(
                f"{candidate.uri} was revoked: {candidate.revoked_reason}", "deploy another version"
            )
        if candidate.root_digest is None:
            raise UnreachableError(
                f"{candidate.uri} was registered without a digest, so nobody can check its bytes: "
                f"{candidate.digest_error or 'no reason is known'}",
                "register it again from a place that the server can read",
            )
        provenance: dict[str, Any] = {
            "rootDigest": candidate.root_digest,
            "runId": candidate.run_id,
            "loggedModelId": candidate.logged_model_id,
            "policyDigest": self._governor.policy.digest,
        }
        if environment.protected:
            provenance |= self._let_in(candidate, environment.name, as_canary=as_canary)
        served = ServedVersion(version, candidate.version_uid, candidate.root_digest)
        return Admitted(candidate, environment.name, served, provenance)

    def admit_beside(
        self, record: DeploymentRecord, name: str, version: int, *, as_canary: bool = False
    ) -> Admitted:
        """The version, when it may answer on a route that is there already; else as ``admit``."""
        if name != record.model_name:
            raise RefusedError(
                f"versions of two registered models, {name!r} and {record.model_name!r}, do not "
                "share a route",
                "deploy it on a --route of its own",
                subject=f"models:/{name}",
            )
        environment = self._governor.policy.environment(record.environment)
        admitted = self.admit(name, version, environment, as_canary=as_canary)
        if admitted.candidate.model_uid != record.model_uid:
            raise RefusedError(
                f"the registered model {name!r} was deleted and made anew since the route "
                f"{record.route!r} was deployed",
                f"`chancery deploy delete {record.route}`, and deploy the new one",
                subject=record.subject,
            )
        return admitted

    def _let_in(self, candidate: Candidate, environment: str, *, as_canary: bool) -> dict[str, Any]:
        """Who let it in: by its clearance, as before a load, or by what is approved now."""
        document = self._backend.release(candidate.model_name, candidate.version)
        release = Release.parse(
            json.dumps(document), model=candidate.model_name, version=candidate.version
        )
        try:
            load = verify_release(
                release,
                Manifest.from_json(release.manifest or ""),
                environment=environment,
                require_signature=True,
                pinned_first_root=self._governor.settings.trust_root,
                now_ms=now_ms(),
            )
        except (RevokedError, TamperedError):
            raise
        except VerificationError as error:
            return self._would_be_let_in(candidate, environment, error, as_canary=as_canary)
        return {"signers": list(load.signers), "statementId": load.statement_id}

    def _would_be_let_in(
        self,
        candidate: Candidate,
        environment: str,
        error: VerificationError,
        *,
        as_canary: bool,
    ) -> dict[str, Any]:
        if self._governor.policy.environment_for_registered_model(candidate.model_name):
            raise error  # a copy was let in when it was made, or not at all
        with self._governor.engine.connect() as connection:
            decision, standing = self._governor.decide(
                connection, candidate, environment, own_canary=not as_canary
            )
        sufficient = standing.statement is not None and standing.tally.sufficient
        if decision.allowed and sufficient and standing.statement is not None:
            return {
                "signers": list(standing.tally.persons),
                "statementId": standing.statement.statement_id,
            }
        if isinstance(error, UnsignedError) and not decision.allowed:
            raise PromotionDeniedError(decision) from error
        raise error
