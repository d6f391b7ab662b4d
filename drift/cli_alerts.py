"""``chancery drift status``, ``alerts``, ``acknowledge``, ``close`` and ``quarantine``.

Thin: the port of ``governance.drift_port`` does it all. ``COMMANDS`` are added to the group
``chancery drift``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from governance.alert_records import Alert
from governance.deployment_records import time_text
from governance.drift_port import open_drift
from governance.errors import RefusedError, TamperedError
from governance.signing.drift_statements import QuarantineStatement
from governance.signing.dsse import sign_bundle
from governance.signing.keys import development_signer
from governance.signing.statements import PAYLOAD_TYPE
from governance.terminal import (
    answer_errors,
    console,
    json_option,
    print_json,
    settings_of,
    uri_option,
)

__all__ = ["COMMANDS", "acknowledge", "alerts", "close", "describe", "quarantine", "status"]

_reason_option = click.option("--reason", required=True, help="Why; it is on the ledger.")


def describe(alert: Alert) -> list[str]:
    """An alert in lines for people."""
    one = alert.identity
    lines = [
        f"alert {one.alert_id[:12]}  {alert.state.value}  {alert.headline}",
        f"  owner {one.owner}; {alert.windows} windows, from {time_text(alert.first_ms)} to "
        f"{time_text(alert.last_ms)}",
    ]
    lines += [f"  {reason}" for reason in alert.reasons]
    if alert.worst:
        lines.append("  worst columns: " + ", ".join(str(c.get("name", "")) for c in alert.worst))
    lines += [f"  slice: {found.get('text', '')}{_shares(found)}" for found in alert.slices]
    lines += [f"  quarantine proposed: {reason}" for reason in alert.quarantine]
    lines += [f"  raised outside by {who}" for who in alert.outside]
    if alert.retrain.get("text"):
        lines.append(f"  to train again: {alert.retrain['text']}")
    lines += [
        f"  {act.kind.value} by {act.by or 'itself'} at {time_text(act.at_ms)}: {act.reason}"
        for act in alert.acts
    ]
    return lines


def _shares(found: Mapping[str, Any]) -> str:
    """Of a slice: how much of the window it is, and of the reference."""
    try:
        share, before = float(found["share"]), float(found["referenceShare"])
    except (KeyError, TypeError, ValueError):
        return ""
    return f": {share:.0%} of the rows, {before:.0%} of the reference"


def _print(alert: Alert, *, as_json: bool) -> None:
    if as_json:
        return print_json(alert.to_dict())
    for line in describe(alert):
        console.print(line, markup=False)
    return None


def _watched(one: Mapping[str, Any]) -> list[str]:
    """The last report on a version and route, in two lines."""
    metrics, limits = one["metrics"], one.get("thresholds", {})
    where = f"on the route {one['deployment']!r}" if one["deployment"] else "scored in batches"
    numbers = {
        "eSR": (metrics["esr"], limits.get("alertEsr")),
        "PSI": (metrics["psi"], limits.get("psi")),
        "eSR of errors": (metrics.get("errorEsr"), limits.get("alertEsr")),
        "accuracy": (metrics["accuracy"], None),
        "estimated accuracy": (metrics["estimatedAccuracy"], None),
    }
    said = [f"{name} {_against(*pair)}" for name, pair in numbers.items() if pair[0] is not None]
    return [
        f"version {one['version']} {where}: {one['level']}, window {one['window']}, up to "
        f"{time_text(one['toMs'] or one['madeMs'])}, signed by {one['signedBy'] or 'nobody'}",
        f"  {', '.join(said)}",
    ]


def _against(value: float, limit: float | None) -> str:
    """A number, and what an alert needs."""
    return f"{value:.3g}" if limit is None else f"{value:.3g} (alert at {limit:.4g})"


@click.command()
@click.argument("model")
@uri_option
@json_option
@answer_errors
def status(model: str, uri: str, as_json: bool) -> None:
    """What is known of the drift of the registered model MODEL."""
    found = open_drift(uri).status(model)
    if as_json:
        return print_json(dict(found))
    console.print(f"{model}: {found['status']}", markup=False)
    if not found["watched"]:
        console.print("no version of it is watched", markup=False)
    for one in found["watched"]:
        for line in _watched(one):
            console.print(line, markup=False)
    for document in found["alerts"]:
        for line in describe(Alert.from_dict(document)):
            console.print(line, markup=False)
    return None


@click.command()
@click.argument("model", required=False)
@click.option("--closed", is_flag=True, help="Those that are closed, too.")
@uri_option
@json_option
@answer_errors
def alerts(model: str | None, closed: bool, uri: str, as_json: bool) -> None:
    """The alerts that are open, newest first; only MODEL's if it is named."""
    found = open_drift(uri).alerts(model, closed=closed)
    if as_json:
        return print_json({"alerts": [one.alert.to_dict() for one in found]})
    if not found:
        console.print("no alert is open" if not closed else "there is no alert")
    for one in found:
        for line in describe(one.alert):
            console.print(line, markup=False)
    return None


@click.command()
@click.argument("alert")
@_reason_option
@uri_option
@json_option
@answer_errors
def acknowledge(alert: str, reason: str, uri: str, as_json: bool) -> None:
    """You have seen ALERT: nobody is told again unless it gets worse."""
    _print(open_drift(uri).acknowledge(alert, reason), as_json=as_json)


@click.command()
@click.argument("alert")
@_reason_option
@uri_option
@json_option
@answer_errors
def close(alert: str, reason: str, uri: str, as_json: bool) -> None:
    """ALERT is over: a promotion may pass again."""
    _print(open_drift(uri).close(alert, reason), as_json=as_json)


@click.command()
@click.argument("alert")
@_reason_option
@click.option("--key", help="Signer URI of your key; else CHANCERY_KEY, or this home's.")
@click.option("--yes", is_flag=True, help="Sign without asking.")
@uri_option
@json_option
@answer_errors
def quarantine(
    alert: str, reason: str, key: str | None, yes: bool, uri: str, as_json: bool
) -> None:
    """Sign that the version of ALERT is taken off its route, as the alert proposes."""
    port, settings = open_drift(uri), settings_of(uri)
    stored = port.alert(alert)
    if stored.proposal is None:
        raise RefusedError(
            f"alert {stored.alert.alert_id[:12]} proposes no quarantine that could be signed",
            "`chancery deploy quarantine` takes a version off its route without a proposal",
            subject=stored.alert.uri,
        )
    statement = QuarantineStatement.parse(stored.proposal)
    about = statement.alert_id, statement.binding.version_uid
    if about != (stored.alert.alert_id, stored.alert.identity.version_uid):
        raise TamperedError(
            f"what is to be signed is not about alert {stored.alert.alert_id[:12]}",
            "sign nothing, and ask whoever runs the server",
        )
    if not as_json:
        console.print(statement.describe(), markup=False)
    if not yes:
        click.confirm("Sign?", abort=True, err=True)
    signer = development_signer(
        key or settings.key or settings.approver_key,
        "approver's key",
        production=settings.production,
        create=False,
    )
    bundle = sign_bundle(stored.proposal, PAYLOAD_TYPE, signer)
    _print(port.quarantine(stored.alert.alert_id, bundle, reason), as_json=as_json)


COMMANDS: list[click.Command] = [status, alerts, acknowledge, close, quarantine]
