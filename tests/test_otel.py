"""Spans and metrics, as an OTLP receiver in another process gets them, and as they are in memory."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from math import inf
from typing import Any

import aiohttp
import pytest
from attrs import evolve
from opentelemetry import baggage, context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from flinks_async import (
    AuthenticationError,
    DeadlineExceededError,
    FlinksClient,
    FlinksError,
    Hedge,
    Response,
    Retry,
)
from flinks_async.otel import TracedExecutor, instrument
from flinks_async.testing import KINDS, Fault, FlinksServer, InMemoryTransport

from .test_canaries import FAILURES, PERSONAL, SECRET, TOKEN, shows_nothing

GET = "GET /partneraccess/{accesstoken}"
ANSWER = {"RequestId": "r-1"}
AT_ONCE = Retry(base=0.001, throttled_base=0.001)

RECEIVER = """
import base64, gzip, http.server

class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        print(self.path, base64.b64encode(body).decode(), flush=True)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
print(server.server_port, flush=True)
server.serve_forever()
"""


class Telemetry:
    """Providers that keep everything in memory."""

    def __init__(self) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    def instrument(self, client: FlinksClient, **arguments: Any) -> FlinksClient:
        return instrument(client, tracer_provider=self.tracers, meter_provider=self.meters, **arguments)

    def executor(self, executor: Any) -> TracedExecutor:
        return TracedExecutor(executor, tracer_provider=self.tracers, meter_provider=self.meters)

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def calls(self) -> list[ReadableSpan]:
        return self.spans("flinks partner_access")

    def attempts(self) -> list[ReadableSpan]:
        return self.spans(GET)

    def metric(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        found = [] if data is None else data.resource_metrics[0].scope_metrics[0].metrics
        return [point for metric in found if metric.name == name for point in metric.data.data_points]

    def everything(self) -> str:
        data = self.reader.get_metrics_data()
        return "".join(span.to_json() for span in self.exporter.get_finished_spans()) + (data.to_json() if data else "")


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def plain(values: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in values}


# --- one call ---------------------------------------------------------------------------------------------------------


async def test_a_receiver_in_another_process_gets_spans_and_metrics() -> None:
    receiver = subprocess.Popen([sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE, text=True)
    assert receiver.stdout is not None
    address = f"http://127.0.0.1:{receiver.stdout.readline().strip()}"
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{address}/v1/traces")))
    periodic = PeriodicExportingMetricReader(OTLPMetricExporter(f"{address}/v1/metrics"), 3_600_000)
    meters = MeterProvider([periodic], shutdown_on_exit=False)
    try:
        async with FlinksServer(auth_secret=SECRET) as server:
            server.script(TOKEN, [KINDS["http_503"], Fault.reply(200, PERSONAL)])
            async with FlinksClient(auth_secret=SECRET, base_url=server.base_url, retry=AT_ONCE) as client:
                flinks = instrument(client, tracer_provider=tracers, meter_provider=meters)
                await flinks.partner_access(TOKEN)
                await asyncio.to_thread(meters.force_flush)
            port = client.host.partition(":")[2]
        await asyncio.to_thread(tracers.shutdown)
        await asyncio.to_thread(meters.shutdown)
    finally:
        receiver.terminate()
        output = receiver.communicate()[0].splitlines()
    bodies = [(path, base64.b64decode(body)) for path, _, body in (line.partition(" ") for line in output)]
    shows_nothing(*(body for _, body in bodies))
    traces = [ExportTraceServiceRequest.FromString(body) for path, body in bodies if path == "/v1/traces"]
    spans = {
        span.start_time_unix_nano: span
        for t in traces
        for r in t.resource_spans
        for s in r.scope_spans
        for span in s.spans
    }
    call, first, second = (spans[time] for time in sorted(spans))
    assert (call.name, first.name, second.name) == ("flinks partner_access", GET, GET)
    assert first.parent_span_id == second.parent_span_id == call.span_id
    common = {
        "http.request.method": "GET",
        "url.template": "/partneraccess/{accesstoken}",
        "server.address": "127.0.0.1",
        "server.port": int(port),
    }
    queue = {"flinks.queue_time": pytest.approx(0, abs=0.1)}
    failed = {"http.response.status_code": 503, "error.type": "503", "flinks.verdict": "transient"}
    assert plain(first.attributes) == common | queue | failed
    good = {"http.response.status_code": 200, "http.request.resend_count": 1, "flinks.verdict": "ok"}
    assert plain(second.attributes) == common | queue | good
    assert (first.status.code, second.status.code, call.status.code) == (2, 0, 0)
    exports = [ExportMetricsServiceRequest.FromString(body) for path, body in bodies if path == "/v1/metrics"]
    names = {m.name for e in exports for r in e.resource_metrics for s in r.scope_metrics for m in s.metrics}
    assert {"http.client.request.duration", "http.client.active_requests", "flinks.client.retries"} <= names


async def test_a_failed_call_names_its_error_and_what_support_asks_for(telemetry: Telemetry) -> None:
    body = b'{"FlinksCode": "UNAUTHORIZED", "RequestId": "r-7"}'
    transport = InMemoryTransport(default=Response(401, body=body))
    async with FlinksClient("acme-ca", auth_secret="s", transport=transport) as client:
        flinks = telemetry.instrument(client, attributes={"customer": "acme"})
        with pytest.raises(AuthenticationError) as caught:
            await flinks.partner_access("token")
    (call,), (attempt,) = telemetry.calls(), telemetry.attempts()
    assert attributes(call) == {
        "server.address": "acme-ca-api.private.fin.ag",
        "server.port": 443,
        "customer": "acme",
        "error.type": "AuthenticationError",
        "flinks.attempts": 1,
        "flinks.queue_time": pytest.approx(0, abs=0.1),
        "flinks.request_id": "r-7",
        "flinks.call_id": caught.value.call_id,
        "flinks.token_fingerprint": caught.value.token_fingerprint,
    }
    assert not call.status.is_ok
    assert attributes(attempt)["error.type"] == "401"
    (point,) = telemetry.metric("flinks.client.call.duration")
    assert point.count == 1
    assert point.attributes["error.type"] == "AuthenticationError"


async def test_metrics_count_attempts_retries_and_outcomes(telemetry: Telemetry) -> None:
    fails = [KINDS["http_503"], ANSWER]
    transport = InMemoryTransport({"a": ANSWER, "b": fails, "c": KINDS["http_503"]})
    async with FlinksClient(auth_secret="s", transport=transport, retry=AT_ONCE) as client:
        flinks = telemetry.instrument(client)
        outcomes = [outcome async for outcome in flinks.partner_access_many(list("abc"))]
        gauges = {name: telemetry.metric(f"flinks.client.{name}")[0] for name in ("active_calls", "concurrency_limit")}
        limit = flinks.stats().limit
    assert len(outcomes) == 3
    requests = telemetry.metric("http.client.request.duration")
    assert {p.attributes["http.response.status_code"]: p.count for p in requests} == {200: 2, 503: 4}
    assert sum(p.value for p in telemetry.metric("flinks.client.retries")) == 3
    calls = telemetry.metric("flinks.client.call.duration")
    assert {p.attributes.get("error.type"): p.count for p in calls} == {None: 2, "ServerError": 1}
    assert sum(p.count for p in telemetry.metric("flinks.client.queue.duration")) == 6
    assert gauges["active_calls"].value == 0
    assert gauges["concurrency_limit"].value == limit > 0
    assert dict(gauges["active_calls"].attributes) == {
        "server.address": "toolbox-api.private.fin.ag",
        "server.port": 443,
    }


async def test_gauges_show_calls_in_flight_and_end_with_their_clients(telemetry: Telemetry) -> None:
    release = asyncio.Event()

    async def wait(_: Any) -> Any:
        await release.wait()
        return ANSWER

    transport = InMemoryTransport(default=wait)
    async with FlinksClient(auth_secret="s", transport=transport, limits={"concurrency": 1}) as client:
        first, second = telemetry.instrument(client), telemetry.instrument(client)
        calls = [asyncio.ensure_future(flinks.partner_access("t")) for flinks in (first, second, second)]
        while first.stats().queued < 2:
            await asyncio.sleep(0)
        seen = {
            name: [point.value for point in telemetry.metric(name)]
            for name in ("flinks.client.active_calls", "http.client.active_requests", "flinks.client.queued_requests")
        }
        release.set()
        await asyncio.gather(*calls)
    assert list(seen.values()) == [[3], [1], [2]]  # added up for calls; the place is shared
    assert telemetry.metric("flinks.client.active_calls") == []


async def test_a_deadline_a_closed_client_and_a_cancelled_caller_are_told_apart(telemetry: Telemetry) -> None:
    async def hang(_: Any) -> Any:
        await asyncio.Event().wait()

    client = FlinksClient(auth_secret="s", transport=InMemoryTransport(default=hang))
    flinks = telemetry.instrument(client)
    with pytest.raises(DeadlineExceededError):
        await flinks.partner_access("token", timeout=0.01)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await flinks.partner_access("token")
    call = asyncio.ensure_future(flinks.partner_access("token"))
    while not flinks.stats().calls_in_flight:
        await asyncio.sleep(0)
    await client.close(grace=0)
    await asyncio.wait([call])
    types = [(attributes(span)["error.type"], span.status.status_code.name) for span in telemetry.calls()]
    assert types == [("DeadlineExceededError", "ERROR"), ("CancelledError", "UNSET"), ("ClientClosedError", "ERROR")]


async def test_a_raw_call_with_an_error_status_is_no_failed_call(telemetry: Telemetry) -> None:
    async with FlinksClient(auth_secret="s", transport=InMemoryTransport()) as client:
        assert (await telemetry.instrument(client).partner_access_raw("token")).status == 401
    assert "error.type" not in attributes(telemetry.calls()[0])
    assert attributes(telemetry.attempts()[0])["error.type"] == "401"


async def test_a_success_in_http_that_is_a_failure_in_its_body_is_a_failed_attempt(telemetry: Telemetry) -> None:
    transport = InMemoryTransport(default={"HttpStatusCode": 401, "FlinksCode": "SESSION_NONEXISTENT"})
    async with FlinksClient(auth_secret="s", transport=transport) as client:
        with pytest.raises(FlinksError) as caught:
            await telemetry.instrument(client).partner_access("token")
    assert attributes(telemetry.attempts()[0])["error.type"] == type(caught.value).__name__


async def test_an_attempt_that_the_open_breaker_refuses_is_no_http_request(telemetry: Telemetry) -> None:
    transport = InMemoryTransport(default=KINDS["http_503"])
    async with FlinksClient(auth_secret="s", transport=transport, retry={"attempts": 1}) as client:
        flinks = telemetry.instrument(client)
        for _ in range(200):
            with pytest.raises(FlinksError):
                await flinks.partner_access("token")
    sent = len(transport.requests)
    refused = [span for span in telemetry.attempts() if attributes(span).get("error.type") == "CircuitOpenError"]
    assert 0 < sent < 200
    assert len(refused) == 200 - sent
    assert sum(point.count for point in telemetry.metric("http.client.request.duration")) == sent


async def test_spans_are_below_the_span_of_the_caller_also_in_a_fan_out_and_with_hedges(telemetry: Telemetry) -> None:
    tracer = telemetry.tracers.get_tracer("service")
    async with FlinksClient(auth_secret="s", transport=InMemoryTransport(default=ANSWER), hedge=Hedge()) as client:
        flinks = telemetry.instrument(client)
        with tracer.start_as_current_span("handler") as handler:
            async for _ in flinks.partner_access_many(list("abc")):
                pass
    assert {span.parent.span_id for span in telemetry.calls() if span.parent} == {handler.get_span_context().span_id}
    assert {a.parent.span_id for a in telemetry.attempts() if a.parent} == {
        c.context.span_id for c in telemetry.calls()
    }


@pytest.mark.parametrize(("field", "unknown"), [("learned_rate", None), ("held_back", inf)])
async def test_a_gauge_is_missing_while_its_value_is_unknown(
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    field: str,
    unknown: float | None,
) -> None:
    async with FlinksClient(auth_secret="s", transport=InMemoryTransport(default=ANSWER)) as client:
        flinks = telemetry.instrument(client)
        stats = flinks.stats()
        for value, exported in ((unknown, []), (12.5, [12.5])):
            told = evolve(stats, **{field: value})
            monkeypatch.setattr(FlinksClient, "stats", lambda self, told=told: told)
            assert [point.value for point in telemetry.metric(f"flinks.client.{field}")] == exported
    assert not caplog.records  # some versions of the SDK export infinity, others warn


async def test_drift_is_counted_by_kind_and_path_and_once_for_clients_that_share_a_codec(telemetry: Telemetry) -> None:
    odd = {"GetAccountsDetail": [{"LoginId": "l", "CustomerId": "c", "Foo": "canary"}], "RequestId": "r"}
    async with FlinksClient(auth_secret="s", transport=InMemoryTransport(default=odd)) as client:
        flinks = telemetry.instrument(client)
        other = telemetry.instrument(client.with_options(app_name="other"))
        assert telemetry.metric("flinks.client.drift") == []
        for _ in range(3):
            await flinks.partner_access("token-1")
        (point,) = telemetry.metric("flinks.client.drift")
        assert point.value == 3
        assert dict(point.attributes) == {
            "flinks.drift.kind": "unknown field",
            "flinks.drift.path": "GetAccountsDetail[].Foo",
        }
        assert other.stats().drift == flinks.stats().drift


# --- beside others ----------------------------------------------------------------------------------------------------


async def test_traceparent_is_sent_on_wish_and_baggage_never(telemetry: Telemetry) -> None:
    transport = InMemoryTransport(default=ANSWER)
    async with FlinksClient(auth_secret="s", transport=transport) as client:
        token = context.attach(baggage.set_baggage("user", "canary"))
        try:
            await telemetry.instrument(client).partner_access("token")
            await telemetry.instrument(client, propagate=True).partner_access("token")
        finally:
            context.detach(token)
    silent, told = (sent.headers for sent in transport.requests)
    sent = telemetry.attempts()[1].context
    assert "traceparent" not in silent
    assert told["traceparent"].startswith(f"00-{sent.trace_id:032x}-{sent.span_id:016x}-")
    assert "baggage" not in told


@pytest.mark.parametrize("own_session", [False, True])
async def test_automatic_instrumentation_of_aiohttp_adds_no_span_and_no_url(
    telemetry: Telemetry, own_session: bool
) -> None:
    AioHttpClientInstrumentor().instrument(tracer_provider=telemetry.tracers, meter_provider=telemetry.meters)
    try:
        async with FlinksServer(auth_secret=SECRET) as server, aiohttp.ClientSession() as session:
            given = {"session": session} if own_session else {}
            async with FlinksClient(auth_secret=SECRET, base_url=server.base_url, **given) as client:
                await telemetry.instrument(client, propagate=True).partner_access(TOKEN)
            (await session.get(f"{server.base_url}/other")).release()
    finally:
        AioHttpClientInstrumentor().uninstrument()
    spans = telemetry.exporter.get_finished_spans()
    assert [span.name for span in spans] == [GET, "flinks partner_access", "GET"]  # the last is the other request
    shows_nothing(telemetry.everything())


async def test_an_instrumented_client_that_is_instrumented_again_makes_no_double_spans(telemetry: Telemetry) -> None:
    async with FlinksClient(auth_secret="s", transport=InMemoryTransport(default=ANSWER)) as client:
        await telemetry.instrument(telemetry.instrument(client)).partner_access("token")
        assert client.options.middleware == ()
    assert (len(telemetry.calls()), len(telemetry.attempts())) == (1, 1)


async def test_a_derived_client_names_its_own_instance(telemetry: Telemetry) -> None:
    async with FlinksClient(auth_secret="s", transport=InMemoryTransport(default=ANSWER)) as client:
        other = telemetry.instrument(client).with_options(instance="acme-us", auth_secret="t")
        await other.partner_access("token")
    for span in (*telemetry.calls(), *telemetry.attempts()):
        assert attributes(span)["server.address"] == "acme-us-api.private.fin.ag"


@pytest.mark.parametrize("fault", [*FAILURES, "ok"])
async def test_spans_and_metrics_show_nothing_of_any_failure(telemetry: Telemetry, fault: str) -> None:
    async def breaks(request: Any, call_next: Any) -> Any:
        if fault == "ok":
            raise RuntimeError(f"a middleware that says {request.token.reveal()}")
        return await call_next(request)

    async with FlinksServer(auth_secret=SECRET) as server:
        if fault != "ok":
            server.script(TOKEN, [KINDS[fault]] * 5)
        async with FlinksClient(
            auth_secret=SECRET,
            base_url=server.base_url,
            retry=AT_ONCE,
            timeouts={"attempt": 0.2},
            attempt_middleware=[breaks],
        ) as client:
            with pytest.raises((FlinksError, RuntimeError)):
                await telemetry.instrument(client).partner_access(TOKEN, headers={"X-Key": SECRET})
    assert "flinks partner_access" in telemetry.everything()
    shows_nothing(telemetry.everything())


def test_opentelemetry_is_not_imported_unless_it_is_used() -> None:
    program = """
import sys, flinks_async, flinks_async.bulk, flinks_async.cli
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
sys.modules["opentelemetry"] = None
try:
    import flinks_async.otel
except flinks_async.ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("pip install 'flinks-async[otel]'")
