"""The real Ray: gateways, lanes and replicas answer, survive and tell what happened.

One cluster for all tests; each leaves the fleet as it found it: canary at 0 %, in a good mood.
"""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest
import ray
from ray import serve

from governance.arms import stretched
from serve.agreement import Agreement
from serve.answer import JSON
from serve.cluster import Running
from serve.plan import ShadowPlan
from serve.ray_cluster import RayCluster, RayOptions
from serve.replica import DEPLOYMENT, ModelSpec, model_application, refusal_in
from serve.scoring import Identity, Scorer
from tests.integration.fleet import (
    ARMS,
    BODY,
    HEADERS,
    ROWS,
    Fleet,
    agreement,
    arms_of,
    experiment,
    resident_bytes,
    running_fleet,
    samples,
    shadowed,
    wait_for,
)
from tests.scenario import FEATURES, Scenario

pytestmark = pytest.mark.timeout(900)
CLIENTS = 8


@pytest.fixture(scope="module")
def cluster() -> Iterator[Fleet]:
    with running_fleet() as fleet:
        wait_for(lambda: sorted(fleet.lanes()) == [2, 2])
        yield fleet


@pytest.fixture
def fleet(cluster: Fleet) -> Iterator[Fleet]:
    yield cluster
    cluster.mood("good")
    cluster.follow(cluster.plan())


def test_it_answers_like_a_scorer(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    scorer = Scorer.load(fleet.stable_uri, Identity("fraud", "3", "alice"))
    split = {"columns": ["b", "a"], "data": [[2.0, 1.0], [1.5, 3.25]]}
    for kind, body in (
        ("application/json", BODY),
        ("application/json", json.dumps({"dataframe_split": split}).encode()),
        ("application/json", json.dumps({"dataframe_records": ROWS.to_dict("records")}).encode()),
        ("text/csv", b"a,b\n1.0,2.0\n3.0,4.0\n"),
        ("application/json", b"{nonsense"),
        ("application/json", b'{"inputs": {"a": [1.0]}}'),
        ("application/json", b'{"inputs": {"a": ["x"], "b": [2.0]}}'),
        ("text/html", b"<p>"),
    ):
        expected = scorer.answer(kind, body)
        status, found, headers = fleet.ask(body, {"content-type": kind})
        assert status == expected.status, body
        if status == 200:
            one, other = json.loads(found)["predictions"], json.loads(expected.body)["predictions"]
            assert all(map(math.isclose, one, other))
            assert len(one) == len(other)
        elif expected.content_type == JSON:
            assert json.loads(found)["error_code"] == json.loads(expected.body)["error_code"]
        else:
            assert found == expected.body
        assert headers["x-chancery-variant"] == "stable"
        assert (headers["x-chancery-version"], headers["x-chancery-signer"]) == ("3", "alice")
        assert headers["x-request-id"]


def test_the_controller_sees_what_ray_serve_tells(fleet: Fleet) -> None:
    """It reads details that ``serve.status()`` is made of, in their own form."""
    cluster, told = RayCluster(RayOptions()), serve.status().applications
    assert {"stable-3", "canary-4", "gateway"} <= set(told)
    for name, overview in told.items():
        running = sum(one.replica_states.get("RUNNING", 0) for one in overview.deployments.values())
        found = cluster.state(name)
        assert (found.running is Running.RUNNING) == (overview.status == "RUNNING")
        assert found.answering == running > 0
    assert cluster.state("nobody").running is Running.ABSENT


def test_weights_change_under_load_and_every_request_is_counted_once(fleet: Fleet) -> None:
    fleet.settled()
    before = fleet.deltas()
    with fleet.load(CLIENTS) as load:
        for share in (50.0, 100.0, 20.0, 0.0):
            fleet.follow(fleet.plan(share))
            time.sleep(0.5)
    assert load.lost == 0
    assert set(load.statuses) == {200}
    assert load.variants["canary"] > 0
    assert load.variants["stable"] > 0
    fleet.settled()
    after = fleet.deltas()
    for name in ("stable", "canary"):
        had = before[name].requests if name in before else 0
        assert after[name].requests - had == load.variants[name]
        assert after[name].charged == (before[name].charged if name in before else 0)


@pytest.mark.parametrize(
    ("mood", "blame"),
    [
        ("raise", "raised"),
        ("nested", "wrong_shape"),
        ("short", "wrong_shape"),
        ("text", "wrong_shape"),
    ],
)
def test_users_of_a_bad_canary_see_stables_answers(fleet: Fleet, mood: str, blame: str) -> None:
    expected = json.loads(fleet.ask()[1])
    fleet.follow(fleet.plan(100.0))
    fleet.mood(mood)

    def act() -> None:
        for _ in range(20):
            status, body, headers = fleet.ask()
            assert (status, headers["x-chancery-retried"]) == (200, "1")
            assert headers["x-chancery-version"] == "3"
            assert json.loads(body) == expected

    assert fleet.errors(act) == {blame: 20}


def test_a_request_that_stable_refuses_too_is_the_clients_fault(fleet: Fleet) -> None:
    fleet.follow(fleet.plan(100.0))

    def act() -> None:
        for _ in range(5):
            assert fleet.ask(b'{"inputs": {"a": [1.0]}}')[0] == 400

    assert fleet.errors(act) == {"client": 5}


def test_a_hanging_canary_is_answered_by_stable_and_replaced(fleet: Fleet) -> None:
    (before,) = fleet.pids("canary-4")
    fleet.follow(fleet.plan(50.0, timeout_s=0.4))

    def act() -> None:
        fleet.mood("hang")
        with fleet.load(CLIENTS) as load:
            time.sleep(2)
        fleet.mood("good")
        assert load.lost == 0
        assert set(load.statuses) == {200}
        assert load.retried > 0
        assert load.slowest_s < 10

    assert fleet.errors(act).keys() == {"timeout"}
    wait_for(lambda: fleet.pids("canary-4") not in ({before}, set()))

    def canary_answers() -> bool:
        return fleet.ask(headers={**HEADERS, "x-chancery-variant": "canary"})[2][
            "x-chancery-variant"
        ] == "canary"  # fmt: skip

    wait_for(canary_answers)


def test_the_controllers_death_changes_nothing_and_no_count_is_lost(fleet: Fleet) -> None:
    fleet.follow(fleet.plan(50.0))
    fleet.settled()
    ray.kill(fleet.controller)
    with fleet.load(CLIENTS) as load:
        time.sleep(1.5)
    assert load.lost == 0
    assert set(load.statuses) == {200}
    assert load.variants["canary"] > 0, "the last plan goes on"
    fleet.restart_controller(fleet.plan())
    wait_for(lambda: sum(d.requests for d in fleet.deltas().values()) >= load.statuses[200])
    fleet.settled()
    assert {n: d.requests for n, d in fleet.deltas().items()} == dict(load.variants)


def test_a_killed_model_replica_costs_nobody_an_answer(fleet: Fleet) -> None:
    victim, other = fleet.pids("stable-3")
    with fleet.load(CLIENTS) as load:
        load.await_answers(100)
        fleet.kill(victim)
        load.await_answers(100)
    assert load.lost == 0
    assert set(load.statuses) == {200}
    wait_for(lambda: len(fleet.pids("stable-3")) == 2)
    wait_for(lambda: all(lanes == 2 for lanes in fleet.lanes()))
    assert other in fleet.pids("stable-3")


def test_with_no_replica_left_clients_hear_so_at_once_until_there_is_one(fleet: Fleet) -> None:
    with fleet.load(CLIENTS) as load:
        time.sleep(0.3)
        for pid in fleet.pids("stable-3"):
            fleet.kill(pid)
        time.sleep(0.5)
        status, body, headers = fleet.ask()
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(body)["error_code"] == "LANE_LOST"
        wait_for(lambda: fleet.ask()[0] == 200)
    assert load.lost == 0
    assert set(load.statuses) == {200, 503}
    wait_for(lambda: all(lanes == 2 for lanes in fleet.lanes()))


def test_a_killed_gateway_takes_only_what_it_was_answering(fleet: Fleet) -> None:
    victim, _ = fleet.pids("gateway")
    with fleet.load(CLIENTS) as load:
        load.await_answers(100)
        fleet.kill(victim)
        load.await_answers(100)
    assert set(load.statuses) == {200}
    assert load.lost <= CLIENTS, "at most one request of each client was on its way"
    wait_for(lambda: len(fleet.pids("gateway")) == 2)
    fleet.follow(fleet.plan())


def test_slow_headers_are_cut_off_and_others_served(fleet: Fleet) -> None:
    def cut_off(connection: socket.socket) -> bool:
        try:
            return connection.recv(1 << 10) == b""
        except ConnectionError:
            return True

    begun = time.monotonic()
    slow = [socket.create_connection(("127.0.0.1", fleet.port), 60) for _ in range(50)]
    for connection in slow:
        with suppress(ConnectionError):  # it was cut off already
            connection.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\nx-")
    assert fleet.ask()[0] == 200
    for connection in slow:
        assert cut_off(connection)
        connection.close()
    assert time.monotonic() - begun < 60, "an idle connection is closed after 75 s"


def test_more_load_than_capacity_is_told_at_once(fleet: Fleet) -> None:
    fleet.follow(fleet.plan(100.0, timeout_s=30.0, retry_on_stable=False))
    fleet.mood("slow")  # 8 requests a 0.1 s: 64 may wait in all
    fleet.ask()
    before = {pid: resident_bytes(pid) for pid in fleet.pids("gateway")}
    with fleet.load(200) as load:
        time.sleep(3)
    assert load.lost == 0
    assert set(load.statuses) == {200, 503}
    assert load.statuses[503] > load.statuses[200]
    assert load.slowest_s < 20
    for pid, size in before.items():
        assert resident_bytes(pid) - size < 64 << 20


def test_replicas_without_a_socket_here_are_asked_through_ray(fleet: Fleet) -> None:
    spec = fleet.model("far-3", "3", fleet.stable_uri, sockets=str(fleet.folder / "elsewhere"))
    serve.run(model_application(spec), name="far-3", route_prefix=None)
    try:
        expected = json.loads(fleet.ask()[1])
        fleet.follow(fleet.plan(stable="far-3"))
        wait_for(lambda: fleet.metric("chancery_lanes", 'variant="stable"') == [1, 1])
        with fleet.load(CLIENTS) as load:
            time.sleep(1)
        assert set(load.statuses) == {200}
        assert json.loads(fleet.ask()[1]) == expected
        bad = fleet.ask(b'{"inputs": {"a": [1.0]}}')
        assert bad[0] == 400, "MLflow's own code answers there too"
        with fleet.load(CLIENTS) as load:
            fleet.follow(fleet.plan())
        assert load.lost == 0
        assert set(load.statuses) == {200}
    finally:
        serve.delete("far-3")


def test_only_what_is_verified_serves(fleet: Fleet, scenario: Scenario) -> None:
    version = scenario.train()
    scenario.to_prod(version)
    environment = {"MLFLOW_TRACKING_URI": scenario.uri, "MLFLOW_REGISTRY_URI": scenario.uri}

    def spec(application: str) -> ModelSpec:
        return ModelSpec(
            "fraud", str(version), application, fleet.sockets, "alice",
            environment=environment, cpus=0.5,
        )  # fmt: skip

    serve.run(model_application(spec("good")), name="good", route_prefix=None)
    fleet.follow(fleet.plan(stable="good"))
    body = json.dumps({"inputs": FEATURES[:1].tolist()}).encode()
    wait_for(lambda: fleet.ask(body)[0] == 200)
    assert fleet.ask(body)[2]["x-chancery-version"] == str(version)
    fleet.follow(fleet.plan())
    serve.delete("good")

    (scenario.model_folder(version) / "conda.yaml").write_text("name: other\n")
    with pytest.raises(RuntimeError):
        serve.run(model_application(spec("tampered")), name="tampered", route_prefix=None)
    status = serve.status().applications["tampered"].deployments[DEPLOYMENT]
    assert refusal_in(status.message) == "TAMPERED"
    serve.delete("tampered")


def test_a_scrape_of_any_gateway_counts_the_requests_of_all(fleet: Fleet) -> None:
    def counted(times: int) -> list[float]:
        """By so many scrapes that both gateways are in."""
        found: list[float] = []

        def enough() -> bool:
            scraped = fleet.scrape()
            if len(samples(scraped, "chancery_held_bytes")) == 2:
                labels = 'variant="stable"', 'outcome="ok"'
                found.append(sum(samples(scraped, "chancery_requests_total", *labels)))
            return len(found) == times

        wait_for(enough)
        return found

    (before,) = counted(1)
    with fleet.load(CLIENTS) as load:
        time.sleep(0.5)
    assert load.statuses[200] > 0
    assert {now - before for now in counted(8)} == {float(load.statuses[200])}


def test_the_access_log_names_version_and_reason(fleet: Fleet) -> None:
    fleet.ask(headers={**HEADERS, "x-request-id": "find-me", "x-chancery-variant": "canary"})
    folder = fleet.folder / "log"

    def lines() -> list[dict[str, object]]:
        found = (json.loads(x) for f in folder.iterdir() for x in f.read_text().splitlines())
        return [line for line in found if line.get("requestId") == "find-me"]

    wait_for(lines)
    (line,) = lines()
    assert (line["variant"], line["version"], line["reason"]) == ("canary", "4", "override")


# -- experiments and shadows


def test_three_arms_share_the_clients_and_shares_change_live(fleet: Fleet) -> None:
    bold = fleet.model("bold-5", "5", fleet.stable_uri)
    serve.run(model_application(bold), name="bold-5", route_prefix=None)
    stable = fleet.pids("stable-3")
    try:
        before = stretched(ARMS)
        fleet.follow(experiment(fleet, before))
        first = arms_of(fleet, 1500)
        for name, weight in ARMS.items():
            share = float(weight) / 100
            spread = 4.5 * math.sqrt(1500 * share * (1 - share))
            found = sum(arm == name for arm in first.values())
            assert abs(found - 1500 * share) < spread, (name, found)
        assert arms_of(fleet, 300) == {f"u{n}": first[f"u{n}"] for n in range(300)}
        with fleet.load(CLIENTS, keyed=True) as load:
            for weights in (
                {"control": "50", "fresh": "45", "bold": "5"},
                {"control": "20", "fresh": "20", "bold": "60"},
                {"control": "50", "fresh": "40", "bold": "10"},
            ):
                before = stretched(weights, before)
                fleet.follow(experiment(fleet, before))
                time.sleep(0.3)
        assert load.lost == 0
        assert set(load.statuses) == {200}
        assert set(load.variants) == set(ARMS)
        assert fleet.pids("stable-3") == stable, "nothing was restarted"
        grown = stretched({"control": "50", "fresh": "45", "bold": "5"}, before)
        had = arms_of(fleet, 600)
        fleet.follow(experiment(fleet, grown))
        has = arms_of(fleet, 600)
        moved = {(had[key], has[key]) for key in had if had[key] != has[key]}
        assert moved == {("bold", "fresh")}, "growing an arm moves nobody else"
        fleet.mood("raise")
        with fleet.load(CLIENTS, keyed=True) as load:
            time.sleep(1)
        assert set(load.statuses) == {200}
        assert load.retried > 0, "stable answers for the arm"
    finally:
        fleet.mood("good")
        fleet.follow(fleet.plan())
        serve.delete("bold-5")


def test_stable_answers_the_clients_of_an_arm_that_nobody_serves(fleet: Fleet) -> None:
    plan = experiment(fleet, stretched(ARMS), bold="nobody-5")
    away = replace(plan, weights=(("control", 50.0), ("fresh", 30.0), ("stable", 20.0)))
    fleet.follow(away)
    found = arms_of(fleet, 300)
    assert set(found.values()) == {"control", "fresh", "stable"}
    with fleet.load(CLIENTS, keyed=True) as load:  # were it open all the same, stable answers too
        fleet.follow(replace(plan, revision=plan.revision + 1))
        fleet.revision += 1
        time.sleep(0.5)
    assert load.lost == 0
    assert set(load.statuses) == {200}


def test_a_shadow_is_compared_and_a_part_is_copied(fleet: Fleet) -> None:
    whole = shadowed(fleet, ShadowPlan("shadow", "whole", max_in_flight=64))
    fleet.follow(whole)
    wait_for(lambda: fleet.metric("chancery_lanes", 'variant="shadow"') == [1, 1])
    for _ in range(50):
        assert fleet.ask()[0] == 200
    assert agreement(fleet, whole) == Agreement(same=50)
    fleet.mood("short")
    for _ in range(5):
        assert fleet.ask()[2]["x-chancery-variant"] == "stable"
    assert agreement(fleet, whole) == Agreement(same=50, different=5)
    fleet.mood("good")
    part = shadowed(fleet, ShadowPlan("shadow", "part", percent=10.0, max_in_flight=64))
    fleet.follow(part)
    with fleet.load(CLIENTS) as load:
        time.sleep(1)
    asked, found = load.statuses[200], agreement(fleet, part)
    copied = found.same + found.uncompared + found.dropped
    assert abs(copied - asked / 10) < 4.5 * math.sqrt(asked * 0.09)
    assert found.different == 0


@pytest.mark.parametrize("mood", ["hang", "raise", "flood"])
def test_a_shadow_neither_delays_nor_changes_an_answer(fleet: Fleet, mood: str) -> None:
    """Not even one that hangs, crashes or answers with 40 MB; memory stays where it was."""
    expected = json.loads(fleet.ask()[1])
    plan = shadowed(fleet, timeout_s=0.5)
    fleet.follow(plan)
    wait_for(lambda: agreement(fleet, plan).same or fleet.ask()[0] != 200)
    before = {pid: resident_bytes(pid) for pid in fleet.pids("gateway")}
    fleet.mood(mood)
    with fleet.load(CLIENTS) as load:
        time.sleep(1)
        for pid in fleet.pids("canary-4"):
            fleet.kill(pid)
        time.sleep(1)
        assert json.loads(fleet.ask()[1]) == expected
    fleet.mood("good")
    assert load.lost == 0
    assert set(load.statuses) == {200}
    assert set(load.variants) == {"stable"}
    assert load.retried == 0
    assert load.slowest_s < 20, "a hanging shadow would take 600 s"
    for pid, size in before.items():
        assert resident_bytes(pid) - size < 64 << 20
    found = agreement(fleet, plan)
    assert found.dropped + found.uncompared > 0
    with fleet.connection() as client:
        client.request("GET", "/metrics")
        text = client.getresponse().read().decode()
    assert "chancery_shadow_dropped_total{" in text
    wait_for(lambda: len(fleet.pids("canary-4")) == 1)


def test_a_sampled_request_is_traced_through_gateway_and_replica(fleet: Fleet) -> None:
    trace, above = f"{0xFADE:032x}", f"{0xCAFE:016x}"
    headers = {**HEADERS, "x-request-id": "r-17"}
    status, _, answer = fleet.ask(headers={**headers, "traceparent": f"00-{trace}-{above}-01"})
    assert status == 200
    wait_for(lambda: len(fleet.collector.of(trace)) == 3)
    spans = fleet.collector.of(trace)
    assert {name: span.service for name, span in spans.items()} == {
        "gateway": "chancery-gateway",
        "ask stable": "chancery-gateway",
        "predict": "chancery-replica",
    }
    gateway, ask, predict = spans["gateway"], spans["ask stable"], spans["predict"]
    assert (gateway.above, ask.above, predict.above) == (above, gateway.id, ask.id)
    assert answer["traceparent"] == f"00-{trace}-{gateway.id}-01"
    assert gateway.attributes["chancery.request_id"] == "r-17"
    assert gateway.attributes["chancery.signer"] == "alice"
    assert predict.attributes["chancery.pid"] in fleet.pids("stable-3")
    assert {span.trace for span in fleet.collector.spans} == {trace}, "others are not traced"


def test_gateways_that_are_told_to_end_finish_what_they_have(cluster: Fleet) -> None:
    """The last test: afterwards nobody listens."""
    with cluster.load(CLIENTS) as load:
        time.sleep(0.3)
        serve.delete("gateway")
    assert set(load.statuses) == {200}
    assert load.lost > 0
    wait_for(lambda: not cluster.pids("gateway"))  # Serve does not wait for the process's end
