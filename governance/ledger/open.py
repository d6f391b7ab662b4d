"""Opens the ledger of a database with the keys, witness and origin that the settings name."""

from __future__ import annotations

import os
import threading
import uuid

from governance.database import connect
from governance.ledger.log import Ledger
from governance.ledger.origin import ORIGIN_FILE, OriginPin
from governance.ledger.witness import FileWitness
from governance.settings import Settings
from governance.signing.keys import Signer, development_signer

__all__ = ["ledger_keys", "open_ledger", "origin_pin"]

_ledgers: dict[tuple[int, str, Settings], Ledger] = {}
_lock = threading.Lock()


def origin_pin(settings: Settings) -> OriginPin:
    """What the state directory remembers of the ledger's name."""
    return OriginPin(settings.home / ORIGIN_FILE)


def ledger_keys(settings: Settings) -> tuple[Signer, FileWitness]:
    """The log's signer, and the witness.

    Raises:
        ConfigurationError: a key cannot be used, or production mode refuses it.
    """
    log_signer = development_signer(settings.log_key, "ledger key", production=settings.production)
    # The witness's key protects against the database, and lies beside the witness's
    # records on purpose: whoever owns that directory IS the witness.
    witness_signer = development_signer(
        f"file:{settings.witness / 'witness.key'}", "witness key", production=False
    )
    return log_signer, FileWitness(settings.witness, witness_signer, log_signer.public_key_pem)


def open_ledger(database_uri_plain: str, settings: Settings) -> Ledger:
    """The ledger in the database at a plain SQLAlchemy URI, whose tables must exist.

    A process has one an URI. A new ledger gets a random origin, which its database keeps and the
    state directory remembers.

    Raises:
        ConfigurationError: a key cannot be used, or production mode refuses it.
        LedgerTamperedError: the database holds another ledger than the one seen first.
    """
    key = (os.getpid(), database_uri_plain, settings)  # a fork must not share locks and sockets
    with _lock:
        ledger = _ledgers.get(key)
        if ledger is None:
            log_signer, witness = ledger_keys(settings)
            ledger = Ledger(
                connect(database_uri_plain),
                origin=f"chancery/{uuid.uuid4().hex[:16]}",
                log_signer=log_signer,
                witness=witness,
                pin=origin_pin(settings),
            )
            _ledgers[key] = ledger
        return ledger
