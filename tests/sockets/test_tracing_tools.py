"""OpenTelemetry and Sentry, set up as their documentation says, on every way to the wire. Each has a process of its own, because
both patch aiohttp for good.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

WAYS = ("lean", "headers", "proxy", "fresh", "borrowed")
TOOLS = {"opentelemetry": "opentelemetry.instrumentation.aiohttp_client", "sentry": "sentry_sdk"}
TOKEN = "canary-token"
SECRET = "canary-secret"
ADDED = (b"traceparent", b"tracestate", b"sentry-trace", b"baggage")


@cache
def seen_by(tool: str) -> dict[str, Any]:
    """By way."""
    command = [sys.executable, "-m", "tests.sockets.test_tracing_tools", tool]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    seen: dict[str, Any] = json.loads(run.stdout)
    return seen


@pytest.mark.parametrize("way", WAYS[:-1])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_sees_no_request_of_our_own_sessions(tool: str, way: str) -> None:
    pytest.importorskip(TOOLS[tool])
    seen = seen_by(tool)[way]
    assert seen["requests"] == (3 if way == "fresh" else 2)  # one more meets the closed connection
    assert TOKEN not in seen["told"]
    assert SECRET not in seen["told"]
    assert "partneraccess" not in seen["told"]
    assert seen["added"] == []
    assert seen["warnings"] == []


@pytest.mark.parametrize("tool", TOOLS)
def test_on_a_borrowed_session_it_goes_on_and_one_warning_says_what_it_shows(tool: str) -> None:
    pytest.importorskip(TOOLS[tool])
    seen = seen_by(tool)["borrowed"]
    assert "partneraccess" in seen["told"]
    (warning,) = seen["warnings"]
    assert TOOLS[tool] in warning
    assert "access tokens (in URLs), the AuthSecret (in a header) and answers" in warning


# --- in the process of a tool ---


def watch_opentelemetry() -> Callable[[], str]:
    from opentelemetry import trace
    from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    AioHttpClientInstrumentor().instrument()

    def report() -> str:
        told = "".join(span.to_json() for span in spans.get_finished_spans())
        spans.clear()
        return told

    return report


def watch_sentry() -> Callable[[], str]:
    import sentry_sdk

    told: list[bytes] = []

    class Transport(sentry_sdk.transport.Transport):
        def capture_envelope(self, envelope: Any) -> None:
            told.append(envelope.serialize())

    sentry_sdk.init("https://key@sentry.invalid/1", traces_sample_rate=1.0, transport=Transport)

    def report() -> str:
        sentry_sdk.capture_message("done")
        sentry_sdk.flush()
        text = b"".join(told).decode()
        told.clear()
        return text

    return report


async def run(tool: str) -> dict[str, Any]:
    report = {"opentelemetry": watch_opentelemetry, "sentry": watch_sentry}[tool]()
    return {way: await seen_on(way, report) for way in WAYS}


async def seen_on(way: str, report: Callable[[], str]) -> dict[str, Any]:
    import aiohttp

    from flinks_async import FlinksClient, FlinksError
    from flinks_async.testing import FakeClock
    from tests.raw_server import Close, RawServer, ReadHead, Repeat
    from tests.sockets.support import OK

    async def with_header(request: Any, call_next: Any) -> Any:
        return await call_next(request.evolve(headers={"X-Trace": "1"}))

    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("flinks_async").addHandler(handler)
    steps = (ReadHead(), OK, ReadHead(), Close()) if way == "fresh" else (Repeat(ReadHead(), OK),)
    async with RawServer(steps) as server, aiohttp.ClientSession() as session:
        options: dict[str, Any] = {"base_url": server.base_url}
        if way == "headers":
            options["attempt_middleware"] = [with_header]
        if way == "proxy":
            options = {"connection": {"proxy": server.base_url}, "base_url": "http://flinks.test", "allow_http": True}
        if way == "borrowed":
            options["session"] = session
        async with FlinksClient(auth_secret=SECRET, clock=FakeClock(), **options) as client:
            for _ in range(2):
                await client.partner_access(TOKEN)
            if way not in ("proxy", "borrowed"):
                try:
                    await client.with_options(base_url="http://127.0.0.1:1").partner_access(TOKEN)
                except FlinksError:  # Sentry reports it, with the variables of all frames
                    logging.getLogger("application").exception("failed")
        added = [name.decode() for name in ADDED for head in server.heads if name in head.lower()]
        logging.getLogger("flinks_async").removeHandler(handler)
        return {"told": report(), "added": added, "warnings": warnings, "requests": server.requests}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(sys.argv[1]))))
