"""Where shards are fetched: in this process, in several, or on a cluster."""

from __future__ import annotations

from .dask import DaskExecutor
from .processes import Processes
from .protocol import Execution, Executor, InProcess, Work
from .ray import RayExecutor

__all__ = ["DaskExecutor", "Execution", "Executor", "InProcess", "Processes", "RayExecutor", "Work"]
