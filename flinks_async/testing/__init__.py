"""Tools for tests: a simulated Flinks, a raw-socket server for faults, an in-memory transport, clocks that
do not wait.

Nothing is imported before it is used: the pytest plugin lives here and is loaded by every run of pytest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clock import FakeClock
    from .data import expected_answer, expected_body
    from .fate import DemoFaults, Fate, Faults, Plan
    from .faults import KINDS, Fault
    from .loop import VirtualClock, VirtualTimeLoop, run_virtual
    from .pace import Latency, RateLimit, Throttle
    from .process import ServerProcess
    from .raw import RawConnection, RawServer, Script, Step
    from .raw_steps import (
        Close,
        Flood,
        HalfClose,
        Hang,
        Pause,
        ReadHead,
        Repeat,
        Reset,
        Respond,
        Send,
        StartTLS,
        Trickle,
    )
    from .serve import ServeOptions, serve_forever
    from .server import UNKNOWN_TOKEN, FlinksServer
    from .stats import RecordedRequest, ServerStats
    from .transport import InMemoryTransport, SentRequest

_WHERE = {
    "Close": "raw_steps",
    "DemoFaults": "fate",
    "FakeClock": "clock",
    "Fate": "fate",
    "Fault": "faults",
    "Faults": "fate",
    "FlinksServer": "server",
    "Flood": "raw_steps",
    "HalfClose": "raw_steps",
    "Hang": "raw_steps",
    "InMemoryTransport": "transport",
    "KINDS": "faults",
    "Latency": "pace",
    "Pause": "raw_steps",
    "Plan": "fate",
    "RateLimit": "pace",
    "RawConnection": "raw",
    "RawServer": "raw",
    "ReadHead": "raw_steps",
    "RecordedRequest": "stats",
    "Repeat": "raw_steps",
    "Reset": "raw_steps",
    "Respond": "raw_steps",
    "Script": "raw",
    "Send": "raw_steps",
    "SentRequest": "transport",
    "ServeOptions": "serve",
    "ServerProcess": "process",
    "ServerStats": "stats",
    "StartTLS": "raw_steps",
    "Step": "raw",
    "Throttle": "pace",
    "Trickle": "raw_steps",
    "UNKNOWN_TOKEN": "server",
    "VirtualClock": "loop",
    "VirtualTimeLoop": "loop",
    "expected_answer": "data",
    "expected_body": "data",
    "run_virtual": "loop",
    "serve_forever": "serve",
}

__all__ = [
    "KINDS",
    "UNKNOWN_TOKEN",
    "Close",
    "DemoFaults",
    "FakeClock",
    "Fate",
    "Fault",
    "Faults",
    "FlinksServer",
    "Flood",
    "HalfClose",
    "Hang",
    "InMemoryTransport",
    "Latency",
    "Pause",
    "Plan",
    "RateLimit",
    "RawConnection",
    "RawServer",
    "ReadHead",
    "RecordedRequest",
    "Repeat",
    "Reset",
    "Respond",
    "Script",
    "Send",
    "SentRequest",
    "ServeOptions",
    "ServerProcess",
    "ServerStats",
    "StartTLS",
    "Step",
    "Throttle",
    "Trickle",
    "VirtualClock",
    "VirtualTimeLoop",
    "expected_answer",
    "expected_body",
    "run_virtual",
    "serve_forever",
]


def __getattr__(name: str) -> Any:
    try:
        module = _WHERE[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
