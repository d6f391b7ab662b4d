"""The ``chancery`` command. Thin: every verb parses, calls one function elsewhere, and prints.

Exit codes: 0 done; 1 refused, denied or not verified; 2 wrong usage; 3 cannot be reached or
misconfigured. ``--json`` prints one JSON document on standard output instead of text.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from governance.backend import Backend, PromotionRequest, open_backend
from governance.canonical import digest_directory
from governance.cli_lazy import add_lazy_commands
from governance.cli_ledger import ledger
from governance.cli_trust import trust
from governance.errors import ConfigurationError
from governance.lineage import as_html, as_tree
from governance.lineage.render import CUT, SEE_MORE, as_document
from governance.signing.dsse import sign_bundle
from governance.signing.keys import create_key, development_signer
from governance.signing.pins import KnownRoots
from governance.signing.release import Release, verify_release
from governance.signing.statements import PAYLOAD_TYPE, PromotionStatement
from governance.terminal import (
    answer_errors,
    console,
    errors_console,
    json_option,
    optional_uri_option,
    print_json,
    settings_of,
    uri_option,
)

__all__ = ["main"]

_LARGEST_VERSION = 2**31 - 1  # of what the databases take as an integer

_as_option = click.option(
    "--as", "served_as", metavar="NAME",
    help="Protected registered model that a copy is to be served from, e.g. prod.fraud.",
)  # fmt: skip


def _version_of(model: str, backend: Backend) -> tuple[str, int]:
    """``models:/name/3`` or ``models:/name@alias``."""
    rest = model.removeprefix("models:/")
    name, separator, version = rest.rpartition("@") if "@" in rest else rest.rpartition("/")
    if not model.startswith("models:/") or not separator or not name or not version:
        raise click.BadParameter(f"{model!r} is not models:/name/version or models:/name@alias")
    if "@" in rest:
        return name, backend.resolve(name, f"@{version}")
    if not (version.isascii() and version.isdigit() and 0 < int(version) <= _LARGEST_VERSION):
        raise click.BadParameter(f"{version!r} is not a version number")
    return name, int(version)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlflow-chancery", prog_name="chancery")
def main() -> None:
    """Govern an MLflow server: request, approve and verify promotions; read the ledger."""
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    errors_console.print(f"[yellow]warning[/]: {message}")


def _describe(request: PromotionRequest) -> None:
    deadline = datetime.fromtimestamp(request.not_after_ms / 1000, UTC)
    missing = max(0, request.threshold - len(request.approvals))
    state = "used" if request.used else "ready" if not missing else f"{missing} approval(s) missing"
    console.print(f"statement  {request.statement_id}", markup=False)
    console.print(f"model      {request.model} → {request.environment}", markup=False)
    if request.served_as is not None:
        console.print(
            f"           to be served as registered model {request.served_as}", markup=False
        )
    console.print(
        f"requested  by {request.requested_by}, usable until {deadline:%Y-%m-%d %H:%M} UTC"
    )
    console.print(
        f"approvals  {len(request.approvals)} of {request.threshold}"
        f" ({', '.join(request.approvals) or 'nobody yet'}): {state}",
        markup=False,
    )


def _request_json(request: PromotionRequest) -> dict[str, Any]:
    return {**request.to_dict(), "statement": json.loads(request.payload)}


@main.command()
@click.argument("model")
@click.option("--to", "environment", required=True, help="Target environment, e.g. prod.")
@_as_option
@uri_option
@json_option
@answer_errors
def request(model: str, environment: str, served_as: str | None, uri: str, as_json: bool) -> None:
    """Ask for MODEL (models:/name/version) to be promoted; prints the statement to approve."""
    backend = open_backend(uri)
    name, version = _version_of(model, backend)
    found = backend.request_promotion(name, version, environment, served_as=served_as)
    if as_json:
        return print_json(_request_json(found))
    _describe(found)
    if found.threshold > len(found.approvals):
        console.print(f"next       chancery approve {found.statement_id[:12]}")
    return None


@main.command()
@click.argument("statement")
@click.option("--key", envvar="CHANCERY_KEY", help="Signer URI (file:key.pem). [CHANCERY_KEY]")
@click.option("--yes", is_flag=True, help="Do not ask before signing.")
@uri_option
@json_option
@answer_errors
def approve(statement: str, key: str | None, yes: bool, uri: str, as_json: bool) -> None:
    """Sign STATEMENT (its id, or at least six digits of it) with your key."""
    backend = open_backend(uri)
    settings = settings_of(uri)
    found = backend.promotion_request(statement)
    said = PromotionStatement.parse(found.payload)
    if not as_json or not yes:  # nobody is asked to sign what they have not seen
        (errors_console if as_json else console).print(said.describe(), markup=False)
    if not yes and not click.confirm("Sign this statement?", err=as_json):
        raise click.Abort
    named = key or settings.key or settings.approver_key
    signer = development_signer(
        named,
        "approver's key",
        production=settings.production,
        create=named == settings.approver_key,
    )
    after = backend.approve(found.statement_id, sign_bundle(found.payload, PAYLOAD_TYPE, signer))
    if as_json:
        return print_json(_request_json(after))
    _describe(after)
    return None


@main.command()
@click.argument("what", required=False)
@uri_option
@json_option
@answer_errors
def show(what: str | None, uri: str, as_json: bool) -> None:
    """Show a statement by id, the statements of models:/name, or all."""
    backend = open_backend(uri)
    if what and not what.startswith("models:/"):
        found: Sequence[PromotionRequest] = [backend.promotion_request(what)]
    else:
        name = what.removeprefix("models:/").split("/")[0].split("@")[0] if what else None
        found = backend.promotion_requests(name)
    if as_json:
        return print_json([_request_json(r) for r in found])
    for position, one in enumerate(found):
        if position:
            console.print()
        _describe(one)
    if not found:
        console.print("no promotion was requested yet")
    return None


@main.command()
@click.argument("model")
@click.option("--to", "environment", required=True)
@_as_option
@uri_option
@json_option
@answer_errors
def check(model: str, environment: str, served_as: str | None, uri: str, as_json: bool) -> None:
    """Evaluate every condition for promoting MODEL, signatures included; changes nothing."""
    backend = open_backend(uri)
    name, version = _version_of(model, backend)
    decision = backend.evaluate(name, version, environment, served_as=served_as)
    if as_json:
        print_json(decision.to_dict())
    else:
        table = Table("", "condition", "required", "found", "remedy")
        for c in decision.conditions:
            table.add_row("✓" if c.met else "✗", c.name, c.required, c.found, c.remedy)
        console.print(table)
        console.print("allowed" if decision.allowed else "denied")
    sys.exit(0 if decision.allowed else 1)


@main.command()
@click.argument("model")
@click.option("--env", "environment", help="Also demand a clearance for this environment.")
@click.option(
    "--path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Verify this directory instead of fetching the files.",
)
@uri_option
@json_option
@answer_errors
def verify(model: str, environment: str | None, path: Path | None, uri: str, as_json: bool) -> None:
    """Fetch MODEL's files and verify digest, signatures, trust roots and revocation."""
    backend = open_backend(uri)
    settings = settings_of(uri)
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
        return print_json(document)
    signed = f"signed by {', '.join(load.signers)}" if load.signers else "not signed (not required)"
    console.print(f"verified  models:/{name}/{version}: {len(manifest.files)} files, {signed}")
    console.print(f"digest    {load.root_digest}")
    return None


@main.command()
@click.argument("model")
@click.option("--reason", required=True)
@uri_option
@json_option
@answer_errors
def revoke(model: str, reason: str, uri: str, as_json: bool) -> None:
    """Refuse every further load and promotion of MODEL."""
    backend = open_backend(uri)
    name, version = _version_of(model, backend)
    backend.revoke(name, version, reason)
    if as_json:
        return print_json({"model": f"models:/{name}/{version}", "reason": reason})
    console.print(f"revoked  models:/{name}/{version}", markup=False)
    return None


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
@uri_option
@json_option
@answer_errors
def lineage(
    node: str, direction: str, depth: int, html: Path | None, uri: str, as_json: bool
) -> None:
    """Print the lineage of NODE (models:/name/version, runs:/id, datasets:/name/digest)."""
    graph = open_backend(uri).lineage(node, direction=direction, depth=depth)
    if html:
        html.write_text(as_html(graph), encoding="utf-8")
        if not as_json:
            console.print(f"wrote {html}", markup=False)
            if graph.truncated:
                console.print(f"{CUT} To see it, {SEE_MORE}.", markup=False)
    if as_json:
        print_json(as_document(graph))
    elif not html:
        console.print(as_tree(graph))


@main.command()
@optional_uri_option
@json_option
@answer_errors
def doctor(uri: str | None, as_json: bool) -> None:
    """Check that this installation (and the store at --uri) is wholly governed."""
    findings: list[Any] = []
    for point in entry_points(group="chancery.doctor"):
        findings += point.load()(uri)
    if not findings:
        raise ConfigurationError("no check is installed", "reinstall mlflow-chancery")
    if as_json:
        print_json(
            [{"check": f.check, "ok": f.ok, "found": f.found, "remedy": f.remedy} for f in findings]
        )
    else:
        for f in findings:
            console.print(f"{'ok ' if f.ok else 'BAD'}  {f.check}: {f.found}", markup=False)
            if f.remedy:
                console.print(f"     remedy: {f.remedy}", markup=False)
    sys.exit(0 if all(f.ok for f in findings) else 1)


@main.group()
def keys() -> None:
    """Make signing keys."""


@keys.command("create")
@click.argument("path", type=click.Path(path_type=Path))
@json_option
@answer_errors
def keys_create(path: Path, as_json: bool) -> None:
    """Make an Ed25519 key at PATH (mode 0600) and print its public half."""
    signer = create_key(path)
    if as_json:
        return print_json({"keyid": signer.keyid, "publicKey": signer.public_key_pem})
    click.echo(signer.public_key_pem, nl=False)
    errors_console.print(f"key id {signer.keyid}; use it as CHANCERY_KEY=file:{path}", markup=False)
    return None


main.add_command(ledger)
main.add_command(trust)
add_lazy_commands(main)


if __name__ == "__main__":
    main()
