"""Where shards are fetched: in this process, in several, or on a cluster."""

from __future__ import annotations

from .engines import DaskExecutor, RayExecutor
from .processes import Processes
from .protocol import Execution, Executor, InProcess, Work

__all__ = ["DaskExecutor", "Execution", "Executor", "InProcess", "Processes", "RayExecutor", "Work"]
