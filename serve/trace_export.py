"""Sends spans: to any OTLP endpoint, or to an experiment of an MLflow server.

MLflow takes OTLP at ``/v1/traces``; the experiment is told by its id in a header. It is looked for
where spans are sent, in their thread, so that no gateway waits for the server at its start.

Example::

    exporter = MlflowSpans("http://127.0.0.1:5000", "fraud/requests")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from governance.errors import ConfigurationError
from serve.experiments import experiment_id

__all__ = ["MlflowSpans", "otlp"]

_TIMEOUT_S = 10.0


def otlp(**options: Any) -> SpanExporter:
    """OpenTelemetry's exporter; where to and how is in its own variables, if not said here.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise ConfigurationError(
            f"traces need {error.name}, which is not installed",
            "pip install 'mlflow-chancery[serve]'",
        ) from error
    return OTLPSpanExporter(**options)


class MlflowSpans(SpanExporter):
    """Sends spans to an experiment of an MLflow server.

    The experiment is looked for, and made, when the first spans are sent, and again after the
    server refused some.

    Args:
        server: Its address.
        experiment: Its name.
    """

    def __init__(self, server: str, experiment: str) -> None:
        self._server = server.rstrip("/")
        self._experiment = experiment
        self._exporter: Any = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._exporter is None:
            self._exporter = self._open()
        result: SpanExportResult = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self.shutdown()
        return result

    def shutdown(self) -> None:
        if self._exporter is not None:
            self._exporter.shutdown()
            self._exporter = None

    def _open(self) -> SpanExporter:
        from mlflow import MlflowClient
        from mlflow.tracking._tracking_service.utils import get_default_host_creds

        client = MlflowClient(tracking_uri=self._server, registry_uri=self._server)
        known = get_default_host_creds(self._server)
        session = _session(known)
        found = otlp(
            endpoint=f"{self._server}/v1/traces",
            headers={"x-mlflow-experiment-id": experiment_id(client, self._experiment)},
            session=session,
            timeout=_TIMEOUT_S,
        )
        session.verify = known.verify
        return found


def _session(known: Any) -> Any:
    """Proves to the server who sends, as MLflow's own client does."""
    import requests
    from mlflow.tracking.request_auth.registry import fetch_auth

    session = requests.Session()
    if known.username and known.password:
        session.auth = (known.username, known.password)
    elif known.token:
        session.headers["Authorization"] = f"Bearer {known.token}"
    elif known.auth:
        session.auth = fetch_auth(known.auth)
    if known.client_cert_path:
        session.cert = known.client_cert_path
    return session
