"""``chancery ledger``: verify, follow and export the audit ledger."""

from __future__ import annotations

import json
import sys
from itertools import chain
from pathlib import Path

import click

from governance.backend import open_backend
from governance.database import connect
from governance.errors import (
    ConfigurationError,
    LedgerTamperedError,
    RefusedError,
    SignatureError,
    UntrustedKeyError,
)
from governance.ledger import LedgerReport, open_ledger, verify_export, verify_ledger
from governance.ledger.open import ledger_keys, origin_pin
from governance.settings import GOVERNED_PREFIX, Settings, plain_database_uri
from governance.signing.keys import keyid_of, load_public_key
from governance.terminal import (
    answer_errors,
    console,
    json_option,
    optional_uri_option,
    print_json,
    uri_option,
)

__all__ = ["ledger"]

_PEM = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def ledger() -> None:
    """Verify, follow and export the audit ledger."""


@ledger.command("verify")
@click.option(
    "--export",
    "export",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Verify an exported file, offline, instead of a store.",
)
@click.option("--log-key", type=_PEM, help="PEM of the log's public key that is trusted.")
@click.option("--witness-key", type=_PEM, help="PEM of the witness's public key that is trusted.")
@click.option("--origin", help="Name that the ledger must have (chancery/…).")
@optional_uri_option
@json_option
@answer_errors
def ledger_verify(
    export: Path | None,
    log_key: Path | None,
    witness_key: Path | None,
    origin: str | None,
    uri: str | None,
    as_json: bool,
) -> None:
    """Recompute the whole tree and compare it with checkpoints and witness."""
    log_pem, witness_pem = _public_key(log_key), _public_key(witness_key)
    if export:
        with export.open(encoding="utf-8", errors="replace") as lines:
            report = verify_export(
                lines, log_public_key=log_pem, witness_public_key=witness_pem, origin=origin
            )
    elif uri is None:
        raise click.UsageError("give --uri, or --export FILE")
    elif uri.startswith(GOVERNED_PREFIX):
        report = _verify_store(uri, log_pem, witness_pem, origin)
    else:
        report = verify_export(
            (line.decode(errors="replace") for line in open_backend(uri).ledger_export()),
            log_public_key=log_pem,
            witness_public_key=witness_pem,
            origin=origin,
        )
    if as_json:
        print_json(report.to_dict())
    else:
        _print_report(report)
    if not report.ok and not as_json:
        raise LedgerTamperedError(
            f"{len(report.problems)} problem(s), the first bad index is {report.first_bad_index}",
            "keep the database and the witness as they are, and compare with a backup",
            index=report.first_bad_index,
        )
    sys.exit(0 if report.ok else 1)


def _public_key(path: Path | None) -> str | None:
    if path is None:
        return None
    pem = path.read_text(encoding="utf-8", errors="replace")
    try:
        load_public_key(pem)
    except SignatureError as error:
        raise ConfigurationError(
            f"{path} holds no Ed25519 public key: {error.message}",
            "give the PEM file of a public key (`openssl pkey -in log.key -pubout`)",
        ) from error
    return pem


def _verify_store(
    uri: str,
    log_public_key: str | None,
    witness_public_key: str | None,
    origin: str | None,
) -> LedgerReport:
    """In place: against the witness's own records, and what this home knows; changes nothing."""
    settings = Settings.load(uri)
    if not settings.witness.is_dir():
        raise ConfigurationError(
            f"there is no witness at {settings.witness}, so the ledger cannot be verified",
            "set CHANCERY_HOME (or CHANCERY_WITNESS) as the server has it",
        )
    log_signer, witness = ledger_keys(settings)
    if witness_public_key and keyid_of(witness_public_key) != keyid_of(witness.public_key_pem):
        raise UntrustedKeyError(
            f"the witness at {settings.witness} has another key than the one that is trusted",
            "set CHANCERY_WITNESS to the witness you trust",
        )
    return verify_ledger(
        connect(plain_database_uri(uri)),
        log_public_key=log_public_key or log_signer.public_key_pem,
        witness=witness,
        origin=origin or origin_pin(settings).read(),
    )


def _print_report(report: LedgerReport) -> None:
    console.print(f"ledger     {report.origin}", markup=False)
    console.print(f"entries    {report.size} ({report.pending} not yet in the tree)")
    console.print(f"root       {report.root.hex()}")
    console.print(f"witnessed  {report.witness_size}")
    for problem in report.problems:
        console.print(f"problem    {problem}", markup=False)
    for remedy in report.remedies:
        console.print(f"unpinned   {remedy}", markup=False)
    if report.ok and report.keys_pinned:
        console.print("the ledger holds")
    elif report.ok:
        console.print("the data agrees with itself; who signed it is not proven")


@ledger.command("tail")
@click.option("-n", "count", default=20, show_default=True, type=click.IntRange(1, 1000))
@uri_option
@json_option
@answer_errors
def ledger_tail(count: int, uri: str, as_json: bool) -> None:
    """Print the newest events."""
    entries = open_backend(uri).ledger_entries(-count, count)
    if as_json:
        return print_json([{"index": i, "event": json.loads(leaf)} for i, leaf in entries])
    for index, leaf in entries:
        found = json.loads(leaf)
        when = found["time"][:19].replace("T", " ")
        who = f"{found['actor']} ({found['actorproof']})"
        console.print(
            f"{index:>7}  {when}  {found['type']:<34} {found['subject']:<40} {who}", markup=False
        )
    return None


@ledger.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@uri_option
@json_option
@answer_errors
def ledger_export(file: Path, uri: str, as_json: bool) -> None:
    """Write the whole ledger to FILE (JSON lines), for offline verification."""
    if file.exists():
        raise RefusedError(f"{file} exists already", "choose another file, or remove it")
    lines = open_backend(uri).ledger_export()
    first = next(lines)  # nothing is written when there is nothing to write
    with file.open("xb") as out:
        try:
            for line in chain([first], lines):
                out.write(line + b"\n")
        except BaseException:
            file.unlink()  # half an export looks like a truncated ledger
            raise
    if as_json:
        return print_json({"file": str(file)})
    console.print(f"wrote {file}; check it with `chancery ledger verify --export`", markup=False)
    return None


@ledger.command("checkpoint")
@uri_option
@json_option
@answer_errors
def ledger_checkpoint(uri: str, as_json: bool) -> None:
    """Sequence what is pending and have the witness countersign (local stores)."""
    if not uri.startswith(GOVERNED_PREFIX):
        raise ConfigurationError("only a local store can be checkpointed", "run it on the server")
    log = open_ledger(plain_database_uri(uri), Settings.load(uri))
    log.sequence()
    log.ensure_witnessed()
    if as_json:
        return print_json({"origin": log.origin, "size": log.size()})
    console.print(f"checkpoint covers {log.size()} entries")
    return None
