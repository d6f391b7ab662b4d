"""What answers a gateway's requests, by a plan that may change at any time.

A request is assigned to a variant (``serve.split``) and asked there. What another variant than
stable could not answer (an error, no answer in time, nobody there, another shape than stable's) is
asked of stable again, if the plan says so; the client gets stable's answer with
``x-chancery-retried: 1``, and what stable said settles the blame (``serve.delta.ErrorClass``):

=============  =========================  ======================================================
the variant    stable, asked again        counted as
=============  =========================  ======================================================
refuses (4xx)  refuses                    ``client``
refuses (4xx)  answers                    ``raised``: MLflow answers 400 when a model raises
fails          refuses or fails           ``shared``
fails          answers                    ``raised``, ``timeout`` or ``unavailable``
other shape    answers in the same shape  a good answer, and the client gets it
other shape    answers in another         ``wrong_shape``
=============  =========================  ======================================================

Answers that stable gave again, and requests that a tester sent to a variant, are no fair sample of
either and are not reported.

An experiment's arms are compared with each other, and a client's own mistakes must count alike for
all of them: a request that the arm could not answer and stable could not either is ``shared``, what
the arm refused (4xx) is ``client`` only where stable refuses it too, and an arm that is stable's
own version is not asked twice.

Shadows get copies after the client has its answer (``serve.shadows``).

Everything here runs on one event loop.

Example::

    router = Router("gateway-1", Lanes(base))
    router.offer(plan)
    answer = await router.submit(body, {"content-type": "application/json"})
    report = router.report()
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from serve.access_log import AccessLog
from serve.answer import Answer, OverloadedError, failed, overloaded, refused, timed_out
from serve.delta import ErrorClass
from serve.lanes import LanePool
from serve.observer import Observer
from serve.observing import Observed
from serve.plan import Load, Plan, Report, VariantPlan
from serve.routing import Lanes, Route, Routing
from serve.shadows import ShadowLimits, Shadows
from serve.shapes import ShapeMemory
from serve.socket_lane import LaneLostError
from serve.spans import CURRENT, Sampled
from serve.split import AssignmentReason
from serve.tally import Tally
from serve.variant import Outcome

__all__ = ["Router"]

_logger = logging.getLogger(__name__)

_RETRIED = (b"x-chancery-retried", b"1")
_MODEL_RAISED = b"Encountered an unexpected error while evaluating the model"
_LEARN_S = 0.25  # stable's answers are looked into this often
_KEPT_TALLIES = 64


class Router:
    """Answers requests by the latest plan.

    Args:
        source: This gateway's name in reports; unique for each start of its process.
        lanes: Finds the variants' replicas.
        log: Gets a line for each request.
        observer: Observes answers for a rollout; None: nobody does.
        shadow: What copies may take.
        warm_s: How long a plan waits for lanes of variants that it brings.
    """

    def __init__(
        self,
        source: str,
        lanes: Lanes,
        *,
        log: AccessLog | None = None,
        observer: Observer | None = None,
        shadow: ShadowLimits | None = None,
        warm_s: float = 2.0,
    ) -> None:
        self.source = source
        self._lanes = lanes
        self._log = log
        self.observer = observer
        self._limits = shadow or ShadowLimits()
        self.shadows = Shadows(self._limits, _ask_copy)
        self._warm_s = warm_s
        self._routing: Routing | None = None
        self._offered = -1
        self._switching: asyncio.Task[None] | None = None
        self._planned = asyncio.Event()
        self._tallies: dict[tuple[str, str, str], Tally] = {}
        self._sequence = 0
        self._unanswered: Report | None = None
        self._learned = 0.0

    # -- plans and reports

    @property
    def routing(self) -> Routing | None:
        """By which requests are answered now; None before the first plan."""
        return self._routing

    @property
    def tallies(self) -> Mapping[tuple[str, str, str], Tally]:
        """Counts by variant, model and version."""
        return self._tallies

    @property
    def healthy(self) -> bool:
        """Whether requests have a chance."""
        return self._routing is not None and self._routing.answering

    def offer(self, plan: Plan) -> None:
        """Follow a plan, unless it is older than the last one.

        A plan that brings variants waits a moment until they have lanes here, so that their first
        requests do not count against them; one that closes, or brings nobody, holds at once.

        Raises:
            ConfigurationError: weights that do not add up; the plan before holds.
            ValueError: a plan that cannot be; the plan before holds.
        """
        if plan.revision <= self._offered:
            return
        routing = Routing.of(
            plan, self._lanes, self._tally_of, self._routing, self._limits.answer_bytes
        )
        self._offered = plan.revision
        if self._switching is not None:
            self._switching.cancel()
            self._switching = None
        new = [pool for pool in _asked_pools(routing) if not pool.lanes]
        if plan.closed or not new or self._routing is None:
            self._switch(routing)
        else:
            loop = asyncio.get_running_loop()
            self._switching = loop.create_task(self._switch_warm(routing))

    async def ready(self) -> None:
        """Return once there is a plan, and whoever gets requests has lanes or had the time."""
        await self._planned.wait()
        routing = self._routing
        assert routing is not None
        if not routing.plan.closed:
            await self._warm(_asked_pools(routing))

    async def _switch_warm(self, routing: Routing) -> None:
        await self._warm([route.variant.pool for route in routing.routes.values()])
        self._switching = None
        self._switch(routing)

    async def _warm(self, pools: Sequence[LanePool]) -> None:
        """Until they have lanes, but no longer than a moment."""
        await asyncio.gather(*(pool.ready(self._warm_s) for pool in pools))

    def _switch(self, routing: Routing) -> None:
        before, self._routing = self._routing, routing
        self._planned.set()
        if before is not None:
            anew = before.experiment_id != routing.experiment_id
            for name in before.routes.keys() | routing.routes.keys():
                if anew or before.application_of(name) != routing.application_of(name):
                    # What was not told yet is of another model under the same name.
                    for side in (before, routing):
                        if name in side.routes:
                            side.routes[name].tally.take()
        if self.observer is not None:
            self.observer.follow(routing.plan.observing)
        self._lanes.keep_only({variant.application for variant in routing.plan.variants})

    def _tally_of(self, plan: VariantPlan) -> Tally:
        key = (plan.name, plan.model, plan.version)
        tally = self._tallies.pop(key, None) or Tally()
        self._tallies[key] = tally
        if len(self._tallies) > _KEPT_TALLIES:
            del self._tallies[next(iter(self._tallies))]
        return tally

    def report(self) -> Report:
        """What happened since the last report that was delivered.

        A report that was not answered may have arrived: it is sent again as it is, under its
        number, and what happened meanwhile waits for the next.
        """
        routes = self._routing.routes if self._routing else {}
        lanes = {name: route.variant.pool.lanes for name, route in routes.items()}
        load = {
            variant.plan.application: Load(pool.asked, pool.in_flight, pool.room.held)
            for variant, pool in ((r.variant, r.variant.pool) for r in routes.values())
        }
        if self._unanswered is None:
            taken = {name: route.tally.take() for name, route in routes.items()}
            observed = Observed()
            if self.observer is not None:
                taken, observed = self.observer.fill(taken), self.observer.observed()
            deltas = {name: delta for name, delta in taken.items() if delta}
            self._sequence += 1
            self._unanswered = Report(
                self.source,
                self._sequence,
                deltas,
                lanes,
                observed,
                self._routing.experiment_id if self._routing else "",
                self.shadows.take(self._routing),
                load,
            )
        else:
            self._unanswered = replace(self._unanswered, lanes=lanes, load=load)
        return self._unanswered

    def delivered(self, sequence: int) -> None:
        """A report was answered."""
        if self._unanswered is not None and self._unanswered.sequence == sequence:
            self._unanswered = None

    async def close(self) -> None:
        """Finish what is on its way."""
        if self._switching is not None:
            self._switching.cancel()
        self.shadows.close()
        if self.observer is not None:
            self.observer.close()
        await self._lanes.close()

    # -- requests

    async def submit(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """The answer to a request; what ``serve.asgi.ScoringApp`` asks. Does not raise.

        Args:
            body: The request's.
            headers: The request's, by lower-case name.
        """
        routing = self._routing
        if routing is None:
            return _nobody("the gateway has no plan yet")
        if routing.plan.closed:
            return _nobody(routing.plan.closed, "CLOSED")
        assignment = routing.assign(body, headers)
        if assignment is None:
            return _nobody("no variant has any traffic")
        route = routing.routes[assignment.variant]
        judged = assignment.reason is not AssignmentReason.OVERRIDE
        content_type = headers.get("content-type")
        request_id = headers.get("x-request-id", "")
        first = await _ask(route, content_type, body, request_id)
        stables = routing.is_stable(route)
        if stables:
            error = first.error
            if error is None:
                if routing.compares:
                    self._learn(routing, first)
            elif error is ErrorClass.CLIENT and not (
                routing.plan.retry_on_stable and routing.plan.experiment is None
            ):
                error = _refusal(first.answer)
            route.tally.add(error, first.ms, judged=judged)
            answer = first.answer
        else:
            error, answer = await self._settle(routing, first, content_type, body, request_id)
            route.tally.add(error, first.ms, judged=judged)
        observer = self.observer
        if observer is not None and observer.on and judged and error is None:
            observer.saw(route.variant.plan, content_type, body, first.answer, first.ms)
        if routing.shadows:
            stables = stables or answer is not first.answer
            self.shadows.copy(routing, content_type, body, answer, stables=stables)
        if self._log is not None:
            self._log.add(answer, headers, assignment, first.ms, error)
        here = CURRENT.get()
        if here is not None:
            here.note(assigned=assignment.variant, reason=assignment.reason.value)
            here.note_plan(routing.plan)
            here.note_answer(answer, None if error is None else error.value)
        return answer

    async def _settle(
        self,
        routing: Routing,
        first: Outcome,
        content_type: str | None,
        body: bytes,
        request_id: str,
    ) -> tuple[ErrorClass | None, Answer]:
        """Whose fault it is, and what the client is told, when another than stable was asked."""
        error = first.error
        if error is None and self._doubtful(routing, first):
            error = ErrorClass.WRONG_SHAPE
        if error is None:
            return None, first.answer
        stable = (self._routing or routing).stable
        if not routing.plan.retry_on_stable or stable is None:
            if error is ErrorClass.CLIENT:
                error = _refusal(first.answer)
            return error, first.answer
        second = await _ask(stable, content_type, body, request_id)
        stable.tally.add(second.error, second.ms, judged=False)
        retried = second.answer.with_headers(_RETRIED)
        if second.error is None:
            self._learn(routing, second, at_once=True)
            if error is ErrorClass.WRONG_SHAPE:
                if not ShapeMemory.differ(first.answer, second.answer):
                    return None, first.answer
            elif error is ErrorClass.CLIENT:
                error = ErrorClass.RAISED
            return error, retried
        if error is ErrorClass.WRONG_SHAPE:
            return ErrorClass.SHARED, first.answer  # nobody knows better
        if second.error is ErrorClass.CLIENT:
            if routing.plan.experiment is not None and error is ErrorClass.CLIENT:
                raised = _refusal(first.answer) is ErrorClass.RAISED
                error = ErrorClass.SHARED if raised else error
            return (error if error is ErrorClass.CLIENT else ErrorClass.SHARED), retried
        return ErrorClass.SHARED, first.answer

    def _doubtful(self, routing: Routing, outcome: Outcome) -> bool:
        hello = routing.stable.variant.pool.hello if routing.stable else None
        row_wise = hello is not None and hello.batchable
        return routing.shapes.doubtful(outcome.answer, outcome.rows if row_wise else 0)

    def _learn(self, routing: Routing, outcome: Outcome, *, at_once: bool = False) -> None:
        """Look into some of stable's good answers."""
        now = perf_counter()
        if at_once or now - self._learned >= _LEARN_S or not routing.shapes:
            self._learned = now
            routing.shapes.learn(outcome.answer)


def _asked_pools(routing: Routing) -> list[LanePool]:
    """Of the variants that get requests."""
    weights = dict(routing.plan.weights)
    return [route.variant.pool for name, route in routing.routes.items() if weights.get(name)]


def _ask(
    route: Route, content_type: str | None, body: bytes, request_id: str = ""
) -> Coroutine[Any, Any, Outcome]:
    """Ask a variant; whatever goes wrong is an answer too."""
    above = CURRENT.get()
    if above is None:
        return _asked(route, content_type, body, request_id)
    return _ask_traced(above, route, content_type, body, request_id)


async def _ask_traced(
    above: Sampled, route: Route, content_type: str | None, body: bytes, request_id: str
) -> Outcome:
    here = above.child(f"ask {route.variant.name}")
    with here.current():
        here.note_variant(route.variant.plan)
        found = await _asked(route, content_type, body, request_id)
        here.note(rows=found.rows or None, batch_size=here.batch_size or None)
        above.note(batch_size=here.batch_size or None)
        here.note_answer(found.answer, None if found.error is None else found.error.value)
    return found


async def _ask_copy(route: Route, content_type: str | None, body: bytes) -> Outcome:
    """Ask a shadow: no part of the request's time, so its spans are a trace of their own."""
    request = CURRENT.get()
    if request is None:
        return await _asked(route, content_type, body)
    here = request.linked("shadow")
    with here.current():
        here.note(shadow=route.variant.name)
        found = await _ask(route, content_type, body)
        here.note_answer(found.answer, None if found.error is None else found.error.value)
    return found


async def _asked(
    route: Route, content_type: str | None, body: bytes, request_id: str = ""
) -> Outcome:
    begun = perf_counter()
    rows = 0
    error: ErrorClass | None
    try:
        answer, rows = await route.variant.ask(content_type, body, request_id)
        status = answer.status
        error = None if status < 400 else _classes(status)
        ms = (perf_counter() - begun) * 1e3
    except TimeoutError:
        answer, error = timed_out(), ErrorClass.TIMEOUT
        ms = route.variant.plan.timeout_s * 1e3
    except OverloadedError as full:
        answer, error = overloaded(full), ErrorClass.UNAVAILABLE
        ms = (perf_counter() - begun) * 1e3
    except LaneLostError as lost:
        answer = refused(lost.http_status, lost.code, str(lost), (b"retry-after", b"1"))
        error = ErrorClass.UNAVAILABLE
        ms = (perf_counter() - begun) * 1e3
    except Exception:
        _logger.exception("asking %s failed", route.variant.name)
        answer, error = failed(), ErrorClass.RAISED
        ms = (perf_counter() - begun) * 1e3
    return Outcome(answer, error, rows, ms)


def _classes(status: int) -> ErrorClass:
    return ErrorClass.CLIENT if status < 500 else ErrorClass.RAISED


def _refusal(answer: Answer) -> ErrorClass:
    """A 4xx that stable does not judge: MLflow answers 400 also when the model raised."""
    raised = answer.status == 400 and _MODEL_RAISED in answer.body
    return ErrorClass.RAISED if raised else ErrorClass.CLIENT


def _nobody(why: str, code: str = "UNAVAILABLE") -> Answer:
    return refused(503, code, why, (b"retry-after", b"1"))
