"""What is signed about drift: a monitor's word on a window, and a person's on a quarantine.

Both are in-toto Statements v1 about the model's files (their OMS root digest), in a DSSE bundle,
and have one spelling. A *report statement* binds the report's digest to the incarnation of the
version, its files and the profile, so that no report serves for another. It is signed with the key
of somebody who has the role *monitor* in the trust roots. A *quarantine statement* says which alert
proposes to take which version off which route, and why; a person who may approve signs those very
bytes, so a signature serves for nothing else.

Example::

    bundle = sign_report(ReportStatement.of(report, binding), signer)
    person, statement = verify_report(bundle, roots)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from governance.canonical import canonical_json
from governance.drift_reports import DriftReport
from governance.errors import SignatureError, UntrustedKeyError
from governance.signing.documents import Fields, read_canonical
from governance.signing.dsse import parse_bundle, sign_bundle, verify_bundle
from governance.signing.keys import Signer
from governance.signing.roots import Person, TrustRoots
from governance.signing.statements import PAYLOAD_TYPE, SIGNED_SIZE_LIMIT

__all__ = [
    "Binding",
    "QuarantineStatement",
    "ReportStatement",
    "sign_report",
    "trusted_bundle",
    "verify_report",
]

_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_REPORT_TYPE = "chancery:drift-report-statement/v1"
_QUARANTINE_TYPE = "chancery:quarantine-statement/v1"


@dataclass(frozen=True, slots=True)
class Binding:
    """Which version it is: its incarnation and its files, by digest."""

    model: str
    version: int
    version_uid: str
    root_digest: str

    @property
    def uri(self) -> str:
        return f"models:/{self.model}/{self.version}"


@dataclass(frozen=True, slots=True)
class ReportStatement:
    """A monitor's word on one window.

    Attributes:
        binding: The version.
        deployment: Its route; empty: none.
        report: Digest of the report.
        profile: Digest of the profile.
        made_ms: When the report was made.
    """

    binding: Binding
    deployment: str
    report: str
    profile: str
    made_ms: int

    @classmethod
    def of(cls, report: DriftReport, binding: Binding) -> ReportStatement:
        """About this report."""
        return cls(binding, report.deployment, report.digest, report.profile, report.made_ms)

    def to_payload(self) -> bytes:
        """The bytes to sign."""
        return _payload(
            self.binding,
            _REPORT_TYPE,
            {
                "versionUid": self.binding.version_uid,
                "deployment": self.deployment,
                "report": self.report,
                "profile": self.profile,
                "madeMs": self.made_ms,
            },
        )

    @classmethod
    def parse(cls, payload: bytes) -> ReportStatement:
        """Read a payload strictly.

        Raises:
            SignatureError: it is no such statement.
        """
        subject, predicate = _read(payload, _REPORT_TYPE, "the drift report's statement")
        statement = cls(
            binding=_binding(subject, predicate.text("versionUid")),
            deployment=_any_text(predicate, "deployment"),
            report=predicate.digest("report"),
            profile=predicate.digest("profile"),
            made_ms=predicate.integer("madeMs"),
        )
        predicate.done()
        if statement.to_payload() != payload:
            raise SignatureError("the drift report's statement is oddly written")
        return statement


@dataclass(frozen=True, slots=True)
class QuarantineStatement:
    """What a person signs off.

    Attributes:
        binding: The version that is to answer no more.
        alert_id: The alert that proposes it.
        deployment: The route.
        deploy_id: The deployment there.
        environment: It belongs to.
        reasons: Why.
        report: Digest of the report that proposed it.
        proposed_ms: When.
    """

    binding: Binding
    alert_id: str
    deployment: str
    deploy_id: str
    environment: str
    reasons: tuple[str, ...]
    report: str
    proposed_ms: int

    def to_payload(self) -> bytes:
        """The bytes to sign."""
        return _payload(
            self.binding,
            _QUARANTINE_TYPE,
            {
                "versionUid": self.binding.version_uid,
                "alertId": self.alert_id,
                "deployment": self.deployment,
                "deployId": self.deploy_id,
                "environment": self.environment,
                "reasons": list(self.reasons),
                "report": self.report,
                "proposedMs": self.proposed_ms,
            },
        )

    @classmethod
    def parse(cls, payload: bytes) -> QuarantineStatement:
        """Read a payload strictly.

        Raises:
            SignatureError: it is no such statement.
        """
        subject, predicate = _read(payload, _QUARANTINE_TYPE, "the quarantine statement")
        statement = cls(
            binding=_binding(subject, predicate.text("versionUid")),
            alert_id=predicate.text("alertId"),
            deployment=predicate.text("deployment"),
            deploy_id=predicate.text("deployId"),
            environment=predicate.text("environment"),
            reasons=predicate.texts("reasons"),
            report=_any_text(predicate, "report"),
            proposed_ms=predicate.integer("proposedMs"),
        )
        predicate.done()
        if statement.to_payload() != payload:
            raise SignatureError("the quarantine statement is oddly written")
        return statement

    def describe(self) -> str:
        """For a person who is about to sign it."""
        return "\n".join(
            [
                f"You are about to take {self.binding.uri!r} off the route {self.deployment!r} "
                f"in {self.environment!r} (deployment {self.deploy_id[:12]}).",
                f"Its files have the root digest sha256 {self.binding.root_digest}.",
                f"Alert {self.alert_id[:12]} proposes it because:",
                *(f"  {reason}" for reason in self.reasons),
            ]
        )


def sign_report(statement: ReportStatement, signer: Signer) -> str:
    """A bundle's JSON text."""
    return sign_bundle(statement.to_payload(), PAYLOAD_TYPE, signer)


def verify_report(bundle: str, roots: TrustRoots) -> tuple[Person, ReportStatement]:
    """Who signed it, and what it says.

    Raises:
        SignatureError: it is forged or no such statement.
        UntrustedKeyError: the key is in nobody's hands, is revoked, or its holder is no monitor of
            this model.
    """
    person, payload = trusted_bundle(bundle, roots)
    statement = ReportStatement.parse(payload)
    if not roots.may_report(person.id, statement.binding.model):
        raise UntrustedKeyError(
            f"{person.id} is no monitor of {statement.binding.model}: the trust roots give them "
            "no such role",
            "sign reports with a monitor's key (`chancery trust add … --monitor MODELS`)",
        )
    return person, statement


def trusted_bundle(bundle: str, roots: TrustRoots) -> tuple[Person, bytes]:
    """Whose key signed a statement, and the statement.

    Raises:
        SignatureError: it is forged.
        UntrustedKeyError: the key is in nobody's hands, or is revoked.
    """
    parsed = parse_bundle(bundle)
    person, key = roots.person_of(parsed.keyid), roots.public_key(parsed.keyid)
    if person is None or key is None:
        raise UntrustedKeyError(
            f"key {parsed.keyid[:12]}… is not in the trust roots, or was revoked",
            "ask an administrator to add it with `chancery trust add`",
        )
    return person, verify_bundle(parsed, key, payload_type=PAYLOAD_TYPE)


def _payload(binding: Binding, kind: str, predicate: dict[str, Any]) -> bytes:
    payload = canonical_json(
        {
            "_type": _STATEMENT_TYPE,
            "subject": [{"name": binding.uri, "digest": {"sha256": binding.root_digest}}],
            "predicateType": kind,
            "predicate": {
                "modelName": binding.model,
                "version": binding.version,
                **predicate,
            },
        }
    )
    if len(payload) > SIGNED_SIZE_LIMIT - 64:
        raise SignatureError(f"the statement has {len(payload)} bytes, more than signers take")
    return payload


def _read(payload: bytes, kind: str, what: str) -> tuple[tuple[Fields, Fields], Fields]:
    """Subject and predicate together, for the binding; and the predicate."""
    statement = read_canonical(payload, what, limit=SIGNED_SIZE_LIMIT)
    statement.exactly("_type", _STATEMENT_TYPE)
    statement.exactly("predicateType", kind)
    subjects = statement.each("subject")
    predicate = statement.fields("predicate")
    statement.done()
    if len(subjects) != 1:
        raise SignatureError(f"{what} has {len(subjects)} subjects, not exactly one")
    return (subjects[0], predicate), predicate


def _binding(parts: tuple[Fields, Fields], version_uid: str) -> Binding:
    subject, predicate = parts
    digests = subject.fields("digest")
    binding = Binding(
        predicate.text("modelName"),
        predicate.integer("version", minimum=1),
        version_uid,
        digests.digest("sha256"),
    )
    digests.done()
    subject.exactly("name", binding.uri)
    subject.done()
    return binding


def _any_text(fields: Fields, key: str) -> str:
    """A text that may be empty."""
    return "" if fields.value.get(key) == "" and fields._take(key) == "" else fields.text(key)
