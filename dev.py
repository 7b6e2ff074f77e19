"""Run the demo, the tests and the checks of a checkout; needs only Python 3.11+ and pip.

python3 dev.py demo                     a simulated server and 10,000 tokens
python3 dev.py test [pytest arguments]  the tests, on all cores; `-n0` runs them in one process
python3 dev.py nox [nox arguments]      lint, types, build, other Pythons, coverage, mutants; `--list` names the sessions

All of them use `.venv`, which is filled again when pyproject.toml changes.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
PYPROJECT = ROOT / "pyproject.toml"
OLDEST = (3, 11)
ALL = ("test", "dev", "examples")
# PIP_USER=1 in the user's settings would make pip install outside the environment. Without bytecode, each of the hundreds of
# processes of the tests would compile all that it imports.
ENVIRON = {**os.environ, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONDONTWRITEBYTECODE": ""}


def main() -> int:
    if sys.version_info < OLDEST:
        sys.exit(f"dev.py needs Python 3.11 or newer, and this is {sys.version.partition(' ')[0]}")
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C also reaches the child process, which handles it
    match sys.argv[1:]:
        case ["demo", *arguments]:
            return demo(arguments)
        case ["test", *arguments]:
            if not installed("dev", everything(*ALL)):  # which has what the tests need
                install("test", everything("test"))
            return run("pytest", *arguments)
        case ["nox", *arguments]:
            install("dev", everything(*ALL))
            return run("nox", *arguments)
        case ["-h" | "--help"]:
            print(__doc__)
            return 0
    print(__doc__, file=sys.stderr)
    return 2


def demo(arguments: list[str]) -> int:
    try:
        install("demo", ["--only-binary", "uvloop", "-e", ".[cli,uvloop]"])
    except subprocess.CalledProcessError:
        print("Trying again without uvloop, which only makes the demo faster.", flush=True)
        install("demo", ["-e", ".[cli]"])
    return run("flinks_async.cli", "demo", *arguments)


def install(name: str, requirements: list[str]) -> None:
    """Makes `.venv` and fills it, unless this was done with the same Python and the same pyproject.toml.

    Args:
        name: of the set of requirements; `.venv` may hold several sets.
        requirements: arguments of `pip install`.
    """
    if installed(name, requirements):
        return
    if not has_venv():
        print("Making .venv", flush=True)
        make_venv()
    print("Installing into .venv (again only when pyproject.toml changes)", flush=True)
    pip(PYTHON, "install", "--no-compile", *requirements)  # Python compiles what is imported
    stamp(name).write_text(state(requirements), encoding="utf-8")


def installed(name: str, requirements: list[str]) -> bool:
    return has_venv() and stamp(name).exists() and stamp(name).read_text(encoding="utf-8") == state(requirements)


def has_venv() -> bool:
    version = "import sys; print(sys.version)"
    return ask(PYTHON, version) == ask(sys.executable, version)


def stamp(name: str) -> Path:
    return VENV / f"dev-{name}.stamp"


def state(requirements: list[str]) -> str:
    return repr((hashlib.sha256(PYPROJECT.read_bytes()).hexdigest(), str(ROOT), requirements))


def make_venv() -> None:
    """Makes `.venv` with pip in it, also on Debian without python3-venv, where Python has no ensurepip."""
    venv = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    if subprocess.run(venv, check=False, capture_output=True).returncode != 0:
        subprocess.run([*venv, "--without-pip"], check=True)
        pip(sys.executable, "--python", str(PYTHON), "install", "pip")


def pip(python: str | Path, *arguments: str) -> None:
    subprocess.run([str(python), "-m", "pip", "--quiet", *arguments], cwd=ROOT, env=ENVIRON, check=True)


def everything(*groups: str) -> list[str]:
    """The package with all extras, and dependency groups, because the pip of Python 3.11 does not know `--group`."""
    import tomllib  # not in the Pythons that `main` refuses

    pyproject = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    extras = ",".join(pyproject["project"]["optional-dependencies"])
    return ["-e", f".[{extras}]", *(item for name in groups for item in pyproject["dependency-groups"][name])]


def ask(python: str | Path, program: str) -> str:
    """The output of a program; empty if the interpreter is missing or does not work."""
    try:
        done = subprocess.run([str(python), "-c", program], check=False, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def run(module: str, *arguments: str) -> int:
    return subprocess.run([str(PYTHON), "-m", module, *arguments], check=False, cwd=ROOT, env=ENVIRON).returncode


if __name__ == "__main__":
    try:
        code: int | str = main()
    except subprocess.CalledProcessError as error:
        code = f"failed with exit code {error.returncode}: {' '.join(map(str, error.cmd))}"
    sys.exit(code)
