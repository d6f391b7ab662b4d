"""Recording, covering, reading; and many threads and processes doing so at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, Popen
from threading import Thread

import pytest
from sqlalchemy.orm import Session

from governance.database import connect, metadata
from governance.errors import LedgerError, NotFoundError, VerificationError
from governance.events import AuditEvent, EventName
from governance.ledger import (
    FileWitness,
    Ledger,
    LedgerReport,
    open_ledger,
    verify_checkpoint,
    verify_ledger,
    verify_tlog_proof,
)
from governance.ledger.merkle import verify_consistency, verify_inclusion
from governance.ledger.note import parse_checkpoint
from governance.settings import Settings
from governance.signing.keys import DevelopmentKeyWarning

Recorder = Callable[..., list[str]]


def verify(ledger: Ledger) -> LedgerReport:
    return verify_ledger(
        ledger.engine, log_public_key=ledger.log_signer.public_key_pem, witness=ledger.witness
    )


def test_an_empty_ledger(ledger: Ledger) -> None:
    assert (ledger.size(), ledger.pending(), ledger.checkpoint()) == (0, 0, None)
    assert ledger.sequence() == 0
    ledger.ensure_witnessed()
    assert verify(ledger).ok
    with pytest.raises(NotFoundError):
        ledger.find("nothing")


def test_an_event_is_recorded_with_its_change_or_not_at_all(ledger: Ledger) -> None:
    event = AuditEvent(EventName.ALIAS_SET, "models:/fraud/3", {"alias": "champion"})
    with Session(ledger.engine) as session:
        ledger.record(session.connection(), event)
        session.rollback()
    assert ledger.pending() == 0
    with pytest.raises(LedgerError, match="neither pending nor in the ledger"):
        ledger.cover(event.id)
    with Session(ledger.engine) as session:
        assert ledger.record(session.connection(), event) == event.id
        session.commit()
    assert (ledger.pending(), ledger.size()) == (1, 0)
    ledger.cover(event.id)
    ledger.cover(event.id)
    assert (ledger.pending(), ledger.size()) == (0, 1)
    assert ledger.find(event.id).event() == event.to_cloudevent()


def test_reading(ledger: Ledger, record: Recorder) -> None:
    ids = record(ledger, 13)
    assert ledger.sequence() == 13
    assert [entry.event_id for entry in ledger.entries()] == ids
    assert [entry.index for entry in ledger.entries(-3)] == [10, 11, 12]
    assert [entry.index for entry in ledger.entries(-99, 2)] == [0, 1]
    assert [entry.index for entry in ledger.entries(4, 2)] == [4, 5]
    assert ledger.entries(13) == []
    checkpoint = verify_checkpoint(
        ledger.checkpoint() or "", ledger.log_signer.public_key_pem, "chancery/test"
    )
    assert checkpoint.size == 13
    for entry in ledger.entries():
        proof = ledger.inclusion_proof(entry.index)
        verify_inclusion(entry.leaf_hash, entry.index, 13, proof, checkpoint.root)
    record(ledger, 6)
    ledger.sequence()
    later = parse_checkpoint(ledger.checkpoint() or "")
    verify_consistency(13, 19, checkpoint.root, later.root, ledger.consistency_proof(13, 19))


def test_an_offline_proof(ledger: Ledger, record: Recorder) -> None:
    ids = record(ledger, 9)
    with pytest.raises(NotFoundError):
        ledger.tlog_proof(ids[4])
    ledger.sequence()
    keys = {
        "log_public_key": ledger.log_signer.public_key_pem,
        "witness_public_key": ledger.witness.public_key_pem,
    }
    leaf = ledger.find(ids[4]).leaf
    proof = ledger.tlog_proof(ids[4])
    assert proof.startswith("c2sp.org/tlog-proof@v1\nindex 4\n")
    index, checkpoint = verify_tlog_proof(proof, leaf, origin="chancery/test", **keys)
    assert (index, checkpoint.size) == (4, 9)
    verify_tlog_proof(proof.replace("\n", "\nextra YWJj\n", 1), leaf, **keys)
    lines = proof.split("\n")
    for bad in (
        "",
        "index 4\n\n",
        proof.replace("index 4", "index 5"),
        proof.replace("index 4", "index 04"),
        proof.replace("@v1", "@v2"),
        "\n".join([*lines[:2], *lines[3:]]),
        "\n".join([*lines[:2], "?", *lines[3:]]),
        "\n".join([*lines[:2], "AAAA", *lines[3:]]),
        proof.rpartition("— ")[0],
    ):
        with pytest.raises(VerificationError):
            verify_tlog_proof(bad, leaf, **keys)
    with pytest.raises(VerificationError):
        verify_tlog_proof(proof, leaf + b" ", **keys)


def test_batches(ledger: Ledger, record: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """More pending events than a batch holds; the witness catches up over several."""
    import governance.ledger.log as log
    import governance.ledger.sequencer as sequencer

    monkeypatch.setattr(log, "BATCH", 4)
    monkeypatch.setattr(sequencer.sequence_batch, "__defaults__", (4,))
    ids = record(ledger, 11)
    assert ledger.sequence() == 11
    record(ledger, 8)
    assert ledger.sequence() == 8
    assert [entry.event_id for entry in ledger.entries(0, 11)] == ids
    report = verify(ledger)
    assert report.ok, report.problems
    assert report.witness_size == 19


def test_the_background_sequences_what_nobody_waits_for(ledger: Ledger, record: Recorder) -> None:
    ledger.start_background(0.01)
    ledger.start_background(0.01)
    record(ledger, 3)
    deadline = time.monotonic() + 20
    while (ledger.pending() or verify(ledger).witness_size != 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    ledger.close()
    ledger.close()
    assert (ledger.pending(), ledger.size(), verify(ledger).witness_size) == (0, 3, 3)


def test_a_second_process_takes_the_stored_origin(
    ledger: Ledger, log_signer: object, witness: FileWitness
) -> None:
    other = Ledger(ledger.engine, origin="another", log_signer=ledger.log_signer, witness=witness)
    assert other.origin == ledger.origin == "chancery/test"


def test_open_ledger(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    settings = Settings.load(uri, {})
    metadata.create_all(connect(uri))
    with pytest.warns(DevelopmentKeyWarning):
        ledger = open_ledger(uri, settings)
    assert open_ledger(uri, settings) is ledger
    assert ledger.origin.startswith("chancery/")
    with ledger.engine.begin() as connection:
        event_id = ledger.record(connection, AuditEvent(EventName.ALIAS_SET, "models:/a/1", {}))
    ledger.cover(event_id)
    assert (settings.witness / "witness.key").is_file()
    assert verify(ledger).ok


_WORKER = """
import sys
from pathlib import Path
from threading import Thread
from sqlalchemy import create_engine
from governance.events import AuditEvent, EventName
from governance.ledger import FileWitness, Ledger
from governance.ledger.note import parse_checkpoint
from governance.signing.keys import FileSigner

home, threads, each = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
log = FileSigner(home / "log.key")
witness = FileWitness(
    home / "witness", FileSigner(home / "witness" / "witness.key"), log.public_key_pem
)
engine = create_engine(f"sqlite:///{home / 'db.sqlite'}", connect_args={"timeout": 60})
ledger = Ledger(engine, origin="chancery/test", log_signer=log, witness=witness)

def work():
    for _ in range(each):
        event = AuditEvent(EventName.ALIAS_SET, "models:/fraud/3", {})
        with engine.begin() as connection:
            ledger.record(connection, event)
        ledger.cover(event.id)
        covered = parse_checkpoint(witness.latest(ledger.origin)).size
        assert ledger.find(event.id).index < covered
        sys.stdout.write(event.id + "\\n")  # at once: threads must not mix within a line
        sys.stdout.flush()

workers = [Thread(target=work) for _ in range(threads)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
"""


def _start(home: Path, threads: int, each: int) -> Popen[str]:
    arguments = [sys.executable, "-c", _WORKER, str(home), str(threads), str(each)]
    return Popen(arguments, stdout=PIPE, stderr=PIPE, text=True)


def test_three_processes_and_eight_threads_at_once(ledger: Ledger, tmp_path: Path) -> None:
    processes = [_start(tmp_path, 8, 3) for _ in range(3)]
    ids: list[str] = []
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert not errors, errors
        ids += out.split()
    assert len(ids) == len(set(ids)) == 72
    entries = ledger.entries(0, 1000)
    assert [entry.index for entry in entries] == list(range(72))
    assert {entry.event_id for entry in entries} == set(ids)
    report = verify(ledger)
    assert report.ok, report.problems
    assert (report.witness_size, report.pending) == (72, 0)


def test_a_process_killed_at_any_moment_loses_nothing(ledger: Ledger, tmp_path: Path) -> None:
    """Whatever a killed process reported as covered is; whatever it left is completed."""
    reported: set[str] = set()
    for moment in (1, 2, 3, 5):
        process = _start(tmp_path, 2, 1000)
        assert process.stdout is not None
        reported |= {process.stdout.readline().strip() for _ in range(moment)}
        time.sleep(0.003 * moment)
        os.kill(process.pid, signal.SIGKILL)
        reported |= {line for line in process.communicate()[0].split("\n") if len(line) == 32}
    ledger.sequence()
    report = verify(ledger)
    assert report.ok, report.problems
    assert report.pending == 0
    assert report.witness_size == report.size == ledger.size()
    assert reported <= {entry.event_id for entry in ledger.entries(0, 100_000)}


def test_threads_share_one_ledger(ledger: Ledger, record: Recorder) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(3):
                (event_id,) = record(ledger)
                ledger.cover(event_id)
                assert (
                    parse_checkpoint(ledger.checkpoint() or "").size > ledger.find(event_id).index
                )
        except BaseException as error:  # noqa: BLE001  (told by the main thread)
            failures.append(error)

    threads = [Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert ledger.size() == 24
    assert verify(ledger).ok
