"""`flinks-async doctor`: finds out why requests or jobs do not work here, and says what to do.

Each check yields findings. The checks of the network use no client: they look at one connection step by step, and send
neither secret nor token. Only `--header-forms` does.
"""

from __future__ import annotations

import http.client
import os
import platform
import re
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from email.utils import parsedate_to_datetime
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import click
import msgspec
from attrs import asdict

from .. import config
from .._version import __version__
from ..checks import counted, duration
from ..classify import verdict_of
from ..client import FlinksClient
from ..config import AUTH_SCHEMES
from ..endpoint import Proxy
from ..errors import FlinksError
from ..runtime import fast_loop
from ..secret import Secret
from ..transport.session import SessionManager
from ..verdict import Kind
from . import Exit, epilog
from .access import Access, access_options, read_token
from .console import debug_option, printable, say
from .doctor_jobs import (
    TIMEOUT,
    CheckResult,
    check_cluster,
    check_directory,
    check_postgresql,
    check_redis,
    check_storage,
)
from .job_run import run
from .options import Workers
from .output import Command, to_stdout

SKEW: Final = 5.0  # seconds; `Date` has whole seconds, and the answer takes a moment
EXPIRES_SOON: Final = 14 * 86400.0

# Reasons of OpenSSL to refuse a certificate (X509_V_ERR_...).
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_OTHER_HOST: Final = 62


@click.command(cls=Command, epilog=epilog())
@click.argument("directory", metavar="[DIR]", required=False)
@click.option(
    "--header-forms",
    is_flag=True,
    help="Send the AuthSecret and one access token in each form of the header, to see which the instance accepts.",
)
@click.option(
    "--token-file", metavar="FILE", help="For --header-forms: as for get [FLINKS_ACCESS_TOKEN, else a hidden prompt]."
)
@click.option("--postgresql", is_flag=True, help="Check the database that PGHOST, PGDATABASE and so on name.")
@click.option("--out", metavar="URL", help="Check object storage or a folder for answers, such as s3://bucket/folder.")
@click.option("--redis", is_flag=True, help="Check the Redis that REDIS_URL names.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.option("--executor", metavar="URL", help="Check a cluster, as for fetch [FLINKS_EXECUTOR].")
@click.option("--insecure-cluster", is_flag=True, help="As for fetch.")
@access_options
@debug_option
def doctor(
    access: Access,
    directory: str | None,
    header_forms: bool,
    token_file: str | None,
    postgresql: bool,
    out: str | None,
    redis: bool,
    executor: str | None,
    insecure_cluster: bool,
    as_json: bool,
) -> int:
    """Check Python, network, certificates, clock and limits.

    With DIR, it also checks the directory of a job, its file of tokens and its store. It sends no secret and no token,
    except with --header-forms.
    """
    address = executor or os.environ.get("FLINKS_EXECUTOR", "").strip()
    checks = [_python(), _open_files(), _proxies(access.trust_env), _way_to_flinks(access, header_forms, token_file)]
    if directory is not None:
        checks.append(check_directory(Path(directory)))
    if postgresql:
        checks.append(check_postgresql({"conninfo": "", "schema": "flinks"}))
    if out is not None:
        checks.append(check_storage(out))
    if address:
        checks.append(check_cluster(Workers(None, address, None, insecure_cluster, None), access))
    if redis:
        checks.append(check_redis())
    findings = list[CheckResult]()
    for finding in chain.from_iterable(checks):
        findings.append(finding)
        if not as_json:  # at once, because the next check may have to wait
            to_stdout(_text(finding))
    if as_json:
        to_stdout(_json(findings))
    states = Counter(finding.state for finding in findings)
    say(f"{counted(states['problem'], 'problem')}, {counted(states['warning'], 'warning')}.")
    return Exit.FAILED if states["problem"] else Exit.OK


def _json(findings: Iterable[CheckResult]) -> bytes:
    found = msgspec.json.encode({"findings": [asdict(finding) for finding in findings]})
    return msgspec.json.format(found, indent=2) + b"\n"


def _text(finding: CheckResult) -> bytes:
    advice = [f"{'':<22} -> {finding.advice}"] if finding.advice else []
    return printable(f"{finding.state:<8} {finding.check:<13} {finding.text}", *advice, "").encode()


# --- this machine -----------------------------------------------------------------------------------------------------


def _python() -> Iterator[CheckResult]:
    yield CheckResult("python", "ok", f"Python {platform.python_version()} on {platform.platform(terse=True)}")
    names = dict.fromkeys(
        match[0] for line in metadata.requires("flinks-async") or () if (match := re.match(r"[\w.-]+", line))
    )
    found = [f"flinks-async {__version__}"]
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    yield CheckResult("packages", "ok", ", ".join(found))
    loop = "asyncio" if fast_loop() is None else "uvloop"
    yield CheckResult(
        "event loop", "ok", loop, "" if loop == "uvloop" else "pip install 'flinks-async[uvloop]' is faster"
    )


def _open_files() -> Iterator[CheckResult]:
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = config.bulk().limits.most_at_once + 100
    if 0 <= soft < needed:
        raised = f"Raise the hard limit, which is {hard:,} (LimitNOFILE= of systemd, --ulimit of Docker)"
        advice = raised if 0 <= hard < needed else f"Run: ulimit -n {min(hard, 4096) if hard > 0 else 4096}"
        yield CheckResult("open files", "warning", f"at most {soft:,}, and a run may need {needed:,}", advice)
    else:
        yield CheckResult("open files", "ok", "no limit" if soft < 0 else f"at most {soft:,}")


def _proxies(used: bool) -> Iterator[CheckResult]:
    names = [name for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY") if os.environ.get(name)]
    if names and not used:
        advice = "If only the proxy leads to Flinks, use --trust-env; in Python, Connection(trust_env=True)"
        yield CheckResult("proxy", "warning", f"{', '.join(names)} is set, and is not used", advice)


# --- the way to the instance ------------------------------------------------------------------------------------------


def _way_to_flinks(access: Access, header_forms: bool, token_file: str | None) -> Iterator[CheckResult]:
    try:
        client = access.client(config.service())
        manager = SessionManager(client.settings.connection)
        proxy = manager.proxy_for(client.options.endpoint())
    except (FlinksError, click.UsageError) as error:
        yield CheckResult("settings", "problem", *error.message.partition(". ")[::2])
        return
    yield CheckResult("settings", "ok", f"{client.host}, header form {client.options.auth_scheme}")
    works = True
    for finding in _network(urlsplit(client.options.endpoint().url), manager, proxy):
        works = works and finding.state != "problem"
        yield finding
    if header_forms and works:
        yield from run(lambda: _header_forms(client, read_token(token_file)))


def _network(url: SplitResult, manager: SessionManager, proxy: Proxy | None) -> Iterator[CheckResult]:
    """Makes one connection, through the proxy if there is one, and sends `HEAD /` without secret and token."""
    host, port = _place(url)
    first = url if proxy is None else urlsplit(proxy.url)
    name, number = _place(first)
    source = "the name of the instance (--instance)" if proxy is None else "the address of the proxy (HTTPS_PROXY)"
    began = time.monotonic()
    try:
        found = socket.getaddrinfo(name, number, type=socket.SOCK_STREAM)
    except OSError as error:
        advice = f"Check {source}, and the name servers of this machine"
        if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
            advice = (
                "No name server answers: check the network of this machine, and whether a proxy is needed (--trust-env)"
            )
        yield CheckResult("dns", "problem", f"{name} has no address: {error.strerror or error}", advice)
        return
    addresses = [str(address[0]) for *_, address in found]
    yield CheckResult("dns", "ok", f"{name} is {', '.join(addresses[:4])} ({duration(time.monotonic() - began)})")
    began = time.monotonic()
    try:
        wire = socket.create_connection((name, number), TIMEOUT)
    except OSError as error:
        advice = "Ask whether a firewall lets this machine connect, or whether a proxy is needed (--trust-env)"
        if proxy is not None:
            advice = f"Check {source}, and ask whether the proxy is running"
        text = f"port {number} of {name} cannot be reached: {error.strerror or error}"
        yield CheckResult("tcp", "problem", text, advice)
        return
    with closing(wire):
        yield CheckResult("tcp", "ok", f"port {number} answers ({duration(time.monotonic() - began)})")
        if proxy is not None:
            if (url.scheme, first.scheme) != ("https", "http"):
                yield CheckResult("proxy", "ok", "it can be reached; what lies behind it is not checked")
                return
            problem = _tunnel(wire, proxy, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
            if problem is not None:
                yield CheckResult("proxy", "problem", *problem)
                return
            yield CheckResult("proxy", "ok", f"{proxy.url} connects to {host}")
        if url.scheme == "https":
            try:
                context = run(manager.tls)
                wire = context.wrap_socket(wire, server_hostname=host)
            except (OSError, FlinksError) as error:
                yield _tls_problem(host, error)
                return
            yield from _certificate(wire)
        with closing(wire):
            yield from _clock(wire, host)


def _place(url: SplitResult) -> tuple[str, int]:
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def _named(error: Exception) -> str:
    return f"none within {TIMEOUT:g} s" if isinstance(error, TimeoutError) else type(error).__name__


def _tunnel(wire: socket.socket, proxy: Proxy, to: str) -> tuple[str, str] | None:
    """Asks a proxy for a connection to a host. Returns what is wrong, and what to do; None if there is one."""
    authorization = "" if proxy.authorization is None else f"Proxy-Authorization: {proxy.authorization.reveal()}\r\n"
    answer = http.client.HTTPResponse(wire, method="CONNECT")
    try:
        wire.sendall(f"CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{authorization}\r\n".encode())
        answer.begin()
    except (OSError, http.client.HTTPException) as error:
        return f"{proxy.url} gives no HTTP response: {_named(error)}", "Check that it is an HTTP proxy"
    if answer.status == 200:
        return None
    text = f"{proxy.url} does not connect to {to}: status {answer.status}"
    if answer.status == 407:
        return text, "Put user and password into the URL of the proxy: http://USER:PASSWORD@HOST:PORT"
    return text, "Ask those who run the proxy to allow this host and port"


def _tls_problem(host: str, error: OSError | FlinksError) -> CheckResult:
    if isinstance(error, ssl.SSLCertVerificationError):
        now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        advice = {
            _NOT_YET_VALID: f"Check the clock of this machine, where it is {now}",
            _EXPIRED: f"If it is not {now}, set the clock of this machine; otherwise, tell the operator of {host}",
            _OTHER_HOST: "Another server answers: check --base-url, the name servers, and whether a network wants a login",
        }.get(
            error.verify_code,
            _missing_authorities()
            or "If a proxy of your company reads the traffic, its certificate authority must be trusted here (SSL_CERT_FILE); "
            "otherwise, check the CA certificates of this machine",
        )
        return CheckResult(
            "tls", "problem", f"the certificate of {host} is not trusted: {error.verify_message}", advice
        )
    advice = "TLS 1.2 or newer is needed on the way there"
    if isinstance(error, FlinksError):
        text = error.message
    elif isinstance(error, TimeoutError):
        text, advice = f"no answer within {TIMEOUT:g} s", "Something on the way cuts TLS off: a firewall, or a proxy"
    else:
        reason = getattr(error, "reason", None)  # of OpenSSL, such as WRONG_VERSION_NUMBER
        text = reason.replace("_", " ").lower() if reason else (error.strerror or str(error))
    return CheckResult("tls", "problem", f"no TLS connection to {host}: {text}", advice)


def _missing_authorities() -> str:
    """Advice if a variable names no existing file; empty otherwise."""
    names = [
        name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if not os.path.exists(os.environ.get(name) or os.curdir)
    ]
    return f"{' and '.join(names)} names a file that does not exist: correct or unset it" if names else ""


def _certificate(wire: ssl.SSLSocket) -> Iterator[CheckResult]:
    certificate: dict[str, Any] = wire.getpeercert() or {}
    names = {key: value for pair in certificate.get("issuer", ()) for key, value in pair}
    signer = " ".join(dict.fromkeys(names[key] for key in ("organizationName", "commonName") if key in names))
    left = ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()
    text = f"{wire.version()}, signed by {signer}, valid until {certificate['notAfter']}"
    if left < EXPIRES_SOON:
        yield CheckResult("tls", "warning", text, "The certificate expires soon: tell the operator of the instance")
    else:
        yield CheckResult("tls", "ok", text, "If this is your company's name, a proxy on the way reads the traffic")


def _clock(wire: socket.socket, host: str) -> Iterator[CheckResult]:
    connection = http.client.HTTPConnection(host, timeout=TIMEOUT)
    connection.sock = wire
    try:
        connection.request("HEAD", "/", headers={"User-Agent": f"flinks-async/{__version__}"})
        answer = connection.getresponse()
        date = answer.getheader("Date")
        text = f"status {answer.status} for HEAD /" + (", through a proxy (Via)" if answer.getheader("Via") else "")
        elsewhere = urlsplit(answer.getheader("Location") or "").hostname
        if answer.status in (407, 511):
            yield CheckResult(
                "http", "problem", text, "A proxy or network on the way wants a login: log in there first"
            )
        elif 300 <= answer.status < 400 and elsewhere not in (None, host):
            advice = "If this is the login page of a network or proxy, log in there first"
            yield CheckResult("http", "warning", f"{text}, a redirect to {elsewhere}", advice)
        else:
            yield CheckResult("http", "ok", text)
        skew = time.time() - parsedate_to_datetime(date).timestamp() if date else None
    except (OSError, http.client.HTTPException) as error:
        advice = "Something on the way cuts HTTP off: a firewall, or a proxy"
        yield CheckResult("http", "problem", f"no HTTP response: {_named(error)}", advice)
        return
    except ValueError:
        skew = None
    if skew is None:
        yield CheckResult("clock", "warning", "unknown, because the response has no date", "")
    elif abs(skew) > SKEW:
        text = f"{duration(abs(skew))} {'ahead of' if skew > 0 else 'behind'} the server"
        yield CheckResult("clock", "warning", text, "Synchronize the clock (NTP); times in logs and reports are wrong")
    else:
        yield CheckResult("clock", "ok", "agrees with the server")


async def _header_forms(client: FlinksClient, token: Secret) -> list[CheckResult]:
    """Sends the token once in each form of the header."""
    findings: list[CheckResult] = []
    accepted: list[str] = []
    refused: list[str] = []
    async with client:
        for scheme in AUTH_SCHEMES:
            try:
                one = client.with_options(auth_scheme=scheme, retry={"attempts": 1})
                response = await one.partner_access_raw(token)
            except FlinksError as error:
                findings.append(CheckResult("header form", "warning", f"{scheme}: no answer: {error.message}"))
                continue
            verdict = verdict_of(response)
            told = f"{scheme}: status {response.status}, {verdict.reason}"
            if verdict.kind is Kind.REFUSED:
                refused.append(scheme)
                findings.append(CheckResult("header form", "ok", f"{told}: refused"))
            elif verdict.kind in (Kind.OK, Kind.PENDING):
                accepted.append(scheme)
                findings.append(CheckResult("header form", "ok", f"{told}: accepted"))
            else:
                findings.append(CheckResult("header form", "warning", f"{told}: says nothing of the header"))
    chosen = client.options.auth_scheme
    if len(refused) == len(AUTH_SCHEMES):
        advice = "Check the AuthSecret, its instance and the token: Flinks does not say which of them is refused"
        findings.append(CheckResult("header form", "problem", "the instance refuses every form", advice))
    elif chosen in refused and accepted:
        advice = f"Use --auth-scheme {accepted[0]}, or FLINKS_AUTH_SCHEME={accepted[0]}"
        findings.append(CheckResult("header form", "problem", f"the instance refuses {chosen}, which is set", advice))
    return findings
