"""The ledger as one file that can be verified anywhere (``chancery.ledger-export/v1``).

JSON lines: a header, then each entry's canonical event as a JSON string, in order. The header has
``format``, ``origin``, ``size``, ``log_public_key``, ``witness_public_key`` (PEM), ``checkpoint``
(the log's note), ``cosigned`` (the witness's) and ``checkpoints`` (earlier notes, at most 1,000,
which narrow a bad entry down).

The keys and the origin in the header make a file readable, not trustworthy: pin all three to learn
more than that the file agrees with itself.

Example::

    with open("ledger.jsonl", "w") as file:
        file.writelines(export_ledger(ledger))
    verify_export(open("ledger.jsonl"), log_public_key=log_pem, witness_public_key=witness_pem)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from sqlalchemy import select

from governance.canonical import parse_json
from governance.database import checkpoints, ledger_entries
from governance.errors import LedgerError, SignatureError, VerificationError
from governance.ledger.audit import BLOCK, Attestation, TreeAudit
from governance.ledger.log import Ledger
from governance.ledger.note import parse_checkpoint, verify_checkpoint, verify_cosignature
from governance.ledger.verify import LedgerReport, report_of

__all__ = ["EXPORT_FORMAT", "export_ledger", "verify_export"]

EXPORT_FORMAT = "chancery.ledger-export/v1"
_EARLIER = 1_000
_FIELDS = {
    "origin": str,
    "size": int,
    "log_public_key": str,
    "witness_public_key": str,
    "checkpoint": str,
    "cosigned": str,
    "checkpoints": list,
}


def export_ledger(ledger: Ledger) -> Iterator[str]:
    """The lines of an export, up to what the witness has countersigned.

    Raises:
        LedgerError: nothing is countersigned yet.
    """
    cosigned = ledger.witness.latest(ledger.origin)
    if cosigned is None:
        raise LedgerError(
            "nothing is countersigned yet, so there is nothing to export",
            "run `chancery ledger checkpoint`",
        )
    size = parse_checkpoint(cosigned).size
    with ledger.engine.connect() as connection:
        query = select(checkpoints.c.size).where(checkpoints.c.size <= size)
        sizes = connection.execute(query.order_by(checkpoints.c.size)).scalars().all()
        wanted = sizes[:: len(sizes) // _EARLIER + 1]
        notes = dict(
            connection.execute(
                select(checkpoints.c.size, checkpoints.c.note).where(
                    checkpoints.c.size.in_({*wanted, size})
                )
            ).all()
        )
    header = {
        "format": EXPORT_FORMAT,
        "origin": ledger.origin,
        "size": size,
        "log_public_key": ledger.log_signer.public_key_pem,
        "witness_public_key": ledger.witness.public_key_pem,
        "checkpoint": notes.get(size, cosigned),
        "cosigned": cosigned,
        "checkpoints": [notes[one] for one in wanted if one < size],
    }
    yield _line(header)
    for start in range(0, size, BLOCK):
        query = select(ledger_entries.c.leaf).where(
            ledger_entries.c.idx >= start, ledger_entries.c.idx < min(start + BLOCK, size)
        )
        with ledger.engine.connect() as connection:
            leaves = connection.execute(query.order_by(ledger_entries.c.idx)).scalars().all()
        for leaf in leaves:
            yield _line(leaf.decode())


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def verify_export(
    lines: Iterable[str],
    *,
    log_public_key: str | None = None,
    witness_public_key: str | None = None,
    origin: str | None = None,
) -> LedgerReport:
    """Verify an export, offline.

    Args:
        lines: The file's lines.
        log_public_key: PEM to insist on; None takes the header's.
        witness_public_key: PEM to insist on; None takes the header's.
        origin: The name the ledger must have; None takes the header's.

    Raises:
        SignatureError: not an export of this format.
    """
    stream = iter(lines)
    header = _header(next(stream, ""))
    log_key = log_public_key or header["log_public_key"]
    witness_key = witness_public_key or header["witness_public_key"]
    named, size = header["origin"], header["size"]
    more: list[tuple[int | None, str]] = []
    if origin is not None and named != origin:
        more.append((0, f"the export calls its ledger {named!r}, not {origin!r}"))
    attestations = [
        _attested(note, "the checkpoint", log_key, named)
        for note in (*header["checkpoints"], header["checkpoint"])
    ]
    cosigned = _attested(header["cosigned"], "the countersigned checkpoint", log_key, named)
    try:
        verify_cosignature(header["cosigned"], witness_key)
    except VerificationError as error:
        more.append((None, f"the countersigned checkpoint: {error.message}"))
    if cosigned.size != size:
        more.append((None, f"the header says {size} entries, the witness {cosigned.size}"))

    audit = TreeAudit([one for one in (*attestations, cosigned) if one.size <= cosigned.size])
    while True:
        block = [_leaf(line) for line in islice(stream, BLOCK)]
        leaves = [leaf for leaf in block if leaf is not None]
        if len(leaves) < len(block):
            more.append((audit.size + block.index(None), "a line of the export is not a string"))
            leaves = leaves[: block.index(None)]
        if leaves:
            audit.add(None, leaves)
        if len(leaves) < BLOCK:
            break
    if audit.size < cosigned.size:
        sentence = f"entry {audit.size} and later ones are missing, up to size {cosigned.size}"
        more.append((audit.size, sentence))
    elif audit.size > cosigned.size:
        more.append((cosigned.size, f"entry {cosigned.size} is under no checkpoint"))
    return report_of(
        audit,
        origin=named,
        more=more,
        witness_size=cosigned.size,
        keys_pinned=log_public_key is not None and witness_public_key is not None,
        origin_pinned=origin is not None,
    )


def _header(line: str) -> dict[str, Any]:
    try:
        header = parse_json(line)
    except ValueError as error:
        raise SignatureError(f"the export's header is not JSON: {error}") from error
    if not isinstance(header, dict) or header.get("format") != EXPORT_FORMAT:
        raise SignatureError(f"not an export of format {EXPORT_FORMAT}")
    for name, kind in _FIELDS.items():
        if type(header.get(name)) is not kind:
            raise SignatureError(f"the export's header has no {name}, or not a {kind.__name__}")
    return header


def _attested(note: Any, source: str, log_key: str, origin: str) -> Attestation:
    if not isinstance(note, str):
        raise SignatureError(f"{source} in the export's header is not a string")
    checkpoint = parse_checkpoint(note)
    fault = ""
    try:
        verify_checkpoint(note, log_key, origin)
    except VerificationError as error:
        fault = error.message
    return Attestation(checkpoint.size, source, checkpoint.root, fault)


def _leaf(line: str) -> bytes | None:
    try:
        text = json.loads(line)
        return text.encode() if isinstance(text, str) else None
    except ValueError:
        return None
