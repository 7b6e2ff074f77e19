"""Where shards are fetched: in this process, or in several."""

from __future__ import annotations

from .dask import DaskExecutor
from .in_process import InProcess
from .processes import Processes
from .protocol import Execution, Executor, Work

__all__ = ["DaskExecutor", "Execution", "Executor", "InProcess", "Processes", "Work"]
