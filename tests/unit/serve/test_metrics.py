"""Prometheus reads what a gateway says: deployment, variant, version and state are in it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from serve.metrics import exposition
from serve.plan import About
from serve.records import Phase
from tests.unit.serve.router_world import World, plan, run, says

ABOUT = About("d" * 32, 'fr"aud\\', "prod", "r1", "canary", 1, 4)


def scrape(world: World) -> dict[str, Metric]:
    families = list(text_string_to_metric_families(exposition(world.router).decode()))
    assert len({family.name for family in families}) == len(families)
    return {family.name: family for family in families}


def test_every_sample_names_its_deployment() -> None:
    async def test(world: World) -> None:
        await world.start(plan(about=ABOUT))
        await world.ask()
        world.behaviours["c"] = says(b"boom", 500)
        await world.ask()
        found = scrape(world)
        assert {
            "chancery_requests", "chancery_request_duration_seconds", "chancery_in_flight",
            "chancery_batch_size", "chancery_weight_percent", "chancery_lanes", "chancery_waiting",
            "chancery_rollout_phase", "chancery_closed",
        } <= found.keys()  # fmt: skip
        for family in found.values():
            for sample in family.samples:
                assert sample.labels["gateway"] == "g"
                assert sample.labels["deployment"] == "d" * 32
                assert sample.labels["route"] == 'fr"aud\\'
        errors = {
            (sample.labels["variant"], sample.labels["version"]): sample.value
            for sample in found["chancery_requests"].samples
            if sample.labels["outcome"] == "raised"
        }
        assert errors == {("canary", "4"): 1, ("stable", "3"): 0}

    run(test)


def test_histograms_add_up() -> None:
    async def test(world: World) -> None:
        await world.start(plan(about=ABOUT))
        for _ in range(5):
            await world.ask()
        for name in ("chancery_request_duration_seconds", "chancery_batch_size"):
            family = scrape(world)[name]
            assert family.type == "histogram"
            rows = [s for s in family.samples if s.labels["variant"] == "canary"]
            buckets = [s.value for s in rows if s.name.endswith("_bucket")]
            assert buckets == sorted(buckets)
            (count,) = [s.value for s in rows if s.name.endswith("_count")]
            assert buckets[-1] == count
            assert count >= 1

    run(test)


@pytest.mark.parametrize("phase", list(Phase))
def test_exactly_one_phase_is_the_present_one(phase: Phase) -> None:
    async def test(world: World) -> None:
        await world.start(plan(about=replace(ABOUT, phase=phase.value)))
        found = scrape(world)
        samples = found["chancery_rollout_phase"].samples
        assert len(samples) == len(Phase)
        assert {s.labels["phase"] for s in samples if s.value == 1} == {phase.value}
        (step,) = found["chancery_rollout_step"].samples
        assert step.value == (2 if phase is Phase.CANARY else 0)
        assert step.labels["rollout"] == "r1"

    run(test)


def test_before_the_first_plan_and_without_a_rollout() -> None:
    async def test(world: World) -> None:
        assert scrape(world)["chancery_plan_revision"].samples[0].value == -1
        await world.start(plan())
        assert scrape(world)["chancery_rollout_phase"].samples == []
        world.router.offer(replace(plan(revision=2), closed="revoked"))
        assert scrape(world)["chancery_closed"].samples[0].value == 1

    run(test)
