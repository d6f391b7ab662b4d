"""The promotion statement: what people sign when they let a model into an environment.

An in-toto Statement v1 whose predicate is a SLSA verification summary (VSA), plus a ``promotion``
block that binds it to one incarnation of one version, one environment and one registry epoch, and
to the protected registered model that it is to be served from, if it enters by a copy.
Its subject is the OMS root digest, so any in-toto tool can match it with the model's bytes.

Rules: the payload is canonical JSON and has one spelling (``parse`` refuses every other); it fits
AWS KMS's limit of 4,096 bytes for Ed25519; ``threshold`` is at least one; clock and nonce come
from the caller.

Example::

    payload = statement.to_payload()
    assert PromotionStatement.parse(payload) == statement
    print(statement.describe())  # what a person reads before signing
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from governance.canonical import canonical_json, sha256_hex
from governance.errors import SignatureError
from governance.signing.documents import Fields, read_canonical
from governance.signing.dsse import pae

__all__ = [
    "PAYLOAD_TYPE",
    "PREDICATE_TYPE",
    "SIGNED_SIZE_LIMIT",
    "InputAttestation",
    "PromotionStatement",
    "request_command",
    "statement_id",
]

PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "https://slsa.dev/verification_summary/v1"
SIGNED_SIZE_LIMIT = 4096
"""The most bytes that are signed (the payload in its pre-authentication encoding)."""

_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS = 253402300799999  # the end of the year 9999, the last that RFC 3339 can write


def statement_id(payload: bytes) -> str:
    """How a statement is named: the hex SHA-256 of its payload."""
    return sha256_hex(payload)


def request_command(uri: str, environment: str, served_as: str | None = None) -> str:
    """What a person types to have a statement issued."""
    command = f"chancery request {shlex.quote(uri)} --to {shlex.quote(environment)}"
    return command if served_as is None else f"{command} --as {shlex.quote(served_as)}"


@dataclass(frozen=True, slots=True)
class InputAttestation:
    """Evidence that the gate read: where it is, and its hex SHA-256."""

    uri: str
    digest: str


@dataclass(frozen=True, slots=True)
class PromotionStatement:
    """One promotion, as people approve it.

    Attributes:
        model_uid: Incarnation of the registered model.
        version_uid: Incarnation of the version.
        model_name: The model's name when the promotion was requested.
        version: The version's number.
        logged_model_id: MLflow's ``m-…`` id, if it has one.
        root_digest: OMS root digest of the artifact (hex).
        manifest_digest: Digest of its file manifest (hex).
        from_environment: Where the version is now; None when it is nowhere.
        to_environment: Where it is to go.
        registry_epoch: Epoch of the place it goes to when the promotion was requested: of model and
            environment, or of environment and ``served_as``.
        nonce: Makes the statement unique.
        not_after_ms: Until when the statement may be used for a promotion.
        threshold: How many distinct persons must sign; at least one.
        decision_digest: Digest of the gate's decision (hex).
        policy_uri: Which policy the gate applied.
        policy_digest: Its digest (hex).
        verifier_id: Who applied it, as a URI.
        time_verified_ms: When.
        inputs: The evidence the gate read.
        verified_levels: Levels the gate vouches for (VSA's ``verifiedLevels``).
        valid_until_ms: Until when the version may be loaded; None means without end.
        served_as: The protected registered model that a copy of the version is to be served from;
            None: the version itself, by alias or stage. Written only when set.
    """

    model_uid: str
    version_uid: str
    model_name: str
    version: int
    logged_model_id: str | None
    root_digest: str
    manifest_digest: str
    from_environment: str | None
    to_environment: str
    registry_epoch: int
    nonce: str
    not_after_ms: int
    threshold: int
    decision_digest: str
    policy_uri: str
    policy_digest: str
    verifier_id: str
    time_verified_ms: int
    inputs: tuple[InputAttestation, ...] = ()
    verified_levels: tuple[str, ...] = ()
    valid_until_ms: int | None = None
    served_as: str | None = None

    @property
    def uri(self) -> str:
        return f"models:/{self.model_name}/{self.version}"

    @property
    def names(self) -> tuple[str, ...]:
        """The registered models that whoever approves must have the role for."""
        return (self.model_name,) if self.served_as is None else (self.model_name, self.served_as)

    def to_payload(self) -> bytes:
        """The bytes to sign; ``parse`` is the inverse.

        Raises:
            SignatureError: a field is not what a statement may hold, or the bytes are too many
                to be signed.
        """
        try:
            payload = canonical_json(self._document())
        except (ValueError, OverflowError) as error:
            raise SignatureError(f"the statement cannot be written: {error}") from error
        # What is written must be readable: nobody is asked to sign what every gate refuses.
        _read(payload)
        return payload

    @classmethod
    def parse(cls, payload: bytes) -> PromotionStatement:
        """Read a payload strictly.

        Raises:
            SignatureError: not canonical, a missing or unknown field, a wrong type, or a subject
                that differs from the promotion block.
        """
        statement = _read(payload)
        if canonical_json(statement._document()) != payload:
            raise SignatureError("the statement contradicts itself or is oddly written")
        return statement

    def _document(self) -> dict[str, Any]:
        served_as = {} if self.served_as is None else {"servedAs": self.served_as}
        return {
            "_type": _STATEMENT_TYPE,
            "subject": [{"name": self.uri, "digest": {"sha256": self.root_digest}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "verifier": {"id": self.verifier_id},
                "timeVerified": _rfc3339(self.time_verified_ms),
                "resourceUri": self.uri,
                "policy": {"uri": self.policy_uri, "digest": {"sha256": self.policy_digest}},
                "inputAttestations": [
                    {"uri": item.uri, "digest": {"sha256": item.digest}} for item in self.inputs
                ],
                "verificationResult": "PASSED",
                "verifiedLevels": list(self.verified_levels),
                "promotion": {
                    "modelUid": self.model_uid,
                    "versionUid": self.version_uid,
                    "modelName": self.model_name,
                    "version": self.version,
                    "loggedModelId": self.logged_model_id,
                    "manifestDigest": self.manifest_digest,
                    "from": self.from_environment,
                    "to": self.to_environment,
                    "registryEpoch": self.registry_epoch,
                    "nonce": self.nonce,
                    "notAfter": self.not_after_ms,
                    "validUntil": self.valid_until_ms,
                    "threshold": self.threshold,
                    "decisionDigest": self.decision_digest,
                    **served_as,
                },
            },
        }

    def describe(self) -> str:
        """What the statement says, for a person who is about to sign it."""
        origin = _shown(self.from_environment) if self.from_environment else "no environment"
        expiry = (
            f"It may then be loaded until {_plain_time(self.valid_until_ms)}."
            if self.valid_until_ms is not None
            else "It may then be loaded without an end date."
        )
        served = (
            f", to be served as registered model {_shown(self.served_as)}"
            if self.served_as is not None
            else ""
        )
        persons = "1 person" if self.threshold == 1 else f"{self.threshold} different persons"
        evidence = [f"  {_shown(item.uri)} (sha256 {item.digest})" for item in self.inputs]
        return "\n".join(
            [
                f"You are about to approve that version {self.version} of the model "
                f"{_shown(self.model_name)} goes from {origin} to {_shown(self.to_environment)}"
                f"{served}.",
                f"The model's files have the root digest sha256 {self.root_digest}",
                f"and the manifest digest sha256 {self.manifest_digest}.",
                f"{_shown(self.verifier_id)} checked them on {_plain_time(self.time_verified_ms)} "
                f"against the policy {_shown(self.policy_uri)} (sha256 {self.policy_digest}).",
                f"The full decision has the digest sha256 {self.decision_digest}.",
                f"It takes effect when {persons} signed and the promotion is made by "
                f"{_plain_time(self.not_after_ms)}.",
                expiry,
                f"Evidence that was read ({len(self.inputs)}):" if evidence else "No evidence.",
                *evidence,
                f"Registry epoch {self.registry_epoch}, nonce {_shown(self.nonce)}.",
            ]
        )


def _read(payload: bytes) -> PromotionStatement:
    what = "the promotion statement"
    size = len(pae(PAYLOAD_TYPE, payload))
    if size > SIGNED_SIZE_LIMIT:
        raise SignatureError(
            f"{what} takes {size} bytes to sign; signers take at most {SIGNED_SIZE_LIMIT}",
            "name fewer input attestations, or shorter URIs",
        )
    statement = read_canonical(payload, what, limit=SIGNED_SIZE_LIMIT)
    statement.exactly("_type", _STATEMENT_TYPE)
    statement.exactly("predicateType", PREDICATE_TYPE)
    subjects = statement.each("subject")
    if len(subjects) != 1:
        raise SignatureError(f"{what} has {len(subjects)} subjects, not exactly one")
    predicate = statement.fields("predicate")
    predicate.exactly("verificationResult", "PASSED")
    verifier = predicate.fields("verifier")
    policy = predicate.fields("policy")
    promotion = predicate.fields("promotion")
    subjects[0].exactly("name", predicate.text("resourceUri"))
    result = PromotionStatement(
        model_uid=promotion.text("modelUid"),
        version_uid=promotion.text("versionUid"),
        model_name=promotion.text("modelName"),
        version=promotion.integer("version", minimum=1),
        logged_model_id=promotion.optional_text("loggedModelId"),
        root_digest=_sha256(subjects[0]),
        manifest_digest=promotion.digest("manifestDigest"),
        from_environment=promotion.optional_text("from"),
        to_environment=promotion.text("to"),
        registry_epoch=promotion.integer("registryEpoch"),
        nonce=promotion.text("nonce"),
        not_after_ms=promotion.integer("notAfter"),
        threshold=promotion.integer("threshold", minimum=1),
        decision_digest=promotion.digest("decisionDigest"),
        policy_uri=policy.text("uri"),
        policy_digest=_sha256(policy),
        verifier_id=verifier.text("id"),
        time_verified_ms=_milliseconds(predicate),
        inputs=tuple(_input(item) for item in predicate.each("inputAttestations")),
        verified_levels=predicate.texts("verifiedLevels"),
        valid_until_ms=promotion.optional_integer("validUntil"),
        served_as=promotion.later_text("servedAs"),
    )
    for fields in (statement, subjects[0], predicate, verifier, policy, promotion):
        fields.done()
    if max(result.not_after_ms, result.valid_until_ms or 0) > _LAST_MS:
        raise SignatureError(f"{what} has a date after the year 9999")
    return result


def _input(fields: Fields) -> InputAttestation:
    item = InputAttestation(fields.text("uri"), _sha256(fields))
    fields.done()
    return item


def _sha256(fields: Fields) -> str:
    digests = fields.fields("digest")
    value = digests.digest("sha256")
    digests.done()
    return value


def _rfc3339(milliseconds: int) -> str:
    moment = _EPOCH + timedelta(milliseconds=milliseconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{milliseconds % 1000:03d}Z"


def _milliseconds(fields: Fields) -> int:
    try:
        moment = datetime.strptime(fields.text("timeVerified"), "%Y-%m-%dT%H:%M:%S.%f%z")
        milliseconds = (moment - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError) as error:
        raise fields.error("timeVerified", "an RFC 3339 time in UTC with milliseconds") from error
    if milliseconds < 0:
        raise fields.error("timeVerified", "a time after 1970")
    return milliseconds


def _plain_time(milliseconds: int) -> str:
    return (_EPOCH + timedelta(milliseconds=milliseconds)).strftime("%Y-%m-%d %H:%M:%S UTC")


def _shown(text: str) -> str:
    """Quoted, with everything invisible spelled out: a name must not repaint the terminal."""
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return "'" + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in quoted) + "'"
