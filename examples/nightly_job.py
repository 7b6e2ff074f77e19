"""A nightly job: fetches a file of tokens into DuckDB, then draws the cash flow of each day.

    pip install 'flinks-async[bulk,duckdb]' matplotlib
    FLINKS_AUTH_SECRET=... FLINKS_INSTANCE=toolbox python nightly_job.py people.csv out

After an interruption, run the same command again: it resumes. SIGTERM stops it within seconds. The exit code is 0 if every
token has an outcome, and 3 if the run stopped before.
"""

import asyncio
import signal
import sys
from pathlib import Path

import duckdb
import matplotlib.pyplot as plt

from flinks_async import FlinksClient, config
from flinks_async.bulk import InputFile, Job, Layout, Rules
from flinks_async.bulk.stores.duckdb import DuckDBStore

QUERY = """
    SELECT date, sum(coalesce(credit, 0)) AS money_in, sum(coalesce(debit, 0)) AS money_out
    FROM transactions WHERE date IS NOT NULL GROUP BY date ORDER BY date
"""


async def fetch(tokens: Path, out: Path) -> str:
    source = InputFile(tokens, Layout(column="token", key_column="user"))
    store = DuckDBStore(out / "answers.duckdb")
    job = await asyncio.to_thread(Job.start, out / "job", source, store)
    with job:
        async with FlinksClient.from_env(settings=config.bulk()) as flinks:
            if sys.platform != "win32":
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, job.stop, "SIGTERM")
            result = await job.run(flinks, Rules(max_failure_share=0.2, drain=10))
    print(f"{result.state}: {result.totals.fetched:,} fetched, {result.totals.failed:,} failed")
    return result.state


def draw(out: Path) -> None:
    with duckdb.connect(str(out / "answers.duckdb"), read_only=True) as db:
        days = db.sql(QUERY).fetchall()
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    axes.plot([day for day, _, _ in days], [float(money) for _, money, _ in days], label="in")
    axes.plot([day for day, _, _ in days], [float(money) for _, _, money in days], label="out")
    axes.set(title="Cash flow of all accounts", ylabel="per day")
    axes.legend()
    figure.savefig(out / "cash-flow.svg")
    plt.close(figure)


if __name__ == "__main__":
    tokens, out = map(Path, sys.argv[1:])
    out.mkdir(exist_ok=True)
    if asyncio.run(fetch(tokens, out)) != "complete":
        sys.exit(3)
    draw(out)
