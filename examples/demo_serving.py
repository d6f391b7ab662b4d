"""The second half of the demonstration: versions behind a route, under traffic.

A small Ray of its own, real requests all the time, a version that is good offline and bad live, and
a good one. Everything is decided by the rollout's controller; this only looks on and counts.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo_drift import RECORDED, watching
from demo_narrator import (
    NAME,
    ROOT,
    STORE,
    chancery,
    give_up,
    results,
    run,
    say,
    step,
    wait_until,
)
from demo_traffic import Traffic

__all__ = ["serving"]


def serving(address: str, keys: list[Path]) -> None:
    """Serve, roll out, roll back, promote.

    Args:
        address: The MLflow server.
        keys: The approvers' key files; two, as prod demands.
    """
    began = time.monotonic()
    with a_small_ray():
        _serving(address, keys)
    results.add_row("serving", f"all of it in {time.monotonic() - began:.0f} s; Ray is gone again")


@contextmanager
def a_small_ray() -> Iterator[None]:
    """A cluster of our own: nobody joins without the token in its folder."""
    step("Start a small Ray of our own, for serving")
    folder = Path(tempfile.mkdtemp(prefix="chancery-demo-"))  # short: it is part of sockets' paths
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
        RAY_SERVE_LOG_TO_STDERR="0",
        OMP_NUM_THREADS="1",
        CHANCERY_SERVE_SOCKETS=str(folder / "s"),
        CHANCERY_RECORD_TO=str(RECORDED),
        CHANCERY_RECORD_SPOOL=str(folder / "spool"),
    )
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            num_cpus=4,  # as Ray counts them: it starts so many idle workers at once
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder / "r"),
            namespace="chancery",
        )
        signal.signal(signal.SIGTERM, before)  # Ray put its own in place
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        say(f"Ray at {os.environ['RAY_ADDRESS']}, its files in {folder}")
        yield
    finally:
        say("stopping Ray")
        ray.shutdown()  # ends the processes that it started, each by its id
        shutil.rmtree(folder, ignore_errors=True)


def _serving(address: str, keys: list[Path]) -> None:
    from governance.deployment_port import open_deployments

    port = _free_port()
    chancery("deploy", "start", f"models:/{NAME}@champion", "--port", str(port), "--cpus", "0.5",
             "--uri", STORE, quiet=True)  # fmt: skip
    traffic = Traffic(port)
    second = train("error", "--seed", "8")
    say("INJECTED FAULT: version 2 puts tumours into size classes and raises for a size that its")
    say("data set does not have. Its test set has none, so it is honestly good offline. Live, one")
    say("patient in five comes from another clinic, with larger tumours.")
    wait_until(lambda: _answers(traffic), "waiting for the route to answer")
    _, body, headers = traffic.ask()
    say(f"{body.decode()} and says who answered:")
    for name in ("model", "version", "signer", "variant"):
        say(f"  x-chancery-{name}: {headers.get(f'x-chancery-{name}')}")
    if headers.get("x-chancery-version") != "1" or not headers.get("x-chancery-signer"):
        give_up(f"the answer's headers are {headers}")
    results.add_row("deploy", f"version 1 answers on port {port}; each answer names its signers")
    deployments = open_deployments(STORE)
    with traffic:
        _regression(address, keys, deployments, traffic, second)
        version = _success(address, keys, deployments, traffic)
        watching(address, keys[0], traffic, version)
    if traffic.errors:
        give_up(f"clients saw errors: {dict(traffic.errors)}")
    chancery("deploy", "delete", NAME, "--reason", "the demonstration is over", "--uri", STORE,
             quiet=True)  # fmt: skip
    wait_until(
        lambda: deployments.find(deployed(deployments)).stopped_ms is not None, "it is taken down"
    )
    ledger()


def _regression(
    address: str, keys: list[Path], deployments: Any, traffic: Traffic, version: int
) -> None:
    """A version that passes every gate, and is worse where only live traffic shows it."""
    import mlflow
    from mlflow.exceptions import MlflowException

    step(f"Version {version} is good offline: staging, prod's two signatures; then a canary")
    let_in(address, keys, version)
    outcome, _, seconds = roll_out(deployments, traffic, version)
    if outcome != "rolled_back":
        give_up(f"the bad version was {outcome}")
    chancery("deploy", "why", NAME, "--uri", STORE)
    reached, users = traffic.reached(str(version)), sum(traffic.errors.values())
    say(
        f"{reached} requests reached version {version}; {traffic.repeated} failed there and were "
        f"answered by stable: clients saw {users} errors; rolled back after {seconds:.1f} s"
    )
    if users or not traffic.repeated:
        give_up(f"{users} errors, {traffic.repeated} repeated: {dict(traffic.errors)}")
    results.add_row(
        f"canary of version {version}",
        f"rolled back by itself after {seconds:.1f} s and {reached} requests; clients saw 0 errors",
    )
    step(f"Somebody points @champion at version {version} all the same; it has its signatures")
    try:
        mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", str(version))
    except MlflowException as error:
        say(error.message)
        results.add_row("@champion, bad canary", "refused: prod demands a canary's good verdict")
    else:
        give_up("a version with a bad canary became champion")


def _success(address: str, keys: list[Path], deployments: Any, traffic: Traffic) -> int:
    """The version that is promoted."""
    import mlflow

    step("Version 3 ignores sizes it does not know; the same way again")
    version = train("ignore", "--seed", "8", "--drift-profile")
    let_in(address, keys, version)
    before = traffic.repeated
    outcome, decisions, seconds = roll_out(deployments, traffic, version)
    if outcome != "promoted":
        chancery("deploy", "why", NAME, "--uri", STORE)
        give_up(f"the good version was {outcome}")
    client = mlflow.MlflowClient()

    def champion() -> bool:
        return int(client.get_model_version_by_alias(NAME, "champion").version) == version

    wait_until(champion, "the controller moves the alias through the gate", limit_s=30)
    wait_until(lambda: traffic.ask()[2].get("x-chancery-version") == str(version), "it answers")
    basis = decisions[-1].document["basis"]
    say(
        f"promoted after {seconds:.1f} s, {basis['requests']} requests of each version compared; "
        f"@champion is version {version}: the gate found the verdict on the ledger"
    )
    if traffic.repeated != before:
        give_up(f"{traffic.repeated - before} requests failed at the good version")
    say(traffic.told())
    results.add_row(
        f"canary of version {version}",
        f"promoted after {seconds:.1f} s; @champion moved through the gate; "
        f"{sum(traffic.answers.values())} answers in all, {sum(traffic.errors.values())} errors",
    )
    return version


def train(size_classes: str, *more: str) -> int:
    """The ordinary script again; the version's number."""
    said = run([sys.executable, str(ROOT / "examples" / "train.py"), "--name", NAME,
                "--size-classes", size_classes, *more])  # fmt: skip
    return int(said.strip().rpartition("/")[2])


def let_in(address: str, keys: list[Path], version: int) -> None:
    """What `chancery request` and `chancery approve` do, without starting them five times."""
    import mlflow

    from governance.backend import open_backend
    from governance.signing.dsse import sign_bundle
    from governance.signing.keys import FileSigner
    from governance.signing.statements import PAYLOAD_TYPE

    backend, signers = open_backend(address), [FileSigner(key) for key in keys]
    for environment, needed in (("staging", signers[:1]), ("prod", signers)):
        request = backend.request_promotion(NAME, version, environment)
        for signer in needed:
            bundle = sign_bundle(request.payload, PAYLOAD_TYPE, signer)
            request = backend.approve(request.statement_id, bundle)
        say(f"{environment}: statement {request.statement_id[:12]} signed by "
            f"{', '.join(request.approvals)}")  # fmt: skip
        if environment == "staging":
            client = mlflow.MlflowClient()
            client.set_registered_model_alias(NAME, "challenger", str(version))


def roll_out(deployments: Any, traffic: Traffic, version: int) -> tuple[str, list[Any], float]:
    """Its outcome, its decisions, and seconds from the first traffic to the end."""
    from serve.views import describe

    chancery("deploy", "start", f"models:/{NAME}/{version}", "--route", NAME,
             "--config", "examples/canary.yaml", "--uri", STORE, quiet=True)  # fmt: skip
    rollout = deployments.find(NAME).rollout_id

    def told() -> str:
        lines = describe(deployments.find(NAME), int(time.time() * 1000))
        place = next((line for line in lines if line.startswith("canary ")), "")
        return f"{place.rpartition('  ')[2]}; {traffic.told()}"

    wait_until(lambda: deployments.find(NAME).canary is None, "the rollout ends", told=told)
    found = deployments.decisions(deployments.find(NAME).deploy_id)
    decisions = [one for one in found if one.rollout_id == rollout]
    at = {one.document["outcome"]: int(one.document["atMs"]) for one in decisions}
    last = str(decisions[-1].document["outcome"])
    return last, decisions, (at[last] - at.get("verified", at[last])) / 1000


def deployed(deployments: Any) -> str:
    return str(deployments.list(ended=True)[0].deploy_id)


def ledger() -> None:
    step("All of it is on the ledger")
    chancery("ledger", "tail", "-n", "12", "--uri", STORE)
    chancery("ledger", "verify", "--uri", STORE)


def _answers(traffic: Traffic) -> bool:
    """Whether every listener runs, and each of twenty new connections gets its answer."""
    from ray import serve

    states = [application.status.value for application in serve.status().applications.values()]
    if len(states) < 2 or set(states) != {"RUNNING"}:
        return False
    try:
        return all(traffic.ask()[0] == 200 for _ in range(20))
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
