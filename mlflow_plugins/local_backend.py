"""The backend on a governed database: what the REST routes and local commands call."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlRegisteredModelAlias
from sqlalchemy import select
from sqlalchemy.engine import Connection

from governance import lineage, registry
from governance.backend import PromotionRequest
from governance.canonical import canonical_json, sha256_hex
from governance.errors import (
    NotFoundError,
    PromotionDeniedError,
    RefusedError,
    RevokedError,
    UntrustedKeyError,
    VerificationError,
    WitnessError,
)
from governance.events import AuditEvent, EventName
from governance.gates import promotions
from governance.gates.canary import counted_verdict
from governance.gates.decide import decide
from governance.gates.drift import counted_reports
from governance.gates.policy import Requirements
from governance.gates.promotions import StoredStatement
from governance.identity import ProofLevel, current_actor
from governance.ledger import export_ledger
from governance.lineage import Subgraph
from governance.records import Approval, Candidate, Decision, Evidence
from governance.signing import trust
from governance.signing.dsse import parse_bundle, verify_bundle
from governance.signing.statements import (
    PAYLOAD_TYPE,
    InputAttestation,
    PromotionStatement,
    request_command,
    statement_id,
)
from mlflow_plugins.adoption import adopt
from mlflow_plugins.artifacts import read_manifest
from mlflow_plugins.evidence import close_late
from mlflow_plugins.governor import Governor, now_ms
from mlflow_plugins.refusals import refusals_of
from mlflow_plugins.strict_mode import verified_access

__all__ = ["LocalBackend"]


class LocalBackend:
    """Implements ``governance.backend.Backend`` on a database.

    Args:
        governor: The database's governor.
    """

    def __init__(self, governor: Governor) -> None:
        self.governor = governor

    # Promotion -----------------------------------------------------------------------------

    def request_promotion(
        self, name: str, version: int, environment: str, *, served_as: str | None = None
    ) -> PromotionRequest:
        self.governor.ledger.ensure_witnessed()
        with self._refusals_recorded(f"models:/{name}/{version}"):
            return self._request_promotion(name, version, environment, served_as)

    def _request_promotion(
        self, name: str, version: int, environment: str, served_as: str | None
    ) -> PromotionRequest:
        policy = self.governor.policy
        target = policy.way_in(environment, served_as)
        candidate = self._read_again(name, version)
        asked = policy.requirements(name, target.name)
        if asked.canary is not None or asked.drift is not None:
            self.governor.ledger.sequence()  # a verdict of a moment ago counts
        with self.governor.engine.connect() as connection:
            found = self.governor.evidence(
                connection, candidate, target.name, None, served_as=served_as
            )
            decision = decide(
                candidate,
                found,
                policy,
                target.name,
                served_as=served_as,
                signatures=False,
                own_canary=False,  # people let it in as a canary there; the change asks for more
            )
            record = registry.run_record(connection, candidate.version_uid)
            epoch = promotions.current_epoch(
                connection, candidate.model_uid, target.name, served_as
            )
            cleared = promotions.cleared_environments(connection, candidate)
            minimum = self.governor.roots(connection).minimum_approvals(target.name)
        if not decision.allowed:
            raise PromotionDeniedError(decision)
        needs = policy.requirements(candidate.model_name, target.name)
        now = now_ms()
        order = [e.name for e in policy.environments if e.name in cleared and e.name != target.name]
        statement = PromotionStatement(
            model_uid=candidate.model_uid,
            version_uid=candidate.version_uid,
            model_name=candidate.model_name,
            version=candidate.version,
            logged_model_id=candidate.logged_model_id,
            root_digest=candidate.root_digest or "",
            manifest_digest=candidate.manifest_digest or "",
            from_environment=order[-1] if order else None,
            to_environment=target.name,
            registry_epoch=epoch,
            served_as=served_as,
            nonce=secrets.token_hex(16),
            not_after_ms=now + _milliseconds(hours=needs.request_ttl_hours),
            valid_until_ms=(
                now + _milliseconds(hours=24 * needs.clearance_days)
                if needs.clearance_days
                else None
            ),
            threshold=max(needs.approvals, minimum),
            decision_digest=sha256_hex(canonical_json(decision.to_dict())),
            policy_uri="chancery:policy",
            policy_digest=policy.digest,
            verifier_id=self.governor.ledger.origin,
            time_verified_ms=now,
            inputs=_inputs(candidate, found, record, needs),
        )
        actor = current_actor().id
        identifier = statement_id(statement.to_payload())
        event = AuditEvent.now(
            EventName.PROMOTION_REQUESTED,
            candidate.uri,
            {
                "environment": target.name,
                "statementId": identifier,
                "rootDigest": statement.root_digest,
                "epoch": epoch,
                "threshold": statement.threshold,
                **_served(statement),
            },
        )
        with self.governor.engine.begin() as connection:
            stored = promotions.issue(
                connection,
                statement,
                requested_by=actor,
                decision=decision.to_dict(),
                now_ms=now,
            )
            self.governor.ledger.record(connection, event)
        self.governor.ledger.cover(event.id)
        return _to_request(stored)

    def _read_again(self, name: str, version: int) -> Candidate:
        """The candidate, its stored bytes read again: what is signed is what lies there now."""
        adopt(self.governor, name, version)
        with self.governor.engine.begin() as connection:
            candidate = registry.candidate(connection, name, version)
            close_late(connection, candidate)
            location = registry.artifact_uri(connection, candidate.version_uid)
        if location is None or candidate.revoked_reason is not None:
            return candidate
        manifest, _ = read_manifest(location)
        if manifest is None:
            return candidate
        if candidate.manifest_digest is None:
            with self.governor.engine.begin() as connection:
                registry.set_digest(connection, candidate.version_uid, manifest)
                return registry.candidate(connection, name, version)
        if manifest.manifest_digest != candidate.manifest_digest:
            raise RefusedError(
                f"the stored files of {candidate.uri} are not the ones that were registered",
                "find out who changed the artifact store; register the model again as a new "
                "version",
                subject=candidate.uri,
            )
        return candidate

    def promotion_request(self, statement_id: str) -> PromotionRequest:
        with self.governor.engine.connect() as connection:
            return _to_request(promotions.find_statement(connection, statement_id))

    def promotion_requests(self, name: str | None = None) -> Sequence[PromotionRequest]:
        with self.governor.engine.connect() as connection:
            uid = registry.model_uid(connection, name) if name else None
            if name and uid is None:
                raise NotFoundError(
                    f"there is no governed registered model {name!r}",
                    "check the name: mlflow's UI and search_registered_models() list them",
                )
            return [_to_request(s) for s in promotions.list_statements(connection, model_uid=uid)]

    def approve(self, statement_id: str, bundle: str) -> PromotionRequest:
        self.governor.ledger.ensure_witnessed()
        with self._refusals_recorded(f"statements:/{statement_id}"):
            return self._approve(statement_id, bundle)

    @contextmanager
    def _refusals_recorded(self, subject: str) -> Iterator[None]:
        """Put what was refused on the ledger; its transaction rolled back."""
        try:
            yield
        except (RefusedError, VerificationError) as error:
            refusals_of(self.governor).record_error(error, subject)
            raise

    def _approve(self, statement_id: str, bundle: str) -> PromotionRequest:
        parsed = parse_bundle(bundle)
        with self.governor.engine.begin() as connection:
            stored = promotions.find_statement(connection, statement_id)
            said = stored.statement
            subject = f"models:/{said.model_name}/{said.version}"
            roots = self.governor.roots(connection)
            person, key = roots.person_of(parsed.keyid), roots.public_key(parsed.keyid)
            if person is None or key is None or roots.is_revoked(parsed.keyid):
                raise UntrustedKeyError(
                    f"key {parsed.keyid[:12]}… is not in the trust roots",
                    "ask an administrator to add it with `chancery trust add`",
                )
            verify_bundle(parsed, key, payload_type=PAYLOAD_TYPE, payload=stored.payload)
            for name in said.names:
                if not roots.may_approve(person.id, said.to_environment, name):
                    raise RefusedError(
                        f"{person.id} may not approve {name} for {said.to_environment}",
                        "ask an administrator for the role, or another approver for the signature",
                        subject=subject,
                    )
            if stored.used or said.not_after_ms < now_ms():
                raise RefusedError(
                    f"statement {stored.statement_id[:12]} was "
                    f"{'used' if stored.used else 'open until its deadline, which has passed'}",
                    "request again: "
                    + request_command(subject, said.to_environment, said.served_as),
                    subject=subject,
                )
            promotions.add_approval(
                connection,
                Approval(stored.statement_id, person.id, parsed.keyid, bundle, now_ms()),
            )
            event = AuditEvent.now(
                EventName.PROMOTION_APPROVED,
                subject,
                {
                    "environment": said.to_environment,
                    "statementId": stored.statement_id,
                    "person": person.id,
                    "keyid": parsed.keyid,
                    "bundleDigest": sha256_hex(bundle.encode()),
                    **_served(said),
                },
            )
            self.governor.ledger.record(connection, event)
            after = promotions.find_statement(connection, stored.statement_id)
        self.governor.ledger.cover(event.id)
        return _to_request(after)

    def evaluate(
        self, name: str, version: int, environment: str, *, served_as: str | None = None
    ) -> Decision:
        with self.governor.engine.connect() as connection:
            candidate = registry.candidate(connection, name, version)
            target = self.governor.policy.way_in(environment, served_as)
            return self.governor.decide(connection, candidate, target.name, served_as=served_as)[0]

    def revoke(self, name: str, version: int, reason: str) -> None:
        self.governor.ledger.ensure_witnessed()
        with self._refusals_recorded(f"models:/{name}/{version}"):
            self._revoke(name, version, reason)

    def _revoke(self, name: str, version: int, reason: str) -> None:
        with self.governor.engine.begin() as connection:
            candidate = registry.candidate(connection, name, version)
            self._require_authority(connection, candidate)
            if candidate.revoked_reason is not None:
                raise RevokedError(
                    f"{candidate.uri} is revoked already: {candidate.revoked_reason}"
                )
            registry.mark_revoked(connection, candidate.version_uid, reason, now_ms())
            event = AuditEvent.now(EventName.VERSION_REVOKED, candidate.uri, {"reason": reason})
            self.governor.ledger.record(connection, event)
        self.governor.ledger.cover(event.id)

    def _require_authority(self, connection: Connection, candidate: Candidate) -> None:
        """Whoever may approve the model for some environment may revoke it; a claim is no proof."""
        actor = current_actor()
        if actor.proof is ProofLevel.LOCAL:
            return
        roots = self.governor.roots(connection)
        may = actor.proof is ProofLevel.SIGNED and (
            roots.is_admin(actor.id)
            or any(
                roots.may_approve(actor.id, environment.name, candidate.model_name)
                for environment in self.governor.policy.environments
            )
        )
        if not may:
            raise RefusedError(
                f"{actor.id or 'an anonymous client'} ({actor.proof.value}) may not revoke "
                f"{candidate.uri}",
                "send a signed request (CHANCERY_KEY) by an approver or administrator",
                subject=candidate.uri,
            )

    # What a load verifies ------------------------------------------------------------------

    def release(self, name: str, version: int) -> Mapping[str, Any]:
        adopt(
            self.governor, name, version
        )  # a registry that was there before governance keeps loading
        policy = self.governor.policy
        with self.governor.engine.connect() as connection:
            candidate = registry.candidate(connection, name, version)
            row = registry.version_row(connection, candidate.version_uid)
            environments = set(self._environments_of(connection, name, version))
            clearances = list(promotions.release_clearances(connection, candidate))
            revoked = registry.revocation(connection, candidate.version_uid)
            origin = None
            if protected := policy.environment_for_registered_model(name):
                environments.add(protected.name)
                if origin := registry.origin(connection, candidate.version_uid):
                    of_origin = promotions.release_clearances(connection, origin)
                    clearances += [c for c in of_origin if c[0] == protected.name]
            chain = trust.load_chain(connection)
        return {
            "format": "chancery.release/v1",
            "model": name,
            "version": version,
            "modelUid": candidate.model_uid,
            "versionUid": candidate.version_uid,
            "loggedModelId": candidate.logged_model_id,
            "manifest": row.manifest,
            "digestError": row.digest_error,
            "revoked": revoked and {"reason": revoked[0], "timeMs": revoked[1]},
            "environments": sorted(environments),
            "requiresSignature": bool(environments) or policy.load.require_signature == "all",
            "clearances": [
                {
                    "environment": environment,
                    "epoch": epoch,
                    "payload": base64.b64encode(stored.payload).decode(),
                    "bundles": list(stored.bundles),
                }
                for environment, epoch, stored in clearances
            ],
            "trustRoots": [
                {"payload": base64.b64encode(payload).decode(), "bundles": list(bundles)}
                for payload, bundles in chain
            ],
            "deletedMs": row.deleted_ms,
            "origin": origin
            and {
                "model": origin.model_name,
                "version": origin.version,
                "modelUid": origin.model_uid,
                "versionUid": origin.version_uid,
            },
        }

    def _environments_of(self, connection: Connection, name: str, version: int) -> list[str]:
        """Protected environments whose alias or stage points at the version now."""
        policy = self.governor.policy
        aliases = connection.execute(
            select(SqlRegisteredModelAlias.alias).where(
                SqlRegisteredModelAlias.name == name, SqlRegisteredModelAlias.version == version
            )
        ).scalars()
        found = {e.name for a in aliases if (e := policy.environment_for_alias(a))}
        stage = connection.execute(
            select(SqlModelVersion.current_stage).where(
                SqlModelVersion.name == name, SqlModelVersion.version == version
            )
        ).scalar_one_or_none()
        if environment := policy.environment_for_stage(stage or "None"):
            found.add(environment.name)
        return sorted(found)

    def resolve(self, name: str, version_or_alias: str) -> int:
        if not version_or_alias.startswith("@"):
            return int(version_or_alias)
        with self.governor.engine.connect() as connection:
            version = connection.execute(
                select(SqlRegisteredModelAlias.version).where(
                    SqlRegisteredModelAlias.name == name,
                    SqlRegisteredModelAlias.alias == version_or_alias[1:],
                )
            ).scalar_one_or_none()
        if version is None:
            raise NotFoundError(
                f"models:/{name} has no alias {version_or_alias[1:]!r}",
                f"set it with MlflowClient().set_registered_model_alias, or name a version, as "
                f"models:/{name}/1",
            )
        return int(version)

    def download(self, name: str, version: int, destination: str) -> str:
        with self.governor.engine.connect() as connection:
            candidate = registry.candidate(connection, name, version)
            location = registry.artifact_uri(connection, candidate.version_uid)
        if location is None:
            raise NotFoundError(f"it is not known where the files of {candidate.uri} lie")
        try:
            with verified_access():
                return str(get_artifact_repository(location).download_artifacts("", destination))
        except (MlflowException, OSError) as error:
            raise NotFoundError(f"cannot fetch the files of {candidate.uri}: {error}") from error

    # Trust roots, ledger, lineage ----------------------------------------------------------

    def trust_roots(self) -> Sequence[tuple[bytes, Sequence[str]]]:
        with self.governor.engine.connect() as connection:
            return trust.load_chain(connection)

    def change_trust_roots(self, payload: bytes, bundles: Sequence[str]) -> None:
        self.governor.ledger.ensure_witnessed()
        subject = f"trust-roots:/{sha256_hex(payload)[:16]}"
        with self._refusals_recorded(subject):
            self._change_trust_roots(payload, bundles, subject)

    def _change_trust_roots(self, payload: bytes, bundles: Sequence[str], subject: str) -> None:
        keyids = [parse_bundle(bundle).keyid for bundle in bundles]
        event = AuditEvent.now(
            EventName.TRUST_ROOTS_CHANGED,
            subject,
            {"digest": sha256_hex(payload), "signedBy": keyids},
        )
        with self.governor.engine.begin() as connection:
            trust.append(connection, payload, bundles, now_ms())
            self.governor.ledger.record(connection, event)
        self.governor.ledger.cover(event.id)

    def ledger_export(self) -> Iterator[bytes]:
        self.governor.ledger.sequence()
        for line in export_ledger(self.governor.ledger):
            yield line.rstrip("\n").encode()

    def ledger_entries(self, start: int, limit: int) -> Sequence[tuple[int, bytes]]:
        return [(e.index, e.leaf) for e in self.governor.ledger.entries(start, limit)]

    def lineage(self, node_id: str, *, direction: str, depth: int) -> Subgraph:
        with suppress(WitnessError):  # what is not countersigned yet is lineage all the same
            if self.governor.ledger.pending():
                self.governor.ledger.sequence()
        lineage.catch_up(self.governor.engine)
        with self.governor.engine.connect() as connection:
            return lineage.walk(connection, node_id, direction, depth)


def _inputs(
    candidate: Candidate, found: Evidence, record: str | None, needs: Requirements
) -> tuple[InputAttestation, ...]:
    """What the decision rests on, by digest: the run's record, a canary's verdict, drift."""
    inputs = []
    if record:
        inputs.append(InputAttestation(f"runs:/{candidate.run_id}", sha256_hex(record.encode())))
    if needs.canary is not None and (verdict := counted_verdict(candidate, found, needs.canary)):
        inputs.append(InputAttestation(f"rollouts:/{verdict.rollout_id}", verdict.digest))
    if needs.drift is not None:
        inputs += [
            InputAttestation(f"drift-reports:/{one.deployment or 'batch'}", one.report)
            for one in counted_reports(found, needs.drift)[:5]
        ]
    return tuple(inputs)


def _milliseconds(*, hours: float) -> int:
    return int(timedelta(hours=hours).total_seconds() * 1000)


def _served(statement: PromotionStatement) -> dict[str, str]:
    """What an event adds for a promotion by copy."""
    return {} if statement.served_as is None else {"servedAs": statement.served_as}


def _to_request(stored: StoredStatement) -> PromotionRequest:
    said = stored.statement
    return PromotionRequest(
        statement_id=stored.statement_id,
        payload=stored.payload,
        model=f"models:/{said.model_name}/{said.version}",
        environment=said.to_environment,
        served_as=said.served_as,
        threshold=said.threshold,
        approvals=stored.persons,
        not_after_ms=said.not_after_ms,
        requested_by=stored.requested_by,
        used=stored.used,
        decision=stored.decision,
    )
