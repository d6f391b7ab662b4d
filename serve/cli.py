"""``chancery deploy``: put versions behind routes, and see and steer their rollouts.

Thin: every verb calls the port of ``governance.deployment_port`` and prints. Only what starts
something needs Ray, and it is asked for before anything is written.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import click
from rich.live import Live

from governance.clock import now_ms
from governance.deployment_port import DeploymentOrder, Deployments, open_deployments
from governance.deployment_records import DeploymentRecord, SignalKind
from governance.deployment_resources import scale_of
from governance.errors import ConfigurationError, RefusedError
from governance.terminal import (
    JsonGroup,
    answer_errors,
    console,
    errors_console,
    json_option,
    print_json,
    uri_option,
)
from serve.cli_arms import experiment, results_, shadow
from serve.operator import LaunchProcess, Operator
from serve.ordering import amounts, canary_text, launcher, require_database
from serve.scale_options import Asked, size_options
from serve.views import as_panel, as_table, describe, explain, explained, without_controller

__all__ = ["deploy"]

_ray_option = click.option(
    "--ray", "address", envvar="RAY_ADDRESS", default="auto", show_default=True, show_envvar=True,
    help="Address of the Ray cluster.",
)  # fmt: skip
_reason_option = click.option("--reason", default="", help="Why; it is on the ledger.")


class _Deploy(JsonGroup):
    """``chancery deploy models:/…`` is short for ``chancery deploy start models:/…``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands:
            help_wanted = {"-h", "--help"} & set(args[:1])
            if not help_wanted and any(arg.startswith("models:/") for arg in args):
                args = ["start", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Deploy, context_settings={"help_option_names": ["-h", "--help"]})
def deploy() -> None:
    """Serve versions behind routes, with canaries that decide by themselves.

    `chancery deploy MODEL` is short for `chancery deploy start MODEL`.
    """


def _show(record: DeploymentRecord, *, as_json: bool) -> None:
    if as_json:
        return print_json(record.to_dict())
    for line in describe(record, now_ms()):
        console.print(line, markup=False)
    return None


@deploy.command()
@click.argument("model")
@click.option("--route", help="Where clients reach it; default: the registered model's name.")
@click.option("--env", "environment", help="Whose gate applies; default: the alias's.")
@click.option("--canary", help="5%, or steps as 5,25,50,100, or a .yaml file: roll it out so.")
@click.option("--config", type=click.Path(path_type=Path), help="A canary configuration (YAML).")
@click.option("--stable", help="With --canary on a free route: what it is compared with.")
@size_options
@click.option("--cpus", help="CPUs of each replica, as Ray counts them; default 1.")
@click.option("--gpus", help="GPUs of each replica; default 0.")
@click.option("--pool", "node_pool", help="Node pool: the Ray label pool=… that nodes must have.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: the first free from 8080.")
@click.option("--record-only", is_flag=True, help="Start nothing; `recover` does so later.")
@_ray_option
@uri_option
@json_option
@answer_errors
def start(
    model: str,
    route: str | None,
    environment: str | None,
    canary: str | None,
    config: Path | None,
    stable: str | None,
    asked: Asked,
    cpus: str | None,
    gpus: str | None,
    node_pool: str | None,
    host: str,
    port: int | None,
    record_only: bool,
    address: str,
    uri: str,
    as_json: bool,
) -> None:
    """Let MODEL (models:/name/version or models:/name@alias) answer on a route.

    With --canary or --config it is rolled out beside what answers there. Against a server, the
    operator beside the cluster (`chancery deploy operate`) starts it.
    """
    order = DeploymentOrder(
        model=model,
        route=route,
        environment=environment,
        canary_config=canary_text(canary, config),
        stable=stable,
        replicas=asked.fixed,
        scale=asked.scale(),
        resources=asked.resources(**amounts(numCpus=cpus, numGpus=gpus)),
        node_pool=node_pool,
        host=host,
        port=port,
    )
    launch = None if record_only else launcher(uri, address)
    record = open_deployments(uri).deploy(order)
    if launch is not None and (short := launch(record)):
        errors_console.print(f"waits      {short}; replicas start when one comes", markup=False)
    _show(record, as_json=as_json)
    if launch is None and not as_json and without_controller(record, now_ms()):
        console.print("waits      for `chancery deploy operate`, which starts its controller")


@deploy.command("list")
@click.option("--all", "ended", is_flag=True, help="Those that were ended too.")
@uri_option
@json_option
@answer_errors
def list_(ended: bool, uri: str, as_json: bool) -> None:
    """List the deployments, newest first."""
    found = open_deployments(uri).list(ended=ended)
    if as_json:
        return print_json([record.to_dict() for record in found])
    console.print(as_table(found) if found else "nothing is deployed")
    return None


@deploy.command()
@click.argument("name")
@uri_option
@json_option
@answer_errors
def show(name: str, uri: str, as_json: bool) -> None:
    """Show the deployment NAME (its route, id, or six digits of the id)."""
    _show(open_deployments(uri).find(name), as_json=as_json)


@deploy.command()
@click.argument("name")
@uri_option
@json_option
@answer_errors
def why(name: str, uri: str, as_json: bool) -> None:
    """Explain where the rollout of NAME stands and every decision, with its numbers."""
    port = open_deployments(uri)
    record = port.find(name)
    decisions = port.decisions(record.deploy_id)
    if as_json:
        return print_json(explained(record, decisions))
    for line in explain(record, decisions):
        console.print(line, markup=False)
    return None


@deploy.command()
@click.argument("name")
@click.option("--seconds", type=float, help="Stop after so long; default: when stable is alone.")
@uri_option
@json_option
@answer_errors
def watch(name: str, seconds: float | None, uri: str, as_json: bool) -> None:
    """Watch NAME live until nothing runs beside stable (or Ctrl-C).

    --json prints the state at the rollout's end.
    """
    port = open_deployments(uri)
    record = port.find(name)
    until = None if seconds is None else time.monotonic() + seconds
    if as_json:
        record = _follow(port, record, until, lambda _: None)
        return print_json(explained(record, port.decisions(record.deploy_id)))
    with Live(as_panel(record, now_ms()), console=console, auto_refresh=False) as live:
        _follow(
            port,
            record,
            until,
            lambda now: live.update(as_panel(now, now_ms()), refresh=True),
            lambda now: bool(now.canary or now.experiment or now.shadow),
        )
    return None


@deploy.command()
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="rollout.png",
    show_default=True,
    help="File to write: .png, .svg or .pdf.",
)
@uri_option
@json_option
@answer_errors
def plot(name: str, out: Path, uri: str, as_json: bool) -> None:
    """Draw the rollout of NAME, the one that runs or the last: traffic, errors, evidence."""
    from serve.plot import FORMATS, drawn, story_of

    form = out.suffix.removeprefix(".").lower()
    if form not in FORMATS:
        raise ConfigurationError(
            f"{out} ends in none of {', '.join('.' + one for one in FORMATS)}", "name another file"
        )
    port = open_deployments(uri)
    record = port.find(name)
    story = story_of(record, port.decisions(record.deploy_id))
    data = drawn(story, form)
    try:
        out.write_bytes(data)
    except OSError as error:
        raise ConfigurationError(
            f"{out} cannot be written: {error.strerror}", "name another file"
        ) from error
    if as_json:
        return print_json({"file": str(out), "rolloutId": story.series.rollout_id})
    console.print(f"drawn  {out}", markup=False)
    return None


def _follow(
    port: Deployments,
    record: DeploymentRecord,
    until: float | None,
    show: Callable[[DeploymentRecord], None],
    lasts: Callable[[DeploymentRecord], bool] = lambda now: now.canary is not None,
) -> DeploymentRecord:
    while record.ended_ms is None and (lasts(record) or until is not None):
        if until is not None and time.monotonic() >= until:
            break
        time.sleep(0.5)
        record = port.find(record.deploy_id)
        show(record)
    return record


def _ask(kind: SignalKind, name: str, reason: str, uri: str, *, as_json: bool) -> None:
    record = open_deployments(uri).ask(name, kind, reason)
    if as_json:
        return print_json(record.to_dict())
    console.print(f"asked  {kind.value} of {record.route}: its controller follows", markup=False)
    return None


def _steering(function: Callable[..., None]) -> click.Command:
    """A command that does something to the deployment NAME, for a reason."""
    function = uri_option(json_option(answer_errors(function)))
    return deploy.command()(click.argument("name")(_reason_option(function)))


@_steering
def pause(name: str, reason: str, uri: str, as_json: bool) -> None:
    """Hold the rollout of NAME where it is; it is still watched, and rolled back if need be."""
    _ask(SignalKind.PAUSE, name, reason, uri, as_json=as_json)


@_steering
def resume(name: str, reason: str, uri: str, as_json: bool) -> None:
    """Let the rollout of NAME go on."""
    _ask(SignalKind.RESUME, name, reason, uri, as_json=as_json)


@_steering
def abort(name: str, reason: str, uri: str, as_json: bool) -> None:
    """End the rollout of NAME; all traffic goes back to stable, aliases stay as they are."""
    _ask(SignalKind.ABORT, name, reason, uri, as_json=as_json)


@_steering
def rollback(name: str, reason: str, uri: str, as_json: bool) -> None:
    """Roll NAME back: its rollout, or else to the version before the last promotion."""
    port = open_deployments(uri)
    if port.find(name).canary is not None:
        return _ask(SignalKind.ROLLBACK, name, reason, uri, as_json=as_json)
    return _show(port.back(name, reason), as_json=as_json)


@_steering
def quarantine(name: str, reason: str, uri: str, as_json: bool) -> None:
    """Stop the canary of NAME from answering; without a rollout, its stable version."""
    _ask(SignalKind.QUARANTINE, name, reason, uri, as_json=as_json)


@deploy.command()
@click.argument("name")
@size_options
@uri_option
@json_option
@answer_errors
def scale(name: str, asked: Asked, uri: str, as_json: bool) -> None:
    """Give NAME other numbers of replicas or gateways; what is not named stays."""
    port = open_deployments(uri)
    record = port.find(name)
    document = asked.scale(record.resources.get("scale"))
    changed = port.scale(name, asked.fixed, scale=document, resources=asked.resources())
    _show(changed, as_json=as_json)


@_steering
def warm(name: str, reason: str, uri: str, as_json: bool) -> None:
    """Start a replica of NAME, which may sleep, before somebody asks."""
    record = open_deployments(uri).find(name)
    found = scale_of(record.resources)
    if found is None or not found.may_sleep:
        raise RefusedError(
            f"{record.route!r} always has a replica, and does not sleep",
            "`chancery deploy scale NAME --replicas 0..4` lets it",
        )
    _ask(SignalKind.WARM, name, reason, uri, as_json=as_json)


@_steering
def delete(name: str, reason: str, uri: str, as_json: bool) -> None:
    """End NAME: nobody answers on its route any more, and the route is free."""
    _show(open_deployments(uri).end(name, reason), as_json=as_json)


@deploy.command()
@click.argument("name", required=False)
@_ray_option
@uri_option
@json_option
@answer_errors
def recover(name: str | None, address: str, uri: str, as_json: bool) -> None:
    """Start the controllers of NAME, or of every deployment, on a cluster that lost them."""
    require_database(uri)
    launch = launcher(uri, address)
    assert launch is not None  # it is a database
    port = open_deployments(uri)
    found = [port.find(name)] if name else list(port.standing())
    found = [record for record in found if record.stopped_ms is None]
    for record in found:
        launch(record)
    if as_json:
        return print_json([record.to_dict() for record in found])
    console.print(as_table(found) if found else "nothing is deployed")
    return None


@deploy.command()
@click.option("--once", is_flag=True, help="Look once, start what is missing, and leave.")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@_ray_option
@uri_option
@answer_errors
def operate(once: bool, every_s: float, address: str, uri: str) -> None:
    """Keep a controller running for every deployment, until SIGTERM.

    For a cluster whose deployments are made through a server, and to recover by itself from the
    loss of a Ray head. Stands where Ray and the database are reached.
    """
    require_database(uri)
    stop = threading.Event()
    launching = LaunchProcess(uri, address, stop=stop)
    operator = Operator(
        lambda: open_deployments(uri),
        launching,
        say=lambda line: errors_console.print(line, markup=False),
    )
    try:
        if once:
            operator.round()
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        operator.run(stop, every_s=every_s)
    finally:
        launching.close()


for verb in (experiment, shadow, results_):
    deploy.add_command(verb)
