"""How much a deployment gets: its ``resources`` document, and what may be in it.

::

    replicas     2                    of each variant, or those it begins with
    scale        {"replicas": "1..8", "target_rps": "50", "schedule": [...], ...}
    numCpus      "0.5"                of each replica, as Ray counts them; numGpus likewise
    gateways     2                    listeners of the route on each machine that has any
    gatewayCpus  "0.5"                of each
    gatewayPool  "edge"               node pool that they run in; left out: any
    accessLog    "/var/log/chancery"  their folder, on each node
    host         "127.0.0.1"

The document has no floats, so that it can lie in an event; other keys are refused. A schedule's
window reads ``Mon-Fri 08:00-18:00 Europe/Berlin = 4..8``: days (left out: all), the time of day
there, the zone, and how many replicas there may be. One that ends before it begins ends on the next
day.

Example::

    scale = Scale.of({"replicas": "0..4", "idle_seconds": 300})
    scale.least, scale.most, scale.to_document()
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any
from zoneinfo import ZoneInfo

from governance.errors import RefusedError
from governance.gates.document import Document, dotted, parse_document

__all__ = [
    "MOST_REPLICAS",
    "Scale",
    "Window",
    "checked_resources",
    "parse_range",
    "parse_scale",
    "resources_after",
    "resources_for",
    "scale_of",
]

MOST_REPLICAS = 1000

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_RANGE = re.compile(r"([0-9]{1,4})(?:\s*\.\.\s*([0-9]{1,4}))?")
_WINDOW = re.compile(
    r"(?:(?P<days>[A-Za-z]{3}[A-Za-z,\s-]*?)\s+)?"
    r"(?P<begin>[0-9]{1,2}:[0-9]{2})\s*-\s*(?P<end>[0-9]{1,2}:[0-9]{2})\s+"
    r"(?P<zone>[A-Za-z][A-Za-z0-9_+/-]*)\s*=\s*(?P<range>[0-9. ]+)"
)
_POOL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_SECONDS = {"idle_seconds": 600, "quiet_seconds": 120, "prewarm_seconds": 300, "hold_seconds": 60}
_MOST_SECONDS = {"hold_seconds": 600, "prewarm_seconds": 86400}
_TARGETS = ("target_rps", "target_in_flight")
_NUMBERS = ("numCpus", "numGpus", "gatewayCpus")


def _refused(message: str, remedy: str) -> RefusedError:
    return RefusedError(message, remedy)


def parse_range(text: str | int) -> tuple[int, int]:
    """``3`` or ``1..8``.

    Raises:
        RefusedError: neither, or nothing that could run.
    """
    found = _RANGE.fullmatch(str(text).strip())
    if found is None:
        raise _refused(f"{str(text)[:40]!r} is no number of replicas", "write 3 or 1..8")
    least = int(found[1])
    most = int(found[2]) if found[2] else least
    if not least <= most <= MOST_REPLICAS or (found[2] and most == 0):
        raise _refused(
            f"there cannot be {str(text).strip()} replicas",
            f"write the smaller number first; at most {MOST_REPLICAS}, and 1 at least at the end",
        )
    return least, most


@dataclass(frozen=True, slots=True)
class Window:
    """A time of the week with bounds of its own.

    Attributes:
        days: On which it begins; Monday is 0.
        begin: Minutes since midnight.
        end: Likewise; not after ``begin``: on the next day.
        zone: IANA time zone.
        least: Replicas in it, at least.
        most: Replicas in it, at most.
    """

    days: tuple[int, ...]
    begin: int
    end: int
    zone: str
    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> Window:
        """``Mon-Fri 08:00-18:00 Europe/Berlin = 4..8``.

        Raises:
            RefusedError: it does not read so, or there is no such day, time or zone.
        """
        found = _WINDOW.fullmatch(text.strip())
        if found is None:
            raise _refused(
                f"{text[:100]!r} is no time window",
                "write it as 'Mon-Fri 08:00-18:00 Europe/Berlin = 4..8'",
            )
        zone = found["zone"]
        try:
            ZoneInfo(zone)
        except (KeyError, ValueError, OSError) as error:
            raise _refused(
                f"there is no time zone {zone!r}", "name one as Europe/Berlin or UTC"
            ) from error
        begin, end = _minutes(found["begin"]), _minutes(found["end"], last=1440)
        if begin == end:
            raise _refused(
                f"{text.strip()!r} ends when it begins", "write 00:00-24:00 for a whole day"
            )
        least, most = parse_range(found["range"])
        return cls(_days(found["days"]), begin, end, zone, least, most)

    def __str__(self) -> str:
        days = "" if len(self.days) == 7 else ",".join(_DAYS[d].title() for d in self.days) + " "
        times = "-".join(f"{at // 60:02}:{at % 60:02}" for at in (self.begin, self.end))
        return f"{days}{times} {self.zone} = {_range(self.least, self.most)}"


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least}..{most}"


def _minutes(text: str, last: int = 1439) -> int:
    hours, minutes = map(int, text.split(":"))
    if minutes > 59 or hours * 60 + minutes > last:
        raise _refused(f"{text!r} is no time of day", "write 08:00 to 23:59, or 24:00 as an end")
    return hours * 60 + minutes


def _days(text: str | None) -> tuple[int, ...]:
    if not text:
        return tuple(range(7))
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        numbers = [_day(first), _day(last) if dash else _day(first)]
        span = (numbers[1] - numbers[0]) % 7
        found |= {(numbers[0] + step) % 7 for step in range(span + 1)}
    return tuple(sorted(found))


def _day(text: str) -> int:
    short = text.lower()[:3]
    full = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
    if short not in _DAYS or not full[_DAYS.index(short)].startswith(text.lower()):
        raise _refused(f"{text!r} is no day of the week", "write Mon, Tue, Wed, Thu, Fri, Sat, Sun")
    return _DAYS.index(short)


@dataclass(frozen=True, slots=True)
class Scale:
    """How many replicas a variant has, and when.

    Attributes:
        least: At least; 0: none while nobody asks.
        most: At most.
        target_rps: Requests a second that one replica should answer; None: not looked at.
        target_in_flight: Requests that should be at one replica at a time; None: not looked at.
            Without either, 8 requests at a time are meant.
        idle_s: Without a request, after which the last replica ends (``least`` is 0).
        quiet_s: For which fewer must do before there are fewer.
        prewarm_s: Before a window begins, its replicas are started.
        hold_s: How long a request waits for the first replica.
        schedule: Times with other bounds; where several hold, the highest count.
    """

    least: int = 1
    most: int = 1
    target_rps: float | None = None
    target_in_flight: float | None = None
    idle_s: int = _SECONDS["idle_seconds"]
    quiet_s: int = _SECONDS["quiet_seconds"]
    prewarm_s: int = _SECONDS["prewarm_seconds"]
    hold_s: int = _SECONDS["hold_seconds"]
    schedule: tuple[Window, ...] = ()

    @property
    def targets(self) -> tuple[tuple[float, str], ...]:
        """What one replica is for, each with its measure: ``rps`` or ``in_flight``."""
        found = ((self.target_rps, "rps"), (self.target_in_flight, "in_flight"))
        return tuple((t, name) for t, name in found if t is not None) or ((8.0, "in_flight"),)

    @property
    def may_sleep(self) -> bool:
        """Whether there may be no replica at all at some time."""
        return self.least == 0 or any(window.least == 0 for window in self.schedule)

    @property
    def held_s(self) -> float:
        """How long requests are held; 0 where there always is a replica."""
        return float(self.hold_s) if self.may_sleep else 0.0

    @property
    def begins_with(self) -> int:
        """Replicas of a variant that nobody has asked yet."""
        return max(1, self.least)

    def to_document(self) -> dict[str, Any]:
        """For the ``resources`` document."""
        found: dict[str, Any] = {"replicas": _range(self.least, self.most)}
        for name in _TARGETS:
            if (value := getattr(self, name)) is not None:
                found[name] = f"{value:.10g}"
        for name in _SECONDS:
            found[name] = getattr(self, name.replace("_seconds", "_s"))
        return found | {"schedule": [str(window) for window in self.schedule]}

    @classmethod
    def of(cls, document: Any) -> Scale:
        """Inverse of ``to_document``; what is left out has its default.

        Raises:
            RefusedError: the first mistake, with the field it is in.
        """
        return _scale(Document("scale", document), lines=False)


def parse_scale(text: str, name: str = "scale.yaml") -> Scale:
    """A scale from YAML.

    Raises:
        RefusedError: malformed; names line and field of the first mistake.
        PolicyError: not YAML.
    """
    return _scale(parse_document(text, name), lines=True)


def scale_of(resources: Mapping[str, Any]) -> Scale | None:
    """What a deployment was given; None: a fixed number of replicas.

    That of a later version, which cannot be read here, counts as fixed at what it began with.
    """
    try:
        return Scale.of(resources["scale"]) if resources.get("scale") else None
    except RefusedError:
        return None


def _scale(document: Document, *, lines: bool) -> Scale:
    found = document.value
    if not isinstance(found, dict):
        raise _refused(
            f"{document.name}: not a mapping", "write keys and values, as replicas: 1..8"
        )
    fields: dict[str, Any] = {}
    for key, value in found.items():
        try:
            fields |= dict(_field(key, value))
        except RefusedError as error:
            of_key = key not in (*_SECONDS, *_TARGETS, "replicas", "schedule")
            line = f", line {document.line((key,), of_key=of_key)}" if lines else ""
            place = f"{document.name}{line}, {dotted((str(key),))}"
            raise _refused(f"{place}: {error.message}", error.remedy) from error
    if "least" not in fields:
        raise _refused(f"{document.name}: the key 'replicas' is missing", "add replicas: 1..8")
    return Scale(**fields)


def _field(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if key == "replicas":
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise _refused(f"{value!r} is no number of replicas", "write 3 or 1..8")
        least, most = parse_range(value)
        if most == 0:
            raise _refused("there would never be a replica", "write 0..1")
        yield from (("least", least), ("most", most))
    elif key in _TARGETS:
        yield key, _number(value, least=0.001)
    elif key in _SECONDS:
        most = _MOST_SECONDS.get(key, 7 * 86400)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise _refused(f"{value!r} are no seconds", f"write a whole number up to {most}")
        yield key.replace("_seconds", "_s"), value
    elif key == "schedule":
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise _refused("not a list of time windows", "write each as a line that begins with -")
        yield key, tuple(Window.parse(one) for one in value)
    else:
        known = ("replicas", *_TARGETS, *_SECONDS, "schedule")
        close = get_close_matches(str(key), known, n=1, cutoff=0.55)
        remedy = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        raise _refused("unknown key", remedy)


def _number(value: Any, *, least: float) -> float:
    try:
        number = float(value)
        if isinstance(value, bool) or not least <= number < 1e9:
            raise ValueError
    except (TypeError, ValueError) as error:
        raise _refused(f"{value!r} is not a number that can be meant", "write 50 or 0.5") from error
    return number


def checked_resources(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What somebody asks for, as it is kept; ``replicas``, ``scale`` and ``host`` are not in it.

    Raises:
        RefusedError: an unknown name, or a value that cannot be.
    """
    found: dict[str, Any] = {}
    for name, value in asked.items():
        if name in _NUMBERS:
            number = _resource(name, value)
            if name == "numGpus" and number > 1 and number != int(number):
                raise _refused(
                    f"{name}: {number:g} GPUs cannot be given",
                    "ask for a whole number, or for a part of one, as 0.5",
                )
            found[name] = str(value)
        elif name == "gateways":
            number = _resource(name, value)
            if not 1 <= number <= 100 or number != int(number):
                raise _refused(f"{name}: {value!r} listeners cannot be", "ask for 1 to 100")
            found[name] = int(number)
        elif name == "gatewayPool":
            if not isinstance(value, str) or not _POOL.fullmatch(value):
                raise _refused(
                    f"{name}: {value!r} cannot be a node's label",
                    "use letters, digits, '-', '_' and '.', as in edge",
                )
            found[name] = value
        elif name == "accessLog":
            if not isinstance(value, str) or (value and not value.startswith("/")):
                raise _refused(
                    f"{name}: {value!r} is not the path of a folder from the root on",
                    "name a folder that each node has, or may make",
                )
            found[name] = value
        else:
            raise _refused(
                f"{name!r} is not something that a deployment can be given",
                f"known: {', '.join((*_NUMBERS, 'gateways', 'gatewayPool', 'accessLog'))}",
            )
    return found


def resources_for(
    asked: Mapping[str, Any], host: str, replicas: int | None, scale: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The document of a new deployment.

    Raises:
        RefusedError: something in it cannot be.
    """
    return {**checked_resources(asked), "host": host, **_sized(replicas, scale)}


def resources_after(
    before: Mapping[str, Any],
    replicas: int | None,
    scale: Mapping[str, Any] | None,
    changed: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The document of a deployment that is scaled.

    Raises:
        RefusedError: nothing changes, or to what cannot be.
    """
    if replicas is None and scale is None and not changed:
        raise _refused("it is not said what changes", "name --replicas, or another option")
    found = {**before, **checked_resources(changed or {})}
    if replicas is None and scale is None:
        return found
    found.pop("scale", None)
    return {**found, **_sized(replicas, scale)}


def _sized(replicas: int | None, scale: Mapping[str, Any] | None) -> dict[str, Any]:
    if scale is None:
        number, _ = parse_range(1 if replicas is None else replicas)
        if number == 0:
            raise _refused("nobody would ever answer", "write 0..1 for a model that may sleep")
        return {"replicas": number}
    if replicas is not None:
        raise _refused("a number of replicas and a scale are two answers", "leave out one of them")
    found = Scale.of(scale)
    return {"replicas": found.begins_with, "scale": found.to_document()}


def _resource(name: str, value: Any) -> float:
    try:
        number = float(value)
        if isinstance(value, bool) or not 0 <= number < 10_000:
            raise ValueError
    except (TypeError, ValueError) as error:
        raise _refused(f"{name}: {value!r} is not a number", "write 1 or 0.5") from error
    return number
