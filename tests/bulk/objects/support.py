"""What tests of object storage share: jobs at a URL, and files of tokens."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from flinks_async.bulk import (
    InputFile,
    Job,
    Layout,
    Result,
    Store,
)
from flinks_async.bulk.objects import place_at

from ..server_desk import SECRET, Desk


def names(url: str, *folders: str) -> list[str]:
    """Everything at a place."""
    return sorted(found.name for folder in folders or ("",) for found in place_at(url, Path()).list(folder))


def job_at(desk: Desk, store: Store, tokens: str | None = None, shard_size: int = 10) -> Job:
    source = InputFile(tokens or desk.path, Layout(column="token", key_column="user"))
    return Job.start(desk.directory, source, store, {"": "here"}, shard_size=shard_size)


async def run(desk: Desk, store: Store, tokens: str | None = None, shard_size: int = 10, **options: Any) -> Result:
    with job_at(desk, store, tokens, shard_size) as job:
        async with desk.client() as client:
            return await job.run(client, **options)


DRIVER = """
import asyncio, os, signal, sys
from flinks_async import FlinksClient, config
from flinks_async.bulk import InputFile, Job, JSONLParts, Layout
from flinks_async.bulk.files import crash_points
from flinks_async.bulk.stores import from_description
import msgspec

base_url, secret, tokens, directory, store, point, number = sys.argv[1:]
left = iter(range(int(number)))

def crash(name):
    if name == point and next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    crash_points.hook = crash
    source = InputFile(tokens, Layout(column="token", key_column="user"))
    with Job.start(directory, source, from_description(msgspec.json.decode(store)), {"": "here"}, shard_size=10) as job:
        async with FlinksClient(auth_secret=secret, base_url=base_url, settings=config.bulk()) as client:
            await job.run(client)

asyncio.run(main())
"""


async def start_driver(
    desk: Desk, store: dict[str, str], point: str = "", number: int = 0
) -> asyncio.subprocess.Process:
    """A job in a process of its own, which kills itself at a point."""
    driver = desk.path.with_name("driver.py")
    driver.write_text(DRIVER)
    arguments = (desk.server.base_url, SECRET, desk.path, desk.directory, json.dumps(store), point, number)
    return await asyncio.create_subprocess_exec(sys.executable, *map(str, (driver, *arguments)))


def put_tokens(url: str, data: bytes) -> str:
    place_at(url.rpartition("/")[0], Path()).put(url.rpartition("/")[2], data)
    return url


def csv_of(count: int, name: str = "token") -> bytes:
    return b"user,token\n" + b"".join(b"u-%07d,%s-%07d-%s\n" % (n, name.encode(), n, b"x" * 20) for n in range(count))


def parquet_of(tmp_path: Path, count: int, rows: int = 10_000) -> bytes:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    columns = {"user": [f"u-{n}" for n in range(count)], "token": [f"{uuid.UUID(int=n * 7919)}" for n in range(count)]}
    pq.write_table(pa.table({**columns, "other": ["y" * 50] * count}), tmp_path / "t.parquet", row_group_size=rows)
    return (tmp_path / "t.parquet").read_bytes()


COLUMNS = Layout(column="token", key_column="user")
