"""`flinks-async doctor` on real sockets, certificates and proxies, good ones and bad ones."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import resource
import socket
import ssl
from email.utils import format_datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import trustme

from flinks_async import AuthenticationError, FlinksClient, FlinksError, Response
from flinks_async.cli import Exit
from flinks_async.testing import FlinksServer, InMemoryTransport

from .cli_support import SECRET, cli, start
from .raw_server import Close, Hang, RawServer, ReadHead, Repeat, Send, StartTLS

OK = Send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
TUNNEL = Send(b"HTTP/1.1 200 Connection established\r\n\r\n")

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
    assert "tcp" not in findings


@pytest.mark.parametrize(
    ("error", "advice"), [(socket.EAI_NONAME, "the name of the instance"), (socket.EAI_AGAIN, "No name server answers")]
)
async def test_a_wrong_name_and_a_machine_without_name_servers_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, error: int, advice: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror(error, "as the system says it")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    findings = await doctor("--base-url", "https://flinks.test", code=Exit.FAILED, FLINKS_AUTH_SECRET=SECRET)
    assert findings["dns"][0]["text"] == "flinks.test has no address: as the system says it"
    assert advice in findings["dns"][0]["advice"]


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
        file.unlink()
        async with FlinksServer(auth_secret=SECRET, ssl_context=context) as server:
            url = server.base_url.replace("127.0.0.1", "localhost")
            more = {"FLINKS_AUTH_SECRET": SECRET, "SSL_CERT_FILE": str(file)}
            (tls,) = (await doctor("--base-url", url, code=Exit.FAILED, **more))["tls"]
        assert tls["advice"].startswith("SSL_CERT_FILE names a file that does not exist")


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


async def test_silence_and_plain_http_where_tls_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("flinks_async.cli.doctor"), "TIMEOUT", 0.3)
    async with RawServer([Hang()]) as server:
        for url, check in ((server.base_url, "http"), (server.base_url.replace("http:", "https:"), "tls")):
            (found,) = (await doctor("--base-url", url, code=Exit.FAILED, FLINKS_AUTH_SECRET=SECRET))[check]
            assert found["text"].endswith("within 0.3 s")
            assert "cuts" in found["advice"]
    async with RawServer([Send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Close()]) as server:
        url = server.base_url.replace("http:", "https:")
        (found,) = (await doctor("--base-url", url, code=Exit.FAILED, FLINKS_AUTH_SECRET=SECRET))["tls"]
    assert found["text"] in [
        f"no TLS connection to 127.0.0.1: {reason}" for reason in ("wrong version number", "record layer failure")
    ]


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


# --- proxies ----------------------------------------------------------------------------------------------------------


def by_proxy(url: str) -> dict[str, str | None]:
    """The variables for a proxy, with a password."""
    url = url.replace("://", f"://user:{SECRET}@")
    none = dict.fromkeys(("NO_PROXY", "no_proxy", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "ALL_PROXY"))
    return {**none, "https_proxy": url, "http_proxy": url, "FLINKS_AUTH_SECRET": SECRET}


async def test_a_proxy_of_the_environment_is_named_without_its_password() -> None:
    async with FlinksServer(auth_secret=SECRET) as server:
        findings = await doctor(server=server, HTTPS_PROXY=f"http://user:{SECRET}@proxy.example:3128")
    assert findings["proxy"][0]["text"].startswith("HTTPS_PROXY is set")
    assert "--trust-env" in findings["proxy"][0]["advice"]


@pytest.mark.parametrize(
    ("url", "check"), [("http://127.0.0.1:1", "tcp"), ("http://no-such-proxy.invalid:3128", "dns")]
)
async def test_a_proxy_that_cannot_be_reached_is_told_from_the_instance(url: str, check: str) -> None:
    arguments = ("--trust-env", "--base-url", "https://flinks.test")
    (found,) = (await doctor(*arguments, code=Exit.FAILED, **by_proxy(url)))[check]
    assert found["state"] == "problem"
    assert "HTTPS_PROXY" in found["advice"]


async def test_the_way_through_a_proxy_is_checked_step_by_step(tmp_path: Path) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("flinks.test").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    reply = Send(f"HTTP/1.1 200 OK\r\nDate: {format_datetime(dt.datetime.now(dt.UTC), usegmt=True)}\r\n\r\n".encode())
    async with RawServer([ReadHead(), TUNNEL, StartTLS(context), ReadHead(), reply, Close()]) as proxy:
        more = {**by_proxy(proxy.base_url), "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        findings = await doctor("--trust-env", "--base-url", "https://flinks.test", **more)
        connect, head = proxy.heads
        assert findings["proxy"][0]["text"] == f"{proxy.base_url} connects to flinks.test"
    assert states(findings, "dns", "tcp", "proxy", "tls", "http", "clock") == ["ok"] * 6
    assert connect.startswith(b"CONNECT flinks.test:443 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic " in connect
    assert head.startswith(b"HEAD / HTTP/1.1\r\n")
    assert b"roxy-" not in head


@pytest.mark.parametrize(
    ("reply", "text", "advice"),
    [
        (b"HTTP/1.1 407 Who are you\r\n\r\n", "status 407", "user and password"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "status 403", "allow this host"),
        (b"SSH-2.0-OpenSSH\r\n", "BadStatusLine", "HTTP proxy"),
    ],
)
async def test_a_proxy_that_does_not_connect_is_a_problem(reply: bytes, text: str, advice: str) -> None:
    async with RawServer([ReadHead(), Send(reply), Close()]) as proxy:
        arguments = ("--trust-env", "--base-url", "https://flinks.test")
        findings = await doctor(*arguments, code=Exit.FAILED, **by_proxy(proxy.base_url))
    (found,) = findings["proxy"]
    assert text in found["text"]
    assert advice in found["advice"]
    assert "tls" not in findings


@pytest.mark.parametrize("command", ["get", "fetch", "instances"])
@pytest.mark.parametrize("asked", [True, False])
async def test_commands_use_the_proxy_of_the_environment_if_asked(tmp_path: Path, command: str, asked: bool) -> None:
    (tmp_path / "t.csv").write_text("token,bank\nt-1,acme\n")
    (tmp_path / "i.toml").write_text('[acme]\nsecret_env = "FLINKS_AUTH_SECRET"\nbase_url = "http://127.0.0.1:1"\n')
    fetch = ("fetch", tmp_path / "t.csv", "--column", "token", "--out", tmp_path / "o.jsonl", "--max-duration", "9")
    arguments: tuple[object, ...] = {
        "get": ("get", "--base-url", "http://127.0.0.1:1"),
        "fetch": (*fetch, "--base-url", "http://127.0.0.1:1"),
        "instances": (*fetch, "--instance-column", "bank", "--instances", tmp_path / "i.toml"),
    }[command]
    arguments += ("--trust-env",) if asked else ("--timeout", "1")
    async with RawServer([Repeat(ReadHead(), OK)]) as proxy:
        result = await cli(*arguments, FLINKS_ACCESS_TOKEN=TOKEN, **by_proxy(proxy.base_url))
        heads = proxy.heads
    assert (result.exit_code == 0) is asked, result.output
    assert [head.startswith(b"GET http://127.0.0.1:1/partneraccess/") for head in heads] == [True] * asked


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


@pytest.mark.parametrize(
    ("hard", "advice"),
    [(-1, "Run: ulimit -n 4096"), (1024, "Run: ulimit -n 1024"), (256, "the hard limit, which is 256")],
)
async def test_few_open_files_are_a_warning(monkeypatch: pytest.MonkeyPatch, hard: int, advice: str) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, hard))
    async with FlinksServer(auth_secret=SECRET) as server:
        findings = await doctor(server=server)
    assert states(findings, "open files") == ["warning"]
    assert advice in findings["open files"][0]["advice"]


async def test_each_finding_is_shown_before_the_next_check_waits() -> None:
    async with RawServer([ReadHead(), Hang()]) as server:
        process = await start("doctor", "--base-url", server.base_url, env={"FLINKS_AUTH_SECRET": SECRET})
        assert process.stdout is not None
        shown = b""
        while b"tcp" not in shown:
            shown += (line := await asyncio.wait_for(process.stdout.readline(), 30))
            assert line
        with pytest.raises(TimeoutError):  # the next one is not known yet
            await asyncio.wait_for(process.stdout.readline(), 0.2)
        process.kill()
        await process.communicate()
