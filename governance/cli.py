"""The ``chancery`` command. Thin: every verb parses, calls one function elsewhere, and prints.

Exit codes: 0 done; 1 refused, denied or not verified; 2 wrong usage; 3 cannot be reached or
misconfigured. ``--json`` prints one JSON document on standard output instead of text.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import wraps
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from governance.backend import Backend, PromotionRequest, open_backend
from governance.canonical import digest_directory
from governance.errors import (
    ConfigurationError,
    GovernanceError,
    LedgerTamperedError,
    UnreachableError,
)
from governance.ledger import LedgerReport
from governance.lineage import Subgraph, as_html, as_json, as_tree
from governance.settings import GOVERNED_PREFIX, Settings, plain_database_uri
from governance.signing.dsse import sign_bundle
from governance.signing.keys import create_key, development_signer
from governance.signing.pins import KnownRoots
from governance.signing.release import Release, verify_release
from governance.signing.roots import TrustRoots, approver
from governance.signing.statements import PAYLOAD_TYPE, PromotionStatement
from governance.signing.trust import sign_roots, verify_chain

__all__ = ["main"]

_F = TypeVar("_F", bound=Callable[..., Any])
_console = Console(highlight=False, soft_wrap=True)
_errors = Console(stderr=True, highlight=False, soft_wrap=True)


def _answer_errors(command: _F) -> _F:
    """Print a governance error in its own words and leave with its exit code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except GovernanceError as error:
            if kwargs.get("as_json"):
                _print_json({"error": error.code, "message": error.message, "remedy": error.remedy})
            _errors.print(f"[bold red]{error.code}[/]: ", end="")
            _errors.print(error.message, markup=False)
            if error.remedy:
                _errors.print(f"Remedy: {error.remedy}", markup=False)
            unavailable = isinstance(error, ConfigurationError | UnreachableError)
            sys.exit(3 if unavailable else 1)

    return wrapped  # type: ignore[return-value]


_uri = click.option(
    "--uri",
    envvar=["MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"],
    required=True,
    show_envvar=True,
    help="Store: http://host:5000, governed+sqlite:///mlflow.db or governed+postgresql+psycopg://…",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, sort_keys=True))


def _settings(uri: str) -> Settings:
    return Settings.load(uri if uri.startswith(GOVERNED_PREFIX) else None)


def _version_of(model: str, backend: Backend) -> tuple[str, int]:
    """``models:/name/3`` or ``models:/name@alias``."""
    rest = model.removeprefix("models:/")
    name, separator, version = rest.rpartition("@") if "@" in rest else rest.rpartition("/")
    if not model.startswith("models:/") or not separator or not name or not version:
        raise click.BadParameter(f"{model!r} is not models:/name/version or models:/name@alias")
    if "@" in rest:
        return name, backend.resolve(name, f"@{version}")
    if not version.isdigit():
        raise click.BadParameter(f"{version!r} is not a version number")
    return name, int(version)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlflow-chancery", prog_name="chancery")
def main() -> None:
    """Govern an MLflow server: request, approve and verify promotions; read the ledger."""
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    _errors.print(f"[yellow]warning[/]: {message}")


def _describe(request: PromotionRequest) -> None:
    deadline = datetime.fromtimestamp(request.not_after_ms / 1000, UTC)
    missing = max(0, request.threshold - len(request.approvals))
    state = "used" if request.used else "ready" if not missing else f"{missing} approval(s) missing"
    _console.print(f"statement  {request.statement_id}", markup=False)
    _console.print(f"model      {request.model} → {request.environment}", markup=False)
    _console.print(
        f"requested  by {request.requested_by}, usable until {deadline:%Y-%m-%d %H:%M} UTC"
    )
    _console.print(
        f"approvals  {len(request.approvals)} of {request.threshold}"
        f" ({', '.join(request.approvals) or 'nobody yet'}): {state}",
        markup=False,
    )


def _request_json(request: PromotionRequest) -> dict[str, Any]:
    return {
        "statementId": request.statement_id,
        "model": request.model,
        "environment": request.environment,
        "threshold": request.threshold,
        "approvals": list(request.approvals),
        "notAfterMs": request.not_after_ms,
        "requestedBy": request.requested_by,
        "used": request.used,
        "statement": json.loads(request.payload),
    }


@main.command()
@click.argument("model")
@click.option("--to", "environment", required=True, help="Target environment, e.g. prod.")
@_uri
@_json
@_answer_errors
def request(model: str, environment: str, uri: str, as_json: bool) -> None:
    """Ask for MODEL (models:/name/version) to be promoted; prints the statement to approve."""
    backend = open_backend(uri)
    found = backend.request_promotion(*_version_of(model, backend), environment)
    if as_json:
        return _print_json(_request_json(found))
    _describe(found)
    if found.threshold > len(found.approvals):
        _console.print(f"next       chancery approve {found.statement_id[:12]}")
    return None


@main.command()
@click.argument("statement")
@click.option("--key", envvar="CHANCERY_KEY", help="Signer URI (file:key.pem). [CHANCERY_KEY]")
@click.option("--yes", is_flag=True, help="Do not ask before signing.")
@_uri
@_json
@_answer_errors
def approve(statement: str, key: str | None, yes: bool, uri: str, as_json: bool) -> None:
    """Sign STATEMENT (its id, or at least six digits of it) with your key."""
    backend = open_backend(uri)
    settings = _settings(uri)
    found = backend.promotion_request(statement)
    said = PromotionStatement.parse(found.payload)
    if not as_json:
        _console.print(said.describe(), markup=False)
    if not yes and not click.confirm("Sign this statement?"):
        raise click.Abort
    signer = development_signer(
        key or settings.key or f"file:{settings.home / 'approver.key'}",
        "approver's key",
        production=settings.production,
    )
    after = backend.approve(found.statement_id, sign_bundle(found.payload, PAYLOAD_TYPE, signer))
    if as_json:
        return _print_json(_request_json(after))
    _describe(after)
    return None


@main.command()
@click.argument("what", required=False)
@_uri
@_json
@_answer_errors
def show(what: str | None, uri: str, as_json: bool) -> None:
    """Show a statement by id, the statements of models:/name, or all."""
    backend = open_backend(uri)
    if what and not what.startswith("models:/"):
        found: Sequence[PromotionRequest] = [backend.promotion_request(what)]
    else:
        name = what.removeprefix("models:/").split("/")[0].split("@")[0] if what else None
        found = backend.promotion_requests(name)
    if as_json:
        return _print_json([_request_json(r) for r in found])
    for position, one in enumerate(found):
        if position:
            _console.print()
        _describe(one)
    if not found:
        _console.print("no promotion was requested yet")
    return None


@main.command()
@click.argument("model")
@click.option("--to", "environment", required=True)
@_uri
@_json
@_answer_errors
def check(model: str, environment: str, uri: str, as_json: bool) -> None:
    """Evaluate every condition for promoting MODEL, signatures included; changes nothing."""
    backend = open_backend(uri)
    decision = backend.evaluate(*_version_of(model, backend), environment)
    if as_json:
        _print_json(decision.to_dict())
    else:
        table = Table("", "condition", "required", "found", "remedy")
        for c in decision.conditions:
            table.add_row("✓" if c.met else "✗", c.name, c.required, c.found, c.remedy)
        _console.print(table)
        _console.print("allowed" if decision.allowed else "denied")
    sys.exit(0 if decision.allowed else 1)


@main.command()
@click.argument("model")
@click.option("--env", "environment", help="Also demand a clearance for this environment.")
@click.option(
    "--path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Verify this directory instead of fetching the files.",
)
@_uri
@_json
@_answer_errors
def verify(model: str, environment: str | None, path: Path | None, uri: str, as_json: bool) -> None:
    """Fetch MODEL's files and verify digest, signatures, trust roots and revocation."""
    backend = open_backend(uri)
    settings = _settings(uri)
    name, version = _version_of(model, backend)
    release = Release.parse(json.dumps(backend.release(name, version)), model=name, version=version)
    pinned = settings.trust_root
    if release.trust_roots:
        pins = KnownRoots(settings.home / "known_roots.json")
        pinned = pins.check(uri, release.trust_roots[0][0], settings.trust_root)
    with tempfile.TemporaryDirectory(prefix="chancery-verify-") as private:
        manifest = digest_directory(path or Path(backend.download(name, version, private)))
    load = verify_release(
        release,
        manifest,
        environment=environment,
        require_signature=environment is not None,
        pinned_first_root=pinned,
        now_ms=int(datetime.now(UTC).timestamp() * 1000),
    )
    document = {
        "model": f"models:/{name}/{version}",
        "rootDigest": load.root_digest,
        "manifestDigest": manifest.manifest_digest,
        "environments": list(load.environments),
        "signers": list(load.signers),
        "statementId": load.statement_id,
    }
    if as_json:
        return _print_json(document)
    signed = f"signed by {', '.join(load.signers)}" if load.signers else "not signed (not required)"
    _console.print(f"verified  models:/{name}/{version}: {len(manifest.files)} files, {signed}")
    _console.print(f"digest    {load.root_digest}")
    return None


@main.command()
@click.argument("model")
@click.option("--reason", required=True)
@_uri
@_answer_errors
def revoke(model: str, reason: str, uri: str) -> None:
    """Refuse every further load and promotion of MODEL."""
    backend = open_backend(uri)
    name, version = _version_of(model, backend)
    backend.revoke(name, version, reason)
    _console.print(f"revoked  models:/{name}/{version}", markup=False)


@main.command()
@click.argument("node")
@click.option("--up", "direction", flag_value="up", default="up", help="Where it came from.")
@click.option("--down", "direction", flag_value="down", help="What came of it.")
@click.option("--depth", default=20, show_default=True, type=click.IntRange(1, 50))
@click.option(
    "--html",
    "html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a self-contained graph page.",
)
@_uri
@_json
@_answer_errors
def lineage(
    node: str, direction: str, depth: int, html: Path | None, uri: str, as_json: bool
) -> None:
    """Print the lineage of NODE (models:/name/version, runs:/id, datasets:/name/digest)."""
    nodes, edges = open_backend(uri).lineage(node, direction=direction, depth=depth)
    graph = Subgraph(root=node, direction=direction, nodes=tuple(nodes), edges=tuple(edges))
    if html:
        html.write_text(as_html(graph), encoding="utf-8")
        _console.print(f"wrote {html}", markup=False)
    elif as_json:
        click.echo(as_json_text(graph))
    else:
        _console.print(as_tree(graph))


def as_json_text(graph: Subgraph) -> str:
    """The graph as indented JSON text."""
    found = as_json(graph)
    return found if isinstance(found, str) else json.dumps(found, indent=2, sort_keys=True)


@main.command()
@click.option("--uri", envvar=["MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"], show_envvar=True)
@_json
@_answer_errors
def doctor(uri: str | None, as_json: bool) -> None:
    """Check that this installation (and the store at --uri) is wholly governed."""
    findings: list[Any] = []
    for point in entry_points(group="chancery.doctor"):
        findings += point.load()(uri)
    if not findings:
        raise ConfigurationError("no check is installed", "reinstall mlflow-chancery")
    if as_json:
        _print_json(
            [{"check": f.check, "ok": f.ok, "found": f.found, "remedy": f.remedy} for f in findings]
        )
    else:
        for f in findings:
            _console.print(f"{'ok ' if f.ok else 'BAD'}  {f.check}: {f.found}", markup=False)
            if f.remedy:
                _console.print(f"     remedy: {f.remedy}", markup=False)
    sys.exit(0 if all(f.ok for f in findings) else 1)


@main.group()
def keys() -> None:
    """Make signing keys."""


@keys.command("create")
@click.argument("path", type=click.Path(path_type=Path))
@_json
@_answer_errors
def keys_create(path: Path, as_json: bool) -> None:
    """Make an Ed25519 key at PATH (mode 0600) and print its public half."""
    signer = create_key(path)
    if as_json:
        return _print_json({"keyid": signer.keyid, "publicKey": signer.public_key_pem})
    click.echo(signer.public_key_pem, nl=False)
    _errors.print(f"key id {signer.keyid}; use it as CHANCERY_KEY=file:{path}", markup=False)
    return None


@main.group()
def ledger() -> None:
    """Verify, follow and export the audit ledger."""


@ledger.command("verify")
@click.option(
    "--export",
    "export",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Verify an exported file, offline, instead of a store.",
)
@click.option(
    "--log-key",
    type=click.Path(exists=True, path_type=Path),
    help="PEM of the log's public key that is trusted.",
)
@click.option(
    "--witness-key",
    type=click.Path(exists=True, path_type=Path),
    help="PEM of the witness's public key that is trusted.",
)
@click.option("--uri", envvar=["MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"], show_envvar=True)
@_json
@_answer_errors
def ledger_verify(
    export: Path | None,
    log_key: Path | None,
    witness_key: Path | None,
    uri: str | None,
    as_json: bool,
) -> None:
    """Recompute the whole tree and compare it with checkpoints and witness."""
    from governance.ledger import verify_export

    log_pem = log_key.read_text() if log_key else None
    witness_pem = witness_key.read_text() if witness_key else None
    if export:
        with export.open(encoding="utf-8") as lines:
            report = verify_export(lines, log_public_key=log_pem, witness_public_key=witness_pem)
    elif uri is None:
        raise click.UsageError("give --uri, or --export FILE")
    elif uri.startswith(GOVERNED_PREFIX):
        report = _verify_store(uri, log_pem)
    else:
        report = verify_export(
            (line.decode() for line in open_backend(uri).ledger_export()),
            log_public_key=log_pem,
            witness_public_key=witness_pem,
        )
    if as_json:
        _print_json(report.to_dict())
    else:
        _print_report(report.to_dict())
    if not report.ok and not as_json:
        raise LedgerTamperedError(
            f"{len(report.problems)} problem(s), the first bad index is {report.first_bad_index}",
            "keep the database and the witness as they are, and compare with a backup",
            index=report.first_bad_index,
        )
    sys.exit(0 if report.ok else 1)


def _verify_store(uri: str, log_public_key: str | None) -> LedgerReport:
    """In place: against the witness's own records and the log key of this home."""
    from governance.ledger import open_ledger, verify_ledger

    settings = Settings.load(uri)
    if not settings.witness.is_dir():
        raise ConfigurationError(
            f"there is no witness at {settings.witness}, so the ledger cannot be verified",
            "set CHANCERY_HOME (or CHANCERY_WITNESS) as the server has it",
        )
    log = open_ledger(plain_database_uri(uri), settings)
    return verify_ledger(
        log.engine,
        log_public_key=log_public_key or log.log_signer.public_key_pem,
        witness=log.witness,
    )


def _print_report(report: Mapping[str, Any]) -> None:
    _console.print(f"entries    {report['size']} ({report['pending']} not yet in the tree)")
    _console.print(f"root       {report['root']}")
    _console.print(f"witnessed  {report['witness_size']}")
    for problem in report["problems"]:
        _console.print(f"problem    {problem}", markup=False)
    if report["ok"]:
        _console.print("the ledger holds")


@ledger.command("tail")
@click.option("-n", "count", default=20, show_default=True, type=click.IntRange(1, 1000))
@_uri
@_json
@_answer_errors
def ledger_tail(count: int, uri: str, as_json: bool) -> None:
    """Print the newest events."""
    entries = open_backend(uri).ledger_entries(-count, count)
    if as_json:
        return _print_json([{"index": i, "event": json.loads(leaf)} for i, leaf in entries])
    for index, leaf in entries:
        found = json.loads(leaf)
        when = found["time"][:19].replace("T", " ")
        who = f"{found['actor']} ({found['actorproof']})"
        _console.print(
            f"{index:>7}  {when}  {found['type']:<34} {found['subject']:<40} {who}", markup=False
        )
    return None


@ledger.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_uri
@_answer_errors
def ledger_export(file: Path, uri: str) -> None:
    """Write the whole ledger to FILE (JSON lines), for offline verification."""
    with file.open("xb") as out:
        for line in open_backend(uri).ledger_export():
            out.write(line + b"\n")
    _console.print(f"wrote {file}; check it with `chancery ledger verify --export`", markup=False)


@ledger.command("checkpoint")
@_uri
@_answer_errors
def ledger_checkpoint(uri: str) -> None:
    """Sequence what is pending and have the witness countersign (local stores)."""
    from governance.ledger import open_ledger

    if not uri.startswith(GOVERNED_PREFIX):
        raise ConfigurationError("only a local store can be checkpointed", "run it on the server")
    log = open_ledger(plain_database_uri(uri), Settings.load(uri))
    log.sequence()
    log.ensure_witnessed()
    _console.print(f"checkpoint covers {log.size()} entries")


@main.group()
def trust() -> None:
    """See and change who may approve what."""


def _roots(backend: Backend) -> TrustRoots:
    return verify_chain(backend.trust_roots(), pinned_first=None)


@trust.command("show")
@_uri
@_json
@_answer_errors
def trust_show(uri: str, as_json: bool) -> None:
    """Print the trust roots in force."""
    roots = _roots(open_backend(uri))
    if as_json:
        return _print_json(json.loads(roots.to_payload()))
    table = Table("person", "keys", "roles", title=f"trust roots, version {roots.version}")
    for person in roots.people:
        roles = ", ".join(
            r.kind.value if not r.environment else f"{r.kind.value} {r.environment} {r.models}"
            for r in person.roles
        )
        table.add_row(person.id, ", ".join(k[:12] for k in person.keyids), roles)
    _console.print(table)
    return None


@trust.command("add")
@click.argument("person")
@click.option("--public-key", required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--approver",
    "approves",
    multiple=True,
    metavar="ENV[:MODELS]",
    help="May approve for this environment (models: glob, default *). Repeatable.",
)
@click.option(
    "--key",
    "signers",
    multiple=True,
    required=True,
    help="Signer URI of an administrator; repeat up to the admin threshold.",
)
@_uri
@_answer_errors
def trust_add(
    person: str, public_key: Path, approves: Sequence[str], signers: Sequence[str], uri: str
) -> None:
    """Add PERSON with a key and roles; administrators sign."""
    roles = []
    for item in approves:
        environment, _, glob = item.partition(":")
        roles.append(approver(environment, glob or "*"))

    def change(roots: TrustRoots) -> TrustRoots:
        return roots.add_person(person, person, [public_key.read_text()], roles)

    _change_roots(uri, change, signers)


@trust.command("remove")
@click.argument("person")
@click.option("--key", "signers", multiple=True, required=True)
@_uri
@_answer_errors
def trust_remove(person: str, signers: Sequence[str], uri: str) -> None:
    """Remove PERSON and all their keys; administrators sign."""
    _change_roots(uri, lambda roots: roots.remove_person(person), signers)


@trust.command("revoke-key")
@click.argument("keyid")
@click.option("--key", "signers", multiple=True, required=True)
@_uri
@_answer_errors
def trust_revoke_key(keyid: str, signers: Sequence[str], uri: str) -> None:
    """Distrust a key from now on; administrators sign."""
    _change_roots(uri, lambda roots: roots.revoke_key(keyid), signers)


@trust.command("init")
@click.argument("document", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--key", "signers", multiple=True, required=True)
@_uri
@_answer_errors
def trust_init(document: Path, signers: Sequence[str], uri: str) -> None:
    """Found the trust roots on DOCUMENT (chancery.trust-roots/v1 JSON), signed by its admins."""
    payload = TrustRoots.parse(document.read_bytes()).to_payload()
    _submit_roots(open_backend(uri), payload, signers, _settings(uri))


def _change_roots(
    uri: str, change: Callable[[TrustRoots], TrustRoots], signers: Sequence[str]
) -> None:
    backend = open_backend(uri)
    payload = change(_roots(backend).successor()).to_payload()
    _submit_roots(backend, payload, signers, _settings(uri))


def _submit_roots(
    backend: Backend, payload: bytes, signers: Sequence[str], settings: Settings
) -> None:
    bundles = [
        sign_roots(
            payload, development_signer(s, "administrator's key", production=settings.production)
        )
        for s in signers
    ]
    backend.change_trust_roots(payload, bundles)
    _console.print(f"trust roots are at version {_roots(backend).version}")


if __name__ == "__main__":
    main()
