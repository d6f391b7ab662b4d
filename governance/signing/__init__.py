"""Who signed what: keys, bundles, promotion statements, trust roots, approvals, verified loads.

====================  =============================================================
``keys``              signers behind URIs; Ed25519 and its key id
``documents``         strict reading of signed JSON
``dsse``              the sigstore bundle around one payload and one signature
``statements``        the promotion statement that people sign
``drift_statements``  a monitor's word on a window, a person's on a quarantine
``roots``, ``trust``  the trust roots, and the chain of their versions
``approvals``         distinct people behind identical bytes
``release``           the check before a load
``pins``              trust on first use
====================  =============================================================
"""

from governance.signing.approvals import ApprovalTally, tally
from governance.signing.dsse import Bundle, parse_bundle, sign_bundle, verify_bundle
from governance.signing.keys import (
    DevelopmentKeyWarning,
    FileSigner,
    Signer,
    create_key,
    development_signer,
    keyid_of,
    load_signer,
)
from governance.signing.pins import KnownRoots
from governance.signing.release import (
    Clearance,
    Release,
    Revocation,
    VerifiedLoad,
    verify_release,
)
from governance.signing.roots import (
    ADMIN,
    Person,
    Role,
    RoleKind,
    TrustRoots,
    approver,
    monitor,
)
from governance.signing.statements import InputAttestation, PromotionStatement, statement_id

__all__ = [
    "ADMIN",
    "ApprovalTally",
    "Bundle",
    "Clearance",
    "DevelopmentKeyWarning",
    "FileSigner",
    "InputAttestation",
    "KnownRoots",
    "Person",
    "PromotionStatement",
    "Release",
    "Revocation",
    "Role",
    "RoleKind",
    "Signer",
    "TrustRoots",
    "VerifiedLoad",
    "approver",
    "create_key",
    "development_signer",
    "keyid_of",
    "load_signer",
    "monitor",
    "parse_bundle",
    "sign_bundle",
    "statement_id",
    "tally",
    "verify_bundle",
    "verify_release",
]
