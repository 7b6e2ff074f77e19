"""Tools for your own tests: a simulated Flinks, an in-memory transport, and clocks that do not wait.

Names are imported on first use, because every run of pytest loads the plugin in this package.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import expected_answer, expected_body
    from .fault_plan import DemoFaults, Faults, Latency, Plan, RateLimit, Throttle, TokenPlan
    from .faults import KINDS, Fault
    from .in_memory import InMemoryTransport, SentRequest
    from .mock import aioresponses
    from .process import ServeOptions, ServerProcess, serve_forever
    from .server import UNKNOWN_TOKEN, FlinksServer, RecordedRequest, ServerStats
    from .virtual_time import FakeClock, VirtualClock, VirtualTimeLoop, run_virtual

_MODULES = {
    "DemoFaults": "fault_plan",
    "FakeClock": "virtual_time",
    "Fault": "faults",
    "Faults": "fault_plan",
    "FlinksServer": "server",
    "InMemoryTransport": "in_memory",
    "KINDS": "faults",
    "Latency": "fault_plan",
    "Plan": "fault_plan",
    "RateLimit": "fault_plan",
    "RecordedRequest": "server",
    "SentRequest": "in_memory",
    "ServeOptions": "process",
    "ServerProcess": "process",
    "ServerStats": "server",
    "Throttle": "fault_plan",
    "TokenPlan": "fault_plan",
    "UNKNOWN_TOKEN": "server",
    "VirtualClock": "virtual_time",
    "VirtualTimeLoop": "virtual_time",
    "aioresponses": "mock",
    "expected_answer": "data",
    "expected_body": "data",
    "run_virtual": "virtual_time",
    "serve_forever": "process",
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


if find_spec("aioresponses") is None:  # `from flinks_async.testing import *` works without it
    __all__.remove("aioresponses")


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
