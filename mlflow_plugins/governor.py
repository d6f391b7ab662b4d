"""One database under governance: its ledger, policy, trust roots and the promotion gate.

There is one ``Governor`` per process and database. The governed stores ask it before a change
(``admit``), the REST routes and commands through ``mlflow_plugins.backend``.
"""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.engine import Connection

from governance import lineage, registry
from governance.clock import now_ms
from governance.database import connect, migrate
from governance.errors import (
    ConfigurationError,
    GovernanceError,
    PromotionDeniedError,
    RefusedError,
)
from governance.events import AuditEvent, EventName
from governance.gates import promotions
from governance.gates.decide import decide
from governance.gates.drift_evidence import read_drift
from governance.gates.policy import Policy, default_policy, load_policy
from governance.gates.promotions import Standing
from governance.gates.verdicts import read_verdicts
from governance.identity import current_actor
from governance.ledger import Ledger, open_ledger
from governance.records import Candidate, Decision, Evidence
from governance.settings import Settings, plain_database_uri
from governance.signing import trust
from governance.signing.keys import Signer, development_signer
from governance.signing.trust import TrustRoots
from mlflow_plugins import evidence as mlflow_evidence

__all__ = ["Governor", "now_ms"]


class Governor:
    """Governs one database.

    Args:
        uri: ``governed+…`` or plain SQLAlchemy URI.
        settings: Settings of this process.
    """

    _instances: dict[tuple[int, str], Governor] = {}  # noqa: RUF012
    _lock = threading.RLock()

    def __init__(self, uri: str, settings: Settings) -> None:
        self.uri = plain_database_uri(uri)
        self.settings = settings
        self.engine: Engine = connect(self.uri)
        migrate(self.engine)
        self.ledger: Ledger = open_ledger(self.uri, settings)
        self._policy: tuple[float, Policy] | None = None
        self._roots: tuple[int, TrustRoots] | None = None
        _ = self.policy  # a malformed policy file stops the server at its start
        self._ensure_trust_roots()

    @classmethod
    def of(cls, uri: str) -> Governor:
        """The governor of the database at ``uri``."""
        key = (os.getpid(), plain_database_uri(uri))
        with cls._lock:
            if key not in cls._instances:
                governor = cls(uri, Settings.load(uri))
                follow = partial(lineage.catch_up, governor.engine)
                governor.ledger.start_background(1.0, then=follow)
                cls._instances[key] = governor
            return cls._instances[key]

    @property
    def policy(self) -> Policy:
        """The policy file as it is now; read again when the file changed.

        Raises:
            PolicyError: malformed; every promotion is denied until it is mended.
        """
        path = self.settings.policy_file
        stamp = 0.0 if path is None else _stamp(path)
        if self._policy is None or self._policy[0] != stamp:
            self._policy = (stamp, default_policy() if path is None else load_policy(path))
        return self._policy[1]

    def personal_signer(self) -> Signer:
        """The key of the person at the keyboard (development: the default is made on first use)."""
        settings = self.settings
        uri = settings.key or settings.approver_key
        return development_signer(
            uri,
            "approver's key",
            production=settings.production,
            create=uri == settings.approver_key,
        )

    def _ensure_trust_roots(self) -> None:
        """In development, found the trust roots on the local person's key."""
        with self.engine.connect() as connection:
            if trust.load_chain(connection):
                return
        if self.settings.production:
            return  # nobody may approve until `chancery trust init` was run
        signer = self.personal_signer()
        actor = current_actor()
        event = AuditEvent.now(
            EventName.TRUST_ROOTS_CHANGED,
            "trust-roots:/1",
            {"version": 1, "keyid": signer.keyid, "person": actor.id, "development": True},
        )
        try:
            with self.engine.begin() as connection:
                trust.bootstrap(connection, signer, actor.id, now_ms())
                self.ledger.record(connection, event)
        except GovernanceError:
            with self.engine.connect() as connection:  # another process was first
                if not trust.load_chain(connection):
                    raise
        else:
            self.ledger.cover(event.id)

    def roots(self, connection: Connection) -> TrustRoots:
        """The trust roots in force, verified from the first document on.

        Raises:
            ConfigurationError: there are none yet.
        """
        chain = trust.load_chain(connection)
        if not chain:
            raise ConfigurationError(
                "there are no trust roots, so nobody may approve anything",
                "run `chancery trust init` with the administrators' keys",
            )
        if self._roots is None or self._roots[0] != hash(tuple(p for p, _ in chain)):
            self._roots = (
                hash(tuple(p for p, _ in chain)),
                trust.verify_chain(chain, pinned_first=self.settings.trust_root),
            )
        return self._roots[1]

    def evidence(
        self,
        connection: Connection,
        candidate: Candidate,
        environment: str,
        standing: Standing | None,
        *,
        served_as: str | None = None,
    ) -> Evidence:
        """Everything the gates may read about the candidate, as of now."""
        facts = mlflow_evidence.run_facts(connection, candidate)
        evidence = Evidence(
            metrics=facts.metrics + mlflow_evidence.model_metrics(connection, candidate),
            run_tags=facts.tags,
            run_status=facts.status,
            dataset_digests=facts.datasets,
            cleared_environments=promotions.cleared_environments(connection, candidate),
            signers=standing.tally.persons if standing else (),
            statement_id=(
                standing.statement.statement_id if standing and standing.statement else None
            ),
            approval_problems=standing.tally.problems if standing else (),
            actor_proof=current_actor().proof.value,
            as_of_ms=(standing.granted_ms if standing else None) or now_ms(),
        )
        needs = self.policy.requirements(candidate.model_name, environment)
        if needs.drift is not None:
            roots = self.roots(connection)
            found = read_drift(connection, self.ledger, roots, candidate)
            evidence = replace(evidence, drift=found)
        canary = needs.canary
        if canary is None:
            return evidence
        verdicts, problems = read_verdicts(connection, self.ledger, candidate, canary.environment)
        epoch = promotions.current_epoch(connection, candidate.model_uid, environment, served_as)
        alone = epoch == 1 and standing is not None and standing.occupant
        return replace(
            evidence,
            verdicts=verdicts,
            verdict_problems=problems,
            first=epoch == 0 or alone,
        )

    def decide(
        self,
        connection: Connection,
        candidate: Candidate,
        environment: str,
        *,
        served_as: str | None = None,
        own_canary: bool = True,
    ) -> tuple[Decision, Standing]:
        """The decision with signatures, and the approvals it rests on.

        ``own_canary=False``: the version is to be a canary there, so it has no verdict yet.
        """
        roots = self.roots(connection)
        standing = promotions.standing(
            connection, candidate, environment, roots, served_as=served_as, now_ms=now_ms()
        )
        found = self.evidence(connection, candidate, environment, standing, served_as=served_as)
        decision = decide(
            candidate, found, self.policy, environment, served_as=served_as, own_canary=own_canary
        )
        return decision, standing

    def admit(
        self,
        connection: Connection,
        name: str,
        version: int,
        environment: str,
        *,
        served_as: str | None = None,
    ) -> str:
        """The promotion gate: let the version into the environment, or refuse.

        Args:
            connection: The change's own connection.
            name: Registered model.
            version: Its version.
            environment: Where to.
            served_as: The protected registered model that a copy of it will be served from; None
                when it gets an alias or stage. What people signed must say the same.

        Returns:
            Id of the statement it was let in by.

        Raises:
            PromotionDeniedError: conditions are not met.
            RefusedError: another promotion won the race, or too few people have approved.
        """
        candidate = registry.candidate(connection, name, version)
        decision, standing = self.decide(connection, candidate, environment, served_as=served_as)
        if not decision.allowed:
            raise PromotionDeniedError(decision)
        if standing.statement is None or not standing.tally.sufficient:
            raise RefusedError(
                f"{candidate.uri} needs {standing.tally.required} approvals for {environment} "
                f"(its statement and the trust roots say so), and has "
                f"{len(standing.tally.persons)}",
                "let another person approve the statement, or request the promotion again",
                subject=candidate.uri,
            )
        if not standing.occupant:
            promotions.grant(connection, standing.statement, now_ms=now_ms())
        return standing.statement.statement_id

    def record_and_cover(self, event: AuditEvent) -> None:
        """Record an event in a transaction of its own; wait for its checkpoint if it must."""
        with self.engine.begin() as connection:
            self.ledger.record(connection, event)
        if event.name.awaits_checkpoint:
            self.ledger.cover(event.id)


def _stamp(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError as error:
        raise ConfigurationError(
            f"the policy file {path} cannot be read: {error.strerror}",
            "put it back; nothing is promoted without it",
        ) from error
