"""A sampled request as spans: what its gateway and its replicas did, parent and child (AC-10).

::

    gateway                  the request, in the gateway; continues the client's trace
      ask canary             one for each variant that was asked; the time in queue is in it
        predict              in the replica, behind a socket or on another node
      ask stable             when stable answered again
    shadow                   a trace of its own, linked to ``gateway``: a copy, sent afterwards
      ask rival
        predict

`CURRENT` is the span that the code is in. It is None for a request that is not sampled, which
therefore pays for a look at it and nothing else. Which requests are sampled, and where spans go, is
``serve.tracing``'s business.

Attributes begin with ``chancery.``; they name the deployment and, by run, version, signer and
statement, where the model came from and who let it in. Bodies and other headers are in no span.

Example::

    here = CURRENT.get()
    if here is not None:
        here.note(variant="stable")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace import set_span_in_context as below
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve.answer import Answer

if TYPE_CHECKING:
    from serve.plan import Plan, VariantPlan

__all__ = ["CURRENT", "Sampled"]

_W3C = TraceContextTextMapPropagator()

_IDENTITY = {
    b"x-chancery-variant": "chancery.variant",
    b"x-chancery-model": "chancery.model",
    b"x-chancery-version": "chancery.version",
    b"x-chancery-signer": "chancery.signer",
    b"x-chancery-run": "chancery.run_id",
}


class Sampled:
    """A span of a sampled request, and the way to those below it.

    Args:
        tracer: Makes them.
        span: It.
    """

    __slots__ = ("_token", "_tracer", "batch_size", "span")

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self.span = span
        self.batch_size = 0
        self._token: Token[Sampled | None] | None = None

    @classmethod
    def continued(
        cls,
        tracer: Tracer,
        name: str,
        headers: Mapping[str, str],
        start_ns: int | None = None,
    ) -> Sampled:
        """Below the span that ``traceparent`` and ``tracestate`` name; without them a root."""
        above = _W3C.extract(headers, Context())
        span = tracer.start_span(name, above, kind=SpanKind.SERVER, start_time=start_ns)
        return cls(tracer, span)

    @property
    def traceparent(self) -> str:
        """As the next one down the line reads it."""
        found = self.span.get_span_context()
        return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags & 1:02x}"

    @property
    def tracestate(self) -> str:
        """What others wrote into the trace; passed on as it is."""
        return self.span.get_span_context().trace_state.to_header()

    def enter(self) -> None:
        """Be the current span, until ``leave``."""
        self._token = CURRENT.set(self)

    def leave(self) -> None:
        """End; what was the current span before is so again."""
        if self._token is not None:
            CURRENT.reset(self._token)
            self._token = None
        self.span.end()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Inside, it is the current span; afterwards it has ended."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def answered(self, answer: Answer | None) -> None:
        """End with the answer to the client; None: there is no client any more."""
        if answer is None:
            self.note(error="gone")
        else:
            self.note_status(answer.status)
        self.leave()

    def child(self, name: str) -> Sampled:
        """One below it."""
        span = self._tracer.start_span(name, below(self.span, Context()), kind=SpanKind.CLIENT)
        return Sampled(self._tracer, span)

    def linked(self, name: str) -> Sampled:
        """The root of a trace of its own, linked to this one, and sampled because this one is."""
        links = [Link(self.span.get_span_context(), {"chancery.link": "request"})]
        span = self._tracer.start_span(name, Context(), kind=SpanKind.PRODUCER, links=links)
        return Sampled(self._tracer, span)

    # -- what it says

    def note(self, **known: str | int | float | bool | None) -> None:
        """Attributes ``chancery.<name>``; what is None or empty is left out."""
        for name, value in known.items():
            if value is not None and value != "":
                self.span.set_attribute(f"chancery.{name}", value)

    def note_plan(self, plan: Plan) -> None:
        """Which deployment this is."""
        about = plan.about
        self.note(
            deployment=about.deployment,
            route=about.route,
            environment=about.environment,
            rollout=about.rollout,
            rollout_phase=about.phase,
            plan=plan.revision,
        )

    def note_variant(self, variant: VariantPlan) -> None:
        """Who is asked."""
        self.note(
            variant=variant.name,
            model=variant.model,
            version=variant.version,
            application=variant.application,
            statement=variant.statement,
        )

    def note_answer(self, answer: Answer, error: str | None) -> None:
        """Who answered, and what is wrong with the answer."""
        for name, value in answer.headers:
            if name in _IDENTITY:
                self.span.set_attribute(_IDENTITY[name], value.decode("ascii", "replace"))
            elif name == b"x-chancery-retried":
                self.note(retried=True)
        self.note(error=error)
        self.note_status(answer.status)

    def note_status(self, status: int) -> None:
        """The status; only what the server did wrong makes the span an error."""
        self.span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self.span.set_status(Status(StatusCode.ERROR))
        elif status < 400:
            self.span.set_status(Status(StatusCode.OK))


CURRENT: ContextVar[Sampled | None] = ContextVar("chancery_span", default=None)
"""The span that the code is in; None: the request is not sampled."""
