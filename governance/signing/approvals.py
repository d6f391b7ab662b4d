"""Counting approvals: which distinct people validly signed these very bytes.

A bundle counts when it holds the identical payload, its key is in the trust roots and not revoked,
the signature verifies, and the person's role allows the environment and the model, under each name
that the statement gives it. Everything else becomes a sentence that says why it did not count. Two
keys of one person are one approval.

Example::

    counted = tally(statement, payload, bundles, roots, now_ms=now)
    if not counted.sufficient: ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from governance.errors import SignatureError
from governance.signing.dsse import parse_bundle, verify_bundle
from governance.signing.roots import TrustRoots
from governance.signing.statements import PAYLOAD_TYPE, PromotionStatement

__all__ = ["ApprovalTally", "count_signers", "tally"]


@dataclass(frozen=True, slots=True)
class ApprovalTally:
    """Who approved, and what did not count.

    Attributes:
        persons: Ids of the distinct people whose approval counts, sorted.
        problems: Why other bundles did not count, one sentence each.
        required: How many people are needed: what the statement asks for, and never less than
            the trust roots' floor for the environment.
        forged: How many bundles do not hold as signatures of these bytes at all (malformed,
            forged, or over other bytes), as opposed to signatures by people who may not approve.
    """

    persons: tuple[str, ...]
    problems: tuple[str, ...]
    required: int
    forged: int = 0

    @property
    def sufficient(self) -> bool:
        return len(self.persons) >= self.required


def tally(
    statement: PromotionStatement,
    payload: bytes,
    bundles: Sequence[str],
    roots: TrustRoots,
    *,
    now_ms: int,
) -> ApprovalTally:
    """Count the approvals of a statement that is still to be used.

    Past its ``notAfter`` nobody's approval counts.
    """
    counted = count_signers(statement, payload, bundles, roots)
    if now_ms > statement.not_after_ms:
        problem = "The statement is past its date; request the promotion again."
        return ApprovalTally((), (problem, *counted.problems), counted.required, counted.forged)
    return counted


def count_signers(
    statement: PromotionStatement, payload: bytes, bundles: Sequence[str], roots: TrustRoots
) -> ApprovalTally:
    """Like ``tally``, whatever the time: for a statement that was used in time already."""
    required = max(statement.threshold, roots.minimum_approvals(statement.to_environment))
    if statement.to_payload() != payload:
        problem = "The statement is not what the signed bytes say."
        return ApprovalTally((), (problem,), required, len(bundles))
    signed_with: dict[str, str] = {}
    problems: list[str] = []
    forged = 0
    for number, text in enumerate(bundles, 1):
        try:
            keyid = _check_signature(text, payload, roots)
        except _NotCountedError as reason:
            problems.append(f"Signature {number} does not count: {reason}.")
            continue
        except SignatureError as error:
            problems.append(f"Signature {number} does not count: {error.message}.")
            forged += 1
            continue
        objection = _check_person(keyid, statement, roots, signed_with)
        if objection:
            problems.append(f"Signature {number} does not count: {objection}.")
    return ApprovalTally(tuple(sorted(signed_with)), tuple(problems), required, forged)


class _NotCountedError(Exception):
    """The key behind a bundle gives it no weight, so its signature was not even looked at."""


def _check_signature(text: str, payload: bytes, roots: TrustRoots) -> str:
    """The id of the trusted key that validly signed ``payload``."""
    bundle = parse_bundle(text)
    if bundle.payload != payload:
        raise SignatureError("it signs other bytes than this statement")
    short = f"{bundle.keyid[:12]}…"
    if roots.is_revoked(bundle.keyid):
        raise _NotCountedError(f"key {short} is revoked")
    key = roots.public_key(bundle.keyid)
    if key is None:
        raise _NotCountedError(f"key {short} is not in the trust roots")
    verify_bundle(bundle, key, payload_type=PAYLOAD_TYPE, payload=payload)
    return bundle.keyid


def _check_person(
    keyid: str, statement: PromotionStatement, roots: TrustRoots, signed_with: dict[str, str]
) -> str | None:
    """Count the holder of the key, or say why not."""
    person = roots.person_of(keyid)
    if person is None:
        return f"nobody holds key {keyid[:12]}…"
    for name in statement.names:
        if not roots.may_approve(person.id, statement.to_environment, name):
            return f"{person.id} has no role to approve {name} for {statement.to_environment}"
    if person.id in signed_with:
        other = "again" if signed_with[person.id] == keyid else "with a second key"
        return f"{person.id} signed {other}, and each person counts once"
    signed_with[person.id] = keyid
    return None
