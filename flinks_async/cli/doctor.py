"""`flinks-async doctor`: finds out why requests or jobs do not work here, and says what to do.

Each check yields findings. The checks of the network use no client: they look at one connection step by step, and send
neither secret nor token. Only `--header-forms` does.
"""

from __future__ import annotations

import http.client
import os
import platform
import re
import shutil
import socket
import ssl
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import click
import msgspec
from attrs import asdict, frozen

from .. import config
from .._version import __version__
from ..bulk.directory import Manifest, enter, refuse_network
from ..bulk.errors import JobLockedError
from ..bulk.files import MANIFEST
from ..checks import counted, duration, optional_import
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
from .job_run import run
from .output import Command, to_stdout

State = Literal["ok", "warning", "problem"]

TIMEOUT: Final = 10.0
SKEW: Final = 5.0  # seconds; `Date` has whole seconds, and the answer takes a moment
EXPIRES_SOON: Final = 14 * 86400.0
LITTLE_SPACE: Final = 1 << 30

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
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@access_options
@debug_option
def doctor(
    access: Access, directory: str | None, header_forms: bool, token_file: str | None, postgresql: bool, as_json: bool
) -> int:
    """Check Python, network, certificates, clock and limits.

    With DIR, it also checks the directory of a job. It sends no secret and no token, except with --header-forms.
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
        findings += _directory(Path(directory))
    if postgresql:
        findings += _postgresql({"conninfo": "", "schema": "flinks"})
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
        advice = (
            "If a proxy of your company reads the traffic, its certificate authority must be trusted here (SSL_CERT_FILE); "
            "otherwise, check the clock and the CA certificates of this machine"
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
        via = answer.getheader("Via")
        yield CheckResult(
            "http", "ok", f"status {answer.status} for HEAD /" + (", through a proxy (Via)" if via else "")
        )
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


# --- jobs -------------------------------------------------------------------------------------------------------------


def _directory(folder: Path) -> Iterator[CheckResult]:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    manifest: Manifest | None = None
    try:
        if (folder / MANIFEST).exists():
            with ExitStack() as resources:
                enter(folder, resources)
                manifest = Manifest.load(folder / MANIFEST)
            yield CheckResult("directory", "ok", f"{folder} holds a job that is not running; it can be locked")
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
    except JobLockedError:
        manifest = Manifest.load(folder / MANIFEST)
        yield CheckResult("directory", "ok", f"{folder} holds a job that is running")
    except FlinksError as error:
        yield CheckResult("directory", "problem", *error.message.partition(". ")[::2])
    except OSError as error:
        advice = "Choose another directory, or change its owner"
        yield CheckResult("directory", "problem", f"{existing} cannot be written: {error.strerror or error}", advice)
    free = shutil.disk_usage(existing).free
    state: State = "warning" if free < LITTLE_SPACE else "ok"
    advice = "" if state == "ok" else "Make room: a full disk stops a job, which can be resumed"
    yield CheckResult("disk", state, f"{free / (1 << 30):,.1f} GiB free", advice)
    if manifest is not None and manifest.store["kind"] == "postgresql":
        yield from _postgresql(manifest.store)


def _postgresql(store: dict[str, Any]) -> Iterator[CheckResult]:
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
