"""The one error tree.

::

    GovernanceError
    ├── ConfigurationError            settings, policy file, half-governed server
    │   └── PolicyError               the policy file is malformed (names line and field)
    ├── RefusedError                  an ordinary "no": a gate, a seal, a reserved name
    │   ├── PromotionDeniedError      a promotion gate was not met (carries the Decision)
    │   ├── SealedError               a registered version's run or artifact may not change
    │   ├── ReservedError             a reserved tag prefix or name
    │   ├── ConflictError             somebody else was first
    │   └── TooManyRequestsError      more than anybody can mean
    ├── AuthenticationError           a request's proof of identity is wrong
    │   └── ReplayError               the request was already carried out
    ├── VerificationError             bytes or statements do not hold
    │   ├── TamperedError             artifact bytes differ from what was registered or signed
    │   ├── UnsignedError             a signature is required and there is none
    │   ├── UntrustedKeyError         signed, but not by a key the trust roots allow
    │   ├── SignatureError            a signature or signed document does not verify
    │   ├── RevokedError              the version, key or clearance was revoked
    │   ├── ExpiredError              the statement or clearance is past its date
    │   └── UnreachableError          what verification needs cannot be reached
    ├── LedgerError                   the ledger cannot do what was asked
    │   ├── WitnessError              the witness cannot or will not countersign
    │   └── LedgerTamperedError       the ledger's contents do not hold (carries first bad index)
    ├── MalformedRequestError         a request says something that cannot be meant
    │   └── OversizeRequestError      its body is too large
    └── NotFoundError                 no such version, statement, entry …

Each error carries ``code`` (stable, upper-case), ``http_status`` and a ``remedy``. The message
says what is wrong and where; the remedy how to put it right. Only ``mlflow_plugins`` turns these
into ``MlflowException``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from governance.records import Decision

__all__ = [
    "AuthenticationError",
    "ConfigurationError",
    "ConflictError",
    "ExpiredError",
    "GovernanceError",
    "LedgerError",
    "LedgerTamperedError",
    "MalformedRequestError",
    "NotFoundError",
    "OversizeRequestError",
    "PolicyError",
    "PromotionDeniedError",
    "RefusedError",
    "ReplayError",
    "ReservedError",
    "RevokedError",
    "SealedError",
    "SignatureError",
    "TamperedError",
    "TooManyRequestsError",
    "UnreachableError",
    "UnsignedError",
    "UntrustedKeyError",
    "VerificationError",
    "WitnessError",
]


class GovernanceError(Exception):
    """Root of the tree.

    Args:
        message: What is wrong, and where.
        remedy: What the reader can do about it; may be empty.
    """

    code: ClassVar[str] = "GOVERNANCE_ERROR"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.code}: {self.message}"
        return f"{text} Remedy: {self.remedy}" if self.remedy else text


class ConfigurationError(GovernanceError):
    code = "MISCONFIGURED"
    http_status = 500


class PolicyError(ConfigurationError):
    """The policy file is malformed; ``line`` is 1-based, ``field`` a dotted path."""

    code = "MALFORMED_POLICY"

    def __init__(self, message: str, remedy: str = "", *, line: int = 0, field: str = "") -> None:
        super().__init__(message, remedy)
        self.line = line
        self.field = field


class RefusedError(GovernanceError):
    """``subject`` is what the refused change was about, as a URI."""

    code = "REFUSED"
    http_status = 403

    def __init__(self, message: str, remedy: str = "", *, subject: str = "") -> None:
        super().__init__(message, remedy)
        self.subject = subject


class PromotionDeniedError(RefusedError):
    code = "PROMOTION_DENIED"

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.explain(), subject=decision.model)
        self.decision = decision


class SealedError(RefusedError):
    code = "SEALED"


class ReservedError(RefusedError):
    code = "RESERVED"


class ConflictError(RefusedError):
    """What was asked for would be allowed, but somebody else has the place."""

    code = "CONFLICT"
    http_status = 409


class TooManyRequestsError(RefusedError):
    """What was asked for would be allowed, but not so often."""

    code = "TOO_MANY_REQUESTS"
    http_status = 429


class AuthenticationError(GovernanceError):
    code = "NOT_AUTHENTICATED"
    http_status = 401


class ReplayError(AuthenticationError):
    code = "REPLAYED_REQUEST"
    http_status = 403


class VerificationError(GovernanceError):
    code = "NOT_VERIFIED"
    http_status = 403


class TamperedError(VerificationError):
    code = "TAMPERED"


class UnsignedError(VerificationError):
    code = "UNSIGNED"


class UntrustedKeyError(VerificationError):
    code = "UNTRUSTED_KEY"


class SignatureError(VerificationError):
    code = "BAD_SIGNATURE"


class RevokedError(VerificationError):
    code = "REVOKED"


class ExpiredError(VerificationError):
    code = "EXPIRED"


class UnreachableError(VerificationError):
    code = "UNREACHABLE"


class LedgerError(GovernanceError):
    code = "LEDGER_ERROR"
    http_status = 409


class WitnessError(LedgerError):
    code = "WITNESS_UNAVAILABLE"


class LedgerTamperedError(LedgerError):
    """The ledger does not hold; ``index`` is the first bad entry (0-based), if it is known."""

    code = "LEDGER_TAMPERED"

    def __init__(self, message: str, remedy: str = "", *, index: int | None = None) -> None:
        super().__init__(message, remedy)
        self.index = index


class MalformedRequestError(GovernanceError):
    code = "MALFORMED_REQUEST"
    http_status = 400


class OversizeRequestError(MalformedRequestError):
    code = "REQUEST_TOO_LARGE"
    http_status = 413


class NotFoundError(GovernanceError):
    code = "NOT_FOUND"
    http_status = 404
