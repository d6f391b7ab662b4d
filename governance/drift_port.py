"""The port to what drift leads to: reports, alerts, and what people do about them.

``mlflow_plugins`` implements it on a governed database and over REST; it is found through the
entry-point group ``chancery.drift``, so that neither this package nor ``drift`` imports it.

Example::

    port = open_drift("governed+sqlite:///mlflow.db")
    port.publish(report.to_json(), bundle)
    port.acknowledge(port.alerts("fraud")[0].alert.alert_id, "I am looking into it")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

from governance.alert_records import Alert
from governance.drift_records import StoredAlert
from governance.errors import ConfigurationError
from governance.signing.drift_statements import Binding

__all__ = ["AlertOrder", "DriftPort", "Published", "open_drift"]


@dataclass(frozen=True, slots=True)
class Published:
    """What became of a report.

    Attributes:
        recorded: False: it, or a later one on the same subject, was there already, and nothing
            changed.
        alert: The alert that it opened, updated or closed; None: none.
        acknowledged: The last window of its subject whose alarm a person has seen; None: none.
    """

    recorded: bool
    alert: Alert | None = None
    acknowledged: int | None = None


@dataclass(frozen=True, slots=True)
class AlertOrder:
    """An alert that somebody outside raises.

    Attributes:
        model: Name of the registered model.
        version: Its number.
        source: What found it.
        reasons: Sentences; at least one.
        deployment: Route that serves it; empty: none is meant.
        columns: Names of columns, the worst first.
        quarantine: Why a quarantine is proposed; empty: it is not.
        warn: It is a warning: it goes into an alert that is open, and opens none.
    """

    model: str
    version: int
    source: str
    reasons: tuple[str, ...]
    deployment: str = ""
    columns: tuple[str, ...] = ()
    quarantine: tuple[str, ...] = ()
    warn: bool = False


class DriftPort(Protocol):
    """Every method raises a ``GovernanceError`` with a remedy when it cannot do as asked."""

    def binding(self, model: str, version: int) -> Binding:
        """Incarnation and files of a version: what a report is signed for.

        Raises:
            NotFoundError: there is no such version.
            UnreachableError: the digest of its files is not known.
        """
        ...

    def publish(
        self, document: bytes, bundle: str | None, datasets: Sequence[str] = ()
    ) -> Published:
        """Take a report, once, and do what follows from it.

        Args:
            document: ``chancery.drift-report/v1``.
            bundle: The monitor's signature (``governance.signing.drift_statements``); None: it is
                not signed, which counts for no gate, and is taken beside the database only.
            datasets: ``name#digest`` of what the profile was made from.

        Raises:
            MalformedRequestError: it is no such report, or from the future.
            VerificationError: signed by nobody who may, or for another version, profile or report.
        """
        ...

    def raise_alert(self, order: AlertOrder) -> Alert | None:
        """Take an alert of somebody outside; None: a warning, and no alert is open.

        Raises:
            RefusedError: who raises it is not proven, or raises too many.
            NotFoundError: there is no such version, or no such deployment of it.
        """
        ...

    def status(self, model: str) -> Mapping[str, Any]:
        """``chancery.drift-status/v1``: last report and open alerts of each version watched."""
        ...

    def alerts(self, model: str | None = None, *, closed: bool = False) -> Sequence[StoredAlert]:
        """Newest first; those that are closed only when asked for."""
        ...

    def alert(self, name: str) -> StoredAlert:
        """By id, or at least six digits of it."""
        ...

    def acknowledge(self, name: str, reason: str) -> Alert:
        """Somebody has seen it.

        Raises:
            RefusedError: who asks is neither its owner nor an approver of the model, or is not
                proven.
        """
        ...

    def close(self, name: str, reason: str) -> Alert:
        """It is over. Who may is as for ``acknowledge``."""
        ...

    def quarantine(self, name: str, bundle: str, reason: str) -> Alert:
        """Take the version off its route, as the alert proposes and a person signed.

        Args:
            name: Of the alert.
            bundle: A person's signature over the alert's proposal.
            reason: Why.

        Raises:
            VerificationError: not signed by somebody who may approve, or something else is signed.
            RefusedError: nothing is proposed, or the version is not what would be taken down.
        """
        ...


def open_drift(uri: str) -> DriftPort:
    """The drift of a store.

    Raises:
        ConfigurationError: no installed package provides it, or the URI is not supported.
    """
    for point in entry_points(group="chancery.drift"):
        opened: DriftPort = point.load()(uri)
        return opened
    raise ConfigurationError(
        "no package provides alerts about drift for chancery",
        "reinstall with `pip install mlflow-chancery`",
    )
