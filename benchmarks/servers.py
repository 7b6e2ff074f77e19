"""Servers that cost less than the clients under test: `server.c` for plain HTTP, nginx for TLS.

Both answer every token with the same prepared body and count their answers. Without a C compiler, the package's simulator
replaces `server.c`. It is written in Python and limits the fast clients, and the output says so.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from attrs import frozen

from flinks_async.testing import ServeOptions, ServerProcess
from flinks_async.testing.data import Size, expected_body

TOKEN = "benchmark"
SECRET = "3f2a6f0c-7b0e-4d3a-9a51-0c8d4e5b6a79"
HERE = Path(__file__).parent


class Unavailable(Exception):
    """A program that is needed is missing on this machine; the text names it."""


@frozen
class Server:
    """A server that runs.

    Attributes:
        kind: what it is, for the report.
        base_url: for clients.
        body: what it answers.
        ca_file: the authority of its certificate, with TLS.
        any_token: it answers every token; otherwise ask for `TOKEN` only.
        count_url: where it tells the number of its answers so far; None if nowhere.
    """

    kind: str
    base_url: str
    body: bytes
    ca_file: str | None = None
    any_token: bool = True
    count_url: str | None = None

    def answers(self) -> int | None:
        """The number of tokens answered so far."""
        if self.count_url is None:
            return None
        context = None if self.ca_file is None else ssl.create_default_context(cafile=self.ca_file)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(self.count_url, timeout=10) as answer:
            text: str = answer.read().decode()
        if text.isdecimal():
            return int(text)
        # nginx: a line with "accepts handled requests", and this request is one of them
        return int(text.splitlines()[2].split()[2])

    def counted(self, before: int | None) -> int | None:
        """The number of tokens answered since."""
        if before is None:
            return None
        after = self.answers()
        assert after is not None
        return after - before - (self.ca_file is not None)


def compiler() -> str:
    """The C compiler."""
    for name in (os.environ.get("CC", "cc"), "gcc", "clang"):
        if found := shutil.which(name):
            return found
    raise Unavailable("no C compiler: install gcc or clang (Debian: apt install gcc libc6-dev), or set CC")


@cache
def note(problem: str) -> None:
    """Says it once."""
    print(f"Note: {problem}. The simulator, which is much slower, serves instead.", flush=True)


@contextmanager
def plain(
    size: Size, core: int | None = None, changed: Callable[[bytes], bytes] = lambda body: body
) -> Iterator[Server]:
    """A server of plain HTTP: compiled, or else the simulator.

    Args:
        size: of the body.
        core: the processor core to keep it on.
        changed: makes the body that is sent; the simulator sends the one that it gets.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            program = build(Path(folder))
        except Unavailable as problem:
            note(str(problem))
            with simulator(size) as server:
                yield server
            return
        body = changed(expected_body(TOKEN, size=size))
        Path(folder, "body.json").write_bytes(body)
        with subprocess.Popen(
            [*pinned(core), program, Path(folder, "body.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                base_url = f"http://127.0.0.1:{int(process.stdout.readline())}"
                yield Server("server.c", base_url, body, count_url=f"{base_url}/count")
            finally:
                process.stdin.close()


def build(folder: Path) -> Path:
    """Compiles the server.

    Raises:
        Unavailable: no compiler, or it cannot build it here (it is for Linux).
    """
    program = folder / "server"
    command = [compiler(), "-O2", "-o", program, HERE / "server.c"]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    if made.returncode:
        raise Unavailable(f"server.c does not compile here: {made.stderr.strip().splitlines()[0]}")
    return program


@contextmanager
def simulator(size: Size) -> Iterator[Server]:
    with ServerProcess(ServeOptions(size=size, auth_secret=SECRET)) as process:
        yield Server("simulator", process.base_url, expected_body(TOKEN, size=size), any_token=False)


@contextmanager
def tls(size: Size, core: int | None = None) -> Iterator[Server]:
    """nginx with TLS, serving a file.

    Raises:
        Unavailable: no nginx, or no trustme to make a certificate.
    """
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        raise Unavailable("no nginx: install it (Debian: apt install nginx-light) for the part with TLS")
    try:
        import trustme
    except ImportError:
        raise Unavailable("no trustme to make a certificate for TLS: pip install trustme") from None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(folder / "own.pem")
        body = expected_body(TOKEN, size=size)
        (folder / "body.json").write_bytes(body)
        port = free_port()
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port))
        with subprocess.Popen(
            [*pinned(core), program, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "errors.log"],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                base_url = f"https://localhost:{port}"
                server = Server("nginx", base_url, body, ca_file=str(folder / "ca.pem"), count_url=f"{base_url}/count")
                wait_until_it_answers(server, process)
                yield server
            finally:
                process.terminate()


NGINX = """
daemon off;
master_process off;
worker_processes 1;
pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    default_type "application/json; charset=utf-8";
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    tcp_nodelay on;
    open_file_cache max=10 inactive=1h;
    open_file_cache_valid 1h;
    ssl_certificate {folder}/own.pem;
    ssl_certificate_key {folder}/own.pem;
    ssl_protocols TLSv1.2 TLSv1.3;
    server {{
        listen 127.0.0.1:{port} ssl;
        server_name localhost;
        location /partneraccess/ {{
            root {folder};
            try_files /body.json =404;
        }}
        location = /count {{ stub_status; }}
    }}
}}
"""


def wait_until_it_answers(server: Server, process: subprocess.Popen[str]) -> None:
    for _ in range(200):
        try:
            server.answers()
        except OSError:
            if process.poll() is not None:
                assert process.stderr is not None
                raise Unavailable(f"nginx does not start: {process.stderr.read().strip()[-300:]}") from None
            time.sleep(0.05)
        else:
            return
    raise Unavailable("nginx does not answer")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def cores() -> tuple[int, int] | None:
    """Two cores, for the clients and for the server; None where a process cannot be kept on one."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    found = sorted(os.sched_getaffinity(0))
    return (found[0], found[1]) if len(found) > 1 else None


def pinned(core: int | None) -> list[str]:
    """The start of a command that keeps it on a core."""
    taskset = shutil.which("taskset")
    return [] if core is None or taskset is None else [taskset, "-c", str(core)]
