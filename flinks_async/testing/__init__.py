"""Tools for your own tests: a simulated Flinks, an in-memory transport, and clocks that do not wait.

Names are imported on first use, because every run of pytest loads the plugin in this package.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import expected_answer, expected_body
    from .faults import KINDS, DemoFaults, Fault, Faults, Latency, Plan, RateLimit, Throttle, TokenPlan
    from .in_memory import UNKNOWN_TOKEN, InMemoryTransport, SentRequest
    from .mock import aioresponses
    from .process import ServeOptions, ServerProcess, serve_forever
    from .server import FlinksServer, RecordedRequest, ServerStats
    from .virtual_time import FakeClock, VirtualClock, VirtualTimeLoop, run_virtual

_MODULES = {
    name: module
    for module, names in {
        "data": ("expected_answer", "expected_body"),
        "faults": ("KINDS", "DemoFaults", "Fault", "Faults", "Latency", "Plan", "RateLimit", "Throttle", "TokenPlan"),
        "in_memory": ("UNKNOWN_TOKEN", "InMemoryTransport", "SentRequest"),
        "mock": ("aioresponses",),
        "process": ("ServeOptions", "ServerProcess", "serve_forever"),
        "server": ("FlinksServer", "RecordedRequest", "ServerStats"),
        "virtual_time": ("FakeClock", "VirtualClock", "VirtualTimeLoop", "run_virtual"),
    }.items()
    for name in names
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
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
