"""What the demonstration prints, and how it runs commands: each is shown before it runs.

Whatever ends otherwise than the story says ends the demonstration: ``give_up``.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Table

__all__ = [
    "FOLDER",
    "NAME",
    "ROOT",
    "STORE",
    "chancery",
    "console",
    "give_up",
    "results",
    "run",
    "say",
    "step",
    "wait_until",
]

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".demo"
STORE = f"governed+sqlite:///{FOLDER / 'mlflow.db'}"
NAME = "tumour"
console = Console(highlight=False, soft_wrap=True)
results = Table("step", "what happened", title="What happened", show_lines=False)


def step(title: str) -> None:
    console.print(f"\n[bold]{title}[/]")


def say(text: str) -> None:
    console.print(f"  → {text}", markup=False)


def give_up(what: str) -> NoReturn:
    sys.exit(f"the demonstration went otherwise than it should: {what}")


def chancery(*arguments: str, quiet: bool = False) -> str:
    return run([str(Path(sys.executable).parent / "chancery"), *arguments], quiet=quiet)


def run(command: list[str], *, quiet: bool = False) -> str:
    shown = " ".join([Path(command[0]).name, *command[1:]]).replace(f"{ROOT}/", "")
    console.print(f"  $ {shown}", markup=False, style="dim")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    if done.returncode != 0:
        give_up(f"{shown}\n{done.stdout}{done.stderr}")
    if not quiet:
        for line in done.stdout.splitlines():
            console.print(f"    {line}", markup=False)
    return done.stdout


def wait_until(
    done: Callable[[], bool], what: str, *, told: Callable[[], str] = str, limit_s: float = 180
) -> float:
    """Seconds until ``done``; every other second a line of how it goes."""
    began = shown = time.monotonic()
    while not done():
        now = time.monotonic()
        if now - began > limit_s:
            give_up(f"{what}: not within {limit_s:g} s")
        if now - shown >= 2:
            shown = now
            console.print(f"    {now - began:3.0f} s  {told() or what}", style="dim", markup=False)
        time.sleep(0.25)
    return time.monotonic() - began
