"""Checkpoints: what is signed verifies, what is changed does not, and only one spelling parses."""

from __future__ import annotations

import base64
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import SignatureError, UnsignedError, VerificationError
from governance.ledger.note import (
    Checkpoint,
    cosign_note,
    parse_checkpoint,
    parse_note,
    sign_checkpoint,
    verify_checkpoint,
    verify_cosignature,
    witness_name,
)
from governance.signing.keys import FileSigner, create_key, load_public_key, verify_signature

CHECKPOINT = Checkpoint("chancery/test", 7, bytes(range(32)))


@pytest.fixture
def keys(tmp_path: Path) -> tuple[FileSigner, FileSigner]:
    return create_key(tmp_path / "a"), create_key(tmp_path / "b")


def test_a_cosigned_checkpoint_verifies_for_both_keys(keys: tuple[FileSigner, FileSigner]) -> None:
    log, witness = keys
    note = cosign_note(sign_checkpoint(CHECKPOINT, log), witness, 1_700_000_000)
    assert verify_checkpoint(note, log.public_key_pem, "chancery/test") == CHECKPOINT
    assert verify_cosignature(note, witness.public_key_pem) == 1_700_000_000


def test_the_bytes_are_those_of_c2sp(keys: tuple[FileSigner, FileSigner]) -> None:
    """Computed here by hand from signed-note, tlog-checkpoint and tlog-cosignature."""
    log, witness = keys
    note = cosign_note(sign_checkpoint(CHECKPOINT, log), witness, 99)
    text = f"chancery/test\n7\n{base64.b64encode(bytes(range(32))).decode()}\n"
    assert note.startswith(text + "\n— chancery/test ")
    (name, key_id, signature), (witnessed_by, cosigner_id, cosignature) = parse_note(
        note
    ).signatures
    raw = load_public_key(log.public_key_pem).public_bytes_raw()
    assert key_id == sha256(name.encode() + b"\n\x01" + raw).digest()[:4]
    verify_signature(log.public_key_pem, signature, text.encode())
    raw = load_public_key(witness.public_key_pem).public_bytes_raw()
    assert witnessed_by == witness_name(witness.public_key_pem)
    assert cosigner_id == sha256(witnessed_by.encode() + b"\n\x04" + raw).digest()[:4]
    assert cosignature[:8] == (99).to_bytes(8, "big")
    message = f"cosignature/v1\ntime 99\n{text}".encode()
    verify_signature(witness.public_key_pem, cosignature[8:], message)


def test_changes_are_refused(keys: tuple[FileSigner, FileSigner]) -> None:
    log, witness = keys
    note = cosign_note(sign_checkpoint(CHECKPOINT, log), witness, 99)
    with pytest.raises(SignatureError):
        verify_checkpoint(note.replace("\n7\n", "\n8\n"), log.public_key_pem)
    with pytest.raises(SignatureError):
        verify_cosignature(note.replace("\n7\n", "\n8\n"), witness.public_key_pem)
    with pytest.raises(UnsignedError):
        verify_checkpoint(note, witness.public_key_pem)
    with pytest.raises(UnsignedError):
        verify_cosignature(note, log.public_key_pem)
    with pytest.raises(SignatureError, match="not of"):
        verify_checkpoint(note, log.public_key_pem, "another/log")
    line = note.splitlines(keepends=True)[4]
    with pytest.raises(SignatureError, match="two signatures"):
        verify_checkpoint(note + line, log.public_key_pem)


GOOD = "o\n7\n" + base64.b64encode(bytes(32)).decode() + "\n\n— o AAAAAAAA\n"


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "o\n7\n",
        GOOD[:-1],
        GOOD.replace("— o", "- o"),
        GOOD.replace("— o", "— o+p"),
        GOOD.replace("\n7\n", "\n07\n"),
        GOOD.replace("\n7\n", "\n-7\n"),
        GOOD.replace("\n7\n", "\n٧\n"),
        GOOD.replace("o\n7", "\n7", 1),
        GOOD.replace("=\n\n", "=\nextension\n\n"),
        GOOD.replace("A=\n\n", "B=\n\n"),
        GOOD.replace("AAAAAAAA\n", "AAAA\n"),
        GOOD.replace("o\n7", "o\r\n7"),
        GOOD + "trailing",
        GOOD + "— o AAAAAAAA\n" * 20,
    ],
)
def test_the_parser_is_strict(bad: str) -> None:
    assert parse_checkpoint(GOOD).size == 7
    with pytest.raises(SignatureError):
        parse_checkpoint(bad)


@given(st.text())
def test_garbage_never_crashes_the_parser(text: str) -> None:
    for note in (text, GOOD.replace("o", text, 1)):
        with suppress(VerificationError):
            parse_checkpoint(note)
