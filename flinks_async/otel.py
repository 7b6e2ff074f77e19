"""Traces and metrics with OpenTelemetry; needs the extra `otel`.

    async with FlinksClient.from_env() as client:
        flinks = instrument(client)

A call is a span, and each of its attempts is a span below it. In a job, `TracedExecutor` adds a span for the run and one for
each shard. No span, metric or attribute holds a token, a secret, a URL or data of an answer. `docs/observability.md` lists
all names and says how to read them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary, ref

from . import checks
from ._version import __version__
from .classify import verdict_of
from .client import FlinksClient
from .codec import Codec, Drift
from .codec.observed import joined
from .messages import Handler, Request, Response
from .observe import ClientStats
from .secret import fingerprint
from .verdict import Kind

if TYPE_CHECKING:
    from opentelemetry import context, metrics, trace
    from opentelemetry.trace.propagation import tracecontext

    from .bulk.counters import Counters, WorkerState
    from .bulk.executors.protocol import Execution, Executor, NextTask, TakeFinished, Task, Work
    from .bulk.records import Finished, RunState
else:
    context, metrics, trace, tracecontext = (
        checks.optional_import(f"opentelemetry.{name}", extra="otel")
        for name in ("context", "metrics", "trace", "trace.propagation.tracecontext")
    )

__all__ = ["TracedExecutor", "instrument"]

C = TypeVar("C", bound=FlinksClient)
Attributes = Mapping[str, str | bool | int | float]

_NAME: Final = "flinks_async"
_TEMPLATE: Final = "/partneraccess/{accesstoken}"
_RUN: Final = "flinks_async.run"  # the key of the run's span in the context of its calls
_SUPPRESS: Final = "suppress_instrumentation"  # the key by which automatic instrumentation skips a request

# The boundaries of the HTTP conventions, which end at 10 s, and more: an answer may take 210 s.
_BOUNDARIES: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 120, 240)

_Read = Callable[[ClientStats], float | None]
_Combine = Callable[[Iterable[float]], float]


_GAUGES: Final[tuple[tuple[str, str, str, _Read, _Combine], ...]] = (
    ("flinks.client.active_calls", "{call}", "Calls in flight.", lambda s: s.calls_in_flight, sum),
    # Clients with the same instance and secret share these, so they are not added up.
    ("http.client.active_requests", "{request}", "Requests on the wire.", lambda s: s.requests_in_flight, max),
    ("flinks.client.queued_requests", "{request}", "Requests that wait for a free place.", lambda s: s.queued, max),
    ("flinks.client.concurrency_limit", "{request}", "Requests that may be on the wire.", lambda s: s.limit, max),
    ("flinks.client.held_back", "s", "Time until requests are sent again.", lambda s: s.held_back, max),
    ("flinks.client.learned_rate", "{request}/s", "What the instance allows.", lambda s: s.learned_rate, max),
)


def instrument(
    client: C,
    *,
    propagate: bool = False,
    attributes: Attributes | None = None,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
) -> C:
    """Derives a client that makes spans and metrics. Closing `client` closes both.

    Requests of the derived client are skipped by automatic instrumentation of aiohttp, which would record their URLs. A
    client derived from the result by `with_options` makes spans too; pass it to `instrument` for the gauges.

    Args:
        client: a client; it stays as it is.
        propagate: send the header `traceparent` (and `tracestate`), never baggage, with each attempt. Requests with
            headers of their own cost more CPU time, see `docs/benchmarks.md`.
        attributes: added to each span and metric, such as `{"customer": "acme"}`.
        tracer_provider, meter_provider: default: the global ones.

    Raises:
        ConfigError: `propagate` is not a bool, or OpenTelemetry is not installed.
    """
    checks.flag("propagate", propagate)
    meters = _Meters.of(meter_provider or metrics.get_meter_provider())
    extra = dict(attributes or {})
    tracing = _Tracing(trace.get_tracer(_NAME, __version__, tracer_provider), meters, extra, propagate)
    options = client.options
    derived = client.with_options(
        middleware=(tracing.call, *filter(_is_not_ours, options.middleware)),
        attempt_middleware=(*filter(_is_not_ours, options.attempt_middleware), tracing.attempt),
    )
    meters.watch(derived, {**_server(options.endpoint().url), **extra})
    return derived


def _is_not_ours(middleware: object) -> bool:
    return not isinstance(getattr(middleware, "__self__", None), _Tracing)


@lru_cache(maxsize=1024)
def _server(url: str) -> Attributes:
    parts = urlsplit(url)
    return {
        "server.address": parts.hostname or "",
        "server.port": parts.port or (80 if parts.scheme == "http" else 443),
    }


class _Meters:
    """The instruments of one meter provider, which all instrumented clients share."""

    _by_provider: ClassVar[WeakKeyDictionary[metrics.MeterProvider, _Meters]] = WeakKeyDictionary()

    @classmethod
    def of(cls, provider: metrics.MeterProvider) -> _Meters:
        found = cls._by_provider.get(provider)
        if found is None:
            found = cls._by_provider[provider] = cls(metrics.get_meter(_NAME, __version__, provider))
        return found

    def __init__(self, meter: metrics.Meter) -> None:
        histogram = partial(meter.create_histogram, unit="s", explicit_bucket_boundaries_advisory=_BOUNDARIES)
        self.request = histogram("http.client.request.duration", description="Duration of HTTP client requests.")
        self.call = histogram("flinks.client.call.duration", description="Duration of calls, with queue and retries.")
        self.queue = histogram("flinks.client.queue.duration", description="Wait of an attempt for a free place.")
        self.retries = meter.create_counter("flinks.client.retries", "{request}", "Attempts that repeat a failed one.")
        self.tokens = meter.create_counter("flinks.job.tokens", "{token}", "Tokens of jobs with an outcome.")
        self.runs = meter.create_counter("flinks.job.runs", "{run}", "Runs of jobs that have ended.")
        self.lost = meter.create_counter("flinks.job.lost_workers", "{worker}", "Workers that died or were given up.")
        again = "Shards of lost workers, which others fetch again."
        self.reassigned = meter.create_counter("flinks.job.reassigned_shards", "{shard}", again)
        self._clients: list[tuple[ref[FlinksClient], Attributes]] = []
        self._runs: tuple[_TracedExecution, ...] = ()
        self._drift_of_runs: tuple[Drift, ...] = ()
        for name, unit, description, read, combine in _GAUGES:
            meter.create_observable_gauge(name, [partial(self._observe, read, combine)], unit, description)
        workers = "Workers of the runs of jobs that have several."
        meter.create_observable_gauge("flinks.job.workers", [self._observe_workers], "{worker}", workers)
        drift = "Answers that differ from their documentation."
        meter.create_observable_counter("flinks.client.drift", [self._observe_drift], "{answer}", drift)

    def watch(self, client: FlinksClient, attributes: Attributes) -> None:
        # A new list, because the thread that exports metrics may be reading the old one.
        self._clients = [pair for pair in self._clients if pair[0]() is not None]
        self._clients.append((ref(client), attributes))

    def begin(self, run: _TracedExecution) -> None:
        self._runs = (*self._runs, run)
        for counter in (self.lost, self.reassigned):
            counter.add(0)  # otherwise the first loss would be the first value, which is no increase

    def end(self, run: _TracedExecution, state: str) -> None:
        self.runs.add(1, {"flinks.run.state": state})
        self._drift_of_runs = joined([self._drift_of_runs, run.drift_of_workers])
        self._runs = tuple(one for one in self._runs if one is not run)

    def _observe_workers(self, _: object) -> Iterable[metrics.Observation]:
        states = Counter[str]()
        for run in self._runs:
            states.update(run.states_of_workers)
        return [metrics.Observation(count, {"flinks.worker.state": state}) for state, count in states.items()]

    def _observe(self, read: _Read, combine: _Combine, _: object) -> Iterable[metrics.Observation]:
        values: dict[tuple[tuple[str, str | bool | int | float], ...], list[float]] = {}
        for reference, attributes in self._clients:
            client = reference()
            if client is not None and not client.closed:
                value = read(client.stats())
                if value is not None and isfinite(
                    value
                ):  # infinite while a request finds out whether the instance is up
                    values.setdefault(tuple(attributes.items()), []).append(value)
        return [metrics.Observation(combine(several), dict(key)) for key, several in values.items()]

    def _observe_drift(self, _: object) -> Iterable[metrics.Observation]:
        by_codec: dict[Codec, tuple[Drift, ...]] = {}  # clients with one codec share what it counts
        for reference, _attributes in self._clients:
            if (client := reference()) is not None:
                by_codec[client.options.codec] = client.stats().drift
        of_workers = (run.drift_of_workers for run in self._runs)
        for one in joined([*by_codec.values(), self._drift_of_runs, *of_workers]):
            yield metrics.Observation(one.answers, {"flinks.drift.kind": one.kind, "flinks.drift.path": one.path})


class _Tracing:
    """The two middlewares of an instrumented client."""

    def __init__(self, tracer: trace.Tracer, meters: _Meters, extra: Attributes, propagate: bool) -> None:
        self._tracer = tracer
        self._meters = meters
        self._extra = extra
        self._propagator = tracecontext.TraceContextTextMapPropagator() if propagate else None

    async def call(self, request: Request, call_next: Handler) -> Response:
        call, labels = request.call, {**_server(request.endpoint.url), **self._extra}
        run = context.get_value(_RUN)
        links = [trace.Link(run)] if isinstance(run, trace.SpanContext) else None
        failure: str | None = None
        with self._span("flinks partner_access", trace.SpanKind.INTERNAL, labels, links) as span:
            span.set_attribute("flinks.token_fingerprint", fingerprint(request.token))
            try:
                response = await call_next(request)
                verdict = verdict_of(response)
                if verdict.error is not None and not request.raw:
                    failure = verdict.error.__name__
                if response.envelope.request_id is not None:
                    span.set_attribute("flinks.request_id", response.envelope.request_id)
                return response
            except asyncio.CancelledError:
                scope = call.scope
                # The scope belongs to the client, which raises DeadlineExceededError or ClientClosedError after this.
                failure = "CancelledError"
                if scope is not None and scope.interrupted:
                    late = call.deadline is not None and call.local.now() >= call.deadline
                    failure = "DeadlineExceededError" if late else "ClientClosedError"
                raise
            except BaseException as error:
                failure = type(error).__name__
                raise
            finally:
                span.set_attribute("flinks.call_id", call.id)
                span.set_attribute("flinks.attempts", call.attempts)
                span.set_attribute("flinks.queue_time", call.queue_time)
                if failure is not None:
                    labels["error.type"] = failure
                    _fail(span, failure)
                self._meters.call.record(call.local.now() - call.started, labels)

    async def attempt(self, request: Request, call_next: Handler) -> Response:
        call, meters, server = request.call, self._meters, {**_server(request.endpoint.url), **self._extra}
        labels: dict[str, Any] = {"http.request.method": "GET", "url.template": _TEMPLATE, **server}
        sent, queued, on_wire = call.attempts, call.queue_time, call.wire_time
        if call.retrying:
            meters.retries.add(1, server)
        with self._span(f"GET {_TEMPLATE}", trace.SpanKind.CLIENT, labels) as span:
            if sent:
                span.set_attribute("http.request.resend_count", sent)
            if self._propagator is not None:
                headers = dict(request.headers)
                self._propagator.inject(headers)
                request = request.evolve(headers=headers)
            failure: str | None = None
            suppressed = context.attach(context.set_value(_SUPPRESS, True))
            try:
                response = await call_next(request)
                labels["http.response.status_code"] = status = response.status
                verdict = verdict_of(response)
                span.set_attribute("http.response.status_code", status)
                span.set_attribute("flinks.verdict", verdict.kind.value)
                if status >= 400:
                    failure = str(status)
                elif verdict.kind is not Kind.OK and verdict.error is not None:
                    failure = verdict.error.__name__
                return response
            except BaseException as error:
                failure = type(error).__name__
                raise
            finally:
                context.detach(suppressed)
                waited = call.queue_time - queued
                span.set_attribute("flinks.queue_time", waited)
                meters.queue.record(waited, server)
                if failure is not None:
                    labels["error.type"] = failure
                    _fail(span, failure)
                if call.attempts > sent:  # otherwise it was refused before it was sent
                    meters.request.record(call.wire_time - on_wire, labels)

    def _span(self, name: str, kind: trace.SpanKind, attributes: Attributes, links: Any = None) -> Any:
        # Exceptions are not recorded, because those of a user's middleware may hold a secret.
        return self._tracer.start_as_current_span(
            name, kind=kind, attributes=attributes, links=links, record_exception=False, set_status_on_exception=False
        )


def _fail(span: trace.Span, failure: str) -> None:
    span.set_attribute("error.type", failure)
    if failure != "CancelledError":
        span.set_status(trace.StatusCode.ERROR, failure)


class TracedExecutor:
    """An executor of jobs that makes a span for the run and one for each shard:
    `job.run(client, executor=TracedExecutor(InProcess()))`.

    A shard has a trace of its own, linked to the run, because one trace of millions of spans is of no use. It lasts from
    the moment that the shard is planned until its answers are in the store. With `InProcess` and an instrumented client,
    the calls also have traces of their own, linked to the run.

    Args:
        executor: fetches the shards.
        tracer_provider, meter_provider: as for `instrument`.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._executor = executor
        self._tracer = trace.get_tracer(_NAME, __version__, tracer_provider)
        self._meters = _Meters.of(meter_provider or metrics.get_meter_provider())

    def map_shards(self, work: Work, tasks: NextTask, finished: TakeFinished) -> Execution:
        return _TracedExecution(self._executor, work, tasks, finished, self._tracer, self._meters)


def _state_of(worker: WorkerState) -> str:
    from .bulk.counters import WAITED_FOR  # imported by the job already

    return "missing" if worker.note == WAITED_FOR else "lost" if worker.note else "working"


class _TracedExecution:
    """An `Execution` that makes spans around another."""

    def __init__(
        self,
        executor: Executor,
        work: Work,
        tasks: NextTask,
        finished: TakeFinished,
        tracer: trace.Tracer,
        meters: _Meters,
    ) -> None:
        self._tasks, self._finished, self._tracer, self._meters = tasks, finished, tracer, meters
        self._run: trace.SpanContext | None = None
        self._shards: dict[int, trace.Span] = {}
        self._inner = executor.map_shards(work, self._next, self._take)
        self._latest: Counters | None = None  # which the thread that exports metrics may read
        self._has_workers = False
        self._lost = 0
        self.stop, self.break_off = self._inner.stop, self._inner.break_off

    @property
    def stopped(self) -> tuple[RunState, str] | None:
        return self._inner.stopped

    def counters(self) -> Counters:
        self._latest = counters = self._inner.counters()
        self._has_workers = self._has_workers or bool(counters.workers)
        lost = [worker for worker in counters.workers if _state_of(worker) == "lost"]
        for worker in lost[self._lost :]:
            self._meters.lost.add(1)
            self._meters.reassigned.add(worker.reassigned)
        self._lost = len(lost)
        return counters

    @property
    def states_of_workers(self) -> dict[str, int]:
        """How many workers are `working`, `missing` or `lost`. Zeros tell a backend that an earlier value is over."""
        if self._latest is None or not self._has_workers:
            return {}
        states = Counter(map(_state_of, self._latest.workers))
        return {state: states[state] for state in ("working", "missing", "lost")}

    @property
    def drift_of_workers(self) -> tuple[Drift, ...]:
        """The counts of other processes; this process counts for its own clients."""
        return self._latest.drift if self._latest is not None and self._has_workers else ()

    async def go(self) -> None:
        span = self._tracer.start_span("flinks job run")
        self._run = span.get_span_context()
        # Shards and calls must not be spans of this trace, nor of the one around the run.
        detached = context.set_value(_RUN, self._run, trace.set_span_in_context(trace.INVALID_SPAN))
        token = context.attach(detached)
        self._meters.begin(self)
        state = "complete"
        try:
            await self._inner.go()
            if self._inner.stopped is not None:
                state = self._inner.stopped[0]
        except BaseException as error:
            state = "interrupted" if isinstance(error, asyncio.CancelledError) else "failed"
            _fail(span, type(error).__name__)
            raise
        finally:
            context.detach(token)
            for shard in self._shards.values():
                _fail(shard, "CancelledError")
                shard.end()
            counters = self.counters()
            self._meters.end(self, state)
            span.set_attribute("flinks.run.state", state)
            span.set_attribute("flinks.run.fetched", counters.fetched)
            span.set_attribute("flinks.run.failed", counters.failed)
            span.end()

    async def _next(self) -> Task | None:
        task = await self._tasks()
        if task is not None and self._run is not None:
            shard = task.shard
            attributes = {
                "flinks.shard.id": shard.id,
                "flinks.shard.tokens": shard.tokens,
                "flinks.shard.round": shard.round,
            }
            self._shards[shard.id] = self._tracer.start_span(
                "flinks job shard", links=[trace.Link(self._run)], attributes=attributes
            )
        return task

    async def _take(self, finished: Finished) -> object:
        span = self._shards.pop(finished.shard.id)
        outcome = {"fetched": finished.written.lines, "failed": len(finished.failures), "left": len(finished.left)}
        for name, count in outcome.items():
            span.set_attribute(f"flinks.shard.{name}", count)
        try:
            taken = await self._finished(finished)
        except BaseException as error:
            _fail(span, type(error).__name__)
            raise
        else:
            for name in ("fetched", "failed"):
                self._meters.tokens.add(outcome[name], {"flinks.outcome": name})
            return taken
        finally:
            span.end()
