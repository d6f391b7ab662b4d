"""Each attack of a database administrator, performed by SQL, and what names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from governance.errors import LedgerError, LedgerTamperedError, WitnessError
from governance.ledger import FileWitness, Ledger, LedgerReport, verify_ledger
from governance.ledger.merkle import append_leaves, fold, leaf_hash
from governance.ledger.note import Checkpoint, sign_checkpoint
from governance.signing.keys import FileSigner, Signer, create_key

Recorder = Callable[..., list[str]]

SIZE = 23


@pytest.fixture
def full(ledger: Ledger, record: Recorder) -> Ledger:
    """23 entries: ten in one batch, then one by one."""
    record(ledger, 10)
    ledger.sequence()
    for _ in range(SIZE - 10):
        (event_id,) = record(ledger)
        ledger.cover(event_id)
    report = verify(ledger)
    assert report.ok, report.problems
    assert (report.size, report.witness_size, report.pending) == (SIZE, SIZE, 0)
    return ledger


def verify(ledger: Ledger) -> LedgerReport:
    return verify_ledger(
        ledger.engine,
        log_public_key=ledger.log_signer.public_key_pem,
        witness=ledger.witness,
        origin=ledger.origin,
    )


def attack(engine: Engine, *statements: str, **values: object) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement), values)


def found(ledger: Ledger, index: int | None, sentence: str) -> None:
    report = verify(ledger)
    assert not report.ok
    assert report.first_bad_index == index, report.problems
    assert any(sentence in problem for problem in report.problems), report.problems
    with pytest.raises(LedgerTamperedError) as raised:
        report.require_ok()
    assert raised.value.index == index


def edited(ledger: Ledger, index: int) -> bytes:
    return ledger.entries(index, 1)[0].leaf.replace(b'"alice"', b'"mallo"')


def rewrite(ledger: Ledger, signer: Signer | None, change: int) -> None:
    """Edit one entry and recompute hashes, nodes and (if a key is given) every checkpoint."""
    leaves = [entry.leaf for entry in ledger.entries(0, SIZE)]
    leaves[change] = edited(ledger, change)
    hashes = [leaf_hash(leaf) for leaf in leaves]
    frontier, nodes = append_leaves(0, [], hashes)
    attack(
        ledger.engine,
        "UPDATE chancery_ledger_entries SET leaf=:leaf, leaf_hash=:hash WHERE idx=:idx",
        leaf=leaves[change],
        hash=hashes[change],
        idx=change,
    )
    for level, position, value in nodes:
        attack(
            ledger.engine,
            "UPDATE chancery_ledger_nodes SET hash=:h WHERE level=:l AND position=:p",
            h=value,
            l=level,
            p=position,
        )
    if signer is not None:
        for size in range(1, SIZE + 1):
            root = fold(append_leaves(0, [], hashes[:size])[0])
            attack(
                ledger.engine,
                "UPDATE chancery_checkpoints SET note=:note WHERE size=:size",
                note=sign_checkpoint(Checkpoint(ledger.origin, size, root), signer),
                size=size,
            )
    assert fold(frontier)


@pytest.mark.parametrize("index", [0, 7, 15, SIZE - 1])
def test_an_edited_row(full: Ledger, index: int) -> None:
    attack(
        full.engine,
        "UPDATE chancery_ledger_entries SET leaf=:leaf WHERE idx=:idx",
        leaf=edited(full, index),
        idx=index,
    )
    found(full, index, f"entry {index} was changed")


@pytest.mark.parametrize(("index", "named"), [(3, 2), (14, 14), (15, 15), (SIZE - 1, SIZE - 1)])
def test_an_edited_row_with_its_hash_recomputed(full: Ledger, index: int, named: int) -> None:
    """Within a batch only the pair is known; where each entry has a checkpoint, the entry."""
    leaf = edited(full, index)
    attack(
        full.engine,
        "UPDATE chancery_ledger_entries SET leaf=:leaf, leaf_hash=:hash WHERE idx=:idx",
        leaf=leaf,
        hash=leaf_hash(leaf),
        idx=index,
    )
    found(full, named, "hash recomputed")
    if named != index:
        assert "one of entries 2 to 3" in verify(full).problems[0]


@pytest.mark.parametrize("index", [0, 12, SIZE - 2])
def test_a_dropped_row(full: Ledger, index: int) -> None:
    attack(full.engine, "DELETE FROM chancery_ledger_entries WHERE idx=:idx", idx=index)
    found(full, index, f"entry {index} is missing")


def test_a_dropped_row_with_the_rest_renumbered(full: Ledger) -> None:
    attack(
        full.engine,
        "DELETE FROM chancery_ledger_entries WHERE idx=14",
        "UPDATE chancery_ledger_entries SET idx=-idx WHERE idx>14",
        "UPDATE chancery_ledger_entries SET idx=-idx-1 WHERE idx<0",
    )
    found(full, 14, "hash recomputed")


def test_a_truncated_tail(full: Ledger) -> None:
    truncate(full, 17)
    found(full, 17, "entry 17 and later ones are missing")


def truncate(ledger: Ledger, size: int) -> None:
    """As clean as an administrator can: the database is just as it was at ``size``."""
    attack(
        ledger.engine,
        "DELETE FROM chancery_ledger_entries WHERE idx>=:size",
        "DELETE FROM chancery_checkpoints WHERE size>:size",
        "UPDATE chancery_ledger_state SET size=:size",
        size=size,
    )
    for level in range(1, 8):
        attack(
            ledger.engine,
            "DELETE FROM chancery_ledger_nodes WHERE level=:l AND position>=:p",
            l=level,
            p=size >> level,
        )


def test_a_truncated_ledger_is_not_continued(
    full: Ledger, record: Recorder, log_signer: FileSigner, witness: FileWitness
) -> None:
    truncate(full, 17)
    (event_id,) = record(full)
    with pytest.raises(LedgerTamperedError, match="rolled back"):
        full.cover(event_id)
    with pytest.raises(LedgerTamperedError, match="rolled back"):
        full.ensure_witnessed()
    record(full, 20)  # more than were cut off: now the witness sees another history
    with pytest.raises(WitnessError, match="rewritten"):
        full.sequence()
    another = Ledger(full.engine, origin="x", log_signer=log_signer, witness=witness)
    with pytest.raises(WitnessError, match="rewritten"):
        another.ensure_witnessed()
    found(full, 17, "the witness's record")


def test_everything_recomputed_but_the_signatures(full: Ledger) -> None:
    rewrite(full, None, 15)
    found(full, 15, "its root is not that of the entries")


def test_everything_recomputed_and_signed_with_another_key(full: Ledger, tmp_path: Path) -> None:
    rewrite(full, create_key(tmp_path / "mallory.key"), 15)
    report = verify(full)
    assert not report.ok
    assert any("not signed by the log's key" in problem for problem in report.problems)
    assert report.first_bad_index == 0  # the forger replaced every checkpoint


def test_everything_rewritten_with_the_stolen_log_key(full: Ledger) -> None:
    rewrite(full, full.log_signer, 15)
    found(full, 15, "the witness's record of size 16")


def test_entries_added_without_the_sequencer(full: Ledger) -> None:
    leaf = edited(full, 3)
    attack(
        full.engine,
        "INSERT INTO chancery_ledger_entries VALUES (:i, 'x', :leaf, :hash)",
        i=SIZE,
        leaf=leaf,
        hash=leaf_hash(leaf),
    )
    found(full, SIZE, "under no checkpoint")


def test_the_sequencer_does_not_sign_what_it_did_not_write(full: Ledger, record: Recorder) -> None:
    rewrite(full, None, 15)
    (event_id,) = record(full)
    with pytest.raises(LedgerTamperedError, match="outside the sequencer"):
        full.cover(event_id)
    assert full.size() == SIZE


def test_swapped_event_ids(full: Ledger) -> None:
    a, b = full.entries(4, 2)
    attack(
        full.engine,
        "UPDATE chancery_ledger_entries SET event_id='tmp' WHERE idx=4",
        "UPDATE chancery_ledger_entries SET event_id=:a WHERE idx=5",
        "UPDATE chancery_ledger_entries SET event_id=:b WHERE idx=4",
        a=a.event_id,
        b=b.event_id,
    )
    found(full, 4, "its row names event")


def test_a_changed_or_missing_tree_node(full: Ledger) -> None:
    attack(
        full.engine,
        "UPDATE chancery_ledger_nodes SET hash=:h WHERE level=2 AND position=3",
        h=bytes(32),
    )
    found(full, 12, "tree node 3 of level 2")
    attack(full.engine, "DELETE FROM chancery_ledger_nodes WHERE level=2 AND position=3")
    found(full, 12, "tree node 3 of level 2")
    with pytest.raises(LedgerTamperedError, match="missing"):
        full.inclusion_proof(8, 16)


def test_one_forged_checkpoint_among_good_ones(full: Ledger) -> None:
    attack(full.engine, "UPDATE chancery_checkpoints SET note='forged' WHERE size=12")
    found(full, 12, "but a later one holds")


def test_a_pending_event_that_is_removed(ledger: Ledger, record: Recorder) -> None:
    (event_id,) = record(ledger)
    attack(ledger.engine, "DELETE FROM chancery_outbox")
    with pytest.raises(LedgerError, match="neither pending nor in the ledger"):
        ledger.cover(event_id)


def test_a_ledger_renamed_to_escape_its_witness(full: Ledger) -> None:
    attack(full.engine, "UPDATE chancery_ledger_state SET origin='chancery/fresh'")
    found(full, 0, "calls its ledger 'chancery/fresh'")


def test_no_ledger_at_all(full: Ledger) -> None:
    attack(full.engine, "DELETE FROM chancery_ledger_state")
    with pytest.raises(LedgerTamperedError, match="no ledger"):
        verify(full)
