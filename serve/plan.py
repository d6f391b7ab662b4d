"""What the listeners are told to do, and what they tell in return.

A controller decides, a gateway obeys: every quarter of a second the gateway reports what each
variant did since its last report, and gets the plan in the same call. A gateway that cannot reach
the controller keeps its last plan (fail static), and its counts until the next report.

Example::

    plan = Plan(
        revision=3,
        variants=(VariantPlan("stable", "fraud", "3", folder), VariantPlan("canary", …)),
        weights=(("canary", 5.0), ("stable", 95.0)),
        salt="fraud/r1",
    )
    plan = port.exchange(Report("gateway-1", 17, {"canary": delta}))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

from governance.arms import Stretches
from serve.agreement import Agreement
from serve.delta import Delta
from serve.observing import Observed, Observing

__all__ = [
    "About",
    "ControllerPort",
    "ExperimentPlan",
    "Load",
    "Plan",
    "Report",
    "ShadowPlan",
    "VariantPlan",
]


@dataclass(frozen=True, slots=True)
class About:
    """Which deployment a plan is of; for metrics and traces only.

    Attributes:
        deployment: Its id.
        route: Where clients reach it.
        environment: Whose gate applies.
        rollout: The rollout that runs, or the last one; empty: there was none.
        phase: Of that rollout (``serve.records.Phase``).
        step: Of that rollout, 0-based.
        steps: How many it has.
    """

    deployment: str = ""
    route: str = ""
    environment: str = ""
    rollout: str = ""
    phase: str = ""
    step: int = 0
    steps: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> About:
        """Inverse of ``to_dict``; parts of another release may be missing, or too many."""
        return cls(**{one.name: document[one.name] for one in fields(cls) if one.name in document})


@dataclass(frozen=True, slots=True)
class VariantPlan:
    """One variant that a gateway may ask.

    Attributes:
        name: ``stable``, ``canary``, or an experiment's arm.
        model: Registered name.
        version: Version in the registry.
        application: Name of its Ray Serve application; its replicas' sockets are named after it.
        timeout_s: Of one request.
        max_concurrency: Requests at a time; None: as many as its queue holds.
        statement: By which it was let into its environment, where that is known.
        hold_s: How long a request waits when no replica runs; 0: it is refused at once.
    """

    name: str
    model: str
    version: str
    application: str
    timeout_s: float = 60.0
    max_concurrency: int | None = None
    statement: str = ""
    hold_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "model": self.model,
            "version": self.version,
            "application": self.application,
            "timeoutSeconds": repr(float(self.timeout_s)),
            "maxConcurrency": self.max_concurrency,
            "statement": self.statement,
            "holdSeconds": repr(float(self.hold_s)),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> VariantPlan:
        """Inverse of ``to_dict``."""
        return cls(
            document["name"],
            document["model"],
            document["version"],
            document["application"],
            float(document["timeoutSeconds"]),
            document["maxConcurrency"],
            document.get("statement", ""),
            float(document.get("holdSeconds", 0)),
        )


@dataclass(frozen=True, slots=True)
class ShadowPlan:
    """A variant that gets copies of requests, and whose answers nobody sees.

    Attributes:
        name: Of the variant.
        id: Of the shadow, in reports.
        percent: Part of the requests that is copied.
        max_in_flight: Copies at a time, at each gateway; more are dropped and counted.
        compare: Whether its answers are compared with stable's.
    """

    name: str
    id: str = ""
    percent: float = 100.0
    max_in_flight: int = 32
    compare: bool = True

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without floats."""
        return {
            "name": self.name,
            "id": self.id,
            "percent": f"{self.percent:.10g}",
            "maxInFlight": self.max_in_flight,
            "compare": self.compare,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ShadowPlan:
        """Inverse of ``to_dict``."""
        return cls(
            document["name"],
            document["id"],
            float(document["percent"]),
            document["maxInFlight"],
            document["compare"],
        )


@dataclass(frozen=True, slots=True)
class ExperimentPlan:
    """Whose clients are whose, instead of ``weights`` (``serve.split.ArmSplit``).

    Attributes:
        id: Of the experiment, in reports.
        name: By which keys are dealt.
        stretches: Whose which piece of the line is; an arm without a weight is answered by stable.
    """

    id: str
    name: str
    stretches: Stretches

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": self.id,
            "name": self.name,
            "stretches": [list(piece) for piece in self.stretches],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ExperimentPlan:
        """Inverse of ``to_dict``."""
        stretches = tuple((name, parts) for name, parts in document["stretches"])
        return cls(document["id"], document["name"], stretches)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a gateway does until it is told otherwise.

    Attributes:
        revision: Grows with every change; a gateway never goes back to a lower one.
        variants: Whom it may ask; the first of the name ``stable`` answers again what another
            variant could not.
        weights: Percent by variant, stable last (``serve.split.Split``); empty: nobody answers.
        salt: Of the sticky split.
        sticky: Where the key is (``header:…``, ``cookie:…``, ``field:…``); None: drawn.
        override: Header by which a tester names a variant; None: nobody may.
        retry_on_stable: Whether stable answers again what another variant could not.
        shadows: Variants that get copies of requests.
        closed: Why nobody answers (revoked, quarantined); the text of the 503.
        about: Which deployment it is of.
        observing: What is observed of answers besides their counts; None: nothing.
        experiment: Deals clients out to arms; ``weights`` then says what each arm has.
    """

    revision: int
    variants: tuple[VariantPlan, ...]
    weights: tuple[tuple[str, float], ...]
    salt: str = ""
    sticky: str | None = None
    override: str | None = "x-chancery-variant"
    retry_on_stable: bool = True
    shadows: tuple[ShadowPlan, ...] = ()
    closed: str = ""
    about: About = About()
    observing: Observing | None = None
    experiment: ExperimentPlan | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without floats."""
        return {
            "revision": self.revision,
            "variants": [variant.to_dict() for variant in self.variants],
            "weights": [[name, f"{share:.10g}"] for name, share in self.weights],
            "salt": self.salt,
            "sticky": self.sticky,
            "override": self.override,
            "retryOnStable": self.retry_on_stable,
            "shadows": [shadow.name for shadow in self.shadows],
            "closed": self.closed,
            "about": self.about.to_dict(),
            "observing": None if self.observing is None else self.observing.to_dict(),
            **({"shadowPlans": [s.to_dict() for s in self.shadows]} if self.shadows else {}),
            **({"experiment": self.experiment.to_dict()} if self.experiment else {}),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Plan:
        """Inverse of ``to_dict``; a part that came later may be missing."""
        observing = document.get("observing")
        told = document.get("shadowPlans")
        if told is None:
            shadows = tuple(ShadowPlan(name) for name in document["shadows"])
        else:
            shadows = tuple(ShadowPlan.from_dict(shadow) for shadow in told)
        experiment = document.get("experiment")
        return cls(
            document["revision"],
            tuple(VariantPlan.from_dict(variant) for variant in document["variants"]),
            tuple((name, float(share)) for name, share in document["weights"]),
            document["salt"],
            document["sticky"],
            document["override"],
            document["retryOnStable"],
            shadows,
            document["closed"],
            about=About.from_dict(document.get("about", {})),
            observing=None if observing is None else Observing.from_dict(observing),
            experiment=None if experiment is None else ExperimentPlan.from_dict(experiment),
        )


@dataclass(frozen=True, slots=True)
class Load:
    """What a gateway has to do with one application.

    Attributes:
        asked: Requests since the gateway began; only grows.
        in_flight: On their way now.
        held: Waiting now, because no replica runs.
    """

    asked: int = 0
    in_flight: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What a gateway saw since its last report.

    Attributes:
        source: Which gateway; unique for each start of its process.
        sequence: Its count of reports; one that was not answered is sent again under its number.
        deltas: By variant.
        lanes: Live connections by variant: 0 means that it cannot be asked here.
        observed: What it observes of answers, and how that does.
        experiment: Id of the experiment whose arms the deltas are of; empty: none.
        shadows: By a shadow's id, what its answers were beside stable's.
        load: By application.
    """

    source: str
    sequence: int
    deltas: Mapping[str, Delta] = field(default_factory=dict)
    lanes: Mapping[str, int] = field(default_factory=dict)
    observed: Observed = Observed()  # noqa: RUF009 - frozen
    experiment: str = ""
    shadows: Mapping[str, Agreement] = field(default_factory=dict)
    load: Mapping[str, Load] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without floats."""
        return {
            "source": self.source,
            "sequence": self.sequence,
            "deltas": {name: delta.to_dict() for name, delta in self.deltas.items()},
            "lanes": dict(self.lanes),
            "observed": self.observed.to_dict(),
            "experiment": self.experiment,
            "shadows": {name: found.to_dict() for name, found in self.shadows.items()},
            "load": {
                name: [load.asked, load.in_flight, load.held] for name, load in self.load.items()
            },
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Report:
        """Inverse of ``to_dict``.

        Raises:
            ValueError: counts that cannot be.
        """
        deltas = {name: Delta.from_dict(found) for name, found in document["deltas"].items()}
        found = document.get("observed")
        shadows = document.get("shadows", {})
        return cls(
            document["source"],
            document["sequence"],
            deltas,
            dict(document["lanes"]),
            Observed() if found is None else Observed.from_dict(found),
            document.get("experiment", ""),
            {name: Agreement.from_dict(found) for name, found in shadows.items()},
            {name: Load(*told) for name, told in document.get("load", {}).items()},
        )


class ControllerPort(Protocol):
    """Whoever decides. May raise anything when it cannot be reached."""

    def exchange(self, report: Report) -> Plan:
        """Take a report, give the plan. The same report twice counts once."""
        ...
