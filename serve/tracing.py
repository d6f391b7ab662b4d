"""Which requests are traced, and where their spans go; off unless somebody says where.

============================  ===========================================================
``CHANCERY_TRACE_EXPERIMENT`` the experiment on the MLflow server (``MLFLOW_TRACKING_URI``)
                              where traces are seen; made if it is missing
``CHANCERY_TRACE_RATIO``      part of the requests without a ``traceparent`` that is
                              traced, 0 (default) to 1
============================  ===========================================================

OpenTelemetry's own ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_ENDPOINT`` (and
all that belongs to them) name any other place, and come first. A client that sends a
``traceparent`` decides: its trace goes on when its *sampled* flag is set, and never otherwise.

Spans wait in a bounded queue for a thread that sends them, so neither a server that is away nor a
slow one is felt by a request; what does not fit or cannot be sent is counted (`Tracing.counts`).

Example::

    tracing = Tracing.from_environment("chancery-gateway", os.environ)  # None: nowhere to send
    here = tracing.begin(headers)
"""

from __future__ import annotations

import logging
import os
import random
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock, Thread
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from governance.errors import ConfigurationError
from serve.spans import Sampled
from serve.trace_export import MlflowSpans, otlp

__all__ = ["SpanCounts", "TraceSettings", "Tracing"]

_logger = logging.getLogger(__name__)

_WAITING = 2048
_BATCH = 256
_PAUSE_MS = 1000

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_SAMPLED = frozenset(f"{flags:02x}" for flags in range(1, 256, 2))


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """See the module's table.

    Attributes:
        endpoint: Whether an OTLP endpoint is named; its address is the exporter's to read.
        experiment: Name of the MLflow experiment; empty: none.
        server: Address of the MLflow server; empty: none.
        ratio: Part of the requests without a ``traceparent``.
    """

    endpoint: bool = False
    experiment: str = ""
    server: str = ""
    ratio: float = 0.0

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> TraceSettings:
        """Read the environment.

        Raises:
            ConfigurationError: a ratio that is none, an experiment without a server, or a password.
        """
        named = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
        for name in named:
            if "@" in urlsplit(environ.get(name, "")).netloc:
                raise ConfigurationError(
                    f"{name} holds a password, which every process of the cluster would see",
                    "leave it out, and set OTEL_EXPORTER_OTLP_HEADERS on each node",
                )
        endpoint = any(environ.get(name) for name in named)
        experiment = environ.get("CHANCERY_TRACE_EXPERIMENT", "")
        server = environ.get("MLFLOW_TRACKING_URI", "")
        if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return cls()
        if experiment and not endpoint and not server.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"CHANCERY_TRACE_EXPERIMENT is {experiment!r}, but no MLflow server takes traces",
                "set MLFLOW_TRACKING_URI to the server's http:// address, or unset it",
            )
        text = environ.get("CHANCERY_TRACE_RATIO") or "0"
        try:
            ratio = float(text)
        except ValueError:
            ratio = -1.0
        if not 0 <= ratio <= 1:
            raise ConfigurationError(
                f"CHANCERY_TRACE_RATIO is {text!r}", "set it to a number from 0 to 1"
            )
        return cls(endpoint, experiment, server if experiment else "", ratio)

    @property
    def anywhere(self) -> bool:
        """Whether spans have a place to go."""
        return self.endpoint or bool(self.experiment)


@dataclass(frozen=True, slots=True)
class SpanCounts:
    """What became of spans: sent, not sent because nobody took them, or not even queued."""

    sent: int = 0
    failed: int = 0
    dropped: int = 0


class Tracing:
    """Makes spans and sends them.

    Args:
        exporter: Sends a batch; called in a thread of its own.
        ratio: Part of the requests without a ``traceparent`` that is traced.
        service: Its name, if ``OTEL_SERVICE_NAME`` gives none.
        waiting: Spans that may wait.
        draw: Gives a number from 0 to 1.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        *,
        ratio: float = 0.0,
        service: str = "chancery",
        waiting: int = _WAITING,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._ratio = ratio
        self._draw = draw
        self._queue = _Queue(exporter, waiting)
        # Whether to trace is decided before a span is made, so here the answer is always yes.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=_resource(service),
            shutdown_on_exit=False,  # it could wait for a server that is away
        )
        self._provider.add_span_processor(self._queue)
        self.tracer = self._provider.get_tracer("chancery")

    @classmethod
    def from_environment(cls, service: str, environ: Mapping[str, str]) -> Tracing | None:
        """As the environment says; None where spans have nowhere to go.

        A mistake in the settings is logged: requests are answered all the same.

        Args:
            service: Name of the service, if ``OTEL_SERVICE_NAME`` gives none.
            environ: The environment.
        """
        try:
            settings = TraceSettings.load(environ)
            if not settings.anywhere:
                return None
            exporter = _exporter(settings)
        except (ConfigurationError, ImportError, ValueError) as error:
            _logger.error("requests are not traced: %s", error)
            return None
        return cls(exporter, ratio=settings.ratio, service=service)

    def wanted(self, headers: Mapping[str, str]) -> bool:
        """Whether a request is traced, by its headers; the client's word comes first."""
        told = headers.get("traceparent")
        if told is not None:
            if told[53:] in _SAMPLED and _TRACEPARENT.fullmatch(told):
                return True
            if self._ratio == 0 or _TRACEPARENT.fullmatch(told):
                return False
        return self._ratio > 0 and self._draw() < self._ratio

    def begin(self, name: str, headers: Mapping[str, str], start_ns: int | None = None) -> Sampled:
        """A span below the one that the headers name, if they do."""
        known = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
        return Sampled.continued(self.tracer, name, headers if known else {}, start_ns)

    @property
    def counts(self) -> SpanCounts:
        """What became of the spans so far."""
        return self._queue.counts

    def flush(self) -> None:
        """Send what waits; returns when that was tried."""
        self._provider.force_flush()

    def close(self, timeout_s: float = 3.0) -> None:
        """Send what waits, if that is quick, and end."""
        ending = Thread(target=self._provider.shutdown, name="spans", daemon=True)
        ending.start()
        ending.join(timeout_s)


def _resource(service: str) -> Resource:
    """What the process says of itself; ``OTEL_RESOURCE_ATTRIBUTES`` may say more."""
    known = {"service.instance.id": f"{socket.gethostname()}/{os.getpid()}"}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        known["service.name"] = service
    return Resource.create(known)


class _Queue(SpanProcessor):
    """A bounded queue before an exporter, which counts what it loses."""

    def __init__(self, exporter: SpanExporter, waiting: int) -> None:
        self._lock = Lock()
        self._waiting = self._sent = self._failed = self._dropped = 0
        self._most = waiting
        self._batches = BatchSpanProcessor(
            _Counted(exporter, self._leaves),
            max_queue_size=waiting + _BATCH,  # it never drops: what is too much is dropped here
            schedule_delay_millis=_PAUSE_MS,
            max_export_batch_size=min(_BATCH, waiting),
        )

    @property
    def counts(self) -> SpanCounts:
        with self._lock:
            return SpanCounts(self._sent, self._failed, self._dropped)

    def on_end(self, span: ReadableSpan) -> None:
        with self._lock:
            if self._waiting >= self._most:
                self._dropped += 1
                return
            self._waiting += 1
        self._batches.on_end(span)

    def _leaves(self, count: int, sent: bool | None) -> None:
        """``sent`` None: the spans are out of the queue, and on their way."""
        with self._lock:
            if sent is None:
                self._waiting -= count
            elif sent:
                self._sent += count
            else:
                self._failed += count

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._batches.force_flush(timeout_millis)

    def shutdown(self) -> None:
        self._batches.shutdown()  # type: ignore[no-untyped-call]


class _Counted(SpanExporter):
    """Tells what became of each batch; raises nothing."""

    def __init__(self, exporter: SpanExporter, tell: Callable[[int, bool | None], None]) -> None:
        self._exporter = exporter
        self._tell = tell

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._tell(len(spans), None)
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001 - whatever it is, requests are answered
            _logger.warning("%d spans are lost: %r", len(spans), error)
            result = SpanExportResult.FAILURE
        self._tell(len(spans), result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _exporter(settings: TraceSettings) -> SpanExporter:
    return otlp() if settings.endpoint else MlflowSpans(settings.server, settings.experiment)
