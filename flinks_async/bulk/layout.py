"""What lies where in the directory of a job."""

from __future__ import annotations

from typing import Final

MANIFEST: Final = "manifest.json"
LEDGER: Final = "ledger.sqlite"
LOCK: Final = "job.lock"
LOG: Final = "job.log"
FAILED: Final = "failed.jsonl"
DUPLICATES: Final = "duplicates.jsonl"
REPORT: Final = "report.json"
PAGE: Final = "report.html"
NOTE: Final = "out.json"
"""Which file is the job's output (see `stores.claim`)."""
SPOOLS: Final = "spools"
SCRATCH: Final = "scratch"

LEDGER_FILES: Final = (LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm", f"{LEDGER}-journal")
TEMPORARY: Final = tuple(f"{name}.tmp" for name in (MANIFEST, FAILED, DUPLICATES, REPORT, PAGE, NOTE))
BEFORE_MANIFEST: Final = frozenset({LOCK, LOG, SPOOLS, SCRATCH, *LEDGER_FILES, *TEMPORARY})
"""What a job that died while it began may have left."""
OWN: Final = BEFORE_MANIFEST | {MANIFEST, FAILED, DUPLICATES, REPORT, PAGE, NOTE}
"""What no output may be called."""
