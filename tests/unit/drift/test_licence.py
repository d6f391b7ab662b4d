"""Alibi Detect's licence: who gets which backend, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drift.alibi_process import AlibiError, AlibiProcess
from drift.catalogue import build
from drift.detector import Backend
from drift.examine import examine
from drift.licence import ALIBI_LICENCE, choose
from drift.sample import Sample
from governance.errors import ConfigurationError
from tests.unit.drift.monitor_world import World, block_of, reference_sample
from tests.unit.drift.reference import small_profile

PRODUCTION = {"CHANCERY_MODE": "production"}
ACKNOWLEDGED = {**PRODUCTION, ALIBI_LICENCE: "acknowledged"}


@pytest.mark.parametrize(
    ("wanted", "environ", "backend", "told"),
    [
        ("native", {}, Backend.NATIVE, False),
        ("native", PRODUCTION, Backend.NATIVE, False),
        ("alibi", {}, Backend.ALIBI, False),
        ("alibi", PRODUCTION, Backend.NATIVE, True),
        ("alibi", ACKNOWLEDGED, Backend.ALIBI, False),
    ],
)
def test_who_runs(wanted: str, environ: dict[str, str], backend: Backend, told: bool) -> None:
    choice = choose(wanted, environ)
    assert choice.backend is backend
    assert (ALIBI_LICENCE in choice.note) is told


@pytest.mark.parametrize("said", ["yes", "1", "Acknowledged"])
def test_a_half_said_acknowledgement_is_an_error(said: str) -> None:
    with pytest.raises(ConfigurationError, match=ALIBI_LICENCE):
        choose("alibi", {**PRODUCTION, ALIBI_LICENCE: said})


def test_there_are_two_backends() -> None:
    with pytest.raises(ConfigurationError, match="no drift backend 'evidently'"):
        choose("evidently", {})


@pytest.mark.parametrize("name", ["ks", "mmd", "lsdd", "mmd-online"])
def test_in_production_findings_say_that_native_stood_in(name: str) -> None:
    rng = np.random.default_rng(0)
    ours, theirs = (Sample.of_matrix(rng.normal(size=(60, 2))) for _ in range(2))
    found = examine(build(name, "alibi", environ=PRODUCTION), ours, theirs, rng)
    assert found.backend is Backend.NATIVE
    assert found.notes[-1].startswith("native instead of alibi")
    assert (f"stands in for {name}" in found.notes[-1]) is (name not in ("ks", "mmd"))


def test_what_is_asked_for_must_be_there() -> None:
    with pytest.raises(ConfigurationError, match="no drift detector 'psi'"):
        build("psi")
    with pytest.raises(ConfigurationError, match="native backend has no detector 'lsdd'"):
        build("lsdd")
    assert build("lsdd", "alibi", environ={}).backend is Backend.ALIBI
    assert build("default", "alibi", environ={}).backend is Backend.NATIVE


def test_used_directly_it_does_not_start_in_production_either() -> None:
    process = AlibiProcess(environ={"CHANCERY_MODE": "production"}, interpreter="/no/such/python")
    with pytest.raises(ConfigurationError, match="does not start in production") as refused:
        process.start()
    assert f"{ALIBI_LICENCE}=acknowledged" in refused.value.remedy
    holds = {"CHANCERY_MODE": "production", ALIBI_LICENCE: "acknowledged"}
    with pytest.raises(AlibiError, match="FileNotFoundError"):  # so far it comes with a licence
        AlibiProcess(environ=holds, interpreter="/no/such/python").start()


def test_a_monitor_in_production_says_in_its_reports_that_native_stood_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHANCERY_MODE", "production")
    monkeypatch.delenv(ALIBI_LICENCE, raising=False)
    world = World(tmp_path, small_profile(20_000, 500, backend="alibi"))
    for number in range(2):
        world.blocks.write(block_of(number, shift=3.0))
    monitor = world.monitor(reference=reference_sample(world.profile))
    world.run(monitor)
    (report,) = world.notes.reports
    assert [finding.detector for finding in report.findings] == ["tabular", "mmd", "classifier"]
    assert {finding.backend for finding in report.findings} == {Backend.NATIVE}
    assert all("native instead of alibi" in finding.notes[-1] for finding in report.findings)
    assert "native instead of alibi" in monitor.status.notes[0]
    assert b"native instead of alibi" in report.to_json()
