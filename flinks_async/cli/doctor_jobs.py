"""The checks of `flinks-async doctor` for jobs: its directory, tokens, store and cluster, and a Redis."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import shutil
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import click
from attrs import frozen

from ..bulk import Status, status
from ..bulk.directory import Manifest, enter, refuse_network
from ..bulk.errors import JobLockedError
from ..bulk.executors.cluster import ClusterExecutor
from ..bulk.files import MANIFEST
from ..bulk.inputs import STDIN
from ..bulk.objects import Folder, object_at, place_at
from ..checks import checked_url, counted, is_url, optional_import
from ..errors import FlinksError
from ..limits.shared import RedisRateLimiter
from .access import Access, secret_references
from .job_run import run
from .options import Workers

State = Literal["ok", "warning", "problem"]

TIMEOUT: Final = 10.0
LITTLE_SPACE: Final = 1 << 30
NO_SPACE: Final = 1 << 24

_ELSEWHERE: Final = "Choose another directory, or let this user write to it"
_MAKE_ROOM: Final = "Make room: a full disk stops a job, which can be resumed"
_TABLES_NEED: Final = ("SELECT", "INSERT", "DELETE")


@frozen
class CheckResult:
    """The result of a check.

    Attributes:
        check: what was looked at.
        state: `warning`: it works, but may not for long, or not well.
        text: what was found.
        advice: what to do; empty if there is nothing to do.
    """

    check: str
    state: State
    text: str
    advice: str = ""


def check_directory(folder: Path) -> Iterator[CheckResult]:
    existing = _existing(folder)
    free = shutil.disk_usage(existing).free
    found: Status | None = None
    running = False
    try:
        if (folder / MANIFEST).exists():
            with ExitStack() as resources:
                try:
                    enter(folder, resources)
                except JobLockedError:
                    running = True
            found = status(folder)
            state = "is running" if running else "is not running; it can be locked"
            done = f"{found.totals.shards_done:,} of {counted(found.totals.shards, 'shard')} done"
            yield CheckResult("directory", "ok", f"{folder} holds a job that {state}; {done}")
        else:
            refuse_network(folder)
            with (
                tempfile.TemporaryDirectory(dir=existing) as probe,
                optional_import("filelock", extra="bulk").FileLock(Path(probe, "lock")),
            ):
                pass
            yield CheckResult(
                "directory", "ok", f"{folder} is no job yet; files in {existing} can be written and locked"
            )
    except FlinksError as error:
        text, _, advice = error.message.partition(". ")
        yield CheckResult("directory", "problem", text, advice or (_MAKE_ROOM if free < NO_SPACE else _ELSEWHERE))
    except OSError as error:
        advice = _MAKE_ROOM if error.errno in (errno.ENOSPC, errno.EDQUOT) else _ELSEWHERE
        yield CheckResult("directory", "problem", f"{existing} cannot be written: {error.strerror or error}", advice)
    if free < LITTLE_SPACE:
        level: State = "problem" if free < NO_SPACE else "warning"
        yield CheckResult("disk", level, f"{free / (1 << 20):,.0f} MiB free", _MAKE_ROOM)
    else:
        yield CheckResult("disk", "ok", f"{free / (1 << 30):,.1f} GiB free")
    if found is not None:
        yield from _input(found.manifest)
        yield from _store(found.manifest.store, folder, running)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists and may be looked at."""
    return next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))


def _input(manifest: Manifest) -> Iterator[CheckResult]:
    """The file of tokens of a job, which every run reads again."""
    path = manifest.path
    if path == STDIN:
        return
    try:
        found = object_at(path) if is_url(path) else Path(path)
        size = found.stat().st_size if isinstance(found, Path) else found.find().size
    except (FlinksError, OSError) as error:
        text = f"{path} cannot be read: {_words(error)}"
        yield CheckResult("tokens", "problem", text, "Put it back, or name it: flinks-async retry DIR --tokens FILE")
    else:
        if size != manifest.size:
            text = f"{path} has {counted(size, 'byte')} instead of {manifest.size:,}"
            yield CheckResult("tokens", "problem", text, "A job refuses another file: put the first one back")
        else:
            yield CheckResult("tokens", "ok", f"{path} has the size that it had at the start")


def _store(store: dict[str, Any], folder: Path, running: bool) -> Iterator[CheckResult]:
    """Whether the store of a job can be reached, and is not locked by another program."""
    if store["kind"] == "postgresql":
        yield from check_postgresql(store)
    elif store.get("url"):
        yield from check_storage(store["url"])
    elif (kind := store["kind"]) in ("sqlite", "duckdb") and not running:
        path = store.get("path") or folder / f"answers.{kind}"
        try:
            os.stat(path)
            if kind == "sqlite":
                with closing(sqlite3.connect(path, timeout=1.0, isolation_level=None)) as db:
                    db.execute("BEGIN IMMEDIATE")
            else:
                optional_import("duckdb", extra="duckdb").connect(path, read_only=True).close()
        except Exception as error:  # DuckDB's errors have no common base
            text = f"{path} cannot be used: {_words(error)}"
            yield CheckResult("database", "problem", text, "If a job or another program has it open, end that")
        else:
            yield CheckResult("database", "ok", f"{path} can be opened, and no other program holds a lock on it")


_STORAGE_READS: Final = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the service account of this machine",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY, or the identity of this machine",
}


def check_storage(url: str) -> Iterator[CheckResult]:
    """Does with an empty object what a job does with its parts."""
    name = f"doctor-{secrets.token_hex(8)}"
    step, where = "", ""
    try:
        place = place_at(checked_url(url), Path(), patience=TIMEOUT)
        if isinstance(place, Folder):
            place = Folder(_existing(place.path))
        step, where = "written", str(place)
        place.put(name, b"")
        step = "listed"
        listed = any(one.name == name for one in place.list(""))
        step = "read"
        found = place.find(name)
        step = "deleted"
        place.delete([name])
    except FlinksError as error:
        yield CheckResult("storage", "problem", *error.message.partition(". ")[::2])
        return
    except OSError as error:
        text = f"an object at {where} cannot be {step}: {_words(error)}"
        names = _STORAGE_READS.get(urlsplit(url).scheme, "")
        advice = f"Check the credentials in the environment ({names}), and that they may write, list, read and delete"
        yield CheckResult("storage", "problem", text, advice if names else _ELSEWHERE)
        return
    if found is None or not listed:
        text, advice = f"{where} does not show an object that was just written", "Jobs need a storage that does"
        yield CheckResult("storage", "problem", text, advice)
    else:
        yield CheckResult("storage", "ok", f"objects at {where} can be written, listed, read and deleted")


def check_cluster(workers: Workers, access: Access) -> Iterator[CheckResult]:
    """Connects to the cluster, and asks its workers whether they could fetch."""
    address = workers.address or ""
    try:
        executor = workers.executor(lambda: secret_references(access, None))
        assert isinstance(executor, ClusterExecutor)
        parts = urlsplit(address)
        socket.create_connection((parts.hostname or "", parts.port or 0), TIMEOUT).close()
        found = run(lambda: asyncio.wait_for(executor.look(), 9 * TIMEOUT))
    except (FlinksError, click.UsageError) as error:
        yield CheckResult("cluster", "problem", *error.message.partition(". ")[::2])
        return
    except Exception as error:  # engines raise of many kinds
        reason = "it does not answer in time"
        if not isinstance(error, TimeoutError):
            reason = (
                _words(error) if isinstance(error, OSError) else f"no such cluster answers ({type(error).__name__})"
            )
        advice = "Ask whether it is running, whether a worker is free, and whether this machine and it use TLS alike"
        yield CheckResult("cluster", "problem", f"{address} cannot be used: {reason}", advice)
        return
    broken = {name: problem for name, problem in found.items() if problem}
    for name, problem in list(broken.items())[:3]:
        text, _, advice = problem.partition(". ")
        yield CheckResult("cluster", "problem", f"{name}: {text}", advice)
    if not found:
        yield CheckResult("cluster", "warning", f"{address} has no worker", "Start workers, and look again")
    elif not broken:
        text = f"{counted(len(found), 'worker')} of {address} can fetch: same version, and the secret is there"
        yield CheckResult("cluster", "ok", text)


_REDIS_SAYS: Final = {
    "AuthenticationError": "user or password is missing, or refused",
    "BusyLoadingError": "it is still reading its data from the disk",
    "ConnectionError": "there is no connection",
    "NoPermissionError": "the user may not run a command that is needed",
    "ReadOnlyError": "it is a replica, which takes no writes",
    "TimeoutError": "it does not answer in time",
}


def check_redis() -> Iterator[CheckResult]:
    """Does what `RedisRateLimiter` does. No text of redis-py is shown, because it may hold the password."""
    url = os.environ.get("REDIS_URL", "")
    if not url:
        yield CheckResult("redis", "problem", "REDIS_URL is not set", "Set it to the URL of the RedisRateLimiter")
        return
    try:
        RedisRateLimiter(url, "flinks-async-doctor")  # checks the URL
        run(lambda: _ask_redis(url))
    except FlinksError as error:
        yield CheckResult("redis", "problem", f"REDIS_URL: {error.message}")
    except Exception as error:
        name = type(error).__name__
        text = f"the Redis of REDIS_URL cannot be used: {_REDIS_SAYS.get(name, 'an error')} ({name})"
        advice = "Check REDIS_URL, its user and password, and that the user may run EVAL, SET, ZADD and PUBLISH"
        yield CheckResult("redis", "problem", text, advice)
    else:
        yield CheckResult("redis", "ok", "the Redis of REDIS_URL can be used")


async def _ask_redis(url: str) -> None:
    key = "{flinks-async-doctor}:probe"
    client = optional_import("redis.asyncio", extra="redis").from_url(
        url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT, retry=None
    )
    async with client:
        script = (
            "redis.call('ZADD', KEYS[1], 1, 'probe'); redis.call('PEXPIRE', KEYS[1], 1000);"
            "redis.call('PUBLISH', KEYS[1], ''); return redis.call('TIME')"
        )
        await client.eval(script, 1, key)


def _words(error: Exception) -> str:
    if isinstance(error, FlinksError):
        return error.message
    return (error.strerror if isinstance(error, OSError) else None) or str(error).partition("\n")[0]


def check_postgresql(store: dict[str, Any]) -> Iterator[CheckResult]:
    schema = store["schema"]
    try:
        psycopg = optional_import("psycopg", extra="postgresql")
    except FlinksError as error:
        yield CheckResult("database", "problem", error.message)
        return
    try:
        with psycopg.connect(store["conninfo"], connect_timeout=int(TIMEOUT)) as db:
            user, name, may_create = db.execute(
                "SELECT current_user, current_database(), has_database_privilege(current_database(), 'CREATE')"
            ).fetchone()
            found = db.execute(
                "SELECT has_schema_privilege(oid, 'USAGE'), has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = %s",
                (schema,),
            ).fetchone()
            tables = db.execute(
                "SELECT c.relname, r, has_table_privilege(c.oid, r) "
                "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, unnest(%s::text[]) r "
                "WHERE n.nspname = %s AND c.relkind IN ('r', 'p') ORDER BY 1, 2",
                (list(_TABLES_NEED), schema),
            ).fetchall()
    except psycopg.Error as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        advice = "Check PGHOST, PGPORT, PGDATABASE, PGUSER and the password (PGPASSWORD or ~/.pgpass)"
        yield CheckResult("database", "problem", f"PostgreSQL cannot be used: {text}", advice)
        return
    where = f"database {name} as {user}, schema {schema}"
    missing = [f"{right} on {table}" for table, right, granted in tables if not granted]
    if found is None and not may_create:
        advice = f"An administrator runs: CREATE SCHEMA {schema} AUTHORIZATION {user}"
        yield CheckResult("database", "problem", f"{where}: the schema is missing and may not be created", advice)
    elif found is not None and not (found[0] and (tables or found[1])):
        advice = f"An administrator runs: GRANT USAGE, CREATE ON SCHEMA {schema} TO {user}"
        yield CheckResult("database", "problem", f"{where}: the schema may not be used", advice)
    elif missing:
        advice = f"An administrator runs: GRANT {', '.join(_TABLES_NEED)} ON ALL TABLES IN SCHEMA {schema} TO {user}"
        yield CheckResult("database", "problem", f"{where}: rights are missing: {', '.join(missing[:5])}", advice)
    else:
        yield CheckResult("database", "ok", f"{where}: reachable, and the rights suffice")
