"""Everything that is done with a checkout, on a machine with nothing but Python 3.11+ and pip:

python3 dev.py demo                     the simulated server and 10,000 tokens, in .venv
python3 dev.py test [pytest arguments]  the tests
python3 dev.py test --python 3.12       the same on another interpreter, in .venvs/
python3 dev.py test --all               on all of them; --others: on all others, without what is marked as `once`
python3 dev.py check                    lint, formatting, types, and what is inside the built wheel
python3 dev.py mutate [part of a path]  whether tests notice each small change of the code that decides (Linux, macOS)
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PYPROJECT = ROOT / "pyproject.toml"
OLDEST = (3, 11)
# A pip of the user's own settings must still install into the environment that it is told to.
ENVIRON = {**os.environ, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def main() -> int:
    if sys.version_info < OLDEST:
        sys.exit(f"dev.py needs Python {dotted(OLDEST)} or newer, and this is {dotted(sys.version_info[:2])}")
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the child process, which ends in its own way
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo", help="run the demo; other arguments go to it", add_help=False, allow_abbrev=False)
    commands.add_parser("check", help="lint, formatting, types, build", allow_abbrev=False)
    commands.add_parser("mutate", help="mutation testing; other arguments choose modules", allow_abbrev=False)
    tests = commands.add_parser("test", help="run the tests; other arguments go to pytest", allow_abbrev=False)
    which = tests.add_mutually_exclusive_group()
    which.add_argument("--python", metavar="X.Y", help="on this version of Python")
    which.add_argument(
        "--others", action="store_true", help="on every version but the running one, less what is marked `once`"
    )
    which.add_argument("--all", action="store_true", help="on every supported version")
    options, rest = parser.parse_known_args()
    if options.command == "demo":
        return demo(rest)
    if options.command == "check":
        return check() if not rest else parser.error(f"check takes no arguments, not {' '.join(rest)}")
    if options.command == "mutate":
        return mutate(rest)
    here = dotted(sys.version_info[:2])
    if options.all or options.others:
        most = [] if options.all else ["-m", "not torture and not once"]
        return test_many([v for v in supported() if options.all or v != here], [*most, *rest])
    if options.python in (None, here):
        return test(Path(sys.executable), ROOT / ".venv", rest)
    if options.python not in supported() or (base := find(options.python)) is None:
        sys.exit(
            f"Python {options.python} is not supported, or not on this machine; supported: {', '.join(supported())}"
        )
    return test(base, ROOT / ".venvs" / options.python, rest)


def demo(arguments: list[str]) -> int:
    base, where = Path(sys.executable), ROOT / ".venv"
    try:
        python = install(base, where, "demo", ["--only-binary", "uvloop", "-e", ".[cli,uvloop]"])
    except subprocess.CalledProcessError:
        print("Once more, without uvloop, which only makes it faster.", flush=True)
        python = install(base, where, "demo", ["-e", ".[cli]"])
    return run(python, "-m", "flinks_async.cli", "demo", *arguments)


def test(base: Path, where: Path, arguments: Iterable[str]) -> int:
    python = install(base, where, "test", group("test"))
    return run(python, "-m", "pytest", *arguments)


def test_many(versions: list[str], arguments: list[str]) -> int:
    """The tests on several versions, as many at the same time as there are processors; of each the output at its end."""
    results, pythons = {}, {}
    for version in versions:
        here = version == dotted(sys.version_info[:2])
        base = Path(sys.executable) if here else find(version)
        if base is None:
            results[version] = "not found on this machine"
        else:
            where = ROOT / ".venv" if here else ROOT / ".venvs" / version
            pythons[version] = install(base, where, "test", group("test"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        print(f"Testing on {', '.join(pythons)}", flush=True)
        codes = {
            pool.submit(run, python, "-m", "pytest", *arguments, output=Path(folder, version)): version
            for version, python in pythons.items()
        }
        for done in as_completed(codes):
            version, code = codes[done], done.result()
            results[version] = "passed" if code == 0 else f"FAILED (exit code {code})"
            print(f"\n== Python {version}\n{Path(folder, version).read_text('utf-8', 'replace')}", flush=True)
    print("\n".join(f"Python {version}: {results[version]}" for version in versions), flush=True)
    return int(any(result.startswith("FAILED") for result in results.values()))


def check() -> int:
    python = install(Path(sys.executable), ROOT / ".venv", "check", [*group("test"), *group("check")])
    failed = []
    for tool, *arguments in (
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["pyright", "--pythonpath", str(python)],
    ):
        print(f"\n== {tool} {' '.join(arguments)}", flush=True)
        if run(python, "-m", tool, *arguments) != 0:
            failed.append(tool)
    print("\n== build", flush=True)
    with tempfile.TemporaryDirectory() as built:
        if run(python, "-m", "build", "--outdir", built) != 0 or not well_packed(Path(built)):
            failed.append("build")
    print(f"\nFailed: {', '.join(failed)}" if failed else "\nAll checks passed.", flush=True)
    return int(bool(failed))


def mutate(arguments: list[str]) -> int:
    python = install(Path(sys.executable), ROOT / ".venv", "mutate", [*group("test"), *group("mutation")])
    return run(python, "-m", "tests.mutation", *arguments)


def well_packed(built: Path) -> bool:
    """Whether there is an sdist, and a wheel that brings its types and nothing but the package."""
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    typed = "flinks_async/py.typed" in names
    foreign = sorted({name.partition("/")[0] for name in names if ".dist-info/" not in name} - {"flinks_async"})
    print(
        f"{wheel.name}: {len(names)} files, py.typed {'is' if typed else 'is NOT'} there; besides: {foreign or 'nothing'}"
    )
    return typed and not foreign and any(built.glob("*.tar.gz"))


def install(base: Path, where: Path, name: str, requirements: list[str]) -> Path:
    """An environment with these requirements; made, and filled, only if something has changed.

    Args:
        base: the interpreter that it is made from.
        name: of the set of requirements; several sets may live in one environment.
    """
    python = where / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    what = "import sys; print(sys.version)"
    if ask([str(python)], what) != ask([str(base)], what):
        print(f"Making {where.relative_to(ROOT)}", flush=True)
        # Without ensurepip (Debian's python3-venv) there is no pip inside; the one outside can fill it as well.
        venv = [str(base), "-m", "venv", "--clear"]
        if not works(*venv, str(where)):
            subprocess.run([*venv, "--without-pip", str(where)], check=True)
    state = repr((hashlib.sha256(PYPROJECT.read_bytes()).hexdigest(), str(ROOT), requirements))
    stamp = where / f"dev-{name}.stamp"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != state:
        print(f"Installing into {where.relative_to(ROOT)} (again only when pyproject.toml changes)", flush=True)
        inside = works(str(python), "-m", "pip", "--version")
        pip = [str(python), "-m", "pip"] if inside else [str(base), "-m", "pip", "--python", str(python)]
        subprocess.run([*pip, "install", "--quiet", *requirements], cwd=ROOT, env=ENVIRON, check=True)
        stamp.write_text(state, encoding="utf-8")
    return python


def group(name: str) -> list[str]:
    """The requirements of a dependency group, as arguments of a pip that may be too old for `--group`."""
    requirements: list[str] = []
    for item in pyproject()["dependency-groups"][name]:
        if isinstance(item, dict):
            requirements += group(item["include-group"])
        elif item.startswith("flinks-async"):  # this checkout, with extras
            requirements += ["-e", "." + item.removeprefix("flinks-async")]
        else:
            requirements.append(item)
    return requirements


def pyproject() -> dict:
    import tomllib

    return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))


def supported() -> list[str]:
    """The versions of Python in the package's classifiers."""
    prefix = "Programming Language :: Python :: 3."
    return [line.rpartition(" ")[2] for line in pyproject()["project"]["classifiers"] if line.startswith(prefix)]


def find(version: str) -> Path | None:
    """An interpreter of a version such as `3.12`: on the PATH, by the launcher of Windows, or among pyenv's."""
    for command in candidates(version):
        found = ask(command, "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)")
        if found.startswith(version + " "):
            return Path(found.partition(" ")[2])
    return None


def candidates(version: str) -> Iterator[list[str]]:
    for name in (f"python{version}", "python3", "python"):
        if (path := shutil.which(name)) is not None:
            yield [path]
    if (launcher := shutil.which("py")) is not None:
        yield [launcher, f"-{version}"]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for home in sorted(pyenv.glob(f"{version}*"), reverse=True):
        yield [str(home / "bin" / "python")]


def ask(command: list[str], program: str) -> str:
    """What a program prints; nothing if the interpreter is not there or does not work."""
    try:
        done = subprocess.run([*command, "-c", program], check=False, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def works(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def run(python: Path, *arguments: str, output: Path | None = None) -> int:
    """The exit code of an interpreter with these arguments; what it prints goes to a file, if one is given."""
    with nullcontext() if output is None else output.open("wb") as stdout:
        stderr = None if output is None else subprocess.STDOUT
        return subprocess.run([str(python), *arguments], check=False, cwd=ROOT, stdout=stdout, stderr=stderr).returncode


if __name__ == "__main__":
    try:
        code = main()
    except subprocess.CalledProcessError as error:
        code = f"failed with exit code {error.returncode}: {' '.join(map(str, error.cmd))}"
    sys.exit(code)
