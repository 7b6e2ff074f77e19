"""A FastAPI service with one client, timeouts, traces, and a stop that lets requests finish.

    pip install 'flinks-async[otel]' fastapi uvicorn opentelemetry-exporter-otlp-proto-http
    FLINKS_AUTH_SECRET=... FLINKS_INSTANCE=toolbox python fastapi_service.py

On SIGTERM, uvicorn takes no new requests and gives those in flight 20 s; then the lifespan closes the client. Set
OTEL_EXPORTER_OTLP_ENDPOINT to send traces and metrics.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from flinks_async import DeadlineExceededError, FlinksClient, FlinksError
from flinks_async.otel import instrument

TOKENS = {"u1": "3c9c1a3e-0000-4000-8000-000000000001"}  # your database


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    tracers, meters = TracerProvider(), None
    if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ:
        tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())])
        metrics.set_meter_provider(meters)
    trace.set_tracer_provider(tracers)
    async with FlinksClient.from_env(timeouts={"attempt": 10, "deadline": 15}) as client:
        app.state.flinks = instrument(client)
        yield
    tracers.shutdown()  # sends what is left
    if meters is not None:
        meters.shutdown()


app = FastAPI(lifespan=lifespan)


@app.exception_handler(FlinksError)
async def flinks_failed(request: Request, error: FlinksError) -> JSONResponse:
    status = 504 if isinstance(error, DeadlineExceededError) else 502
    return JSONResponse({"error": type(error).__name__, "request_id": error.request_id}, status)


@app.get("/balance/{user}", response_model=None)
async def balance(user: str, request: Request) -> JSONResponse | dict[str, str]:
    if user not in TOKENS:
        return JSONResponse({"error": "unknown user"}, 404)
    answer = await request.app.state.flinks.partner_access(TOKENS[user])
    return {account.title or "account": str(account.balance.current) for account in answer.accounts if account.balance}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")), timeout_graceful_shutdown=20)
