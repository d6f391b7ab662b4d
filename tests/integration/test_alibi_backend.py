"""Alibi Detect itself, in its process. Fails, and does not skip, where it is not installed.

``ALIBI_PYTHON`` names a Python that has alibi-detect and torch; without it, this one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from drift.alibi_backend import ALIBI_DETECTORS, AlibiDetector
from drift.alibi_process import INSTALL_HINT, AlibiLimits, AlibiProcess
from drift.detector import Backend, Finding, Verdict
from drift.examine import examine
from drift.folders import refuse_pickles
from drift.native import ChiSquare, KolmogorovSmirnov
from drift.sample import Sample
from governance.errors import ConfigurationError, RefusedError
from tests.unit.drift.monitor_world import World, block_of, reference_sample
from tests.unit.drift.reference import small_profile

PYTHON = os.environ.get("ALIBI_PYTHON", sys.executable)


@pytest.fixture(scope="module")
def process() -> Iterator[AlibiProcess]:
    with AlibiProcess(AlibiLimits(import_s=240, call_s=240), PYTHON) as process:
        process.start()
        assert process.version.startswith("0.13.")
        yield process


def detector(name: str, process: AlibiProcess) -> AlibiDetector:
    return AlibiDetector(
        name, process=process, keep=True, expected_run=400, bootstraps=1_000, online_window=15
    )


def samples(shift: float) -> tuple[Sample, Sample]:
    rng = np.random.default_rng(1)
    found = []
    for move, weights in ((0.0, [0.5, 0.5]), (shift, [0.5 + shift / 4, 0.5 - shift / 4])):
        columns = {f"x{i}": rng.normal(move, 1, 150) for i in range(3)}
        found.append(Sample.of_columns({**columns, "c": rng.choice(["a", "b"], 150, p=weights)}))
    return found[0], found[1]


def ask(one: AlibiDetector, reference: Sample, window: Sample) -> Finding:
    return examine(one, reference, window, np.random.default_rng(2), limit_s=280)


@pytest.mark.parametrize("name", ALIBI_DETECTORS)
def test_every_detector_finds_a_shift(process: AlibiProcess, name: str) -> None:
    found = ask(detector(name, process), *samples(1.5))
    assert (found.verdict, found.trouble) == (Verdict.DRIFT, "")


@pytest.mark.parametrize("name", sorted(ALIBI_DETECTORS.keys() - {"mmd-online", "lsdd-online"}))
def test_without_a_shift_there_is_none(process: AlibiProcess, name: str) -> None:
    found = ask(detector(name, process), *samples(0.0))
    assert (found.verdict, found.trouble) == (Verdict.NO_DRIFT, "")


def test_ks_is_ours(process: AlibiProcess) -> None:
    """Alibi Detect keeps distances as 32-bit numbers: ours, cut to those, are the same."""
    reference, window = samples(0.3)
    theirs = ask(detector("ks", process), reference, window)
    ours = examine(KolmogorovSmirnov(), reference, window, np.random.default_rng(2))
    pairs = {column.column: column for column in ours.columns}
    assert len(theirs.columns) == 3
    for column in theirs.columns:
        assert abs(np.float32(pairs[column.column].statistic) - column.statistic) <= 1e-9
        assert column.p_value == pytest.approx(pairs[column.column].p_value, abs=1e-6)


def test_chi_square_is_ours(process: AlibiProcess) -> None:
    rng = np.random.default_rng(0)
    reference, window = (
        Sample.of_columns({"c": rng.choice(["a", "b", "d"], n)}) for n in (150, 130)
    )
    theirs = ask(detector("chi2", process), reference, window)
    ours = examine(ChiSquare(), reference, window, rng)
    assert theirs.statistic == pytest.approx(ours.statistic, rel=1e-5)


@pytest.mark.parametrize("name", ["ks", "tabular", "mmd", "lsdd", "classifier"])
def test_one_missing_value_does_not_blind(process: AlibiProcess, name: str) -> None:
    reference, window = samples(1.5)
    window.numbers[0] = np.nan
    assert ask(detector(name, process), reference, window).verdict is Verdict.DRIFT


def test_a_column_that_went_missing_is_drift(process: AlibiProcess) -> None:
    reference, window = samples(0.0)
    window.numbers[:, 1] = np.nan
    found = ask(detector("ks", process), reference, window)
    assert found.verdict is Verdict.DRIFT
    assert (found.columns[0].column, found.columns[0].test) == ("x1", "missing")


def test_a_process_that_is_killed_is_an_alarm_and_the_next_call_has_another() -> None:
    with AlibiProcess(AlibiLimits(import_s=240), PYTHON) as process:
        process.start()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        found = ask(detector("ks", process), *samples(0.0))
        assert found.verdict is Verdict.TROUBLE
        assert "ended" in found.trouble
        assert ask(detector("ks", process), *samples(0.0)).verdict is Verdict.NO_DRIFT


def test_a_call_that_hangs_is_killed_and_an_alarm() -> None:
    with AlibiProcess(AlibiLimits(import_s=240, call_s=0.5), PYTHON) as process:
        process.start()
        pid = process.pid
        assert pid is not None
        stopped = threading.Timer(0.0, os.kill, (pid, signal.SIGSTOP))
        stopped.start()
        stopped.join()
        began = time.monotonic()
        found = ask(detector("ks", process), *samples(0.0))
        assert found.verdict is Verdict.TROUBLE
        assert "longer than 0.5 s and was killed" in found.trouble
        assert time.monotonic() - began < 60
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_no_secret_reaches_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_PASSWORD", "CHANCERY_KEY", "AWS_SECRET_ACCESS_KEY", "MY_TOKEN"):
        monkeypatch.setenv(name, "hush-hush")
    with AlibiProcess(AlibiLimits(import_s=240), PYTHON) as process:
        process.start()
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"hush-hush" not in environment
        assert b"OMP_NUM_THREADS=1" in environment


def test_where_it_is_not_installed_the_hint_is_given(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    bare = tmp_path / "bare" / "bin" / "python"
    site = next((tmp_path / "bare" / "lib").glob("*/site-packages"))
    (site / "ours.pth").write_text(str(Path(np.__file__).resolve().parents[1]))
    # numpy's folder may hold Alibi Detect too: hide it.
    (site / "sitecustomize.py").write_text("import sys; sys.modules['alibi_detect'] = None\n")
    with pytest.raises(ConfigurationError) as caught, AlibiProcess(interpreter=str(bare)) as one:
        one.start()
    assert INSTALL_HINT in caught.value.remedy


def test_a_poisoned_detector_is_refused_where_alibi_would_run_it(tmp_path: Path) -> None:
    folder, mark = tmp_path / "detector", tmp_path / "ran"
    make = (
        "import sys, os, dill, numpy as np\n"
        "from alibi_detect.cd import KSDrift\n"
        "from alibi_detect.saving import save_detector\n"
        "folder, mark = sys.argv[1:]\n"
        "save_detector(KSDrift(np.zeros((30, 2)), preprocess_fn=lambda x: x), folder)\n"
        "class Poison:\n"
        "    def __reduce__(self):\n"
        "        return os.mkdir, (mark,)\n"
        "(found,) = [os.path.join(p, f) for p, _, fs in os.walk(folder) for f in fs\n"
        "            if f.endswith('.dill')]\n"
        "open(found, 'wb').write(dill.dumps(Poison()))\n"
    )
    load = (
        "import sys\nfrom alibi_detect.saving import load_detector\n"
        "load_detector(sys.argv[1], enable_unsafe_loading=False)\n"
    )
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.executable != PYTHON:
        environ.pop("PYTHONPATH", None)
    subprocess.run([PYTHON, "-c", make, str(folder), str(mark)], env=environ, check=True)
    with pytest.raises(RefusedError, match=r"\.dill"):
        refuse_pickles(folder)
    assert not mark.exists()
    subprocess.run([PYTHON, "-c", load, str(folder)], env=environ, check=False)
    assert mark.exists(), "alibi-detect no longer runs dill here: the rule may be lifted"


def test_a_monitors_alarm_is_confirmed_by_alibi_detect(
    process: AlibiProcess, tmp_path: Path
) -> None:
    world = World(tmp_path, small_profile(20_000, 500, backend="alibi"))
    for number in range(2):
        world.blocks.write(block_of(number, shift=3.0))
    monitor = world.monitor(
        reference=reference_sample(world.profile), alibi=process, check_limit_s=280
    )
    world.run(monitor)
    (report,) = world.notes.reports
    assert [finding.detector for finding in report.findings] == ["tabular", "mmd", "classifier"]
    assert {finding.backend for finding in report.findings} == {Backend.ALIBI}
    assert {finding.verdict for finding in report.findings} == {Verdict.DRIFT}
    assert "amount" in str(report.slices[0].predicate)
