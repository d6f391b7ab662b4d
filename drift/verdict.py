"""Judges windows: ok, warn or alert, with the columns and bins that moved, and what follows.

The judge keeps the sequential statistic, how many windows in a row met the alert's conditions, and
the rows of windows too small to judge: these wait, and are judged together with the next. An empty
window is judged as nothing, and said to be so. A window whose index was judged already is refused,
so a window that a restarted monitor sees twice counts once.

Facts that others find come along with a window (``Facts``). What labels prove against the model,
and bounds of fairness that break twice in a row, alert by themselves; an estimate of accuracy never
does. On an alert facts propose a quarantine, which needs a person's sign-off. What is not known
does not propose it; what is known and is no number does.

Example::

    judge = Judge(profile)
    verdict = judge.step(window, Facts(accuracy_fall_sd=3.4))
    verdict.level, verdict.reasons, verdict.worst[0].grown
    judge.acknowledge()                          # somebody has seen it: count from zero
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.cutter import Tally, Window
from drift.documents import Fields, number_text
from drift.profile import DriftProfile
from drift.psi import Psi
from drift.quality import Quality
from drift.rules import Rules
from drift.sequential import ShiryaevRoberts
from drift.window import WindowCounts
from governance.canonical import canonical_json
from governance.errors import ConflictError

__all__ = ["FORMAT", "ColumnMoved", "Facts", "GrownBin", "Judge", "Level", "Verdict"]

FORMAT = "chancery.drift-judge/v1"

_WORST = 5
_GROWN = 3
_NAMED = 5
_RULES = Rules()


class Level(StrEnum):
    """How bad a window is."""

    OK = "ok"
    WARN = "warn"
    ALERT = "alert"


@dataclass(frozen=True, slots=True)
class Facts:
    """What others know about a window.

    Attributes:
        accuracy_fall_sd: By how many standard deviations the estimated accuracy fell; None unknown.
        fairness_broken: Bounds of fairness that broke when they were judged last, in words.
        fairness_lasts: Whether one of them had broken the time before, too: a single one may be
            chance, at the bounds' confidence.
        error_esr: Of the errors that labels show; None unknown.
        errors_rose: What labels prove against the model, in words.
    """

    accuracy_fall_sd: float | None = None
    fairness_broken: tuple[str, ...] = ()
    fairness_lasts: bool = False
    error_esr: float | None = None
    errors_rose: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GrownBin:
    """A bin that holds more of the window than of the reference; shares of 1."""

    name: str
    reference: float
    window: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON: fractions as texts."""
        return {
            "name": self.name,
            "reference": number_text(self.reference),
            "window": number_text(self.window),
        }


@dataclass(frozen=True, slots=True)
class ColumnMoved:
    """One column's part.

    Attributes:
        name: Of the column.
        role: What the model does with it.
        psi: Of this window.
        esr: The column's own R.
        log_e: ln of the e-value of this window alone.
        grown: Bins that grew most.
    """

    name: str
    role: str
    psi: float
    esr: float
    log_e: float
    grown: tuple[GrownBin, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: fractions as texts."""
        return {
            "name": self.name,
            "role": self.role,
            "psi": number_text(self.psi),
            "esr": number_text(self.esr),
            "log_e": number_text(self.log_e),
            "grown": [grown.to_dict() for grown in self.grown],
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one window.

    Attributes:
        index: Of the window.
        level: ok, warn or alert.
        judged: Whether it had rows enough; if not, ``reasons`` says so and the level is ok.
        rows: Judged, or waiting.
        first_ms: Of the earliest row; None without rows.
        last_ms: Of the latest.
        esr: Mean R over columns.
        psi: The largest of all columns.
        psi_threshold: What the largest, measured against its own threshold, had to reach.
        streak: Windows after each other, with this, that met the alert's conditions.
        worst: Columns, the one that moved most first; components after those that moved themselves.
        reasons: Sentences for people.
        quarantine: Why a quarantine is proposed, for a person to sign off; empty: it is not.
        besides: Those of the reasons that are not of the counts: labels, fairness, data quality,
            detectors.
        warn_esr: From where on eSR warned.
        alert_esr: What eSR had to reach for an alert.
        alert_needs: Which of eSR and PSI an alert needed.
    """

    index: int
    level: Level
    judged: bool
    rows: int
    first_ms: int | None
    last_ms: int | None
    esr: float
    psi: float
    psi_threshold: float
    streak: int
    worst: tuple[ColumnMoved, ...]
    reasons: tuple[str, ...]
    quarantine: tuple[str, ...] = ()
    besides: tuple[str, ...] = ()
    warn_esr: float = _RULES.warn_esr
    alert_esr: float = _RULES.alert_esr
    alert_needs: str = _RULES.alert_needs

    @property
    def moved(self) -> bool:
        """Whether the counts, of one column or of all together, are not what they were."""
        return self.esr >= self.warn_esr or self.psi >= self.psi_threshold

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers that are not whole as texts."""
        return {
            "index": self.index,
            "level": self.level.value,
            "judged": self.judged,
            "rows": self.rows,
            "first_ms": self.first_ms,
            "last_ms": self.last_ms,
            "esr": number_text(self.esr),
            "psi": number_text(self.psi),
            "psi_threshold": number_text(self.psi_threshold),
            "streak": self.streak,
            "worst": [column.to_dict() for column in self.worst],
            "reasons": list(self.reasons),
            "quarantine": list(self.quarantine),
            "besides": list(self.besides),
            "warn_esr": number_text(self.warn_esr),
            "alert_esr": number_text(self.alert_esr),
            "alert_needs": self.alert_needs,
        }


class Judge:
    """Judges the windows of one served version, in the order of their indices."""

    def __init__(self, profile: DriftProfile) -> None:
        self._profile = profile
        self._rules = profile.rules
        self._statistic = ShiryaevRoberts(profile.probabilities, profile.layout.starts)
        self._psi = Psi(profile.probabilities, profile.layout.starts)
        self._quality = Quality(profile)
        self._thresholds = self._psi_thresholds()
        self._shares = np.concatenate([column.shares for column in profile.columns])
        self._is_component = np.array([one.role == "component" for one in profile.columns], int)
        self._limits: dict[str, Any] = {
            name: getattr(self._rules, name) for name in ("warn_esr", "alert_esr", "alert_needs")
        }
        self._streak = 0
        self._last: int | None = None
        self._none = self._waiting = WindowCounts.empty(profile)

    @property
    def esr(self) -> float:
        """The statistic now."""
        return self._statistic.mean

    @property
    def waiting(self) -> WindowCounts:
        """Rows of windows too small to judge, which are judged together with the next."""
        return self._waiting

    @property
    def last_index(self) -> int | None:
        """Of the last window that was taken."""
        return self._last

    def _psi_thresholds(self) -> NDArray[np.float64]:
        """The PSI that an alert needs, for each column (d,)."""
        calibration, rules = self._profile.calibration, self._rules
        own = np.array(calibration.largest_psi)
        base = own if rules.psi_scope == "column" else np.full(len(own), calibration.largest)
        return np.maximum(rules.alert_psi, rules.psi_margin * base)

    def step(self, window: Window, facts: Facts | None = None) -> Verdict:
        """Judge the next window.

        Raises:
            ConflictError: it was judged already, or a later one was. Nothing changes.
            TamperedError: counted by another profile.
        """
        if self._last is not None and window.index <= self._last:
            raise ConflictError(
                f"drift window {window.index} comes after window {self._last} was judged",
                "pass each window once, in the order of their indices",
            )
        counts = self._waiting + window.counts
        self._last = window.index
        if not window.counts.rows:
            return self._unjudged(window, counts, "the window has no rows")
        if counts.rows < self._rules.min_rows:
            self._waiting = counts
            return self._unjudged(
                window,
                counts,
                f"{counts.rows} of the {self._rules.min_rows} rows that are judged at once; "
                "they wait for the next window",
            )
        self._waiting = self._none
        log_e = self._statistic.step(counts.counts)
        sizes = self._psi.of(counts.counts)
        return self._judged(window, counts, log_e, sizes, facts or Facts())

    def acknowledge(self) -> None:
        """Somebody has seen the alarm: statistic and streak begin anew."""
        self._statistic.reset()
        self._streak = 0

    def _unjudged(self, window: Window, counts: WindowCounts, why: str) -> Verdict:
        return Verdict(
            index=window.index,
            level=Level.OK,
            judged=False,
            rows=counts.rows,
            first_ms=counts.first_ms,
            last_ms=counts.last_ms,
            esr=self.esr,
            psi=0.0,
            psi_threshold=float(self._thresholds.min()),
            streak=self._streak,
            worst=(),
            reasons=(why, *_left_out(window.tally)),
            **self._limits,
        )

    def _judged(
        self,
        window: Window,
        counts: WindowCounts,
        log_e: NDArray[np.float64],
        sizes: NDArray[np.float64],
        facts: Facts,
    ) -> Verdict:
        rules, esr = self._rules, self.esr
        decisive = int(np.argmax(sizes / self._thresholds))
        threshold = float(self._thresholds[decisive])
        large, likely = bool(sizes[decisive] >= threshold), esr >= rules.alert_esr
        met = {
            "both": large and likely,
            "either": large or likely,
            "esr": likely,
            "psi": large,
        }[rules.alert_needs]
        self._streak = self._streak + 1 if met else 0
        drifted = self._streak >= rules.consecutive
        reasons = []
        if esr >= rules.warn_esr:
            reasons.append(
                f"eSR is {esr:.3g}: chance reaches that in one of {esr:.3g} windows"
                f" (warn at {rules.warn_esr:g}, alert at {rules.alert_esr:g})"
            )
        order = self._order(sizes, log_e)
        if large:
            name = self._profile.columns[order[0]].name
            needed = self._thresholds[order[0]]
            reasons.append(f"PSI of {name!r} is {sizes[order[0]]:.3g} (alert at {needed:.3g})")
        schema = _schema_reasons(counts)
        reasons += schema
        if met and not drifted:
            reasons.append(
                f"window {self._streak} of {rules.consecutive} in a row that meets the alert's rule"
            )
        faults = tuple(f"data quality: {what}" for what in self._quality.failed(counts))
        besides = (*self._told(facts), *faults)
        proven = bool(facts.errors_rose)
        alert = drifted or proven or facts.fairness_lasts
        warn = met or esr >= rules.warn_esr or bool(schema or besides)
        level = Level.ALERT if alert else Level.WARN if warn else Level.OK
        return Verdict(
            index=window.index,
            level=level,
            judged=True,
            rows=counts.rows,
            first_ms=counts.first_ms,
            last_ms=counts.last_ms,
            esr=esr,
            psi=float(sizes.max()),
            psi_threshold=threshold,
            streak=self._streak,
            worst=self._worst(order, counts, log_e, sizes),
            reasons=(*reasons, *besides, *_left_out(window.tally)),
            quarantine=self._quarantine(facts, faults) if drifted or proven else (),
            besides=besides,
            **self._limits,
        )

    def _told(self, facts: Facts) -> tuple[str, ...]:
        """What others found that counts by itself."""
        rules, errors = self._rules, facts.errors_rose
        if not errors and facts.error_esr is not None and facts.error_esr >= rules.warn_esr:
            errors = (
                f"eSR of errors is {facts.error_esr:.3g} (warn at {rules.warn_esr:g}, alert at "
                f"{rules.alert_esr:g})",
            )
        return (
            *(f"labels: {what}" for what in errors),
            *(f"fairness: {what}" for what in facts.fairness_broken),
        )

    def _quarantine(self, facts: Facts, faults: Sequence[str]) -> tuple[str, ...]:
        rules, reasons = self._rules, []
        fall = facts.accuracy_fall_sd
        if fall is not None and (not math.isfinite(fall) or fall >= rules.quarantine_accuracy_sd):
            reasons.append(
                f"estimated accuracy fell by {fall:.2g} standard deviations "
                f"(at most {rules.quarantine_accuracy_sd:g})"
            )
        reasons += [f"fairness: {what}" for what in facts.fairness_broken]
        reasons += [f"labels: {what}" for what in facts.errors_rose]
        return (*reasons, *faults)

    def _order(self, sizes: NDArray[np.float64], log_e: NDArray[np.float64]) -> list[int]:
        """The worst columns: by PSI against the column's threshold; alike ones by the evidence.

        A column that passed its threshold comes before every component: it says by itself what
        moved, where a component only tells that something did among many.
        """
        relative = sizes / self._thresholds
        passed = np.where(relative >= 1, self._is_component, 2)
        order: list[int] = np.lexsort((-log_e, -relative, passed))[:_WORST].tolist()
        return order

    def _worst(
        self,
        order: Sequence[int],
        counts: WindowCounts,
        log_e: NDArray[np.float64],
        sizes: NDArray[np.float64],
    ) -> tuple[ColumnMoved, ...]:
        layout, r = self._profile.layout, self._statistic.by_column
        found = []
        for place in order:
            column = self._profile.columns[place]
            reference = layout.of_column(place, self._shares).tolist()
            shares = [
                count / counts.rows for count in layout.of_column(place, counts.counts).tolist()
            ]
            more = [after - before for after, before in zip(shares, reference, strict=True)]
            most = sorted(range(len(more)), key=more.__getitem__, reverse=True)[:_GROWN]
            names = column.bins.names
            found.append(
                ColumnMoved(
                    column.name,
                    column.role,
                    float(sizes[place]),
                    float(r[place]),
                    float(log_e[place]),
                    tuple(
                        GrownBin(names[at], reference[at], shares[at])
                        for at in most
                        if more[at] > 0
                    ),
                )
            )
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all of the state, format ``chancery.drift-judge/v1``."""
        return {
            "format": FORMAT,
            "profile": self._profile.digest,
            "statistic": self._statistic.to_dict(),
            "streak": self._streak,
            "last": self._last,
            "waiting": self._waiting.to_dict() if self._waiting.rows else None,
        }

    def to_json(self) -> bytes:
        """``to_dict`` as canonical JSON."""
        return canonical_json(self.to_dict())

    @classmethod
    def from_json(cls, profile: DriftProfile, data: bytes | str) -> Judge:
        """Go on from ``to_json``.

        Raises:
            MalformedRequestError: not such a document, or of another profile.
        """
        return cls.from_fields(profile, Fields.parse(data, FORMAT, "state of a drift judge"))

    @classmethod
    def from_fields(cls, profile: DriftProfile, fields: Fields) -> Judge:
        """Go on from ``to_dict``; raises as ``from_json``."""
        fields.text("format", FORMAT, among=(FORMAT,))
        fields.text("profile", among=(profile.digest,))
        judge = cls(profile)
        judge._statistic.restore(fields.object("statistic"))
        judge._streak = fields.integer("streak")
        judge._last = fields.optional_integer("last")
        waiting = fields.optional_object("waiting")
        if waiting is not None:
            judge._waiting = WindowCounts.from_fields(profile, waiting)
        fields.done()
        return judge


def _schema_reasons(counts: WindowCounts) -> list[str]:
    """Columns that are missing or new."""
    reasons = []
    for what, names in (
        ("missing", counts.missing_columns),
        ("that the model was not made with", counts.extra_columns),
    ):
        if names:
            shown = ", ".join(repr(name) for name in sorted(names)[:_NAMED])
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            reasons.append(f"columns {what}: {shown}{more}")
    return reasons


def _left_out(tally: Tally) -> list[str]:
    """What did not go into windows; told, and not held against the model."""
    told = {
        "rows came too late": tally.late_rows,
        "rows came from the future": tally.ahead_rows,
        "blocks never came": tally.lost_blocks,
        "rows could not be recorded": tally.unrecorded_rows,
    }
    return [f"{count} {what} and were not counted" for what, count in told.items() if count]
