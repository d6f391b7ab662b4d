"""What drift leads to, on a governed database: reports, alerts, what people do about them.

A report counts for what it is signed for: this incarnation of the version, these files, this
profile. Report, alert and their events commit together; people are told after the commit. Who is
refused is on the ledger, as everywhere.

Nothing is taken down here: a person's signature over the alert's proposal leaves a signal for the
deployment's controller, which does it (``governance.deployments.ask``).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from governance import deployments, drift_records, registry
from governance.alert_records import Act, Alert, AlertLevel, AlertState, Sighting, cleaned
from governance.canonical import sha256_hex
from governance.deployment_records import SignalKind
from governance.drift_alerts import Step
from governance.drift_port import AlertOrder, DriftPort, Published
from governance.drift_records import StoredAlert
from governance.drift_reports import DriftReport
from governance.drift_settings import DriftSettings
from governance.errors import (
    ConfigurationError,
    ConflictError,
    MalformedRequestError,
    NotFoundError,
    RefusedError,
    TooManyRequestsError,
    UnreachableError,
    UnsignedError,
    UntrustedKeyError,
    VerificationError,
)
from governance.identity import Actor, ProofLevel, acting_as, current_actor
from governance.records import Candidate
from governance.settings import GOVERNED_PREFIX, Settings
from governance.signing.drift_statements import (
    Binding,
    QuarantineStatement,
    trusted_bundle,
    verify_report,
)
from governance.signing.dsse import parse_bundle
from mlflow_plugins.adoption import adopt
from mlflow_plugins.drift_facts import drift_status, owner_of, proposal_for, retrain_for
from mlflow_plugins.governor import Governor, now_ms
from mlflow_plugins.notifications import Notifier
from mlflow_plugins.refusals import refusals_of

__all__ = ["DriftStore", "open_drift"]

_SLACK_MS = 300_000  # by which two machines' clocks may differ
_ATTEMPTS = 5
_OUTSIDE_EACH_MINUTE = 60

_T = TypeVar("_T")


class DriftStore:
    """Implements ``governance.drift_port.DriftPort`` on a database.

    Args:
        governor: The database's governor.
        settings: Of alerts; None: the environment's.
        notifier: Tells people; None: as the settings say.
    """

    def __init__(
        self,
        governor: Governor,
        settings: DriftSettings | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        self.governor = governor
        self._settings = settings or DriftSettings.load()
        self._notifier = notifier or Notifier(self._settings.addresses)
        self._pace = _Pace(_OUTSIDE_EACH_MINUTE)

    # What monitors do ----------------------------------------------------------------------

    def binding(self, model: str, version: int) -> Binding:
        return _binding(self._candidate(model, version))

    def _candidate(self, model: str, version: int) -> Candidate:
        adopt(self.governor, model, version)
        with self.governor.engine.connect() as connection:
            return registry.candidate(connection, model, version)

    def publish(
        self, document: bytes, bundle: str | None, datasets: Sequence[str] = ()
    ) -> Published:
        report = DriftReport.parse(document)
        with self._refusals_recorded(report.uri):
            if report.made_ms > now_ms() + _SLACK_MS:
                raise MalformedRequestError(
                    f"the drift report on {report.uri} was made in the future",
                    "set the monitor's clock, and send it again",
                )
            candidate = self._candidate(report.model, report.version)
            signer = self._monitor_of(report, candidate, bundle)
            recorded, step, seen = self._in_turn(
                lambda connection: self._take(
                    connection, report, document, candidate, bundle, signer, tuple(datasets)
                )
            )
        self._tell(step)
        return Published(recorded, None if step is None else step.alert, seen)

    def _monitor_of(
        self, report: DriftReport, candidate: Candidate, bundle: str | None
    ) -> str | None:
        """Who signed the report for this very version; None: nobody did, beside the database."""
        if bundle is None:
            if current_actor().proof is ProofLevel.LOCAL:
                return None
            raise UnsignedError(
                f"the drift report on {report.uri} is not signed",
                "sign it with a monitor's key",
            )
        with self.governor.engine.connect() as connection:
            person, statement = verify_report(bundle, self.governor.roots(connection))
        said = statement.binding, statement.report, statement.profile, statement.deployment
        true = _binding(candidate), report.digest, report.profile, report.deployment
        if said != true or statement.made_ms != report.made_ms:
            raise UntrustedKeyError(
                f"{person.id} signed another report, version, profile or time than "
                f"{report.uri}, window {report.window}",
                "sign the report that is sent, for the version as the registry has it now",
            )
        return person.id

    def _take(
        self,
        connection: Connection,
        report: DriftReport,
        document: bytes,
        candidate: Candidate,
        bundle: str | None,
        signer: str | None,
        datasets: tuple[str, ...],
    ) -> tuple[bool, Step | None, int | None]:
        subject = drift_records.hold(connection, candidate, report.deployment)
        acknowledged = drift_records.acknowledged(
            connection, candidate.version_uid, report.deployment
        )
        kept = drift_records.keep_report(
            connection, self.governor.ledger, subject, report, document, bundle, signer
        )
        if not kept:
            return False, None, acknowledged
        step = self._see(
            connection,
            candidate,
            report.deployment,
            report.to_sighting(),
            report.owner,
            datasets,
        )
        return True, step, acknowledged

    def _see(
        self,
        connection: Connection,
        candidate: Candidate,
        deployment: str,
        seen: Sighting,
        owner: str,
        datasets: tuple[str, ...] = (),
    ) -> Step | None:
        step = drift_records.see(
            connection,
            self.governor.ledger,
            candidate,
            deployment,
            seen,
            self._settings.rules,
            lambda: owner_of(
                self.governor, connection, candidate, deployment, owner, self._settings.owner
            ),
            lambda alert: retrain_for(connection, candidate, alert, datasets),
            now_ms=now_ms(),
        )
        if step is not None and step.alert.level is AlertLevel.QUARANTINE and step.alert.live:
            stored = drift_records.find_alert(connection, step.alert.alert_id)
            proposal = proposal_for(connection, stored, _binding(candidate), now_ms=now_ms())
            if proposal is not None:
                drift_records.set_proposal(connection, step.alert, proposal)
        return step

    # What somebody outside does ------------------------------------------------------------

    def raise_alert(self, order: AlertOrder) -> Alert | None:
        subject = f"models:/{order.model}/{order.version}"
        actor = current_actor()
        with self._refusals_recorded(subject):
            if actor.proof.rank < ProofLevel.LOCAL.rank:
                raise RefusedError(
                    f"{actor.id or 'an anonymous client'} ({actor.proof.value}) may not raise an "
                    "alert: it is not proven who that is",
                    "send a signed request (CHANCERY_KEY), or log in",
                    subject=subject,
                )
            if not self._pace.allows(f"{actor.proof.value}/{actor.id}"):
                raise TooManyRequestsError(
                    f"{actor.id} raised {_OUTSIDE_EACH_MINUTE} alerts within a minute",
                    "raise one alert for what belongs together, and not again while it is open",
                    subject=subject,
                )
            candidate = self._candidate(order.model, order.version)
            seen = _sighting(order, actor)
            step = self._in_turn(lambda connection: self._raise(connection, order, candidate, seen))
        self._tell(step)
        return None if step is None else step.alert

    def _raise(
        self, connection: Connection, order: AlertOrder, candidate: Candidate, seen: Sighting
    ) -> Step | None:
        if order.deployment:
            live = deployments.live_on(connection, order.deployment)
            if live is None or candidate.version_uid not in {s.version_uid for s in live.served}:
                raise NotFoundError(
                    f"{candidate.uri} does not answer on a route {order.deployment[:128]!r}",
                    "`chancery deploy list` shows the routes; leave the deployment out for "
                    "batch scoring",
                )
        drift_records.hold(connection, candidate, order.deployment)
        return self._see(connection, candidate, order.deployment, seen, "")

    # What people do ------------------------------------------------------------------------

    def status(self, model: str) -> Mapping[str, Any]:
        with self.governor.engine.connect() as connection:
            return drift_status(connection, model)

    def alerts(self, model: str | None = None, *, closed: bool = False) -> Sequence[StoredAlert]:
        with self.governor.engine.connect() as connection:
            uid = registry.model_uid(connection, model) if model else None
            if model and uid is None:
                raise NotFoundError(f"there is no governed registered model {model!r}")
            return drift_records.list_alerts(connection, model_uid=uid, live=not closed)

    def alert(self, name: str) -> StoredAlert:
        with self.governor.engine.connect() as connection:
            return drift_records.find_alert(connection, name)

    def acknowledge(self, name: str, reason: str) -> Alert:
        return self._act(name, AlertState.ACKNOWLEDGED, reason)

    def close(self, name: str, reason: str) -> Alert:
        return self._act(name, AlertState.CLOSED, reason)

    def _act(self, name: str, kind: AlertState, reason: str) -> Alert:
        with self._changing(name) as (connection, stored):
            actor = current_actor()
            self._require_authority(connection, stored.alert, kind)
            act = Act(kind, actor.id, actor.proof.value, reason, now_ms())
            changed, _ = drift_records.act_on(connection, self.governor.ledger, stored.alert, act)
        return changed

    def _require_authority(self, connection: Connection, alert: Alert, kind: AlertState) -> None:
        """Its owner, an administrator, or whoever may approve the model; a claim is no proof."""
        actor = current_actor()
        if actor.proof is ProofLevel.LOCAL:
            return  # whoever opened the database needs nobody to let them
        roots = self.governor.roots(connection)
        may = actor.proof is ProofLevel.SIGNED and (
            actor.id == alert.owner
            or roots.is_admin(actor.id)
            or any(
                roots.may_approve(actor.id, environment.name, alert.identity.model)
                for environment in self.governor.policy.environments
            )
        )
        if not may:
            verb = {AlertState.ACKNOWLEDGED: "acknowledge", AlertState.CLOSED: "close"}[kind]
            raise RefusedError(
                f"{actor.id or 'an anonymous client'} ({actor.proof.value}) may not {verb} alert "
                f"{alert.alert_id[:12]}, which is {alert.owner}'s",
                "send a signed request (CHANCERY_KEY) by its owner, an approver of the model or "
                "an administrator",
                subject=alert.uri,
            )

    def quarantine(self, name: str, bundle: str, reason: str) -> Alert:
        with self._changing(name) as (connection, stored):
            alert, proposal = stored.alert, stored.proposal
            if alert.quarantine and proposal is None:
                raise RefusedError(
                    f"{alert.uri} answers on no route that alert {alert.alert_id[:12]} is about, "
                    "so there is nothing to take down",
                    f"`chancery revoke {alert.uri}` keeps it from being loaded anywhere",
                    subject=alert.uri,
                )
            person, payload = trusted_bundle(bundle, self.governor.roots(connection))
            if payload != proposal:
                raise UntrustedKeyError(
                    f"{person.id} signed something else than the proposal of alert "
                    f"{alert.alert_id[:12]}",
                    "read the proposal again and sign it (`chancery drift quarantine`)",
                )
            event_id, changed = self._take_down(
                connection, alert, proposal, person.id, bundle, reason
            )
        self.governor.ledger.cover(event_id)
        return changed

    def _take_down(
        self,
        connection: Connection,
        alert: Alert,
        proposal: bytes,
        person: str,
        bundle: str,
        reason: str,
    ) -> tuple[str, Alert]:
        said, keyid = QuarantineStatement.parse(proposal), parse_bundle(bundle).keyid
        roots = self.governor.roots(connection)
        if not roots.is_admin(person) and not roots.may_approve(
            person, said.environment, said.binding.model
        ):
            raise RefusedError(
                f"{person} may not approve {said.binding.model} for {said.environment}, and so not "
                "sign off its quarantine there",
                "ask an administrator for the role, or an approver for the signature",
                subject=alert.uri,
            )
        trace = current_actor().traceparent
        ledger, at_ms = self.governor.ledger, now_ms()
        with acting_as(Actor(person, ProofLevel.SIGNED, keyid=keyid, traceparent=trace)):
            record = deployments.by_id(connection, said.deploy_id)
            words = f"{cleaned(reason, 1000) or 'drift'} (alert {alert.alert_id[:12]})"
            deployments.ask(connection, ledger, record, SignalKind.QUARANTINE, words, now_ms=at_ms)
            held = deployments.by_id(connection, said.deploy_id)  # as it is under its row's lock
            target = held.canary or held.stable
            if target.version_uid != said.binding.version_uid:
                raise ConflictError(
                    f"what would be taken off the route {held.route!r} now is "
                    f"{held.uri_of(target)}, not {alert.uri}",
                    f"end what runs there (`chancery deploy abort {held.route}`), and sign again",
                    subject=alert.uri,
                )
            act = Act(AlertState.QUARANTINED, person, ProofLevel.SIGNED.value, reason, at_ms)
            more = {
                "keyid": keyid,
                "bundleDigest": sha256_hex(bundle.encode()),
                "deployId": held.deploy_id,
            }
            changed, event_id = drift_records.act_on(connection, ledger, alert, act, more)
        drift_records.set_signoff(connection, alert, bundle)
        return event_id, changed

    # What is shared ------------------------------------------------------------------------

    def _in_turn(self, work: Callable[[Connection], _T]) -> _T:
        """In a transaction; again when another took the same number at the same moment."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self.governor.engine.begin() as connection:
                    return work(connection)
            except IntegrityError:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    @contextmanager
    def _changing(self, name: str) -> Iterator[tuple[Connection, StoredAlert]]:
        """The alert, in a transaction in which nobody else changes it."""
        self.governor.ledger.ensure_witnessed()
        found = self.alert(name)
        with self._refusals_recorded(found.alert.uri), self.governor.engine.begin() as connection:
            drift_records.hold_again(connection, found.alert)
            yield connection, drift_records.find_alert(connection, found.alert.alert_id)

    @contextmanager
    def _refusals_recorded(self, subject: str) -> Iterator[None]:
        """Put what was refused on the ledger; its transaction rolled back."""
        try:
            yield
        except (RefusedError, VerificationError) as error:
            refusals_of(self.governor).record_error(error, subject)
            raise

    def _tell(self, step: Step | None) -> None:
        if step is not None and step.notify:
            self._notifier.tell(step.alert)

    def shut(self) -> None:
        """Send what waits, and stop the thread that sends."""
        self._notifier.close()


class _Pace:
    """So many each minute of each party; memory is bounded."""

    _PARTIES = 1024

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def allows(self, party: str) -> bool:
        """Count one, unless there were too many."""
        now = self._clock()
        with self._lock:
            times = self._times.setdefault(party, deque())
            self._times.move_to_end(party)
            while len(self._times) > self._PARTIES:
                self._times.popitem(last=False)
            while times and times[0] <= now - 60:
                times.popleft()
            if len(times) >= self._most:
                return False
            times.append(now)
            return True


def _binding(candidate: Candidate) -> Binding:
    if candidate.root_digest is None:
        raise UnreachableError(
            f"{candidate.uri} was registered without a digest, so no report can be bound to it: "
            f"{candidate.digest_error or 'no reason is known'}",
            "register it again from a place that the server can read",
        )
    return Binding(
        candidate.model_name, candidate.version, candidate.version_uid, candidate.root_digest
    )


def _sighting(order: AlertOrder, actor: Actor) -> Sighting:
    level = AlertLevel.WARN if order.warn else AlertLevel.ALERT
    return Sighting(
        level=AlertLevel.QUARANTINE if order.quarantine and not order.warn else level,
        at_ms=now_ms(),
        reasons=order.reasons,
        worst=tuple({"name": cleaned(name, 256)} for name in order.columns),
        quarantine=order.quarantine,
        outside=f"{cleaned(order.source, 100)} ({cleaned(actor.id, 100)})",
    )


def open_drift(uri: str) -> DriftPort:
    """The drift of a governed database, or that of a server.

    Raises:
        ConfigurationError: neither ``governed+…`` nor ``http(s)://``.
    """
    if uri.startswith(GOVERNED_PREFIX):
        from mlflow_plugins.registry_store import governor_of

        return DriftStore(governor_of(uri))
    if uri.startswith(("http://", "https://")):
        from mlflow_plugins.rest_drift import RestDrift

        return RestDrift(uri, Settings.load())
    raise ConfigurationError(
        f"{uri!r} is not a governed store",
        "use governed+sqlite:///…, governed+postgresql+psycopg://… or the server's http:// address",
    )
