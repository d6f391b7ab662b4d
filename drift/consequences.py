"""A sink that makes reports count: signed, recorded once, and followed by what they demand.

Each report is bound to the version as the registry has it (incarnation and files), signed with the
monitor's key, and handed to the port of ``governance.drift_port``, which records it, opens, updates
or closes alerts, and tells people. A report that was handed over already changes nothing, so the
monitor may ask again after any error.

Example::

    sink = open_sink("http://127.0.0.1:5000", profile)
    sink.publish(report)
    sink.acknowledged()      # 41: somebody has seen what was wrong up to window 41
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from drift.model_profile import load_profile
from drift.profile import DriftProfile
from drift.report import Subject, WindowReport
from governance.drift_port import DriftPort, Published, open_drift
from governance.drift_reports import DriftReport
from governance.drift_settings import monitor_signer
from governance.errors import ConfigurationError, GovernanceError
from governance.signing.drift_statements import Binding, ReportStatement, sign_report
from governance.signing.keys import Signer
from governance.terminal import settings_of

__all__ = ["ConsequenceSink", "open_registry", "open_sink"]


class ConsequenceSink:
    """Implements ``drift.report.Sink``.

    Args:
        port: Of the registry.
        signer: The monitor's key; None: reports are not signed, count for no gate, and are taken
            beside the database only.
        datasets: ``name#digest`` of what the profile was made from.
    """

    def __init__(
        self, port: DriftPort, signer: Signer | None, datasets: Sequence[str] = ()
    ) -> None:
        self._port = port
        self._signer = signer
        self._datasets = tuple(datasets)
        self._bindings: dict[str, Binding] = {}
        self._acknowledged: int | None = None

    def publish(self, report: WindowReport) -> None:
        """Hand a report over; see the module.

        Raises:
            GovernanceError: it was not taken, with the remedy.
            OSError: nobody could be asked.
        """
        self.hand_over(report)

    def hand_over(self, report: WindowReport) -> Published:
        """As ``publish``; what became of it."""
        document = report.to_json()
        try:
            bundle = None if self._signer is None else self._signed(document, report, self._signer)
            published = self._port.publish(document, bundle, self._datasets)
        except GovernanceError:
            # A version of that number may have been made anew: ask again which one it is.
            self._bindings.pop(report.subject.uri, None)
            raise
        self._acknowledged = published.acknowledged
        return published

    def _signed(self, document: bytes, report: WindowReport, signer: Signer) -> str:
        subject = report.subject
        binding = self._bindings.get(subject.uri)
        if binding is None:
            binding = self._port.binding(subject.model, subject.version)
            self._bindings[subject.uri] = binding
        return sign_report(ReportStatement.of(DriftReport.parse(document), binding), signer)

    def acknowledged(self) -> int | None:
        """The last window whose alarm a person had seen when the last report was published: the
        judge may begin anew after it. None: nobody had seen any."""
        return self._acknowledged


def open_sink(uri: str, profile: DriftProfile | None = None) -> ConsequenceSink:
    """On the store at ``uri``, with the monitor's key of this process.

    Args:
        uri: ``governed+…``, or a server's address.
        profile: Names the data sets that a retrain suggestion speaks of.

    Raises:
        ConfigurationError: the store or the key cannot be used.
    """
    datasets = [] if profile is None else [f"{n}#{d}" for n, d in profile.datasets.items()]
    return ConsequenceSink(open_drift(uri), monitor_signer(settings_of(uri)), datasets)


def open_registry(subject: Subject, options: Mapping[str, str]) -> ConsequenceSink:
    """The sink ``registry`` of a monitor.

    Options: ``uri``, by default MLflow's registry; ``profile``, its file, by default the registered
    version's own.

    Raises:
        ConfigurationError: other options, or the store or key cannot be used.
        GovernanceError: the profile cannot be had, or is not the one the subject is judged by.
    """
    import mlflow

    if set(options) - {"uri", "profile"}:
        raise ConfigurationError(
            f"the sink 'registry' has the options {sorted(options)}",
            "give it the registry's uri and the profile's file, or neither",
        )
    uri = options.get("uri") or mlflow.get_registry_uri()
    if "profile" in options:
        profile = DriftProfile.from_json(Path(options["profile"]).read_bytes())
    else:
        profile = load_profile(subject.uri, uri=uri).profile
    profile.require(profile.model, digest=subject.profile)
    return open_sink(uri, profile)
