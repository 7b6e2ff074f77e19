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
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click
import msgspec
from attrs import asdict

from .. import config
from .._version import __version__
from ..checks import counted, duration
from ..classify import verdict_of
from ..client import FlinksClient
from ..config import AUTH_SCHEMES
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
    findings = [*_python(), *_open_files(), *_proxies()]
    client: FlinksClient | None = None
    try:
        client = access.client(config.service())
    except (FlinksError, click.UsageError) as error:
        text = error.message
        findings.append(CheckResult("settings", "problem", text.partition(". ")[0], text.partition(". ")[2]))
    if client is not None:
        options = client.options
        findings.append(CheckResult("settings", "ok", f"{client.host}, header form {options.auth_scheme}"))
        network = list(_network(options.endpoint().url, client.settings.connection))
        findings += network
        if header_forms and not any(finding.state == "problem" for finding in network):
            findings += run(lambda: _header_forms(client, read_token(token_file)))
    if directory is not None:
        findings += check_directory(Path(directory))
    if postgresql:
        findings += check_postgresql({"conninfo": "", "schema": "flinks"})
    if out is not None:
        findings += check_storage(out)
    address = executor or os.environ.get("FLINKS_EXECUTOR", "").strip()
    if address:
        findings += check_cluster(Workers(None, address, None, insecure_cluster, None), access)
    if redis:
        findings += check_redis()
    states = Counter(finding.state for finding in findings)
    to_stdout(_json(findings) if as_json else _text(findings))
    say(f"{counted(states['problem'], 'problem')}, {counted(states['warning'], 'warning')}.")
    return Exit.FAILED if states["problem"] else Exit.OK


def _json(findings: Iterable[CheckResult]) -> bytes:
    found = msgspec.json.encode({"findings": [asdict(finding) for finding in findings]})
    return msgspec.json.format(found, indent=2) + b"\n"


def _text(findings: Iterable[CheckResult]) -> bytes:
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<8} {finding.check:<13} {finding.text}")
        if finding.advice:
            lines.append(f"{'':<22} -> {finding.advice}")
    return printable(*lines, "").encode()


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
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = config.bulk().limits.most_at_once + 100
    if 0 <= soft < needed:
        yield CheckResult(
            "open files", "warning", f"at most {soft:,}, and a run may need {needed:,}", "Run: ulimit -n 4096"
        )
    else:
        yield CheckResult("open files", "ok", "no limit" if soft < 0 else f"at most {soft:,}")


def _proxies() -> Iterator[CheckResult]:
    names = [name for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY") if os.environ.get(name)]
    if names:
        advice = "From Python, Connection(trust_env=True) uses it"
        yield CheckResult(
            "proxy", "warning", f"{', '.join(names)} is set, but the command line connects directly", advice
        )


# --- the way to the instance ------------------------------------------------------------------------------------------


def _network(url: str, connection: config.Connection) -> Iterator[CheckResult]:
    """Makes one connection, and sends `HEAD /` without secret and token."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    began = time.monotonic()
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        advice = "Check the name of the instance (--instance), and the name servers of this machine"
        yield CheckResult("dns", "problem", f"{host} has no address: {error.strerror or error}", advice)
        return
    addresses = [str(address[0]) for *_, address in found]
    yield CheckResult("dns", "ok", f"{host} is {', '.join(addresses[:4])} ({duration(time.monotonic() - began)})")
    began = time.monotonic()
    try:
        wire = socket.create_connection((host, port), TIMEOUT)
    except OSError as error:
        advice = "Ask whether a firewall lets this machine connect, or whether a proxy is needed"
        yield CheckResult(
            "tcp", "problem", f"port {port} of {host} cannot be reached: {error.strerror or error}", advice
        )
        return
    with closing(wire):
        yield CheckResult("tcp", "ok", f"port {port} answers ({duration(time.monotonic() - began)})")
        if parts.scheme == "https":
            try:
                context = run(SessionManager(connection).tls)
                wire = context.wrap_socket(wire, server_hostname=host)
            except (OSError, FlinksError) as error:
                yield _tls_problem(host, error)
                return
            yield from _certificate(wire)
        with closing(wire):
            yield from _clock(wire, host)


def _tls_problem(host: str, error: OSError | FlinksError) -> CheckResult:
    if isinstance(error, ssl.SSLCertVerificationError):
        now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        advice = {
            _NOT_YET_VALID: f"Check the clock of this machine, where it is {now}",
            _EXPIRED: f"If it is not {now}, set the clock of this machine; otherwise, tell the operator of {host}",
            _OTHER_HOST: "Another server answers: check --base-url, the name servers, and whether a network wants a login",
        }.get(
            error.verify_code,
            "If a proxy of your company reads the traffic, its certificate authority must be trusted here (SSL_CERT_FILE); "
            "otherwise, check the CA certificates of this machine",
        )
        return CheckResult(
            "tls", "problem", f"the certificate of {host} is not trusted: {error.verify_message}", advice
        )
    text = error.message if isinstance(error, FlinksError) else (error.strerror or str(error))
    return CheckResult(
        "tls", "problem", f"no TLS connection to {host}: {text}", "TLS 1.2 or newer is needed on the way there"
    )


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
        yield CheckResult("http", "problem", f"no HTTP response: {type(error).__name__}", advice)
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
