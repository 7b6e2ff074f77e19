"""The nightly job as assets of Dagster. Each night is a partition with a job of its own, and all nights share one database.

    pip install 'flinks-async[bulk,duckdb]' dagster
    export FLINKS_AUTH_SECRET=... FLINKS_INSTANCE=toolbox TOKENS=people.csv OUT=nights
    dagster asset materialize -f dagster_nightly.py --select '*' --partition 2026-11-28
    dagster dev -f dagster_nightly.py    # the web page, with the schedule

A run that failed or was ended, at whatever point, is repeated with the same partition: the job resumes and fetches only
what is missing.
"""

import asyncio
import os
from pathlib import Path

import dagster as dg
import duckdb

from flinks_async import FlinksClient, config
from flinks_async.bulk import InputFile, Job, Layout, Result, Rules
from flinks_async.bulk.stores.duckdb import DuckDBStore

NIGHTS = dg.DailyPartitionsDefinition(start_date="2026-01-01", end_offset=1)  # the night of today, too


def database() -> Path:
    return Path(os.environ["OUT"], "answers.duckdb")


async def fetch(night: str) -> Result:
    source = InputFile(Path(os.environ["TOKENS"]), Layout(column="token", key_column="user"))
    job = await asyncio.to_thread(Job.start, database().parent / night, source, DuckDBStore(database()))
    with job:
        async with FlinksClient.from_env(settings=config.bulk()) as flinks:
            return await job.run(flinks, Rules(max_failure_share=0.2))


@dg.asset(partitions_def=NIGHTS, retry_policy=dg.RetryPolicy(max_retries=3, delay=600))
def account_data(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Accounts, transactions and holders of all users, in DuckDB."""
    database().parent.mkdir(parents=True, exist_ok=True)
    result = asyncio.run(fetch(context.partition_key))
    totals = result.totals
    if result.state != "complete":
        again = result.state != "refused"  # a refused AuthSecret needs a person
        raise dg.Failure(f"{result.state}: {result.reason}; {totals.fetched:,} fetched so far", allow_retries=again)
    return dg.MaterializeResult(metadata={"fetched": totals.fetched, "failed": totals.failed})


@dg.asset(partitions_def=NIGHTS, deps=[account_data])
def overdrawn_users() -> dg.MaterializeResult:
    """Users whose accounts are below 0 together, by their newest answers."""
    query = 'SELECT "key" FROM current_accounts GROUP BY "key" HAVING sum(balance_current) < 0 ORDER BY "key"'
    with duckdb.connect(str(database()), read_only=True) as db:
        users = [user for (user,) in db.sql(query).fetchall()]
    return dg.MaterializeResult(metadata={"users": len(users), "first": users[:10]})


nightly = dg.define_asset_job("nightly", [account_data, overdrawn_users])
defs = dg.Definitions(
    assets=[account_data, overdrawn_users],
    jobs=[nightly],
    schedules=[dg.build_schedule_from_partitioned_job(nightly, hour_of_day=2)],
    executor=dg.in_process_executor,
)
