"""An alert about drift: what it says, and what follows from one more window. Pure.

An alert belongs to a version and the route that serves it (none: scored in batches), and has an
owner, always. While one is open, whatever else is seen there goes into it: a storm of bad windows
is one alert. People are told when it opens, when it gets worse, and once more after each quiet
period while nobody has acknowledged it. It closes by itself after some windows in a row that were
judged and found well, unless somebody outside raised it too, or the version was quarantined: what
a monitor does not see, it cannot take back.

*open* → *acknowledged* → *closed*, or *quarantined* by a person's signature (and then closed by a
person). What gets worse after somebody acknowledged it is open again.

Example::

    step = opened(identity, sighting, now_ms=now)
    step = after(step.alert, next_sighting, AlertRules(), now_ms=later)
    step.alert.windows, step.changes, step.notify      # 2, (), False
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from governance.alert_records import (
    Act,
    Alert,
    AlertIdentity,
    AlertLevel,
    AlertState,
    Change,
    Sighting,
    cleaned,
)
from governance.deployment_records import time_text
from governance.errors import ConflictError, RefusedError

__all__ = ["AlertRules", "Step", "after", "opened", "with_act"]

_MOST_REASONS = 20
_MOST_PARTS = 10


@dataclass(frozen=True, slots=True)
class AlertRules:
    """When people are told again, and when an alert closes by itself.

    Attributes:
        quiet_ms: Nobody is told of the same trouble twice within this time.
        ok_windows: Judged windows in a row without a finding that close an alert.
    """

    quiet_ms: int = 86_400_000
    ok_windows: int = 3


@dataclass(frozen=True, slots=True)
class Step:
    """An alert after something was seen.

    Attributes:
        alert: As it is now.
        changes: What belongs on the ledger.
        notify: Whether its owner is told.
    """

    alert: Alert
    changes: tuple[Change, ...] = ()
    notify: bool = False


def _merged(alert: Alert, seen: Sighting, *, now_ms: int) -> Alert:
    """With one finding more; what it says nothing of stays."""
    first = seen.first_ms if seen.first_ms is not None else seen.at_ms
    # Windows are seen in their order; a lower index is of a monitor that began anew.
    last = alert.last_window if seen.window is None else seen.window
    windows = [one for one in (alert.first_window, last) if one is not None]
    outside = (*alert.outside, seen.outside) if seen.outside else alert.outside
    return replace(
        alert,
        first_window=min(windows, default=None),
        last_window=last,
        first_ms=min(alert.first_ms, first),
        last_ms=max(alert.last_ms, seen.at_ms),
        windows=alert.windows + 1,
        ok_windows=0,
        reasons=_reasons(seen.reasons) or alert.reasons,
        worst=seen.worst[:_MOST_PARTS] or alert.worst,
        slices=seen.slices[:_MOST_PARTS] or alert.slices,
        quarantine=_reasons(seen.quarantine) or alert.quarantine,
        profile=seen.profile or alert.profile,
        report=seen.report or alert.report,
        outside=tuple(dict.fromkeys(outside))[:_MOST_PARTS],
        updated_ms=now_ms,
    )


def _reasons(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(cleaned(text) for text in texts[:_MOST_REASONS])


def opened(
    identity: AlertIdentity,
    seen: Sighting,
    rules: AlertRules,
    *,
    now_ms: int,
    before: Alert | None = None,
) -> Step | None:
    """A new alert, if what was seen is one: a warning alone is none.

    Args:
        identity: Which it would be.
        seen: What was seen.
        rules: When people are told.
        now_ms: The time.
        before: The last alert of the same version and route, which is closed. One that closed by
            itself a moment ago, and comes back no worse, is told of once.
    """
    if seen.level is None or seen.level is AlertLevel.WARN:
        return None
    at_ms = seen.first_ms if seen.first_ms is not None else seen.at_ms
    blank = Alert(
        identity=identity,
        level=seen.level,
        state=AlertState.OPEN,
        first_window=None,
        last_window=None,
        first_ms=at_ms,
        last_ms=seen.at_ms,
        windows=0,
        ok_windows=0,
        reasons=(),
        worst=(),
        slices=(),
        quarantine=(),
        profile="",
        report="",
        outside=(),
        retrain={},
        opened_ms=now_ms,
        updated_ms=now_ms,
        notified_ms=now_ms,
    )
    alert = _merged(blank, seen, now_ms=now_ms)
    told = before is not None and _came_back(before, seen.level, rules, now_ms)
    if told and before is not None:
        alert = replace(alert, notified_ms=before.notified_ms)
    proposed = (Change.PROPOSED,) if seen.level is AlertLevel.QUARANTINE else ()
    return Step(alert, (Change.OPENED, *proposed), notify=not told)


def _came_back(before: Alert, level: AlertLevel, rules: AlertRules, now_ms: int) -> bool:
    """Whether it is what people were told of a moment ago, and nobody said that it was over."""
    by_itself = bool(before.acts) and not before.acts[-1].by
    lately = now_ms - before.notified_ms < rules.quiet_ms
    return by_itself and lately and before.level.rank >= level.rank


def after(alert: Alert, seen: Sighting, rules: AlertRules, *, now_ms: int) -> Step:
    """A live alert after something more was seen."""
    if seen.level is None:
        return _after_well(alert, seen, rules, now_ms=now_ms)
    # What only somebody outside had raised is news when a monitor finds it too.
    first = bool(seen.report) and not alert.report and seen.level is not AlertLevel.WARN
    known = seen.level.rank <= alert.level.rank and not first
    merged = _merged(alert, seen, now_ms=now_ms)
    if alert.state is AlertState.QUARANTINED:
        # It was taken down: what still comes in is counted, unless it goes on and on.
        return _reminding(merged, seen, rules, now_ms=now_ms)
    if not known:
        level = max(seen.level, alert.level, key=lambda one: one.rank)
        worse = replace(merged, level=level, state=AlertState.OPEN, notified_ms=now_ms)
        proposes = seen.level is AlertLevel.QUARANTINE
        proposed = (Change.PROPOSED,) if proposes else ()
        return Step(worse, (Change.ESCALATED, *proposed), notify=True)
    if alert.state is AlertState.OPEN:
        return _reminding(merged, seen, rules, now_ms=now_ms)
    return Step(merged)


def _reminding(alert: Alert, seen: Sighting, rules: AlertRules, *, now_ms: int) -> Step:
    """People are told again after a quiet time."""
    if now_ms - alert.notified_ms < rules.quiet_ms or seen.level is AlertLevel.WARN:
        return Step(alert)
    return Step(replace(alert, notified_ms=now_ms), notify=True)


def _after_well(alert: Alert, seen: Sighting, rules: AlertRules, *, now_ms: int) -> Step:
    if not seen.judged or alert.state is AlertState.QUARANTINED:
        return Step(alert)
    well = alert.ok_windows + 1
    counted = replace(alert, ok_windows=well, updated_ms=now_ms)
    if alert.outside or well < rules.ok_windows:
        return Step(counted)
    reason = f"{well} windows in a row were judged and found well"
    act = Act(AlertState.CLOSED, "", "", reason, now_ms)
    closed = replace(counted, state=AlertState.CLOSED, acts=(*alert.acts, act))
    return Step(closed, (Change.CLOSED,))


def with_act(alert: Alert, act: Act) -> Alert:
    """An alert after a person acted.

    Raises:
        ConflictError: somebody did so already, or it is closed; says who and when.
        RefusedError: there is nothing to sign off.
    """
    if alert.state is AlertState.CLOSED or alert.state is act.kind:
        last = next(one for one in reversed(alert.acts) if one.kind is alert.state)
        raise ConflictError(
            f"alert {alert.alert_id[:12]} was {alert.state.value} already, by "
            f"{last.by or 'itself'} at {time_text(last.at_ms)}",
            "`chancery drift alerts` shows those that are open",
            subject=alert.uri,
        )
    if act.kind is AlertState.ACKNOWLEDGED and alert.state is AlertState.QUARANTINED:
        raise ConflictError(
            f"alert {alert.alert_id[:12]} ended in a quarantine",
            "close it when the version was replaced or repaired",
            subject=alert.uri,
        )
    if act.kind is AlertState.QUARANTINED and not alert.quarantine:
        raise RefusedError(
            f"no quarantine is proposed by alert {alert.alert_id[:12]}, so there is nothing to "
            "sign off",
            "`chancery deploy quarantine` takes a version off its route without a proposal",
            subject=alert.uri,
        )
    act = replace(act, reason=cleaned(act.reason, 2000), window=alert.last_window)
    return replace(alert, state=act.kind, acts=(*alert.acts, act), updated_ms=act.at_ms)
