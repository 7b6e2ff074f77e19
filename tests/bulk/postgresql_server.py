"""A throw-away PostgreSQL server for the tests: on a Unix socket in a temporary folder, gone when they end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final

OWNER: Final = "owner"
"""A superuser, who needs no password."""

GUARDED: Final = "guarded"
"""A user who needs one."""

_HBA: Final = f"""\
local all {GUARDED} scram-sha-256
local all all trust
"""

# Crashes here end processes and never the machine, so the server need not wait for the disk.
_SETTINGS: Final = {
    "fsync": "off",
    "listen_addresses": "",
    "max_connections": "30",
    "shared_buffers": "32MB",
    "log_min_messages": "fatal",
}


class Missing(Exception):
    """There is no server on this machine. The message says what was looked for."""


def find(program: str) -> Path:
    """Where a program of the server is: on the PATH, or where Debian puts it, the newest version.

    Raises:
        Missing: nowhere.
    """
    found = shutil.which(program)
    if found is not None:
        return Path(found).resolve()
    debian = [path for path in Path("/usr/lib/postgresql").glob(f"*/bin/{program}") if path.parts[-3].isdigit()]
    if not debian:
        raise Missing(
            f"{program} is neither on the PATH nor in /usr/lib/postgresql (Debian: apt-get install postgresql)"
        )
    return max(debian, key=lambda path: int(path.parts[-3]))


class Server:
    """A server in a folder.

    Args:
        folder: empty; its path is short, since a socket's may have 107 bytes at most.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._user = _user()
        self._names = count(1)
        self._process: subprocess.Popen[bytes] | None = None
        if self._user:
            shutil.chown(folder, self._user)
        initdb = [find("initdb"), "-D", self._data, "-U", OWNER, "--no-sync", "-E", "UTF8", "--locale=C", "-A", "trust"]
        self._call(initdb)
        (self._data / "pg_hba.conf").write_text(_HBA)
        self.start()
        self.sql(f"CREATE ROLE {GUARDED} LOGIN SUPERUSER")

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def conninfo(self) -> str:
        """How the owner gets in."""
        return f"host={self.folder} dbname=postgres user={OWNER}"

    def new_schema(self) -> str:
        """A name that no other test has."""
        return f"test_{next(self._names)}"

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Runs a statement as the owner; its rows."""
        import psycopg

        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def database(self, name: str, encoding: str) -> str:
        """Creates a database; how the owner gets in."""
        self.sql(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
        return self.conninfo.replace("dbname=postgres", f"dbname={name}")

    @contextmanager
    def pooler(self, mode: str, connections: int) -> Iterator[str]:
        """Runs PgBouncer before the server; how the owner gets in through it.

        Raises:
            Missing: it is not installed.
        """
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
        if program is None:
            raise Missing("pgbouncer is not on the PATH (Debian: apt-get install pgbouncer)")
        folder = self.folder / "pooler"
        folder.mkdir()
        (folder / "users").write_text(f'"{OWNER}" ""\n')
        (folder / "ini").write_text(
            f"[databases]\n* = host={self.folder}\n[pgbouncer]\nunix_socket_dir = {folder}\nlisten_port = 6432\n"
            f"auth_type = trust\nauth_file = {folder}/users\npool_mode = {mode}\ndefault_pool_size = {connections}\n"
        )
        if self._user:
            for path in (folder, *folder.iterdir()):
                shutil.chown(path, self._user)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([program, folder / "ini"], stdout=log, stderr=log, **self._as_user())
        conninfo = f"host={folder} port=6432 dbname=postgres user={OWNER}"
        try:
            self._wait(process, conninfo, folder / "log")
            yield conninfo
        finally:
            process.terminate()
            process.wait(30)
            shutil.rmtree(folder)

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
        command: list[Any] = [find("postgres"), "-D", self._data, "-k", self.folder, *settings]
        with (self.folder / "log").open("ab") as log:
            self._process = process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, **self._as_user()
            )
        self._wait(process, self.conninfo, self.folder / "log")

    def crash(self) -> None:
        """Ends the server at once; the next start is a recovery."""
        self._end(signal.SIGQUIT)

    def stop(self) -> None:
        self._end(signal.SIGINT)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(30)

    def _wait(self, process: subprocess.Popen[Any], conninfo: str, log: Path) -> None:
        import psycopg

        last = ""
        for _ in range(600):
            if process.poll() is not None:
                break
            try:
                psycopg.connect(conninfo).close()
                return
            except psycopg.OperationalError as error:
                last = str(error)
            time.sleep(0.05)
        raise RuntimeError(f"{process.args!r} did not start: {last}\n{log.read_text()}")

    def _call(self, command: list[Any]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, check=False, **self._as_user())
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr}")

    def _as_user(self) -> dict[str, Any]:
        return {"user": self._user, "group": _group(self._user), "extra_groups": []} if self._user else {}


def _user() -> str | None:
    """Whom the server runs as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    import pwd

    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise Missing("PostgreSQL does not run as root, and there is no other user")


def _group(user: str) -> int:
    import pwd

    return pwd.getpwnam(user).pw_gid


@contextmanager
def running() -> Iterator[Server]:
    """A new server, as long as the block runs.

    Raises:
        Missing: there is none on this machine.
    """
    if sys.platform == "win32":
        raise Missing("the server's set-up is for Unix")
    find("initdb")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server: Server | None = None
    try:
        server = Server(folder)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
