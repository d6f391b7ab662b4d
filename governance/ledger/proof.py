"""The offline proof that an event is in the ledger (C2SP tlog-proof).

A ``.tlog-proof`` file holds the entry's index, its inclusion proof, and the checkpoint with the
cosignature of the witness. With the event's bytes and the two public keys, anyone can verify it
without the ledger.

Example::

    proof = ledger.tlog_proof(event_id)
    verify_tlog_proof(proof, leaf, log_public_key=log_pem, witness_public_key=witness_pem)
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence

from governance.errors import SignatureError, VerificationError
from governance.ledger.merkle import leaf_hash, verify_inclusion
from governance.ledger.note import Checkpoint, verify_checkpoint, verify_cosignature

__all__ = ["format_tlog_proof", "verify_tlog_proof"]

_HEADER = "c2sp.org/tlog-proof@v1"
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})")


def format_tlog_proof(index: int, path: Sequence[bytes], note: str) -> str:
    """The text of a ``.tlog-proof`` file, without extra data."""
    hashes = "".join(f"{base64.b64encode(item).decode()}\n" for item in path)
    return f"{_HEADER}\nindex {index}\n{hashes}\n{note}"


def verify_tlog_proof(
    proof: str,
    leaf: bytes,
    *,
    log_public_key: str,
    witness_public_key: str,
    origin: str | None = None,
) -> tuple[int, Checkpoint]:
    """Verify a proof for an event's canonical bytes.

    Returns:
        The event's index, and the checkpoint that covers it.

    Raises:
        VerificationError: malformed, wrongly signed, not countersigned, or not for this leaf.
    """
    head, separator, note = proof.partition("\n\n")
    lines = head.split("\n")
    if not separator or lines[0] != _HEADER:
        raise SignatureError(f"not a tlog-proof: it must start with the line {_HEADER!r}")
    if len(lines) > 1 and lines[1].startswith("extra "):
        del lines[1]  # optional and unauthenticated
    index = _INDEX.fullmatch(lines[1]) if len(lines) > 1 else None
    if index is None:
        raise SignatureError("not a tlog-proof: its index line is missing")
    try:
        path = [base64.b64decode(line, validate=True) for line in lines[2:]]
    except (binascii.Error, ValueError) as error:
        raise SignatureError("not a tlog-proof: a hash is not base64") from error
    if any(len(item) != 32 for item in path):
        raise VerificationError("not a tlog-proof: a hash has not 32 bytes")
    checkpoint = verify_checkpoint(note, log_public_key, origin)
    verify_cosignature(note, witness_public_key)
    verify_inclusion(leaf_hash(leaf), int(index[1]), checkpoint.size, path, checkpoint.root)
    return int(index[1]), checkpoint
