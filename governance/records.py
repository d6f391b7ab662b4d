"""Frozen records that rooms pass to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Approval",
    "CanaryVerdict",
    "Candidate",
    "Condition",
    "Decision",
    "DriftEvidence",
    "DriftFound",
    "Evidence",
    "MetricEvidence",
]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A registered model version as governance knows it.

    Attributes:
        model_uid: Id of this incarnation of the registered model (survives a rename, not a
            delete-and-recreate).
        model_name: Its current name.
        version: Its number.
        version_uid: Id of this incarnation of the version.
        logged_model_id: MLflow's ``m-…`` id, when the version came from a logged model.
        run_id: The run that made it, when known.
        root_digest: OMS root digest (hex), or None when the artifact could not be read.
        manifest_digest: Digest of the file manifest (hex), or None likewise.
        digest_error: Why the artifact could not be read.
        revoked_reason: Why it was revoked; None when it was not.
    """

    model_uid: str
    model_name: str
    version: int
    version_uid: str
    logged_model_id: str | None = None
    run_id: str | None = None
    root_digest: str | None = None
    manifest_digest: str | None = None
    digest_error: str | None = None
    revoked_reason: str | None = None

    @property
    def uri(self) -> str:
        return f"models:/{self.model_name}/{self.version}"


@dataclass(frozen=True, slots=True)
class MetricEvidence:
    """One metric value and where it was read.

    Attributes:
        name: Metric name.
        value: Value (float; may be NaN, which never meets a threshold).
        source: ``run``, ``logged_model`` or ``evaluation``.
        source_id: Run id or logged-model id.
        timestamp_ms: When it was logged (ms since the epoch).
    """

    name: str
    value: float
    source: str
    source_id: str
    timestamp_ms: int = 0


@dataclass(frozen=True, slots=True)
class CanaryVerdict:
    """What a rollout came to, as its entry in the ledger says.

    Attributes:
        rollout_id: Which.
        environment: Where.
        model: ``models:/name/version`` of the canary.
        version_uid: Which incarnation of it.
        root_digest: Its bytes.
        stable: ``models:/name/version`` of what it was compared with.
        outcome: ``promoted``, ``rolled_back``, ``quarantined`` or ``aborted``.
        ended_ms: When it was decided.
        requests: How many requests of each were compared, at least; 0 where errors were not.
        alpha: Level of false rollback; None where it is not told.
        shown_alpha: Level at which it was shown to be no worse; None where that was not asked.
        error_level: Level at which errors alone would have rolled it back; None: not compared.
        error_tolerance: How much higher its error rate could be.
        digest: Hex SHA-256 of the decision.
    """

    rollout_id: str
    environment: str
    model: str
    version_uid: str
    root_digest: str
    stable: str
    outcome: str
    ended_ms: int
    requests: int = 0
    alpha: float | None = None
    shown_alpha: float | None = None
    error_level: float | None = None
    error_tolerance: float = 0.0
    digest: str = ""


@dataclass(frozen=True, slots=True)
class DriftFound:
    """What a monitor said last of a version on one route, its signature verified.

    Attributes:
        deployment: The route; empty: scored in batches.
        report: Digest of the report.
        profile: Digest of the profile it was judged by.
        own_profile: Whether that profile is one of the version's own files.
        window: Index of the window.
        level: ``ok``, ``warn`` or ``alert``.
        made_ms: When.
        signed_by: Which monitor.
        estimated_accuracy: None: not said.
        reference_accuracy: What it is compared with; None: not said.
    """

    deployment: str
    report: str
    profile: str
    own_profile: bool
    window: int
    level: str
    made_ms: int
    signed_by: str
    estimated_accuracy: float | None = None
    reference_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class DriftEvidence:
    """What is known of a version's drift.

    Attributes:
        reports: The last one of each route that counts.
        problems: Why others do not, one sentence each.
        alerts: Alerts that are not closed, one sentence each.
    """

    reports: tuple[DriftFound, ...] = ()
    problems: tuple[str, ...] = ()
    alerts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything the gates may read about a candidate.

    Attributes:
        metrics: All metric values found, from every source.
        run_tags: Tags of the run, as sealed.
        run_status: MLflow's run status (``FINISHED`` …), None when there is no run.
        dataset_digests: Digests of the run's dataset inputs.
        cleared_environments: Environments this very version (same digest) was promoted to.
        signers: Distinct persons with a valid approval of one open statement for the target.
        statement_id: That statement.
        approval_problems: Why other approvals did not count, one sentence each.
        actor_proof: How the acting person is proven (``signed`` …).
        verdicts: What rollouts of the model in the environment that is asked after came to.
        verdict_problems: Why others did not count, one sentence each.
        drift: What monitors said of the version; None: it was not asked for.
        first: Nobody was ever in the place, or nobody but the candidate.
        as_of_ms: The time: when it was let in, for who is there; else now.
    """

    metrics: tuple[MetricEvidence, ...] = ()
    run_tags: Mapping[str, str] = field(default_factory=dict)
    run_status: str | None = None
    dataset_digests: tuple[str, ...] = ()
    cleared_environments: frozenset[str] = frozenset()
    signers: tuple[str, ...] = ()
    statement_id: str | None = None
    approval_problems: tuple[str, ...] = ()
    actor_proof: str = "anonymous"
    verdicts: tuple[CanaryVerdict, ...] = ()
    verdict_problems: tuple[str, ...] = ()
    drift: DriftEvidence | None = None
    first: bool = False
    as_of_ms: int = 0


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a decision.

    Attributes:
        name: Short stable name (``metric:accuracy``, ``approvals`` …).
        met: Whether it holds.
        required: What the policy asks for, in plain words.
        found: The evidence that was read, in plain words.
        remedy: How to meet it; empty when met.
    """

    name: str
    met: bool
    required: str
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of a gate: every condition, met or not, with its evidence and remedy.

    ``served_as`` is the protected registered model that a copy is to be served from, if it is one.
    """

    model: str
    environment: str
    conditions: tuple[Condition, ...]
    policy_digest: str = ""
    served_as: str | None = None

    @property
    def allowed(self) -> bool:
        """True when there is at least one condition and all are met (deny by default)."""
        return bool(self.conditions) and all(c.met for c in self.conditions)

    def explain(self) -> str:
        """Plain words: one sentence a condition that is not met, with its remedy."""
        target = (
            self.environment
            if self.served_as is None
            else f"{self.environment} as {self.served_as}"
        )
        if self.allowed:
            return f"{self.model} may be promoted to {target}."
        unmet = [c for c in self.conditions if not c.met]
        lines = [f"{self.model} may not be promoted to {target} yet:"]
        lines += [
            f"({number}) {c.required}, but {c.found}. Remedy: {c.remedy}"
            for number, c in enumerate(unmet, 1)
        ]
        if not unmet:
            lines.append("no condition was evaluated, so nothing is allowed.")
        return " ".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: in answers, events and statements."""
        served_as = {} if self.served_as is None else {"servedAs": self.served_as}
        return {
            "model": self.model,
            "environment": self.environment,
            **served_as,
            "allowed": self.allowed,
            "policyDigest": self.policy_digest,
            "conditions": [
                {
                    "name": c.name,
                    "met": c.met,
                    "required": c.required,
                    "found": c.found,
                    "remedy": c.remedy,
                }
                for c in self.conditions
            ],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Decision:
        """Inverse of ``to_dict``."""
        return cls(
            model=document["model"],
            environment=document["environment"],
            conditions=tuple(
                Condition(c["name"], c["met"], c["required"], c["found"], c["remedy"])
                for c in document["conditions"]
            ),
            policy_digest=document["policyDigest"],
            served_as=document.get("servedAs"),
        )


@dataclass(frozen=True, slots=True)
class Approval:
    """A person's signature over a promotion statement (a sigstore bundle, JSON text)."""

    statement_id: str
    person: str
    keyid: str
    bundle: str
    created_ms: int
