"""A file of scored rows against a profile: verdicts, pictures, and every kind of bad input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from drift.checking import Asked, Check
from drift.data_files import digest_of, windows_of
from drift.detector import Verdict
from drift.history import History, psi_thresholds, score
from drift.model_profile import VersionProfile
from drift.page import headline, page, summary
from drift.plot import before_after, heat_map, over_time, slices
from drift.predicate import Condition, Predicate
from drift.profile import DriftProfile
from drift.report import Subject, WindowReport
from drift.rules import Rules
from drift.training import fit_with_reference
from drift.verdict import Judge, Level
from drift.window import count_rows
from governance.errors import ConfigurationError, MalformedRequestError
from tests.unit.drift.governed import (
    WINDOW,
    fitted_model,
    profile_arguments,
    reference,
    rows,
    scored,
)

NOW = 1_772_000_000_000


@dataclass(frozen=True)
class World:
    model: Any
    version: VersionProfile

    @property
    def profile(self) -> DriftProfile:
        return self.version.profile

    def live(self, size: int = 2 * WINDOW, seed: int = 11, **options: Any) -> pd.DataFrame:
        return scored(rows(size, seed, **options), self.model)

    def check(self, path: Path, **asked: Any) -> list[WindowReport]:
        asked = {"label": "bad", **asked}
        return list(Check(self.version, clock=lambda: NOW).reports(path, Asked(**asked)))


@pytest.fixture(scope="module")
def world() -> World:
    model = fitted_model()
    fitted = fit_with_reference(**profile_arguments(reference(model)))
    subject = Subject("fraud", 3, "m-1", "", fitted.profile.digest, "ann")
    return World(model, VersionProfile(subject, fitted.profile, fitted.reference))


@pytest.fixture(scope="module")
def drifted(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[WindowReport]:
    """Reports of five windows like the reference, and five of older people in the west."""
    frame = pd.concat([world.live(5 * WINDOW), world.live(5 * WINDOW, 12, older=25)])
    frame["at"] = pd.date_range("2026-03-01", periods=len(frame), freq="5min")
    path = tmp_path_factory.mktemp("drifted") / "rows.parquet"
    frame.to_parquet(path)
    return world.check(path, time="at")


def _alert(reports: list[WindowReport]) -> WindowReport:
    return next(one for one in reports if one.verdict.level is Level.ALERT)


def test_a_shift_is_found_when_and_where_it_is(drifted: list[WindowReport]) -> None:
    levels = [one.verdict.level for one in drifted]
    assert levels[:5] == [Level.OK] * 5
    assert Level.ALERT in levels[5:7]
    alert = _alert(drifted)
    assert alert.verdict.worst[0].name in ("age", "score")
    assert "'west'" in str(alert.slices[0].predicate)
    assert "age >" in str(alert.slices[0].predicate)
    assert [one.verdict for one in alert.findings] == [Verdict.DRIFT]
    assert not drifted[0].findings
    assert not drifted[0].slices
    assert alert.subject.profile == alert.counts.profile
    assert alert.performance.labelled == WINDOW
    assert alert.performance.accuracy is not None
    assert alert.performance.estimated_accuracy is not None
    assert drifted[0].verdict.first_ms == 1_772_323_200_000


def test_a_score_of_one_is_an_alert(world: World, drifted: list[WindowReport]) -> None:
    for report in drifted:
        reached = score(report.verdict, world.profile.rules) >= 1
        assert reached == (report.verdict.level is Level.ALERT)
    assert list(psi_thresholds(world.profile)) == list(
        Judge(world.profile)._psi_thresholds()  # the same, without its state
    )
    alone = Rules(alert_needs="psi")
    verdict = _alert(drifted).verdict
    assert score(verdict, alone) == pytest.approx(verdict.psi / verdict.psi_threshold)


# -- pictures and page


def _history(world: World, reports: list[WindowReport]) -> History:
    history = History()
    for report in reports:
        history.add(report, world.profile)
    return history


def test_a_history_goes_there_and_back_and_is_bounded(
    world: World, drifted: list[WindowReport]
) -> None:
    history = _history(world, drifted)
    assert History.from_json(history.to_json()).points == history.points
    history.add(drifted[-1], world.profile)
    assert len(history.points) == len(drifted)
    many = History(tuple(history.points[:1] * 499))
    many.add(drifted[5], world.profile)
    many.add(drifted[6], world.profile)
    assert len(many.points) == 500
    with pytest.raises(MalformedRequestError, match="history of drift windows"):
        History.from_json(b"{}")


def test_the_page_tells_a_stranger_what_they_ask_first(
    world: World, drifted: list[WindowReport]
) -> None:
    alert = _alert(drifted)
    text = page(alert, world.profile, _history(world, drifted)).decode()
    told = dict(summary(alert, world.profile, _history(world, drifted)))
    assert list(told) == ["What", "When", "How bad", "Where", "What to do"]
    assert "'age'" in " ".join(told["What"])
    assert "2026-03-0" in told["When"][0]
    assert "alert at 1000" in told["How bad"][0]
    assert "west" in told["Where"][0]
    assert "train again" in " ".join(told["What to do"])
    assert headline(alert) in text.replace("&#x27;", "'")
    assert text.count("<svg") == 4
    for part in ("eSR", "PSI", alert.digest, world.profile.digest):
        assert part in text
    # Nothing is fetched, and nothing runs.
    for reach in ("<script", "<img", "<link", 'src="', "@import", 'href="http', "url(http"):
        assert reach not in text, reach


def test_an_ok_window_says_that_nothing_is_to_be_done(
    world: World, drifted: list[WindowReport]
) -> None:
    told = dict(summary(drifted[0], world.profile, _history(world, drifted[:1])))
    assert told["What to do"] == ["Nothing."]
    assert told["Where"] == ["Nowhere."]
    assert "looks like the reference" in headline(drifted[0])


@pytest.mark.parametrize("form", ["png", "svg"])
def test_pictures_are_drawn_of_anything(
    world: World, drifted: list[WindowReport], form: str
) -> None:
    start = {"png": b"\x89PNG", "svg": b"<?xml"}[form]
    for reports in (drifted[:1], []):
        history = _history(world, reports)
        assert over_time(history, world.profile, "fraud/3", form).startswith(start)
        assert heat_map(history, world.profile, "fraud/3", form).startswith(start)
    for report in (drifted[0], _alert(drifted)):
        assert before_after(report, world.profile, "$a$ fraud/3", form).startswith(start)
        assert slices(report, "$a$ fraud/3", form).startswith(start)


@pytest.mark.parametrize("form", ["png", "svg"])
@pytest.mark.parametrize("name", ["a$_b_c_d$", r"$\frac$", r"\$^$", "$^" * 99])
def test_names_from_data_are_no_formula(
    world: World, drifted: list[WindowReport], form: str, name: str
) -> None:
    """Neither the model's, nor a column's, nor a category's in a slice."""
    frame = reference(world.model)
    frame[name] = np.resize(np.array([name, "b"]), len(frame))
    fitted = fit_with_reference(
        frame[["age", name]], {"score": frame["score"]}, model="fraud", window=WINDOW
    )
    counts = count_rows(fitted.profile, frame[["age", name, "score"]])
    moved = replace(_alert(drifted).verdict.worst[0], name=name)
    alert, only = _alert(drifted), Condition(name, values=frozenset({name}))
    odd = replace(
        alert,
        counts=counts,
        verdict=replace(alert.verdict, worst=(moved,)),
        slices=(replace(alert.slices[0], predicate=Predicate((only,))),),
    )
    history = History()
    history.add(odd, fitted.profile)
    pictures = (
        over_time(history, fitted.profile, name, form),
        heat_map(history, fitted.profile, name, form),
        before_after(odd, fitted.profile, name, form),
        slices(odd, name, form),
        slices(odd, "half a character \ud800", form),
    )
    if form == "svg" and name == "a$_b_c_d$":
        assert all(name in picture.decode() for picture in pictures[:4])


def test_names_from_data_are_no_markup(world: World, tmp_path: Path) -> None:
    frame = reference(world.model).rename(columns={"region": "<script>alert(1)</script>"})
    features = frame[["age", "income", "<script>alert(1)</script>"]]
    fitted = fit_with_reference(features, model="fraud", window=WINDOW)
    subject = Subject("<b>fraud", 3, "", "", fitted.profile.digest)
    live = world.live().drop(columns=["region", "bad"])
    check = Check(VersionProfile(subject, fitted.profile, fitted.reference))
    reports = list(check.reports(_written(live, tmp_path / "rows.csv")))
    text = page(reports[0], fitted.profile, History()).decode()
    assert "<script" not in text
    assert "<b>fraud" not in text


# -- bad input


def _written(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


def test_files_of_every_kind_say_the_same(world: World, tmp_path: Path) -> None:
    frame = world.live(500)
    folder = tmp_path / "parts"
    folder.mkdir()
    frame[:123].to_parquet(folder / "a.parquet")
    frame[123:].to_parquet(folder / "b.parquet")
    paths = [_written(frame, tmp_path / f"rows{ext}") for ext in (".csv", ".parquet")]
    found = [world.check(path) for path in (*paths, folder)]
    counts = [[one.counts.counts.tolist() for one in reports] for reports in found]
    assert counts[0] == counts[1] == counts[2]
    assert [one.counts.rows for one in found[0]] == [200, 200, 100]
    assert [one.verdict.judged for one in found[0]] == [True, True, False]
    assert len({digest_of(path) for path in (*paths, folder)}) == 3
    assert digest_of(paths[0]) == digest_of(paths[0])
    assert digest_of(paths[0], "100") != digest_of(paths[0])


Change = Callable[[pd.DataFrame], Any]


def _set(name: str, value: Any) -> Change:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(**{name: value})

    return change


@pytest.mark.parametrize(
    ("change", "level", "said"),
    [
        (lambda f: f[f.columns[::-1]], Level.OK, ""),
        (lambda f: f.drop(columns="age"), Level.ALERT, "columns missing: 'age'"),
        (lambda f: f.drop(columns="score"), Level.ALERT, "columns missing: 'score'"),
        (_set("shoe size", 44), Level.WARN, "was not made with: 'shoe size'"),
        (lambda f: f.assign(age=f["age"].map("{:.1f} years".format)), Level.ALERT, "PSI of 'age'"),
        (_set("income", 20.0), Level.ALERT, "PSI of 'income'"),
        (_set("income", np.nan), Level.ALERT, "PSI of 'income'"),
        (_set("region", "moon"), Level.ALERT, "PSI of 'region'"),
        (lambda f: f.assign(age=f["age"].where(f.index != 3)), Level.OK, ""),
    ],
    ids=["reordered", "missing", "no output", "extra", "dtype", "constant", "nan only",
         "new category", "one nan"],
)  # fmt: skip
def test_columns_that_are_not_as_they_were(
    world: World, tmp_path: Path, change: Change, level: Level, said: str
) -> None:
    frame = world.live(WINDOW)
    report = world.check(_written(change(frame), tmp_path / "rows.parquet"))[0]
    assert report.verdict.level is level
    assert said in " | ".join(report.verdict.reasons).replace("the model was", "was")
    if level is Level.ALERT:
        assert all(one.is_drift for one in report.findings)  # trouble is an alarm too
        page(report, world.profile, History())


def test_a_new_column_can_be_ignored(world: World, tmp_path: Path) -> None:
    path = _written(world.live(WINDOW).assign(note="x"), tmp_path / "rows.csv")
    assert world.check(path)[0].verdict.level is Level.WARN
    assert world.check(path, ignored=("note",))[0].verdict.level is Level.OK


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.csv", b"", "has no rows"),
        ("rows.csv", b"age,income,region,score,bad\n", "has no rows"),
        ("rows.csv", b"age,income,region,score,bad\n1,2,west,0.5,1\n", "has 1 rows, fewer than"),
        ("rows.csv", b"age,income\n1,2\n3,4,5,6\n", "cannot be read as CSV"),
        ("rows.csv", b"\xff\xfe\x00\x01", "cannot be read as CSV"),
        ("rows.parquet", b"no parquet", "cannot be read as Parquet"),
        ("rows.pickle", b"", "neither .parquet nor .csv"),
    ],
)
def test_files_that_are_none(
    world: World, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(MalformedRequestError, match=said):
        world.check(path, label="")


def test_what_is_asked_must_be_there(world: World, tmp_path: Path) -> None:
    path = _written(world.live(WINDOW), tmp_path / "rows.parquet")
    with pytest.raises(MalformedRequestError, match="does not exist"):
        world.check(tmp_path / "nothing.csv")
    with pytest.raises(MalformedRequestError, match="no Parquet files"):
        world.check(_folder(tmp_path / "empty"))
    with pytest.raises(MalformedRequestError, match="no column 'truth'"):
        world.check(path, label="truth")
    with pytest.raises(MalformedRequestError, match="'region' holds no times"):
        world.check(path, time="region")
    for unit in ("micro", "nano"):
        many = 10**3 if unit == "micro" else 10**6
        scores = world.live(WINDOW).assign(at=np.int64(NOW) * many)
        with pytest.raises(MalformedRequestError, match=f"'at' holds .* {unit}seconds"):
            world.check(_written(scores, tmp_path / f"{unit}.parquet"), time="at")
    with pytest.raises(ConfigurationError, match="windows of 401 rows"):
        world.check(path, window=401)
    mixed = _folder(tmp_path / "mixed")
    world.live(300).to_parquet(mixed / "a.parquet")
    world.live(300).drop(columns="age").to_parquet(mixed / "b.parquet")
    with pytest.raises(MalformedRequestError, match="other columns than the files before it"):
        world.check(mixed)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_csv_keeps_leading_zeros_where_the_profile_has_them(tmp_path: Path) -> None:
    codes = np.array(["0123", "4567"])[np.random.default_rng(1).integers(0, 2, 3000)]
    fitted = fit_with_reference({"code": codes.astype(object)}, model="fraud", window=WINDOW)
    path = _written(pd.DataFrame({"code": codes[:WINDOW]}), tmp_path / "rows.csv")
    version = VersionProfile(Subject("fraud", 1, "", "", "x"), fitted.profile, None)
    (report,) = Check(version).reports(path)
    assert report.verdict.level is Level.OK
    columns, count = next(windows_of(path, fitted.profile, WINDOW))
    assert count == WINDOW
    assert set(columns["code"]) == {"0123", "4567"}


def test_without_a_sample_nothing_confirms_and_the_verdict_stands(
    world: World, tmp_path: Path
) -> None:
    version = VersionProfile(world.version.subject, world.profile, None)
    path = _written(world.live(WINDOW, older=40).assign(income=1.0), tmp_path / "rows.csv")
    (report,) = Check(version).reports(path, Asked(label="bad"))
    assert report.verdict.level is Level.ALERT
    assert not report.findings


def test_labels_say_nothing_where_the_profile_has_no_errors(world: World, tmp_path: Path) -> None:
    profile = replace(world.profile, performance=None, fairness=None)
    version = replace(world.version, profile=profile)
    path = _written(world.live(), tmp_path / "rows.parquet")
    reports = list(Check(version).reports(path, Asked(label="bad")))
    assert [one.verdict.level for one in reports] == [Level.OK] * 2
    assert all(one.performance.labelled == 0 for one in reports)
