"""``chancery trust``: see and change who may approve what."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from rich.table import Table

from governance.backend import Backend, open_backend
from governance.settings import Settings
from governance.signing.keys import development_signer
from governance.signing.roots import TrustRoots, approver, monitor
from governance.signing.trust import sign_roots, verify_chain
from governance.terminal import (
    answer_errors,
    console,
    json_option,
    print_json,
    settings_of,
    uri_option,
)

__all__ = ["trust"]


@click.group()
def trust() -> None:
    """See and change who may approve what."""


def _roots(backend: Backend) -> TrustRoots:
    return verify_chain(backend.trust_roots(), pinned_first=None)


@trust.command("show")
@uri_option
@json_option
@answer_errors
def trust_show(uri: str, as_json: bool) -> None:
    """Print the trust roots in force."""
    roots = _roots(open_backend(uri))
    if as_json:
        return print_json(json.loads(roots.to_payload()))
    table = Table("person", "keys", "roles", title=f"trust roots, version {roots.version}")
    for person in roots.people:
        roles = ", ".join(
            " ".join(word for word in (r.kind.value, r.environment, r.models) if word)
            for r in person.roles
        )
        table.add_row(person.id, ", ".join(k[:12] for k in person.keyids), roles)
    console.print(table)
    return None


@trust.command("add")
@click.argument("person")
@click.option(
    "--public-key", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--approver",
    "approves",
    multiple=True,
    metavar="ENV[:MODELS]",
    help="May approve for this environment (models: glob, default *). Repeatable.",
)
@click.option(
    "--monitor",
    "monitors",
    multiple=True,
    metavar="MODELS",
    help="May sign reports on the drift of these models (a glob). Repeatable.",
)
@click.option(
    "--key",
    "signers",
    multiple=True,
    required=True,
    help="Signer URI of an administrator; repeat up to the admin threshold.",
)
@uri_option
@json_option
@answer_errors
def trust_add(
    person: str,
    public_key: Path,
    approves: Sequence[str],
    monitors: Sequence[str],
    signers: Sequence[str],
    uri: str,
    as_json: bool,
) -> None:
    """Add PERSON with a key and roles; administrators sign."""
    roles = []
    for item in approves:
        environment, _, glob = item.partition(":")
        roles.append(approver(environment, glob or "*"))
    roles += map(monitor, monitors)

    def change(roots: TrustRoots) -> TrustRoots:
        return roots.add_person(person, person, [public_key.read_text()], roles)

    _change_roots(uri, change, signers, as_json=as_json)


@trust.command("remove")
@click.argument("person")
@click.option("--key", "signers", multiple=True, required=True)
@uri_option
@json_option
@answer_errors
def trust_remove(person: str, signers: Sequence[str], uri: str, as_json: bool) -> None:
    """Remove PERSON and all their keys; administrators sign."""
    _change_roots(uri, lambda roots: roots.remove_person(person), signers, as_json=as_json)


@trust.command("revoke-key")
@click.argument("keyid")
@click.option("--key", "signers", multiple=True, required=True)
@uri_option
@json_option
@answer_errors
def trust_revoke_key(keyid: str, signers: Sequence[str], uri: str, as_json: bool) -> None:
    """Distrust a key from now on; administrators sign."""
    _change_roots(uri, lambda roots: roots.revoke_key(keyid), signers, as_json=as_json)


@trust.command("init")
@click.argument("document", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--key", "signers", multiple=True, required=True)
@uri_option
@json_option
@answer_errors
def trust_init(document: Path, signers: Sequence[str], uri: str, as_json: bool) -> None:
    """Found the trust roots on DOCUMENT (chancery.trust-roots/v1 JSON), signed by its admins."""
    payload = TrustRoots.parse(document.read_bytes()).to_payload()
    _submit_roots(open_backend(uri), payload, signers, settings_of(uri), as_json=as_json)


def _change_roots(
    uri: str,
    change: Callable[[TrustRoots], TrustRoots],
    signers: Sequence[str],
    *,
    as_json: bool,
) -> None:
    backend = open_backend(uri)
    payload = change(_roots(backend).successor()).to_payload()
    _submit_roots(backend, payload, signers, settings_of(uri), as_json=as_json)


def _submit_roots(
    backend: Backend,
    payload: bytes,
    signers: Sequence[str],
    settings: Settings,
    *,
    as_json: bool,
) -> None:
    bundles = [
        sign_roots(
            payload,
            development_signer(
                s, "administrator's key", production=settings.production, create=False
            ),
        )
        for s in signers
    ]
    backend.change_trust_roots(payload, bundles)
    version = _roots(backend).version
    if as_json:
        print_json({"version": version})
    else:
        console.print(f"trust roots are at version {version}")
