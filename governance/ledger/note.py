"""Checkpoints: signed notes that fix the ledger's size and root.

Formats, all of C2SP (https://c2sp.org):

- *signed-note*: a text, an empty line, and signature lines ``— <name> <base64(key id ‖ bytes)>``.
  The key id is the first four bytes of SHA-256(name ‖ 0x0A ‖ algorithm byte ‖ public key).
- *tlog-checkpoint*: the text is origin, size and base64 root, a line each. The log's key bears
  the origin as its name, algorithm byte 0x01 (Ed25519).
- *tlog-cosignature*: a witness signs ``cosignature/v1\\ntime <seconds>\\n<checkpoint text>``,
  algorithm byte 0x04; the line holds the time as eight big-endian bytes before the signature.

The parser is strict: one spelling for each value, no extension lines. Lines of unknown keys are
ignored, as signed-note demands; a known key whose signature is wrong refuses the whole note.

Example::

    note = sign_checkpoint(Checkpoint("chancery/ab12", 1, root), signer)
    verify_checkpoint(note, signer.public_key_pem).size
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from governance.errors import SignatureError, UnsignedError
from governance.signing.keys import Signer, keyid_of, load_public_key, verify_signature

__all__ = [
    "Checkpoint",
    "Note",
    "cosign_note",
    "parse_checkpoint",
    "parse_note",
    "sign_checkpoint",
    "verify_checkpoint",
    "verify_cosignature",
    "witness_name",
]

_ED25519 = b"\x01"
_COSIGNATURE = b"\x04"
_SIGNATURE_LINE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_MAX_SIGNATURES = 16


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint says: the tree of ``size`` leaves of log ``origin`` has this root."""

    origin: str
    size: int
    root: bytes

    def to_text(self) -> str:
        """The note's text (tlog-checkpoint)."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def from_text(cls, text: str) -> Checkpoint:
        """Inverse of ``to_text``.

        Raises:
            SignatureError: not a checkpoint.
        """
        lines = text.split("\n")
        if len(lines) != 4 or lines[3]:
            raise SignatureError("a checkpoint has exactly three lines: origin, size and root")
        origin, size, root = lines[:3]
        if not origin or not _DECIMAL.fullmatch(size):
            raise SignatureError(f"not a checkpoint's origin and size: {origin!r}, {size!r}")
        digest = _strict_base64(root)
        if len(digest) != 32:
            raise SignatureError("a checkpoint's root has 32 bytes")
        return cls(origin, int(size), digest)


@dataclass(frozen=True, slots=True)
class Note:
    """A parsed signed note; ``signatures`` holds (name, key id, signature bytes)."""

    text: str
    signatures: tuple[tuple[str, bytes, bytes], ...]


def _strict_base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureError(f"not base64: {text[:20]!r}") from error
    if base64.b64encode(data).decode() != text:
        raise SignatureError(f"not the canonical base64 of its bytes: {text[:20]!r}")
    return data


def parse_note(note: str) -> Note:
    """Split a signed note; checks its form, not its signatures.

    Raises:
        SignatureError: malformed.
    """
    text, separator, block = note.rpartition("\n\n")
    if not separator or not block.endswith("\n"):
        raise SignatureError("not a signed note: text, an empty line and signature lines")
    text += "\n"
    if any(ord(c) < 0x20 and c != "\n" for c in note):
        raise SignatureError("a signed note holds no control characters")
    lines = block[:-1].split("\n")
    if len(lines) > _MAX_SIGNATURES:
        raise SignatureError(f"a note bears at most {_MAX_SIGNATURES} signatures")
    signatures = []
    for line in lines:
        match = _SIGNATURE_LINE.fullmatch(line)
        if match is None:
            raise SignatureError(f"not a signature line: {line[:60]!r}")
        data = _strict_base64(match[2])
        if len(data) < 5:
            raise SignatureError(f"the signature of {match[1]} is too short")
        signatures.append((match[1], data[:4], data[4:]))
    return Note(text, tuple(signatures))


def parse_checkpoint(note: str) -> Checkpoint:
    """What a note says, WITHOUT checking who signed it.

    Raises:
        SignatureError: malformed.
    """
    return Checkpoint.from_text(parse_note(note).text)


@lru_cache(maxsize=256)
def _key_id(name: str, algorithm: bytes, public_key_pem: str) -> bytes:
    key = load_public_key(public_key_pem).public_bytes(Encoding.Raw, PublicFormat.Raw)
    return sha256(name.encode() + b"\n" + algorithm + key).digest()[:4]


def _line(name: str, key_id: bytes, signature: bytes) -> str:
    return f"— {name} {base64.b64encode(key_id + signature).decode()}\n"


def sign_checkpoint(checkpoint: Checkpoint, signer: Signer) -> str:
    """The log's signed note over a checkpoint; the key's name is the origin."""
    text = checkpoint.to_text()
    key_id = _key_id(checkpoint.origin, _ED25519, signer.public_key_pem)
    return f"{text}\n{_line(checkpoint.origin, key_id, signer.sign(text.encode()))}"


def _signature_of(note: Note, name: str, key_id: bytes, length: int) -> bytes | None:
    found = [s for n, k, s in note.signatures if n == name and k == key_id]
    if len(found) > 1:
        raise SignatureError(f"the note bears two signatures of {name}")
    if found and len(found[0]) != length:
        raise SignatureError(f"the signature of {name} has {len(found[0])} bytes, not {length}")
    return found[0] if found else None


def verify_checkpoint(note: str, log_public_key: str, origin: str | None = None) -> Checkpoint:
    """The checkpoint in a note that the log's key signed.

    Args:
        note: The signed note.
        log_public_key: PEM of the log's key.
        origin: The origin to insist on; None accepts the one the key signed.

    Raises:
        UnsignedError: the log's key has not signed it.
        SignatureError: malformed, another origin, or the signature does not verify.
    """
    parsed = parse_note(note)
    checkpoint = Checkpoint.from_text(parsed.text)
    if origin is not None and checkpoint.origin != origin:
        raise SignatureError(f"the checkpoint is of {checkpoint.origin!r}, not of {origin!r}")
    key_id = _key_id(checkpoint.origin, _ED25519, log_public_key)
    signature = _signature_of(parsed, checkpoint.origin, key_id, 64)
    if signature is None:
        raise UnsignedError(
            f"the checkpoint of size {checkpoint.size} is not signed by the log's key "
            f"{keyid_of(log_public_key)[:12]}…"
        )
    verify_signature(log_public_key, signature, parsed.text.encode())
    return checkpoint


def witness_name(public_key_pem: str) -> str:
    """The key name of a witness, which follows from its key."""
    return f"chancery-witness/{keyid_of(public_key_pem)[:16]}"


def _cosigned_message(text: str, seconds: int) -> bytes:
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def cosign_note(note: str, signer: Signer, seconds: int) -> str:
    """Add a witness's cosignature/v1 line; the caller has checked what it signs."""
    name = witness_name(signer.public_key_pem)
    key_id = _key_id(name, _COSIGNATURE, signer.public_key_pem)
    signature = signer.sign(_cosigned_message(parse_note(note).text, seconds))
    return note + _line(name, key_id, seconds.to_bytes(8, "big") + signature)


def verify_cosignature(note: str, witness_public_key: str) -> int:
    """The time (seconds since the epoch) at which the witness countersigned.

    Raises:
        UnsignedError: this witness has not.
        SignatureError: malformed, or the signature does not verify.
    """
    parsed = parse_note(note)
    name = witness_name(witness_public_key)
    data = _signature_of(parsed, name, _key_id(name, _COSIGNATURE, witness_public_key), 72)
    if data is None:
        raise UnsignedError(f"the checkpoint is not countersigned by the witness {name}")
    seconds = int.from_bytes(data[:8], "big")
    verify_signature(witness_public_key, data[8:], _cosigned_message(parsed.text, seconds))
    return seconds
