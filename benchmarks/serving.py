"""How fast a deployment answers, beside ``mlflow models serve`` and MLServer, in one run.

Ours is the whole of it: versions from a governed store, verified when they are loaded, a controller
on Ray, gateways that share a port, and replicas behind unix sockets. The same requests, JSON for
``/invocations`` on kept-alive connections, go to each server in turn, in an order that turns from
round to round. Load generator and servers share the machine's cores, for all servers alike; what
the generator takes is told (``benchmarks/load.py``).

Three scenes:

- *linear*: scikit-learn; ours with two gateways (the default) and with one, ``mlflow models
  serve``, and MLServer if ``--mlserver-venv`` names an environment for it (made if missing);
- *mlp*: a torch network; ours and ``mlflow models serve``;
- *features*: ours alone: one deployment plain, with a canary at 10 % by a sticky header, and with
  the canary, answers recorded for the comparison of their distribution, and metrics that are
  scraped every second.

CPU of a request is that of gateways and replicas (``cpu_us``), with the controller and all of Ray
(``cpu_us_with_ray``), and of the gateways alone, which are the router: a canary is one more process
with a model, whatever routes to it. Of other servers it is that of all their processes.

Results go to ``benchmarks/results/serving.json``; some 15 minutes, with ``--quick`` three.

    python benchmarks/serving.py --mlserver-venv /tmp/mlserver
    python benchmarks/serving.py --quick --scenes features
"""

from __future__ import annotations

import argparse
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from comparison import Aim, ratio
from deployed import Deployed, Store, cluster, wait_until
from load import Running, request_bytes
from machine import describe_machine, load_average
from models import LINEAR_BODY, MLP_BODY, log_linear, log_mlp, save_linear, save_mlp
from rivals import MissingError, Rival, has_module, mlflow_models_serve, mlserver, mlserver_venv
from surroundings import private_home, progress

RESULTS = Path(__file__).resolve().parent / "results" / "serving.json"
CLIENTS = (1, 8, 64)
THROUGHPUT_AIMS = {1: 2.0, 8: 8.0, 64: 20.0}
KEPT_AIM, ROUTER_AIM = 0.85, 1.15
OURS, ONE_GATEWAY, MLFLOW, MLSERVER = "ours", "ours, one gateway", "mlflow models serve", "MLServer"
PLAIN, WITH_CANARY, FULL = "plain", "canary", "canary, metrics, recording"
CANARY = {
    "steps": [10, 100],
    "min_seconds": 86400.0,
    "max_seconds": 86400.0,
    "sticky": "header:x-user",
    # Two versions that are alike but share two cores with the load: no rollback while we measure.
    "analysis": {"latency": None},
}
RECORDING = {"latency": None, "outputs": {}}


@dataclass(frozen=True, slots=True)
class Target:
    """A server that is measured.

    Attributes:
        name: For the results.
        port: Where.
        cpu: CPU seconds so far: of what answers, of everything, and of gateways alone.
    """

    name: str
    port: int
    cpu: Callable[[], tuple[float, float, float]]


@dataclass
class Report:
    """Results so far."""

    scenes: dict[str, Any] = field(default_factory=dict)
    aims: list[Aim] = field(default_factory=list)

    def aim(self, name: str, limit: float, measured: float, *, at_least: bool = False) -> None:
        found = Aim(name, limit, measured, at_least)
        self.aims.append(found)
        progress(f"  {found}")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: Of each server at each number of clients.
        seconds: Of each round that count.
        warm_s: Of each round before them.
        clients: Connections.
        venv: For MLServer; None: it is left out.
    """

    rounds: int
    seconds: float
    warm_s: float = 0.5
    clients: tuple[int, ...] = CLIENTS
    venv: Path | None = None


def ours(name: str, deployed: Deployed) -> Target:
    """A deployment as a target."""

    def cpu() -> tuple[float, float, float]:
        found = deployed.cpu_seconds()
        return found["gateway"] + found["replica"], sum(found.values()), found["gateway"]

    return Target(name, deployed.port, cpu)


def theirs(rival: Rival) -> Target:
    """Another server as a target."""

    def cpu() -> tuple[float, float, float]:
        found = rival.cpu_seconds()
        return found, found, 0.0

    return Target(rival.name, rival.port, cpu)


def once(target: Target, bodies: Sequence[bytes], clients: int, plan: Plan, users: int) -> Any:
    """One round at one server."""
    before = target.cpu()
    found = Running(
        {
            "port": target.port,
            "bodies": [body.decode() for body in bodies],
            "users": users,
            "clients": clients,
            "seconds": plan.seconds + plan.warm_s,
            "warm_s": plan.warm_s,
        }
    ).result()
    after = target.cpu()
    # The warm-up's CPU is in there too, so it is shared among the warm-up's requests too.
    asked = max(found["answered"] * (plan.seconds + plan.warm_s) / plan.seconds, 1.0)
    found["cpu_us"], found["cpu_us_with_ray"], found["cpu_us_of_gateways"] = (
        round(1e6 * (end - begin) / asked, 1) for begin, end in zip(before, after, strict=True)
    )
    return found


def measure(
    targets: Sequence[Target], bodies: Sequence[bytes], plan: Plan, users: int = 0
) -> dict[str, Any]:
    """All targets at all numbers of clients, in turn."""
    result: dict[str, Any] = {}
    for clients in plan.clients:
        rounds: dict[str, list[Any]] = {target.name: [] for target in targets}
        for turn in range(plan.rounds):
            order = [*targets[turn % len(targets) :], *targets[: turn % len(targets)]]
            for target in order if turn % 2 else reversed(order):
                rounds[target.name].append(once(target, bodies, clients, plan, users))
            told = ", ".join(
                f"{name} {found[-1]['requests_per_s']:.0f}/s" for name, found in rounds.items()
            )
            progress(f"  {clients} clients, round {turn + 1} of {plan.rounds}: {told}")
        result[str(clients)] = {name: summary(found) for name, found in rounds.items()}
    return result


def summary(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds; errors are added up."""
    statuses: dict[str, int] = {}
    for one in rounds:
        for status, count in one["statuses"].items():
            statuses[status] = statuses.get(status, 0) + count
    good = statuses.get("200", 0)
    return {
        "requests_per_s": median(one["requests_per_s"] for one in rounds),
        "latency_ms": {
            name: round(median(one["latency_ms"].get(name, float("inf")) for one in rounds), 3)
            for name in ("p50", "p95", "p99", "longest")
        },
        "cpu_us": median(one["cpu_us"] for one in rounds),
        "cpu_us_with_ray": median(one["cpu_us_with_ray"] for one in rounds),
        "cpu_us_of_gateways": median(one["cpu_us_of_gateways"] for one in rounds),
        "cpu_us_of_generator": median(one["cpu_us_per_request_of_generator"] for one in rounds),
        "answered": sum(statuses.values()),
        "errors": sum(statuses.values()) - good,
        "lost": sum(one["lost"] for one in rounds),
        "late": sum(one["late"] for one in rounds),
        "rounds": {
            "requests_per_s": [one["requests_per_s"] for one in rounds],
            "p99_ms": [one["latency_ms"].get("p99") for one in rounds],
        },
    }


def compare(scene: str, found: dict[str, Any], rival: str, report: Report) -> None:
    """Ours against a rival, at each number of clients."""
    for clients, targets in found.items():
        if rival not in targets:
            continue
        mine, other = targets[OURS], targets[rival]
        faster = ratio(mine["rounds"]["requests_per_s"], other["rounds"]["requests_per_s"])
        slower = ratio(mine["rounds"]["p99_ms"], other["rounds"]["p99_ms"])
        dearer = mine["cpu_us"] / other["cpu_us"] if other["cpu_us"] else float("nan")
        targets[f"{OURS} over {rival}"] = {
            "throughput": faster,
            "p99": slower,
            "cpu_of_a_request": round(dearer, 4),
        }
        named = f"{scene}, {clients} clients, over {rival}"
        if rival == MLFLOW:
            aim = THROUGHPUT_AIMS[int(clients)]
            report.aim(f"{named}: throughput", aim, faster["ratio"], at_least=True)
        report.aim(f"{named}: p99", 1.0, slower["ratio"])


def no_errors(scene: str, found: dict[str, Any], report: Report) -> None:
    """Nothing of ours may fail."""
    failed = sum(
        target["errors"] + target["lost"] + target["late"]
        for targets in found.values()
        for name, target in targets.items()
        if (name.startswith(OURS) and "over" not in name) or name in (PLAIN, FULL)
    )
    report.aim(f"{scene}: requests of ours that failed", 0, failed)


def idle_cpu(deployed: Sequence[Deployed], seconds: float = 3.0) -> float:
    """Share of one core that everything of ours takes when nobody asks; others' rounds pay it."""

    def total() -> float:
        found = [one.cpu_seconds() for one in deployed]
        shared = found[0]["controller"] + found[0]["ray"]
        return shared + sum(one["gateway"] + one["replica"] for one in found)

    before = total()
    time.sleep(seconds)
    return round((total() - before) / seconds, 4)


def linear_scene(store: Store, plan: Plan, report: Report) -> None:
    """The scikit-learn model: ours with two gateways and one, and the others."""
    request = request_bytes(LINEAR_BODY)
    store.register("linear", log_linear)
    folder = store.folder / "linear"
    save_linear(folder)
    scene: dict[str, Any] = {}
    with ExitStack() as stack:
        two = store.deploy("models:/linear/1", request, route="two")
        one = store.deploy("models:/linear/1", request, route="one", gateways="1")
        targets = [ours(OURS, two), ours(ONE_GATEWAY, one)]
        targets.append(theirs(stack.enter_context(mlflow_models_serve(folder, request))))
        try:
            if plan.venv is None:
                raise MissingError("--mlserver-venv was not given")
            python = mlserver_venv(plan.venv)
            targets.append(theirs(stack.enter_context(mlserver(python, folder, request))))
        except MissingError as missing:
            scene[MLSERVER] = f"not measured: {missing}"
            progress(f"MLServer is not measured: {missing}")
        scene["idle_cpu_of_ours"] = idle_cpu([two, one])
        found = measure(targets, [LINEAR_BODY], plan)
        two.end()
        one.end()
    for rival in (MLFLOW, MLSERVER):
        compare("linear", found, rival, report)
    no_errors("linear", found, report)
    report.scenes["linear"] = {**scene, "clients": found}


def mlp_scene(store: Store, plan: Plan, report: Report) -> None:
    """The torch model."""
    request = request_bytes(MLP_BODY)
    store.register("mlp", log_mlp)
    folder = store.folder / "mlp"
    save_mlp(folder)
    scene: dict[str, Any] = {}
    with ExitStack() as stack:
        deployed = store.deploy("models:/mlp/1", request)
        targets = [ours(OURS, deployed)]
        targets.append(theirs(stack.enter_context(mlflow_models_serve(folder, request))))
        try:
            if plan.venv is None or not has_module(plan.venv / "bin" / "python", "torch"):
                raise MissingError("its environment has no torch")
            python = mlserver_venv(plan.venv)
            targets.append(theirs(stack.enter_context(mlserver(python, folder, request))))
        except MissingError as missing:
            scene[MLSERVER] = f"not measured: {missing}"
        scene["idle_cpu_of_ours"] = idle_cpu([deployed])
        found = measure(targets, [MLP_BODY], plan)
        deployed.end()
    for rival in (MLFLOW, MLSERVER):
        compare("mlp", found, rival, report)
    no_errors("mlp", found, report)
    report.scenes["mlp"] = {**scene, "clients": found}


def features_scene(store: Store, plan: Plan, report: Report) -> None:
    """What a canary, metrics and recording cost, with the most clients.

    One deployment, so that both ways have the same gateways and the same neighbours; in each round
    a canary begins anew, and ends.
    """
    request = request_bytes(LINEAR_BODY)
    for _ in range(2):
        newest = store.register("features", log_linear)
    first, second = (f"models:/features/{version}" for version in (newest - 1, newest))
    deployed = store.deploy(first, request)
    clients = plan.clients[-1]
    rounds: dict[str, list[Any]] = {PLAIN: [], WITH_CANARY: [], FULL: []}
    scrapes = 0
    for turn in range(plan.rounds + 3):
        names = list(rounds)
        for name in names if turn % 2 else reversed(names):
            with ExitStack() as stack:
                if name != PLAIN:
                    analysis = RECORDING if name == FULL else CANARY["analysis"]
                    config = json.dumps({**CANARY, "analysis": analysis})
                    store.roll_out(second, deployed.record.route, config)
                    wait_for_canary(deployed)
                if name == FULL:
                    sizes = stack.enter_context(scraped(deployed.port))
                target = ours(name, deployed)
                rounds[name].append(once(target, [LINEAR_BODY], clients, plan, users=200))
                scrapes += len(sizes) if name == FULL else 0
                if name != PLAIN:
                    if deployed.record.canary is None:
                        raise SystemExit("the canary ended before it was measured")
                    end_canary(store, deployed)
        told = ", ".join(
            f"{name} {found[-1]['requests_per_s']:.0f}/s" for name, found in rounds.items()
        )
        progress(f"  {clients} clients, round {turn + 1} of {plan.rounds + 3}: {told}")
    measured = {name: summary(found) for name, found in rounds.items()}
    for name, beside in ((WITH_CANARY, PLAIN), (FULL, WITH_CANARY), (FULL, PLAIN)):
        measured[f"{name} over {beside}"] = {
            what: ratio(*([one[key] for one in rounds[which]] for which in (name, beside)))
            for what, key in (
                ("throughput", "requests_per_s"),
                ("cpu_of_a_request", "cpu_us"),
                ("cpu_of_gateways", "cpu_us_of_gateways"),
            )
        }
    all_of_it = measured[f"{FULL} over {PLAIN}"]
    named = f"features, {clients} clients"
    kept = all_of_it["throughput"]["ratio"]
    report.aim(f"{named}: throughput that is kept", KEPT_AIM, kept, at_least=True)
    report.aim(f"{named}: CPU of the router", ROUTER_AIM, all_of_it["cpu_of_gateways"]["ratio"])
    found = {str(clients): measured}
    no_errors("features", found, report)
    report.scenes["features"] = {"scrapes": scrapes, "clients": found}
    deployed.end()


def end_canary(store: Store, deployed: Deployed) -> None:
    """Abort the rollout, and wait until the canary's replica is gone."""
    store.abort(deployed.record.route, "measured")
    wait_until(lambda: deployed.record.canary is None, "the canary ends")
    wait_until(
        lambda: sum(one.role == "replica" for one in deployed.processes()) == 1,
        "the canary's replica ends",
    )


def wait_for_canary(deployed: Deployed) -> None:
    """Until it gets traffic."""

    def answered() -> bool:
        found = Running(
            {
                "port": deployed.port, "bodies": [LINEAR_BODY.decode()], "users": 200,
                "clients": 4, "seconds": 0.5, "count": ["x-chancery-variant: canary"],
            }
        ).result()  # fmt: skip
        return any(found["counted"].values())

    wait_until(answered, "the canary gets traffic")


@contextmanager
def scraped(port: int) -> Iterator[list[int]]:
    """Metrics are read every second; the sizes of what came."""
    sizes: list[int] = []
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(1.0):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                sizes.append(len(answer.read()))

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield sizes
    finally:
        ended.set()
        thread.join(15)


SCENES = {"linear": linear_scene, "mlp": mlp_scene, "features": features_scene}


def write_result(path: Path, head: dict[str, Any], report: Report) -> None:
    """Written after each scene, so that an interrupted run leaves what it measured."""
    head["load_average"]["after"] = load_average()
    result = {
        **head,
        "met": all(aim.met for aim in report.aims),
        "aims": [aim.to_dict() for aim in report.aims],
        "scenes": report.scenes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="Takes some 15 minutes; with --quick some four.",
    )
    parser.add_argument("--quick", action="store_true", help="few and short rounds; a first look")
    parser.add_argument("--rounds", type=int, help="of each server at each number of clients")
    parser.add_argument("--seconds", type=float, help="of each round")
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--scenes", default=",".join(SCENES))
    parser.add_argument(
        "--mlserver-venv", type=Path, help="environment of MLServer; made if it is missing"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    plan = Plan(
        options.rounds or (2 if options.quick else 7),
        options.seconds or (1.5 if options.quick else 5.0),
        clients=tuple(int(count) for count in options.clients.split(",")),
        venv=options.mlserver_venv and options.mlserver_venv.resolve(),
    )
    began, report = time.time(), Report()
    head: dict[str, Any] = {
        "benchmark": "serving",
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "quick": options.quick,
        "machine": describe_machine(),
        "load_average": {"before": load_average()},
        "cores_are_shared": "by servers and load generator alike",
        "rounds": plan.rounds,
        "seconds_a_round": plan.seconds,
    }
    wanted = options.scenes.split(",")
    with private_home() as home, cluster(home):
        store = Store(home)
        for name in wanted:
            progress(f"scene: {name}")
            SCENES[name](store, plan, report)
            head["seconds"] = round(time.time() - began)
            head["complete"] = name == wanted[-1]
            write_result(options.output, head, report)
    missed = [aim for aim in report.aims if not aim.met]
    progress(f"{len(report.aims) - len(missed)} of {len(report.aims)} aims met; {options.output}")
    for aim in missed:
        progress(f"  {aim}")


if __name__ == "__main__":
    main()
