"""Four years of a real model on census data: quiet for a year, then the questionnaire changes.

A classifier was trained to tell from the American Community Survey (Massachusetts, 2015) who is
employed, and scored everybody in the years after. Its profile is made of 2015; windows of 1,000
people from 2016 on are compared with it. In 2016 nothing should alert. In 2017 the answers change.

Data and scores come in the wheel of ``nannyml`` (Apache-2.0), which is downloaded from the package
index into ``build/census`` and read as the zip file that it is; the package is not installed.

    python examples/census.py --html census.html
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]
from rich.console import Console
from rich.progress import track
from rich.table import Table

from drift.checking import Asked, Check
from drift.fairness import FairnessBounds
from drift.history import History
from drift.model_profile import VersionProfile
from drift.page import page, summary
from drift.report import Subject, WindowReport
from drift.training import Fitted, fit_with_reference
from drift.verdict import Level

WHEEL = "nannyml==0.13.1"
DIGEST = "cf5f4a33489834ae6773cb1baa33a0f98c0a3ee6ed9b43049478b25ce22fe869"
"""SHA-256 of the wheel."""
BUILD = Path(__file__).resolve().parent.parent / "build" / "census"
INSIDE = "nannyml/datasets/data/employment_MA_{}.pq"
WINDOW = 1000
OUTPUTS = ["prediction", "predicted_probability"]
console = Console(highlight=False, soft_wrap=True)


def rows(folder: Path = BUILD) -> pd.DataFrame:
    """Everybody, in the order of years: answers, ``employed``, ``year`` and the model's outputs."""
    folder.mkdir(parents=True, exist_ok=True)
    wheels = sorted(folder.glob("nannyml-*.whl"))
    if not wheels:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        if subprocess.run([*command, str(folder), WHEEL], check=False).returncode:
            sys.exit(f"{WHEEL}, which carries the data, cannot be downloaded")
        wheels = sorted(folder.glob("nannyml-*.whl"))
    if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != DIGEST:
        sys.exit(f"{wheels[0]} is not the wheel that this was written for; remove it to try again")
    with zipfile.ZipFile(wheels[0]) as wheel:
        before, after, labels = (
            pd.read_parquet(io.BytesIO(wheel.read(INSIDE.format(part))))
            for part in ("reference", "analysis", "analysis_target")
        )
    found = pd.concat([before, after.merge(labels, on="id")], ignore_index=True)
    texts = found.select_dtypes("category").columns
    found = found.astype(dict.fromkeys(texts, "object"))
    return found.sort_values("year", kind="stable").drop(columns="id").reset_index(drop=True)


def fitted_on(people: pd.DataFrame, year: int = 2015) -> Fitted:
    """The profile of a year, and the sample that detectors compare with."""
    reference = people[people["year"] == year]
    return fit_with_reference(
        reference.drop(columns=[*OUTPUTS, "employed", "year"]),
        reference[OUTPUTS],
        model="employment",
        window=WINDOW,
        labels=reference["employed"],
        prediction="prediction",
        probabilities=["predicted_probability"],
        fairness=[FairnessBounds("SEX", selection=0.8)],
    )


def watched(
    people: pd.DataFrame,
    fitted: Fitted,
    year: int,
    *,
    first_index: int = 0,
    most: int | None = None,
) -> Iterator[WindowReport]:
    """Reports of a year's windows, of the first ``most`` or all."""
    subject = Subject("employment", 1, "", "", fitted.profile.digest)
    version = VersionProfile(subject, fitted.profile, fitted.reference)
    chosen = people[people["year"] == year].drop(columns="year")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{year}.parquet"
        (chosen if most is None else chosen[: most * WINDOW]).to_parquet(path)
        yield from Check(version).reports(path, Asked(label="employed", first_index=first_index))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--html", type=Path, help="write the page of the first alert here")
    options = parser.parse_args()
    people = rows()
    fitted = fitted_on(people)
    count = sum(people["year"] == 2015)
    console.print(f"profile of 2015: {count:,} people, {len(fitted.profile.features)} answers")
    found: dict[int, list[WindowReport]] = {}
    history = History()
    for year in (2016, 2017, 2018):
        reports = watched(people, fitted, year, first_index=sum(map(len, found.values())))
        found[year] = list(track(reports, f"{year}", console=console, transient=True))
        for report in found[year]:
            history.add(report, fitted.profile)
    show(found)
    alerts = [one for reports in found.values() for one in reports if _is(one, Level.ALERT)]
    if not alerts:
        sys.exit("nothing alerted, and something did change")
    for question, sentences in summary(alerts[0], fitted.profile, history):
        for place, sentence in enumerate(sentences):
            console.print(f"{question if not place else '':<11} {sentence}", markup=False)
    if options.html is not None:
        options.html.write_bytes(page(alerts[0], fitted.profile, history))
        console.print(f"written: {options.html}", markup=False)
    early = [one for one in found[2016] if _is(one, Level.ALERT)]
    if early:
        sys.exit(f"{len(early)} windows of 2016 alerted")


def show(found: dict[int, list[WindowReport]]) -> None:
    table = Table("year", "windows", "ok", "warn", "alert", "largest PSI", "accuracy", "estimated")
    for year, reports in found.items():
        judged = [one for one in reports if one.verdict.judged]
        levels = Counter(one.verdict.level for one in judged)
        true = _mean([one.performance.accuracy for one in judged])
        estimated = _mean([one.performance.estimated_accuracy for one in judged])
        table.add_row(
            str(year), str(len(judged)), *(str(levels[level]) for level in Level),
            f"{max(one.verdict.psi for one in judged):.3f}", true, estimated,
        )  # fmt: skip
    console.print(table)


def _is(report: WindowReport, level: Level) -> bool:
    return report.verdict.judged and report.verdict.level is level


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else ""


if __name__ == "__main__":
    main()
