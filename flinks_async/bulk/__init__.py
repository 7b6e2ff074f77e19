"""Bulk jobs: fetch a file of tokens into a store, in one run or in several.

    source = InputFile("tokens.csv", Layout(column="token", key_column="user"))
    with Job.start("jobs/2026-11", source, JSONLParts("zstd")) as job:
        async with FlinksClient("acme", auth_secret=secret, settings=config.bulk()) as client:
            result = await job.run(client)

Requests are made at least once, and every answer is in the output exactly once. After any interruption, run the same job
again to resume: it fetches the shards that are not committed.

Where to find what: `job` opens and runs jobs; `run` is one run, from ledger to store; `fetching` sends the requests;
`rules` lists the reasons for which a run stops; `selection` chooses what is kept; `counters` counts; `ledger` remembers;
`maintenance` has status, verify, export and purge, and `reading` reads answers for them, also on executors. `inputs/`,
`stores/` and `executors/` are made to be extended.
"""

from __future__ import annotations

from .counters import InstanceTrouble, Progress
from .directory import Manifest
from .errors import (
    InputChangedError,
    InputError,
    JobError,
    JobLockedError,
    JobMismatchError,
    LedgerError,
    StoreError,
    StoreMissingError,
    UnfitAnswerError,
    WorkerError,
)
from .executors import DaskExecutor, Executor, InProcess, Processes, RayExecutor
from .inputs import InputBytes, InputFile, Layout, Scanned, digest, scan
from .job import SHARD_SIZE, Job
from .ledger import Totals
from .maintenance import Status, export, export_files, purge, status, verify
from .records import Commit, Failure, Shard, Written
from .rules import Rules
from .run import Result
from .selection import Selection
from .stores import JSONLFile, JSONLParts, Place, Problem, SQLiteStore, Store

__all__ = [
    "SHARD_SIZE",
    "Commit",
    "DaskExecutor",
    "Executor",
    "Failure",
    "InProcess",
    "InputBytes",
    "InputChangedError",
    "InputError",
    "InputFile",
    "InstanceTrouble",
    "JSONLFile",
    "JSONLParts",
    "Job",
    "JobError",
    "JobLockedError",
    "JobMismatchError",
    "Layout",
    "LedgerError",
    "Manifest",
    "Place",
    "Problem",
    "Processes",
    "Progress",
    "RayExecutor",
    "Result",
    "Rules",
    "SQLiteStore",
    "Scanned",
    "Selection",
    "Shard",
    "Status",
    "Store",
    "StoreError",
    "StoreMissingError",
    "Totals",
    "UnfitAnswerError",
    "WorkerError",
    "Written",
    "digest",
    "export",
    "export_files",
    "purge",
    "scan",
    "status",
    "verify",
]
