"""What an alert about drift is made of; ``governance.drift_alerts`` says what follows from what.

Documents of alerts are stored, sent and shown as ``Alert.to_dict`` has them.

Example::

    Alert.from_dict(alert.to_dict()) == alert
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

__all__ = [
    "Act",
    "Alert",
    "AlertIdentity",
    "AlertLevel",
    "AlertState",
    "Change",
    "Sighting",
    "cleaned",
    "first_owner",
]

_NOBODY = ("", "anonymous", "unknown", "none")


class AlertLevel(StrEnum):
    """How bad it is; the worst last."""

    WARN = "warn"
    ALERT = "alert"
    QUARANTINE = "quarantine"

    @property
    def rank(self) -> int:
        return list(AlertLevel).index(self)


class AlertState(StrEnum):
    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    QUARANTINED = "quarantined"
    CLOSED = "closed"


class Change(StrEnum):
    """What happened to an alert that belongs on the ledger."""

    OPENED = "opened"
    ESCALATED = "escalated"
    PROPOSED = "proposed"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class AlertIdentity:
    """Which alert it is.

    Attributes:
        alert_id: 32 hex digits.
        number: 1, 2, 3 … of the version, over all its routes, without gaps.
        model_uid: Incarnation of the registered model.
        version_uid: Incarnation of the version.
        model: Name of the registered model when it was opened.
        version: Its number.
        deployment: Route; empty: scored in batches.
        owner: Whom it is for; never empty.
    """

    alert_id: str
    number: int
    model_uid: str
    version_uid: str
    model: str
    version: int
    deployment: str
    owner: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a window's report, or somebody outside, says of a version.

    Attributes:
        level: None: all is well.
        at_ms: Time of what was seen.
        first_ms: Of the earliest row; None: not known.
        window: Index of the window; None: it is no window.
        judged: Whether there were rows enough to say that all is well.
        reasons: Sentences.
        worst: Columns, the worst first: ``name`` and numbers as texts.
        slices: ``text``, ``predicate`` and numbers as texts.
        quarantine: Why a quarantine is proposed.
        profile: Digest of the profile it was judged by.
        report: Digest of the report.
        outside: Who raised it, when it was no monitor of ours.
    """

    level: AlertLevel | None
    at_ms: int
    first_ms: int | None = None
    window: int | None = None
    judged: bool = True
    reasons: tuple[str, ...] = ()
    worst: tuple[Mapping[str, Any], ...] = ()
    slices: tuple[Mapping[str, Any], ...] = ()
    quarantine: tuple[str, ...] = ()
    profile: str = ""
    report: str = ""
    outside: str = ""


@dataclass(frozen=True, slots=True)
class Act:
    """What a person did about an alert, and why.

    Attributes:
        kind: The state that followed.
        by: Who; empty: it closed by itself.
        proof: How that was proven.
        reason: Why.
        at_ms: When.
        window: Index of the last window that was in the alert then; None: none was.
    """

    kind: AlertState
    by: str
    proof: str
    reason: str
    at_ms: int
    window: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind.value,
            "by": self.by,
            "proof": self.proof,
            "reason": self.reason,
            "atMs": self.at_ms,
            "window": self.window,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Act:
        """Inverse of ``to_dict``."""
        return cls(
            AlertState(document["kind"]),
            document["by"],
            document["proof"],
            document["reason"],
            document["atMs"],
            document["window"],
        )


@dataclass(frozen=True, slots=True)
class Alert:
    """See the module. Times are milliseconds since the epoch.

    Attributes:
        identity: Which.
        level: The worst that was seen.
        state: Where it stands.
        first_window, last_window: Indices of the windows in it; None: no window is.
        first_ms, last_ms: Time of the first and last row or finding in it.
        windows: How many findings are in it.
        ok_windows: How many windows in a row were well since.
        reasons, worst, slices, quarantine: Of the last finding that had some.
        profile, report: Digests, of the last finding that had some.
        outside: Who else raised it, or did alone; empty: nobody did.
        retrain: What is suggested (``governance.drift_retrain``).
        opened_ms, updated_ms, notified_ms: When.
        acts: What people did.
    """

    identity: AlertIdentity
    level: AlertLevel
    state: AlertState
    first_window: int | None
    last_window: int | None
    first_ms: int
    last_ms: int
    windows: int
    ok_windows: int
    reasons: tuple[str, ...]
    worst: tuple[Mapping[str, Any], ...]
    slices: tuple[Mapping[str, Any], ...]
    quarantine: tuple[str, ...]
    profile: str
    report: str
    outside: tuple[str, ...]
    retrain: Mapping[str, Any]
    opened_ms: int
    updated_ms: int
    notified_ms: int
    acts: tuple[Act, ...] = ()

    @property
    def alert_id(self) -> str:
        return self.identity.alert_id

    @property
    def owner(self) -> str:
        return self.identity.owner

    @property
    def uri(self) -> str:
        return f"models:/{self.identity.model}/{self.identity.version}"

    @property
    def live(self) -> bool:
        return self.state is not AlertState.CLOSED

    @property
    def headline(self) -> str:
        """One line for a list or the subject of a message."""
        where = f" on the route {self.identity.deployment!r}" if self.identity.deployment else ""
        what = {
            AlertLevel.WARN: "drift is suspected",
            AlertLevel.ALERT: "drift",
            AlertLevel.QUARANTINE: "drift, and a quarantine is proposed",
        }[self.level]
        return f"{self.uri}{where}: {what}"

    def to_dict(self) -> dict[str, Any]:
        """The *alert* of ``--json`` and of the REST API."""
        one = self.identity
        return {
            "alertId": one.alert_id,
            "number": one.number,
            "modelId": one.model,
            "modelUid": one.model_uid,
            "version": one.version,
            "versionUid": one.version_uid,
            "deployment": one.deployment,
            "owner": one.owner,
            "level": self.level.value,
            "state": self.state.value,
            "firstWindow": self.first_window,
            "lastWindow": self.last_window,
            "firstMs": self.first_ms,
            "lastMs": self.last_ms,
            "windows": self.windows,
            "okWindows": self.ok_windows,
            "reasons": list(self.reasons),
            "worstColumns": [dict(column) for column in self.worst],
            "slices": [dict(found) for found in self.slices],
            "quarantine": list(self.quarantine),
            "profile": self.profile,
            "report": self.report,
            "outside": list(self.outside),
            "retrain": dict(self.retrain),
            "openedMs": self.opened_ms,
            "updatedMs": self.updated_ms,
            "notifiedMs": self.notified_ms,
            "acts": [act.to_dict() for act in self.acts],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Alert:
        """Inverse of ``to_dict``.

        Raises:
            KeyError, TypeError, ValueError: it is no such document.
        """
        identity = AlertIdentity(
            alert_id=document["alertId"],
            number=document["number"],
            model_uid=document["modelUid"],
            version_uid=document["versionUid"],
            model=document["modelId"],
            version=document["version"],
            deployment=document["deployment"],
            owner=document["owner"],
        )
        return cls(
            identity=identity,
            level=AlertLevel(document["level"]),
            state=AlertState(document["state"]),
            first_window=document["firstWindow"],
            last_window=document["lastWindow"],
            first_ms=document["firstMs"],
            last_ms=document["lastMs"],
            windows=document["windows"],
            ok_windows=document["okWindows"],
            reasons=tuple(document["reasons"]),
            worst=tuple(document["worstColumns"]),
            slices=tuple(document["slices"]),
            quarantine=tuple(document["quarantine"]),
            profile=document["profile"],
            report=document["report"],
            outside=tuple(document["outside"]),
            retrain=document["retrain"],
            opened_ms=document["openedMs"],
            updated_ms=document["updatedMs"],
            notified_ms=document["notifiedMs"],
            acts=tuple(map(Act.from_dict, document["acts"])),
        )


def cleaned(text: str, longest: int = 500) -> str:
    """Text from outside, on one line and not longer than that."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def first_owner(*names: str | None) -> str:
    """The first that is somebody; with nobody, whoever administers the trust roots."""
    for name in names:
        found = cleaned(name or "", 256).strip()
        if found.lower() not in _NOBODY:
            return found
    return "administrators"
