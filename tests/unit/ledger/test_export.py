"""An export verifies anywhere; a changed one names the first bad entry; the golden one, forever."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from governance.errors import LedgerError, SignatureError
from governance.ledger import Ledger, LedgerReport, export_ledger, verify_export
from governance.signing.keys import create_key

Recorder = Callable[..., list[str]]
GOLDEN = Path(__file__).parents[2] / "golden" / "ledger-v1.jsonl"


@pytest.fixture
def lines(ledger: Ledger, record: Recorder) -> list[str]:
    for count in (5, 1, 1, 4):
        record(ledger, count, note='Zürich\n"quoted" 名')
        ledger.sequence()
    return list(export_ledger(ledger))


def check(ledger: Ledger, lines: list[str]) -> LedgerReport:
    return verify_export(
        lines,
        log_public_key=ledger.log_signer.public_key_pem,
        witness_public_key=ledger.witness.public_key_pem,
    )


def test_an_export_verifies(ledger: Ledger, lines: list[str]) -> None:
    report = check(ledger, lines)
    assert report.ok, report.problems
    assert (report.size, report.witness_size, report.keys_pinned) == (11, 11, True)
    assert report.to_dict()["root"] == report.root.hex()
    unpinned = verify_export(lines)
    assert unpinned.ok
    assert not unpinned.keys_pinned


@pytest.mark.parametrize(
    ("at", "named", "where"),
    [(0, 0, "0 to 4"), (3, 0, "0 to 4"), (5, 5, "entry 5"), (6, 6, "entry 6")],
)
def test_an_edited_entry(ledger: Ledger, lines: list[str], at: int, named: int, where: str) -> None:
    lines[at + 1] = lines[at + 1].replace("alice", "mallo")
    report = check(ledger, lines)
    assert not report.ok
    assert report.first_bad_index == named
    assert where in report.problems[0]


def test_dropped_truncated_and_added_entries(ledger: Ledger, lines: list[str]) -> None:
    assert check(ledger, lines[:7] + lines[8:]).first_bad_index == 6
    assert check(ledger, lines[:-3]).first_bad_index == 8
    assert check(ledger, lines[:1]).first_bad_index == 0
    assert check(ledger, [*lines, lines[-1]]).first_bad_index == 11
    assert check(ledger, [*lines[:4], "7\n", *lines[4:]]).first_bad_index == 3
    assert check(ledger, [*lines[:4], "no JSON\n", *lines[4:]]).first_bad_index == 3
    assert "not an event" in check(ledger, [*lines, '"x"\n']).problems[0]


def test_other_keys(ledger: Ledger, lines: list[str], tmp_path: Path) -> None:
    other = create_key(tmp_path / "other").public_key_pem
    report = verify_export(lines, log_public_key=other)
    assert any("not signed by the log's key" in problem for problem in report.problems)
    report = verify_export(lines, witness_public_key=other)
    assert any("not countersigned" in problem for problem in report.problems)


@pytest.mark.parametrize(
    "header", ["", "7", "{}", '{"format": "chancery.ledger-export/v2"}', '{"a":1,"a":1}']
)
def test_a_malformed_header(header: str) -> None:
    with pytest.raises(SignatureError):
        verify_export([header])


def test_a_header_with_fields_of_other_types(lines: list[str]) -> None:
    for field in ("origin", "size", "checkpoint", "checkpoints"):
        header = json.loads(lines[0])
        header[field] = True
        with pytest.raises(SignatureError):
            verify_export([json.dumps(header), *lines[1:]])
    header = json.loads(lines[0])
    header["size"] = 3
    assert "the header says 3 entries" in str(verify_export([json.dumps(header)]).problems)
    header["checkpoints"] = [7]
    with pytest.raises(SignatureError):
        verify_export([json.dumps(header)])


def test_nothing_to_export(ledger: Ledger, record: Recorder) -> None:
    record(ledger)
    with pytest.raises(LedgerError, match="nothing to export"):
        list(export_ledger(ledger))


def test_the_golden_export_verifies_forever() -> None:
    """Written by version 0.1; these keys and this root must never need to change."""
    with GOLDEN.open(encoding="utf-8") as file:
        report = verify_export(
            file, log_public_key=GOLDEN_LOG_KEY, witness_public_key=GOLDEN_WITNESS_KEY
        )
    assert report.ok, report.problems
    assert report.size == 21
    assert report.root.hex() == GOLDEN_ROOT


GOLDEN_LOG_KEY = """\
-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAcXPtHRzLHkCfiSWy1OYZqZm7vdVn3aG3/ih12iZAUMc=
-----END PUBLIC KEY-----
"""
GOLDEN_WITNESS_KEY = """\
-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAa/nHlH0xe6KaMuPO5yWbw9mJYHZuhrJFqkORfQoJF+M=
-----END PUBLIC KEY-----
"""
GOLDEN_ROOT = "31e8877f2e670667ad65bbbe3acdbfe81c62f8fffbaa59582d1351decf5c81dd"
