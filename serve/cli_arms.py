"""``chancery deploy experiment``, ``shadow`` and ``results``: what there is beside canaries.

Thin: configurations are read by ``serve.parsing``, and the port of ``governance.deployment_port``
does the rest. Nothing here needs Ray: the route's controller follows what is written.
"""

from __future__ import annotations

from pathlib import Path

import click

from governance.arms import ArmOrder, ExperimentOrder, ShadowOrder
from governance.clock import now_ms
from governance.deployment_port import open_deployments
from governance.deployment_records import DeploymentRecord
from governance.errors import ConfigurationError
from governance.terminal import answer_errors, console, json_option, print_json, uri_option
from serve.arm_config import ABTestConfig, ShadowConfig
from serve.parsing import load_ab_test, parse_arms, parse_shadow
from serve.results import as_results, results
from serve.views import describe

__all__ = ["experiment", "experiment_order", "results_", "shadow", "shadow_order"]

_reason_option = click.option("--reason", default="", help="Why; it is on the ledger.")


def _text(number: float) -> str:
    return f"{number:.10g}"


def experiment_order(config: ABTestConfig) -> ExperimentOrder:
    """What is asked of the port."""
    return ExperimentOrder(
        config.name,
        config.sticky,
        tuple(
            ArmOrder(
                arm.name,
                arm.model,
                _text(arm.weight),
                _text(arm.timeout_seconds),
                arm.max_concurrency,
            )
            for arm in config.arms
        ),
    )


def shadow_order(config: ShadowConfig) -> ShadowOrder:
    """What is asked of the port."""
    return ShadowOrder(
        config.model,
        _text(config.percent),
        config.max_in_flight,
        _text(config.timeout_seconds),
        config.compare,
    )


def _show(record: DeploymentRecord, *, as_json: bool) -> None:
    if as_json:
        return print_json(record.to_dict())
    for line in describe(record, now_ms()):
        console.print(line, markup=False)
    return None


@click.command()
@click.argument("name")
@click.option("--config", type=click.Path(path_type=Path), help="An experiment (YAML).")
@click.option("--arm", "arms", multiple=True, help="NAME=models:/fraud/3:50; the first is control.")
@click.option("--name", "title", help="With --arm: the experiment's name.")
@click.option("--sticky", help="With --arm: header:NAME, cookie:NAME or field:NAME.")
@click.option("--end", is_flag=True, help="End it; all clients are stable's again.")
@click.option("--keep", metavar="ARM", help="With --end: roll this arm's version out.")
@_reason_option
@uri_option
@json_option
@answer_errors
def experiment(
    name: str,
    config: Path | None,
    arms: tuple[str, ...],
    title: str | None,
    sticky: str | None,
    end: bool,
    keep: str | None,
    reason: str,
    uri: str,
    as_json: bool,
) -> None:
    """Share the clients of NAME between versions, or change the shares of arms that run."""
    begun = (config is not None) + bool(arms)
    if end + begun != 1:
        raise ConfigurationError(
            "it is not said what the experiment is, or it is said twice",
            "give one of --config, --arm (at least twice), or --end",
        )
    if (keep is not None and not end) or ((title or sticky) and not arms):
        raise ConfigurationError(
            "--keep goes with --end, --name and --sticky go with --arm", "leave out the other"
        )
    port = open_deployments(uri)
    if end:
        return _show(port.end_experiment(name, reason, keep=keep), as_json=as_json)
    if config is not None:
        found = load_ab_test(config)
    else:
        if title is None:
            raise ConfigurationError(
                "the experiment has no name; clients are dealt out by it",
                "add --name; the same name deals the same way again",
            )
        found = parse_arms(title, arms, sticky)
    return _show(port.experiment(name, experiment_order(found)), as_json=as_json)


@click.command()
@click.argument("name")
@click.argument("model", required=False)
@click.option("--percent", type=float, help="Part of the requests that is copied; default 100.")
@click.option("--max-in-flight", type=int, help="Copies at a time at each gateway; default 32.")
@click.option("--timeout", type=float, help="Seconds after which a copy is given up; default 10.")
@click.option("--no-compare", is_flag=True, help="Do not compare its answers with stable's.")
@click.option("--off", is_flag=True, help="Send no more copies.")
@_reason_option
@uri_option
@json_option
@answer_errors
def shadow(
    name: str,
    model: str | None,
    percent: float | None,
    max_in_flight: int | None,
    timeout: float | None,
    no_compare: bool,
    off: bool,
    reason: str,
    uri: str,
    as_json: bool,
) -> None:
    """Send copies of the requests of NAME to MODEL, whose answers nobody sees.

    Asked again for the same version, the settings change.
    """
    if off == (model is not None):
        raise ConfigurationError(
            "it is not said which version gets copies, or both a version and --off are given",
            "give models:/name/version, or --off",
        )
    port = open_deployments(uri)
    if model is None:
        return _show(port.end_shadow(name, reason), as_json=as_json)
    config = parse_shadow(
        model,
        percent=percent,
        max_in_flight=max_in_flight,
        timeout_seconds=timeout,
        compare=not no_compare,
    )
    return _show(port.shadow(name, shadow_order(config)), as_json=as_json)


@click.command("results")
@click.argument("name")
@uri_option
@json_option
@answer_errors
def results_(name: str, uri: str, as_json: bool) -> None:
    """Tell what the experiment and the shadow of NAME, or the last ones, came to so far."""
    found = results(open_deployments(uri).find(name))
    if as_json:
        return print_json(found)
    console.print(as_results(found))
    return None
