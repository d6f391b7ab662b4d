"""The ledger: every act on the rolls, in an order nobody can change unnoticed.

- ``merkle``: the tree of RFC 6962, as pure functions
- ``note``: C2SP checkpoints and cosignatures
- ``witness``: countersigns outside the database
- ``tree``: nodes and proofs in the database
- ``sequencer``: outbox to tree, one transaction a batch
- ``log``: the ledger's interface
- ``proof``: offline proof of one event (C2SP tlog-proof)
- ``audit``, ``verify``, ``export``: recompute everything, in the database or offline
- ``origin``: which ledger this is, remembered outside the database
- ``open``: the ledger of a database and its settings
"""

from governance.ledger.export import EXPORT_FORMAT, export_ledger, verify_export
from governance.ledger.log import Entry, Ledger
from governance.ledger.note import Checkpoint, verify_checkpoint, verify_cosignature
from governance.ledger.open import open_ledger
from governance.ledger.proof import verify_tlog_proof
from governance.ledger.verify import LedgerReport, verify_ledger
from governance.ledger.witness import FileWitness, Witness

__all__ = [
    "EXPORT_FORMAT",
    "Checkpoint",
    "Entry",
    "FileWitness",
    "Ledger",
    "LedgerReport",
    "Witness",
    "export_ledger",
    "open_ledger",
    "verify_checkpoint",
    "verify_cosignature",
    "verify_export",
    "verify_ledger",
    "verify_tlog_proof",
]
