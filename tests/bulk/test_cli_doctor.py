"""`flinks-async doctor` on real sockets, certificates, directories and databases, good ones and bad ones."""

from __future__ import annotations

import datetime as dt
import json
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Awaitable, Callable
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from flinks_async import AuthenticationError, FlinksClient, FlinksError
from flinks_async.bulk import InputFile, Job, JSONLFile, SQLiteStore, directory
from flinks_async.bulk.stores.duckdb import DuckDBStore
from flinks_async.bulk.stores.postgresql import PostgreSQLStore
from flinks_async.cli import Exit
from flinks_async.testing import FlinksServer, InMemoryTransport
from tests.cli_support import SECRET, cli
from tests.raw_server import Close, RawServer, ReadHead, Send

from .postgresql_server import Server

TOKEN = "canary-token-3b8f"


async def doctor(*args: object, code: Exit = Exit.OK, **more: Any) -> dict[str, list[dict[str, str]]]:
    """The findings by check; the output never holds a secret."""
    result = await cli("doctor", "--json", *args, **more)
    assert "canary" not in result.output
    assert result.exit_code == code, result.output
    findings: dict[str, list[dict[str, str]]] = {}
    for finding in json.loads(result.stdout)["findings"]:
        findings.setdefault(finding["check"], []).append(finding)
    return findings


def states(findings: dict[str, list[dict[str, str]]], *checks: str) -> list[str]:
    return [finding["state"] for check in checks for finding in findings[check]]


# --- the way to the instance ------------------------------------------------------------------------------------------


async def test_a_healthy_way_has_no_problem_and_no_secret_goes_over_it() -> None:
    async with FlinksServer(auth_secret=SECRET, record=9) as server:
        result = await cli("doctor", server=server)
        findings = await doctor(server=server, https_proxy="")
        heads = [(request.method, request.path) for request in server.requests]
        sent = repr([request.headers for request in server.requests])
    assert result.exit_code == 0
    assert "ok       tcp           port" in result.stdout
    assert result.stderr == "0 problems, 0 warnings.\n"
    assert states(findings, "python", "packages", "settings", "dns", "tcp", "http", "clock") == ["ok"] * 7
    assert heads == [("HEAD", "/")] * 2
    assert SECRET not in sent


async def test_a_host_without_an_address_is_a_problem_of_names() -> None:
    findings = await doctor("--base-url", "https://no-such-host.invalid", code=Exit.FAILED, FLINKS_AUTH_SECRET=SECRET)
    assert states(findings, "dns") == ["problem"]
    assert "name servers" in findings["dns"][0]["advice"]
    assert "tcp" not in findings


async def test_a_closed_port_is_a_problem_of_the_connection() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        findings = await doctor("--base-url", url, code=Exit.FAILED, FLINKS_AUTH_SECRET=SECRET)
    assert states(findings, "dns", "tcp") == ["ok", "problem"]
    assert "firewall" in findings["tcp"][0]["advice"]


@pytest.mark.parametrize(("trusted", "days", "state"), [(True, 90, "ok"), (True, 3, "warning"), (False, 90, "problem")])
async def test_a_certificate_is_named_with_its_signer_and_its_end(
    tmp_path: Path, trusted: bool, days: int, state: str
) -> None:
    authority = trustme.CA(organization_name="Intercepting Proxy Inc")
    end = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", not_after=end).configure_cert(context)
    file = tmp_path / "ca.pem"
    (authority if trusted else trustme.CA()).cert_pem.write_to_path(file)
    async with FlinksServer(auth_secret=SECRET, ssl_context=context) as server:
        url = server.base_url.replace("127.0.0.1", "localhost")
        code = Exit.FAILED if state == "problem" else Exit.OK
        findings = await doctor("--base-url", url, code=code, FLINKS_AUTH_SECRET=SECRET, SSL_CERT_FILE=str(file))
    (tls,) = findings["tls"]
    assert tls["state"] == state
    if trusted:
        assert "signed by Intercepting Proxy Inc" in tls["text"]
        assert f"{end:%Y}" in tls["text"]
        assert states(findings, "http") == ["ok"]
    else:
        assert "not trusted" in tls["text"]
        assert "SSL_CERT_FILE" in tls["advice"]
        assert "http" not in findings


@pytest.mark.parametrize(
    ("host", "days", "text", "advice"),
    [
        ("localhost", (-9, -1), "expired", "set the clock of this machine"),
        ("localhost", (1, 9), "not yet valid", "Check the clock"),
        ("another.example", (-1, 9), "mismatch", "Another server answers"),
    ],
)
async def test_what_is_wrong_with_a_certificate_leads_to_other_advice(
    tmp_path: Path, host: str, days: tuple[int, int], text: str, advice: str
) -> None:
    authority = trustme.CA()
    begin, end = (dt.datetime.now(dt.UTC) + dt.timedelta(days=one) for one in days)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(host, not_before=begin, not_after=end).configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with FlinksServer(auth_secret=SECRET, ssl_context=context) as server:
        url = server.base_url.replace("127.0.0.1", "localhost")
        more = {"FLINKS_AUTH_SECRET": SECRET, "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        (tls,) = (await doctor("--base-url", url, code=Exit.FAILED, **more))["tls"]
    assert text in tls["text"]
    assert advice in tls["advice"]


@pytest.mark.parametrize(
    ("head", "state"),
    [
        ("302 Found\r\nLocation: http://login.wifi.example/?from=x", "warning"),
        ("302 Found\r\nLocation: /docs", "ok"),
        ("511 Network Authentication Required", "problem"),
    ],
)
async def test_a_network_that_wants_a_login_is_told(head: str, state: str) -> None:
    answer = f"HTTP/1.1 {head}\r\nContent-Length: 0\r\n\r\n".encode()
    async with RawServer([ReadHead(), Send(answer), Close()]) as server:
        code = Exit.FAILED if state == "problem" else Exit.OK
        (http,) = (await doctor("--base-url", server.base_url, code=code, FLINKS_AUTH_SECRET=SECRET))["http"]
    assert http["state"] == state
    assert state == "ok" or "log in there first" in http["advice"]


async def test_something_that_is_not_http_is_a_problem() -> None:
    async with RawServer([ReadHead(), Send(b"220 mail.example ESMTP\r\n"), Close()]) as server:
        findings = await doctor("--base-url", server.base_url, code=Exit.FAILED, FLINKS_AUTH_SECRET=SECRET)
    assert states(findings, "tcp", "http") == ["ok", "problem"]


@pytest.mark.parametrize(("hours", "told"), [(1, "behind"), (-1, "ahead of"), (0, "agrees"), (None, "unknown")])
async def test_the_clock_is_compared_with_the_date_of_the_server(hours: int | None, told: str) -> None:
    head = "HTTP/1.1 200 OK\r\nVia: 1.1 proxy.example\r\nContent-Length: 0\r\n"
    if hours is not None:
        head += f"Date: {format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(hours=hours), usegmt=True)}\r\n"
    async with RawServer([ReadHead(), Send(f"{head}\r\n".encode()), Close()]) as server:
        findings = await doctor("--base-url", server.base_url, FLINKS_AUTH_SECRET=SECRET)
    (clock,) = findings["clock"]
    assert told in clock["text"]
    assert clock["state"] == ("ok" if hours == 0 else "warning")
    assert "through a proxy" in findings["http"][0]["text"]


async def test_a_proxy_of_the_environment_is_named_without_its_password() -> None:
    async with FlinksServer(auth_secret=SECRET) as server:
        findings = await doctor(server=server, HTTPS_PROXY=f"http://user:{SECRET}@proxy.example:3128")
    assert findings["proxy"][0]["text"].startswith("HTTPS_PROXY is set")


# --- the header -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accepted", ["flinks-auth-key", "flinks-auth-key-raw", "bearer"])
async def test_the_form_of_the_header_that_the_instance_takes_is_found(accepted: Any) -> None:
    async with FlinksServer(auth_secret=SECRET, auth_scheme=accepted) as server:
        code = Exit.OK if accepted == "flinks-auth-key" else Exit.FAILED
        findings = await doctor("--header-forms", code=code, server=server, FLINKS_ACCESS_TOKEN=TOKEN)
        told = {f["text"].partition(":")[0]: f for f in findings["header form"]}
        await doctor("--header-forms", "--auth-scheme", accepted, server=server, FLINKS_ACCESS_TOKEN=TOKEN)
    assert [scheme for scheme, finding in told.items() if finding["text"].endswith(": accepted")] == [accepted]
    assert sum(finding["text"].endswith(": refused") for finding in told.values()) == 2
    if code:
        advice = told["the instance refuses flinks-auth-key, which is set"]["advice"]
        assert advice == f"Use --auth-scheme {accepted}, or FLINKS_AUTH_SCHEME={accepted}"


async def test_an_instance_that_accepts_several_forms_is_no_problem() -> None:
    async with FlinksServer(auth_secret=SECRET) as server:
        findings = await doctor("--header-forms", server=server, FLINKS_ACCESS_TOKEN=TOKEN)
    assert states(findings, "header form") == ["ok"] * 3


async def test_a_secret_that_is_refused_in_every_form_is_one_problem() -> None:
    async with FlinksServer(auth_secret="another") as server:
        more = {"FLINKS_AUTH_SECRET": SECRET, "FLINKS_ACCESS_TOKEN": TOKEN}
        findings = await doctor("--header-forms", "--base-url", server.base_url, code=Exit.FAILED, **more)
    assert [f["text"] for f in findings["header form"] if f["state"] == "problem"] == [
        "the instance refuses every form"
    ]


async def test_a_throttled_answer_says_nothing_of_the_header() -> None:
    async with FlinksServer(auth_secret=SECRET) as server:
        server.script(TOKEN, ["http_503"] * 3)
        findings = await doctor("--header-forms", server=server, FLINKS_ACCESS_TOKEN=TOKEN)
    assert states(findings, "header form") == ["warning"] * 3


async def test_errors_of_authentication_point_to_the_doctor() -> None:
    from flinks_async import Response

    transport = InMemoryTransport(default=Response(401))
    async with FlinksClient(auth_secret="s", transport=transport) as flinks:
        with pytest.raises(AuthenticationError, match="flinks-async doctor --header-forms"):
            await flinks.partner_access("token")
    with pytest.raises(FlinksError, match="flinks-async doctor"):
        FlinksClient.from_env({})


# --- this machine -----------------------------------------------------------------------------------------------------


async def test_missing_settings_are_a_problem_and_the_rest_is_still_checked(tmp_path: Path) -> None:
    findings = await doctor(tmp_path / "job", code=Exit.FAILED, FLINKS_AUTH_SECRET=SECRET)
    assert findings["settings"][0]["text"] == "No instance"
    assert "--instance" in findings["settings"][0]["advice"]
    assert states(findings, "python", "directory", "disk")[0:2] == ["ok", "ok"]
    assert not (tmp_path / "job").exists()


async def test_few_open_files_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    async with FlinksServer(auth_secret=SECRET) as server:
        findings = await doctor(server=server)
    assert states(findings, "open files") == ["warning"]
    assert "ulimit" in findings["open files"][0]["advice"]


# --- jobs -------------------------------------------------------------------------------------------------------------


def start(folder: Path, store: Any = None) -> Job:
    source = folder / "tokens.txt"
    source.write_text("a\n")
    return Job.start(folder / "job", InputFile(source), store or JSONLFile(folder / "out"))


@pytest.fixture
async def at(tmp_path: Path) -> Any:
    async with FlinksServer(auth_secret=SECRET) as server:

        async def call(code: Exit = Exit.OK, *args: object, **more: Any) -> dict[str, list[dict[str, str]]]:
            return await doctor(*(args or (tmp_path / "job",)), code=code, server=server, **more)

        yield call


Doctor = Callable[..., Awaitable[dict[str, list[dict[str, str]]]]]


async def test_a_job_that_runs_and_one_that_does_not(tmp_path: Path, at: Doctor) -> None:
    with start(tmp_path, SQLiteStore()):
        findings = await at()
        assert findings["directory"][0]["text"].endswith("holds a job that is running; 0 of 1 shard done")
        assert "database" not in findings  # the job itself holds a lock now and then
    findings = await at()
    assert "not running" in findings["directory"][0]["text"]
    assert states(findings, "directory", "disk") == ["ok", "ok"]


async def test_a_directory_that_others_can_write_to_is_a_problem(tmp_path: Path, at: Doctor) -> None:
    start(tmp_path).close()
    (tmp_path / "job").chmod(0o777)
    findings = await at(Exit.FAILED)
    assert states(findings, "directory") == ["problem"]


async def test_a_network_file_system_and_a_full_disk(
    tmp_path: Path, at: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text("36 35 98:0 / / rw shared:1 - nfs4 server:/x rw\n")
    monkeypatch.setattr(directory, "_MOUNTS", mounts)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1000))
    findings = await at(Exit.FAILED)
    assert "network file system" in findings["directory"][0]["text"]
    assert states(findings, "disk") == ["warning"]


async def test_the_database_of_a_job_and_its_rights(tmp_path: Path, at: Doctor, postgresql: Server) -> None:
    schema = postgresql.new_schema()
    postgresql.sql("DROP ROLE IF EXISTS narrow")
    postgresql.sql("CREATE ROLE narrow LOGIN")
    conninfo = postgresql.conninfo.replace("user=owner", "user=narrow")
    start(tmp_path, PostgreSQLStore(postgresql.conninfo, schema)).close()
    findings = await at()
    assert findings["database"][0]["text"].endswith("reachable, and the rights suffice")
    manifest = tmp_path / "job" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("user=owner", "user=narrow"))
    findings = await at(Exit.FAILED)
    assert (
        findings["database"][0]["advice"] == f"An administrator runs: GRANT USAGE, CREATE ON SCHEMA {schema} TO narrow"
    )
    postgresql.sql(f"GRANT USAGE, CREATE ON SCHEMA {schema} TO narrow")
    postgresql.sql(f"GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA {schema} TO narrow")
    findings = await at(Exit.FAILED)
    assert "DELETE on accounts" in findings["database"][0]["text"]
    postgresql.sql(findings["database"][0]["advice"].partition(": ")[2])
    findings = await at()
    assert states(findings, "database") == ["ok"]
    environment = {"PGHOST": conninfo.split()[0].partition("=")[2], "PGDATABASE": "postgres", "PGUSER": "narrow"}
    findings = await at(Exit.FAILED, "--postgresql", **environment)
    assert "may not be created" in findings["database"][0]["text"]


async def test_a_database_that_cannot_be_reached(at: Doctor, tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    findings = await at(Exit.FAILED, "--postgresql", PGHOST=str(tmp_path), PGPASSWORD=SECRET)
    assert states(findings, "database") == ["problem"]
    assert "PGHOST" in findings["database"][0]["advice"]


@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
async def test_answers_that_another_program_has_locked(tmp_path: Path, at: Doctor, kind: str) -> None:
    if kind == "duckdb":
        pytest.importorskip("duckdb")
    path = tmp_path / "job" / f"answers.{kind}"
    start(tmp_path, SQLiteStore() if kind == "sqlite" else DuckDBStore()).close()
    findings = await at()
    assert states(findings, "database", "tokens") == ["ok", "ok"]
    hold = {
        "sqlite": "import sqlite3; db = sqlite3.connect(sys.argv[1]); db.execute('BEGIN EXCLUSIVE')",
        "duckdb": "import duckdb; db = duckdb.connect(sys.argv[1])",
    }[kind]
    program = f"import sys; {hold}; print('locked', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        findings = await at(Exit.FAILED)
        holder.kill()
    assert states(findings, "database") == ["problem"]
    assert "lock" in findings["database"][0]["text"].lower()


async def test_tokens_that_are_gone_or_changed_and_a_broken_ledger(tmp_path: Path, at: Doctor) -> None:
    start(tmp_path).close()
    (tmp_path / "tokens.txt").write_text("a\nb\n")
    findings = await at(Exit.FAILED)
    assert "4 bytes instead of 2" in findings["tokens"][0]["text"]
    (tmp_path / "tokens.txt").unlink()
    findings = await at(Exit.FAILED)
    assert "--tokens" in findings["tokens"][0]["advice"]
    (tmp_path / "job" / "ledger.sqlite").write_bytes(b"not a database")
    findings = await at(Exit.FAILED)
    assert "ledger.sqlite" in findings["directory"][0]["text"]


# --- object storage and clusters --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.backend
async def test_object_storage_is_written_listed_read_and_cleaned(tmp_path: Path, at: Doctor) -> None:
    from .objects.s3 import running

    with running() as s3:
        environment = s3.environment
        findings = await at(Exit.FAILED, "--out", "s3://bucket/folder", **environment)
        assert "the bucket does not exist" in findings["storage"][0]["text"]
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{s3.port}/bucket", method="PUT")).close()
        findings = await at(Exit.OK, "--out", "s3://bucket/folder", **environment)
        assert findings["storage"][0]["text"].endswith("can be written, listed, read and deleted")
        assert s3.count("PUT") >= 2
        assert s3.count("POST") == 1  # the object is deleted
        s3.fault = lambda asked: 403 if asked.method == "GET" else None
        findings = await at(Exit.FAILED, "--out", "s3://bucket/folder", **environment)
        assert "cannot be listed: the object storage failed (status 403" in findings["storage"][0]["text"]
        assert "credentials" in findings["storage"][0]["advice"]
    findings = await at(Exit.FAILED, "--out", "s3://bucket/folder", **environment)
    assert "there is no connection" in findings["storage"][0]["text"]


async def test_a_folder_for_answers_and_a_url_with_a_password(tmp_path: Path, at: Doctor) -> None:
    findings = await at(Exit.OK, "--out", f"file://{tmp_path}/new/folder")
    assert states(findings, "storage") == ["ok"]
    assert [*tmp_path.iterdir()] == []
    findings = await at(Exit.FAILED, "--out", f"s3://{SECRET}:canary@bucket/x")
    assert "must hold no user, password" in findings["storage"][0]["text"]


@pytest.mark.parametrize("scheme", ["dask", "ray"])
async def test_a_cluster_that_is_not_there(at: Doctor, scheme: str) -> None:
    pytest.importorskip({"dask": "distributed"}.get(scheme, scheme))
    findings = await at(Exit.FAILED, "--executor", f"{scheme}://127.0.0.1:1")
    assert "cannot be used: Connection refused" in findings["cluster"][0]["text"]
    findings = await at(Exit.FAILED, FLINKS_EXECUTOR=f"{scheme}://cluster.invalid:8786")
    assert "--insecure-cluster" in findings["cluster"][0]["text"] + findings["cluster"][0]["advice"]
    findings = await at(Exit.FAILED, FLINKS_EXECUTOR=f"{scheme}://user:{SECRET}@cluster.invalid:8786")
    assert "must be dask://HOST:PORT" in findings["cluster"][0]["text"]


async def test_a_redis_that_is_not_there(at: Doctor) -> None:
    pytest.importorskip("redis")
    findings = await at(Exit.FAILED, "--redis", REDIS_URL=f"redis://:{SECRET}@127.0.0.1:1/0")
    assert findings["redis"][0]["text"].endswith("ConnectionError")
    findings = await at(Exit.FAILED, "--redis", REDIS_URL=None)
    assert findings["redis"][0]["text"] == "REDIS_URL is not set"
