"""Tools for your own tests: a simulated Flinks, an in-memory transport, and clocks that do not wait.

Names are imported on first use, because every run of pytest loads the plugin in this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import expected_answer, expected_body
    from .fault_plan import DemoFaults, Faults, Plan, TokenPlan
    from .faults import KINDS, Fault
    from .in_memory import InMemoryTransport, SentRequest
    from .latency import Latency, RateLimit, Throttle
    from .mock import aioresponses
    from .process import ServerProcess
    from .serve import ServeOptions, serve_forever
    from .server import UNKNOWN_TOKEN, FlinksServer
    from .server_stats import RecordedRequest, ServerStats
    from .virtual_time import FakeClock, VirtualClock, VirtualTimeLoop, run_virtual

_MODULES = {
    "DemoFaults": "fault_plan",
    "FakeClock": "virtual_time",
    "Fault": "faults",
    "Faults": "fault_plan",
    "FlinksServer": "server",
    "InMemoryTransport": "in_memory",
    "KINDS": "faults",
    "Latency": "latency",
    "Plan": "fault_plan",
    "RateLimit": "latency",
    "RecordedRequest": "server_stats",
    "SentRequest": "in_memory",
    "ServeOptions": "serve",
    "ServerProcess": "process",
    "ServerStats": "server_stats",
    "Throttle": "latency",
    "TokenPlan": "fault_plan",
    "UNKNOWN_TOKEN": "server",
    "VirtualClock": "virtual_time",
    "VirtualTimeLoop": "virtual_time",
    "aioresponses": "mock",
    "expected_answer": "data",
    "expected_body": "data",
    "run_virtual": "virtual_time",
    "serve_forever": "serve",
}

__all__ = [
    "KINDS",
    "UNKNOWN_TOKEN",
    "DemoFaults",
    "FakeClock",
    "Fault",
    "Faults",
    "FlinksServer",
    "InMemoryTransport",
    "Latency",
    "Plan",
    "RateLimit",
    "RecordedRequest",
    "SentRequest",
    "ServeOptions",
    "ServerProcess",
    "ServerStats",
    "Throttle",
    "TokenPlan",
    "VirtualClock",
    "VirtualTimeLoop",
    "aioresponses",
    "expected_answer",
    "expected_body",
    "run_virtual",
    "serve_forever",
]


def __getattr__(name: str) -> Any:
    try:
        module = _MODULES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
