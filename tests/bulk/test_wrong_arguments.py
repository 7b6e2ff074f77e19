"""Arguments of a wrong type or out of bounds, and edited manifests: always an error of this package, never a bare one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from inspect import signature
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from flinks_async import ConfigError, FlinksClient, FlinksError, bulk
from flinks_async.bulk import (
    InputBytes,
    InputFile,
    Job,
    JSONLFile,
    JSONLParts,
    Layout,
    Manifest,
    Processes,
    Rules,
    Selection,
    SQLiteStore,
    digest,
    export,
    export_files,
    purge,
    scan,
    status,
    verify,
)
from flinks_async.bulk.report import json_report, report_page, write_report
from flinks_async.bulk.stores import from_description
from flinks_async.bulk.stores.duckdb import DuckDBStore
from flinks_async.bulk.stores.parquet import ParquetStore
from flinks_async.bulk.stores.postgresql import PostgreSQLStore
from flinks_async.cli import Exit
from flinks_async.cli.app import app

from .memory_desk import ORIGIN, Desk


class Odd:
    pass


WRONG = (
    None, True, False, 0, -1, 1e30, 1.5, 10**400, 10**5000, float("nan"), float("inf"), "", "x", "\0", "x" * 5000, "x" * 300,
    "\ud800", b"x", b"\0", [], [1], {}, {"a": 1}, {1: 2}, (1, 2), ("x",), Odd(), Odd, object, print, Path(), Path("\0"),
)  # fmt: skip


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    desk = Desk(tmp_path_factory.mktemp("job"))
    desk.complete()
    return desk


def with_job(desk: Desk, use: Callable[[Job], Any]) -> Any:
    with Job.resume(desk.directory) as job:
        return use(job)


def start(**arguments: Any) -> None:
    Job.start(**arguments).close()


def resume(**arguments: Any) -> None:
    Job.resume(**arguments).close()


def run(job: Job, **arguments: Any) -> None:
    asyncio.run(job.run(**arguments))


def list_export(**arguments: Any) -> None:
    list(export(**arguments))


SINK = SimpleNamespace(shard=lambda *_: None, duplicate=lambda *_: None, invalid=lambda *_: None)


def calls(desk: Desk, folder: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Public functions of `flinks_async.bulk`, with right arguments."""

    def defaults(of: Callable[..., Any]) -> dict[str, Any]:
        parameters = signature(of).parameters.items()
        return {name: one.default for name, one in parameters if one.kind is not one.VAR_KEYWORD}

    source = InputFile(desk.path, Layout(column="token"))
    return {
        "start": (start, {"directory": folder / "new", "source": desk.source(), "store": JSONLParts(), "origin": ORIGIN,
                          "shard_size": 10, "selection": None, "on_scan": None}),
        "resume": (resume, {"directory": desk.directory, "path": None, "store": None, "on_scan": None}),
        "retry": (lambda **arguments: with_job(desk, lambda job: job.retry(**arguments)), {"kinds": {"exhausted"}}),
        "run": (lambda **arguments: with_job(desk, lambda job: run(job, **arguments)),
                {"clients": FlinksClient(auth_secret="s"), "rules": None, "executor": None}),
        "stop": (lambda **arguments: with_job(desk, lambda job: job.stop(**arguments)), {"reason": "x"}),
        "status": (status, {"directory": desk.directory}),
        "verify": (verify, {"directory": desk.directory, "store": None, "executor": None, "on_progress": None}),
        "export": (list_export, {"directory": desk.directory, "store": None, "on_progress": None}),
        "export_files": (export_files, {"directory": desk.directory, "url": f"file://{folder / 'copy'}", "store": None,
                         "executor": None, "on_progress": None}),
        "purge": (purge, {"directory": folder / "none", "store": None, "forget_answers": False}),
        "write_report": (write_report, {"directory": desk.directory, "out": folder / "r.html"}),
        "report_page": (report_page, {"directory": desk.directory}),
        "json_report": (json_report, {"directory": desk.directory}),
        "InputFile": (InputFile, {"path": desk.path, "layout": Layout(column="token")}),
        "InputBytes": (InputBytes, {"data": b"t\n", "layout": Layout()}),
        "digest": (digest, {"file": source, "progress": None}),
        "scan": (scan, {"file": source, "key": b"k", "shard_size": 10, "scratch": folder, "sink": SINK, "progress": None}),
        "Layout": (Layout, defaults(Layout)),
        "Rules": (Rules, defaults(Rules)),
        "Selection": (Selection, {**defaults(Selection), "pseudonym_key": "k" * 32}),
        "Processes": (Processes, {"count": 2, "restarts": 1}),
        "DaskExecutor": (bulk.DaskExecutor, {**defaults(bulk.DaskExecutor), "scheduler": "tls://h:1", **CLUSTER}),
        "RayExecutor": (bulk.RayExecutor, {**defaults(bulk.RayExecutor), **CLUSTER}),
        "JSONLParts": (JSONLParts, defaults(JSONLParts)),
        "JSONLFile": (JSONLFile, defaults(JSONLFile)),
        "SQLiteStore": (SQLiteStore, defaults(SQLiteStore)),
        "DuckDBStore": (DuckDBStore, defaults(DuckDBStore)),
        "ParquetStore": (ParquetStore, defaults(ParquetStore)),
        "PostgreSQLStore": (PostgreSQLStore, defaults(PostgreSQLStore)),
        "from_description": (from_description, {"description": {"kind": "jsonl"}}),
        "load": (Manifest.load, {"path": desk.directory / "manifest.json"}),
    }  # fmt: skip


CLUSTER: dict[str, Any] = {
    "workers": None, "restarts": 10, "patience": 300.0, "secret_env": "X", "secret_file": None, "secret_from": None,
}  # fmt: skip

NAMES = (
    *(
        "start",
        "resume",
        "retry",
        "run",
        "stop",
        "status",
        "verify",
        "export",
        "export_files",
        "purge",
        "write_report",
        "report_page",
    ),
    *(
        "json_report",
        "InputFile",
        "InputBytes",
        "digest",
        "scan",
        "Layout",
        "Rules",
        "Selection",
        "Processes",
        "DaskExecutor",
        "RayExecutor",
        "JSONLParts",
        "JSONLFile",
    ),
    *("SQLiteStore", "DuckDBStore", "ParquetStore", "PostgreSQLStore", "from_description", "load"),
)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments_raise_errors_of_this_package(
    name: str, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call, right = calls(desk, tmp_path)[name]
    if name != "purge":
        call(**right)
    for argument in right:
        for wrong in WRONG:
            if callable(wrong) and argument in ("on_scan", "progress", "on_progress"):
                continue  # it is called, and what it raises is its own
            try:
                call(**{**right, argument: wrong})
            except Exception as error:
                assert isinstance(error, FlinksError), f"{argument}={wrong!r} raises {error!r}"


def test_every_public_function_is_tried(desk: Desk, tmp_path: Path) -> None:
    tried = calls(desk, tmp_path)
    assert tuple(tried) == NAMES
    functions = {name for name in bulk.__all__ if callable(getattr(bulk, name)) and not name.endswith("Error")}
    records = {"Commit", "Failure", "InstanceTrouble", "Manifest", "Place", "Problem", "Progress", "Result", "Scanned"}
    records |= {"Shard", "Status", "Totals", "Written"}
    assert functions - set(tried) - records == {"Executor", "InProcess", "Job", "Store"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda desk: status(5), r"directory must be the path of a file or folder, not 5"),
        (lambda desk: status("x" * 300), r"directory must be .* \(File name too long\), not text of 300 characters"),
        (lambda desk: verify(desk.directory, JSONLParts), "store must be Store or None, not the class JSONLParts"),
        (lambda desk: InputFile(b"x"), "path must be str, not bytes"),
        (
            lambda desk: Processes(10**5000),
            "the number of processes must be a whole number from 1 to 1,024, not a huge",
        ),
        (lambda desk: Layout(column=3), "Layout.column must be str or None, not int"),
        (lambda desk: with_job(desk, lambda job: job.retry("final")), "kinds must be one of"),
    ],
)
def test_the_message_names_the_argument(desk: Desk, call: Callable[[Desk], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(desk)


# --- the manifest -----------------------------------------------------------------------------------------------------

DELETED = object()
VALUES = (DELETED, None, True, 0, -1, 1e30, 1.5, 10**30, "", "x", "\0", "x" * 5000, [], [1], {}, {"a": {"b": []}})


def places(value: Any, way: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield way
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*way, key))


def changed(manifest: dict[str, Any], way: tuple[str, ...], value: object) -> Any:
    if not way:
        return None if value is DELETED else value
    manifest = inner = deepcopy(manifest)
    for key in way[:-1]:
        inner = inner[key]
    if value is DELETED:
        del inner[way[-1]]
    else:
        inner[way[-1]] = value
    return manifest


@pytest.mark.parametrize(
    "store", [*(pytest.param(one, marks=pytest.mark.slow) for one in (JSONLParts, JSONLFile)), SQLiteStore]
)
def test_an_edited_manifest_is_an_error_of_this_package(tmp_path: Path, store: Any) -> None:
    desk = Desk(tmp_path)
    selection = Selection(drop="holders") if store is JSONLParts else None

    def begin() -> None:
        Job.start(desk.directory, desk.source(), store(), ORIGIN, shard_size=10, selection=selection).close()

    def report_as_json() -> None:
        json_report(desk.directory)

    with Job.start(desk.directory, desk.source(), store(), ORIGIN, shard_size=10, selection=selection) as job:
        desk.run(job)
    path = desk.directory / "manifest.json"
    manifest = json.loads(path.read_bytes())
    uses: tuple[Callable[[], object], ...] = (
        lambda: status(desk.directory), lambda: verify(desk.directory), lambda: list(export(desk.directory)), begin,
        lambda: resume(directory=desk.directory), report_as_json,
    )  # fmt: skip
    refused = cycle(uses)  # each of them refuses what `load` refuses, and so takes its turn
    commands = [["status"], ["status", "--json"], ["verify"], ["retry"]]
    environment = {"FLINKS_AUTH_SECRET": "s", "FLINKS_INSTANCE": "x"}
    ways = [way for way in places(manifest) if store is JSONLParts or way[:1] == ("store",)]
    for way in ways:
        for value in VALUES:
            path.write_text(json.dumps(changed(manifest, way, value)))
            try:
                Manifest.load(path)
            except FlinksError:
                with pytest.raises(FlinksError):
                    next(refused)()
                continue
            for use in uses:
                with suppress(FlinksError):
                    use()
        for value in (DELETED, -1):
            path.write_text(json.dumps(changed(manifest, way, value)))
            for command, *options in commands:
                result = CliRunner().invoke(app, [command, str(desk.directory), *options], env=environment)
                assert result.exit_code in (Exit.OK, Exit.FAILED, Exit.USAGE, Exit.OUTPUT), (way, value, command)
    path.write_text(json.dumps(manifest))
    assert verify(desk.directory) == []


@pytest.mark.parametrize("value", [0, -1, 1e30, 10**30, "10", None, True])
def test_a_manifest_with_an_impossible_size_of_shards_is_broken(tmp_path: Path, value: object) -> None:
    desk = Desk(tmp_path)
    desk.complete()
    path = desk.directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "shard_size": value}))
    for use in (status, verify, Job.resume):
        with pytest.raises(bulk.LedgerError, match=r"manifest.json is broken"):
            use(desk.directory)
