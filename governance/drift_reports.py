"""Reads a window's report (``chancery.drift-report/v1``), which ``drift.report`` writes.

This package cannot import ``drift``, and trusts nobody's word: what decides something is read with
its type and bounds, from bytes whose digest is signed; keys that are not known here are left to
those who know them. Numbers that are not whole are texts in the document, and finite numbers or
None here.

Example::

    report = DriftReport.parse(document)
    report.level, report.to_sighting().reasons
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from governance.alert_records import AlertLevel, Sighting, cleaned
from governance.canonical import canonical_json, parse_json, sha256_hex
from governance.errors import MalformedRequestError

__all__ = ["FORMAT", "SIZE_LIMIT", "DriftReport"]

FORMAT = "chancery.drift-report/v1"
SIZE_LIMIT = 1 << 20
"""The most bytes of a report."""

_LARGEST = 2**31 - 1
_LATEST_MS = 253402300799999
_DEPLOYMENT = re.compile(r"[^\x00-\x1f\x7f]{0,128}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_LEVELS = {"ok": None, "warn": AlertLevel.WARN, "alert": AlertLevel.ALERT}
_MOST = 10


@dataclass(frozen=True, slots=True)
class DriftReport:
    """What a monitor says of one window.

    Attributes:
        model: Name of the registered model.
        version: Its number.
        deployment: Route; empty: scored in batches.
        profile: Digest of the profile it was judged by.
        owner: Whom alerts are for; empty: not said.
        window: Index.
        level: None: all is well.
        judged: Whether there were rows enough.
        rows: In it.
        first_ms, last_ms: Of the earliest and latest row.
        esr, psi: What the level rests on.
        reasons: Sentences.
        quarantine: Why a quarantine is proposed.
        worst: Columns: ``name``, ``role``, ``psi``, ``esr``, the worst first.
        slices: ``text``, ``predicate`` (conditions), ``share``, ``referenceShare``, ``z``.
        estimated_accuracy: Without labels.
        reference_accuracy: What it is compared with.
        accuracy: On labels.
        labelled: Rows with one.
        error_esr: Of the errors that labels show.
        fairness: Gap or ratio by attribute → its value.
        thresholds: ``warnEsr``, ``alertEsr`` and ``psi``, which an alert needed; and which of both
            (``needs``).
        made_ms: When it was made.
        digest: SHA-256 (hex) of the document.
    """

    model: str
    version: int
    deployment: str
    profile: str
    owner: str
    window: int
    level: AlertLevel | None
    judged: bool
    rows: int
    first_ms: int | None
    last_ms: int | None
    esr: float | None
    psi: float | None
    reasons: tuple[str, ...]
    quarantine: tuple[str, ...]
    worst: tuple[Mapping[str, Any], ...]
    slices: tuple[Mapping[str, Any], ...]
    estimated_accuracy: float | None
    reference_accuracy: float | None
    accuracy: float | None
    labelled: int
    error_esr: float | None
    fairness: Mapping[str, float | None]
    thresholds: Mapping[str, float | str | None]
    made_ms: int
    digest: str

    @property
    def uri(self) -> str:
        return f"models:/{self.model}/{self.version}"

    @classmethod
    def parse(cls, document: bytes) -> DriftReport:
        """Read a report.

        Raises:
            MalformedRequestError: too large, not canonical JSON, or not such a report; names where.
        """
        if len(document) > SIZE_LIMIT:
            raise _wrong(f"has {len(document)} bytes; at most {SIZE_LIMIT} are read")
        try:
            value = parse_json(document)
            if canonical_json(value) != document:
                raise _wrong("is not canonical JSON (RFC 8785)")
        except (ValueError, RecursionError) as error:
            raise _wrong(f"is not JSON: {error}") from error
        top = _Part(value, "")
        if top.text("format") != FORMAT:
            raise _wrong(f"has another format than {FORMAT}")
        subject, verdict = top.part("subject"), top.part("verdict")
        performance = top.part("performance")
        level, judged = verdict.text("level"), verdict.get("judged", bool)
        if level not in _LEVELS:
            raise _wrong(f"has the verdict.level {cleaned(level, 40)!r}")
        quarantine = verdict.texts("quarantine")
        return cls(
            model=subject.text("model", least=1, most=256),
            version=subject.whole("version", least=1, most=_LARGEST),
            deployment=subject.matching("deployment", _DEPLOYMENT),
            profile=subject.matching("profile", _DIGEST),
            owner=cleaned(subject.text("owner", default=""), 256),
            window=verdict.whole("index", most=2**53 - 1),
            level=AlertLevel.QUARANTINE if quarantine and level == "alert" else _LEVELS[level],
            judged=judged,
            rows=verdict.whole("rows", most=2**53 - 1),
            first_ms=verdict.time("first_ms"),
            last_ms=verdict.time("last_ms"),
            esr=verdict.number("esr"),
            psi=verdict.number("psi"),
            reasons=verdict.texts("reasons"),
            quarantine=quarantine,
            worst=tuple(_column(one) for one in verdict.parts("worst")[:_MOST]),
            slices=tuple(_slice(one) for one in top.parts("slices")[:_MOST]),
            estimated_accuracy=performance.number("estimated_accuracy"),
            reference_accuracy=performance.number("reference_accuracy"),
            accuracy=performance.number("accuracy"),
            labelled=performance.whole("labelled", most=2**53 - 1),
            error_esr=performance.number("error_esr"),
            fairness=performance.numbers("fairness"),
            thresholds={
                "warnEsr": verdict.number("warn_esr"),
                "alertEsr": verdict.number("alert_esr"),
                "psi": verdict.number("psi_threshold"),
                "needs": cleaned(verdict.text("alert_needs", default=""), 32),
            },
            made_ms=top.whole("madeMs", least=1, most=_LATEST_MS),
            digest=sha256_hex(document),
        )

    def to_sighting(self) -> Sighting:
        """What it says to an alert."""
        return Sighting(
            level=self.level,
            at_ms=self.last_ms if self.last_ms is not None else self.made_ms,
            first_ms=self.first_ms,
            window=self.window,
            judged=self.judged,
            reasons=self.reasons,
            worst=self.worst,
            slices=self.slices,
            quarantine=self.quarantine,
            profile=self.profile,
            report=self.digest,
        )

    def summary(self) -> dict[str, Any]:
        """For a status: JSON numbers; what is not known or not finite is null."""
        return {
            "deployment": self.deployment,
            "version": self.version,
            "profile": self.profile,
            "report": self.digest,
            "window": self.window,
            "level": "ok" if self.level is None else self.level.value,
            "rows": self.rows,
            "fromMs": self.first_ms,
            "toMs": self.last_ms,
            "madeMs": self.made_ms,
            "reasons": list(self.reasons),
            "worstColumns": [dict(column) for column in self.worst],
            "slices": [dict(found) for found in self.slices],
            "metrics": {
                "esr": self.esr,
                "psi": self.psi,
                "estimatedAccuracy": self.estimated_accuracy,
                "referenceAccuracy": self.reference_accuracy,
                "accuracy": self.accuracy,
                "labelled": self.labelled,
                "errorEsr": self.error_esr,
                "fairness": dict(self.fairness),
            },
            "thresholds": dict(self.thresholds),
        }


def _wrong(what: str) -> MalformedRequestError:
    return MalformedRequestError(
        f"the drift report {what}", "send a report as `drift.report` writes it, unchanged"
    )


class _Part:
    """One object of the document."""

    def __init__(self, value: Any, where: str) -> None:
        self._where = where
        if not isinstance(value, dict):
            raise _wrong(f"has a {where or 'top'} that is no object")
        self._value = value

    def _fault(self, key: str, wanted: str) -> MalformedRequestError:
        return _wrong(f"has a {self._where}{key} that is not {wanted}")

    def get(self, key: str, kind: type[Any]) -> Any:
        value = self._value.get(key)
        if type(value) is not kind:
            raise self._fault(key, {bool: "true or false", list: "a list"}[kind])
        return value

    def text(
        self, key: str, *, default: str | None = None, least: int = 0, most: int = 4096
    ) -> str:
        value = self._value.get(key, default)
        if not isinstance(value, str) or not least <= len(value) <= most:
            raise self._fault(key, f"a text of {least} to {most} characters")
        return value

    def matching(self, key: str, pattern: re.Pattern[str]) -> str:
        value = self.text(key)
        if not pattern.match(value):
            raise self._fault(key, "what it must be")
        return value

    def whole(self, key: str, *, least: int = 0, most: int) -> int:
        value = self._value.get(key)
        if type(value) is not int or not least <= value <= most:
            raise self._fault(key, f"a whole number from {least} to {most}")
        return value

    def time(self, key: str) -> int | None:
        return None if self._value.get(key) is None else self.whole(key, most=_LATEST_MS)

    def number(self, key: str) -> float | None:
        """A number written as text; None: null, missing or not finite."""
        return self._number(key, self._value.get(key))

    def numbers(self, key: str) -> dict[str, float | None]:
        """Pairs of a name and such a number; a few."""
        pairs = self._value.get(key, [])
        if not isinstance(pairs, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
        ):
            raise self._fault(key, "a list of names with their numbers")
        return {cleaned(name, 256): self._number(key, value) for name, value in pairs[: _MOST * 10]}

    def _number(self, key: str, value: Any) -> float | None:
        if value is None:
            return None
        if type(value) is int:
            return float(value)
        try:
            found = float(value) if isinstance(value, str) and len(value) <= 40 else None
        except ValueError:
            found = None
        if found is None:
            raise self._fault(key, "a number written as text")
        return found if math.isfinite(found) else None

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.get(key, list)
        if not all(isinstance(value, str) for value in values):
            raise self._fault(key, "a list of texts")
        return tuple(cleaned(value) for value in values[:20])

    def part(self, key: str) -> _Part:
        return _Part(self._value.get(key), f"{self._where}{key}.")

    def parts(self, key: str) -> list[_Part]:
        return [
            _Part(value, f"{self._where}{key}[{position}].")
            for position, value in enumerate(self.get(key, list)[: _MOST * 10])
        ]

    def conditions(self, key: str) -> list[dict[str, Any]]:
        """Of a predicate: flat objects, few and short."""
        found = []
        for part in self.parts(key)[:_MOST]:
            plain = {cleaned(str(name), 64): _short(value) for name, value in part._value.items()}
            found.append(plain)
        return found


def _short(value: Any) -> Any:
    """A condition's value, bounded."""
    match value:
        case str():
            return cleaned(value, 256)
        case list():
            return [_short(one) for one in value[:100] if not isinstance(one, list | dict)]
        case None | bool() | int():
            return value
    return cleaned(str(value), 64)


def _column(part: _Part) -> dict[str, Any]:
    return {
        "name": cleaned(part.text("name"), 256),
        "role": cleaned(part.text("role"), 32),
        "psi": _text(part.number("psi")),
        "esr": _text(part.number("esr")),
    }


def _slice(part: _Part) -> dict[str, Any]:
    return {
        "text": cleaned(part.text("text"), 1000),
        "predicate": part.conditions("predicate"),
        "share": _text(part.number("share")),
        "referenceShare": _text(part.number("reference_share")),
        "z": _text(part.number("z")),
    }


def _text(value: float | None) -> str | None:
    return None if value is None else repr(value)
