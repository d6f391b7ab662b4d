"""The witness refuses forks and rollbacks, and survives torn records, full disks and crashes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from governance.errors import WitnessError
from governance.ledger import FileWitness, Ledger, verify_ledger
from governance.ledger.merkle import consistency_proof, leaf_hash, root_hash
from governance.ledger.note import (
    Checkpoint,
    parse_checkpoint,
    sign_checkpoint,
    verify_cosignature,
)
from governance.ledger.sequencer import Sequenced
from governance.signing.keys import FileSigner, create_key

Recorder = Callable[..., list[str]]
ORIGIN = "chancery/test"
LEAVES = [leaf_hash(b"%d" % i) for i in range(16)]


def node(at: tuple[int, int]) -> bytes:
    level, position = at
    return root_hash(LEAVES[position << level : (position + 1) << level])


def note(signer: FileSigner, size: int, root: bytes | None = None) -> str:
    root = root_hash(LEAVES[:size]) if root is None else root
    return sign_checkpoint(Checkpoint(ORIGIN, size, root), signer)


def test_it_signs_what_grows(witness: FileWitness, log_signer: FileSigner) -> None:
    assert witness.latest(ORIGIN) is None
    assert list(witness.history(ORIGIN)) == []
    sizes = [1, 2, 7, 16]
    for old, new in zip([0, *sizes], sizes, strict=False):
        cosigned = witness.cosign(note(log_signer, new), old, consistency_proof(old, new, node))
        verify_cosignature(cosigned, witness.public_key_pem)
        assert witness.latest(ORIGIN) == cosigned
    assert [parse_checkpoint(one).size for one in witness.history(ORIGIN)] == sizes
    assert witness.cosign(note(log_signer, 16), 7, []) == witness.latest(ORIGIN)  # idempotent
    assert witness.latest("another/log") is None


@pytest.fixture
def at_seven(witness: FileWitness, log_signer: FileSigner) -> FileWitness:
    witness.cosign(note(log_signer, 7), 0, [])
    return witness


def test_it_refuses_a_rollback(at_seven: FileWitness, log_signer: FileSigner) -> None:
    with pytest.raises(WitnessError, match="rolled back"):
        at_seven.cosign(note(log_signer, 6), 7, [])


def test_it_refuses_a_fork(at_seven: FileWitness, log_signer: FileSigner) -> None:
    with pytest.raises(WitnessError, match="rewritten"):
        at_seven.cosign(note(log_signer, 7, bytes(32)), 7, [])
    proof = consistency_proof(7, 9, node)
    with pytest.raises(WitnessError, match="rewritten"):
        at_seven.cosign(note(log_signer, 9, bytes(32)), 7, proof)
    with pytest.raises(WitnessError, match="rewritten"):
        at_seven.cosign(note(log_signer, 9), 7, proof[:-1])
    at_seven.cosign(note(log_signer, 9), 7, proof)


def test_it_refuses_a_proof_from_another_size(
    at_seven: FileWitness, log_signer: FileSigner
) -> None:
    with pytest.raises(WitnessError, match="meanwhile"):
        at_seven.cosign(note(log_signer, 9), 0, [])


def test_it_refuses_another_key(at_seven: FileWitness, tmp_path: Path) -> None:
    with pytest.raises(WitnessError, match="not signed by the log's key"):
        at_seven.cosign(note(create_key(tmp_path / "mallory"), 9), 7, [])


def test_a_torn_last_record_is_ignored_and_replaced(
    at_seven: FileWitness, log_signer: FileSigner
) -> None:
    path = at_seven.path(ORIGIN)
    whole = path.read_bytes()
    proof = consistency_proof(7, 9, node)
    at_seven.cosign(note(log_signer, 9), 7, proof)
    record = path.read_bytes()[len(whole) :]
    for cut in (1, len(record) // 2, len(record) - 1):
        path.write_bytes(whole + record[:cut])
        assert parse_checkpoint(at_seven.latest(ORIGIN) or "").size == 7
        assert len(list(at_seven.history(ORIGIN))) == 1
        at_seven.cosign(note(log_signer, 9), 7, proof)
        assert path.read_bytes().startswith(whole)
        assert [parse_checkpoint(one).size for one in at_seven.history(ORIGIN)] == [7, 9]
    path.write_bytes(record[:5])  # torn in its very first record
    assert at_seven.latest(ORIGIN) is None


@pytest.mark.parametrize(
    "damage", [b"no JSON\n", b"7\n", b'"no note"\n', b"\x00" * 40 + b"\n", b"x" * 20_000]
)
def test_a_damaged_record_is_never_taken_for_a_fresh_start(
    at_seven: FileWitness, log_signer: FileSigner, damage: bytes
) -> None:
    with at_seven.path(ORIGIN).open("ab") as file:
        file.write(damage)
    with pytest.raises(WitnessError, match="damaged"):
        at_seven.latest(ORIGIN)
    with pytest.raises(WitnessError, match="damaged"):
        at_seven.cosign(note(log_signer, 9), 7, consistency_proof(7, 9, node))


def test_a_record_of_another_witness_is_not_taken_for_its_own(
    at_seven: FileWitness, log_signer: FileSigner, tmp_path: Path
) -> None:
    other = FileWitness(
        at_seven.directory, create_key(tmp_path / "other"), log_signer.public_key_pem
    )
    with pytest.raises(WitnessError, match="not countersigned by the witness"):
        other.latest(ORIGIN)


def test_a_directory_that_cannot_be_made(log_signer: FileSigner, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    witness = FileWitness(
        tmp_path / "file" / "witness", create_key(tmp_path / "key"), log_signer.public_key_pem
    )
    with pytest.raises(WitnessError, match="cannot be used") as raised:
        witness.cosign(note(log_signer, 1), 0, [])
    assert str(tmp_path / "file" / "witness") in raised.value.message
    assert "restore access" in raised.value.remedy


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from sqlalchemy import create_engine
from governance.errors import WitnessError
from governance.events import AuditEvent, EventName
from governance.ledger import FileWitness, Ledger
from governance.signing.keys import FileSigner

home = Path(sys.argv[1])
log = FileSigner(home / "log.key")
witness = FileWitness(
    home / "witness", FileSigner(home / "witness" / "witness.key"), log.public_key_pem
)
ledger = Ledger(
    create_engine(f"sqlite:///{home / 'db.sqlite'}"), origin="x", log_signer=log, witness=witness
)
with ledger.engine.begin() as connection:
    event_id = ledger.record(connection, AuditEvent(EventName.ALIAS_SET, "models:/fraud/3", {}))
ledger._sequence()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
used = witness.path(ledger.origin).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (used + 100, used + 100))  # the next write comes short
for act in (lambda: ledger.cover(event_id), ledger.ensure_witnessed, ledger.ensure_witnessed):
    try:
        act()
    except WitnessError as error:
        print(error)
print(event_id)
"""


def test_a_full_disk(ledger: Ledger, record: Recorder, tmp_path: Path) -> None:
    """The operating system itself refuses the write: the event stays, and is covered later."""
    (first,) = record(ledger)
    ledger.cover(first)
    ran = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    covering, again, _, event_id = ran.stdout.splitlines()
    assert covering.startswith("WITNESS_UNAVAILABLE: the change is committed and event")
    assert "Do not repeat the call" in covering
    assert ".cosigned cannot be used: File too large" in covering
    assert "chancery ledger checkpoint" in covering
    assert again.startswith("WITNESS_UNAVAILABLE: the witness file")
    assert ledger.find(event_id).index == 1
    assert len(list(ledger.witness.history(ledger.origin))) == 1
    ledger.cover(event_id)
    report = verify_ledger(
        ledger.engine, log_public_key=ledger.log_signer.public_key_pem, witness=ledger.witness
    )
    assert report.ok, report.problems
    assert report.witness_size == 2


def test_a_broken_witness_stops_further_acts_until_it_is_mended(
    ledger: Ledger, witness: FileWitness, record: Recorder
) -> None:
    ledger.ensure_witnessed()
    (event_id,) = record(ledger)
    path = witness.path(ledger.origin)
    path.mkdir()  # whoever runs this, even root, cannot write a directory
    with pytest.raises(WitnessError, match="Do not repeat the call"):
        ledger.cover(event_id)
    with pytest.raises(WitnessError):
        ledger.ensure_witnessed()
    path.rmdir()
    ledger.ensure_witnessed()
    assert parse_checkpoint(witness.latest(ledger.origin) or "").size == 1
    ledger.cover(event_id)


class CrashingLedger(Ledger):
    """Dies after the commit and before the witness."""

    def _countersign(self, batch: Sequenced | None = None) -> None:
        os._exit(9)


def test_a_crash_between_commit_and_witness_heals(
    ledger: Ledger, log_signer: FileSigner, witness: FileWitness, record: Recorder
) -> None:
    record(ledger, 5)
    ledger.sequence()
    (event_id,) = record(ledger)
    child = os.fork()
    if not child:
        ledger.engine.dispose(close=False)
        CrashingLedger(ledger.engine, origin="x", log_signer=log_signer, witness=witness).sequence()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert ledger.size() == 6
    assert parse_checkpoint(witness.latest(ledger.origin) or "").size == 5
    restarted = Ledger(ledger.engine, origin="x", log_signer=log_signer, witness=witness)
    restarted.cover(event_id)
    assert parse_checkpoint(witness.latest(ledger.origin) or "").size == 6
    assert parse_checkpoint(restarted.checkpoint() or "").size == 6
