"""The end of the demonstration: what the version in production sees changes, and somebody is told.

A monitor of its own watches the champion, as it would in production: replicas record what they were
asked and said, the monitor compares windows of that with the profile in the version's files.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo_narrator import (
    FOLDER,
    NAME,
    STORE,
    chancery,
    console,
    give_up,
    results,
    say,
    step,
    wait_until,
)
from demo_traffic import CHANGED, Traffic

__all__ = ["RECORDED", "watching"]

RECORDED = FOLDER / "recorded"
_CALM_WINDOWS = 3


def watching(address: str, key: Path, traffic: Traffic, version: int) -> None:
    """Calm windows, then a shift that is found.

    Args:
        address: The MLflow server.
        key: The monitor's key file.
        traffic: Goes on meanwhile.
        version: That answers, and has a drift profile.
    """
    from governance.drift_port import open_drift

    port = open_drift(STORE)

    def last() -> dict[str, Any]:
        watched = port.status(NAME)["watched"]
        return dict(watched[0]) if watched else {}

    def told() -> str:
        found = last()
        return f"window {found['window']}: {found['level']}" if found else "no window yet"

    step(f"A monitor compares what version {version} sees with the profile in its files")
    with monitor(address, key, version):
        wait_until(lambda: last().get("window", -1) >= _CALM_WINDOWS, "windows", told=told)
        if port.alerts(NAME, closed=True):
            chancery("drift", "alerts", NAME, "--closed", "--uri", STORE)
            give_up("there is an alert, and nothing has changed")
        say(f"{last()['window'] + 1} windows like the reference; no alert")

        step("INJECTED SHIFT: a clinic's new scanner measures rougher tumours, for every other one")
        traffic.changed = True
        seconds = wait_until(lambda: bool(port.alerts(NAME)), "an alert", told=told)
        wait_until(lambda: bool(port.alerts(NAME)[0].alert.slices), "where it is", told=told)
        chancery("drift", "alerts", NAME, "--uri", STORE)
        alert = port.alerts(NAME)[0].alert
        where, again = str(alert.slices[0]["text"]), str(alert.retrain["text"])
        if CHANGED not in where:
            give_up(f"the slice is {where!r}, and it was {CHANGED!r} that changed")
        results.add_row("drift", f"alert {seconds:.0f} s after the shift, for {alert.owner}")
        results.add_row("where", f"{where}: what was changed")
        results.add_row("retrain suggestion", again)
        chancery("drift", "acknowledge", alert.alert_id[:12], "--reason", "the scanner is known",
                 "--uri", STORE, quiet=True)  # fmt: skip
    say(f"in MLflow: experiment monitoring/{NAME}, drift.html among the run's artifacts")


@contextmanager
def monitor(address: str, key: Path, version: int) -> Iterator[None]:
    """``chancery drift monitor`` as a process of its own."""
    command = [
        str(Path(sys.executable).parent / "chancery"), "drift", "monitor",
        f"models:/{NAME}/{version}", "--deployment", NAME,
        "--blocks", str(RECORDED / NAME / str(version) / NAME),
        "--state", str(FOLDER / "monitor"), "--uri", address,
    ]  # fmt: skip
    shown = " ".join(["chancery", *command[1:]]).replace(f"{FOLDER.parent}/", "")
    console.print(f"  $ {shown} &", markup=False, style="dim")
    log = (FOLDER / "monitor.log").open("wb")
    environment = {**os.environ, "CHANCERY_MONITOR_KEY": f"file:{key}"}
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
